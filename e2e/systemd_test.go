//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/part"
	"holdfast/internal/s3server"
)

// supervisor listens in place of systemd and returns the messages that it is sent.
func supervisor(t *testing.T) <-chan string {
	t.Helper()
	path := filepath.Join(scratch(t), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 1000)
	ended := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-ended })
	go func() {
		defer close(ended)
		defer close(told)
		for b := make([]byte, 4096); ; {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			told <- string(b[:n])
		}
	}()
	t.Setenv("NOTIFY_SOCKET", path)
	return told
}

// heard waits for a message that contains text and returns those before it.
func heard(t *testing.T, told <-chan string, text string) (before []string) {
	t.Helper()
	for {
		select {
		case m := <-told:
			if strings.Contains(m, text) {
				return before
			}
			before = append(before, m)
		case <-time.After(time.Minute):
			t.Fatalf("systemd was not told %q, but %q", text, before)
		}
	}
}

// TestSystemdIsTold runs the service as systemd does: it asks for time while it replays, says ready when it serves, feeds
// the watchdog, also while its bucket is away, and says that it ends.
func TestSystemdIsTold(t *testing.T) {
	told := supervisor(t)
	t.Setenv("WATCHDOG_USEC", "400000") // a beat each 100 ms
	s := newService(t)
	if before := heard(t, told, "READY=1\nSTATUS=serving at "+s.address); slices.ContainsFunc(before, func(m string) bool { return strings.HasPrefix(m, "WATCHDOG") }) {
		t.Errorf("before it is ready the service says %q", before)
	}
	c := newClient(t, s)
	dir := scratch(t)
	write(t, filepath.Join(dir, "a", "file"), "content")
	c.ok("create", "-C", dir, "one", "a")
	heard(t, told, "WATCHDOG=1")

	back := s.away()
	for range 10 { // of which some began after that
		heard(t, told, "WATCHDOG=1")
	}
	back()

	s.stop()
	if before := heard(t, told, "STOPPING=1\nSTATUS=ending: told to end"); slices.ContainsFunc(before, func(m string) bool { return strings.HasPrefix(m, "READY") }) {
		t.Errorf("systemd was told %q", before)
	}
	if err := os.RemoveAll(filepath.Join(s.data, "view")); err != nil {
		t.Fatal(err)
	}
	s.start()
	before := heard(t, told, "READY=1")
	if !slices.ContainsFunc(before, func(m string) bool {
		return strings.HasPrefix(m, "EXTEND_TIMEOUT_USEC=300000000\nSTATUS=replaying the journal: segment 1 of ")
	}) {
		t.Errorf("while it replays the service says %q", before)
	}
}

// allowed returns the system calls that the unit allows.
func allowed(t *testing.T) map[string]bool {
	t.Helper()
	out, err := exec.Command("systemd-analyze", "syscall-filter").Output()
	if err != nil {
		t.Fatal(err)
	}
	sets := map[string][]string{}
	set := ""
	for line := range strings.Lines(string(out)) {
		word := strings.TrimSpace(line)
		switch {
		case word == "" || strings.HasPrefix(word, "#"):
		case !strings.HasPrefix(line, " "):
			set = word
		default:
			sets[set] = append(sets[set], word)
		}
	}
	var expand func(word string, each func(call string))
	expand = func(word string, each func(string)) {
		if !strings.HasPrefix(word, "@") {
			each(word)
			return
		}
		if len(sets[word]) == 0 {
			t.Fatalf("systemd knows no set %s of system calls", word)
		}
		for _, w := range sets[word] {
			expand(w, each)
		}
	}
	may := map[string]bool{}
	raw, err := os.ReadFile("../packaging/holdfastd.service")
	if err != nil {
		t.Fatal(err)
	}
	expand("@default", func(call string) { may[call] = true })
	for line := range strings.Lines(string(raw)) {
		words, ok := strings.CutPrefix(strings.TrimSpace(line), "SystemCallFilter=")
		if !ok {
			continue
		}
		words, remove := strings.CutPrefix(words, "~")
		for _, w := range strings.Fields(words) {
			expand(w, func(call string) {
				if remove {
					delete(may, call)
				} else {
					may[call] = true
				}
			})
		}
	}
	expand("@default", func(call string) { may[call] = true })
	if len(may) < 100 || may["mount"] || may["chown"] {
		t.Fatalf("the unit allows %d calls", len(may))
	}
	return may
}

