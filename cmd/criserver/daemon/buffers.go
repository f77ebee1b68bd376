package daemon

import (
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
)

// init gives gRPC buffers of every power of two for the messages that it encodes and decodes. It clears a buffer each time it
// takes one, and by itself has none between 32 KiB and 1 MiB: a list of a hundred containers then cost the clearing of a
// megabyte, and each buffer kept that much memory.
func init() {
	pool, err := mem.NewBinaryTieredBufferPool(8, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20)
	if err != nil {
		panic(err) // only for sizes that no slice can have
	}
	experimental.SetDefaultBufferPool(pool)
}
