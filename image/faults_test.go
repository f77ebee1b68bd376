package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fault spoils the answers of a registry that has an image with the layer l.
type fault func(w http.ResponseWriter, r *http.Request, l testLayer, next http.Handler) bool

// ofBlob limits a fault to downloads of the layer, and counts them from 1.
func ofBlob(f func(w http.ResponseWriter, r *http.Request, l testLayer, n int) bool) fault {
	var n atomic.Int32
	return func(w http.ResponseWriter, r *http.Request, l testLayer, _ http.Handler) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, l.Digest.String()) {
			return false
		}
		return f(w, r, l, int(n.Add(1)))
	}
}

// ofManifest does so for questions for manifests.
func ofManifest(f func(w http.ResponseWriter, r *http.Request, n int, next http.Handler) bool) fault {
	var n atomic.Int32
	return func(w http.ResponseWriter, r *http.Request, _ testLayer, next http.Handler) bool {
		return strings.Contains(r.URL.Path, "/manifests/") && f(w, r, int(n.Add(1)), next)
	}
}

// from is the byte that a request asks to begin at.
func from(r *http.Request) (offset int) {
	_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &offset)
	return offset
}

// part sends some bytes of the rest of a blob as an answer to a request by range, and resets the connection.
func part(w http.ResponseWriter, r *http.Request, l testLayer, size, total int, header ...string) bool {
	offset := from(r)
	for i := 0; i+1 < len(header); i += 2 {
		w.Header().Set(header[i], header[i+1])
	}
	w.Header().Set("Content-Length", strconv.Itoa(total-offset))
	if r.Header.Get("Range") != "" {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, total-1, total))
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(l.blob[offset:min(offset+size, len(l.blob))])
	if offset+size < len(l.blob) {
		reset(w)
	}
	return true
}

// reset ends a connection without a goodbye, after what was written.
func reset(w http.ResponseWriter) {
	w.(http.Flusher).Flush()
	connection, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	time.Sleep(20 * time.Millisecond) // a reset may overtake the bytes before it
	_ = connection.(*net.TCPConn).SetLinger(0)
	_ = connection.Close()
}

func busy(status int, header ...string) func(w http.ResponseWriter) bool {
	return func(w http.ResponseWriter) bool {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = fmt.Fprint(w, `{"errors":[{"code":"BUSY","message":"come back"}]}`)
		return true
	}
}

// TestFaultsThatHeal has a registry that fails for a while: the pull goes on by itself.
func TestFaultsThatHeal(t *testing.T) {
	twice := func(answer func(http.ResponseWriter) bool) func() fault {
		return func() fault {
			return ofBlob(func(w http.ResponseWriter, _ *http.Request, _ testLayer, n int) bool { return n <= 2 && answer(w) })
		}
	}
	for name, test := range map[string]struct {
		fault func() fault
		least int // downloads of the layer
	}{
		"reset connections": {func() fault {
			return ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, _ int) bool {
				return part(w, r, l, 150_000, len(l.blob))
			})
		}, 4},
		"reset before a byte": {func() fault {
			return ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, n int) bool {
				return n <= 3 && part(w, r, l, 0, len(l.blob))
			})
		}, 4},
		"reset before an answer": {func() fault {
			return ofBlob(func(w http.ResponseWriter, _ *http.Request, _ testLayer, n int) bool {
				if n <= 2 {
					connection, _, _ := w.(http.Hijacker).Hijack()
					_ = connection.Close()
				}
				return n <= 2
			})
		}, 3},
		"ranges are ignored": {func() fault {
			return ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, n int) bool {
				r.Header.Del("Range")
				return part(w, r, l, 150_000*n, len(l.blob))
			})
		}, 4},
		"another ETag each time": {func() fault {
			return ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, n int) bool {
				return part(w, r, l, 150_000, len(l.blob), "ETag", fmt.Sprintf(`"%d"`, n))
			})
		}, 4},
		"429 with seconds": {twice(busy(429, "Retry-After", "1")), 3},
		"429 with a date":  {twice(busy(429, "Retry-After", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))), 3},
		"429 alone":        {twice(busy(429)), 3},
		"500":              {twice(busy(500)), 3},
		"502":              {twice(busy(502)), 3},
		"503":              {twice(busy(503)), 3},
		"504":              {twice(busy(504)), 3},
		"503 for a manifest": {func() fault {
			return ofManifest(func(w http.ResponseWriter, _ *http.Request, n int, _ http.Handler) bool {
				return n <= 2 && busy(503)(w)
			})
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeRegistry(t)
			l := makeLayer(t, "", map[string]string{"a": strings.Repeat("0123456789", 60_000)})
			pushed := f.push("app", "1", []testLayer{l})
			spoil := test.fault()
			f.setSpoil(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool { return spoil(w, r, l, next) })
			s := openStore(t, Config{})
			mustPull(t, s, pushed.ref)
			if n := f.blobGets(l.Digest); n < test.least {
				t.Errorf("the layer was asked for %d times, the fault had to be met %d times", n, test.least)
			}
			assertNothingHalfMade(t, s)
		})
	}
}

