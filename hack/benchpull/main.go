// Command benchpull measures pulls of large images by our daemon and by containerd, the two taking turns: wall time, CPU and
// peak memory, each pull into an empty store on an ext4 made for it alone. It prints a table and writes the figures as JSON.
//
//	hack/benchpull/run [-n 5] [-images gzip,zstd,one] [-peers ours,default,tuned] [-o bench/pull.json]
//
// The peers are:
//
//	ours     criserver as configured by default; all that was pulled is durable when PullImage returns
//	default  containerd as configured by default, without igzip or pigz; blobs are durable, unpacked files are not
//	tuned    containerd with 8 downloads and 8 unpacks at once, blobs fetched in parts of 8 MiB, and igzip if it is installed;
//	         durable as default
//	synced   as default, and unpacked files are made durable, too
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/criserver/criserver/test/e2e/rig"
)

// images are those that may be asked for: what -images calls them, and their tags in criserver/big.
var images = map[string]string{"gzip": "gzip", "zstd": "zstd", "one": "gzip-one"}

type options struct {
	rounds        int
	images, peers []string
	out           string
	containerd    string
	warm          int
}

// report is what is written as JSON.
type report struct {
	Time   string    `json:"time"`
	Kernel string    `json:"kernel"`
	CPUs   int       `json:"cpus"`
	Rounds int       `json:"rounds"`
	Igzip  bool      `json:"igzip"`
	Images []figures `json:"images"`
}

// figures are the medians of one image, by peer, and what ours is of the others'.
type figures struct {
	Image string             `json:"image"`
	Peers map[string]summary `json:"peers"`
	// Ratios are ours by theirs, the median over the rounds.
	Ratios map[string]ratio `json:"ratios"`
}

type summary struct {
	WallSeconds    float   `json:"wallSeconds"`
	CPUSeconds     float   `json:"cpuSeconds"`     // of the daemon and its children
	MachineSeconds float   `json:"machineSeconds"` // of all, the registry and the kernel's writing back included
	PeakMiB        float   `json:"peakMiB"`        // resident, of the daemon
	Walls          []float `json:"walls"`
}

type ratio struct {
	Wall float `json:"wall"`
	CPU  float `json:"cpu"`
}

// float is written with three places, so that results can be compared by eye.
type float float64

// MarshalJSON implements json.Marshaler.
func (f float) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, "%.3f", float64(f)), nil }

func main() {
	var o options
	var names, peers string
	flag.IntVar(&o.rounds, "n", 5, "pulls of each image by each peer")
	flag.IntVar(&o.warm, "warm", 1, "rounds before those that count")
	flag.StringVar(&names, "images", "gzip,zstd,one", "images, comma separated")
	flag.StringVar(&peers, "peers", "ours,default,tuned", "peers, comma separated")
	flag.StringVar(&o.out, "o", "bench/pull.json", "`file` to write; empty for none")
	flag.StringVar(&o.containerd, "containerd", "hack/cache/bin/containerd", "containerd's `program`")
	flag.Parse()
	o.images, o.peers = strings.Split(names, ","), strings.Split(peers, ",")
	var err error
	if o.containerd, err = filepath.Abs(o.containerd); err == nil {
		err = o.check()
	}
	if err == nil {
		err = run(context.Background(), o, rig.Isolate())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "benchpull: %v\n", err)
		os.Exit(1)
	}
}

func (o *options) check() error {
	for _, name := range o.images {
		if images[name] == "" {
			return fmt.Errorf("no image %q: gzip, zstd and one are there", name)
		}
	}
	for _, name := range o.peers {
		if !slices.Contains([]string{"ours", "default", "tuned", "synced"}, name) {
			return fmt.Errorf("no peer %q: ours, default, tuned and synced are there", name)
		}
	}
	if o.rounds < 1 {
		return errors.New("-n: at least one round")
	}
	return nil
}

