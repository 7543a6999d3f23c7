package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/part"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// failing makes the n-th call of the operating system fail, and all for a while after it.
type failing struct {
	n       int
	err     syscall.Errno
	applied bool // it was done all the same
	lasts   time.Duration

	mu    sync.Mutex
	count int
	hit   string
	until time.Time
}

func (f *failing) step(call, path string, do func() error) error {
	f.mu.Lock()
	f.count++
	if f.count == f.n {
		f.hit, f.until = call+" "+path, time.Now().Add(f.lasts)
	}
	fails := f.count == f.n || time.Now().Before(f.until)
	f.mu.Unlock()
	switch {
	case !fails:
		return do()
	case f.applied:
		if err := do(); err != nil {
			return err
		}
	}
	return &os.PathError{Op: call, Path: path, Err: f.err}
}

// TestFailEveryDiskOperation makes the N-th call of the operating system under a directory bucket fail, for N = 1, 2,
// 3, ... until there are so few. A running journal goes on, a start that fails says why and is repeated, and what was
// acknowledged is there, in the view that was made as it went and in one made anew.
func TestFailEveryDiskOperation(t *testing.T) {
	calls := map[string]bool{}
	for i, f := range []*failing{
		{err: syscall.EIO},
		{err: syscall.EIO, applied: true},
		{err: syscall.ENOSPC},
		{err: syscall.EIO, lasts: 10 * time.Second},
		{err: syscall.ENOSPC, lasts: time.Minute},
	} {
		n, stride := 1, 1
		switch {
		case !part.Heavy() || testing.Short():
			n, stride = 1+7*i, 41
		case i > 0: // the first form shows where; the others need not meet every place
			n, stride = i, 3
		}
		for ; !t.Failed(); n += stride {
			f := &failing{n: n, err: f.err, applied: f.applied, lasts: f.lasts}
			synctest.Test(t, func(t *testing.T) { lives(t, f) })
			if f.hit == "" {
				t.Logf("%d calls or more", n-stride)
				break
			}
			call, _, _ := bytes.Cut([]byte(f.hit), []byte(" /"))
			calls[string(call)] = true
		}
	}
	for _, call := range []string{"open", "create", "lock", "write", "sync", "rename", "mkdir", "stat", "read", "read directory", "unlink"} {
		if !calls[call] && part.Heavy() && !testing.Short() {
			t.Errorf("no %s ever failed", call)
		}
	}
}

