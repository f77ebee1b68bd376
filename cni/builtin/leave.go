package builtin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// leavers are the interfaces of pods that were detached and that the kernel has not taken down yet. Their addresses
// are held until then. The kernel's messages tell; after a lost one, and on a timer, interfaces are listed.
type leavers struct {
	host  *netlink.Handle
	log   *slog.Logger
	alloc *allocator
	stop  chan struct{}
	once  sync.Once

	mu     sync.Mutex
	byName map[string]leaver
}

type leaver struct {
	addrs []netip.Prefix
	gone  func()
	since time.Time
}

// overdue is when an interface is removed by us: a process, or a socket that still says goodbye, holds the namespace.
const overdue = 3 * time.Second

func newLeavers(host *netlink.Handle, log *slog.Logger, alloc *allocator) *leavers {
	return &leavers{host: host, log: log, alloc: alloc, stop: make(chan struct{}), byName: make(map[string]leaver)}
}

// add begins to watch. The interface may be gone, or never have been.
func (l *leavers) add(name string, addrs []netip.Prefix, gone func()) {
	l.mu.Lock()
	l.byName[name] = leaver{addrs: addrs, gone: gone, since: time.Now()}
	l.mu.Unlock()
	_, err := l.host.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		l.left(name)
	}
}

func (l *leavers) knows(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.byName[name]
	return ok
}

func (l *leavers) left(name string) {
	l.mu.Lock()
	v, ok := l.byName[name]
	delete(l.byName, name)
	l.mu.Unlock()
	if !ok {
		return
	}
	l.alloc.release(name, v.addrs)
	if v.gone != nil {
		v.gone()
	}
}

// resync asks for each interface that is waited for.
func (l *leavers) resync() {
	l.mu.Lock()
	names := make(map[string]time.Time, len(l.byName))
	for name, v := range l.byName {
		names[name] = v.since
	}
	l.mu.Unlock()
	for name, since := range names {
		link, err := l.host.LinkByName(name)
		if err == nil && time.Since(since) > overdue {
			l.log.Debug("a detached pod's interface is still there: something holds the pod's network namespace; it is removed", "interface", name)
			if err = l.host.LinkDel(link); err == nil {
				_, err = l.host.LinkByName(name)
			}
		}
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			l.left(name)
		}
	}
}

func (l *leavers) close() { l.once.Do(func() { close(l.stop) }) }

func (l *leavers) start(ctx context.Context, tasks *sync.WaitGroup) error {
	updates, err := l.subscribe()
	if err != nil {
		return err
	}
	tasks.Go(func() { l.watch(ctx, updates) })
	return nil
}

const subscriptionBuffer = 1 << 20 // bytes: some thousand messages

func (l *leavers) subscribe() (<-chan netlink.LinkUpdate, error) {
	updates := make(chan netlink.LinkUpdate, 64)
	err := netlink.LinkSubscribeWithOptions(updates, l.stop, netlink.LinkSubscribeOptions{
		ReceiveBufferSize: subscriptionBuffer,
		ErrorCallback:     func(err error) { l.log.Debug("messages about interfaces", "err", err) },
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to messages about interfaces: %w", err)
	}
	return updates, nil
}

// watch ends when the context does. A subscription ends with an error when messages were lost; a new one follows.
func (l *leavers) watch(ctx context.Context, updates <-chan netlink.LinkUpdate) {
	for {
		l.drain(ctx, updates)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			var err error
			if updates, err = l.subscribe(); err == nil {
				break
			}
			l.log.Warn("addresses of removed pods are given back late", "err", err)
		}
		l.resync()
	}
}

func (l *leavers) drain(ctx context.Context, updates <-chan netlink.LinkUpdate) {
	tick := time.NewTicker(overdue / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.resync()
		case <-ctx.Done():
			go func() { // the subscription's goroutine may be sending; it ends once its socket is closed
				for range updates {
				}
			}()
			return
		case u, ok := <-updates:
			if !ok {
				return
			}
			// Bridges send RTM_DELLINK too, of family AF_BRIDGE, when a port leaves; the interface is then still there.
			if u.Header.Type == unix.RTM_DELLINK && u.IfInfomsg.Family == unix.AF_UNSPEC {
				l.left(u.Attrs().Name)
			}
		}
	}
}
