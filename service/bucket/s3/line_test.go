package s3

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/s3server"
	"holdfast/service/bucket"
)

// states counts the connections that a server has seen and has now.
type states struct {
	mu       sync.Mutex
	all, now int
	changed  chan struct{}
}

func (s *states) note(_ net.Conn, c http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch c {
	case http.StateNew:
		s.all++
		s.now++
	case http.StateClosed:
		s.now--
	default:
		return
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *states) count() (all, now int, changed chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all, s.now, s.changed
}

// TestFresh: calls share a connection; one that is asked to be fresh has its own, which is closed afterwards.
func TestFresh(t *testing.T) {
	f := &s3server.Fake{}
	srv := httptest.NewUnstartedServer(f)
	st := &states{changed: make(chan struct{})}
	srv.Config.ConnState = st.note
	srv.Start()
	defer srv.Close()
	b := to(t, srv.URL)
	for range 20 {
		for op, call := range calls {
			if err := call(t.Context(), b); err != nil && !bucket.ClassOf(err).Answer() {
				t.Fatalf("%s: %v", op, err)
			}
		}
	}
	// One would do. On a busy machine net/http now and then gives up a connection whose request took long to write.
	before, _, _ := st.count()
	if before > 10 {
		t.Errorf("%d connections for 120 calls one after another", before)
	}
	const n = 10
	for range n {
		if err := b.Put(bucket.Fresh(t.Context()), "k", []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if all, _, _ := st.count(); all != before+n {
		t.Errorf("%d connections, want %d more than %d", all, n, before)
	}
	for all, now, changed := st.count(); now > before; all, now, changed = st.count() {
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d of %d connections stay open", now, all)
		}
	}
}

// TestConnectionsAreBounded: calls that hang wait for one another, and not for memory.
func TestConnectionsAreBounded(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-release }))
	st := &states{changed: make(chan struct{})}
	srv.Config.ConnState = st.note
	srv.Start()
	defer srv.Close()
	defer close(release)
	b := to(t, srv.URL)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 3 * maxConns {
		wg.Go(func() {
			c := ctx
			if i%2 == 1 {
				c = bucket.Fresh(c)
			}
			if err := b.Delete(c, "k"); bucket.ClassOf(err) != bucket.ClassCanceled {
				t.Error(err)
			}
		})
	}
	for all, _, changed := st.count(); all < 2*maxConns; all, _, changed = st.count() {
		<-changed
	}
	_, _, changed := st.count()
	select { // nothing comes after them
	case <-changed:
	case <-time.After(100 * time.Millisecond):
	}
	if all, _, _ := st.count(); all > 2*maxConns {
		t.Errorf("%d connections, at most %d are allowed", all, 2*maxConns)
	}
	cancel()
	wg.Wait()
}

// TestDeadlines: a call ends with its ctx, before an answer and in the middle of one, and says which of the two.
func TestDeadlines(t *testing.T) {
	began := make(chan struct{}, 1)
	half := false
	release := make(chan struct{})
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if half {
			w.Header().Set("Content-Length", "3")
			w.Header().Set("Content-Range", "bytes 2-4/9")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "2")
			_ = http.NewResponseController(w).Flush()
		}
		began <- struct{}{}
		<-release
	})
	defer close(release)
	for _, half = range []bool{false, true} {
		for op, call := range calls {
			if half && op != bucket.OpGet {
				continue
			}
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-began; cancel() }()
			if err := call(ctx, b); !errors.Is(err, context.Canceled) || isError(err, bucket.ClassCanceled, object[op]) != nil {
				t.Errorf("%s, half %v: %v", op, half, err)
			}
			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
			err := call(ctx, b)
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || isError(err, bucket.ClassTimeout, object[op]) != nil {
				t.Errorf("%s, half %v: %v", op, half, err)
			}
			<-began
		}
	}
}

// TestNotReached: nobody there, a name that does not exist, a connection that is cut, and somebody who cannot be trusted.
func TestNotReached(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	l.Close()
	cut, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	go func() {
		for {
			c, err := cut.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(c, make([]byte, 100))
			_ = c.(*net.TCPConn).SetLinger(0) // a reset
			c.Close()
		}
	}()
	tls := httptest.NewUnstartedServer(&s3server.Fake{})
	tls.Config.ErrorLog = log.New(io.Discard, "", 0) // our own refusals
	tls.StartTLS()
	defer tls.Close()
	for endpoint, says := range map[string]string{
		nobody:                           "refused",
		"http://" + cut.Addr().String():  "",
		"https://store.invalid":          "store.invalid",
		tls.URL:                          "AWS_CA_BUNDLE",
		"https://" + cut.Addr().String(): "",
		strings.Replace(nobody, "http", "https", 1): "refused",
	} {
		b := to(t, endpoint)
		for op, call := range calls {
			if err := isError(call(t.Context(), b), bucket.ClassConnection, object[op], says); err != nil {
				t.Errorf("%s, %s: %v", endpoint, op, err)
			}
		}
	}
}

