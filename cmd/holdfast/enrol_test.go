package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
)

// split runs the program and returns its exit code, what it wrote for the other machine, and all the rest.
func (d *desk) split(key string, args ...string) (code int, text, said string) {
	d.t.Helper()
	var out, rest bytes.Buffer
	root := newRoot(new(globals))
	root.SetArgs(append([]string{"--key", key, "--cache", filepath.Join(d.dir, "cache"), "--patience", "0s"}, args...))
	root.SetIn(strings.NewReader(""))
	root.SetOut(&out)
	root.SetErr(&rest)
	err := root.ExecuteContext(d.t.Context())
	code = report(d.t.Context(), &rest, err)
	return code, strings.TrimSpace(out.String()), rest.String()
}

// codeOf returns the code in what a step of an enrolment said.
func codeOf(t *testing.T, said string) string {
	t.Helper()
	_, rest, ok := strings.Cut(said, "\ncode  ")
	if !ok {
		t.Fatalf("no code is shown:\n%s", said)
	}
	return strings.Fields(rest)[0]
}

// ask makes a request of a new machine; key is where its key file will be.
func (d *desk) ask() (key, request, code string) {
	d.t.Helper()
	key = filepath.Join(d.t.TempDir(), "sub", "key")
	exit, request, said := d.split(key, "key", "enrol", "--request", "--rights", "write,read")
	if exit != 0 {
		d.t.Fatalf("exit %d\n%s", exit, said)
	}
	return key, request, codeOf(d.t, said)
}

// TestEnrolInterrupted fails each request of an enrolment's second and third step in turn. The next run
// completes it: one machine, one record, one key file, nothing else.
func TestEnrolInterrupted(t *testing.T) {
	for _, done := range []bool{false, true} {
		for n := int64(1); ; n++ {
			d := newDesk(t, 0)
			what := fmt.Sprintf("request %d, done %t", n, done)
			key, request, code := d.ask()
			allow := []string{"key", "enrol", request, "--code", code, "--rights", "write,read", "--owner", d.owner}
			machines := len(d.svc.Vault.Machines)
			second := d.away(n, done)
			exit, _, said := d.split(d.key, allow...)
			d.back()
			if second() && exit != exitUnavailable {
				t.Errorf("%s of the second step: exit %d\n%s", what, exit, said)
			}
			exit, grant, said := d.split(d.key, allow...)
			if exit != 0 || len(d.svc.Vault.Machines) != machines+1 {
				t.Fatalf("%s of the second step: then exit %d, %d machines more\n%s", what, exit, len(d.svc.Vault.Machines)-machines, said)
			}
			file := filepath.Join(d.dir, "grant")
			if err := os.WriteFile(file, []byte(grant), 0o600); err != nil {
				t.Fatal(err)
			}
			finish := []string{"key", "enrol", "--grant", file, "--code", codeOf(t, said)}
			third := d.away(n, done)
			exit, said = d.run(key, finish...)
			d.back()
			if third() {
				if _, err := os.Stat(key); exit != exitUnavailable || !os.IsNotExist(err) {
					t.Errorf("%s of the third step: exit %d, key file: %v\n%s", what, exit, err, said)
				}
				if exit, said = d.run(key, finish...); exit != 0 {
					t.Errorf("%s of the third step: then exit %d\n%s", what, exit, said)
				}
			}
			d.enrolled(key, holdfast.RightWrite|holdfast.RightRead)
			if names, _ := os.ReadDir(filepath.Dir(key)); len(names) != 1 {
				t.Errorf("%s: %d files are left beside the key file", what, len(names)-1)
			}
			if !second() && !third() {
				if n < 3 {
					t.Fatalf("an enrolment makes %d requests", n-1)
				}
				break
			}
		}
	}
}

