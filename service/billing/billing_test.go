package billing_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/service/billing"
	"holdfast/service/bucket/sim"
	"holdfast/service/journal"
	"holdfast/service/ledger"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

const day = 24 * time.Hour

// price makes a gigabyte cost 30 a month, so that the blocks of tests cost something.
var price = ledger.Prices{Stored: 30 * ledger.Unit}

// world is a journal in which customers store something, and who charges them.
type world struct {
	*testing.T
	bucket *sim.Bucket
	disk   *view.Disk
	j      *journal.Journal
	b      *billing.Biller
	prices ledger.Prices
	all    []*viewtest.Customer
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// inWorld runs fn in virtual time.
func inWorld(t *testing.T, fn func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, bucket: sim.New(1), disk: view.NewDisk(), prices: price}
		w.open()
		defer func() { w.ok(w.j.Close(context.Background())) }()
		fn(w)
		w.sums()
	})
}

func (w *world) open() {
	w.Helper()
	store, err := w.disk.Open()
	w.ok(err)
	w.j, err = journal.Open(w.Context(), journal.Config{
		Create: true, Bucket: w.bucket, Cell: holdfast.CellID{1}, Host: [16]byte{1}, LogKey: viewtest.LogKey(), Store: store, Watch: 4 * time.Minute,
	})
	w.ok(err)
	w.biller(w.j)
}

// biller has another one charge, from l.
func (w *world) biller(l billing.Ledger) {
	w.b = billing.New(billing.Config{Ledger: l, Prices: w.prices, Currency: "EUR", Grace: 90 * day})
}

// crash ends the journal without a word and starts another on what is left.
func (w *world) crash() {
	w.Helper()
	w.bucket.Crash()
	w.j.Close(context.Background())
	w.bucket, w.disk = w.bucket.Store().Connect(1), w.disk.Crash(50, 1)
	w.open()
}

func (w *world) append(fn func(*journal.Tx) error) error {
	t, err := w.j.Append(w.Context(), fn)
	if err != nil {
		return err
	}
	w.j.Flush()
	return t.Wait(w.Context())
}

// customer makes one who stores so many bytes.
func (w *world) customer(size int) *viewtest.Customer {
	w.Helper()
	c := viewtest.New(len(w.all) + 1)
	w.all = append(w.all, c)
	w.ok(w.append(func(tx *journal.Tx) error {
		if err := errors.Join(tx.Record(c.Account()), tx.Record(c.Token(1<<62)), tx.Record(c.Redeemed())); err != nil {
			return err
		}
		g := c.Genesis()
		if _, err := tx.History(g); err != nil {
			return err
		}
		c.Accepted(g)
		e := c.Enrol()
		if _, err := tx.History(e); err != nil {
			return err
		}
		c.Accepted(e)
		o := c.Open()
		if _, err := tx.History(o); err != nil {
			return err
		}
		c.Accepted(o)
		return nil
	}))
	if size > 0 {
		w.store(c, 1, size)
	}
	return c
}

func (w *world) store(c *viewtest.Customer, n, size int) {
	w.Helper()
	b := c.Chunk(n, size)
	w.ok(w.append(func(tx *journal.Tx) error { return tx.Stored(c.Session, b.Name, b.Kind, b.Links, b.Sealed) }))
}

func (w *world) name(c *viewtest.Customer) string {
	w.Helper()
	a, ok, err := w.j.Acked().Account(c.ID)
	if err != nil || !ok {
		w.Fatal(ok, err)
	}
	return a.Name
}

func (w *world) run() billing.Done {
	w.Helper()
	done, err := w.b.Run(w.Context())
	w.ok(err)
	return done
}

// pass lets hours pass and runs the biller in each.
func (w *world) pass(d time.Duration) {
	w.Helper()
	for range d / time.Hour {
		time.Sleep(time.Hour)
		w.run()
	}
}

func (w *world) line(c *viewtest.Customer) billing.Line {
	w.Helper()
	l, err := w.b.Account(w.name(c))
	w.ok(err)
	return l
}

// pay pays for so many days of what c stores now.
func (w *world) pay(c *viewtest.Customer, id string, days int) {
	w.Helper()
	l := w.line(c)
	_, known, err := w.b.Pay(w.Context(), w.name(c), id, l.Daily*ledger.Amount(days), "")
	if err != nil || known {
		w.Fatal(known, err)
	}
}

