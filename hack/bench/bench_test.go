package main

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	var took []time.Duration
	for i := 100; i >= 1; i-- { // unsorted
		took = append(took, time.Duration(i)*time.Millisecond)
	}
	for q, want := range map[float64]float64{0: 1, 0.5: 51, 0.95: 95, 1: 100} {
		if got := quantile(took, q); got == nil || *got != want {
			t.Errorf("quantile %g is %v, want %g", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); got != nil {
		t.Errorf("of nothing: %g", *got)
	}
}

func TestRows(t *testing.T) {
	r := newReport(true)
	r.add(groupBuiltin, "pod up p50", "ms", ptr(5), ptr(150))
	r.add(groupMany, "up", "1/s", ptr(100), ptr(10))
	r.add(groupMemory, "a pod, no daemon", "KiB", ptr(100), nil)
	r.floor(groupBuiltin, "pod up p50", ptr(2))
	r.judge()
	for i, want := range []struct {
		ratio float64
		met   string
	}{{30, "true"}, {10, "false"}, {0, ""}} {
		got := r.Rows[i]
		met := ""
		if got.Met != nil && *got.Met {
			met = "true"
		} else if got.Met != nil {
			met = "false"
		}
		if (got.Ratio == nil) != (want.ratio == 0) || got.Ratio != nil && *got.Ratio != want.ratio || met != want.met {
			t.Errorf("%s: ratio %v, met %q; want %v", got.Name, got.Ratio, met, want)
		}
	}
	r.floor(groupBuiltin, "pod up p50", ptr(1.9))
	r.judge()
	if *r.Rows[0].Met {
		t.Error("5 is within 2.5 times 1.9")
	}
}

var update = flag.Bool("update", false, "write the golden files")

// TestDocs compares the table and the plot of a small report with golden files.
func TestDocs(t *testing.T) {
	r := &report{Time: "2026-01-02T03:04:05Z", Kernel: "6.1", CPUs: 2, Ours: "criserver 1", Peer: "other 2", Quick: true}
	r.add(groupBuiltin, "pod up p50", "ms", ptr(5), ptr(150))
	r.add(groupMany, "up", "1/s", ptr(100), ptr(10))
	r.floor(groupBuiltin, "pod up p50", ptr(2))
	r.judge()
	page, err := replaceResults("# Head\n"+resultsBegin+"\nold\n"+resultsEnd+"\ntail\n", markdown(r))
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{
		"docs.md": page, "plot.svg": plot([]point{{50, 4, 9}, {100, 4.5, 11}, {150, 5, 10}}),
	} {
		golden := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || string(want) != got {
			t.Errorf("%s differs (go test ./hack/bench -update writes it), %v:\n%s", golden, err, got)
		}
	}
	if _, err := replaceResults("nothing", ""); err == nil {
		t.Error("a page without the lines was accepted")
	}
}

func TestNiceStep(t *testing.T) {
	for f, want := range map[float64]float64{0: 1, 0.03: 0.05, 1: 1, 1.1: 2, 3: 5, 7: 10, 20: 20, 130: 200} {
		if got := niceStep(f); got < want*0.999 || got > want*1.001 {
			t.Errorf("%g: %g, want %g", f, got, want)
		}
	}
}
