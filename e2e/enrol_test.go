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
	t.Parallel()
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

// TestEnrolRefuses: whatever is put in the place of the right thing is refused, with a sentence that says why,
// and nothing is left behind by it.
func TestEnrolRefuses(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c, stranger := newClient(t, s), newClient(t, s)
	n, other := unenrolled(t), unenrolled(t)
	ask, otherAsk := n.ok("key", "enrol", "--request", "--rights", "write,read"), other.ok("key", "enrol", "--request")
	request, code := strings.TrimSpace(ask.stdout), codeIn(t, ask)
	if again := n.ok("key", "enrol", "--request", "--rights", "write,read"); again.stdout != ask.stdout || codeIn(t, again) != code {
		t.Error("the same machine asks with another request the second time")
	}
	n.refuses(1, "asked for write,read already", "key", "enrol", "--request", "--rights", "write")
	allow := func(request, code string, extra ...string) []string {
		return append([]string{"key", "enrol", request, "--code", code, "--rights", "write,read", "--owner", c.owner()}, extra...)
	}
	records := func() int { return strings.Count(c.ok("history").stdout, "\n") }
	before := records()
	c.refuses(4, "the code does not belong to this request", allow(request, codeIn(t, otherAsk))...)
	c.refuses(4, "the code does not belong to this request", allow(strings.TrimSpace(otherAsk.stdout), code)...)
	altered := strings.Replace(request, request[40:44], "AAAA", 1)
	c.refuses(2, "check sum", allow(altered, code)...)
	c.refuses(2, "not a whole enrolment request; copy it whole", allow(request[:len(request)-1], code)...)
	short := request[:len(request)-1] // by as many characters as no base64 is long: otherwise its check sum is what is wrong, or both
	for (len(short)-len("holdfast-request1-"))%4 != 1 {
		short = short[:len(short)-1]
	}
	c.refuses(2, "cut off", allow(short, code)...)
	c.refuses(2, "--code", "key", "enrol", request, "--rights", "write", "--owner", c.owner())
	c.refuses(2, "--rights write,read", "key", "enrol", request, "--code", code, "--owner", c.owner())
	c.refuses(2, "are no rights", append(allow(request, code), "--rights", "all")...)
	c.refuses(2, "is no size", allow(request, code, "--day-bytes", "lots")...)
	c.refuses(2, "either --join-group or --group", allow(request, code, "--join-group", "--group", "1234")...)
	c.refuses(1, "no group", allow(request, code, "--group", "0000")...)
	c.refuses(2, "another vault", append(allow(request, code), "--owner", stranger.owner())...)
	c.refuses(2, "usage", "key", "enrol")
	n.refuses(2, "--series means nothing with --request", "key", "enrol", "--request", "--series", "s")
	n.refuses(2, "--rights means nothing with --grant", "key", "enrol", "--grant", "-", "--rights", "read")
	c.refuses(2, "--passphrase means nothing with a request", append(allow(request, code), "--passphrase")...)
	c.refuses(2, "usage", "key", "enrol", request, "--request")
	if after := records(); after != before {
		t.Errorf("%d records came of what was refused", after-before)
	}

	grant := c.ok(allow(request, code)...)
	file := func(text string) string {
		p := filepath.Join(scratch(t), "grant")
		write(t, p, text)
		return p
	}
	right := codeIn(t, grant)
	finish := func(path, code string) []string { return []string{"key", "enrol", "--grant", path, "--code", code} }
	// The same request again is answered with the same terms, and no second record.
	again := c.ok(allow(request, code)...)
	if codeIn(t, again) != right || records() != before+1 {
		t.Errorf("the second answer has another code, or made a record: %d", records()-before)
	}
	c.refuses(1, "is enrolled already and may write", append(allow(request, code), "--rights", "write")...)
	c.refuses(1, "is enrolled already and may write", allow(request, code, "--join-group")...)

	n.refuses(2, "check sum", finish(file(strings.Replace(grant.stdout, grant.stdout[80:84], "AAAA", 1)), right)...)
	n.refuses(4, "the code does not belong to this grant", finish(file(grant.stdout), code)...)
	n.refuses(2, "--code", "key", "enrol", "--grant", file(grant.stdout))
	// A grant for another machine of the vault, and for the same machine by the owner of another vault.
	otherGrant := c.ok("key", "enrol", strings.TrimSpace(otherAsk.stdout), "--code", codeIn(t, otherAsk), "--rights", "write", "--owner", c.owner())
	n.refuses(4, "it answers another request", finish(file(otherGrant.stdout), codeIn(t, otherGrant))...)
	theirs := unenrolled(t)
	theirAsk := theirs.ok("key", "enrol", "--request")
	theirGrant := stranger.ok("key", "enrol", strings.TrimSpace(theirAsk.stdout), "--code", codeIn(t, theirAsk), "--rights", "write", "--owner", stranger.owner())
	theirs.refuses(4, "the code does not belong to this grant", finish(file(theirGrant.stdout), right)...)
	for _, x := range []*client{n, theirs} {
		if _, err := os.Stat(x.key()); !os.IsNotExist(err) {
			t.Errorf("a refused grant left a key file: %v", err)
		}
		if _, err := os.Stat(x.key() + ".pending"); err != nil {
			t.Errorf("a refused grant took the pending file away: %v", err)
		}
	}
	n.ok(finish(file(grant.stdout), right)...)
	n.refuses(1, "asked for nothing", finish(file(grant.stdout), right)...)
	n.refuses(1, "is never overwritten", "key", "enrol", "--request")
	n.ok("list")

	// Revoked before it finished: it never gets a key file.
	c.ok("key", "revoke", "--owner", c.owner(), machineIn(t, otherGrant))
	other.refuses(1, "revoked", finish(file(otherGrant.stdout), codeIn(t, otherGrant))...)
	if _, err := os.Stat(other.key()); !os.IsNotExist(err) {
		t.Errorf("a revoked machine has a key file: %v", err)
	}
	c.refuses(1, "is revoked", "key", "enrol", strings.TrimSpace(otherAsk.stdout), "--code", codeIn(t, otherAsk), "--rights", "write", "--owner", c.owner())
}

