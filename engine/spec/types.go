// Package spec turns a pod, a container, an image's configuration and the facts of the host into an OCI runtime
// spec. It is pure: it reads no file and makes no call, so that what a container gets is golden-tested.
package spec

import (
	"path"
	"reflect"
	"strings"
)

// Mode says whose namespace a container uses.
type Mode string

// The modes of a namespace. The empty mode means ModePod for network and ipc, ModeContainer for pid.
const (
	ModePod       Mode = "pod"
	ModeContainer Mode = "container"
	ModeNode      Mode = "node"
	ModeTarget    Mode = "target"
)

// Namespaces are the modes that a pod or a container asks for.
type Namespaces struct {
	Network Mode `json:"network,omitempty"`
	PID     Mode `json:"pid,omitempty"`
	IPC     Mode `json:"ipc,omitempty"`
	// Target is the container whose pid namespace is joined with ModeTarget.
	Target string `json:"target,omitempty"`
	// User is the user namespace of a pod and its containers; nil is the host's.
	User *UserNamespace `json:"user,omitempty"`
}

// UserNamespace is what the ids of a user namespace are on the host.
type UserNamespace struct {
	UIDs []IDMapping `json:"uids"`
	GIDs []IDMapping `json:"gids"`
}

// IDMapping maps a range of ids.
type IDMapping struct {
	Container uint32 `json:"container"`
	Host      uint32 `json:"host"`
	Size      uint32 `json:"size"`
}

// PortMapping publishes a port of a pod on the host. Protocol is tcp, udp or sctp; HostIP "" is every address.
type PortMapping struct {
	Protocol      string `json:"protocol"`
	ContainerPort uint16 `json:"containerPort"`
	HostPort      uint16 `json:"hostPort"`
	HostIP        string `json:"hostIP,omitempty"`
}

// DNS is the content of a pod's resolv.conf. Nil in a Pod means a copy of the host's.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Profile selects a seccomp or AppArmor profile.
type Profile struct {
	// Kind is "unconfined", "runtime/default" or "localhost"; "" is what the configuration says.
	Kind string `json:"kind,omitempty"`
	// Path is a file for seccomp, a profile's name for AppArmor; only with "localhost".
	Path string `json:"path,omitempty"`
}

// SELinux is the label asked for; nil or empty lets the engine choose one.
type SELinux struct {
	User, Role, Type, Level string
}

// Security is the security context of a container, or what a pod asks for all of its containers.
type Security struct {
	Privileged bool     `json:"privileged,omitempty"`
	CapAdd     []string `json:"capAdd,omitempty"` // with or without CAP_; "ALL" is every one
	CapDrop    []string `json:"capDrop,omitempty"`
	CapAmbient []string `json:"capAmbient,omitempty"`

	RunAsUser     *int64 `json:"runAsUser,omitempty"`
	RunAsGroup    *int64 `json:"runAsGroup,omitempty"`
	RunAsUsername string `json:"runAsUsername,omitempty"`
	// SupplementalGroups are added to those of the image's /etc/group, or with SupplementalStrict replace them.
	SupplementalGroups []int64 `json:"supplementalGroups,omitempty"`
	SupplementalStrict bool    `json:"supplementalStrict,omitempty"`

	ReadonlyRootfs bool     `json:"readonlyRootfs,omitempty"`
	NoNewPrivs     bool     `json:"noNewPrivs,omitempty"`
	MaskedPaths    []string `json:"maskedPaths,omitempty"`
	ReadonlyPaths  []string `json:"readonlyPaths,omitempty"`
	Seccomp        Profile  `json:"seccomp"`
	AppArmor       Profile  `json:"apparmor"`
	SELinux        *SELinux `json:"selinux,omitempty"`

	Namespaces Namespaces `json:"namespaces"`
}

// Resources are limits of a cgroup. A zero field is not set.
type Resources struct {
	CPUShares     uint64            `json:"cpuShares,omitempty"`
	CPUQuota      int64             `json:"cpuQuota,omitempty"`  // microseconds a period
	CPUPeriod     uint64            `json:"cpuPeriod,omitempty"` // microseconds
	CPUs          string            `json:"cpus,omitempty"`
	Mems          string            `json:"mems,omitempty"`
	Memory        int64             `json:"memory,omitempty"`     // bytes
	MemorySwap    int64             `json:"memorySwap,omitempty"` // bytes of memory and swap together
	OOMScoreAdj   int64             `json:"oomScoreAdj,omitempty"`
	HugepageLimit map[string]uint64 `json:"hugepageLimit,omitempty"` // page size ("2MB") -> bytes
	Unified       map[string]string `json:"unified,omitempty"`
}

// IsZero says that no limit is set.
func (r Resources) IsZero() bool { return reflect.ValueOf(r).IsZero() }

// Mount is a mount that a container asks for.
type Mount struct {
	Source            string `json:"source"` // on the host; with Image filled by the engine
	Target            string `json:"target"` // in the container
	Readonly          bool   `json:"readonly,omitempty"`
	RecursiveReadonly bool   `json:"recursiveReadonly,omitempty"`
	// Propagation is "private" (also ""), "rslave" or "rshared".
	Propagation    string `json:"propagation,omitempty"`
	SELinuxRelabel bool   `json:"selinuxRelabel,omitempty"`
	// UIDs and GIDs map the owners of files: what is Host on the disk is Container in a container without a user namespace, and
	// in one with a user namespace what Container is there.
	UIDs    []IDMapping `json:"uids,omitempty"`
	GIDs    []IDMapping `json:"gids,omitempty"`
	Options []string    `json:"options,omitempty"`

	// Image, instead of a source, is an image to mount read-only.
	Image *ImageVolume `json:"image,omitempty"`
}

