package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is what a kubelet receives at most, bytes.
const maxMessage = 16 << 20

// StartRegistry serves the test images until the place ends and answers with its address on loopback.
func (p *Place) StartRegistry() (string, error) {
	cmd := exec.Command(p.TestImages, "serve", "-dir", p.ImagesDir, "-listen", "127.0.0.1:5000")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("registry: %w", err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	addr, ok := strings.CutPrefix(strings.TrimSpace(line), "listening on ")
	if !ok {
		return "", fmt.Errorf("registry: it says %q, not where it listens: %w", line, err)
	}
	return addr, nil
}

// Daemon is one criserver with directories, a bridge and a cgroup of its own. Its methods are for one goroutine.
type Daemon struct {
	Runtime runtimev1.RuntimeServiceClient
	Images  runtimev1.ImageServiceClient

	RootDir   string
	StateDir  string
	NetnsDir  string
	CDIDir    string // of files that describe devices
	NRISocket string // where plugins connect
	LogFile   string // what it writes on standard error, over all its lives
	Config    string // path of its configuration file

	place  *Place
	wrap   []string
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process was reaped
	err    error         // its end; read after exited
	conn   *grpc.ClientConn
}

// Socket is the path of the CRI socket.
func (d *Daemon) Socket() string { return filepath.Join(d.StateDir, "criserver.sock") }

// Settings are what daemons that run side by side must differ in, and what a test of speed has otherwise than others.
type Settings struct {
	LogLevel string   // "": debug
	NetnsDir string   // "": that of the place
	Network  string   // more lines of the configuration's table network
	Wrap     []string // a program and its first arguments, which executes the daemon's
}

// NewDaemon writes a configuration for a daemon called name (a few letters), with more tables if wanted, and starts it. A
// place has one such daemon at a time, because the bridge and the directory of network namespaces are the same for all.
func (p *Place) NewDaemon(ctx context.Context, name string, tables ...string) (*Daemon, error) {
	return p.NewDaemonWith(ctx, name, Settings{}, tables...)
}

// NewDaemonWith is as NewDaemon, with settings.
func (p *Place) NewDaemonWith(ctx context.Context, name string, s Settings, tables ...string) (*Daemon, error) {
	base := filepath.Join(p.Dir, name)
	if s.LogLevel == "" {
		s.LogLevel = "debug"
	}
	if s.NetnsDir == "" {
		s.NetnsDir = filepath.Join(p.Dir, "run", "netns")
	}
	d := &Daemon{
		place: p, wrap: s.Wrap, RootDir: filepath.Join(base, "root"), StateDir: filepath.Join(p.Dir, "run", name),
		NetnsDir: s.NetnsDir, CDIDir: filepath.Join(base, "cdi"),
		NRISocket: filepath.Join(p.Dir, "run", name, "nri", "nri.sock"), LogFile: filepath.Join(base, "criserver.log"),
		Config: filepath.Join(base, "config.toml"),
	}
	for _, dir := range []string{d.RootDir, d.StateDir, d.NetnsDir, d.CDIDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // as a daemon makes that of its state: user namespaces have mounts in there
			return nil, err
		}
	}
	text := fmt.Sprintf(`root = %q
state = %q
[log]
level = %q
[workload]
%s
[cdi]
spec_dirs = [%q]
[nri]
socket_path = %q
plugin_path = %q
plugin_config_path = %q
# The suite of cri-tools has a plugin take two seconds, which are too many by default.
plugin_request_timeout = "4s"
[network]
netns_dir = %q
%s
`, d.RootDir, d.StateDir, s.LogLevel, p.cgroups(name), d.CDIDir, d.NRISocket,
		filepath.Join(base, "plugins"), filepath.Join(base, "plugin-config"), d.NetnsDir, s.Network)
	for one := range strings.SplitSeq(p.Runtimes, ",") {
		if name, path, ok := strings.Cut(one, "="); ok {
			text += fmt.Sprintf("[runtimes.%s]\npath = %q\n", name, path)
		}
	}
	if err := os.WriteFile(d.Config, []byte(text+strings.Join(tables, "\n")), 0o644); err != nil {
		return nil, err
	}
	var err error
	d.conn, err = grpc.NewClient("unix:"+d.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithChainUnaryInterceptor(p.observeUnary), grpc.WithChainStreamInterceptor(p.observeStream))
	if err != nil {
		return nil, err
	}
	d.Runtime, d.Images = runtimev1.NewRuntimeServiceClient(d.conn), runtimev1.NewImageServiceClient(d.conn)
	return d, d.Start(ctx)
}

