package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// roleHold OWN OTHER keeps a number in its memory and in the pod's shared memory as OWN, beside some memory whose sum it
// knows and a file that it keeps open, and watches the number of OTHER. It prints its number 20 times a second, and BAD when
// anything is not as it left it, or OTHER's number goes back: then the two were not captured at one moment.
func roleHold(args []string) int {
	table := crc64.MakeTable(crc64.ECMA)
	memory := bytes.Repeat([]byte("what was written is still there "), 4<<15) // 4 MiB
	sum := crc64.Checksum(memory, table)
	own, err := os.OpenFile("/dev/shm/"+args[0], os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		fmt.Println("BAD", err)
		return 1
	}
	open, err := os.OpenFile("/tmp/open", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		fmt.Println("BAD", err)
		return 1
	}
	var number, seen uint64
	read := func(f *os.File) uint64 {
		var b [8]byte
		_, _ = f.ReadAt(b[:], 0)
		return binary.LittleEndian.Uint64(b[:])
	}
	write := func(f *os.File) error {
		_, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, number), 0)
		return err
	}
	for {
		if crc64.Checksum(memory, table) != sum || read(own) != number || read(open) != number {
			fmt.Println("BAD: of", number, "shared", read(own), "open", read(open))
		}
		if other, err := os.Open("/dev/shm/" + args[1]); err == nil {
			now := read(other)
			if now < seen {
				fmt.Println("BAD: the other was at", seen, "and is at", now)
			}
			seen = now
			_ = other.Close()
		}
		number++
		if err := write(open); err != nil {
			fmt.Println("BAD", err)
		}
		if err := write(own); err != nil {
			fmt.Println("BAD", err)
		}
		fmt.Println(number)
		time.Sleep(50 * time.Millisecond)
	}
}

// held is a pod of two containers that watch each other, and the configurations that they were made from.
type held struct {
	p          *pod
	containers []*container
	configs    []*runtimev1.ContainerConfig
}

func (n *node) hold(t *testing.T) held {
	t.Helper()
	h := held{p: n.runPod(t)}
	for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
		c := h.p.run(t, helper("role-hold", names[0], names[1]), func(c *runtimev1.ContainerConfig) {
			c.Metadata.Name = "hold-" + names[0]
			c.LogPath = c.Metadata.Name + ".log"
			h.configs = append(h.configs, proto.Clone(c).(*runtimev1.ContainerConfig))
		})
		c.logFile = filepath.Join(h.p.config.LogDirectory, "hold-"+names[0]+".log")
		h.containers = append(h.containers, c)
	}
	return h
}

func (h held) ids() []string { return []string{h.containers[0].id, h.containers[1].id} }

func (p *pod) checkpoint(output string, ids []string, options map[string]string) error {
	ctx, cancel := callContext()
	defer cancel()
	_, err := p.n.d.Runtime.CheckpointPod(ctx, &runtimev1.CheckpointPodRequest{
		PodSandboxId: p.id, OutputPath: output, ContainerIds: ids, Options: options,
	})
	return err
}

func (n *node) restore(path string, config *runtimev1.PodSandboxConfig, containers []*runtimev1.ContainerConfig) (*runtimev1.RestorePodResponse, error) {
	ctx, cancel := callContext()
	defer cancel()
	return n.d.Runtime.RestorePod(ctx, &runtimev1.RestorePodRequest{CheckpointPath: path, Config: config, ContainerConfigs: containers})
}

func wantEmpty(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the output: %v, %v", entries, err)
	}
}

func TestCheckpointPod(t *testing.T) {
	n := sharedNode(t)
	h := n.hold(t)
	for _, c := range h.containers {
		c.counts(t, 2)
	}
	output := t.TempDir()
	h.refusals(t, output)
	err := h.p.checkpoint(output, h.ids(), nil)
	for _, c := range h.containers {
		c.counts(t, 2)
	}
	if criuMissing(t, err) {
		wantEmpty(t, output)
		return
	}
	h.halfway(t)

	h.refuseRestores(t, output)
	config := podConfig(t, n)
	restored, err := n.restore(output, config, h.configs)
	if err != nil {
		t.Fatal(err)
	}
	q := &pod{n: n, id: restored.PodSandboxId, config: config}
	t.Cleanup(func() {
		if err := q.down(); err != nil {
			t.Error(err)
		}
	})
	if len(restored.RestoredContainers) != 2 {
		t.Fatalf("restored: %v", restored)
	}
	for i, r := range restored.RestoredContainers {
		c := &container{p: q, id: r.ContainerId, logFile: filepath.Join(config.LogDirectory, h.configs[i].LogPath)}
		if s := c.status(t); s.State != runtimev1.ContainerState_CONTAINER_CREATED || s.Metadata.Name != r.Name {
			t.Errorf("restored container: %v", s)
		}
		c.start(t)
		if all := c.counts(t, 3); all[0] <= 1 {
			t.Errorf("the restored container begins with %d", all[0])
		}
	}
}

