// Package billing charges accounts for what they use, moves those that are not paid down the steps of package ledger, and
// says who may write.
//
// Nothing waits for it. It works in a loop of its own, and whoever answers a request asks only the Board, which is in memory
// and says yes if it does not know: a ledger that hangs for a day, or refuses everything, makes no request fail or
// slower. What it decides is a proposal to the journal, where it is checked again by what was appended before (JOURNAL 1);
// a crash anywhere leaves some records unmade, and the next run makes them.
//
// While the service's clock is in doubt nothing is charged and nobody goes down (JOURNAL 14).
package billing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"time"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/service/ledger"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// Every is how often Loop runs.
	Every = time.Hour
	// page is how many accounts are looked at in one step of the sequencer.
	page = 64
	// maxErrors bounds the accounts of which Run says why they failed.
	maxErrors = 5
)

// Ledger is where money is kept: the journal.
type Ledger interface {
	MayDelete(context.Context) error
	Acked() view.Reader
	Accounts(after string, max int) ([]view.Account, error)
	journal.Appender
}

// Config says what is charged. Ledger is required.
type Config struct {
	Ledger Ledger
	// Prices of zeros charge nothing, and everybody is paid.
	Prices   ledger.Prices
	Currency string // for people
	// Grace is how long data is kept after writing has stopped, at least ledger.MinGrace.
	Grace time.Duration
	// Settle, if set, records what is metered and not in the journal yet.
	Settle func(context.Context)
	Log    *slog.Logger // nil discards
}

// Biller keeps the accounts of a cell. It is safe for concurrent use.
type Biller struct {
	cfg   Config
	board Board
	wake  chan struct{}
	moved chan struct{}
}

// New returns a Biller.
func New(cfg Config) *Biller {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Biller{cfg: cfg, wake: make(chan struct{}, 1), moved: make(chan struct{}, 1)}
}

// Board returns what requests ask.
func (b *Biller) Board() *Board { return &b.board }

// Currency returns what the operator calls the currency.
func (b *Biller) Currency() string { return b.cfg.Currency }

// Charges reports whether anything costs anything.
func (b *Biller) Charges() bool { return b.cfg.Prices != ledger.Prices{} }

// Loop runs at once, every hour, and when Wake was called, until ctx ends. What fails is tried again in the next run.
func (b *Biller) Loop(ctx context.Context) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	said := ""
	for {
		switch done, err := b.Run(ctx); {
		case err != nil && ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			b.cfg.Log.Error("not every account was charged", "error", err)
		case err == nil:
			said = ""
			if done != (Done{}) {
				b.cfg.Log.Info("accounts were charged", "charged", done.Charged, "steps", done.Steps)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-b.wake:
		}
	}
}

// Wake has Loop run soon.
func (b *Biller) Wake() { b.signal(b.wake) }

// Moved is sent to when accounts stand elsewhere than before, for who makes the histories of their vaults say so.
func (b *Biller) Moved() <-chan struct{} { return b.moved }

func (b *Biller) signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// Done says what one run did.
type Done struct{ Charged, Steps int }

// Run goes through all accounts once, and returns when what it did is durable and on the Board. An account that fails does
// not keep others from their turn.
func (b *Biller) Run(ctx context.Context) (done Done, err error) {
	frozen := b.cfg.Ledger.MayDelete(ctx)
	if frozen != nil && !errors.Is(frozen, view.ErrFrozen) {
		return done, frozen
	}
	if b.cfg.Settle != nil {
		b.cfg.Settle(ctx)
	}
	errs := failures{of: map[string]error{}}
	var last *journal.Ticket
	for all, err := range b.pages("") {
		var t *journal.Ticket
		if err = cmp.Or(err, ctx.Err()); err == nil {
			t, err = b.accounts(ctx, all, &done, &errs)
		}
		if err != nil {
			return done, err
		}
		if t != nil {
			last = t
		}
	}
	if last != nil {
		b.cfg.Ledger.Flush()
		if err := last.Wait(ctx); err != nil {
			return done, err
		}
	}
	lines := map[holdfast.AccountID]Line{}
	for all, err := range b.pages("") {
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return done, err
		}
		for _, a := range all {
			switch l, err := b.line(b.cfg.Ledger.Acked(), a, time.Now().UnixMilli()); {
			case err != nil:
				errs.add(a.Name, err)
			case l.Standing.Step != ledger.Paid && b.Charges():
				lines[a.ID] = l
			}
		}
	}
	b.board.set(lines)
	if done.Steps > 0 {
		b.signal(b.moved)
	}
	return done, errors.Join(errs.err(), frozen)
}

// pages are the accounts after a name, some at a time, in the order of their names; an error is the last.
func (b *Biller) pages(after string) iter.Seq2[[]view.Account, error] {
	return func(yield func([]view.Account, error) bool) {
		for {
			all, err := b.cfg.Ledger.Accounts(after, page)
			if err == nil && len(all) == 0 || !yield(all, err) || err != nil {
				return
			}
			after = all[len(all)-1].Name
		}
	}
}

