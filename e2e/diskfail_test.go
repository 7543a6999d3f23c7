//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/never"
	"holdfast/internal/part"
)

// injected is how a program ended of which each thread's n-th call of one kind failed.
type injected struct {
	outcome
	disk  []string // the calls on files of this test that failed
	other []string // other calls that failed: on sockets, pipes, the system's files
}

// inject runs a program in which the n-th call of each thread fails. It is an error of the disk for all that matter here.
func inject(t testing.TB, env []string, call, errno string, n int, program string, args ...string) (r injected) {
	t.Helper()
	cmd, log := injecting(t, call, errno, n, program, args...)
	var out, errs bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	r.code, r.stdout, r.stderr = cmd.ProcessState.ExitCode(), out.String(), errs.String()
	r.read(t, log)
	return r
}

// injecting is a program of which each thread's n-th call of one kind will fail, and where that is logged.
func injecting(t testing.TB, call, errno string, n int, program string, args ...string) (cmd *exec.Cmd, log string) {
	t.Helper()
	log = filepath.Join(scratch(t), "log")
	strace := []string{"strace", "-f", "--seccomp-bpf", "-y", "-qq", "-o", log, "-e", "signal=none", "-e", "trace=" + call, "-e", fmt.Sprintf("inject=%s:error=%s:when=%d", call, errno, n)}
	cmd = exec.Command(strace[0], append(append(strace[1:], program), args...)...)
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, log
}

// read reads from strace's log what failed.
func (r *injected) read(t testing.TB, log string) {
	t.Helper()
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if !strings.Contains(line, "(INJECTED)") {
			continue
		}
		_, line, _ = strings.Cut(strings.TrimSpace(line), " ")
		if strings.Contains(line, "/holdfast-e2e-") && !strings.Contains(line, "/holdfast-e2e-bin-") {
			r.disk = append(r.disk, line)
		} else {
			r.other = append(r.other, line)
		}
	}
}

// said reports whether what a program wrote names the cause of its failure.
func (r injected) said() bool {
	return strings.Contains(r.stdout+r.stderr, "input/output error") || strings.Contains(r.stdout+r.stderr, "no space left")
}

// eachCall calls try with every call and n, until n is more than any thread makes, in steps of 1 + n/grow; where
// tests are to be quick, once for every second call. try reports whether a call failed.
func eachCall(t *testing.T, grow int, calls []string, try func(call, errno string, n int) (reached bool)) {
	t.Helper()
	full := []string{"write", "pwrite64", "fsync", "fdatasync", "renameat", "mkdirat", "openat", "linkat"} // that can find no room
	for i, call := range calls {
		if !part.Heavy() {
			if i%2 == 0 {
				try(call, "EIO", 1+i%5)
			}
			continue
		}
		last, tries := 0, 0
		for n := 1; !t.Failed(); n += 1 + n/grow {
			errno := "EIO"
			if tries++; tries%2 == 0 && slices.Contains(full, call) {
				errno = "ENOSPC"
			}
			if !try(call, errno, n) {
				break
			}
			last = n
		}
		t.Logf("%s: up to number %d", call, last)
	}
}

// grove makes dir/tree: files that share a pack, one of many chunks, and what is not a file.
func grove(t testing.TB) (dir, tree string) {
	t.Helper()
	dir = scratch(t)
	tree = filepath.Join(dir, "tree")
	for i := range 5 {
		writeText(t, mkdirs(t, tree, "some", fmt.Sprint(i)), uint64(i), 3000*i)
	}
	writeNoise(t, mkdirs(t, tree, "other", "large"), 7, 2<<20)
	if err := errors.Join(
		os.Symlink("large", filepath.Join(tree, "other", "symlink")), os.Mkdir(filepath.Join(tree, "empty"), 0o700),
		os.Link(filepath.Join(tree, "other", "large"), filepath.Join(tree, "link")),
		os.Chmod(filepath.Join(tree, "some", "3"), 0o640),
	); err != nil {
		t.Fatal(err)
	}
	return dir, tree
}

