//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// codeIn returns the code that a step of an enrolment showed.
func codeIn(t testing.TB, o outcome) string {
	t.Helper()
	for line := range strings.Lines(o.stderr) {
		if c, ok := strings.CutPrefix(line, "code  "); ok {
			return strings.TrimSpace(c)
		}
	}
	t.Fatalf("no code is shown:\n%s%s", o.stdout, o.stderr)
	return ""
}

// join enrols a new machine in c's vault; extra arguments go to the owner's step. The vault's owner file is
// that of owner.
func (c *client) join(owner string, rights string, extra ...string) *client {
	c.t.Helper()
	n := unenrolled(c.t)
	ask := n.ok("key", "enrol", "--request", "--rights", rights)
	grant := c.ok(append([]string{"key", "enrol", strings.TrimSpace(ask.stdout), "--rights", rights, "--code", codeIn(c.t, ask), "--owner", owner}, extra...)...)
	file := filepath.Join(n.dir, "grant")
	write(c.t, file, grant.stdout)
	n.ok("key", "enrol", "--grant", file, "--code", codeIn(c.t, grant))
	if _, err := os.Stat(n.key() + ".pending"); !os.IsNotExist(err) {
		c.t.Errorf("the pending file is still there: %v", err)
	}
	return n
}

// uploaded is what create --json says of one run.
type uploaded struct {
	DataBlocks  uint64 `json:"data_blocks_uploaded"`
	MetaBlocks  uint64 `json:"meta_blocks_uploaded"`
	KnownBlocks uint64 `json:"blocks_known"`
	Sent        uint64 `json:"bytes_sent"`
}

func (c *client) create(args ...string) (x uploaded) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.ok(append([]string{"create", "--json"}, args...)...).stdout), &x); err != nil {
		c.t.Fatal(err)
	}
	return x
}

// TestEnrolSecondMachine brings two more machines into a vault: one in the first's group, which uploads
// nothing of a tree that is there, and one in a group of its own, which uploads all of it.
func TestEnrolSecondMachine(t *testing.T) {
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := filepath.Join(dir, "tree")
	write(t, filepath.Join(tree, "tiny"), "x")
	writeNoise(t, filepath.Join(tree, "large"), 1, 4<<20)
	writeText(t, filepath.Join(tree, "small"), 2, 10_000)
	first := c.create("-C", dir, "s", "tree")

	joined := c.join(c.owner(), "write,read", "--join-group")
	if x := joined.create("-C", dir, "s", "tree"); x.DataBlocks != 0 || x.Sent > first.Sent/100 {
		t.Errorf("in one group the second machine uploaded %+v, the first %+v", x, first)
	}
	apart := c.join(c.owner(), "write,read")
	if x := apart.create("-C", dir, "s", "tree"); x.Sent < first.Sent*9/10 {
		t.Errorf("in a group of its own the third machine uploaded %+v, the first %+v", x, first)
	}
	for _, m := range []*client{c, joined, apart} {
		if n := len(m.archives()); n != 3 {
			t.Errorf("a machine with the right to read lists %d archives of 3", n)
		}
		out := filepath.Join(scratch(t), "out")
		m.ok("extract", "s", "--target", out)
		same(t, tree, filepath.Join(out, "tree"))
	}
}
