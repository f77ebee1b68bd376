// Package fsx writes and reads the small files in which criserver keeps its records.
package fsx

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

var sequence atomic.Uint64

// Replace writes data to path by way of a temporary file beside it and a rename, so that a reader, or a restart after
// kill -9, sees the old content or the new one. It does not sync: what it writes need not outlive a power loss.
// Temporary files are named ".tmp-*" and may be left behind by a kill.
func Replace(path string, data []byte, perm os.FileMode) error {
	temporary := filepath.Join(filepath.Dir(path), ".tmp-"+strconv.Itoa(os.Getpid())+"-"+strconv.FormatUint(sequence.Add(1), 36))
	if err := os.WriteFile(temporary, data, perm); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return nil
}

// ReplaceJSON is Replace with v as JSON and mode 0600.
func ReplaceJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return Replace(path, append(data, '\n'), 0o600)
}

// ReadJSON decodes the file into v. A missing file is fs.ErrNotExist.
func ReadJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s is not a record: %w", path, err)
	}
	return nil
}

// BootID is the kernel's identity of this boot (Documentation/admin-guide/sysctl/kernel.rst, random/boot_id).
var BootID = sync.OnceValue(func() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(data))
})