// enrolled checks that the key file is one of the vault's machines with these rights and all that it needs.
func (d *desk) enrolled(key string, rights holdfast.Rights) *keyring.Machine {
	d.t.Helper()
	m, err := keyring.Load(key, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	had, ok := d.svc.Vault.Machines[m.Signer()]
	e := m.Enrol()
	e.Series, e.DayBytes, e.DayBlocks = had.Enrol.Series, had.Enrol.DayBytes, had.Enrol.DayBlocks
	if !ok || !had.Enrol.Equal(e) || m.Rights != rights || m.ReadKey != d.svc.Vault.ReadKey || had.Revoked != 0 {
		d.t.Errorf("the key file is of a machine that may %s, enrolled: %t, as it is: %t, revoked by %d", m.Rights, ok, had.Enrol.Equal(e), had.Revoked)
	}
	return m
}

// TestEnrolFinishedTwice: a crash between the key file and the end of the third step.
func TestEnrolFinishedTwice(t *testing.T) {
	d := newDesk(t, 0)
	key, request, code := d.ask()
	pending, err := os.ReadFile(key + ".pending")
	if err != nil {
		t.Fatal(err)
	}
	_, grant, said := d.split(d.key, "key", "enrol", request, "--code", code, "--rights", "write", "--series", "web", "--series", "db", "--series", "web", "--day-bytes", "3MiB", "--day-blocks", "7", "--join-group", "--owner", d.owner)
	file := filepath.Join(d.dir, "grant")
	if err := os.WriteFile(file, []byte(grant), 0o600); err != nil {
		t.Fatal(err)
	}
	finish := []string{"key", "enrol", "--grant", file, "--code", codeOf(t, said)}
	for range 2 {
		if exit, said := d.run(key, finish...); exit != 0 {
			t.Fatalf("exit %d\n%s", exit, said)
		}
		if err := os.WriteFile(key+".pending", pending, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := d.enrolled(key, holdfast.RightWrite)
	e := d.svc.Vault.Machines[m.Signer()].Enrol
	if m.Group != d.svc.Machine.Group || m.G != d.svc.Machine.G || e.DayBytes != 3<<20 || e.DayBlocks != 7 || len(e.Series) != 2 || !e.MayCommit(m.Series("db")) || e.MayCommit(m.Series("home")) {
		t.Errorf("enrolled with %+v", e)
	}
	// A stranger's key file is never taken for the end of this enrolment.
	if err := os.WriteFile(key, d.svc.Machine.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	if exit, said := d.run(key, finish...); exit != exitFailed || !strings.Contains(said, "never overwritten") {
		t.Errorf("exit %d\n%s", exit, said)
	}
}

// TestEnrolChecksHistory: the third step believes the vault's history, not the grant alone.
func TestEnrolChecksHistory(t *testing.T) {
	d := newDesk(t, 0)
	o := d.svc.Owner
	for what, x := range map[string]struct {
		exit  int
		says  string
		alter func(r keyring.Request, e *history.Enrol, h *history.Vault)
	}{
		"more rights than enrolled": {exitDamaged, "does not enrol this machine as the grant says", func(r keyring.Request, e *history.Enrol, _ *history.Vault) { e.Rights = holdfast.RightsAll }},
		"not enrolled":              {exitDamaged, "does not enrol this machine as the grant says", nil},
		"a head that is not shown":  {exitDamaged, "does not show what the owner's machine saw", func(_ keyring.Request, _ *history.Enrol, h *history.Vault) { h.Head[0]++ }},
		"a head to come":            {exitDamaged, "does not show what the owner's machine saw", func(_ keyring.Request, _ *history.Enrol, h *history.Vault) { h.N++ }},
		"a read key not in use":     {exitDamaged, "read key is none of the vault's", func(_ keyring.Request, _ *history.Enrol, h *history.Vault) { h.ReadKeys = make([]history.ReadKeyID, 2) }},
	} {
		key, text, _ := d.ask()
		r, err := keyring.ParseRequest(text)
		if err != nil {
			t.Fatal(err)
		}
		e := history.Enrol{SignKey: r.SignKey, TLSKey: r.TLSKey, Rights: holdfast.RightWrite | holdfast.RightRead, Group: keyring.NewGroup(), Chunk: history.DefaultChunk}
		if x.alter != nil {
			d.svc.Rule(history.TypeEnrol, e.Encode())
		}
		h := d.svc.Vault.Clone()
		if x.alter != nil {
			x.alter(r, &e, h)
		}
		g, err := o.Grant(d.svc.Machine, r, e, uint32(max(len(h.ReadKeys), 1)-1), h)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(d.dir, "grant")
		if err := os.WriteFile(file, []byte(g.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		exit, said := d.run(key, "key", "enrol", "--grant", file, "--code", g.Code())
		if _, err := os.Stat(key); exit != x.exit || !strings.Contains(said, x.says) || !os.IsNotExist(err) {
			t.Errorf("%s: exit %d, key file: %v\n%s", what, exit, err, said)
		}
	}
}

// TestDeriveInterrupted fails each request in turn; the next run goes on with the file that was written.
func TestDeriveInterrupted(t *testing.T) {
	for _, done := range []bool{false, true} {
		for n := int64(1); ; n++ {
			d := newDesk(t, 0)
			what := fmt.Sprintf("request %d, done %t", n, done)
			path := filepath.Join(t.TempDir(), "new")
			derive := []string{"key", "derive", path, "--rights", "read", "--owner", d.owner}
			machines := len(d.svc.Vault.Machines)
			reached := d.away(n, done)
			exit, said := d.run(d.key, derive...)
			d.back()
			if reached() {
				if exit != exitUnavailable {
					t.Errorf("%s: exit %d\n%s", what, exit, said)
				}
				if exit, said := d.run(d.key, derive...); exit != 0 {
					t.Errorf("%s: then exit %d\n%s", what, exit, said)
				}
			}
			d.enrolled(path, holdfast.RightRead)
			if more := len(d.svc.Vault.Machines) - machines; more != 1 {
				t.Errorf("%s: %d machines more", what, more)
			}
			if !reached() {
				break
			}
		}
	}
}

// TestRecoverInterrupted fails each request in turn: there is no key file that is no key, and the next run
// brings the machine back. What is left of the failed run has a key that nobody holds.
func TestRecoverInterrupted(t *testing.T) {
	for _, done := range []bool{false, true} {
		for n := int64(1); ; n++ {
			d := newDesk(t, 0)
			what := fmt.Sprintf("request %d, done %t", n, done)
			key := filepath.Join(t.TempDir(), "key")
			back := []string{"init", "--recover", "--owner", d.owner, "--group", "new"}
			reached := d.away(n, done)
			var exit int
			var said string
			captured(t, func() { exit, said = d.run(key, back...) })
			d.back()
			if _, err := os.Stat(key); (exit == 0) != (err == nil) || exit != 0 && exit != exitUnavailable {
				t.Errorf("%s: exit %d, key file: %v\n%s", what, exit, err, said)
			}
			if exit != 0 {
				if exit, said := d.run(key, back...); exit != 0 {
					t.Fatalf("%s: then exit %d\n%s", what, exit, said)
				}
			}
			d.enrolled(key, holdfast.RightsAll)
			if !reached() {
				break
			}
		}
	}
}
