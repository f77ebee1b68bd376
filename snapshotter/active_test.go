package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func mustMounts(t testing.TB, s *Snapshotter, key string) []mount.Mount {
	t.Helper()
	mounts, err := s.Mounts(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

// oneLayer is a snapshotter with the committed snapshot "base".
func oneLayer(t testing.TB, opts ...Option) *Snapshotter {
	t.Helper()
	s := open(t, t.TempDir(), opts...)
	l := addLayer(t, s, id("base", "base"), "f")
	mustChain(t, s, "", Link{Name: "base", Layer: l})
	l.Release()
	return s
}

func TestMountOptions(t *testing.T) {
	s := oneLayer(t)
	top := addLayer(t, s, id("top", "top"), "g")
	mustChain(t, s, "base", Link{Name: "top", Layer: top})
	view := func(key, parent string) []mount.Mount {
		mounts, err := s.View(t.Context(), key, parent)
		if err != nil {
			t.Fatal(err)
		}
		return mounts
	}
	for name, c := range map[string]struct {
		got  []mount.Mount
		want string
	}{
		"active":          {mustPrepare(t, s, "a3", "top"), "overlay overlay workdir=R/active/3/work,upperdir=R/active/3/fs,lowerdir=R/layers/2:R/layers/1,index=off"},
		"volatile":        {mustPrepare(t, s, "a4", "base", Volatile()), "overlay overlay workdir=R/active/4/work,upperdir=R/active/4/fs,lowerdir=R/layers/1,index=off,volatile"},
		"without parent":  {mustPrepare(t, s, "a5", ""), "bind R/active/5/fs rw,rbind"},
		"view":            {view("v6", "top"), "overlay overlay lowerdir=R/layers/2:R/layers/1,index=off"},
		"view of a layer": {view("v7", "base"), "bind R/layers/1 ro,rbind"},
		"view of nothing": {view("v8", ""), "bind R/active/8/fs ro,rbind"},
	} {
		var got []string
		for _, m := range c.got {
			got = append(got, fmt.Sprintf("%s %s %s", m.Type, m.Source, strings.Join(m.Options, ",")))
		}
		if want := strings.ReplaceAll(c.want, "R/", s.root+"/"); strings.Join(got, "; ") != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	before := mustMounts(t, s, "a3")
	s = reopen(t, s)
	if after := mustMounts(t, s, "a3"); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("mounts after a restart are %v, want %v", after, before)
	}
	if _, err := s.Mounts(t.Context(), "top"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("mounts of a committed snapshot: %v", err)
	}
}

// TestVolatile mounts a volatile snapshot twice, which Linux refuses as long as the mark of the first mount is there.
func TestVolatile(t *testing.T) {
	s := oneLayer(t)
	mounts := mustPrepare(t, s, "key", "base", Volatile())
	path, unmount := mounted(t, mounts)
	writeFiles(t, path, "written")
	unmount()
	if err := mount.All(mounts, path); err == nil {
		_ = unix.Unmount(path, 0)
		t.Error("Linux mounts a volatile overlay again; Mounts need not care")
	}
	s = reopen(t, s)
	path, unmount = mounted(t, mustMounts(t, s, "key"))
	if got := list(t, path); !slices.Equal(got, []string{"f", "written"}) {
		t.Errorf("after a restart it shows %q", got)
	}
	unmount()
	info, err := s.Stat(t.Context(), "key")
	if err != nil || info.Labels[LabelVolatile] == "" || info.Parent != "base" {
		t.Errorf("after a restart it is %+v, %v", info, err)
	}
	info.Labels = nil
	if _, err := s.Update(t.Context(), info); !errdefs.IsInvalidArgument(err) {
		t.Errorf("taking the volatile label away: %v", err)
	}

	// The same directory after another boot is garbage.
	record := filepath.Join(s.activePath(2), recordName)
	data, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	fields["bootID"] = "another"
	if data, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	if _, err := s.Stat(t.Context(), "key"); !errdefs.IsNotFound(err) {
		t.Errorf("a volatile snapshot of another boot: %v, want it gone", err)
	}
	if problems := s.Problems(t.Context()); len(problems) != 0 {
		t.Errorf("problems: %v; it is no problem", problems)
	}
	mustPrepare(t, s, "key", "base", Volatile())
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, activeDir, "3")
}

func TestDirectoriesWithoutARecordAreGarbage(t *testing.T) {
	s := oneLayer(t)
	mustPrepare(t, s, "key", "base")
	writer, err := s.Layer(t.Context(), id("half", "half"))
	if err != nil {
		t.Fatal(err)
	}
	writeFiles(t, writer.Path(), "half")
	// What a kill leaves: a layer half written, an active snapshot without its record, a removal half done.
	writeFiles(t, s.path(), "active/17/fs/f", "active/17/work/x", "trash/active-18/fs/f", "trash/.deep-layers-19-0/f")
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, layersDir, "1", "3")
	wantEntries(t, s, activeDir, "2")
	wantEntries(t, s, trashDir)
	s = reopen(t, s) // without Release: a kill
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, layersDir, "1")
	wantEntries(t, s, activeDir, "2")
	if got := keys(t, s); got != "base key" {
		t.Errorf("snapshots are %q", got)
	}
}

