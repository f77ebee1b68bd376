package cri

import (
	"slices"
	"strconv"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine/cdi"
)

// cdiDevicesOf lists the devices of the field, then those of annotations that are not among them: kubelet sends both for
// a while.
func cdiDevicesOf(config *runtime.ContainerConfig) ([]string, error) {
	var names []string
	for i, device := range config.GetCDIDevices() {
		if err := cdi.CheckName(device.GetName()); err != nil {
			return nil, invalid("config.CDI_devices["+strconv.Itoa(i)+"].name", "%v", err)
		}
		if !slices.Contains(names, device.GetName()) {
			names = append(names, device.GetName())
		}
	}
	annotated, key, err := cdi.FromAnnotations(config.GetAnnotations())
	if err != nil {
		return nil, invalid("config.annotations["+key+"]", "%v", err)
	}
	for _, name := range annotated {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}
