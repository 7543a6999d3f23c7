// Package remote is the client's end of the wire: it dials the service that a key file names, repeats
// requests that failed for as long as the user's patience lasts, verifies the vault's history, keeps a
// window of sealed blocks until the service has said that they are durable, and fetches blocks.
//
// What it remembers between runs is one small file in its cache directory: the newest head of the
// vault's history that it verified. A service that later shows a history in which that head is missing
// is found out (history.ErrOrder). Losing the file costs that memory and nothing else.
package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
	"holdfast/wire"
)

const (
	// DefaultPatience is how long a request is repeated without success before the client gives up.
	DefaultPatience = 5 * time.Minute

	firstPause  = 200 * time.Millisecond // before the first repetition; doubles from there
	longPause   = 5 * time.Second        // the longest pause that the client chooses itself
	noticeAfter = 2 * time.Second        // of failing, the user is told what is being waited for
	idleLimit   = 2 * time.Minute        // without one byte in either direction a request is abandoned
	dialLimit   = 20 * time.Second
	greetLimit  = 10 * time.Second // for the operator's notice, without which a command goes on
	maxConns    = 24
)

// Options are what a caller may choose. The zero value is ready to use, except that without a CacheDir
// no head is remembered.
type Options struct {
	Patience    time.Duration // 0 means DefaultPatience, less than 0 none: fail at the first error
	CacheDir    string        // where the last verified head is remembered; made if absent
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Notify is told one sentence when the client begins to wait, what the operator has to say, and that the account is not
	// paid; may be nil.
	Notify func(message string)
	Record func(history.Entry) // is told every entry of the history, verified, in order; may be nil
}

// UnavailableError says that the service could not be reached, or would not serve, for the whole of the
// user's patience.
type UnavailableError struct {
	Address string
	Waited  time.Duration
	Err     error // of the last attempt
}

func (e *UnavailableError) Error() string {
	if wire.CodeOf(e.Err) != "" {
		return fmt.Sprintf("the service at %s does not serve at the moment: %v; try again later, what was uploaded is kept", e.Address, e.Err)
	}
	return fmt.Sprintf("the service at %s cannot be reached (%v); check the network and the service, then try again, what was uploaded is kept", e.Address, cause(e.Err))
}

func (e *UnavailableError) Unwrap() error { return e.Err }

// ErrProtocol reports an answer that is not of this protocol.
var ErrProtocol = errors.New("the service answered in a way that this version does not understand")

// Client speaks to one service as one machine. It is safe for concurrent use.
type Client struct {
	m    *keyring.Machine
	opt  Options
	http *http.Client

	mu      sync.Mutex     // held while records are submitted, so that they follow one another
	vault   *history.Vault // verified up to vault.N
	memory  memory         // the head remembered from earlier runs
	ahead   bool           // the user was told that the service's clock is
	greeted bool           // the user was told what the operator has to say
	credit  *wire.Credit   // how the account stands, if the service said that it is not paid
	awaited place          // where the service says that it put a record, until the history shows it there

	noticeMu sync.Mutex
	noticed  time.Time // of the last notice
}

// place is a record and its number in the history.
type place struct {
	n  uint64
	id holdfast.RecordID
}

// Dial prepares to speak to the service that m names. It does not connect yet.
func Dial(m *keyring.Machine, opt Options) *Client {
	if opt.Patience == 0 {
		opt.Patience = DefaultPatience
	}
	if opt.DialContext == nil {
		opt.DialContext = (&net.Dialer{Timeout: dialLimit}).DialContext
	}
	tlsConfig := wire.ClientConfig(m.TLSKey(), m.ServiceKey)
	// One connection a request in flight: a fetch that is slow to be written does not hold up others,
	// as it would behind the shared flow control of HTTP/2.
	tlsConfig.NextProtos = []string{"http/1.1"}
	return &Client{
		m:   m,
		opt: opt,
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig:     tlsConfig,
			DialContext:         opt.DialContext,
			TLSHandshakeTimeout: dialLimit,
			MaxConnsPerHost:     maxConns,
			MaxIdleConnsPerHost: maxConns,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
			WriteBufferSize:     64 << 10,
			ReadBufferSize:      64 << 10,
		}},
		vault:  &history.Vault{ID: m.Vault},
		memory: recall(opt.CacheDir, m),
	}
}

// Close drops the client's idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Hello asks the service what it is and what it knows this machine as.
func (c *Client) Hello(ctx context.Context) (wire.Hello, error) {
	var h wire.Hello
	b, err := c.call(ctx, http.MethodGet, wire.PathHello, nil, wire.MaxJSON)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("read hello: %w: %w", ErrProtocol, err)
	}
	h.Notice = cut(h.Notice)
	return h, nil
}

// cut returns of a notice what a person can be expected to read.
func cut(notice string) string {
	if len(notice) > wire.MaxNotice {
		return strings.ToValidUTF8(notice[:wire.MaxNotice], "") + "..."
	}
	return notice
}

// call makes one request, whole body out and whole body (at most limit bytes) back, and repeats it for
// as long as patience lasts. Every request of the protocol may be repeated: what was done already is
// not done again.
func (c *Client) call(ctx context.Context, method, path string, body []byte, limit int64) ([]byte, error) {
	return c.send(ctx, method, path, body, limit, func() {})
}

