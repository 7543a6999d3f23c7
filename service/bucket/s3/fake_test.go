package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/s3server"
	"holdfast/service/bucket"
	"holdfast/service/bucket/buckettest"
)

const (
	testKey    = "AKIATESTTESTTEST"
	testSecret = "verysecretverysecretverysecret"
	testToken  = "temporarytokentemporarytoken"
)

// settings keeps the settings of whoever runs the tests out of them.
func settings(t testing.TB) {
	for _, v := range []string{"AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE", "AWS_ACCESS_KEY_ID",
		"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_WEB_IDENTITY_TOKEN_FILE"} {
		t.Setenv(v, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
}

// to opens a bucket at an endpoint, with credentials.
func to(t testing.TB, endpoint string) *Bucket {
	t.Helper()
	settings(t)
	t.Setenv("AWS_ACCESS_KEY_ID", testKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", testSecret)
	t.Setenv("AWS_SESSION_TOKEN", testToken)
	return opened(t, endpoint)
}

func opened(t testing.TB, endpoint string) *Bucket {
	t.Helper()
	a, err := ParseAddress("s3://" + s3server.BucketName + "/cell?endpoint=" + url.QueryEscape(endpoint))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// serve opens a bucket at a store that answers as h does.
func serve(t testing.TB, h http.HandlerFunc) *Bucket {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return to(t, srv.URL)
}

func TestConformanceFake(t *testing.T) {
	buckettest.Conformance(t, func(t testing.TB) bucket.Bucket { return serve(t, (&s3server.Fake{}).ServeHTTP) })
}

// TestProbeRefuses: a store that lacks something is found out over HTTP, and named; only what lacks nothing but
// conditional writes is usable by one owner.
func TestProbeRefuses(t *testing.T) {
	for lack, want := range map[s3server.Lack]struct {
		says  string
		alone bool
	}{
		s3server.IgnoresCreate:   {"more than one was applied", true},
		s3server.IgnoresReplace:  {"more than one was applied", true},
		s3server.RacesConditions: {"more than one was applied", true},
		s3server.NoConditions:    {"does not know conditional writes", true},
		s3server.NoTags:          {"no ETag", true},
		s3server.HidesNewest:     {"list-after-write", false},
	} {
		t.Run(string(lack), func(t *testing.T) {
			f := &s3server.Fake{Lacks: lack}
			b := serve(t, f.ServeHTTP)
			err := bucket.Probe(t.Context(), b, "cell/")
			if !errors.Is(err, bucket.ErrWeak) || errors.Is(err, bucket.ErrUnconditional) != want.alone || !strings.Contains(err.Error(), want.says) {
				t.Errorf("%v; want %q", err, want.says)
			}
			if err := bucket.ProbeAlone(t.Context(), b, "cell/"); (err == nil) != want.alone {
				t.Errorf("alone: %v", err)
			}
			if k := f.Keys(); len(k) > 0 && lack != s3server.HidesNewest {
				t.Errorf("left behind: %v", k)
			}
		})
	}
}

func isError(err error, c bucket.Class, parts ...string) error {
	var e *bucket.Error
	if !errors.As(err, &e) || e.Class != c || bucket.ClassOf(err) != c {
		return fmt.Errorf("class %s, want %s: %v", bucket.ClassOf(err), c, err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			return fmt.Errorf("%q does not say %q", err, p)
		}
	}
	for _, s := range []string{testKey, testSecret, testToken} {
		if strings.Contains(err.Error(), s) {
			return fmt.Errorf("%q shows credentials", err)
		}
	}
	return nil
}

// calls makes every call once.
var calls = map[bucket.Op]func(context.Context, *Bucket) error{
	bucket.OpPut: func(ctx context.Context, b *Bucket) error { return b.Put(ctx, "log/1", []byte("body")) },
	bucket.OpGet: func(ctx context.Context, b *Bucket) error { _, err := b.Get(ctx, "log/1", 2, 3); return err },
	bucket.OpList: func(ctx context.Context, b *Bucket) error {
		_, err := b.List(ctx, "log/", "", 0)
		return err
	},
	bucket.OpDelete: func(ctx context.Context, b *Bucket) error { return b.Delete(ctx, "log/1") },
	bucket.OpSwap:   func(ctx context.Context, b *Bucket) error { return b.Swap(ctx, "log/1", nil, []byte("new")) },
	bucket.OpNow:    func(ctx context.Context, b *Bucket) error { _, err := b.Now(ctx); return err },
}

// object names what a call is about, in its errors.
var object = map[bucket.Op]string{
	bucket.OpPut: "put log/1", bucket.OpGet: "get log/1", bucket.OpList: `list "log/"`, bucket.OpDelete: "delete log/1", bucket.OpSwap: "swap log/1", bucket.OpNow: "now",
}

// TestClasses: what a store answers is of its class in every call, asked once, and said whole.
func TestClasses(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		class  bucket.Class
		says   string
	}{
		{500, "InternalError", bucket.ClassServer, ""},
		{500, "", bucket.ClassServer, ""},
		{502, "", bucket.ClassServer, ""},
		{503, "SlowDown", bucket.ClassBusy, ""},
		{503, "ServiceUnavailable", bucket.ClassBusy, ""},
		{503, "", bucket.ClassBusy, ""},
		{503, "SlowDownRead", bucket.ClassBusy, ""},
		{429, "TooManyRequests", bucket.ClassBusy, ""},
		{409, "OperationAborted", bucket.ClassBusy, ""},
		{409, "ConditionalRequestConflict", bucket.ClassBusy, ""},
		{400, "RequestTimeout", bucket.ClassTimeout, ""},
		{504, "", bucket.ClassTimeout, ""},
		{408, "", bucket.ClassTimeout, ""},
		{400, "BadDigest", bucket.ClassCorrupt, ""},
		{400, "XAmzContentSHA256Mismatch", bucket.ClassCorrupt, ""},
		{400, "IncompleteBody", bucket.ClassCorrupt, ""},
		{403, "AccessDenied", bucket.ClassDenied, "lack a right"},
		{403, "InvalidAccessKeyId", bucket.ClassDenied, "access key"},
		{403, "SignatureDoesNotMatch", bucket.ClassDenied, "secret key"},
		{400, "ExpiredToken", bucket.ClassDenied, "have ended"},
		{403, "", bucket.ClassDenied, ""},
		{401, "", bucket.ClassDenied, ""},
		{407, "", bucket.ClassDenied, ""},
		{403, "RequestTimeTooSkewed", bucket.ClassClock, "clock"},
		{403, "QuotaExceeded", bucket.ClassFull, ""},
		{507, "XMinioStorageFull", bucket.ClassFull, ""},
		{507, "", bucket.ClassFull, ""},
		{400, "EntityTooLarge", bucket.ClassFull, ""},
		{404, "NoSuchBucket", bucket.ClassConfig, "there is no bucket " + s3server.BucketName},
		{404, "XAdminUserNotFound", bucket.ClassDenied, "access key"},
		{409, "ObjectParentIsFile", bucket.ClassConfig, ""},
		{404, "", bucket.ClassConfig, "is the endpoint that of an S3 store?"},
		{301, "PermanentRedirect", bucket.ClassConfig, "another region"},
		{307, "TemporaryRedirect", bucket.ClassConfig, "another region"},
		{302, "", bucket.ClassConfig, "is the endpoint that of an S3 store?"},
		{400, "AuthorizationHeaderMalformed", bucket.ClassConfig, "another region"},
		{403, "InvalidObjectState", bucket.ClassConfig, "archive class"},
		{405, "MethodNotAllowed", bucket.ClassConfig, ""},
		{400, "SomethingNew", bucket.ClassConfig, ""},
		{403, "NoSuchKey", bucket.ClassDenied, ""},
		{500, "NoSuchKey", bucket.ClassServer, ""},
	} {
		t.Run(fmt.Sprintf("%d%s", c.status, c.code), func(t *testing.T) {
			var asked atomic.Int64
			b := serve(t, func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				w.Header().Set("X-Amz-Request-Id", "ID4711")
				if c.status/100 == 3 {
					w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
				}
				if c.code == "" {
					w.WriteHeader(c.status)
					fmt.Fprint(w, "<html><body>Sorry</body></html>")
					return
				}
				s3server.Refuse(w, c.status, c.code, "What the store says.")
			})
			for op, call := range calls {
				asked.Store(0)
				parts := []string{object[op], fmt.Sprint(c.status), "ID4711", c.says}
				if c.code != "" {
					parts = append(parts, c.code, "What the store says.")
				}
				if err := isError(call(t.Context(), b), c.class, parts...); err != nil {
					t.Errorf("%s: %v", op, err)
				}
				if n := asked.Load(); n != 1 {
					t.Errorf("%s: %d requests, want 1", op, n)
				}
			}
		})
	}
}

// An object that is not there is one answer of many 404s.
func TestNotThere(t *testing.T) {
	code := "NoSuchKey"
	b := serve(t, func(w http.ResponseWriter, r *http.Request) { s3server.Refuse(w, http.StatusNotFound, code, "") })
	ctx := t.Context()
	if _, err := b.Get(ctx, "k", 0, -1); !errors.Is(err, bucket.ErrNotFound) || isError(err, bucket.ClassNotFound) != nil {
		t.Errorf("get: %v", err)
	}
	if err := b.Delete(ctx, "k"); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := b.Swap(ctx, "k", []byte("old"), []byte("new")); !errors.Is(err, bucket.ErrChanged) {
		t.Errorf("swap: %v", err)
	}
	if _, err := b.Now(ctx); err != nil {
		t.Errorf("now: %v", err)
	}
	for _, code = range []string{"NoSuchBucket", "NotFound", "NoSuchUpload", "NoSuchVersion"} {
		if _, err := b.Get(ctx, "k", 0, -1); errors.Is(err, bucket.ErrNotFound) || isError(err, bucket.ClassConfig) != nil {
			t.Errorf("%s: %v", code, err)
		}
		if err := b.Swap(ctx, "k", []byte("old"), []byte("new")); isError(err, bucket.ClassConfig) != nil {
			t.Errorf("%s: swap: %v", code, err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	header := ""
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", header)
		s3server.Refuse(w, http.StatusServiceUnavailable, "SlowDown", "")
	})
	for h, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "-1": 0, "soon": 0, "999999999999": maxAfter, "86400": maxAfter} {
		header = h
		var e *bucket.Error
		if err := b.Put(t.Context(), "k", nil); !errors.As(err, &e) || e.After != want {
			t.Errorf("%q: %v, %v; want %v", h, err, e.After, want)
		}
	}
	header = time.Now().Add(5 * time.Minute).UTC().Format(http.TimeFormat)
	var e *bucket.Error
	if err := b.Put(t.Context(), "k", nil); !errors.As(err, &e) || e.After < 4*time.Minute || e.After > 5*time.Minute {
		t.Errorf("%v, %v", err, e.After)
	}
}

// What is sent is signed and has its checksum in the headers, in one piece.
func TestPutSends(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // more than what waits for a 100
	answer := ""
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, body) || r.ContentLength != int64(len(body)) || len(r.TransferEncoding) > 0 || r.Header.Get("Content-Encoding") != "" {
			t.Errorf("%d bytes of %d arrived, %v, %v", len(got), r.ContentLength, r.Header, err)
		}
		if r.URL.Path != "/"+s3server.BucketName+"/cell/log/1" {
			t.Errorf("path %s", r.URL.Path)
		}
		if h := r.Header.Get("X-Amz-Content-Sha256"); h != fmt.Sprintf("%x", sha(body)) {
			t.Errorf("the signed hash is %s", h)
		}
		if h := r.Header.Get("X-Amz-Checksum-Sha256"); h != sha64(body) {
			t.Errorf("the checksum is %s", h)
		}
		if a := r.Header.Get("Authorization"); !strings.Contains(a, "x-amz-checksum-sha256") || !strings.Contains(a, testKey) {
			t.Errorf("signed: %s", a)
		}
		if answer != "" {
			w.Header().Set("X-Amz-Checksum-Sha256", answer)
		}
	})
	tls := httptest.NewTLSServer(h)
	defer tls.Close()
	for _, b := range []*Bucket{serve(t, h), trusting(t, tls)} {
		for _, answer = range []string{"", sha64(body)} {
			if err := b.Put(t.Context(), "log/1", body); err != nil {
				t.Error(err)
			}
		}
	}
	b := serve(t, h)
	answer = sha64([]byte("something else"))
	if err := isError(b.Put(t.Context(), "log/1", body), bucket.ClassCorrupt, "put log/1", answer); err != nil {
		t.Error(err)
	}
}

