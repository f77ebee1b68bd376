package engine

import (
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/internal/cgstat"
)

// Summary is what an operator wants to see of an engine at a glance.
type Summary struct {
	Kernel      string `json:"kernel"`
	Arch        string `json:"arch"`
	CgroupMode  string `json:"cgroupMode"` // v1, hybrid or v2; "" when no hierarchy can be read
	Pods        int    `json:"pods"`       // of all states
	ReadyPods   int    `json:"readyPods"`
	Containers  int    `json:"containers"` // of all states
	Running     int    `json:"runningContainers"`
	EventFeeds  int    `json:"eventFeeds"` // consumers of events
	ShimFollows bool   `json:"shimConnected"`
}

// Summary counts what there is.
func (e *Engine) Summary() Summary {
	s := Summary{Arch: runtime.GOARCH, EventFeeds: int(e.events.count.Load()), ShimFollows: e.connected.Load()}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		s.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if host, err := cgstat.Machine(); err == nil {
		s.CgroupMode = host.Mode()
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	s.Pods, s.Containers = len(e.pods), len(e.containers)
	for _, p := range e.pods {
		if p.record.State == ready {
			s.ReadyPods++
		}
	}
	for _, c := range e.containers {
		if c.record.State == running {
			s.Running++
		}
	}
	return s
}
