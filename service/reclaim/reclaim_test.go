package reclaim

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket/sim"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// world is a cell on a simulated bucket, with one customer.
type world struct {
	*testing.T
	bucket   *sim.Bucket
	store    *sim.Store
	j        *journal.Journal
	c        *viewtest.Customer
	kept     []archive // that must be readable
	spending *Spending
	n        int // archives made
}

// archive is an archive and its blocks.
type archive struct {
	record history.Record
	blocks []viewtest.Block
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) open() {
	w.Helper()
	j, err := journal.Open(context.Background(), journal.Config{
		Create: true, Bucket: w.bucket, Cell: holdfast.CellID{0xce, 0x11}, Host: [16]byte{0xa}, LogKey: viewtest.LogKey(), Watch: 1000 * time.Hour,
	})
	w.must(err)
	w.j = j
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, bucket: sim.New(1), c: viewtest.New(1), spending: new(Spending)}
	w.store = w.bucket.Store()
	w.open()
	w.must(w.append(func(tx *journal.Tx) error {
		return errors.Join(tx.Record(w.c.Account()), tx.Record(w.c.Token(1<<62)), tx.Record(w.c.Redeemed()))
	}))
	w.record(w.c.Genesis())
	w.record(w.c.Enrol())
	return w
}

// restart crashes the process and starts another.
func (w *world) restart() {
	w.bucket.Crash()
	w.j.Close(context.Background())
	w.bucket = w.store.Connect(2)
	w.open()
	time.Sleep(time.Second) // another process begins a little later
}

func (w *world) close() { w.must(w.j.Close(context.Background())) }

func (w *world) append(fn func(*journal.Tx) error) error {
	t, err := w.j.Append(context.Background(), fn)
	if err != nil {
		return err
	}
	w.j.Flush()
	return t.Wait(context.Background())
}

func (w *world) record(r history.Record) {
	w.Helper()
	w.must(w.append(func(tx *journal.Tx) error {
		_, err := tx.History(r)
		return err
	}))
	w.c.Accepted(r)
}

// random returns size bytes that follow from n.
func random(n uint64, size int) []byte {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], n)
	b := make([]byte, size)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// backup makes an archive of these chunks, each of so many bytes, and a tree over them.
func (w *world) backup(size int, chunks ...int) archive {
	w.Helper()
	w.record(w.c.Open())
	var a archive
	var names []holdfast.Name
	for _, i := range chunks {
		b := w.c.Chunk(i, 1)
		b.Sealed = random(uint64(i), size)
		a.blocks, names = append(a.blocks, b), append(names, b.Name)
	}
	w.n++
	tree := w.c.Over(holdfast.KindTree, w.n, names...)
	root := w.c.Over(holdfast.KindArchive, w.n, tree.Name)
	a.blocks = append(a.blocks, tree, root)
	for _, b := range a.blocks {
		_, err := w.j.Append(context.Background(), func(tx *journal.Tx) error {
			err := tx.Stored(w.c.Session, b.Name, b.Kind, b.Links, b.Sealed)
			if errors.Is(err, view.ErrDuplicate) {
				return nil
			}
			return err
		})
		w.must(err)
	}
	a.record = w.c.Commit(root.Name)
	w.record(a.record)
	w.j.EndSession(w.c.Session)
	w.kept = append(w.kept, a)
	return a
}

// remove deletes and purges archive i of those that are kept, and waits until its blocks may be condemned.
func (w *world) remove(i int) {
	w.Helper()
	ids := history.IDs{w.kept[i].record.ID()}.Encode()
	w.record(w.c.Signed(history.TypeDelete, ids))
	time.Sleep(8 * 24 * time.Hour)
	w.must(w.j.MayDelete(context.Background()))
	w.record(w.c.ByService(history.TypePurge, ids))
	w.kept = append(w.kept[:i:i], w.kept[i+1:]...)
	time.Sleep(view.Keep + time.Minute)
}

