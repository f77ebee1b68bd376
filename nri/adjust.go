package nri

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine"
)

const shm = "/dev/shm"

// resolver knows what names mean on this node.
type resolver struct {
	// devices adds CDI devices to a spec.
	devices func(s *specs.Spec, names []string) error
	// blockIO is what a class of block I/O means.
	blockIO func(class string) (*specs.LinuxBlockIO, error)
}

// adjust changes a spec, that of a container to be created, as plugins want it. Names that begin with "-" are taken
// away. What a plugin wants and cannot have is an error that names the field; s is of no use then.
func adjust(s *specs.Spec, a *api.ContainerAdjustment, names resolver) (engine.Adjusted, error) {
	var out engine.Adjusted
	if a == nil {
		return out, nil
	}
	s.Annotations = adjustMap(s.Annotations, a.GetAnnotations())
	if err := adjustProcess(s.Process, a); err != nil {
		return out, err
	}
	if err := adjustHooks(s, a.GetHooks()); err != nil {
		return out, err
	}
	var devices []string
	for _, d := range a.GetCDIDevices() {
		devices = append(devices, d.GetName())
	}
	if err := names.devices(s, devices); err != nil {
		return out, err
	}
	if err := adjustLinux(s, a.GetLinux(), names, &out); err != nil {
		return out, err
	}
	return out, adjustMounts(s, a.GetMounts(), &out)
}

// markRemoved adds to an adjustment what plugins took away of a container's variables, mounts and devices. The library does
// not say so in its answer, but takes it away from what it shows to the next plugin (v0.12.5).
func markRemoved(a *api.ContainerAdjustment, s *specs.Spec, shown *api.Container) {
	left := map[string]bool{}
	for _, e := range shown.GetEnv() {
		name, _, _ := strings.Cut(e, "=")
		left["env "+name] = true
	}
	for _, m := range shown.GetMounts() {
		left["mount "+m.GetDestination()] = true
	}
	for _, d := range shown.GetLinux().GetDevices() {
		left["device "+d.GetPath()] = true
	}
	for _, e := range s.Process.Env {
		if name, _, _ := strings.Cut(e, "="); !left["env "+name] {
			a.Env = append(a.Env, &api.KeyValue{Key: api.MarkForRemoval(name)})
		}
	}
	for _, m := range s.Mounts {
		if !left["mount "+m.Destination] {
			a.Mounts = append(a.Mounts, &api.Mount{Destination: api.MarkForRemoval(m.Destination)})
		}
	}
	for _, d := range s.Linux.Devices {
		if !left["device "+d.Path] {
			a.Linux.Devices = append(a.Linux.Devices, &api.LinuxDevice{Path: api.MarkForRemoval(d.Path)})
		}
	}
}

// adjustMap is a new map, with what is marked taken away and the rest set.
func adjustMap(old, change map[string]string) map[string]string {
	if len(change) == 0 {
		return old
	}
	all := map[string]string{}
	maps.Copy(all, old)
	for key := range change {
		if name, marked := api.IsMarkedForRemoval(key); marked {
			delete(all, name)
		}
	}
	for key, value := range change {
		if _, marked := api.IsMarkedForRemoval(key); !marked {
			all[key] = value
		}
	}
	return all
}

