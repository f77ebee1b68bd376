package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// defaultLayerGrace is how long what was complete of a pull that failed is kept for another try.
const defaultLayerGrace = 15 * time.Minute

// keptPrefix begins the IDs of leases on blobs of pulls that failed or were killed. They end by themselves.
const keptPrefix = "kept-"

var leaseNumber atomic.Uint64

// lease makes a lease and a context in which all that is stored belongs to it. What no image refers to when it is
// released is garbage.
func (s *Store) lease(ctx context.Context) (context.Context, func(), error) {
	leased, lease, err := s.newLease(ctx)
	if err != nil {
		return nil, nil, err
	}
	return leased, func() {
		if err := s.leases.Delete(context.WithoutCancel(ctx), lease); err != nil && !errdefs.IsNotFound(err) {
			s.log.Warn("a lease stays until the next start", "lease", lease.ID, "err", err)
		}
	}, nil
}

// pullLease is as lease, for a pull. When that fails its complete blobs are kept for a while, as its complete layers are.
func (s *Store) pullLease(ctx context.Context) (context.Context, func(failed error), error) {
	leased, lease, err := s.newLease(ctx)
	if err != nil {
		return nil, nil, err
	}
	return leased, func(failed error) {
		ctx := context.WithoutCancel(ctx)
		var err error
		if failed == nil {
			err = s.leases.Delete(ctx, lease)
		} else {
			err = s.retire(ctx, lease)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			s.log.Warn("a lease stays until the next start", "lease", lease.ID, "err", err)
		}
	}, nil
}

func (s *Store) newLease(ctx context.Context) (context.Context, leases.Lease, error) {
	id := fmt.Sprintf("pull-%d-%d", time.Now().UnixNano(), leaseNumber.Add(1))
	lease, err := s.leases.Create(ctx, leases.WithID(id))
	if err != nil {
		return nil, leases.Lease{}, fmt.Errorf("lease: %w", err)
	}
	return leases.WithLease(ctx, id), lease, nil
}

// retire ends a lease and keeps the complete blobs that it has for LayerGrace, after which they are collected.
func (s *Store) retire(ctx context.Context, lease leases.Lease) error {
	grace := s.config.LayerGrace
	kept := 0
	err := s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		resources, err := s.leases.ListResources(ctx, lease)
		if err != nil {
			return err
		}
		if grace < time.Second { // an expiry has no fractions
			resources = nil
		}
		var next leases.Lease
		for _, resource := range resources {
			if resource.Type != "content" {
				continue // what is half written goes now
			}
			if kept++; kept == 1 {
				id := keptPrefix + strings.TrimPrefix(lease.ID, keptPrefix)
				if next, err = s.leases.Create(ctx, leases.WithID(id), leases.WithExpiration(grace)); err != nil {
					return err
				}
			}
			if err := s.leases.AddResource(ctx, next, resource); err != nil {
				return err
			}
		}
		return s.leases.Delete(ctx, lease)
	})
	if err == nil && kept > 0 {
		time.AfterFunc(grace+time.Second, s.gc.kick) // after the store is closed this does nothing
	}
	return err
}

// endLeases ends the leases of pulls that an earlier run did not end. Their complete blobs are kept for a while.
func (s *Store) endLeases(ctx context.Context) error {
	all, err := s.leases.List(ctx)
	if err != nil {
		return err
	}
	for _, lease := range all {
		if strings.HasPrefix(lease.ID, keptPrefix) {
			time.AfterFunc(s.config.LayerGrace+time.Second, s.gc.kick) // it has an end, and that is before then
			continue
		}
		if failed := s.retire(ctx, lease); failed != nil && !errdefs.IsNotFound(failed) {
			err = errors.Join(err, fmt.Errorf("end lease %s: %w", lease.ID, failed))
		}
	}
	return err
}

// sweep removes what an earlier run that was killed left of blobs without a record: the half-written ones, none of which
// anybody will finish, and complete ones of which the kill forestalled the record. It is called before anything is pulled.
// The garbage collection does not see them: it looks at files only after it has removed a record.
func (s *Store) sweep(ctx context.Context) error {
	half, err := os.ReadDir(s.path("content/ingest"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range half {
		if err := os.RemoveAll(filepath.Join(s.path("content/ingest"), entry.Name())); err != nil {
			return err
		}
	}
	recorded := map[digest.Digest]bool{}
	err = s.content.Walk(ctx, func(info content.Info) error { recorded[info.Digest] = true; return nil })
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	var stray []digest.Digest
	err = s.backend.Walk(ctx, func(info content.Info) error {
		if !recorded[info.Digest] {
			stray = append(stray, info.Digest)
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // it has no directory before its first blob
		return fmt.Errorf("list files of blobs: %w", err)
	}
	for _, d := range stray {
		if err := s.backend.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}
