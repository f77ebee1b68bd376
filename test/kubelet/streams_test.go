package kubelet

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
)

// Channels of the protocol v5.channel.k8s.io: the first byte of each message.
const (
	channelStdin  = 0
	channelStdout = 1
	channelStderr = 2
	channelError  = 3
	channelClose  = 255
)

// dial opens a stream through the kubelet's port.
func (k *kubelet) dial(t *testing.T, path, protocol string, query url.Values) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig("wss://"+address+path+"?"+query.Encode(), "https://"+address)
	if err != nil {
		t.Fatal(err)
	}
	config.TlsConfig = &tls.Config{InsecureSkipVerify: true}
	config.Protocol = []string{protocol}
	conn, err := config.DialContext(background(t))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func send(t *testing.T, conn *websocket.Conn, channel byte, data string) {
	t.Helper()
	if err := websocket.Message.Send(conn, append([]byte{channel}, data...)); err != nil {
		t.Fatal(err)
	}
}

// receive collects what comes on each channel until done says that it is enough, or the other side closes.
func receive(t *testing.T, conn *websocket.Conn, done func(map[byte]string) bool) map[byte]string {
	t.Helper()
	got := map[byte]string{}
	for !done(got) {
		var message []byte
		err := websocket.Message.Receive(conn, &message)
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatalf("%v, after %q", err, got)
		}
		if len(message) > 0 {
			got[message[0]] += string(message[1:])
		}
	}
	return got
}

const streamsPod = `apiVersion: v1
kind: Pod
metadata: {name: streams, uid: streams}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: shell, image: IMAGE/e2e-test-images/busybox:1.29-2, stdin: true, command: [sh, -c, "while read line; do echo got $line; done; sleep 1000"]}
  - {name: web, image: IMAGE/e2e-test-images/httpd:2.4.39-4}
`

// TestStreams: exec, attach, port-forward and logs through the kubelet's HTTPS port.
func TestStreams(t *testing.T) {
	agent.run(t, "streams", streamsPod)
	agent.untilReady(t, "streams")
	t.Run("exec", func(t *testing.T) {
		conn := agent.dial(t, "/exec/default/streams-node/shell", "v5.channel.k8s.io", url.Values{
			"command": {"sh", "-c", "cat; echo bad >&2; exit 7"}, "input": {"1"}, "output": {"1"}, "error": {"1"},
		})
		send(t, conn, channelStdin, "hello\n")
		send(t, conn, channelClose, string([]byte{channelStdin}))
		got := receive(t, conn, func(got map[byte]string) bool { return got[channelError] != "" })
		if got[channelStdout] != "hello\n" || got[channelStderr] != "bad\n" || !strings.Contains(got[channelError], `"7"`) {
			t.Errorf("%q", got)
		}
	})
	t.Run("attach", func(t *testing.T) {
		conn := agent.dial(t, "/attach/default/streams-node/shell", "v5.channel.k8s.io", url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}})
		send(t, conn, channelStdin, "there\n")
		got := receive(t, conn, func(got map[byte]string) bool { return strings.Contains(got[channelStdout], "\n") })
		if got[channelStdout] != "got there\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("port-forward", func(t *testing.T) {
		conn := agent.dial(t, "/portForward/default/streams-node", "v4.channel.k8s.io", url.Values{"port": {"80"}})
		send(t, conn, 0, "GET / HTTP/1.0\r\n\r\n")
		got := receive(t, conn, func(got map[byte]string) bool { return strings.Contains(got[0], "</html>") || len(got[1]) > 2 })
		if !strings.Contains(got[0], "It works!") {
			t.Errorf("%q", got)
		}
	})
	t.Run("logs", func(t *testing.T) {
		agent.until(t, "the log", func() error {
			body, err := agent.get("/containerLogs/default/streams-node/web")
			if err == nil && !bytes.Contains(body, []byte("httpd serves port 80")) {
				err = fmt.Errorf("%q", body)
			}
			return err
		})
	})
}

// TestLogRotation: the kubelet renames a log that has grown, the runtime goes on in a new one, and nothing is lost between.
func TestLogRotation(t *testing.T) {
	agent.run(t, "chatty", `apiVersion: v1
kind: Pod
metadata: {name: chatty, uid: chatty}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: chatty, image: IMAGE/e2e-test-images/busybox:1.29-2, command: [sh, -c, "i=0; while [ $i -lt 4000 ]; do i=$((i+1)); echo line $i; [ $((i%40)) = 0 ] && sleep 0.1; done; sleep 1000"]}
`)
	dir := filepath.Join(place.Dir, "run", "pod-logs", "default_chatty-node_chatty", "chatty")
	agent.until(t, "a rotated log", func() error {
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) < 2 {
			err = fmt.Errorf("%v", entries)
		}
		return err
	})
	agent.until(t, "the last line", func() error {
		body, err := agent.get("/containerLogs/default/chatty-node/chatty?tailLines=1")
		if err == nil && string(body) != "line 4000\n" {
			err = fmt.Errorf("%q", body)
		}
		return err
	})
}
