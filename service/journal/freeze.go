package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/history"
	"holdfast/service/ledger"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// maxSkew is how far our clock, journal time and the store's clock may be apart for anything to be deleted, and
	// how old the newest look at them may be (JOURNAL 14).
	maxSkew = 5 * time.Minute
	// maxJump is how far the clock may move ahead between two looks at it, or while no process runs, until that is
	// taken for a clock that was set wrong: where the store's clock is our own (a directory), nothing else shows it.
	maxJump = 14 * 24 * time.Hour
	// lookTimeout bounds one look, and maxLook how long its answer may have taken to say anything.
	lookTimeout = 10 * time.Second
	maxLook     = time.Minute
)

// steadyFor is for how long the clocks must agree, at every look of one process, until the service thaws by
// itself what it froze for that reason. What is missing is looked for (missing.go).
var steadyFor = map[segment.Reason]time.Duration{
	segment.ReasonClocks: time.Hour,
	segment.ReasonJump:   24 * time.Hour,
}

// ErrClocks reports that our clock and the store's are too far apart to delete anything.
var ErrClocks = errors.New("this clock and the store's disagree, so nothing is deleted; set the wrong one")

// clocks is what this process knows of our clock and the store's. Journal.mu guards it.
type clocks struct {
	// behind is what journal time takes off our clock: how far the store's is behind it, if that is too much. A clock
	// that jumped ahead must not take the journal along, whose time never comes back. Not positive.
	behind time.Duration
	store  time.Time // at the newest look
	seen   int64     // ms; our clock then, less behind; before the first look the last journal time
	agreed time.Time // newest look at which they agreed; zero if they did not at the newest one
	steady time.Time // since when they have agreed at every look, none of them missing for long
	// owed is what was found and is not in the journal yet. It freezes like what is there.
	owed map[segment.Reason]segment.Frozen
}

// stored returns the store's clock at the newest look as records carry it, ms; 0 before the first.
func (c *clocks) stored() int64 {
	if c.store.IsZero() {
		return 0
	}
	return c.store.UnixMilli()
}

// now returns our clock for the journal, ms. mu is held.
func (j *Journal) now() int64 { return j.cfg.clock().Add(j.clocks.behind).UnixMilli() }

