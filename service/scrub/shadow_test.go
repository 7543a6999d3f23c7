package scrub

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/never"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// many stores so many small blocks, in segments of a thousand.
func (w *world) many(from, n int) {
	w.t.Helper()
	for i := from; i < from+n; i += 1000 {
		w.append(func(tx *journal.Tx) error {
			for k := i; k < min(i+1000, from+n); k++ {
				b := w.c.Chunk(1_000_000+k, 60)
				if err := tx.Stored(w.c.Session, b.Name, b.Kind, b.Links, b.Sealed); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// shadowed is the job, and what it remembers.
type shadowed struct {
	ShadowConfig
	s    ShadowState
	did  uint64
	read uint64
}

func (w *world) shadow() *shadowed {
	base := w.t.TempDir()
	if err := os.Mkdir(filepath.Join(base, "view"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	x := &shadowed{ShadowConfig: ShadowConfig{Journal: w.j, View: filepath.Join(base, "view"), Dir: filepath.Join(base, DirName)}}
	x.Log = slog.New(slog.DiscardHandler)
	return x
}

// turn is one turn, which ends early if it is to.
func (x *shadowed) turn1(t *testing.T, early bool) (string, bool, error) {
	return x.turn(context.Background(), &x.s, shadowTurn{
		used: x.read, enough: func() bool { return early }, did: func(n uint64) { x.did += n }, spend: func(n uint64) { x.read += n }, save: func() {},
	})
}

// TestShadowIsEqual: the journal goes on and the service restarts while the second view is made, in several turns. It has
// the digest that the view had when it began, it is removed, and the time that it took is told.
func TestShadowIsEqual(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		w.many(0, 20_000)
		x := w.shadow()
		want, at, err := w.j.Digest(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		turns := 0
		for more := true; more; turns++ {
			var text string
			if text, more, err = x.turn1(t, true); err != nil {
				t.Fatal(err)
			}
			if more && (x.s.At != at || x.s.Want != fmt.Sprintf("%x", want) || !strings.Contains(text, "are replayed")) {
				t.Fatalf("turn %d: %q, %+v", turns, text, x.s)
			}
			w.many(100_000+1000*turns, 100) // the view moves on
			if turns == 1 {
				w.close()
				if w.j, err = journal.Open(context.Background(), w.cfg); err != nil {
					t.Fatal(err)
				}
				x.Journal = w.j
			}
		}
		e := x.s.Equal
		if turns < 3 || e.At != at || e.Digest != fmt.Sprintf("%x", want) || e.Records < 20_000 || e.Segments < 20 || e.Ended.IsZero() || x.s.Want != "" {
			t.Errorf("after %d turns: %+v", turns, x.s)
		}
		if x.did != e.Segments || x.read == 0 {
			t.Errorf("%d segments are told of, of %d, and %d bytes", x.did, e.Segments, x.read)
		}
		if _, err := os.Stat(x.Dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the second view is still there: %v", err)
		}
		if w.j.MayDelete(context.Background()) != nil {
			t.Error("deleting is frozen")
		}
		// At once again, all in one turn.
		if text, more, err := x.turn1(t, false); err != nil || more || !strings.HasPrefix(text, "equal at "+w.j.Position().String()) {
			t.Errorf("%q, %v, %v", text, more, err)
		}
	})
}

// TestShadowFindsAWrongRow: one bit of the view that the service works with is wrong. Deleting is frozen at once, by a record that
// no restart ends, and a second comparison from the beginning that says so again is an event that must never happen.
func TestShadowFindsAWrongRow(t *testing.T) {
	inWorld(t, 5, func(w *world) {
		w.close()
		store, err := view.OpenMem()
		if err != nil {
			t.Fatal(err)
		}
		w.cfg.Store, w.cfg.Takeover = store, true
		if w.j, err = journal.Open(context.Background(), w.cfg); err != nil {
			t.Fatal(err)
		}
		name := w.c.Chunk(20, 3000).Name
		key := append(binary.BigEndian.AppendUint32([]byte{'b'}, 0), name[:]...)
		row, err := store.Get(key)
		if err != nil || row == nil {
			t.Fatalf("%x, %v", row, err)
		}
		row[len(row)/2] ^= 1
		l := view.NewLayer(store)
		if err := errors.Join(l.Put(key, row), store.Commit(l)); err != nil {
			t.Fatal(err)
		}
		x := w.shadow()
		text, more, err := x.turn1(t, false)
		if err != nil || !more || !strings.HasPrefix(text, "DIFFERS") || x.s.Differed != 1 {
			t.Errorf("%q, %v, %v, %+v", text, more, err, x.s)
		}
		if err := w.j.MayDelete(context.Background()); !errors.Is(err, view.ErrFrozen) {
			t.Errorf("deleting is not frozen: %v", err)
		}
		time.Sleep(2 * time.Second)
		if f := w.j.Freezes(); len(f) != 1 || f[0].Reason != segment.ReasonView {
			t.Errorf("frozen for %+v", f)
		}
		time.Sleep(48 * time.Hour) // nothing ends it but a person
		if err := w.j.MayDelete(context.Background()); !errors.Is(err, view.ErrFrozen) {
			t.Errorf("deleting is not frozen any more: %v", err)
		}
		var events []never.Event
		release := never.Catch(func(e never.Event) { events = append(events, e) })
		text, more, err = x.turn1(t, false)
		release()
		if err != nil || more || len(events) != 1 || !strings.Contains(events[0].What, "twice in a row") || x.s.Differed != 2 {
			t.Errorf("%q, %v, %v, %d events", text, more, err, len(events))
		}
		if f, err := w.j.Thaw(context.Background(), "Zoë", "the view is made anew"); err != nil || len(f) != 1 {
			t.Errorf("%+v, %v", f, err)
		}
	})
}

// TestShadowKeepsItsBounds: it does not begin without budget or room, and does not stay when a disk gets full.
func TestShadowKeepsItsBounds(t *testing.T) {
	inWorld(t, 3, func(w *world) {
		w.many(0, 20_000)
		for what, set := range map[string]func(x *shadowed){
			"month's budget of 1000": func(x *shadowed) { x.Budget = 1000 },
			"bytes free":             func(x *shadowed) { x.Free = func() (uint64, bool) { return 100 << 20, true } },
			"90 %":                   func(x *shadowed) { x.Full = func() string { return "90 %" } },
			"at last 81 %": func(x *shadowed) {
				n := 0
				x.Full = func() string {
					if n++; n > 2 {
						return "at last 81 %"
					}
					return ""
				}
			},
		} {
			x := w.shadow()
			set(x)
			text, more, err := x.turn1(t, false)
			if err != nil || more || !strings.Contains(text, what) || x.s.Want != "" || !x.s.Equal.Ended.IsZero() {
				t.Errorf("%s: %q, %v, %v, %+v", what, text, more, err, x.s)
			}
			if _, err := os.Stat(x.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: the second view is still there: %v", what, err)
			}
		}
	})
}
