//go:build linux

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/s3server"
)

// mixedTree makes dir/name of many small files, and large ones of size bytes together.
func mixedTree(t testing.TB, dir, name string, seed uint64, small int, size int64) string {
	t.Helper()
	tree := smallTree(t, dir, name, seed, small)
	writeNoise(t, filepath.Join(tree, "large"), seed, size*3/4)
	writeNoise(t, filepath.Join(tree, "less-large"), seed+1, size-size*3/4)
	return tree
}

// TestMainJob goes through what the service is for: back up a tree, again when it has changed, list, verify, restore,
// delete, lose the service's disk, recover from bucket and identity, and go on.
func TestMainJob(t *testing.T) {
	t.Parallel()
	onEveryPlace(t, func(t *testing.T, p place) {
		s := newServiceAt(t, p, nil)
		c := newClient(t, s)
		dir := scratch(t)
		size := bySize[int64](24<<20, 96<<20)
		tree := mixedTree(t, dir, "tree", 31, bySize(300, 2000), size)
		first := c.ok("create", "-C", dir, "s", "tree")
		then := filepath.Join(scratch(t), "tree")
		copyTree(t, tree, then)
		full := s.bucketBytes()
		if full < size {
			t.Errorf("the bucket holds %d bytes of a tree with %d incompressible ones", full, size)
		}

		writeText(t, filepath.Join(tree, "000", "file-00007"), 5, 20_000)
		writeText(t, filepath.Join(tree, "new", "file"), 6, 20_000)
		overwrite(t, filepath.Join(tree, "large"), "edited", size/3)
		if err := os.Remove(filepath.Join(tree, "001", "file-00051")); err != nil {
			t.Fatal(err)
		}
		second := c.ok("create", "-C", dir, "s", "tree")
		grown := s.bucketBytes() - full
		t.Logf("first %v, %d KiB; second %v, %d KiB", first.took, full>>10, second.took, grown>>10)
		if grown > 4<<20 {
			t.Errorf("three edits made the bucket grow by %d bytes", grown)
		}

		all := c.archives()
		if len(all) != 2 {
			t.Fatalf("list says %+v", all)
		}
		c.has(c.ok("list", "s", "tree/new"), "file")
		c.ok("verify")
		restored := func(archive, want, name string) {
			t.Helper()
			out := filepath.Join(dir, name)
			c.ok("extract", archive, "--target", out)
			same(t, want, filepath.Join(out, "tree"))
		}
		restored(all[0].Archive, then, "out-first")
		restored(all[1].Archive, tree, "out-second")

		c.ok("delete", all[0].Archive)
		if got := c.archives(); got[0].State != "deleted" || got[1].State != "live" {
			t.Fatalf("after a deletion list says %+v", got)
		}
		before := c.ok("list").stdout
		s.loseDisk()
		if got := c.ok("list").stdout; got != before {
			t.Errorf("after recovery list says\n%s\nbefore it said\n%s", got, before)
		}
		restored(all[1].Archive, tree, "out-recovered")
		c.ok("undelete", all[0].Archive)
		restored(all[0].Archive, then, "out-undeleted")
		if c.ok("create", "-C", dir, "s", "tree"); commits(t, s) != 3 {
			t.Errorf("the journal holds %d archives, want 3", commits(t, s))
		}
		s.peak()
		s.clean()
	})
}

