package cri

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fieldError is a field of a request that cannot be used.
type fieldError struct {
	field, text string
	kind        error // of errdefs
}

func (e *fieldError) Error() string { return e.field + ": " + e.text }
func (e *fieldError) Unwrap() error { return e.kind }

func invalid(field, format string, args ...any) error {
	return &fieldError{field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument}
}

func required(field string) error { return invalid(field, "required") }

var kinds = []struct {
	is   func(error) bool
	code codes.Code
}{
	{errdefs.IsInvalidArgument, codes.InvalidArgument},
	{errdefs.IsNotFound, codes.NotFound},
	{errdefs.IsAlreadyExists, codes.AlreadyExists},
	{errdefs.IsFailedPrecondition, codes.FailedPrecondition},
	{errdefs.IsConflict, codes.FailedPrecondition},
	{errdefs.IsUnavailable, codes.Unavailable},
	{errdefs.IsNotImplemented, codes.Unimplemented},
	{errdefs.IsPermissionDenied, codes.PermissionDenied},
	{errdefs.IsUnauthorized, codes.Unauthenticated},
	{errdefs.IsResourceExhausted, codes.ResourceExhausted},
	{errdefs.IsOutOfRange, codes.OutOfRange},
	{errdefs.IsAborted, codes.Aborted},
	{errdefs.IsDataLoss, codes.DataLoss},
}

// statusOf gives an error its gRPC code. It is called once, at the edge. An error of no kind is Internal.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, is := status.FromError(err); is {
		return err
	}
	for _, kind := range kinds {
		if kind.is(err) {
			return status.Error(kind.code, err.Error())
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}
