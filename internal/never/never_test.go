package never

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/part"
)

// asProcess is the environment variable that makes this test binary a process that an event stops. It says how.
const asProcess = "HOLDFAST_NEVER_TEST"

func TestMain(m *testing.M) {
	if how := os.Getenv(asProcess); how != "" {
		run(how, os.Args[1])
		os.Exit(99)
	}
	os.Exit(m.Run())
}

var event = Event{
	What: "count of block 00ff is -1", Where: "view row b", Invariant: "A block's count is never below zero.", Todo: "Run holdfastd check.",
}

// run is a process in which an event happens.
func run(how, dir string) {
	r, err := Install(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(98)
	}
	defer fmt.Println("a deferred function ran")
	switch how {
	case "one":
	case "broken": // the record cannot be written
		r.f.Close()
		if r.f, err = os.Open(filepath.Join(dir, FileName)); err != nil {
			panic(err)
		}
	case "tell":
		r.Tell(os.NewFile(3, "socket"))
	case "many": // the others happen at the same time
		for i := range 50 {
			go Happened(Event{What: fmt.Sprint("event ", i)})
		}
		time.Sleep(time.Minute)
	case "busy": // others have work to do
		under := make(chan bool, 1000)
		for range 8 {
			go func() {
				for {
					fmt.Print("x")
					select {
					case under <- true:
					default:
					}
				}
			}()
		}
		for range cap(under) {
			<-under
		}
	}
	Happened(event)
}

// stopped runs a process that an event stops, and checks its status.
func stopped(t *testing.T, how, dir string, more ...*os.File) (stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], dir)
	cmd.Env = append(os.Environ(), asProcess+"="+how)
	cmd.ExtraFiles = more
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != ExitStatus {
		t.Fatalf("the process ended with %d, not %d:\n%s", code, ExitStatus, &err)
	}
	return out.String(), err.String()
}

// stands returns the one stop in dir, which must stand.
func stands(t *testing.T, dir string) Stop {
	t.Helper()
	all, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Resumed != nil {
		t.Fatalf("recorded: %+v", all)
	}
	return all[0]
}

func TestHappened(t *testing.T) {
	dir := t.TempDir()
	out, said := stopped(t, "one", dir)
	s := stands(t, dir)
	if s.What != event.What || s.Where != event.Where || s.Invariant != event.Invariant || s.Todo != event.Todo {
		t.Errorf("recorded: %+v", s)
	}
	if !strings.Contains(s.Stack, "never.run(") || s.Version == "" || s.Time.IsZero() {
		t.Errorf("recorded: %+v", s)
	}
	for _, part := range []string{s.ID, s.What, s.Where, s.Invariant, s.Todo, "holdfastd why --data " + dir, "never.run("} {
		if !strings.Contains(said, part) {
			t.Errorf("standard error lacks %q:\n%s", part, said)
		}
	}
	if strings.Contains(said, unwritten) || out != "" {
		t.Errorf("said: %s%s", out, said)
	}
}

// TestRecordThatCannotBeWritten: then standard error has all of it, and says so.
func TestRecordThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	_, said := stopped(t, "broken", dir)
	if !strings.Contains(said, event.What) || !strings.Contains(said, event.Todo) || !strings.Contains(said, unwritten) {
		t.Errorf("said: %s", said)
	}
	if all, err := Read(dir); err != nil || len(all) != 0 {
		t.Errorf("recorded: %+v, %v", all, err)
	}
}

// TestDiskFailsUnderTheRecord: likewise where the disk refuses to write or to sync it.
func TestDiskFailsUnderTheRecord(t *testing.T) {
	part.Need(t, "strace")
	for _, inject := range []string{"pwrite64:error=EIO", "pwrite64:error=ENOSPC", "fsync:error=EIO"} {
		dir := t.TempDir()
		install(t, dir).Uninstall() // the file is there
		cmd := exec.Command("strace", "-f", "-o", os.DevNull, "-e", "inject="+inject, os.Args[0], dir)
		cmd.Env = append(os.Environ(), asProcess+"=one")
		var said bytes.Buffer
		cmd.Stderr = &said
		cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != ExitStatus {
			t.Errorf("%s: the process ended with %d, not %d", inject, code, ExitStatus)
		}
		if !strings.Contains(said.String(), event.What) || !strings.Contains(said.String(), unwritten) {
			t.Errorf("%s: said: %s", inject, &said)
		}
		if _, err := Read(dir); err != nil {
			t.Errorf("%s: %v", inject, err)
		}
	}
}

