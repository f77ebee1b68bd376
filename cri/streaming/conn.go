package streaming

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// lingerLimit is how long a connection is read after our side was closed: what the client is still sending would otherwise
// reset it, and with it what the client has not read yet.
const lingerLimit = 2 * time.Second

// takeover is a response that hands over its connection watched.
type takeover struct {
	http.ResponseWriter
	server *Server
	ended  func() // called when the client's side has ended
}

// Hijack implements http.Hijacker.
func (t *takeover) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(t.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if !t.server.track(conn) {
		_ = conn.Close()
		return nil, nil, net.ErrClosed
	}
	head, _ := buffered.Reader.Peek(buffered.Reader.Buffered())
	w := &watched{Conn: conn, server: t.server, ended: t.ended, head: bytes.NewReader(bytes.Clone(head))}
	return w, bufio.NewReadWriter(bufio.NewReader(w), bufio.NewWriter(w)), nil
}

// watched is a connection that tells when its other side has ended. It is read by one goroutine at a time.
type watched struct {
	net.Conn
	server *Server
	ended  func()
	head   *bytes.Reader // what had been read with the request
	once   sync.Once
}

// Read implements net.Conn.
func (w *watched) Read(b []byte) (int, error) {
	if w.head.Len() > 0 {
		return w.head.Read(b)
	}
	n, err := w.Conn.Read(b)
	if err != nil {
		w.ended()
	}
	return n, err
}

// Close implements net.Conn. What was written still reaches the client.
func (w *watched) Close() error {
	err := net.ErrClosed
	w.once.Do(func() {
		w.ended()
		half, can := w.Conn.(interface{ CloseWrite() error })
		if !can || half.CloseWrite() != nil || !w.server.begin() {
			w.server.untrack(w.Conn)
			err = w.Conn.Close()
			return
		}
		err = nil
		go func() {
			defer w.server.tasks.Done()
			_ = w.Conn.SetDeadline(time.Now().Add(lingerLimit))
			_, _ = io.Copy(io.Discard, w.Conn)
			w.server.untrack(w.Conn)
			_ = w.Conn.Close()
		}()
	})
	return err
}