func TestNumbersAreNotUsedAgainWhileSomethingHasThem(t *testing.T) {
	s := oneLayer(t)
	writeFiles(t, s.path(), "trash/.deep-layers-50-0/f", "layers/30/f", "active/40/fs/f", "layers/not-ours/f")
	s = reopen(t, s)
	mustPrepare(t, s, "key", "base")
	wantEntries(t, s, activeDir, "40", "51")
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, layersDir, "1", "not-ours")
}

func TestBrokenRecordCostsItsSnapshotOnly(t *testing.T) {
	s := oneLayer(t)
	mustPrepare(t, s, "good", "base")
	mustPrepare(t, s, "broken", "base")
	mustPrepare(t, s, "orphan", "base")
	for n, content := range map[uint64]string{3: "{half", 4: `{"key":"orphan","kind":"Active","parent":"gone"}`} {
		if err := os.WriteFile(filepath.Join(s.activePath(n), recordName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = reopen(t, s)
	if got := keys(t, s); got != "base good" {
		t.Errorf("snapshots are %q", got)
	}
	if problems := s.Problems(t.Context()); len(problems) != 2 {
		t.Errorf("problems are %v, want two", problems)
	}
}

// TestCommitIsFinishedAfterAKill has the states that a kill between the steps of a commit leaves.
func TestCommitIsFinishedAfterAKill(t *testing.T) {
	for _, moved := range []bool{false, true} {
		s := oneLayer(t)
		mustPrepare(t, s, "key", "base")
		writeFiles(t, s.activePath(2), "fs/written")
		committed := &node{name: "committed", parent: s.index.nodes["base"], created: now(), updated: now(), labels: nil}
		record := committed.record()
		record.Layer = 2
		err := s.db.apply(change{
			putLayers:    map[uint64]layerRecord{2: {Size: 8192, Inodes: 2}},
			putSnapshots: map[string]snapshotRecord{"committed": record},
		})
		if err != nil {
			t.Fatal(err)
		}
		if moved {
			if err := s.moveUpper(2); err != nil {
				t.Fatal(err)
			}
		}
		s = reopen(t, s)
		if got := keys(t, s); got != "base committed" {
			t.Errorf("snapshots are %q", got)
		}
		if problems := s.Problems(t.Context()); len(problems) != 0 {
			t.Errorf("problems: %v", problems)
		}
		dirs, err := s.LayerDirs(t.Context(), "committed")
		if err != nil || len(dirs) != 2 || !slices.Equal(list(t, dirs[0]), []string{"written"}) {
			t.Errorf("layers are %q, %v", dirs, err)
		}
		wantEntries(t, s, activeDir)
	}
}

func TestCommitWithParent(t *testing.T) {
	s := oneLayer(t)
	mustPrepare(t, s, "based", "base")
	mustPrepare(t, s, "free", "")
	writeFiles(t, s.activePath(3), "fs/g")
	for name, c := range map[string]struct {
		key, parent string
		is          func(error) bool
	}{
		"other parent":   {"based", "elsewhere", errdefs.IsInvalidArgument},
		"unknown parent": {"free", "elsewhere", errdefs.IsNotFound},
		"active parent":  {"free", "based", errdefs.IsInvalidArgument},
	} {
		if err := s.Commit(t.Context(), "new", c.key, snapshots.WithParent(c.parent)); !c.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Commit(t.Context(), "same", "based", snapshots.WithParent("base")); err != nil {
		t.Error(err)
	}
	if err := s.Commit(t.Context(), "new", "free", snapshots.WithParent("base")); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	path, _ := mounted(t, mustPrepare(t, s, "key", "new"))
	if got := list(t, path); !slices.Equal(got, []string{"f", "g"}) {
		t.Errorf("it shows %q", got)
	}
}

func TestIDMappingsChownTheUpperDirectory(t *testing.T) {
	requireRoot(t)
	s := oneLayer(t)
	labels := func(uid, gid string) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: uid, snapshots.LabelSnapshotGIDMapping: gid})
	}
	mustPrepare(t, s, "key", "base", labels("1:5:9,0:100000:65536", "0:200000:1"))
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(s.activePath(2), "fs"), &st); err != nil || st.Uid != 100000 || st.Gid != 200000 {
		t.Errorf("owner is %d:%d, %v, want 100000:200000", st.Uid, st.Gid, err)
	}
	for _, mapping := range []string{"0", "0:1", "a:b:c", "5:100000:9", "0:100000:0", "0:-1:5", "0:99999999999:1"} {
		if _, err := s.Prepare(t.Context(), "bad", "base", labels(mapping, "0:1:1")); !errdefs.IsInvalidArgument(err) {
			t.Errorf("mapping %q: %v, want it refused", mapping, err)
		}
	}
	wantEntries(t, s, activeDir, "2")
	if got := keys(t, s); got != "base key" {
		t.Errorf("snapshots are %q", got)
	}
}

