package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// How says by which way a manifest or a blob came to be in a repository.
type How int

// The ways.
const (
	Uploaded How = iota
	Existed      // it was there
	Mounted      // the registry took it from another repository of its own
)

// String is the way in a word.
func (h How) String() string { return [...]string{"uploaded", "existed", "mounted"}[h] }

// sourceAnnotation, with a registry's host, is where containerd's pusher looks for a repository to mount a blob from.
const sourceAnnotation = "containerd.io/distribution.source."

// The bounds of trying an upload again.
const (
	maxUploads       = 4
	maxResets        = 8
	firstUploadDelay = 500 * time.Millisecond
)

// Pusher puts manifests and blobs into the repository. Its methods may be called concurrently.
type Pusher struct {
	repo   *Repository
	host   string
	pusher remotes.Pusher
}

// Pusher prepares to push what top leads to; the reference, which has to be by tag, is given to top alone.
func (r *Repository) Pusher(ctx context.Context, top digest.Digest) (*Pusher, error) {
	named, err := reference.ParseNormalizedNamed(r.ref)
	if err != nil {
		return nil, fmt.Errorf("push to %s: %w: %w", r.ref, errdefs.ErrInvalidArgument, err)
	}
	if _, tagged := named.(reference.Tagged); !tagged {
		return nil, fmt.Errorf("push to %s: give a name by tag: %w", r.ref, errdefs.ErrInvalidArgument)
	}
	pusher, err := r.resolver.Pusher(ctx, r.ref+"@"+top.String())
	if err != nil {
		return nil, fmt.Errorf("push to %s: %w", r.ref, err)
	}
	host, _, _ := strings.Cut(reference.Domain(named), ":") // the pusher looks for it without the port
	return &Pusher{repo: r, host: host, pusher: pusher}, nil
}

// Push puts a manifest or a blob there unless it is there. from, if not "", is a repository of the same registry that may
// have the blob. open is called each time that the content has to be sent, and not when it need not be. What may be better
// later is tried again.
func (p *Pusher) Push(ctx context.Context, d ocispec.Descriptor, from string, open func(context.Context) (io.ReadCloser, error)) (How, error) {
	d = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	if from != "" {
		d.Annotations = map[string]string{sourceAnnotation + p.host: from}
	}
	for attempt, delay := 1, firstUploadDelay; ; attempt, delay = attempt+1, 4*delay {
		how, err := p.once(ctx, d, open)
		if err == nil || ctx.Err() != nil || attempt == maxUploads || !errdefs.IsUnavailable(err) {
			return how, err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return how, context.Cause(ctx)
		}
	}
}

func (p *Pusher) once(ctx context.Context, d ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) (How, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ctx, tried := p.repo.record(ctx)
	what := fmt.Sprintf("%s to %s", d.Digest, p.repo.ref)
	w, err := p.pusher.Push(ctx, d)
	if errdefs.IsAlreadyExists(err) {
		return p.already(tried), nil
	}
	if err != nil {
		return Uploaded, explainPush(ctx, what, tried, err)
	}
	// A write waits for the request, which may have ended before it took anything.
	defer context.AfterFunc(ctx, func() { _ = w.Close() })()
	defer w.Close()
	for resets := 0; ; resets++ {
		err := send(ctx, w, d, open)
		var own *sourceError
		switch {
		case err == nil:
			return Uploaded, nil
		case errors.As(err, &own):
			return Uploaded, own.error
		case !errors.Is(err, content.ErrReset) || resets == maxResets:
			return Uploaded, explainPush(ctx, what, tried, err)
		}
	}
}

// already says which way it was that nothing had to be sent: a mount answers 201 to a POST.
func (p *Pusher) already(tried *trail) How {
	tried.mu.Lock()
	defer tried.mu.Unlock()
	for _, a := range tried.attempts {
		if a.Status == http.StatusCreated {
			return Mounted
		}
	}
	return Existed
}

// sourceError is an error of what is sent, and no fault of the registry's.
type sourceError struct{ error }

type sourceReader struct{ r io.Reader }

func (s sourceReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}

// send writes the content and commits it. content.ErrReset means that the registry wants it from the beginning.
func send(ctx context.Context, w content.Writer, d ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) error {
	r, err := open(ctx)
	if err != nil {
		return &sourceError{err}
	}
	defer r.Close()
	n, err := io.Copy(w, sourceReader{io.LimitReader(r, d.Size+1)})
	if err != nil {
		return err
	}
	if n != d.Size {
		return &sourceError{fmt.Errorf("%s has %d bytes, not %d: %w", d.Digest, n, d.Size, errdefs.ErrDataLoss)}
	}
	return w.Commit(ctx, d.Size, d.Digest)
}

// explainPush is explain in the words of a push.
func explainPush(ctx context.Context, what string, tried *trail, err error) error {
	err = explain(ctx, what, tried, err)
	var own *Error
	if !errors.As(err, &own) {
		return err
	}
	own.verb = "push"
	if n := len(own.Attempts); n > 0 && own.kind == errdefs.ErrUnavailable {
		// The registry has understood, and would say the same again.
		if s := own.Attempts[n-1].Status; s >= 400 && s < 500 && s != http.StatusTooManyRequests && s != http.StatusRequestTimeout {
			own.kind = errdefs.ErrFailedPrecondition
		}
	}
	return err
}

// Nowhere is a repository that has nothing, for what has to be complete without one.
func Nowhere(ref, why string) *Repository {
	return &Repository{ref: ref, hosts: func() ([]docker.RegistryHost, error) {
		return nil, fmt.Errorf("%s: %w", why, errdefs.ErrNotFound)
	}}
}
