// Package streaming serves URLs that work once. A front offers one for each session; who has the URL may open that session, so
// it is unguessable, used up by the first request and dead after a short time.
//
// Sessions take over their connections. Their request's context ends when the client's side of the connection does, which
// net/http alone does not tell once it has handed a connection over.
package streaming

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// maxOffers bounds the URLs that wait to be used. kubelet and crictl use one at once.
	maxOffers = 1024
	// headerTimeout bounds how long a request's header may take.
	headerTimeout = 30 * time.Second
	// closeWait is how long Close waits for sessions to end after they were told to.
	closeWait = 3 * time.Second
)

// Config says where a server listens.
type Config struct {
	Address string // an IP address
	Port    int    // 0: any free one
	// CertFile and KeyFile make it serve HTTPS. They are read again for each connection, so that they may be replaced.
	CertFile, KeyFile string
	// TokenLifetime is how long a URL may be used.
	TokenLifetime time.Duration
	// Log is told what a client did wrong; nil is slog.Default.
	Log *slog.Logger
}

// Server serves what is offered. It may be used concurrently.
type Server struct {
	cfg  Config
	base url.URL
	http *http.Server
	end  context.CancelFunc

	tasks sync.WaitGroup // the accept loop, sessions, connections that linger

	mu     sync.Mutex // guards what follows; nothing blocks while it is held
	offers map[string]offer
	conns  map[net.Conn]struct{} // taken over by sessions; nil once closed
}

// Session serves the one request of a URL. It may take over the connection (http.Hijacker).
type Session func(w http.ResponseWriter, r *http.Request)

type offer struct {
	kind    string
	expires time.Time
	serve   Session
}

// New listens and serves. Close it.
func New(c Config) (*Server, error) {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Server{cfg: c, offers: map[string]offer{}, conns: map[net.Conn]struct{}{}, base: url.URL{Scheme: "http"}}
	if c.CertFile != "" {
		s.base.Scheme = "https"
		if _, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile); err != nil {
			return nil, fmt.Errorf("certificate of the streaming server: %w", err)
		}
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(c.Address, strconv.Itoa(c.Port)))
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	s.base.Host = reachable(listener.Addr().(*net.TCPAddr))
	ctx, cancel := context.WithCancel(context.Background())
	s.end = cancel
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{kind}/{token}", s.serve)
	mux.HandleFunc("POST /{kind}/{token}", s.serve)
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
		// Only HTTP/1.1 hands connections over.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
			return &pair, err
		}},
	}
	s.tasks.Go(func() {
		err := s.run(listener)
		if !errors.Is(err, http.ErrServerClosed) {
			c.Log.Error("the streaming server has ended", "error", err)
		}
	})
	return s, nil
}

func (s *Server) run(l net.Listener) error {
	if s.cfg.CertFile != "" {
		return s.http.ServeTLS(l, "", "")
	}
	return s.http.Serve(l)
}

// reachable is host and port at which a client on this node finds a listener.
func reachable(a *net.TCPAddr) string {
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "127.0.0.1"
		if a.IP.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(a.Port))
}

// Addr is the host and port of the URLs.
func (s *Server) Addr() string { return s.base.Host }

// Offer makes a URL for a session. Kind is the first part of its path. errdefs.ErrResourceExhausted: too many wait.
func (s *Server) Offer(kind string, serve Session) (string, error) {
	var random [32]byte
	_, _ = rand.Read(random[:]) // it never fails (crypto/rand)
	token := base64.RawURLEncoding.EncodeToString(random[:])
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for old, o := range s.offers {
		if now.After(o.expires) {
			delete(s.offers, old)
		}
	}
	if len(s.offers) >= maxOffers {
		return "", fmt.Errorf("%d streaming URLs wait to be used: %w", len(s.offers), errdefs.ErrResourceExhausted)
	}
	if s.conns == nil {
		return "", fmt.Errorf("the streaming server is closed: %w", errdefs.ErrUnavailable)
	}
	s.offers[token] = offer{kind: kind, expires: now.Add(s.cfg.TokenLifetime), serve: serve}
	u := s.base
	u.Path = "/" + kind + "/" + token
	return u.String(), nil
}

// take uses up a token, whether or not it is still good.
func (s *Server) take(kind, token string) (Session, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, found := s.offers[token]
	if !found || o.kind != kind {
		return nil, false
	}
	delete(s.offers, token)
	return o.serve, !time.Now().After(o.expires)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	session, good := s.take(r.PathValue("kind"), r.PathValue("token"))
	if !good {
		s.cfg.Log.Debug("a streaming URL that is not known, was used, or is too old", "kind", r.PathValue("kind"), "client", r.RemoteAddr)
		http.Error(w, "this URL is not known, was used, or is too old: it works once, for "+s.cfg.TokenLifetime.String(), http.StatusNotFound)
		return
	}
	if !s.begin() {
		http.Error(w, "the server is closing", http.StatusServiceUnavailable)
		return
	}
	defer s.tasks.Done()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	session(&takeover{ResponseWriter: w, server: s, ended: cancel}, r.WithContext(ctx))
}

// begin counts a session, unless the server is closed: then Close may be waiting already.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns != nil {
		s.tasks.Add(1)
	}
	return s.conns != nil
}

// track has Close close a connection.
func (s *Server) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns != nil {
		s.conns[c] = struct{}{}
	}
	return s.conns != nil
}

func (s *Server) untrack(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// Close ends all sessions and waits for them.
func (s *Server) Close() error {
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	s.end()
	err := s.http.Close()
	for c := range conns {
		_ = c.Close()
	}
	done := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closeWait):
		err = errors.Join(err, errors.New("not all streaming sessions have ended"))
	}
	return err
}
