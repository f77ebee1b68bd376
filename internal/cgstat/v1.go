package cgstat

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// userHZ is the unit of cpuacct.stat, fixed by the kernel's interface (include/asm-generic/param.h).
const userHZ = 100

func (h *Host) readV1(r *reader, rel string, detail Detail, s *Sample) error {
	if err := r.enter(h.v1["cpuacct"], rel); err != nil {
		return err
	}
	usage, ok, err := r.number("cpuacct.usage")
	if err != nil {
		return err
	}
	if !ok {
		return fs.ErrNotExist
	}
	s.At, s.CPU.Usage = time.Now(), usage
	if detail >= Full {
		if err := r.timesV1(h, rel, s); err != nil {
			return err
		}
	}
	if err := r.memoryV1(h, rel, detail, s); err != nil {
		return err
	}
	if err := r.enter(h.unified, rel); err == nil {
		if err := r.pressures(s); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if detail < Full {
		return nil
	}
	return r.restV1(h, rel, s)
}

// timesV1 begins in the hierarchy of cpuacct, which is often that of cpu as well.
func (r *reader) timesV1(h *Host, rel string, s *Sample) error {
	data, err := r.file("cpuacct.stat")
	if err != nil {
		return err
	}
	err = eachPair(data, func(key []byte, value uint64) {
		switch string(key) {
		case "user":
			s.CPU.User = value * (uint64(time.Second) / userHZ)
		case "system":
			s.CPU.System = value * (uint64(time.Second) / userHZ)
		}
	})
	if err != nil {
		return fmt.Errorf("cpuacct.stat: %w", err)
	}
	if err := r.enterIfThere(h.v1["cpu"], rel); err != nil || r.dir < 0 {
		return err
	}
	if data, err = r.file("cpu.stat"); err != nil {
		return err
	}
	err = eachPair(data, func(key []byte, value uint64) {
		switch string(key) {
		case "nr_periods":
			s.CPU.Periods = value
		case "nr_throttled":
			s.CPU.Throttled = value
		case "throttled_time":
			s.CPU.ThrottledTime = value
		}
	})
	if err != nil {
		return fmt.Errorf("cpu.stat: %w", err)
	}
	return nil
}

// enterIfThere leaves the reader nowhere when the controller, or the cgroup in its hierarchy, is not there.
func (r *reader) enterIfThere(t *tree, rel string) error {
	if err := r.enter(t, rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// noLimitV1 is more than any limit: v1 shows none as the largest number of bytes in whole pages.
const noLimitV1 = 1 << 62

func limitV1(n uint64) uint64 {
	if n >= noLimitV1 {
		return 0
	}
	return n
}

func (r *reader) memoryV1(h *Host, rel string, detail Detail, s *Sample) error {
	if err := r.enterIfThere(h.v1["memory"], rel); err != nil || r.dir < 0 {
		return err
	}
	usage, ok, err := r.number("memory.usage_in_bytes")
	if err != nil || !ok {
		return err
	}
	m := &Memory{Usage: usage}
	data, err := r.file("memory.stat")
	if err != nil {
		return err
	}
	if err := parseMemoryStatV1(data, m); err != nil {
		return fmt.Errorf("memory.stat: %w", err)
	}
	limit, _, err := r.number("memory.limit_in_bytes")
	if err != nil {
		return err
	}
	m.Limit = limitV1(limit)
	if m.HasSwap && m.SwapLimit != 0 { // so far that of memory and swap together
		m.SwapLimit, m.SwapLimited = m.SwapLimit-min(m.SwapLimit, m.Limit), true
	}
	s.Memory = m
	if detail < Full {
		return nil
	}
	if m.Peak, _, err = r.number("memory.max_usage_in_bytes"); err != nil {
		return err
	}
	if m.Kernel, _, err = r.number("memory.kmem.usage_in_bytes"); err != nil {
		return err
	}
	if m.Failures, _, err = r.number("memory.failcnt"); err != nil {
		return err
	}
	if data, err = r.file("memory.oom_control"); err != nil {
		return err
	}
	err = eachPair(data, func(key []byte, value uint64) {
		if string(key) == "oom_kill" {
			s.OOMKills = value
		}
	})
	if err != nil {
		return fmt.Errorf("memory.oom_control: %w", err)
	}
	return nil
}

// restV1 reads pids, block devices and huge pages. On the hybrid layout the unified hierarchy may have the last.
func (r *reader) restV1(h *Host, rel string, s *Sample) error {
	err := r.enterIfThere(h.v1["pids"], rel)
	if err == nil && r.dir >= 0 {
		s.Pids, err = r.pids()
	}
	if err != nil {
		return err
	}
	if err := r.enterIfThere(h.v1["blkio"], rel); err != nil {
		return err
	}
	if r.dir >= 0 {
		if s.Devices, err = r.devicesV1(); err != nil {
			return err
		}
	}
	if h.v1["hugetlb"] == nil {
		if err := r.enterIfThere(h.unified, rel); err != nil || r.dir < 0 {
			return err
		}
		s.HugeTLB, err = r.hugeTLBV2(h.pages)
		return err
	}
	if err := r.enterIfThere(h.v1["hugetlb"], rel); err != nil || r.dir < 0 {
		return err
	}
	s.HugeTLB, err = r.hugeTLBV1(h.pages)
	return err
}

func (r *reader) devicesV1() ([]Device, error) {
	var all []Device
	for _, file := range []struct {
		name  string
		bytes bool
	}{{"blkio.throttle.io_service_bytes_recursive", true}, {"blkio.throttle.io_serviced_recursive", false}} {
		data, err := r.file(file.name)
		if err != nil {
			return nil, err
		}
		if all, err = parseBlkio(data, file.bytes, all); err != nil {
			return nil, fmt.Errorf("%s: %w", file.name, err)
		}
	}
	sortDevices(all)
	return all, nil
}

func (r *reader) hugeTLBV1(pages []string) ([]HugeTLB, error) {
	var all []HugeTLB
	for _, size := range pages {
		usage, ok, err := r.number("hugetlb." + size + ".usage_in_bytes")
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		one := HugeTLB{PageSize: size, Usage: usage}
		if one.Peak, _, err = r.number("hugetlb." + size + ".max_usage_in_bytes"); err != nil {
			return nil, err
		}
		if one.Failures, _, err = r.number("hugetlb." + size + ".failcnt"); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}
