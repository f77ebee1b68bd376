package image

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// du is what a directory takes on disk, by the program of that name.
func du(t *testing.T, dir string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "-B1", dir).Output()
	must(t, err)
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	must(t, err)
	return n
}

// noisyFiles are files that do not compress, of all sizes up to 64 KiB.
func noisyFiles(seed uint64, count int) map[string]string {
	r := rand.New(rand.NewPCG(seed, 1))
	files := map[string]string{}
	for i := range count {
		data := make([]byte, r.IntN(64<<10))
		for j := range data {
			data[j] = byte(r.Uint32())
		}
		files[fmt.Sprintf("noise-%d/%d/%d", seed, i%7, i)] = string(data)
	}
	return files
}

// TestFsInfo compares what the store says that it takes with what it takes, and sees that images which share a layer on
// different bases take one copy of it.
func TestFsInfo(t *testing.T) {
	f := newFakeRegistry(t)
	shared := makeLayer(t, "gzip", noisyFiles(1, 200))
	one := f.push("one", "1", []testLayer{makeLayer(t, "gzip", noisyFiles(2, 20)), shared})
	two := f.push("two", "1", []testLayer{makeLayer(t, "zstd", noisyFiles(3, 20)), shared})
	s := openStore(t, Config{})
	var before [2]int64
	for i, ref := range []string{one.ref, two.ref} {
		mustPull(t, s, ref)
		info, err := s.FsInfo(t.Context())
		must(t, err)
		if real, said := du(t, s.config.Root), int64(info.Bytes); said < real-real/100 || said > real+real/100 {
			t.Errorf("the store says %d bytes, du %d: %.2f %%", said, real, float64(said-real)*100/float64(real))
		}
		before[i] = int64(info.Bytes)
	}
	if grown := before[1] - before[0]; grown*4 > before[0] {
		t.Errorf("the second image takes %d bytes, the first %d: the layer that they share is there twice", grown, before[0])
	}
	if got := f.blobGets(shared.Digest); got != 1 {
		t.Errorf("the layer was fetched %d times", got)
	}
	must(t, s.Remove(t.Context(), one.id))
	assertSound(t, s, 1, 2)
	must(t, s.Remove(t.Context(), two.id))
	assertEmpty(t, s)
}

func TestDiscardUnpacked(t *testing.T) {
	f, to := newFakeRegistry(t), newFakeRegistry(t)
	image := f.push("app", "1", []testLayer{makeLayer(t, "gzip", map[string]string{"dir/file": "1"}), implyingLayer(t)})
	s := openStore(t, Config{DiscardUnpacked: true})
	mustPull(t, s, image.ref)
	ctx := s.storeContext(t.Context())
	for _, l := range image.layers {
		if _, err := s.content.Info(ctx, l.Digest); !errdefs.IsNotFound(err) {
			t.Errorf("the blob of a layer is there: %v", err)
		}
	}
	assertNothingHalfMade(t, s)
	if pushed, err := s.Push(t.Context(), image.ref, PushOptions{To: to.host + "/copy:1"}); err != nil || pushed.Uploaded != 4 {
		t.Fatalf("pushed %+v, %v", pushed, err)
	}
	assertSame(t, f, "app:1", to, "copy:1")
	if sum, found := check(t, s, CheckOptions{}); len(found) > 0 || sum.Unverified != 2 || sum.Absent != 2 {
		t.Errorf("%+v, %+v", sum, found)
	}
	if sum, found := check(t, s, CheckOptions{Repair: true}); len(found) > 0 || sum.Unverified != 0 {
		t.Errorf("%+v, %+v", sum, found)
	}
	f.blob(image.layers[0].Digest, []byte("another"))
	f.push("bad", "1", []testLayer{{Descriptor: image.layers[0].Descriptor, diffID: image.layers[1].diffID, blob: image.layers[0].blob}})
	if _, err := s.Pull(t.Context(), f.host+"/bad:1", PullOptions{}); !errdefs.IsDataLoss(err) {
		t.Errorf("a layer that is another: %v", err)
	}
	members, id := savedImage(t, "saved:1")
	if _, err := s.Import(t.Context(), strings.NewReader(string(makeArchive(t, members...))), ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	must(t, s.gc.run(ctx))
	if pushed, err := s.Push(t.Context(), id, PushOptions{To: to.host + "/saved:1"}); err != nil || pushed.Uploaded != 4 {
		t.Errorf("an imported image keeps its blobs: %+v, %v", pushed, err)
	}
	must(t, s.Remove(t.Context(), id))
	must(t, s.Remove(t.Context(), image.id))
	assertEmpty(t, s)
}