// check is the oracle: what is kept can be read.
func (w *world) check() {
	w.Helper()
	for i, a := range w.kept {
		for _, b := range a.blocks {
			row, ok, err := w.j.Acked().Block(w.c.Vault, w.c.Group, b.Name)
			if err != nil || !ok {
				w.Fatalf("block %s of archive %d is not there: %v", b.Name, i, err)
			}
			got, err := w.j.ReadBlock(context.Background(), row)
			if err != nil || string(got) != string(b.Sealed) {
				w.Fatalf("block %s of archive %d cannot be read: %v", b.Name, i, err)
			}
		}
	}
	if v := w.store.Violations(); len(v) > 0 {
		w.Fatal(v)
	}
}

// run runs, and looks first whether what is planned is what is done then.
func (w *world) run(cfg Config) Report {
	w.Helper()
	cfg.Journal, cfg.Spending = w.j, w.spending
	before, writes := w.state(), w.bucket.Writes()
	p, err := Plan(context.Background(), cfg)
	w.must(err)
	if after := w.state(); after != before || w.bucket.Writes() != writes {
		w.Errorf("a plan changed something: %+v after %+v, and made %d writes", after, before, w.bucket.Writes()-writes)
	}
	r, err := Run(context.Background(), cfg)
	w.must(err)
	if p.Condemned != r.Condemned || p.Held != r.Held || p.Cleaned != r.Cleaned || p.Merged != r.Merged || p.More != r.More || p.Removed != r.Removed || len(p.Left) != len(r.Left) {
		w.Errorf("planned %s\ndone    %s", p, r)
	}
	if few := p.Retired.Count < 64; few && p.Retired != r.Retired || !few && (r.Retired.Count < p.Retired.Count || r.Retired.Count > p.Retired.Count+8) {
		w.Errorf("planned to retire %+v, and retired %+v", p.Retired, r.Retired)
	}
	return r
}

// halves makes two archives in one process: one of the chunks from a to b, and one of every second of them.
func (w *world) halves(size, a, b int) {
	w.backup(size, seq(a, b)...)
	var even []int
	for i := a; i < b; i += 2 {
		even = append(even, i)
	}
	w.backup(size, even...)
}

// TestCleaning: what is live in a segment that is half dead is elsewhere after one run, the segment is retired, and a
// second run finds nothing to do.
func TestCleaning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.halves(100_000, 0, 240) // two segments, one of them full
		w.remove(0)
		before, err := w.j.Acked().Stats()
		w.must(err)
		r := w.run(Config{})
		w.check()
		if r.Condemned.Count != 122 || r.Condemned.Bytes != 120*100_000+200 {
			t.Errorf("%d blocks of %d bytes were condemned", r.Condemned.Count, r.Condemned.Bytes)
		}
		if r.Cleaned.Count != 2 || r.Cleaned.Bytes != 120*100_000 || r.Made != 1 {
			t.Errorf("%d segments of %d live bytes were cleaned into %d", r.Cleaned.Count, r.Cleaned.Bytes, r.Made)
		}
		if r.Retired.Count != 2 || r.Retired.Bytes < 24_000_000 || r.More || len(r.Left) != 0 {
			t.Errorf("%+v", r)
		}
		after, err := w.j.Acked().Stats()
		w.must(err)
		if after.Bytes != before.Bytes-r.Condemned.Bytes || after.Retired != 2 {
			t.Errorf("%+v after %+v", after, before)
		}
		if again := w.run(Config{}); again.Progress() != 0 || again.String() != "nothing to free" {
			t.Errorf("a second run: %s", again)
		}
		w.restart()
		w.check()
	})
}

// TestSpaceComesBack: what was deleted is gone from the bucket after its delays, and not before; what is kept is there, and a
// start from the bucket alone finds it.
func TestSpaceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.halves(100_000, 0, 240)
		full := w.store.Bytes()
		w.remove(0)
		if r := w.run(Config{}); r.Retired.Count != 2 || r.Removed.Count != 0 {
			t.Fatalf("%s", r)
		}
		time.Sleep(view.Grace - time.Hour)
		if r := w.run(Config{}); r.Removed.Count != 0 || w.store.Bytes() < full {
			t.Fatalf("an hour too early: %s; %d bytes, %d before", r, w.store.Bytes(), full)
		}
		time.Sleep(2 * time.Hour)
		r := w.run(Config{})
		if r.Removed.Count != 2 || r.Removed.Bytes < 24_000_000 || r.Bundled == 0 {
			t.Errorf("%s", r)
		}
		if left := w.store.Bytes(); left > full/2+100_000 {
			t.Errorf("%d bytes are left of %d", left, full)
		}
		w.check()
		w.restart() // its view is in memory: it begins with the bucket
		w.check()
		if s, err := w.j.Acked().Stats(); err != nil || s.Removed != 2 || s.Retired != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	})
}

