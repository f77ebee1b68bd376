package rig

import (
	"slices"
	"testing"
)

func TestBeneath(t *testing.T) {
	var all []Process
	for pid, parent := range map[int]int{1: 0, 2: 0, 30: 2, 40: 1, 50: 40, 60: 50, 51: 40, 10: 60, 41: 1} {
		all = append(all, Process{PID: pid, PPID: parent})
	}
	for root, want := range map[int][]int{40: {10, 50, 51, 60}, 60: {10}, 10: nil, 99: nil} {
		var got []int
		for _, p := range beneath(all, root) {
			got = append(got, p.PID)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("beneath %d are %v, want %v", root, got, want)
		}
	}
}
