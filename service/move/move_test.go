package move

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/account"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/bucket/steady"
	"holdfast/service/identity"
	"holdfast/service/journal"
	"holdfast/service/segment"
)

var host = [16]byte{1}

// world is a cell with some segments of two epochs, and bundles of their trailers, in a simulated bucket, which nobody serves.
type world struct {
	*testing.T
	id   *identity.Identity
	from *sim.Bucket
}

func inWorld(t *testing.T, fn func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		id, err := identity.New("file:///b", "service:1")
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t, id, sim.New(1)}
		w.served(w.from, "first", 6)
		w.served(w.from, "second", 6)
		fn(w)
	})
}

// served serves the cell from a bucket until n accounts more are in it, and returns the digest of its view.
func (w *world) served(b bucket.Bucket, name string, n int) [32]byte {
	w.Helper()
	j, err := journal.Open(w.Context(), journal.Config{Create: true, Bucket: b, Cell: w.id.Cell, Host: host, LogKey: w.id.LogKey()})
	if err != nil {
		w.Fatal(err)
	}
	for i := range n {
		if _, err := account.Add(w.Context(), j, fmt.Sprint(name, i)); err != nil {
			w.Fatal(err)
		}
	}
	if _, err := j.Bundle(w.Context()); err != nil {
		w.Fatal(err)
	}
	d, _, err := j.Digest(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	if err := j.Close(w.Context()); err != nil {
		w.Fatal(err)
	}
	return d
}

// log returns the segments in a bucket with their contents, and whether there is an epoch object.
func (w *world) log(b *sim.Bucket) (log map[string]string, epoch bool) {
	w.Helper()
	log = map[string]string{}
	c := b.Store().Connect(9)
	for _, k := range b.Store().Keys() {
		raw, err := c.Get(w.Context(), k, 0, -1)
		if err != nil {
			w.Fatal(err)
		}
		switch {
		case k == segment.EpochKey(w.id.Cell):
			epoch = true
		case strings.HasPrefix(k, segment.LogPrefix(w.id.Cell)), strings.HasPrefix(k, segment.BundlePrefix(w.id.Cell)):
			log[k] = string(raw)
		}
	}
	return log, epoch
}

// whole fails unless to holds all that from does.
func (w *world) whole(to *sim.Bucket) {
	w.Helper()
	want, _ := w.log(w.from)
	got, epoch := w.log(to)
	if !epoch {
		w.Error("there is no epoch object")
	}
	for k, b := range want {
		if got[k] != b {
			w.Errorf("%s is not there as it was", k)
		}
	}
	if len(want) < 10 {
		w.Errorf("%d segments only", len(want))
	}
}

// TestCutShort ends a move at each of its writes, before and after the write took effect: the new bucket has an epoch object only
// if it has every segment, the old one is as it was, and the next run does the rest and no more.
func TestCutShort(t *testing.T) {
	for n := 1; ; n++ {
		crashed := false
		for _, applied := range []bool{false, true} {
			inWorld(t, func(w *world) {
				before, _ := w.log(w.from)
				to := sim.New(2)
				to.CrashAt(n, applied)
				_, err := Cell(w.Context(), w.from, to, w.id.Cell, host, nil)
				if crashed = to.Crashed(); !crashed {
					if err != nil {
						t.Fatal(err)
					}
					return
				}
				if _, epoch := w.log(to); epoch {
					w.whole(to)
				}
				again := to.Store().Connect(3)
				had, _ := w.log(to)
				r, err := Cell(w.Context(), w.from, again, w.id.Cell, host, nil)
				if err != nil || r.There != len(had) || r.Objects != len(before) {
					t.Errorf("write %d, applied %v: the next run says %+v of %d segments, of which %d were there; %v", n, applied, r, len(before), len(had), err)
				}
				w.whole(again)
				if after, _ := w.log(w.from); len(after) != len(before) {
					t.Errorf("the old bucket changed: %d segments, before %d", len(after), len(before))
				}
			})
		}
		if !crashed {
			if n < 12 {
				t.Errorf("a move makes %d writes", n-1)
			}
			return
		}
	}
}

// TestMoved: with faults of every kind in both buckets a move ends well, the service goes on in the new bucket with the same
// state, and back again after more was stored there.
func TestMoved(t *testing.T) {
	inWorld(t, func(w *world) {
		want := w.served(w.from.Store().Connect(4), "none", 0)
		to := sim.New(5)
		bad := sim.Profile{Fail: 50_000, Applied: 50_000, Slow: 50_000, Short: 50_000, Flip: 50_000, Wrong: 50_000}
		from := w.from.Store().Connect(6)
		from.Profile, to.Profile = bad, bad
		told := 0
		r, err := Cell(w.Context(), from, to, w.id.Cell, host, func(done, all int) {
			if told++; done != told || all < done {
				t.Errorf("told of %d of %d after %d", done, all, told)
			}
		})
		if err != nil || told != r.Objects {
			t.Fatalf("%+v, %d times told, %v", r, told, err)
		}
		w.whole(to)
		w.served(to.Store().Connect(7), "more", 3)
		// The old bucket is now an earlier state of the same service: it takes the later one, and not the other way about.
		if _, err := Cell(w.Context(), w.from, to.Store().Connect(8), w.id.Cell, host, nil); !errors.Is(err, ErrNewer) {
			t.Errorf("an old state over a new one: %v", err)
		}
		back := w.from.Store().Connect(9)
		if r, err = Cell(w.Context(), to.Store().Connect(10), back, w.id.Cell, host, nil); err != nil || r.There == 0 {
			t.Errorf("back again: %+v, %v", r, err)
		}
		got := w.served(w.from.Store().Connect(11), "none", 0)
		if want == got {
			t.Error("what was added is not there")
		}
		if v := append(to.Store().Violations(), w.from.Store().Violations()...); len(v) > 0 {
			t.Errorf("violations: %v", v)
		}
	})
}

// TestRefused: nothing is written where a move must not be made.
func TestRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		to := sim.New(2)
		if _, err := Cell(w.Context(), w.from, to, w.id.Cell, [16]byte{2}, nil); !errors.Is(err, ErrForeign) {
			t.Errorf("a cell of another host: %v", err)
		}
		if _, err := Cell(w.Context(), sim.New(3), to, w.id.Cell, host, nil); !errors.Is(err, bucket.ErrNotFound) {
			t.Errorf("a bucket without the cell: %v", err)
		}
		// One segment's trailer is damaged for good.
		for _, k := range w.from.Store().Keys() {
			if strings.HasPrefix(k, segment.LogPrefix(w.id.Cell)) {
				w.from.Store().Damage(k, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
				break
			}
		}
		if _, err := Cell(w.Context(), w.from, to, w.id.Cell, host, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("a damaged segment: %v", err)
		}
		if _, epoch := w.log(to); epoch {
			t.Error("the new bucket has an epoch object, and not every segment")
		}
		ctx, cancel := context.WithCancel(w.Context())
		began := time.Now()
		to.OnOp(func(sim.Op, string, int) sim.Fault { cancel(); return sim.Fault{Hang: true} })
		if _, err := Cell(ctx, w.from, to, w.id.Cell, host, nil); !errors.Is(err, context.Canceled) || time.Since(began) > time.Second {
			t.Errorf("told to end: %v after %v", err, time.Since(began))
		}
	})
}

