package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/cni/internal/hosttest"
)

// pluginDir names, in the environment, the directory of the plugins that were built.
const pluginDir = "CRISERVER_TEST_CNI_PLUGINS"

func TestMain(m *testing.M) {
	if os.Getuid() == 0 && os.Getenv(pluginDir) == "" {
		dir, err := os.MkdirTemp("", "cniplugins")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv(pluginDir, dir)
		hosttest.AtExit(func() { os.RemoveAll(dir) })
		buildPlugins(dir)
	}
	hosttest.Main(m)
}

// buildPlugins runs before the test has a network namespace of its own, because modules may have to be fetched. What
// goes wrong is seen by the test that needs a plugin.
func buildPlugins(dir string) {
	const from = "github.com/containernetworking/plugins/plugins/"
	for _, args := range [][]string{
		{"-C", "../hack/tools/cniplugins", "-o", dir + "/", from + "ipam/host-local", from + "main/bridge", from + "meta/portmap"},
		{"-C", "../cmd/criserver-cni", "-o", dir + "/criserver", "."},
	} {
		cmd := exec.Command("go", append([]string{"build"}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			_ = os.WriteFile(dir+"/failed", fmt.Appendf(nil, "%v\n%s", err, out), 0o600)
		}
	}
}

func needPlugins(t *testing.T) {
	t.Helper()
	if why, err := os.ReadFile(os.Getenv(pluginDir) + "/failed"); err == nil {
		t.Fatalf("the plugins could not be built: %s", why)
	}
}

// confHost is a host in mode cni, with a directory of configuration and two of plugins: the real ones, and ours.
type confHost struct {
	*host
	conf, bin string
}

func newConfHost(t testing.TB) *confHost {
	h := &confHost{host: newHost(t)}
	dir := t.TempDir()
	h.conf, h.bin = filepath.Join(dir, "net.d"), filepath.Join(dir, "bin")
	h.bins = []string{h.bin, os.Getenv(pluginDir)}
	if err := os.MkdirAll(h.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *confHost) open(t testing.TB) *cni.Network {
	t.Helper()
	n, err := cni.New(context.Background(), cni.Config{Mode: cni.ModeCNI, StateDir: h.state, NetnsDir: h.netns, ConfDir: h.conf,
		BinDirs: h.bins, PodCIDRs: h.cidrs, PluginTimeout: 30 * time.Second, KeepNetns: 1500 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (h *confHost) network(t testing.TB) *cni.Network {
	t.Helper()
	n := h.open(t)
	t.Cleanup(func() {
		if err := n.Reconcile(context.Background(), nil); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (h *confHost) write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.MkdirAll(h.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.conf, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// script installs the plugin "script", which writes its calls to the returned file and does as the files fail-ADD,
// fail-DEL, fail-STATUS and hang-DEL beside it say.
func (h *confHost) script(t testing.TB) (calls string) {
	t.Helper()
	calls = filepath.Join(h.bin, "calls")
	content := fmt.Sprintf(`#!/bin/sh
cd %q
if [ "$CNI_COMMAND" = VERSION ]; then
	echo '{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}'
	exit 0
fi
echo "$CNI_COMMAND $CNI_CONTAINERID netns=$CNI_NETNS args=$CNI_ARGS $(cat)" >> calls
[ -e "hang-$CNI_COMMAND" ] && exec sleep 30
if [ -e "fail-$CNI_COMMAND" ]; then
	echo '{"cniVersion":"1.1.0","code":11,"msg":"told to fail"}'
	exit 1
fi
if [ "$CNI_COMMAND" = ADD ]; then
	echo '{"cniVersion":"1.1.0","interfaces":[{"name":"br"},{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.1.0.1/24","interface":0},{"address":"10.1.0.7/24","interface":1}]}'
fi
`, h.bin)
	if err := os.WriteFile(filepath.Join(h.bin, "script"), []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	h.write(t, "10-script.conflist", `{"cniVersion":"1.1.0","name":"scripted","plugins":[{"type":"script",
		"capabilities":{"portMappings":true,"bandwidth":true,"ipRanges":true,"dns":true,"cgroupPath":true}}]}`)
	return calls
}

func (h *confHost) flag(t testing.TB, name string, on bool) {
	t.Helper()
	path := filepath.Join(h.bin, name)
	err := os.WriteFile(path, nil, 0o600)
	if !on {
		err = os.Remove(path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func lines(t testing.TB, path, prefix string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, prefix) {
			out = append(out, line)
		}
	}
	return out
}

func TestConflistOfRealPlugins(t *testing.T) {
	h := newConfHost(t)
	needPlugins(t)
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("the portmap plugin needs the nft command, which is not installed")
	}
	outside := hosttest.Outside(t)
	data := t.TempDir()
	h.write(t, "10-real.conflist", fmt.Sprintf(`{"cniVersion":"1.1.0","name":"real","plugins":[
		{"type":"bridge","bridge":"real0","isGateway":true,"ipMasq":true,"ipMasqBackend":"nftables","hairpinMode":true,
		 "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.66.0.0/24"}],[{"subnet":"fd66::/64"}]],
		         "routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}},
		{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}]}`, data))
	n := h.network(t)
	ctx := context.Background()
	if err := n.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	a, b := attach(t, n, "a", port(8080, 80)), attach(t, n, "b")
	if len(a.IPs) != 2 || !netip.MustParsePrefix("10.66.0.0/24").Contains(a.IPs[0]) {
		t.Fatalf("addresses: %v", a.IPs)
	}
	hosttest.Serve(t, a.Netns, "tcp", ":80", "a")
	expect(t, b.Netns, "tcp", hostPort(a.IPs[0], 80), "a", b.IPs[0].String())
	expect(t, outside, "tcp", hosttest.Host4+":8080", "a", "")
	if err := n.Check(ctx, "a"); err != nil {
		t.Error(err)
	}
	// A new process knows the pods, and its GC spares them.
	m := h.network(t)
	if got := attach(t, m, "a", port(8080, 80)); fmt.Sprint(got) != fmt.Sprint(a) {
		t.Errorf("after a restart %v, before %v", got, a)
	}
	if err := m.Reconcile(ctx, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	if held, _ := filepath.Glob(data + "/real/10*"); len(held) != 2 {
		t.Errorf("after GC host-local holds %v; want those of two pods", held)
	}
	detach(t, m, "a")
	// One whose record is lost is found by what libcni cached.
	if err := errors.Join(m.Close(), os.Remove(h.state+"/b.json")); err != nil {
		t.Fatal(err)
	}
	if err := h.network(t).Reconcile(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if held, _ := filepath.Glob(data + "/real/10*"); len(held) != 0 {
		t.Errorf("after DEL and GC host-local holds %v", held)
	}
	if err := exec.Command("ip", "link", "del", "real0").Run(); err != nil {
		t.Error(err)
	}
	exec.Command("nft", "flush", "ruleset").Run()
}

func TestConflistArguments(t *testing.T) {
	h := newConfHost(t)
	h.cidrs = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}
	calls := h.script(t)
	n := h.network(t)
	r, err := n.Attach(context.Background(), cni.Request{PodID: "p1", Namespace: "default", Name: "web", UID: "u-1",
		PortMappings: []cni.PortMapping{{Protocol: "TCP", HostPort: 8080, ContainerPort: 80, HostIP: netip.MustParseAddr("198.18.0.1")}},
		Annotations:  map[string]string{"kubernetes.io/ingress-bandwidth": "10M"},
		CgroupParent: "/kubepods/pod1", DNS: &cni.DNS{Servers: []string{"9.9.9.9"}}})
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(r.IPs) != "[10.1.0.7]" {
		t.Errorf("addresses %v; the bridge's is not the pod's", r.IPs)
	}
	add := lines(t, calls, "ADD")
	if len(add) != 1 {
		t.Fatalf("calls: %q", add)
	}
	want := "ADD p1 netns=" + h.netns + "/criserver-p1 args=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u-1 "
	config, ok := strings.CutPrefix(add[0], want)
	if !ok {
		t.Fatalf("called as %q, want %q", add[0], want)
	}
	var got struct {
		RuntimeConfig json.RawMessage `json:"runtimeConfig"`
	}
	if err := json.Unmarshal([]byte(config), &got); err != nil {
		t.Fatal(err)
	}
	const wantConfig = `{"bandwidth":{"ingressBurst":10000000,"ingressRate":10000000},"cgroupPath":"/kubepods/pod1",` +
		`"dns":{"options":null,"searches":null,"servers":["9.9.9.9"]},"ipRanges":[[{"subnet":"10.77.0.0/24"}]],` +
		`"portMappings":[{"containerPort":80,"hostIP":"198.18.0.1","hostPort":8080,"protocol":"tcp"}]}`
	if string(got.RuntimeConfig) != wantConfig {
		t.Errorf("runtimeConfig\n%s, want\n%s", got.RuntimeConfig, wantConfig)
	}
	// DEL follows the record, not the directory.
	h.write(t, "10-script.conflist", `{"cniVersion":"1.1.0","name":"other","plugins":[{"type":"none"}]}`)
	detach(t, n, "p1")
	if del := lines(t, calls, "DEL p1 netns="+h.netns); len(del) != 1 || !strings.Contains(del[0], `"prevResult"`) || !strings.Contains(del[0], `"portMappings"`) {
		t.Errorf("DEL: %q", del)
	}
	if _, err := n.Attach(context.Background(), cni.Request{PodID: "p2", Name: "a;K8S_POD_UID=b"}); !errdefs.IsInvalidArgument(err) && !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	h.script(t)
	eventually(t, "the first configuration is back", func() error { return n.Ready(context.Background()) })
}

func TestConflistGC(t *testing.T) {
	h := newConfHost(t)
	calls := h.script(t)
	n := h.network(t)
	attach(t, n, "a")
	attach(t, n, "b")
	if err := n.Reconcile(context.Background(), []string{"b"}); err != nil {
		t.Fatal(err)
	}
	gc := lines(t, calls, "GC")
	if len(gc) != 1 || !strings.Contains(gc[0], `"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]`) {
		t.Errorf("GC: %q", gc)
	}
	if got := len(lines(t, calls, "DEL a")); got != 1 {
		t.Errorf("DEL of the pod that is not known was called %d times", got)
	}
}

func TestConflistReady(t *testing.T) {
	h := newConfHost(t)
	n := h.network(t)
	ctx := context.Background()
	err := n.Ready(ctx)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), h.conf) {
		t.Errorf("without a configuration: %v", err)
	}
	if _, err := n.Attach(ctx, cni.Request{PodID: "a"}); !errdefs.IsUnavailable(err) {
		t.Errorf("attach without a configuration: %v", err)
	}
	calls := h.script(t)
	eventually(t, "ready once a configuration is there", func() error { return n.Ready(ctx) })
	if len(lines(t, calls, "STATUS")) == 0 {
		t.Error("STATUS was not called")
	}
	for range 100 {
		_ = n.Ready(ctx)
	}
	if got := len(lines(t, calls, "STATUS")); got > 2 {
		t.Errorf("STATUS was called %d times for 100 polls", got)
	}
	h.flag(t, "fail-STATUS", true)
	eventually(t, "STATUS is honoured", func() error {
		if err := n.Ready(ctx); err == nil || !strings.Contains(err.Error(), "told to fail") {
			return fmt.Errorf("ready says %v", err)
		}
		return nil
	})
	h.flag(t, "fail-STATUS", false)
	h.write(t, "05-first.conflist", `{"cniVersion":"1.1.0","name":`)
	eventually(t, "an invalid first file is an error", func() error {
		if err := n.Ready(ctx); err == nil || !strings.Contains(err.Error(), "05-first.conflist") {
			return fmt.Errorf("ready says %v", err)
		}
		return nil
	})
	os.RemoveAll(h.conf)
	eventually(t, "no directory is an error", func() error {
		if err := n.Ready(ctx); err == nil || !strings.Contains(err.Error(), "no CNI configuration") {
			return fmt.Errorf("ready says %v", err)
		}
		return nil
	})
	if testing.Short() {
		return
	}
	time.Sleep(10100 * time.Millisecond) // the watch is set up again
	h.script(t)
	eventually(t, "ready again", func() error { return n.Ready(ctx) })
}

func TestConflistFailingAdd(t *testing.T) {
	h := newConfHost(t)
	calls := h.script(t)
	n := h.network(t)
	ctx := context.Background()
	h.flag(t, "fail-ADD", true)
	if _, err := n.Attach(ctx, cni.Request{PodID: "a"}); err == nil || !strings.Contains(err.Error(), "told to fail") {
		t.Fatal(err)
	}
	if ids, _ := n.Attached(ctx); len(ids) != 1 {
		t.Errorf("a failed ADD must be known until Detach: %v", ids)
	}
	detach(t, n, "a")
	if got := len(lines(t, calls, "DEL a netns="+h.netns)); got != 1 {
		t.Errorf("DEL was called %d times", got)
	}
	detach(t, n, "never")
	if got := lines(t, calls, "DEL never"); len(got) != 0 {
		t.Errorf("DEL of what was never added: %q", got)
	}
	h.flag(t, "fail-ADD", false)
	attach(t, n, "a")
}

func TestConflistFailingDel(t *testing.T) {
	h := newConfHost(t)
	calls := h.script(t)
	n := h.open(t)
	ctx := context.Background()
	attach(t, n, "a")
	h.flag(t, "fail-DEL", true)
	detach(t, n, "a")
	journal := h.state + "/gc/a.json"
	if _, err := os.Stat(journal); err != nil {
		t.Error(err)
	}
	if ids, _ := n.Attached(ctx); len(ids) != 0 {
		t.Errorf("attached: %v", ids)
	}
	if _, err := os.Stat(h.netns + "/criserver-a"); err != nil {
		t.Errorf("plugins still need the namespace: %v", err)
	}
	if _, err := n.Attach(ctx, cni.Request{PodID: "a"}); !errdefs.IsUnavailable(err) {
		t.Errorf("attach while DEL is pending: %v", err)
	}
	eventually(t, "DEL is tried again without the namespace", func() error {
		if len(lines(t, calls, "DEL a netns= ")) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	h.flag(t, "fail-DEL", false)
	m := h.network(t) // goes on after a restart
	eventually(t, "the journal is empty", func() error {
		if _, err := os.Stat(journal); err == nil {
			return errors.New("it is not")
		}
		return nil
	})
	attach(t, m, "a")
}

func TestConflistHangingDel(t *testing.T) {
	h := newConfHost(t)
	h.script(t)
	n := h.network(t)
	attach(t, n, "a")
	h.flag(t, "hang-DEL", true)
	start := time.Now()
	detach(t, n, "a")
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Detach took %v with a plugin that hangs", took)
	}
	h.flag(t, "hang-DEL", false)
	eventually(t, "the journal is empty", func() error {
		if _, err := os.Stat(h.state + "/gc/a.json"); err == nil {
			return errors.New("it is not")
		}
		return nil
	})
}

// Pods that the other mode attached are detached by the mode that did it.
func TestModeChange(t *testing.T) {
	h := newConfHost(t)
	calls := h.script(t)
	builtin := h.host.open(t)
	attach(t, builtin, "old")
	if err := builtin.Close(); err != nil {
		t.Fatal(err)
	}
	n := h.network(t)
	attach(t, n, "new")
	detach(t, n, "old")
	if len(lines(t, calls, "DEL old")) != 0 {
		t.Error("the plugin was asked to remove what it did not add")
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	again := h.host.network(t)
	detach(t, again, "new")
	if len(lines(t, calls, "DEL new")) == 0 {
		t.Error("DEL was not called in the other mode")
	}
}
