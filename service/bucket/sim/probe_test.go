package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/bucket"
)

const probePrefix = "0123/"

// A store that lacks one thing is refused, and the error says which; nothing is left there.
func TestProbeRefusesWeakStores(t *testing.T) {
	for w, says := range map[Weakness]string{
		StaleList:   "list-after-write",
		StaleRead:   "read-after-write",
		BlindSwap:   "more than one was applied",
		RacySwap:    "more than one was applied",
		CreateRaces: "more than one was applied",
	} {
		synctest.Test(t, func(t *testing.T) {
			b := New(1)
			err := bucket.Probe(t.Context(), Weak(b, w), probePrefix)
			if !errors.Is(err, bucket.ErrWeak) || !strings.Contains(err.Error(), says) {
				t.Errorf("weakness %d: %v, want %q", w, err, says)
			}
			if w != StaleList { // which does not show what is to be removed
				if k := b.Store().Keys(); len(k) != 0 {
					t.Errorf("weakness %d: left behind: %v", w, k)
				}
			}
		})
	}
}

// A store that keeps its promises and fails now and then, in either form, is not called weak; one that cannot be asked
// is not either.
func TestProbeBearsFaults(t *testing.T) {
	for _, p := range []Profile{
		{},
		{Fail: 30_000, Applied: 30_000, Slow: 50_000},
		{Fail: 1_000_000},
		{Applied: 1_000_000},
		{Hung: 1_000_000},
	} {
		for seed := range uint64(40) {
			synctest.Test(t, func(t *testing.T) {
				b := New(seed)
				b.Profile = p
				err := bucket.Probe(t.Context(), b, probePrefix)
				if errors.Is(err, bucket.ErrWeak) || p.none() && err != nil {
					t.Errorf("seed %d, %+v: %v", seed, p, err)
				}
				if (p.Fail == 1_000_000 || p.Hung == 1_000_000) && err == nil {
					t.Errorf("a store that does nothing right was found good")
				}
				if k := b.Store().Keys(); p.none() && len(k) != 0 {
					t.Errorf("left behind: %v", k)
				}
			})
		}
	}
}

// Reads that come back short, altered or with another object's bytes now and then say nothing about consistency: they
// are done again, and the store is found good; one that never gives back what was written is refused, and not called weak.
func TestProbeBearsDamagedReads(t *testing.T) {
	for _, f := range []Fault{{Short: true}, {Flip: true}, {Wrong: true}} {
		for _, every := range []int{1, 2, 7} {
			synctest.Test(t, func(t *testing.T) {
				b, gets := New(1), 0
				b.OnOp(func(op Op, _ string, _ int) Fault {
					if op == OpGet {
						if gets++; gets%every == 0 {
							return f
						}
					}
					return Fault{}
				})
				err := bucket.Probe(t.Context(), b, probePrefix)
				switch {
				case every > 1 && err != nil:
					t.Errorf("%+v, one read in %d: %v", f, every, err)
				case every == 1 && (errors.Is(err, bucket.ErrWeak) || bucket.ClassOf(err) != bucket.ClassCorrupt):
					t.Errorf("%+v, every read: %v", f, err)
				}
			})
		}
	}
}

// What a crashed probe left is removed a day later; what another probe is at work with is not touched.
func TestProbeCleansUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(1)
		b.CrashAt(3, true)
		if err := bucket.Probe(t.Context(), b, probePrefix); err == nil {
			t.Fatal("it did not crash")
		}
		left := len(b.Store().Keys())
		if left == 0 {
			t.Fatal("it left nothing")
		}
		again := func() int {
			t.Helper()
			if err := bucket.Probe(t.Context(), b.Store().Connect(2), probePrefix); err != nil {
				t.Fatal(err)
			}
			return len(b.Store().Keys())
		}
		if n := again(); n != left {
			t.Errorf("%d objects are left of %d that another may be at work with", n, left)
		}
		time.Sleep(25 * time.Hour)
		if n := again(); n != 0 {
			t.Errorf("%d objects are left", n)
		}
	})
}

// Many processes start at once.
func TestProbesSideBySide(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(1).Store()
		errs := make(chan error)
		for i := range 10 {
			go func() { errs <- bucket.Probe(context.Background(), s.Connect(uint64(i)), probePrefix) }()
		}
		for range 10 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if k := s.Keys(); len(k) != 0 {
			t.Error(fmt.Sprint("left behind: ", k))
		}
	})
}

func (p Profile) none() bool { return p.Fail+p.Applied+p.Hung == 0 }

// A store of which only the conditional writes are no good is usable by one owner, and one that shows old lists or reads is not.
func TestProbeAlone(t *testing.T) {
	for w, usable := range map[Weakness]bool{StaleList: false, StaleRead: false, BlindSwap: true, RacySwap: true, CreateRaces: true} {
		synctest.Test(t, func(t *testing.T) {
			b := New(1)
			err := bucket.Probe(t.Context(), Weak(b, w), probePrefix)
			if errors.Is(err, bucket.ErrUnconditional) != usable {
				t.Errorf("weakness %d: %v", w, err)
			}
			err = bucket.ProbeAlone(t.Context(), Weak(b, w), probePrefix)
			if usable != (err == nil) || !usable && !errors.Is(err, bucket.ErrWeak) {
				t.Errorf("weakness %d: alone: %v", w, err)
			}
		})
	}
}

// conflicts answers those who lose a race with an error that says nothing about the condition.
type conflicts struct{ bucket.Bucket }

func (c conflicts) Swap(ctx context.Context, key string, old, new []byte) error {
	err := c.Bucket.Swap(ctx, key, old, new)
	if errors.Is(err, bucket.ErrChanged) && string(new) != "late" {
		err = &bucket.Error{Class: bucket.ClassBusy, Err: errors.New("409 ConditionalRequestConflict")}
	}
	return err
}

// Amazon's store may do so, and is none the worse for it.
func TestProbeBearsConflicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(1)
		if err := bucket.Probe(t.Context(), conflicts{b}, probePrefix); err != nil {
			t.Error(err)
		}
		if err := bucket.Probe(t.Context(), conflicts{Weak(b, BlindSwap)}, probePrefix); !errors.Is(err, bucket.ErrUnconditional) {
			t.Errorf("a store that ignores conditions: %v", err)
		}
	})
}
