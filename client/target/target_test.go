//go:build linux

package target_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
	"holdfast/client/target"
)

func open(t testing.TB, dir string, opt target.Options) *target.Target {
	t.Helper()
	to, err := target.Open(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
	return to
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "target")
	to := open(t, dir, target.Options{})
	if _, err := target.Open(dir, target.Options{Overwrite: true}); !errors.Is(err, target.ErrBusy) {
		t.Errorf("a second restore: %v", err)
	}
	must(t, put(to, "file", "x"), to.FinishDirs(), to.Close())
	if _, err := target.Open(dir, target.Options{}); !errors.Is(err, target.ErrNotEmpty) {
		t.Errorf("a directory that is not empty: %v", err)
	}
	must(t, open(t, dir, target.Options{Overwrite: true}).Close())
	if _, err := target.Open(filepath.Join(dir, "file"), target.Options{}); err == nil {
		t.Error("a file was taken as a directory")
	}
	// What only looks like a staging directory is not emptied.
	other := t.TempDir()
	fake := filepath.Join(other, ".holdfast-restore-0123456789abcdef")
	must(t, os.MkdirAll(filepath.Join(fake, "precious"), 0o700))
	if _, err := target.Open(other, target.Options{}); !errors.Is(err, target.ErrNotEmpty) {
		t.Errorf("a directory with a false staging directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(fake, "precious")); err != nil {
		t.Error(err)
	}
}

// TestScenarioC11Continues interrupts a restore and continues it: what is complete is found, and nothing is left over.
func TestScenarioC11Continues(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	a, b := entry("d/a", archive.TypeFile), entry("d/b", archive.TypeFile)
	a.Size, b.Size = 4, 4
	d := entry("d", archive.TypeDir)
	d.Mode = 0o555

	to := open(t, dir, target.Options{})
	must(t, to.Mkdir(d), put(to, "d/a", "abcd"))
	if to.Has(a) != nil {
		t.Error("a fresh target has something") // it does not even look
	}
	half, err := to.Begin(b)
	must(t, err)
	if _, err := half.WriteAt([]byte("ab"), 0); err != nil {
		t.Fatal(err)
	}
	must(t, to.Close()) // as good as kill -9: half is neither committed nor aborted
	if _, err := os.Stat(filepath.Join(dir, "d/b")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not complete has its name: %v", err)
	}

	to = open(t, dir, target.Options{})
	must(t, to.Mkdir(d))
	x := to.Has(a)
	if x == nil {
		t.Fatal("the complete file was not found")
	}
	p := make([]byte, 4)
	if _, err := x.ReadAt(p, 0); err != nil || string(p) != "abcd" {
		t.Errorf("it holds %q, %v", p, err)
	}
	h := entry("d/hard", archive.TypeFile)
	h.Link = "d/a"
	if err := to.Hardlink(h); !errors.Is(err, target.ErrUnsafe) {
		t.Errorf("hard link before Keep: %v", err)
	}
	x.Keep()
	must(t, to.Hardlink(h), to.Hardlink(h), x.Close()) // twice: renaming onto the same file must leave nothing
	if to.Has(b) != nil {
		t.Error("found a file that was never complete")
	}
	for what, change := range map[string]func(e *archive.Entry){
		"size": func(e *archive.Entry) { e.Size++ },
		"time": func(e *archive.Entry) { e.Mtime.Nsec++ },
		"mode": func(e *archive.Entry) { e.Mode ^= 1 },
		"type": func(e *archive.Entry) { e.Type = archive.TypeFIFO },
		"path": func(e *archive.Entry) { e.Path = "d/../d/a" },
		"link": func(e *archive.Entry) { e.Path = "l" },
	} {
		e := *a
		change(&e)
		if to.Has(&e) != nil {
			t.Errorf("another %s was not noticed", what)
		}
	}
	must(t, put(to, "d/b", "efgh"), to.FinishDirs(), to.Close())
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("left over: %v", names)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, ".*")); len(names) != 0 {
		t.Errorf("left over: %v", names)
	}
	if fi, err := os.Stat(filepath.Join(dir, "d")); err != nil || fi.Mode().Perm() != 0o555 {
		t.Errorf("directory: %v, %v", fi, err)
	}
	must(t, os.Chmod(filepath.Join(dir, "d"), 0o700)) // so that it can be removed
}