// cgroups configures where the cgroups of a daemon go.
func (p *Place) cgroups(daemon string) string {
	if os.Getenv(EnvDriver) == "systemd" {
		return fmt.Sprintf("cgroup_driver = \"systemd\"\ncgroup_parent = %q", strings.TrimPrefix(p.CgroupParent, "/")+"-"+daemon+".slice")
	}
	return fmt.Sprintf("cgroup_parent = %q", p.CgroupParent+"/"+daemon)
}

// Start starts the daemon and waits until it answers. It may be called again after Kill or Stop.
func (d *Daemon) Start(ctx context.Context) error {
	log, err := os.OpenFile(d.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	args := append(append([]string{}, d.wrap...), filepath.Join(d.place.BinDir, "criserver"), "--config", d.Config)
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Dir = "/"
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		d.err = cmd.Wait()
		close(exited)
	}(d.cmd, d.exited)
	return d.waitReady(ctx)
}

func (d *Daemon) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var last error
	for {
		select {
		case <-d.exited:
			return fmt.Errorf("the daemon ended at its start: %v\n%s", d.err, d.LogTail(20))
		case <-ctx.Done():
			return fmt.Errorf("the daemon does not answer: %w, last: %v\n%s", ctx.Err(), last, d.LogTail(20))
		case <-time.After(10 * time.Millisecond):
		}
		// A plain connection first: gRPC backs off after a refused one for longer than a start takes.
		conn, err := net.Dial("unix", d.Socket())
		if err != nil {
			last = err
			continue
		}
		conn.Close()
		d.conn.ResetConnectBackoff()
		if _, last = d.Runtime.Version(ctx, &runtimev1.VersionRequest{}, grpc.WaitForReady(true)); last == nil {
			return nil
		}
	}
}

// PID is the daemon's process.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Stop asks the daemon to end and waits; workloads run on. One that has ended already is no error.
func (d *Daemon) Stop() error {
	if errors.Is(d.cmd.Process.Signal(syscall.SIGTERM), os.ErrProcessDone) {
		return nil
	}
	select {
	case <-d.exited:
		return d.err
	case <-time.After(15 * time.Second):
		d.Kill()
		return errors.New("the daemon did not end within 15 s of SIGTERM")
	}
}

// Kill ends the daemon by SIGKILL and waits.
func (d *Daemon) Kill() {
	_ = d.cmd.Process.Kill()
	<-d.exited
}

// Remove deletes the directories of a daemon that was stopped, and lets go of the connection.
func (d *Daemon) Remove() error {
	return errors.Join(os.RemoveAll(filepath.Dir(d.RootDir)), d.RemoveState())
}

// RemoveState deletes the state directory of a daemon that was stopped and whose shim has ended, and lets go of the connection.
func (d *Daemon) RemoveState() error {
	_ = d.conn.Close() // it may have been closed before
	return os.RemoveAll(d.StateDir)
}

// LogTail is the last n lines of the daemon's log, long ones cut.
func (d *Daemon) LogTail(n int) string { return Tail(d.LogFile, n) }

// Tail is the last n lines of a file, long ones cut, or why it cannot be read.
func Tail(file string, n int) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		const enough = 400
		lines[i] = line[:min(len(line), enough)]
	}
	return strings.Join(lines, "\n")
}

// ShimPID and KeeperPID find the processes that serve this daemon by their program's name. A place that runs several
// daemons at once has several; only the first is found. 0: there is none.
func (d *Daemon) ShimPID() int { return d.byName("criserver-shim") }

// KeeperPID is as ShimPID.
func (d *Daemon) KeeperPID() int { return d.byName("criserver-keeper") }

func (d *Daemon) byName(name string) int {
	all, err := Processes()
	if err != nil {
		return 0
	}
	for _, p := range all {
		if p.Exe == filepath.Join(d.place.BinDir, name) {
			return p.PID
		}
	}
	return 0
}

func (p *Place) observeUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, cc, opts...)
	if p.Observe != nil {
		p.Observe(method, req, err)
	}
	return err
}

func (p *Place) observeStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, cc, method, opts...)
	if err != nil || p.Observe == nil {
		return stream, err
	}
	return &observedStream{ClientStream: stream, observe: p.Observe, method: method}, nil
}

// observedStream tells of the first answer, by which it is known whether the call was accepted.
type observedStream struct {
	grpc.ClientStream
	observe func(method string, request any, err error)
	method  string
	request any
	told    bool
}

func (s *observedStream) SendMsg(m any) error {
	s.request = m
	return s.ClientStream.SendMsg(m)
}

func (s *observedStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if !s.told {
		s.told = true
		told := err
		if errors.Is(err, io.EOF) {
			told = nil
		}
		s.observe(s.method, s.request, told)
	}
	return err
}
