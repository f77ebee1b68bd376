package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/profiles/apparmor"
	"golang.org/x/sync/errgroup"

	"github.com/criserver/criserver/engine/spec"
)

func containerKey(id string) string { return "container " + id }

const (
	// accountsLimit bounds what is read of an image's /etc/passwd and /etc/group, profileLimit a seccomp profile.
	accountsLimit = 1 << 20
	profileLimit  = 4 << 20
)

// CreateContainer makes a container in the pod c.PodID and answers its id. ID, ImageID and ImageRef of c are filled by
// the engine. A container of the pod with the same name, attempt and configuration that has not exited is answered as it is.
func (e *Engine) CreateContainer(ctx context.Context, c spec.Container) (string, error) {
	if c.Name == "" {
		return "", fmt.Errorf("container's name is empty: %w", errdefs.ErrInvalidArgument)
	}
	if c.Image == "" {
		return "", fmt.Errorf("image of container %s is empty: %w", c.Name, errdefs.ErrInvalidArgument)
	}
	if c.LogPath != "" && !filepath.IsLocal(c.LogPath) {
		return "", fmt.Errorf("log path %q of container %s: must be relative and stay beneath the pod's log directory: %w",
			c.LogPath, c.Name, errdefs.ErrInvalidArgument)
	}
	id, left, err := e.reserveContainer(c)
	if left != "" {
		if err := e.RemoveContainer(ctx, left); err != nil {
			return "", fmt.Errorf("an earlier attempt at container %s left things that cannot be removed: %w", c.Name, err)
		}
		id, left, err = e.reserveContainer(c)
	}
	if err != nil {
		return "", err
	}
	if left != "" {
		return "", fmt.Errorf("container %s is being removed again and again: %w", c.Name, errdefs.ErrAborted)
	}
	err = e.ops.do(ctx, e.ctx, containerKey(id), "create", func(ctx context.Context) error { return e.createContainer(ctx, id) })
	if err != nil {
		return "", fmt.Errorf("container %s: %w", c.Name, err)
	}
	return id, nil
}

// reserveContainer finds the container with the identity of c, or records in memory that there is one from now on. With
// left the identity belongs to a container that is being removed.
func (e *Engine) reserveContainer(c spec.Container) (id, left string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	podID, err := find(e.pods, "pod", c.PodID)
	if err != nil {
		return "", "", err
	}
	c.PodID = podID
	for _, other := range e.containers {
		o := other.record.Container
		if o.PodID != podID || o.Name != c.Name || o.Attempt != c.Attempt {
			continue
		}
		if asked := other.record.Asked; asked != nil {
			o.Resources = *asked
		}
		switch state := other.record.State; {
		case state == removing:
			return "", o.ID, nil
		case state == exited:
			return "", "", fmt.Errorf("container %s, attempt %d, exists as %s and has exited: remove it, or raise the attempt: %w",
				c.Name, c.Attempt, o.ID, errdefs.ErrAlreadyExists)
		case !sameContainer(o, c):
			return "", "", fmt.Errorf("container %s, attempt %d, exists as %s with another configuration: remove it, or raise the attempt: %w",
				c.Name, c.Attempt, o.ID, errdefs.ErrAlreadyExists)
		}
		return o.ID, "", nil
	}
	p := e.pods[podID].record
	if p.State != ready {
		return "", "", fmt.Errorf("pod %s is not ready, so no container can be added: run another pod: %w", podID, errdefs.ErrFailedPrecondition)
	}
	c.ID = newID()
	record := containerRecord{State: creating, Container: c, CreatedAt: time.Now(), CgroupsPath: p.Pod.ProcessCgroup(c.ID)}
	if c.LogPath != "" && p.Pod.LogDirectory != "" {
		record.LogPath = filepath.Join(p.Pod.LogDirectory, c.LogPath)
	}
	e.containers[c.ID] = newContainer(record)
	return c.ID, "", nil
}

// sameContainer compares what was asked for, without what the engine filled in.
func sameContainer(a, b spec.Container) bool {
	a.ID, a.ImageID, a.ImageRef = "", "", ""
	b.ID, b.ImageID, b.ImageRef = "", "", ""
	a, b = asAsked(a), asAsked(b)
	return sameJSON(a, b)
}

