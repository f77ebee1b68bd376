// Package cdi gives containers the devices that vendors describe in files of the Container Device Interface.
package cdi

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	lib "tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// State is what the files describe, for an operator to look at.
type State struct {
	Dirs    []string            `json:"dirs"`
	Devices []string            `json:"devices"`          // qualified names, sorted
	Errors  map[string][]string `json:"errors,omitempty"` // file -> why it, or something in it, is of no use
}

// read reads the files anew each time. A cache that watches the directories would keep numbers of device nodes that
// may have changed, and is not safe to inject from concurrently; only containers that ask for a device pay.
func read(dirs []string) (*lib.Cache, error) {
	return lib.NewCache(lib.WithAutoRefresh(false), lib.WithSpecDirs(dirs...))
}

// Read reads the files in dirs.
func Read(dirs []string) (State, error) {
	cache, err := read(dirs)
	if err != nil {
		return State{}, err
	}
	return State{Dirs: dirs, Devices: cache.ListDevices(), Errors: problems(cache)}, nil
}

func problems(cache *lib.Cache) map[string][]string {
	texts := map[string][]string{}
	for file, errs := range cache.GetErrors() {
		for _, err := range errs {
			texts[file] = append(texts[file], err.Error())
		}
	}
	return texts
}

// Inject edits s so that the container has the devices, which are named as vendor/class=name. Directories later in dirs
// win. s is of no use after an error. A name that is none is ErrInvalidArgument; a device that no file describes, or
// whose description does not fit the host, is ErrFailedPrecondition.
func Inject(s *specs.Spec, dirs, names []string) error {
	for _, name := range names {
		if err := CheckName(name); err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	cache, err := read(dirs)
	if err != nil {
		return fmt.Errorf("read CDI files: %w", err)
	}
	rules := 0
	if s.Linux != nil && s.Linux.Resources != nil {
		rules = len(s.Linux.Resources.Devices)
	}
	unknown, err := cache.InjectDevices(s, names...)
	switch {
	case len(unknown) > 0:
		return fmt.Errorf("CDI device %s is described by no file in %s%s: %w",
			strings.Join(unknown, ", "), strings.Join(dirs, ", "), unusable(cache), errdefs.ErrFailedPrecondition)
	case err != nil:
		return fmt.Errorf("CDI device %s: %w: %w", strings.Join(names, ", "), err, errdefs.ErrFailedPrecondition)
	}
	// A node with the permissions "none" gets a rule that allows nothing, which is no rule to a kernel.
	if s.Linux != nil && s.Linux.Resources != nil {
		all := s.Linux.Resources.Devices
		s.Linux.Resources.Devices = append(all[:rules:rules],
			slices.DeleteFunc(all[rules:], func(r specs.LinuxDeviceCgroup) bool { return r.Access == "" })...)
	}
	return nil
}

// unusable names the files that a device which is missing may be in.
func unusable(cache *lib.Cache) string {
	all := problems(cache)
	if len(all) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("; of no use are:")
	for _, file := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, " %s (%s)", file, strings.Join(all[file], "; "))
	}
	return b.String()
}

// CheckName says whether a name is of the form vendor/class=name.
func CheckName(name string) error {
	if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
		return fmt.Errorf("%q is not a name of a CDI device, vendor/class=name: %w", name, err)
	}
	return nil
}

// AnnotationPrefix begins the annotations by which clients asked for devices before there was a field for it. The rest
// of the key says who asks; the value is a list of names, separated by commas.
const AnnotationPrefix = lib.AnnotationPrefix

// FromAnnotations lists what annotations ask for, in the order of their keys. An error begins with the key.
func FromAnnotations(annotations map[string]string) (names []string, key string, err error) {
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(key, AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(annotations[key], ",") {
			if err := CheckName(name); err != nil {
				return nil, key, err
			}
			names = append(names, name)
		}
	}
	return names, "", nil
}