func adjustProcess(p *specs.Process, a *api.ContainerAdjustment) error {
	if args := a.GetArgs(); len(args) > 0 {
		if args[0] == "" {
			return invalid("args: no program is named")
		}
		p.Args = args
	}
	if err := noZero("args", p.Args...); err != nil {
		return err
	}
	for _, e := range a.GetEnv() {
		name, marked := e.IsMarkedForRemoval()
		if name == "" || strings.ContainsRune(name, '=') {
			return invalid("env: %q is not the name of a variable", name)
		}
		if err := noZero("env "+name, name, e.GetValue()); err != nil {
			return err
		}
		at := slices.IndexFunc(p.Env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		switch {
		case marked && at >= 0:
			p.Env = slices.Delete(slices.Clone(p.Env), at, at+1)
		case marked:
		case at >= 0:
			p.Env = slices.Clone(p.Env)
			p.Env[at] = e.ToOCI()
		default:
			p.Env = append(slices.Clip(p.Env), e.ToOCI())
		}
	}
	for _, l := range a.GetRlimits() {
		if !strings.HasPrefix(l.GetType(), "RLIMIT_") || l.GetSoft() > l.GetHard() {
			return invalid("rlimits: %q, soft %d, hard %d: must be a name such as RLIMIT_NOFILE, and soft at most hard",
				l.GetType(), l.GetSoft(), l.GetHard())
		}
		p.Rlimits = slices.DeleteFunc(slices.Clone(p.Rlimits), func(old specs.POSIXRlimit) bool { return old.Type == l.GetType() })
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: l.GetType(), Soft: l.GetSoft(), Hard: l.GetHard()})
	}
	return nil
}

func noZero(field string, all ...string) error {
	for _, s := range all {
		if strings.ContainsRune(s, 0) {
			return invalid("%s has a zero byte", field)
		}
	}
	return nil
}

func adjustHooks(s *specs.Spec, h *api.Hooks) error {
	for field, hooks := range map[string][]*api.Hook{
		"prestart": h.GetPrestart(), "create_runtime": h.GetCreateRuntime(), "create_container": h.GetCreateContainer(),
		"start_container": h.GetStartContainer(), "poststart": h.GetPoststart(), "poststop": h.GetPoststop(),
	} {
		for _, hook := range hooks {
			if !path.IsAbs(hook.GetPath()) {
				return invalid("hooks.%s: path %q must be absolute", field, hook.GetPath())
			}
		}
	}
	if h.Hooks() == nil {
		return nil
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	add := func(to *[]specs.Hook, hooks []*api.Hook) {
		for _, hook := range hooks {
			*to = append(*to, hook.ToOCI())
		}
	}
	//lint:ignore SA1019 deprecated, but not gone from specs
	add(&s.Hooks.Prestart, h.GetPrestart())
	add(&s.Hooks.CreateRuntime, h.GetCreateRuntime())
	add(&s.Hooks.CreateContainer, h.GetCreateContainer())
	add(&s.Hooks.StartContainer, h.GetStartContainer())
	add(&s.Hooks.Poststart, h.GetPoststart())
	add(&s.Hooks.Poststop, h.GetPoststop())
	return nil
}

// adjustMounts replaces mounts of the same place, and sorts parents before children. What a mount receives or passes on
// must get through the root.
func adjustMounts(s *specs.Spec, mounts []*api.Mount, out *engine.Adjusted) error {
	if len(mounts) == 0 {
		return nil
	}
	all := slices.Clone(s.Mounts)
	for _, m := range mounts {
		destination, marked := m.IsMarkedForRemoval()
		clean := path.Clean(destination)
		if !path.IsAbs(destination) || clean == "/" {
			return invalid("mounts: destination %q must be an absolute path below /", destination)
		}
		if err := noZero("mount at "+clean, append(m.GetOptions(), destination, m.GetSource(), m.GetType())...); err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(old specs.Mount) bool { return path.Clean(old.Destination) == clean })
		out.Shm = out.Shm || clean == shm
		if marked {
			continue
		}
		var propagation string
		mount := m.ToOCI(&propagation)
		mount.Destination = clean
		all = append(all, mount)
		switch {
		case propagation == "rshared":
			s.Linux.RootfsPropagation = "rshared"
		case propagation == "rslave" && s.Linux.RootfsPropagation != "rshared":
			s.Linux.RootfsPropagation = "rslave"
		}
	}
	slices.SortStableFunc(all, func(a, b specs.Mount) int {
		return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
	})
	s.Mounts = all
	return nil
}

func named(field string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}
