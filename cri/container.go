package cri

import (
	"path/filepath"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/spec"
)

// containerOf checks and translates a container's configuration. pod is the one it is made in.
func containerOf(config *runtime.ContainerConfig, pod spec.Pod) (spec.Container, error) {
	if err := checkContainer(config); err != nil {
		return spec.Container{}, err
	}
	c := spec.Container{
		PodID:       pod.ID,
		Name:        config.GetMetadata().GetName(),
		Attempt:     config.GetMetadata().GetAttempt(),
		Image:       config.GetImage().GetImage(),
		UserImage:   config.GetImage().GetUserSpecifiedImage(),
		Command:     config.GetCommand(),
		Args:        config.GetArgs(),
		WorkingDir:  config.GetWorkingDir(),
		Labels:      config.GetLabels(),
		Annotations: config.GetAnnotations(),
		LogPath:     config.GetLogPath(),
		Stdin:       config.GetStdin(),
		StdinOnce:   config.GetStdinOnce(),
		TTY:         config.GetTty(),
	}
	c.Checkpoint = checkpointOf(c.Image)
	if c.UserImage == c.Image {
		c.UserImage = ""
	}
	var err error
	if c.StopSignal, err = signalName("config.stop_signal", config.GetStopSignal()); err != nil {
		return spec.Container{}, err
	}
	if c.Env, err = envOf(config.GetEnvs()); err != nil {
		return spec.Container{}, err
	}
	if c.Mounts, err = mountsOf(config.GetMounts()); err != nil {
		return spec.Container{}, err
	}
	if c.Devices, err = devicesOf(config.GetDevices()); err != nil {
		return spec.Container{}, err
	}
	if c.CDIDevices, err = cdiDevicesOf(config); err != nil {
		return spec.Container{}, err
	}
	if c.Resources, err = resourcesOf("config.linux.resources", config.GetLinux().GetResources()); err != nil {
		return spec.Container{}, err
	}
	if c.Security, err = containerSecurity(config.GetLinux().GetSecurityContext(), pod.Security.Namespaces); err != nil {
		return spec.Container{}, err
	}
	if c.Security.Privileged && !pod.Security.Privileged {
		return spec.Container{}, invalid("config.linux.security_context.privileged",
			"the pod was not made for privileged containers; set privileged in its own security context")
	}
	return c, nil
}

func checkContainer(config *runtime.ContainerConfig) error {
	if config == nil {
		return required("config")
	}
	if config.GetMetadata().GetName() == "" {
		return required("config.metadata.name")
	}
	if config.GetImage().GetImage() == "" {
		return required("config.image.image")
	}
	if config.GetWindows() != nil {
		return invalid("config.windows", "this node runs Linux containers")
	}
	for field, all := range map[string][]string{
		"config.metadata.name": {config.GetMetadata().GetName()},
		"config.image.image":   {config.GetImage().GetImage(), config.GetImage().GetUserSpecifiedImage()},
		"config.command":       config.GetCommand(),
		"config.args":          config.GetArgs(),
		"config.log_path":      {config.GetLogPath()},
	} {
		if err := texts(field, all); err != nil {
			return err
		}
	}
	if dir := config.GetWorkingDir(); dir != "" {
		if _, err := absolute("config.working_dir", dir); err != nil {
			return err
		}
	}
	if path := config.GetLogPath(); path != "" && !filepath.IsLocal(path) {
		return invalid("config.log_path", "%q is not a path beneath the pod's log_directory", path)
	}
	if config.GetStdinOnce() && !config.GetStdin() {
		return invalid("config.stdin_once", "needs stdin")
	}
	return nil
}

func envOf(envs []*runtime.KeyValue) ([]string, error) {
	env := make([]string, 0, len(envs))
	for _, e := range envs {
		if e.GetKey() == "" {
			return nil, required("config.envs.key")
		}
		if err := text("config.envs.key", e.GetKey()); err != nil {
			return nil, err
		}
		if strings.Contains(e.GetKey(), "=") {
			return nil, invalid("config.envs.key", "%q contains '='", e.GetKey())
		}
		value := string(e.GetValue())
		field := "config.envs[" + e.GetKey() + "].value"
		if strings.ContainsRune(value, 0) {
			return nil, invalid(field, "has a zero byte")
		}
		env = append(env, e.GetKey()+"="+value)
	}
	if len(env) == 0 {
		return nil, nil
	}
	return env, nil
}

var propagations = map[runtime.MountPropagation]string{
	runtime.MountPropagation_PROPAGATION_PRIVATE:           "private",
	runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "rslave",
	runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:     "rshared",
}

// mountOptions are those that a client may add to a bind mount: flags of one mount, none of which widens it.
var mountOptions = map[string]bool{
	"noexec": true, "nodev": true, "nosuid": true, "noatime": true, "nodiratime": true, "relatime": true,
	"strictatime": true, "nosymfollow": true,
}

func mountsOf(mounts []*runtime.Mount) ([]spec.Mount, error) {
	var all []spec.Mount
	for i, m := range mounts {
		mount, err := mountOf("config.mounts["+strconv.Itoa(i)+"]", m)
		if err != nil {
			return nil, err
		}
		all = append(all, mount)
	}
	return all, nil
}

func mountOf(at string, m *runtime.Mount) (spec.Mount, error) {
	if m.GetImage() != nil || m.GetImageSubPath() != "" {
		return imageVolumeOf(at, m)
	}
	uids, gids, err := mountMappings(at, m)
	if err != nil {
		return spec.Mount{}, err
	}
	source, err := absolute(at+".host_path", m.GetHostPath())
	if err != nil {
		return spec.Mount{}, err
	}
	target, err := absolute(at+".container_path", m.GetContainerPath())
	if err != nil {
		return spec.Mount{}, err
	}
	propagation, known := propagations[m.GetPropagation()]
	if !known {
		return spec.Mount{}, invalid(at+".propagation", "%d is not a propagation", m.GetPropagation())
	}
	if m.GetRecursiveReadOnly() {
		if !m.GetReadonly() {
			return spec.Mount{}, invalid(at+".recursive_read_only", "needs readonly")
		}
		if propagation != "private" {
			return spec.Mount{}, invalid(at+".recursive_read_only", "needs propagation PRIVATE")
		}
	}
	for _, option := range m.GetMountOptions() {
		if !mountOptions[option] {
			return spec.Mount{}, invalid(at+".mount_options", "%q is not an option that may be added to a bind mount", option)
		}
	}
	return spec.Mount{
		Source: source, Target: target, Readonly: m.GetReadonly(), RecursiveReadonly: m.GetRecursiveReadOnly(),
		Propagation: propagation, SELinuxRelabel: m.GetSelinuxRelabel(), Options: m.GetMountOptions(), UIDs: uids, GIDs: gids,
	}, nil
}

func devicesOf(devices []*runtime.Device) ([]spec.Device, error) {
	var all []spec.Device
	for i, d := range devices {
		at := "config.devices[" + strconv.Itoa(i) + "]"
		host, err := absolute(at+".host_path", d.GetHostPath())
		if err != nil {
			return nil, err
		}
		target, err := absolute(at+".container_path", d.GetContainerPath())
		if err != nil {
			return nil, err
		}
		if p := d.GetPermissions(); p == "" || strings.Trim(p, "rwm") != "" {
			return nil, invalid(at+".permissions", "%q is not made of r, w and m", p)
		}
		all = append(all, spec.Device{HostPath: host, ContainerPath: target, Permissions: d.GetPermissions()})
	}
	return all, nil
}
