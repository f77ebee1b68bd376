package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/criserver/criserver/test/e2e/rig"
)

// sizes are how much is measured.
type sizes struct {
	cycles      int // pods one at a time
	many        int // pods at concurrency 10
	execs       int // one at a time
	execsAtOnce int // in all
	idle        int // pods for memory, list and stats
	most        int // pods for the slope of memory; 0: none
	asks        int // calls of list and stats
	logMB       int
	streamMB    int
	netSeconds  float64
}

var (
	fullSizes  = sizes{cycles: 30, many: 100, execs: 100, execsAtOnce: 400, idle: 50, most: 200, asks: 50, logMB: 100, streamMB: 32, netSeconds: 2}
	quickSizes = sizes{cycles: 8, many: 20, execs: 20, execsAtOnce: 80, idle: 20, most: 40, asks: 10, logMB: 20, streamMB: 8, netSeconds: 0.5}
)

// settle is how long a runtime gets after a pod, so that what it does behind its answer does not burden the next one's.
const settle = 50 * time.Millisecond

// bench holds who takes part: ours and the peer in everything, the variants of ours in the measurement of single pods.
type bench struct {
	sizes
	report           *report
	ours, peer       *subject
	plugins, without *subject // ours with the stock plugins, and without a pool of network namespaces
	floor            *floor
	daemon           *rig.Daemon // of ours
}

func (b *bench) both() []*subject { return []*subject{b.ours, b.peer} }

func (b *bench) all() []*subject { return []*subject{b.ours, b.peer, b.plugins, b.without} }

