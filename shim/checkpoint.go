package shim

import (
	"context"

	"github.com/criserver/criserver/shim/api"
)

// Freeze stops the processes of containers. They go on when Thaw is called, when release is, or when this process dies;
// release may be called more than once.
func (c *Client) Freeze(ctx context.Context, ids []string) (release func(), err error) {
	conn, err := c.connect(ctx) // of its own: its end is what thaws
	if err != nil {
		return nil, err
	}
	release = func() { _ = conn.Close() }
	stop := context.AfterFunc(ctx, release)
	defer stop()
	stream, err := api.NewShimClient(conn).Freeze(context.WithoutCancel(ctx), &api.FreezeRequest{Ids: ids})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		release()
		return nil, fromWire(ctx, err)
	}
	return release, nil
}

// Thaw lets containers go on that Freeze has stopped. One that is not frozen is no error.
func (c *Client) Thaw(ctx context.Context, ids []string) error {
	_, err := call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.ThawResponse, error) {
		return s.Thaw(ctx, &api.ThawRequest{Ids: ids})
	})
	return err
}

// Checkpoint writes the state of a frozen container's processes into a directory.
func (c *Client) Checkpoint(ctx context.Context, r *api.CheckpointRequest) error {
	_, err := call(ctx, c, func(ctx context.Context, s api.ShimClient) (*api.CheckpointResponse, error) {
		return s.Checkpoint(ctx, r)
	})
	return err
}
