package engine

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/engine/spec"
)

// TestScratchVolumes leaves out what is mounted over, and numbers volumes after images.
func TestScratchVolumes(t *testing.T) {
	e := open(t, newWorld(), t.TempDir())
	c := &spec.Container{ID: "c", Mounts: []spec.Mount{{Target: "/data/", Source: "/x"}, {Target: "/image", Image: &spec.ImageVolume{Image: "busybox"}}}}
	image := Image{ID: imageID, Config: ocispec.ImageConfig{Volumes: map[string]struct{}{"/data": {}, "cache/": {}, "/": {}, "/var//lib": {}}}}
	mounts, err := e.scratchVolumes(t.Context(), &spec.Pod{}, c, image)
	if err != nil || len(mounts) != 2 || mounts[0].Destination != "/var/lib" || mounts[1].Destination != "/cache" {
		t.Errorf("got %+v, %v", mounts, err)
	}
}