// Some stores answer 200 and say in the body that they failed.
func TestFailedWith200(t *testing.T) {
	b := serve(t, func(w http.ResponseWriter, r *http.Request) { s3server.Refuse(w, http.StatusOK, "InternalError", "no") })
	for _, op := range []bucket.Op{bucket.OpPut, bucket.OpList, bucket.OpSwap} {
		if err := calls[op](t.Context(), b); bucket.ClassOf(err).Answer() {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// TestGetShapes: a read returns what was asked for, or says that what came is something else.
func TestGetShapes(t *testing.T) {
	const brokenOff = "\x00"
	type answer struct {
		status  int
		headers map[string]string
		body    string
	}
	var now atomic.Pointer[answer] // a handler may outlive the call
	var asked atomic.Pointer[http.Header]
	b := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Store(&r.Header)
		a := now.Load()
		headers, body := a.headers, a.body
		for k, v := range headers {
			w.Header().Set(k, v)
		}
		if headers["Content-Length"] == "" {
			w.Header().Set("Content-Length", fmt.Sprint(len(strings.TrimSuffix(body, brokenOff))))
		}
		if headers["Content-Length"] == "-" {
			w.Header().Del("Content-Length")
			defer http.NewResponseController(w).Flush()
		}
		w.WriteHeader(a.status)
		if headers["Content-Length"] == "-" {
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.WriteString(w, strings.TrimSuffix(body, brokenOff))
		if strings.HasSuffix(body, brokenOff) {
			panic(http.ErrAbortHandler)
		}
	})
	for _, c := range []struct {
		name    string
		off, n  int64
		status  int
		headers map[string]string
		body    string
		want    string // "" and class
		class   bucket.Class
	}{
		{"whole", 0, -1, 200, nil, "0123456789", "0123456789", ""},
		{"whole, checksum", 0, -1, 200, map[string]string{"X-Amz-Checksum-Sha256": sha64([]byte("0123456789"))}, "0123456789", "0123456789", ""},
		{"whole, wrong checksum", 0, -1, 200, map[string]string{"X-Amz-Checksum-Sha256": sha64([]byte("012345678X"))}, "0123456789", "", bucket.ClassCorrupt},
		{"whole, checksum of parts", 0, -1, 200, map[string]string{"X-Amz-Checksum-Sha256": "abcd-2"}, "0123456789", "0123456789", ""},
		{"whole, cut off", 0, -1, 200, map[string]string{"Content-Length": "10"}, "01234" + brokenOff, "", bucket.ClassConnection},
		{"whole, no length", 0, -1, 200, map[string]string{"Content-Length": "-"}, "0123456789", "", bucket.ClassCorrupt},
		{"whole, too long", 0, -1, 200, map[string]string{"Content-Length": fmt.Sprint(bucket.MaxObject + 1)}, "0", "", bucket.ClassCorrupt},
		{"whole, but a range", 0, -1, 206, map[string]string{"Content-Range": "bytes 0-9/10"}, "0123456789", "", bucket.ClassCorrupt},
		{"range", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-4/10"}, "234", "234", ""},
		{"range, size unknown", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-4/*"}, "234", "234", ""},
		{"range, no length", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-4/10", "Content-Length": "-"}, "234", "234", ""},
		{"range, no length, longer", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-4/10", "Content-Length": "-"}, "2345", "", bucket.ClassCorrupt},
		{"range, no length, shorter", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-4/10", "Content-Length": "-"}, "23", "", bucket.ClassConnection},
		{"range, cut off", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-4/10", "Content-Length": "3"}, "23" + brokenOff, "", bucket.ClassConnection},
		{"range, another", 2, 3, 206, map[string]string{"Content-Range": "bytes 3-5/10"}, "345", "", bucket.ClassCorrupt},
		{"range, longer", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-5/10"}, "2345", "", bucket.ClassCorrupt},
		{"range, less of it", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-3/10"}, "23", "", bucket.ClassCorrupt},
		{"range, end of the object", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-3/4"}, "23", "", bucket.ClassRefused},
		{"range, length of another", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-4/10"}, "23", "", bucket.ClassCorrupt},
		{"range, outside the object", 2, 3, 206, map[string]string{"Content-Range": "bytes 2-4/3"}, "234", "", bucket.ClassCorrupt},
		{"range, not named", 2, 3, 206, nil, "234", "", bucket.ClassCorrupt},
		{"range, nonsense", 2, 3, 206, map[string]string{"Content-Range": "bytes -2-4/10"}, "234", "", bucket.ClassCorrupt},
		{"range, ignored", 2, 3, 200, nil, "0123456789", "", bucket.ClassConfig},
		{"range, ignored, the same", 0, 10, 200, nil, "0123456789", "0123456789", ""},
		{"range, ignored, shorter", 0, 12, 200, nil, "0123456789", "", bucket.ClassRefused},
		{"range, not there", 2, 3, 416, nil, "", "", bucket.ClassRefused},
		{"rest", 4, -1, 206, map[string]string{"Content-Range": "bytes 3-9/10"}, "3456789", "456789", ""},
		{"rest, less of it", 4, -1, 206, map[string]string{"Content-Range": "bytes 3-8/10"}, "345678", "", bucket.ClassCorrupt},
		{"rest, endless", 4, -1, 206, map[string]string{"Content-Range": "bytes 3-1000000000000/1000000000001", "Content-Length": "-"}, "345678", "", bucket.ClassCorrupt},
		{"rest of nothing", 1, -1, 200, nil, "", "", bucket.ClassRefused},
		{"nothing", 4, 0, 206, map[string]string{"Content-Range": "bytes 3-3/10"}, "3", "", ""},
		{"success of a kind", 0, -1, 204, map[string]string{"Content-Length": "0"}, "", "", bucket.ClassServer},
	} {
		t.Run(c.name, func(t *testing.T) {
			now.Store(&answer{c.status, c.headers, c.body})
			got, err := b.Get(t.Context(), "k", c.off, c.n)
			if c.class == "" {
				if err != nil || string(got) != c.want {
					t.Errorf("%q, %v; want %q", got, err, c.want)
				}
			} else if err := isError(err, c.class, "get k"); err != nil || got != nil {
				t.Errorf("%q, %v", got, err)
			}
			if c.class == bucket.ClassRefused && !errors.Is(err, bucket.ErrShort) {
				t.Errorf("%v, want ErrShort", err)
			}
			if m := asked.Load().Get("X-Amz-Checksum-Mode"); (m == "ENABLED") != (asked.Load().Get("Range") == "") {
				t.Errorf("of the range %q it asks for checksums: %q", asked.Load().Get("Range"), m)
			}
			if e := asked.Load().Get("Accept-Encoding"); e != "identity" && e != "" {
				t.Errorf("it accepts %q", e)
			}
		})
	}
}
