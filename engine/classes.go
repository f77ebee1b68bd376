package engine

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"
	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/intel/goresctrl/pkg/rdt"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/engine/spec"
)

// classes are what annotations may ask for by name: shares of block I/O, and of cache and memory bandwidth (RDT). The
// library keeps both for the whole process, so there is one configuration of each.
type classes struct {
	// blockIO and rdt say why there are no classes; nil where there are some.
	blockIO, rdt error
}

const resctrl = "/sys/fs/resctrl"

// openClasses reads the configurations. A node that cannot give them starts all the same: containers that ask for a
// class are refused.
func openClasses(blockIOFile, rdtFile string, log *slog.Logger) (classes, error) {
	c := classes{
		blockIO: errors.New("no classes are configured: set workload.blockio_config"),
		rdt:     errors.New("this kernel has no resctrl, or it is not mounted on " + resctrl),
	}
	if blockIOFile != "" {
		blockio.SetLogger(log)
		if err := blockio.SetConfigFromFile(blockIOFile, true); err != nil {
			return c, fmt.Errorf("workload.blockio_config: %w", err)
		}
		c.blockIO = nil
	}
	if !exists(resctrl + "/schemata") {
		if rdtFile != "" {
			log.Warn("workload.rdt_config is not in effect, and containers that name an RDT class are refused", "error", c.rdt)
		}
		return c, nil
	}
	rdt.SetLogger(log)
	if c.rdt = rdt.Initialize(""); c.rdt == nil && rdtFile != "" {
		if err := rdt.SetConfigFromFile(rdtFile, true); err != nil {
			return c, fmt.Errorf("workload.rdt_config: %w", err)
		}
	}
	return c, nil
}

// resolve finds what the classes of a container mean.
func (c *classes) resolve(in *spec.Input) error {
	own, pod := in.Container.Annotations, in.Pod.Annotations
	if len(own) == 0 && len(pod) == 0 {
		return nil
	}
	var err error
	if class, _ := blockio.ContainerClassFromAnnotations(in.Container.Name, own, pod); class != "" {
		if in.BlockIO, err = c.blockIOClass(class); err != nil {
			return fmt.Errorf("blockio class %q of the annotations: %w: %w", class, err, errdefs.ErrFailedPrecondition)
		}
	}
	if !named(in.Container.Name, own, pod, rdt.RdtContainerAnnotation, rdt.RdtPodAnnotation, rdt.RdtPodAnnotationContainerPrefix) {
		return nil
	}
	if c.rdt != nil {
		return fmt.Errorf("an RDT class is named by an annotation: %w: %w", c.rdt, errdefs.ErrFailedPrecondition)
	}
	if in.RDTClass, err = rdt.ContainerClassFromAnnotations(in.Container.Name, own, pod); err != nil {
		return fmt.Errorf("RDT class of the annotations: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (c *classes) blockIOClass(class string) (*specs.LinuxBlockIO, error) {
	if c.blockIO != nil {
		return nil, c.blockIO
	}
	return blockio.OciLinuxBlockIO(class)
}

func named(container string, own, pod map[string]string, ownKey, podKey, podPrefix string) bool {
	_, a := own[ownKey]
	_, b := pod[podKey]
	_, c := pod[podPrefix+container]
	return a || b || c
}
