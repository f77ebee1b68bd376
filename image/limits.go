package image

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits bound what a layer may unpack to, so that a small image cannot fill the disk. Zero values are the defaults.
type Limits struct {
	// LayerSize is the largest tar of a layer in bytes, and the largest sum of its files' sizes, holes included. Default
	// 128 GiB.
	LayerSize int64
	// InflateRatio is how many times as large as its blob a layer's tar may be; one up to a GiB may always. Default 200.
	InflateRatio int64
}

const (
	defaultLayerSize    = 128 << 30
	defaultInflateRatio = 200
	alwaysInflated      = 1 << 30
)

// tarSize is the largest tar of a layer, and says why it may not be larger.
func (l Limits) tarSize(d ocispec.Descriptor) (limit int64, why string) {
	size, ratio := l.layerSize(), l.InflateRatio
	if ratio <= 0 {
		ratio = defaultInflateRatio
	}
	if blob := max(d.Size, 1); blob <= size/ratio {
		if grown := max(blob*ratio, alwaysInflated); grown < size {
			return grown, fmt.Sprintf("%d times its blob of %d bytes (image.max_inflate_ratio)", ratio, d.Size)
		}
	}
	return size, "image.max_layer_size"
}

func (l Limits) layerSize() int64 {
	if l.LayerSize <= 0 {
		return defaultLayerSize
	}
	return l.LayerSize
}

// bound ends a layer's tar stream with an error when it gets larger than it may. errdefs.ErrInvalidArgument, as another try
// would not help.
func (l Limits) bound(r io.Reader, d ocispec.Descriptor) io.Reader {
	limit, why := l.tarSize(d)
	return &boundedTar{r: r, left: limit, err: fmt.Errorf("the layer unpacks to more than %d bytes, the limit by %s: %w", limit, why, errdefs.ErrInvalidArgument)}
}

type boundedTar struct {
	r    io.Reader
	left int64
	err  error
}

func (b *boundedTar) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, b.err
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, b.err
	}
	return n, err
}
