package journal

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/never"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// vanishing is a cell with an archive, of which the bucket is about to deny a segment.
type vanishing struct {
	*testing.T
	b    *sim.Bucket
	cfg  Config
	j    *Journal
	c    *client
	row  view.Block    // the first block
	seg  view.Segment  // that holds it
	key  string        // of that
	deny atomic.Uint32 // of whichever calls the bucket says that there is nothing
}

const (
	denyGet  = 1 << iota // of the segment
	denyList             // likewise
	denyAll              // of everything
)

func (w *vanishing) fault(op sim.Op, key string, _ int) sim.Fault {
	deny, mine := w.deny.Load(), key == w.key || strings.HasPrefix(w.key, key)
	switch {
	case deny&denyAll != 0 && op == sim.OpGet, deny&denyGet != 0 && op == sim.OpGet && mine:
		return sim.Fault{Err: bucket.ErrNotFound}
	case deny&denyAll != 0 && (op == sim.OpPut || op == sim.OpNow):
		return sim.Fault{Err: sim.ErrFault}
	}
	return sim.Fault{}
}

// List hides the segment.
func (w *vanishing) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	all, err := w.b.List(ctx, prefix, after, max)
	deny, out := w.deny.Load(), all[:0]
	for _, o := range all {
		if deny&denyAll == 0 && (deny&denyList == 0 || o.Key != w.key) {
			out = append(out, o)
		}
	}
	return out, err
}

// lister is the bucket with the list of a vanishing.
type lister struct {
	bucket.Bucket
	w *vanishing
}

func (l lister) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	return l.w.List(ctx, prefix, after, max)
}

// vanish runs fn and returns the never events.
func vanish(t *testing.T, fn func(w *vanishing)) (events []never.Event) {
	synctest.Test(t, func(t *testing.T) {
		w := &vanishing{T: t, b: sim.New(1)}
		w.cfg = config(lister{w.b, w})
		w.cfg.Dir = filepath.Join(t.TempDir(), "view")
		w.j = mustOpen(t, w.cfg)
		w.c = newClient(t, w.j, 1)
		ctx := context.Background()
		for run := range 2 {
			if err := w.c.backup(ctx, run, 4); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if w.row, _, err = w.j.Acked().Block(w.c.Vault, w.c.Group, w.c.acked[0].Name); err != nil {
			t.Fatal(err)
		}
		if w.seg, _, err = w.j.Acked().Segment(w.row.Pos); err != nil {
			t.Fatal(err)
		}
		w.key = w.seg.Key.String()
		w.b.OnOp(w.fault)
		events = caught(t, func() { fn(w) })
		_ = w.j.Close(ctx)
		if v := w.b.Store().Violations(); len(v) > 0 {
			t.Error(v)
		}
	})
	return events
}

// read reads the block of the segment that is denied.
func (w *vanishing) read() error {
	_, err := w.j.ReadBlock(context.Background(), w.row)
	return err
}

// frozen fails the test unless deleting is frozen for the segment, or is not.
func (w *vanishing) frozen(want bool) {
	w.Helper()
	all := w.j.Freezes()
	if got := len(all) == 1 && all[0].Reason == segment.ReasonContradiction && all[0].Place == w.row.Pos; got != want || !want && len(all) > 0 {
		w.Errorf("frozen is %v, not %v: %+v; %s", got, want, all, w.j.Observed())
	}
	if err := w.j.MayDelete(context.Background()); (err == nil) == want {
		w.Errorf("may delete: %v", err)
	}
}

// works fails the test unless what has nothing to do with the segment goes on.
func (w *vanishing) works(run int) {
	w.Helper()
	if err := w.c.backup(context.Background(), run, 4); err != nil {
		w.Errorf("writing does not go on: %v", err)
	}
	last := w.c.acked[len(w.c.acked)-1]
	row, ok, err := w.j.Acked().Block(w.c.Vault, w.c.Group, last.Name)
	if err == nil && ok {
		_, err = w.j.ReadBlock(context.Background(), row)
	}
	if err != nil || !ok {
		w.Errorf("reading does not go on: %v", err)
	}
}

// whole fails the test unless everything is there.
func (w *vanishing) whole() {
	w.Helper()
	w.c.check(w.T, w.j)
	checkStore(w.T, w.b.Store(), w.j)
}

// thaws fails the test unless the freeze ends by itself, with a record that says why.
func (w *vanishing) thaws() {
	w.Helper()
	time.Sleep(2*(seenLooks+1)*lookFor + time.Minute)
	w.frozen(false)
	e := w.j.Ended()
	if len(e) == 0 || e[len(e)-1].Reason != segment.ReasonContradiction || e[len(e)-1].Place != w.row.Pos || !strings.Contains(e[len(e)-1].Why, w.row.Pos.String()) {
		w.Errorf("ended: %+v", e)
	}
	if s := w.j.Observed(); s != "" {
		w.Errorf("still looking: %s", s)
	}
	// The record says the same to everybody.
	var found *segment.Thawed
	for _, f := range landings(w.T, w.b) {
		_, tr, err := fetchTrailer(context.Background(), w.b, f)
		if err != nil {
			w.Fatal(err)
		}
		for _, r := range tr.Records {
			if r, ok := r.Record.(segment.Thawed); ok {
				found = &r
			}
		}
	}
	if found == nil || found.By != "" || found.Reason != segment.ReasonContradiction || !strings.Contains(found.Text, w.row.Pos.String()) {
		w.Errorf("the record of it: %+v", found)
	}
}

// One way to the store answers 404 for a live object, for hours; another shows it. Nobody notices.
func TestScenarioS1OneReadPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := stale{Bucket: sim.New(1)}
		j := mustOpen(t, config(&b))
		c := newClient(t, j, 1)
		if err := c.backup(ctx, 0, 4); err != nil {
			t.Fatal(err)
		}
		b.on.Store(true)
		for range 6 {
			time.Sleep(time.Hour)
			c.check(t, j)
			if f := j.Freezes(); len(f) > 0 {
				t.Fatal(f)
			}
		}
		if b.denied.Load() == 0 {
			t.Error("the test does not test")
		}
		mustClose(t, j)
	})
}

