//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestHostileWriterBeforeAndAfter has a thief with a stolen key store garbage under the names of a file's blocks, before the
// good ones are stored or after. Both copies are kept; every archive, old and new, restores from the good one.
func TestHostileWriterBeforeAndAfter(t *testing.T) {
	t.Parallel()
	s := newService(t)
	v := newVault(t, s)
	now := func() string { return time.Now().UTC().Format(time.RFC3339Nano) }
	revoke := func(c *client, since string) {
		t.Helper()
		v.home.ok("key", "revoke", c.machine().Signer().String(), "--since", since, "--owner", v.home.owner())
	}
	tree := func(seed uint64) (dir, path, file string) {
		dir = scratch(t)
		path = filepath.Join(dir, "tree")
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		file = filepath.Join(path, "file")
		writeNoise(t, file, seed, 2<<20)
		return dir, path, file
	}

	// The garbage comes first: an archive is made over it, and mended by the next after the theft was noticed.
	dir, path, file := tree(1)
	thief := v.derive(t, "--rights", "write", "--join-group")
	since := now()
	names, _ := chunksOf(t, thief.machine(), file)
	thief.garbage(names)
	if o := v.home.run("create", "-C", dir, "first", "tree"); o.code != 0 && o.code != 4 { // a sample is read back
		t.Fatalf("exit %d: %s", o.code, o.stderr)
	}
	v.home.exits(4, "extract", "first", "--target", filepath.Join(scratch(t), "out"))
	revoke(thief, since)
	v.home.ok("create", "-C", dir, "first", "tree")
	made := v.home.of("first")
	if len(made) != 2 {
		t.Fatalf("%d archives", len(made))
	}
	for _, a := range made {
		v.home.restores(a.ID, path)
	}

	// The good ones come first, from a machine whose key is then revoked from before; so what it stored is not there
	// for others, and a thief can store garbage under the same names. It is the newest copy.
	dir, path, file = tree(2)
	since = now()
	writer := v.derive(t, "--rights", "write", "--join-group")
	writer.ok("create", "-C", dir, "second", "tree")
	revoke(writer, since)
	since = now()
	thief = v.derive(t, "--rights", "write", "--join-group")
	names, _ = chunksOf(t, thief.machine(), file)
	thief.garbage(names)
	made = v.home.of("second")
	if len(made) != 1 {
		t.Fatalf("%d archives", len(made))
	}
	v.home.restores(made[0].Archive, path)
	v.home.ok("verify", made[0].Archive)

	// That thief is found out as well; a third copy is good, and all are kept.
	revoke(thief, since)
	v.home.ok("create", "-C", dir, "third", "tree")
	v.home.restores(made[0].Archive, path)
	v.home.restores(v.home.of("third")[0].Archive, path)
	s.clean()
}