// transfers returns all of them, as text.
func (w *world) transfers() (all []string) {
	w.Helper()
	for after := uint64(0); ; {
		list, err := w.b.Transfers(after, 100)
		w.ok(err)
		for _, t := range list {
			after = t.Number
			all = append(all, fmt.Sprintf("%s %s(%s) to %s(%s): %s", t.ID, t.From.Kind, t.FromName, t.To.Kind, t.ToName, t.Amount))
		}
		if len(list) == 0 {
			return all
		}
	}
}

// sums fails unless the sum over all books is zero, and each is the sum of its transfers.
func (w *world) sums() {
	w.Helper()
	books := map[ledger.Book]ledger.Balance{}
	list, err := w.j.Acked().Transfers(0, 1<<20)
	w.ok(err)
	for _, t := range list {
		books[t.From] = books[t.From].Plus(-t.Amount)
		books[t.To] = books[t.To].Plus(t.Amount)
	}
	var sum ledger.Balance
	for k, want := range books {
		got, err := w.j.Acked().Balance(k)
		w.ok(err)
		if got != want {
			w.Errorf("book %+v has %s, its transfers make %s", k, got, want)
		}
		sum = sum.Sum(got)
	}
	if !sum.Zero() {
		w.Errorf("the sum of all books is %s", sum)
	}
}

// Each day of use is one transfer, the days of a service that was down are one together, and what they come to is what was used.
func TestRunCharges(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b, idle := w.customer(1_000_000), w.customer(5000), w.customer(0)
		w.pass(day)
		for _, c := range []*viewtest.Customer{a, b, idle} {
			w.ok2(w.b.Pay(w.Context(), w.name(c), "first-"+w.name(c), ledger.Unit, ""))
		}
		began := map[holdfast.AccountID]int64{}
		for _, c := range w.all {
			m, err := w.j.Acked().Money(c.ID)
			w.ok(err)
			began[c.ID] = m.Charged
		}
		w.pass(10 * day)
		exactly := func(c *viewtest.Customer, size, want int) {
			t.Helper()
			list, err := w.j.Acked().Transfers(0, 1<<20)
			w.ok(err)
			var n int
			var sum ledger.Amount
			from, to := began[c.ID], began[c.ID]
			for _, x := range list {
				if x.From == ledger.Of(c.ID) && x.Time > from {
					if x.Time-to < 20*time.Hour.Milliseconds() {
						t.Errorf("charged at %d and at %d", to, x.Time)
					}
					n, sum, to = n+1, sum+x.Amount, x.Time
				}
			}
			cost, err := price.Cost(ledger.Use{Lo: uint64(size) * uint64(to-from)})
			w.ok(err)
			if n != want || sum > cost || sum < cost-ledger.Amount(n) {
				t.Errorf("%d charges of %s, want %d of %s and at most a pico a day less", n, sum, want, cost)
			}
		}
		exactly(a, 1_000_000, 10)
		exactly(b, 5000, 10)
		exactly(idle, 0, 0)
		w.ok(w.j.Close(context.Background()))
		time.Sleep(6 * day)
		w.open()
		w.run()
		w.run()
		exactly(a, 1_000_000, 11)
	})
}

func (w *world) ok2(_ billing.Line, _ bool, err error) {
	w.Helper()
	w.ok(err)
}

// Prices that change hold from then on; where nothing costs anything any more, everybody is paid, and what was used meanwhile is
// never charged.
func TestPricesChange(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer(1_000_000)
		w.pass(day)
		w.prices.Stored *= 100
		w.biller(w.j)
		w.run()
		if l := w.line(c); l.Balance.Int().Sign() > 0 || l.Standing.Step != ledger.Stopped {
			t.Fatalf("%+v", l)
		}
		had := w.transfers()
		w.prices = ledger.Prices{}
		w.biller(w.j)
		w.run()
		free := len(w.transfers())
		if free > len(had)+1 {
			t.Errorf("%q", w.transfers()[len(had):])
		}
		if l := w.line(c); l.Standing.Step != ledger.Paid {
			t.Errorf("%+v", l)
		}
		if _, ok := w.b.Board().Of(c.ID); ok {
			t.Error("somebody is on the board of a service that charges nothing")
		}
		w.pass(100 * day)
		w.prices = price
		w.biller(w.j)
		w.run()
		if n := len(w.transfers()); n != free {
			t.Errorf("%q", w.transfers()[free:])
		}
	})
}