// TestFaultsThatStay has a registry that fails for good: the error says what, nothing is left, and once the registry is well
// the same pull succeeds.
func TestFaultsThatStay(t *testing.T) {
	flip := func(l testLayer) testLayer {
		l.blob = append([]byte(nil), l.blob...)
		l.blob[len(l.blob)/2] ^= 1
		return l
	}
	for name, test := range map[string]struct {
		fault fault
		kind  func(error) bool
		texts []string
	}{
		"no way on": {ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, n int) bool {
			if n > 1 {
				return part(w, r, l, 0, len(l.blob))
			}
			return part(w, r, l, 1000, len(l.blob))
		}), errdefs.IsUnavailable, []string{"broke off after 1000 of ", "/blobs/sha256:"}},
		"another size after a cut": {ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, n int) bool {
			return part(w, r, l, 1000, len(l.blob)+n-1)
		}), errdefs.IsDataLoss, []string{"its descriptor says"}},
		"another range": {ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, n int) bool {
			if n > 1 {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(l.blob)-1, len(l.blob)))
				w.WriteHeader(http.StatusPartialContent)
				return true
			}
			return part(w, r, l, 1000, len(l.blob))
		}), errdefs.IsDataLoss, []string{"asked for bytes from 1000", `"bytes 0-`}},
		"too long with unannounced": {ofBlob(func(w http.ResponseWriter, _ *http.Request, l testLayer, _ int) bool {
			w.(http.Flusher).Flush() // in chunks, without a length
			_, _ = w.Write(append(l.blob[:len(l.blob):len(l.blob)], 0))
			return true
		}), errdefs.IsDataLoss, []string{"goes on after"}},
		"too short with unannounced": {ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, _ int) bool {
			end := len(l.blob) - 10
			if from(r) > 0 {
				return busy(416)(w)
			}
			w.(http.Flusher).Flush()
			_, _ = w.Write(l.blob[:end])
			return true
		}), errdefs.IsDataLoss, []string{"416"}},
		"corrupt on the way": {ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, _ int) bool {
			return part(w, r, flip(l), len(l.blob), len(l.blob))
		}), errdefs.IsDataLoss, []string{"has the digest"}},
		"encoded": {ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, _ int) bool {
			return part(w, r, l, len(l.blob), len(l.blob), "Content-Encoding", "gzip")
		}), errdefs.IsDataLoss, []string{`encoding "gzip"`}},
		"busy for good": {ofBlob(func(w http.ResponseWriter, _ *http.Request, _ testLayer, _ int) bool {
			return busy(503, "Retry-After", "0")(w)
		}), errdefs.IsUnavailable, []string{"503", "BUSY: come back"}},
		"busy for a day": {ofBlob(func(w http.ResponseWriter, _ *http.Request, _ testLayer, _ int) bool {
			return busy(429, "Retry-After", "86400")(w)
		}), errdefs.IsUnavailable, []string{"429", "asks to wait for 24h"}},
		"gone":      {ofBlob(func(w http.ResponseWriter, _ *http.Request, _ testLayer, _ int) bool { return busy(404)(w) }), errdefs.IsNotFound, []string{"404"}},
		"forbidden": {ofBlob(func(w http.ResponseWriter, _ *http.Request, _ testLayer, _ int) bool { return busy(403)(w) }), errdefs.IsPermissionDenied, []string{"403", "come back"}},
		"manifest with other size": {ofManifest(func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) bool {
			if r.Method == http.MethodHead {
				next.ServeHTTP(lying{w, "Content-Length", "99999"}, r)
			}
			return r.Method == http.MethodHead
		}), errdefs.IsDataLoss, []string{"its descriptor says 99999"}},
		"manifest with other digest": {ofManifest(func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) bool {
			if r.Method == http.MethodGet {
				recorded := recordedBody(r, next)
				recorded[len(recorded)-3] ^= 1
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				_, _ = w.Write(recorded)
			}
			return r.Method == http.MethodGet
		}), errdefs.IsDataLoss, []string{"has the digest"}},
		"manifest with no digest": {ofManifest(func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) bool {
			next.ServeHTTP(lying{w, "Docker-Content-Digest", "sha256:../../etc"}, r)
			return true
		}), errdefs.IsDataLoss, []string{"which is no digest"}},
		"manifest with other type": {ofManifest(func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) bool {
			next.ServeHTTP(lying{w, "Content-Type", ocispec.MediaTypeImageIndex}, r)
			return true
		}), errdefs.IsInvalidArgument, []string{"the registry says it is a"}},
		"manifest with a page": {ofManifest(func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) bool {
			next.ServeHTTP(lying{w, "Content-Type", "text/html"}, r)
			return true
		}), errdefs.IsInvalidArgument, []string{`"text/html", not an image`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeRegistry(t)
			l := makeLayer(t, "gzip", map[string]string{"a": noise(100_000)})
			pushed := f.push("app", "1", []testLayer{makeLayer(t, "zstd", map[string]string{"b": "b"}), l})
			f.setSpoil(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool { return test.fault(w, r, l, next) })
			s := openStore(t, Config{})
			_, err := s.Pull(t.Context(), pushed.ref, PullOptions{})
			if err == nil || !test.kind(err) || !strings.Contains(err.Error(), pushed.ref) {
				t.Errorf("error: %v", err)
			}
			for _, text := range test.texts {
				if !strings.Contains(fmt.Sprint(err), text) {
					t.Errorf("%q is not in the error: %v", text, err)
				}
			}
			assertNothingHalfMade(t, s)
			assertEmpty(t, s)
			f.setSpoil(nil)
			mustPull(t, s, pushed.ref)
		})
	}
}

