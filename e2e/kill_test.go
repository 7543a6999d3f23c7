//go:build linux

package e2e

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"
)

// rounds is how often the kill tests kill.
func rounds() int { return bySize(4, 20) }

// roundsAt is the same for a service whose bucket is in a place; a server takes longer than a directory.
func roundsAt(p place) int {
	if p.dir == "" {
		return bySize(2, 3)
	}
	return rounds()
}

// TestServiceKilled kills the service at random moments of an upload and starts it again: the client
// goes on by itself, and every archive is whole.
func TestServiceKilled(t *testing.T) {
	t.Parallel()
	onEveryPlace(t, serviceKilled)
}

func serviceKilled(t *testing.T, p place) {
	const size = 48 << 20
	s := newServiceAt(t, p, nil)
	c := newClient(t, s)
	dir := scratch(t)
	r := rand.New(noise(21))
	for round := range roundsAt(p) {
		name := fmt.Sprintf("round-%02d", round)
		write(t, filepath.Join(dir, name, "small"), name)
		writeNoise(t, filepath.Join(dir, name, "large"), r.Uint64(), size)
		smallTree(t, dir, name, r.Uint64(), 100)

		run := c.begin("create", "-C", dir, "kill-"+name, name)
		at := r.Int64N(size)
		waitFor(t, run, bytesWritten, at)
		s.kill()
		s.start()
		if o := run.wait(); o.code != 0 {
			t.Fatalf("round %d, service killed after the client had written %d bytes: exit %d\n%s", round, at, o.code, o.stderr)
		}
		out := filepath.Join(dir, "out-"+name)
		c.ok("extract", "kill-"+name, "--target", out)
		same(t, filepath.Join(dir, name), filepath.Join(out, name))
		remove(t, out, filepath.Join(dir, name))
	}
	if n := commits(t, s); n != roundsAt(p) {
		t.Errorf("the journal holds %d archives, want %d", n, roundsAt(p))
	}
	s.peak()
	s.clean()
	c.ok("verify", "kill-round-00")
}

// waitFor returns when the program's counter has reached n or the program has ended.
func waitFor(t testing.TB, p *process, counter func(int) int64, n int64) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for counter(p.cmd.Process.Pid) < n && !zombie(p.cmd.Process.Pid) {
		<-tick.C
	}
}

// TestScenarioC9ClientKilled kills the client at random moments of a first backup: the next run uploads only
// what is missing, and nothing that was not committed appears.
func TestScenarioC9ClientKilled(t *testing.T) {
	t.Parallel()
	onEveryPlace(t, clientKilled)
}

func clientKilled(t *testing.T, p place) {
	const size = 64 << 20
	s := newServiceAt(t, p, nil)
	c := newClient(t, s)
	dir := scratch(t)
	r := rand.New(noise(22))
	for round := range roundsAt(p) {
		name := fmt.Sprintf("round-%02d", round)
		writeTree := func() {
			write(t, filepath.Join(dir, name, "small"), name)
			writeNoise(t, filepath.Join(dir, name, "large"), r.Uint64(), size)
			smallTree(t, dir, name, r.Uint64(), 100)
		}
		writeTree()
		before, had := s.bucketBytes(), commits(t, s)

		at := r.Int64N(size)
		if !c.begin("create", "-C", dir, name, name).killAfter(bytesWritten, at) {
			t.Fatalf("round %d: the client ended before it had written %d bytes", round, at)
		}
		if n := commits(t, s); n != had {
			t.Fatalf("round %d: a killed run made an archive", round)
		}
		uploaded := s.bucketBytes() - before
		o := c.ok("create", "-C", dir, name, name)
		grown := s.bucketBytes() - before
		t.Logf("killed after %d KiB, of which %d KiB were durable; the next run wrote %d KiB; the bucket grew by %d KiB", at>>10, uploaded>>10, o.written>>10, grown>>10)
		if slack := int64(2 << 20); grown > size+3<<20+slack {
			t.Errorf("round %d: the bucket grew by %d bytes: something was stored twice", round, grown)
		} else if o.written > size+3<<20+slack-uploaded {
			t.Errorf("round %d: %d bytes were there, and the next run wrote %d", round, uploaded, o.written)
		}
		out := filepath.Join(dir, "out-"+name)
		c.ok("extract", name, "--target", out)
		same(t, filepath.Join(dir, name), filepath.Join(out, name))
		remove(t, out, filepath.Join(dir, name))
	}
	if n := commits(t, s); n != roundsAt(p) {
		t.Errorf("the journal holds %d archives, want %d", n, roundsAt(p))
	}
	s.clean()
}

// TestScenarioC11ExtractKilled kills a restore: the next one goes on and does not fetch what is there.
func TestScenarioC11ExtractKilled(t *testing.T) {
	t.Parallel()
	const files, each = 40, 4 << 20
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	for i := range files {
		write(t, filepath.Join(dir, "tree", "sub", "x"), "x")
		writeNoise(t, filepath.Join(dir, "tree", fmt.Sprintf("file-%02d", i)), uint64(i), each)
	}
	smallTree(t, dir, "tree", 3, 200)
	c.ok("create", "-C", dir, "tree", "tree")

	whole := c.ok("extract", "tree", "--target", filepath.Join(dir, "whole"))
	out := filepath.Join(dir, "out")
	if !c.begin("extract", "tree", "--target", out).killAfter(bytesRead, files*each*2/3) {
		t.Fatal("the restore ended before it was killed")
	}
	finished := int64(0)
	for i := range files {
		finished += treeBytes(t, filepath.Join(out, "tree", fmt.Sprintf("file-%02d", i)))
	}
	sent := s.sent()
	c.ok("extract", "tree", "--target", out)
	fetched := s.sent() - sent
	t.Logf("a whole restore reads %d KiB; %d KiB were finished when it was killed; the next one was sent %d KiB", whole.read>>10, finished>>10, fetched>>10)
	if finished == 0 {
		t.Error("no file was finished when two thirds had been read")
	}
	if fetched > files*each-finished+8<<20 {
		t.Errorf("%d bytes were there, and %d were fetched", finished, fetched)
	}
	same(t, filepath.Join(dir, "tree"), filepath.Join(out, "tree"))
}
