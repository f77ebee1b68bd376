package e2e

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rawValue is a value that is no text.
func rawValue(c *runtimev1.ContainerConfig) {
	c.Envs = []*runtimev1.KeyValue{{Key: "RAW", Value: []byte("a\xff\xfe=\n\xc3\x28z")}, {Key: "PLAIN", Value: []byte("ü")}}
}

// printsRaw prints the value, and what else is in the environment, in hexadecimal digits.
const printsRaw = `printf %s "$RAW" | od -An -tx1 | tr -d ' \n'; printf ' %s\n' "$PLAIN"`

const rawPrinted = "61fffe3d0ac3287a ü\n"

// TestEnvironmentOfBytes has a value that is not UTF-8 reach the container's process and its execs, whatever of ours dies in between.
func TestEnvironmentOfBytes(t *testing.T) {
	nativeOnly(t)
	n := ownNode(t)
	p := n.runPod(t)
	c := p.run(t, command("sleep", "1000"), rawValue)
	if got := c.output(t, "sh", "-c", "od -An -v -tx1 </proc/1/environ | tr -d ' \\n'"); !strings.Contains(got, "5241573d61fffe3d0ac3287a00") {
		t.Errorf("the process has %s", got)
	}
	check := func(after string) {
		t.Helper()
		if got := c.output(t, "sh", "-c", printsRaw); got != rawPrinted {
			t.Errorf("%s: an exec has %q, want %q", after, got, rawPrinted)
		}
	}
	check("at first")
	// Made by one daemon, started through the next one and another shim.
	later := p.create(t, command("sh", "-c", printsRaw), rawValue)
	for _, which := range []killed{{daemon: true}, {shim: true}, {shim: true, keeper: true, daemon: true}} {
		n.kill(t, which)
		n.recovered(t, which)
		check("after a death")
	}
	later.start(t)
	later.wait(t, 10*time.Second)
	if got := later.logText(t, "stdout"); got != rawPrinted {
		t.Errorf("a process has %q, want %q", got, rawPrinted)
	}
}

// TestEnvironmentOfBytesRefused is of a handler whose program takes JSON.
func TestEnvironmentOfBytesRefused(t *testing.T) {
	n := sharedNode(t)
	name, _, ok := strings.Cut(place.Runtimes, "=")
	if !ok {
		t.Skip("no program with runc's command line is here")
	}
	useHandler(t, name)
	p := n.runPod(t)
	_, err := p.tryCreate(rawValue)
	wantCode(t, err, codes.InvalidArgument, `"RAW" is not UTF-8`)
	p.run(t, command("sleep", "1000"), func(c *runtimev1.ContainerConfig) {
		c.Envs = []*runtimev1.KeyValue{{Key: "PLAIN", Value: []byte("ü")}}
	})
}
