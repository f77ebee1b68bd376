package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/cni/builtin"
	"github.com/criserver/criserver/internal/fsx"
)

// host is the state of a bridge, and those that count on from it, between runs of the plugin: a record for each
// attachment, of any network. A run has it to itself from open to close.
type host struct {
	*builtin.Plugin
	dir     string
	lock    *os.File
	records map[string]*record
}

type record struct {
	BootID      string              `json:"bootID"`
	Network     string              `json:"network"`
	ContainerID string              `json:"containerID"`
	IfName      string              `json:"ifName"`
	Attachment  *builtin.Attachment `json:"attachment"`
}

// key is an id for messages and a file name: CNI keeps slashes out of both parts.
func key(containerID, ifName string) string { return containerID + "@" + ifName }

func (r *record) key() string { return key(r.ContainerID, r.IfName) }

// open waits for other runs. Interfaces and sysctls are the machine's, so the lock is one for the whole state directory.
func open(c *config) (*host, error) {
	dir := filepath.Join(c.StateDir, c.Bridge)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state of bridge %s: %w", c.Bridge, err)
	}
	lock, err := os.OpenFile(filepath.Join(c.StateDir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state of bridge %s: %w", c.Bridge, err)
	}
	n := &host{dir: dir, lock: lock, records: make(map[string]*record)}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		n.close()
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if n.Plugin, err = c.plugin(); err == nil {
		err = n.load()
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *host) close() {
	if n.Plugin != nil {
		_ = n.Plugin.Close(false)
	}
	_ = n.lock.Close()
}

func (n *host) load() error {
	entries, err := os.ReadDir(n.dir)
	if err != nil {
		return fmt.Errorf("records of attachments: %w", err)
	}
	for _, e := range entries {
		name, isRecord := strings.CutSuffix(e.Name(), ".json")
		if !isRecord {
			continue
		}
		r := new(record)
		if err := fsx.ReadJSON(filepath.Join(n.dir, e.Name()), r); err != nil || r.Attachment == nil || r.key() != name {
			fmt.Fprintf(os.Stderr, "record %s/%s is broken and is left out: %v\n", n.dir, e.Name(), err)
			continue
		}
		if r.BootID != fsx.BootID() {
			_ = os.Remove(filepath.Join(n.dir, e.Name()))
			continue
		}
		if err := n.Recover(name, r.Attachment, false, nil); err != nil {
			return err
		}
		n.records[name] = r
	}
	return nil
}

func (n *host) path(r *record) string { return filepath.Join(n.dir, r.key()+".json") }

func (n *host) put(r *record) error {
	n.records[r.key()] = r
	return fsx.ReplaceJSON(n.path(r), r)
}

// remove undoes an attachment. Its record goes last.
func (n *host) remove(r *record) error {
	if err := n.Remove(r.key(), r.Attachment); err != nil {
		return err
	}
	delete(n.records, r.key())
	if err := os.Remove(n.path(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
