package engine

import (
	"log/slog"
	"time"

	"github.com/criserver/criserver/cni"
	"github.com/criserver/criserver/engine/spec"
)

// Config is what an engine is opened with. The directories are absolute; they are made when missing.
type Config struct {
	// StateDir holds what lives until reboot, see docs/on-disk.md. It should be a tmpfs.
	StateDir string
	// RootDir holds what outlives a reboot.
	RootDir string

	Rootfs  Rootfs
	Network Network
	Shims   Shims
	// Plugins are told what happens; nil when there are none.
	Plugins Plugins

	// SystemdCgroup has cgroups made as units of systemd's.
	SystemdCgroup bool
	// CgroupParent is the cgroup of pods that ask for none; "" is "/criserver", or with SystemdCgroup DefaultSlice.
	CgroupParent string
	// UnsetSeccomp is the profile of containers that name none: "unconfined" (also "") or "runtime/default".
	UnsetSeccomp string
	// AppArmorProfile is the loaded profile of containers that name none, or runtime/default; "" leaves them unconfined.
	AppArmorProfile string
	// SELinux says whether containers have SELinux labels: SELinuxAuto (also ""), SELinuxOn or SELinuxOff.
	SELinux string
	// DefaultSysctls are set in every pod whose namespaces own them, unless the pod sets them itself. Nil means
	// DefaultSysctls; an empty map means none.
	DefaultSysctls map[string]string
	// Settings are what the operator has decided for each handler, by its name; "native" is our own runtime.
	Settings map[string]spec.Settings
	// BlockIOConfig and RDTConfig are files that say what classes of either there are; "" is none.
	BlockIOConfig, RDTConfig string
	// CDIDirs are the directories of CDI files, later ones win; none turns CDI off.
	CDIDirs []string
	// Handlers are the programs that a RuntimeClass can name. Our own runtime need not be among them.
	Handlers map[string]Handler
	// StrictMounts makes a missing source of a mount an error; without, a directory is made.
	StrictMounts bool
	// DeviceOwnership has device nodes belong to the user and the group that a container names.
	DeviceOwnership bool
	// ShimWait is how long a call waits for a dead shim to be started again; 0 is 5 s.
	ShimWait time.Duration
	// Criu is the path of criu, or its name in the PATH, for checkpoints; "" is "criu".
	Criu string
	// RestoreImages lets containers be made from images that are checkpoints. Whoever makes such an image decides what
	// runs: with which privileges, and without the filters of the node.
	RestoreImages bool
	// Log receives what an operator should know; nil is slog.Default.
	Log *slog.Logger
}

// DefaultSysctls let a process without capabilities listen on low ports and use ping sockets inside its own network
// namespace, where neither endangers the node.
var DefaultSysctls = map[string]string{
	"net.ipv4.ip_unprivileged_port_start": "0",
	"net.ipv4.ping_group_range":           "0 2147483647",
}

// PodState is the state of a pod as clients see it; state.go has the diagram with the states between.
type PodState string

// The states of a pod.
const (
	PodReady    PodState = "ready"
	PodNotReady PodState = "notready"
)

// ContainerState is the state of a container as clients see it.
type ContainerState string

// The states of a container.
const (
	ContainerCreated ContainerState = "created"
	ContainerRunning ContainerState = "running"
	ContainerExited  ContainerState = "exited"
	// ContainerUnknown is a container whose removal was begun and has not ended yet.
	ContainerUnknown ContainerState = "unknown"
)

// Reasons of a container that has exited.
const (
	ReasonCompleted   = "Completed"
	ReasonError       = "Error"
	ReasonOOMKilled   = "OOMKilled"
	ReasonStartError  = "StartError"  // it never ran; the message says why
	ReasonExitUnknown = "ExitUnknown" // it ended while nothing could learn its exit code
)

// StartErrorCode is the exit code of a container that could not be started.
const StartErrorCode = 128

// PodStatus is a snapshot of a pod. The maps and slices in it are shared and must not be changed.
type PodStatus struct {
	Pod       spec.Pod
	State     PodState
	CreatedAt time.Time
	// Network is what the pod was given; it is zero for a pod in the host's network namespace and for one that was stopped.
	Network cni.Result
	// HolderPID is the init of the pod's own pid namespace, 0 when it has none.
	HolderPID int
}

// ContainerStatus is a snapshot of a container. The maps, slices and pointers in it are shared and must not be changed.
type ContainerStatus struct {
	Container spec.Container
	State     ContainerState
	CreatedAt time.Time
	StartedAt time.Time // zero: it was never started
	// FinishedAt and ExitCode are set once the container has exited.
	FinishedAt time.Time
	ExitCode   int
	// Reason is one of the Reason constants once the container has exited, and Message explains it.
	Reason  string
	Message string
	PID     int // of the process on the host while it runs, else 0
	// User is who the process was started as.
	User spec.User
	// StopSignal is the name of the signal that StopContainer sends first, as "SIGTERM".
	StopSignal string
	// LogPath is absolute, or "" when no log is kept.
	LogPath string
	// CgroupsPath is linux.cgroupsPath of the OCI spec.
	CgroupsPath string
	// Dir is the container's run directory, with config.json in it.
	Dir string
}

// PodItem is what a list of pods shows of one. The maps in it are shared and must not be changed.
type PodItem struct {
	ID, Name, Namespace, UID string
	Attempt                  uint32
	State                    PodState
	CreatedAt                time.Time
	Labels, Annotations      map[string]string
	Handler                  string
}

// ContainerItem is what a list of containers shows of one. The maps in it are shared and must not be changed.
type ContainerItem struct {
	ID, PodID, Name                     string
	Attempt                             uint32
	Image, UserImage, ImageID, ImageRef string // as in spec.Container
	State                               ContainerState
	CreatedAt                           time.Time
	Labels, Annotations                 map[string]string
}

// PodFilter selects pods. A zero field selects all.
type PodFilter struct {
	ID     string // the id or the beginning of it
	State  PodState
	Owner  string
	Labels map[string]string // all of them must be equal
}

// ContainerFilter selects containers. A zero field selects all.
type ContainerFilter struct {
	ID     string // the id or the beginning of it
	PodID  string // the id or the beginning of it
	State  ContainerState
	Owner  string            // of its pod
	Labels map[string]string // all of them must be equal
}

// ExecResult is what a process that Exec ran left behind.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int
}

// ExecOutputLimit is how many bytes of each of stdout and stderr Exec keeps; the rest is read and dropped.
const ExecOutputLimit = 16 << 20
