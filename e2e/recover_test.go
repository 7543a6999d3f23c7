//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var digest = regexp.MustCompile(`[0-9a-f]{64}`)

// TestRecover loses the service's whole disk. Identity file and bucket bring everything back; clients
// notice nothing.
func TestRecover(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 1, 300)
	c.ok("create", "-C", dir, "tree", "tree")
	made := s.admin("checkpoint", "--data", s.data, "--now")
	at := regexp.MustCompile(`position +(\d+/\d+)`).FindStringSubmatch(made)
	if at == nil {
		t.Fatalf("checkpoint says\n%s", made)
	}
	writeText(t, filepath.Join(tree, "new"), 2, 10_000)
	c.ok("create", "-C", dir, "tree", "tree")
	before := c.ok("list").stdout

	identity, err := os.ReadFile(filepath.Join(s.data, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	want := digest.FindString(s.admin("status", "--data", s.data, "--digest"))
	if want == "" {
		t.Fatal("status prints no digest")
	}
	s.stop()
	if err := os.RemoveAll(s.data); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "identity-kept-elsewhere")
	if err := os.WriteFile(kept, identity, 0o600); err != nil {
		t.Fatal(err)
	}
	s.data = filepath.Join(dir, "new-data")
	said := s.admin("recover", "--identity", kept, "--data", s.data)
	t.Log(said)
	if got := digest.FindString(said); got != want {
		t.Errorf("recovered digest %q, and the service had %q before it was lost", got, want)
	}
	if !strings.Contains(said, "after      the checkpoint at "+at[1]+"\n") {
		t.Errorf("it did not begin with the checkpoint at %s", at[1])
	}
	if out, code := s.try("recover", "--identity", kept, "--data", s.data); code == 0 {
		t.Errorf("recover wrote over a data directory:\n%s", out.stdout)
	}
	s.start()
	if got := c.ok("list").stdout; got != before {
		t.Errorf("after recovery list says\n%s\nbefore it said\n%s", got, before)
	}
	c.ok("create", "-C", dir, "tree", "tree")
	c.ok("extract", "tree", "--target", filepath.Join(dir, "out"))
	same(t, tree, filepath.Join(dir, "out", "tree"))
	newClient(t, s).ok("create", "-C", dir, "other", "tree")
	s.clean()
}