// loseDisk takes the service's data directory away and brings the service back from bucket and identity file alone.
func (s *service) loseDisk() {
	s.t.Helper()
	identity, err := os.ReadFile(filepath.Join(s.data, "identity"))
	if err != nil {
		s.t.Fatal(err)
	}
	want := digest.FindString(s.admin("status", "--data", s.data, "--digest"))
	if want == "" {
		s.t.Fatal("status prints no digest")
	}
	s.stop()
	if err := os.RemoveAll(s.data); err != nil {
		s.t.Fatal(err)
	}
	kept := filepath.Join(scratch(s.t), "identity-kept-elsewhere")
	if err := os.WriteFile(kept, identity, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.data = filepath.Join(scratch(s.t), "new-data")
	said := s.admin("recover", "--identity", kept, "--data", s.data)
	if got := digest.FindString(said); got != want {
		s.t.Errorf("recovered digest %q, and the service had %q before it was lost", got, want)
	}
	s.start()
}

// TestThirtyKills kills the service at random moments on a real S3 server while two clients back up. Every archive that a
// client was told is committed restores, nothing else appears, and what was cut off is finished by the clients
// themselves.
func TestThirtyKills(t *testing.T) {
	t.Parallel()
	kills := bySize(3, 30)
	s := newServiceAt(t, onS3(t, s3server.Versity), nil)
	dir := scratch(t)
	r := rand.New(noise(41))
	type job struct {
		c    *client
		p    *process
		name string
		n    int // archives
	}
	jobs := []*job{{c: newClient(t, s)}, {c: newClient(t, s)}}
	begin := func(i int, j *job) {
		j.name = fmt.Sprintf("client-%d-%02d", i, j.n)
		mixedTree(t, dir, j.name, r.Uint64(), 60, 4<<20+r.Int64N(8<<20))
		j.p = j.c.begin("create", "-C", dir, j.name, j.name)
	}
	end := func(j *job) {
		t.Helper()
		if o := j.p.wait(); o.code != 0 {
			t.Fatalf("%s: exit %d\n%s", j.name, o.code, o.stderr)
		}
		j.n++
	}
	for i, j := range jobs {
		begin(i, j)
	}
	for range kills {
		<-time.After(time.Duration(r.Int64N(int64(1500 * time.Millisecond))))
		s.kill()
		s.start()
		for i, j := range jobs {
			if zombie(j.p.cmd.Process.Pid) {
				end(j)
				begin(i, j)
			}
		}
	}
	told := 0
	for i, j := range jobs {
		end(j)
		told += j.n
		if got := len(j.c.archives()); got != j.n {
			t.Errorf("client %d was told of %d archives, and list shows %d", i, j.n, got)
		}
		for n := range j.n {
			name := fmt.Sprintf("client-%d-%02d", i, n)
			out := filepath.Join(dir, "out-"+name)
			j.c.ok("extract", name, "--target", out)
			same(t, filepath.Join(dir, name), filepath.Join(out, name))
		}
	}
	if n := commits(t, s); n != told {
		t.Errorf("the journal holds %d archives, and clients were told of %d", n, told)
	}
	t.Logf("%d kills, %d archives", kills, told)
	s.peak()
	s.clean()
}

// TestStoreStopped takes the S3 server away in the middle of a backup. Nothing is lost, the service stays and says that its
// store is down, and when the store is back the client finishes without anybody's help.
func TestStoreStopped(t *testing.T) {
	t.Parallel()
	away := bySize(14*time.Second, time.Minute) // the service says so after ten seconds
	p := ownS3(t, s3server.Versity)
	s := newServiceAt(t, p, nil)
	c := newClient(t, s)
	dir := scratch(t)
	before := mixedTree(t, dir, "before", 50, 50, 4<<20)
	c.ok("create", "-C", dir, "before", "before")
	size := bySize[int64](64<<20, 192<<20)
	tree := mixedTree(t, dir, "tree", 51, 300, size)

	pid := s.cmd.Process.Pid
	running := c.begin("create", "-C", dir, "s", "tree")
	waitFor(t, running, bytesWritten, size/3)
	p.server.Kill()
	stopped := time.Now()
	state := ""
	for tick := time.NewTicker(100 * time.Millisecond); time.Since(stopped) < away; <-tick.C {
		if o, _ := s.try("status", "--data", s.data); strings.HasPrefix(o.stdout, "backend_down ") {
			state = o.stdout
		}
	}
	if zombie(running.cmd.Process.Pid) {
		t.Errorf("the client ended while the store was away")
	}
	if err := p.server.Restart(); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	if o := running.wait(); o.code != 0 {
		t.Fatalf("after the store was away for %v: exit %d\n%s", away, o.code, o.stderr)
	}
	t.Logf("away for %v; the client was done %v after it was back", away, time.Since(back))
	if state == "" {
		t.Errorf("status never said that the store is down; the service wrote\n%s", s.log)
	}
	if zombie(pid) || s.cmd.Process.Pid != pid {
		t.Error("the service has ended")
	}
	if o := s.admin("status", "--data", s.data); !strings.HasPrefix(o, "serving ") {
		t.Errorf("with the store back status says\n%s", o)
	}
	for name, want := range map[string]string{"before": before, "s": tree} {
		out := filepath.Join(dir, "out-"+name)
		c.ok("extract", name, "--target", out)
		same(t, want, filepath.Join(out, filepath.Base(want)))
	}
	s.clean()
}
