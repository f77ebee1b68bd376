package image

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestTarSize(t *testing.T) {
	const kib, mib, gib = 1 << 10, 1 << 20, 1 << 30
	for _, test := range []struct {
		limits Limits
		blob   int64
		want   int64
		key    string
	}{
		{Limits{}, 100, gib, "ratio"},
		{Limits{}, 0, gib, "ratio"},
		{Limits{}, 5 * mib, gib, "ratio"},
		{Limits{}, 10 * mib, 2000 * mib, "ratio"},
		{Limits{}, gib, 128 * gib, "size"},
		{Limits{}, 1 << 62, 128 * gib, "size"},
		{Limits{LayerSize: mib}, 10, mib, "size"},
		{Limits{InflateRatio: 10}, gib, 10 * gib, "ratio"},
		{Limits{LayerSize: 1 << 62, InflateRatio: 1 << 61}, 4, 1 << 62, "size"},
	} {
		got, why := test.limits.tarSize(ocispec.Descriptor{Size: test.blob})
		if got != test.want || !strings.Contains(why, test.key) {
			t.Errorf("%+v, a blob of %d: %d by %s", test.limits, test.blob, got, why)
		}
	}
}

// TestBombs pulls layers that unpack to more than they may, in each compression, and one that is all hole.
func TestBombs(t *testing.T) {
	files := map[string]string{"a": strings.Repeat("\x00", 4<<20)}
	for name, l := range map[string]testLayer{
		"gzip": makeLayer(t, "gzip", files), "zstd": makeLayer(t, "zstd", files), "plain": makeLayer(t, "", files),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeRegistry(t)
			pushed := f.push("bomb", "1", []testLayer{l})
			s := openStore(t, Config{Limits: Limits{LayerSize: 1 << 20}})
			_, err := s.Pull(t.Context(), pushed.ref, PullOptions{})
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "max_layer_size") && !strings.Contains(err.Error(), "files") {
				t.Errorf("error: %v", err)
			}
			assertEmpty(t, s)
			s.config.Limits = Limits{LayerSize: 1 << 30}
			mustPull(t, s, pushed.ref)
		})
	}
}