// The same payment twice is one, whatever happens between; another with its id is refused; what is paid back is taken.
func TestPay(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer(1_000_000)
		w.run()
		name := w.name(c)
		if l := w.line(c); l.Standing.Step != ledger.Stopped {
			t.Fatalf("%+v", l)
		}
		if l, ok := w.b.Board().Of(c.ID); !ok || l.Standing.Step != ledger.Stopped {
			t.Fatalf("%+v", l)
		}
		l, known, err := w.b.Pay(w.Context(), name, "INV-1", 5*ledger.Unit, "für ein Jahr")
		if err != nil || known || l.Balance.String() != "5.00" || l.Standing.Step != ledger.Paid {
			t.Fatalf("%+v, %v, %v", l, known, err)
		}
		if _, ok := w.b.Board().Of(c.ID); ok {
			t.Error("who has paid waits for the next run")
		}
		w.crash()
		if l, known, err = w.b.Pay(w.Context(), name, "INV-1", 5*ledger.Unit, "für ein Jahr"); err != nil || !known || l.Balance.String() != "5.00" {
			t.Fatalf("%+v, %v, %v", l, known, err)
		}
		if _, _, err = w.b.Pay(w.Context(), name, "INV-1", 6*ledger.Unit, "für ein Jahr"); !errors.Is(err, view.ErrTransfer) {
			t.Error(err)
		}
		if l, _, err = w.b.Pay(w.Context(), name, "INV-2", -2*ledger.Unit, ""); err != nil || l.Balance.String() != "3.00" {
			t.Errorf("%+v, %v", l, err)
		}
		for what, x := range map[string]struct {
			name, id, text string
			amount         ledger.Amount
			want           error
		}{
			"no id": {name, "", "", 1, billing.ErrID}, "a long id": {name, strings.Repeat("x", 41), "", 1, billing.ErrID},
			"a space": {name, "a b", "", 1, billing.ErrID}, "not ASCII": {name, "ü", "", 1, billing.ErrID},
			"nothing": {name, "x", "", 0, billing.ErrAmount}, "less than can be": {name, "x", "", -ledger.Max - 1, billing.ErrAmount},
			"a line": {name, "x", "a\nb", 1, billing.ErrText}, "a long text": {name, "x", strings.Repeat("x", 501), 1, billing.ErrText},
			"nobody": {"nobody", "x", "", 1, view.ErrNoAccount},
		} {
			if _, _, err := w.b.Pay(w.Context(), x.name, x.id, x.amount, x.text); !errors.Is(err, x.want) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if got := w.transfers(); !slices.Equal(got, []string{
			fmt.Sprintf("payment:INV-1 payments() to customer(%s): 5.00", name),
			fmt.Sprintf("payment:INV-2 customer(%s) to payments(): 2.00", name),
		}) {
			t.Errorf("%q", got)
		}
	})
}

