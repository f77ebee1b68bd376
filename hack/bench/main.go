// Command bench measures criserver beside containerd with runc, both driven over CRI by the same client, in turn, with
// the same images. docs/performance.md says what each figure is. It prints a table and writes it as JSON.
//
//	hack/bench/run [-quick] [-scale 1000] [-only NAME] [-o bench/results.json]
//	hack/bench/run -docs
//
// With -docs nothing is measured: docs/performance.md gets the results of the last run.
// Everything runs in a place of its own, and nothing is left. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/criserver/criserver/test/e2e/rig"
)

type options struct {
	quick                   bool
	scale, most             int
	only                    string
	tools, floorSource, out string
}

func main() {
	var o options
	flag.BoolVar(&o.quick, "quick", false, "fewer of everything: a minute, and figures that vary more")
	flag.IntVar(&o.scale, "scale", -1, "`pods` of ours at once in the last measurement; 0 leaves it out (default 1000, with -quick 0)")
	flag.IntVar(&o.most, "most", -1, "`pods` up to which memory is followed; 0 leaves that out, which takes minutes (default 200, with -quick 40)")
	flag.StringVar(&o.only, "only", "", "leave out measurements whose `name` does not contain this")
	flag.StringVar(&o.tools, "tools", "hack/cache/bin", "`directory` with containerd, runc, crictl, and plugins in its cni")
	flag.StringVar(&o.floorSource, "floor", "hack/floor", "`directory` with the sources of the floor programs")
	flag.StringVar(&o.out, "o", "bench/results.json", "`file` to write")
	docs := flag.Bool("docs", false, "measure nothing: put the results in -o into docs/performance.md and docs/start-latency.svg")
	flag.Parse()
	if *docs {
		r, err := readReport(o.out)
		if err == nil {
			err = writeDocs(r, "docs")
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if o.scale < 0 {
		o.scale = 1000
		if o.quick {
			o.scale = 0
		}
	}
	if err := run(context.Background(), o); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	tools, err := filepath.Abs(o.tools)
	if err != nil {
		return err
	}
	place := rig.Isolate()
	st, err := newStage(place, tools)
	if err != nil {
		return err
	}
	b := &bench{sizes: fullSizes, report: newReport(o.quick)}
	if o.quick {
		b.sizes = quickSizes
	}
	if o.most >= 0 {
		b.most = o.most
	}
	if err := b.start(ctx, st, o.floorSource); err != nil {
		return err
	}
	steps := b.steps(filepath.Join(tools, "crictl"))
	if o.scale > 0 {
		steps = append(steps, step{"scale", func(ctx context.Context) error {
			b.alone()
			return b.scale(ctx, b.daemon, o.scale)
		}})
	}
	var failed error
	for _, step := range steps {
		if !strings.Contains(step.name, o.only) && step.name != "warm-up" {
			continue
		}
		start := time.Now()
		if err := step.do(ctx); err != nil { // what else was measured is worth keeping
			failed = errors.Join(failed, fmt.Errorf("%s: %w", step.name, err))
		}
		fmt.Fprintf(os.Stderr, "bench: %s: %.0f s\n", step.name, time.Since(start).Seconds())
	}
	b.report.judge()
	b.report.print(os.Stdout)
	return errors.Join(failed, b.report.write(o.out))
}

type step struct {
	name string
	do   func(context.Context) error
}

func (b *bench) steps(crictl string) []step {
	return []step{
		{"warm-up", b.warmUp},
		{"single pods", b.single},
		{"exec", b.exec},
		{"pods at once", b.atOnce},
		{"idle pods", b.idleness},
		{"log", b.logs},
		{"streams", func(ctx context.Context) error { return b.streams(ctx, crictl) }},
		{"network", b.network},
	}
}

// start starts who takes part.
func (b *bench) start(ctx context.Context, st *stage, floorSource string) (err error) {
	var errs [4]error
	b.ours, b.daemon, errs[0] = st.ours(ctx, "ours", "")
	b.peer, errs[1] = st.containerd(ctx, "containerd")
	b.plugins, errs[2] = st.oursWithPlugins(ctx, "plugins")
	b.without, _, errs[3] = st.ours(ctx, "nopool", "netns_pool = 0")
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if b.floor, err = st.startFloor(ctx, floorSource, b.ours); err != nil {
		return err
	}
	b.report.Ours, b.report.Peer = b.ours.version, b.peer.version+" with runc"
	return nil
}
