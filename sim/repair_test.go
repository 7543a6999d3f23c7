package sim

import (
	"context"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/keyring"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/service/journal"
	"holdfast/service/segment"
)

// rot flips a bit of about one of three blocks in the bucket, and returns their names and kinds.
func (w *world) rot(seed uint64) map[holdfast.Name]holdfast.Kind {
	w.Helper()
	dice := mrand.New(mrand.NewPCG(seed, 1))
	bad := map[holdfast.Name]holdfast.Kind{}
	for _, name := range w.bucket.Store().Keys() {
		k, err := segment.ParseKey(name)
		if err != nil {
			continue
		}
		w.bucket.Store().Damage(name, func(raw []byte) []byte {
			tr, err := segment.ParseTrailer(raw[len(raw)-int(k.Trailer):])
			if err != nil {
				w.Fatal(err)
			}
			for _, t := range tr.Records {
				if b, ok := t.Record.(segment.Stored); ok && dice.IntN(3) == 0 {
					raw[b.Off+dice.Uint32N(b.Len)] ^= 1 << dice.IntN(8)
					bad[b.Name] = b.Kind
				}
			}
			return raw
		})
	}
	return bad
}

// scrub reads every segment and returns what was found.
func (w *world) scrub() (sum journal.Scrubbed) {
	w.Helper()
	for after := (segment.Position{}); ; {
		some, err := w.j.Segments(after, 10)
		if err != nil {
			w.Fatal(err)
		}
		if len(some) == 0 {
			return sum
		}
		for _, x := range some {
			s, _, err := w.j.ScrubSegment(context.Background(), x.Key.Position)
			if err != nil {
				w.Fatal(err)
			}
			sum.Damaged, sum.Known, sum.Whole, sum.Blocks = sum.Damaged+s.Damaged, sum.Known+s.Known, sum.Whole+s.Whole, sum.Blocks+s.Blocks
			after = x.Key.Position
		}
	}
}

// known returns what the service tells the first machine is damaged.
func (w *world) known() map[holdfast.Name]holdfast.Kind {
	w.Helper()
	all, more, err := w.first.c.Damaged(context.Background())
	if err != nil || more {
		w.Fatal(more, err)
	}
	names := map[holdfast.Name]holdfast.Kind{}
	for _, d := range all {
		names[d.Name] = d.Kind
		if !d.Mine {
			w.Errorf("block %s is another's", d.Name)
		}
	}
	return names
}

func sameNames(a, b map[holdfast.Name]holdfast.Kind) bool {
	for n, k := range a {
		if b[n] != k {
			return false
		}
	}
	return len(a) == len(b)
}

// TestRepair: a third of all blocks rots in the bucket. What a restore meets is recorded within minutes, the rest by a scrub;
// a service that lost its view knows it as well. The next backup of a tree of which hardly anything changed stores all of it
// anew, and both archives come back, from a view made anew too. Another vault is told nothing.
func TestRepair(t *testing.T) {
	for seed := range uint64(2) {
		inWorld(t, keyring.OwnerOf(holdfast.Key{7}), func(w *world) {
			dir := tree(w, byte(seed), 3<<20)
			other := w.settler(keyring.OwnerOf(holdfast.Key{8}), "other")
			a, first := w.first.backup(dir, "s")
			kept := w.TempDir()
			if err := os.CopyFS(kept, os.DirFS(dir)); err != nil {
				w.Fatal(err)
			}
			w.restores(a, kept)
			if s := w.scrub(); s.Damaged+s.Known+s.Whole != 0 || s.Blocks == 0 {
				w.Errorf("before anything rots: %+v", s)
			}
			bad := w.rot(seed)
			if len(bad) < 10 {
				w.Fatalf("only %d blocks rotted", len(bad))
			}

			// Whoever reads finds some of them.
			if r, err := w.first.open().Extract(context.Background(), a, filepath.Join(w.TempDir(), "out"), restore.Options{}); err == nil && r.Problems == 0 {
				w.Error("the damage does no harm")
			}
			time.Sleep(5 * time.Minute)
			found := w.known()
			for n, k := range found {
				if bad[n] != k {
					w.Errorf("block %s is said to be damaged", n)
				}
			}
			if len(found) == 0 {
				w.Error("what a restore met is not recorded")
			}
			s := w.scrub()
			if s.Damaged+len(found) != len(bad) || !sameNames(w.known(), bad) {
				w.Errorf("%d rotted, a restore met %d, the scrub found %d", len(bad), len(found), s.Damaged)
			}
			if all, _, err := other.c.Damaged(context.Background()); err != nil || len(all) != 0 {
				w.Errorf("another vault is told of %d, %v", len(all), err)
			}
			w.crash()
			if !sameNames(w.known(), bad) {
				w.Error("a view that was made anew knows of others")
			}

			if err := os.WriteFile(filepath.Join(dir, "tree", "small", "00a"), random(7000), 0o644); err != nil {
				w.Fatal(err)
			}
			r, err := backup.Run(context.Background(), w.first.config(dir, "s"))
			if err != nil || !r.Complete() || len(r.Damaged) != len(bad) || r.Unrepaired() != 0 {
				w.Errorf("%d of %d damaged blocks are not repaired, %v", r.Unrepaired(), len(r.Damaged), err)
			}
			if left := w.known(); len(left) != 0 {
				w.Errorf("still damaged: %v", left)
			}
			if r.Sent > first.Sent {
				w.Errorf("%d bytes sent, %d at first", r.Sent, first.Sent)
			}
			w.restores(a, kept)
			w.restores(r.Archive, dir)
			w.crash()
			w.restores(a, kept)
			w.verified()
			if s := w.scrub(); s.Damaged+s.Known+s.Whole != 0 {
				w.Errorf("after the repair: %+v", s)
			}
		})
	}
}

// restores is that of the first machine.
func (w *world) restores(a history.Archive, dir string) { w.Helper(); w.first.restores(a, dir) }
