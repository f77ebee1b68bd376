package snapshotter

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// victimEnv makes TestMain the process that TestKill kills: it works in the directory of that name.
const victimEnv = "SNAPSHOTTER_TEST_VICTIM"

func TestMain(m *testing.M) {
	if root := os.Getenv(victimEnv); root != "" {
		if err := victim(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// victim makes and removes layers and snapshots of all kinds until it is killed. On standard output it says what it has been
// promised: "ready" at first, "+ name" when a snapshot was made, "- name" before one is removed.
func victim(root string) error {
	s, err := New(root)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	ctx := context.Background()
	for i := 0; ; i++ {
		name := fmt.Sprintf("%d-%d", os.Getpid(), i)
		if err := victimPull(ctx, s, name); err != nil {
			return err
		}
		fmt.Println("+ " + name)
		if _, err := s.Prepare(ctx, name+"-key", name, Volatile()); err != nil {
			return err
		}
		fmt.Println("+ " + name + "-key")
		if _, err := s.Prepare(ctx, name+"-commit", "", snapshots.WithLabels(map[string]string{"l": "v"})); err != nil {
			return err
		}
		if err := s.Commit(ctx, name+"-committed", name+"-commit", snapshots.WithParent(name)); err != nil {
			return err
		}
		fmt.Println("+ " + name + "-committed")
		for _, gone := range []string{name + "-key", name + "-committed", name} {
			if i%3 == 0 {
				break
			}
			fmt.Println("- " + gone)
			if err := s.Remove(ctx, gone); err != nil {
				return err
			}
		}
		if err := s.Cleanup(ctx); err != nil {
			return err
		}
	}
}

func victimPull(ctx context.Context, s *Snapshotter, name string) error {
	l, err := s.Layer(ctx, id(name, name))
	if err != nil {
		return err
	}
	defer l.Release()
	for f := range 5 {
		if err := os.WriteFile(filepath.Join(l.Path(), fmt.Sprint(f)), []byte(name), 0o644); err != nil {
			return err
		}
	}
	if err := l.Commit(ctx, LayerStats{}); err != nil {
		return err
	}
	return s.Chain(ctx, "", []Link{{Name: name, Layer: l}})
}

// TestKill kills the process at any instant, again and again, and checks after each restart that what was promised is
// there, whole, that nothing is broken, and that after Cleanup nothing else is on disk.
func TestKill(t *testing.T) {
	root := t.TempDir()
	promised := map[string]bool{}
	random := rand.New(rand.NewPCG(3, 4))
	for round := range 25 {
		removed := runVictim(t, root, time.Duration(random.IntN(300))*time.Millisecond, promised)
		s := open(t, root, WithLayerGrace(0))
		if problems := s.Problems(t.Context()); len(problems) != 0 {
			t.Fatalf("round %d: problems %v", round, problems)
		}
		for name := range promised {
			if _, err := s.Stat(t.Context(), name); err != nil {
				t.Errorf("round %d: %s was promised: %v", round, name, err)
			}
		}
		for _, name := range removed {
			if _, err := s.Stat(t.Context(), name); !errdefs.IsNotFound(err) {
				t.Errorf("round %d: %s was removed: %v", round, name, err)
			}
		}
		checkPromised(t, s, promised)
		if err := s.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkNoGarbage(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
	if len(promised) == 0 {
		t.Error("no round got far enough to promise anything")
	}
}

// runVictim runs a victim for a while after it is ready, and updates promised. It answers the names of which the removal
// was over when the process was killed.
func runVictim(t *testing.T, root string, life time.Duration, promised map[string]bool) (removed []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimEnv+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	leaving := ""
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		sign, name, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			timer := time.AfterFunc(life, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
			continue
		}
		if leaving != "" {
			removed = append(removed, leaving)
		}
		leaving = ""
		if sign == "+" {
			promised[name] = true
		} else {
			delete(promised, name)
			leaving = name
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("the victim ended by itself: %v", err)
	}
	return removed
}

// checkPromised looks into the layers of what is there.
func checkPromised(t *testing.T, s *Snapshotter, promised map[string]bool) {
	t.Helper()
	for name := range promised {
		dirs, err := s.LayerDirs(t.Context(), name)
		if err != nil {
			t.Errorf("layers of %s: %v", name, err)
			continue
		}
		want := []string{"0", "1", "2", "3", "4"}
		if got := list(t, dirs[len(dirs)-1]); !slices.Equal(got, want) {
			t.Errorf("the layer of %s holds %q", name, got)
		}
	}
}

// checkNoGarbage compares what is on disk with what has a record.
func checkNoGarbage(t *testing.T, s *Snapshotter) {
	t.Helper()
	for _, dir := range []string{layersDir, activeDir} {
		known := s.known(dir)
		found := entries(t, s, dir)
		for _, name := range found {
			n := uint64(0)
			if _, err := fmt.Sscan(name, &n); err != nil || !known[n] {
				t.Errorf("%s/%s is garbage", dir, name)
			}
		}
		if len(found) != len(known) {
			t.Errorf("%s holds %d directories, %d have a record", dir, len(found), len(known))
		}
	}
	wantEntries(t, s, trashDir)
}
