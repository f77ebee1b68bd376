package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cmd/criserver/config"
	"github.com/criserver/criserver/shim"
)

// programs builds the shim and the keeper once for all tests.
func programs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "./cmd/criserver-shim", "./cmd/criserver-keeper")
	build.Dir = "../../.."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// testConfig needs no network of its own: mode cni without a configuration touches nothing of the node.
func testConfig(t *testing.T, bin string) config.Config {
	t.Helper()
	cfg := config.Default()
	base := t.TempDir()
	cfg.Root, cfg.State = filepath.Join(base, "root"), filepath.Join(base, "state")
	cfg.Shim.Keeper, cfg.Shim.Shim = filepath.Join(bin, "criserver-keeper"), filepath.Join(bin, "criserver-shim")
	cfg.Workload.CgroupParent = "/criserver-test-daemon-" + strconv.Itoa(os.Getpid())
	cfg.Network.Mode, cfg.Network.NetnsDir, cfg.Network.NetnsPool = "cni", filepath.Join(base, "netns"), 0
	cfg.NRI.SocketPath, cfg.NRI.PluginPath = filepath.Join(base, "nri", "nri.sock"), filepath.Join(base, "nri-plugins")
	cfg.Network.ConfDir, cfg.Network.BinDirs = filepath.Join(base, "net.d"), []string{filepath.Join(base, "bin")}
	return cfg
}

// shimPIDs asks the shim who it is, and who its keeper is.
func shimPIDs(t *testing.T, cfg config.Config) (pid, keeper int) {
	t.Helper()
	client := shim.Dial(filepath.Join(cfg.State, shim.SocketFile))
	defer client.Close()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		info, err := client.Info(context.Background()) // also called when the test has ended
		if err == nil {
			return int(info.Pid), int(info.KeeperPid)
		}
		if time.Now().After(end) {
			t.Fatalf("the shim does not answer: %v", err)
		}
	}
}

// killShim ends what outlives a daemon. The keeper goes first, for it would start the shim again.
func killShim(t *testing.T, cfg config.Config) {
	t.Helper()
	pid, keeper := shimPIDs(t, cfg)
	for _, p := range []int{keeper, pid} {
		if err := unix.Kill(p, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Errorf("kill %d: %v", p, err)
		}
	}
}

func start(t *testing.T, cfg config.Config) *Daemon {
	t.Helper()
	d, err := Start(t.Context(), cfg, Options{Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func version(t *testing.T, path string) error {
	t.Helper()
	connection, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	answer, err := runtime.NewRuntimeServiceClient(connection).Version(ctx, &runtime.VersionRequest{})
	if err == nil && answer.RuntimeVersion != "1.2.3" {
		t.Errorf("version %v", answer)
	}
	return err
}

func TestDaemon(t *testing.T) {
	bin := programs(t)
	cfg := testConfig(t, bin)
	d := start(t, cfg)
	t.Cleanup(func() { killShim(t, cfg) })
	if err := version(t, cfg.SocketPath()); err != nil {
		t.Fatal(err)
	}
	shimBefore, keeperBefore := shimPIDs(t, cfg)

	t.Run("one instance", func(t *testing.T) {
		_, err := Start(t.Context(), cfg, Options{})
		if err == nil || !strings.Contains(err.Error(), "is in use by process "+strconv.Itoa(os.Getpid())) {
			t.Errorf("a second daemon gives %v", err)
		}
		other := cfg
		other.Root += "-other" // the state directory alone is enough
		if _, err := Start(t.Context(), other, Options{}); err == nil || !strings.Contains(err.Error(), cfg.State) {
			t.Errorf("a second daemon on the same state gives %v", err)
		}
		if err := version(t, cfg.SocketPath()); err != nil {
			t.Errorf("the first daemon was disturbed: %v", err)
		}
	})

	t.Run("restart", func(t *testing.T) {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(cfg.SocketPath()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
		d = start(t, cfg)
		pid, keeper := shimPIDs(t, cfg)
		if pid != shimBefore || keeper != keeperBefore {
			t.Errorf("the shim did not outlive the daemon: %d, %d before, %d, %d after", shimBefore, keeperBefore, pid, keeper)
		}
	})

	t.Run("shim and keeper die", func(t *testing.T) {
		killed := time.Now()
		killShim(t, cfg)
		for pid, keeper := shimPIDs(t, cfg); pid == shimBefore || keeper == keeperBefore; pid, keeper = shimPIDs(t, cfg) {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(killed); took > 2*time.Second {
			t.Errorf("the shim was back after %v", took)
		} else {
			t.Logf("the shim was back after %v", took)
		}
	})
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestRun is what main does: it serves until its context ends, and tells systemd.
func TestRun(t *testing.T) {
	bin := programs(t)
	cfg := testConfig(t, bin)
	notify := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", notify)
	heard := func() string {
		message := make([]byte, 64)
		_ = socket.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, err := socket.Read(message)
		if err != nil {
			t.Fatal(err)
		}
		return string(message[:n])
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, Options{Version: "1.2.3"}) }()
	if got := heard(); got != "READY=1" {
		t.Errorf("systemd heard %q", got)
	}
	t.Cleanup(func() { killShim(t, cfg) })
	if err := version(t, cfg.SocketPath()); err != nil {
		t.Error(err)
	}
	cancel()
	if got := heard(); got != "STOPPING=1" {
		t.Errorf("systemd heard %q", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestStartFails(t *testing.T) {
	cfg := testConfig(t, t.TempDir())
	_, err := Start(t.Context(), cfg, Options{})
	if err == nil || !strings.Contains(err.Error(), "criserver-keeper is missing; install it or set shim.keeper") {
		t.Errorf("without the keeper: %v", err)
	}
	// The locks are free again.
	for _, dir := range []string{cfg.Root, cfg.State} {
		file, err := lock(dir)
		if err != nil {
			t.Error(err)
			continue
		}
		file.Close()
	}
}
