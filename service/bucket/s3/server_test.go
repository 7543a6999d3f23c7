package s3

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/part"
	"holdfast/internal/s3server"
	"holdfast/service/bucket"
	"holdfast/service/bucket/buckettest"
)

// servers are real ones, started when the first test needs them.
var servers = map[s3server.Kind]func() (*s3server.Server, error){}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "holdfast-s3-")
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	var running []*s3server.Server
	for _, kind := range s3server.Kinds {
		servers[kind] = sync.OnceValues(func() (*s3server.Server, error) {
			d := dir + "/" + string(kind)
			if err := os.Mkdir(d, 0o700); err != nil {
				return nil, err
			}
			s, err := s3server.Launch(kind, d)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				running = append(running, s)
			}
			return s, err
		})
	}
	code := m.Run()
	for _, s := range running {
		s.Kill()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// real returns a real server that the tests of this package share, and sets the credentials for it.
func real(t *testing.T, kind s3server.Kind) *s3server.Server {
	t.Helper()
	part.Need(t, string(kind))
	s, err := servers[kind]()
	if err != nil {
		t.Fatal(err)
	}
	s.Setenv(t)
	return s
}

var prefixes atomic.Int64

// connect opens an empty place in the server's bucket.
func connect(t testing.TB, s *s3server.Server) *Bucket {
	t.Helper()
	a, err := ParseAddress(s.URLAt(s.Endpoint(), fmt.Sprintf("test/%d", prefixes.Add(1))))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(a)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("two servers, half a minute; TestConformanceFake remains")
	}
	for _, kind := range s3server.Kinds {
		t.Run(string(kind), func(t *testing.T) {
			s := real(t, kind)
			buckettest.Conformance(t, func(t testing.TB) bucket.Bucket { return connect(t, s) })
		})
	}
}

// TestServerGoesAway: a real server that is stopped in the middle, killed and started again: what it acknowledged is there,
// each failure is of its class, and nothing has to be done here for the next call to succeed.
func TestServerGoesAway(t *testing.T) {
	if testing.Short() {
		t.Skip("two servers")
	}
	for _, kind := range s3server.Kinds {
		t.Run(string(kind), func(t *testing.T) {
			s := real(t, kind)
			b := connect(t, s)
			body := bytes.Repeat([]byte("a"), 3<<20)
			if err := b.Put(t.Context(), "log/1", body); err != nil {
				t.Fatal(err)
			}
			if err := s.Pause(); err != nil {
				t.Fatal(err)
			}
			for op, call := range calls {
				for _, fresh := range []bool{false, true} {
					ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
					if fresh {
						ctx = bucket.Fresh(ctx)
					}
					if err := isError(call(ctx, b), bucket.ClassTimeout, object[op]); err != nil {
						t.Errorf("%s, fresh %v: %v", op, fresh, err)
					}
					cancel()
				}
			}
			s.Kill()
			for op, call := range calls {
				if err := isError(call(t.Context(), b), bucket.ClassConnection, object[op]); err != nil {
					t.Errorf("%s: %v", op, err)
				}
			}
			if err := s.Restart(); err != nil {
				t.Fatal(err)
			}
			if got, err := b.Get(t.Context(), "log/1", 0, -1); err != nil || !bytes.Equal(got, body) { // what the stopped server had not read yet died with it
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if err := b.Put(t.Context(), "log/2", body); err != nil {
				t.Error(err)
			}
			if l, err := b.List(t.Context(), "log/", "log/1", 0); err != nil || len(l) != 1 || l[0].Key != "log/2" {
				t.Errorf("%v, %v", l, err)
			}
		})
	}
}