// createContainer is the operation of CreateContainer.
func (e *Engine) createContainer(ctx context.Context, id string) error {
	record, ok := e.containerRecord(id)
	switch {
	case ok && (record.State == created || record.State == running):
		return nil
	case !ok || record.State != creating:
		return fmt.Errorf("it was removed meanwhile: %w", errdefs.ErrAborted)
	}
	defer e.containerStep(id, "create")()
	err := e.prepareContainer(ctx, record)
	if err == nil {
		return nil
	}
	ctx, cancel := undo(ctx)
	defer cancel()
	if undoErr := e.removeContainer(ctx, id); undoErr != nil {
		e.log.Warn("what a container that could not be made left is removed later", "container", id, "error", undoErr)
	}
	return err
}

// prepareContainer makes all that a container needs to be started: its directory, its root, its spec.
func (e *Engine) prepareContainer(ctx context.Context, record containerRecord) error {
	c := record.Container
	pod, ok := e.podRecord(c.PodID)
	if !ok || pod.State != ready {
		return fmt.Errorf("pod %s was stopped meanwhile: %w", c.PodID, errdefs.ErrFailedPrecondition)
	}
	if err := e.checkMappedMounts(pod.Pod.Handler, c.Mounts); err != nil {
		return err
	}
	dir := e.store.containerDir(c.PodID, c.ID)
	if err := makeDir(dir, 0o700); err != nil {
		return fmt.Errorf("container's directory: %w", err)
	}
	if err := e.store.saveContainer(record); err != nil {
		return err
	}
	image, err := e.baseImage(ctx, &record)
	if err != nil {
		return err
	}
	if err := e.findVolumes(ctx, &record.Container); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		record.Rootfs, err = e.prepareRootfs(gctx, c.ID, image.ID)
		return err
	})
	var made madeSpec
	g.Go(func() (err error) {
		made, err = e.makeSpec(gctx, &pod, record, image)
		return err
	})
	defer func() { made.release() }()
	if err := g.Wait(); err != nil {
		return err
	}
	if record.Restored {
		if err := e.restoreRootfs(ctx, c.ID); err != nil {
			return err
		}
	}
	record.User, record.StopSignal, record.OwnPID = made.user, made.stopSignal, made.ownPID
	record.PodNamespaces, record.PIDTarget, record.CgroupsPath = made.podNamespaces, made.pidTarget, made.cgroupsPath
	record.RawEnv = made.rawEnv
	if made.resources != nil {
		asked := record.Container.Resources
		record.Asked, record.Container.Resources = &asked, *made.resources
	}
	if err := move(&record.State, created); err != nil {
		return err
	}
	if err := e.store.saveContainer(record); err != nil {
		return err
	}
	if _, err = e.changeContainer(c.ID, created, func(r *containerRecord) { *r = record }); err != nil {
		return err
	}
	e.logPlugin(e.tellContainer(ctx, ContainerPostCreate, c.ID), ContainerPostCreate, "container", c.ID)
	return nil
}

func (e *Engine) prepareRootfs(ctx context.Context, id, imageID string) (rootfsMount, error) {
	defer e.containerStep(id, "rootfs")()
	mounts, err := e.cfg.Rootfs.Prepare(ctx, id, imageID)
	if err != nil {
		return rootfsMount{}, fmt.Errorf("root filesystem: %w", err)
	}
	if len(mounts) != 1 {
		return rootfsMount{}, fmt.Errorf("root filesystem is made of %d mounts, not of one: %w", len(mounts), errdefs.ErrInternal)
	}
	return rootfsMount{Type: mounts[0].Type, Source: mounts[0].Source, Options: mounts[0].Options}, nil
}

// madeSpec is what the record of a container takes from its spec.
type madeSpec struct {
	user          spec.User
	stopSignal    int32
	podNamespaces []string
	pidTarget     string
	ownPID        bool
	cgroupsPath   string
	// resources are the limits when plugins have changed them.
	resources *spec.Resources
	// rawEnv is the environment, if it is not all text.
	rawEnv spec.Env
	// release lets plugins join again once what they were told is so.
	release func()
}

