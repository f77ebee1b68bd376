package registry

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// Attempt is what became of an endpoint at last.
type Attempt struct {
	// URL without query and credentials.
	URL string
	// Status of the answer, 0 when there was none.
	Status int
	// Err is why there was no answer, or what was wrong with it.
	Err error
	// Text is what the registry said of an error; may be "".
	Text string
}

// trail collects the attempts of one operation: for each URL the last one, in the order in which they were first tried.
type trail struct {
	wait     func() func() // Options.Wait
	mu       sync.Mutex
	attempts []Attempt
}

func (t *trail) add(a Attempt) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.attempts {
		if t.attempts[i].URL == a.URL {
			t.attempts[i] = a
			return
		}
	}
	t.attempts = append(t.attempts, a)
}

// failed are the attempts that ended badly.
func (t *trail) failed() []Attempt {
	t.mu.Lock()
	defer t.mu.Unlock()
	var failed []Attempt
	for _, a := range t.attempts {
		if a.Err != nil || a.Status >= 400 {
			failed = append(failed, a)
		}
	}
	return failed
}

// note adds to what is known of an attempt what was found in the answer.
func note(ctx context.Context, r *http.Response, text string, err error) {
	if t, ok := ctx.Value(trailKey{}).(*trail); ok {
		t.add(Attempt{URL: plainURL(r.Request.URL), Status: r.StatusCode, Text: text, Err: err})
	}
}

// Keys of what a request's context has.
type (
	trailKey  struct{}
	roundsKey struct{} // whoever asks tries again by himself
	hostKey   struct{} // the endpoint, wherever it redirects to
)

// The bounds of waiting for a registry that answers 429 or 503 with Retry-After.
const (
	maxRetries = 4
	maxWait    = 2 * time.Minute
)

// transport records what becomes of each request and honours Retry-After (RFC 9110, 10.2.3) of requests without a body.
type transport struct {
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	for retry := 0; ; retry++ {
		response, err := t.next.RoundTrip(r)
		recorder, ok := r.Context().Value(trailKey{}).(*trail)
		if ok {
			attempt := Attempt{URL: plainURL(r.URL), Err: err}
			if err == nil {
				attempt.Status = response.StatusCode
			}
			recorder.add(attempt)
		}
		if err != nil || r.Body != nil && r.Body != http.NoBody || retry == maxRetries || r.Context().Value(roundsKey{}) != nil {
			return response, err
		}
		delay, ok := retryAfter(response, time.Now())
		if !ok || delay > maxWait {
			return response, nil
		}
		_, _ = io.CopyN(io.Discard, response.Body, 64<<10)
		_ = response.Body.Close()
		var wait func() func()
		if recorder != nil {
			wait = recorder.wait
		}
		if err := pause(r.Context(), delay, wait); err != nil {
			return nil, err
		}
	}
}

// pause waits. wait, if not nil, is told that it begins, and what it returns is called when it ends.
func pause(ctx context.Context, delay time.Duration, wait func() func()) error {
	if wait != nil {
		defer wait()()
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// CloseIdleConnections lets http.Client.CloseIdleConnections through.
func (t *transport) CloseIdleConnections() {
	if closer, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}

// retryAfter is how long a busy registry asks to wait. False when it is not busy, or does not say.
func retryAfter(r *http.Response, now time.Time) (time.Duration, bool) {
	if r.StatusCode != http.StatusTooManyRequests && r.StatusCode != http.StatusServiceUnavailable {
		return 0, false
	}
	value := r.Header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second, true
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now)), true
	}
	return 0, false
}

// plainURL is a URL for error messages: blobs are often redirected to storage with a signature in the query.
func plainURL(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}