// trusting opens a bucket at a store with a certificate of its own.
func trusting(t *testing.T, srv *httptest.Server) *Bucket {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	settings(t)
	t.Setenv("AWS_ACCESS_KEY_ID", testKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", testSecret)
	t.Setenv("AWS_CA_BUNDLE", file)
	return opened(t, srv.URL)
}

// A certificate authority of one's own is named as AWS tools have it.
func TestOwnAuthority(t *testing.T) {
	srv := httptest.NewTLSServer(&s3server.Fake{})
	defer srv.Close()
	b := trusting(t, srv)
	if err := b.Put(t.Context(), "k", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(t.Context(), "k", 0, -1); err != nil || string(got) != "x" {
		t.Fatal(got, err)
	}
}

// Where a store sends us, we do not go: it may be anywhere, and our signature would go along.
func TestRedirectsAreNotFollowed(t *testing.T) {
	var visits atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { visits.Add(1) }))
	defer other.Close()
	status := 0
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Amz-Bucket-Region", "eu-west-9")
		http.Redirect(w, r, other.URL+r.URL.Path, status)
	})
	for _, status = range []int{301, 302, 303, 307, 308} {
		for op, call := range calls {
			if err := isError(call(t.Context(), b), bucket.ClassConfig, object[op], fmt.Sprint(status)); err != nil {
				t.Errorf("%s: %v", op, err)
			}
		}
	}
	if n := visits.Load(); n > 0 {
		t.Errorf("%d requests went to where the store pointed", n)
	}
	moved := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Amz-Bucket-Region", "eu-west-9")
		s3server.Refuse(w, http.StatusMovedPermanently, "PermanentRedirect", "elsewhere")
	})
	if err := isError(moved.Put(t.Context(), "k", nil), bucket.ClassConfig, "region=eu-west-9"); err != nil {
		t.Error(err)
	}
}

// TestEndlessAnswers: what a hostile store sends is read up to a bound, and not believed.
func TestEndlessAnswers(t *testing.T) {
	status, begin := 200, ""
	var sent atomic.Int64
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		sent.Store(0)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, begin)
		chunk := strings.Repeat("x", 32<<10)
		for {
			n, err := io.WriteString(w, chunk)
			sent.Add(int64(n))
			if err != nil || sent.Load() > 64<<20 {
				return
			}
		}
	})
	for _, status = range []int{200, 206, 404, 500} {
		for _, begin = range []string{"", "<Error><Code>", "<ListBucketResult><Contents><Key>"} {
			for op, call := range calls {
				err := call(t.Context(), b)
				if op == bucket.OpDelete && status/100 == 2 || op == bucket.OpNow && status/100 == 2 || op == bucket.OpPut && status/100 == 2 || op == bucket.OpSwap && status/100 == 2 {
					continue // its answer has no body that matters
				}
				if bucket.ClassOf(err).Answer() {
					t.Errorf("%s, %d, %q: %v", op, status, begin, err)
				}
				if n := sent.Load(); n > 48<<20 {
					t.Errorf("%s, %d, %q: %d bytes were taken", op, status, begin, n)
				}
			}
		}
	}
}

