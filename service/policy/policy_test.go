package policy_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/bucket/sim"
	"holdfast/service/journal"
	"holdfast/service/policy"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// world is a vault in a journal. The journal is closed while days pass: its store has timers.
type world struct {
	*testing.T
	bucket *sim.Bucket
	j      *journal.Journal
	c      *viewtest.Customer
	stands policy.Standing // of every account; nil for a service without money
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// newWorld returns a vault with a machine, an open session and one block that can be an archive's root. The
// caller closes its journal.
func newWorld(t *testing.T) (*world, viewtest.Block) {
	w := &world{T: t, bucket: sim.New(1), c: viewtest.New(1)}
	w.open()
	w.append(func(tx *journal.Tx) error {
		for _, err := range []error{tx.Record(w.c.Account()), tx.Record(w.c.Token(1 << 62)), tx.Record(w.c.Redeemed())} {
			w.ok(err)
		}
		return nil
	})
	w.record(w.c.Genesis())
	w.record(w.c.Enrol())
	w.record(w.c.Open())
	root := w.c.Over(holdfast.KindArchive, 1)
	w.append(func(tx *journal.Tx) error {
		return tx.Stored(w.c.Session, root.Name, root.Kind, root.Links, root.Sealed)
	})
	return w, root
}

func (w *world) open() {
	var err error
	w.j, err = journal.Open(w.Context(), journal.Config{Create: true, Bucket: w.bucket, Cell: holdfast.CellID{1}, Host: [16]byte{1}, LogKey: viewtest.LogKey()})
	w.ok(err)
}

// pass lets time pass: never so much without a look at it that it would be taken for a clock that was set
// wrong.
func (w *world) pass(d time.Duration) {
	w.Helper()
	for d > 0 {
		step := min(d, 10*day)
		w.jump(step)
		d -= step
	}
}

// jump lets time pass while there is no service.
func (w *world) jump(d time.Duration) {
	w.Helper()
	w.ok(w.j.Close(context.Background()))
	time.Sleep(d)
	w.open()
}

func (w *world) append(fn func(*journal.Tx) error) {
	w.Helper()
	t, err := w.j.Append(w.Context(), fn)
	w.ok(err)
	w.j.Flush()
	w.ok(t.Wait(w.Context()))
}

func (w *world) record(r history.Record) {
	w.Helper()
	w.append(func(tx *journal.Tx) error { _, err := tx.History(r); return err })
	w.c.Accepted(r)
}

// run runs the policies and fails unless they do exactly that.
func (w *world) run(expired, purged int) {
	w.Helper()
	w.does(policy.Done{Expired: expired, Purged: purged})
}

func (w *world) does(want policy.Done) {
	w.Helper()
	done, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), w.stands)
	w.ok(err)
	if done != want {
		w.Errorf("it did %+v, want %+v", done, want)
	}
	if again, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), w.stands); err != nil || again != (policy.Done{}) {
		w.Errorf("a second run did %+v, %v", again, err)
	}
}

func (w *world) stats() view.Stats {
	w.Helper()
	st, err := w.j.Acked().Stats()
	w.ok(err)
	return st
}

// client verifies the whole history as a client does, and returns the vault.
func (w *world) client() *history.Vault {
	w.Helper()
	b, err := w.j.Acked().History(w.c.Vault, 0, 1<<30)
	w.ok(err)
	v := &history.Vault{ID: w.c.Vault}
	for r := enc.NewReader(b); r.Len() > 0; {
		w.ok(v.Follow(history.ReadEntry(r), viewtest.LogKey().Public().(ed25519.PublicKey), w.c.Hist()))
		w.ok(r.Err())
	}
	return v
}

const day = 24 * time.Hour

// TestScenarioS12 runs a vault's policy on the journal's time: nothing before 30 days, nothing for good
// before the delay, nothing while frozen, and clients agree with every record.
func TestScenarioS12(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newWorld(t)
		defer func() { w.ok(w.j.Close(context.Background())) }()
		var all []holdfast.RecordID
		for range 230 { // more than two records can name
			r := w.c.Commit(root.Name)
			w.record(r)
			all = append(all, r.ID())
		}
		w.pass(40 * day)
		w.run(0, 0) // there is no policy
		w.record(w.c.ByOwner(history.TypePolicy, history.Policy{Last: 5}.Encode()))
		w.record(w.c.ByOwner(history.TypeFreeze, nil))
		w.run(0, 0)
		w.record(w.c.ByOwner(history.TypeThaw, nil))
		w.record(w.c.Commit(root.Name))
		w.run(226, 0)
		w.pass(6 * day)
		w.run(0, 0)
		w.record(w.c.Signed(history.TypeUndelete, history.IDs{all[3]}.Encode()))
		w.pass(day + time.Hour)
		w.record(w.c.ByOwner(history.TypeFreeze, nil))
		w.run(0, 0)
		w.record(w.c.ByOwner(history.TypeThaw, nil))
		w.run(0, 225)

		v := w.client()
		if len(v.Archives) != 6 || len(v.Purged) != 225 {
			t.Errorf("a client counts %d archives and %d purged", len(v.Archives), len(v.Purged))
		}
		if a, ok := v.Find(all[3]); !ok || a.State != history.Live {
			t.Errorf("what was brought back is %s", a.State)
		}
		b, _, err := w.j.Acked().Block(w.c.Vault, w.c.Group, root.Name)
		if w.ok(err); b.Count != 6 {
			t.Errorf("the root is counted %d times, with 6 archives left", b.Count)
		}
	})
}

