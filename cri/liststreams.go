package cri

import (
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// chunk is about how many bytes of items a message of a list stream has: far below MaxMessage, and enough that the number
// of messages does not matter.
const chunk = 1 << 20

// sendMessages is sendChunks for items that are messages.
func sendMessages[T proto.Message](items []T, send func([]T) error) error {
	return sendChunks(items, func(item T) int { return proto.Size(item) }, send)
}

// sendChunks sends all items, each once, in messages that fit. No items are no message.
func sendChunks[T any](items []T, sizeOf func(T) int, send func([]T) error) error {
	for len(items) > 0 {
		n, size := 0, 0
		for n < len(items) && (n == 0 || size < chunk) {
			size += sizeOf(items[n])
			n++
		}
		if n > 1 && size > MaxMessage/2 {
			n-- // the last one is huge: it goes alone
		}
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}

// StreamPodSandboxes implements RuntimeService.
func (s *runtimeService) StreamPodSandboxes(r *runtime.StreamPodSandboxesRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxesResponse]) error {
	pods, err := s.listPods(r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(pods, encodedSize, func(items [][]byte) error {
		return stream.Send(withItems(&runtime.StreamPodSandboxesResponse{}, items))
	})
}

// StreamContainers implements RuntimeService.
func (s *runtimeService) StreamContainers(r *runtime.StreamContainersRequest, stream grpc.ServerStreamingServer[runtime.StreamContainersResponse]) error {
	containers, err := s.listContainers(r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(containers, encodedSize, func(items [][]byte) error {
		return stream.Send(withItems(&runtime.StreamContainersResponse{}, items))
	})
}

// StreamContainerStats implements RuntimeService.
func (s *runtimeService) StreamContainerStats(r *runtime.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamContainerStatsResponse]) error {
	return sendMessages(s.listContainerStats(stream.Context(), r.GetFilter()), func(items []*runtime.ContainerStats) error {
		return stream.Send(&runtime.StreamContainerStatsResponse{ContainerStats: items})
	})
}

// StreamPodSandboxStats implements RuntimeService.
func (s *runtimeService) StreamPodSandboxStats(r *runtime.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxStatsResponse]) error {
	return sendMessages(s.listPodStats(stream.Context(), r.GetFilter()), func(items []*runtime.PodSandboxStats) error {
		return stream.Send(&runtime.StreamPodSandboxStatsResponse{PodSandboxStats: items})
	})
}

// StreamPodSandboxMetrics implements RuntimeService.
func (s *runtimeService) StreamPodSandboxMetrics(_ *runtime.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	return sendMessages(s.listMetrics(stream.Context()), func(items []*runtime.PodSandboxMetrics) error {
		return stream.Send(&runtime.StreamPodSandboxMetricsResponse{PodSandboxMetrics: items})
	})
}

// StreamImages implements ImageService.
func (s *imageService) StreamImages(r *runtime.StreamImagesRequest, stream grpc.ServerStreamingServer[runtime.StreamImagesResponse]) error {
	images, err := s.listImages(stream.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	return sendMessages(images, func(items []*runtime.Image) error {
		return stream.Send(&runtime.StreamImagesResponse{Images: items})
	})
}
