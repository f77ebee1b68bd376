package cri

import (
	"github.com/criserver/criserver/engine"
	"github.com/criserver/criserver/image"
)

// What a verbose status says lies under the one key "info", where scripts around crictl look for info.pid and
// info.runtimeSpec.

func (s *runtimeService) containerInfo(c engine.ContainerStatus) (map[string]string, error) {
	detail, err := s.engine.ContainerDetail(c.Container.ID)
	if err != nil {
		return nil, err
	}
	return infoOf(map[string]any{"info": map[string]any{
		"config": c.Container, "pid": c.PID, "sandboxID": c.Container.PodID, "cgroupsPath": c.CgroupsPath, "runDir": c.Dir,
		"snapshotKey": image.SnapshotKey(detail.Layer), "rootOptions": detail.RootOptions, "runtimeSpec": detail.Spec, "timings": timings(detail.Steps),
	}})
}

func (s *runtimeService) podInfo(p engine.PodStatus) (map[string]string, error) {
	return infoOf(map[string]any{"info": map[string]any{
		"config": p.Pod, "pid": p.HolderPID, "netns": p.Network.Netns, "ips": p.Network.IPs, "cgroupParent": p.Pod.CgroupParent,
		"timings": timings(s.engine.PodSteps(p.Pod.ID)),
	}})
}

// timing is a step as people read it.
type timing struct {
	Step string `json:"step"`
	Took string `json:"took"`
}

func timings(steps []engine.Step) []timing {
	all := make([]timing, len(steps))
	for i, s := range steps {
		all[i] = timing{s.Name, s.Took.String()}
	}
	return all
}
