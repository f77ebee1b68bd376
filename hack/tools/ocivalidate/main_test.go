package main

import "testing"

func TestCount(t *testing.T) {
	got := count("TAP version 13\nok 1 - a\n  ---\n  ok of a diagnostic\nnot ok 2 - b\nnot ok 3 - c # TODO later\nok 4 # SKIP no such thing\n1..4\n")
	if want := (verdict{ok: 1, failed: 1, skipped: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
