package kubelet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

type cpuAndMemory struct {
	CPU    struct{ UsageNanoCores, UsageCoreNanoSeconds uint64 }
	Memory struct{ UsageBytes, WorkingSetBytes, AvailableBytes uint64 }
}

type filesystem struct{ AvailableBytes, CapacityBytes, UsedBytes, InodesUsed uint64 }

type podStats struct {
	PodRef struct{ Name string }
	cpuAndMemory
	Network struct {
		Name             string // of the interface that the sums are of
		RxBytes, TxBytes uint64
	}
	ProcessStats struct {
		ProcessCount uint64 `json:"process_count"`
	} `json:"process_stats"`
	Containers []struct {
		Name string
		cpuAndMemory
		Rootfs, Logs filesystem
	}
}

type summary struct {
	Node struct {
		Runtime struct{ ImageFs, ContainerFs filesystem }
	}
	Pods []podStats
}

// TestStats: what eviction, autoscaling and the dashboards read of a pod: processor, memory, network, writable layer, images.
func TestStats(t *testing.T) {
	agent.run(t, "busy", `apiVersion: v1
kind: Pod
metadata: {name: busy, uid: busy}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: busy
    image: IMAGE/e2e-test-images/busybox:1.29-2
    command: [sh, -c, "dd if=/dev/zero of=/big bs=1M count=8; httpd -p 80; while :; do wget -q -O /dev/null http://127.0.0.1/; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done; sleep 0.2; done"]
    resources: {limits: {memory: 64Mi}}
    readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
`)
	agent.untilReady(t, "busy")
	agent.until(t, "figures of the pod", func() error {
		var s summary
		if err := agent.getJSON("/stats/summary", &s); err != nil {
			return err
		}
		if fs := s.Node.Runtime.ImageFs; fs.UsedBytes == 0 || fs.CapacityBytes == 0 || fs.AvailableBytes == 0 {
			return fmt.Errorf("image filesystem %+v", fs)
		}
		for _, p := range s.Pods {
			if !strings.HasPrefix(p.PodRef.Name, "busy") {
				continue
			}
			switch {
			case p.CPU.UsageNanoCores == 0 || p.CPU.UsageCoreNanoSeconds == 0:
				return fmt.Errorf("pod's cpu %+v", p.CPU)
			case p.Memory.WorkingSetBytes == 0:
				return fmt.Errorf("pod's memory %+v", p.Memory)
			case p.Network.RxBytes == 0 || p.Network.TxBytes == 0 || p.Network.Name != "eth0":
				return fmt.Errorf("pod's network %+v", p.Network)
			case len(p.Containers) != 1 || p.Containers[0].CPU.UsageNanoCores == 0 || p.Containers[0].Memory.WorkingSetBytes == 0:
				return fmt.Errorf("containers %+v", p.Containers)
			case p.Containers[0].Rootfs.UsedBytes < 8<<20 || p.Containers[0].Rootfs.InodesUsed == 0:
				return fmt.Errorf("writable layer %+v", p.Containers[0].Rootfs)
			}
			return nil
		}
		return errors.New("the pod is not in the summary")
	})
	t.Run("labelled metrics", func(t *testing.T) {
		agent.until(t, "labelled metrics", func() error {
			body, err := agent.get("/metrics/cadvisor")
			if err != nil {
				return err
			}
			for _, want := range []string{"container_cpu_usage_seconds_total{", "container_memory_working_set_bytes{", "container_network_receive_bytes_total{"} {
				if !hasSeries(string(body), want, `pod="busy-node"`) {
					return fmt.Errorf("no %s...} with the pod's label", want)
				}
			}
			return nil
		})
	})
}

func hasSeries(text, name, label string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, name) && strings.Contains(line, label) {
			return true
		}
	}
	return false
}

const sizedPod = `apiVersion: v1
kind: Pod
metadata: {name: sized, uid: sized}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: sized, image: IMAGE/e2e-test-images/busybox:1.29-2, command: [sleep, "1000"],
     resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: CPU, memory: MEMORY}}}
`

// TestResize: limits reach the cgroup, and an edited manifest changes them in place.
func TestResize(t *testing.T) {
	manifest := func(cpu, memory string) string {
		return strings.NewReplacer("CPU", cpu, "MEMORY", memory).Replace(sizedPod)
	}
	agent.run(t, "sized", manifest("200m", "64Mi"))
	before := agent.untilReady(t, "sized").Status.ContainerStatuses[0].ContainerID
	wantCgroup(t, before, "cpu", "cpu.cfs_quota_us", "20000")
	wantCgroup(t, before, "memory", "memory.limit_in_bytes", strconv.Itoa(64<<20))
	agent.write(t, "sized", manifest("300m", "96Mi"))
	agent.untilPod(t, "sized", "is resized", func(p podStatus) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].Resources.Limits["cpu"] == "300m" &&
			p.Status.ContainerStatuses[0].Resources.Limits["memory"] == "96Mi"
	})
	after := agent.untilReady(t, "sized").Status.ContainerStatuses[0]
	if after.ContainerID != before || after.RestartCount != 0 {
		t.Errorf("it was not resized in place: %s, then %s; %d restarts", before, after.ContainerID, after.RestartCount)
	}
	wantCgroup(t, before, "cpu", "cpu.cfs_quota_us", "30000")
	wantCgroup(t, before, "memory", "memory.limit_in_bytes", strconv.Itoa(96<<20))
}

// wantCgroup finds the container's cgroup by its id below the kubelet's root.
func wantCgroup(t *testing.T, containerID, controller, file, want string) {
	t.Helper()
	_, id, _ := strings.Cut(containerID, "://")
	agent.until(t, file, func() error {
		found, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", controller, place.CgroupParent, "kubepods", "*", "*", id, file))
		if more, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", controller, place.CgroupParent, "kubepods", "*", id, file)); len(found) == 0 {
			found = more
		}
		if err != nil || len(found) != 1 {
			return fmt.Errorf("files %v: %w", found, err)
		}
		text, err := os.ReadFile(found[0])
		if err == nil && strings.TrimSpace(string(text)) != want {
			err = fmt.Errorf("%s is %s, not %s", found[0], strings.TrimSpace(string(text)), want)
		}
		return err
	})
}

// TestImageGC: an image that no container uses goes when it has its age.
func TestImageGC(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: the kubelet looks for unused images every five minutes")
	}
	t.Run("used", func(t *testing.T) {
		agent.run(t, "short", `apiVersion: v1
kind: Pod
metadata: {name: short, uid: short}
spec:
  restartPolicy: Never
  containers:
  - {name: short, image: IMAGE/criserver/web:latest, command: ["true"]}
`)
		agent.untilPod(t, "short", "has ended", func(p podStatus) bool { return p.Status.Phase == "Succeeded" })
		if n := images(t, "criserver/web"); n != 1 {
			t.Errorf("%d images while a container uses it", n)
		}
	})
	deadline := time.Now().Add(7 * time.Minute) // the kubelet collects every five minutes
	for images(t, "criserver/web") != 0 {
		if time.Now().After(deadline) {
			t.Fatal("the image is still there")
		}
		time.Sleep(time.Second)
	}
}
