// Package ctxio ends copies when a context does.
package ctxio

import (
	"context"
	"io"
)

// Reader reads from r until ctx ends; its error is the context's then. A read that waits is not ended.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
