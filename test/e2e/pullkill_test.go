package e2e

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var pullKills = flag.Int("pull-kills", 10, "how often TestKillPull kills the daemon")

// TestKillPull kills the daemon with SIGKILL at a random moment of a pull, again and again, and pulls again: each file of the
// image is right, nothing is left that no record is about, and no blob that was complete is fetched again.
func TestKillPull(t *testing.T) {
	n := imagesNode(t)
	r := newSlowRegistry(t)
	const seed = 7
	random := rand.New(rand.NewPCG(seed, seed))
	amid, complete := 0, 0
	for i := range *pullKills {
		layers, name := randomImage(t, r, random, i)
		r.setPause(4 * time.Millisecond)
		pulled := make(chan struct{})
		go func() {
			defer close(pulled)
			ctx, cancel := callContext()
			defer cancel()
			_, _ = n.d.Images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: name}}) // it is to be killed
		}()
		wait := time.Duration(random.Int64N(int64(1400 * time.Millisecond)))
		if i%2 == 1 { // some layers are to be there, however slow the machine is
			awaitBlob(n.d.RootDir, layers)
			wait /= 4
		}
		time.Sleep(wait)
		n.d.Kill()
		<-pulled
		r.setPause(0)

		recorded := records(t, n.d.RootDir)
		before := map[digest.Digest]int64{}
		had := 0
		for _, l := range layers {
			if recorded.blobs[l.Digest] {
				before[l.Digest] = r.sentOf(l.Digest)
				had++
			}
		}
		if had > 0 {
			complete++
		}
		if had < len(layers) {
			amid++
		}
		if err := n.d.Start(t.Context()); err != nil {
			t.Fatalf("kill %d after %s: %v", i, wait, err)
		}
		pullNamed(t, n, name)
		for d, sent := range before {
			if now := r.sentOf(d); now != sent {
				t.Errorf("kill %d after %s: %d bytes of a blob that was complete were fetched again", i, wait, now-sent)
			}
		}
		if err := n.d.Stop(); err != nil {
			t.Fatal(err)
		}
		checkStore(t, n.d.RootDir, layers)
		if t.Failed() {
			t.Fatalf("kill %d of %d, after %s (seed %d)", i, *pullKills, wait, seed)
		}
		if err := n.d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("of %d kills %d were before the last layer was there, %d after the first", *pullKills, amid, complete)
	if amid < *pullKills/4 || complete < *pullKills/4 {
		t.Errorf("too few kills are amid a pull: %d with layers missing, %d with some there", amid, complete)
	}
}

// awaitBlob waits until a layer's blob is complete, or for 20 s.
func awaitBlob(root string, layers []madeLayer) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		for _, l := range layers {
			if _, err := os.Stat(filepath.Join(root, "content", "blobs", "sha256", l.Digest.Encoded())); err == nil {
				return
			}
		}
	}
}

// imagesNode is a daemon for one test that has no pods. What is left of images is the test's to look at.
func imagesNode(t *testing.T) *node {
	t.Helper()
	if shared != nil { // a place has one daemon at a time
		if err := shared.shutdown(); err != nil {
			t.Errorf("the end of the shared daemon: %v", err)
		}
		shared = nil
	}
	d, err := place.NewDaemon(t.Context(), fmt.Sprintf("n%d", sequence.Add(1)))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{d: d, logs: filepath.Join(filepath.Dir(d.RootDir), "logs")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log ends with\n%s", n.d.LogTail(40))
		}
		if err := n.shutdown(); err != nil {
			t.Errorf("the end of the daemon: %v", err)
		}
	})
	return n
}

// randomImage has layers of very different sizes, with content that no other image has.
func randomImage(t *testing.T, r *slowRegistry, random *rand.Rand, number int) ([]madeLayer, string) {
	t.Helper()
	var layers []madeLayer
	for i := range 5 {
		files := map[string]string{}
		for f := range 10 + random.IntN(30) {
			body := make([]byte, random.IntN(8000*(i+1)*(i+1)))
			for at := range body {
				body[at] = byte(random.Uint32())
			}
			files[fmt.Sprintf("layer%d/file%d", i, f)] = string(body)
		}
		layers = append(layers, r.makeLayer(t, []string{"gzip", "zstd"}[i%2], files))
	}
	return layers, r.push(t, fmt.Sprintf("kill/image:%d", number), layers)
}

func pullNamed(t *testing.T, n *node, name string) {
	t.Helper()
	ctx, cancel := callContext()
	defer cancel()
	if _, err := n.d.Images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: name}}); err != nil {
		t.Fatalf("pull %s: %v", name, err)
	}
}

// storeRecords is what the image store of a daemon that does not run has recorded.
type storeRecords struct {
	blobs  map[digest.Digest]bool
	leases []string
	layers map[string]digest.Digest // by number
}

