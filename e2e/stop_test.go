//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/part"
	"holdfast/service/room"
)

// tmpfs returns the root of a fresh file system of so many bytes.
func tmpfs(t testing.TB, size int64) string {
	t.Helper()
	dir := scratch(t)
	part.SmallDisk(t, dir, size)
	return dir
}

// serviceWith makes a cell with its data directory and its bucket there, and does not start it.
func serviceWith(t testing.TB, data string, p place) *service {
	t.Helper()
	s := &service{t: t, data: data, place: p, bucket: p.dir, address: freeAddress(t)}
	s.admin("init", "--data", s.data, "--bucket", p.url, "--address", s.address)
	t.Cleanup(func() {
		s.kill()
		if t.Failed() && s.log != nil {
			t.Logf("holdfastd wrote:\n%s", s.log)
		}
	})
	return s
}

// fillUp writes a file until the disk is full to its last byte.
func fillUp(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// fillUpDuring does so while a program that is under way, and has written n bytes, is paused: it has more to do on the full disk.
func fillUpDuring(t testing.TB, p *process, n int64, path string) {
	t.Helper()
	waitFor(t, p, bytesWritten, n)
	p.cmd.Process.Signal(syscall.SIGSTOP)
	if zombie(p.cmd.Process.Pid) {
		t.Fatalf("%s has ended before the disk could be filled", strings.Join(p.args, " "))
	}
	fillUp(t, path)
	p.cmd.Process.Signal(syscall.SIGCONT)
}

// ends waits for the end of the service and returns its exit status.
func (s *service) ends() int {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(3 * time.Minute):
		s.t.Fatalf("the service did not end:\n%s", s.log)
	}
	code := s.cmd.ProcessState.ExitCode()
	s.cmd = nil
	return code
}

// attach has strace do what args say to the running service, to all of its threads.
func (s *service) attach(args ...string) {
	s.t.Helper()
	part.Need(s.t, "strace")
	said := &tail{}
	cmd := exec.Command("strace", append([]string{"-f", "-p", fmt.Sprint(s.cmd.Process.Pid), "-o", os.DevNull}, args...)...)
	cmd.Stderr = said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	s.until("strace is attached", func() bool {
		select {
		case <-ended:
			s.t.Fatalf("strace: %s", said)
		default:
		}
		return strings.Contains(said.String(), "attached")
	})
}

// until returns when is says yes.
func (s *service) until(what string, is func() bool) {
	s.t.Helper()
	for began := time.Now(); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 2*time.Minute {
			s.t.Fatalf("waited for two minutes, and not: %s\n%s", what, s.log)
		}
	}
}

// stopped is what holdfastd why says for programs.
type stopped struct {
	Stopped *struct{ ID, What, Where, Invariant, Todo, Version, Stack string }
	Disk    []struct{ Used, Size int64 }
	Files   []struct {
		Path  string
		Bytes int64
		Cost  string
	} `json:"deletable"`
}

func (s *service) why() (w stopped) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.admin("why", "--data", s.data, "--json")), &w); err != nil {
		s.t.Fatal(err)
	}
	return w
}

// stops waits until an event that must never happen has ended the service, and checks that it is as it should be: its
// status is one after which systemd does not start it again, its record says the same in both forms and names what
// happened, and no start serves.
func (s *service) stops(what string) stopped {
	s.t.Helper()
	if code := s.ends(); code != 5 {
		s.t.Fatalf("the service ended with %d:\n%s", code, s.log)
	}
	unit, err := os.ReadFile("../packaging/holdfastd.service")
	if err != nil {
		s.t.Fatal(err)
	}
	if m := regexp.MustCompile(`(?m)^RestartPreventExitStatus=(.*)$`).FindSubmatch(unit); m == nil || !strings.Contains(" "+string(m[1])+" ", " 5 ") {
		s.t.Error("systemd would start it again")
	}
	w := s.why()
	if w.Stopped == nil {
		s.t.Fatalf("nothing is recorded:\n%s", s.log)
	}
	said := s.admin("why", "--data", s.data)
	for name, part := range map[string]string{
		"id": w.Stopped.ID, "what": w.Stopped.What, "where": w.Stopped.Where, "invariant": w.Stopped.Invariant, "what to do": w.Stopped.Todo,
	} {
		if part == "" || !strings.Contains(said, part) || !strings.Contains(s.log.String(), part) {
			s.t.Errorf("the %s, %q, is not in what why says or the log has:\n%s\n%s", name, part, said, s.log)
		}
	}
	if !strings.Contains(w.Stopped.What, what) || w.Stopped.Version == "" || !strings.Contains(w.Stopped.Stack, "never.Happened") {
		s.t.Errorf("recorded: %+v", w.Stopped)
	}
	if o, code := s.try("serve", "--data", s.data); code != 5 || !strings.Contains(o.stderr, w.Stopped.ID) || strings.Contains(o.stderr, "ready") {
		s.t.Errorf("a start ended with %d:\n%s", code, o.stderr)
	}
	return w
}

