package kubelet

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/criserver/criserver/test/e2e/rig"
)

const (
	address = "127.0.0.1:10250"
	// patience bounds every wait for the kubelet, which looks at its pods every few seconds.
	patience = 90 * time.Second
)

// kubelet is a running kubelet with a directory of static pods.
type kubelet struct {
	manifests, logFile, root string

	cmd    *exec.Cmd
	exited chan struct{}
	client *http.Client
}

const configuration = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
staticPodPath: %q
fileCheckFrequency: 1s
syncFrequency: 5s
containerRuntimeEndpoint: "unix://%s"
cgroupDriver: cgroupfs
cgroupRoot: %q
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: true
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
readOnlyPort: 0
containerLogMaxSize: 64Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
imageMinimumGCAge: 1s
imageMaximumGCAge: 2s
podLogsDir: %q
resolvConf: /etc/resolv.conf
evictionHard: {memory.available: "10Mi", nodefs.available: "1%%", imagefs.available: "1%%"}
featureGates: {PodAndContainerStatsFromCRI: true}
`

func startKubelet(place *rig.Place, d *rig.Daemon) (*kubelet, error) {
	base := filepath.Join(place.Dir, "kubelet")
	k := &kubelet{
		manifests: filepath.Join(base, "manifests"), logFile: filepath.Join(base, "kubelet.log"), root: filepath.Join(base, "root"),
		exited: make(chan struct{}),
		client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: patience},
	}
	logs := filepath.Join(place.Dir, "run", "pod-logs")
	for _, dir := range []string{k.manifests, k.root, logs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	config := filepath.Join(base, "config.yaml")
	text := fmt.Sprintf(configuration, k.manifests, d.Socket(), place.CgroupParent, logs)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(k.logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	k.cmd = exec.Command(*program, "--config", config, "--root-dir", k.root, "--cert-dir", filepath.Join(base, "pki"),
		"--hostname-override", "node", "--v", "2")
	k.cmd.Stdout, k.cmd.Stderr = log, log
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := k.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = k.cmd.Wait()
		close(k.exited)
	}()
	return k, k.ready()
}

func (k *kubelet) ready() error {
	var last error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		select {
		case <-k.exited:
			return fmt.Errorf("the kubelet has ended: %v\n%s", k.cmd.ProcessState, k.logTail(30))
		default:
		}
		var body []byte
		if body, last = k.get("/healthz"); last == nil && string(body) == "ok" {
			return nil
		}
	}
	return fmt.Errorf("the kubelet is not healthy: %w\n%s", last, k.logTail(30))
}

func (k *kubelet) stop() error {
	_ = k.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-k.exited:
		return nil
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("the kubelet does not end"), k.cmd.Process.Kill())
	}
}

func (k *kubelet) logTail(lines int) string {
	text, _ := os.ReadFile(k.logFile)
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (k *kubelet) get(path string) ([]byte, error) {
	resp, err := k.client.Get("https://" + address + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, bytes.TrimSpace(body))
	}
	return body, err
}

func (k *kubelet) getJSON(path string, to any) error {
	body, err := k.get(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, to)
}

// podStatus is what these tests look at of a pod.
type podStatus struct {
	Metadata struct{ Name, Namespace, UID string }
	Status   struct {
		Phase                 string
		PodIP                 string
		Conditions            []struct{ Type, Status string }
		InitContainerStatuses []containerStatus
		ContainerStatuses     []containerStatus
	}
}

type containerStatus struct {
	Name         string
	Ready        bool
	RestartCount int
	ContainerID  string
	State        struct {
		Running    *struct{ StartedAt time.Time }
		Waiting    *struct{ Reason, Message string }
		Terminated *struct {
			ExitCode int
			Reason   string
		}
	}
	LastState struct {
		Terminated *struct {
			ExitCode int
			Reason   string
		}
	}
	Resources struct{ Limits, Requests map[string]string }
}

func (p podStatus) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// pods lists the pods by the name that their manifest gives them.
func (k *kubelet) pods() (map[string]podStatus, error) {
	var list struct{ Items []podStatus }
	if err := k.getJSON("/pods", &list); err != nil {
		return nil, err
	}
	all := map[string]podStatus{}
	for _, p := range list.Items {
		all[strings.TrimSuffix(p.Metadata.Name, "-node")] = p
	}
	return all, nil
}

// run writes a manifest, in which IMAGE/ stands for the registry, and takes it away at the test's end.
func (k *kubelet) run(t *testing.T, name, manifest string) {
	t.Helper()
	k.write(t, name, manifest)
	t.Cleanup(func() {
		if err := os.Remove(filepath.Join(k.manifests, name+".yaml")); err != nil {
			t.Error(err)
		}
		k.until(t, "pod "+name+" is gone", func() error {
			pods, err := k.pods()
			if _, there := pods[name]; err == nil && there {
				err = errors.New("it is still there")
			}
			return err
		})
	})
}

func (k *kubelet) write(t *testing.T, name, manifest string) {
	t.Helper()
	text := strings.ReplaceAll(manifest, "IMAGE/", registry+"/")
	temporary := filepath.Join(filepath.Dir(k.manifests), name)
	if err := os.WriteFile(temporary, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(k.manifests, name+".yaml")); err != nil {
		t.Fatal(err)
	}
}

// until waits for what becomes true soon.
func (k *kubelet) until(t *testing.T, what string, ok func() error) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if last = ok(); last == nil {
			return
		}
	}
	t.Fatalf("%s: not within %v: %v", what, patience, last)
}

// untilPod waits until a pod's status is as ok says.
func (k *kubelet) untilPod(t *testing.T, name, what string, ok func(podStatus) bool) podStatus {
	t.Helper()
	var p podStatus
	k.until(t, "pod "+name+" "+what, func() error {
		pods, err := k.pods()
		if err != nil {
			return err
		}
		if p = pods[name]; !ok(p) {
			text, _ := json.Marshal(p.Status)
			return fmt.Errorf("status %s", text)
		}
		return nil
	})
	return p
}

func (k *kubelet) untilReady(t *testing.T, name string) podStatus {
	t.Helper()
	return k.untilPod(t, name, "is ready", podStatus.ready)
}

func background(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}
