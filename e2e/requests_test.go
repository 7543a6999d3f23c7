//go:build linux

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/s3server"
)

// TestRequestsPerGiB counts what the service asks of S3 for each thing that it does. docs/storage.md has these figures
// in a table, and a bill is made of them. The limits are what was measured and a fifth more.
func TestRequestsPerGiB(t *testing.T) {
	size := bySize[int64](256<<20, 1<<30)
	files := bySize(4000, 20000)
	p, m := behindMiddle(t, onS3(t, s3server.Versity))
	before, last := m.count(), time.Now()
	const gib, idleGETs = 1 << 30, 240 // of a service that does nothing, in an hour
	// within fails t if more was asked since the last call than was measured: something for each time, and something
	// for each GiB that went to the store, or came from it. In the order PUT, GET, LIST, DELETE.
	within := func(what string, each [4]float64, in, out [2]float64) {
		t.Helper()
		now := m.count()
		n := now.minus(before)
		before = now
		each[1] += idleGETs * time.Since(last).Hours()
		last = time.Now()
		t.Logf("%-40s %s", what, n)
		for i, kind := range []string{"PUT", "GET", "LIST", "DELETE"} {
			most := each[i]
			if i < 2 {
				most += in[i]*float64(n.in)/gib + out[i]*float64(n.out)/gib
			}
			if got := n.calls[kind]; float64(got) > most*1.2+1 {
				t.Errorf("%s: %d requests of %s; the limit is %.1f and a fifth", what, got, kind, most)
			}
		}
		if n.calls["HEAD"]+n.calls["POST"] > 0 {
			t.Errorf("%s: requests of another kind: %v", what, n.calls)
		}
		if n.failures > 0 {
			t.Errorf("%s: %d requests failed", what, n.failures)
		}
		// On a machine that does much else a request can be slow, and overtaken by its double. There is one for every
		// answer then, and it is not counted; but there are few.
		if all := n.calls["PUT"] + n.calls["GET"] + n.calls["LIST"] + n.calls["DELETE"]; n.givenUp > 2+all/10 {
			t.Errorf("%s: %d requests were given up, and %d were not", what, n.givenUp, all)
		}
	}
	type requests = [4]float64
	stored, read, none := [2]float64{64, 64}, [2]float64{0, 310}, [2]float64{}
	start := requests{39, 56, 7, 5}

	s := newServiceAt(t, p, nil)
	within("make a service and start it", requests{74, 88, 14, 10}, none, none)
	// The jobs: after their first run none begins by itself below. The clocks and the epoch object, which are looked at every
	// 30 s, may be while one of them runs (tick).
	s.stop()
	if err := os.WriteFile(filepath.Join(s.data, "config.toml"), []byte("[scrub]\nsample = 100\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	before = m.count()
	const tick = 2
	daily := func() {
		n := float64(len(p.objects(t))) // no fewer than segments
		for _, job := range []struct {
			name string
			each requests
			out  [2]float64
		}{
			{"reclaim", requests{0, 2 + tick, 2}, none},
			{"checkpoint", requests{3, 4 + tick, 11}, none},
			{"scrub", requests{0, n + tick}, [2]float64{0, 300}},
			{"shadow", requests{0, n + 12 + tick, 3}, none},
		} {
			s.admin(job.name, "--data", s.data, "--now")
			within(fmt.Sprintf("%s, of %.0f objects", job.name, n), job.each, none, job.out)
		}
	}
	daily()
	c := newClient(t, s)
	within("enrol a customer", requests{4, 4}, none, none)

	dir := scratch(t)
	write(t, filepath.Join(dir, "large", "small"), "small")
	for i := range 4 {
		writeNoise(t, filepath.Join(dir, "large", fmt.Sprint("file-", i)), uint64(100+i), size/4)
	}
	c.ok("create", "-C", dir, "large", "large")
	within(fmt.Sprintf("back up %d MiB in large files", size>>20), requests{2, 5}, stored, none)
	c.ok("create", "-C", dir, "large", "large")
	within("back it up again, unchanged", requests{3, 7}, none, none)
	out := filepath.Join(scratch(t), "out")
	c.ok("extract", "large", "--target", out)
	within(fmt.Sprintf("restore %d MiB in large files", size>>20), requests{}, none, read)

	tree := smallTree(t, dir, "small", 110, files)
	bytes := treeBytes(t, tree)
	c.ok("create", "-C", dir, "small", "small")
	within(fmt.Sprintf("back up %d small files, %d MiB", files, bytes>>20), requests{3, 7}, stored, none)
	writeText(t, filepath.Join(tree, "000", "file-00007"), 5, 20_000)
	c.ok("create", "-C", dir, "small", "small")
	within("back up the same with one changed", requests{3, 7}, none, none)
	c.ok("extract", "small", "--target", filepath.Join(scratch(t), "out"))
	within(fmt.Sprintf("restore %d small files", files), requests{0, 7}, none, [2]float64{0, 600})

	daily()

	idle := 29 * time.Second // one tick at most
	<-time.After(idle)
	within(fmt.Sprintf("nothing, for %v", idle), requests{}, none, none)
	before = m.count()
	s.stop()
	within("stop", requests{}, none, none)
	s.start()
	within("start again", start, none, none)
	segments := 0.0
	for _, o := range p.objects(t) {
		if !strings.Contains(o.Key, "/checkpoint/") {
			segments++
		} else if err := p.open(t).Delete(t.Context(), o.Key); err != nil {
			t.Fatal(err)
		}
	}
	before = m.count()
	s.loseDisk()
	within(fmt.Sprintf("recover a journal of %.0f segments", segments), requests{2 * start[0], 2*start[1] + 1.2*segments, 2 * start[2], 2 * start[3]}, none, none)
}