// TestScenarioR5FullDisk: the disk of the data directory becomes full in the middle of a backup, and nothing has warned of
// it. The service stops at once and stays stopped; why reads the record on the full disk and names what can go; after a
// resumption without room it stops again, with room it serves; no archive is lost, and the backup comes to its end.
func TestScenarioR5FullDisk(t *testing.T) {
	t.Parallel()
	part.Need(t, "strace")
	disk := tmpfs(t, 128<<20)
	s := serviceWith(t, filepath.Join(disk, "data"), directory(t))
	s.start()
	// The start has seen how full the disk is, and from now on nobody does.
	s.attach("-e", "trace=statfs", "-e", "inject=statfs:error=EIO")
	c, dir := newClient(t, s), scratch(t)
	smallTree(t, dir, "first", 51, 200)
	writeNoise(t, filepath.Join(dir, "second"), 52, 40<<20)
	c.ok("create", "-C", dir, "one", "first")
	run := c.begin("create", "-C", dir, "two", "second")
	filler := filepath.Join(s.data, "filler")
	fillUpDuring(t, run, 10<<20, filler)
	w := s.stops("no space left on device")

	if len(w.Disk) == 0 || w.Disk[0].Used != w.Disk[0].Size {
		t.Errorf("the disk is not full: %+v", w.Disk)
	}
	var order []string
	for _, f := range w.Files {
		order = append(order, filepath.Base(f.Path))
		if f.Bytes <= 0 || f.Cost == "" {
			t.Errorf("may be deleted: %+v", f)
		}
	}
	if got := strings.Join(order, " "); got != "ballast requests view filler" {
		t.Errorf("what may be deleted, in order: %s", got)
	}

	// Resumed with the cause still there, it stops again.
	if o, code := s.try("resume", "--data", s.data, "--id", "bako-tiru", "--reason", "x"); code != 1 || !strings.Contains(o.stderr, w.Stopped.ID) {
		t.Errorf("a wrong id: exit %d\n%s", code, o.stderr)
	}
	s.admin("resume", "--data", s.data, "--id", w.Stopped.ID, "--reason", "perhaps it is better now")
	if o, code := s.try("serve", "--data", s.data); code != 5 {
		t.Errorf("a start on the full disk ended with %d:\n%s", code, o.stderr)
	}
	again := s.why()
	if again.Stopped == nil || again.Stopped.ID == w.Stopped.ID {
		t.Fatalf("after a start on the full disk: %+v", again.Stopped)
	}

	for _, f := range []string{filler, filepath.Join(s.data, room.BallastName)} {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	s.admin("resume", "--data", s.data, "--id", again.Stopped.ID, "--reason", "a large file was in the way, and is gone")
	if said := s.admin("why", "--data", s.data, "--all"); !strings.Contains(said, "perhaps it is better now") || !strings.Contains(said, "a large file was in the way") {
		t.Errorf("the stops and resumptions:\n%s", said)
	}
	s.start()
	if _, err := os.Stat(filepath.Join(s.data, room.BallastName)); err != nil {
		t.Errorf("with room again there is no ballast: %v", err)
	}
	s.whole(c, run, dir)
}

// whole checks that the backup of dir/second that was under way ends well, and that it and the archive before it can
// be had back.
func (s *service) whole(c *client, run *process, dir string) {
	s.t.Helper()
	if o := run.wait(); o.code != 0 {
		s.t.Fatalf("the backup that was under way: exit %d\n%s", o.code, o.stderr)
	}
	out := filepath.Join(dir, "out")
	c.ok("extract", "one", "--target", filepath.Join(out, "one"))
	c.ok("extract", "two", "--target", filepath.Join(out, "two"))
	same(s.t, filepath.Join(dir, "first"), filepath.Join(out, "one", "first"))
	sameFile(s.t, filepath.Join(dir, "second"), filepath.Join(out, "two", "second"))
	if n := commits(s.t, s); n != 2 {
		s.t.Errorf("the journal holds %d archives", n)
	}
	s.clean()
}

// sameFile compares two files byte for byte.
func sameFile(t testing.TB, want, got string) {
	t.Helper()
	if out, err := exec.Command("cmp", want, got).CombinedOutput(); err != nil {
		t.Errorf("cmp: %v\n%s", err, out)
	}
}

// TestScenarioR5IOError: the disk of the view fails, in the middle of a backup or when the service ends. It stops;
// the view is made anew, and nothing is lost.
func TestScenarioR5IOError(t *testing.T) {
	t.Parallel()
	for what, calls := range map[string]string{"write": "write,pwrite64", "sync": "fsync,fdatasync"} {
		t.Run(what, func(t *testing.T) {
			part.Need(t, "strace")
			s := serviceWith(t, filepath.Join(scratch(t), "data"), directory(t))
			s.start()
			c, dir := newClient(t, s), scratch(t)
			smallTree(t, dir, "first", 53, 200)
			writeNoise(t, filepath.Join(dir, "second"), 54, 40<<20)
			c.ok("create", "-C", dir, "one", "first")
			files, err := filepath.Glob(filepath.Join(s.data, "view", "*.log"))
			if err != nil || len(files) == 0 {
				t.Fatalf("the view has no log: %v", err)
			}
			args := []string{"-e", "trace=" + calls, "-e", "inject=" + calls + ":error=EIO"}
			for _, f := range files {
				args = append(args, "-P", f)
			}
			s.attach(args...)
			run := c.begin("create", "-C", dir, "two", "second")
			if what == "sync" { // the log is synced at the end only
				waitFor(t, run, bytesWritten, 10<<20)
				s.cmd.Process.Signal(syscall.SIGTERM)
			}
			w := s.stops("input/output error")
			if !strings.Contains(w.Stopped.Todo, "holdfastd rebuild") {
				t.Errorf("what to do: %s", w.Stopped.Todo)
			}
			s.admin("rebuild", "--data", s.data)
			s.admin("resume", "--data", s.data, "--id", w.Stopped.ID, "--reason", "the disk was replaced, and the view made anew")
			s.start()
			s.whole(c, run, dir)
		})
	}
}

// limited puts the running service into a group of its own whose memory is limited, and returns a function that
// says how often the kernel killed somebody there; nil if nobody may do that here.
func (s *service) limited(bytes int64) (kills func() string) {
	s.t.Helper()
	part.Need(s.t, part.Root)
	name := fmt.Sprintf("holdfast-test-%d", s.cmd.Process.Pid)
	for _, v := range []struct{ root, limit, events string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.oom_control"},
		{"/sys/fs/cgroup", "memory.max", "memory.events"},
	} {
		dir := filepath.Join(v.root, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		s.t.Cleanup(func() { os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, v.limit), fmt.Append(nil, bytes), 0) != nil {
			os.Remove(dir)
			continue
		}
		os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0)
		os.WriteFile(filepath.Join(dir, "memory.swappiness"), []byte("0"), 0)
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, s.cmd.Process.Pid), 0); err != nil {
			s.t.Fatal(err)
		}
		return func() string {
			raw, err := os.ReadFile(filepath.Join(dir, v.events))
			if err != nil {
				s.t.Fatal(err)
			}
			return string(raw)
		}
	}
	s.t.Log("nobody may limit memory here: the test does what the kernel would do")
	return nil
}

