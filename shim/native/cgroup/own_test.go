package cgroup

import "testing"

func TestOwn(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		pure    bool
		want    string
	}{
		"v2":       {"0::/system.slice/engine.service\n", true, "/system.slice"},
		"v2 root":  {"0::/\n", true, "/"},
		"v1":       {"5:cpu,cpuacct:/\n4:memory:/user/a:b\n0::/\n", false, "/user/a:b"},
		"v1 none":  {"5:cpu:/\n", false, ""},
		"v2 empty": {"", true, ""},
	} {
		got, err := own(c.content, c.pure)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s: %q %v, want %q", name, got, err, c.want)
		}
	}
}
