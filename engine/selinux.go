package engine

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"

	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/selabel"
)

// What Config.SELinux says.
const (
	SELinuxAuto = "auto" // labels where the kernel has SELinux on and the policy knows containers
	SELinuxOn   = "on"   // the same, and it is an error when it is not so
	SELinuxOff  = "off"  // no labels
)

// openSELinux finds out whether containers get labels.
func openSELinux(mode string, h *spec.Host) error {
	h.SELinux, h.NoSELinux = false, ""
	switch {
	case mode != SELinuxAuto && mode != SELinuxOn && mode != SELinuxOff:
		return fmt.Errorf("SELinux is to be %q: must be %s, %s or %s: %w", mode, SELinuxAuto, SELinuxOn, SELinuxOff, errdefs.ErrInvalidArgument)
	case !selinux.GetEnabled():
		if mode == SELinuxOn {
			return fmt.Errorf("containers are to have SELinux labels (workload.selinux), but the kernel has SELinux off, or no policy is loaded: %w", errdefs.ErrFailedPrecondition)
		}
		return nil
	case mode == SELinuxOff:
		h.NoSELinux = "workload.selinux is off"
		return nil
	}
	process, _, err := label.InitLabels(nil)
	if err != nil {
		return fmt.Errorf("SELinux labels of containers: %w", err)
	}
	selinux.ReleaseLabel(process)
	if process == "" {
		h.NoSELinux = "its policy has no labels for containers (contexts/lxc_contexts): install the policy for containers"
		if mode == SELinuxOn {
			return fmt.Errorf("workload.selinux is on, but %s: %w", h.NoSELinux, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	h.SELinux = true
	return nil
}

// labelPod chooses the labels of a pod: what it asks for, else what the policy has for containers, with a level that no other
// pod has.
func (e *Engine) labelPod(r *podRecord) error {
	asked := r.Pod.Security.SELinux
	if !e.host.SELinux {
		if e.host.NoSELinux != "" && asked != nil {
			return fmt.Errorf("the pod's selinux_options: labels are not given on this node: %s: %w", e.host.NoSELinux, errdefs.ErrFailedPrecondition)
		}
		return nil
	}
	var options []string
	if asked != nil {
		options = asked.Options()
	}
	process, mount, err := label.InitLabels(options)
	if err != nil {
		return fmt.Errorf("the pod's selinux_options %v: %w: %w", options, err, errdefs.ErrInvalidArgument)
	}
	if err := checkLabels(process, mount); err != nil {
		selinux.ReleaseLabel(process)
		return fmt.Errorf("the pod's selinux_options: %w", err)
	}
	r.SELinux = &spec.Labels{Process: process, Mount: mount}
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.pods[r.Pod.ID]; p != nil {
		p.record.SELinux = r.SELinux
	}
	return nil
}

// checkLabels asks the kernel whether its policy has these labels; empty ones are left out.
func checkLabels(labels ...string) error {
	for _, l := range labels {
		if l == "" {
			continue
		}
		if err := selinux.SecurityCheckContext(l); err != nil {
			return fmt.Errorf("the policy of this node has no label %s: %w: %w", l, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// keepLabels keeps the level of a pod of an earlier daemon from being given to another.
func keepLabels(r podRecord) {
	if r.SELinux != nil {
		_ = selinux.ReserveLabelV2(r.SELinux.Process) // one that pods share by their own choice is reserved already
	}
}

// releaseLabels gives back the level of a pod that is gone, unless another has it too. Engine.mu is held.
func (e *Engine) releaseLabels(r podRecord) {
	if r.SELinux == nil {
		return
	}
	for _, other := range e.pods {
		if l := other.record.SELinux; l != nil && levelOf(l.Process) == levelOf(r.SELinux.Process) {
			return
		}
	}
	selinux.ReleaseLabel(r.SELinux.Process)
}

func levelOf(label string) string {
	parts := strings.SplitN(label, ":", 4)
	return parts[len(parts)-1]
}

// labelPodFiles labels what all containers of a pod have mounted.
func (e *Engine) labelPodFiles(r podRecord) error {
	if r.SELinux == nil {
		return nil
	}
	for _, name := range []string{hostsFile, resolverFile, hostnameFile} {
		if err := selabel.File(filepath.Join(e.store.podDir(r.Pod.ID), name), r.SELinux.Mount); err != nil {
			return fmt.Errorf("the pod's %s: %w", name, err)
		}
	}
	return nil
}

// relabel labels the sources of mounts that ask for it as the container's files, and checks labels that the container asked for.
func relabel(ctx context.Context, c *spec.Container, s *specs.Spec) error {
	if s.Linux.MountLabel == "" {
		return nil
	}
	if c.Security.SELinux != nil {
		if err := checkLabels(s.Process.SelinuxLabel, s.Linux.MountLabel); err != nil {
			return fmt.Errorf("selinux_options: %w", err)
		}
	}
	for _, m := range c.Mounts {
		if !m.SELinuxRelabel || m.Image != nil {
			continue
		}
		if err := selabel.Tree(ctx, m.Source, s.Linux.MountLabel); err != nil {
			return fmt.Errorf("mount at %s: selinux_relabel: %w", m.Target, err)
		}
	}
	return nil
}