// makeSpec builds a container's spec, lets plugins change it, and writes config.json. The caller calls release of the
// answer, with an error too.
func (e *Engine) makeSpec(ctx context.Context, pod *podRecord, r containerRecord, image Image) (madeSpec, error) {
	c := r.Container
	defer e.containerStep(c.ID, "spec")()
	made := madeSpec{cgroupsPath: r.CgroupsPath, release: func() {}}
	signal, err := spec.StopSignal(c.StopSignal, image.Config.StopSignal)
	if err != nil {
		return made, fmt.Errorf("stop signal: %w", err)
	}
	made.stopSignal = int32(signal)
	in := spec.Input{Pod: &pod.Pod, Container: &c, Settings: e.settings(pod.Pod.Handler), Image: image.Config, Netns: pod.Network.Netns, CgroupsPath: r.CgroupsPath, Host: e.host}
	if in.User, err = e.resolveUser(ctx, c.Security, image); err != nil {
		return made, err
	}
	made.user = in.User
	if pod.SELinux != nil {
		in.Labels = *pod.SELinux
	} else if in.Host.SELinux {
		in.Host.SELinux, in.Host.NoSELinux = false, "the pod was made when there were no labels; make it anew"
	}
	if err := e.mountVolumes(ctx, &c); err != nil {
		return made, err
	}
	if in.Volumes, err = e.scratchVolumes(ctx, &pod.Pod, &c, image); err != nil {
		return made, err
	}
	if err := e.resolveHost(&in); err != nil {
		return made, err
	}
	if c.Security.Namespaces.PID == spec.ModeTarget {
		if c.Security.Namespaces.Target, err = e.pidTarget(c.PodID, c.Security.Namespaces.Target); err != nil {
			return made, err
		}
	}
	out, err := spec.Build(in)
	if err != nil {
		return made, err
	}
	for _, warning := range out.Warnings {
		e.log.Warn(warning, "container", c.ID, "name", c.Name)
	}
	if err := relabel(ctx, in.Container, out.Spec); err != nil {
		return made, err
	}
	if err := e.InjectDevices(out.Spec, c.CDIDevices); err != nil {
		return made, err
	}
	made.podNamespaces, made.pidTarget, made.ownPID = out.PodNamespaces, out.PIDTarget, out.OwnPID
	made.release = e.holdPlugins()
	if err := e.adjust(ctx, pod, r, out.Spec, &made); err != nil {
		return made, err
	}
	if made.rawEnv, err = e.rawEnv(out.Spec.Process, pod.Pod.Handler); err != nil {
		return made, err
	}
	data, err := json.Marshal(out.Spec)
	if err != nil {
		return made, fmt.Errorf("encode the OCI spec: %w", err)
	}
	return made, os.WriteFile(filepath.Join(e.store.containerDir(c.PodID, c.ID), "config.json"), data, 0o600)
}

