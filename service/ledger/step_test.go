package ledger

import (
	"fmt"
	"strings"
	"testing"
)

// world is an account that stores as much as costs 1 a day, with a grace of 90 days.
type world struct {
	t *testing.T
	s Standing
	f Facts
	// said is each step with its hour.
	said []string
}

func newWorld(t *testing.T, balance int64) *world {
	f := Facts{Now: 1000 * Day, Daily: Unit, Stores: true, Grace: 90 * Day}
	f.Balance = f.Balance.Plus(Amount(balance) * Unit)
	return &world{t: t, f: f}
}

// hours passes some, of each of which the account pays, and looks where it stands; told says whether its owner is told at once.
func (w *world) hours(n int, told bool) {
	w.t.Helper()
	for range n {
		for { // as long as there is something to do
			to := w.s.Next(w.f)
			if to == w.s {
				break
			}
			if err := w.s.Check(to, w.f.Now); err != nil {
				w.t.Fatalf("Next does what Check refuses: %v", err)
			}
			w.s = to
			w.said = append(w.said, fmt.Sprintf("%s at %d.%02d", to.Step, w.f.Now/Day, w.f.Now%Day*24/Day))
			if told {
				w.s.Told = w.f.Now
			}
		}
		w.f.Now += Day / 24
		w.f.Balance = w.f.Balance.Plus(-w.f.Daily / 24)
	}
}