// An outage is credited once, whatever interrupts it: a day of what each account stores for each hour.
func TestCredit(t *testing.T) {
	inWorld(t, func(w *world) {
		var want ledger.Balance
		for i := range 200 {
			c := w.customer(i % 3 * 100_000)
			want = want.Plus(w.line(c).Daily * 5)
		}
		dry, err := w.b.Credit(w.Context(), "2026-11", 5, true)
		if err != nil || dry.Accounts != 133 || dry.Known != 0 || dry.Sum != want || len(w.transfers()) != 0 {
			t.Fatalf("%+v, %v; %s", dry, err, want)
		}
		w.biller(&ends{w.j, 2}) // after two pages of accounts
		if _, err := w.b.Credit(w.Context(), "2026-11", 5, false); !errors.Is(err, errEnds) {
			t.Fatal(err)
		}
		some := len(w.transfers())
		if some == 0 || some == 133 {
			t.Fatalf("%d were given something", some)
		}
		w.crash()
		got, err := w.b.Credit(w.Context(), "2026-11", 5, false)
		if err != nil || got != (billing.Credited{Accounts: 133, Known: some, Sum: want}) {
			t.Fatalf("%+v, %v; %s", got, err, want)
		}
		w.store(w.all[0], 2, 1_000_000) // who stores more by now is not given more
		if got, err = w.b.Credit(w.Context(), "2026-11", 7, false); err != nil || got.Known != 133 || len(w.transfers()) != 134 {
			t.Errorf("%+v, %v, %d", got, err, len(w.transfers()))
		}
		if b, err := w.j.Acked().Balance(ledger.Of(w.all[1].ID)); err != nil || b != (ledger.Balance{}.Plus(w.line(w.all[1]).Daily*5)) {
			t.Errorf("%s, %v", b, err)
		}
		for _, x := range []struct {
			incident string
			hours    int
			want     error
		}{{"", 1, billing.ErrID}, {"a b", 1, billing.ErrID}, {"x", 0, billing.ErrHours}, {"x", 8785, billing.ErrHours}} {
			if _, err := w.b.Credit(w.Context(), x.incident, x.hours, false); !errors.Is(err, x.want) {
				t.Errorf("%q, %d: %v", x.incident, x.hours, err)
			}
		}
	})
}

var errEnds = errors.New("the end")

// ends is a ledger that takes so many appends and ends.
type ends struct {
	*journal.Journal
	n int
}

func (e *ends) Append(ctx context.Context, fn func(*journal.Tx) error) (*journal.Ticket, error) {
	if e.n--; e.n < 0 {
		return nil, errEnds
	}
	return e.Journal.Append(ctx, fn)
}

// Whoever pays while accounts are charged may write at once, whatever the run that is under way had seen; and every payment is booked.
func TestPayBesideRun(t *testing.T) {
	inWorld(t, func(w *world) {
		for range 100 { // more than are looked at together
			w.customer(10_000)
		}
		w.run()
		time.Sleep(day)
		w.bucket.OnOp(func(sim.Op, string, int) sim.Fault { return sim.Fault{Slow: 300 * time.Millisecond} })
		ctx, cancel := context.WithCancel(w.Context())
		var loop, pay sync.WaitGroup
		loop.Go(func() { w.b.Loop(ctx) })
		for i, c := range w.all {
			name, daily := w.name(c), w.line(c).Daily
			pay.Go(func() {
				time.Sleep(time.Duration(i) * 17 * time.Millisecond)
				if l, _, err := w.b.Pay(ctx, name, name, daily*1000, ""); err != nil || l.Standing.Step != ledger.Paid {
					t.Errorf("%+v, %v", l, err)
				}
				time.Sleep(10 * time.Second)
				if l, ok := w.b.Board().Of(c.ID); ok {
					t.Errorf("who has paid a second ago may not write: %+v", l)
				}
			})
		}
		pay.Wait()
		cancel()
		loop.Wait()
		w.bucket.OnOp(nil)
		if n := len(w.transfers()); n != 2*len(w.all) {
			t.Errorf("%d payments and charges of %d", n, len(w.all))
		}
	})
}

// While the clock is in doubt nobody is charged and nobody goes down; who pays may write all the same.
func TestFrozen(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.customer(1_000_000), w.customer(1_000_000)
		w.run() // both are stopped
		w.pass(day)
		charged := len(w.transfers())
		w.bucket.Store().SetSkew(-400 * day)
		time.Sleep(2 * day)
		if done, err := w.b.Run(w.Context()); !errors.Is(err, view.ErrFrozen) || done != (billing.Done{}) {
			t.Fatalf("%+v, %v", done, err)
		}
		if n := len(w.transfers()); n != charged {
			t.Errorf("%q", w.transfers()[charged:])
		}
		for _, c := range w.all {
			if l, ok := w.b.Board().Of(c.ID); !ok || l.Standing.Step != ledger.Stopped {
				t.Errorf("%+v", l)
			}
		}
		w.pay(a, "1", 1000)
		if _, ok := w.b.Board().Of(a.ID); ok {
			t.Error("who has paid may not write")
		}
		if _, ok := w.b.Board().Of(b.ID); !ok {
			t.Error("who has not paid may write")
		}
		select {
		case <-w.b.Moved():
		default:
			t.Error("nobody learns that an account was paid")
		}

		// Nor does a freeze keep credits, or the end of all prices, from whom they are for.
		if _, err := w.b.Credit(w.Context(), "x", 8000, false); err != nil {
			t.Fatal(err)
		}
		if done, err := w.b.Run(w.Context()); !errors.Is(err, view.ErrFrozen) || done != (billing.Done{Steps: 1}) {
			t.Errorf("%+v, %v", done, err)
		}
		if l, ok := w.b.Board().Of(b.ID); ok {
			t.Errorf("who was given enough may not write: %+v", l)
		}
		w.b.Pay(w.Context(), w.name(b), "back", -w.line(b).Daily*7990, "")
		w.prices = ledger.Prices{}
		w.biller(w.j)
		w.b.Run(w.Context())
		if l, ok := w.b.Board().Of(b.ID); ok {
			t.Errorf("who need not pay may not write: %+v", l)
		}
	})
}