// refusals are requests that are wrong; nothing is made, and the pod runs on.
func (h held) refusals(t *testing.T, output string) {
	t.Helper()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := h.p.n.runPod(t).run(t, shell("sleep 1000"))
	ids := h.ids()
	wantCode(t, h.p.checkpoint("relative", ids, nil), codes.InvalidArgument, "output_path")
	wantCode(t, h.p.checkpoint(full, ids, nil), codes.InvalidArgument, "not empty")
	wantCode(t, h.p.checkpoint(filepath.Join(output, "absent"), ids, nil), codes.InvalidArgument, "absent")
	wantCode(t, h.p.checkpoint(output, nil, nil), codes.InvalidArgument, "container_ids")
	wantCode(t, h.p.checkpoint(output, []string{ids[0], ids[0]}, nil), codes.InvalidArgument, "twice")
	wantCode(t, h.p.checkpoint(output, []string{ids[0], other.id}, nil), codes.InvalidArgument, other.id)
	wantCode(t, h.p.checkpoint(output, ids, map[string]string{"tcp": "yes"}), codes.InvalidArgument, "options[tcp]")
	_, err := h.p.n.d.Runtime.CheckpointPod(context.Background(), &runtimev1.CheckpointPodRequest{PodSandboxId: h.p.id, OutputPath: output, ContainerIds: ids})
	wantCode(t, err, codes.InvalidArgument, "deadline")
	wantEmpty(t, output)
}

// halfway is a checkpoint of which one container can be captured and another not.
func (h held) halfway(t *testing.T) {
	t.Helper()
	terminal := h.p.run(t, shell("sleep 1000"), tty)
	output := t.TempDir()
	err := h.p.checkpoint(output, append(h.ids(), terminal.id), nil)
	wantCode(t, err, codes.FailedPrecondition, "terminal")
	wantEmpty(t, output)
	for _, c := range h.containers {
		c.counts(t, 2)
	}
	terminal.stop(t, 0)
	terminal.remove(t)
}

// refuseRestores are restores that fail, early and late; nothing is left of them.
func (h held) refuseRestores(t *testing.T, output string) {
	t.Helper()
	n := h.p.n
	before := n.pods(t)
	clone := func(change func([]*runtimev1.ContainerConfig)) []*runtimev1.ContainerConfig {
		var all []*runtimev1.ContainerConfig
		for _, c := range h.configs {
			all = append(all, proto.Clone(c).(*runtimev1.ContainerConfig))
		}
		change(all)
		return all
	}
	_, err := n.restore(output, podConfig(t, n), h.configs[:1])
	wantCode(t, err, codes.InvalidArgument, "hold-b")
	_, err = n.restore(output, podConfig(t, n), clone(func(c []*runtimev1.ContainerConfig) { c[0].Command = append(c[0].Command, "more") }))
	wantCode(t, err, codes.FailedPrecondition, "command")
	_, err = n.restore(output, podConfig(t, n), clone(func(c []*runtimev1.ContainerConfig) { c[0].Linux.SecurityContext.NoNewPrivs = true }))
	wantCode(t, err, codes.FailedPrecondition, "NoNewPrivs")

	// The second container's checkpoint is not whole: the first is made by then.
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.CopyFS(broken, os.DirFS(output)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(broken, "container-1", "rootfs-diff.tar"), 100); err != nil {
		t.Fatal(err)
	}
	_, err = n.restore(broken, podConfig(t, n), h.configs)
	wantCode(t, err, codes.InvalidArgument, "tar")
	if after := n.pods(t); after != before {
		t.Errorf("pods before failed restores: %s, after: %s", before, after)
	}
}

// pods lists the pods, for comparison.
func (n *node) pods(t testing.TB) string {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	list, err := n.d.Runtime.ListPodSandbox(ctx, &runtimev1.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, p := range list.Items {
		ids = append(ids, p.Id)
	}
	return strings.Join(ids, " ")
}
