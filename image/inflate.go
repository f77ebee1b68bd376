package image

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/criserver/criserver/internal/inflate"
)

// compression is what a stream begins as.
type compression int

const (
	uncompressed compression = iota
	compressedGzip
	compressedZstd // or a frame that zstd skips
)

func compressionOf(magic []byte) compression {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return compressedGzip
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}):
		return compressedZstd
	}
	return uncompressed
}

// maxWindow is the largest window, and so memory, that a layer in zstd may ask for: four times what RFC 8878 wants every
// decoder to have. Sixteen layers at once could otherwise ask for gigabytes.
const maxWindow = 32 << 20

// inflater recognizes the compression by the first bytes, as media types are often wrong. It gives what fills a buffer from
// inflate.Window on, and what to call at the end.
func inflater(r io.Reader) (next func([]byte) (int, error), done func(), err error) {
	buffered := bufio.NewReaderSize(r, 16) // large reads go past it
	magic, err := buffered.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	plain := func(r io.Reader) func([]byte) (int, error) {
		return func(buf []byte) (int, error) { return fill(r, buf[inflate.Window:]) }
	}
	switch compressionOf(magic) {
	case compressedGzip:
		d := decoders.Get().(*inflate.Decoder)
		d.Reset(buffered)
		return d.Next, func() { d.Reset(nil); decoders.Put(d) }, nil
	case compressedZstd:
		// What runs at the same time are the stages around it; more goroutines in it would take more memory. The digest of the
		// layer is a better checksum than that of the frame.
		z, err := zstd.NewReader(buffered, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w", err)
		}
		return plain(z), z.Close, nil
	}
	return plain(buffered), func() {}, nil
}

// unpackedReader is an inflater as an io.Reader.
type unpackedReader struct {
	next func([]byte) (int, error)
	now  *piece
	rest []byte
	err  error
}

// unpacked reads a stream, inflated if it is compressed. Call done at the end.
func unpacked(r io.Reader) (io.Reader, func(), error) {
	next, done, err := inflater(r)
	if err != nil {
		return nil, nil, err
	}
	u := &unpackedReader{next: next, now: newPiece(&piecePool, 1)}
	return u, func() { done(); u.now.release() }, nil
}

// Read implements io.Reader.
func (u *unpackedReader) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		if u.err != nil {
			return 0, u.err
		}
		var n int
		n, u.err = u.next(u.now.buf)
		u.rest = u.now.buf[inflate.Window : inflate.Window+n]
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}