// machineIn returns the machine that step 2 of an enrolment names.
func machineIn(t testing.TB, o outcome) string {
	t.Helper()
	_, rest, ok := strings.Cut(o.stderr, "Machine ")
	if !ok {
		t.Fatalf("no machine is named:\n%s", o.stderr)
	}
	return rest[:16]
}

// refuses runs holdfast with args, which must end with code and a sentence that has text in it.
func (c *client) refuses(code int, text string, args ...string) {
	c.t.Helper()
	if o := c.exits(code, args...); !strings.Contains(o.stderr, text) || o.stdout != "" {
		c.t.Errorf("holdfast %s: want %q\n%s%s", strings.Join(args, " "), text, o.stdout, o.stderr)
	}
}

// TestEnrolWriteOnly: a machine that got the right to write, for one series, has no other.
func TestEnrolWriteOnly(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 1, 20)
	c.ok("create", "-C", dir, "mine", "tree")
	w := c.join(c.owner(), "write", "--series", "web", "--day-bytes", "1GiB", "--join-group")
	w.ok("create", "-C", dir, "web", "tree")
	c.has(c.ok("key", "list"), "for series web only  1.0 GiB a day at most")
	w.refuses(1, `"mine" is none of the 1`, "create", "-C", dir, "mine", "tree")
	const noRead = "this key file cannot read archives"
	w.refuses(1, noRead, "list", "web")
	w.refuses(1, noRead, "extract", "web", "--target", filepath.Join(dir, "out"))
	w.refuses(1, noRead, "verify")
	archive := c.archives()[0].Archive
	w.refuses(1, "may write, but not delete", "delete", archive)
	w.refuses(1, "may write, but not read", "freeze")
	if err := os.RemoveAll(filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	c.ok("extract", "web", "--target", filepath.Join(dir, "out"))
	same(t, tree, filepath.Join(dir, "out", "tree"))
}

