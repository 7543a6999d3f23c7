//go:build linux

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/part"
)

// drainLimit is how long an ordered end may take: 20 s for requests under way, 30 s for the bucket, and some for a
// slow machine. The unit gives it 90 s.
const drainLimit = 70 * time.Second

// TestServiceEnded ends the service in order, in the middle of uploads, and starts it again: it ends well and in time, the
// client goes on by itself, and nothing is lost.
func TestServiceEnded(t *testing.T) {
	t.Parallel()
	const size = 48 << 20
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	r := rand.New(noise(41))
	rounds := bySize(2, 5)
	for round := range rounds {
		name := fmt.Sprintf("round-%02d", round)
		write(t, filepath.Join(dir, name, "small"), name)
		writeNoise(t, filepath.Join(dir, name, "large"), r.Uint64(), size)
		smallTree(t, dir, name, r.Uint64(), 100)
		run := c.begin("create", "-C", dir, "end-"+name, name)
		waitFor(t, run, bytesWritten, r.Int64N(size))
		s.stop() // which fails the test unless the service ends with 0 within a minute
		s.start()
		if o := run.wait(); o.code != 0 {
			t.Fatalf("round %d: exit %d\n%s", round, o.code, o.stderr)
		}
		out := filepath.Join(dir, "out-"+name)
		c.ok("extract", "end-"+name, "--target", out)
		same(t, filepath.Join(dir, name), filepath.Join(out, name))
	}
	if n := commits(t, s); n != rounds {
		t.Errorf("the journal holds %d archives, want %d", n, rounds)
	}
	s.clean()
}

// away makes the bucket of s, which is in a directory, answer nothing but errors until back is called.
func (s *service) away() (back func()) {
	s.t.Helper()
	dir := s.place.dir
	if err := os.Rename(dir, dir+".away"); err != nil {
		s.t.Fatal(err)
	}
	write(s.t, dir, "not a bucket") // so that nothing makes the directory anew
	return func() {
		s.t.Helper()
		if err := os.Remove(dir); err != nil {
			s.t.Fatal(err)
		}
		if err := os.Rename(dir+".away", dir); err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestEndWithoutBucket tells the service to end while its bucket is away and uploads wait for it. It ends within bounds and
// says what is not stored; a second signal ends it at once. When both are back the client goes on by itself, and nothing is lost.
func TestEndWithoutBucket(t *testing.T) {
	t.Parallel() // it waits for most of a minute
	const size = 40 << 20
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	r := rand.New(noise(42))
	for _, again := range []bool{true, false} {
		name := fmt.Sprintf("again-%v", again)
		if !again && !part.Heavy() {
			continue // it takes a minute
		}
		write(t, filepath.Join(dir, name, "small"), name)
		writeNoise(t, filepath.Join(dir, name, "large"), r.Uint64(), size)
		run := c.begin("create", "-C", dir, name, name)
		waitFor(t, run, bytesWritten, size/4)
		logged := len(s.log.String())
		back := s.away()
		for !strings.Contains(s.log.String()[logged:], "store segment") && !zombie(run.cmd.Process.Pid) {
			time.Sleep(5 * time.Millisecond) // until there is something that the bucket does not take
		}
		began := time.Now()
		s.cmd.Process.Signal(syscall.SIGTERM)
		if again {
			for st := ""; st != "maintenance" && !ended(s); { // it has heard the first
				o, _ := s.try("status", "--data", s.data, "--json")
				if strings.Contains(o.stdout, `"maintenance"`) {
					st = "maintenance"
				}
			}
			s.cmd.Process.Signal(syscall.SIGTERM)
		}
		select {
		case <-s.done:
		case <-time.After(drainLimit):
			t.Fatalf("the service did not end within %v of SIGTERM:\n%s", drainLimit, s.log)
		}
		took := time.Since(began)
		switch ws := s.cmd.ProcessState.Sys().(syscall.WaitStatus); {
		case again && !(ws.Signaled() && ws.Signal() == syscall.SIGTERM):
			t.Errorf("after the second signal: %v, %v", s.cmd.ProcessState, took)
		case !again && ws.ExitStatus() != 1:
			t.Errorf("the service ended with %v:\n%s", s.cmd.ProcessState, s.log)
		case !again && !strings.Contains(s.log.String(), "the bucket did not take the rest within 30s: "):
			t.Errorf("the service does not say why it could not store:\n%s", s.log)
		case !again && !strings.Contains(s.log.String(), "are not stored, and nobody was told that they are: clients send them again"):
			t.Errorf("the service does not say what is not stored:\n%s", s.log)
		}
		t.Logf("second signal %v: ended after %v", again, took)
		s.cmd = nil
		back()
		s.start()
		if o := run.wait(); o.code != 0 {
			t.Fatalf("exit %d\n%s", o.code, o.stderr)
		}
		out := filepath.Join(dir, "out-"+name)
		c.ok("extract", name, "--target", out)
		same(t, filepath.Join(dir, name), filepath.Join(out, name))
	}
	s.clean()
}

// ended reports whether the service's process has ended.
func ended(s *service) bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}
