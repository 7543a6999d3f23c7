//go:build linux

package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// middle is an HTTP proxy between a service and its S3 server. It counts the requests, and lets a test answer some
// of them itself. The service signs the proxy's address as host, and the server sees that same host, so that
// signatures hold.
type middle struct {
	endpoint string // for the service

	mu    sync.Mutex
	asked tally
	// curse says what becomes of a request; nil: all pass.
	curse func(*http.Request) fate
	met   int // requests that did not pass
}

// fate is what a proxy does with a request.
type fate int

const (
	pass      fate = iota
	fail           // InternalError, and the store has not seen it
	failAfter      // InternalError, although the store has done it
)

// cursedFor is how long a cursed request takes to fail: what was seen at Amazon in July 2016.
const cursedFor = 4880 * time.Millisecond

// tally counts requests by what S3 bills and by bytes of their bodies.
type tally struct {
	calls    map[string]int // PUT, GET, LIST, DELETE, HEAD, POST
	in, out  int64          // bytes of bodies to and from the store
	failures int            // answered with 500 and above
	givenUp  int            // by the service, before they were answered; not among the others
}

func (n tally) String() string {
	return fmt.Sprintf("PUT %d, GET %d, LIST %d, DELETE %d, HEAD %d; %d KiB to the store, %d KiB from it; %d failures, %d given up",
		n.calls["PUT"], n.calls["GET"], n.calls["LIST"], n.calls["DELETE"], n.calls["HEAD"], n.in>>10, n.out>>10, n.failures, n.givenUp)
}

// minus returns what was counted since before.
func (n tally) minus(before tally) tally {
	calls := maps.Clone(n.calls)
	for k, v := range before.calls {
		calls[k] -= v
	}
	return tally{calls, n.in - before.in, n.out - before.out, n.failures - before.failures, n.givenUp - before.givenUp}
}

// newMiddle starts a proxy to an S3 server's endpoint, http://HOST:PORT.
func newMiddle(t testing.TB, endpoint string) *middle {
	t.Helper()
	to, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	m := &middle{asked: tally{calls: map[string]int{}}}
	forward := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(to); r.Out.Host = r.In.Host },
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, ExpectContinueTimeout: time.Second},
		ErrorLog:  log.New(io.Discard, "", 0), // a killed service hangs up
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { m.serve(w, r, forward) }))
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		forward.Transport.(*http.Transport).CloseIdleConnections()
	})
	m.endpoint = srv.URL
	return m
}

func (m *middle) serve(w http.ResponseWriter, r *http.Request, forward http.Handler) {
	m.mu.Lock()
	m.asked.calls[billed(r)]++
	curse := m.curse
	m.mu.Unlock()
	in := &countReader{ReadCloser: r.Body}
	r.Body = in
	out := &countWriter{ResponseWriter: w}
	what := pass
	if curse != nil {
		what = curse(r)
	}
	switch what {
	case pass:
		forward.ServeHTTP(out, r)
	default:
		m.fail(out, r, what, forward)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked.in += in.n
	m.asked.out += out.n
	if r.Context().Err() != nil {
		m.asked.calls[billed(r)]--
		m.asked.givenUp++
	} else if out.status >= 500 {
		m.asked.failures++
	}
}

// fail answers as Amazon did: the request is taken in whole, and fails after a while.
func (m *middle) fail(w http.ResponseWriter, r *http.Request, what fate, forward http.Handler) {
	began := time.Now()
	if what == failAfter {
		forward.ServeHTTP(&discard{header: http.Header{}}, r)
	} else {
		io.Copy(io.Discard, r.Body)
	}
	m.mu.Lock()
	m.met++
	m.mu.Unlock()
	select {
	case <-time.After(cursedFor - time.Since(began)):
	case <-r.Context().Done():
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(http.StatusInternalServerError)
	io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message><RequestId>0</RequestId></Error>`)
}

// billed is the kind of request that S3 bills this one as.
func billed(r *http.Request) string {
	if r.Method == http.MethodGet && r.URL.Query().Has("list-type") {
		return "LIST"
	}
	return r.Method
}

// count returns what was asked until now.
func (m *middle) count() tally {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.asked
	n.calls = maps.Clone(n.calls)
	return n
}

// cursed returns how many requests did not pass.
func (m *middle) cursed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.met
}

// setCurse sets what becomes of requests from now on.
func (m *middle) setCurse(fn func(*http.Request) fate) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.curse = fn
}

// cursePart returns a curse on share of all requests of the methods, chosen by what the request is: its
// method, key, query, range and content. The same request always has the same fate. Half of the writes are done
// all the same.
func cursePart(seed uint64, share float64, methods ...string) func(*http.Request) fate {
	return func(r *http.Request) fate {
		h := sha256.New()
		fmt.Fprintln(h, seed, r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("Range"), r.Header.Get("X-Amz-Content-Sha256"))
		sum := binary.BigEndian.Uint64(h.Sum(nil))
		switch {
		case !strings.Contains(strings.Join(methods, " "), billed(r)) || float64(sum>>11)/(1<<53) >= share:
			return pass
		case r.Method != http.MethodGet && sum&1 == 0:
			return failAfter
		}
		return fail
	}
}

type countReader struct {
	io.ReadCloser
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	return n, err
}

type countWriter struct {
	http.ResponseWriter
	n      int64
	status int
}

func (c *countWriter) WriteHeader(code int) {
	c.status = code
	c.ResponseWriter.WriteHeader(code)
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (c *countWriter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// discard takes an answer that nobody is to see.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