func (e *Engine) resolveUser(ctx context.Context, s spec.Security, image Image) (spec.User, error) {
	read := func(path string) ([]byte, error) {
		data, err := e.cfg.Rootfs.ReadFile(ctx, image.ID, path, accountsLimit)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	passwd, err := read("/etc/passwd")
	if err != nil {
		return spec.User{}, fmt.Errorf("the image's /etc/passwd: %w", err)
	}
	group, err := read("/etc/group")
	if err != nil {
		return spec.User{}, fmt.Errorf("the image's /etc/group: %w", err)
	}
	return spec.ResolveUser(s, image.Config.User, passwd, group)
}

// resolveHost adds to in what must be looked up on the host: the hostname, devices, the sources of mounts, a profile.
func (e *Engine) resolveHost(in *spec.Input) (err error) {
	if in.Hostname, err = podHostname(in.Pod); err != nil {
		return err
	}
	dir := e.store.podDir(in.Pod.ID)
	in.Files = spec.Files{
		Hosts: filepath.Join(dir, hostsFile), ResolvConf: filepath.Join(dir, resolverFile), Hostname: filepath.Join(dir, hostnameFile),
	}
	if in.Pod.Security.Namespaces.IPC == spec.ModeNode {
		in.Files.Shm = "/dev/shm"
	}
	if in.Devices, err = resolveDevices(in.Container.Devices); err != nil {
		return err
	}
	if err = e.classes.resolve(in); err != nil {
		return err
	}
	if in.Container.Security.Privileged && !in.Settings.PrivilegedWithoutHostDevices {
		if in.Host.Devices, err = hostDevices(); err != nil {
			return fmt.Errorf("the host's devices: %w", err)
		}
	}
	if profile := in.Container.Security.Seccomp; profile.Kind == spec.Localhost {
		if in.Seccomp, err = readProfile(profile.Path); err != nil {
			return err
		}
	}
	if profile := in.Container.Security.AppArmor; profile.Kind == spec.Localhost && in.Host.AppArmor {
		if err := checkAppArmor(profile.Path); err != nil {
			return err
		}
	}
	in.Container.Mounts, err = resolveMounts(in.Container.Mounts, e.cfg.StrictMounts)
	return err
}

// checkAppArmor says so before anything is made when a profile is not loaded.
func checkAppArmor(profile string) error {
	loaded, err := apparmor.IsLoaded(profile)
	if err != nil {
		return fmt.Errorf("AppArmor profile %s: the list of loaded ones: %w", profile, err)
	}
	if !loaded {
		return fmt.Errorf("AppArmor profile %s is not loaded: load it by apparmor_parser -r FILE: %w", profile, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func readProfile(path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("seccomp profile %q: must be an absolute path: %w", path, errdefs.ErrInvalidArgument)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("seccomp profile: %w: %w", err, errdefs.ErrInvalidArgument)
	case !info.Mode().IsRegular() || info.Size() > profileLimit:
		return nil, fmt.Errorf("seccomp profile %s: must be a file of at most %d bytes: %w", path, profileLimit, errdefs.ErrInvalidArgument)
	}
	return os.ReadFile(path)
}

// resolveMounts follows symbolic links of the sources on the host, whose files a client of ours may name as it likes. A
// source that is missing is made as a directory, which clients rely on, or with strict is an error.
func resolveMounts(asked []spec.Mount, strict bool) ([]spec.Mount, error) {
	mounts := make([]spec.Mount, 0, len(asked))
	for _, m := range asked {
		if m.Image != nil {
			mounts = append(mounts, m)
			continue
		}
		if !filepath.IsAbs(m.Source) {
			return nil, fmt.Errorf("source %q of the mount at %s: must be absolute: %w", m.Source, m.Target, errdefs.ErrInvalidArgument)
		}
		source, err := filepath.EvalSymlinks(m.Source)
		if errors.Is(err, fs.ErrNotExist) && strict {
			return nil, fmt.Errorf("source of the mount at %s: %w (workload.strict_mounts is set, so no directory is made): %w", m.Target, err, errdefs.ErrInvalidArgument)
		}
		if errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(m.Source, 0o755); err != nil {
				return nil, fmt.Errorf("source of the mount at %s: %w", m.Target, err)
			}
			source, err = filepath.EvalSymlinks(m.Source)
		}
		if err != nil {
			return nil, fmt.Errorf("source of the mount at %s: %w", m.Target, err)
		}
		m.Source = source
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// pidTarget resolves the container whose pid namespace is joined: one of the same pod that runs.
func (e *Engine) pidTarget(podID, target string) (string, error) {
	id, err := e.resolveContainer(target)
	if err != nil {
		return "", fmt.Errorf("target of the pid namespace: %w", err)
	}
	record, ok := e.containerRecord(id)
	switch {
	case !ok || record.Container.PodID != podID:
		return "", fmt.Errorf("target %s of the pid namespace is not of this pod: %w", target, errdefs.ErrInvalidArgument)
	case record.State != running:
		return "", fmt.Errorf("target %s of the pid namespace is %s: it must run: %w", target, record.State, errdefs.ErrFailedPrecondition)
	}
	return id, nil
}

// RemoveContainer kills a container if it runs and removes it. An unknown container is no error.
func (e *Engine) RemoveContainer(ctx context.Context, id string) error {
	id, err := e.resolveContainer(id)
	if err != nil {
		return ignoreNotFound(err)
	}
	e.shorten(id, time.Now())
	err = e.ops.do(ctx, e.ctx, containerKey(id), "remove", func(ctx context.Context) error { return e.removeContainer(ctx, id) })
	if err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}
