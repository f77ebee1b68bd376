package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// The bounds of asking. Each round asks all endpoints; there is another one if an answer may be better later.
const (
	maxRounds = 5
	maxDelay  = 10 * time.Second // between rounds
	maxLogins = 2                // a token that has ended, then one that was got for it
)

// question is what a repository is asked.
type question struct {
	method string
	// path below the repository: "manifests" or "blobs", and which.
	path   []string
	header http.Header
	needs  docker.HostCapabilities
	// take looks at an answer that is no error, and keeps its body open if it is to be used. An error of errdefs.ErrDataLoss says
	// that the endpoint is not to be believed, and the next is asked.
	take func(*http.Response) error
	// not are hosts that are not asked.
	not []string
}

// ask asks the endpoints in order until one gives an answer that can be used, some rounds if need be.
func (r *Repository) ask(ctx context.Context, q question) error {
	hosts, err := r.hosts()
	if err != nil {
		return err
	}
	asked := slices.DeleteFunc(hosts, func(h docker.RegistryHost) bool {
		return !h.Capabilities.Has(q.needs) || slices.Contains(q.not, h.Host)
	})
	if len(asked) == 0 {
		return fmt.Errorf("no endpoint of %s may be asked for this (capabilities in hosts.toml): %w", r.spec.Hostname(), errdefs.ErrFailedPrecondition)
	}
	for round := 0; ; round++ {
		var last error
		wait := time.Duration(-1)
		for i := range asked {
			err := r.once(ctx, &asked[i], q)
			if err == nil || ctx.Err() != nil {
				return err
			}
			last = err
			if again, delay := later(err); again && (wait < 0 || delay < wait) {
				wait = delay
			}
		}
		if wait < 0 || wait > maxWait || round == maxRounds-1 {
			return last
		}
		if wait == 0 {
			wait = r.delay(round)
		}
		if err := pause(ctx, wait, r.wait); err != nil {
			return err
		}
	}
}

// delay is how long to wait before the next round: longer each time, and not for all at the same time.
func (r *Repository) delay(round int) time.Duration {
	delay := r.backoff
	for range min(round, 10) {
		delay = min(3*delay, maxDelay)
	}
	return delay/2 + rand.N(delay)
}

// answerError is an answer that says no.
type answerError struct {
	status int
	after  time.Duration // that it asks to wait; 0 when it does not say
	text   string        // of the registry; may be ""
}

func (e *answerError) Error() string {
	s := fmt.Sprintf("%d %s", e.status, http.StatusText(e.status))
	if e.text != "" {
		s += " (" + e.text + ")"
	}
	if e.after > maxWait {
		s += fmt.Sprintf(", asks to wait for %s", e.after)
	}
	return s
}

// later says whether the same question may get a better answer, and when, if that is known.
func later(err error) (bool, time.Duration) {
	var answer *answerError
	if errors.As(err, &answer) {
		return temporary(answer.status), answer.after
	}
	var token remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &token) {
		return temporary(token.StatusCode), 0
	}
	var network net.Error
	var lookup *net.DNSError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENETUNREACH),
		errors.As(err, &lookup) && !lookup.IsTimeout && !lookup.IsTemporary:
		return false, 0
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return true, 0
	}
	return errors.As(err, &network) && network.Timeout(), 0
}

func temporary(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// once asks one endpoint.
func (r *Repository) once(ctx context.Context, h *docker.RegistryHost, q question) error {
	response, err := r.send(ctx, h, q)
	if err == nil && response.StatusCode == http.StatusMethodNotAllowed && q.method == http.MethodHead {
		closeBody(response)
		q.method = http.MethodGet
		response, err = r.send(ctx, h, q)
	}
	if err != nil {
		return err
	}
	if response.StatusCode > 299 {
		defer closeBody(response)
		answer := &answerError{status: response.StatusCode, text: errorText(response)}
		if after, ok := retryAfter(response, time.Now()); ok {
			answer.after = after
		}
		note(ctx, response, answer.text, nil)
		return answer
	}
	if err := q.take(response); err != nil {
		note(ctx, response, "", err)
		closeBody(response)
		return err
	}
	return nil
}

// send sends the request, with a credential if the endpoint wants one.
func (r *Repository) send(ctx context.Context, h *docker.RegistryHost, q question) (*http.Response, error) {
	for login := 0; ; login++ {
		request, err := r.request(ctx, h, q)
		if err != nil {
			return nil, err
		}
		if err := h.Authorizer.Authorize(ctx, request); err != nil {
			return nil, fmt.Errorf("authorize: %w", err)
		}
		response, err := r.client(h).Do(request)
		if err != nil {
			if wrapped, ok := errors.AsType[*url.Error](err); ok {
				err = wrapped.Err // its URL may have a signature in the query
			}
			return nil, err
		}
		if response.StatusCode != http.StatusUnauthorized || login == maxLogins {
			return response, nil
		}
		err = h.Authorizer.AddResponses(ctx, []*http.Response{response})
		if errdefs.IsNotImplemented(err) {
			return response, nil
		}
		if err != nil && noCredential(err) {
			note(ctx, response, err.Error(), nil)
		}
		closeBody(response)
		if err != nil {
			return nil, fmt.Errorf("authorize: %w", err)
		}
	}
}

func (r *Repository) request(ctx context.Context, h *docker.RegistryHost, q question) (*http.Request, error) {
	u := url.URL{Scheme: h.Scheme, Host: h.Host, Path: path.Join(append([]string{"/", h.Path, r.repository}, q.path...)...)}
	if registry := r.spec.Hostname(); registry != h.Host && (registry != "docker.io" || h.Host != "registry-1.docker.io") {
		u.RawQuery = url.Values{"ns": {registry}}.Encode() // a mirror may be one of several registries
	}
	request, err := http.NewRequestWithContext(context.WithValue(context.WithValue(ctx, roundsKey{}, true), hostKey{}, h.Host), q.method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, header := range []http.Header{h.Header, q.header} {
		for key, values := range header {
			request.Header[http.CanonicalHeaderKey(key)] = append(request.Header[http.CanonicalHeaderKey(key)], values...)
		}
	}
	if request.Header.Get("User-Agent") == "" {
		request.Header.Set("User-Agent", userAgent)
	}
	return request, nil
}

// client follows redirects, and takes along what an endpoint's configuration says to send only within the endpoint.
func (r *Repository) client(h *docker.RegistryHost) *http.Client {
	client := *h.Client
	client.CheckRedirect = func(request *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("it redirects for ever")
		}
		if request.URL.Host != h.Host {
			request.Header.Del("Authorization")
			for key := range h.Header {
				request.Header.Del(key)
			}
		}
		return nil
	}
	return &client
}

// errorText is what the registry says of an error, made fit for a line.
func errorText(r *http.Response) string {
	const enough = 300
	data, _ := io.ReadAll(io.LimitReader(r.Body, 16<<10))
	var body struct {
		Errors []struct{ Code, Message string } `json:"errors"`
	}
	var all []string
	if json.Unmarshal(data, &body) == nil {
		for _, e := range body.Errors {
			all = append(all, strings.Trim(e.Code+": "+e.Message, ": "))
		}
	}
	text := strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(strings.Join(all, ", "), "?"))
	if len(text) > enough {
		text = strings.ToValidUTF8(text[:enough], "") + "..."
	}
	return text
}

// closeBody reads what little is left, so that the connection can be used again.
func closeBody(r *http.Response) {
	_, _ = io.CopyN(io.Discard, r.Body, 64<<10)
	_ = r.Body.Close()
}
