//go:build linux

package e2e

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"holdfast/internal/part"
	"holdfast/internal/s3server"
	"holdfast/service/bucket"
	"holdfast/service/bucket/open"
)

// place is where a service's bucket lies.
type place struct {
	url  string   // for the service
	seen string   // for the test itself: past whatever is between the service and its store
	dir  string   // of a bucket in a directory
	env  []string // more for the service's environment
	// Of a bucket at an S3 server.
	server *s3server.Server
	prefix string
}

// directory is a fresh place on the local disk.
func directory(t testing.TB) place {
	t.Helper()
	dir := filepath.Join(scratch(t), "bucket")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return inDirectory(dir)
}

func inDirectory(dir string) place {
	return place{url: "file://" + dir, seen: "file://" + dir, dir: dir}
}

// shared returns the server of a kind that all tests of this run share, begun with the first.
var shared = map[s3server.Kind]func() (*s3server.Server, error){}

func init() {
	for _, kind := range s3server.Kinds {
		shared[kind] = sync.OnceValues(func() (*s3server.Server, error) {
			dir := filepath.Join(filepath.Dir(holdfastd), string(kind))
			if err := os.Mkdir(dir, 0o700); err != nil {
				return nil, err
			}
			s, err := s3server.Launch(kind, dir)
			if err == nil {
				atEnd = append(atEnd, s.Kill)
			}
			return s, err
		})
	}
}

// onS3 is a fresh place at the shared server of a kind.
func onS3(t testing.TB, kind s3server.Kind) place {
	t.Helper()
	part.Need(t, string(kind))
	s, err := shared[kind]()
	if err != nil {
		t.Fatal(err)
	}
	return placeAt(s)
}

// ownS3 is a fresh place at a server that the test may stop.
func ownS3(t testing.TB, kind s3server.Kind) place {
	t.Helper()
	return placeAt(s3server.Start(t, kind))
}

func placeAt(s *s3server.Server) place {
	prefix := strings.ToLower(rand.Text())
	at := s.URLAt(s.Endpoint(), prefix)
	return place{url: at, seen: at, env: s.Env(), server: s, prefix: prefix}
}

// through is the same place as a service reaches it at another endpoint.
func (p place) through(endpoint string) place {
	p.url = p.server.URLAt(endpoint, p.prefix)
	return p
}

// behindMiddle puts an HTTP proxy between a service and its S3 server.
func behindMiddle(t testing.TB, p place) (place, *middle) {
	t.Helper()
	m := newMiddle(t, p.server.Endpoint())
	return p.through(m.endpoint), m
}

// behindLine puts toxiproxy between a service and its S3 server.
func behindLine(t testing.TB, p place) (place, *line) {
	t.Helper()
	l := newLine(t, p.server.Endpoint())
	return p.through(l.endpoint), l
}

// environ is the environment of a service whose bucket is here.
func (p place) environ() []string { return append(os.Environ(), p.env...) }

// open opens the bucket as a second user beside the service; TestMain has set the credentials.
func (p place) open(t testing.TB) bucket.Bucket {
	t.Helper()
	b, err := open.Bucket(p.seen)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// objects lists everything in the bucket.
func (p place) objects(t testing.TB) (all []bucket.Object) {
	t.Helper()
	if err := bucket.ListAll(t.Context(), p.open(t), "", "", func(o bucket.Object) error {
		all = append(all, o)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// onEveryPlace runs a test with the bucket in each kind of place, side by side.
func onEveryPlace(t *testing.T, fn func(t *testing.T, p place)) {
	t.Run("directory", func(t *testing.T) { t.Parallel(); fn(t, directory(t)) })
	for _, kind := range s3server.Kinds {
		t.Run(string(kind), func(t *testing.T) { t.Parallel(); fn(t, onS3(t, kind)) })
	}
}

// bySize returns small by default and large when heavy tests are wanted.
func bySize[T any](small, large T) T {
	if part.Heavy() {
		return large
	}
	return small
}
