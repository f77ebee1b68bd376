package cri

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// drainAtOnce bounds how many containers or pods Drain stops at the same time.
const drainAtOnce = 16

// Drain is a client: it stops all running containers, each with the grace, and then all pods that are ready. It goes on
// past errors and returns them together. report is told what was stopped, never concurrently.
func Drain(ctx context.Context, connection grpc.ClientConnInterface, grace time.Duration, report func(string)) error {
	client := runtime.NewRuntimeServiceClient(connection)
	running := &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}
	containers, err := client.ListContainers(ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{State: running}})
	if err != nil {
		return fmt.Errorf("list what runs: %s", status.Convert(err).Message())
	}
	stopErr := each(containers.GetContainers(), report, func(c *runtime.Container) (string, error) {
		_, err := client.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: c.GetId(), Timeout: int64(grace / time.Second)})
		return fmt.Sprintf("container %s (%s)", c.GetId(), c.GetMetadata().GetName()), err
	})
	ready := &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}
	pods, err := client.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{State: ready}})
	if err != nil {
		return errors.Join(stopErr, fmt.Errorf("list pods: %s", status.Convert(err).Message()))
	}
	return errors.Join(stopErr, each(pods.GetItems(), report, func(p *runtime.PodSandbox) (string, error) {
		_, err := client.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.GetId()})
		return fmt.Sprintf("pod %s (%s/%s)", p.GetId(), p.GetMetadata().GetNamespace(), p.GetMetadata().GetName()), err
	}))
}

// each runs stop on all items, some at once, and reports those that it stopped.
func each[T any](items []T, report func(string), stop func(T) (string, error)) error {
	var (
		group  sync.WaitGroup
		mu     sync.Mutex // guards report and failed
		failed []error
	)
	slots := make(chan struct{}, drainAtOnce)
	for _, item := range items {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			name, err := stop(item)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, fmt.Errorf("stop %s: %s", name, status.Convert(err).Message()))
				return
			}
			report("stopped " + name)
		})
	}
	group.Wait()
	return errors.Join(failed...)
}