// TestScenarioS16ClockJump lets a service's clock run ahead of the store's, and behind it, while an archive waits to
// be purged: nothing is. That is a record: it holds for the next process, whatever the clocks say by
// then, and ends when they have agreed for an hour.
func TestScenarioS16ClockJump(t *testing.T) {
	const year = 365 * day
	for what, c := range map[string]struct {
		skew    time.Duration // of the store
		restart bool          // before the clock is set right
		steady  time.Duration // until it thaws; a day where the journal's clock comes back from the store's
	}{
		"a year ahead":                 {-year, false, day},
		"a year ahead, and restarted":  {-year, true, day},
		"a year behind":                {year, false, time.Hour},
		"a year behind, and restarted": {year, true, time.Hour},
		"six minutes ahead":            {-6 * time.Minute, false, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, root := newWorld(t)
			defer func() { w.ok(w.j.Close(context.Background())) }()
			r := w.c.Commit(root.Name)
			w.record(r)
			w.record(w.c.ByOwner(history.TypeDelete, history.IDs{r.ID()}.Encode()))
			w.pass(8 * day) // it may be purged

			w.bucket.Store().SetSkew(c.skew)
			frozen := func(when string, clocks bool) {
				t.Helper()
				done, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), nil)
				if !errors.Is(err, view.ErrFrozen) || errors.Is(err, journal.ErrClocks) != clocks || done != (policy.Done{}) {
					t.Errorf("%s, %s: %+v, %v", what, when, done, err)
				}
				if f := w.j.Freezes(); len(f) == 0 || f[0].Reason != segment.ReasonClocks || f[0].Text == "" {
					t.Errorf("%s, %s: it does not say so: %+v", what, when, f)
				}
			}
			frozen("at once", true)
			if _, err := w.j.Thaw(w.Context(), "somebody", "no patience"); !errors.Is(err, journal.ErrClocks) {
				t.Errorf("%s: a person thawed it while the clocks disagree: %v", what, err)
			}
			if c.restart {
				w.jump(time.Minute)
				frozen("after a restart", true)
			}
			w.record(w.c.Commit(root.Name)) // customers go on

			w.bucket.Store().SetSkew(0) // now they agree
			frozen("just set right", false)
			w.jump(time.Minute)
			frozen("set right and restarted", false)
			time.Sleep(c.steady - time.Minute)
			if err := w.j.MayDelete(w.Context()); !errors.Is(err, view.ErrFrozen) {
				t.Errorf("%s: thawed too soon: %v", what, err)
			}
			time.Sleep(2 * time.Minute)
			w.run(0, 1)
			if f := w.j.Freezes(); len(f) != 0 {
				t.Errorf("%s: %+v", what, f)
			}
			w.client() // agrees with all that was recorded
		})
	}
}

// TestScenarioS16JournalDoesNotJump lets the service's clock jump ahead while customers go on: the journal's time, which
// never runs backwards, stays with the store's.
func TestScenarioS16JournalDoesNotJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newWorld(t)
		defer func() { w.ok(w.j.Close(context.Background())) }()
		before := w.stats().Time
		w.bucket.Store().SetSkew(-365 * day)
		w.jump(365 * day)
		w.record(w.c.Commit(root.Name))
		if moved := time.Duration(w.stats().Time-before) * time.Millisecond; moved > time.Hour {
			t.Errorf("the journal's time moved by %s", moved)
		}
		if done, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), nil); !errors.Is(err, journal.ErrClocks) || done != (policy.Done{}) {
			t.Errorf("%+v, %v", done, err)
		}
	})
}

