package cgroup

import (
	"fmt"
	"math"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func convertBlockIO(spec *specs.LinuxResources, v version, r *cgroups.Resources) error {
	b := spec.BlockIO
	if b == nil {
		return nil
	}
	if b.Weight != nil {
		r.BlkioWeight = *b.Weight
	}
	if b.LeafWeight != nil {
		r.BlkioLeafWeight = *b.LeafWeight
	}
	if r.BlkioWeight != 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000) {
		return invalid("blockIO.weight", fmt.Sprintf("%d is not between 10 and 1000", r.BlkioWeight))
	}
	if r.BlkioLeafWeight != 0 {
		return refuse("blockIO.leafWeight", "the CFQ scheduler that had it left with Linux 5.0")
	}
	for _, w := range b.WeightDevice {
		if w.LeafWeight != nil && *w.LeafWeight != 0 {
			return refuse("blockIO.weightDevice.leafWeight", "the CFQ scheduler that had it left with Linux 5.0")
		}
		if w.Weight == nil || *w.Weight == 0 {
			continue
		}
		if err := checkNumber("blockIO.weightDevice", w.Major, w.Minor); err != nil {
			return err
		}
		r.BlkioWeightDevice = append(r.BlkioWeightDevice, cgroups.NewWeightDevice(w.Major, w.Minor, *w.Weight, 0))
	}
	for _, throttle := range []struct {
		field string
		from  []specs.LinuxThrottleDevice
		to    *[]*cgroups.ThrottleDevice
	}{
		{"blockIO.throttleReadBpsDevice", b.ThrottleReadBpsDevice, &r.BlkioThrottleReadBpsDevice},
		{"blockIO.throttleWriteBpsDevice", b.ThrottleWriteBpsDevice, &r.BlkioThrottleWriteBpsDevice},
		{"blockIO.throttleReadIOPSDevice", b.ThrottleReadIOPSDevice, &r.BlkioThrottleReadIOPSDevice},
		{"blockIO.throttleWriteIOPSDevice", b.ThrottleWriteIOPSDevice, &r.BlkioThrottleWriteIOPSDevice},
	} {
		for _, t := range throttle.from {
			if err := checkNumber(throttle.field, t.Major, t.Minor); err != nil {
				return err
			}
			// 0 means "no limit" to v1, and would mean "nothing may pass" to a reader of io.max.
			if t.Rate == 0 && v == v2 {
				return invalid(throttle.field, "a rate of 0 is no limit")
			}
			*throttle.to = append(*throttle.to, cgroups.NewThrottleDevice(t.Major, t.Minor, t.Rate))
		}
	}
	return nil
}

func checkNumber(field string, major, minor int64) error {
	if major < 0 || minor < 0 || major > math.MaxUint32 || minor > math.MaxUint32 {
		return invalid(field, fmt.Sprintf("%d:%d is not a device number", major, minor))
	}
	return nil
}
