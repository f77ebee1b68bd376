package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/engine/spec"
)

// hostFacts learns what the node can do. It is asked once; devices are read when they are needed.
func hostFacts(unsetSeccomp, appArmor string) (spec.Host, error) {
	h := spec.Host{UnsetSeccomp: unsetSeccomp, AppArmorDefault: appArmor, OOMScoreAdjMin: -1000}
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return h, fmt.Errorf("capabilities of this process: %w", err)
	}
	for _, c := range capability.ListKnown() {
		if caps.Get(capability.BOUNDING, c) {
			h.Capabilities = append(h.Capabilities, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	slices.Sort(h.Capabilities)
	if !caps.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE) {
		h.HardLimits = hardLimits()
		// Without it a process may lower its score no further than where a process with it put it (proc_pid_oom_score_adj(5)).
		if data, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
			h.OOMScoreAdjMin, _ = strconv.Atoi(strings.TrimSpace(string(data)))
		}
	}
	h.SwapAccounting = exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	if data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil && strings.Contains(string(data), "memory") {
		h.SwapAccounting = exists("/proc/swaps") // cgroup v2 accounts swap wherever the kernel has any
	}
	h.NoSeccomp = unix.Prctl(unix.PR_GET_SECCOMP, 0, 0, 0, 0) == unix.EINVAL
	if data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil {
		h.AppArmor = strings.HasPrefix(string(data), "Y")
	}
	return h, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// hostDevices lists the device nodes of /dev, without those that a container has of its own.
func hostDevices() ([]specs.LinuxDevice, error) {
	return devicesIn("/dev", "/dev", map[string]bool{"pts": true, "shm": true, "mqueue": true, "fd": true, "console": true})
}

// devicesIn lists the device nodes beneath dir, named as beneath target. skip are names directly in dir.
func devicesIn(dir, target string, skip map[string]bool) ([]specs.LinuxDevice, error) {
	var devices []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // it vanished
			return nil
		case err != nil:
			return err
		case filepath.Dir(path) == dir && skip[entry.Name()]:
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case entry.Type()&fs.ModeDevice == 0:
			return nil
		}
		device, err := deviceAt(path, filepath.Join(target, strings.TrimPrefix(path, dir)))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		devices = append(devices, device)
		return err
	})
	return devices, err
}

// deviceAt reads a device node of the host.
func deviceAt(path, target string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return specs.LinuxDevice{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	mode := fs.FileMode(st.Mode & 0o7777)
	device := specs.LinuxDevice{
		Path: target, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		device.Type = "c"
	case unix.S_IFBLK:
		device.Type = "b"
	default:
		return device, fmt.Errorf("%s is not a device: %w", path, errdefs.ErrInvalidArgument)
	}
	return device, nil
}

// resolveDevices finds the devices that a container asks for; a directory stands for all devices beneath it.
func resolveDevices(asked []spec.Device) ([]spec.ResolvedDevice, error) {
	var all []spec.ResolvedDevice
	for _, a := range asked {
		target, permissions := a.ContainerPath, a.Permissions
		if target == "" {
			target = a.HostPath
		}
		if permissions == "" {
			permissions = "rwm"
		}
		path, err := filepath.EvalSymlinks(a.HostPath)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w: %w", a.HostPath, err, errdefs.ErrInvalidArgument)
		}
		var devices []specs.LinuxDevice
		if info, statErr := os.Stat(path); statErr == nil && info.IsDir() {
			devices, err = devicesIn(path, filepath.Clean(target), nil)
		} else {
			devices = make([]specs.LinuxDevice, 1)
			devices[0], err = deviceAt(path, filepath.Clean(target))
		}
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", a.HostPath, err)
		}
		for _, d := range devices {
			all = append(all, spec.ResolvedDevice{LinuxDevice: d, Permissions: permissions})
		}
	}
	return all, nil
}