// A rename that is done although it is said to have failed leaves an object that is seen and not durable: whoever
// sees it first makes it so.
func TestRenamedAllTheSame(t *testing.T) {
	b, s := create(t), &fakeSync{}
	if err := b.Put(t.Context(), "c/1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	b.syncDir = s.sync
	b.step = func(call, path string, do func() error) error {
		if err := do(); err != nil || call != "rename" {
			return err
		}
		return syscall.EIO
	}
	if err := b.Put(t.Context(), "c/2", []byte("y")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("put: %v", err)
	}
	s.took()
	if got, err := b.Get(t.Context(), "c/2", 0, -1); err != nil || string(got) != "y" {
		t.Fatalf("get: %q, %v", got, err)
	}
	if took := s.took(); !strings.HasSuffix(took, b.path("c")) {
		t.Errorf("it was shown after syncs of %q", took)
	}
}

// lives has a customer make two archives, with a restart between, on a bucket that f has fail.
func lives(t *testing.T, f *failing) {
	ctx := context.Background()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("call %d, %s, fails with %v (done all the same: %v; for %s): %v", f.n, f.hit, f.err, f.applied, f.lasts, err)
		}
	}
	root := t.TempDir()
	_, err := Create(root)
	fatal(err)
	// What a dead writer left is removed by the next start.
	fatal(os.WriteFile(filepath.Join(root, tmpName, "put-dead"), []byte("x"), 0o600))
	cfg := journal.Config{Create: true, Cell: holdfast.CellID{1}, Host: [16]byte{1}, LogKey: viewtest.LogKey()}
	start := func() *journal.Journal {
		t.Helper()
		for tries := 1; ; tries++ {
			b, err := openWith(root, f.step)
			if err == nil {
				cfg.Bucket = b
				var j *journal.Journal
				if j, err = journal.Open(ctx, cfg); err == nil {
					return j
				}
			}
			if !errors.Is(err, f.err) || tries == 20 {
				fatal(err)
			}
			time.Sleep(5 * time.Second) // as a service is started again
		}
	}
	j := start()
	c := viewtest.New(1)
	add := func(fn func(*journal.Tx) error) {
		t.Helper()
		ticket, err := j.Append(ctx, fn)
		fatal(err)
		j.Flush()
		fatal(ticket.Wait(ctx))
	}
	record := func(r history.Record) {
		t.Helper()
		add(func(tx *journal.Tx) error { _, err := tx.History(r); return err })
		c.Accepted(r)
	}
	var acked []viewtest.Block
	archive := func(run int) {
		t.Helper()
		record(c.Open())
		chunk := c.Chunk(run, 5000)
		top := c.Over(holdfast.KindTree, run, chunk.Name)
		at := c.Over(holdfast.KindArchive, run, top.Name)
		add(func(tx *journal.Tx) error {
			for _, b := range []viewtest.Block{chunk, top, at} {
				if err := tx.Stored(c.Session, b.Name, b.Kind, b.Links, b.Sealed); err != nil {
					return err
				}
			}
			return nil
		})
		record(c.Commit(at.Name))
		acked = append(acked, chunk, top, at)
	}
	check := func() {
		t.Helper()
		for _, b := range acked {
			row, ok, err := j.Acked().Block(c.Vault, c.Group, b.Name)
			fatal(err)
			if !ok {
				fatal(fmt.Errorf("block %s is gone", b.Name))
			}
			got, err := j.ReadBlock(ctx, row)
			for err != nil && errors.Is(err, f.err) && time.Now().Before(f.until) { // a client asks again
				time.Sleep(time.Second)
				got, err = j.ReadBlock(ctx, row)
			}
			fatal(err)
			if !bytes.Equal(got, b.Sealed) {
				fatal(fmt.Errorf("block %s came back as something else", b.Name))
			}
		}
		v, _, err := j.Acked().Vault(c.Vault)
		fatal(err)
		if want := uint64(2 + 2*len(acked)/3); v.N != want {
			fatal(fmt.Errorf("%d records of %d", v.N, want))
		}
		if err := j.Err(); err != nil {
			fatal(err)
		}
	}

	add(func(tx *journal.Tx) error {
		return errors.Join(tx.Record(c.Account()), tx.Record(c.Token(1<<62)), tx.Record(c.Redeemed()))
	})
	record(c.Genesis())
	record(c.Enrol())
	archive(1)
	check()
	fatal(j.Close(ctx))
	j = start()
	archive(2)
	check()
	had, at, err := j.Digest(ctx)
	fatal(err)
	fatal(j.Close(ctx))

	// A healthy disk.
	cfg.Bucket, err = Open(root)
	fatal(err)
	cfg.Store, err = view.OpenMem()
	fatal(err)
	r, err := journal.Rebuild(ctx, cfg)
	fatal(err)
	if r.Position != at || r.Digest != had {
		fatal(fmt.Errorf("the view at %s is not what the bucket says at %s", at, r.Position))
	}
	cfg.Store = nil
	if j, err = journal.Open(ctx, cfg); err != nil {
		fatal(err)
	}
	check()
	fatal(j.Close(ctx))
	left, err := os.ReadDir(filepath.Join(root, tmpName))
	fatal(err)
	if len(left) > 0 {
		fatal(fmt.Errorf("temporary files are left: %v", left))
	}
}
