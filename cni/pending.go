package cni

import (
	"context"
	"errors"
	"time"
)

// A DEL that fails is journalled in gc/ and tried again: after one second, then after twice as long each time, up to
// retryAtMost. Plugins need the namespace for most of what they do, so it stays pinned until a DEL succeeds, but no
// longer than KeepNetns; later DELs are told that it is gone, which plugins have to accept.
const (
	retryFirst  = time.Second
	retryAtMost = 5 * time.Minute
)

// teardownConflist runs DEL once, within a bound of its own, so that a caller who gave up does not leave a half-run DEL,
// and a plugin that hangs does not hold the pod's removal up.
func (n *Network) teardownConflist(ctx context.Context, r *record) error {
	r = r.to(stateDetaching)
	if err := n.put(r); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), n.cfg.PluginTimeout/10)
	defer cancel()
	if err := n.lists.del(ctx, r, n.netnsFor(r)); err != nil {
		n.log.Warn("DEL failed and is tried again behind", "pod", r.Request.PodID, "err", err)
		pending := r.to(statePending)
		pending.Conflist = failed(r.Conflist, err)
		n.postpone(pending)
		return nil
	}
	return n.finish(r)
}

// netnsFor is the path that a DEL is told, empty when the namespace is gone.
func (n *Network) netnsFor(r *record) string {
	if n.dir.Pinned(pinPrefix + r.Request.PodID) {
		return r.Netns
	}
	return ""
}

func failed(c *conflistRecord, err error) *conflistRecord {
	next := *c
	next.Tries++
	next.Error = err.Error()
	return &next
}

// finish removes what is left once DEL has run.
func (n *Network) finish(r *record) error {
	id := r.Request.PodID
	err := errors.Join(n.dir.Unpin(pinPrefix+id), n.store.remove(id, stateDetaching), n.store.remove(id, statePending))
	n.mu.Lock()
	delete(n.records, id)
	n.mu.Unlock()
	return err
}

// postpone journals the record and tries its DEL again behind.
func (n *Network) postpone(r *record) {
	id := r.Request.PodID
	if err := n.put(r); err != nil {
		n.log.Error("the journal of a failed DEL could not be written; a restart would not try it again", "pod", id, "err", err)
		n.mu.Lock()
		n.records[id] = r
		n.mu.Unlock()
	} else if err := n.store.remove(id, stateDetaching); err != nil {
		n.log.Warn("network record", "err", err)
	}
	n.tasks.Go(func() { n.retry(r) })
}

func (n *Network) retry(r *record) {
	id := r.Request.PodID
	dropNetns := time.NewTimer(time.Until(r.Since.Add(n.cfg.KeepNetns)))
	defer dropNetns.Stop()
	next := time.NewTimer(backoff(r.Conflist.Tries))
	defer next.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-dropNetns.C:
			if err := n.dir.Unpin(pinPrefix + id); err != nil {
				n.log.Warn("remove the network namespace of a pod whose DEL fails", "pod", id, "err", err)
			}
			continue
		case <-next.C:
		}
		after, done := n.tryAgain(r)
		if done {
			return
		}
		r = after
		next.Reset(backoff(r.Conflist.Tries))
	}
}

func (n *Network) tryAgain(r *record) (*record, bool) {
	id := r.Request.PodID
	unlock, err := n.keys.lock(n.ctx, id)
	if err != nil {
		return r, true
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.PluginTimeout)
	defer cancel()
	err = n.lists.del(ctx, r, n.netnsFor(r))
	if n.ctx.Err() != nil {
		return r, true
	}
	if err == nil {
		if err := n.finish(r); err != nil {
			n.log.Warn("after a DEL that was tried again", "pod", id, "err", err)
		}
		n.log.Info("DEL succeeded", "pod", id, "tries", r.Conflist.Tries+1)
		return nil, true
	}
	again := *r
	again.Conflist = failed(r.Conflist, err)
	if err := n.put(&again); err != nil {
		n.log.Warn("network record", "err", err)
	}
	n.log.Warn("DEL failed again", "pod", id, "tries", again.Conflist.Tries, "err", err)
	return &again, false
}

func backoff(tries int) time.Duration {
	return min(retryFirst<<min(max(tries-1, 0), 16), retryAtMost)
}
