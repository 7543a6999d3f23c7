//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listed is what list --json says of an archive.
type listed struct {
	Archive, ID, State, Machine string
	Suspect                     bool
	Time                        time.Time
	Until                       *time.Time
}

func (c *client) archives() (all []listed) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.ok("list", "--json").stdout), &all); err != nil {
		c.t.Fatal(err)
	}
	return all
}

func (c *client) owner() string { return filepath.Join(c.dir, "owner") }

// typed runs holdfast with something typed on its standard input.
func (c *client) typed(input string, args ...string) (out string, code int) {
	c.t.Helper()
	cmd := exec.Command(holdfast, args...)
	cmd.Env, cmd.Stdin = c.env, strings.NewReader(input)
	b, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		c.t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// words returns the 24 words in c's owner file.
func (c *client) words() string {
	c.t.Helper()
	b, err := os.ReadFile(c.owner())
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if w, ok := strings.CutPrefix(line, "words "); ok {
			return strings.TrimSpace(w)
		}
	}
	c.t.Fatal("the owner file has no words")
	return ""
}

func (c *client) has(o outcome, text string) {
	c.t.Helper()
	if !strings.Contains(o.stdout+o.stderr, text) {
		c.t.Errorf("%q is not said:\n%s%s", text, o.stdout, o.stderr)
	}
}

// several makes n archives of a series.
func (c *client) several(series string, n int) []listed {
	c.t.Helper()
	dir := scratch(c.t)
	for i := range n {
		write(c.t, filepath.Join(dir, "tree", "file"), strings.Repeat("x", i+1))
		c.ok("create", "-C", dir, series, "tree")
	}
	return c.archives()
}

// TestDeleteAndBringBack goes through what a user does with archives that are not wanted any more.
func TestDeleteAndBringBack(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	a := c.several("s", 4)
	c.exits(2, "delete", "s")
	c.exits(1, "delete", "s@1999")
	c.has(c.ok("delete", a[0].Archive, a[3].Archive), "deleted 2 archives; `holdfast undelete` brings them back until 20")

	got := c.archives()
	if got[0].State != "deleted" || got[1].State != "live" || got[3].State != "deleted" || got[0].Until == nil || got[1].Until != nil {
		t.Fatalf("list says %+v", got)
	}
	if left := time.Until(*got[0].Until); left < 7*24*time.Hour-10*time.Minute || left > 7*24*time.Hour {
		t.Errorf("a deleted archive can be brought back for another %v, not 7 days", left)
	}
	c.has(c.ok("list"), "  deleted, can be brought back until ")
	// The latest is the latest that is not deleted; what is deleted can still be read.
	out := filepath.Join(scratch(t), "out")
	c.ok("extract", "s", "--target", out)
	if b, err := os.ReadFile(filepath.Join(out, "tree", "file")); err != nil || len(b) != 3 {
		t.Errorf("the latest archive has a file of %d bytes, %v", len(b), err)
	}
	c.ok("extract", a[3].ID, "--target", filepath.Join(scratch(t), "out"))

	c.has(c.exits(1, "delete", a[0].Archive), "is deleted")
	c.has(c.exits(1, "delete", a[1].Archive), "Sign it with the owner's key")
	c.ok("undelete", a[3].Archive)
	c.has(c.exits(1, "undelete", a[3].Archive), "is live")
	c.ok("delete", "--owner", c.owner(), a[1].Archive, a[2].Archive, a[3].Archive)
	c.has(c.exits(1, "extract", "s", "--target", filepath.Join(scratch(t), "out")), "deleted")
	c.ok("verify")
	c.ok("undelete", a[1].Archive, a[2].Archive, a[3].Archive, a[0].Archive)
}

// TestFreezeAndThaw: a machine stops all deleting, only the owner ends that.
func TestFreezeAndThaw(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	a := c.several("s", 3)
	c.ok("freeze")
	c.has(c.exits(1, "delete", a[0].Archive), "frozen")
	c.has(c.ok("list"), "deleting is frozen")
	if out, code := c.typed("not the words", "thaw"); code != 2 || !strings.Contains(out, "24") {
		t.Errorf("thaw without the words: exit %d\n%s", code, out)
	}
	other := newClient(t, s)
	if out, code := c.typed(other.words(), "thaw"); code != 2 || !strings.Contains(out, "another vault") {
		t.Errorf("thaw with another vault's words: exit %d\n%s", code, out)
	}
	w := strings.Fields(c.words())
	if out, code := c.typed(strings.Join(w[:12], " ")+"\n"+strings.Join(w[12:], "\n")+"\n", "thaw"); code != 0 {
		t.Errorf("thaw with the words: exit %d\n%s", code, out)
	}
	c.ok("delete", a[0].Archive)

	writer := newClient(t, s, "--write-only")
	writer.has(writer.exits(1, "freeze"), "--owner FILE")
	writer.ok("freeze", "--owner", writer.owner())
	writer.ok("thaw", "--owner", writer.owner())
}

// TestPolicyAndPrune sets policies, and prunes with the same rules; what is shown beforehand is what happens.
func TestPolicyAndPrune(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	a := c.several("s", 5)
	c.exits(2, "prune", "s")
	c.exits(2, "prune", "s", "--keep-within", "3")
	c.exits(1, "prune", "other", "--keep-last", "1")
	dry := c.ok("prune", "s", "--keep-last", "3", "--dry-run").stdout
	if strings.Count(dry, "  stays  last ") != 3 || strings.Count(dry, "  goes   no rule keeps it") != 2 {
		t.Errorf("prune --dry-run says\n%s", dry)
	}
	for _, x := range c.archives() {
		if x.State != "live" {
			t.Errorf("--dry-run deleted %s", x.Archive)
		}
	}
	c.has(c.ok("prune", "s", "--keep-last", "3"), "deleted 2 archives")
	for i, x := range c.archives() {
		if (x.State == "deleted") != (i < 2) {
			t.Errorf("archive %d is %s", i, x.State)
		}
	}
	c.has(c.ok("prune", "s", "--keep-daily", "1", "--keep-within", "1d"), "keep every archive")
	c.has(c.exits(1, "prune", "s", "--keep-last", "1"), "--owner FILE")
	c.ok("undelete", a[0].Archive)

	c.exits(2, "policy", "set", "s", "--owner", c.owner())
	c.exits(2, "policy", "set", "s", "--keep-all", "--keep-last", "1", "--owner", c.owner())
	c.exits(1, "policy", "set", "typo", "--keep-last", "1", "--owner", c.owner())
	c.ok("policy", "set", "s", "--keep-last", "3", "--keep-within", "8w", "--owner", c.owner())
	c.ok("policy", "set", "--keep-all", "--owner", c.owner())
	c.has(c.ok("policy", "show"), "series s: keep 3 last, all within 56 days\n")
	c.has(c.ok("policy", "show"), "every other series: keep everything\n")
	if !json.Valid([]byte(c.ok("policy", "show", "--json").stdout)) {
		t.Error("policy show --json is not JSON")
	}
	c.exits(1, "confirm", "typo", "--owner", c.owner())
	c.ok("confirm", "s", "--owner", c.owner())
	s.stop()
	s.start() // the policies run: nothing is 30 days old
	if n := len(c.archives()); n != 5 {
		t.Errorf("%d archives are left of 5", n)
	}
}