// ImageVolume is an image that is mounted, or a path in it.
type ImageVolume struct {
	Image     string `json:"image"` // as the client wrote it
	UserImage string `json:"userImage,omitempty"`
	SubPath   string `json:"subPath,omitempty"`
	ID        string `json:"id,omitempty"`  // filled by the engine
	Ref       string `json:"ref,omitempty"` // a reference by digest, filled by the engine

	// How it is mounted: filled by the engine for Build, and not kept.
	Type    string   `json:"-"`
	Options []string `json:"-"`
}

// Device is a device node of the host made known to a container. Permissions are of "rwm".
type Device struct {
	HostPath      string `json:"hostPath"`
	ContainerPath string `json:"containerPath"`
	Permissions   string `json:"permissions"`
}

// Rlimit is a limit of the process, by its name in setrlimit(2) ("RLIMIT_NOFILE").
type Rlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Pod is what a client asked for, as the engine keeps it. After RunPod only Overhead and Resources change, by UpdatePod.
type Pod struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
	Attempt   uint32 `json:"attempt,omitempty"`

	Hostname     string            `json:"hostname,omitempty"`
	LogDirectory string            `json:"logDirectory,omitempty"`
	DNS          *DNS              `json:"dns,omitempty"`
	PortMappings []PortMapping     `json:"portMappings,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CgroupParent string            `json:"cgroupParent,omitempty"`
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	// SystemdCgroup says that CgroupParent is a slice of systemd's, and that what goes into it are units.
	SystemdCgroup bool `json:"systemdCgroup,omitempty"`
	// OwnCgroup says that the pod has a cgroup beneath CgroupParent that we made, see Cgroup.
	OwnCgroup bool `json:"ownCgroup,omitempty"`
	// Resources are the sum of the containers', Overhead is what the pod needs besides.
	Resources Resources `json:"resources,omitzero"`
	Overhead  Resources `json:"overhead,omitzero"`
	Security  Security  `json:"security"`
	// Handler is the RuntimeClass handler; "" is the native runtime.
	Handler string `json:"handler,omitempty"`
	// Owner is the front that made the pod: "cri" or "docker".
	Owner string `json:"owner"`
}

// Cgroup is the path of the cgroup that the cgroups of the pod's containers are in.
func (p *Pod) Cgroup() string {
	switch {
	case p.OwnCgroup && p.SystemdCgroup: // a slice's name says which ones it is in
		return path.Join(p.CgroupParent, strings.TrimSuffix(path.Base(p.CgroupParent), ".slice")+"-pod"+p.ID+".slice")
	case p.OwnCgroup:
		return path.Join(p.CgroupParent, "pod"+p.ID)
	}
	return p.CgroupParent
}

// ProcessCgroup is the path of the cgroup of processes: a container's, or with the pod's id those of the pod itself.
func (p *Pod) ProcessCgroup(id string) string {
	if p.SystemdCgroup {
		return path.Join(p.Cgroup(), "criserver-"+id+".scope")
	}
	return path.Join(p.Cgroup(), id)
}

// Container is what a client asked for, as the engine keeps it.
type Container struct {
	ID      string `json:"id"`
	PodID   string `json:"podID"`
	Name    string `json:"name"`
	Attempt uint32 `json:"attempt,omitempty"`

	Image string `json:"image"` // as the client wrote it
	// UserImage is the name that the user gave the image when Image is an ID; it is only shown.
	UserImage string `json:"userImage,omitempty"`
	ImageID   string `json:"imageID"`            // filled by the engine
	ImageRef  string `json:"imageRef,omitempty"` // a reference by digest, filled by the engine

	Command    []string          `json:"command,omitempty"` // replaces the image's entrypoint and cmd
	Args       []string          `json:"args,omitempty"`    // replaces the image's cmd
	Env        Env               `json:"env,omitempty"`     // KEY=value, in order, over the image's
	WorkingDir string            `json:"workingDir,omitempty"`
	Mounts     []Mount           `json:"mounts,omitempty"`
	Devices    []Device          `json:"devices,omitempty"`
	CDIDevices []string          `json:"cdiDevices,omitempty"` // as vendor/class=name
	Labels     map[string]string `json:"labels,omitempty"`
	// Annotations of the client; the OCI spec gets only those that the configuration lets through.
	Annotations map[string]string `json:"annotations,omitempty"`
	LogPath     string            `json:"logPath,omitempty"` // relative to the pod's LogDirectory
	Stdin       bool              `json:"stdin,omitempty"`
	StdinOnce   bool              `json:"stdinOnce,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	Resources   Resources         `json:"resources"`
	Rlimits     []Rlimit          `json:"rlimits,omitempty"`
	Security    Security          `json:"security"`
	// Checkpoint is the archive, or the directory of a pod's checkpoint, that the container goes on from; "": it is started.
	Checkpoint string `json:"checkpoint,omitempty"`
	// StopSignal is a number as text or a name ("SIGTERM"); "" is the image's, then SIGTERM.
	StopSignal string `json:"stopSignal,omitempty"`
}
