package main

import (
	"encoding/json"
	"testing"
	"time"
)

func TestSeries(t *testing.T) {
	var took []time.Duration
	for i := 100; i >= 1; i-- { // unsorted
		took = append(took, time.Duration(i)*time.Millisecond)
	}
	s := newSeries("x", took)
	if s.N != 100 || s.Min != 1 || s.P50 != 51 || s.P95 != 95 || s.Max != 100 {
		t.Errorf("got %+v", s)
	}
	if s := newSeries("one", []time.Duration{2 * time.Millisecond}); s.Min != 2 || s.P95 != 2 || s.Max != 2 {
		t.Errorf("of one: %+v", s)
	}
	if s := newSeries("none", nil); s.N != 0 || s.Max != 0 {
		t.Errorf("of none: %+v", s)
	}
	text, err := json.Marshal(newSeries("json", []time.Duration{1234567}))
	if err != nil || string(text) != `{"name":"json","n":1,"min":1.23,"p50":1.23,"p95":1.23,"max":1.23}` {
		t.Errorf("JSON %s, %v", text, err)
	}
}
