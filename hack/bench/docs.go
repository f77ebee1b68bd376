package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The generated part of docs/performance.md lies between these lines.
const (
	resultsBegin = "<!-- results: written by hack/bench/run -docs -->"
	resultsEnd   = "<!-- end of results -->"
)

// writeDocs puts a report into dir/performance.md, and the curve of starts beside it.
func writeDocs(r *report, dir string) error {
	page := filepath.Join(dir, "performance.md")
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	replaced, err := replaceResults(string(text), markdown(r))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	if err := os.WriteFile(page, []byte(replaced), 0o644); err != nil {
		return err
	}
	if len(r.Curve) == 0 {
		return nil
	}
	return os.WriteFile(filepath.Join(dir, "start-latency.svg"), []byte(plot(r.Curve)), 0o644)
}

// replaceResults puts new results between the two lines.
func replaceResults(text, results string) (string, error) {
	before, rest, ok := strings.Cut(text, resultsBegin)
	_, after, ok2 := strings.Cut(rest, resultsEnd)
	if !ok || !ok2 {
		return "", fmt.Errorf("the lines %q and %q are not in it", resultsBegin, resultsEnd)
	}
	return before + resultsBegin + "\n" + results + resultsEnd + after, nil
}

// markdown is a table a group.
func markdown(r *report) string {
	var b strings.Builder
	day, _, _ := strings.Cut(r.Time, "T")
	fmt.Fprintf(&b, "\n%s; ours: %s; peer: %s; Linux %s, %d CPUs.", day, r.Ours, r.Peer, r.Kernel, r.CPUs)
	if r.Quick {
		b.WriteString(" A quick run (`-quick`): few repetitions, figures that vary.")
	}
	b.WriteString("\n")
	group := ""
	for _, one := range r.Rows {
		if one.Group != group {
			group = one.Group
			fmt.Fprintf(&b, "\n| %s | unit | ours | peer | times better | floor | goal | |\n|---|---|---:|---:|---:|---:|---|---|\n", group)
		}
		met := ""
		if one.Met != nil {
			met = map[bool]string{true: "met", false: "missed"}[*one.Met]
		}
		goal := strings.ReplaceAll(strings.ReplaceAll(one.Goal, "<= ", "≤ "), "x", "×")
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", one.Name, one.Unit, number(one.Ours), number(one.Peer), number(one.Ratio), number(one.Floor), goal, met)
	}
	b.WriteString("\n")
	return b.String()
}

// The plot's measures, in its own units.
const (
	plotWidth, plotHeight           = 720, 360
	plotLeft, plotRight             = 60, 20
	plotTop, plotBottom             = 40, 50
	plotInnerWidth, plotInnerHeight = plotWidth - plotLeft - plotRight, plotHeight - plotTop - plotBottom
)

// plot draws start latency against the pods that are up.
func plot(curve []point) string {
	most, highest := 0, 0.0
	for _, p := range curve {
		most, highest = max(most, p.Pods), max(highest, p.P50, p.P95)
	}
	step := niceStep(highest / 5)
	top := step * math.Ceil(highest/step)
	x := func(pods int) float64 { return plotLeft + float64(pods)/float64(most)*plotInnerWidth }
	y := func(ms float64) float64 { return plotTop + (1-ms/top)*plotInnerHeight }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<title>Start latency of a pod against the number of pods that are up</title>
<rect width="100%%" height="100%%" fill="#ffffff"/>
<text x="%d" y="22" font-size="14" fill="#222222">Pod up (sandbox, create, start), ms, against pods on the machine</text>
`, plotWidth, plotHeight, plotLeft)
	for ms := 0.0; ms <= top+step/2; ms += step {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end" fill="#444444">%g</text>`+"\n",
			plotLeft, plotWidth-plotRight, y(ms), y(ms), plotLeft-8, y(ms)+4, math.Round(ms*100)/100)
	}
	across := max(int(niceStep(float64(most)/8)), 1)
	for pods := 0; pods <= most; pods += across {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" fill="#444444">%d</text>`+"\n", x(pods), plotHeight-plotBottom+20, pods)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="#444444">pods up</text>`+"\n", plotLeft+plotInnerWidth/2, plotHeight-10)
	for _, line := range []struct {
		name, color, dash string
		value             func(point) float64
	}{
		{"p95", "#d9822b", "5 4", func(p point) float64 { return p.P95 }},
		{"p50", "#1f5fa8", "none", func(p point) float64 { return p.P50 }},
	} {
		var at []string
		for _, p := range curve {
			at = append(at, fmt.Sprintf("%.1f,%.1f", x(p.Pods), y(line.value(p))))
		}
		last := curve[len(curve)-1]
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" stroke-dasharray="%s" points="%s"/><text x="%.1f" y="%.1f" text-anchor="end" fill="%s">%s</text>`+"\n",
			line.color, line.dash, strings.Join(at, " "), x(last.Pods), y(line.value(last))-8, line.color, line.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// niceStep is the smallest of 1, 2, 5, 10, 20 and so on that is not below f.
func niceStep(f float64) float64 {
	if f <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(f)))
	steps := []float64{1, 2, 5, 10}
	return unit * steps[slices.IndexFunc(steps, func(s float64) bool { return s*unit >= f*(1-1e-9) })]
}
