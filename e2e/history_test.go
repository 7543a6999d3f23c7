//go:build linux

package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestHistoryAndRevoke: a head code from earlier holds, another does not; a revoked machine may do nothing.
func TestHistoryAndRevoke(t *testing.T) {
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
