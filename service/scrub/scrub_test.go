package scrub

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket/sim"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view/viewtest"
)

// world is a journal with one customer's blocks in it.
type world struct {
	t   *testing.T
	b   *sim.Bucket
	cfg journal.Config
	j   *journal.Journal
	c   *viewtest.Customer
}

// inWorld runs fn in virtual time with a journal of so many segments, each with two blocks.
func inWorld(t *testing.T, segments int, fn func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, b: sim.New(1), c: viewtest.New(1)}
		w.cfg = journal.Config{Create: true, Bucket: w.b, Cell: holdfast.CellID{1}, Host: [16]byte{1}, LogKey: viewtest.LogKey()}
		var err error
		if w.j, err = journal.Open(context.Background(), w.cfg); err != nil {
			t.Fatal(err)
		}
		defer w.close()
		w.append(func(tx *journal.Tx) error {
			return errors.Join(tx.Record(w.c.Account()), tx.Record(w.c.Token(1<<62)), tx.Record(w.c.Redeemed()))
		})
		for _, next := range []func() history.Record{w.c.Genesis, w.c.Enrol, w.c.Open} {
			r := next()
			w.append(func(tx *journal.Tx) error {
				_, err := tx.History(r)
				return err
			})
			w.c.Accepted(r)
		}
		for i := range segments {
			w.store(i)
		}
		fn(w)
	})
}

func (w *world) close() {
	if err := w.j.Close(context.Background()); err != nil && !errors.Is(err, journal.ErrClosed) {
		w.t.Error(err)
	}
}

