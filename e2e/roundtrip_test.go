//go:build linux

package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/part"
	"holdfast/internal/torture"
)

// TestGoroot backs up a real tree of about 15,000 files, twice, and gets it back.
func TestGoroot(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	tree := strings.TrimSpace(string(out))
	if real, err := filepath.EvalSymlinks(tree); err == nil {
		tree = real
	}
	size := treeBytes(t, tree)
	s := newService(t)
	c := newClient(t, s)

	first := c.ok("create", "-C", filepath.Dir(tree), "go", filepath.Base(tree))
	full := s.bucketBytes()
	t.Logf("first: %v, client %d MiB, bucket %d MiB for %d MiB", first.took, first.rss>>20, full>>20, size>>20)

	second := c.ok("create", "-C", filepath.Dir(tree), "go", filepath.Base(tree))
	grown := s.bucketBytes() - full
	t.Logf("second: %v, client %d MiB, read %d KiB, wrote %d KiB, bucket grew by %d bytes\n%s%s",
		second.took, second.rss>>20, second.read>>10, second.written>>10, grown, second.stdout, second.stderr)
	if grown >= 100_000 {
		t.Errorf("an unchanged backup grew the bucket by %d bytes", grown)
	}
	if second.read > size/10 {
		t.Errorf("an unchanged backup read %d bytes, and the tree has %d", second.read, size)
	}
	if kinds := storedKinds(t, s, 2); kinds["chunk"]+kinds["pack"] != 0 {
		t.Errorf("an unchanged backup stored data blocks: %v bytes by kind", kinds)
	}

	to := filepath.Join(scratch(t), "out")
	third := c.ok("extract", "go", "--target", to)
	t.Logf("extract: %v, client %d MiB; service %d MiB", third.took, third.rss>>20, s.peak()>>20)
	same(t, tree, filepath.Join(to, filepath.Base(tree)))

	c.ok("verify", "go")
	if n := lines(c.ok("list").stdout); n < 2 {
		t.Errorf("list shows %d archives, want 2", n)
	}
	if got := lines(c.ok("list", "go", filepath.Base(tree)+"/src/fmt").stdout); got < 5 {
		t.Errorf("list of one directory shows %d lines", got)
	}
	s.clean()
}

func lines(s string) int { return strings.Count(s, "\n") }

// TestScenarioC14Names round-trips a tree of everything that file systems allow, as root.
func TestScenarioC14Names(t *testing.T) {
	t.Parallel()
	part.Need(t, part.Root, part.ACL, part.Attr, "rsync")
	roundTripTorture(t, 0)
}

// TestScenarioC14NamesAsUser does the same with what an unprivileged user can make and restore.
func TestScenarioC14NamesAsUser(t *testing.T) {
	t.Parallel()
	part.Need(t, part.Root, part.ACL, part.Attr, "rsync")
	roundTripTorture(t, 65534)
}

func roundTripTorture(t *testing.T, uid uint32) {
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	large := 20_000
	if uid != 0 {
		c.asUser()
		chown(t, uid, dir, tree)
		makeTortureAs(t, uid, tree, large)
	} else if err := torture.Make(tree, torture.Options{LargeDir: large}); err != nil {
		t.Fatal(err)
	}

	o := c.ok("create", "-C", dir, "torture", "tree")
	t.Logf("create: %v, client %d MiB\n%s%s", o.took, o.rss>>20, o.stdout, o.stderr)
	args := []string{"extract", "torture", "--target", filepath.Join(dir, "out")}
	if uid == 0 {
		args = append(args, "--privileged")
	}
	o = c.ok(args...)
	t.Logf("extract: %v, client %d MiB\n%s%s", o.took, o.rss>>20, o.stdout, o.stderr)
	got := filepath.Join(dir, "out", "tree")
	equalDescriptions(t, tree, got)
	same(t, tree, got, "--exclude=tebibyte") // rsync would read the hole byte by byte
	s.peak()
	s.clean()
}

func chown(t testing.TB, uid uint32, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if err := os.Lchown(p, int(uid), int(uid)); err != nil {
			t.Fatal(err)
		}
	}
}

