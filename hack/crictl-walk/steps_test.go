package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	const answer = "IMAGE                TAG     IMAGE ID        SIZE\nregistry/busybox     1.29    0123456789abc   4.3MB\n"
	shown, err := table(row{"registry/busybox", "1.29"})(answer)
	if want := "IMAGE  TAG  IMAGE ID  SIZE\nregistry/busybox  1.29  IMAGE-ID  SIZE\n"; err != nil || shown != want {
		t.Errorf("%q, %v, want %q", shown, err, want)
	}
	for name, rows := range map[string][]row{"other cell": {{"2.0"}}, "fewer rows": {}, "more rows": {{"1.29"}, {"1.29"}}} {
		if _, err := table(rows...)(answer); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFields(t *testing.T) {
	const answer = `{"status": {"state": "READY", "code": 3, "network": {"ip": "10.0.0.1"}, "noise": 17}}`
	shown, err := fields(map[string]any{"status.state": "READY", "status.code": 3.0, "status.network.ip": anything})(answer)
	if err != nil || strings.Contains(shown, "noise") || strings.Contains(shown, "10.0.0.1") || !strings.Contains(shown, `"ip": "IP"`) {
		t.Errorf("%s, %v", shown, err)
	}
	for name, want := range map[string]map[string]any{
		"other value": {"status.state": "NOTREADY"}, "missing": {"status.none": anything}, "no object": {"status.state.x": "y"},
	} {
		if _, err := fields(want)(answer); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestHide(t *testing.T) {
	id := strings.Repeat("ab", 32)
	w := &walk{podID: id, dir: "/tmp/x"}
	if got := w.hide("pod " + id + " short " + id[:13] + " of sha256:" + id + " in /tmp/x/y"); got != "pod POD short POD of sha256:POD in /var/log/walk/y" {
		t.Errorf("%q", got)
	}
	if got := w.hide("sha256:" + strings.Repeat("0", 64)); got != "DIGEST" {
		t.Errorf("%q", got)
	}
}