// stale says of every segment, over connections that were used before, that there is none.
type stale struct {
	*sim.Bucket
	on     atomic.Bool
	denied atomic.Int32
}

func (b *stale) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if b.on.Load() && strings.Contains(key, "/log/") && !bucket.IsFresh(ctx) {
		b.denied.Add(1)
		return nil, bucket.ErrNotFound
	}
	return b.Bucket.Get(ctx, key, off, n)
}

// The store lists a live object and answers 404 for it, for hours: deleting freezes at once and stays so, also for the
// next process; everything else goes on; nothing is called gone. When the object can be read again, deleting thaws.
func TestScenarioS1NotReadableForHours(t *testing.T) {
	events := vanish(t, func(w *vanishing) {
		w.frozen(false)
		w.deny.Store(denyGet)
		if err := w.read(); !errors.Is(err, bucket.ErrNotFound) {
			w.Fatal(err)
		}
		w.frozen(true)
		for i := range 3 {
			time.Sleep(time.Hour)
			w.works(2 + i)
			w.frozen(true)
		}
		if s := w.j.Observed(); !strings.Contains(s, "none can be read") {
			w.Errorf("observed: %s", s)
		}
		mustClose(w.T, w.j)
		w.j = mustOpen(w.T, w.cfg)
		w.c.resume(w.T, w.j)
		w.frozen(true)
		time.Sleep(time.Hour)
		w.frozen(true)
		w.deny.Store(0)
		time.Sleep(lookFor) // one look, of the three that it takes
		w.frozen(true)
		w.thaws()
		w.whole()
	})
	if len(events) > 0 {
		t.Errorf("%+v", events)
	}
}

// A start finds another segment missing, for a moment, before it looked for the one that froze deleting: that the other
// is back thaws nothing.
func TestScenarioS1AnotherAfterAStart(t *testing.T) {
	events := vanish(t, func(w *vanishing) {
		w.deny.Store(denyGet)
		if err := w.read(); !errors.Is(err, bucket.ErrNotFound) {
			w.Fatal(err)
		}
		for i := range 3 { // a start reads the trailers of the newest segments
			w.works(2 + i)
		}
		mustClose(w.T, w.j)
		w.j = mustOpen(w.T, w.cfg)
		other, ok, err := w.j.Acked().Segment(w.j.Position())
		if err != nil || !ok || other.Key.Position == w.row.Pos {
			w.Fatal(other, ok, err)
		}
		w.j.contradict(other.Key, int64(other.Size), "not there for a moment")
		time.Sleep(time.Hour)
		w.frozen(true)
		w.deny.Store(0)
		time.Sleep(2*(seenLooks+1)*lookFor + time.Minute)
		w.frozen(false)
	})
	if len(events) > 0 {
		t.Errorf("%+v", events)
	}
}

// The object comes and goes: looks that find it count only as far as no read has missed it since.
func TestScenarioS1ComesAndGoes(t *testing.T) {
	events := vanish(t, func(w *vanishing) {
		for range 20 {
			w.deny.Store(denyGet)
			if err := w.read(); !errors.Is(err, bucket.ErrNotFound) {
				w.Fatal(err)
			}
			w.deny.Store(0)
			for range 4 * seenLooks { // one or two looks
				w.frozen(true)
				time.Sleep(2 * lookFor * (seenLooks - 1) / seenLooks / (4 * seenLooks))
			}
		}
		w.thaws()
		w.whole()
	})
	if len(events) > 0 {
		t.Errorf("%+v", events)
	}
}