// An account that cannot be charged keeps no other from being charged, and is named.
func TestOneThatCannotBeCharged(t *testing.T) {
	inWorld(t, func(w *world) {
		for range 10 {
			w.customer(1_000_000)
		}
		bad := w.all[3]
		for i := range 50 {
			w.store(bad, 10+i, 3_000_000)
		}
		w.run()
		w.ok(w.append(func(tx *journal.Tx) error {
			return tx.Record(segment.Charge{Account: bad.ID, Prices: ledger.Prices{Stored: ledger.Max}})
		}))
		time.Sleep(240 * day)
		w.prices.Stored = ledger.Max / 10
		w.biller(w.j)
		_, err := w.b.Run(w.Context())
		if !errors.Is(err, ledger.ErrTooMuch) || !strings.Contains(err.Error(), fmt.Sprintf("%q", w.name(bad))) || strings.Contains(err.Error(), fmt.Sprintf("%q", w.name(w.all[4]))) {
			t.Fatal(err)
		}
		if n := len(w.transfers()); n != 1+9 { // of the bad one what it used before
			t.Errorf("%d of 9 others were charged", n-1)
		}
		if all, err := w.b.Warnings("", 100); err != nil || len(all) != 10 {
			t.Errorf("%d warnings, %v", len(all), err)
		}
	})
}

// The Board says of nobody that he may not write before it knows, and a day after it was told last.
func TestBoardFailsOpen(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer(1_000_000)
		if l, ok := w.b.Board().Of(c.ID); ok {
			t.Errorf("%+v", l)
		}
		w.run()
		time.Sleep(24 * time.Hour)
		if _, ok := w.b.Board().Of(c.ID); !ok {
			t.Error("it is forgotten within a day")
		}
		time.Sleep(2 * time.Hour)
		if l, ok := w.b.Board().Of(c.ID); ok {
			t.Errorf("%+v", l)
		}
	})
}

// Owners are told once, in the order of their names, and those that store nothing of nothing.
func TestWarnings(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 150 {
			w.customer(i % 2 * 5000)
		}
		w.run()
		list := func(after string, max int) (names []string) {
			all, err := w.b.Warnings(after, max)
			w.ok(err)
			for _, l := range all {
				names = append(names, l.Name)
			}
			return names
		}
		all := list("", 1000)
		if len(all) != 75 || !slices.IsSorted(all) {
			t.Fatalf("%q", all)
		}
		if part := list(all[9], 10); !slices.Equal(part, all[10:20]) {
			t.Errorf("%q, not %q", part, all[10:20])
		}
		if err := w.b.Told(w.Context(), all[0], ledger.Warn7); !errors.Is(err, view.ErrStep) {
			t.Error(err)
		}
		if err := w.b.Told(w.Context(), "nobody", ledger.Stopped); !errors.Is(err, view.ErrNoAccount) {
			t.Error(err)
		}
		for range 2 {
			w.ok(w.b.Told(w.Context(), all[0], ledger.Stopped))
		}
		if rest := list("", 1000); !slices.Equal(rest, all[1:]) {
			t.Errorf("%q", rest)
		}
	})
}

