package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/criserver/criserver/test/e2e/rig"
)

// floor is a running hack/floor: the bare system calls, one command after the other.
type floor struct {
	*subject // its cgroup and times; it speaks no CRI
	commands io.Writer
	answers  *bufio.Reader
}

// startFloor compiles the floor programs and starts them, with the same program in the container as the others have: that
// of a pod of donor.
func (st *stage) startFloor(ctx context.Context, source string, donor *subject) (*floor, error) {
	s, enter, err := st.subject("floor")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(st.Dir, "floor")
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "dev", "proc", "sys", "etc"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
		if err := os.WriteFile(filepath.Join(rootfs, "etc", f), nil, 0o644); err != nil {
			return nil, err
		}
	}
	if err := copyWorkload(ctx, donor, filepath.Join(rootfs, "bin")); err != nil {
		return nil, err
	}
	program, stage := filepath.Join(dir, "program"), filepath.Join(dir, "stage")
	for _, args := range [][]string{
		{"-O2", "-static", "-o", program, filepath.Join(source, "floor.c")},
		{"-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-s", "-o", stage, filepath.Join(source, "stage.c")},
	} {
		if out, err := exec.CommandContext(ctx, "gcc", args...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("gcc %s (Debian: gcc, libc6-dev): %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "floor"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make a bridge: %w", err)
	}
	if err := netlink.LinkSetUp(bridge); err != nil {
		return nil, err
	}
	groups, err := cgroups(s.cgroup + "/pods")
	if err != nil {
		return nil, err
	}
	args := slices.Concat(enter[1:], []string{program, dir, rootfs, stage, "floor"}, groups)
	cmd := exec.Command(enter[0], args...)
	cmd.Stderr = os.Stderr
	f := &floor{subject: s}
	if f.commands, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	f.answers = bufio.NewReader(out)
	return f, cmd.Start()
}

// copyWorkload copies the program that a pod runs, as sleep and true.
func copyWorkload(ctx context.Context, donor *subject, bin string) error {
	p, err := donor.up(ctx, "")
	if err != nil {
		return err
	}
	defer func() { _ = donor.down(ctx, p, "") }()
	pids, err := donor.workloads()
	if err != nil || len(pids) == 0 {
		return fmt.Errorf("no process of %s runs %s: %w", donor.name, sleeping[0], err)
	}
	program, err := os.ReadFile(fmt.Sprintf("/proc/%d/exe", pids[0]))
	if err != nil {
		return err
	}
	for _, name := range []string{"sleep", "true"} {
		if err := os.WriteFile(filepath.Join(bin, name), program, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// cgroups makes a cgroup in every hierarchy that takes children without more, and answers with the directories.
func cgroups(path string) ([]string, error) {
	roots, err := rig.CgroupRoots()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, root := range roots {
		at := root
		for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
			parent := at
			at = filepath.Join(at, part)
			if err := os.MkdirAll(at, 0o755); err != nil {
				return nil, err
			}
			// Of cpuset on v1, a cgroup without processors and memory takes no process, and children inherit on demand.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if value, err := os.ReadFile(filepath.Join(parent, file)); err == nil && strings.Contains(root, "cpuset") {
					_ = os.WriteFile(filepath.Join(at, file), value, 0o644)
				}
			}
			_ = os.WriteFile(filepath.Join(at, "cgroup.clone_children"), []byte("1"), 0o644) // v1 only
		}
		all = append(all, at)
	}
	return all, nil
}

// do has it do something, and notes the time that it says under a name, if there is one.
func (f *floor) do(command byte, name string) error {
	if _, err := f.commands.Write([]byte{command}); err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	line, err := f.answers.ReadString('\n')
	if err != nil {
		return fmt.Errorf("floor: command %c: it ended: %w", command, err)
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	if name != "" {
		f.times.add(name, time.Duration(ns))
	}
	return nil
}

// cycle is one pod. What is made ahead is not in its time, but in its CPU.
func (f *floor) cycle() (cpu float64, err error) {
	return f.using(func() error {
		for _, step := range []struct {
			command byte
			name    string
		}{{'p', ""}, {'u', "pod up"}, {'d', "pod down"}} {
			if err := f.do(step.command, step.name); err != nil {
				return err
			}
			time.Sleep(settle)
		}
		return nil
	})
}
