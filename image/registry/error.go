package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
)

// Error says why something could not be got from a registry: what, every endpoint tried and what became of it. It
// matches one of errdefs' kinds: ErrNotFound, ErrPermissionDenied (the credential was refused or is missing),
// ErrDataLoss (not what the descriptor says), ErrUnavailable (no answer, or one that may be better later).
type Error struct {
	// What was asked for ("manifest of docker.io/library/busybox:latest").
	What string
	// Attempts that failed, in order.
	Attempts []Attempt
	// Cause is the error that ended it.
	Cause error
	kind  error
	verb  string // "" is get
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	verb := cmp.Or(e.verb, "get")
	fmt.Fprintf(&b, "%s %s: %v", verb, e.What, e.Cause)
	begin := "; tried "
	if n := len(e.Attempts); n > 0 && strings.HasSuffix(e.Attempts[n-1].String(), e.Cause.Error()) {
		b.Reset() // the last attempt says it
		fmt.Fprintf(&b, "%s %s", verb, e.What)
		begin = ": tried "
	}
	for i, a := range e.Attempts {
		b.WriteString([]string{begin, ", "}[min(i, 1)])
		b.WriteString(a.String())
	}
	return b.String()
}

// Unwrap gives the kind and the cause.
func (e *Error) Unwrap() []error { return []error{e.kind, e.Cause} }

// String is the attempt in a few words.
func (a Attempt) String() string {
	if a.Err != nil {
		return a.URL + ": " + a.Err.Error()
	}
	text := fmt.Sprintf("%s: %d %s", a.URL, a.Status, http.StatusText(a.Status))
	if a.Text != "" {
		text += " (" + a.Text + ")"
	}
	return text
}

// explain makes an Error of what went wrong. Ends of the context and our own errors pass as they are.
func explain(ctx context.Context, what string, t *trail, err error) error {
	var own *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &own):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("get %s: %w", what, context.Cause(ctx))
	}
	attempts := t.failed()
	return &Error{What: what, Attempts: attempts, Cause: err, kind: kindOf(err, attempts)}
}

// kindOf chooses the kind: what the last endpoint said decides, because the earlier ones are mirrors.
func kindOf(err error, attempts []Attempt) error {
	if errors.Is(err, docker.ErrInvalidAuthorization) {
		return errdefs.ErrPermissionDenied
	}
	for _, kind := range []error{errdefs.ErrDataLoss, errdefs.ErrNotImplemented, errdefs.ErrFailedPrecondition} {
		if errors.Is(err, kind) {
			return kind
		}
	}
	if len(attempts) > 0 {
		switch last := attempts[len(attempts)-1]; {
		case last.Status == http.StatusUnauthorized, last.Status == http.StatusForbidden:
			return errdefs.ErrPermissionDenied
		case last.Status == http.StatusNotFound:
			return errdefs.ErrNotFound
		case last.Status == http.StatusRequestedRangeNotSatisfiable: // asked to go on after a stream that ended early
			return errdefs.ErrDataLoss
		case last.Err != nil, last.Status == http.StatusTooManyRequests, last.Status >= 500:
			return errdefs.ErrUnavailable
		}
	}
	var network net.Error
	switch {
	case errors.As(err, &network):
		return errdefs.ErrUnavailable
	case errdefs.IsNotFound(err):
		return errdefs.ErrNotFound
	case errdefs.IsFailedPrecondition(err):
		return errdefs.ErrFailedPrecondition
	case errdefs.IsInvalidArgument(err):
		return errdefs.ErrInvalidArgument
	}
	return errdefs.ErrUnavailable
}
