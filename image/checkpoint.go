package image

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/criserver/criserver/image/layer"
)

// checkpointAnnotations are those by which a manifest says that the image is a container's checkpoint: the first is
// what engines have agreed on, the second what newer tools write.
var checkpointAnnotations = []string{"io.kubernetes.cri-o.annotations.checkpoint.name", "org.criu.checkpoint.container.name"}

func isCheckpoint(annotations map[string]string) bool {
	for _, name := range checkpointAnnotations {
		if annotations[name] != "" {
			return true
		}
	}
	return false
}

// Changes writes what the writable layer named key holds as the tar of a layer. Nobody may write to it meanwhile.
func (s *Store) Changes(ctx context.Context, key string, w io.Writer) error {
	dir, err := s.openUpper(ctx, key)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := layer.Diff(ctx, dir, w); err != nil {
		return fmt.Errorf("writable layer %s: %w", key, err)
	}
	return nil
}

// Apply unpacks the tar of a layer into the writable layer named key, which nobody has used yet. After an error the layer
// is good for nothing but Release.
func (s *Store) Apply(ctx context.Context, key string, r io.Reader) error {
	dir, err := s.openUpper(ctx, key)
	if err != nil {
		return err
	}
	defer dir.Close()
	result, err := layer.Write(ctx, dir, r, layer.Options{})
	if err == nil && result.NeedsParents() {
		var parents []string
		if parents, err = s.snapshots.LayerDirs(ctx, keyPrefix+key); err == nil {
			err = layer.Adopt(ctx, dir, &result, parents)
		}
	}
	if err != nil {
		return fmt.Errorf("writable layer %s: %w", key, err)
	}
	return nil
}

func (s *Store) openUpper(ctx context.Context, key string) (*os.File, error) {
	path, err := s.snapshots.UpperDir(s.storeContext(ctx), keyPrefix+key)
	if err != nil {
		return nil, fmt.Errorf("writable layer %s: %w", key, err)
	}
	return os.Open(path)
}

// Directories are those of an image's layers, uppermost first. They stay as long as the image does.
func (s *Store) Directories(ctx context.Context, imageID string) ([]string, error) {
	e, err := s.index.find(imageID)
	if err != nil {
		return nil, err
	}
	if e.top() == "" {
		return nil, nil
	}
	return s.snapshots.LayerDirs(s.storeContext(ctx), e.top())
}
