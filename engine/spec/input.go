package spec

import (
	"github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Input is all that a container's spec is made from. Build does not change it.
type Input struct {
	Pod       *Pod
	Container *Container
	Image     v1.ImageConfig
	User      User // from ResolveUser

	// Hostname is the pod's, or the host's for a pod in the host's network namespace.
	Hostname string
	// Netns is the path of the pod's network namespace; unused when the pod is in the host's.
	Netns string
	Files Files
	// Volumes are mounts that the image asks for itself.
	Volumes []specs.Mount
	// Devices are Container.Devices as the host has them.
	Devices []ResolvedDevice
	// CgroupsPath is where the container's processes go, as linux.cgroupsPath of the OCI spec.
	CgroupsPath string
	// Seccomp is the content of the file that a "localhost" profile names.
	Seccomp []byte
	Host    Host
	// Labels are the pod's; with Host.SELinux only.
	Labels Labels
	// BlockIO is what the container's class of block I/O means, RDTClass its class of cache and memory bandwidth.
	BlockIO  *specs.LinuxBlockIO
	RDTClass string
	// Settings are those of the pod's handler.
	Settings Settings
}

// Files are the paths on the host of what every container of a pod has mounted. An empty path is not mounted.
type Files struct {
	Hosts      string
	ResolvConf string
	Hostname   string
	// Shm is a directory for /dev/shm, for a pod that shares the host's. Else the shim has shared memory for the pod.
	Shm string
}

// ResolvedDevice is a device node and what may be done with it, a subset of "rwm".
type ResolvedDevice struct {
	specs.LinuxDevice
	Permissions string
}

// Host is what the node can do.
type Host struct {
	// Capabilities are those of the daemon's bounding set, in the form CAP_CHOWN.
	Capabilities []string
	// Devices are all device nodes of the host's /dev; needed for privileged containers only.
	Devices []specs.LinuxDevice
	// OOMScoreAdjMin is the lowest score that we may set; -1000 with CAP_SYS_RESOURCE.
	OOMScoreAdjMin int
	// HardLimits are the highest hard rlimits that we may give, by name; one that is not in it is not bounded.
	HardLimits map[string]uint64
	// SwapAccounting says that a limit of memory and swap together can be set.
	SwapAccounting bool
	// DeviceOwnership has the devices of a container that names a user or a group belong to those.
	DeviceOwnership bool
	// NoSeccomp says that the kernel has no seccomp filters.
	NoSeccomp bool
	// SELinux says that SELinux is on and containers have labels. NoSELinux says why they have none though it is on.
	SELinux   bool
	NoSELinux string
	// AppArmor says that AppArmor is on, AppArmorDefault names the profile that is loaded for containers.
	AppArmor        bool
	AppArmorDefault string
	// UnsetSeccomp is the Kind of profile for a container that names none; "" is "unconfined".
	UnsetSeccomp string
}

// Output is a spec and what of it the shim is told apart from it.
type Output struct {
	Spec *specs.Spec
	// PodNamespaces are those of the pod that the container joins: "ipc", "uts", "pid". The spec names them without a path.
	// With "shm" the pod's shared memory takes the place of the tmpfs at /dev/shm.
	PodNamespaces []string
	// OwnPID says that the process is the init of a pid namespace of its own, so that all in it ends with it.
	OwnPID bool
	// PIDTarget is the container whose pid namespace is joined, else "".
	PIDTarget string
	// Warnings say what was asked for and could not be given.
	Warnings []string
}
