//go:build linux

package target_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"holdfast/client/archive"
	"holdfast/client/source"
	"holdfast/client/target"
	"holdfast/internal/torture"
)

// duplicate restores what the walk of base's roots finds, without anything in between.
func duplicate(base string, roots []string, to *target.Target) error {
	var links []*archive.Entry
	buf := make([]byte, 256<<10)
	err := source.Walk(context.Background(), base, roots, source.Options{}, func(it *source.Item) error {
		if it.Verdict.What != 0 {
			return fmt.Errorf("verdict on %q: %v: %s", it.Verdict.Path, it.Verdict.What, it.Verdict.Why)
		}
		e := &it.Entry
		if err := e.Check(); err != nil && e.Type != archive.TypeFile {
			return err
		}
		switch {
		case e.Link != "":
			links = append(links, e)
			return nil
		case e.Type == archive.TypeDir:
			return to.Mkdir(e)
		case e.Type == archive.TypeSymlink:
			return to.Symlink(e)
		case e.Type != archive.TypeFile:
			return to.Node(e)
		}
		in, err := it.Open()
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := to.Begin(e)
		if err != nil {
			return err
		}
		for {
			r, err := in.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
			if r.Hole {
				continue
			}
			off := r.Off
			for {
				n, err := in.Read(buf)
				if _, err := out.WriteAt(buf[:n], int64(off)); err != nil {
					return err
				}
				off += uint64(n)
				if err == io.EOF {
					break
				}
				if err != nil {
					return err
				}
			}
		}
		if in.Size() != e.Size {
			return fmt.Errorf("%q: read %d bytes of %d", e.Path, in.Size(), e.Size)
		}
		if changed, err := in.Check(); changed || err != nil {
			return fmt.Errorf("%q: changed %v, %v", e.Path, changed, err)
		}
		return out.Commit()
	})
	if err != nil {
		return err
	}
	for _, e := range links {
		if err := to.Hardlink(e); err != nil {
			return err
		}
	}
	return to.FinishDirs()
}

func describe(t testing.TB, dir string) []string {
	t.Helper()
	var b bytes.Buffer
	if err := torture.Describe(&b, dir); err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfter(b.String(), "\n")
}

func equal(t testing.TB, want, got string) {
	t.Helper()
	a, b := describe(t, want), describe(t, got)
	have := map[string]bool{}
	for _, l := range b {
		have[l] = true
	}
	shown := 0
	for _, l := range a {
		if !have[l] && shown < 10 {
			shown++
			t.Errorf("not restored so: %s", l)
		}
		delete(have, l)
	}
	for l := range have {
		if shown++; shown < 20 {
			t.Errorf("restored instead: %s", l)
		}
	}
}

// asUser runs the named test again in a process of an unprivileged user, with dir as HOLDFAST_TEST_DIR.
func asUser(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "test-binary")
	if err := os.WriteFile(bin, self, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(bin)
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "HOLDFAST_TEST_DIR="+dir, "TMPDIR="+dir)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Fatalf("as a user: %v\n%s", err, out)
	}
}

// scratch is a directory that a user can reach, unlike t.TempDir of root.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-target-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestScenarioC14RoundTrip(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("TestScenarioC14RoundTripAsUser is the one for users")
	}
	roundTrip(t, scratch(t), true)
}

func TestScenarioC14RoundTripAsUser(t *testing.T) {
	if dir := os.Getenv("HOLDFAST_TEST_DIR"); dir != "" {
		roundTrip(t, dir, false)
		return
	}
	asUser(t, scratch(t))
}

func roundTrip(t *testing.T, dir string, privileged bool) {
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := torture.Make(tree, torture.Options{LargeDir: 500}); err != nil {
		t.Fatal(err)
	}
	// A directory that its owner may list but, by its ACL, not enter: user::rw-, user:1234:rwx and the rest.
	closed := filepath.Join(tree, "closed")
	acl := "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xd2\x04\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	if err := errors.Join(os.Mkdir(closed, 0o700), syscall.Setxattr(closed, "system.posix_acl_access", []byte(acl), 0)); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	to, err := target.Open(out, target.Options{Privileged: privileged})
	if err != nil {
		t.Fatal(err)
	}
	if err := duplicate(dir, []string{"tree"}, to); err != nil {
		t.Fatal(err)
	}
	if w := to.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %+v", w)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	// All of the target: nothing may be left beside the tree.
	if names, err := os.ReadDir(out); err != nil || len(names) != 1 {
		t.Errorf("target holds %v, %v", names, err)
	}
	equal(t, tree, filepath.Join(out, "tree"))
}

