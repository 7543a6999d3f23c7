//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/part"
)

// TestScenarioC1ReadError makes reads of one file fail in its middle: it is marked unreadable, nothing is
// made up, and everybody is told.
func TestScenarioC1ReadError(t *testing.T) {
	t.Parallel()
	part.Need(t, "strace", "rsync")
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "good"), "good")
	bad := filepath.Join(dir, "tree", "bad")
	// strace counts the calls of each thread by themselves: there must be enough for one of many to come to its third.
	const size = 32 << 20
	writeNoise(t, bad, 1, size)

	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal(err)
	}
	o := launch(t, c.env, 0, strace, "-f", "-qq", "-o", "/dev/null", "-P", bad, "-e", "trace=read,pread64", "-e", "inject=read,pread64:error=EIO:when=3+",
		holdfast, "create", "--json", "-C", dir, "s", "tree").wait()
	if o.code != 3 {
		t.Fatalf("exit %d, want 3\n%s%s", o.code, o.stdout, o.stderr)
	}
	if !strings.Contains(o.stdout, `"unreadable"`) || !json.Valid([]byte(o.stdout)) {
		t.Errorf("the summary does not count what was unreadable:\n%s", o.stdout)
	}
	out := filepath.Join(dir, "out")
	c.run("extract", "s", "--target", out) // its exit code may tell of the missing content
	if got, err := os.ReadFile(filepath.Join(out, "tree", "good")); err != nil || string(got) != "good" {
		t.Errorf("the readable file came back as %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(out, "tree", "bad")); err == nil && info.Size() == size {
		t.Error("a file that could not be read came back in full size")
	}
	// The next run must not take it for unchanged.
	c.ok("create", "-C", dir, "s", "tree")
	if err := os.RemoveAll(out); err != nil {
		t.Fatal(err)
	}
	c.ok("extract", "s", "--target", out)
	same(t, filepath.Join(dir, "tree"), filepath.Join(out, "tree"))
}

// TestScenarioC2Unreadable leaves nothing out silently: an unreadable file and an unreadable directory are
// listed in the archive, and the exit code says so.
func TestScenarioC2Unreadable(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s).asUser()
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "good"), "good")
	write(t, filepath.Join(dir, "tree", "secret-file"), "x")
	write(t, filepath.Join(dir, "tree", "secret-dir", "inside"), "x")
	for _, p := range []string{"secret-file", "secret-dir"} {
		if err := os.Chmod(filepath.Join(dir, "tree", p), 0); err != nil {
			t.Fatal(err)
		}
	}
	o := c.exits(3, "create", "-C", dir, "s", "tree")
	for _, p := range []string{"tree/secret-file", "tree/secret-dir"} {
		if !strings.Contains(o.stdout+o.stderr, p) {
			t.Errorf("create does not name %s:\n%s%s", p, o.stdout, o.stderr)
		}
	}
	var archive bytes.Buffer
	list := c.ok("list", "--json", "s")
	archive.WriteString(list.stdout)
	for _, p := range []string{"tree/secret-file", "tree/secret-dir"} {
		if !strings.Contains(archive.String(), p) {
			t.Errorf("the archive does not tell of %s:\n%s", p, &archive)
		}
	}
	// Even though the catalog has seen them, the next run says so again.
	c.exits(3, "create", "-C", dir, "s", "tree")
	c.ok("create", "-C", dir, "--exclude", "secret-*", "s", "tree")
}

// TestScenarioC3Changing backs up files that grow, shrink, change and vanish meanwhile; the archive is whole.
func TestScenarioC3Changing(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 5, 500)
	writeNoise(t, filepath.Join(tree, "large"), 1, 128<<20)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.OpenFile(filepath.Join(tree, "large"), os.O_RDWR, 0)
		if err != nil {
			return
		}
		defer f.Close()
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			f.WriteAt([]byte("changed"), int64(i%(128<<20)))
			f.Truncate(128<<20 - int64(i%7))
			name := filepath.Join(tree, "009", fmt.Sprintf("file-%05d", 450+i%50))
			os.Remove(name)
			os.WriteFile(name, bytes.Repeat([]byte("x"), i%1000), 0o644)
		}
	}()
	o := c.run("create", "-C", dir, "s", "tree")
	close(stop)
	<-done
	if o.code != 0 && o.code != 3 {
		t.Fatalf("exit %d\n%s", o.code, o.stderr)
	}
	if !strings.Contains(o.stdout+o.stderr, "changed") {
		t.Errorf("nobody is told that a file changed while it was read:\n%s%s", o.stdout, o.stderr)
	}
	c.ok("verify", "s")
	c.ok("extract", "s", "--target", filepath.Join(dir, "out"))
	same(t, filepath.Join(tree, "003"), filepath.Join(dir, "out", "tree", "003"))
	// The large file is marked, and the next run reads it again.
	c.ok("create", "-C", dir, "s", "tree")
	c.ok("extract", "s", "--target", filepath.Join(dir, "again"))
	same(t, tree, filepath.Join(dir, "again", "tree"))
}