// TestLists: a list that lies is refused, as far as it can be seen; keys that are none of ours are passed over.
func TestLists(t *testing.T) {
	var pages []string
	asked := 0
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, pages[min(asked, len(pages)-1)])
		asked++
	})
	list := func(lines ...string) string {
		s := "<ListBucketResult>"
		for _, l := range lines {
			s += l
		}
		return s + "</ListBucketResult>"
	}
	at := func(key string, size int) string {
		return fmt.Sprintf("<Contents><Key>%s</Key><Size>%d</Size></Contents>", key, size)
	}
	more := func(token string) string {
		return "<IsTruncated>true</IsTruncated><NextContinuationToken>" + token + "</NextContinuationToken>"
	}
	one := at("cell/log/1", 1)
	for name, c := range map[string]struct {
		pages []string
		want  string
		class bucket.Class
	}{
		"empty":           {[]string{list()}, "[]", ""},
		"one":             {[]string{list(one)}, "[{log/1 1}]", ""},
		"two pages":       {[]string{list(one, more("a")), list(at("cell/log/2", 2))}, "[{log/1 1} {log/2 2}]", ""},
		"an empty page":   {[]string{list(more("a")), list(one)}, "[{log/1 1}]", ""},
		"foreign":         {[]string{list(at("cell/log/", 0), at("cell/log/.x", 1), at("cell/log/A", 1), at("cell/log/a b", 1), at("cell/log/b", 1))}, "[{log/b 1}]", ""},
		"escaped":         {[]string{list("<EncodingType>url</EncodingType>", at("cell%2Flog%2F1", 1), at("cell/log/2%01+%C3%A4", 1), at("cell/log/3", 3))}, "[{log/1 1} {log/3 3}]", ""},
		"badly escaped":   {[]string{list("<EncodingType>url</EncodingType>", at("cell/log/%zz", 1))}, "", bucket.ClassCorrupt},
		"another prefix":  {[]string{list(at("cell/lox/1", 1))}, "", bucket.ClassCorrupt},
		"another place":   {[]string{list(at("log/1", 1))}, "", bucket.ClassCorrupt},
		"twice":           {[]string{list(one, one)}, "", bucket.ClassCorrupt},
		"out of order":    {[]string{list(at("cell/log/2", 1), one)}, "", bucket.ClassCorrupt},
		"over pages":      {[]string{list(at("cell/log/2", 1), more("a")), list(one)}, "", bucket.ClassCorrupt},
		"no size":         {[]string{list(at("cell/log/1", -1))}, "", bucket.ClassCorrupt},
		"no way on":       {[]string{list(one, "<IsTruncated>true</IsTruncated>")}, "", bucket.ClassCorrupt},
		"round and round": {[]string{list(more("a"))}, "", bucket.ClassCorrupt},
		"nothing":         {[]string{""}, "", bucket.ClassCorrupt},
		"half":            {[]string{strings.TrimSuffix(list(one), "</ListBucketResult>")}, "", bucket.ClassCorrupt},
		"half a line":     {[]string{list(one)[:40]}, "", bucket.ClassCorrupt},
		"no list":         {[]string{"<html><body>hello</body></html>"}, "", bucket.ClassCorrupt},
		"no XML":          {[]string{"hello"}, "", bucket.ClassCorrupt},
		"two documents":   {[]string{list() + list(one)}, "", bucket.ClassCorrupt},
		"an entity":       {[]string{`<!DOCTYPE x [<!ENTITY a "aaaa">]>` + list(at("cell/log/&a;", 1))}, "", bucket.ClassCorrupt},
	} {
		pages, asked = c.pages, 0
		got, err := b.List(t.Context(), "log/", "", 0)
		if c.class != "" {
			if err := isError(err, c.class, `list "log/"`); err != nil || got != nil {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		} else if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, %v; want %s", name, got, err, c.want)
		}
	}
	pages, asked = []string{list(one)}, 0
	if got, err := b.List(t.Context(), "log/", "log/1", 0); err == nil {
		t.Errorf("what is not after the place asked for: %v", got)
	}
}

// TestSwapAsks: the conditions that are sent, and what each answer means.
func TestSwapAsks(t *testing.T) {
	var put http.Header
	status, code := 200, ""
	tag := `"abc"`
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			if tag != "" {
				w.Header().Set("ETag", tag)
			}
			_, _ = io.WriteString(w, "old")
			return
		}
		put = r.Header
		if status != 200 {
			s3server.Refuse(w, status, code, "")
		}
	})
	ctx := t.Context()
	if err := b.Swap(ctx, "k", []byte("old"), []byte("new")); err != nil || put.Get("If-Match") != tag || put.Get("If-None-Match") != "" {
		t.Errorf("%v, %v", err, put)
	}
	if err := b.Swap(ctx, "k", nil, []byte("new")); err != nil || put.Get("If-Match") != "" || put.Get("If-None-Match") != "*" {
		t.Errorf("%v, %v", err, put)
	}
	put = nil
	if err := b.Swap(ctx, "k", []byte("other"), []byte("new")); !errors.Is(err, bucket.ErrChanged) || put != nil {
		t.Errorf("%v; it wrote %v", err, put)
	}
	for _, old := range [][]byte{nil, []byte("old")} {
		for _, c := range []struct {
			status int
			code   string
			is     error
			class  bucket.Class
		}{
			{412, "PreconditionFailed", bucket.ErrChanged, bucket.ClassRefused},
			{404, "NoSuchKey", bucket.ErrChanged, bucket.ClassRefused},
			{404, "NoSuchBucket", nil, bucket.ClassConfig},
			{409, "ConditionalRequestConflict", nil, bucket.ClassBusy},
			{501, "NotImplemented", bucket.ErrUnconditional, bucket.ClassConfig},
			{500, "InternalError", nil, bucket.ClassServer},
		} {
			status, code = c.status, c.code
			err := b.Swap(ctx, "k", old, []byte("new"))
			if no := isError(err, c.class); no != nil || c.is != nil && !errors.Is(err, c.is) || errors.Is(err, bucket.ErrChanged) != (c.is == bucket.ErrChanged) {
				t.Errorf("%d %s: %v, %v", c.status, c.code, err, no)
			}
		}
	}
	status, tag = 200, ""
	if err := b.Swap(ctx, "k", []byte("old"), []byte("new")); !errors.Is(err, bucket.ErrUnconditional) {
		t.Errorf("no ETag: %v", err)
	}
	if err := b.Swap(ctx, "k", nil, make([]byte, maxSwap+1)); err == nil {
		t.Error("too much was swapped")
	}
}