// TestScenarioS16WithoutAStoresClock lets the clock jump where the store's is our own, as in a directory: it looks
// like a service that was switched off for a year. A day passes before anything is deleted, unless a person says
// that all is well.
func TestScenarioS16WithoutAStoresClock(t *testing.T) {
	for _, person := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w, root := newWorld(t)
			defer func() { w.ok(w.j.Close(context.Background())) }()
			r := w.c.Commit(root.Name)
			w.record(r)
			w.record(w.c.ByOwner(history.TypeDelete, history.IDs{r.ID()}.Encode()))
			w.jump(365 * day)
			frozen := func() {
				t.Helper()
				if done, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), nil); !errors.Is(err, view.ErrFrozen) || done != (policy.Done{}) {
					t.Errorf("%+v, %v", done, err)
				}
			}
			frozen()
			w.jump(time.Minute)
			frozen() // the journal remembers the jump, although its time has made it
			if person {
				f, err := w.j.Thaw(w.Context(), "operator", "it was switched off")
				if err != nil || len(f) != 1 || f[0].Reason != segment.ReasonJump {
					t.Error(f, err)
				}
				if _, err := w.j.Thaw(w.Context(), "operator", "again"); !errors.Is(err, journal.ErrThawed) {
					t.Error(err)
				}
			} else {
				time.Sleep(day - time.Hour)
				frozen()
				time.Sleep(time.Hour + time.Minute)
			}
			w.run(0, 1)
		})
	}
}

// unpaid has every account owe: archives may lapse from that time on, and are to.
func (w *world) unpaid(until time.Time) {
	w.stands = func(_ view.Reader, a holdfast.AccountID) (int64, int64, bool, error) {
		if a != w.c.ID {
			w.Errorf("asked about account %s", a)
		}
		return 1, until.UnixNano(), true, nil
	}
}

func (w *world) paid() {
	w.stands = func(view.Reader, holdfast.AccountID) (int64, int64, bool, error) { return 0, 0, false, nil }
}

// arrears fails unless a client finds the vault in arrears with that time, within the minute that a run may take.
func (w *world) arrears(want time.Time) {
	w.Helper()
	got := w.client().Arrears
	if off := time.Unix(0, got).Sub(want); want.IsZero() != (got == 0) || got != 0 && (off < -time.Minute || off > time.Minute) {
		w.Errorf("in arrears from %s on, want %s", time.Unix(0, got), want)
	}
}

// TestArchivesOfTheUnpaidLapse follows a vault for which nobody pays: it is announced once, lapses in its time, is
// purged after the delay that everything deleted has, and what is left is there again for who pays.
func TestArchivesOfTheUnpaidLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newWorld(t)
		defer func() { w.ok(w.j.Close(context.Background())) }()
		var all []holdfast.RecordID
		for range 230 { // more than two records can name
			r := w.c.Commit(root.Name)
			w.record(r)
			all = append(all, r.ID())
		}
		w.does(policy.Done{})
		w.paid()
		w.does(policy.Done{}) // nothing to end
		until := time.Now().Add(90 * day)
		w.unpaid(until)
		w.does(policy.Done{Arrears: 1})
		w.arrears(until)
		w.pass(83 * day)
		w.record(w.c.ByOwner(history.TypeDelete, history.IDs{all[0]}.Encode()))
		w.pass(7*day - time.Hour)
		w.does(policy.Done{})
		w.pass(2 * time.Hour)
		w.stands = func(view.Reader, holdfast.AccountID) (int64, int64, bool, error) {
			return 1, until.UnixNano(), false, nil
		}
		w.does(policy.Done{Purged: 1}) // the others may lapse, and are not to
		w.unpaid(until)
		w.record(w.c.ByOwner(history.TypeFreeze, nil))
		w.does(policy.Done{})
		w.record(w.c.ByOwner(history.TypeThaw, nil))
		w.does(policy.Done{Lapsed: 229})
		w.pass(6 * day)
		w.does(policy.Done{})

		w.paid()
		w.does(policy.Done{Arrears: 1})
		w.arrears(time.Time{})
		w.record(w.c.Signed(history.TypeUndelete, history.IDs{all[3]}.Encode()))
		w.record(w.c.ByOwner(history.TypePolicy, history.Policy{Within: 1}.Encode()))
		w.record(w.c.Commit(root.Name))
		w.pass(day + time.Hour)
		w.does(policy.Done{Expired: 1}) // it is held by nothing
		w.pass(6*day - 2*time.Hour)
		w.does(policy.Done{}) // there are seven days from when it was paid
		w.pass(2 * time.Hour)
		w.does(policy.Done{Purged: 228})

		v := w.client()
		if a, ok := v.Find(all[3]); !ok || a.State != history.Expired || a.Held {
			t.Errorf("what was brought back: %+v", a)
		}
		b, _, err := w.j.Acked().Block(w.c.Vault, w.c.Group, root.Name)
		if w.ok(err); b.Count != 2 {
			t.Errorf("the root is counted %d times, with 2 archives left", b.Count)
		}
	})
}