// TestTwoAtOnce: one of them is recorded.
func TestTwoAtOnce(t *testing.T) {
	dir := t.TempDir()
	_, said := stopped(t, "many", dir)
	if s := stands(t, dir); !strings.Contains(said, s.ID) || strings.Count(said, "holdfastd why") != 1 {
		t.Errorf("recorded %s, said: %s", s.ID, said)
	}
}

// TestTell: the record goes to a socket as well, in one piece.
func TestTell(t *testing.T) {
	dir := t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	stopped(t, "tell", dir, w)
	w.Close()
	line, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var s Stop
	if err := json.Unmarshal(line, &s); err != nil || s.ID != stands(t, dir).ID {
		t.Errorf("told: %s, %v", line, err)
	}
}

// TestNothingGoesOn: while the record is being written, nobody else in the process does anything.
func TestNothingGoesOn(t *testing.T) {
	part.Need(t, "strace") // to make the disk slow
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-f", "-o", trace, "-e", "trace=write,fsync", "-e", "inject=fsync:delay_enter=500ms", os.Args[0], t.TempDir())
	cmd.Env = append(os.Environ(), asProcess+"=busy")
	cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != ExitStatus {
		t.Fatalf("the process ended with %d, not %d", code, ExitStatus)
	}
	f, err := os.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The file's own sync comes first, then its directory's, then that of the record.
	syncs, before, after := 0, 0, 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		line := sc.Text()
		switch {
		case strings.Contains(line, "fsync("):
			syncs++
			after = 0
		case strings.Contains(line, `write(1, "x"`):
			if before++; syncs == 3 {
				after++
			}
		}
	}
	// A write that had begun may end.
	if syncs != 3 || before < 100 || after > 16 {
		t.Errorf("%d syncs, %d writes by others, %d of them after the record was begun", syncs, before, after)
	}
}

// TestWithoutRecorder: a program that prepared nothing panics.
func TestWithoutRecorder(t *testing.T) {
	defer func() {
		if e := recover(); e != event {
			t.Errorf("panic: %v", e)
		}
	}()
	Happened(event)
}

func TestCatch(t *testing.T) {
	var got []Event
	release := Catch(func(e Event) { got = append(got, e) })
	Happened(event)
	release()
	if len(got) != 1 || got[0] != event {
		t.Errorf("caught: %v", got)
	}
	defer func() {
		if recover() == nil {
			t.Error("an event after the release was caught")
		}
	}()
	Happened(event)
}

// install returns a recorder for dir that is gone with the test.
func install(t *testing.T, dir string) *Recorder {
	t.Helper()
	r, err := Install(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Uninstall)
	return r
}