// The object was gone for some minutes, by name and in the list. It is back, and deleting goes on by itself, with all
// that it has to free still there.
func TestScenarioS1ClearsItself(t *testing.T) {
	events := vanish(t, func(w *vanishing) {
		w.deny.Store(denyGet | denyList)
		for range 3 { // however many meet it
			if err := w.read(); !errors.Is(err, bucket.ErrNotFound) {
				w.Fatal(err)
			}
		}
		w.frozen(true)
		time.Sleep(goneFor - 2*lookFor)
		w.frozen(true)
		if s := w.j.Observed(); !strings.Contains(s, "neither listed nor there") {
			w.Errorf("observed: %s", s)
		}
		w.deny.Store(0)
		w.thaws()
		w.whole()
		// It can happen again.
		w.deny.Store(denyGet | denyList)
		if err := w.read(); !errors.Is(err, bucket.ErrNotFound) {
			w.Fatal(err)
		}
		w.frozen(true)
		w.deny.Store(0)
		w.thaws()
	})
	if len(events) > 0 {
		t.Errorf("%+v", events)
	}
}

// A person who thaws is believed, and the next read of what is still missing freezes again.
func TestScenarioS1ThawedByHand(t *testing.T) {
	events := vanish(t, func(w *vanishing) {
		w.deny.Store(denyGet | denyList)
		if err := w.read(); err == nil {
			w.Fatal("it was read")
		}
		w.frozen(true)
		if _, err := w.j.Thaw(context.Background(), "operator", "it is known"); err != nil {
			w.Fatal(err)
		}
		time.Sleep(time.Hour)
		w.frozen(false)
		if err := w.read(); err == nil {
			w.Fatal("it was read")
		}
		w.frozen(true)
	})
	if len(events) > 0 {
		t.Errorf("%+v", events)
	}
}

// A person who thaws as soon as it freezes is believed as well, however many were about to record the freeze.
func TestThawIsNotUndone(t *testing.T) {
	events := vanish(t, func(w *vanishing) {
		w.deny.Store(denyGet | denyList)
		for round := range 100 {
			if err := w.read(); err == nil {
				w.Fatal("it was read")
			}
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() { _ = w.j.MayDelete(context.Background()) })
			}
			if _, err := w.j.Thaw(context.Background(), "operator", "it is known"); err != nil {
				w.Fatal(err)
			}
			all.Wait()
			synctest.Wait()
			if f := w.j.Freezes(); len(f) > 0 {
				w.Fatalf("round %d: frozen again: %+v", round, f)
			}
		}
	})
	if len(events) > 0 {
		t.Errorf("%+v", events)
	}
}

// The object stays missing, by name and in the list, while the store answers for others: that must never happen, and
// stops the service, not before it was looked for a dozen times over ten minutes. When it is back the service starts,
// also if a process ended meanwhile, and thaws.
func TestScenarioS1BecomesNever(t *testing.T) {
	var began, stopped time.Time
	events := vanish(t, func(w *vanishing) {
		w.deny.Store(denyGet | denyList)
		began = time.Now()
		if err := w.read(); err == nil {
			w.Fatal("it was read")
		}
		for w.j.Err() == nil && time.Since(began) < time.Hour {
			w.frozen(true)
			time.Sleep(15 * time.Second)
		}
		stopped = time.Now()
		_ = w.j.Close(context.Background())
		if _, err := Open(context.Background(), w.cfg); !errors.Is(err, ErrContradiction) {
			w.Errorf("start without the object: %v", err)
		}
		w.deny.Store(0)
		w.j = mustOpen(w.T, w.cfg)
		w.frozen(true)
		w.thaws()
		w.whole()
	})
	if len(events) != 1 || !strings.Contains(events[0].What, "missing from the bucket") || events[0].Todo == "" {
		t.Fatalf("%+v", events)
	}
	if took := stopped.Sub(began); took < goneFor || took > 2*lookFor*(goneLooks+1) {
		t.Errorf("it became one after %s", took)
	}
}

// Everything answers 404 and every list is empty: another bucket is mounted. That says nothing about any object. The
// service waits, deletes nothing, and goes on when the bucket is back, for hours if need be.
func TestScenarioS1AnotherBucketMounted(t *testing.T) {
	events := vanish(t, func(w *vanishing) {
		w.deny.Store(denyAll)
		if err := w.read(); !errors.Is(err, bucket.ErrNotFound) {
			w.Fatal(err)
		}
		time.Sleep(5 * time.Hour)
		w.frozen(true)
		if since, cause := w.j.Trouble(); since.IsZero() {
			w.Errorf("trouble since %s: %v", since, cause)
		}
		if err := w.j.Err(); err != nil {
			w.Fatal(err)
		}
		w.deny.Store(0)
		time.Sleep(time.Minute)
		w.works(3)
		w.thaws()
		w.whole()
	})
	if len(events) > 0 {
		t.Errorf("%+v", events)
	}
}