// Whatever operation on the bucket fails, and in whichever way, nobody is charged or credited twice, or not at all.
func TestFailEveryOperation(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for n := 1; ; n++ {
			reached := false
			inWorld(t, func(w *world) {
				c := w.customer(1_000_000)
				w.run()
				time.Sleep(day)
				ops := 0
				w.bucket.OnOp(func(sim.Op, string, int) sim.Fault {
					if ops++; ops != n {
						return sim.Fault{}
					}
					reached = true
					return sim.Fault{Err: errors.New("no"), Applied: applied}
				})
				w.b.Run(w.Context())
				w.b.Pay(w.Context(), w.name(c), "1", ledger.Unit, "")
				w.b.Credit(w.Context(), "x", 1, false)
				w.bucket.OnOp(nil)
				w.crash()
				w.run()
				w.ok2(w.b.Pay(w.Context(), w.name(c), "1", ledger.Unit, ""))
				if _, err := w.b.Credit(w.Context(), "x", 1, false); err != nil {
					t.Fatal(err)
				}
				var kinds []string
				for _, x := range w.transfers() {
					kinds = append(kinds, x[:strings.Index(x, ":")])
				}
				slices.Sort(kinds)
				if !slices.Equal(kinds, []string{"charge", "outage", "payment"}) {
					t.Errorf("operation %d, applied %v: %q", n, applied, w.transfers())
				}
			})
			if !reached {
				t.Logf("applied %v: %d operations", applied, n-1)
				break
			}
		}
	}
}

// All the way down with each warning told once, over crashes; nobody pays for what is being deleted, and who pays comes back.
func TestAllTheWay(t *testing.T) {
	if testing.Short() {
		t.Skip("200 days of one goroutine: minutes under the race detector, which has nothing to find in them")
	}
	inWorld(t, func(w *world) {
		c := w.customer(1_000_000)
		name := w.name(c)
		w.ok2(w.b.Pay(w.Context(), name, "1", w.line(c).Daily*150, ""))
		var told []string
		began := time.Now()
		hours := func(n int) {
			t.Helper()
			for i := range n {
				time.Sleep(time.Hour)
				if i%37 == 0 {
					w.crash()
				}
				w.run()
				all, err := w.b.Warnings("", 100)
				w.ok(err)
				for _, l := range all {
					told = append(told, fmt.Sprintf("%s on day %d", l.Standing.Step, int(time.Since(began)/day)))
					w.ok(w.b.Told(w.Context(), l.Name, l.Standing.Step))
				}
			}
		}
		hours(200 * 24)
		if want := []string{
			"writing stops in 30 days on day 30", "writing stops in 14 days on day 46", "writing stops in 7 days on day 53", "writing stops in 1 day on day 59",
			"writing has stopped on day 60",
			"archives are deleted in 30 days on day 120", "archives are deleted in 14 days on day 136", "archives are deleted in 7 days on day 143", "archives are deleted in 1 day on day 149",
			"archives are being deleted on day 150",
		}; !slices.Equal(told, want) {
			t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
		}
		_, from, lapse, err := billing.Arrears(w.j.Acked(), c.ID)
		if days := int(time.UnixMilli(from/1e6).Sub(began) / day); err != nil || !lapse || days != 150 {
			t.Errorf("day %d, %v, %v", days, lapse, err)
		}
		had := w.transfers()
		hours(24)
		if n := len(w.transfers()); n != len(had) {
			t.Errorf("charged for what is being deleted: %q", w.transfers()[len(had):])
		}
		w.ok2(w.b.Pay(w.Context(), name, "2", w.line(c).Daily*1000, ""))
		if l := w.line(c); l.Standing.Step != ledger.Paid {
			t.Fatalf("%+v", l)
		}
		if _, from, lapse, err := billing.Arrears(w.j.Acked(), c.ID); err != nil || from != 0 || lapse {
			t.Errorf("%d, %v, %v", from, lapse, err)
		}
		hours(48)
		if n := len(w.transfers()); n != len(had)+1+2 {
			t.Errorf("%q", w.transfers()[len(had):])
		}
		// What is due is found from outside: on a day on which it was charged, an account takes no step of the sequencer.
		w.biller(&ends{w.j, 0})
		w.run()
	})
}
