package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/engine"
)

var errStopping = fmt.Errorf("the daemon stops; ask again when it is back: %w", errdefs.ErrUnavailable)

// GetContainerEvents implements RuntimeService. The header of the answer is sent once nothing is missed any more, so that
// a client which waits for it may list then.
func (s *runtimeService) GetContainerEvents(_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	feed := s.engine.Subscribe()
	defer feed.Close()
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.ending, func() { cancel(errStopping) })()
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		event, err := feed.Next(ctx)
		if err != nil {
			return err
		}
		if event.Pod.Pod.Owner != owner {
			continue
		}
		if err := stream.Send(containerEvent(event)); err != nil {
			return err
		}
	}
}

var eventKinds = map[engine.EventKind]runtime.ContainerEventType{
	engine.EventCreated: runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
	engine.EventStarted: runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
	engine.EventStopped: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
	engine.EventDeleted: runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func containerEvent(event engine.Event) *runtime.ContainerEventResponse {
	answer := &runtime.ContainerEventResponse{
		ContainerId: event.ID, ContainerEventType: eventKinds[event.Kind], CreatedAt: event.At.UnixNano(), PodSandboxStatus: podStatus(event.Pod),
	}
	for _, c := range event.Containers {
		answer.ContainersStatuses = append(answer.ContainersStatuses, containerStatus(c))
	}
	return answer
}
