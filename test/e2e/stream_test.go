package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func stdin(c *runtimev1.ContainerConfig)     { c.Stdin = true }
func stdinOnce(c *runtimev1.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }

// echo answers each line of its input.
const echo = `while read line; do echo "got $line"; done; echo end`

// random is size bytes that no compression or text conversion survives by luck.
func random(size int) []byte {
	b := make([]byte, size)
	source := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(source.Uint32())
	}
	return b
}

// TestExecStreams runs commands with a client's streams.
func TestExecStreams(t *testing.T) {
	if testing.Short() {
		t.Skip("not the happy path")
	}
	n := sharedNode(t)
	c := n.runPod(t, hostNetwork).run(t, command("sleep", "1000"))
	for name, open := range transports {
		open := opener(open)
		t.Run(name, func(t *testing.T) {
			t.Run("input ends", func(t *testing.T) {
				w := wanted{stdin: true, stdout: true, stderr: true}
				s := open.at(t, c.execURL(t, w, "sh", "-c", echo), w)
				s.send(t, "a\nb\n")
				s.expect(t, "got b\n")
				_ = s.stdin.Close()
				if o := s.finish(t); o.stdout != "end\n" || o.stderr != "" || o.code() != "0" {
					t.Errorf("%+v", o)
				}
			})
			t.Run("10 MiB there and back", func(t *testing.T) {
				w := wanted{stdin: true, stdout: true}
				s := open.at(t, c.execURL(t, w, "cat"), w)
				data := random(10 << 20)
				go func() {
					for rest := data; len(rest) > 0; {
						n, err := s.stdin.Write(rest[:min(len(rest), 32<<10)])
						if err != nil {
							return
						}
						rest = rest[n:]
					}
					_ = s.stdin.Close()
				}()
				time.Sleep(1500 * time.Millisecond) // longer than the shim's transport has patience: nothing may be lost
				o := s.finish(t)
				if sha256.Sum256([]byte(o.stdout)) != sha256.Sum256(data) || o.code() != "0" {
					t.Errorf("%d bytes came back, of %d; code %s", len(o.stdout), len(data), o.code())
				}
			})
			t.Run("stderr apart, exit code", func(t *testing.T) {
				w := wanted{stdout: true, stderr: true}
				s := open.at(t, c.execURL(t, w, "sh", "-c", "echo out; echo err >&2; exit 7"), w)
				if o := s.finish(t); o.stdout != "out\n" || o.stderr != "err\n" || o.code() != "7" {
					t.Errorf("%+v", o)
				}
			})
			t.Run("input that nobody reads", func(t *testing.T) {
				w := wanted{stdin: true, stdout: true}
				s := open.at(t, c.execURL(t, w, "echo", "x"), w)
				go func() { _, _ = s.stdin.Write(make([]byte, 256<<10)) }()
				if o := s.finish(t); o.stdout != "x\n" || o.code() != "0" {
					t.Errorf("%+v", o)
				}
			})
			t.Run("no such command", func(t *testing.T) {
				w := wanted{stdout: true}
				s := open.at(t, c.execURL(t, w, "/no/such/command"), w)
				if o := s.finish(t); o.Status != "Failure" || !strings.Contains(o.Message, "/no/such/command") {
					t.Errorf("%+v", o)
				}
			})
			t.Run("a process is left behind", func(t *testing.T) {
				w := wanted{stdout: true}
				s := open.at(t, c.execURL(t, w, "sh", "-c", "sleep 5 & echo x"), w)
				began := time.Now()
				if o := s.finish(t); o.stdout != "x\n" || o.code() != "0" || time.Since(began) > 4*time.Second {
					t.Errorf("%+v after %v", o, time.Since(began))
				}
			})
			t.Run("terminal", func(t *testing.T) { testTerminal(t, open, c) })
			t.Run("vanished client", func(t *testing.T) { testVanished(t, open, c) })
		})
	}
}

