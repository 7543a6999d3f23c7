package journal

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// cleaning is a journal in virtual time, and its customers.
type cleaning struct {
	*testing.T
	bucket *sim.Bucket
	j      *Journal
	all    []*client
}

func inCleaning(t *testing.T, customers int, fn func(w *cleaning)) {
	synctest.Test(t, func(t *testing.T) {
		w := &cleaning{T: t, bucket: sim.New(1)}
		cfg := config(w.bucket)
		cfg.Watch = seldom
		w.j = mustOpen(t, cfg)
		for n := range customers {
			c := &client{Customer: viewtest.New(n + 1), j: w.j}
			w.must(c.enrol(context.Background()))
			w.must(c.record(context.Background(), c.Open()))
			w.all = append(w.all, c)
		}
		fn(w)
		time.Sleep(maxAge + time.Second)
		synctest.Wait()
		w.j.mu.Lock()
		if w.j.held != 0 || w.j.lent || w.j.borrowing || w.j.reserved || len(w.j.free) > maxPending {
			t.Errorf("in the end %d segments are held and %d kept, lent %v, somebody borrows %v or makes a segment %v", w.j.held, len(w.j.free), w.j.lent, w.j.borrowing, w.j.reserved)
		}
		w.j.mu.Unlock()
		for _, c := range w.all {
			c.check(t, w.j)
		}
		checkStore(t, w.bucket.Store(), w.j)
		mustClose(t, w.j)
	})
}

func (w *cleaning) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// block returns the acknowledged row of a block.
func (w *cleaning) block(c *client, n holdfast.Name) (view.Block, bool) {
	w.Helper()
	b, ok, err := w.j.Acked().Block(c.Vault, c.Group, n)
	w.must(err)
	return b, ok
}

// at returns the segments at these places.
func (w *cleaning) at(all ...segment.Position) (out []view.Segment) {
	w.Helper()
	for _, pos := range all {
		s, ok, err := w.j.Acked().Segment(pos)
		if err != nil || !ok {
			w.Fatalf("segment %s: %v", pos, err)
		}
		out = append(out, s)
	}
	return out
}

func (w *cleaning) clean(lim CleanLimits, segments ...view.Segment) CleanReport {
	w.Helper()
	r, err := w.j.Clean(context.Background(), segments, lim)
	w.must(err)
	return r
}

// TestCleanGroupsVaults: what comes out of several segments lies in one, in the order of the vaults, and of one vault in
// the order in which it lay; and it can be cleaned again.
func TestCleanGroupsVaults(t *testing.T) {
	inCleaning(t, 3, func(w *cleaning) {
		var from []segment.Position
		for run := range 4 {
			for _, c := range w.all { // three customers in each segment, by turns
				b := c.Chunk(run, 1000+run)
				_, err := w.j.Append(context.Background(), func(tx *Tx) error { return tx.Stored(c.Session, b.Name, b.Kind, b.Links, b.Sealed) })
				w.must(err)
				c.sent, c.acked = append(c.sent, b), append(c.acked, b)
			}
			time.Sleep(maxAge + time.Second)
			from = append(from, w.j.Position())
		}
		r := w.clean(CleanLimits{}, w.at(from...)...)
		if r.Looked != 4 || r.Segments != 4 || r.Blocks != 12 || r.Made != 1 || r.Bytes != 3*(1000+1001+1002+1003) || r.Failed != 0 {
			t.Errorf("%+v", r)
		}
		to := w.j.Position()
		type at struct {
			vault holdfast.VaultID
			run   int
			off   uint32
		}
		var all []at
		for _, c := range w.all {
			for run := range 4 {
				b, ok := w.block(c, c.Chunk(run, 1).Name)
				if !ok || b.Pos != to {
					t.Fatalf("chunk %d is at %s, not %s", run, b.Pos, to)
				}
				all = append(all, at{c.Vault, run, b.Off})
			}
		}
		slices.SortFunc(all, func(a, b at) int { return int(a.off) - int(b.off) })
		if !slices.IsSortedFunc(all, func(a, b at) int {
			if c := strings.Compare(string(a.vault[:]), string(b.vault[:])); c != 0 {
				return c
			}
			return a.run - b.run
		}) {
			t.Errorf("they lie in the order %v", all)
		}
		for _, s := range w.at(from...) {
			if s.Blocks != 0 || s.Bytes != 0 {
				t.Errorf("%+v still has live blocks", s)
			}
		}
		if r := w.clean(CleanLimits{}, w.at(from...)...); r.Blocks != 0 || r.Made != 0 || w.j.Position() != to {
			t.Errorf("cleaned twice: %+v", r)
		}
		if r := w.clean(CleanLimits{}, w.at(to)...); r.Blocks != 12 || r.Made != 1 {
			t.Errorf("what was moved is moved again: %+v", r)
		}
		if t.Failed() {
			return
		}
		got, err := w.j.Retire(context.Background(), w.at(append(from, to, w.j.Position())...))
		if err != nil || got.Segments != 5 {
			t.Errorf("%+v, %v", got, err)
		}
		w.at(w.j.Position()) // the one that holds everything is not retired
	})
}