// TestUnitAllowsWhatIsDone watches every system call of a service that starts, serves backups and restores, is asked how it
// is, ends, and replays its journal: the unit allows each of them, and every family of sockets.
func TestUnitAllowsWhatIsDone(t *testing.T) {
	part.Need(t, "strace", "systemd-analyze")
	may := allowed(t)
	t.Run("directory", func(t *testing.T) { watched(t, directory(t), may) })
	t.Run("s3", func(t *testing.T) { watched(t, onS3(t, s3server.Kinds[0]), may) })
}

func watched(t *testing.T, p place, may map[string]bool) {
	told := supervisor(t)
	go func() {
		for range told {
		}
	}()
	t.Setenv("WATCHDOG_USEC", "400000")
	s := newServiceAt(t, p, nil)
	c := newClient(t, s)
	s.stop()
	dir := scratch(t)
	write(t, filepath.Join(dir, "a", "small"), "content")
	writeNoise(t, filepath.Join(dir, "a", "large"), 1, 8<<20)
	log := filepath.Join(scratch(t), "calls")
	for round := range 2 {
		if err := os.RemoveAll(filepath.Join(s.data, "view")); err != nil {
			t.Fatal(err)
		}
		strace, err := exec.LookPath("strace")
		if err != nil {
			t.Fatal(err)
		}
		run := launch(t, p.environ(), 0, strace, "-f", "-qq", "-A", "-o", log, "-e", "signal=none", holdfastd, "serve", "--data", s.data)
		for !strings.Contains(s.mayFail("status", "--data", s.data), "serving at") && !zombie(run.cmd.Process.Pid) {
			time.Sleep(20 * time.Millisecond)
		}
		pid := tracee(t, run) // not before: strace tries itself out on other children
		name := fmt.Sprint("round", round)
		c.ok("create", "-C", dir, name, "a")
		c.ok("extract", name, "--target", filepath.Join(dir, "out-"+name))
		s.admin("notice", "--data", s.data, "Hello.")
		s.admin("sweep", "--data", s.data)
		syscall.Kill(pid, syscall.SIGTERM)
		if o := run.wait(); o.code != 0 {
			t.Fatalf("exit %d\n%s", o.code, o.stderr)
		}
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	calls, families := map[string]bool{}, map[string]bool{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		_, line, _ := strings.Cut(sc.Text(), " ") // the process
		line = strings.TrimLeft(line, " ")
		if strings.HasPrefix(line, "<") || strings.HasPrefix(line, "+") || strings.HasPrefix(line, "-") {
			continue
		}
		call, rest, ok := strings.Cut(line, "(")
		if !ok || call == "???" { // which strace says where the process ended before it could look what a thread calls
			continue
		}
		calls[call] = true
		if call == "socket" {
			family, _, _ := strings.Cut(rest, ",")
			families[family] = true
		}
	}
	for _, must := range []string{"accept4", "fsync", "openat"} {
		if !calls[must] {
			t.Errorf("the service made no call of %s: was it watched?", must)
		}
	}
	for call := range calls {
		if !may[call] {
			t.Errorf("the service calls %s, which the unit does not allow", call)
		}
	}
	raw, err := os.ReadFile("../packaging/holdfastd.service")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(raw), "\nRestrictAddressFamilies=")
	text, _, _ = strings.Cut(text, "\n")
	for f := range families {
		if !slices.Contains(strings.Fields(text), f) {
			t.Errorf("the service makes sockets of %s, which the unit does not allow", f)
		}
	}
	t.Logf("%d system calls, sockets of %v", len(calls), families)
}

// mayFail runs holdfastd and returns its standard output, whatever comes of it.
func (s *service) mayFail(args ...string) string {
	o, _ := s.try(args...)
	return o.stdout
}

// tracee returns the only child of a program, once there is one.
func tracee(t *testing.T, p *process) int {
	t.Helper()
	parent := p.cmd.Process.Pid
	for !zombie(parent) {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
		if n, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil {
			return n
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("strace started nothing")
	return 0
}
