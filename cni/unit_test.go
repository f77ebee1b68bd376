package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestParseQuantity(t *testing.T) {
	for text, want := range map[string]uint64{"10M": 10_000_000, "1Gi": 1 << 30, "1.5k": 1500, "1e6": 1_000_000, "7": 7, "100m": 1, "2E3": 2000, "0": 0} {
		if got, err := parseQuantity(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "-1", "1X", "1 M", "0x10", "inf", "NaN", "1e99", "1KiB", "1_000", "10E"} {
		if got, err := parseQuantity(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func FuzzParseQuantity(f *testing.F) {
	for _, s := range []string{"10M", "1.5Gi", "1e6", "100m", "E", "+.5Ki"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseQuantity(s)
		if err != nil && n != 0 || n >= 1<<63 {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	})
}

// A record, whatever is in it, costs at most its pod.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"bootID":"x","state":"attached","mode":"builtin","request":{"podID":"p"},"builtin":{"addresses":["10.0.0.2/24"]}}`))
	f.Add([]byte(`{"mode":"cni","request":{"podID":"p"},"conflist":{"list":{}}}`))
	f.Add([]byte(`{"mode":"cni","request":{"podID":"../p"}}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := openStore(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.dir, "p.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		broken := 0
		records, err := s.load(func(string, error) { broken++ })
		if err != nil || len(records)+broken != 1 {
			t.Fatalf("%d records, %d broken, %v", len(records), broken, err)
		}
		for id, r := range records {
			if id != "p" || r.Request.PodID != "p" || (r.Builtin == nil) == (r.Mode == ModeBuiltin) {
				t.Errorf("%q: %+v", id, r)
			}
		}
	})
}

func TestPodIDs(t *testing.T) {
	for _, bad := range []string{"", ".", "..", "../x", "a/b", "-x", strings.Repeat("a", 129), "a\x00"} {
		if err := checkPodID(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestKeys(t *testing.T) {
	var k keys
	ctx := context.Background()
	unlock, err := k.lock(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := k.lock(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a held key: %v", err)
	}
	other, err := k.lock(ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	unlock()
	count := 0
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			unlock, err := k.lock(ctx, "a")
			if err != nil {
				t.Error(err)
				return
			}
			count++
			unlock()
		})
	}
	wg.Wait()
	if count != 50 || len(k.held) != 0 {
		t.Errorf("counted %d, %d keys are left", count, len(k.held))
	}
}

func TestGate(t *testing.T) {
	g := newGate()
	ctx := context.Background()
	if err := g.enter(ctx); err != nil {
		t.Fatal(err)
	}
	if g.close() {
		t.Error("closed while somebody is inside")
	}
	g.leave()
	if !g.close() || g.close() {
		t.Error("want it closed once")
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := g.enter(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("entered a closed gate: %v", err)
	}
	entered := make(chan error)
	go func() { entered <- g.enter(ctx) }()
	g.open()
	if err := <-entered; err != nil {
		t.Error(err)
	}
}

func TestBackoff(t *testing.T) {
	for tries, want := range map[int]time.Duration{0: time.Second, 1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 50: 5 * time.Minute} {
		if got := backoff(tries); got != want {
			t.Errorf("after %d tries: %v, want %v", tries, got, want)
		}
	}
}
