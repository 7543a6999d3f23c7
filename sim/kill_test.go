package sim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/keyring"
	"holdfast/client/remote"
)

var owner = keyring.OwnerOf(holdfast.Key{1})

// TestKillAtEveryWrite ends the service at each of its writes to the bucket in turn, before and after the write
// took effect, while a backup is under way. Another service starts with nothing but the bucket. Whatever was
// stored until then can be opened, every archive is whole; and the client, which knows of nothing but a
// connection that broke, comes to its end.
func TestKillAtEveryWrite(t *testing.T) {
	// backups are made one after another while the service ends.
	const backups = 3
	all := func(w *world, dirs []string) error {
		for i, dir := range dirs {
			if _, err := backup.Run(w.Context(), w.first.config(dir, fmt.Sprint(i))); err != nil {
				return err
			}
		}
		return nil
	}
	trees := func(w *world) (dirs []string) {
		for i := range backups {
			dirs = append(dirs, tree(w, byte(i), 300<<10))
		}
		return dirs
	}
	writes := 0
	inWorld(t, owner, func(w *world) {
		t := w.T
		began := w.bucket.Writes()
		if err := all(w, trees(w)); err != nil {
			t.Fatal(err)
		}
		writes = w.bucket.Writes() - began
	})
	if writes < 2*backups {
		t.Fatalf("%d backups make only %d writes", backups, writes)
	}
	crashes := 0
	for n := 1; n <= writes; n++ {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d of %d, applied %v", n, writes, applied), func(t *testing.T) {
				inWorld(t, owner, func(w *world) {
					t := w.T
					dirs := trees(w)
					w.bucket.CrashAt(n, applied)
					done := make(chan error, 1)
					go func() { done <- all(w, dirs) }()
					var err error
					for err == nil && !w.bucket.Crashed() {
						select {
						case err = <-done: // with a write less this time; the service ends here then
							done <- err
						case <-time.After(time.Second):
							continue
						}
						break
					}
					if w.bucket.Crashed() {
						crashes++
					}
					w.crash()
					w.wrapped()
					w.verified()
					if err = <-done; err != nil {
						t.Fatalf("the backups: %v", err)
					}
					if blocks, sessions := w.wrapped(); blocks < 12*backups || sessions < backups {
						t.Errorf("%d blocks of %d sessions", blocks, sessions)
					}
					if got := w.verified(); got != backups {
						t.Errorf("%d archives", got)
					}
					for i, a := range w.first.open().History.Archives {
						w.first.restores(a, dirs[i])
					}
				})
			})
		}
	}
	if crashes < 2*(writes-1) {
		t.Errorf("the service crashed %d times, at %d writes in two forms each", crashes, writes)
	}
}

// meter lets so many bytes through and then calls cut, once.
type meter struct {
	net.Conn
	left *atomic.Int64
	cut  func()
}

func (m meter) Write(p []byte) (int, error) {
	if m.left.Add(-int64(len(p))) < 0 {
		m.cut()
		m.Close()
		return 0, errors.New("cut")
	}
	return m.Conn.Write(p)
}

// TestKillTheClientAnywhere ends the client after each of many numbers of bytes that it sent, and then the service:
// between any two blocks, and within them. What is in the bucket can be opened, archives are whole, and the next
// run finds what is there and makes an archive.
func TestKillTheClientAnywhere(t *testing.T) {
	const cuts = 25
	// run backs up and is cut after so many bytes; it returns how many it sent.
	run := func(w *world, dir string, limit int64) (sent int64, err error) {
		var left atomic.Int64
		left.Store(limit)
		ctx, cancel := context.WithCancel(w.Context())
		defer cancel()
		c := remote.Dial(w.first.Machine, remote.Options{DialContext: func(ctx context.Context, a, b string) (net.Conn, error) {
			conn, err := w.first.dial(ctx, a, b)
			if err != nil {
				return nil, err
			}
			return meter{conn, &left, cancel}, nil
		}})
		defer c.Close()
		cfg := w.first.config(dir, "s")
		cfg.Client, cfg.CacheDir = c, ""
		_, err = backup.Run(ctx, cfg)
		return limit - left.Load(), err
	}
	var all int64
	inWorld(t, owner, func(w *world) {
		t := w.T
		var err error
		if all, err = run(w, tree(w, 1, 900<<10), 1<<40); err != nil || all < 1<<20 {
			t.Fatalf("%d bytes: %v", all, err)
		}
	})
	for i := range cuts {
		limit := all * int64(i) / cuts
		t.Run(fmt.Sprintf("%d bytes of %d", limit, all), func(t *testing.T) {
			inWorld(t, owner, func(w *world) {
				t := w.T
				dir := tree(w, 1, 900<<10)
				if _, err := run(w, dir, limit); !errors.Is(err, context.Canceled) {
					t.Fatalf("a run that was killed ends with %v", err)
				}
				synctest.Wait()
				w.crash()
				w.wrapped()
				if got := w.verified(); got != 0 {
					t.Errorf("%d archives of a run that was killed", got)
				}
				a, _ := w.first.backup(dir, "s")
				w.crash()
				if blocks, _ := w.wrapped(); blocks < 20 {
					t.Errorf("%d blocks", blocks)
				}
				w.first.restores(a, dir)
			})
		})
	}
}
