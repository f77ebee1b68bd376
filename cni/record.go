package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/criserver/criserver/cni/builtin"
	"github.com/criserver/criserver/internal/fsx"
)

// state of an attachment:
//
//	(none) -> attaching -> attached -> detaching -> (none)
//	             |                        ^  |
//	             +------------------------+  +-> pending -> (none)      a DEL that failed; its record is in gc/
//
// On disk an attachment of the built-in plugin is always "attached"; the pin of its namespace, made last and taken away
// first, says whether it is.
type state string

const (
	stateAttaching state = "attaching" // something may have been made
	stateAttached  state = "attached"
	stateDetaching state = "detaching" // the pod is gone for callers; its address is not free yet
	statePending   state = "pending"   // the same, and a plugin's DEL has to be tried again
)

// record is what is written of an attachment, before anything is made. A *record is changed only by the holder of its
// pod's key (Network.keys), and replaced in the map when it changes, so readers of the map need no more than its lock.
type record struct {
	BootID   string              `json:"bootID"`
	State    state               `json:"state"`
	Since    time.Time           `json:"since"` // of the state
	Mode     string              `json:"mode"`
	Request  Request             `json:"request"`
	Netns    string              `json:"netns"`
	IPs      []netip.Addr        `json:"ips,omitempty"`
	Builtin  *builtin.Attachment `json:"builtin,omitempty"`
	Conflist *conflistRecord     `json:"conflist,omitempty"`
}

// conflistRecord is what a DEL needs to be run as the ADD was, whatever ConfDir holds by then.
type conflistRecord struct {
	Network string          `json:"network"`
	List    json.RawMessage `json:"list"`
	Args    [][2]string     `json:"args"`
	Caps    map[string]any  `json:"capabilityArgs,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Tries   int             `json:"tries,omitempty"` // of DEL
	Error   string          `json:"error,omitempty"` // of the last DEL
}

func (r *record) result() Result { return Result{Netns: r.Netns, IPs: r.IPs} }

// to returns a copy in another state.
func (r *record) to(s state) *record {
	next := *r
	next.State, next.Since = s, time.Now().UTC()
	return &next
}

var podIDs = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func checkPodID(id string) error {
	if !podIDs.MatchString(id) {
		return fmt.Errorf("pod id %q: want up to 128 of letters, digits, '_', '.' and '-': %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// store is the directory of records. It keeps nothing in memory. Pod ids have been checked to be plain file names.
type store struct{ dir string }

const gcDir = "gc"

func openStore(dir string) (store, error) {
	if err := os.MkdirAll(filepath.Join(dir, gcDir), 0o700); err != nil {
		return store{}, fmt.Errorf("network records: %w", err)
	}
	return store{dir: dir}, nil
}

func (s store) path(podID string, st state) string {
	if st == statePending {
		return filepath.Join(s.dir, gcDir, podID+".json")
	}
	return filepath.Join(s.dir, podID+".json")
}

func (s store) write(r *record) error {
	if err := fsx.ReplaceJSON(s.path(r.Request.PodID, r.State), r); err != nil {
		return fmt.Errorf("record the network of pod %s: %w", r.Request.PodID, err)
	}
	return nil
}

func (s store) remove(podID string, st state) error {
	if err := os.Remove(s.path(podID, st)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the network record of pod %s: %w", podID, err)
	}
	return nil
}

// load reads all records. One that cannot be read costs its pod only: it is reported through broken and set aside as
// "<name>.broken", for whoever wants to know what was in it.
func (s store) load(broken func(path string, err error)) (map[string]*record, error) {
	records := make(map[string]*record)
	for _, dir := range []string{filepath.Join(s.dir, gcDir), s.dir} { // one in both is the live one
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("network records: %w", err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if strings.HasPrefix(e.Name(), ".tmp-") {
				_ = os.Remove(path)
				continue
			}
			podID, isRecord := strings.CutSuffix(e.Name(), ".json")
			if !isRecord || e.IsDir() {
				continue
			}
			r := new(record)
			err := fsx.ReadJSON(path, r)
			if err == nil {
				err = r.check(podID)
			}
			if err != nil {
				broken(path, err)
				_ = os.Rename(path, strings.TrimSuffix(path, ".json")+".broken")
				continue
			}
			records[podID] = r
		}
	}
	return records, nil
}

func (r *record) check(podID string) error {
	switch {
	case r.Request.PodID != podID || checkPodID(podID) != nil:
		return fmt.Errorf("record of pod %q is in the file of pod %q: %w", r.Request.PodID, podID, errdefs.ErrDataLoss)
	case r.Mode == ModeBuiltin && r.Builtin == nil, r.Mode == ModeCNI && r.Conflist == nil:
		return fmt.Errorf("record of pod %q lacks its %s part: %w", podID, r.Mode, errdefs.ErrDataLoss)
	case r.Mode != ModeBuiltin && r.Mode != ModeCNI:
		return fmt.Errorf("record of pod %q has mode %q: %w", podID, r.Mode, errdefs.ErrDataLoss)
	}
	return nil
}
