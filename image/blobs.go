package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	logrusslog "github.com/sirupsen/logrus/hooks/slog"
)

// namespace is that of all that the store keeps in the metadata database.
const namespace = "criserver"

// storeContext is what containerd's libraries want in a context: the namespace, and where they log. What they say goes
// to the debug level of ours, since every error of theirs comes back to us, too.
func (s *Store) storeContext(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, namespace), s.libraryLog)
}

func libraryLog(to *slog.Logger) *log.Entry {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	if to.Enabled(context.Background(), slog.LevelDebug) {
		logger.SetLevel(logrus.DebugLevel)
		logger.AddHook(logrusslog.NewHook(to, &logrusslog.HookOptions{LevelMapper: func(logrus.Level) slog.Level { return slog.LevelDebug }}))
	} else {
		logger.SetLevel(logrus.PanicLevel)
	}
	return logrus.NewEntry(logger)
}

// ingestRef is the name under which a pull writes a blob. Each pull has its own, so that none waits for another here.
func ingestRef(ctx context.Context, d ocispec.Descriptor) string {
	lease, _ := leases.FromContext(ctx)
	return lease + "-" + d.Digest.String()
}

// stored reads a blob that is here. errdefs.ErrNotFound when it is not, or is broken: then it is removed.
func (s *Store) stored(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if _, err := s.content.Info(ctx, d.Digest); err != nil {
		return nil, err
	}
	data, err := content.ReadBlob(ctx, s.content, ocispec.Descriptor{Digest: d.Digest, Size: d.Size})
	if errdefs.IsNotFound(err) {
		s.discard(ctx, d, "its file is gone")
	}
	if err != nil {
		return nil, err
	}
	if d.Digest.Algorithm().FromBytes(data) == d.Digest {
		return data, nil
	}
	s.discard(ctx, d, "its content does not have its digest")
	return nil, fmt.Errorf("blob %s is broken: %w", d.Digest, errdefs.ErrNotFound)
}

// discard removes a broken blob, so that the next pull fetches it again.
func (s *Store) discard(ctx context.Context, d ocispec.Descriptor, why string) {
	s.log.Warn("a broken blob is removed", "digest", d.Digest, "why", why)
	if err := s.content.Delete(ctx, d.Digest); err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("a broken blob stays", "digest", d.Digest, "err", err)
	}
	// The record is gone, the file is not, and would be taken for the content by the next who writes it.
	if err := s.backend.Delete(ctx, d.Digest); err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("a broken blob stays", "digest", d.Digest, "err", err)
	}
}

// keep stores a blob with labels that refer to others, or adds the labels when it is here.
func (s *Store) keep(ctx context.Context, d ocispec.Descriptor, data []byte, labels map[string]string) error {
	d = ocispec.Descriptor{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
	if err := content.WriteBlob(ctx, s.content, ingestRef(ctx, d), bytes.NewReader(data), d, content.WithLabels(labels)); err != nil {
		return fmt.Errorf("store blob %s: %w", d.Digest, err)
	}
	if len(labels) == 0 {
		return nil
	}
	info, err := s.content.Info(ctx, d.Digest)
	if err != nil {
		return fmt.Errorf("store blob %s: %w", d.Digest, err)
	}
	var fields []string
	for key, value := range labels {
		if info.Labels[key] != value {
			fields = append(fields, "labels."+key)
		}
	}
	if len(fields) == 0 {
		return nil
	}
	if _, err = s.content.Update(ctx, content.Info{Digest: d.Digest, Labels: labels}, fields...); err != nil {
		return fmt.Errorf("label blob %s: %w", d.Digest, err)
	}
	return nil
}

// readAll reads a document of exactly the size that its descriptor says, and verifies its digest.
func readAll(r io.Reader, d ocispec.Descriptor) ([]byte, error) {
	var buffer bytes.Buffer
	if _, err := io.Copy(&buffer, io.LimitReader(r, d.Size+1)); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return buffer.Bytes(), verify(d, int64(buffer.Len()), d.Digest.Algorithm().FromBytes(buffer.Bytes()))
}