func mkdirs(t testing.TB, elem ...string) string {
	t.Helper()
	p := filepath.Join(elem...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestFailEveryCallOfCreate makes one call on the disk after another fail while a backup is made: of files that it reads
// and of those that it keeps for itself. It ends with an archive that is whole, or with one that marks what could not
// be read, or with none, and says so. With what it left in its cache the next run makes an archive that comes
// back exactly.
func TestFailEveryCallOfCreate(t *testing.T) {
	t.Parallel()
	part.Need(t, "strace", "rsync")
	s := newService(t)
	c := newClient(t, s)
	dir, tree := grove(t)
	create := []string{"create", "-C", dir, "s", "tree"}
	c.ok(create...)
	runs, ends := 0, map[int]int{}
	eachCall(t, 5, []string{"openat", "read", "pread64", "getdents64", "fsync", "newfstatat", "renameat", "fstat", "write", "readlinkat", "pwrite64", "unlinkat", "close"}, func(call, errno string, n int) bool {
		runs++
		writeText(t, filepath.Join(tree, "some", "2"), uint64(100+runs), 5000+runs)
		r := inject(t, c.env, call, errno, n, holdfast, create...)
		about := fmt.Sprintf("%s %d fails with %s (%q, %q): exit %d\n%s%s", call, n, errno, r.disk, r.other, r.code, r.stdout, r.stderr)
		if len(r.other) == 0 && len(r.disk) > 0 {
			ends[r.code]++
			switch {
			case r.code != 0 && r.code != 1 && r.code != 3:
				t.Errorf("%s", about)
			case r.code != 0 && !r.said():
				t.Errorf("the cause is not named: %s", about)
			}
			if strings.Contains(r.stderr, "goroutine ") {
				t.Errorf("a stack trace: %s", about)
			}
		}
		if r.code != 0 {
			c.ok(create...)
		}
		out := filepath.Join(scratch(t), "out")
		if o := c.run("extract", "s", "--target", out); o.code != 0 {
			t.Errorf("extract: exit %d\n%s\nafter: %s", o.code, o.stderr, about)
			return true
		}
		if same(t, tree, filepath.Join(out, "tree")); t.Failed() {
			t.Logf("after: %s", about)
		}
		os.RemoveAll(out)
		return len(r.disk)+len(r.other) > 0
	})
	t.Logf("%d runs, by exit code %v", runs, ends)
	if part.Heavy() && (ends[0] == 0 || ends[1] == 0 || ends[3] == 0) {
		t.Errorf("create ended in these ways: %v", ends)
	}
	s.clean()
}

// TestFailEveryCallOfExtract makes one call on the disk after another fail while an archive is restored. What stands
// at its final name afterwards has its content or is not there; the exit code is not 0 unless all is there; and the
// next run completes it.
func TestFailEveryCallOfExtract(t *testing.T) {
	t.Parallel()
	part.Need(t, "strace", "rsync")
	s := newService(t)
	c := newClient(t, s)
	dir, tree := grove(t)
	c.ok("create", "-C", dir, "s", "tree")
	runs, ends := 0, map[int]int{}
	eachCall(t, 5, []string{"openat", "read", "pwrite64", "pread64", "renameat", "newfstatat", "mkdirat", "linkat", "write", "fstat", "utimensat", "unlinkat", "fchmod", "getdents64", "symlinkat", "close"}, func(call, errno string, n int) bool {
		runs++
		out := filepath.Join(scratch(t), "out")
		extract := []string{"extract", "s", "--target", out}
		r := inject(t, c.env, call, errno, n, holdfast, extract...)
		about := fmt.Sprintf("%s %d fails with %s (%q, %q): exit %d\n%s%s", call, n, errno, r.disk, r.other, r.code, r.stdout, r.stderr)
		if len(r.other) == 0 && len(r.disk) > 0 {
			ends[r.code]++
			switch {
			case r.code != 0 && r.code != 1 && r.code != 3:
				t.Errorf("%s", about)
			case r.code != 0 && !r.said():
				t.Errorf("the cause is not named: %s", about)
			}
			if strings.Contains(r.stderr, "goroutine ") {
				t.Errorf("a stack trace: %s", about)
			}
		}
		if r.code != 0 {
			noneWrong(t, tree, filepath.Join(out, "tree"), about)
			// One that had done all before the call that failed leaves nothing to go on with.
			if o := c.run(extract...); o.code != 0 && !strings.Contains(o.stderr, "it is not empty") {
				t.Errorf("the next run: exit %d\n%s\nafter: %s", o.code, o.stderr, about)
				return true
			}
		}
		if same(t, tree, filepath.Join(out, "tree")); t.Failed() {
			t.Logf("after: %s", about)
		}
		os.RemoveAll(out)
		return len(r.disk)+len(r.other) > 0
	})
	t.Logf("%d runs, by exit code %v", runs, ends)
	if part.Heavy() && (ends[0] == 0 || ends[1]+ends[3] == 0) {
		t.Errorf("extract ended in these ways: %v", ends)
	}
}

// noneWrong fails t if a file of got has another content than the file of that name in want.
func noneWrong(t testing.TB, want, got, about string) {
	t.Helper()
	err := filepath.WalkDir(want, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(want, p)
		if err != nil {
			return err
		}
		right, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		is, err := os.ReadFile(filepath.Join(got, rel))
		if err == nil && !bytes.Equal(right, is) {
			t.Errorf("%s came back with another content, %d bytes of %d, after: %s", rel, len(is), len(right), about)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFailEveryCallOfInitAndRecover makes one call on the disk after another fail while a service is made, and while one
// is brought back. Either says so and can be done again in the same place, or the directory that it made is whole;
// a directory that is not holds no service.
func TestFailEveryCallOfInitAndRecover(t *testing.T) {
	t.Parallel()
	part.Need(t, "strace")
	s := newService(t)
	dir, tree := grove(t)
	c := newClient(t, s)
	c.ok("create", "-C", dir, "s", "tree")
	s.stop()
	kept := filepath.Join(dir, "identity")
	copyTree(t, filepath.Join(s.data, "identity"), kept)
	for _, what := range []string{"init", "recover"} {
		ends := map[int]int{}
		eachCall(t, 1, []string{"openat", "pread64", "fsync", "read", "write", "flock", "renameat", "linkat", "fdatasync", "getdents64", "mkdirat", "newfstatat", "unlinkat", "sync_file_range"}, func(call, errno string, n int) bool {
			place := scratch(t)
			defer os.RemoveAll(place)
			data := filepath.Join(place, "data")
			args := []string{what, "--data", data, "--identity", kept}
			if what == "init" {
				args = []string{what, "--data", data, "--bucket", "file://" + filepath.Join(place, "bucket"), "--address", "localhost:7440"}
			}
			r := inject(t, s.place.environ(), call, errno, n, holdfastd, args...)
			about := fmt.Sprintf("%s: %s %d fails with %s (%q, %q): exit %d\n%s%s", what, call, n, errno, r.disk, r.other, r.code, r.stdout, r.stderr)
			if len(r.other) == 0 && len(r.disk) > 0 {
				ends[r.code]++
				switch {
				case r.code != 0 && r.code != 1 && r.code != never.ExitStatus:
					t.Errorf("%s", about)
				case r.code != 0 && !r.said():
					t.Errorf("the cause is not named: %s", about)
				}
				if strings.Contains(r.stderr, "goroutine ") && r.code != never.ExitStatus {
					t.Errorf("a stack trace: %s", about)
				}
			}
			if _, err := os.Stat(filepath.Join(data, "identity")); err != nil {
				if r.code == 0 {
					t.Errorf("there is no service: %s", about)
				}
				if o, code := s.try("serve", "--data", data); code == 0 || !strings.Contains(o.stderr, "holds no service") {
					t.Errorf("serve says: %d %s\nafter: %s", code, o.stderr, about)
				}
				if o, code := s.try(args...); code != 0 {
					t.Errorf("the next run: exit %d\n%s\nafter: %s", code, o.stderr, about)
					return true
				}
			} else if r.code != 0 {
				t.Errorf("it failed and there is a service: %s", about)
			}
			if o, code := s.try("check", "--data", data); code != 0 {
				t.Errorf("check: exit %d\n%s%s\nafter: %s", code, o.stdout, o.stderr, about)
			}
			return len(r.disk)+len(r.other) > 0
		})
		t.Logf("%s: by exit code %v", what, ends)
		if part.Heavy() && (ends[0] == 0 || ends[1] == 0 || ends[never.ExitStatus] == 0) {
			t.Errorf("%s ended in these ways: %v", what, ends)
		}
	}
	s.data = filepath.Join(scratch(t), "data")
	s.admin("recover", "--identity", kept, "--data", s.data)
	s.start()
	c.ok("extract", "s", "--target", filepath.Join(dir, "out"))
	same(t, tree, filepath.Join(dir, "out", "tree"))
}

// TestFailEveryCallOfServe makes one call on the disk after another fail in a service, of its data directory or of its
// bucket's directory, from its start until it is told to end, while a client backs up. It goes on, or ends and says
// why: by an event that must never happen, or before it is ready. When the disk is sound again and, after an event, a
// person has done as told, everything that was acknowledged is there, and what was not is made.
func TestFailEveryCallOfServe(t *testing.T) {
	t.Parallel()
	part.Need(t, "strace", "rsync")
	s := newService(t)
	c := newClient(t, s)
	dir, tree := grove(t)
	c.ok("create", "-C", dir, "before", "tree")
	s.stop()
	runs, made, ends := 0, map[string]string{}, map[string]int{}
	eachCall(t, 1, []string{"openat", "pread64", "fsync", "fdatasync", "write", "sync_file_range", "renameat", "newfstatat", "mkdirat", "read", "unlinkat", "getdents64", "pwrite64"}, func(call, errno string, n int) bool {
		runs++
		changed := filepath.Join(tree, "some", "2")
		writeText(t, changed, uint64(500+runs), 4000+runs)
		content, err := os.ReadFile(changed)
		if err != nil {
			t.Fatal(err)
		}
		var r injected
		cmd, log := injecting(t, call, errno, n, holdfastd, "serve", "--data", s.data)
		said := &tail{}
		cmd.Env, cmd.Stderr = s.place.environ(), said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { defer close(ended); cmd.Wait() }()
		gone := func() bool {
			select {
			case <-ended:
				return true
			default:
				return false
			}
		}
		s.until("it is ready or has ended", func() bool { return gone() || strings.Contains(said.String(), "ready") })
		create := []string{"--patience", "5s", "create", "-C", dir, fmt.Sprint("series-", runs), "tree"}
		if !gone() {
			if c.run(create...).code == 0 {
				made[fmt.Sprint("series-", runs)] = string(content)
			}
		}
		if !gone() { // strace's only child is the service
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			var pid int
			fmt.Sscan(string(raw), &pid)
			if pid > 1 {
				syscall.Kill(pid, syscall.SIGTERM)
			}
		}
		<-ended
		r.code, r.stderr = cmd.ProcessState.ExitCode(), said.String()
		r.read(t, log)
		about := fmt.Sprintf("%s %d fails with %s (%.2000q, %.2000q): exit %d\n%s", call, n, errno, r.disk, r.other, r.code, r.stderr)
		if len(r.other) == 0 && len(r.disk) > 0 {
			how := fmt.Sprint(r.code)
			if strings.Contains(r.stderr, "ready") {
				how = "ready, then " + how
			}
			ends[how]++
			if r.code != 0 && r.code != 1 && r.code != never.ExitStatus || r.code != 0 && !r.said() {
				t.Errorf("it does not end as it should: %s", about)
			}
		}
		if w := s.why(); w.Stopped != nil {
			if strings.Contains(w.Stopped.Todo, "holdfastd rebuild") {
				s.admin("rebuild", "--data", s.data)
			}
			s.admin("resume", "--data", s.data, "--id", w.Stopped.ID, "--reason", "the disk is sound")
		} else if r.code == never.ExitStatus {
			t.Errorf("no event is recorded: %s", about)
		}
		s.start()
		if _, ok := made[fmt.Sprint("series-", runs)]; !ok {
			made[fmt.Sprint("series-", runs)] = string(content)
			c.ok(create...)
		}
		out := filepath.Join(dir, "out")
		c.ok("extract", fmt.Sprint("series-", runs), "--target", out)
		if same(t, tree, filepath.Join(out, "tree")); t.Failed() {
			t.Logf("after: %s", about)
		}
		os.RemoveAll(out)
		s.stop()
		return len(r.disk)+len(r.other) > 0
	})
	t.Logf("%d runs ended in these ways: %v", runs, ends)
	if part.Heavy() && (ends["1"] == 0 || ends["5"] == 0 || ends["ready, then 0"] == 0) {
		t.Error("that is not all")
	}
	s.admin("check", "--data", s.data)
	s.start()
	for series, content := range made {
		out := filepath.Join(dir, "out-"+series)
		c.ok("extract", series, "--target", out)
		if got, err := os.ReadFile(filepath.Join(out, "tree", "some", "2")); err != nil || string(got) != content {
			t.Errorf("%s came back with other contents: %v", series, err)
		}
	}
	s.clean()
}

// resize gives a small file system of tmpfs another size.
func resize(t testing.TB, dir string, size int64) {
	t.Helper()
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
}

// TestFullDiskAtEveryPage has the client meet a full disk after one page, two, three, ... of its cache and of what it
// restores. It says that there is no room; what it left is of no harm to the next run, which has room.
func TestFullDiskAtEveryPage(t *testing.T) {
	t.Parallel()
	part.Need(t, part.Root, "rsync")
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 61, 150)
	next := func(pages int64) int64 {
		if part.Heavy() {
			return pages + 1 + pages/10
		}
		return 1 + pages*4
	}
	full := 0
	for pages := int64(1); ; pages = next(pages) {
		disk := tmpfs(t, pages*4096)
		env := append(slices.Clone(c.env), "XDG_CACHE_HOME="+disk)
		writeText(t, filepath.Join(tree, "000", "file-00001"), uint64(pages), 3000)
		args := []string{"create", "-C", dir, "s", "tree"}
		first := execute(t, env, holdfast, args...)
		said := strings.Contains(first.stderr, "no space left")
		if first.code != 0 && first.code != 1 || first.code == 1 && !said {
			t.Errorf("create with a cache of %d pages: exit %d\n%s%s", pages, first.code, first.stdout, first.stderr)
		}
		if said {
			full++
		}
		resize(t, disk, 64<<20)
		if o := execute(t, env, holdfast, args...); o.code != 0 {
			t.Errorf("create after a cache of %d pages: exit %d\n%s%s", pages, o.code, o.stdout, o.stderr)
		}
		out := filepath.Join(dir, fmt.Sprint("out-", pages))
		c.ok("extract", "s", "--target", out)
		if same(t, tree, filepath.Join(out, "tree")); t.Failed() {
			t.Fatalf("after a cache of %d pages: exit %d\n%s", pages, first.code, first.stderr)
		}
		os.RemoveAll(out)
		if first.code == 0 && !said {
			break
		}
	}
	if full == 0 {
		t.Error("the cache was never full")
	}
	t.Logf("the cache was full %d times", full)
	full = 0
	for pages := int64(1); ; pages = next(pages) {
		disk := tmpfs(t, pages*4096)
		args := []string{"extract", "s", "--target", filepath.Join(disk, "out")}
		first := c.run(args...)
		if first.code == 0 {
			same(t, tree, filepath.Join(disk, "out", "tree"))
			break
		}
		full++
		if !strings.Contains(first.stderr, "no space left") && !strings.Contains(first.stderr, "room") {
			t.Errorf("extract into %d pages: exit %d\n%s", pages, first.code, first.stderr)
		}
		noneWrong(t, tree, filepath.Join(disk, "out", "tree"), fmt.Sprintf("%d pages: %s", pages, first.stderr))
		resize(t, disk, 64<<20)
		c.ok(args...)
		if same(t, tree, filepath.Join(disk, "out", "tree")); t.Failed() {
			t.Fatalf("after %d pages: exit %d\n%s", pages, first.code, first.stderr)
		}
	}
	t.Logf("the target was full %d times", full)
	if full < 3 {
		t.Error("the target was seldom full")
	}
}