// TestUnprivileged restores what a user may not have, without --privileged, and finds each thing counted.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to make the tree")
	}
	dir := scratch(t)
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := torture.Make(tree, torture.Options{}); err != nil {
		t.Fatal(err)
	}
	to, err := target.Open(filepath.Join(dir, "out"), target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if err := duplicate(dir, []string{"tree"}, to); err != nil {
		t.Fatal(err)
	}
	var what []string
	for _, w := range to.Warnings() {
		what = append(what, fmt.Sprint(w.Count, " ", w.What))
	}
	got := strings.Join(what, "\n")
	for _, want := range []string{"3 devices were not made", "4 security and trusted attributes", "set-id bits were not"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q among the warnings:\n%s", want, got)
		}
	}
	filepath.Walk(filepath.Join(dir, "out"), func(p string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeDevice) != 0 {
			t.Errorf("%v %s", fi.Mode(), p)
		}
		return nil
	})
}

func entry(path string, typ archive.Type) *archive.Entry {
	return &archive.Entry{Path: path, Type: typ, Mode: 0o644, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mtime: archive.Time{Sec: 1e9}}
}

func put(to *target.Target, path, content string) error {
	e := entry(path, archive.TypeFile)
	e.Size = uint64(len(content))
	f, err := to.Begin(e)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		f.Abort()
		return err
	}
	return f.Commit()
}

// TestScenarioC10Tricks tries to leave the target, as root and as a user.
func TestScenarioC10Tricks(t *testing.T) {
	if dir := os.Getenv("HOLDFAST_TEST_DIR"); dir != "" {
		tricks(t, dir)
		return
	}
	tricks(t, scratch(t))
	if os.Geteuid() == 0 {
		asUser(t, scratch(t))
	}
}

