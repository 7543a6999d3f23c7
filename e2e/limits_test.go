//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// accountUsage is what account list --json says of an account.
type accountUsage struct {
	Name   string `json:"name"`
	Blocks uint64 `json:"blocks"`
	Stored uint64 `json:"stored_bytes"`
	Billed uint64 `json:"billed_bytes"`
	Asked  uint64 `json:"asked"`
}

func (s *service) account(name string) accountUsage {
	s.t.Helper()
	var all []accountUsage
	if err := json.Unmarshal([]byte(s.admin("account", "list", "--data", s.data, "--json")), &all); err != nil {
		s.t.Fatal(err)
	}
	for _, a := range all {
		if a.Name == name {
			return a
		}
	}
	s.t.Fatalf("no account %s in %+v", name, all)
	return accountUsage{}
}

// TestUploadAlwaysAsksNothing: the service counts what it was asked, over a kill, and with --upload-always that is
// nothing.
func TestUploadAlwaysAsksNothing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := unenrolled(t)
	c.ok("init", "--token", s.token("ada"), "--key", c.key(), "--owner", filepath.Join(c.dir, "owner"))
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "tiny"), "x")
	writeNoise(t, filepath.Join(dir, "tree", "large"), 1, 4<<20)
	for range 2 {
		x := c.create("--upload-always", "-C", dir, "s", "tree")
		if x.KnownBlocks != 0 || x.MetaBlocks == 0 {
			t.Errorf("%+v", x)
		}
	}
	if a := s.account("ada"); a.Asked != 0 || a.Blocks == 0 || a.Stored < 4<<20 || a.Billed <= a.Stored {
		t.Errorf("after runs that ask nothing: %+v", a)
	}
	c.ok("create", "-C", dir, "t", "tree")
	asked := s.account("ada").Asked
	if asked < 10 || asked > 1000 {
		t.Errorf("a run that reads 4 MiB asked about %d blocks", asked)
	}
	s.kill()
	s.start()
	if a := s.account("ada"); a.Asked != asked {
		t.Errorf("%d were asked about, and after a kill %d", asked, a.Asked)
	}
}

// TestDailyCapEndsTheRun: a machine that stored what it may is told so in one sentence, ends with 5, and neither
// another run nor a restart gives it more. Its key still works for everything else.
func TestDailyCapEndsTheRun(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "tiny"), "x")
	writeNoise(t, filepath.Join(dir, "tree", "large"), 1, 20<<20)
	n := c.join(c.owner(), "write,read", "--day-bytes", "6MiB")
	for run := range 3 {
		o := n.exits(5, "create", "-C", dir, "s", "tree")
		if strings.Count(strings.TrimSpace(o.stderr), "\n") != 0 {
			t.Errorf("run %d: not one sentence: %q", run, o.stderr)
		}
		for _, said := range []string{"6291456 bytes", "may go on at", "What was uploaded is kept"} {
			if !strings.Contains(o.stderr, said) {
				t.Errorf("run %d: %q does not say %q", run, o.stderr, said)
			}
		}
		if run == 1 {
			s.kill()
			s.start()
		}
	}
	n.ok("list")
}

// TestDailyCapLeavesAPartialArchive: a run that comes near the cap commits what it has, so that nothing of it can be
// cleaned away before the next day.
func TestDailyCapLeavesAPartialArchive(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := filepath.Join(dir, "tree")
	write(t, filepath.Join(tree, "00"), "x")
	for i := range 30 {
		writeNoise(t, filepath.Join(tree, fmt.Sprintf("%02d", i+1)), uint64(i+1), 1<<20)
	}
	n := c.join(c.owner(), "write,read", "--day-bytes", "16MiB")
	o := n.exits(5, "create", "-C", dir, "s", "tree")
	if !strings.Contains(o.stderr, "partial archive") || !strings.Contains(o.stderr, "may go on at") {
		t.Errorf("%q", o.stderr)
	}
	to := filepath.Join(scratch(t), "out")
	all := n.archives()
	if len(all) != 1 {
		t.Fatalf("%+v", all)
	}
	n.ok("extract", all[0].ID, "--target", to)
	whole := 0
	for i := range 30 {
		f := filepath.Join("tree", fmt.Sprintf("%02d", i+1))
		got, err := os.ReadFile(filepath.Join(to, f))
		if err != nil {
			break
		}
		want, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%s came back otherwise: %v", f, err)
		}
		whole++
	}
	if whole < 5 || whole > 15 {
		t.Errorf("the partial archive holds %d files of 1 MiB", whole)
	}
	// What is left of the cap does not suffice for another file, and nothing of the archive is sent again.
	n.exits(5, "create", "-C", dir, "s", "tree")
}
