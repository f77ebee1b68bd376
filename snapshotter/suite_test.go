package snapshotter

import (
	"context"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
)

func TestConformance(t *testing.T) {
	requireRoot(t)
	// The suite asks by this name whether a directory of a lower layer can be renamed; on overlayfs it cannot.
	testsuite.SnapshotterSuite(t, "overlayfs", func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(root)
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}

func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs CAP_SYS_ADMIN to mount overlays and CAP_CHOWN to give files away")
	}
}
