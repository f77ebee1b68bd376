package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var (
	fullID  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
	columns = regexp.MustCompile(`\s{2,}`)
)

// steps is the walk: the life of a pod in the order of its verbs.
func (w *walk) steps() []step {
	pod := func(args ...string) func() []string { return func() []string { return append(args, w.podID) } }
	container := func(args ...string) func() []string { return func() []string { return append(args, w.containerID) } }
	fixed := func(args ...string) func() []string { return func() []string { return args } }
	cat := func(args ...string) func() []string { return func() []string { return append(args, w.catID) } }
	do := func(text string, args func() []string, check func(string) (string, error)) step {
		return step{text: text, args: args, check: check}
	}
	return slices.Concat([]step{
		do("## Images", fixed("pull", w.image), has("Image is up to date for sha256:")),
		do("", fixed("images"), table(row{w.repository(), "1.29-2"})),

		do("## A pod and a container", fixed("runp", "pod.json"), id(&w.podID)),
		do("", func() []string { return []string{"create", w.podID, "container.json", "pod.json"} }, id(&w.containerID)),
		do("", container("start"), w.echoes(&w.containerID)),
		do("", fixed("ps"), table(row{"Running", "shell", "walk"})),
		do("", fixed("pods"), table(row{"Ready", "walk", "default"})),

		do("## What it is and does", container("inspect"), fields(map[string]any{
			"status.state": "CONTAINER_RUNNING", "status.metadata.name": "shell", "status.image.image": w.image, "status.exitCode": 0.0,
		})),
		do("", pod("inspectp"), fields(map[string]any{
			"status.state": "SANDBOX_READY", "status.metadata.name": "walk", "status.network.ip": anything, "status.metadata.namespace": "default",
		})),
		do("", container("logs"), exactly("hello\n")),
		do("", func() []string { return []string{"exec", "-s", w.containerID, "cat", "/etc/hostname"} }, exactly("walk\n")),
	}, w.sessions(cat), w.checkpoint(), w.figures(), []step{
		do("## The end", container("stop", "--timeout", "10"), w.echoes(&w.containerID)),
		do("The container exits with the code of its signal handler.", container("inspect"), fields(map[string]any{
			"status.state": "CONTAINER_EXITED", "status.exitCode": 3.0, "status.reason": "Error",
		})),
		do("", fixed("ps", "-a"), table(row{"Exited", "shell", "walk"})),
		do("", container("rm"), w.echoes(&w.containerID)),
		do("", fixed("ps", "-a"), table()),
		do("", pod("stopp"), has("Stopped sandbox "+placeholderPod)),
		do("", fixed("pods"), table(row{"NotReady", "walk", "default"})),
		do("", pod("rmp"), has("Removed sandbox "+placeholderPod)),
		do("", fixed("pods"), table()),
		do("", fixed("rmi", w.image), has("Deleted: "+w.image)),
		do("", fixed("images"), table()),
	})
}

// sessions are the verbs that stream.
func (w *walk) sessions(cat func(...string) func() []string) []step {
	exec := func(flags ...string) func(command ...string) func() []string {
		return func(command ...string) func() []string {
			return func() []string { return slices.Concat([]string{"exec"}, flags, []string{w.containerID}, command) }
		}
	}
	given, terminal, fetching := given("hello"), onTerminal(100, 40, ""), whileFetching("http://127.0.0.1:18080/hostname")
	return []step{
		{text: "## Sessions\n\nA command with a stream for its output, one that also takes input, one on a terminal of 40 lines by 100 columns.",
			args: exec()("cat", "/etc/hostname"), check: exactly("walk\n")},
		{args: exec("-i")("cat"), check: exactly("hello\n"), by: &given},
		{args: exec("-it")("stty", "size"), check: exactly("40 100\n"), by: &terminal},
		{args: exec("--transport", "websocket", "-i")("cat"), check: exactly("hello\n"), by: &given},
		{text: "A connection to a web server that listens on the pod's own loopback address.",
			args: exec()("httpd", "-h", "/etc", "-p", "127.0.0.1:8080"), check: exactly("")},
		{args: func() []string { return []string{"port-forward", w.podID, "18080:8080"} }, check: forwarded("walk\n"), by: &fetching},
		{args: func() []string { return []string{"port-forward", "--transport", "websocket", w.podID, "18080:8080"} },
			check: forwarded("walk\n"), by: &fetching},
		{text: "A container whose standard input ends with that of the first client.",
			args: func() []string { return []string{"create", w.podID, "cat.json", "pod.json"} }, check: id(&w.catID)},
		{args: cat("start"), check: w.echoes(&w.catID)},
		{args: cat("attach", "-i"), check: exactly("hello\n"), by: &given},
		{args: cat("logs"), check: exactly("hello\n")},
		{args: cat("rm", "-f"), check: w.echoes(&w.catID)},
	}
}

// forwarded expects a fetched page; what port-forward says besides comes in no certain order.
func forwarded(want string) func(string) (string, error) {
	return func(answer string) (string, error) {
		if !strings.HasSuffix(answer, "\n"+want) {
			return "", fmt.Errorf("want a page that is %q", want)
		}
		return answer[strings.LastIndex(answer, "# curl"):], nil
	}
}

