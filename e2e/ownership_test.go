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
)

// newPair makes one cell with two data directories, as on two machines that reach one bucket. Neither runs.
func newPair(t testing.TB, f *front) [2]*service {
	t.Helper()
	dir := scratch(t)
	var pair [2]*service
	for i := range pair {
		listen := freeAddress(t)
		s := &service{
			t: t, data: filepath.Join(dir, fmt.Sprint("data-", i)), place: inDirectory(filepath.Join(dir, "bucket")), bucket: filepath.Join(dir, "bucket"),
			address: listen, args: []string{"--listen", listen, "--takeover"},
		}
		t.Cleanup(func() {
			s.kill()
			if t.Failed() && s.log != nil {
				t.Logf("holdfastd on %s wrote:\n%s", filepath.Base(s.data), s.log)
			}
		})
		pair[i] = s
	}
	if err := os.Mkdir(pair[0].bucket, 0o700); err != nil {
		t.Fatal(err)
	}
	pair[0].admin("init", "--data", pair[0].data, "--bucket", "file://"+pair[0].bucket, "--address", f.l.Addr().String())
	pair[0].admin("recover", "--identity", filepath.Join(pair[0].data, "identity"), "--data", pair[1].data)
	return pair
}

// SCENARIOS S5 with real processes: the owner of a cell is paused at random moments of an upload, another
// process takes the cell over and serves, and the old one goes on. It acknowledges nothing that the new one
// does not have, deletes nothing, ends, and does not come back by itself; the client finishes.
func TestScenarioS5PausedProcess(t *testing.T) {
	t.Parallel()
	pausedProcess(t, false)
}

// SCENARIOS S7 with real processes: as S5, and what the paused owner had written and nobody accepted is deleted
// while it is paused, so that keys which it is about to write are absent again.
func TestScenarioS7SweptWhilePaused(t *testing.T) {
	t.Parallel()
	pausedProcess(t, true)
}

func pausedProcess(t *testing.T, sweep bool) {
	const size = 24 << 20
	seed := uint64(51)
	if sweep {
		seed++
	}
	r := rand.New(noise(seed))
	f := newFront(t)
	pair := newPair(t, f)
	old, heir := pair[0], pair[1]
	old.start()
	f.set(old.address)
	c, other := newClient(t, old), newClient(t, old)
	dir := scratch(t)
	smallTree(t, dir, "other", r.Uint64(), 30)

	for round := range rounds() {
		name := fmt.Sprintf("round-%02d", round)
		smallTree(t, dir, name, r.Uint64(), 100)
		writeNoise(t, filepath.Join(dir, name, "large"), r.Uint64(), size)
		p := c.begin("create", "-C", dir, name, name)

		// Beside the upload, one thing after another that the old owner acknowledges, until it does not.
		told := make(chan []string)
		go func() {
			var acked []string
			for i := 0; ; i++ {
				account := fmt.Sprintf("%s-%03d", name, i)
				if o := execute(t, nil, holdfastd, "account", "add", account, "--data", old.data); o.code != 0 {
					break
				}
				acked = append(acked, account)
			}
			told <- acked
		}()

		at := r.Int64N(size)
		waitFor(t, p, bytesWritten, at)
		old.cmd.Process.Signal(syscall.SIGSTOP)
		heir.start()
		f.set(heir.address)
		other.ok("create", "-C", dir, "other-"+name, "other")
		if sweep {
			heir.admin("sweep", "--data", heir.data)
		}
		before := bucketKeys(t, heir)

		old.cmd.Process.Signal(syscall.SIGCONT)
		select {
		case <-old.done:
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s: the old owner goes on:\n%s", name, old.log)
		}
		if code := old.cmd.ProcessState.ExitCode(); code != 6 || !strings.Contains(old.log.String(), "another process has taken this cell over") {
			t.Errorf("%s: the old owner ended with %d and does not say why:\n%s", name, code, old.log)
		}
		old.cmd, old.log = nil, nil
		now := map[string]bool{}
		for _, k := range bucketKeys(t, heir) {
			now[k] = true
		}
		for _, k := range before {
			if !now[k] {
				t.Errorf("%s: the old owner deleted %s", name, k)
			}
		}
		acked := <-told
		for _, account := range acked {
			if o, code := heir.try("account", "add", account, "--data", heir.data); code != 1 || !strings.Contains(o.stderr, "there is an account") {
				t.Errorf("%s: the old owner acknowledged account %s, and the new one does not know it: exit %d %s", name, account, code, o.stderr)
			}
		}
		t.Logf("%s: paused when the client had written %d KiB of %d; %d accounts acknowledged", name, at>>10, size>>10, len(acked))
		if o, code := old.try("serve", "--data", old.data, "--listen", old.address); code != 6 || !strings.Contains(o.stderr, "belongs to another host") {
			t.Errorf("%s: the old owner came back: exit %d %s", name, code, o.stderr)
		}

		if o := p.wait(); o.code != 0 {
			t.Fatalf("%s: the client ended with %d\n%s", name, o.code, o.stderr)
		}
		out := filepath.Join(dir, "out-"+name)
		c.ok("extract", name, "--target", out)
		same(t, filepath.Join(dir, name), filepath.Join(out, name))
		remove(t, out, filepath.Join(dir, name))
		old, heir = heir, old
	}
	// Everything is there, and as the bucket says.
	old.stop()
	old.admin("check", "--data", old.data)
	old.start()
	for round := range rounds() {
		c.ok("verify", fmt.Sprintf("round-%02d", round))
		other.ok("verify", fmt.Sprintf("other-round-%02d", round))
	}
}

// bucketKeys lists the objects of the service's bucket.
func bucketKeys(t testing.TB, s *service) (keys []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.bucket, "*", "log", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}
