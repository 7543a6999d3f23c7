//go:build linux

package e2e

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/service/admin"
)

// TestScenarioS1LostObject takes the bucket's largest object away under a running service. Restores of what it held fail,
// everything else goes on, and all deleting is frozen, which status says, until an operator brings the object
// back and says so; a restart changes nothing.
func TestScenarioS1LostObject(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	for _, d := range []string{"lost", "other"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeNoise(t, filepath.Join(dir, "lost", "file"), 1, 3<<20)
	c.ok("create", "-C", dir, "lost", "lost")

	var object string
	var size int64
	if err := filepath.WalkDir(s.bucket, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if i, err := e.Info(); err == nil && i.Size() > size {
			object, size = p, i.Size()
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	away := filepath.Join(dir, "away")
	if err := os.Rename(object, away); err != nil {
		t.Fatal(err)
	}
	out, code := s.try("thaw", "--data", s.data, "--reason", "nothing is wrong yet")
	if code == 0 || !strings.Contains(out.stderr, "deleting is not frozen") {
		t.Errorf("thaw of what is not frozen: %d %s", code, out.stderr)
	}
	if o := c.run("--patience", "1s", "extract", "lost", "--target", filepath.Join(dir, "out")); o.code == 0 {
		t.Error("an archive was restored without the object that holds it")
	}

	frozen := func() []admin.Freeze {
		t.Helper()
		var st admin.Status
		if err := json.Unmarshal([]byte(s.admin("status", "--data", s.data, "--json")), &st); err != nil {
			t.Fatal(err)
		}
		return st.Frozen
	}
	check := func(when string) {
		t.Helper()
		if f := frozen(); len(f) != 1 || f[0].Reason != "contradiction" || !strings.Contains(f[0].Found, filepath.Base(object)) {
			t.Errorf("%s: status says %+v", when, f)
		}
		if said := s.admin("status", "--data", s.data); !strings.Contains(said, "\nFROZEN    nothing is deleted since ") {
			t.Errorf("%s: status says\n%s", when, said)
		}
		if out, code := s.try("sweep", "--data", s.data); code == 0 || !strings.Contains(out.stderr, "all deleting is frozen") {
			t.Errorf("%s: sweep: %d %s", when, code, out.stderr)
		}
	}
	check("when it was met")
	writeText(t, filepath.Join(dir, "other", "file"), 2, 10_000)
	c.ok("create", "-C", dir, "other", "other")
	c.ok("extract", "other", "--target", filepath.Join(dir, "out-other"))

	if err := os.Rename(away, object); err != nil {
		t.Fatal(err)
	}
	s.stop()
	s.start()
	check("after a restart")
	if !strings.Contains(s.log.String(), "all deleting is frozen") {
		t.Error("the log does not say so")
	}
	if out, code := s.try("thaw", "--data", s.data); code == 0 || !strings.Contains(out.stderr, "--reason is missing") {
		t.Errorf("thaw without a reason: %d %s", code, out.stderr)
	}
	if said := s.admin("thaw", "--data", s.data, "--reason", "it was moved away by hand"); !strings.Contains(said, "(contradiction)") {
		t.Errorf("thaw says\n%s", said)
	}
	if f := frozen(); len(f) != 0 {
		t.Errorf("after thaw: %+v", f)
	}
	s.admin("sweep", "--data", s.data)
	c.ok("extract", "lost", "--target", filepath.Join(dir, "out-again"))
	same(t, filepath.Join(dir, "lost"), filepath.Join(dir, "out-again", "lost"))
	s.clean()
}
