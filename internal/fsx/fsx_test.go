package fsx

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func TestReplaceIsSeenWholeOrNotAtAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record.json")
	type record struct{ A, B int }
	if err := ReplaceJSON(path, record{}); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 200 {
				if err := ReplaceJSON(path, record{A: w*1000 + i, B: w*1000 + i}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 500 {
		var r record
		if err := ReadJSON(path, &r); err != nil || r.A != r.B {
			t.Fatalf("torn record %+v, %v", r, err)
		}
	}
	writers.Wait()
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Fatalf("%d files are left, want 1", len(entries))
	}
}

func TestReadJSONErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	var v struct{}
	if err := ReadJSON(path, &v); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("missing file: %v", err)
	}
	if err := os.WriteFile(path, []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ReadJSON(path, &v); err == nil {
		t.Fatal("a broken record was read")
	}
}
