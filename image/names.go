package image

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	bolt "go.etcd.io/bbolt"

	"github.com/containerd/containerd/v2/core/metadata/boltutil"
)

// Tag gives the image that ref means another name by tag, taking it from the image that has it, if any. It means the same
// manifest or index as ref does.
func (s *Store) Tag(ctx context.Context, ref, name string) error {
	ctx = s.storeContext(ctx)
	named, err := parseName(name)
	if err != nil {
		return err
	}
	if _, tagged := named.(reference.Tagged); !tagged || strings.Contains(named.String(), "@") {
		return fmt.Errorf("tag %s: a name by digest cannot be given, say one by tag: %w", name, errdefs.ErrInvalidArgument)
	}
	s.index.changes.Lock()
	defer s.index.changes.Unlock()
	record, _, err := s.record(ctx, ref)
	if err != nil {
		return fmt.Errorf("tag %s: %w", ref, err)
	}
	if err := s.refusePinned([]string{named.String()}); err != nil {
		if known := s.index.meant([]string{named.String()}, record.Target.Digest); known == nil {
			return fmt.Errorf("tag %s: %w", ref, err)
		}
	}
	manifest, err := s.manifestOf(ctx, record)
	if err == nil {
		err = s.name(ctx, record.Target, manifest, []string{named.String()})
	}
	if err != nil {
		return fmt.Errorf("tag %s: %w", ref, err)
	}
	return nil
}

// Untag takes one name away. With its last one an image goes, as by Remove. errdefs.ErrNotFound when nothing has the name.
func (s *Store) Untag(ctx context.Context, name string) error {
	ctx = s.storeContext(ctx)
	named, err := parseName(name)
	if err != nil {
		return err
	}
	gone, err := s.untag(ctx, named.String())
	if err != nil {
		return fmt.Errorf("untag %s: %w", named, err)
	}
	if !gone {
		return nil
	}
	if err := s.gc.run(ctx); err != nil {
		return fmt.Errorf("image %s is removed, some of its files are not: %w", named, err)
	}
	return nil
}

func (s *Store) untag(ctx context.Context, name string) (gone bool, err error) {
	s.index.changes.Lock()
	defer s.index.changes.Unlock()
	s.index.mu.RLock()
	known, ok := s.index.byName[name]
	s.index.mu.RUnlock()
	if !ok {
		return false, fmt.Errorf("no image has this name: %w", errdefs.ErrNotFound)
	}
	if err := s.refusePinned([]string{name}); err != nil {
		return false, err
	}
	if names := s.index.names(known.id); len(names) == 1 {
		if err := s.refusePinned([]string{known.id}); err != nil {
			return false, err
		}
	}
	if err := s.deleteNames(ctx, []string{name}); err != nil {
		return false, err
	}
	left := s.index.drop([]string{name})
	s.forget(left)
	return len(left) > 0, nil
}

// deleteNames removes records, all or none.
func (s *Store) deleteNames(ctx context.Context, names []string) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, name := range names {
			if err := s.images.Delete(boltutil.WithTransaction(ctx, tx), name); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
}

// refusePinned is an error when one of the names or IDs is pinned by the configuration and means an image.
func (s *Store) refusePinned(names []string) error {
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	for _, name := range names {
		_, isName := s.index.byName[name]
		if s.index.pinned[name] && (isName || s.index.byID[name] != nil) {
			return fmt.Errorf("%s is pinned; take it out of image.pinned in the configuration first: %w", name, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}
