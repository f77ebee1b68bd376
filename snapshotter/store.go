package snapshotter

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The buckets of snapshots.db. Values are JSON.
var (
	layersBucket    = []byte("layers")    // number (8 bytes, big endian) -> layerRecord
	snapshotsBucket = []byte("snapshots") // name -> snapshotRecord
)

type layerRecord struct {
	Key         digest.Digest `json:"key,omitempty"`
	Size        int64         `json:"size"`
	Inodes      int64         `json:"inodes"`
	RootImplied bool          `json:"rootImplied,omitempty"`
	Opaque      bool          `json:"opaque,omitempty"`
	Created     time.Time     `json:"created"`
	// Retired are the snapshots that may have a directory mounted that was replaced.
	Retired []string `json:"retired,omitempty"`
}

type snapshotRecord struct {
	Parent  string            `json:"parent,omitempty"`
	Layer   uint64            `json:"layer"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
}

// store is snapshots.db: committed layers and snapshots. What it answers to write calls is durable.
type store struct{ db *bolt.DB }

func openStore(path string) (*store, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType, NoStatistics: true})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("%s is locked by another process, stop that one or choose another root directory: %w", path, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(layersBucket)
		if err == nil {
			_, err = tx.CreateBucketIfNotExists(snapshotsBucket)
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make buckets of %s: %w", path, err), db.Close())
	}
	return &store{db}, nil
}

func (s *store) close() error { return s.db.Close() }

// change is a set of writes that are made together or not at all.
type change struct {
	putLayers     map[uint64]layerRecord
	putSnapshots  map[string]snapshotRecord
	dropLayers    []uint64
	dropSnapshots []string
}

func (s *store) apply(c change) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		layers, names := tx.Bucket(layersBucket), tx.Bucket(snapshotsBucket)
		for n, record := range c.putLayers {
			if err := put(layers, numberKey(n), record); err != nil {
				return err
			}
		}
		for name, record := range c.putSnapshots {
			if err := put(names, []byte(name), record); err != nil {
				return err
			}
		}
		for _, n := range c.dropLayers {
			if err := layers.Delete(numberKey(n)); err != nil {
				return err
			}
		}
		for _, name := range c.dropSnapshots {
			if err := names.Delete([]byte(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// relabel replaces the labels of a snapshot that is there.
func (s *store) relabel(name string, labels map[string]string, updated time.Time) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		names := tx.Bucket(snapshotsBucket)
		data := names.Get([]byte(name))
		if data == nil {
			return fmt.Errorf("snapshot %q: %w", name, errdefs.ErrNotFound)
		}
		var record snapshotRecord
		if err := json.Unmarshal(data, &record); err != nil {
			return fmt.Errorf("record of snapshot %q: %w", name, err)
		}
		record.Labels, record.Updated = labels, updated
		return put(names, []byte(name), record)
	})
}

func put(bucket *bolt.Bucket, key []byte, record any) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return bucket.Put(key, data)
}

// read answers all records. Those that cannot be decoded are answered as problems.
func (s *store) read() (layers map[uint64]layerRecord, names map[string]snapshotRecord, problems []error, err error) {
	layers, names = map[uint64]layerRecord{}, map[string]snapshotRecord{}
	err = s.db.View(func(tx *bolt.Tx) error {
		err := tx.Bucket(layersBucket).ForEach(func(k, v []byte) error {
			var record layerRecord
			if err := json.Unmarshal(v, &record); err != nil || len(k) != 8 {
				problems = append(problems, fmt.Errorf("record of layer %x is broken: %w", k, errors.Join(err, errdefs.ErrDataLoss)))
				return nil
			}
			layers[binary.BigEndian.Uint64(k)] = record
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Bucket(snapshotsBucket).ForEach(func(k, v []byte) error {
			var record snapshotRecord
			if err := json.Unmarshal(v, &record); err != nil {
				problems = append(problems, fmt.Errorf("record of snapshot %q is broken: %w", k, errors.Join(err, errdefs.ErrDataLoss)))
				return nil
			}
			names[string(k)] = record
			return nil
		})
	})
	return layers, names, problems, err
}

func numberKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
