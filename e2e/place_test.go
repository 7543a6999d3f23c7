//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/part"
	"holdfast/service/bucket"
	"holdfast/service/bucket/open"
)

// place is where a service's bucket lies.
type place struct {
	url  string   // for the service
	seen string   // for the test itself: past whatever is between the service and its store
	dir  string   // of a bucket in a directory
	env  []string // more for the service's environment
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

// environ is the environment of a service whose bucket is here.
func (p place) environ() []string { return append(os.Environ(), p.env...) }

// open opens the bucket as a second user beside the service.
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

// onEveryPlace runs a test with the bucket in each kind of place.
func onEveryPlace(t *testing.T, fn func(t *testing.T, p place)) {
	t.Run("directory", func(t *testing.T) { fn(t, directory(t)) })
}

// bySize returns small by default and large when heavy tests are wanted.
func bySize[T any](small, large T) T {
	if part.Heavy() {
		return large
	}
	return small
}
