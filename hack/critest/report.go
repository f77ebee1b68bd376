package main

import (
	"bytes"
	"fmt"
	"sort"
	"strings"
)

// explained are the reasons for which a spec may be skipped, by what the suite says or by a part of the spec's name.
var explained = []struct{ part, why string }{
	{"AppArmor", "this kernel has no AppArmor; they run in the virtual machine"},
	{"apparmor", "this kernel has no AppArmor; they run in the virtual machine"},
	{"enchmark", "a benchmark, which runs only when asked for"},
	{digestSpec, "the digest of a public image is a constant in the suite, which no image made here can have"},
	{"SELinux", "no SELinux policy is loaded in this kernel"},
	{"selinux", "no SELinux policy is loaded in this kernel"},
}

// result is what came of the specs.
type result struct {
	passed, failed, skipped int
	unexplained             []string // skipped for a reason that is not on the list
	lines                   []line
}

type line struct{ name, state, note string }

func judge(specs []spec) result {
	var r result
	for _, s := range specs {
		if s.LeafNodeType != "It" {
			if s.State == "failed" {
				r.failed++
				r.lines = append(r.lines, line{s.LeafNodeType, "failed", s.Failure.Message})
			}
			continue
		}
		l := line{name: s.name(), state: s.State}
		switch s.State {
		case "passed":
			r.passed++
		case "skipped", "pending":
			if s.Failure.Message == "" && s.RunTime == 0 && !isExplained(s) {
				continue // not selected
			}
			r.skipped++
			l.note = why(s)
			if l.note == "" {
				r.unexplained = append(r.unexplained, l.name)
				l.note = firstLine(s.Failure.Message)
			}
		default:
			r.failed++
			l.note = s.Failure.Message
		}
		r.lines = append(r.lines, l)
	}
	sort.SliceStable(r.lines, func(i, j int) bool { return r.lines[i].name < r.lines[j].name })
	return r
}

func isExplained(s spec) bool { return why(s) != "" }

func why(s spec) string {
	for _, e := range explained {
		if strings.Contains(s.name(), e.part) || strings.Contains(s.Failure.Message, e.part) {
			return e.why
		}
	}
	return ""
}

func firstLine(text string) string {
	first, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return first
}

// text is for a terminal.
func (r result) text() string {
	var b strings.Builder
	for _, l := range r.lines {
		switch l.state {
		case "passed":
		case "skipped", "pending":
			fmt.Fprintf(&b, "skipped %s: %s\n", l.name, l.note)
		default:
			fmt.Fprintf(&b, "%s %s\n    %s\n", l.state, l.name, strings.ReplaceAll(l.note, "\n", "\n    "))
		}
	}
	for _, name := range r.unexplained {
		fmt.Fprintf(&b, "no accepted reason to skip: %s\n", name)
	}
	fmt.Fprintf(&b, "critest: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return b.String()
}

// page is for docs/.
func (r result) page(handler string) []byte {
	if handler == "" {
		handler = "native"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# critest with the handler `%s`\n\nWritten by `make critest`: %d passed, %d failed, %d skipped.\n\n", handler, r.passed, r.failed, r.skipped)
	for _, l := range r.lines {
		fmt.Fprintf(&b, "- %s: %s", l.state, l.name)
		if l.note != "" {
			fmt.Fprintf(&b, " (%s)", firstLine(l.note))
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}