func TestRemoveAsync(t *testing.T) {
	s := oneLayer(t, WithAsyncRemove())
	mustPrepare(t, s, "key", "base")
	writeFiles(t, s.activePath(2), "fs/f")
	let := make(chan struct{})
	s.behind.do(func() { <-let }) // as a long one before it
	if err := s.Remove(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, trashDir, "active-2")
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, trashDir, "active-2") // it is somebody's already
	close(let)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		entries, err := os.ReadDir(s.path(trashDir))
		if err == nil && len(entries) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("in the trash are still %v, %v", entries, err)
		}
	}
	mustPrepare(t, s, "key", "base")
	if err := s.Remove(t.Context(), "nothing"); !errdefs.IsNotFound(err) {
		t.Errorf("remove what is not there: %v", err)
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, trashDir)
	wantEntries(t, s, activeDir, "3")
}

// TestRemoveAsyncClosed closes before everything is deleted: the next one does that.
func TestRemoveAsyncClosed(t *testing.T) {
	s := oneLayer(t, WithAsyncRemove())
	for range 20 {
		mustPrepare(t, s, "key", "base")
		if err := s.Remove(t.Context(), "key"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, s.root)
	if err := again.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, again, trashDir)
}

func TestNewErrors(t *testing.T) {
	for _, bad := range []string{"a:b", "a,b", `a\b`} {
		if _, err := New(filepath.Join(t.TempDir(), bad)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want it refused", bad, err)
		}
	}
	s := open(t, t.TempDir())
	if _, err := New(s.root); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a root in use: %v", err)
	}
}

func BenchmarkPrepareRemoveVolatile(b *testing.B) {
	s := oneLayer(b)
	for b.Loop() {
		mustPrepare(b, s, "key", "base", Volatile())
		if err := s.Remove(b.Context(), "key"); err != nil {
			b.Fatal(err)
		}
	}
}

// TestConcurrentUse has everything happen to few keys at once; run it with the race detector.
func TestConcurrentUse(t *testing.T) {
	s := oneLayer(t)
	ctx := context.Background()
	expected := func(err error) {
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsAlreadyExists(err) && !errdefs.IsFailedPrecondition(err) && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	var work sync.WaitGroup
	for w := range 4 {
		work.Go(func() {
			for i := range 15 {
				key := fmt.Sprintf("key%d", (w+i)%3)
				var opts []snapshots.Opt
				if i%2 == 0 {
					opts = append(opts, Volatile())
				}
				_, err := s.Prepare(ctx, key, "base", opts...)
				expected(err)
				_, err = s.Mounts(ctx, key)
				expected(err)
				info, err := s.Stat(ctx, key)
				expected(err)
				if err == nil {
					info.Labels = map[string]string{"n": fmt.Sprint(i)}
					_, err = s.Update(ctx, info, "labels.n")
					expected(err)
				}
				_, err = s.Usage(ctx, key)
				expected(err)
				expected(s.Commit(ctx, key+"-committed", key))
				expected(s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }))
				expected(s.Remove(ctx, key+"-committed"))
				expected(s.Remove(ctx, key))
				expected(s.Cleanup(ctx))
			}
		})
	}
	work.Wait()
	for i := range 3 {
		expected(s.Remove(ctx, fmt.Sprintf("key%d", i)))
		expected(s.Remove(ctx, fmt.Sprintf("key%d-committed", i)))
	}
	if got := keys(t, s); got != "base" {
		t.Errorf("snapshots are %q", got)
	}
	checkNoGarbage(t, s)
	if problems := s.Problems(ctx); len(problems) != 0 {
		t.Errorf("problems: %v", problems)
	}
}