func testTerminal(t *testing.T, open opener, c *container) {
	w := wanted{stdin: true, stdout: true, tty: true}
	s := open.at(t, c.execURL(t, w, "sh", "-c", "stty size; echo $TERM; read x; stty size; exit 3"), w)
	s.resize(t, 101, 33)
	s.expect(t, "33 101\r\nxterm\r\n") // the first size is there from the start
	s.resize(t, 132, 50)
	time.Sleep(100 * time.Millisecond) // sizes and input are two streams
	s.send(t, "\n")
	s.expect(t, "50 132\r\n")
	if o := s.finish(t); o.code() != "3" {
		t.Errorf("%+v", o)
	}
}

func testVanished(t *testing.T, open opener, c *container) {
	w := wanted{stdout: true}
	s := open.at(t, c.execURL(t, w, "sh", "-c", "echo $$; exec sleep 1000"), w)
	pid := strings.TrimSpace(s.expect(t, "\n"))
	s.vanish()
	eventually(t, 10*time.Second, func() error {
		r, err := c.exec(t.Context(), 0, "cat", "/proc/"+pid+"/stat")
		if err == nil && r.code == 0 {
			err = fmt.Errorf("process %s goes on", pid)
		}
		return err
	})
}

// TestAttach attaches to containers with and without a terminal.
func TestAttach(t *testing.T) {
	if testing.Short() {
		t.Skip("not the happy path")
	}
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	for name, open := range transports {
		open := opener(open)
		t.Run(name, func(t *testing.T) {
			t.Run("again", func(t *testing.T) {
				c := p.run(t, shell(echo), stdin)
				w := wanted{stdin: true, stdout: true, stderr: true}
				for _, word := range []string{"one", "two"} {
					s := open.at(t, c.attachURL(t, w), w)
					s.send(t, word+"\n")
					s.expect(t, "got "+word+"\n")
					s.vanish()
				}
				eventually(t, 10*time.Second, func() error {
					if got := c.logText(t, "stdout"); got != "got one\ngot two\n" {
						return fmt.Errorf("log %q", got)
					}
					return nil
				})
				if s := c.status(t); s.State != runtimev1.ContainerState_CONTAINER_RUNNING {
					t.Errorf("the container is %v", s.State)
				}
				c.stop(t, 0)
				c.remove(t)
			})
			t.Run("stdin once", func(t *testing.T) {
				c := p.run(t, shell(echo+"; echo err >&2; exit 4"), stdinOnce)
				w := wanted{stdin: true, stdout: true, stderr: true}
				s := open.at(t, c.attachURL(t, w), w)
				s.send(t, "x\n")
				_ = s.stdin.Close()
				if o := s.finish(t); o.stdout != "got x\nend\n" || o.stderr != "err\n" || o.code() != "0" {
					t.Errorf("%+v", o)
				}
				if s := c.wait(t, 10*time.Second); s.ExitCode != 4 {
					t.Errorf("exit code %d", s.ExitCode)
				}
				c.remove(t)
			})
			t.Run("terminal", func(t *testing.T) {
				c := p.run(t, command("sh"), stdin, tty)
				w := wanted{stdin: true, stdout: true, tty: true}
				for _, size := range [][2]int{{90, 30}, {70, 20}} {
					s := open.at(t, c.attachURL(t, w), w)
					s.resize(t, size[0], size[1])
					time.Sleep(100 * time.Millisecond)
					s.send(t, "stty size\n")
					s.expect(t, fmt.Sprintf("\n%d %d\r\n", size[1], size[0]))
					s.vanish()
				}
				c.stop(t, 0)
				c.remove(t)
			})
		})
	}
}

// TestAttachSurvives attaches after the shim was killed, and has the daemon killed under an exec.
func TestAttachSurvives(t *testing.T) {
	if testing.Short() {
		t.Skip("not the happy path")
	}
	n := ownNode(t)
	p := n.runPod(t, hostNetwork)
	open := opener(openSPDY)
	plain, terminal := p.run(t, shell(echo), stdin), p.run(t, shell("stty -echo; "+echo), stdin, tty)
	if err := syscall.Kill(n.d.ShimPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		*container
		w   wanted
		eol string
	}{
		{plain, wanted{stdin: true, stdout: true}, "\n"}, {terminal, wanted{stdin: true, stdout: true, tty: true}, "\r\n"},
	} {
		s := open.at(t, c.attachURL(t, c.w), c.w)
		s.send(t, "again\n")
		s.expect(t, "got again"+c.eol)
		s.vanish()
	}
	w := wanted{stdout: true}
	s := open.at(t, plain.execURL(t, w, "sh", "-c", "echo $$; exec sleep 1000"), w)
	pid := strings.TrimSpace(s.expect(t, "\n"))
	n.d.Kill()
	if err := n.d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if r, err := plain.exec(t.Context(), 0, "cat", "/proc/"+pid+"/stat"); err == nil && r.code == 0 {
			return fmt.Errorf("the exec of a killed daemon goes on")
		}
		return nil
	})
}