// send is call; left is called each time that the whole body has been handed to the connection.
func (c *Client) send(ctx context.Context, method, path string, body []byte, limit int64, left func()) ([]byte, error) {
	var out []byte
	err := c.persist(ctx, func(ctx context.Context, w *watch) error {
		w.left = left
		r, err := c.attempt(ctx, method, path, body, w)
		if err != nil {
			return err
		}
		defer r.Close()
		out, err = io.ReadAll(io.LimitReader(r, limit+1))
		if err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		if int64(len(out)) > limit {
			return fmt.Errorf("%w: more than %d bytes", ErrProtocol, limit)
		}
		return nil
	})
	return out, err
}

// persist runs try until it succeeds, fails for good, or has failed for the whole of the patience since
// the last byte of an answer arrived.
func (c *Client) persist(ctx context.Context, try func(ctx context.Context, w *watch) error) error {
	since := time.Now() // of the last progress
	pause := firstPause
	var most int64 // bytes of the answer that an attempt got so far: one that gets no further is no progress
	for {
		actx, cancel := context.WithCancelCause(ctx)
		w := &watch{idle: time.AfterFunc(idleLimit, func() { cancel(errIdle) })}
		w.progress = func(got int64) {
			if got > most {
				most, since, pause = got, time.Now(), firstPause
			}
		}
		w.step = func() { most, w.got, since, pause = 0, 0, time.Now(), firstPause }
		err := try(actx, w)
		w.idle.Stop()
		if err != nil && context.Cause(actx) == errIdle {
			err = errIdle
		}
		cancel(nil)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !retryable(err) {
			return err
		}
		wait := jitter(pause)
		var we *wire.Error
		if errors.As(err, &we) && we.RetryAfter > 0 {
			wait = time.Duration(we.RetryAfter)*time.Second + rand.N(time.Second)
		}
		if wire.CodeOf(err) == wire.CodeOutOfOrder {
			wait = firstPause / 4 // the batch before it is under way: that is no trouble of the service's
		} else {
			pause = min(2*pause, longPause)
		}
		failing := time.Since(since)
		if failing+wait > c.opt.Patience {
			return &UnavailableError{Address: c.m.Address, Waited: failing, Err: err}
		}
		if failing > noticeAfter {
			c.notice(err, c.opt.Patience-failing)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// jitter makes half of a wait random, so that many clients do not come back at once.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

// sleep waits for d, or returns why ctx has ended.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// watch watches over one attempt. Bytes in either direction keep it from being abandoned as idle; only
// bytes of an answer count as progress against the user's patience, so that a service which takes
// uploads and never answers, or breaks off every answer, cannot hold the client for ever.
type watch struct {
	idle     *time.Timer
	got      int64           // bytes of the answer in this attempt, since its last step
	progress func(got int64) // called by the goroutine that runs the attempt
	step     func()          // the same, when a part of the answer is done with that will not be asked for again
	left     func()          // unless nil, called when the whole request has been handed to the connection
}

var errIdle = fmt.Errorf("no answer for %v", idleLimit)

// attempt makes one request and returns the body of a successful answer.
func (c *Client) attempt(ctx context.Context, method, path string, body []byte, w *watch) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+c.m.Address+path, nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if len(body) > 0 {
		req.ContentLength = int64(len(body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(&question{bytes.NewReader(body), w}), nil }
		req.Body, _ = req.GetBody()
	}
	resp, err := c.http.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // which request it was means nothing to people
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return &answer{resp.Body, w}, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, wire.MaxJSON))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	var we wire.Error
	if json.Unmarshal(b, &we) != nil || we.Code == "" {
		if resp.StatusCode >= 500 {
			return nil, fmt.Errorf("the service answered %s", resp.Status)
		}
		return nil, fmt.Errorf("%w: HTTP %s", ErrProtocol, resp.Status)
	}
	we.Message = strings.TrimSuffix(we.Message, ".") // it will stand inside a sentence
	we.Notice = cut(we.Notice)
	return nil, &we
}

// retryable reports whether the same request may succeed later.
func retryable(err error) bool {
	if code := wire.CodeOf(err); code != "" {
		return code.Retryable()
	}
	if errors.As(err, new(ownError)) {
		return false
	}
	for _, final := range []error{wire.ErrServiceKey, wire.ErrTransport, ErrProtocol} {
		if errors.Is(err, final) {
			return false
		}
	}
	return true
}

// ownError is an error of the caller's own, met while an answer was read: trying again will not help.
type ownError struct{ error }

func (e ownError) Unwrap() error { return e.error }

func (c *Client) notice(err error, left time.Duration) {
	if c.opt.Notify == nil {
		return
	}
	c.noticeMu.Lock()
	defer c.noticeMu.Unlock()
	if time.Since(c.noticed) < 30*time.Second {
		return
	}
	c.noticed = time.Now()
	c.opt.Notify(fmt.Sprintf("waiting for the service at %s (%v), for another %v at most", c.m.Address, cause(err), left.Round(time.Second)))
}

// cause strips the request's URL from a network error: people want "connection refused".
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns
	}
	if s := err.Error(); strings.HasSuffix(s, "EOF") || strings.HasSuffix(s, "http2: server sent GOAWAY") {
		return errors.New("the connection was closed")
	}
	return err
}

// question tells the watch that a request is leaving.
type question struct {
	r *bytes.Reader
	w *watch
}

func (q *question) Read(p []byte) (int, error) {
	q.w.idle.Reset(idleLimit)
	n, err := q.r.Read(p)
	if err == io.EOF && q.w.left != nil {
		q.w.left()
	}
	return n, err
}

// answer tells the watch that an answer is arriving.
type answer struct {
	io.ReadCloser
	w *watch
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if n > 0 {
		a.w.idle.Reset(idleLimit)
		a.w.got += int64(n)
		a.w.progress(a.w.got)
	}
	return n, err
}
