package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/remote/remotetest"
	"holdfast/client/seal"
	"holdfast/history"
)

// desk is a machine with a key file, the owner's file beside it, and a service that holds both to the protocol.
type desk struct {
	t          *testing.T
	svc        *remotetest.Service
	dir        string
	key, owner string
}

// newDesk returns a desk whose vault has n sessions and no archive.
func newDesk(t *testing.T, n int) *desk {
	t.Helper()
	d := &desk{t: t, svc: remotetest.New(t), dir: t.TempDir()}
	c := d.svc.Enrol(remote.Options{})
	m := d.svc.Machine
	d.key, d.owner = d.save(m), filepath.Join(d.dir, "owner")
	if err := keyring.SaveOwner(d.owner, keyring.OwnerFile{Owner: d.svc.Owner, Vault: m.Vault, Address: m.Address, ServiceKey: m.ServiceKey, LogKey: m.LogKey}, nil); err != nil {
		t.Fatal(err)
	}
	for range n {
		d.open(c)
	}
	return d
}

// save writes m's key file anew.
func (d *desk) save(m *keyring.Machine) string {
	d.t.Helper()
	path := filepath.Join(d.t.TempDir(), "key")
	if err := m.Save(path, nil); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// open opens a session and closes it again: its wrap stays.
func (d *desk) open(c *remote.Client) {
	d.t.Helper()
	s, err := c.OpenSession(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	s.Close()
}

// run runs the program and returns its exit code and all that it said.
func (d *desk) run(key string, args ...string) (int, string) {
	d.t.Helper()
	var out bytes.Buffer
	root := newRoot(new(globals))
	root.SetArgs(append([]string{"--key", key, "--cache", filepath.Join(d.dir, "cache"), "--patience", "0s"}, args...))
	root.SetIn(strings.NewReader(""))
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(d.t.Context())
	return report(d.t.Context(), &out, err), out.String()
}

func (d *desk) rotate(extra ...string) (int, string) {
	d.t.Helper()
	return d.run(d.key, append([]string{"key", "rotate-read", "--owner", d.owner}, extra...)...)
}

// opens returns how many of the vault's sessions the key in the key file opens.
func (d *desk) opens(key string) (n int) {
	d.t.Helper()
	m, err := keyring.Load(key, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	r, err := seal.NewReader(m)
	if err != nil {
		d.t.Fatal(err)
	}
	d.svc.Mu.Lock()
	defer d.svc.Mu.Unlock()
	if err := r.AddSessions(d.svc.Vault); err != nil {
		d.t.Fatal(err)
	}
	for id := range d.svc.Vault.Sessions {
		if r.CheckSession(id) == nil {
			n++
		}
	}
	return n
}

func (d *desk) current(key string) bool {
	d.t.Helper()
	m, err := keyring.Load(key, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return m.ReadKey == d.svc.Vault.ReadKey
}

// away makes the service go away at its request n from now on, when that is done or before. It returns a
// function that reports whether there was such a request.
func (d *desk) away(n int64, done bool) (reached func() bool) {
	var asked atomic.Int64
	d.svc.Hook = func(http.ResponseWriter, *http.Request) bool {
		if k := asked.Add(1); k > n || k == n && !done {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	d.svc.After = func(string) bool { return asked.Load() >= n }
	return func() bool { return asked.Load() >= n }
}

// back ends away.
func (d *desk) back() { d.svc.Hook, d.svc.After = nil, nil }

// TestRotateReadInterrupted fails each request of a rotation in turn, before it is done and after. The key in
// the key file opens everything at every moment, and the next run completes the one rotation.
func TestRotateReadInterrupted(t *testing.T) {
	const sessions = 3
	for _, done := range []bool{false, true} {
		for n := int64(1); ; n++ {
			d := newDesk(t, sessions)
			reached := d.away(n, done)
			code, said := d.rotate()
			d.back()
			what := fmt.Sprintf("request %d, done %t", n, done)
			if !reached() {
				if code != 0 || n < 2*sessions {
					t.Fatalf("%s: exit %d\n%s", what, code, said)
				}
				break
			}
			if code != exitUnavailable {
				t.Errorf("%s: exit %d\n%s", what, code, said)
			}
			if got := d.opens(d.key); got != sessions {
				t.Errorf("%s: the key file opens %d of %d sessions", what, got, sessions)
			}
			if code, said := d.rotate(); code != 0 {
				t.Errorf("%s: the next run ends with %d\n%s", what, code, said)
			}
			if !d.current(d.key) || d.opens(d.key) != sessions || len(d.svc.Vault.ReadKeys) != 2 {
				t.Errorf("%s: afterwards the key file is current: %t, opens %d of %d, and there are %d read keys", what, d.current(d.key), d.opens(d.key), sessions, len(d.svc.Vault.ReadKeys))
			}
		}
	}
}

// TestRotateReadDamaged: a session whose wrap is garbage, which any thief who may write can make, is found before
// anything is changed, named, and stops nobody for good.
func TestRotateReadDamaged(t *testing.T) {
	d := newDesk(t, 2)
	c := d.svc.Dial(remote.Options{})
	if _, err := c.History(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, o, err := seal.NewSession(rand.Reader, d.svc.Machine)
	if err != nil {
		t.Fatal(err)
	}
	o.Wrap[0]++
	if _, err := c.Submit(t.Context(), history.TypeOpen, o.Encode()); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(d.key)
	if err != nil {
		t.Fatal(err)
	}
	n := d.svc.Vault.N
	warned := captured(t, func() {
		code, said := d.rotate()
		if code != exitDamaged || !strings.Contains(said, "secrets of 1 session do not open, so nothing was changed") {
			t.Errorf("exit %d\n%s", code, said)
		}
	})
	if !strings.Contains(warned, o.Session.String()) {
		t.Errorf("the session is not named:\n%s", warned)
	}
	if after, err := os.ReadFile(d.key); err != nil || !bytes.Equal(after, before) || d.svc.Vault.N != n {
		t.Errorf("something was changed: %v, %d records", err, d.svc.Vault.N-n)
	}
	code, said := d.rotate("--leave-damaged")
	if code != exitDamaged || !strings.Contains(said, "left 1 session") {
		t.Errorf("exit %d\n%s", code, said)
	}
	if d.opens(d.key) != 2 || !d.current(d.key) {
		t.Errorf("the new key opens %d of 2 whole sessions", d.opens(d.key))
	}
}

// captured returns what f writes to standard error.
func captured(t *testing.T, f func()) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	defer func(old *os.File) { os.Stderr = old }(os.Stderr)
	os.Stderr = file
	f()
	b, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestKeyUpdate brings the key file of another machine up to date, only when nothing is lost by it.
func TestKeyUpdate(t *testing.T) {
	d := newDesk(t, 2)
	other := d.svc.NewMachine(holdfast.GroupID{5}, holdfast.RightWrite|holdfast.RightRead)
	d.svc.Rule(history.TypeEnrol, other.Enrol().Encode())
	key := d.save(other)
	update := func(owner string) (int, string) { return d.run(key, "key", "update", "--owner", owner) }
	if code, said := update(d.owner); code != 0 || !strings.Contains(said, "is up to date") {
		t.Errorf("exit %d\n%s", code, said)
	}
	// A rotation that stops after the new key: nothing is wrapped for it yet.
	d.svc.Rule(history.TypeRotateRead, history.RotateRead{ReadKey: d.svc.Owner.ReadKey(1)}.Encode())
	if code, said := update(d.owner); code != exitFailed || !strings.Contains(said, "rotate-read` again") || d.current(key) {
		t.Errorf("exit %d\n%s", code, said)
	}
	if code, said := d.rotate(); code != 0 || !strings.Contains(said, "going on with the rotation to read key 1") || !strings.Contains(said, fmt.Sprintf("machine %.16s may read, and needs it", other.Signer())) {
		t.Errorf("exit %d\n%s", code, said)
	}
	d.open(d.svc.Dial(remote.Options{}))
	if got := d.opens(key); got != 2 {
		t.Errorf("the old key opens %d sessions, want the 2 from before", got)
	}
	if code, said := update(d.owner); code != 0 || d.opens(key) != 3 || !d.current(key) {
		t.Errorf("exit %d\n%s", code, said)
	}
	// Two rotations later the file made long ago is brought up to date at once.
	old := d.save(other)
	for range 2 {
		if code, said := d.rotate(); code != 0 {
			t.Fatalf("exit %d\n%s", code, said)
		}
	}
	if code, said := d.run(old, "key", "update", "--owner", d.owner); code != 0 || d.opens(old) != 3 || len(d.svc.Vault.ReadKeys) != 4 {
		t.Errorf("exit %d\n%s", code, said)
	}
	// A key that somebody made who is not bound by how the owner's follow from his seed.
	d.svc.Rule(history.TypeRotateRead, history.RotateRead{ReadKey: keyring.OwnerOf(holdfast.Key{77}).ReadKey(0)}.Encode())
	d.open(d.svc.Dial(remote.Options{}))
	if code, said := update(d.owner); code != exitDamaged || !strings.Contains(said, "no current read key of this owner") {
		t.Errorf("exit %d\n%s", code, said)
	}
	warned := captured(t, func() {
		if code, said := d.rotate(); code != exitDamaged || !strings.Contains(said, "nothing was changed") || len(d.svc.Vault.ReadKeys) != 5 {
			t.Errorf("exit %d\n%s", code, said)
		}
		back := filepath.Join(t.TempDir(), "key")
		if code, said := d.run(back, "init", "--recover", "--owner", d.owner); code != 0 || d.opens(back) != 3 {
			t.Errorf("exit %d, it opens %d sessions\n%s", code, d.opens(back), said)
		}
		if code, said := d.rotate("--leave-damaged"); code != exitDamaged || !d.current(d.key) || d.opens(d.key) != 3 || len(d.svc.Vault.ReadKeys) != 6 {
			t.Errorf("exit %d\n%s", code, said)
		}
	})
	if strings.Count(warned, "somebody else who has that too made it") != 3 {
		t.Errorf("said is\n%s", warned)
	}
}
