//go:build linux

package e2e

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	hf "holdfast"
	"holdfast/service/segment"
)

// TestNextBackupRepairs flips bits of one block of each kind on the disk of the bucket. The scrub finds exactly these, the
// next backup stores them anew although no file of theirs changed, and says so; then the old archive comes back byte for
// byte, and the view is what the journal says.
func TestNextBackupRepairs(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 7, 200)
	writeText(t, filepath.Join(tree, "large"), 3, 900_000)
	old := strings.Fields(c.ok("create", "-C", dir, "s", "tree").stdout)[0]
	kept := filepath.Join(dir, "kept")
	if out, err := exec.Command("cp", "-a", tree, kept).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.admin("scrub", "--data", s.data, "--now") // all is well

	var bad []string
	for _, kind := range []hf.Kind{hf.KindChunk, hf.KindPack, hf.KindTree, hf.KindArchive} {
		spoil(t, s, func(b segment.Stored) bool {
			if b.Kind == kind {
				bad = append(bad, b.Name.String())
			}
			return b.Kind == kind
		})
	}
	out, code := s.try("scrub", "--data", s.data, "--now")
	if code != 4 || !strings.Contains(out.stdout, "4 newly damaged") || !strings.Contains(out.stdout, "not stored anew: 4 blocks") {
		t.Errorf("scrub ends with %d and says\n%s%s", code, out.stdout, out.stderr)
	}
	if said := s.admin("status", "--data", s.data); !strings.Contains(said, "DAMAGED   4 blocks are damaged") {
		t.Errorf("status says\n%s", said)
	}
	c.exits(4, "extract", old, "--target", filepath.Join(dir, "broken"))

	writeText(t, filepath.Join(tree, "000", "new"), 9, 5000) // so that nodes and packs of the next archive are others
	var summary struct {
		Damaged []struct {
			Block, Kind    string
			Mine, Repaired bool
		}
	}
	if err := json.Unmarshal([]byte(c.ok("create", "--json", "-C", dir, "s", "tree").stdout), &summary); err != nil {
		t.Fatal(err)
	}
	if len(summary.Damaged) != len(bad) {
		t.Errorf("told of %+v, damaged were %v", summary.Damaged, bad)
	}
	for _, d := range summary.Damaged {
		if !d.Mine || !d.Repaired || !strings.Contains(strings.Join(bad, " "), d.Block) {
			t.Errorf("%+v", d)
		}
	}
	if said := s.admin("status", "--data", s.data); strings.Contains(said, "DAMAGED") {
		t.Errorf("status says\n%s", said)
	}
	c.ok("extract", old, "--target", filepath.Join(dir, "out"))
	same(t, kept, filepath.Join(dir, "out", "tree"))
	c.ok("verify", old)
	if said := s.admin("shadow", "--data", s.data, "--now"); !strings.HasPrefix(said, "equal at ") {
		t.Errorf("shadow says %s", said)
	}
	s.admin("scrub", "--data", s.data, "--now")
	s.clean() // old copies are no problem

	// What is gone for good is named, and makes the exit code 3.
	if err := exec.Command("rm", filepath.Join(tree, "large")).Run(); err != nil {
		t.Fatal(err)
	}
	last := map[string]bool{}
	for _, r := range journal(t, s) {
		if b, ok := r.Record.(segment.Stored); ok && b.Kind == hf.KindChunk && b.Name.String() != bad[0] {
			last[b.Name.String()] = true
		}
	}
	spoil(t, s, func(b segment.Stored) bool { return last[b.Name.String()] })
	if out, code := s.try("scrub", "--data", s.data, "--now"); code != 4 {
		t.Errorf("scrub ends with %d and says\n%s%s", code, out.stdout, out.stderr)
	}
	if said := c.exits(3, "create", "-C", dir, "s", "tree").stdout; !strings.Contains(said, "0 repaired, 1 not") || !strings.Contains(said, "NOT repaired  chunk ") {
		t.Errorf("create says\n%s", said)
	}
	c.ok("extract", "s", "--target", filepath.Join(dir, "newest"))
	same(t, tree, filepath.Join(dir, "newest", "tree"))
}
