package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/client/backup"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/service/bucket"
	"holdfast/service/bucket/dir"
	"holdfast/service/bucket/sim"
	"holdfast/service/bucket/steady"
	"holdfast/service/policy"
	"holdfast/service/view"
)

const day = 24 * time.Hour

// yard is a service of which the machine's clock is set: what it keeps, from one time to another.
type yard struct {
	t        *testing.T
	world    *world // as it was when it ended
	dir      string // of the bucket; "" for one with a clock of its own
	trees    []string
	archives []history.Archive // of tree 0, 0, 0, 1, 1 and then of whatever went on
	purged   bool              // archive 3
}

// at starts the service when its clock says so, and the store's clock says that much more, and runs fn. The hourly
// job that expires and purges is at work.
func (y *yard) at(when time.Time, skew time.Duration, fn func(w *world, said *bytes.Buffer)) {
	y.t.Helper()
	synctest.Test(y.t, func(t *testing.T) {
		time.Sleep(time.Until(when))
		was := y.world
		var said bytes.Buffer
		w := &world{T: t, owner: owner, id: was.id, host: was.host, bucket: was.bucket.Store().Clone().Connect(1), log: slog.New(slog.NewTextHandler(&said, nil))}
		w.bucket.Store().SetSkew(skew)
		w.with = func(b *sim.Bucket) bucket.Bucket { return steady.New(b, steady.Config{}) }
		if y.dir != "" {
			w.with = func(*sim.Bucket) bucket.Bucket {
				b, err := dir.Open(y.dir)
				if err != nil {
					t.Fatal(err)
				}
				return steady.New(b, steady.Config{})
			}
		}
		w.start()
		w.first = &machine{Machine: was.first.Machine, w: w, cache: was.first.cache, addr: &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1000}}
		w.first.c = remote.Dial(w.first.Machine, remote.Options{CacheDir: w.first.cache, DialContext: w.first.dial})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			policy.Loop(ctx, w.j, w.id.LogKey(), nil, nil, w.log)
		}()
		fn(w, &said)
		cancel()
		<-ended
		w.first.c.Close()
		w.stop()
		time.Sleep(10 * time.Second)
		y.world = w
	})
}

// say sends a record about one of the archives.
func (y *yard) say(w *world, t history.Type, n int) {
	w.Helper()
	if _, err := w.first.c.SubmitAsOwner(w.Context(), owner.SignKey(), t, history.IDs{y.archives[n].ID}.Encode()); err != nil {
		w.Fatal(err)
	}
}

// backup makes one more archive. The machine's own clock is that of the service here: it may find it wrong.
func (y *yard) backup(w *world, tree int) {
	w.Helper()
	r, err := backup.Run(w.Context(), w.first.config(y.trees[tree], fmt.Sprint(tree)))
	if err != nil && !errors.Is(err, backup.ErrClock) || !r.Complete() {
		w.Fatalf("back up: %+v, %v", r, err)
	}
	y.archives = append(y.archives, r.Archive)
}

// all fails unless every archive is in the state that it was left in; and, with restored, comes back.
func (y *yard) all(w *world, restored bool) {
	w.Helper()
	h := w.first.open().History
	for n, a := range y.archives {
		got, ok := h.Find(a.ID)
		want := history.Live
		if n == 3 {
			want = history.Deleted
		}
		switch {
		case n == 3 && y.purged:
			if ok && got.State != history.Purged {
				w.Errorf("archive %d is %s and was to be purged", n, got.State)
			}
			continue
		case !ok || got.State != want:
			w.Errorf("archive %d is there: %v, and %s, want %s", n, ok, got.State, want)
			continue
		}
		if !restored {
			continue
		}
		tree := y.trees[0]
		if n == 3 || n == 4 {
			tree = y.trees[1]
		}
		out := filepath.Join(w.TempDir(), fmt.Sprint("out", n))
		if r, err := w.first.open().Extract(w.Context(), got, out, restore.Options{}); err != nil || r.Problems > 0 {
			w.Errorf("archive %d: %+v, %v", n, r, err)
		} else if fmt.Sprint(contents(w, tree)) != fmt.Sprint(contents(w, out)) {
			w.Errorf("archive %d came back with other contents", n)
		}
	}
}

