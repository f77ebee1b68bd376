package ctxio

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReader(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := Reader(ctx, strings.NewReader("abcdef"))
	first := make([]byte, 3)
	if n, err := io.ReadFull(r, first); err != nil || string(first[:n]) != "abc" {
		t.Fatalf("read %q, %v", first[:n], err)
	}
	cancel()
	if rest, err := io.ReadAll(r); !errors.Is(err, context.Canceled) || len(rest) > 0 {
		t.Errorf("after the end of the context: %q, %v", rest, err)
	}
}
