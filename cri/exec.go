package cri

import (
	"context"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// execAnswer is how many bytes of output an ExecSync answers: what leaves room for the rest of the message.
const execAnswer = MaxMessage - 1024

// ExecSync implements RuntimeService. A command that outlives its timeout is killed, and the call ends with
// DeadlineExceeded, by which kubelet tells a slow probe from a failed one.
func (s *runtimeService) ExecSync(ctx context.Context, r *runtime.ExecSyncRequest) (*runtime.ExecSyncResponse, error) {
	if r.GetContainerId() == "" {
		return nil, required("container_id")
	}
	if len(r.GetCmd()) == 0 {
		return nil, required("cmd")
	}
	if err := texts("cmd", r.GetCmd()); err != nil {
		return nil, err
	}
	if r.GetTimeout() < 0 {
		return nil, invalid("timeout", "%d is negative", r.GetTimeout())
	}
	result, err := s.engine.Exec(ctx, r.GetContainerId(), r.GetCmd(), seconds(r.GetTimeout()))
	if err != nil {
		return nil, err
	}
	stdout, stderr := fit(result.Stdout, result.Stderr, execAnswer)
	return &runtime.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(result.ExitCode)}, nil
}

// fit cuts two outputs to limit bytes together. Neither loses a byte to the other's excess over half of it.
func fit(a, b []byte, limit int) ([]byte, []byte) {
	if len(a)+len(b) <= limit {
		return a, b
	}
	keep := max(limit/2, limit-len(b))
	a = a[:min(len(a), keep)]
	return a, b[:min(len(b), limit-len(a))]
}
