package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/e2e/rig"
)

// startTimeout bounds the start and the end of a daemon.
const startTimeout = 30 * time.Second

// settings are lines of containerd's configuration, the first in the table of its transfer service.
var settings = map[string]string{
	"default": "",
	"tuned":   "max_concurrent_downloads = 8\nmax_concurrent_unpacks = 8\nconcurrent_layer_fetch_buffer = 8388608\n",
	"synced":  "[plugins.'io.containerd.cri.v1.images']\nimage_pull_with_sync_fs = true\n[plugins.'io.containerd.service.v1.diff-service']\nsync_fs = true\n",
}

// containerdPeer starts containerd.
func (b *bench) containerdPeer(ctx context.Context, peer string) (*daemon, error) {
	base, run := b.disk.dir, filepath.Join(b.place.Dir, "run", "containerd")
	config, socket := filepath.Join(b.place.Dir, "containerd.toml"), filepath.Join(run, "containerd.sock")
	text := fmt.Sprintf("version = 3\nroot = %q\nstate = %q\n[grpc]\naddress = %q\n[plugins.'io.containerd.transfer.v1.local']\n%s",
		filepath.Join(base, "root"), run, socket, settings[peer])
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(b.place.Dir, "containerd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(b.containerd, "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	if peer != "tuned" {
		cmd.Env = append(os.Environ(), "CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1")
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(startTimeout, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait() // it ends by the signal
		return os.RemoveAll(run)
	}
	images, closeConn, err := dial(ctx, socket)
	if err != nil {
		tail, _ := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("containerd: %w\n%s", err, tail), stop())
	}
	return &daemon{images: images, pid: cmd.Process.Pid, stop: func() error { return errors.Join(closeConn(), stop()) }}, nil
}

// dial waits until a daemon answers.
func dial(ctx context.Context, socket string) (runtimev1.ImageServiceClient, func() error, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("wait for %s: %w", socket, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	client := runtimev1.NewImageServiceClient(conn)
	for {
		_, err = client.ListImages(ctx, &runtimev1.ListImagesRequest{}, grpc.WaitForReady(true))
		if err == nil {
			return client, conn.Close, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, errors.Join(err, conn.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end kills processes of this place by their programs' names, the first named first, and waits until they are gone.
func (b *bench) end(programs ...string) error {
	deadline := time.Now().Add(startTimeout)
	for {
		all, err := rig.Processes()
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(p rig.Process) bool { return !slices.Contains(programs, filepath.Base(p.Exe)) })
		if len(all) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s do not end", strings.Join(programs, " and "))
		}
		slices.SortFunc(all, func(p, q rig.Process) int {
			return slices.Index(programs, filepath.Base(p.Exe)) - slices.Index(programs, filepath.Base(q.Exe))
		})
		for _, p := range all {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
