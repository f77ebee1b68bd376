package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Set changes the limits that resources name and leaves the others. It changes all or none: when one is refused, those
// that were changed before are set back, and the error names the field. Device rules, when there are any, replace all
// device rules and are not set back. With memory.checkBeforeUpdate a limit below what cannot be reclaimed of the memory
// in use is ErrFailedPrecondition; without it the kernel of cgroup v2 would kill processes to get there.
func (c *Cgroup) Set(resources *specs.LinuxResources) error {
	r, err := c.layout.resources(resources)
	if err != nil {
		return fmt.Errorf("cgroup /%s: %w", c.rel, err)
	}
	if !c.main().exists(c.rel) {
		return c.absent(fs.ErrNotExist)
	}
	before := c.save(r)
	if c.layout.pure() {
		err = c.applyV2(r)
	} else if err = c.delegateHybrid(context.Background(), r); err == nil {
		err = c.applyV1(r)
	}
	if err == nil {
		err = c.tellUnit(r)
	}
	if err == nil {
		return nil
	}
	if undoErr := before.restore(); undoErr != nil {
		return errors.Join(err, fmt.Errorf("and what was changed before is not as it was: %w", undoErr))
	}
	return err
}

// savedFile is a file of a cgroup with what it said.
type savedFile struct {
	h       *hierarchy
	rel     string
	content string
}

type savedFiles []savedFile

// save reads the files that setting r may write. Those that are not there cannot be written either.
func (c *Cgroup) save(r *cgroups.Resources) savedFiles {
	var saved savedFiles
	read := func(h *hierarchy, files []string) {
		for _, file := range files {
			if content, err := h.read(c.rel + "/" + file); err == nil {
				saved = append(saved, savedFile{h, c.rel + "/" + file, content})
			}
		}
	}
	for _, g := range v2Groups {
		if g.wanted(r) && c.layout.onUnified(g.controller) {
			read(c.layout.unified, g.files(r))
		}
	}
	for _, g := range v1Groups {
		if h := c.layout.v1With(g.controller); h != nil && g.wanted(r) && g.files != nil {
			read(h, g.files(r))
		}
	}
	return saved
}

// restore writes back what differs. The kernel checks some files against each other (memory against memory with swap,
// a quota against its period), so it goes over them again.
func (s savedFiles) restore() error {
	var err error
	for range restoreRounds {
		err = nil
		for _, f := range s {
			if now, readErr := f.h.read(f.rel); readErr == nil && now != f.content {
				err = errors.Join(err, f.write(now))
			}
		}
		if err == nil {
			break
		}
	}
	return err
}

const restoreRounds = 3

// write puts a file's content back line by line; lines that it did not have are reset.
func (f savedFile) write(now string) error {
	lines := strings.Split(f.content, "\n")
	if f.content == "" {
		lines = []string{"\n"} // nothing at all would not reach the kernel
	}
	if f.keyed() {
		lines = nil
		if f.content != "" {
			lines = strings.Split(f.content, "\n")
		}
		for line := range strings.Lines(now) {
			key, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			had := func(l string) bool { return strings.HasPrefix(l, key+" ") }
			if key != "" && !slices.ContainsFunc(lines, had) {
				lines = append(lines, key+" "+f.unset())
			}
		}
	}
	return f.h.write(f.rel, lines...)
}

// keyed says that each line of the file is about a device, and a device without a line has no limit.
func (f savedFile) keyed() bool { return f.unset() != "" }

func (f savedFile) unset() string {
	switch f.rel[strings.LastIndexByte(f.rel, '/')+1:] {
	case "io.max":
		return "rbps=max wbps=max riops=max wiops=max"
	case "io.weight", "io.bfq.weight":
		return "default"
	case "io.latency":
		return "target=0"
	case "rdma.max":
		return "hca_handle=max hca_object=max"
	case "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device",
		"blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device", "blkio.bfq.weight_device":
		return "0"
	}
	return ""
}

// fitMemory checks that a lower limit holds what is in use, after the kernel was asked to reclaim the rest.
func fitMemory(h *hierarchy, rel string, limit int64) error {
	usage, err := usageOf(h, rel)
	if err != nil || limit <= 0 || usage <= limit {
		return err
	}
	// It fails with EAGAIN when it reclaims less than it was asked for, and is not there before Linux 5.19.
	_ = h.write(rel+"/memory.reclaim", strconv.FormatInt(usage-limit, 10))
	if usage, err = usageOf(h, rel); err != nil || usage <= limit {
		return err
	}
	return tooLow(limit, usage)
}

func tooLow(limit, usage int64) error {
	return fmt.Errorf("memory.limit %d is less than the %d bytes in use, and lowering it would end processes: %w", limit, usage, errdefs.ErrFailedPrecondition)
}

func usageOf(h *hierarchy, rel string) (int64, error) {
	file := "/memory.current"
	if h.controllers != nil {
		file = "/memory.usage_in_bytes"
	}
	text, err := h.read(rel + file)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

// setMemoryV1 gives a limit that the kernel finds too low its kind: the library's error has lost it.
func setMemoryV1(h *hierarchy, rel string, r *cgroups.Resources) error {
	err := plain(&v1MemoryGroup)(h, rel, r)
	if err == nil || r.Memory <= 0 || errors.Is(err, unix.EINVAL) {
		return err
	}
	if usage, usageErr := usageOf(h, rel); usageErr == nil && usage > r.Memory {
		return tooLow(r.Memory, usage)
	}
	return err
}
