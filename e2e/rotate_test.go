//go:build linux

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/history"
	"holdfast/wire"
)

// TestScenarioC7Rotation: rotating to the same key twice, or with a key that is not the vault's, is refused; and
// nothing is given up before its replacement was read back. See also TestRotateReadInterrupted.
func TestScenarioC7Rotation(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c, stranger := newClient(t, s), newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 1, 50)
	c.ok("create", "-C", dir, "before", "tree")
	reader := c.join(c.owner(), "write,read")
	writer := c.join(c.owner(), "write", "--join-group")
	reader.ok("create", "-C", dir, "reader", "tree")

	key, err := os.ReadFile(c.key())
	if err != nil {
		t.Fatal(err)
	}
	untouched := func(what string) {
		t.Helper()
		if now, err := os.ReadFile(c.key()); err != nil || string(now) != string(key) {
			t.Errorf("%s: the key file changed: %v", what, err)
		}
		c.ok("verify")
	}
	c.refuses(2, "another vault", "key", "rotate-read", "--owner", stranger.owner())
	untouched("with another owner")

	f, err := keyring.LoadOwner(c.owner(), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := keyring.Load(c.key(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := remote.Dial(m, remote.Options{Patience: -1})
	defer r.Close()
	again := func(n uint32) {
		t.Helper()
		_, err := r.SubmitAsOwner(context.Background(), f.Owner.SignKey(), history.TypeRotateRead, history.RotateRead{ReadKey: f.Owner.ReadKey(n)}.Encode())
		if wire.CodeOf(err) != wire.CodeBadRequest {
			t.Errorf("rotating to key %d, which the vault has had: %v", n, err)
		}
	}
	again(0)
	untouched("to the same key")

	c.has(c.ok("key", "rotate-read", "--owner", c.owner()), "wrapped the secrets of 2 sessions for it")
	again(0)
	again(1)
	if now, err := os.ReadFile(c.key()); err != nil || string(now) == string(key) {
		t.Errorf("the key file has no new key: %v", err)
	}
	c.ok("verify")
	// Whoever has the old key still reads what is from before: rotating takes nothing away.
	extract := func(x *client, series string) {
		t.Helper()
		out := filepath.Join(scratch(t), "out")
		x.ok("extract", series, "--target", out)
		same(t, tree, filepath.Join(out, "tree"))
	}
	extract(reader, "before")
	// A machine that only writes goes on with its old key file, for the new key.
	writeText(t, filepath.Join(tree, "new"), 3, 5000)
	writer.ok("create", "-C", dir, "after", "tree")
	extract(c, "after")
	// One that reads is told what to do, and loses nothing meanwhile.
	const old = "sealed for another read key than the one in this key file"
	reader.refuses(1, old, "extract", "after@"+archiveTime(t, c, "after"), "--target", filepath.Join(dir, "no"))
	reader.has(reader.exits(1, "verify"), "1 archive of 3 cannot be checked")
	if o := reader.exits(1, "list"); !strings.Contains(o.stderr, "1 archive of 3 cannot be read") || !strings.Contains(o.stderr, old) || strings.Count(o.stdout, "\n") != 2 {
		t.Errorf("with an old key list says\n%s%s", o.stdout, o.stderr)
	}
	reader.ok("create", "-C", dir, "reader", "tree")
	reader.ok("key", "update", "--owner", c.owner())
	for _, series := range []string{"after", "reader"} {
		extract(reader, series)
	}
	reader.ok("verify")

	// A key file under a passphrase stays under one.
	pass := filepath.Join(c.dir, "passphrase")
	write(t, pass, "correct horse\n")
	if err := os.Chmod(pass, 0o600); err != nil {
		t.Fatal(err)
	}
	c.ok("key", "protect", "--new-passphrase-file", pass)
	c.refuses(2, "say how to protect it", "--passphrase-file", pass, "key", "rotate-read", "--owner", c.owner())
	c.ok("--passphrase-file", pass, "key", "rotate-read", "--owner", c.owner(), "--new-passphrase-file", pass)
	c.ok("--passphrase-file", pass, "verify")
	c.refuses(1, "passphrase", "verify")
}

// archiveTime returns the part behind @ of the one archive of a series.
func archiveTime(t testing.TB, c *client, series string) string {
	t.Helper()
	for _, a := range c.archives() {
		if len(a.Archive) > len(series) && a.Archive[:len(series)+1] == series+"@" {
			return a.Archive[len(series)+1:]
		}
	}
	t.Fatalf("no archive of %s", series)
	return ""
}