// TestScenarioC11ContinuesAsUser continues where an earlier run had closed directories to their owner already.
func TestScenarioC11ContinuesAsUser(t *testing.T) {
	dir := os.Getenv("HOLDFAST_TEST_DIR")
	if dir == "" && os.Geteuid() == 0 {
		asUser(t, scratch(t))
		return
	} else if dir == "" {
		dir = t.TempDir()
	}
	out := filepath.Join(dir, "out")
	run := func(mode uint32) {
		to := open(t, out, target.Options{})
		defer to.Close()
		for _, p := range []string{"a", "a/b", "c"} {
			d := entry(p, archive.TypeDir)
			d.Mode = mode
			must(t, to.Mkdir(d), put(to, p+"/file", "x"))
		}
		must(t, put(to, "c/made/file", "x"))
		if mode != 0 {
			must(t, to.FinishDirs())
		}
	}
	run(0) // closes without finishing
	for p, mode := range map[string]os.FileMode{"a/b": 0, "a": 0o100, "c": 0o500} {
		must(t, os.Chmod(filepath.Join(out, p), mode))
	}
	run(0o700)
}

// TestManyFilesAtATime begins more files than may be open, and writes to them in turn, from several goroutines.
func TestManyFilesAtATime(t *testing.T) {
	dir := t.TempDir()
	to := open(t, dir, target.Options{})
	const n, rounds = 700, 4
	files := make([]*target.File, n)
	for i := range files {
		e := entry(fmt.Sprintf("d%d/e%d/file", i%150, i), archive.TypeFile)
		e.Size = rounds * 8
		var err error
		files[i], err = to.Begin(e)
		must(t, err)
	}
	var wg sync.WaitGroup
	for r := range rounds {
		wg.Go(func() {
			for i, f := range files {
				if _, err := f.WriteAt(fmt.Appendf(nil, "%06d %d", i, r), int64(8*r)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l, err := os.ReadDir("/proc/self/fd"); err != nil || len(l) > 300 {
		t.Errorf("%d descriptors are open, %v", len(l), err)
	}
	for g := range 4 {
		wg.Go(func() {
			for i := g; i < n; i += 4 {
				if err := files[i].Commit(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if l, err := os.ReadDir("/proc/self/fd"); err != nil || len(l) > 170 {
		t.Errorf("%d descriptors are open after committing, %v", len(l), err)
	}
	must(t, to.FinishDirs(), to.Close())
	for i := range files {
		got, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("d%d/e%d/file", i%150, i)))
		if want := fmt.Sprintf("%06d 0%06d 1%06d 2%06d 3", i, i, i, i); err != nil || string(got) != want {
			t.Fatalf("file %d: %q, %v", i, got, err)
		}
	}
}

// TestManyDirectories has more attributes of directories than are kept in memory.
func TestManyDirectories(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	to := open(t, dir, target.Options{})
	value := bytes.Repeat([]byte("v"), 2000)
	const n = 1200 // 2.5 MB
	name := func(i int) string { return fmt.Sprintf("top/%04d", i) }
	top := entry("top", archive.TypeDir)
	top.Mode = 0o755
	must(t, to.Mkdir(top))
	for i := range n {
		e := entry(name(i), archive.TypeDir)
		e.Mtime.Sec = int64(i)
		e.Mode = 0o700 + uint32(i%8)
		e.Xattrs = []archive.Xattr{{Name: "user.x", Value: append(value, byte(i))}}
		must(t, to.Mkdir(e))
		must(t, put(to, name(i)+"/file", "x")) // sets the directory's time anew
	}
	must(t, to.FinishDirs(), to.Close())
	if w := to.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %v", w)
	}
	b := make([]byte, 4096)
	for i := range n {
		var st unix.Stat_t
		p := filepath.Join(dir, name(i))
		must(t, unix.Stat(p, &st))
		size, err := unix.Getxattr(p, "user.x", b)
		if st.Mtim.Sec != int64(i) || st.Mode&0o7777 != 0o700+uint32(i%8) || err != nil || size != 2001 || b[2000] != byte(i) {
			t.Fatalf("%s: %+v, attribute of %d bytes, %v", p, st, size, err)
		}
	}
}

// TestInheritedACL restores below a directory with a default ACL and a set-group-ID bit: nothing inherits them.
func TestInheritedACL(t *testing.T) {
	dir := t.TempDir()
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xd2\x04\x00\x00" +
		"\x04\x00\x07\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x07\x00\xff\xff\xff\xff"
	must(t, syscall.Setxattr(dir, "system.posix_acl_default", []byte(acl), 0), os.Chmod(dir, 0o2775))
	to := open(t, dir, target.Options{})
	d, dd := entry("d", archive.TypeDir), entry("d/d", archive.TypeDir)
	d.Mode, dd.Mode = 0o755, 0o755
	must(t, to.Mkdir(d), to.Mkdir(dd), put(to, "f", "x"), put(to, "d/f", "x"), to.FinishDirs(), to.Close())
	for _, p := range []string{"d", "d/d", "f", "d/f"} {
		b := make([]byte, 4096)
		n, err := unix.Llistxattr(filepath.Join(dir, p), b)
		fi, err2 := os.Stat(filepath.Join(dir, p))
		must(t, err, err2)
		if strings.Contains(string(b[:n]), "acl") || fi.Mode().Perm()&^0o111 != 0o644 || fi.Mode()&os.ModeSetgid != 0 {
			t.Errorf("%s: %v with %q", p, fi.Mode(), b[:n])
		}
	}
}

// TestScenarioC15DiskFull restores into a full file system: an error that says so, and no file that is half there.
func TestScenarioC15DiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	to := open(t, filepath.Join(dir, "out"), target.Options{})
	err := put(to, "large", strings.Repeat("x", 1<<20))
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), `"large"`) {
		t.Errorf("error %v", err)
	}
	if err := put(to, "small", "fits after the large one was removed"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "out", "large")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the large file: %v", err)
	}
	to.Close()
}

// TestMountInTarget says what to do where a part of the target is another file system.
func TestMountInTarget(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "m"), 0o755))
	if err := unix.Mount("tmpfs", filepath.Join(dir, "m"), "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer unix.Unmount(filepath.Join(dir, "m"), unix.MNT_DETACH)
	to := open(t, dir, target.Options{Overwrite: true})
	if err := put(to, "m/file", "x"); err == nil || !strings.Contains(err.Error(), "another file system") {
		t.Errorf("error %v", err)
	}
}

// BenchmarkRestore restores the tree of the figures.
func BenchmarkRestore(b *testing.B) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skip(err)
	}
	root := strings.TrimSpace(string(goroot))
	for b.Loop() {
		dir, err := os.MkdirTemp("", "holdfast-bench-")
		must(b, err)
		to := open(b, filepath.Join(dir, "out"), target.Options{})
		must(b, duplicate(root, []string{"src", "pkg"}, to), to.Close())
		b.StopTimer()
		must(b, os.RemoveAll(dir))
		b.StartTimer()
	}
}

