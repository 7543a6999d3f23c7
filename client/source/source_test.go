//go:build linux

package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
	"holdfast/client/source"
	"holdfast/internal/torture"
)

// walk returns the items that a walk of base's roots reports.
func walk(t testing.TB, base string, roots []string, opt source.Options) []*source.Item {
	t.Helper()
	var all []*source.Item
	err := source.Walk(context.Background(), base, roots, opt, func(it *source.Item) error {
		all = append(all, it)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func paths(items []*source.Item) string {
	var p []string
	for _, it := range items {
		p = append(p, it.Entry.Path)
	}
	return strings.Join(p, " ")
}

// tree makes files, and directories where a name ends in a slash.
func tree(t testing.TB, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		p := filepath.Join(dir, n)
		var err error
		if strings.HasSuffix(n, "/") {
			err = os.MkdirAll(p, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(p), 0o755); err == nil {
			err = os.WriteFile(p, []byte(n), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// opened makes a tree's directories accessible at the end, so that a user can remove them.
func opened(t testing.TB, dir string) {
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}

func TestOrderIsTheArchives(t *testing.T) {
	dir := t.TempDir()
	opened(t, dir)
	if err := torture.Make(dir, torture.Options{}); err != nil {
		t.Fatal(err)
	}
	items := walk(t, dir, []string{"."}, source.Options{})
	seen := map[string]bool{}
	for i, it := range items {
		p := it.Entry.Path
		if i > 0 && archive.ComparePaths(items[i-1].Entry.Path, p) >= 0 {
			t.Fatalf("%q comes before %q", items[i-1].Entry.Path, p)
		}
		if parent := filepath.Dir(p); parent != "." && !seen[parent] {
			t.Fatalf("%q comes without its directory", p)
		}
		seen[p] = true
		if it.Verdict.What != 0 {
			t.Errorf("%q: %v: %s", p, it.Verdict.What, it.Verdict.Why)
		}
		if l := it.Entry.Link; l != "" && !seen[l] {
			t.Errorf("%q is a link to %q, which was not reported", p, l)
		}
		e := it.Entry
		if e.Type == archive.TypeFile && e.Link == "" {
			e.Size = 0 // it has no extents yet
		}
		if err := e.Check(); err != nil {
			t.Error(err)
		}
	}
	var want int
	filepath.WalkDir(dir, func(string, fs.DirEntry, error) error { want++; return nil })
	if len(items) != want-1 {
		t.Errorf("%d paths, want %d", len(items), want-1)
	}
}

func TestRoots(t *testing.T) {
	dir := tree(t, "a/b/c", "a/b/d", "a/x", "a.txt", "e/f", "sub/a/q")
	abs := strings.TrimPrefix(dir, "/")
	if err := errors.Join(os.Symlink("a", filepath.Join(dir, "link")), os.Symlink("b/c", filepath.Join(dir, "a", "s"))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ base, roots, want string }{
		{dir, "a", "a a/b a/b/c a/b/d a/s a/x"},
		{dir, "a/b", "a a/b a/b/c a/b/d"},
		{dir, "./a//b/", "a a/b a/b/c a/b/d"},
		{dir, "e a/b a/b/c a.txt a/b", "a a/b a/b/c a/b/d a.txt e e/f"},
		{dir, "a/b/c a", "a a/b a/b/c a/b/d a/s a/x"},
		{dir, "a/x a/b/d", "a a/b a/b/d a/x"},
		{dir, "link", "link"},
		{dir, "link/", "link link/b link/b/c link/b/d link/s link/x"},
		{dir, "link/b", "link link/b link/b/c link/b/d"},
		{dir + "/a", ".", "b b/c b/d s x"},
		{dir + "/a", "./ b", "b b/c b/d s x"},
		{dir + "/a", "../e", "e e/f"},
		{dir + "/a", "../e ../a/x", "a a/x e e/f"},
		{dir + "/a", "../a.txt b/c", "a.txt b b/c"},
		{dir, "sub/../e", "e e/f"},
	} {
		if got := paths(walk(t, c.base, strings.Fields(c.roots), source.Options{})); got != c.want {
			t.Errorf("%s: %s\nwant %s", c.roots, got, c.want)
		}
	}
	for _, root := range []string{dir + "/e", dir + "/e/"} {
		got := paths(walk(t, "/", []string{root}, source.Options{}))
		if !strings.HasSuffix(got, " "+abs+"/e "+abs+"/e/f") || !strings.HasPrefix(got, strings.Split(abs, "/")[0]+" ") {
			t.Errorf("absolute: %s", got)
		}
	}
	for _, c := range []struct{ base, roots, want string }{
		{dir, "a nowhere", `"nowhere"`},
		{dir, "a.txt/", `"a.txt/"`},
		{dir, "a/b/c/d", "a/b/c/d"},
		{dir, "link link/b", "symbolic link"},
		{dir + "/sub", "a ../a", "both be"},
		{dir + "/sub", ". ../e", "mixed"},
		{dir + "/sub", "../e .", "mixed"},
		{dir, "", "name at least one"},
	} {
		n := 0
		err := source.Walk(context.Background(), c.base, strings.Fields(c.roots), source.Options{}, func(*source.Item) error { n++; return nil })
		if err == nil || !strings.Contains(err.Error(), c.want) || n > 0 {
			t.Errorf("%s: %v after %d items, want an error with %s", c.roots, err, n, c.want)
		}
	}
}

func TestExclude(t *testing.T) {
	for _, c := range []struct {
		pattern, yes, no string // paths; those of directories end in a slash
	}{
		{"*.o", "a.o x/a.o x/a.o/ .o", "a.oo a.o/x"},
		{"/a", "a a/", "x/a"},
		{"a/", "a/ x/a/", "a x/a"},
		{"cache/*.tmp", "cache/a.tmp x/cache/a.tmp", "cache/x/a.tmp a.tmp"},
		{"/a/**/z", "a/z a/b/z a/b/c/z", "x/a/z a/zz z"},
		{"a/**", "a/b a/b/c x/a/b", "a x/a"},
		{"**/a", "a x/a x/y/a", "ab"},
		{"**", "a a/b", ""},
		{"/*/b", "a/b", "b a/x/b"},
		{"[!a]x", "bx", "ax x"},
		{"[^a]x", "bx", "ax"},
		{"?", "a é x/a", "ab"},
		{"a\\*", "a*", "ab"},
		{"\xff*", "\xff\xfe", "x"},
	} {
		rs, err := source.CompileExclude([]string{c.pattern})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range strings.Fields(c.yes) {
			if rs.Match(strings.TrimSuffix(p, "/"), strings.HasSuffix(p, "/")) != c.pattern {
				t.Errorf("%q does not match %q", c.pattern, p)
			}
		}
		for _, p := range strings.Fields(c.no) {
			if rs.Match(strings.TrimSuffix(p, "/"), strings.HasSuffix(p, "/")) != "" {
				t.Errorf("%q matches %q", c.pattern, p)
			}
		}
	}
	for _, p := range []string{"", "/", "[", "a[", "a\\", "a//b", "../a", "a/./b", "a\x00"} {
		if _, err := source.CompileExclude([]string{"fine", p}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", p)) {
			t.Errorf("%q: %v", p, err)
		}
	}
	// Many stars cost time in proportion, not exponentially.
	rs, err := source.CompileExclude([]string{strings.Repeat("**/a/", 50) + "b"})
	if err != nil {
		t.Fatal(err)
	}
	if rs.Match(strings.Repeat("a/", 5000)+"c", false) != "" {
		t.Error("matched")
	}

	dir := tree(t, "keep/a.c", "keep/a.o", "drop/x/y", "keep/tmp/z")
	rs, _ = source.CompileExclude([]string{"*.o", "drop/", "/keep/tmp"})
	var got []string
	for _, it := range walk(t, dir, []string{"."}, source.Options{Exclude: rs}) {
		got = append(got, strings.TrimSpace(it.Entry.Path+" "+it.Verdict.Why))
	}
	want := []string{"drop excluded by drop/", "keep", "keep/a.c", "keep/a.o excluded by *.o", "keep/tmp excluded by /keep/tmp"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// read returns what a File gives: its content, and the regions as "data 0+5, hole 5+10".
func read(f *source.File) (content []byte, regions string, err error) {
	for {
		r, err := f.Next()
		if err == io.EOF {
			return content, strings.TrimSuffix(regions, ", "), nil
		}
		if err != nil {
			return content, regions, err
		}
		kind := "data"
		if r.Hole {
			kind = "hole"
		}
		regions += fmt.Sprintf("%s %d+%d, ", kind, r.Off, r.Len)
		if r.Hole {
			continue
		}
		p, err := io.ReadAll(f)
		content = append(content, p...)
		if err != nil {
			return content, regions, err
		}
	}
}

// one walks the single file f of dir and calls do on it, open.
func one(t *testing.T, dir string, opt source.Options, do func(it *source.Item, f *source.File)) {
	t.Helper()
	n := 0
	err := source.Walk(context.Background(), dir, []string{"f"}, opt, func(it *source.Item) error {
		n++
		f, err := it.Open()
		if err != nil {
			return err
		}
		defer f.Close()
		do(it, f)
		return nil
	})
	if err != nil || n != 1 {
		t.Fatal(n, err)
	}
}

func TestRegions(t *testing.T) {
	for _, c := range []struct {
		size int64
		data []int64 // offsets of 4096 bytes of data
		want string
	}{
		{0, nil, ""},
		{4096, []int64{0}, "data 0+4096"},
		{1 << 20, nil, "hole 0+1048576"},
		{1 << 20, []int64{0}, "data 0+4096, hole 4096+1044480"},
		{1 << 20, []int64{1<<20 - 4096}, "hole 0+1044480, data 1044480+4096"},
		{1 << 20, []int64{8192, 65536}, "hole 0+8192, data 8192+4096, hole 12288+53248, data 65536+4096, hole 69632+978944"},
		{1 << 40, []int64{1 << 39}, "hole 0+549755813888, data 549755813888+4096, hole 549755817984+549755809792"},
	} {
		dir := t.TempDir()
		f, err := os.Create(filepath.Join(dir, "f"))
		if err != nil {
			t.Fatal(err)
		}
		f.Truncate(c.size)
		for _, off := range c.data {
			f.WriteAt(bytes.Repeat([]byte("x"), 4096), off)
		}
		f.Close()
		one(t, dir, source.Options{}, func(it *source.Item, f *source.File) {
			content, got, err := read(f)
			if err != nil || got != c.want || len(content) != 4096*len(c.data) || f.Size() != uint64(c.size) {
				t.Errorf("got %q, %d bytes, size %d, %v; want %q", got, len(content), f.Size(), err, c.want)
			}
			if changed, err := f.Check(); changed || err != nil {
				t.Error("changed", err)
			}
		})
	}
}

func TestScenarioC1ReadErrorIsNotZeros(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte("data"), 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	fault := func(path string, off uint64) error {
		if off >= 200_000 {
			return unix.EIO
		}
		return nil
	}
	one(t, dir, source.Options{Fault: fault}, func(it *source.Item, f *source.File) {
		content, _, err := read(f)
		if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), `"f"`) {
			t.Errorf("error %v", err)
		}
		if len(content) >= 400_000 || bytes.Contains(content, []byte{0}) || f.Size() != uint64(len(content)) {
			t.Errorf("%d bytes were read, zeros among them: %v", len(content), bytes.Contains(content, []byte{0}))
		}
	})
	// A file whose length the system does not tell is not an empty file.
	if _, err := os.Stat("/proc/self/status"); err == nil {
		err := source.Walk(context.Background(), "/proc/self", []string{"status"}, source.Options{}, func(it *source.Item) error {
			f, err := it.Open()
			if err != nil {
				return err
			}
			defer f.Close()
			if _, _, err := read(f); err == nil {
				t.Error("/proc/self/status was read as empty")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestScenarioC2Unreadable must run as a user: root may read everything.
func TestScenarioC2Unreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		asUser(t)
		return
	}
	dir := tree(t, "d/file", "e/listed", "f", "g/h")
	for name, mode := range map[string]os.FileMode{"d": 0, "e": 0o444, "f": 0, "g": 0o111} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
		defer os.Chmod(filepath.Join(dir, name), 0o700)
	}
	var got []string
	err := source.Walk(context.Background(), dir, []string{"d", "e", "f", "g/h"}, source.Options{}, func(it *source.Item) error {
		if it.Entry.Type == archive.TypeFile && it.Verdict.What == 0 {
			if f, err := it.Open(); err == nil {
				f.Close()
			} else if !errors.Is(err, fs.ErrPermission) {
				t.Error(err)
			}
		}
		got = append(got, fmt.Sprintf("%s type %d flags %d verdict %d %s", it.Entry.Path, it.Entry.Type, it.Entry.Flags, it.Verdict.What, it.Verdict.Why))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"d type 2 flags 2 verdict 4 its list cannot be read: permission denied",
		"e type 2 flags 0 verdict 0 ",
		"e/listed type 0 flags 0 verdict 4 cannot stat it: permission denied",
		"f type 1 flags 2 verdict 4 cannot open it: permission denied",
		"g type 2 flags 0 verdict 0 ", // above a root: only passed through
		"g/h type 1 flags 0 verdict 0 ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// asUser runs the test again in a process of an unprivileged user.
func asUser(t *testing.T) {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-source-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "test-binary")
	if err := errors.Join(os.WriteFile(bin, self, 0o755), os.Chown(dir, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("as a user: %v\n%s", err, out)
	}
}

func TestScenarioC3ChangedWhileRead(t *testing.T) {
	const size = 300_000
	for name, c := range map[string]struct {
		change func(t *testing.T, p string) error
		want   int // bytes; -1 leaves it open
	}{
		"grows": {func(t *testing.T, p string) error {
			f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("more")
			return err
		}, size},
		"shrinks":     {func(t *testing.T, p string) error { return os.Truncate(p, 5000) }, -1},
		"is emptied":  {func(t *testing.T, p string) error { return os.Truncate(p, 0) }, -1},
		"is written":  {func(t *testing.T, p string) error { return os.WriteFile(p, make([]byte, size), 0o644) }, -1},
		"same times":  {writeKeepingTimes, size},
		"mode":        {func(t *testing.T, p string) error { return os.Chmod(p, 0o600) }, size},
		"is removed":  {func(t *testing.T, p string) error { return os.Remove(p) }, size},
		"is replaced": {replace, size},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := filepath.Join(dir, "f")
			if err := os.WriteFile(p, bytes.Repeat([]byte("x"), size), 0o644); err != nil {
				t.Fatal(err)
			}
			tick(t, p)
			done := false
			fault := func(string, uint64) error {
				if !done {
					done = true
					if err := c.change(t, p); err != nil {
						t.Error(err)
					}
				}
				return nil
			}
			one(t, dir, source.Options{Fault: fault}, func(it *source.Item, f *source.File) {
				content, _, err := read(f)
				if err != nil {
					t.Fatal(err)
				}
				if f.Size() != uint64(len(content)) || c.want >= 0 && len(content) != c.want {
					t.Errorf("read %d bytes, said %d", len(content), f.Size())
				}
				changed, err := f.Check()
				if !changed || err != nil {
					t.Errorf("changed = %v, %v", changed, err)
				}
			})
		})
	}
}

// tick waits until the file system's clock, which can be as coarse as 10 ms, has gone on since p was made.
func tick(t *testing.T, p string) {
	t.Helper()
	var was, is unix.Stat_t
	if err := unix.Stat(p, &was); err != nil {
		t.Fatal(err)
	}
	probe := filepath.Join(t.TempDir(), "probe")
	for is.Ctim.Nano() <= was.Ctim.Nano() {
		if err := errors.Join(os.WriteFile(probe, nil, 0o644), unix.Stat(probe, &is), os.Remove(probe)); err != nil {
			t.Fatal(err)
		}
	}
}

func writeKeepingTimes(t *testing.T, p string) error {
	fi, err := os.Stat(p)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte("y"), 299_999)
	return errors.Join(err, os.Chtimes(p, fi.ModTime(), fi.ModTime()))
}

func replace(t *testing.T, p string) error {
	return errors.Join(os.WriteFile(p+"2", []byte("other"), 0o644), os.Rename(p+"2", p))
}

// TestScenarioC3SparseShrinks cuts a sparse file while it is read: the hole that is not there any more is no zeros.
func TestScenarioC3SparseShrinks(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	if err := errors.Join(os.WriteFile(p, make([]byte, 4096), 0o644), os.Truncate(p, 1<<30)); err != nil {
		t.Fatal(err)
	}
	fault := func(string, uint64) error { return os.Truncate(p, 1<<20) }
	one(t, dir, source.Options{Fault: fault}, func(it *source.Item, f *source.File) {
		_, regions, err := read(f)
		if want := "data 0+4096, hole 4096+1044480"; err != nil || regions != want || f.Size() != 1<<20 {
			t.Errorf("regions %s, size %d, %v; want %s", regions, f.Size(), err, want)
		}
		if changed, err := f.Check(); !changed || err != nil {
			t.Errorf("changed = %v, %v", changed, err)
		}
	})
}

// TestScenarioC3EndsEarly reads a file that is shorter than its size all the time, as those of sysfs are.
func TestScenarioC3EndsEarly(t *testing.T) {
	const file = "/sys/kernel/uevent_seqnum"
	content, err := os.ReadFile(file)
	if err != nil {
		t.Skip(err)
	}
	err = source.Walk(context.Background(), "/sys/kernel", []string{"uevent_seqnum"}, source.Options{}, func(it *source.Item) error {
		f, err := it.Open()
		if err != nil {
			return err
		}
		defer f.Close()
		got, _, err := read(f)
		if len(got) != len(content) || f.Size() != uint64(len(got)) || f.Size() == it.Entry.Size {
			t.Errorf("read %q for a size of %d", got, it.Entry.Size)
		}
		changed, err2 := f.Check()
		if !changed {
			t.Error("not marked as changed")
		}
		return errors.Join(err, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestScenarioC3Vanished removes and swaps things between being listed and being looked at or opened.
func TestScenarioC3Vanished(t *testing.T) {
	dir := tree(t, "a", "b", "c", "d/e", "f", "g", "h")
	in := func(p string) string { return filepath.Join(dir, p) }
	if err := errors.Join(os.Link(in("f"), in("f2")), os.Link(in("f"), in("f3"))); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := source.Walk(context.Background(), dir, []string{"."}, source.Options{}, func(it *source.Item) error {
		p := it.Entry.Path
		var err error
		switch p {
		case "a":
			err = errors.Join(os.Remove(in("b")), os.RemoveAll(in("d")), os.Remove(in("c")), os.Symlink("/etc/passwd", in("c")))
		case "f":
			err = os.Remove(in("f"))
		case "g":
			err = errors.Join(os.Remove(in("g")), unix.Mkfifo(in("g"), 0o600)) // must not block
		case "h":
			err = errors.Join(os.Remove(in("h")), os.Symlink("/etc/passwd", in("h")))
		}
		if err != nil {
			return err
		}
		opened := ""
		if it.Entry.Type == archive.TypeFile && it.Entry.Link == "" {
			opened = "opened"
			if f, err := it.Open(); err == nil {
				f.Close()
			} else if opened = "vanished"; !errors.Is(err, source.ErrVanished) {
				t.Error(err)
			}
		}
		got = append(got, fmt.Sprintf("%s %d %s%s%s %v", p, it.Entry.Type, it.Entry.Target, it.Entry.Link, opened, it.Verdict.What))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"a 1 opened verdict 0", "b 0  vanished", "c 3 /etc/passwd verdict 0", "d 0  vanished",
		"f 1 vanished vanished", "f2 1 opened verdict 0", "f3 1 f2 verdict 0", // not links to what is not there
		"g 1 vanished vanished", "h 1 vanished vanished",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// TestOpenSeesWhatIsThere replaces a file between being looked at and opened: the entry is that of what is read.
func TestOpenSeesWhatIsThere(t *testing.T) {
	dir := tree(t, "f")
	err := source.Walk(context.Background(), dir, []string{"f"}, source.Options{}, func(it *source.Item) error {
		p := filepath.Join(dir, "f")
		if err := errors.Join(os.WriteFile(p+"2", []byte("quite another"), 0o604), os.Chmod(p+"2", 0o604), os.Rename(p+"2", p)); err != nil {
			return err
		}
		before := it.Stat
		f, err := it.Open()
		if err != nil {
			return err
		}
		defer f.Close()
		content, _, err := read(f)
		if string(content) != "quite another" || it.Entry.Size != 13 || it.Entry.Mode != 0o604 || it.Stat.Inode == before.Inode {
			t.Errorf("%q with %+v", content, it.Entry)
		}
		changed, err2 := f.Check()
		if changed {
			t.Error("changed")
		}
		return errors.Join(err, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestBeyondPathMax goes down paths that no system call takes, with more levels than directories are kept open.
func TestBeyondPathMax(t *testing.T) {
	dir := t.TempDir()
	const levels = 300
	name := strings.Repeat("d", 100)
	at, err := unix.Open(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range levels {
		for _, n := range []string{"a", "z"} {
			fd, err := unix.Openat(at, n, unix.O_CREAT|unix.O_WRONLY, 0o644)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
		}
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, name, unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	files, most := 0, 0
	err = source.Walk(context.Background(), dir, []string{"."}, source.Options{}, func(it *source.Item) error {
		if it.Verdict.What != 0 {
			t.Errorf("%.50q...: %s", it.Entry.Path, it.Verdict.Why)
		}
		if it.Entry.Type == archive.TypeFile {
			f, err := it.Open()
			if err != nil {
				return err
			}
			f.Close()
			files++
		}
		most = max(most, descriptors(t))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files != 2*levels {
		t.Errorf("%d files, want %d", files, 2*levels)
	}
	if most > 120 {
		t.Errorf("%d descriptors were open", most)
	}
	if n := descriptors(t); n > 20 {
		t.Errorf("%d descriptors are left open", n)
	}
}

func descriptors(t *testing.T) int {
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

// TestMovedDirectory moves a directory away while the walk is far below it, when its descriptor is closed.
func TestMovedDirectory(t *testing.T) {
	deep := "top/" + strings.Repeat("d/", 100) + "end"
	dir := tree(t, deep, "top/zz", "top/d/z", "top/d/d/z", "zzz")
	elsewhere := t.TempDir()
	var vanished []string
	last := ""
	err := source.Walk(context.Background(), dir, []string{"."}, source.Options{}, func(it *source.Item) error {
		if it.Entry.Path == deep {
			// top/d goes elsewhere: what is in it can be found through "..", but top not from there.
			if err := os.Rename(filepath.Join(dir, "top/d"), filepath.Join(elsewhere, "d")); err != nil {
				return err
			}
		}
		if it.Verdict.What != 0 {
			vanished = append(vanished, fmt.Sprint(it.Entry.Path, " ", it.Verdict.What))
		}
		last = it.Entry.Path
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(vanished) != 0 || last != "zzz" {
		t.Errorf("vanished: %v; last %s", vanished, last)
	}
}

func TestRecent(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	at := func(d time.Duration) archive.Time { return archive.TimeOf(now.Add(d)) }
	for _, c := range []struct {
		m, c time.Duration
		want bool
	}{{-time.Hour, -time.Hour, false}, {-time.Second, -time.Hour, true}, {-time.Hour, -time.Second, true}, {time.Hour, -time.Hour, true}, {-4 * time.Second, -4 * time.Second, false}} {
		if got := (source.Stat{Mtime: at(c.m), Ctime: at(c.c)}).Recent(now); got != c.want {
			t.Errorf("mtime %v, ctime %v: %v", c.m, c.c, got)
		}
	}
}

// TestLargeDirectory holds a directory's names only: a ceiling for 30,000 entries that grows in proportion.
func TestLargeDirectory(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 30,000 files")
	}
	dir := t.TempDir()
	const n = 30_000
	for i := range n {
		fd, err := unix.Open(filepath.Join(dir, fmt.Sprintf("entry-%08d", i*7919%100_000_000)), unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	var before, m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var most uint64
	count := 0
	start := time.Now()
	err := source.Walk(context.Background(), dir, []string{"."}, source.Options{}, func(it *source.Item) error {
		if count++; count%10_000 == 1 {
			runtime.GC()
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc-before.HeapAlloc)
		}
		return nil
	})
	if err != nil || count != n {
		t.Fatal(count, err)
	}
	t.Logf("%d entries in %v with %d kB held", count, time.Since(start), most>>10)
	if most > n*60 {
		t.Errorf("%d bytes held for %d names", most, n)
	}
}

// BenchmarkWalkGOROOT walks the tree of the figures, warm.
func BenchmarkWalkGOROOT(b *testing.B) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skip(err)
	}
	root := strings.TrimSpace(string(out))
	for b.Loop() {
		n := 0
		if err := source.Walk(context.Background(), root, []string{"."}, source.Options{}, func(*source.Item) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(n), "paths")
	}
}
