package image

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// TestRetryFetchesWhatIsMissing fails a pull, or kills its process, in the second of two layers: of the next pull the first
// costs nothing, and its blob is there.
func TestRetryFetchesWhatIsMissing(t *testing.T) {
	if root := os.Getenv(envKillRoot); root != "" {
		s := openStore(t, Config{Root: root, LayerGrace: time.Hour})
		_, err := s.Pull(t.Context(), os.Getenv(envKillRef), PullOptions{})
		t.Fatal("the pull ended: ", err)
	}
	for _, how := range []string{"failed", "killed"} {
		t.Run(how, func(t *testing.T) {
			f := newFakeRegistry(t)
			first := makeLayer(t, "gzip", map[string]string{"b": noise(50_000)})
			second := makeLayer(t, "", map[string]string{"a": strings.Repeat("a", 500_000)})
			pushed := f.push("app", "1", []testLayer{first, second})
			hanging := f.hang(second)
			root := t.TempDir()
			if how == "failed" {
				s := openStore(t, Config{Root: root, LayerGrace: time.Hour, NoProgress: time.Second})
				if _, err := s.Pull(t.Context(), pushed.ref, PullOptions{}); err == nil {
					t.Fatal("it was pulled")
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				kill := startPulling(t, root, pushed.ref, hanging)
				layers := func() int { entries, _ := os.ReadDir(root + "/content/blobs/sha256"); return len(entries) }
				waitFor(t, func() bool { return layers() == 3 }) // manifest, configuration, first layer
				time.Sleep(200 * time.Millisecond)               // for the layer's commit
				kill()
			}
			f.setSpoil(nil)
			s := openStore(t, Config{Root: root, LayerGrace: time.Hour})
			ctx := s.storeContext(t.Context())
			if err := s.gc.run(ctx); err != nil {
				t.Fatal(err)
			}
			if left, err := s.content.ListStatuses(ctx); err != nil || len(left) > 0 {
				t.Errorf("ingests are left: %v, %v", left, err)
			}
			mustPull(t, s, pushed.ref)
			if n := f.blobGets(first.Digest); n != 1 {
				t.Errorf("the layer that was complete was fetched %d times", n)
			}
			if _, err := s.content.Info(ctx, first.Digest); err != nil {
				t.Errorf("its blob: %v", err)
			}
			left, err := s.leases.List(ctx)
			if err != nil || len(left) != 1 || !strings.HasPrefix(left[0].ID, keptPrefix) || left[0].Labels["containerd.io/gc.expire"] == "" {
				t.Errorf("leases: %v, %v", left, err)
			}
			for _, lease := range left { // as if it had ended
				if err := s.leases.Delete(ctx, leases.Lease{ID: lease.ID}); err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
			}
			if err := s.Remove(t.Context(), pushed.ref); err != nil {
				t.Fatal(err)
			}
			if _, err := s.content.Info(ctx, first.Digest); !errdefs.IsNotFound(err) {
				t.Errorf("the blob of a removed image: %v", err)
			}
		})
	}
}
