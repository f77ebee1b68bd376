package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// resources converts a spec's resources for the machine, and refuses what its controllers cannot do.
func (l *layout) resources(spec *specs.LinuxResources) (*cgroups.Resources, error) {
	v := v1
	if l.pure() {
		v = v2
	}
	r, err := convert(spec, v)
	if err != nil {
		return nil, err
	}
	dropEmptyPools(r, l.hasHugetlb())
	for key := range r.Unified {
		controller, _, _ := strings.Cut(key, ".")
		if controller != "cgroup" && !l.unifiedHas(controller) {
			return nil, refuse("unified", fmt.Sprintf("%s: this machine has no controller %s on cgroup v2", key, controller))
		}
	}
	if v == v2 {
		return r, nil
	}
	for _, g := range v1Groups {
		if g.wanted(r) && l.v1With(g.controller) == nil && !(g.controller == "hugetlb" && l.unifiedHas(g.controller)) {
			return nil, refuse(g.field, "no "+g.controller+" controller is mounted as a v1 hierarchy")
		}
	}
	return r, l.checkSwap(r)
}

func (l *layout) hasHugetlb() bool { return l.v1With("hugetlb") != nil || l.unifiedHas("hugetlb") }

// checkSwap keeps a swap limit from being asked of a kernel that does not account swap, unless the machine has no swap,
// where "none" and "as much as you like" both hold by themselves.
func (l *layout) checkSwap(r *cgroups.Resources) error {
	h := l.v1With("memory")
	if r.MemorySwap == 0 || h == nil || unix.Faccessat(h.root, "memory.memsw.limit_in_bytes", unix.F_OK, 0) == nil {
		return nil
	}
	if r.MemorySwap == -1 || !swapping() {
		r.MemorySwap = 0
		return nil
	}
	return refuse("memory.swap", "the kernel does not account swap (boot it with swapaccount=1, or turn swap off)")
}

// swapping says whether a swap area is in use; when it cannot be told, that one may be.
func swapping() bool {
	data, err := os.ReadFile("/proc/swaps")
	return err != nil || strings.Count(string(data), "\n") > 1
}

// dropEmptyPools drops "no huge pages" for a size of which the machine has none: without a controller it could not be
// set, and it holds anyway. kubelet asks for it for every size in every container.
func dropEmptyPools(r *cgroups.Resources, controller bool) {
	if controller {
		return
	}
	r.HugetlbLimit = slices.DeleteFunc(r.HugetlbLimit, func(h *cgroups.HugepageLimit) bool {
		return h.Limit == 0 && poolEmpty(h.Pagesize)
	})
}

// poolEmpty says whether the machine has no huge pages of a size ("2MB") and may make none.
func poolEmpty(size string) bool {
	for i, unit := range []string{"KB", "MB", "GB"} {
		number, ok := strings.CutSuffix(size, unit)
		n, err := strconv.ParseUint(number, 10, 32)
		if !ok || err != nil {
			continue
		}
		dir := fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/", n<<(10*i))
		for _, file := range []string{"nr_hugepages", "nr_overcommit_hugepages"} {
			data, err := os.ReadFile(dir + file)
			if errors.Is(err, fs.ErrNotExist) {
				return true // the kernel has no pages of this size
			}
			if err != nil || strings.TrimSpace(string(data)) != "0" {
				return false
			}
		}
		return true
	}
	return false
}

// kind gives an error of the kernel the kind that tells a caller whose fault it is.
func kind(err error) error {
	switch {
	case errdefs.IsNotImplemented(err), errdefs.IsInvalidArgument(err):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w (the kernel or the cgroup lacks this file): %w", err, errdefs.ErrNotImplemented)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}