// failures are the accounts of which something failed, the first of them with why.
type failures struct {
	of   map[string]error
	more int
}

func (f *failures) add(name string, err error) {
	if f.of[name] == nil && len(f.of) == maxErrors {
		f.more++
		return
	}
	f.of[name] = err
}

func (f *failures) err() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(f.of)) {
		errs = append(errs, fmt.Errorf("account %q: %w", name, f.of[name]))
	}
	if f.more > 0 {
		errs = append(errs, fmt.Errorf("accounts that failed beside these: %d", f.more))
	}
	return errors.Join(errs...)
}

// accounts charges a page of accounts and moves them. It does not wait for that to be durable, which the ticket tells; nil for
// nothing to do.
func (b *Biller) accounts(ctx context.Context, all []view.Account, done *Done, errs *failures) (*journal.Ticket, error) {
	// A look from outside: most accounts need nothing, and the sequencer is not for looking.
	var due []view.Account
	for _, a := range all {
		yes, err := b.due(b.cfg.Ledger.Acked(), a.ID, time.Now().UnixMilli())
		if err != nil {
			errs.add(a.Name, err)
		} else if yes {
			due = append(due, a)
		}
	}
	if len(due) == 0 {
		return nil, nil
	}
	return b.cfg.Ledger.Append(ctx, func(tx *journal.Tx) error {
		for _, a := range due {
			// While deleting is frozen nothing is charged and nobody goes down, which Run says once for all.
			if err := b.account(tx, a.ID, done); err != nil && !errors.Is(err, view.ErrFrozen) {
				errs.add(a.Name, err)
			}
		}
		return nil
	})
}

// prices are what an account is charged from now on. Nobody pays for what is being deleted.
func (b *Biller) prices(s ledger.Standing) ledger.Prices {
	if s.Step == ledger.Lapsed {
		return ledger.Prices{}
	}
	return b.cfg.Prices
}

// due reports whether an account needs a record now (ms).
func (b *Biller) due(r view.Reader, id holdfast.AccountID, now int64) (bool, error) {
	m, u, f, err := b.facts(r, id, now)
	if err != nil {
		return false, err
	}
	p := b.prices(m.Standing)
	used := m.Charged/ledger.Day != now/ledger.Day && m.Uses(u) && p != (ledger.Prices{})
	return m.Prices != p || used || b.next(m.Standing, f) != m.Standing, nil
}

// account charges an account and moves it, once each.
func (b *Biller) account(tx *journal.Tx, id holdfast.AccountID, did *Done) error {
	charge := func(s ledger.Standing) error {
		err := tx.Record(segment.Charge{Account: id, Prices: b.prices(s)})
		switch {
		case errors.Is(err, view.ErrDuplicate):
			return nil
		case err == nil:
			did.Charged++
		}
		return err
	}
	m, err := tx.Reader().Money(id)
	if err != nil {
		return err
	}
	uncharged := charge(m.Standing)
	m, _, f, err := b.facts(tx.Reader(), id, tx.Now())
	if err != nil {
		return err
	}
	to := b.next(m.Standing, f)
	if to == m.Standing || uncharged != nil && to.Step > m.Standing.Step {
		return uncharged // whatever keeps an account from being charged must not keep one that was paid from writing
	}
	if err := tx.Record(segment.Step{Account: id, Step: to.Step, Until: to.Until}); err != nil {
		return err
	}
	did.Steps++
	return cmp.Or(uncharged, charge(to))
}

// next returns where an account goes from s.
func (b *Biller) next(s ledger.Standing, f ledger.Facts) ledger.Standing {
	switch {
	case b.Charges():
		return s.Next(f)
	case s.Step != ledger.Paid:
		return s.To(ledger.Paid, 0, f.Now)
	}
	return s
}

// facts returns what is known of an account, what it uses, and what decides where it goes next.
func (b *Biller) facts(r view.Reader, id holdfast.AccountID, now int64) (m view.Money, u view.Usage, f ledger.Facts, err error) {
	if m, err = r.Money(id); err != nil {
		return m, u, f, err
	}
	if u, err = r.Usage(id, 0); err != nil {
		return m, u, f, err
	}
	f = ledger.Facts{Now: now, Daily: b.cfg.Prices.Daily(u.Billed), Stores: u.Blocks > 0, Credited: m.Credited, Grace: b.cfg.Grace.Milliseconds()}
	f.Balance, err = r.Balance(ledger.Of(id))
	return m, u, f, err
}

// Arrears says of an account since when its writing has stopped and from when on its archives may be deleted, ns since 1970 or 0
// for never, and whether they are to be: what package policy makes of it in the histories of its vaults.
func Arrears(r view.Reader, id holdfast.AccountID) (stop, from int64, lapse bool, err error) {
	m, err := r.Money(id)
	return m.Standing.Stop * 1e6, m.Standing.Until * 1e6, m.Standing.Step == ledger.Lapsed, err
}