// TestEnrolTyped takes the request from a file, the owner's words and the grant from standard input, and protects
// the new key file.
func TestEnrolTyped(t *testing.T) {
	s := newService(t)
	c, n := newClient(t, s), unenrolled(t)
	dir := scratch(t)
	ask := n.ok("key", "enrol", "--request", "--rights", "read")
	file, pass := filepath.Join(dir, "holdfast-request"), filepath.Join(dir, "passphrase")
	write(t, file, "\n"+ask.stdout[:500]+"\r\n  "+ask.stdout[500:])
	write(t, pass, "battery staple\n")
	if err := os.Chmod(pass, 0o600); err != nil {
		t.Fatal(err)
	}
	allow := []string{"key", "enrol", file, "--rights", "read", "--code", strings.ToUpper(codeIn(t, ask))}
	t.Chdir(dir)
	allow[2] = "holdfast-request" // a file, although it begins as a request does
	if out, code := c.typed("no words", allow...); code != 2 || !strings.Contains(out, "24") {
		t.Errorf("without the words: exit %d\n%s", code, out)
	}
	out, code := c.typed(c.words(), allow...)
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, out)
	}
	grant, rest, _ := strings.Cut(out, "\n")
	_, shown, _ := strings.Cut(rest, "\ncode  ")
	shown, _, _ = strings.Cut(shown, "\n")
	if out, code := n.typed(grant, "key", "enrol", "--grant", "-", "--code", shown, "--new-passphrase-file", pass); code != 0 {
		t.Fatalf("exit %d\n%s", code, out)
	}
	n.ok("--passphrase-file", pass, "list")
	if b, err := os.ReadFile(n.key()); err != nil || !strings.HasPrefix(string(b), "-----BEGIN AGE ENCRYPTED FILE-----") {
		t.Errorf("the key file is not protected: %v", err)
	}
	path := filepath.Join(dir, "derived")
	for range 2 {
		c.ok("--passphrase-file", pass, "key", "derive", path, "--rights", "read", "--owner", c.owner(), "--new-passphrase-file", pass)
	}
	c.ok("--key", path, "--passphrase-file", pass, "list")
}

// TestDerive makes a key file that reads only, and one that writes only, and refuses to write over anything.
func TestDerive(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 1, 20)
	c.ok("create", "-C", dir, "s", "tree")
	reader, writer := unenrolled(t), unenrolled(t)
	made := func() []string {
		return []string{"key", "derive", reader.key(), "--rights", "read", "--owner", c.owner()}
	}
	c.has(c.ok(made()...), "may read")
	key, err := os.ReadFile(reader.key())
	if err != nil {
		t.Fatal(err)
	}
	c.ok(made()...) // run again, it changes nothing
	c.refuses(1, "never overwritten", "key", "derive", reader.key(), "--rights", "write", "--owner", c.owner())
	c.refuses(1, "never overwritten", "key", "derive", c.key(), "--rights", "write,read,delete", "--owner", c.owner())
	if again, err := os.ReadFile(reader.key()); err != nil || string(again) != string(key) {
		t.Fatalf("the key file changed: %v", err)
	}
	reader.ok("extract", "s", "--target", filepath.Join(dir, "out"))
	same(t, tree, filepath.Join(dir, "out", "tree"))
	reader.exits(1, "create", "-C", dir, "s", "tree")

	c.refuses(2, "no right to write", "key", "derive", writer.key(), "--rights", "read", "--series", "s", "--owner", c.owner())
	if _, err := os.Stat(writer.key()); !os.IsNotExist(err) {
		t.Fatalf("a refused command left a key file: %v", err)
	}
	s.kill()
	c.exits(5, "--patience", "0s", "key", "derive", writer.key(), "--rights", "write", "--join-group", "--owner", c.owner())
	s.start()
	c.ok("key", "derive", writer.key(), "--rights", "write", "--join-group", "--owner", c.owner())
	if x := writer.create("-C", dir, "s", "tree"); x.DataBlocks != 0 {
		t.Errorf("a writer of the group uploaded %+v", x)
	}
	if n := strings.Count(c.ok("key", "list").stdout, "\n"); n != 3 {
		t.Errorf("%d machines are enrolled, want 3", n)
	}
}

