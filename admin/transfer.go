package admin

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"github.com/criserver/criserver/admin/api"
	"github.com/criserver/criserver/image"
)

// chunk is how much of an archive goes into one message.
const chunk = 256 << 10

func auth(a *api.Auth) image.Auth {
	return image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}

func platform(text string) (*ocispec.Platform, error) {
	if text == "" {
		return nil, nil
	}
	p, err := platforms.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("platform %q: %w: %w", text, errdefs.ErrInvalidArgument, err)
	}
	return &p, nil
}

func selection(s *api.Selection) (image.SendOptions, error) {
	p, err := platform(s.GetPlatform())
	return image.SendOptions{Platform: p, All: s.GetAll()}, err
}

func required(field, value string) error {
	if value == "" {
		return fmt.Errorf("%s: required: %w", field, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Push implements api.ImagesServer.
func (s *Images) Push(r *api.PushRequest, stream grpc.ServerStreamingServer[api.PushResponse]) error {
	if err := required("ref", r.GetRef()); err != nil {
		return err
	}
	send, err := selection(r.GetSelection())
	if err != nil {
		return err
	}
	pushed, err := s.store.Push(stream.Context(), r.GetRef(), image.PushOptions{
		SendOptions: send, To: r.GetTo(), Auth: auth(r.GetAuth()),
		Report: func(p image.Part) { // a client that is gone ends the context
			_ = stream.Send(&api.PushResponse{Part: &api.PushedPart{Digest: p.Digest.String(), Size: p.Size, How: p.How}})
		},
	})
	if err != nil {
		return err
	}
	return stream.Send(&api.PushResponse{Result: &api.PushResult{
		Name: pushed.Name, Digest: pushed.Digest.String(), Uploaded: int32(pushed.Uploaded), Existed: int32(pushed.Existed),
		Mounted: int32(pushed.Mounted), Bytes: pushed.Bytes, Missing: pushed.Missing,
	}})
}

// Tag implements api.ImagesServer.
func (s *Images) Tag(ctx context.Context, r *api.TagRequest) (*api.TagResponse, error) {
	if err := required("ref", r.GetRef()); err != nil {
		return nil, err
	}
	if err := required("name", r.GetName()); err != nil {
		return nil, err
	}
	return &api.TagResponse{}, s.store.Tag(ctx, r.GetRef(), r.GetName())
}

// Untag implements api.ImagesServer.
func (s *Images) Untag(ctx context.Context, r *api.UntagRequest) (*api.UntagResponse, error) {
	if err := required("name", r.GetName()); err != nil {
		return nil, err
	}
	return &api.UntagResponse{}, s.store.Untag(ctx, r.GetName())
}

// Import implements api.ImagesServer.
func (s *Images) Import(stream grpc.ClientStreamingServer[api.ImportRequest, api.ImportResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("options: required: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	p, err := platform(first.GetOptions().GetPlatform())
	if err != nil {
		return err
	}
	archive := &received{stream: stream, left: first.GetData()}
	imported, err := s.store.Import(stream.Context(), archive, image.ImportOptions{Name: first.GetOptions().GetName(), Platform: p})
	if err != nil {
		return err
	}
	response := &api.ImportResponse{}
	for _, one := range imported {
		response.Images = append(response.Images, &api.ImportedImage{Id: one.ID, Names: one.Names, Digest: one.Digest.String(), Missing: one.Missing})
	}
	return stream.SendAndClose(response)
}

// received reads what a client sends.
type received struct {
	stream grpc.ClientStreamingServer[api.ImportRequest, api.ImportResponse]
	left   []byte
}

func (r *received) Read(p []byte) (int, error) {
	for len(r.left) == 0 {
		next, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.left = next.GetData()
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// Export implements api.ImagesServer.
func (s *Images) Export(r *api.ExportRequest, stream grpc.ServerStreamingServer[api.ExportResponse]) error {
	send, err := selection(r.GetSelection())
	if err != nil {
		return err
	}
	w := &sender{stream: stream, buffer: make([]byte, 0, chunk)}
	exported, err := s.store.Export(stream.Context(), w, r.GetRefs(), image.ExportOptions{SendOptions: send, Docker: r.GetDocker(), Auth: auth(r.GetAuth())})
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		return err
	}
	result := &api.ExportResult{}
	for _, one := range exported {
		result.Images = append(result.Images, &api.ExportedImage{Name: one.Name, Digest: one.Digest.String(), Missing: one.Missing})
	}
	return stream.Send(&api.ExportResponse{Result: result})
}

// sender sends what is written in chunks.
type sender struct {
	stream grpc.ServerStreamingServer[api.ExportResponse]
	buffer []byte
}

func (s *sender) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), chunk-len(s.buffer))
		s.buffer = append(s.buffer, p[:n]...)
		p, written = p[n:], written+n
		if len(s.buffer) == chunk {
			if err := s.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (s *sender) flush() error {
	if len(s.buffer) == 0 {
		return nil
	}
	err := s.stream.Send(&api.ExportResponse{Data: s.buffer})
	s.buffer = make([]byte, 0, chunk) // gRPC may keep what it was given (interceptors, statistics)
	return err
}

// Check implements api.ImagesServer.
func (s *Images) Check(r *api.CheckRequest, stream grpc.ServerStreamingServer[api.CheckResponse]) error {
	sum, err := s.store.Check(stream.Context(), image.CheckOptions{
		Ref: r.GetRef(), Repair: r.GetRepair(), Auth: auth(r.GetAuth()),
		Report: func(f image.Finding) {
			_ = stream.Send(&api.CheckResponse{Finding: &api.Finding{What: f.What, Images: f.Images, Problem: f.Problem, Repaired: f.Repaired}})
		},
	})
	if err != nil {
		return err
	}
	return stream.Send(&api.CheckResponse{Result: &api.CheckResult{
		Images: int32(sum.Images), Blobs: int32(sum.Blobs), Layers: int32(sum.Layers), Absent: int32(sum.Absent),
		Unverified: int32(sum.Unverified), Bytes: sum.Bytes, Broken: int32(sum.Broken), Repaired: int32(sum.Repaired),
	}})
}