// noise is text that does not compress much.
func noise(size int) string {
	var b strings.Builder
	for x := uint32(1); b.Len() < size; {
		x = x*1664525 + 1013904223
		fmt.Fprintf(&b, "%08x", x)
	}
	return b.String()[:size]
}

// lying replaces a header of an answer.
type lying struct {
	http.ResponseWriter
	key, value string
}

func (l lying) WriteHeader(status int) {
	l.Header().Set(l.key, l.value)
	l.ResponseWriter.WriteHeader(status)
}

type recorder struct {
	header http.Header
	data   []byte
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(int)             {}
func (r *recorder) Write(p []byte) (int, error) { r.data = append(r.data, p...); return len(p), nil }
func recordedBody(r *http.Request, next http.Handler) []byte {
	w := &recorder{header: http.Header{}}
	next.ServeHTTP(w, r)
	return w.data
}

// TestSlowIsNoStandstill sends a layer in drops, each within the time without progress, for several times that.
func TestSlowIsNoStandstill(t *testing.T) {
	f := newFakeRegistry(t)
	l := makeLayer(t, "", map[string]string{"a": strings.Repeat("a", 20_000)})
	pushed := f.push("app", "1", []testLayer{l})
	spoil := ofBlob(func(w http.ResponseWriter, _ *http.Request, l testLayer, _ int) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(l.blob)))
		for at := 0; at < len(l.blob); at += 2000 {
			_, _ = w.Write(l.blob[at:min(at+2000, len(l.blob))])
			w.(http.Flusher).Flush()
			time.Sleep(200 * time.Millisecond)
		}
		return true
	})
	f.setSpoil(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool { return spoil(w, r, l, next) })
	s := openStore(t, Config{NoProgress: 1200 * time.Millisecond})
	began := time.Now()
	mustPull(t, s, pushed.ref)
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("it was not slow: %s", took)
	}
}

// TestStandstillEverywhere has a registry that falls silent at each place: the pull ends, and a later one succeeds.
func TestStandstillEverywhere(t *testing.T) {
	silent := func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	for name, test := range map[string]fault{
		"no answer for a manifest": ofManifest(func(w http.ResponseWriter, r *http.Request, _ int, _ http.Handler) bool { return silent(w, r) }),
		"no answer for a layer":    ofBlob(func(w http.ResponseWriter, r *http.Request, _ testLayer, _ int) bool { return silent(w, r) }),
		"a layer that stops": ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, _ int) bool {
			w.Header().Set("Content-Length", strconv.Itoa(len(l.blob)))
			_, _ = w.Write(l.blob[:1000])
			w.(http.Flusher).Flush()
			return silent(w, r)
		}),
		"a layer without an end": ofBlob(func(w http.ResponseWriter, r *http.Request, l testLayer, _ int) bool {
			_, _ = w.Write(l.blob)
			w.(http.Flusher).Flush()
			return silent(w, r)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeRegistry(t)
			l := makeLayer(t, "", map[string]string{"a": strings.Repeat("a", 20_000)})
			pushed := f.push("app", "1", []testLayer{l})
			f.setSpoil(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool { return test(w, r, l, next) })
			s := openStore(t, Config{NoProgress: 500 * time.Millisecond})
			_, err := s.Pull(t.Context(), pushed.ref, PullOptions{})
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no byte moved for 500ms") {
				t.Errorf("error: %v", err)
			}
			assertEmpty(t, s)
			f.setSpoil(nil)
			mustPull(t, s, pushed.ref)
		})
	}
}
