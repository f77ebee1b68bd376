package cri

import (
	"context"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/image"
)

// imageName checks the image of a request. Images are the same for all handlers.
func (s *imageService) imageName(r *runtime.ImageSpec) (string, error) {
	if r.GetImage() == "" {
		return "", required("image.image")
	}
	if err := checkHandler(s.engine, "image.runtime_handler", r.GetRuntimeHandler()); err != nil {
		return "", err
	}
	return r.GetImage(), text("image.image", r.GetImage())
}

// PullImage implements ImageService.
func (s *imageService) PullImage(ctx context.Context, r *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	name, err := s.imageName(r.GetImage())
	if err != nil {
		return nil, err
	}
	id, err := s.images.Pull(ctx, name, image.PullOptions{Auth: authOf(r.GetAuth())})
	if err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: id}, nil
}

func authOf(a *runtime.AuthConfig) image.Auth {
	return image.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
}

// ListImages implements ImageService.
func (s *imageService) ListImages(ctx context.Context, r *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	images, err := s.listImages(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListImagesResponse{Images: images}, nil
}

func (s *imageService) listImages(ctx context.Context, f *runtime.ImageFilter) ([]*runtime.Image, error) {
	if name := f.GetImage().GetImage(); name != "" {
		found, err := s.images.Status(ctx, name)
		switch {
		case errdefs.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, err
		}
		return []*runtime.Image{criImage(found)}, nil
	}
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	var images []*runtime.Image
	for _, one := range all {
		images = append(images, criImage(one))
	}
	return images, nil
}

// ImageStatus implements ImageService. An image that is not here is an answer without one, not an error.
func (s *imageService) ImageStatus(ctx context.Context, r *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	name, err := s.imageName(r.GetImage())
	if err != nil {
		return nil, err
	}
	found, err := s.images.Status(ctx, name)
	if errdefs.IsNotFound(err) {
		return &runtime.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	response := &runtime.ImageStatusResponse{Image: criImage(found)}
	if r.GetVerbose() {
		response.Info, err = infoOf(map[string]any{
			"config": found.Config, "platform": found.Platform, "created": found.Created, "layers": found.LayerIDs,
		})
	}
	return response, err
}

// RemoveImage implements ImageService.
func (s *imageService) RemoveImage(ctx context.Context, r *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	name, err := s.imageName(r.GetImage())
	if err != nil {
		return nil, err
	}
	return &runtime.RemoveImageResponse{}, s.images.Remove(ctx, name)
}

// ImageFsInfo implements ImageService.
func (s *imageService) ImageFsInfo(ctx context.Context, _ *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	info, err := s.images.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	// Writable layers lie on the same filesystem, beside the images.
	layers := s.engine.LayersUsage(ctx)
	return &runtime.ImageFsInfoResponse{
		ImageFilesystems:     []*runtime.FilesystemUsage{filesystem(info.MountPoint, info.When, info.Bytes, info.Inodes)},
		ContainerFilesystems: []*runtime.FilesystemUsage{filesystem(info.MountPoint, layers.At, layers.Bytes, layers.Inodes)},
	}, nil
}

func criImage(i image.Image) *runtime.Image {
	one := &runtime.Image{
		Id: i.ID, RepoTags: i.RepoTags, RepoDigests: i.RepoDigests,
		// CRI wants more than 0, and an image may have no layer and a negligible configuration.
		Size:     uint64(max(i.Size, 1)),
		Username: i.Username, Pinned: i.Pinned,
	}
	if i.UID != nil {
		one.Uid = &runtime.Int64Value{Value: *i.UID}
	}
	return one
}