// TestPolicyDelay lengthens the time for bringing back at once, and shortens it late.
func TestPolicyDelay(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	c.refuses(2, "not from 1 day to 365 days", "policy", "delay", "23h", "--owner", c.owner())
	c.refuses(2, "is no time", "policy", "delay", "soon", "--owner", c.owner())
	c.has(c.ok("policy", "delay", "2w", "--owner", c.owner()), "for 14 days\n")
	o := c.ok("policy", "delay", "1d", "--owner", c.owner())
	c.has(o, "for 14 days\n")
	c.has(o, "for 1 day only\n")
	c.has(c.ok("policy", "show"), "for 1 day only\n")
	var d struct {
		Now  uint64 `json:"undelete_seconds"`
		Next uint64 `json:"undelete_seconds_next"`
		From string `json:"undelete_next_from"`
	}
	if err := json.Unmarshal([]byte(c.ok("policy", "show", "--json").stdout), &d); err != nil || d.Now != 14*86400 || d.Next != 86400 || d.From == "" {
		t.Errorf("%+v, %v", d, err)
	}
	c.has(c.ok("history"), "  14 days\n")
	c.has(c.ok("history"), "  1 day, from "+d.From[:19]+"Z on\n")
	w := c.join(c.owner(), "write")
	if out, code := w.typed("", "policy", "delay", "1d"); code != 2 {
		t.Errorf("without the owner: exit %d\n%s", code, out)
	}
}

// TestRecoverGoesOn: a machine that comes back with the owner's words goes on in the group of the one that is
// lost, and uploads nothing that is there; with several machines before it, or if it is told to, in its own.
func TestRecoverGoesOn(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	smallTree(t, dir, "tree", 1, 200)
	first := c.create("-C", dir, "s", "tree")
	apart := unenrolled(t)
	c.has(apart.ok("init", "--recover", "--owner", c.owner(), "--group", "new"), "machine belongs to vault")
	if x := apart.create("-C", dir, "s", "tree"); x.Sent < first.Sent*9/10 {
		t.Errorf("in a group of its own it uploaded %+v, the first machine %+v", x, first)
	}
	c.ok("key", "rotate-read", "--owner", c.owner())

	d := newClient(t, s)
	d.create("-C", dir, "s", "tree")
	d.ok("key", "rotate-read", "--owner", d.owner())
	back := unenrolled(t)
	c.has(back.ok("init", "--recover", "--owner", d.owner()), "It goes on in group")
	if x := back.create("-C", dir, "s", "tree"); x.DataBlocks != 0 || x.Sent > first.Sent/4 {
		t.Errorf("in the old group it uploaded %+v, the first machine %+v", x, first)
	}
	back.ok("verify")
	// Now there are two.
	third := unenrolled(t)
	c.has(third.ok("init", "--recover", "--owner", d.owner(), "--write-only"), "a group of its own")
	fourth := unenrolled(t)
	group := ""
	for line := range strings.Lines(d.ok("key", "show").stdout) {
		if g, ok := strings.CutPrefix(line, "group "); ok {
			group = strings.TrimSpace(g)
		}
	}
	fourth.refuses(1, "no group", "init", "--recover", "--owner", d.owner(), "--group", "ffff")
	fourth.ok("init", "--recover", "--owner", d.owner(), "--group", group[:8])
	if x := fourth.create("-C", dir, "s", "tree"); x.DataBlocks != 0 {
		t.Errorf("in the named group it uploaded %+v", x)
	}
	if n := strings.Count(d.ok("key", "list").stdout, "revoked"); n != 4 {
		t.Errorf("%d keys that only looked are revoked, want 4:\n%s", n, d.ok("key", "list").stdout)
	}
}

// TestEnrolTakenByAnother: somebody gets hold of a request and answers it first, from a vault of his own. The
// machine does not fall for it, the right owner is told, and a new request works.
func TestEnrolTakenByAnother(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c, thief := newClient(t, s), newClient(t, s)
	n := unenrolled(t)
	ask := n.ok("key", "enrol", "--request")
	allow := func(o outcome, owner string) []string {
		return []string{"key", "enrol", strings.TrimSpace(o.stdout), "--code", codeIn(t, o), "--rights", "write", "--owner", owner}
	}
	theirs := thief.ok(allow(ask, thief.owner())...)
	file := filepath.Join(n.dir, "grant")
	write(t, file, theirs.stdout)
	c.refuses(1, "let the machine make a new key", allow(ask, c.owner())...)
	n.refuses(4, "the code does not belong to this grant", "key", "enrol", "--grant", file, "--code", codeIn(t, ask))

	if err := os.Remove(n.key() + ".pending"); err != nil {
		t.Fatal(err)
	}
	ask = n.ok("key", "enrol", "--request")
	right := c.ok(allow(ask, c.owner())...)
	n.refuses(4, "it answers another request", "key", "enrol", "--grant", file, "--code", codeIn(t, theirs))
	write(t, file, right.stdout)
	n.ok("key", "enrol", "--grant", file, "--code", codeIn(t, right))
}