// TestScenarioC4Cache damages the client's caches in every way: each backup is whole all the same.
func TestScenarioC4Cache(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c, other := newClient(t, s), newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 11, 200)
	writeNoise(t, filepath.Join(tree, "large"), 1, 3<<20)
	create := []string{"create", "-C", dir, "s", "tree"}
	c.ok(create...)
	old := filepath.Join(dir, "old-cache")
	copyTree(t, c.cache(), old)
	other.ok(create...)
	writeText(t, filepath.Join(tree, "later"), 2, 5000)
	c.ok(create...)

	cases := map[string]func(path string, raw []byte) []byte{
		"cut in half":     func(_ string, raw []byte) []byte { return raw[:len(raw)/2] },
		"empty":           func(string, []byte) []byte { return nil },
		"one bit flipped": func(_ string, raw []byte) []byte { raw[len(raw)*2/3] ^= 4; return raw },
		"garbage":         func(_ string, raw []byte) []byte { noise(1).Read(raw); return raw },
		"longer":          func(_ string, raw []byte) []byte { return append(raw, 0) },
	}
	n := 0
	check := func(t *testing.T, what string) {
		t.Helper()
		n++
		writeText(t, filepath.Join(tree, "000", "file-00001"), uint64(100+n), 3000)
		o := c.run(create...)
		if o.code != 0 {
			t.Fatalf("%s: exit %d\n%s", what, o.code, o.stderr)
		}
		out := filepath.Join(dir, fmt.Sprintf("out-%d", n))
		c.ok("extract", "s", "--target", out)
		same(t, tree, filepath.Join(out, "tree"))
	}
	for what, damage := range cases {
		changeFiles(t, filepath.Join(c.cache(), "holdfast"), "catalog", damage)
		check(t, what)
	}
	// From another machine, and an older one of this machine.
	for what, from := range map[string]string{"another machine's": other.cache(), "replayed": old} {
		replaceCatalogs(t, from, c.cache())
		check(t, what)
	}
	if err := os.RemoveAll(c.cache()); err != nil {
		t.Fatal(err)
	}
	check(t, "gone")
	s.clean()
}

func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
}

// changeFiles rewrites every file below dir whose path contains what.
func changeFiles(t testing.TB, dir, what string, change func(string, []byte) []byte) {
	t.Helper()
	changed := 0
	if err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !strings.Contains(strings.TrimPrefix(p, dir), what) {
			return err
		}
		raw, err := os.ReadFile(p)
		if err != nil || len(raw) == 0 {
			return err
		}
		changed++
		return os.WriteFile(p, change(p, raw), 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	if changed == 0 {
		t.Fatalf("no file %q below %s", what, dir)
	}
}

// replaceCatalogs puts the one catalog below from in the place of the one below to.
func replaceCatalogs(t testing.TB, from, to string) {
	t.Helper()
	var raw []byte
	changeFiles(t, from, "catalog", func(_ string, b []byte) []byte { raw = b; return b })
	changeFiles(t, to, "catalog", func(string, []byte) []byte { return raw })
}

// TestScenarioC5SameSizeSameTime changes a file and sets its times back: ctime tells.
func TestScenarioC5SameSizeSameTime(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	file := filepath.Join(dir, "tree", "file")
	write(t, file, "aaaa")
	c.ok("create", "-C", dir, "s", "tree")
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, "bbbb")
	if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	c.ok("create", "-C", dir, "s", "tree")
	c.ok("extract", "s", "--target", filepath.Join(dir, "out"))
	if got, err := os.ReadFile(filepath.Join(dir, "out", "tree", "file")); err != nil || string(got) != "bbbb" {
		t.Errorf("restored %q, %v; want bbbb", got, err)
	}
}

// TestScenarioC8CommitWithoutLocalState loses what a run wrote locally after its commit, as a power cut at
// that moment would: the next run goes on, and stores no data twice.
func TestScenarioC8CommitWithoutLocalState(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 17, 200)
	c.ok("create", "-C", dir, "s", "tree")
	before := filepath.Join(dir, "cache-before")
	copyTree(t, c.cache(), before)
	writeNoise(t, filepath.Join(tree, "large"), 1, 4<<20)
	c.ok("create", "-C", dir, "s", "tree")
	if err := os.RemoveAll(c.cache()); err != nil {
		t.Fatal(err)
	}
	copyTree(t, before, c.cache())

	c.ok("create", "-C", dir, "s", "tree")
	if kinds := storedKinds(t, s, 3); kinds["chunk"]+kinds["pack"] > 4096 {
		t.Errorf("data was stored twice: %v bytes by kind", kinds)
	}
	if n := lines(c.ok("list").stdout); n < 3 {
		t.Errorf("list shows %d lines for 3 archives", n)
	}
	c.ok("extract", "s", "--target", filepath.Join(dir, "out"))
	same(t, tree, filepath.Join(dir, "out", "tree"))
	s.clean()
}

