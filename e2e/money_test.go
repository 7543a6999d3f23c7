//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/part"
)

// books runs hledger on what the service's ledger says.
func (s *service) books(args ...string) string {
	s.t.Helper()
	cmd := exec.Command("hledger", append([]string{"-f", "-"}, args...)...)
	cmd.Stdin = strings.NewReader(s.admin("ledger", "--data", s.data))
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.t.Fatalf("hledger %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// restartAt kills the service and starts it with a configuration.
func (s *service) restartAt(config string) {
	s.t.Helper()
	s.kill()
	if err := os.WriteFile(filepath.Join(s.data, "config.toml"), []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.start()
}

// standing is what account show says.
type standing struct {
	Money struct {
		Balance string `json:"balance"`
		Daily   string `json:"daily"`
		Step    int    `json:"step"`
		Told    string `json:"told"`
	} `json:"money"`
}

func (s *service) standing(account string) (v standing) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.admin("account", "show", account, "--data", s.data, "--json")), &v); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// TestMoney: what is paid is booked once, whatever is killed; what is used is charged; who is not paid is told by a program, once it
// works; and what comes out of it adds up for who knows nothing of us.
func TestMoney(t *testing.T) {
	part.Need(t, "hledger")
	t.Parallel()
	s := newService(t)
	s.restartAt("[money]\ncurrency = \"EUR\"\nstored = \"0.20\"\nin = \"1000\"\n")
	c := newClient(t, s)
	account := "account-" + filepath.Base(c.dir)
	pay := func(id, amount string) string {
		t.Helper()
		return s.admin("account", "pay", account, amount, "--id", id, "--text", "bank; "+id, "--data", s.data)
	}
	has := func(out string, all ...string) {
		t.Helper()
		for _, x := range all {
			if !strings.Contains(out, x) {
				t.Errorf("%q is not in\n%s", x, out)
			}
		}
	}

	has(pay("p1", "10.05"), "booked\n", "balance   10.05 EUR\n")
	s.kill()
	s.start()
	has(pay("p1", "10.05"), "known already, nothing changed\n", "balance   10.05 EUR\n")
	s.kill()
	s.start()
	has(pay("p2", "4.95"), "booked\n", "balance   15.00 EUR\n", "stands    paid\n")
	if out, code := s.try("account", "pay", account, "5", "--id", "p2", "--data", s.data); code != 1 {
		t.Errorf("another payment of that id: exit %d", code)
	} else {
		has(out.stderr, `"p2" is the id of a payment of 4.95 EUR`, "nothing was booked now")
	}

	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "small"), "small")
	writeNoise(t, filepath.Join(dir, "tree", "file"), 1, 1<<20)
	c.ok("create", "-C", dir, "s", "tree")
	// Another price: what was used before is charged at the old one, and at the new one nobody has paid for the grace.
	s.restartAt("[money]\ncurrency = \"EUR\"\nstored = \"100000\"\n")
	v := s.standing(account)
	for deadline := time.Now().Add(time.Minute); v.Money.Step == 0; v = s.standing(account) {
		if time.Now().After(deadline) {
			t.Fatalf("the account stands at %+v", v)
		}
		<-time.After(20 * time.Millisecond)
	}
	if v.Money.Step != 5 || v.Money.Told != "" || !strings.HasPrefix(v.Money.Balance, "13.9") {
		t.Errorf("the account stands at %+v", v)
	}
	has(s.admin("account", "show", account, "--data", s.data), "stands    writing has stopped; 90 days left until archives are deleted, ", "; NOT TOLD\n")
	has(s.admin("account", "list", "--data", s.data), v.Money.Balance+" EUR; writing has stopped\n")

	// Stock hledger agrees.
	s.books("check", "--strict")
	exact := []string{"-N", "--flat", "-c", "1.000000000000 EUR"}
	has(s.books(append([]string{"balance"}, exact...)...), "15.000000000000 EUR  assets:payments\n", "-"+v.Money.Balance, " EUR  liabilities:customers:"+account+"\n", " EUR  income:use\n")
	if out := strings.Fields(s.books("balance")); out[len(out)-1] != "0" {
		t.Errorf("the books add up to %s", out[len(out)-1])
	}
	has(s.books("print"), "(payment:p1) bank%3B p1\n", "byte-hours stored")
	var all []any
	if err := json.Unmarshal([]byte(s.admin("ledger", "--data", s.data, "--json")), &all); err != nil || len(all) < 3 {
		t.Errorf("%d transfers, %v", len(all), err)
	}

	// He is told when a program has done that, and not before.
	has(s.admin("status", "--data", s.data), "UNTOLD    1 owner was not told that their accounts are not paid, the first since 20")
	has(s.admin("account", "warnings", "--data", s.data), account+": writing has stopped; 90 days left, until 20")
	said := filepath.Join(dir, "said")
	tell := func(end string) string {
		t.Helper()
		path := filepath.Join(dir, "tell")
		if err := os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\ncat >>%s\n%s\n", said, end), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if out, code := s.try("account", "warnings", "--data", s.data, "--run", tell("exit 7")); code != 1 {
		t.Errorf("a program that failed: exit %d", code)
	} else {
		has(out.stderr, account+" was not told: run "+filepath.Join(dir, "tell")+": exit status 7", "not told: 1 of 1; nothing of theirs is deleted meanwhile")
	}
	if v := s.standing(account); v.Money.Told != "" {
		t.Errorf("he counts as told: %+v", v)
	}
	has(s.admin("account", "warnings", "--data", s.data, "--run", tell("")), account+": told: writing has stopped\n")
	s.kill()
	s.start()
	// His vault's history says it as well, and that it is over.
	proves := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !strings.Contains(c.ok("history").stdout, what); <-time.After(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the history does not say %q:\n%s", what, c.ok("history").stdout)
			}
		}
	}
	proves("the account has no credit: archives may lapse from 20")
	if out := s.admin("account", "warnings", "--data", s.data); out != "" || s.standing(account).Money.Told == "" {
		t.Errorf("to be told again: %s", out)
	}
	if strings.Contains(s.admin("status", "--data", s.data), "UNTOLD") {
		t.Error("status says that somebody was not told")
	}
	raw, err := os.ReadFile(said)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	var first, second struct{ ID, Name, Words, Balance, Currency string }
	if err := json.Unmarshal([]byte(lines[0]), &first); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &second); err != nil || len(lines) != 2 || first != second {
		t.Errorf("it was told %s, %v", raw, err)
	}
	if first.ID == "" || first.Name != account || first.Words != "writing has stopped" || first.Balance != v.Money.Balance || first.Currency != "EUR" {
		t.Errorf("it was told %+v", first)
	}

	// An outage is credited once.
	has(s.admin("credit", "--incident", "i1", "--hours", "2", "--dry-run", "--data", s.data), "credits   1 accounts, ", "; 0 of them had theirs already\n")
	once := s.admin("credit", "--incident", "i1", "--hours", "2", "--now", "--data", s.data)
	has(once, "credits   1 accounts, ", " EUR together; 0 of them had theirs already\n")
	s.kill()
	s.start()
	if again := s.admin("credit", "--incident", "i1", "--hours", "2", "--now", "--data", s.data); again != strings.Replace(once, "; 0 of", "; 1 of", 1) {
		t.Errorf("%sand then %s", once, again)
	}

	// Who pays is paid.
	has(pay("p3", "100000"), "stands    paid; ")
	has(s.admin("account", "refund", account, "1", "--id", "r1", "--data", s.data), "booked\n")
	s.books("check", "--strict")
	v = s.standing(account)
	has(s.books(append([]string{"balance", "liabilities"}, exact...)...), "-"+v.Money.Balance)
	s.kill()
	s.start()
	proves("paid again")
	s.stop()
	has(s.admin("check", "--data", s.data), "books      4, which add up to zero\n")
}
