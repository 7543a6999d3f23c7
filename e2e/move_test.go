//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/s3server"
)

// TestMove takes a service from a directory to a bucket on S3 and back to another directory, with backups between and a move that
// is cut short. Clients notice nothing, every byte comes back, and check finds nothing.
func TestMove(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	round := 0
	backup := func() {
		t.Helper()
		name := string(rune('a' + round))
		mixedTree(t, dir, name, uint64(700+round), 60, bySize[int64](8<<20, 64<<20))
		c.ok("create", "-C", dir, name, name)
		round++
	}
	restores := func() {
		t.Helper()
		for i := range round {
			name := string(rune('a' + i))
			out := filepath.Join(scratch(t), name)
			c.ok("extract", name, "--target", out)
			same(t, filepath.Join(dir, name), filepath.Join(out, name))
		}
	}
	backup()

	// A running service is not moved.
	at := onS3(t, s3server.Versity)
	if o, code := s.try("move", "--data", s.data, "--bucket", at.url); code != 1 || !strings.Contains(o.stderr, "stop it first") {
		t.Errorf("a running service: exit %d\n%s", code, o.stderr)
	}
	s.stop()
	if o, code := s.try("move", "--data", s.data, "--bucket", s.place.url); code != 2 || !strings.Contains(o.stderr, "uses that bucket already") {
		t.Errorf("to where it is: exit %d\n%s", code, o.stderr)
	}

	// A block that is damaged is found on its way, and the service is where it was.
	var segment string
	for _, o := range s.place.objects(t) {
		if strings.Contains(o.Key, "/log/") && o.Size > 1<<20 {
			segment = filepath.Join(s.bucket, o.Key)
		}
	}
	raw, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte{}, raw...)
	bad[len(bad)/2] ^= 1
	if err := os.WriteFile(segment, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if o, code := s.try("move", "--data", s.data, "--bucket", at.url); code != 4 || !strings.Contains(o.stderr, "check sum") {
		t.Errorf("with a damaged block: exit %d\n%s", code, o.stderr)
	}
	if err := os.WriteFile(segment, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.stop()

	out := s.admin("move", "--data", s.data, "--bucket", at.url)
	if !strings.HasPrefix(out, "moved ") || !strings.Contains(out, "Replace the copy") {
		t.Errorf("move says\n%s", out)
	}
	old := s.place
	s.place, s.bucket = at, ""
	s.admin("check", "--data", s.data)
	s.start()
	if st := s.admin("status", "--data", s.data); !strings.Contains(st, "s3://") {
		t.Errorf("status says\n%s", st)
	}
	if err := os.Rename(old.dir, old.dir+".gone"); err != nil {
		t.Fatal(err)
	}
	restores()
	backup()
	s.stop()

	// And to a directory again: a new one.
	next := directory(t)
	s.admin("move", "--data", s.data, "--bucket", next.url)
	s.place, s.bucket = next, next.dir
	s.admin("check", "--data", s.data)
	s.start()
	restores()
	backup()
	restores()
	s.clean()
}