// TestForked: a new bucket from which the cell was served as well, beside the old one, is not mixed with it.
func TestForked(t *testing.T) {
	inWorld(t, func(w *world) {
		to := sim.New(2)
		if _, err := Cell(w.Context(), w.from, to, w.id.Cell, host, nil); err != nil {
			t.Fatal(err)
		}
		w.served(to.Store().Connect(3), "there", 3)
		w.served(w.from.Store().Connect(4), "here", 3)
		w.served(w.from.Store().Connect(5), "later", 3)
		before, _ := w.log(to)
		if _, err := Cell(w.Context(), w.from.Store().Connect(6), to.Store().Connect(7), w.id.Cell, host, nil); !errors.Is(err, ErrForked) {
			t.Errorf("served from both: %v", err)
		}
		// Segments of a later epoch, without an epoch object that says so.
		third := sim.New(8)
		for k, b := range before {
			if !strings.HasPrefix(k, segment.LogPrefix(w.id.Cell)) {
				continue // a bundle of another history says ErrForked
			}
			if err := third.Put(w.Context(), strings.Replace(k, "/0000000000000003/", "/0000000000000009/", 1), []byte(b)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Cell(w.Context(), w.from.Store().Connect(9), third, w.id.Cell, host, nil); !errors.Is(err, ErrNewer) {
			t.Errorf("a later epoch: %v", err)
		}
		if after, _ := w.log(to); len(after) != len(before) {
			t.Errorf("%d segments, before %d", len(after), len(before))
		}
	})
}

// TestTakenOverMeanwhile: another host takes the cell over and stores there while it is copied. What it was told is kept is not
// left behind: the new bucket does not become a journal.
func TestTakenOverMeanwhile(t *testing.T) {
	inWorld(t, func(w *world) {
		to := sim.New(2)
		_, err := Cell(w.Context(), w.from, to, w.id.Cell, host, func(done, all int) {
			if done < all {
				return
			}
			j, err := journal.Open(w.Context(), journal.Config{Takeover: true, Bucket: w.from.Store().Connect(3), Cell: w.id.Cell, Host: [16]byte{2}, LogKey: w.id.LogKey()})
			if err == nil {
				_, err = account.Add(w.Context(), j, "late")
			}
			if err == nil {
				err = j.Close(w.Context())
			}
			if err != nil {
				t.Error(err)
			}
		})
		if _, epoch := w.log(to); !errors.Is(err, ErrForeign) || epoch {
			t.Errorf("%v; epoch object %v", err, epoch)
		}
	})
}

// line is a bucket at the other end of a line with half of the least rate that package steady counts on.
type line struct{ *sim.Bucket }

func (l line) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	p, err := l.Bucket.Get(ctx, key, off, n)
	select {
	case <-time.After(time.Duration(len(p)) * time.Second / (1 << 19)):
		return p, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestSlowLine: a large object arrives over a slow line.
func TestSlowLine(t *testing.T) {
	inWorld(t, func(w *world) {
		if err := w.from.Put(w.Context(), segment.LogPrefix(w.id.Cell)+"large", make([]byte, 8<<20)); err != nil {
			t.Fatal(err)
		}
		to := sim.New(2)
		if _, err := Cell(w.Context(), steady.New(line{w.from}, steady.Config{}), to, w.id.Cell, host, nil); err != nil {
			t.Fatal(err)
		}
		w.whole(to)
	})
}

// The bundles of trailers are moved with the segments: of those that were removed they are all that is left. A damaged one
// is not taken along.
func TestBundlesAreMoved(t *testing.T) {
	inWorld(t, func(w *world) {
		bundle := ""
		for _, k := range w.from.Store().Keys() {
			if strings.HasPrefix(k, segment.BundlePrefix(w.id.Cell)) {
				bundle = k
			}
		}
		if bundle == "" {
			t.Fatal("there is no bundle")
		}
		to := sim.New(2)
		if _, err := Cell(w.Context(), w.from, to, w.id.Cell, host, nil); err != nil {
			t.Fatal(err)
		}
		want, err := w.from.Get(w.Context(), bundle, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := to.Get(w.Context(), bundle, 0, -1); err != nil || string(got) != string(want) {
			t.Errorf("the bundle in the new bucket: %v", err)
		}
		k, err := segment.ParseBundleKey(bundle)
		if err != nil {
			t.Fatal(err)
		}
		for want, change := range map[error]func(*segment.BundleKey){
			ErrForked: func(k *segment.BundleKey) { k.Hash[0]++ },
			ErrNewer:  func(k *segment.BundleKey) { k.Last.Epoch += 9 },
		} {
			other := k
			change(&other)
			fork := sim.New(4)
			if err := fork.Put(w.Context(), other.String(), []byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := Cell(w.Context(), w.from, fork, w.id.Cell, host, nil); !errors.Is(err, want) {
				t.Errorf("bundle %s: %v", other, err)
			}
		}
		w.from.Store().Damage(bundle, func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		to = sim.New(3)
		if _, err := Cell(w.Context(), w.from, to, w.id.Cell, host, nil); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), bundle) {
			t.Errorf("a damaged bundle: %v", err)
		}
		if _, epoch := w.log(to); epoch {
			t.Error("a part of a journal looks whole")
		}
	})
}
