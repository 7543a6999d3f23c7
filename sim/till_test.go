package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"holdfast/service/billing"
	"holdfast/service/ledger"
	"holdfast/service/view"
)

// till is the money of a cell: what its operator was told is booked.
type till struct {
	rng      *rand.Rand // of its own, so that what else happens is what it was without money
	payments []payment
	credited map[string]bool // incidents of which the operator was told that they are credited
}

// payment is one that came in.
type payment struct {
	customer *customer
	id       string
	amount   ledger.Amount
	booked   bool // the operator was told so
}

func newTill(seed uint64) *till {
	return &till{rng: rand.New(rand.NewPCG(seed, 2)), credited: map[string]bool{}}
}

// biller charges the accounts of the cell in the process that runs.
func (c *cell) biller() *billing.Biller {
	return billing.New(billing.Config{Ledger: c.p.j, Prices: ledger.Prices{Stored: 100 * ledger.Unit, In: ledger.Unit}, Grace: ledger.MinGrace * time.Millisecond})
}

// money does something with money now and then; the process may end while it is booked.
func (c *cell) money() {
	c.Helper()
	if c.till.rng.IntN(3) == 0 {
		c.p.arm(writesMoney, 1, c.till.rng.IntN(2) == 0, false)
		defer c.p.disarm()
	}
	switch n := c.till.rng.IntN(20); {
	case n < 4:
		done, err := c.biller().Run(ctx)
		c.note("accounts: %+v, %v", done, err)
		if errors.Is(err, view.ErrDamaged) {
			c.Error(err)
		}
		if done.Charged > 0 && err == nil {
			c.reached("accounts were charged")
		}
	case n < 6:
		c.till.payments = append(c.till.payments, payment{
			c.customers[c.till.rng.IntN(len(c.customers))], fmt.Sprint(len(c.till.payments)), ledger.Amount(1 + c.till.rng.Int64N(1e9)), false,
		})
		c.pay(&c.till.payments[len(c.till.payments)-1])
	case n < 8 && len(c.till.payments) > 0: // it was booked, or nobody knows
		c.pay(&c.till.payments[c.till.rng.IntN(len(c.till.payments))])
	case n < 9:
		c.credit(fmt.Sprint(c.till.rng.IntN(3)))
	case n < 10:
		b := c.biller()
		all, err := b.Warnings("", 10)
		c.must(err)
		for _, l := range all {
			c.ended("tell "+l.Name, b.Told(ctx, l.Name, l.Standing.Step))
		}
	}
}

// pay books a payment, or does so again.
func (c *cell) pay(p *payment) {
	c.Helper()
	a, ok, err := c.p.j.Acked().Account(p.customer.ID)
	if err != nil || !ok {
		c.Fatalf("an account is not there: %v", err)
	}
	_, known, err := c.biller().Pay(ctx, a.Name, p.id, p.amount, "")
	c.note("payment %s of %s: known %v, %v", p.id, p.amount, known, err)
	switch {
	case c.ended("pay", err):
	case p.booked && !known:
		c.Errorf("payment %s was booked, and is not known", p.id)
	case !p.booked && known:
		c.reached("a payment was booked, and the operator was not told")
		fallthrough
	default:
		p.booked = true
	}
}

// credit credits an outage, or does so again.
func (c *cell) credit(incident string) {
	c.Helper()
	got, err := c.biller().Credit(ctx, incident, 3, false)
	c.note("credit for outage %s: %+v, %v", incident, got, err)
	if c.ended("credit", err) {
		return
	}
	if c.till.credited[incident] && got.Known == 0 && got.Accounts > 0 {
		c.Errorf("outage %s was credited, and is again: %+v", incident, got)
	}
	if got.Known > 0 && !c.till.credited[incident] {
		c.reached("an outage was credited, and the operator was not told")
	}
	c.till.credited[incident] = true
}

// booked is the oracle of money: the sum of all books is zero, each is what its transfers make, and what the operator was told is
// booked once.
func (c *cell) booked() {
	c.Helper()
	r := c.p.j.Acked()
	books := map[ledger.Book]ledger.Balance{{Kind: ledger.Payments}: {}, {Kind: ledger.Revenue}: {}, {Kind: ledger.Credits}: {}}
	for _, u := range c.customers {
		books[ledger.Of(u.ID)] = ledger.Balance{}
	}
	paid := map[string]int{}
	for after := uint64(0); ; {
		list, err := r.Transfers(after, 100)
		c.must(err)
		for _, t := range list {
			after = t.Number
			books[t.From] = books[t.From].Plus(-t.Amount)
			books[t.To] = books[t.To].Plus(t.Amount)
			paid[t.ID]++
		}
		if len(list) == 0 {
			break
		}
	}
	var sum ledger.Balance
	for k, want := range books {
		got, err := r.Balance(k)
		c.must(err)
		if got != want {
			c.Errorf("the book of %s %.4s has %s, and its transfers make %s", k.Kind, k.Account, got, want)
		}
		sum = sum.Sum(got)
	}
	if !sum.Zero() {
		c.Errorf("the sum of all books is %s", sum)
	}
	for id, n := range paid {
		if n != 1 {
			c.Errorf("transfer %s is there %d times", id, n)
		}
	}
	for _, p := range c.till.payments {
		if t, ok, err := r.Transfer("payment:" + p.id); err != nil || p.booked && (!ok || t.Amount != p.amount || t.To != ledger.Of(p.customer.ID)) {
			c.Errorf("payment %s was booked, and is %+v, %v", p.id, t, err)
		}
	}
}