func (w *world) want(said ...string) {
	w.t.Helper()
	if got, want := strings.Join(w.said, "\n"), strings.Join(said, "\n"); got != want {
		w.t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
	w.said = nil
}

// All the way down: who paid for 150 days has 60 until writing stops, and 90 after that.
func TestStepsDown(t *testing.T) {
	w := newWorld(t, 150)
	w.hours(200*24, true)
	w.want(
		"writing stops in 30 days at 1030.00",
		"writing stops in 14 days at 1046.00",
		"writing stops in 7 days at 1053.00",
		"writing stops in 1 day at 1059.00",
		"writing has stopped at 1060.00",
		"archives are deleted in 30 days at 1120.00",
		"archives are deleted in 14 days at 1136.00",
		"archives are deleted in 7 days at 1143.00",
		"archives are deleted in 1 day at 1149.00",
		"archives are being deleted at 1150.00",
	)
}

// As long as nobody was told, nothing is deleted; and each warning, however late, leaves the time that it names.
func TestStepsWaitUntilTold(t *testing.T) {
	w := newWorld(t, 91)
	w.hours(400*24, false)
	w.want("writing stops in 1 day at 1000.00", "writing has stopped at 1001.00")
	w.s.Told = w.f.Now
	w.hours(100*24, false)
	w.want("archives are deleted in 30 days at 1400.00")
	w.s.Told = w.f.Now
	w.hours(100*24, true)
	w.want(
		"archives are deleted in 14 days at 1500.00",
		"archives are deleted in 7 days at 1507.00",
		"archives are deleted in 1 day at 1513.00",
		"archives are being deleted at 1514.00",
	)
	// The last one is told a day ahead, whenever that is.
	w = newWorld(t, 91)
	w.hours(89*24, true)
	w.s.Told = w.f.Now
	w.hours(400*24, true)
	w.s = Standing{Step: Last1, Since: 1300 * Day, Until: 1301 * Day}
	w.f.Now, w.said = 1400*Day, nil
	w.hours(1, false)
	w.s.Told = w.f.Now
	w.hours(48, true)
	w.want("archives are being deleted at 1401.01")
}

// Paying leads back at once, from wherever; so does having stored less for long enough, and nothing else.
func TestStepsBack(t *testing.T) {
	for _, days := range []int{31, 47, 59, 61, 121, 149, 151} {
		w := newWorld(t, 150)
		w.hours(days*24, true)
		was := w.s
		if was.Step == Paid {
			t.Fatalf("after %d days: paid", days)
		}
		w.said = nil
		w.f.Balance, w.f.Credited = w.f.Balance.Plus(1000*Unit), w.f.Now
		w.hours(1, true)
		w.want(fmt.Sprintf("paid at %d.00", 1000+days))
		if w.s.Until != 0 {
			t.Errorf("%+v", w.s)
		}
	}
	w := newWorld(t, 150)
	w.hours(31*24, true)
	w.said = nil
	w.f.Daily = Unit * 115 / 120 // 119 pay for 124 days, of which 34 are above the grace
	w.hours(24, true)
	w.want()
	w.f.Daily = Unit / 2
	w.hours(24, true)
	w.want("paid at 1032.00")

	// A little is paid: there are 20 days then, of which nobody was told, and the next step is told.
	w = newWorld(t, 150)
	w.hours(61*24, true)
	w.said = nil
	w.f.Balance, w.f.Credited = Balance{}.Plus(110*Unit), w.f.Now
	w.hours(8*24, true)
	w.want("writing stops in 30 days at 1061.00", "writing stops in 14 days at 1067.00")
}

// Who stores much at once is not told of days that he does not have, and of one step only.
func TestStepsLeftOut(t *testing.T) {
	w := newWorld(t, 1000)
	w.hours(1, true)
	w.f.Daily = 10 * Unit // 5 days above the grace
	w.f.Balance = Balance{}.Plus(950 * Unit)
	w.hours(1, true)
	w.want("writing stops in 7 days at 1000.01")
}

// An account that stores nothing may not begin before it is paid, and is never deleted.
func TestStepsOfNothing(t *testing.T) {
	w := newWorld(t, 0)
	w.f.Daily, w.f.Stores = 0, false
	w.hours(24*365, true)
	w.want("writing has stopped at 1000.00")
	w.f.Balance, w.f.Credited = w.f.Balance.Plus(1), w.f.Now
	w.hours(24*365, true)
	w.want("paid at 1365.00")
}

// What lasts beyond the grace is used up before anything is deleted: nothing is taken from who has deleted most.
func TestStepsOutlast(t *testing.T) {
	w := newWorld(t, 150)
	w.hours(100*24, true)
	w.said = nil
	w.f.Daily = Unit / 2 // 50 are left: 100 days
	w.hours(200*24, true)
	w.want(
		"archives are deleted in 30 days at 1170.00",
		"archives are deleted in 14 days at 1186.00",
		"archives are deleted in 7 days at 1193.00",
		"archives are deleted in 1 day at 1199.00",
		"archives are being deleted at 1200.00",
	)
}

// What Next would never do is refused, so that no other code can.
func TestCheckRefuses(t *testing.T) {
	const now = 1000 * Day
	last := Standing{Step: Last1, Since: now - 2*Day, Told: now - Day, Until: now}
	for what, c := range map[string]struct{ from, to Standing }{
		"the same":                  {Standing{Step: Warn7}, Standing{Step: Warn7, Since: now}},
		"unknown":                   {last, Standing{Step: Lapsed + 1, Since: now, Until: now}},
		"another time":              {Standing{}, Standing{Step: Warn7, Since: now - 1}},
		"told ahead":                {Standing{}, Standing{Step: Warn7, Since: now, Told: now}},
		"a warning with an end":     {Standing{}, Standing{Step: Warn7, Since: now, Until: now}},
		"a grace too short":         {Standing{}, Standing{Step: Stopped, Since: now, Until: now + MinGrace - 1, Stop: now}},
		"stopped again":             {Standing{Step: Last30, Until: now}, Standing{Step: Stopped, Since: now, Until: now + MinGrace}},
		"stopped another time":      {Standing{}, Standing{Step: Stopped, Since: now, Until: now + MinGrace, Stop: now - 1}},
		"paid, and stopped":         {Standing{Step: Stopped, Stop: 5}, Standing{Since: now, Stop: 5}},
		"no stop":                   {Standing{}, Standing{Step: Last30, Since: now, Until: now + 30*Day, Stop: now}},
		"one left out":              {Standing{Step: Last30, Told: now}, Standing{Step: Last7, Since: now, Until: now + 7*Day}},
		"nobody told":               {Standing{Step: Last30}, Standing{Step: Last14, Since: now, Until: now + 14*Day}},
		"less than it names":        {Standing{Step: Last30, Told: now}, Standing{Step: Last14, Since: now, Until: now + 14*Day - 1}},
		"an earlier end":            {Standing{Step: Last30, Told: now, Until: now + 20*Day}, Standing{Step: Last14, Since: now, Until: now + 14*Day}},
		"deleted early":             {Standing{Step: Last1, Told: now - Day, Until: now + 1}, Standing{Step: Lapsed, Since: now, Until: now + 1}},
		"deleted within a day":      {Standing{Step: Last1, Told: now - Day + 1, Until: now}, Standing{Step: Lapsed, Since: now, Until: now}},
		"deleted, and nobody heard": {Standing{Step: Last1, Until: now}, Standing{Step: Lapsed, Since: now, Until: now}},
	} {
		if err := c.from.Check(c.to, now); err == nil {
			t.Errorf("%s: may be", what)
		}
	}
	if err := last.Check(Standing{Step: Lapsed, Since: now, Until: now}, now); err != nil {
		t.Error(err)
	}
}

// The end is exact, and the days until then are rounded up; where there is none in sight, it is a hundred years.
func TestEnd(t *testing.T) {
	const now = 1000 * Day
	f := Facts{Now: now, Daily: 2 * Unit, Grace: 90 * Day}
	for what, c := range map[string]struct {
		s       Standing
		balance Balance
		daily   Amount
		end     int64
		left    int64
	}{
		"paid for 100 days":    {Standing{}, Balance{}.Plus(200 * Unit), 2 * Unit, now + 10*Day, 10},
		"a pico less":          {Standing{}, Balance{}.Plus(200*Unit - 1), 2 * Unit, now + 10*Day - 1, 10},
		"a day less":           {Standing{}, Balance{}.Plus(198*Unit - 1), 2 * Unit, now + 9*Day - 1, 9},
		"long past":            {Standing{}, Balance{}.Plus(-200 * Unit), 2 * Unit, now, 0},
		"stopped":              {Standing{Step: Stopped, Until: now + 5*Day + 1}, Balance{}, 2 * Unit, now + 5*Day + 1, 6},
		"stopped, with more":   {Standing{Step: Last7, Until: now + 5*Day}, Balance{}.Plus(12 * Unit), 2 * Unit, now + 6*Day, 6},
		"stopped, and past":    {Standing{Step: Last1, Until: now - 1}, Balance{}.Plus(-Max), 2 * Unit, now, 0},
		"stores nothing":       {Standing{}, Balance{}.Plus(1), 0, now + ManyDays*Day, ManyDays},
		"stores and owes none": {Standing{}, Balance{}, 0, now, 0},
		"more than can be":     {Standing{}, Balance{1 << 40, 0}, 1, now + ManyDays*Day, ManyDays},
		"less than can be":     {Standing{}, Balance{-1 << 40, 0}, 1, now, 0},
	} {
		f.Balance, f.Daily = c.balance, c.daily
		if end, left := c.s.End(f), c.s.Left(f); end != c.end || left != c.left {
			t.Errorf("%s: %d ms from now, %d days; want %d, %d", what, end-now, left, c.end-now, c.left)
		}
	}
}
