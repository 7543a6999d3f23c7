package ledger

import (
	"fmt"
	"math/big"
)

// Step is how far an account has come that is not paid. An account goes down the steps one after another as its balance
// shrinks, and back when it is paid. Each step but the first is told to its owner once.
type Step uint8

// The steps. The first four warnings count the days until writing stops, the other four those until the archives are
// deleted, which is in the slow way of all deleting.
const (
	Paid    Step = 0
	Warn30  Step = 1
	Warn14  Step = 2
	Warn7   Step = 3
	Warn1   Step = 4
	Stopped Step = 5 // nothing new is taken; what is left of the balance pays for the grace
	Last30  Step = 6
	Last14  Step = 7
	Last7   Step = 8
	Last1   Step = 9
	Lapsed  Step = 10 // the archives are being deleted
)

// days is at how many days left, or fewer, each step begins.
var days = [...]int64{Warn30: 30, Warn14: 14, Warn7: 7, Warn1: 1, Stopped: 0, Last30: 30, Last14: 14, Last7: 7, Last1: 1, Lapsed: 0}

func (s Step) String() string {
	switch {
	case s == Paid:
		return "paid"
	case s < Stopped:
		return "writing stops in " + inDays(days[s])
	case s == Stopped:
		return "writing has stopped"
	case s < Lapsed:
		return "archives are deleted in " + inDays(days[s])
	case s == Lapsed:
		return "archives are being deleted"
	}
	return fmt.Sprintf("step %d", uint8(s))
}

// inDays says a number of days.
func inDays(n int64) string {
	if n == 1 {
		return "1 day"
	}
	return fmt.Sprintf("%d days", n)
}

const (
	// MinGrace is the least time from when writing stops until archives are deleted, ms: the history of a vault promises
	// as much (history.MinGrace).
	MinGrace = 30 * Day
	// heard is how long before anything is deleted the last warning was told, ms.
	heard = Day
	// enough is how many days there must be for an account to go back up without having been paid: a balance that hovers
	// around a step must not have it told again and again.
	enough = 45
)

// Standing is where an account stands.
type Standing struct {
	Step  Step
	Since int64 // ms
	Told  int64 // ms; when its owner was told of the step; 0 for not yet
	Until int64 // ms; from Stopped on: nothing is deleted before
	Stop  int64 // ms; from Stopped on: when writing stopped
}

// Facts are what decides where an account goes next.
type Facts struct {
	Now      int64   // ms
	Balance  Balance // of the account
	Daily    Amount  // what keeping everything that it stores costs a day
	Stores   bool    // it stores anything
	Credited int64   // ms; when it was last given something; 0 for never
	Grace    int64   // ms
}

// End returns when writing stops, or, from Stopped on, when the archives are deleted, if nothing changes, ms: ManyDays from now
// where no end is in sight, and now where it is past because nobody was moved yet.
func (s Standing) End(f Facts) int64 {
	l := lasts(f.Balance, f.Daily)
	if s.Step < Stopped && l < ManyDays*Day {
		return max(f.Now, f.Now+l-f.Grace)
	}
	return max(f.Now, s.Until, f.Now+l)
}

// Left returns how many days there are until End, one that has begun counted whole.
func (s Standing) Left(f Facts) int64 { return ceilDays(s.End(f) - f.Now) }

// ManyDays stands for no end in sight: a hundred years.
const ManyDays = 36_500

// lasts returns for how long a balance pays what keeping everything costs a day, ms: no longer than ManyDays, and below zero for
// one that is used up.
func lasts(balance Balance, daily Amount) int64 {
	b := balance.Int()
	if daily == 0 {
		return int64(max(b.Sign(), 0)) * ManyDays * Day
	}
	b.Mul(b, big.NewInt(Day)).Quo(b, big.NewInt(int64(daily)))
	if least := big.NewInt(-ManyDays * Day); b.Cmp(least) < 0 {
		b = least
	}
	if most := big.NewInt(ManyDays * Day); b.Cmp(most) > 0 {
		b = most
	}
	return b.Int64()
}

// ceilDays is ms in days, rounded up; 0 and less is past.
func ceilDays(ms int64) int64 {
	if ms <= 0 {
		return ms / Day
	}
	return (ms + Day - 1) / Day
}

// step returns the last of from to to that begins with so many days left.
func step(from, to Step, left int64) Step {
	for s := to; s > from; s-- {
		if left <= days[s] {
			return s
		}
	}
	return from
}

// Next returns where an account goes from s. It is s itself if nothing changes.
//
// Before writing stops, steps may be left out: who stores much at once has fewer days. After that none is, and each waits until
// the one before it was told: archives are deleted only if their owner was told five times, and no earlier than each
// of these said.
func (s Standing) Next(f Facts) Standing {
	writes := ceilDays(lasts(f.Balance, f.Daily) - f.Grace)
	target := step(Paid, Stopped, writes)
	switch {
	case target < s.Step && target < Stopped && (f.Credited >= s.Since && f.Credited > 0 || writes > enough):
		return s.To(target, 0, f.Now)
	case s.Step < Stopped && target == Stopped:
		return s.To(Stopped, f.Now+f.Grace, f.Now)
	case s.Step < Stopped && target > s.Step:
		return s.To(target, 0, f.Now)
	case s.Step < Stopped || s.Step == Lapsed || s.Told == 0 || !f.Stores:
		return s
	}
	next := s.Step + 1
	if s.Left(f) > days[next] || next == Lapsed && f.Now-s.Told < heard {
		return s
	}
	return s.To(next, max(s.Until, f.Now+days[next]*Day), f.Now)
}

// stop returns when writing stopped for who goes from s to a step at the time now (ms); 0 if it goes on.
func (s Standing) stop(to Step, now int64) int64 {
	switch {
	case to < Stopped:
		return 0
	case s.Step < Stopped:
		return now
	}
	return s.Stop
}

// To returns what s becomes by a record of that step and end at the time now (ms).
func (s Standing) To(step Step, until, now int64) Standing {
	return Standing{Step: step, Since: now, Until: until, Stop: s.stop(step, now)}
}

// Check refuses a change from s to to at the time now (ms) that Next would never make, whatever the facts.
func (s Standing) Check(to Standing, now int64) error {
	switch {
	case to.Step > Lapsed:
		return fmt.Errorf("there is no %s", to.Step)
	case to.Step == s.Step:
		return fmt.Errorf("the account stands there already: %s", s.Step)
	case to.Step < Stopped && to.Until != 0, to.Since != now, to.Told != 0, to.Stop != s.stop(to.Step, now):
		return fmt.Errorf("a standing of %d, told %d, until %d, stopped %d", to.Since, to.Told, to.Until, to.Stop)
	case to.Step < Stopped:
		return nil
	case to.Step == Stopped:
		if s.Step > Stopped || to.Until < now+MinGrace {
			return fmt.Errorf("from %q to %q, until %d", s.Step, to.Step, to.Until)
		}
		return nil
	case to.Step != s.Step+1, s.Told == 0, to.Until < s.Until, to.Until < now+days[to.Step]*Day:
		return fmt.Errorf("from %q to %q, told %d, until %d", s.Step, to.Step, s.Told, to.Until)
	case to.Step == Lapsed && (now < s.Until || now-s.Told < heard):
		return fmt.Errorf("archives would be deleted at %d, before %d or within a day of the last warning at %d", now, s.Until, s.Told)
	}
	return nil
}
