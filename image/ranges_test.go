package image

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestPullByRanges pulls a large layer by several requests at once, and by one where that is configured.
func TestPullByRanges(t *testing.T) {
	data := make([]byte, 33<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	f := newFakeRegistry(t)
	l := makeLayer(t, "", map[string]string{"a": string(data)})
	pushed := f.push("app", "1", []testLayer{l})
	for ranges, want := range map[int]int32{0: 5, 1: 1} {
		var asked atomic.Int32
		f.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, l.Digest.String()) {
				return false
			}
			asked.Add(1)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(l.blob))
			return true
		})
		s := openStore(t, Config{Ranges: ranges})
		mustPull(t, s, pushed.ref)
		if n := asked.Load(); n != want {
			t.Errorf("ranges = %d: %d requests, want %d", ranges, n, want)
		}
		assertNothingHalfMade(t, s)
	}
}
