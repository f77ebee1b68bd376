package spec

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nodd:x:1000:1000::relative:/bin/sh\n# comment\nbroken\n"
	groups = "root:x:0:\nweb:x:34:\nstaff:x:50:web,other\nwheel:x:10:web\nme:x:50000:odd\n"
)

func i64(n int64) *int64 { return &n }

func TestResolveUser(t *testing.T) {
	for _, test := range []struct {
		name     string
		security Security
		image    string
		uid, gid uint32
		groups   []uint32
		home     string
		fails    string
	}{
		{name: "nothing is root", groups: []uint32{0}, home: "/root"},
		{name: "image's name", image: "web", uid: 33, gid: 34, groups: []uint32{10, 34, 50}, home: "/srv"},
		{name: "image's number", image: "33", uid: 33, gid: 34, groups: []uint32{10, 34, 50}, home: "/srv"},
		{name: "image's unknown number", image: "7", uid: 7, groups: []uint32{0}, home: "/"},
		{name: "image's user and group", image: "web:staff", uid: 33, gid: 50, groups: []uint32{10, 50}, home: "/srv"},
		{name: "image's numbers", image: "1003:1004", uid: 1003, gid: 1004, groups: []uint32{1004}, home: "/"},
		{name: "image's unknown name", image: "ghost", fails: `user "ghost" is not in the image's /etc/passwd`},
		{name: "image's unknown group", image: "web:ghosts", fails: `group "ghosts" is not in the image's /etc/group`},
		{name: "a home that is no path", image: "odd", uid: 1000, gid: 1000, groups: []uint32{1000, 50000}, home: "/"},
		{name: "run as user over the image's", security: Security{RunAsUser: i64(33)}, image: "ghost", uid: 33, gid: 34, groups: []uint32{10, 34, 50}, home: "/srv"},
		{name: "run as user and group", security: Security{RunAsUser: i64(5), RunAsGroup: i64(6)}, uid: 5, gid: 6, groups: []uint32{6}, home: "/"},
		{name: "run as name", security: Security{RunAsUsername: "web"}, uid: 33, gid: 34, groups: []uint32{10, 34, 50}, home: "/srv"},
		{name: "run as unknown name", security: Security{RunAsUsername: "ghost"}, fails: `"ghost"`},
		{name: "supplemental groups merged", security: Security{RunAsUser: i64(33), SupplementalGroups: []int64{99, 10}}, uid: 33, gid: 34, groups: []uint32{10, 34, 50, 99}, home: "/srv"},
		{name: "supplemental groups strict", security: Security{RunAsUser: i64(33), SupplementalGroups: []int64{99}, SupplementalStrict: true}, uid: 33, gid: 34, groups: []uint32{34, 99}, home: "/srv"},
		{name: "group alone", security: Security{RunAsGroup: i64(6)}, fails: "run_as_group"},
		{name: "both", security: Security{RunAsUser: i64(1), RunAsUsername: "web"}, fails: "run_as_username"},
		{name: "negative", security: Security{RunAsUser: i64(-1)}, fails: "-1"},
		{name: "no change", security: Security{RunAsUser: i64(4294967295)}, fails: "4294967295"},
		{name: "group out of range", security: Security{SupplementalGroups: []int64{-4}}, fails: "-4"},
		{name: "a colon", security: Security{RunAsUsername: "web:staff"}, fails: "colon"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u, err := ResolveUser(test.security, test.image, []byte(passwd), []byte(groups))
			if test.fails != "" {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if u.UID != test.uid || u.GID != test.gid || u.Home != test.home || !slices.Equal(u.AdditionalGIDs, test.groups) {
				t.Errorf("got %+v", u)
			}
		})
	}
}

