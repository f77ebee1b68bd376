package cri

import (
	"path"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

// imageVolumeOf checks and translates a mount of an image.
func imageVolumeOf(at string, m *runtime.Mount) (spec.Mount, error) {
	image, sub := m.GetImage(), m.GetImageSubPath()
	switch {
	case image.GetImage() == "":
		return spec.Mount{}, required(at + ".image.image")
	case m.GetHostPath() != "":
		return spec.Mount{}, invalid(at+".host_path", "a mount has a host_path or an image, not both")
	case !m.GetReadonly():
		return spec.Mount{}, invalid(at+".readonly", "images are mounted read-only; set it")
	case m.GetPropagation() != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return spec.Mount{}, invalid(at+".propagation", "%s: nothing is mounted in an image, so only PRIVATE is known", m.GetPropagation())
	case path.IsAbs(sub) || strings.HasPrefix(path.Clean(sub), ".."):
		return spec.Mount{}, invalid(at+".image_sub_path", "%q is not a path in the image", sub)
	}
	for field, s := range map[string]string{".image.image": image.GetImage(), ".image.user_specified_image": image.GetUserSpecifiedImage(), ".image_sub_path": sub} {
		if err := text(at+field, s); err != nil {
			return spec.Mount{}, err
		}
	}
	// Its files are shown as the pod's user namespace has them, whatever the mappings say: kubelet names the pod's.
	if _, _, err := mountMappings(at, m); err != nil {
		return spec.Mount{}, err
	}
	target, err := absolute(at+".container_path", m.GetContainerPath())
	if err != nil {
		return spec.Mount{}, err
	}
	for _, option := range m.GetMountOptions() {
		if !mountOptions[option] {
			return spec.Mount{}, invalid(at+".mount_options", "%q is not an option that may be added to a bind mount", option)
		}
	}
	volume := &spec.ImageVolume{Image: image.GetImage(), UserImage: image.GetUserSpecifiedImage(), SubPath: sub}
	return spec.Mount{
		Target: target, Readonly: true, RecursiveReadonly: m.GetRecursiveReadOnly(), Propagation: "private", Options: m.GetMountOptions(),
		SELinuxRelabel: m.GetSelinuxRelabel(), Image: volume,
	}, nil
}

// criVolume is the image of a mount in a status.
func criVolume(v *spec.ImageVolume) (image *runtime.ImageSpec, sub string) {
	if v == nil {
		return nil, ""
	}
	return &runtime.ImageSpec{Image: v.Image, UserSpecifiedImage: v.UserImage, ImageRef: v.Ref}, v.SubPath
}
