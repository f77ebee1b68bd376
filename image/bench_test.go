package image

import (
	"context"
	"os"
	"testing"
)

// BenchmarkPull pulls $CRISERVER_BENCH_IMAGE ("127.0.0.1:5000/criserver/big:gzip", served by hack/testimages) into an empty
// store, below $CRISERVER_BENCH_ROOT when that is set. Read facts on inode reuse before comparing runs: use -benchtime=1x on
// a fresh filesystem, and with $CRISERVER_BENCH_KEEP the store is left for it to go with.
func BenchmarkPull(b *testing.B) {
	ref := os.Getenv("CRISERVER_BENCH_IMAGE")
	if ref == "" {
		b.Skip("CRISERVER_BENCH_IMAGE names no image")
	}
	for b.Loop() {
		b.StopTimer()
		root, err := os.MkdirTemp(os.Getenv("CRISERVER_BENCH_ROOT"), "pull-*")
		if err != nil {
			b.Fatal(err)
		}
		s, err := Open(context.Background(), Config{Root: root})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		if os.Getenv("CRISERVER_BENCH_KEEP") == "" {
			if err := os.RemoveAll(root); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
}
