//go:build linux

package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// TestHistoryAndRevoke: a head code from earlier holds, another does not; a revoked machine may do nothing.
func TestHistoryAndRevoke(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	c.several("s", 2)
	shown := c.ok("history").stdout
	_, code, ok := strings.Cut(shown, "head code  ")
	if code = strings.TrimSpace(code); !ok || strings.Count(shown, "  commit ") != 2 || !strings.Contains(shown, "genesis      by owner") {
		t.Fatalf("history shows\n%s", shown)
	}
	c.ok("freeze")
	c.ok("history", "--expect-head", strings.ToUpper(code))
	other := []byte(code)
	if last := len(other) - 1; other[last] == '2' {
		other[last] = '3'
	} else {
		other[last] = '2'
	}
	c.exits(4, "history", "--expect-head", string(other))
	c.exits(4, "history", "--expect-head", "9"+code)
	c.exits(2, "history", "--expect-head", "nonsense")
	var doc struct {
		Code    string `json:"head_code"`
		Records []struct{ Type, Signer string }
	}
	if err := json.Unmarshal([]byte(c.ok("history", "--json").stdout), &doc); err != nil || len(doc.Records) == 0 || doc.Records[len(doc.Records)-1].Type != "freeze" {
		t.Errorf("history --json: %+v, %v", doc, err)
	}

	var machines []struct {
		Machine  string
		Archives int
		This     bool
	}
	if err := json.Unmarshal([]byte(c.ok("key", "list", "--json").stdout), &machines); err != nil || len(machines) != 1 || machines[0].Archives != 2 || !machines[0].This {
		t.Fatalf("key list --json: %+v, %v", machines, err)
	}
	c.exits(1, "key", "revoke", "zzzz", "--owner", c.owner())
	c.exits(2, "key", "revoke", machines[0].Machine, "--since", "yesterday", "--owner", c.owner())
	c.has(c.ok("key", "revoke", machines[0].Machine[:8], "--since", "2020-01-01", "--owner", c.owner()), "2 archives of it suspect")
	c.has(c.exits(1, "list"), "revoked")
	c.exits(1, "thaw", "--owner", c.owner())
}

// TestInitRecover: the machine is gone; a bare one, the words and the service's address and keys get
// everything back.
func TestInitRecover(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 1, 50)
	c.ok("create", "-C", dir, "s", "tree")
	fields := map[string]string{}
	for line := range strings.Lines(c.ok("key", "show").stdout) {
		if k, v, ok := strings.Cut(line, "  "); ok {
			fields[k] = strings.TrimSpace(v)
		}
	}
	bare := unenrolled(t)
	keys := []string{"init", "--recover", "--address", fields["service"], "--service-key", fields["service key"], "--log-key", fields["log key"]}
	if out, code := bare.typed("one two three", keys...); code != 2 {
		t.Errorf("without the words: exit %d\n%s", code, out)
	}
	if out, code := bare.typed(c.words(), keys[:4]...); code != 2 {
		t.Errorf("without the service's keys: exit %d\n%s", code, out)
	}
	stranger := newClient(t, newService(t))
	if out, code := bare.typed(stranger.words(), keys...); code != 1 || !strings.Contains(out, "no vault of this owner") {
		t.Errorf("with the words of a vault elsewhere: exit %d\n%s", code, out)
	}
	if out, code := bare.typed(c.words(), keys...); code != 0 || !strings.Contains(out, "freshness unverified") {
		t.Fatalf("with the words: exit %d\n%s", code, out)
	}
	bare.ok("extract", "s", "--target", filepath.Join(dir, "out"))
	same(t, tree, filepath.Join(dir, "out", "tree"))
	bare.ok("create", "-C", dir, "s", "tree")

	third := unenrolled(t)
	third.ok("init", "--recover", "--owner", c.owner(), "--write-only")
	third.exits(1, "verify")
	third.ok("create", "-C", dir, "s", "tree")
	bare.ok("verify")
}
