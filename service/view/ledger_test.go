package view

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"holdfast"
	"holdfast/service/ledger"
	"holdfast/service/segment"
	"holdfast/service/view/viewtest"
)

var (
	payments = ledger.Book{Kind: ledger.Payments}
	revenue  = ledger.Book{Kind: ledger.Revenue}
)

func (w *world) balance(b ledger.Book) ledger.Balance {
	w.t.Helper()
	v, err := NewReader(w.rows).Balance(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

func (w *world) money(c *viewtest.Customer) Money {
	w.t.Helper()
	m, err := NewReader(w.rows).Money(c.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) transfers() []Transfer {
	w.t.Helper()
	all, err := NewReader(w.rows).Transfers(0, 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

func TestTransfer(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	pay := segment.Transfer{ID: "payment:17", From: payments, To: ledger.Of(c.ID), Amount: 5 * ledger.Unit, Text: "thanks"}
	w.must(pay)
	if m := w.money(c); m.Credited != w.now {
		t.Errorf("%+v", m)
	}
	at := w.now
	w.now += 1000
	w.refuse(pay, ErrDuplicate)
	other := pay
	other.Text = "again"
	w.refuse(other, ErrTransfer)
	other = pay
	other.Amount++
	w.refuse(other, ErrTransfer)
	back := segment.Transfer{ID: "payment:18", From: ledger.Of(c.ID), To: payments, Amount: 7 * ledger.Unit}
	w.must(back)
	if m := w.money(c); m.Credited != at {
		t.Errorf("what was taken counts as given: %+v", m)
	}
	if b, p := w.balance(ledger.Of(c.ID)), w.balance(payments); b.String() != "-2.00" || p.String() != "2.00" {
		t.Errorf("%s, %s", b, p)
	}
	nobody := pay
	nobody.ID, nobody.To.Account = "payment:19", holdfast.AccountID{0xff}
	w.refuse(nobody, ErrNoAccount)
	nobody.From, nobody.To = nobody.To, nobody.From
	w.refuse(nobody, ErrNoAccount)
	charge := pay
	charge.ID = "charge:1"
	w.refuse(charge, ErrTransfer)
	all := w.transfers()
	if len(all) != 2 || all[0] != (Transfer{1, at, pay}) || all[1] != (Transfer{2, w.now, back}) {
		t.Fatalf("%+v", all)
	}
	if rest, err := NewReader(w.rows).Transfers(1, 1000); err != nil || len(rest) != 1 || rest[0] != all[1] {
		t.Errorf("%+v, %v", rest, err)
	}
	if x, ok, err := NewReader(w.rows).Transfer("payment:18"); err != nil || !ok || x != all[1] {
		t.Errorf("%+v, %v, %v", x, ok, err)
	}
}

// What was used is charged exactly, once a day, at the prices that were in force when it was used; nothing of the time before
// there were prices, and nothing of that without.
func TestCharge(t *testing.T) {
	w := newWorld(t)
	const day, hour = ledger.Day, ledger.Day / 24
	w.now = 20_000 * day
	c := w.enrolled(1)
	w.accept(c, c.Open())
	b := c.Chunk(1, 1_000_000)
	w.store(c, b)
	w.now += 365 * day
	prices := ledger.Prices{Stored: ledger.Month * 1e9 / 1e6 / hour} // a pico an hour for this block, nearly
	perHour := func(p ledger.Prices, hours int64) ledger.Amount {
		a, err := p.Cost(ledger.Use{Lo: uint64(1_000_000 * hour * hours)})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	charge := segment.Charge{Account: c.ID, Prices: prices}
	w.must(charge)
	if all := w.transfers(); len(all) != 0 {
		t.Fatalf("the year before: %+v", all)
	}
	w.now += 23 * hour
	w.refuse(charge, ErrDuplicate)
	w.now += hour
	w.must(charge)
	w.now += 24 * hour
	prices.Stored *= 3
	w.must(segment.Charge{Account: c.ID, Prices: prices}) // 24 hours as before
	w.now += hour
	prices.In, prices.Out = 1e9, 1e9*1000
	w.must(segment.Charge{Account: c.ID, Prices: prices}) // an hour at three times as much
	w.store(c, c.Chunk(2, 4096))
	w.must(segment.Metered{Account: c.ID, Sent: 99})
	w.now += 47 * hour
	w.must(segment.Charge{Account: c.ID})
	w.now += 100 * day
	w.must(segment.Charge{Account: c.ID, Prices: prices}) // it was free of charge
	old := ledger.Prices{Stored: prices.Stored / 3}
	last, err := prices.Cost(ledger.Use{Lo: uint64(1_004_096 * hour * 47), In: 4096, Out: 99})
	if err != nil {
		t.Fatal(err)
	}
	want := []ledger.Amount{perHour(old, 24), perHour(old, 24), perHour(prices, 1), last}
	var sum ledger.Amount
	for i, x := range w.transfers() {
		if i >= len(want) || x.Amount != want[i] || x.From != ledger.Of(c.ID) || x.To != revenue {
			t.Fatalf("%d: %+v", i, x)
		}
		sum += x.Amount
	}
	if b := w.balance(revenue); b != (ledger.Balance{}.Plus(sum)) || w.balance(ledger.Of(c.ID)) != (ledger.Balance{}.Plus(-sum)) || sum < 4096+99*1000 {
		t.Errorf("%s of %s", b, sum)
	}
	if all, text := w.transfers(), "use from 2025-10-06T01:00:00Z to 2025-10-08T00:00:00Z: 47192512 byte-hours stored, 4096 bytes received, 99 bytes sent"; all[3].Text != text {
		t.Errorf("%s", all[3].Text)
	}
	w.refuse(segment.Charge{Account: holdfast.AccountID{0xff}}, ErrNoAccount)
}

// Nobody is charged for more bytes sent than he stores, once for each day.
func TestChargeForReading(t *testing.T) {
	w := newWorld(t)
	w.now = 20_000 * ledger.Day
	c := w.enrolled(1)
	w.accept(c, c.Open())
	w.store(c, c.Chunk(1, 10_000))
	charge := segment.Charge{Account: c.ID, Prices: ledger.Prices{Out: 1e9}} // a pico a byte
	w.must(charge)
	for _, x := range []struct {
		days int64
		sent uint64
		want ledger.Amount
	}{{1, 9_999, 9_999}, {1, 1e12, 10_000}, {3, 1e12, 30_000}, {1, 1, 1}, {5, 0, 0}} {
		if x.sent > 0 {
			w.must(segment.Metered{Account: c.ID, Sent: x.sent})
		}
		n := len(w.transfers())
		w.now += x.days * ledger.Day
		w.must(charge)
		if all := w.transfers(); x.want == 0 && len(all) != n || x.want > 0 && all[len(all)-1].Amount != x.want {
			t.Errorf("%d bytes in %d days: %+v", x.sent, x.days, all[len(all)-1])
		}
	}
	// Nor when prices change on that day, however often.
	w.now += ledger.Day
	var sum ledger.Amount
	for i, sent := range []uint64{4_000, 3_000, 1e12, 1e12} {
		n := len(w.transfers())
		w.must(segment.Metered{Account: c.ID, Sent: sent})
		charge.Prices.In++ // costs nothing here
		w.must(charge)
		for _, x := range w.transfers()[n:] {
			sum += x.Amount
		}
		if want := []ledger.Amount{4_000, 7_000, 10_000, 10_000}[i]; sum != want {
			t.Errorf("charge %d of a day: %d in all, not %d", i, sum, want)
		}
		w.now += ledger.Day / 24
	}
}

// A cost that cannot be counted takes nothing, rather than something.
func TestChargeTooMuch(t *testing.T) {
	w := newWorld(t)
	w.now = 20_000 * ledger.Day
	c := w.enrolled(1)
	w.accept(c, c.Open())
	w.store(c, c.Chunk(1, 10_000_000))
	w.must(segment.Charge{Account: c.ID, Prices: ledger.Prices{Stored: math.MaxInt64}})
	w.now += 10 * 365 * ledger.Day
	w.refuse(segment.Charge{Account: c.ID}, ledger.ErrTooMuch)
}

func TestStep(t *testing.T) {
	w := newWorld(t)
	w.now = 20_000 * ledger.Day
	c := w.enrolled(1)
	step := func(s ledger.Step, until int64) segment.Step {
		return segment.Step{Account: c.ID, Step: s, Until: until}
	}
	told := func(s ledger.Step) segment.Told { return segment.Told{Account: c.ID, Step: s} }
	w.refuse(segment.Step{Account: holdfast.AccountID{0xff}, Step: ledger.Warn7}, ErrNoAccount)
	w.refuse(segment.Told{Account: holdfast.AccountID{0xff}, Step: ledger.Warn7}, ErrNoAccount)
	w.refuse(step(ledger.Paid, 0), ErrStep)
	w.refuse(told(ledger.Warn30), ErrStep)
	w.must(step(ledger.Warn7, 0))
	w.refuse(told(ledger.Warn30), ErrStep)
	w.must(told(ledger.Warn7))
	w.refuse(told(ledger.Warn7), ErrDuplicate)
	w.refuse(step(ledger.Stopped, w.now+ledger.MinGrace-1), ErrStep)
	until := w.now + ledger.MinGrace
	w.must(step(ledger.Stopped, until))
	w.refuse(step(ledger.Last30, until), ErrStep) // nobody was told
	w.now++
	w.must(told(ledger.Stopped))
	if m := w.money(c); m.Standing != (ledger.Standing{Step: ledger.Stopped, Since: w.now - 1, Told: w.now, Until: until, Stop: w.now - 1}) {
		t.Errorf("%+v", m)
	}

	// While the clock is in doubt nobody goes down and nothing is charged; who pays goes back.
	w.must(segment.Frozen{Reason: segment.ReasonClocks, Text: "a year ahead"})
	w.refuse(step(ledger.Last30, until+1), ErrFrozen)
	w.refuse(segment.Charge{Account: c.ID}, ErrFrozen)
	w.must(segment.Transfer{ID: "x", From: payments, To: ledger.Of(c.ID), Amount: 1})
	w.must(step(ledger.Paid, 0))
	if m := w.money(c); m.Standing != (ledger.Standing{Since: w.now}) {
		t.Errorf("%+v", m)
	}
}

// The sum over all books is zero, and they are found.
func TestBooks(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t)
	fill := func() {
		t.Helper()
		if err := s.Commit(w.rows); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		c := w.enrolled(i)
		w.must(segment.Transfer{ID: fmt.Sprint(i), From: payments, To: ledger.Of(c.ID), Amount: ledger.Max - ledger.Amount(i)})
		w.must(segment.Transfer{ID: fmt.Sprint("r", i), From: ledger.Of(c.ID), To: revenue, Amount: 1})
	}
	fill()
	if n, sum, err := s.Books(); err != nil || n != 7 || !sum.Zero() {
		t.Errorf("%d books, %s, %v", n, sum, err)
	}
	if b := w.balance(payments); b.String() != "-46116860.184273879025" {
		t.Error(b)
	}
	w.rows.rows[string(bookKey(revenue))][15]++
	fill()
	if _, sum, err := s.Books(); err != nil || sum.Zero() {
		t.Errorf("%s, %v", sum, err)
	}
	w.rows.rows[string(bookKey(revenue))] = []byte{1}
	fill()
	if _, _, err := s.Books(); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}