// look compares the clocks and notes what it finds. An error says that nothing is known.
func (j *Journal) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	before := j.cfg.clock()
	store, err := j.cfg.Bucket.Now(ctx)
	after := j.cfg.clock()
	if took := after.Sub(before); err == nil && took > maxLook {
		err = fmt.Errorf("it took %s to answer", took.Round(time.Second)) // or we were paused
	}
	if err != nil {
		return fmt.Errorf("read the store's clock: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.judge(before, after, store)
	return nil
}

// judge concludes from what the store's clock showed between two times of ours. mu is held.
func (j *Journal) judge(before, after, store time.Time) {
	c := &j.clocks
	ahead, behind := before.Sub(store), store.Sub(after)
	c.store, c.behind = store, 0
	if ahead > maxSkew {
		c.behind = -ahead
	}
	now := after.Add(c.behind).UnixMilli()
	found := ""
	switch ms := time.Millisecond; {
	case ahead > maxSkew:
		found = fmt.Sprintf("this service's clock is %s ahead of the store's", ahead.Round(ms))
	case behind > maxSkew:
		found = fmt.Sprintf("this service's clock is %s behind the store's", behind.Round(ms))
	case time.UnixMilli(j.time).Sub(store) > maxSkew:
		found = fmt.Sprintf("the journal's time is %s ahead of the store's clock: a clock was wrong before", time.UnixMilli(j.time).Sub(store).Round(ms))
	}
	if found != "" {
		j.owe(segment.Frozen{Reason: segment.ReasonClocks, Text: found}, after)
		c.agreed = time.Time{}
	} else {
		if c.steady.IsZero() || after.Sub(c.agreed) > maxSkew {
			c.steady = after
		}
		c.agreed = after
	}
	if jump := time.Duration(now-c.seen) * time.Millisecond; c.seen > 0 && jump > maxJump {
		found := fmt.Sprintf("the clock is %s later than when it was last seen, and the service is not usually idle for so long", jump.Round(time.Minute))
		j.owe(segment.Frozen{Reason: segment.ReasonJump, Text: found}, after)
	}
	c.seen = now
}

// owe freezes deleting at once, because of what was found at that time; the record follows. mu is held.
func (j *Journal) owe(f segment.Frozen, at time.Time) {
	c := &j.clocks
	if _, ok := steadyFor[f.Reason]; ok {
		c.steady = time.Time{}
	}
	if _, ok := c.owed[f.Reason]; ok || j.frozen(f.Reason) {
		return
	}
	if c.owed == nil {
		c.owed = map[segment.Reason]segment.Frozen{}
	}
	f.Clock = at.UnixMilli()
	f.Store = c.stored()
	// What was found may be of any length, and of any bytes: names, answers of the store.
	f.Text = strings.ToValidUTF8(f.Text[:min(len(f.Text), segment.MaxText)], "")
	c.owed[f.Reason] = f
	j.log.Error("all deleting is frozen", "reason", f.Reason, "found", f.Text)
}

// frozen reports whether the journal says so for that reason. mu is held.
func (j *Journal) frozen(r segment.Reason) bool {
	for _, f := range j.freezes() {
		if f.Reason == r {
			return true
		}
	}
	return false
}

// freezes returns what the sequenced journal says; while Open is at work, nothing. mu is held.
func (j *Journal) freezes() []view.Freeze {
	if j.overlay == nil {
		return nil
	}
	all, err := view.NewReader(j.overlay).Freezes()
	if err != nil { // the view's own disk: whoever appends next finds out
		j.log.Error("read what is frozen", "err", err)
	}
	return all
}

// due returns the records that are to be appended: what is owed, and what thaws by itself. mu is held.
func (j *Journal) due() (due []segment.Record) {
	c := &j.clocks
	for r := segment.Reason(1); r <= segment.MaxReason; r++ {
		if f, ok := c.owed[r]; ok {
			due = append(due, f)
		}
	}
	for _, f := range j.freezes() {
		if f.Reason == segment.ReasonContradiction {
			if why, ok := j.found(); ok {
				due = append(due, segment.Thawed{Reason: f.Reason, Since: f.Since, Clock: j.cfg.clock().UnixMilli(), Store: c.stored(), Text: why})
			}
			continue
		}
		d, ok := steadyFor[f.Reason]
		if _, again := c.owed[f.Reason]; !ok || again || c.agreed.IsZero() || c.steady.IsZero() || c.agreed.Sub(c.steady) < d {
			continue
		}
		due = append(due, segment.Thawed{
			Reason: f.Reason, Since: f.Since, Clock: c.agreed.UnixMilli(), Store: c.stored(),
			Text: fmt.Sprintf("the clocks have agreed for %s", d),
		})
	}
	return due
}

// settle appends what is due. A crash before that is durable: the next start looks for itself.
func (j *Journal) settle(ctx context.Context) error {
	j.mu.RLock()
	n := len(j.due())
	j.mu.RUnlock()
	if n == 0 {
		return nil
	}
	_, err := j.Append(ctx, func(tx *Tx) error {
		done := j.due() // as it is now: another may have recorded it since, and a person have thawed it
		for _, rec := range done {
			if err := tx.Record(rec); err != nil {
				return err
			}
		}
		for _, rec := range done {
			switch rec := rec.(type) {
			case segment.Frozen:
				delete(j.clocks.owed, rec.Reason)
			case segment.Thawed:
				if rec.Reason == segment.ReasonContradiction {
					clear(j.missing)
				}
				j.remember(rec)
				j.log.Warn("deleting is not frozen any more", "reason", rec.Reason, "why", rec.Text)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record what is frozen: %w", err)
	}
	j.Flush()
	return nil
}

// Freezes returns every reason for which deleting is frozen, what is on its way into the journal included.
func (j *Journal) Freezes() []view.Freeze {
	j.mu.RLock()
	defer j.mu.RUnlock()
	all := j.freezes()
	for r := segment.Reason(1); r <= segment.MaxReason; r++ {
		if f, ok := j.clocks.owed[r]; ok && !j.frozen(r) {
			all = append(all, view.Freeze{Reason: r, Since: f.Clock, Clock: f.Clock, Store: f.Store, Place: f.Place, Text: f.Text})
		}
	}
	return all
}

// maxEnded bounds the freezes that Ended returns.
const maxEnded = 8

// Ended is a freeze that ended by itself.
type Ended struct {
	view.Freeze
	At  time.Time
	Why string
}

// Ended returns the newest freezes that ended by themselves in this process, oldest first. The journal has them all.
func (j *Journal) Ended() []Ended {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return slices.Clone(j.ended)
}

// remember notes that a freeze is about to end by itself. mu is held.
func (j *Journal) remember(t segment.Thawed) {
	for _, f := range j.freezes() {
		if f.Reason == t.Reason && f.Since == t.Since {
			j.ended = append(j.ended[max(0, len(j.ended)-maxEnded+1):], Ended{f, time.UnixMilli(t.Clock), t.Text})
		}
	}
}

// MayDelete looks at the clocks and returns nil if deleting is not frozen. Whatever ends a delay or deletes asks it
// first; what it appends is checked again when it is appended. The error wraps view.ErrFrozen, and ErrClocks if
// the clocks disagree now; it wraps neither if the store's clock cannot be read, which forbids deleting as well.
func (j *Journal) MayDelete(ctx context.Context) error {
	if err := j.look(ctx); err != nil {
		return err
	}
	if err := j.settle(ctx); err != nil {
		return err
	}
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.mayDelete(j.now())
}

// mayDelete is MayDelete of what the newest look found, for a record at the journal time now. mu is held.
func (j *Journal) mayDelete(now int64) error {
	c := &j.clocks
	for r := segment.Reason(1); r <= segment.MaxReason; r++ {
		if f, ok := c.owed[r]; ok {
			return j.whyFrozen(r, f.Text)
		}
	}
	for _, f := range j.freezes() {
		return j.whyFrozen(f.Reason, f.Text)
	}
	if c.agreed.IsZero() || j.cfg.clock().Sub(c.agreed) > maxSkew || now-c.seen > maxSkew.Milliseconds() {
		return fmt.Errorf("nothing is deleted: the store's clock was not read in the last %s", maxSkew)
	}
	return nil
}

func (j *Journal) whyFrozen(r segment.Reason, text string) error {
	err := fmt.Errorf("%w (%s): %s", view.ErrFrozen, r, text)
	if j.clocks.agreed.IsZero() {
		err = fmt.Errorf("%w: %w", ErrClocks, err)
	}
	return err
}

// deletes reports whether a record ends a delay or frees something.
func deletes(rec segment.Record) (bool, error) {
	switch rec := rec.(type) {
	case segment.Condemned, segment.Moved, segment.Retired, segment.Removed:
		return true, nil
	case segment.Charge: // of a time that did not pass
		return true, nil
	case segment.Step:
		return rec.Step >= ledger.Stopped, nil
	case segment.History:
		b, err := history.ParseBody(rec.Entry.Record.Body)
		return b.Type.DeletesByService(), err
	}
	return false, nil
}

// ErrThawed reports that there is nothing to thaw.
var ErrThawed = errors.New("deleting is not frozen")

// Thaw ends every freeze on the word of a person, whose name and reason are recorded, and returns what it ended
// once that is durable. While the clocks disagree it does nothing: the error wraps ErrClocks. If the cause is
// still there, the next look freezes again.
func (j *Journal) Thaw(ctx context.Context, by, why string) ([]view.Freeze, error) {
	if err := j.look(ctx); err != nil {
		return nil, fmt.Errorf("thaw: %w", err)
	}
	if err := j.settle(ctx); err != nil { // so that what is owed is in the journal, and ends there
		return nil, fmt.Errorf("thaw: %w", err)
	}
	var ended []view.Freeze
	err := Durably(ctx, j, func(tx *Tx) error {
		all, err := tx.Reader().Freezes()
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return ErrThawed
		}
		c := &j.clocks
		if c.agreed.IsZero() {
			return fmt.Errorf("%w: %s", ErrClocks, all[0].Text)
		}
		for _, f := range all {
			err := tx.Record(segment.Thawed{Reason: f.Reason, Since: f.Since, Clock: c.agreed.UnixMilli(), Store: c.store.UnixMilli(), By: by, Text: why})
			if err != nil {
				return err
			}
		}
		ended = all
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("thaw: %w", err)
	}
	for _, f := range ended {
		j.log.Warn("deleting is not frozen any more", "reason", f.Reason, "by", by, "why", why)
	}
	return ended, nil
}
