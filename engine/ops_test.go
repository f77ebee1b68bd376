package engine

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

func TestOperations(t *testing.T) {
	o := newOperations()
	gate := make(chan struct{})
	var ran []string
	enqueue := func(kind string, result error) *operation {
		op, err := o.enqueue(background, "key", kind, func(context.Context) error {
			<-gate
			ran = append(ran, kind) // one at a time, so without a lock
			return result
		})
		must(t, err)
		return op
	}
	failure := errors.New("failure")
	start := enqueue("start", failure)
	if enqueue("start", nil) != start {
		t.Error("the same again does not join what runs")
	}
	stop := enqueue("stop", nil)
	if enqueue("stop", nil) != stop {
		t.Error("the same again does not join what waits")
	}
	again := enqueue("start", nil)
	if again == start {
		t.Error("a start after a stop joins the start before it")
	}
	other := make(chan struct{})
	_, err := o.enqueue(background, "other", "start", func(context.Context) error { close(other); return nil })
	must(t, err)
	<-other // another key does not wait for this one
	if err := o.do(cancelled(), background, "key", "start", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has left waits: %v", err)
	}
	close(gate)
	<-again.done
	if !errors.Is(start.err, failure) || stop.err != nil || !slices.Equal(ran, []string{"start", "stop", "start"}) {
		t.Errorf("ran %v; the start answered %v, the stop %v", ran, start.err, stop.err)
	}
	o.close()
	if _, err := o.enqueue(background, "key", "start", nil); !errdefs.IsUnavailable(err) {
		t.Errorf("an operation after close: %v", err)
	}
	o.wg.Wait()
	if len(o.last) != 0 {
		t.Errorf("%d operations are remembered", len(o.last))
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(background)
	cancel()
	return ctx
}

func TestMoves(t *testing.T) {
	for from, all := range moves {
		for _, to := range []phase{creating, ready, notready, created, running, exited, removing} {
			p := from
			err := move(&p, to)
			if allowed := to == from || slices.Contains(all, to); allowed != (err == nil) || err == nil && p != to || err != nil && p != from {
				t.Errorf("%s -> %s: %v, is %s", from, to, err, p)
			}
		}
	}
	if p := removing; move(&p, ready) == nil {
		t.Error("what is being removed comes back")
	}
}
