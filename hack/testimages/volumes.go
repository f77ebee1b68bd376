package main

import (
	"context"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// addVolumes makes an image that asks for volumes of its own: one over what it has there, one over nothing.
func addVolumes(_ context.Context, l *layout, _ map[string]string, base layer) error {
	seed, err := one(l, "data/seed", 0o644, "from the image\n")
	if err != nil {
		return err
	}
	return l.add(image{layers: []layer{base, seed}, config: ocispec.ImageConfig{
		Env: []string{searchPath}, Cmd: []string{"sh"}, Volumes: map[string]struct{}{"/data": {}, "/new/scratch": {}},
	}}, "criserver/volumes:latest")
}
