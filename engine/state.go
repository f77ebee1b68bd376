package engine

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// phase is the recorded state of a pod or container. Only move changes one.
//
//	pod:        creating ──> ready ──> notready
//	               │           │          │
//	               └───────────┴──────────┴──> removing ──> (gone)
//
//	container:  creating ──> created ──> running ──> exited
//	               │            │ │         │          │
//	               │            │ └─────────┼────>─────┤     (it could not be started, or ended before we heard of its start)
//	               └────────────┴───────────┴──────────┴──> removing ──> (gone)
//
// What is found creating or removing when the engine is opened is torn down. Ready means that RunPod has answered or will;
// notready that StopPod was asked for, whether or not everything could be let go of yet.
type phase string

const (
	creating phase = "creating"
	removing phase = "removing"

	ready    phase = "ready"
	notready phase = "notready"

	created phase = "created"
	running phase = "running"
	exited  phase = "exited"
)

var moves = map[phase][]phase{
	creating: {ready, created, removing},
	ready:    {notready, removing},
	notready: {removing},
	created:  {running, exited, removing},
	running:  {exited, removing},
	exited:   {removing},
}

// move changes a phase along the diagram; to stay is no error. Anything else is ErrFailedPrecondition and changes nothing.
func move(p *phase, to phase) error {
	if *p != to && !slices.Contains(moves[*p], to) {
		return fmt.Errorf("it is %s and cannot become %s: %w", *p, to, errdefs.ErrFailedPrecondition)
	}
	*p = to
	return nil
}

func (p phase) pod() PodState {
	if p == ready {
		return PodReady
	}
	return PodNotReady
}

func (p phase) container() ContainerState {
	switch p {
	case created:
		return ContainerCreated
	case running:
		return ContainerRunning
	case exited:
		return ContainerExited
	}
	return ContainerUnknown
}
