// Package admin is the operator's front: what `criserver image ...` asks a running daemon, by gRPC on the CRI socket. Whoever
// may use that socket is root on the node already. It translates, as package cri does, and leaves errors their kinds: the
// server's interceptor gives them their codes.
package admin

import (
	"context"
	"time"

	"github.com/containerd/platforms"
	"google.golang.org/grpc"

	"github.com/criserver/criserver/admin/api"
	"github.com/criserver/criserver/image"
)

// Images answers api's Images from an image store. Its methods may be called concurrently.
type Images struct {
	api.UnimplementedImagesServer
	store *image.Store
}

// NewImages makes the service of a store, which stays the caller's.
func NewImages(store *image.Store) *Images { return &Images{store: store} }

// Pull implements api.ImagesServer.
func (s *Images) Pull(r *api.PullRequest, stream grpc.ServerStreamingServer[api.PullResponse]) error {
	if err := required("ref", r.GetRef()); err != nil {
		return err
	}
	p, err := platform(r.GetPlatform())
	if err != nil {
		return err
	}
	o := image.PullOptions{Auth: auth(r.GetAuth()), Platform: p}
	var last *api.PullProgress
	o.Watch = func(status image.PullStatus) {
		last = progress(status)
		_ = stream.Send(&api.PullResponse{Progress: last}) // a client that is gone ends the context
	}
	id, err := s.store.Pull(stream.Context(), r.GetRef(), o)
	if err != nil {
		return err
	}
	if last != nil {
		last.BytesDone, last.LayersDone = last.BytesTotal, last.LayersTotal
	}
	return stream.Send(&api.PullResponse{Progress: last, Id: id})
}

// List implements api.ImagesServer.
func (s *Images) List(ctx context.Context, _ *api.ListRequest) (*api.ListResponse, error) {
	all, err := s.store.List(ctx)
	if err != nil {
		return nil, err
	}
	response := &api.ListResponse{}
	for _, one := range all {
		response.Images = append(response.Images, &api.Image{
			Id: one.ID, RepoTags: one.RepoTags, RepoDigests: one.RepoDigests, Size: one.Size, Pinned: one.Pinned,
			Platform: platforms.Format(one.Platform), CreatedAt: nanoseconds(one.Created),
		})
	}
	return response, nil
}

// Progress implements api.ImagesServer.
func (s *Images) Progress(context.Context, *api.ProgressRequest) (*api.ProgressResponse, error) {
	response := &api.ProgressResponse{}
	for _, status := range s.store.Pulls() {
		response.Pulls = append(response.Pulls, progress(status))
	}
	return response, nil
}

func progress(s image.PullStatus) *api.PullProgress {
	return &api.PullProgress{
		Ref: s.Ref, BeganAt: nanoseconds(s.Began), Phase: s.Phase.String(), BytesDone: s.BytesDone, BytesTotal: s.BytesTotal,
		BytesUnpacked: s.BytesUnpacked, LayersDone: int32(s.LayersDone), LayersTotal: int32(s.LayersTotal),
	}
}

func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