// put writes an entry as the process would.
func put(t *testing.T, dir string, e entry) {
	t.Helper()
	f, l, err := prepare(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	slot, at, err := l.next(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(slot, at); err != nil {
		t.Fatal(err)
	}
}

func TestResume(t *testing.T) {
	dir := t.TempDir()
	if _, err := Resume(dir, "bako-tiru", "anna", "looked"); err == nil {
		t.Error("resumed without a file")
	}
	if err := install(t, dir).Clear(); err != nil {
		t.Errorf("a new file says: %v", err)
	}
	if _, err := Resume(dir, "bako-tiru", "anna", "looked"); err == nil {
		t.Error("resumed what is not stopped")
	}
	put(t, dir, entry{Stop: &Stop{ID: "bako-tiru", What: "full"}})
	err := install(t, dir).Clear()
	if !errors.Is(err, ErrStands) || !strings.Contains(err.Error(), "bako-tiru") || !strings.Contains(err.Error(), "full") {
		t.Errorf("a start is told: %v", err)
	}
	for _, x := range []struct{ id, reason string }{
		{"bako-tirr", "looked"}, {"", "looked"}, {"bako-tiru", ""}, {"bako-tiru", " \n"}, {"bako-tiru", strings.Repeat("x", maxText+1)}, {"bako-tiru", "\xff"},
	} {
		if _, err := Resume(dir, x.id, "anna", x.reason); err == nil {
			t.Errorf("resumed %q because of %q", x.id, x.reason)
		}
	}
	if stands(t, dir).ID != "bako-tiru" {
		t.Error("a refused resumption changed something")
	}
	s, err := Resume(dir, "bako-tiru", "anna", strings.Repeat("ü", maxText/2))
	if err != nil {
		t.Fatal(err)
	}
	if err := install(t, dir).Clear(); err != nil {
		t.Errorf("after the resumption a start is told: %v", err)
	}
	all, err := Read(dir)
	if err != nil || len(all) != 1 || all[0].Resumed == nil || *all[0].Resumed != *s.Resumed || s.Resumed.By != "anna" || len(s.Resumed.Reason) != maxText {
		t.Errorf("recorded: %+v, %v", all, err)
	}
	if _, err := Resume(dir, "bako-tiru", "anna", "again"); err == nil {
		t.Error("resumed twice")
	}
}

// TestHistory: the newest stops are kept, in their order, and the file never grows.
func TestHistory(t *testing.T) {
	dir := t.TempDir()
	for i := range 30 {
		id := fmt.Sprint("stop-", i)
		put(t, dir, entry{Stop: &Stop{ID: id}})
		if err := install(t, dir).Clear(); !errors.Is(err, ErrStands) || !strings.Contains(err.Error(), id+" ") {
			t.Fatalf("after stop %d a start is told: %v", i, err)
		}
		if _, err := Resume(dir, id, "anna", "looked"); err != nil {
			t.Fatal(err)
		}
		all, err := Read(dir)
		if err != nil || len(all) != min(i+1, slots/2) {
			t.Fatalf("after stop %d: %+v, %v", i, all, err)
		}
		for k, s := range all {
			if s.ID != fmt.Sprint("stop-", i+1-len(all)+k) || s.Resumed == nil {
				t.Fatalf("after stop %d: %+v", i, all)
			}
		}
	}
	if st, err := os.Stat(filepath.Join(dir, FileName)); err != nil || st.Size() != FileSize {
		t.Errorf("the file has %d bytes, %v", st.Size(), err)
	}
}

// TestCutOff: whatever part of a record reached the disk, the service does not start.
func TestCutOff(t *testing.T) {
	for _, earlier := range []int{0, 1, 9} { // slots that are blank, and such that have an old entry
		dir := t.TempDir()
		for i := range earlier {
			put(t, dir, entry{Stop: &Stop{ID: fmt.Sprint("stop-", i)}})
			if _, err := Resume(dir, fmt.Sprint("stop-", i), "anna", "looked"); err != nil {
				t.Fatal(err)
			}
		}
		f, l, err := prepare(dir)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		slot, at, err := l.next(entry{Stop: &Stop{ID: "bako-tiru", Stack: strings.Repeat("stack\n", 500)}})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, FileName)
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for n := len("holdfast-stop 1 99"); n <= len(slot); n += 97 { // the slot may begin like its predecessor
			torn := bytes.Clone(before)
			copy(torn[at:], slot[:n])
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			whole := bytes.Contains(slot[:n], []byte("}}"))
			want := Unreadable
			if whole {
				want = "bako-tiru"
			}
			r, err := Install(dir)
			if err != nil {
				t.Fatal(err)
			}
			err = r.Clear()
			r.Uninstall()
			if !errors.Is(err, ErrStands) || !strings.Contains(err.Error(), "stop "+want) {
				t.Fatalf("%d stops before, %d bytes of the next: %v", earlier, n, err)
			}
			if _, err := Resume(dir, want, "anna", "looked"); err != nil {
				t.Fatal(err)
			}
			all, err := Read(dir)
			if err != nil || len(all) == 0 || all[len(all)-1].ID != want || all[len(all)-1].Resumed == nil {
				t.Fatalf("%d stops before, %d bytes of the next, resumed: %+v, %v", earlier, n, all, err)
			}
		}
	}
}

// TestLongEvent: whatever an event says, it fits, and its beginning is there.
func TestLongEvent(t *testing.T) {
	for _, text := range []string{"\x00", "ü", "\xffx", "\"", "<", "\u2028", "\n"} {
		long := strings.Repeat(text, 100_000)
		s := Stop{ID: newID(), What: clip(long, maxText), Where: clip(long, maxText), Invariant: clip(long, maxText), Todo: clip(long, maxText), Stack: long}
		slot, err := s.slot(log{})
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		e, _, ok := parseSlot(slot.text)
		if !ok || len(e.Stop.What) < maxText/2 || len(e.Stop.Stack) == 0 {
			t.Errorf("%q: %+v", text, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	slot, _, err := log{}.next(entry{Stop: &Stop{ID: "bako-tiru", What: "full"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(slot, uint(1))
	f.Add([]byte("holdfast-stop 1 18446744073709551615 0 "), uint(15))
	f.Fuzz(func(t *testing.T, b []byte, slot uint) {
		file := bytes.Repeat([]byte{' '}, FileSize)
		copy(file[slot%slots*slotSize:], b)
		l, err := parse(file)
		if err != nil {
			t.Fatal(err)
		}
		l.standing()
		if _, _, err := l.next(entry{Resume: &Resumption{By: "anna", Reason: "looked"}, ID: Unreadable}); err != nil {
			t.Fatal(err)
		}
	})
}
