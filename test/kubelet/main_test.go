// Package kubelet runs the real kubelet on the real daemon: standalone, with static pods from a directory, in a place of its
// own (package rig). `make kubelet-test` builds the kubelet and runs it. It needs root and leaves nothing.
package kubelet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/test/e2e/rig"
)

var (
	program    = flag.String("kubelet", "", "the kubelet `program`, absolute (hack/tools/kubelet/build makes it)")
	probesFor  = flag.Duration("probes", 20*time.Second, "how long TestProbeCost measures")
	probedPods = flag.Int("pods", 10, "how many pods TestProbeCost probes every second")

	place    *rig.Place
	registry string
	daemon   *rig.Daemon
	agent    *kubelet
)

func TestMain(m *testing.M) {
	flag.Parse()
	if !filepath.IsAbs(*program) {
		fmt.Fprintln(os.Stderr, "kubelet: -kubelet must name the program by an absolute path: run make kubelet-test")
		os.Exit(2)
	}
	place = rig.Isolate()
	code, err := runAll(m)
	if err != nil {
		fmt.Fprintf(os.Stderr, "kubelet: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

func runAll(m *testing.M) (code int, err error) {
	if err := shieldSysctls(place.Dir); err != nil {
		return 0, err
	}
	if err := makeCgroupRoot(place.CgroupParent); err != nil {
		return 0, err
	}
	if registry, err = place.StartRegistry(); err != nil {
		return 0, err
	}
	if daemon, err = place.NewDaemon(context.Background(), "node"); err != nil {
		return 0, err
	}
	if agent, err = startKubelet(place, daemon); err != nil {
		return 0, errors.Join(err, daemon.Stop())
	}
	code = m.Run()
	if code != 0 {
		fmt.Fprintf(os.Stderr, "the daemon's log ends with\n%s\nthe kubelet's log ends with\n%s\n", daemon.LogTail(20), agent.logTail(40))
	}
	return code, errors.Join(agent.stop(), daemon.Stop())
}

// tunables are the sysctls that a kubelet sets on its node. They belong to the whole machine.
var tunables = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// shieldSysctls mounts files over the tunables, in this mount namespace, so that the kubelet finds what it wants and the machine
// keeps what it has.
func shieldSysctls(dir string) error {
	for name, value := range tunables {
		file := filepath.Join(dir, "sysctl-"+filepath.Base(name))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("shield %s: %w", name, err)
		}
	}
	return nil
}

// makeCgroupRoot makes the kubelet's cgroup root in every hierarchy; the place removes it.
func makeCgroupRoot(parent string) error {
	roots, err := rig.CgroupRoots()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := os.MkdirAll(filepath.Join(root, parent), 0o755); err != nil {
			return err
		}
	}
	return nil
}
