package cgstat

import (
	"fmt"
	"io/fs"
	"time"
)

func (h *Host) readV2(r *reader, rel string, detail Detail, s *Sample) error {
	if err := r.enter(h.unified, rel); err != nil {
		return err
	}
	data, err := r.file("cpu.stat")
	if err != nil {
		return err
	}
	if data == nil {
		return fs.ErrNotExist // it went away: cpu.stat needs no controller
	}
	s.At = time.Now()
	if err := parseCPUStat(data, &s.CPU); err != nil {
		return fmt.Errorf("cpu.stat: %w", err)
	}
	if err := r.memoryV2(s, detail); err != nil {
		return err
	}
	if err := r.pressures(s); err != nil || detail < Full {
		return err
	}
	if s.Pids, err = r.pids(); err != nil {
		return err
	}
	if data, err = r.file("io.stat"); err != nil {
		return err
	}
	if s.Devices, err = parseIOStat(data); err != nil {
		return fmt.Errorf("io.stat: %w", err)
	}
	s.HugeTLB, err = r.hugeTLBV2(h.pages)
	return err
}

func (r *reader) memoryV2(s *Sample, detail Detail) error {
	usage, ok, err := r.number("memory.current")
	if err != nil || !ok {
		return err
	}
	m := &Memory{Usage: usage}
	data, err := r.file("memory.stat")
	if err != nil {
		return err
	}
	if err := parseMemoryStatV2(data, m); err != nil {
		return fmt.Errorf("memory.stat: %w", err)
	}
	if m.Limit, _, err = r.number("memory.max"); err != nil {
		return err
	}
	if m.Swap, m.HasSwap, err = r.number("memory.swap.current"); err != nil {
		return err
	}
	if m.HasSwap {
		if data, err = r.file("memory.swap.max"); err != nil {
			return err
		}
		if m.SwapLimit, m.SwapLimited, err = parseLimit(data); err != nil {
			return fmt.Errorf("memory.swap.max: %w", err)
		}
	}
	s.Memory = m
	if detail < Full {
		return nil
	}
	if m.Peak, _, err = r.number("memory.peak"); err != nil {
		return err
	}
	if data, err = r.file("memory.events"); err != nil {
		return err
	}
	err = eachPair(data, func(key []byte, value uint64) {
		switch string(key) {
		case "max":
			m.Failures = value
		case "oom_kill":
			s.OOMKills = value
		}
	})
	if err != nil {
		return fmt.Errorf("memory.events: %w", err)
	}
	return nil
}

func (r *reader) pids() (*Pids, error) {
	current, ok, err := r.number("pids.current")
	if err != nil || !ok {
		return nil, err
	}
	limit, _, err := r.number("pids.max")
	return &Pids{Current: current, Limit: limit}, err
}

func (r *reader) hugeTLBV2(pages []string) ([]HugeTLB, error) {
	var all []HugeTLB
	for _, size := range pages {
		usage, ok, err := r.number("hugetlb." + size + ".current")
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		one := HugeTLB{PageSize: size, Usage: usage}
		data, err := r.file("hugetlb." + size + ".events")
		if err != nil {
			return nil, err
		}
		err = eachPair(data, func(key []byte, value uint64) {
			if string(key) == "max" {
				one.Failures = value
			}
		})
		if err != nil {
			return nil, fmt.Errorf("hugetlb.%s.events: %w", size, err)
		}
		all = append(all, one)
	}
	return all, nil
}