// TestScenarioR5OutOfMemory: the kernel kills the service under load, because it may not have the memory. That is no
// event: the next start goes on, and nothing is lost.
func TestScenarioR5OutOfMemory(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c, dir := newClient(t, s), scratch(t)
	smallTree(t, dir, "first", 55, 200)
	writeNoise(t, filepath.Join(dir, "second"), 56, 60<<20)
	c.ok("create", "-C", dir, "one", "first")
	kills := s.limited(24 << 20)
	run := c.begin("create", "-C", dir, "two", "second")
	if kills == nil {
		waitFor(t, run, bytesWritten, 20<<20)
		s.cmd.Process.Kill()
		kills = func() string { return "oom_kill 1" }
	}
	if code := s.ends(); code != -1 || !regexp.MustCompile(`(?m)^oom_kill [1-9]`).MatchString(kills()) {
		t.Fatalf("the service ended with %d, and the kernel counts\n%s", code, kills())
	}
	if w := s.why(); w.Stopped != nil {
		t.Errorf("recorded: %+v", w.Stopped)
	}
	s.start()
	s.whole(c, run, dir)
}

// status returns what holdfastd status says for programs.
func (s *service) status() (st struct {
	State    string
	ReadOnly string `json:"read_only"`
	Trouble  *struct{ Cause string }
	Room     []struct {
		What, Unit string
		Percent    int64
	}
}) {
	s.t.Helper()
	o, _ := s.try("status", "--data", s.data, "--json")
	if err := json.Unmarshal([]byte(o.stdout), &st); err != nil {
		s.t.Fatalf("%v\n%s", err, o.stderr)
	}
	return st
}