// TestNamesThatTheFileSystemTakesForOne: on many file systems "A" and "a" are one name, and what comes later
// must not silently replace what was restored before. Here both are written the same.
func TestNamesThatTheFileSystemTakesForOne(t *testing.T) {
	dir := t.TempDir()
	to := open(t, dir, target.Options{})
	link := entry("s", archive.TypeSymlink)
	link.Target = "first"
	hard := entry("h", archive.TypeFile)
	hard.Link = "f"
	must(t, put(to, "f", "first"), to.Symlink(link), to.Hardlink(hard))
	other := *link
	other.Target = "second"
	for what, err := range map[string]error{
		"a file over a file":               put(to, "f", "second"),
		"a symbolic link over another":     to.Symlink(&other),
		"a FIFO over a symbolic link":      to.Node(entry("s", archive.TypeFIFO)),
		"a directory over a file":          to.Mkdir(entry("f", archive.TypeDir)),
		"a file over another hard link":    put(to, "h", "second"),
		"a hard link over a symbolic link": func() error { h := *hard; h.Path = "s"; return to.Hardlink(&h) }(),
	} {
		if !errors.Is(err, target.ErrSameName) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, to.Hardlink(hard)) // the same again is no harm
	if b, err := os.ReadFile(filepath.Join(dir, "f")); err != nil || string(b) != "first" {
		t.Errorf("%q, %v", b, err)
	}
	if l, err := os.Readlink(filepath.Join(dir, "s")); err != nil || l != "first" {
		t.Errorf("%q, %v", l, err)
	}
}