func tricks(t *testing.T, dir string) {
	victim := filepath.Join(dir, "victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(victim, "file"), []byte("untouched"), 0o640); err != nil {
		t.Fatal(err)
	}
	before := describe(t, victim)
	out := filepath.Join(dir, "out")
	to, err := target.Open(out, target.Options{Privileged: true})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if fi, _ := os.Stat(out); fi.Mode().Perm() != 0o700 {
		t.Errorf("the target's mode is %v, want it private", fi.Mode())
	}
	refused := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: not refused", what)
		}
	}
	for _, p := range []string{"", "/", "/abs", "..", "../victim/new", "a/../../victim/new", "a/..", ".", "./a", "a//b", "a/", "a\x00b"} {
		for _, typ := range []archive.Type{archive.TypeFile, archive.TypeDir, archive.TypeSymlink, archive.TypeFIFO, archive.TypeBlock} {
			e := entry(p, typ)
			e.Target = "x"
			e.Link = "x"
			var err error
			switch typ {
			case archive.TypeFile:
				_, err = to.Begin(e)
				if err2 := to.Hardlink(e); !errors.Is(err2, target.ErrUnsafe) {
					t.Errorf("hard link %q: %v", p, err2)
				}
			case archive.TypeDir:
				err = to.Mkdir(e)
			case archive.TypeSymlink:
				err = to.Symlink(e)
			default:
				err = to.Node(e)
			}
			if !errors.Is(err, target.ErrUnsafe) {
				t.Errorf("type %d at %q: %v", typ, p, err)
			}
		}
	}
	// Through symbolic links of the archive: absolute, relative, and to itself.
	for name, dest := range map[string]string{"abs": victim, "rel": "../victim", "here": ".", "self": "self"} {
		l := entry(name, archive.TypeSymlink)
		l.Target = dest
		if err := to.Symlink(l); err != nil {
			t.Fatal(err)
		}
		refused(name+"/new", put(to, name+"/new", "x"))
		refused(name+"/file", put(to, name+"/file", "x"))
		refused(name+"/dir/new", put(to, name+"/dir/new", "x"))
		refused(name+"/dir", to.Mkdir(entry(name+"/dir", archive.TypeDir)))
		n := entry(name+"/link", archive.TypeSymlink)
		n.Target = "x"
		refused(name+"/link", to.Symlink(n))
		refused(name+"/fifo", to.Node(entry(name+"/fifo", archive.TypeFIFO)))
		h := entry("hard-"+name, archive.TypeFile)
		h.Link = name + "/file"
		refused("hard link through "+name, to.Hardlink(h))
	}
	// A file in place of a link that somebody planted replaces the link, not what it points to.
	if err := os.Symlink(filepath.Join(victim, "file"), filepath.Join(out, "link-to-file")); err != nil {
		t.Fatal(err)
	}
	if err := put(to, "link-to-file", "replaced the link"); err != nil {
		t.Fatal(err)
	}
	// A directory in place of a link as well; its attributes must not reach the link's target.
	if err := os.Symlink(victim, filepath.Join(out, "link-to-dir")); err != nil {
		t.Fatal(err)
	}
	if err := to.Mkdir(entry("link-to-dir", archive.TypeDir)); err != nil {
		t.Fatal(err)
	}
	// Hard links only to what this run wrote: not to what somebody else put into the target.
	if err := os.Link(filepath.Join(victim, "file"), filepath.Join(out, "planted")); err != nil {
		t.Fatal(err)
	}
	h := entry("hard-planted", archive.TypeFile)
	h.Link = "planted"
	if err := to.Hardlink(h); !errors.Is(err, target.ErrUnsafe) {
		t.Errorf("hard link to a planted file: %v", err)
	}
	// And a file over it replaces the name, not the file.
	if err := put(to, "planted", "new content"); err != nil {
		t.Fatal(err)
	}
	// A hard link to a symbolic link is one to the link itself.
	h = entry("hard-abs", archive.TypeSymlink)
	h.Link = "link-to-file"
	h.Type = archive.TypeFile
	if err := to.Hardlink(h); err != nil {
		t.Fatal(err)
	}
	// Values that mean something else to the system.
	odd := entry("odd", archive.TypeFile)
	odd.Mtime.Nsec = 1<<30 - 1 // UTIME_NOW
	_, err = to.Begin(odd)
	refused("UTIME_NOW", err)
	odd = entry("odd", archive.TypeFile)
	odd.Mode = 1 << 20
	_, err = to.Begin(odd)
	refused("a mode with a type", err)
	// More content than the entry says.
	small := entry("small", archive.TypeFile)
	small.Size = 3
	f, err := to.Begin(small)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{-1, 1, 3, 1 << 62} {
		_, err := f.WriteAt([]byte("abc"), off)
		refused(fmt.Sprint("3 bytes at ", off), err)
	}
	f.Abort()
	// A directory cannot be replaced by a file, and is not emptied.
	if err := put(to, "full/file", "x"); err != nil {
		t.Fatal(err)
	}
	refused("a file over a directory", put(to, "full", "x"))
	refused("a directory below a file", put(to, "full/file/below", "x"))
	if err := to.FinishDirs(); err != nil {
		t.Fatal(err)
	}
	if after := describe(t, victim); strings.Join(after, "") != strings.Join(before, "") {
		t.Errorf("the victim changed from\n%sto\n%s", before, after)
	}
}

// TestScenarioC10Race restores as root into a directory of somebody who swaps a directory for a link all the time.
func TestScenarioC10Race(t *testing.T) {
	dir := scratch(t)
	victim, out := filepath.Join(dir, "victim"), filepath.Join(dir, "out")
	for _, d := range []string{victim, filepath.Join(victim, "below"), out, filepath.Join(out, "a"), filepath.Join(out, "a", "below")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(victim, filepath.Join(out, "b")); err != nil {
		t.Fatal(err)
	}
	before := describe(t, victim)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				exchange(filepath.Join(out, "a"), filepath.Join(out, "b"))
			}
		}
	})
	done, failed := 0, 0
	for round := 0; round < 500 || round < 50_000 && (done == 0 || failed == 0); round++ {
		// A target of its own each time: no descriptor is remembered.
		to, err := target.Open(out, target.Options{Overwrite: true, Privileged: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{
			put(to, "a/file", "x"), put(to, "a/below/file", "x"), put(to, "b/file", "x"),
			to.Mkdir(entry("a/new", archive.TypeDir)), to.Mkdir(entry("a/below", archive.TypeDir)),
			to.Node(entry("a/fifo", archive.TypeFIFO)), to.FinishDirs(),
		} {
			if err != nil {
				failed++
			} else {
				done++
			}
		}
		to.Close()
		runtime.Gosched()
	}
	t.Logf("%d operations done, %d refused", done, failed)
	if done == 0 || failed == 0 {
		t.Error("the race was none")
	}
	if after := describe(t, victim); strings.Join(after, "") != strings.Join(before, "") {
		t.Errorf("the victim changed to\n%s", after)
	}
}