// TestAttachLags attaches a client that reads nothing: neither the container nor its log waits for it, and it is told.
func TestAttachLags(t *testing.T) {
	if testing.Short() {
		t.Skip("not the happy path")
	}
	n := sharedNode(t)
	const megabytes = 32 // more than what sockets and buffers hold on the way
	script := fmt.Sprintf(`line=$(head -c 1023 /dev/zero | tr '\0' x); read x; yes $line | head -c %d; read x`, megabytes<<20)
	c := n.runPod(t, hostNetwork).run(t, shell(script), stdin)
	w := wanted{stdin: true, stdout: true}
	s := opener(openSPDY).at(t, c.attachURL(t, w), w)
	other := opener(openWebSocket).at(t, c.attachURL(t, w), w)
	sum := make(chan int, 1)
	go func() { _, _ = io.Copy(io.Discard, other.status) }()
	go func() { // reads as fast as it can, and may still be let go
		n, _ := io.Copy(io.Discard, other.stdout)
		sum <- int(n)
	}()
	s.send(t, "\n")
	eventually(t, 30*time.Second, func() error {
		log, err := os.Stat(c.logFile)
		if err == nil && log.Size() < megabytes<<20 {
			err = fmt.Errorf("the log has %d bytes", log.Size())
		}
		return err
	})
	if got := len(c.logText(t, "stdout")); got < megabytes<<20 {
		t.Errorf("the log has %d bytes of output", got)
	}
	c.stop(t, 0)
	if o := s.finish(t); o.Status != "Failure" || !strings.Contains(o.Message, "behind") || len(o.stdout) == 0 {
		t.Errorf("status %q, %q after %d bytes", o.Status, o.Message, len(o.stdout))
	}
	other.vanish()
	t.Logf("the client that reads got %d bytes", <-sum)
	c.remove(t)
}

// TestPortForward carries connections into a pod's network namespace.
func TestPortForward(t *testing.T) {
	if testing.Short() {
		t.Skip("not the happy path")
	}
	n := sharedNode(t)
	for name, tt := range map[string]struct {
		port    string
		options []podOption
	}{
		"own network": {"8080", nil}, "host network": {"18080", []podOption{hostNetwork}},
	} {
		t.Run(name, func(t *testing.T) {
			p := n.runPod(t, tt.options...)
			c := p.run(t, shell("mkdir /www; head -c 300000 /dev/zero >/www/big; exec httpd -f -h /www -p 127.0.0.1:"+tt.port))
			resp, err := n.d.Runtime.PortForward(t.Context(), &runtimev1.PortForwardRequest{PodSandboxId: p.id})
			if err != nil {
				t.Fatal(err)
			}
			conn, err := dialSPDY(resp.Url, "portforward.k8s.io")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			request := 0
			forward := func(port string) (answer, failure string) {
				request++
				headers := http.Header{}
				headers.Set("port", port)
				headers.Set("requestID", fmt.Sprint(request))
				headers.Set("streamType", "error")
				failures, err := conn.CreateStream(headers)
				if err != nil {
					t.Fatal(err)
				}
				_ = failures.Close()
				headers.Set("streamType", "data")
				data, err := conn.CreateStream(headers)
				if err != nil { // the answer to the port's refusal may be faster than that to the stream's creation
					text, _ := io.ReadAll(failures)
					return "", err.Error() + ": " + string(text)
				}
				_, _ = io.WriteString(data, "GET /big HTTP/1.0\r\n\r\n")
				var all bytes.Buffer
				_, _ = io.Copy(&all, data)
				text, _ := io.ReadAll(failures)
				return all.String(), string(text)
			}
			eventually(t, 10*time.Second, func() error {
				answer, failure := forward(tt.port)
				if failure != "" || !strings.Contains(answer, "200 OK") || len(answer) < 300000 {
					return fmt.Errorf("%d bytes, error %q", len(answer), failure)
				}
				return nil
			})
			if answer, failure := forward("9"); answer != "" || !strings.Contains(failure, "refused") && !strings.Contains(failure, "reset") {
				t.Errorf("a port that nobody listens on: %q, error %q", answer, failure)
			}
			c.stop(t, 0)
			c.remove(t)
		})
	}
}

