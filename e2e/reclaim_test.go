//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/s3server"
	"holdfast/service/admin"
	"holdfast/service/segment"
)

// TestKillsWhileReclaiming kills the service at random moments of reclaiming and of making checkpoints, while two clients
// back up into the same segments, on a real S3 server, day after day; what one of them made is deleted the next day. In
// the end check finds nothing, all archives that were not deleted restore, and what the others needed is gone
// from the bucket. The days are real to the programs: see aheadPrograms. By default the bucket is a directory.
func TestKillsWhileReclaiming(t *testing.T) {
	t.Parallel()
	const (
		size  = 2 << 20 // of an archive
		calm  = 5       // rounds without a kill, until there is something to free in each
		step  = 3       // days between two rounds
		stays = 4       // one of so many of the first client's archives is not deleted
	)
	kills := bySize(4, 30)
	p := directory(t)
	if kills > 4 {
		p = onS3(t, s3server.Versity)
	}
	d := newDays(t, p)
	clients, dir := []*client{d.client(), d.client()}, scratch(t)
	r := rand.New(noise(61))
	longest := 30 * time.Millisecond // that a job took
	cut := map[string]int{}
	name := func(i, n int) string { return fmt.Sprintf("client-%d-%02d", i, n) }
	kept := func(i, n int) bool { return i == 1 || n%stays == 0 || n == calm+kills-1 }
	for n := range calm + kills {
		var creating []*process
		for i, c := range clients {
			mixedTree(t, dir, name(i, n), r.Uint64(), 20, size)
			creating = append(creating, c.begin("create", "-C", dir, name(i, n), name(i, n)))
		}
		job := []string{"reclaim", "--now", "--data", d.s.data}
		if n%3 == 2 {
			job = []string{"checkpoint", "--now", "--data", d.s.data}
		}
		running := launch(t, d.s.place.environ(), 0, d.s.program, job...)
		if n >= calm {
			ended := make(chan struct{})
			go func() {
				awaitExit(running.cmd.Process.Pid)
				close(ended)
			}()
			select {
			case <-time.After(time.Duration(r.Int64N(int64(longest) * 2 / 3))):
			case <-ended:
			}
			d.s.kill()
		}
		switch o := running.wait(); {
		case o.code == 0:
			longest = max(longest, o.took)
		case n < calm:
			t.Fatalf("%s: exit %d\n%s", job[0], o.code, o.stderr)
		default:
			cut[job[0]]++
		}
		if n >= calm {
			d.s.start()
		}
		for i, p := range creating {
			if o := p.wait(); o.code != 0 {
				t.Fatalf("%s: exit %d\n%s", name(i, n), o.code, o.stderr)
			}
		}
		for i, c := range clients {
			if n == 0 || kept(i, n-1) {
				continue
			}
			for _, a := range c.archives() {
				if strings.HasPrefix(a.Archive, name(i, n-1)+"@") {
					c.ok("delete", "--owner", c.owner(), a.Archive)
				}
			}
		}
		d.pass(step)
	}
	for range 6 { // the owner's time to think, then keep, then grace
		d.s.admin("reclaim", "--now", "--data", d.s.data)
		d.pass(step)
	}
	d.s.admin("reclaim", "--now", "--data", d.s.data)
	d.s.admin("checkpoint", "--now", "--data", d.s.data)

	want := 0
	for i, c := range clients {
		live := 0
		for n := range calm + kills {
			if !kept(i, n) {
				continue
			}
			live++
			out := filepath.Join(dir, "out-"+name(i, n))
			c.ok("extract", name(i, n), "--target", out)
			same(t, filepath.Join(dir, name(i, n)), filepath.Join(out, name(i, n)))
		}
		for _, a := range c.archives() {
			if a.State == "live" {
				live--
			}
		}
		if live != 0 {
			t.Errorf("client %d lacks %d archives", i, live)
		}
	}
	for i := range clients {
		for n := range calm + kills {
			if kept(i, n) {
				want++
			}
		}
	}
	var st admin.Status
	if err := json.Unmarshal([]byte(d.s.admin("status", "--data", d.s.data, "--json")), &st); err != nil {
		t.Fatal(err)
	}
	if len(st.Frozen) > 0 {
		t.Errorf("deleting is frozen: %+v", st.Frozen)
	}
	bundles := 0
	for _, o := range d.s.place.objects(t) {
		if _, err := segment.ParseBundleKey(o.Key); err == nil {
			bundles++
		}
	}
	left, needed := d.s.bucketBytes(), int64(want)*size
	t.Logf("%d kills, of which these met a job: %v; %d KiB of %d were needed, and %d stayed; %d bundles", kills, cut, needed>>10, int64(2*(calm+kills))*size>>10, left>>10, bundles)
	if kills > 4 && (cut["reclaim"] == 0 || cut["checkpoint"] == 0) {
		t.Errorf("no kill met a job: %v", cut)
	}
	if left > needed+needed/4+4<<20 {
		t.Errorf("the bucket holds %d bytes, and the archives that were not deleted have %d", left, needed)
	}
	if bundles == 0 {
		t.Error("there is no bundle: nothing can have been removed")
	}
	d.s.peak()
	d.s.clean()
	for _, c := range clients {
		c.ok("verify")
	}
}