// frozen fails unless nothing is deleted, neither now nor in the hours after, and that is said loudly. Customers go on.
func (y *yard) frozen(w *world, said *bytes.Buffer, when string) {
	w.Helper()
	for range 3 {
		if done, err := policy.Run(w.Context(), w.j, w.id.LogKey(), nil); !errors.Is(err, view.ErrFrozen) || done != (policy.Done{}) {
			w.Errorf("%s: policies did %+v, %v", when, done, err)
		}
		if swept, err := w.j.Sweep(w.Context()); !errors.Is(err, view.ErrFrozen) || swept.Count > 0 {
			w.Errorf("%s: sweep did %+v, %v", when, swept, err)
		}
		time.Sleep(10 * time.Minute)
	}
	if f := w.j.Freezes(); len(f) == 0 || f[0].Text == "" {
		w.Errorf("%s: it does not say that it is frozen: %+v", when, f)
	}
	synctest.Wait()
	if text := said.String(); !strings.Contains(text, "level=ERROR msg=\"all deleting is frozen\"") {
		w.Errorf("%s: the log does not say so:\n%s", when, text)
	}
	y.backup(w, 0)
	y.say(w, history.TypeDelete, 0)
	y.say(w, history.TypeUndelete, 0)
	y.all(w, when == "set wrong")
}

// TestScenarioS16WholeService sets the clock of the service's machine a year ahead, and a year back, and later right
// again, while an archive waits to be purged and others to be expired: on a store with a clock of its own, and on a
// directory, whose clock is the machine's. Nothing is deleted that was not due by the right clock; customers go on; it
// is said as an error; and by the right clock what is due is deleted at last.
func TestScenarioS16WholeService(t *testing.T) {
	for _, c := range []struct {
		name   string
		off    time.Duration // of the machine's clock
		dir    bool
		thawed time.Duration // after the clock was set right; 0 for not before the journal's time is reached
	}{
		{"a year ahead of the store", 365 * day, false, time.Hour},
		{"a year behind the store", -365 * day, false, time.Hour},
		{"a year ahead on a directory", 365 * day, true, 0},
		{"a year behind on a directory", -365 * day, true, time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			y := &yard{t: t, trees: []string{sapling(t, 1), sapling(t, 2)}}
			var with func(*sim.Bucket) bucket.Bucket
			if c.dir {
				y.dir = filepath.Join(t.TempDir(), "bucket")
				b, err := dir.Create(y.dir)
				if err != nil {
					t.Fatal(err)
				}
				with = func(*sim.Bucket) bucket.Bucket { return b }
			}
			var right time.Time
			inWorldWith(t, owner, with, func(w *world) {
				y.world = w
				cache := t.TempDir() // that outlives this world
				w.first.cache = cache
				w.first.c.Close()
				w.first.c = remote.Dial(w.first.Machine, remote.Options{CacheDir: cache, DialContext: w.first.dial})
				for range 3 {
					y.backup(w, 0)
				}
				y.backup(w, 1)
				y.backup(w, 1)
				y.say(w, history.TypeDelete, 3)
				if _, err := w.first.c.SubmitAsOwner(w.Context(), owner.SignKey(), history.TypePolicy, history.Policy{Series: y.archives[0].Commit.Series, Last: 1}.Encode()); err != nil {
					t.Fatal(err)
				}
				y.all(w, false)
				right = time.Now()
			})

			y.at(right.Add(time.Hour+c.off), -skewOf(c.off, c.dir), func(w *world, said *bytes.Buffer) {
				y.frozen(w, said, "set wrong")
				time.Sleep(10 * time.Hour)
				y.frozen(w, said, "ten hours later")
			})
			y.at(right.Add(14*time.Hour), 0, func(w *world, said *bytes.Buffer) {
				y.frozen(w, said, "just set right")
				if c.thawed == 0 {
					y.all(w, true)
					time.Sleep(2 * day)
					y.frozen(w, said, "two days later: the journal's time is a year ahead")
					return
				}
				time.Sleep(c.thawed + time.Hour)
				if done, err := policy.Run(w.Context(), w.j, w.id.LogKey(), nil); err != nil || done != (policy.Done{}) {
					t.Errorf("before anything is due: %+v, %v", done, err)
				}
				if f := w.j.Freezes(); len(f) > 0 {
					t.Errorf("the clocks agree, and it is frozen: %+v", f)
				}
				y.all(w, false)
			})
			if c.thawed == 0 {
				return
			}
			y.at(right.Add(8*day), 0, func(w *world, _ *bytes.Buffer) {
				time.Sleep(2 * time.Hour) // the hourly job
				y.purged = true
				y.all(w, true)
				if v := w.first.open().History; len(v.Purged) != 1 {
					t.Errorf("%d archives are purged", len(v.Purged))
				}
			})
		})
	}
}

// skewOf is how far the machine's clock is ahead of the store's.
func skewOf(off time.Duration, dir bool) time.Duration {
	if dir {
		return 0
	}
	return off
}