// TestStreamRefusals asks for sessions that there cannot be, and for one twice.
func TestStreamRefusals(t *testing.T) {
	if testing.Short() {
		t.Skip("not the happy path")
	}
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	c, created := p.run(t, command("sleep", "1000")), p.create(t, command("true"))
	r, ctx := n.d.Runtime, t.Context()
	exec := func(r *runtimev1.ExecRequest) *runtimev1.ExecRequest {
		r.Cmd, r.Stdout = []string{"true"}, true
		return r
	}
	attach := func(c *container, w wanted) error {
		_, err := r.Attach(ctx, &runtimev1.AttachRequest{ContainerId: c.id, Stdin: w.stdin, Stdout: w.stdout, Stderr: w.stderr, Tty: w.tty})
		return err
	}
	_, err := r.Exec(ctx, exec(&runtimev1.ExecRequest{ContainerId: "ffffffffffff"}))
	wantCode(t, err, codes.NotFound, "ffffffffffff")
	_, err = r.Exec(ctx, exec(&runtimev1.ExecRequest{}))
	wantCode(t, err, codes.InvalidArgument, "container_id")
	_, err = r.Exec(ctx, exec(&runtimev1.ExecRequest{ContainerId: created.id}))
	wantCode(t, err, codes.FailedPrecondition, created.id)
	_, err = r.Exec(ctx, exec(&runtimev1.ExecRequest{ContainerId: c.id, Tty: true, Stderr: true}))
	wantCode(t, err, codes.InvalidArgument, "stderr")
	_, err = r.Exec(ctx, &runtimev1.ExecRequest{ContainerId: c.id, Stdout: true})
	wantCode(t, err, codes.InvalidArgument, "cmd")
	wantCode(t, attach(&container{id: "ffffffffffff"}, wanted{stdout: true}), codes.NotFound, "ffffffffffff")
	wantCode(t, attach(created, wanted{stdout: true}), codes.FailedPrecondition, created.id)
	wantCode(t, attach(c, wanted{}), codes.InvalidArgument, "stdout")
	wantCode(t, attach(c, wanted{stdout: true, tty: true}), codes.InvalidArgument, "tty")
	wantCode(t, attach(c, wanted{stdin: true}), codes.FailedPrecondition, "stdin")
	_, err = r.PortForward(ctx, &runtimev1.PortForwardRequest{PodSandboxId: "ffffffffffff"})
	wantCode(t, err, codes.NotFound, "ffffffffffff")
	_, err = r.PortForward(ctx, &runtimev1.PortForwardRequest{PodSandboxId: p.id, Port: []int32{70000}})
	wantCode(t, err, codes.InvalidArgument, "port")

	w := wanted{stdout: true}
	url := c.execURL(t, w, "echo", "once")
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Errorf("the URL is %s, want one of loopback", url)
	}
	if o := opener(openSPDY).at(t, url, w).finish(t); o.stdout != "once\n" {
		t.Errorf("%+v", o)
	}
	for name, open := range transports {
		if s, err := open(url, w); err == nil {
			s.vanish()
			t.Errorf("%s: the URL works twice", name)
		}
	}
	url = c.attachURL(t, w)
	if _, err := openSPDY(strings.Replace(url, "/attach/", "/exec/", 1), w); err == nil {
		t.Error("a URL of attach works for exec")
	}
	c.stop(t, 0)
}