// What stands on the page instead of identifiers.
const (
	placeholderPod       = "POD"
	placeholderContainer = "CONTAINER"
	placeholderCat       = "CAT"
)

// hide replaces what differs between runs.
func (w *walk) hide(text string) string {
	for _, r := range []struct{ id, placeholder string }{{w.podID, placeholderPod}, {w.containerID, placeholderContainer}, {w.catID, placeholderCat}} {
		if r.id != "" {
			text = strings.ReplaceAll(text, r.id, r.placeholder)
			text = strings.ReplaceAll(text, r.id[:13], r.placeholder) // as tables have it
		}
	}
	return digests.ReplaceAllString(strings.ReplaceAll(text, w.dir, "/var/log/walk"), "DIGEST")
}

func (w *walk) repository() string { return w.image[:strings.LastIndexByte(w.image, ':')] }

// id expects a new identifier and keeps it.
func id(into *string) func(string) (string, error) {
	return func(answer string) (string, error) {
		*into = strings.TrimSpace(answer)
		if !fullID.MatchString(*into) {
			return "", errors.New("want an identifier of 64 hexadecimal digits")
		}
		return answer, nil
	}
}

// echoes expects crictl to print the identifier that it was given.
func (w *walk) echoes(want *string) func(string) (string, error) {
	return func(answer string) (string, error) { return exactly(*want + "\n")(answer) }
}

// exactly expects this text; crictl adds empty lines to some.
func exactly(want string) func(string) (string, error) {
	return func(answer string) (string, error) {
		if strings.TrimRight(answer, "\n") != strings.TrimRight(want, "\n") {
			return "", fmt.Errorf("want %q", want)
		}
		return want, nil
	}
}

// has expects a line that begins with want; where want ends with a placeholder, an identifier stands there.
func has(want string) func(string) (string, error) {
	prefix := strings.TrimSuffix(want, placeholderPod)
	return func(answer string) (string, error) {
		for line := range strings.Lines(answer) {
			if strings.HasPrefix(line, prefix) {
				return answer, nil
			}
		}
		return "", fmt.Errorf("want a line that begins with %q", prefix)
	}
}

// row are cells that a line of a table must have.
type row []string

// table expects a heading and exactly these rows. The page shows heading and rows with one space between columns, and
// without those that differ between runs.
func table(rows ...row) func(string) (string, error) {
	return func(answer string) (string, error) {
		lines := strings.Split(strings.TrimSpace(answer), "\n")
		if len(lines) != len(rows)+1 {
			return "", fmt.Errorf("want a heading and %d rows", len(rows))
		}
		heading := columns.Split(strings.TrimSpace(lines[0]), -1)
		shown := strings.Join(heading, "  ") + "\n"
		for i, want := range rows {
			cells := columns.Split(strings.TrimSpace(lines[i+1]), -1)
			for _, cell := range want {
				if !contains(cells, cell) {
					return "", fmt.Errorf("row %d has no cell %q", i+1, cell)
				}
			}
			shown += strings.Join(stable(heading, cells), "  ") + "\n"
		}
		return shown, nil
	}
}

func contains(cells []string, want string) bool {
	for _, c := range cells {
		if c == want {
			return true
		}
	}
	return false
}

// stable replaces the cells of columns whose content differs between runs.
func stable(heading, cells []string) []string {
	for i, name := range heading {
		if i >= len(cells) {
			break
		}
		switch name {
		case "IMAGE ID", "SIZE", "CREATED", "IMAGE":
			if name == "IMAGE" && strings.Contains(cells[i], "/") {
				continue // a name
			}
			cells[i] = strings.ReplaceAll(name, " ", "-")
		}
	}
	return cells
}

// anything in fields stands for a value that only must not be empty.
var anything = &struct{}{}

// fields expects values at paths of a JSON answer. The page shows only these.
func fields(want map[string]any) func(string) (string, error) {
	return func(answer string) (string, error) {
		var all any
		if err := json.Unmarshal([]byte(answer), &all); err != nil {
			return "", err
		}
		shown := map[string]any{}
		for path, value := range want {
			got := lookUp(all, path)
			switch {
			case value == any(anything) && (got == nil || got == ""):
				return "", fmt.Errorf("%s is empty", path)
			case value == any(anything):
				got = strings.ToUpper(path[strings.LastIndexByte(path, '.')+1:])
			case got != value:
				return "", fmt.Errorf("%s is %v, want %v", path, got, value)
			}
			put(shown, strings.Split(path, "."), got)
		}
		text, err := json.MarshalIndent(shown, "", "  ")
		return string(text) + "\n", err
	}
}

// lookUp follows a dotted path; nil when it leads nowhere.
func lookUp(value any, path string) any {
	for part := range strings.SplitSeq(path, ".") {
		object, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = object[part]
	}
	return value
}

func put(object map[string]any, path []string, value any) {
	for _, part := range path[:len(path)-1] {
		next, ok := object[part].(map[string]any)
		if !ok {
			next = map[string]any{}
			object[part] = next
		}
		object = next
	}
	object[path[len(path)-1]] = value
}
