package kubelet

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLifecycle: an init container, a sidecar, both hooks, emptyDir, hostPath and downwardAPI, and the order of it all.
func TestLifecycle(t *testing.T) {
	host := filepath.Join(place.Dir, "lifecycle")
	if err := os.MkdirAll(host, 0o777); err != nil {
		t.Fatal(err)
	}
	manifest := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: life, uid: life, labels: {app: life}, annotations: {note: downward}}
spec:
  terminationGracePeriodSeconds: 5
  volumes:
  - {name: work, emptyDir: {}}
  - {name: host, hostPath: {path: %q}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  initContainers:
  - {name: init, image: IMAGE/e2e-test-images/busybox:1.29-2, command: [sh, -c, "echo init >> /host/order; echo made > /work/file"],
     volumeMounts: [{name: work, mountPath: /work}, {name: host, mountPath: /host}]}
  - {name: sidecar, image: IMAGE/e2e-test-images/busybox:1.29-2, restartPolicy: Always, command: [sh, -c, "echo sidecar >> /host/order; trap 'exit 0' TERM; while :; do sleep 1; done"],
     startupProbe: {exec: {command: [cat, /work/file]}, periodSeconds: 1},
     volumeMounts: [{name: work, mountPath: /work}, {name: host, mountPath: /host}]}
  containers:
  - name: main
    image: IMAGE/e2e-test-images/busybox:1.29-2
    command: [sh, -c, "echo main $(cat /work/file) $NAME >> /host/order; cat /info/labels > /host/labels; trap 'echo term >> /host/order; exit 0' TERM; while :; do sleep 0.1; done"]
    env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    lifecycle: {postStart: {exec: {command: [sh, -c, "echo poststart >> /host/hooks"]}}, preStop: {exec: {command: [sh, -c, "echo prestop >> /host/order"]}}}
    volumeMounts: [{name: work, mountPath: /work}, {name: host, mountPath: /host}, {name: info, mountPath: /info}]
`, host)
	t.Run("up", func(t *testing.T) {
		agent.run(t, "life", manifest)
		p := agent.untilReady(t, "life")
		if p.Status.Phase != "Running" || p.Status.PodIP == "" {
			t.Errorf("phase %s, address %q", p.Status.Phase, p.Status.PodIP)
		}
		wantFile(t, filepath.Join(host, "order"), "init\nsidecar\nmain made life-node\n")
		wantFile(t, filepath.Join(host, "hooks"), "poststart\n")
		wantFile(t, filepath.Join(host, "labels"), `app="life"`)
	})
	wantFile(t, filepath.Join(host, "order"), "init\nsidecar\nmain made life-node\nprestop\nterm\n")
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	agent.until(t, path, func() error {
		text, err := os.ReadFile(path)
		if err == nil && !strings.HasPrefix(string(text), want) {
			err = fmt.Errorf("%q, not %q", text, want)
		}
		return err
	})
}

// TestProbes: each kind of probe makes its container ready; one that fails restarts it.
func TestProbes(t *testing.T) {
	agent.run(t, "probes", `apiVersion: v1
kind: Pod
metadata: {name: probes, uid: probes}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: exec, image: IMAGE/e2e-test-images/busybox:1.29-2, command: [sleep, "1000"], readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}}
  - {name: web, image: IMAGE/e2e-test-images/httpd:2.4.39-4, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}, livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}
  - {name: grpc, image: IMAGE/criserver/health:latest, readinessProbe: {grpc: {port: 5051}, periodSeconds: 1}}
  - {name: dying, image: IMAGE/e2e-test-images/busybox:1.29-2, command: [sh, -c, "trap 'exit 3' TERM; while :; do sleep 0.1; done"], livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}}
`)
	agent.untilPod(t, "probes", "has three ready containers and one that was restarted", func(p podStatus) bool {
		good := 0
		for _, c := range p.Status.ContainerStatuses {
			switch {
			case c.Name == "dying" && c.RestartCount > 0 && c.LastState.Terminated != nil && c.LastState.Terminated.ExitCode == 3:
				good++
			case c.Name != "dying" && c.Ready && c.RestartCount == 0:
				good++
			}
		}
		return good == 4
	})
}

// TestBackOff: a container that ends is started again, then held back; one that may not is left.
func TestBackOff(t *testing.T) {
	agent.run(t, "crash", `apiVersion: v1
kind: Pod
metadata: {name: crash, uid: crash}
spec:
  containers:
  - {name: crash, image: IMAGE/e2e-test-images/busybox:1.29-2, command: [sh, -c, "exit 7"]}
`)
	agent.run(t, "once", `apiVersion: v1
kind: Pod
metadata: {name: once, uid: once}
spec:
  restartPolicy: Never
  containers:
  - {name: once, image: IMAGE/e2e-test-images/busybox:1.29-2, command: [sh, -c, "exit 7"]}
`)
	agent.untilPod(t, "crash", "is held back", func(p podStatus) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount > 0 &&
			p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff"
	})
	agent.untilPod(t, "once", "has failed", func(p podStatus) bool {
		return p.Status.Phase == "Failed" && p.Status.ContainerStatuses[0].RestartCount == 0 &&
			p.Status.ContainerStatuses[0].State.Terminated.ExitCode == 7
	})
}
