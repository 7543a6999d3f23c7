package s3

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

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
