package spec

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestRelimit(t *testing.T) {
	host := Host{OOMScoreAdjMin: 100, SwapAccounting: true}
	below := `{"process":{"oomScoreAdj":500},"ociVersion":"1.0.2","linux":{"resources":{
		"devices":[{"allow":false,"access":"rwm"}],"pids":{"limit":7},
		"memory":{"limit":1000,"swap":1000,"swappiness":3},"cpu":{"shares":10,"burst":5,"cpus":"0"},
		"hugepageLimits":[{"pageSize":"1GB","limit":1},{"pageSize":"2MB","limit":2}]}}}`
	for name, tt := range map[string]struct {
		r        Resources
		want     string // linux.resources without devices and pids
		score    int
		version  string
		warnings int
	}{
		"nothing": {Resources{}, `{"memory":{"limit":1000,"swap":1000,"swappiness":3},"cpu":{"shares":10,"burst":5,"cpus":"0"},
			"hugepageLimits":[{"pageSize":"1GB","limit":1},{"pageSize":"2MB","limit":2}]}`, 500, "1.0.2", 0},
		"all": {Resources{CPUShares: 20, CPUQuota: 30, CPUPeriod: 40, CPUs: "1", Mems: "0", Memory: 2000, MemorySwap: 3000, OOMScoreAdj: 600,
			HugepageLimit: map[string]uint64{"2MB": 3}, Unified: map[string]string{"memory.high": "1"}},
			`{"memory":{"limit":2000,"swap":3000,"swappiness":3},"cpu":{"shares":20,"quota":30,"period":40,"burst":5,"cpus":"1","mems":"0"},
			"hugepageLimits":[{"pageSize":"1GB","limit":1},{"pageSize":"2MB","limit":3}],"unified":{"memory.high":"1"}}`, 600, "1.1.0", 0},
		"score that the kernel forbids": {Resources{OOMScoreAdj: -5}, `{"memory":{"limit":1000,"swap":1000,"swappiness":3},"cpu":{"shares":10,"burst":5,"cpus":"0"},
			"hugepageLimits":[{"pageSize":"1GB","limit":1},{"pageSize":"2MB","limit":2}]}`, 100, "1.0.2", 1},
	} {
		t.Run(name, func(t *testing.T) {
			var s specs.Spec
			if err := json.Unmarshal([]byte(below), &s); err != nil {
				t.Fatal(err)
			}
			warnings, err := Relimit(&s, tt.r, host)
			if err != nil || len(warnings) != tt.warnings {
				t.Fatalf("warnings %q, %v", warnings, err)
			}
			if r := s.Linux.Resources; len(r.Devices) != 1 || r.Pids == nil {
				t.Errorf("devices %v, pids %v", r.Devices, r.Pids)
			}
			s.Linux.Resources.Devices, s.Linux.Resources.Pids = nil, nil
			var want specs.LinuxResources
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(s.Linux.Resources, &want) {
				got, _ := json.Marshal(s.Linux.Resources)
				t.Errorf("got %s", got)
			}
			if *s.Process.OOMScoreAdj != tt.score || s.Version != tt.version {
				t.Errorf("score %d, version %s", *s.Process.OOMScoreAdj, s.Version)
			}
		})
	}
	s := specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}
	if _, err := Relimit(&s, Resources{Memory: 2, MemorySwap: 1}, host); err == nil || !strings.Contains(err.Error(), "swap") || s.Linux.Resources != nil {
		t.Errorf("got %v, %+v", err, s.Linux.Resources)
	}
}

func TestPodLimits(t *testing.T) {
	for name, tt := range map[string]struct{ resources, overhead, want Resources }{
		"sum":                      {Resources{CPUShares: 10, CPUQuota: 20000, CPUPeriod: 100000, Memory: 5}, Resources{CPUShares: 1, CPUQuota: 5000, CPUPeriod: 50000, Memory: 2}, Resources{CPUShares: 11, CPUQuota: 30000, CPUPeriod: 100000, Memory: 7}},
		"no limit stays none":      {Resources{CPUShares: 10}, Resources{CPUQuota: 5, Memory: 2}, Resources{CPUShares: 10}},
		"unlimited stays":          {Resources{CPUQuota: -1, Memory: -1, MemorySwap: -1}, Resources{CPUQuota: 5, Memory: 2}, Resources{CPUQuota: -1, Memory: -1, MemorySwap: -1}},
		"swap grows along":         {Resources{Memory: 5, MemorySwap: 9}, Resources{Memory: 2}, Resources{Memory: 7, MemorySwap: 11}},
		"no more shares than fit":  {Resources{CPUShares: 262000}, Resources{CPUShares: 1000}, Resources{CPUShares: 262144}},
		"no overflow":              {Resources{Memory: 1<<63 - 2}, Resources{Memory: 5}, Resources{Memory: 1<<63 - 1}},
		"a score is of a process":  {Resources{OOMScoreAdj: 5, CPUs: "0"}, Resources{}, Resources{CPUs: "0"}},
		"overhead without sharing": {Resources{}, Resources{CPUShares: 5}, Resources{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := PodLimits(&Pod{Resources: tt.resources, Overhead: tt.overhead}); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}
