//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/part"
)

// TestNewestObjectsLost takes the newest segments away from the bucket for good. A service that knows of them does not start;
// one that is brought back from the bucket alone goes on without them; the machine that was told of what they held says so
// instead of going on, and one that has no memory restores what is there.
func TestNewestObjectsLost(t *testing.T) {
	t.Parallel() // it waits a minute for nothing to come
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "file"), "one")
	c.ok("create", "-C", dir, "first", "tree")
	s.stop()
	before := segments(t, s)
	s.start()
	write(t, filepath.Join(dir, "tree", "file"), "two")
	c.ok("create", "-C", dir, "second", "tree")
	s.stop()
	lost := 0
	for _, key := range segments(t, s) {
		if !slices.Contains(before, key) {
			lost++
			if err := os.Remove(filepath.Join(s.bucket, key)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if lost < 2 {
		t.Fatalf("%d segments were lost", lost)
	}

	if !part.Heavy() {
		t.Log("a minute, for which a list may lag behind, is not waited for")
	} else if o, code := s.try("serve", "--data", s.data); code != 4 || !strings.Contains(o.stderr, "the bucket contradicts what was acknowledged") {
		t.Errorf("with a view that knows more: exit %d\n%s", code, o.stderr)
	}
	next := filepath.Join(scratch(t), "data")
	s.admin("recover", "--identity", filepath.Join(s.data, "identity"), "--data", next)
	s.data = next
	s.start()
	for _, args := range [][]string{{"list"}, {"create", "-C", dir, "third", "tree"}, {"extract", "first", "--target", filepath.Join(dir, "out")}} {
		if o := c.run(args...); o.code != 4 || !strings.Contains(o.stderr, "history") {
			t.Errorf("holdfast %s on a machine that knows more: exit %d\n%s%s", args[0], o.code, o.stdout, o.stderr)
		}
	}
	out := filepath.Join(dir, "again")
	c.ok("extract", "first", "--target", out, "--cache", filepath.Join(dir, "no-memory"))
	// And who accepts the loss goes on.
	c.ok("create", "-C", dir, "third", "tree", "--cache", filepath.Join(dir, "no-memory"))
	if got, err := os.ReadFile(filepath.Join(out, "tree", "file")); string(got) != "one" {
		t.Errorf("the first archive holds %q, %v", got, err)
	}
	s.clean()
}

// segments lists the keys of a service's segments.
func segments(t *testing.T, s *service) (keys []string) {
	t.Helper()
	for _, o := range s.place.objects(t) {
		if strings.Contains(o.Key, "/log/") {
			keys = append(keys, o.Key)
		}
	}
	return keys
}