// warmUp makes what is made once, and is not counted.
func (b *bench) warmUp(ctx context.Context) error {
	for _, s := range b.all() {
		for range 3 {
			p, err := s.up(ctx, "")
			if err != nil {
				return err
			}
			if err := s.exec(ctx, p, ""); err != nil {
				return err
			}
			if err := s.down(ctx, p, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// single measures one pod after the other: each subject's turn comes in each round, each time another one first.
func (b *bench) single(ctx context.Context) error {
	all := b.all()
	used := map[*subject]float64{}
	for round := range b.cycles {
		for i := range all {
			s := all[(round+i)%len(all)]
			cpu, err := s.using(func() error {
				p, err := s.up(ctx, "pod up")
				if err != nil {
					return err
				}
				time.Sleep(settle)
				if err := s.down(ctx, p, "pod down"); err != nil {
					return err
				}
				time.Sleep(2 * settle)
				return nil
			})
			if err != nil {
				return err
			}
			used[s] += cpu
		}
		cpu, err := b.floor.cycle()
		if err != nil {
			return err
		}
		used[b.floor.subject] += cpu
	}
	n := float64(b.cycles)
	for _, g := range []struct {
		name string
		ours *subject
	}{{groupBuiltin, b.ours}, {groupPlugins, b.plugins}, {groupNoPool, b.without}} {
		for _, name := range []string{
			"pod up", "pod up RunPodSandbox", "pod up CreateContainer", "pod up StartContainer",
			"pod down", "pod down StopContainer", "pod down RemoveContainer", "pod down StopPodSandbox", "pod down RemovePodSandbox",
		} {
			for _, q := range []struct {
				name string
				q    float64
			}{{"p50", 0.5}, {"p95", 0.95}} {
				b.report.add(g.name, name+" "+q.name, "ms", g.ours.times.ms(name, q.q), b.peer.times.ms(name, q.q))
			}
		}
		b.report.add(g.name, "CPU a pod cycle", "ms", ptr(used[g.ours]/n), ptr(used[b.peer]/n))
	}
	for _, g := range []string{groupBuiltin, groupNoPool} {
		for _, name := range []string{"pod up", "pod down"} {
			b.report.floor(g, name+" p50", b.floor.times.ms(name, 0.5))
			b.report.floor(g, name+" p95", b.floor.times.ms(name, 0.95))
		}
		b.report.floor(g, "CPU a pod cycle", ptr(used[b.floor.subject]/n))
	}
	return nil
}

// execs measures execs, one at a time call by call in turn, and then several at once.
func (b *bench) exec(ctx context.Context) error {
	const atOnce = 8
	pods := map[*subject][]*pod{}
	for _, s := range b.both() {
		var err error
		if pods[s], err = s.ups(ctx, atOnce, atOnce, ""); err != nil {
			return err
		}
	}
	time.Sleep(10 * settle)
	floorCPU, err := b.execsInTurn(ctx, pods)
	if err != nil {
		return err
	}
	rate, cpu := map[*subject]*float64{}, map[*subject]*float64{}
	for _, s := range b.both() {
		var took time.Duration
		used, err := s.using(func() error {
			start := time.Now()
			err := each(b.execsAtOnce, atOnce, func(i int) error { return s.exec(ctx, pods[s][i%len(pods[s])], "ExecSync at once") })
			took = time.Since(start)
			return err
		})
		if err != nil {
			return err
		}
		rate[s], cpu[s] = ptr(float64(b.execsAtOnce)/took.Seconds()), ptr(used/float64(b.execsAtOnce))
		if err := s.downs(ctx, pods[s], atOnce, ""); err != nil {
			return err
		}
	}
	for _, name := range []struct {
		name string
		q    float64
	}{{"ExecSync p50", 0.5}, {"ExecSync p95", 0.95}} {
		b.report.add(groupExec, name.name, "ms", b.ours.times.ms("ExecSync", name.q), b.peer.times.ms("ExecSync", name.q))
	}
	b.report.add(groupExec, "ExecSync, 8 at once", "1/s", rate[b.ours], rate[b.peer])
	b.report.add(groupExec, "ExecSync, 8 at once, p50", "ms", b.ours.times.ms("ExecSync at once", 0.5), b.peer.times.ms("ExecSync at once", 0.5))
	b.report.add(groupExec, "CPU an exec", "ms", cpu[b.ours], cpu[b.peer])
	b.report.floor(groupExec, "ExecSync p50", b.floor.times.ms("exec", 0.5))
	b.report.floor(groupExec, "ExecSync p95", b.floor.times.ms("exec", 0.95))
	b.report.floor(groupExec, "CPU an exec", ptr(floorCPU/float64(b.execs)))
	return nil
}

// execsInTurn has each run one exec after the other's, and answers with the CPU of the floor's.
func (b *bench) execsInTurn(ctx context.Context, pods map[*subject][]*pod) (float64, error) {
	floorCPU := 0.0
	if err := errors.Join(b.floor.do('p', ""), b.floor.do('u', "")); err != nil {
		return 0, err
	}
	for range b.execs {
		for _, s := range b.both() {
			if err := s.exec(ctx, pods[s][0], "ExecSync"); err != nil {
				return 0, err
			}
		}
		used, err := b.floor.using(func() error { return b.floor.do('e', "exec") })
		if err != nil {
			return 0, err
		}
		floorCPU += used
	}
	return floorCPU, b.floor.do('d', "")
}

// atOnce measures pods a second, several at once.
func (b *bench) atOnce(ctx context.Context) error {
	const concurrency = 10
	up, down, cpu := map[*subject]*float64{}, map[*subject]*float64{}, map[*subject]*float64{}
	for _, s := range b.both() {
		used, err := s.using(func() error {
			start := time.Now()
			pods, err := s.ups(ctx, b.many, concurrency, "many up")
			if err != nil {
				return err
			}
			up[s] = ptr(float64(b.many) / time.Since(start).Seconds())
			time.Sleep(10 * settle)
			start = time.Now()
			if err := s.downs(ctx, pods, concurrency, "many down"); err != nil {
				return err
			}
			down[s] = ptr(float64(b.many) / time.Since(start).Seconds())
			time.Sleep(20 * settle)
			return nil
		})
		if err != nil {
			return err
		}
		cpu[s] = ptr(used / float64(b.many))
	}
	b.report.add(groupMany, "up", "1/s", up[b.ours], up[b.peer])
	b.report.add(groupMany, "down", "1/s", down[b.ours], down[b.peer])
	for _, name := range []string{"many up", "many down"} {
		b.report.add(groupMany, fmt.Sprintf("a pod %s p95", name[len("many "):]), "ms", b.ours.times.ms(name, 0.95), b.peer.times.ms(name, 0.95))
	}
	b.report.add(groupMany, "CPU a pod", "ms", cpu[b.ours], cpu[b.peer])
	return nil
}
