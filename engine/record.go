package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/engine/spec"
	"github.com/criserver/criserver/internal/fsx"
	"github.com/criserver/criserver/shim/api"
)

// podRecord is pod.json, see docs/on-disk.md.
type podRecord struct {
	BootID    string     `json:"bootID"`
	State     phase      `json:"state"`
	Pod       spec.Pod   `json:"pod"`
	Network   cni.Result `json:"network"`
	HolderPID int        `json:"holderPID,omitempty"`
	// SELinux are the labels of the pod, whose level is its alone unless it asked for one; nil where SELinux is off.
	SELinux *spec.Labels `json:"selinux,omitempty"`
	// Released says that a stopped pod has nothing left but its record and its containers' ones.
	Released  bool      `json:"released,omitempty"`
	CreatedAt time.Time `json:"createdAt"`
}

// containerRecord is container.json. How a started container ended is also in exit.json beside it, which is written by who
// reaped it and believed where the record says that it runs.
type containerRecord struct {
	State     phase          `json:"state"`
	Container spec.Container `json:"container"`
	// Update is what an update that was begun will have made of Container.Resources; a daemon that dies meanwhile leaves
	// it, and the next one carries it out.
	Update    *spec.Resources `json:"update,omitempty"`
	CreatedAt time.Time       `json:"createdAt"`
	StartedAt time.Time       `json:"startedAt,omitzero"`
	PID       int             `json:"pid,omitempty"`
	Exit      *exitRecord     `json:"exit,omitempty"`

	User          spec.User   `json:"user"`
	StopSignal    int32       `json:"stopSignal,omitempty"`
	LogPath       string      `json:"logPath,omitempty"`
	CgroupsPath   string      `json:"cgroupsPath,omitempty"`
	PodNamespaces []string    `json:"podNamespaces,omitempty"`
	PIDTarget     string      `json:"pidTarget,omitempty"`
	OwnPID        bool        `json:"ownPID,omitempty"` // its process is the init of a pid namespace that is its own
	Rootfs        rootfsMount `json:"rootfs"`
	// RawEnv is the environment of its process, if that is not all text: config.json cannot say it.
	RawEnv spec.Env `json:"rawEnv,omitempty"`
	// Restored says that it goes on from a checkpoint, which is in the restore directory (restoreDir).
	Restored bool `json:"restored,omitempty"`
	// BaseImage is the ID of the image that its root is of, when Container.ImageID is that of a checkpoint.
	BaseImage string `json:"baseImage,omitempty"`
	// Asked are the limits that the client asked for, where plugins have changed them.
	Asked *spec.Resources `json:"asked,omitempty"`
}

type rootfsMount struct {
	Type    string   `json:"type,omitempty"`
	Source  string   `json:"source,omitempty"`
	Options []string `json:"options,omitempty"`
}

type exitRecord struct {
	Code       int       `json:"code"`
	FinishedAt time.Time `json:"finishedAt"`
	Reason     string    `json:"reason"`
	Message    string    `json:"message,omitempty"`
}

// shimExit is exit.json, see shim/SHIM.md.
type shimExit struct {
	Code      int32  `json:"code"`
	ExitedAt  int64  `json:"exitedAt"`
	OOMKilled bool   `json:"oomKilled"`
	Reason    string `json:"reason"`
}

// newExit says how a process ended in the words of a status.
func newExit(x *api.Exit) *exitRecord {
	r := &exitRecord{Code: int(x.Code), FinishedAt: time.Unix(0, x.ExitedAt), Reason: ReasonError}
	switch {
	case x.OomKilled:
		r.Reason, r.Message = ReasonOOMKilled, "the kernel killed a process of the container for want of memory"
	case x.Reason != "":
		r.Reason, r.Message = x.Reason, "the container ended while nothing could learn its exit code"
	case x.Code == 0:
		r.Reason = ReasonCompleted
	}
	return r
}

// store is the directories of the records. It keeps nothing in memory. A record has one writer at a time: the
// operation that runs on its pod or container.
type store struct {
	// pods is <state>/pods. Only root may look into it: what is mounted into containers is in there, and what their root
	// does with it, such as making a file setuid, must not reach the host's users.
	pods string
}

func (s store) podDir(pod string) string { return filepath.Join(s.pods, pod) }
func (s store) containerDir(pod, container string) string {
	return s.pods + "/" + pod + "/" + container // every list has one for each container, and Join costs more
}

func (s store) savePod(r podRecord) error {
	if err := fsx.ReplaceJSON(filepath.Join(s.podDir(r.Pod.ID), "pod.json"), r); err != nil {
		return fmt.Errorf("record pod %s: %w", r.Pod.ID, err)
	}
	return nil
}

func (s store) saveContainer(r containerRecord) error {
	dir := s.containerDir(r.Container.PodID, r.Container.ID)
	if err := fsx.ReplaceJSON(filepath.Join(dir, "container.json"), r); err != nil {
		return fmt.Errorf("record container %s: %w", r.Container.ID, err)
	}
	return nil
}

// makeDir makes one directory with exactly this mode; one that exists is no error.
func makeDir(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, mode)
}

// isID says whether a name can be an id that newID made.
func isID(name string) bool {
	if len(name) != idLength {
		return false
	}
	for _, r := range name {
		if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
			return false
		}
	}
	return true
}

// subdirectories lists the directories of dir that are named by an id.
func subdirectories(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && isID(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// readExit reads what the reaper of a container wrote, nil when it wrote nothing that can be read.
func (s store) readExit(r containerRecord) *exitRecord {
	var x shimExit
	if err := fsx.ReadJSON(filepath.Join(s.containerDir(r.Container.PodID, r.Container.ID), "exit.json"), &x); err != nil {
		return nil
	}
	return newExit(&api.Exit{Code: x.Code, ExitedAt: x.ExitedAt, OomKilled: x.OOMKilled, Reason: x.Reason})
}
