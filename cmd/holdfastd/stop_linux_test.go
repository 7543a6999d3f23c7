package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"holdfast/internal/never"
)

// stoppedBy runs one of this test's programs on dir and returns how it ended and what it said.
func stoppedBy(t *testing.T, program string, args ...string) (syscall.WaitStatus, string) {
	t.Helper()
	var said bytes.Buffer
	cmd := &exec.Cmd{Path: os.Args[0], Args: append([]string{program}, args...), Stderr: &said}
	cmd.Run()
	return cmd.ProcessState.Sys().(syscall.WaitStatus), said.String()
}

// TestFaultEndsBySignal: a panic that nobody expects is not taken for wrong usage.
func TestFaultEndsBySignal(t *testing.T) {
	how, said := stoppedBy(t, "fault")
	if !how.Signaled() || how.Signal() != syscall.SIGABRT || how.CoreDump() {
		t.Errorf("ended with %v (status %d), image of memory: %v", how.Signal(), how.ExitStatus(), how.CoreDump())
	}
	if !strings.Contains(said, "panic: a fault in the program") {
		t.Errorf("said: %s", said)
	}
}

// terminalPair returns a terminal and who sits at it.
func terminalPair(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	var n, unlock int32
	for call, arg := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &n} {
		if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, person.Fd(), call, uintptr(unsafe.Pointer(arg))); e != 0 {
			t.Fatal(e)
		}
	}
	program, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// TestResumeWithoutTerminal: where nobody can answer, nobody is asked. A process knows its standard input by that name,
// whatever it leads to.
func TestResumeWithoutTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd, err := syscall.Dup(int(null.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	in := os.NewFile(uintptr(fd), "/dev/stdin")
	defer in.Close()
	var said bytes.Buffer
	c := command()
	c.SetIn(in)
	c.SetErr(&said)
	c.SetArgs([]string{"resume", "--data", t.TempDir()})
	err = c.Execute()
	if err == nil || exitCode(err) != exitUsage || !strings.Contains(err.Error(), "--id is missing") || said.Len() > 0 {
		t.Errorf("%v, asked: %s", err, &said)
	}
}

// TestResumeAsks: on a terminal, resume asks for what was not given.
func TestResumeAsks(t *testing.T) {
	dir := t.TempDir()
	if how, said := stoppedBy(t, "happen", dir); how.ExitStatus() != never.ExitStatus {
		t.Fatalf("ended with %d: %s", how.ExitStatus(), said)
	}
	stops, err := never.Read(dir)
	if err != nil || len(stops) != 1 {
		t.Fatalf("%v, %v", stops, err)
	}
	resume := func(answers string, flags ...string) (asked string, err error) {
		person, program := terminalPair(t)
		if _, err := io.WriteString(person, answers); err != nil {
			t.Fatal(err)
		}
		c := command()
		var out bytes.Buffer
		c.SetIn(program)
		c.SetOut(&out)
		c.SetErr(&out)
		c.SetArgs(append([]string{"resume", "--data", dir}, flags...))
		err = c.Execute()
		return out.String(), err
	}
	if asked, err := resume("bako-tirr\nlooked\n"); err == nil || !strings.Contains(asked, "Id of the stop") {
		t.Errorf("a wrong id: %v, asked: %s", err, asked)
	}
	if asked, err := resume("\n"); err == nil {
		t.Errorf("no id: %v, asked: %s", err, asked)
	}
	asked, err := resume("the disk was full\n", "--id", stops[0].ID)
	if err != nil || strings.Contains(asked, "Id of the stop") || !strings.Contains(asked, "What was wrong") {
		t.Errorf("%v, asked: %s", err, asked)
	}
	stops, err = never.Read(dir)
	if err != nil || len(stops) != 1 || stops[0].Resumed == nil || stops[0].Resumed.Reason != "the disk was full" {
		t.Errorf("recorded: %+v, %v", stops, err)
	}
	if _, err := os.Stat(filepath.Join(dir, lockFile)); err != nil {
		t.Error(err)
	}
}