func records(t *testing.T, root string) storeRecords {
	t.Helper()
	s := storeRecords{blobs: map[digest.Digest]bool{}, layers: map[string]digest.Digest{}}
	view := func(path string, look func(*bolt.Tx) error) {
		db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: 5 * time.Second, ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.View(look), db.Close()); err != nil {
			t.Fatal(err)
		}
	}
	view(filepath.Join(root, "meta.db"), func(tx *bolt.Tx) error {
		bucket := tx.Bucket([]byte("v1"))
		if bucket == nil || bucket.Bucket([]byte("criserver")) == nil {
			return errors.New("meta.db is not as containerd's metadata database has it")
		}
		if leases := bucket.Bucket([]byte("criserver")).Bucket([]byte("leases")); leases != nil {
			_ = leases.ForEachBucket(func(name []byte) error { s.leases = append(s.leases, string(name)); return nil })
		}
		content := bucket.Bucket([]byte("criserver")).Bucket([]byte("content"))
		if content == nil || content.Bucket([]byte("blob")) == nil {
			return nil
		}
		return content.Bucket([]byte("blob")).ForEachBucket(func(name []byte) error {
			s.blobs[digest.Digest(name)] = true
			return nil
		})
	})
	view(filepath.Join(root, "snapshots", "snapshots.db"), func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("layers")).ForEach(func(number, text []byte) error {
			var record struct{ Key digest.Digest }
			s.layers[strconv.FormatUint(binary.BigEndian.Uint64(number), 10)] = ""
			err := json.Unmarshal(text, &record)
			s.layers[strconv.FormatUint(binary.BigEndian.Uint64(number), 10)] = record.Key
			return err
		})
	})
	return s
}

// checkStore compares records and files of a store, and the files of an image's layers with what they have to be.
func checkStore(t *testing.T, root string, layers []madeLayer) {
	t.Helper()
	s := records(t, root)
	for _, lease := range s.leases {
		if !strings.HasPrefix(lease, "kept-") {
			t.Errorf("lease %s is left", lease)
		}
	}
	for dir, known := range map[string]func(name string) bool{
		"content/ingest":       func(string) bool { return false },
		"content/blobs/sha256": func(name string) bool { return s.blobs[digest.NewDigestFromEncoded(digest.SHA256, name)] },
		"snapshots/layers":     func(name string) bool { _, ok := s.layers[name]; return ok },
		"snapshots/trash":      func(string) bool { return false },
	} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		for _, entry := range entries {
			if !known(entry.Name()) {
				t.Errorf("%s/%s: nothing is recorded of it", dir, entry.Name())
			}
		}
	}
	for d := range s.blobs {
		text, err := os.ReadFile(filepath.Join(root, "content/blobs/sha256", d.Encoded()))
		if err != nil || digest.FromBytes(text) != d {
			t.Errorf("blob %s: %v, its digest is %s", d, err, digest.FromBytes(text))
		}
	}
	for i, l := range layers {
		dir := ""
		for number, key := range s.layers {
			if key == l.diffID {
				dir = filepath.Join(root, "snapshots/layers", number)
			}
		}
		if dir == "" || !s.blobs[l.Digest] {
			t.Errorf("layer %d: its directory is %q, its blob is recorded: %v", i, dir, s.blobs[l.Digest])
			continue
		}
		compareFiles(t, dir, l.files)
	}
}

// compareFiles wants a directory to have exactly the files that a layer has.
func compareFiles(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	found := 0
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		found++
		name, _ := filepath.Rel(dir, path)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if body, ok := want[name]; !ok || body != string(text) || info.Mode() != 0o640 || info.ModTime().Unix() != 1_700_000_000 {
			t.Errorf("%s: in the image: %v, %d bytes here, %d there, mode %v, time %v", path, ok, len(text), len(body), info.Mode(), info.ModTime())
		}
		return nil
	})
	if err != nil || found != len(want) {
		t.Errorf("%s has %d files, not %d: %v", dir, found, len(want), err)
	}
}

// TestCancelPull cancels calls at random moments of a pull: nothing half-made is left, and another call gets the image.
func TestCancelPull(t *testing.T) {
	n := imagesNode(t)
	r := newSlowRegistry(t)
	random := rand.New(rand.NewPCG(8, 8))
	for i := range 5 {
		layers, name := randomImage(t, r, random, i)
		r.setPause(4 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.Int64N(int64(700*time.Millisecond))))
		_, _ = n.d.Images.PullImage(ctx, &runtimev1.PullImageRequest{Image: &runtimev1.ImageSpec{Image: name}}) // it may have been quick
		cancel()
		r.setPause(0)
		eventually(t, 20*time.Second, func() error {
			entries, err := os.ReadDir(filepath.Join(n.d.RootDir, "content/ingest"))
			if err == nil && len(entries) > 0 {
				err = fmt.Errorf("%d blobs are half written", len(entries))
			}
			return err
		})
		pullNamed(t, n, name)
		if i < 4 {
			continue
		}
		if err := n.d.Stop(); err != nil {
			t.Fatal(err)
		}
		checkStore(t, n.d.RootDir, layers)
		if err := n.d.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
