package main

import (
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