// TestDeletesAreLimited: an hour's budget holds over runs, and the next hour goes on.
func TestDeletesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		for i := range 6 {
			w.backup(100_000, seq(10*i, 10*i+10)...)
			time.Sleep(time.Minute) // a segment each
		}
		for range 5 {
			w.remove(0)
		}
		if r := w.run(Config{}); r.Retired.Count != 5 {
			t.Fatalf("%s", r)
		}
		time.Sleep(view.Grace + time.Minute)
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour))) // the beginning of an hour
		for i, want := range []int{2, 0, 2, 1} {
			if i > 1 {
				time.Sleep(time.Hour)
			}
			r := w.run(Config{Deletes: 2})
			if r.Removed.Count != want {
				t.Errorf("run %d deleted %d segments, want %d: %s", i, r.Removed.Count, want, r)
			}
			if (want < 2) == (len(r.Left) == 1) && i != 1 || r.More {
				t.Errorf("run %d left %q, more %v", i, r.Left, r.More)
			}
		}
		w.check()
	})
}

// TestCopiesAreLimited: an hour's budget holds over runs, and on a disk copies never take more than a quarter of what
// would be free without them, while segments that need no copy go all the same.
func TestCopiesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		for i := range 4 {
			w.halves(100_000, 100*i, 100*i+40) // 2 MB of 4 are live
			time.Sleep(time.Minute)
		}
		w.backup(100_000, seq(900, 940)...)
		for range 4 {
			w.remove(0)
			w.kept = append(w.kept[1:], w.kept[0]) // the small ones go last
		}
		w.remove(0) // and all of the last one
		time.Sleep(time.Until(time.Now().Truncate(time.Hour).Add(time.Hour)))
		r := w.run(Config{Copy: 3_000_000})
		if r.Cleaned.Count != 2 || r.Retired.Count != 3 || len(r.Left) != 1 || r.More {
			t.Errorf("with a budget: %+v", r)
		}
		if r := w.run(Config{Copy: 3_000_000}); r.Cleaned.Count != 0 || len(r.Left) != 1 {
			t.Errorf("in the same hour: %+v", r)
		}
		time.Sleep(time.Hour)
		// 4 MB were copied: a quarter of 13 MB and these is a little more, and no segment of the 2 MB that are left fits.
		if r := w.run(Config{Free: func() (uint64, bool) { return 13_000_000, true }}); r.Cleaned.Count != 0 || len(r.Left) != 1 || r.More {
			t.Errorf("on a disk without room for one more: %+v", r)
		}
		free := func() (uint64, bool) { return 21_000_000, true }
		if r := w.run(Config{Free: free}); r.Cleaned.Count != 1 || len(r.Left) != 1 || r.More {
			t.Errorf("on a disk: %+v", r)
		}
		if r := w.run(Config{Free: free}); r.Cleaned.Count != 0 || len(r.Left) != 1 {
			t.Errorf("on a disk, again: %+v", r)
		}
		time.Sleep(8 * 24 * time.Hour)
		if r := w.run(Config{Free: free}); r.Cleaned.Count != 1 || len(r.Left) != 0 || r.Removed.Count != 4 {
			t.Errorf("when the sources are gone: %+v", r)
		}
		w.check()
	})
}

// TestShare: a segment with more in it than the share is left alone.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.halves(100_000, 0, 100) // half of it, and two trees
		w.remove(0)
		if r := w.run(Config{Share: 49}); r.Condemned.Count != 52 || r.Cleaned.Count != 0 || r.Retired.Count != 0 {
			t.Errorf("%s", r)
		}
		if r := w.run(Config{Share: 52}); r.Cleaned.Count != 1 || r.Retired.Count != 1 {
			t.Errorf("%s", r)
		}
		w.check()
	})
}

// seq returns the numbers from a to b, exclusive.
func seq(a, b int) (all []int) {
	for ; a < b; a++ {
		all = append(all, a)
	}
	return all
}