func (w *world) append(fn func(tx *journal.Tx) error) {
	w.t.Helper()
	t, err := w.j.Append(context.Background(), fn)
	if err == nil {
		w.j.Flush()
		err = t.Wait(context.Background())
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// store stores two blocks in a segment of their own.
func (w *world) store(i int) {
	w.t.Helper()
	w.append(func(tx *journal.Tx) error {
		for k := range 2 {
			b := w.c.Chunk(10*i+k, 3000)
			if err := tx.Stored(w.c.Session, b.Name, b.Kind, b.Links, b.Sealed); err != nil {
				return err
			}
		}
		return nil
	})
}

// spoil damages the first block of store(i) and returns its name.
func (w *world) spoil(i int) holdfast.Name {
	w.t.Helper()
	name := w.c.Chunk(10*i, 3000).Name
	row, ok, err := w.j.Acked().Block(w.c.Vault, w.c.Group, name)
	if err != nil || !ok {
		w.t.Fatal(err)
	}
	seg, _, err := w.j.Acked().Segment(row.Pos)
	if err != nil {
		w.t.Fatal(err)
	}
	w.b.Store().Damage(seg.Key.String(), func(body []byte) []byte { body[row.Off+7] ^= 1; return body })
	return name
}

func (w *world) damaged() (names []holdfast.Name) {
	w.t.Helper()
	all, err := w.j.Damaged(w.c.Vault, w.c.Group, holdfast.Name{}, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, d := range all {
		names = append(names, d.Name)
	}
	return names
}

// free is a turn that nothing bounds.
func free() turnOf { return turnOf{enough: func() bool { return false }, did: func(uint64) {}} }

// TestCycle scrubs hour by hour. Each turn does its part, everything is read once in a cycle and before it is over,
// a restart goes on where it was, and the next cycle begins when its time has come.
func TestCycle(t *testing.T) {
	inWorld(t, 60, func(w *world) {
		bad := w.spoil(41)
		cfg, s := Config{Journal: w.j, Cycle: 10 * 24 * time.Hour}, State{}
		began, turns, most := time.Now(), 0, uint64(0)
		var found Found
		for !s.Done {
			r, why, err := turn(context.Background(), cfg, &s, time.Now(), free())
			if err != nil || why != "" {
				t.Fatal(why, err)
			}
			found.plus(r.Found)
			most = max(most, r.Segments)
			if turns++; turns == 100 { // a restart, with what is remembered
				w.close()
				var err error
				if w.j, err = journal.Open(context.Background(), w.cfg); err != nil {
					t.Fatal(err)
				}
				cfg.Journal = w.j
			}
			time.Sleep(Turn)
		}
		took := time.Since(began)
		if found.Blocks != 120 || found.Damaged != 1 || fmt.Sprint(w.damaged()) != fmt.Sprint([]holdfast.Name{bad}) {
			t.Errorf("%+v, damaged are %v", found, w.damaged())
		}
		if took > cfg.Cycle || took < cfg.Cycle*8/10 || most > 3 {
			t.Errorf("it took %s and %d turns, with up to %d segments in one", took, turns, most)
		}
		if s.Last.Found != found || s.Last.Ended.Sub(s.Last.Began) > cfg.Cycle {
			t.Errorf("remembered as %+v", s.Last)
		}
		if r, _, err := turn(context.Background(), cfg, &s, time.Now(), free()); err != nil || r.Segments != 0 {
			t.Errorf("before the next is due: %+v, %v", r, err)
		}
		time.Sleep(cfg.Cycle - time.Since(began))
		if r, _, err := turn(context.Background(), cfg, &s, time.Now(), free()); err != nil || r.Segments == 0 || s.Done || s.Total.Segments != found.Segments+r.Segments {
			t.Errorf("when the next is due: %+v, %v", r, err)
		}
	})
}

// TestHurry: somebody who asks gets all of the cycle at once, but for what the budget forbids.
func TestHurry(t *testing.T) {
	inWorld(t, 30, func(w *world) {
		cfg, s := Config{Journal: w.j, Budget: 60_000}, State{Hurry: true}
		r, why, err := turn(context.Background(), cfg, &s, time.Now(), free())
		if err != nil || !strings.Contains(why, "budget of 60000 bytes") || r.Read > cfg.Budget || r.Read < cfg.Budget-10_000 || s.Done || s.Hurry {
			t.Errorf("%+v, %q, %v", r, why, err)
		}
		s.Hurry = true
		rest, why, err := turn(context.Background(), cfg, &s, time.Now(), free()) // in another month
		if err != nil || why == "" || rest.Segments == 0 {
			t.Errorf("%+v, %q, %v", rest, why, err)
		}
		for !s.Done {
			s.Hurry = true
			one, _, err := turn(context.Background(), Config{Journal: w.j}, &s, time.Now(), turnOf{enough: func() bool { return true }, did: func(uint64) {}})
			if err != nil || one.Segments > 1 {
				t.Fatalf("%+v, %v", one, err)
			}
			rest = rest.Plus(one)
		}
		if all := r.Plus(rest); all.Blocks != 60 || !all.Done {
			t.Errorf("all in all %+v", all)
		}
	})
}

// TestSample: about so many of a hundred segments are read, others in each cycle.
func TestSample(t *testing.T) {
	cfg, twice, n := Config{Sample: 20}, 0, 0
	for i := range uint64(10_000) {
		a, b := cfg.picks(1, segment.Position{Epoch: 1, Seq: i}), cfg.picks(2, segment.Position{Epoch: 1, Seq: i})
		if a {
			n++
		}
		if a && b {
			twice++
		}
	}
	if n < 1900 || n > 2100 || twice < 340 || twice > 460 {
		t.Errorf("%d of 10000 are picked, %d of them twice", n, twice)
	}
	inWorld(t, 100, func(w *world) {
		s := State{Hurry: true}
		r, _, err := turn(context.Background(), Config{Journal: w.j, Sample: 20}, &s, time.Now(), free())
		if err != nil || !r.Done || r.Segments < 5 || r.Segments > 40 || r.Blocks > 2*r.Segments {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

// TestUnreadableSegmentIsPassed: a request that fails for ever does not keep the others from being read, and is counted; a
// bucket that is away ends the turn, and nothing is passed.
func TestUnreadableSegmentIsPassed(t *testing.T) {
	inWorld(t, 12, func(w *world) {
		row, _, err := w.j.Acked().Block(w.c.Vault, w.c.Group, w.c.Chunk(50, 3000).Name)
		if err != nil {
			t.Fatal(err)
		}
		cursed, away := segment.Prefix(holdfast.CellID{1}, row.Pos), false
		w.b.OnOp(func(op sim.Op, key string, _ int) (f sim.Fault) {
			if op == sim.OpGet && (strings.HasPrefix(key, cursed) || away && strings.Contains(key, "/log/")) {
				f.Err = errors.New("cursed")
			}
			return f
		})
		s := State{Hurry: true}
		away = true
		if r, _, err := turn(context.Background(), Config{Journal: w.j}, &s, time.Now(), free()); err == nil || r.Segments != 0 || s.After != (segment.Position{}) {
			t.Errorf("while it is away: %+v, %v, %+v", r, err, s)
		}
		away = false
		r, _, err := turn(context.Background(), Config{Journal: w.j}, &s, time.Now(), free())
		if err != nil || !r.Done || r.Unread != 1 || r.Blocks != 22 || r.Damaged+r.Missing+r.Trailers != 0 {
			t.Errorf("%+v, %v", r, err)
		}
		w.b.OnOp(nil)
	})
}