// tortureAt is the environment variable that tells another process of this test where to make the tree.
const tortureAt = "HOLDFAST_E2E_TORTURE"

// makeTortureAs makes the tree in a process of the given user, because what torture.Make makes depends
// on who runs it.
func makeTortureAs(t *testing.T, uid uint32, tree string, large int) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(filepath.Dir(tree), "maker") // where that user may run it
	if err := os.WriteFile(copied, self, 0o755); err != nil {
		t.Fatal(err)
	}
	o := launch(t, append(os.Environ(), tortureAt+"="+tree), uid, copied, "-test.run", "^TestMakeTorture$").wait()
	if o.code != 0 {
		t.Fatalf("make the tree as user %d: %s%s", uid, o.stdout, o.stderr)
	}
	if err := os.Remove(copied); err != nil {
		t.Fatal(err)
	}
}

// TestMakeTorture is the other end of makeTortureAs.
func TestMakeTorture(t *testing.T) {
	tree := os.Getenv(tortureAt)
	if tree == "" {
		t.Skip("only a helper of TestScenarioC14NamesAsUser")
	}
	if err := torture.Make(tree, torture.Options{LargeDir: 20_000}); err != nil {
		t.Fatal(err)
	}
}

// equalDescriptions compares all that rsync cannot see, too: holes, and times beyond its own.
func equalDescriptions(t *testing.T, want, got string) {
	t.Helper()
	var a, b bytes.Buffer
	if err := torture.Describe(&a, want); err != nil {
		t.Fatal(err)
	}
	if err := torture.Describe(&b, got); err != nil {
		t.Fatal(err)
	}
	if a.Len() == 0 {
		t.Fatal("an empty description")
	}
	if bytes.Equal(a.Bytes(), b.Bytes()) {
		return
	}
	wants, gots := strings.SplitAfter(a.String(), "\n"), strings.SplitAfter(b.String(), "\n")
	shown := 0
	for i := 0; i < max(len(wants), len(gots)) && shown < 10; i++ {
		w, g := "", ""
		if i < len(wants) {
			w = wants[i]
		}
		if i < len(gots) {
			g = gots[i]
		}
		if w != g {
			t.Errorf("line %d\nwant %sgot  %s", i+1, w, g)
			shown++
		}
	}
}

// TestLargeFile edits a large file in the middle and in front; the bucket must grow by what changed.
func TestLargeFile(t *testing.T) {
	t.Parallel()
	size := int64(96 << 20)
	if part.Heavy() {
		size = 2 << 30
	}
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	file := filepath.Join(dir, "disk", "image")
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	writeNoise(t, file, 1, size)
	first := c.ok("create", "-C", dir, "image", "disk")
	stored := s.bucketBytes()
	t.Logf("first: %v, client %d MiB, bucket %d MiB", first.took, first.rss>>20, stored>>20)
	if stored > size+size/20 {
		t.Errorf("%d incompressible bytes take %d in the bucket", size, stored)
	}

	check := func(what string) {
		t.Helper()
		before := s.bucketBytes()
		o := c.ok("create", "-C", dir, "image", "disk")
		grown := s.bucketBytes() - before
		t.Logf("%s: %v, client %d MiB, bucket grew by %d KiB", what, o.took, o.rss>>20, grown>>10)
		if grown >= 2<<20 {
			t.Errorf("%s: the bucket grew by %d bytes", what, grown)
		}
		out := filepath.Join(dir, "out")
		x := c.ok("extract", "image", "--target", out)
		t.Logf("extract: %v, client %d MiB, service %d MiB", x.took, x.rss>>20, s.peak()>>20)
		same(t, filepath.Join(dir, "disk"), filepath.Join(out, "disk"))
		if err := os.RemoveAll(out); err != nil {
			t.Fatal(err)
		}
	}

	overwrite(t, file, strings.Repeat("edited ", 150), size/2)
	check("an edit in the middle")

	prepend(t, file, "x")
	check("a byte in front")
	s.clean()
}

// prepend writes a file anew with text in front.
func prepend(t *testing.T, file, text string) {
	t.Helper()
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(file + ".new")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := out.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if _, err := in.WriteTo(out); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}
