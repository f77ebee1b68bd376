// Command bench measures what a CRI client waits for: a pod coming up (RunPodSandbox, CreateContainer,
// StartContainer), going down (StopPodSandbox, RemovePodSandbox), and ExecSync, one at a time and several at once. It
// prints a table and writes the figures as JSON.
//
//	hack/bench/run [-pods 50] [-execs 200] [-concurrency 8] [-o bench/results.json]
//
// It starts a daemon of its own in namespaces of its own. With -socket it measures the one that listens there, with
// the image named by -image.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

type options struct {
	pods, execs, concurrency int
	socket, image, out       string
}

// report is what is written as JSON. Durations are milliseconds.
type report struct {
	Time        string            `json:"time"`
	Kernel      string            `json:"kernel"`
	CPUs        int               `json:"cpus"`
	Runtime     string            `json:"runtime"`
	Pods        int               `json:"pods"`
	Concurrency int               `json:"concurrency"`
	Series      []series          `json:"series"`
	PodsPerSec  map[string]float  `json:"podsPerSecond"`
	MemoryKiB   map[string]uint64 `json:"memoryKiB"` // proportional set size with all pods up
}

func main() {
	var o options
	flag.IntVar(&o.pods, "pods", 50, "pods of each measurement")
	flag.IntVar(&o.execs, "execs", 200, "execs of each measurement")
	flag.IntVar(&o.concurrency, "concurrency", 8, "calls at once where it is more than one")
	flag.StringVar(&o.socket, "socket", "", "measure the daemon that listens on this `path`")
	flag.StringVar(&o.image, "image", "", "image to run, with -socket")
	flag.StringVar(&o.out, "o", "bench/results.json", "`file` to write")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(o options) error {
	ctx := context.Background()
	b := &bench{options: o}
	if o.socket != "" {
		conn, err := grpc.NewClient("unix:"+o.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		b.runtime, b.images = runtimev1.NewRuntimeServiceClient(conn), runtimev1.NewImageServiceClient(conn)
		if b.logs, err = os.MkdirTemp("", "criserver-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(b.logs)
	} else {
		place := rig.Isolate()
		registry, err := place.StartRegistry()
		if err != nil {
			return err
		}
		d, err := place.NewDaemon(ctx, "bench")
		if err != nil {
			return err
		}
		b.runtime, b.images, b.image = d.Runtime, d.Images, registry+"/e2e-test-images/busybox:1.29-2"
		b.logs = filepath.Join(place.Dir, "logs")
		b.memory = func() map[string]uint64 {
			return map[string]uint64{"criserver": pss(d.PID()), "criserver-shim": pss(d.ShimPID()), "criserver-keeper": pss(d.KeeperPID())}
		}
	}
	r, err := b.measure(ctx)
	if err != nil {
		return err
	}
	r.print(os.Stdout)
	return r.write(o.out)
}

// pss reads a process's proportional set size, KiB; 0 when it has none.
func pss(pid int) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kib); n == 1 {
			return kib
		}
	}
	return 0
}

func newReport(o options, version string) *report {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return &report{
		Time: time.Now().UTC().Format(time.RFC3339), Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(), Runtime: version,
		Pods: o.pods, Concurrency: o.concurrency, PodsPerSec: map[string]float{}, MemoryKiB: map[string]uint64{},
	}
}

func (r *report) print(w *os.File) {
	fmt.Fprintf(w, "%s on Linux %s, %d CPUs; %d pods; times in ms\n\n", r.Runtime, r.Kernel, r.CPUs, r.Pods)
	fmt.Fprintf(w, "%-34s %6s %9s %9s %9s %9s\n", "", "n", "min", "p50", "p95", "max")
	for _, s := range r.Series {
		fmt.Fprintf(w, "%-34s %6d %9.2f %9.2f %9.2f %9.2f\n", s.Name, s.N, s.Min, s.P50, s.P95, s.Max)
	}
	fmt.Fprintf(w, "\npods a second at concurrency %d: up %.1f, down %.1f\n", r.Concurrency, r.PodsPerSec["up"], r.PodsPerSec["down"])
	for _, name := range []string{"criserver", "criserver-shim", "criserver-keeper"} {
		if kib := r.MemoryKiB[name]; kib > 0 {
			fmt.Fprintf(w, "%s with %d pods up: %.1f MiB\n", name, r.Pods, float64(kib)/1024)
		}
	}
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