// TestScenarioC15OneSentence checks that what goes wrong is said in one sentence, with the right exit code,
// and leaves nothing half done.
func TestScenarioC15OneSentence(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "file"), "x")
	c.ok("create", "-C", dir, "s", "tree")
	used := s.token("used")
	first := unenrolled(t)
	first.ok("init", "--token", used, "--key", first.key(), "--owner", filepath.Join(first.dir, "owner"))
	second := unenrolled(t)

	for _, x := range []struct {
		what string
		c    *client
		code int
		args []string
	}{
		{"no command", c, 2, []string{"crate"}},
		{"no paths", c, 2, []string{"create", "s"}},
		{"unknown flag", c, 2, []string{"list", "--frobnicate"}},
		{"a path that is not there", c, 1, []string{"create", "-C", dir, "s", "nothing-here"}},
		{"a bad pattern", c, 2, []string{"create", "-C", dir, "--exclude", "[", "s", "tree"}},
		{"a bad series", c, 2, []string{"create", "-C", dir, "s@t", "tree"}},
		{"unknown archive", c, 1, []string{"extract", "nothing", "--target", filepath.Join(dir, "out")}},
		{"unknown time", c, 1, []string{"list", "s@1999"}},
		{"no target", c, 2, []string{"extract", "s"}},
		{"a path that the archive lacks", c, 1, []string{"extract", "s", "--target", filepath.Join(dir, "out2"), "tree/nothing"}},
		{"no token", second, 2, []string{"init", "--key", second.key()}},
		{"a bad token", second, 2, []string{"init", "--token", "holdfast1-abc", "--key", second.key()}},
		{"a used token", second, 1, []string{"init", "--token", used, "--key", second.key()}},
		{"no key file", second, 1, []string{"list"}},
		{"a key file that exists", c, 1, []string{"init", "--token", s.token("again"), "--key", c.key()}},
	} {
		o := x.c.run(x.args...)
		t.Logf("%s: %d %s", x.what, o.code, strings.TrimSpace(o.stderr))
		if o.code != x.code {
			t.Errorf("%s: exit %d, want %d", x.what, o.code, x.code)
		}
		oneSentence(t, x.what, o)
	}
	if _, err := os.Stat(second.key()); err == nil {
		t.Error("a failed init left a key file")
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("a failed extract made its target")
	}
	if err := os.Chmod(c.key(), 0o644); err != nil {
		t.Fatal(err)
	}
	if o := c.run("list"); o.code != 1 || !strings.Contains(o.stderr, "chmod 600") {
		t.Errorf("a key file that all may read: exit %d, %s", o.code, o.stderr)
	}
	if err := os.Chmod(c.key(), 0o600); err != nil {
		t.Fatal(err)
	}

	// The service is away.
	s.stop()
	began := time.Now()
	o := c.run("list", "--patience", "2s")
	t.Logf("service away: %d after %v: %s", o.code, time.Since(began), o.stderr)
	if o.code != 5 {
		t.Errorf("service away: exit %d, want 5", o.code)
	}
	oneSentence(t, "service away", o)

	// Another service answers at that address.
	impostor := newService(t)
	impostor.stop()
	impostor.address = s.address
	impostor.data = filepath.Join(dir, "impostor")
	impostor.admin("init", "--data", impostor.data, "--bucket", "file://"+filepath.Join(dir, "impostor-bucket"), "--address", s.address)
	impostor.start()
	o = c.run("list", "--patience", "2s")
	t.Logf("another service: %d: %s", o.code, o.stderr)
	if o.code != 4 {
		t.Errorf("another service: exit %d, want 4", o.code)
	}
	oneSentence(t, "another service", o)
}

// oneSentence checks that a failed command wrote one line about it and no more.
func oneSentence(t *testing.T, what string, o outcome) {
	t.Helper()
	said := strings.TrimSpace(o.stderr)
	if said == "" || strings.Contains(said, "\n") {
		t.Errorf("%s: want one line on standard error, got %q", what, o.stderr)
	}
	for _, bad := range []string{"panic", "%!", "0x", "<nil>"} {
		if strings.Contains(said, bad) {
			t.Errorf("%s: %q in %q", what, bad, said)
		}
	}
}

// TestWriteOnly checks that a machine enrolled to write cannot read what it wrote.
func TestWriteOnly(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s, "--write-only")
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "file"), "x")
	c.ok("create", "-C", dir, "s", "tree")
	c.ok("create", "-C", dir, "s", "tree")
	for _, args := range [][]string{{"extract", "s", "--target", filepath.Join(dir, "out")}, {"verify", "s"}, {"list", "s"}} {
		o := c.run(args...)
		t.Logf("%s: %d %s", args[0], o.code, o.stderr)
		if o.code != 1 {
			t.Errorf("%s with a write-only key: exit %d, want 1", args[0], o.code)
		}
		oneSentence(t, args[0], o)
	}
}