// TestCleanSkipsWhatWentMeanwhile: a block that is freed between the look at it and the record is not moved, and freed
// once; what is stored anew under its name stays where it is.
func TestCleanSkipsWhatWentMeanwhile(t *testing.T) {
	inCleaning(t, 1, func(w *cleaning) {
		c := w.all[0]
		ctx := context.Background()
		stays, goes, again := c.Chunk(1, 5000), c.Chunk(2, 5000), c.Chunk(3, 5000)
		w.must(c.upload(ctx, stays, goes, again))
		from := w.j.Position()
		w.j.EndSession(c.Session)
		time.Sleep(view.Keep + time.Minute)
		var rows []Candidate
		for _, b := range []viewtest.Block{goes, again} {
			row, _ := w.block(c, b.Name)
			rows = append(rows, Candidate{b.Name, row})
		}
		done := false
		w.bucket.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			p, err := segment.ParseKey(key)
			if op == sim.OpGet && err == nil && p.Position == from && !done {
				w.j.mu.Lock()
				lent := w.j.lent
				w.j.mu.Unlock()
				if lent { // it reads blocks now, not the trailer
					done = true
					if n, err := w.j.Condemn(ctx, rows); err != nil || n != 2 {
						t.Errorf("%d condemned, %v", n, err)
					}
					w.must(c.record(ctx, c.Open()))
					w.must(c.upload(ctx, again))
				}
			}
			return sim.Fault{}
		})
		r := w.clean(CleanLimits{}, w.at(from)...)
		w.bucket.OnOp(nil)
		if !done || r.Blocks != 1 || r.Bytes != 5000 || r.Made != 1 {
			t.Errorf("%v, %+v", done, r)
		}
		if b, ok := w.block(c, stays.Name); !ok || b.Pos != w.j.Position() {
			t.Errorf("%+v, %v", b, ok)
		}
		if _, ok := w.block(c, goes.Name); ok {
			t.Error("what was freed is there")
		}
		if b, ok := w.block(c, again.Name); !ok || b.Pos == from || b.Pos == w.j.Position() {
			t.Errorf("what was stored anew was moved: %+v, %v", b, ok)
		}
		c.acked = []viewtest.Block{stays, again}
	})
}

// TestCleanLeavesDamage: a block that fails its checksum is left where it is and named; the others are moved.
func TestCleanLeavesDamage(t *testing.T) {
	inCleaning(t, 1, func(w *cleaning) {
		c := w.all[0]
		blocks := []viewtest.Block{c.Chunk(1, 5000), c.Chunk(2, 5000), c.Chunk(3, 5000)}
		w.must(c.upload(context.Background(), blocks...))
		from := w.at(w.j.Position())[0]
		bad, _ := w.block(c, blocks[1].Name)
		s := w.bucket.Store()
		s.Damage(from.Key.String(), func(body []byte) []byte { body[bad.Off+77] ^= 1; return body })
		r := w.clean(CleanLimits{}, from)
		if r.Blocks != 2 || r.Failed != 1 || !errors.Is(r.Why, ErrDamaged) || len(r.Damaged) != 1 || r.Damaged[0].Name != blocks[1].Name || r.Damaged[0].Block.Pos != bad.Pos {
			t.Errorf("%+v", r)
		}
		if b, _ := w.block(c, blocks[1].Name); b != bad {
			t.Errorf("the damaged block was moved: %+v", b)
		}
		if got, err := w.j.Retire(context.Background(), w.at(from.Key.Position)); err != nil || got.Segments != 0 {
			t.Errorf("a segment with a damaged block was retired: %+v, %v", got, err)
		}
		s.Damage(from.Key.String(), func(body []byte) []byte { body[bad.Off+77] ^= 1; return body })
		if r := w.clean(CleanLimits{}, w.at(from.Key.Position)...); r.Blocks != 1 || r.Failed != 0 {
			t.Errorf("when it is whole again: %+v", r)
		}
	})
}

