package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// row is one figure. What was not measured, or has no meaning, is nil.
type row struct {
	Group string   `json:"group"`
	Name  string   `json:"name"`
	Unit  string   `json:"unit"`
	Ours  *float64 `json:"ours"`
	Peer  *float64 `json:"peer"`
	// Ratio says how many times better ours is than the peer's, whether more or less is better.
	Ratio *float64 `json:"ratio"`
	Goal  string   `json:"goal,omitempty"`
	Met   *bool    `json:"met,omitempty"`
	Floor *float64 `json:"floor"`
}

// report is what is written as JSON.
type report struct {
	Time   string  `json:"time"`
	Kernel string  `json:"kernel"`
	CPUs   int     `json:"cpus"`
	Ours   string  `json:"ours"`
	Peer   string  `json:"peer"`
	Quick  bool    `json:"quick"`
	Rows   []row   `json:"rows"`
	Curve  []point `json:"curve,omitempty"`
}

// point is the start latency of a batch of pods, ms, with so many already up.
type point struct {
	Pods int     `json:"pods"`
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
}

func newReport(quick bool) *report {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return &report{Time: time.Now().UTC().Format(time.RFC3339), Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(), Quick: quick}
}

// more is among the units of which more is better.
var more = map[string]bool{"1/s": true, "MB/s": true, "Mbit/s": true}

// add notes a figure.
func (r *report) add(group, name, unit string, ours, peer *float64) {
	one := row{Group: group, Name: name, Unit: unit, Ours: ours, Peer: peer}
	if ours != nil && peer != nil && *ours > 0 && *peer > 0 {
		ratio := *peer / *ours
		if more[unit] {
			ratio = 1 / ratio
		}
		one.Ratio = &ratio
	}
	if g, ok := goals[group+": "+name]; ok {
		one.Goal = g.String()
	}
	r.Rows = append(r.Rows, one)
}

// floor adds the time of a floor program to a row that is there.
func (r *report) floor(group, name string, value *float64) {
	for i := range r.Rows {
		if r.Rows[i].Group == group && r.Rows[i].Name == name {
			r.Rows[i].Floor = value
		}
	}
}

// judge says of each row with a goal whether it is met. It is called at the end, when all columns are filled.
func (r *report) judge() {
	for i := range r.Rows {
		one := &r.Rows[i]
		if g, ok := goals[one.Group+": "+one.Name]; ok {
			one.Met = g.met(*one)
		}
	}
}

// goal is what a row should come to; what is 0 does not matter.
type goal struct {
	ratio float64 // times better than the peer
	floor float64 // at most so many times the floor
	most  float64 // at most this, in the row's unit
}

func (g goal) String() string {
	var all []string
	if g.ratio > 0 {
		all = append(all, fmt.Sprintf("%gx", g.ratio))
	}
	if g.floor > 0 {
		all = append(all, fmt.Sprintf("<= %g floor", g.floor))
	}
	if g.most > 0 {
		all = append(all, fmt.Sprintf("<= %g", g.most))
	}
	return strings.Join(all, ", ")
}

// met is nil when a figure that it takes is missing.
func (g goal) met(r row) *bool {
	ok := true
	if g.ratio > 0 {
		if r.Ratio == nil {
			return nil
		}
		ok = ok && *r.Ratio >= g.ratio
	}
	if g.floor > 0 {
		if r.Ours == nil || r.Floor == nil {
			return nil
		}
		ok = ok && *r.Ours <= g.floor**r.Floor
	}
	if g.most > 0 {
		if r.Ours == nil {
			return nil
		}
		ok = ok && *r.Ours <= g.most
	}
	return &ok
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "ours: %s, peer: %s; Linux %s, %d CPUs\n", r.Ours, r.Peer, r.Kernel, r.CPUs)
	group := ""
	for _, one := range r.Rows {
		if one.Group != group {
			group = one.Group
			fmt.Fprintf(w, "\n%-53s %10s %10s %8s %9s  %s\n", group, "ours", "peer", "ratio", "floor", "goal")
		}
		met := ""
		if one.Met != nil && *one.Met {
			met = "met"
		} else if one.Met != nil {
			met = "MISSED"
		}
		ratio := number(one.Ratio)
		if one.Ratio != nil {
			ratio += "x"
		}
		fmt.Fprintf(w, "  %-44s %-6s %10s %10s %8s %9s  %s\n", one.Name, one.Unit, number(one.Ours), number(one.Peer), ratio, number(one.Floor),
			strings.TrimSpace(one.Goal+" "+met))
	}
}

// number has three digits that say something.
func number(f *float64) string {
	switch {
	case f == nil:
		return ""
	case *f >= 100 || *f <= -100:
		return fmt.Sprintf("%.0f", *f)
	case *f >= 10 || *f <= -10:
		return fmt.Sprintf("%.1f", *f)
	}
	return fmt.Sprintf("%.2f", *f)
}

func (r *report) write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func readReport(path string) (*report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &report{}
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}