// fillTo makes the file at path as large as it takes for its disk to be that full, percent.
func fillTo(t testing.TB, path string, percent int64) {
	t.Helper()
	var st syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := int64(st.Blocks)*st.Bsize*percent/100 - int64(st.Blocks-st.Bfree)*st.Bsize
	if _, err := f.Write(make([]byte, max(0, n))); err != nil {
		t.Fatal(err)
	}
}

// TestFullBucketDisk: the disk of a bucket in a directory fills up. New backups are refused, then blocks; at the last byte
// storing fails. Nothing of it is an event: reading and deleting go on as long as a record can be written, clients are told, and with
// room again everything goes on without a hand.
func TestFullBucketDisk(t *testing.T) {
	t.Parallel()
	disk := tmpfs(t, 160<<20)
	s := serviceWith(t, filepath.Join(scratch(t), "data"), inDirectory(filepath.Join(disk, "bucket")))
	s.start()
	c, dir := newClient(t, s), scratch(t)
	smallTree(t, dir, "first", 57, 200)
	writeNoise(t, filepath.Join(dir, "second"), 58, 40<<20)
	for i := range 3 {
		write(t, filepath.Join(dir, "first", "changed"), fmt.Sprint(i))
		c.ok("create", "-C", dir, "one", "first")
	}
	oldest := c.archives()[0].Archive
	filler := filepath.Join(disk, "filler")
	is := func(state string, also func() bool) {
		t.Helper()
		s.until("the service is "+state, func() bool { return s.status().State == state && also() })
	}
	yes := func() bool { return true }

	for _, percent := range []int64{91, 96} {
		fillTo(t, filler, percent)
		is("read_only", func() bool {
			ro := s.status().ReadOnly
			return strings.Contains(ro, "disk of the bucket is "+fmt.Sprint(percent)) && strings.Contains(ro, "blocks") == (percent == 96)
		})
		o := c.exits(5, "create", "-C", dir, "--patience", "1s", "two", "second")
		if !strings.Contains(o.stderr, "short of room") {
			t.Errorf("at %d %% the client says:\n%s", percent, o.stderr)
		}
		c.ok("verify", "one")
		c.ok("delete", oldest)
		c.ok("undelete", oldest)
	}

	// A backup is under way when the last byte is used.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	is("serving", yes)
	s.attach("-e", "trace=statfs", "-e", "inject=statfs:error=EIO") // or it looks before it stores, and refuses in time
	run := c.begin("create", "-C", dir, "two", "second")
	fillUpDuring(t, run, 10<<20, filler)
	is("backend_down", func() bool { return strings.Contains(s.status().Trouble.Cause, "no space left on device") })
	c.ok("verify", "one")
	if w := s.why(); w.Stopped != nil {
		t.Errorf("a full bucket has stopped it: %+v", w.Stopped)
	}
	pid := s.cmd.Process.Pid
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if o := run.wait(); o.code != 0 {
		t.Fatalf("the backup that was under way: exit %d\n%s", o.code, o.stderr)
	}
	is("serving", yes)
	if s.cmd.Process.Pid != pid || zombie(pid) {
		t.Error("the service is another process")
	}
	out := filepath.Join(dir, "out")
	c.ok("extract", "two", "--target", filepath.Join(out, "two"))
	c.ok("extract", "one", "--target", filepath.Join(out, "one"))
	sameFile(t, filepath.Join(dir, "second"), filepath.Join(out, "two", "second"))
	same(t, filepath.Join(dir, "first"), filepath.Join(out, "one", "first"))
	s.clean()
}