// TestCleanStopsAtItsLimits: so many bytes, a time, and when it is told.
func TestCleanStopsAtItsLimits(t *testing.T) {
	inCleaning(t, 1, func(w *cleaning) {
		c := w.all[0]
		var from []segment.Position
		var times []int64
		for i := range 6 {
			times = append(times, w.j.Now())
			w.must(c.upload(context.Background(), c.Chunk(i, 1000)))
			from = append(from, w.j.Position())
			time.Sleep(time.Minute)
		}
		if r := w.clean(CleanLimits{Bytes: 1500}, w.at(from...)...); r.Looked != 2 || r.Segments != 2 || r.Bytes != 2000 {
			t.Errorf("bytes: %+v", r)
		}
		if r := w.clean(CleanLimits{Before: times[3]}, w.at(from[2:]...)...); r.Looked != 1 || r.Segments != 1 || r.Bytes != 1000 {
			t.Errorf("before: %+v", r)
		}
		asked := 0
		if r := w.clean(CleanLimits{Enough: func() bool { asked++; return asked > 2 }}, w.at(from[3:]...)...); r.Looked != 2 || r.Segments != 2 {
			t.Errorf("enough: %+v", r)
		}
	})
}

// TestCleanMovesLargeSegments: more than goes into one segment goes into several, each no larger than it may be.
func TestCleanMovesLargeSegments(t *testing.T) {
	inCleaning(t, 1, func(w *cleaning) {
		c := w.all[0]
		var blocks []viewtest.Block
		for i := range 9 {
			b := c.Chunk(i, 4<<20)
			blocks = append(blocks, b)
		}
		var from []segment.Position
		for i := 0; i < 9; i += 3 {
			w.must(c.upload(context.Background(), blocks[i:i+3]...))
			from = append(from, w.j.Position())
		}
		r := w.clean(CleanLimits{}, w.at(from...)...)
		if r.Blocks != 9 || r.Made != 3 || r.Segments != 3 {
			t.Errorf("%+v", r)
		}
		for _, b := range blocks {
			row, _ := w.block(c, b.Name)
			if s := w.at(row.Pos)[0]; s.Body() > maxMove {
				t.Errorf("a segment of %d bytes was made", s.Body())
			}
		}
	})
}

// TestBorrow: a place that is lent leaves two for segments, appending goes on, and who waits for it gets the next one
// that is free even if others always want it.
func TestBorrow(t *testing.T) {
	inCleaning(t, 1, func(w *cleaning) {
		c := w.all[0]
		ctx := context.Background()
		hold := make(chan struct{})
		w.bucket.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if op == sim.OpPut {
				<-hold
			}
			return sim.Fault{}
		})
		// Appending wants all places for itself: whenever one segment is stored, the next is full already.
		uploads, ended := 0, make(chan struct{})
		go func() {
			defer close(ended)
			for ; uploads < 20; uploads++ {
				b := c.Chunk(uploads, 4<<20)
				if _, err := w.j.Append(ctx, func(tx *Tx) error { return tx.Stored(c.Session, b.Name, b.Kind, b.Links, b.Sealed) }); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		synctest.Wait()
		if w.j.held != maxPending {
			t.Fatalf("%d segments are held", w.j.held)
		}
		var giveBack func()
		got := make(chan struct{})
		go func() {
			defer close(got)
			var err error
			if giveBack, err = w.j.Borrow(ctx); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		short, cancel := context.WithTimeout(ctx, time.Second)
		if _, err := w.j.Borrow(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
		hold <- struct{}{}
		synctest.Wait()
		select {
		case <-got:
		default:
			t.Error("the place of a segment that was stored is not lent to who waits for it")
		}
		// With the place lent, the rest is appended all the same.
		for over := false; !over; synctest.Wait() {
			select {
			case hold <- struct{}{}:
			case <-ended:
				over = true
			}
		}
		w.bucket.OnOp(nil)
		close(hold)
		<-got
		giveBack()
		giveBack()
	})
}