// TestArrearsAreAnnouncedInTime has the account ask for more than the rules allow: a time that comes too soon is put off,
// and one that was announced is neither brought forward nor announced again. A vault without archives is told as well,
// and one without a machine is not asked about.
func TestArrearsAreAnnouncedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newWorld(t)
		defer func() { w.ok(w.j.Close(context.Background())) }()
		bare := viewtest.New(2)
		w.append(func(tx *journal.Tx) error { _, err := tx.History(bare.Genesis()); return err })
		now := time.Now()
		w.unpaid(now.Add(-time.Hour))
		w.does(policy.Done{Arrears: 1})
		w.arrears(now.Add(30 * day))
		w.pass(20 * day)
		w.does(policy.Done{})
		w.unpaid(now.Add(29 * day))
		w.does(policy.Done{})
		w.arrears(now.Add(30 * day))
		w.unpaid(now.Add(100 * day))
		w.does(policy.Done{})
		w.arrears(now.Add(30 * day))
		w.record(w.c.Commit(root.Name))
		w.pass(9 * day)
		w.unpaid(now.Add(-time.Hour))
		w.does(policy.Done{}) // it is to lapse, and may not yet
		w.pass(2 * day)
		w.does(policy.Done{Lapsed: 1})

		w.stands = func(view.Reader, holdfast.AccountID) (int64, int64, bool, error) {
			return 0, 0, false, errors.New("no balance")
		}
		if done, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), w.stands); err == nil || done != (policy.Done{}) {
			t.Errorf("%+v, %v", done, err)
		}
		w.pass(8 * day)
		if done, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), w.stands); err == nil || done != (policy.Done{}) { // who knows whether it was paid
			t.Errorf("%+v, %v", done, err)
		}
		w.arrears(now.Add(30 * day))
	})
}

// TestStoppedTwice: an account that was paid and has stopped again before any record said so is announced anew, and what had lapsed can
// be brought back until then; one that is paid while archives lapse keeps them.
func TestStoppedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newWorld(t)
		defer func() { w.ok(w.j.Close(context.Background())) }()
		w.record(w.c.Commit(root.Name))
		now := time.Now()
		w.unpaid(now.Add(30 * day))
		w.does(policy.Done{Arrears: 1})
		w.pass(31 * day)
		asked := 0
		w.stands = func(view.Reader, holdfast.AccountID) (int64, int64, bool, error) {
			asked++
			return 1, now.Add(30 * day).UnixNano(), asked < 3, nil // it is paid before the sequencer comes to it
		}
		w.does(policy.Done{})
		if asked < 3 {
			t.Errorf("asked %d times", asked)
		}
		w.unpaid(now.Add(30 * day))
		w.does(policy.Done{Lapsed: 1})
		w.pass(7*day - time.Minute)
		stop := time.Now()
		w.stands = func(view.Reader, holdfast.AccountID) (int64, int64, bool, error) {
			return stop.UnixNano(), stop.Add(90 * day).UnixNano(), false, nil
		}
		w.does(policy.Done{Arrears: 1})
		w.arrears(stop.Add(90 * day))
		w.pass(6 * day)
		w.does(policy.Done{})
		a := w.client().Archives[0].ID
		w.record(w.c.ByOwner(history.TypeUndelete, history.IDs{a}.Encode()))
		if x, ok := w.client().Find(a); !ok || x.State != history.Live {
			t.Errorf("%+v", x)
		}
	})
}

// TestArrearsWhileFrozen: while deleting is frozen in the cell nothing lapses. Who pays is told so in any case, who does
// not only if the clock that the time is counted by is in no doubt.
func TestArrearsWhileFrozen(t *testing.T) {
	for _, reason := range []segment.Reason{segment.ReasonClocks, segment.ReasonJump, segment.ReasonView} {
		synctest.Test(t, func(t *testing.T) {
			w, root := newWorld(t)
			defer func() { w.ok(w.j.Close(context.Background())) }()
			w.record(w.c.Commit(root.Name))
			w.unpaid(time.Now().Add(31 * day))
			w.does(policy.Done{Arrears: 1})
			w.pass(32 * day)
			w.append(func(tx *journal.Tx) error { return tx.Record(segment.Frozen{Reason: reason, Text: "x"}) })
			frozen := func(want policy.Done) {
				t.Helper()
				if done, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), w.stands); !errors.Is(err, view.ErrFrozen) || strings.Contains(err.Error(), "vault") || done != want {
					t.Errorf("%s: %+v, %v; want %+v", reason, done, err, want)
				}
			}
			frozen(policy.Done{})
			w.paid()
			frozen(policy.Done{Arrears: 1})
			w.unpaid(time.Now().Add(90 * day))
			if reason != segment.ReasonView {
				frozen(policy.Done{})
				w.arrears(time.Time{})
				return
			}
			frozen(policy.Done{Arrears: 1})
			w.arrears(time.Now().Add(90 * day))
		})
	}
}