// TestNow: the store's clock is the Date of its answer, whatever ours is.
func TestNow(t *testing.T) {
	date := "Tue, 02 Jan 2001 03:04:05 GMT"
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Date"] = nil
		if date != "" {
			w.Header().Set("Date", date)
		}
		s3server.Refuse(w, http.StatusNotFound, "NoSuchKey", "")
	})
	if now, err := b.Now(t.Context()); err != nil || !now.Equal(time.Date(2001, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%v, %v", now, err)
	}
	for _, date = range []string{"", "yesterday"} {
		if now, err := b.Now(t.Context()); isError(err, bucket.ClassConfig, "Date") != nil {
			t.Errorf("%q: %v, %v", date, now, err)
		}
	}
}

// TestWrongClock: a store refuses our clock once; after that requests are signed by the store's, so that backups go on while
// the journal notices that the clocks disagree.
func TestWrongClock(t *testing.T) {
	store := time.Now().Add(-3 * time.Hour)
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", store.UTC().Format(http.TimeFormat))
		signed, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
		if err != nil || signed.Sub(store).Abs() > 15*time.Minute {
			s3server.Refuse(w, http.StatusForbidden, "RequestTimeTooSkewed", "The difference is too large.")
			return
		}
		s3server.Refuse(w, http.StatusNotFound, "NoSuchKey", "")
	})
	if err := isError(b.Put(t.Context(), "k", nil), bucket.ClassClock, "clock"); err != nil {
		t.Error(err)
	}
	if now, err := b.Now(t.Context()); err != nil || now.Sub(store).Abs() > 2*time.Second {
		t.Errorf("%v, %v; the store has %v", now, err, store)
	}
}

// TestSwapReadsAnew: a store that fails one request for ever, however often it is made, does not keep an object as it is.
// What is there is compared whole, whatever range is asked for.
func TestSwapReadsAnew(t *testing.T) {
	f, cursed := &s3server.Fake{}, map[string]bool{"": true} // of all of it
	curse := true
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if of := r.Header.Get("Range"); curse && r.Method == http.MethodGet {
			if cursed[of] || len(cursed) == 1 {
				cursed[of] = true
				s3server.Refuse(w, 500, "InternalError", "")
				return
			}
		}
		f.ServeHTTP(w, r)
	})
	ctx := t.Context()
	swap := func(there, old string, n int) (err error) {
		t.Helper()
		if err := b.Put(ctx, "k", []byte(there)); err != nil {
			t.Fatal(err)
		}
		for range n {
			if err = b.Swap(ctx, "k", []byte(old), []byte("new")); err == nil {
				break
			}
		}
		return err
	}
	if err := swap("old", "old", 3); err != nil || len(cursed) != 2 {
		t.Errorf("swap: %v", err)
	}
	curse = false
	for _, there := range []string{"older", "ol", "", "bold", "odd", "old" + strings.Repeat("d", 2*maxSwap)} {
		if err := swap(there, "old", 1); !errors.Is(err, bucket.ErrChanged) {
			t.Errorf("of %.5q, %d bytes: %v", there, len(there), err)
		}
	}
	if err := swap("", "", 1); err != nil {
		t.Errorf("of an empty object: %v", err)
	}
	if err := swap("old", "", 1); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("of what should be empty: %v", err)
	}
}
