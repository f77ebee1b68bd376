package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// block is the unit in which holes are left: the smallest of the usual filesystems.
const block = 4096

var zeros [block]byte

// isSparse says whether the tar stores the file with holes.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for record := range hdr.PAXRecords {
		if strings.HasPrefix(record, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// copyData writes the content of the present entry.
func (w *writer) copyData(fd int) error {
	for {
		n, err := w.tar.Read(w.buffer)
		if n > 0 {
			if err := writeAll(fd, w.buffer[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read content: %w", err)
		}
	}
}

// copySparse writes the content of the present entry and leaves holes where it is zero.
func (w *writer) copySparse(fd int, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return refuse("it cannot be %d bytes large: %v", size, err)
	}
	for offset := int64(0); ; {
		n, err := io.ReadFull(w.tar, w.buffer)
		if err := writeBlocks(fd, w.buffer[:n], offset); err != nil {
			return err
		}
		offset += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && offset == size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read content: %w", err)
		}
	}
}

// writeBlocks writes those blocks of data that are not zero.
func writeBlocks(fd int, data []byte, offset int64) error {
	start := -1
	for at := 0; at < len(data); at += block {
		end := min(at+block, len(data))
		if bytes.Equal(data[at:end], zeros[:end-at]) {
			if start >= 0 {
				if err := pwriteAll(fd, data[start:at], offset+int64(start)); err != nil {
					return err
				}
			}
			start = -1
		} else if start < 0 {
			start = at
		}
	}
	if start < 0 {
		return nil
	}
	return pwriteAll(fd, data[start:], offset+int64(start))
}

func writeAll(fd int, data []byte) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("write content: %w", err)
		}
		data = data[max(n, 0):]
	}
	return nil
}

func pwriteAll(fd int, data []byte, offset int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(fd, data, offset)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("write content: %w", err)
		}
		data, offset = data[max(n, 0):], offset+int64(max(n, 0))
	}
	return nil
}