func TestAnImageWithoutAccounts(t *testing.T) {
	u, err := ResolveUser(Security{}, "", nil, nil)
	if err != nil || u.UID != 0 || u.Home != "/" {
		t.Errorf("root of an empty image is %+v, %v", u, err)
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add("web:staff", "", passwd, groups)
	f.Add("", "root", passwd, groups)
	f.Add("99999999999999999999", "", "a:b:-1:4294967295:::", "a:b:-1:a")
	f.Fuzz(func(t *testing.T, image, name, passwd, groups string) {
		u, err := ResolveUser(Security{RunAsUsername: name}, image, []byte(passwd), []byte(groups))
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatal(err)
			}
			return
		}
		if u.UID == 1<<32-1 || u.GID == 1<<32-1 || !strings.HasPrefix(u.Home, "/") || !slices.Contains(u.AdditionalGIDs, u.GID) {
			t.Fatalf("user %+v", u)
		}
	})
}

func TestSignals(t *testing.T) {
	for text, want := range map[string]int{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "64": 64,
		"": 0, "SIGNOPE": 0, "0": 0, "65": 0, "SIGRTMIN+31": 0, "SIGRTMAX+1": 0, "-3": 0, "SIGRTMIN+x": 0,
	} {
		got, err := ParseSignal(text)
		if int(got) != want || (err == nil) != (want != 0) {
			t.Errorf("%q is %d, %v", text, got, err)
		}
		if err == nil {
			if back, err := ParseSignal(SignalName(got)); err != nil || back != got {
				t.Errorf("name %s of %d is read as %d", SignalName(got), got, back)
			}
		}
	}
	if s, err := StopSignal("", "SIGUSR1"); err != nil || s != 10 {
		t.Errorf("the image's stop signal is %d, %v", s, err)
	}
	if s, err := StopSignal("", ""); err != nil || s != 15 {
		t.Errorf("the default stop signal is %d, %v", s, err)
	}
}

func TestPodSysctls(t *testing.T) {
	defaults := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	own, host := &Pod{}, &Pod{Security: Security{Namespaces: Namespaces{Network: ModeNode, IPC: ModeNode}}}
	for _, test := range []struct {
		pod    *Pod
		name   string
		denied bool
		as     string
	}{
		{own, "net.core.somaxconn", false, ""},
		{own, "net/ipv4/conf/eth0.1/forwarding", false, "net.ipv4.conf.eth0/1.forwarding"},
		{own, "kernel.shmmax", false, ""},
		{own, "fs.mqueue.msg_max", false, ""},
		{own, "kernel.panic", true, ""},
		{own, "net..x", true, ""},
		{own, "net/../kernel/panic", true, ""},
		{own, "kernel.shm_evil", true, ""},
		{host, "net.core.somaxconn", true, ""},
		{host, "kernel.shmmax", true, ""},
	} {
		p := *test.pod
		p.Sysctls = map[string]string{test.name: "1"}
		got, err := PodSysctls(&p, defaults)
		if test.denied {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.name) {
				t.Errorf("%s: %v, %v", test.name, got, err)
			}
			continue
		}
		if test.as == "" {
			test.as = test.name
		}
		if err != nil || got[test.as] != "1" || got["net.ipv4.ip_unprivileged_port_start"] != "0" {
			t.Errorf("%s: %v, %v", test.name, got, err)
		}
	}
	if got, err := PodSysctls(host, defaults); err != nil || got != nil {
		t.Errorf("a pod in the host's network would set %v (%v)", got, err)
	}
}

func TestSysctlsOfUserNamespace(t *testing.T) {
	defaults := map[string]string{pingGroups: "0 2147483647"}
	for want, gids := range map[string][]IDMapping{
		"0 65535": {{0, 100000, 65536}},
		"0 1999":  {{1000, 5000, 1000}, {0, 100000, 1000}, {5000, 1, 1}},
	} {
		p := &Pod{Security: Security{Namespaces: Namespaces{User: &UserNamespace{GIDs: gids}}}}
		got, err := PodSysctls(p, defaults)
		if err != nil || got[pingGroups] != want {
			t.Errorf("%v: %v, %v, want %s", gids, got, err, want)
		}
	}
}
