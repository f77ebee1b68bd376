package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// diskSize has room for the largest image, packed and unpacked.
const diskSize = 3 << 30

// disk is a file that filesystems are made on, one after the other.
type disk struct{ file, dir string }

// newDisk writes the file whole: blocks that were never written are given out while a pull is measured otherwise.
func newDisk(file, dir string) (*disk, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	chunk := make([]byte, 4<<20)
	for range diskSize / len(chunk) {
		if _, err := f.Write(chunk); err != nil {
			return nil, err
		}
	}
	return &disk{file, dir}, errors.Join(f.Sync(), os.MkdirAll(dir, 0o755))
}

// fresh makes and mounts an empty ext4. The loop device goes with the mount, and that with the namespaces.
func (d *disk) fresh() error {
	device, err := output("losetup", "--direct-io=on", "--show", "-f", d.file)
	if err != nil {
		return err
	}
	// Tables written lazily would be written while a pull is measured.
	_, err = output("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", device)
	if err == nil {
		err = unix.Mount(device, d.dir, "ext4", 0, "")
	}
	_, detach := output("losetup", "-d", device) // when it is no longer in use
	return errors.Join(err, detach)
}

// drop unmounts it.
func (d *disk) drop() error { return unix.Unmount(d.dir, 0) }

func output(program string, args ...string) (string, error) {
	out, err := exec.Command(program, args...).CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, text)
	}
	return text, nil
}
