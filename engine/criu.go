package engine

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// criuCheck bounds `criu check`, which takes milliseconds.
const criuCheck = 20 * time.Second

// criuProbe remembers that criu works here. One that does not is looked at again the next time: it may have been installed.
type criuProbe struct {
	mu   sync.Mutex
	path string // "": not known to work
}

// criu is the path of a criu that works on this kernel; errdefs.ErrFailedPrecondition says what is missing.
func (e *Engine) criu(ctx context.Context) (string, error) {
	e.probe.mu.Lock()
	known := e.probe.path
	e.probe.mu.Unlock()
	if known != "" {
		return known, nil
	}
	path, err := exec.LookPath(e.cfg.Criu)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", fmt.Errorf("checkpoint and restore need criu, which is not here (%w): install it, or set checkpoint.criu: %w",
			err, errdefs.ErrFailedPrecondition)
	}
	if err := checkCriu(ctx, path); err != nil {
		return "", fmt.Errorf("%s cannot be used: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	}
	e.probe.mu.Lock()
	e.probe.path = path
	e.probe.mu.Unlock()
	return path, nil
}

// leastCriu is the oldest criu with all that we ask of it: nftables to lock the network, and cgroup v2's freezer.
var leastCriu = [2]int{3, 17}

var criuVersion = regexp.MustCompile(`(?m)^Version: (\d+)\.(\d+)`)

// checkCriu asks criu for its version, and whether it works on this kernel.
func checkCriu(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, criuCheck)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("criu --version: %w: %s", err, lastLine(out))
	}
	if err := criuNewEnough(string(out)); err != nil {
		return err
	}
	out, err = exec.CommandContext(ctx, path, "check", "--no-default-config").CombinedOutput()
	if err != nil {
		return fmt.Errorf("criu check: %w: %s", err, lastLine(out))
	}
	return nil
}

// criuNewEnough reads the answer to criu --version.
func criuNewEnough(text string) error {
	match := criuVersion.FindStringSubmatch(text)
	if match == nil {
		return errors.New("criu --version says no version")
	}
	var have [2]int
	for i := range have {
		if _, err := fmt.Sscan(match[i+1], &have[i]); err != nil {
			return fmt.Errorf("criu --version: %w", err)
		}
	}
	if have[0] < leastCriu[0] || have[0] == leastCriu[0] && have[1] < leastCriu[1] {
		return fmt.Errorf("it is version %d.%d; %d.%d is needed", have[0], have[1], leastCriu[0], leastCriu[1])
	}
	return nil
}

// lastLine is what a program said last, which is mostly why it failed.
func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	line := lines[len(lines)-1]
	return line[:min(len(line), 300)]
}
