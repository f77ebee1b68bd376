package image

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestPullStatus looks at a pull that hangs in the middle of its second layer, as its caller and as somebody else, and
// watches another one to its end.
func TestPullStatus(t *testing.T) {
	f := newFakeRegistry(t)
	first := makeLayer(t, "gzip", map[string]string{"b": strings.Repeat("b", 9000)})
	second := makeLayer(t, "", map[string]string{"a": strings.Repeat("a", 3_000_000)})
	pushed := f.push("app", "1", []testLayer{first, second})
	release := make(chan struct{})
	f.setSpoil(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, second.Digest.String()) {
			return false
		}
		_, _ = w.Write(second.blob[:len(second.blob)/2])
		w.(http.Flusher).Flush()
		<-release
		_, _ = w.Write(second.blob[len(second.blob)/2:])
		return true
	})
	s := openStore(t, Config{})
	if pulls := s.Pulls(); len(pulls) != 0 {
		t.Errorf("pulls before any: %v", pulls)
	}
	var mu sync.Mutex
	var seen []PullStatus
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(t.Context(), pushed.ref, PullOptions{Watch: func(p PullStatus) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, p)
		}})
		done <- err
	}()
	total := first.Size + second.Size
	waitFor(t, func() bool {
		pulls := s.Pulls()
		return len(pulls) == 1 && pulls[0].LayersDone == 1 && pulls[0].BytesDone >= first.Size+second.Size/2-1
	})
	p := s.Pulls()[0]
	if p.Ref != pushed.ref || p.Phase != Fetching || p.BytesTotal != total || p.BytesDone > first.Size+second.Size/2 || p.LayersTotal != 2 ||
		p.BytesUnpacked < second.Size/4 || time.Since(p.Began) > time.Minute {
		t.Errorf("status: %+v", p)
	}
	waitFor(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(seen) > 1 })
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i, p := range seen {
		if i > 0 && p.BytesDone < seen[i-1].BytesDone {
			t.Errorf("progress went back: %+v", seen)
		}
	}
	if pulls := s.Pulls(); len(pulls) != 0 {
		t.Errorf("pulls after all: %v", pulls)
	}
}
