package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// mountName is the daemons' directory in the place, where the fresh filesystem is mounted.
const mountName = "pull"

// measure is one pull: seconds, and MiB.
type measure struct{ wall, cpu, machine, peak float64 }

// daemon is a peer that runs.
type daemon struct {
	images runtimev1.ImageServiceClient
	pid    int
	stop   func() error
}

// pull starts a peer on an empty filesystem and has it pull.
func (b *bench) pull(ctx context.Context, peer, ref string) (m measure, err error) {
	if err := b.disk.fresh(); err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, b.disk.drop()) }()
	start := b.containerdPeer
	if peer == "ours" {
		start = b.ours
	}
	d, err := start(ctx, peer)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	unix.Sync()
	time.Sleep(300 * time.Millisecond) // for what a daemon does after its start
	// The highest mark of memory is to be that of the pull.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.pid), []byte("5"), 0); err != nil {
		return m, err
	}
	cpu, machine, began := processSeconds(d.pid), machineSeconds(), time.Now()
	_, err = d.images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: ref}})
	m.wall = time.Since(began).Seconds()
	m.cpu, m.machine, m.peak = processSeconds(d.pid)-cpu, machineSeconds()-machine, peakMiB(d.pid)
	return m, err
}

// ours starts criserver.
func (b *bench) ours(ctx context.Context, _ string) (*daemon, error) {
	d, err := b.place.NewDaemonWith(ctx, mountName, rig.Settings{LogLevel: "info"})
	if err != nil {
		return nil, err
	}
	return &daemon{images: d.Images, pid: d.PID(), stop: func() error {
		err := d.Stop()
		// Keeper and shim outlive the daemon and hold what it is to be mounted on.
		return errors.Join(err, b.end("criserver-keeper", "criserver-shim"), d.RemoveState())
	}}, nil
}

// clockTick is Linux's USER_HZ.
const clockTick = 100

// processSeconds is the CPU time of a process and of those of its children that have ended.
func processSeconds(pid int) float64 {
	text, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 15 {
		return 0
	}
	var ticks float64
	for _, field := range fields[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.ParseFloat(field, 64)
		ticks += n
	}
	return ticks / clockTick
}

// machineSeconds is the time that CPUs were not idle.
func machineSeconds() float64 {
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	var ticks float64
	for i, field := range strings.Fields(line) {
		if i == 0 || i == 4 || i == 5 || i > 8 { // the name, idle, iowait; guests count twice
			continue
		}
		n, _ := strconv.ParseFloat(field, 64)
		ticks += n
	}
	return ticks / clockTick
}

// peakMiB is the largest resident set since it was last forgotten.
func peakMiB(pid int) float64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(text)) {
		var kib float64
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kib); n == 1 {
			return kib / 1024
		}
	}
	return 0
}