func run(ctx context.Context, o options, place *rig.Place) error {
	registry, err := place.StartRegistry()
	if err != nil {
		return err
	}
	disk, err := newDisk(filepath.Join(place.Dir, "disk"), filepath.Join(place.Dir, mountName))
	if err != nil {
		return err
	}
	b := &bench{options: o, place: place, disk: disk, registry: registry}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	_, igzip := exec.LookPath("igzip")
	r := &report{
		Time: time.Now().UTC().Format(time.RFC3339), Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(), Rounds: o.rounds,
		Igzip: igzip == nil,
	}
	for _, image := range o.images {
		f, err := b.image(ctx, image)
		if err != nil {
			return err
		}
		f.print(os.Stdout, o.peers)
		r.Images = append(r.Images, f)
	}
	if o.out == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, append(text, '\n'), 0o644)
}

// bench is the run.
type bench struct {
	options
	place    *rig.Place
	disk     *disk
	registry string
}

// image measures one image: in each round each peer once, in an order that turns.
func (b *bench) image(ctx context.Context, name string) (figures, error) {
	all := map[string][]measure{}
	ref := b.registry + "/criserver/big:" + images[name]
	for round := range b.rounds + b.warm {
		for i := range b.peers {
			peer := b.peers[(round+i)%len(b.peers)]
			m, err := b.pull(ctx, peer, ref)
			if err != nil {
				return figures{}, fmt.Errorf("%s pulls %s: %w", peer, ref, err)
			}
			fmt.Fprintf(os.Stderr, "%-5s %-8s wall %.2f s, CPU %.2f s, machine %.2f s, peak %.0f MiB\n", name, peer, m.wall, m.cpu, m.machine, m.peak)
			if round >= b.warm {
				all[peer] = append(all[peer], m)
			}
		}
	}
	return summarize(name, all), nil
}

func summarize(name string, all map[string][]measure) figures {
	f := figures{Image: name, Peers: map[string]summary{}, Ratios: map[string]ratio{}}
	for peer, list := range all {
		s := summary{
			WallSeconds: median(list, func(m measure) float64 { return m.wall }), CPUSeconds: median(list, func(m measure) float64 { return m.cpu }),
			MachineSeconds: median(list, func(m measure) float64 { return m.machine }), PeakMiB: median(list, func(m measure) float64 { return m.peak }),
		}
		for _, m := range list {
			s.Walls = append(s.Walls, float(m.wall))
		}
		f.Peers[peer] = s
		ours := all["ours"]
		if peer == "ours" || len(ours) != len(list) {
			continue
		}
		pairs := make([]measure, len(list))
		for i, m := range list {
			pairs[i] = measure{wall: ours[i].wall / m.wall, cpu: ours[i].cpu / m.cpu}
		}
		f.Ratios[peer] = ratio{
			Wall: median(pairs, func(m measure) float64 { return m.wall }), CPU: median(pairs, func(m measure) float64 { return m.cpu }),
		}
	}
	return f
}

func median(list []measure, of func(measure) float64) float {
	values := make([]float64, len(list))
	for i, m := range list {
		values[i] = of(m)
	}
	slices.Sort(values)
	n := len(values)
	return float((values[(n-1)/2] + values[n/2]) / 2)
}

func (f *figures) print(w *os.File, peers []string) {
	fmt.Fprintf(w, "\n%-6s %-8s %8s %8s %10s %9s %12s %11s\n", "image", "peer", "wall s", "CPU s", "machine s", "peak MiB", "wall ratio", "CPU ratio")
	for _, peer := range peers {
		s := f.Peers[peer]
		fmt.Fprintf(w, "%-6s %-8s %8.2f %8.2f %10.2f %9.0f", f.Image, peer, s.WallSeconds, s.CPUSeconds, s.MachineSeconds, s.PeakMiB)
		if r, ok := f.Ratios[peer]; ok {
			fmt.Fprintf(w, " %12.2f %11.2f", r.Wall, r.CPU)
		}
		fmt.Fprintln(w)
	}
}
