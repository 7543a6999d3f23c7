package billing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/service/ledger"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// What the operator asks for and does not get.
var (
	ErrID     = errors.New("an id is 1 to 40 printable characters of ASCII, without spaces")
	ErrText   = fmt.Errorf("a text is up to %d bytes of printable UTF-8 on one line", segment.MaxText)
	ErrAmount = errors.New("the amount is zero")
	ErrHours  = errors.New("an outage has 1 to 8784 hours")
)

const (
	maxID    = 40
	maxHours = 366 * 24
)

// checkID refuses what cannot be a part of a transfer's id.
func checkID(id string) error {
	if len(id) == 0 || len(id) > maxID || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ErrID
	}
	return nil
}

func checkText(text string) error {
	if len(text) > segment.MaxText || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ErrText
	}
	return nil
}

// named returns the account of a name; the error wraps view.ErrNoAccount.
func (b *Biller) named(r view.Reader, name string) (view.Account, error) {
	a, ok, err := r.AccountByName(name)
	if err == nil && !ok {
		err = fmt.Errorf("account %q: %w", name, view.ErrNoAccount)
	}
	return a, err
}

// Pay notes that an account paid an amount, or was paid back one below zero, under an id that the operator chose: that of the
// payment where it came in. The same again changes nothing, and known says so; another one with that id is
// view.ErrTransfer. It returns how the account stands then, once that is durable: who has paid enough may write at once.
func (b *Biller) Pay(ctx context.Context, name, id string, amount ledger.Amount, text string) (l Line, known bool, err error) {
	if err := cmp.Or(checkID(id), checkText(text)); err != nil {
		return l, false, err
	}
	if -amount == amount { // which is so of 0, and of the least of all numbers
		return l, false, ErrAmount
	}
	var a view.Account
	err = journal.Durably(ctx, b.cfg.Ledger, func(tx *journal.Tx) (err error) {
		if a, err = b.named(tx.Reader(), name); err != nil {
			return err
		}
		t := segment.Transfer{ID: "payment:" + id, From: ledger.Book{Kind: ledger.Payments}, To: ledger.Of(a.ID), Amount: amount, Text: text}
		if amount < 0 {
			t.From, t.To, t.Amount = t.To, t.From, -amount
		}
		if err := tx.Record(t); errors.Is(err, view.ErrDuplicate) {
			known = true
		} else if err != nil {
			return err
		}
		// That the clock is in doubt keeps nobody's money out; the next run does the rest.
		if err := b.account(tx, a.ID, new(Done)); err != nil && !errors.Is(err, view.ErrFrozen) {
			b.cfg.Log.Warn("an account was paid and not moved", "account", name, "error", err)
		}
		return nil
	})
	if err != nil {
		return l, known, err
	}
	l, err = b.line(b.cfg.Ledger.Acked(), a, time.Now().UnixMilli())
	if err == nil {
		b.board.put(l)
		b.Wake() // a run that is under way may have looked before
		b.signal(b.moved)
	}
	return l, known, err
}

// Account returns how the account of a name stands.
func (b *Biller) Account(name string) (Line, error) {
	r := b.cfg.Ledger.Acked()
	a, err := b.named(r, name)
	if err != nil {
		return Line{}, err
	}
	return b.line(r, a, time.Now().UnixMilli())
}

// Credited is what Credit did, or would do.
type Credited struct {
	Accounts int            // that are given something
	Known    int            // of these: that had been given it before
	Sum      ledger.Balance // of all
}

// Credit gives every account one day of what keeping all that it stores now costs, for each hour of an outage that had begun. The
// transfers' ids follow from the incident and the account, so that nobody is given it twice, however often it is asked for
// or whatever interrupts it: what was given once is counted as it was. With dry it only counts.
func (b *Biller) Credit(ctx context.Context, incident string, hours int, dry bool) (sum Credited, err error) {
	if err := checkID(incident); err != nil {
		return sum, err
	}
	if hours < 1 || hours > maxHours {
		return sum, ErrHours
	}
	for all, err := range b.pages("") {
		var now Credited
		give := func(r view.Reader, record func(segment.Record) error) error {
			for _, a := range all {
				if err := b.credit(r, a.ID, incident, hours, record, &now); err != nil {
					return fmt.Errorf("account %q: %w", a.Name, err)
				}
			}
			return nil
		}
		switch {
		case err != nil:
		case dry:
			err = give(b.cfg.Ledger.Acked(), func(segment.Record) error { return nil })
		default:
			err = journal.Durably(ctx, b.cfg.Ledger, func(tx *journal.Tx) error { return give(tx.Reader(), tx.Record) })
		}
		if err != nil {
			return sum, err
		}
		sum.Accounts += now.Accounts
		sum.Known += now.Known
		sum.Sum = sum.Sum.Sum(now.Sum)
	}
	b.Wake() // some may write again
	return sum, nil
}

// credit credits an account, unless it was given that, and adds it to sum.
func (b *Biller) credit(r view.Reader, id holdfast.AccountID, incident string, hours int, record func(segment.Record) error, sum *Credited) error {
	t := segment.Transfer{
		ID: fmt.Sprintf("outage:%s:%s", incident, id), From: ledger.Book{Kind: ledger.Credits}, To: ledger.Of(id),
		Text: fmt.Sprintf("credit for an outage of %d hours", hours),
	}
	old, known, err := r.Transfer(t.ID)
	if err != nil {
		return err
	}
	if known {
		sum.Known++
		t.Amount = old.Amount
	} else {
		u, err := r.Usage(id, 0)
		if err != nil {
			return err
		}
		daily := b.cfg.Prices.Daily(u.Billed)
		if daily > ledger.Max/ledger.Amount(hours) {
			return ledger.ErrTooMuch
		}
		if t.Amount = daily * ledger.Amount(hours); t.Amount == 0 {
			return nil
		}
		if err := record(t); err != nil {
			return err
		}
	}
	sum.Accounts++
	sum.Sum = sum.Sum.Plus(t.Amount)
	return nil
}

// untold reports whether an owner is to be told of where an account stands.
func untold(s ledger.Standing) bool { return s.Step != ledger.Paid && s.Told == 0 }

// Warnings returns at most max accounts whose owners were not told of the step at which they stand, of those after the name
// after, in the order of their names. Of those that store nothing, none is told anything.
func (b *Biller) Warnings(after string, max int) (all []Line, err error) {
	r, now := b.cfg.Ledger.Acked(), time.Now().UnixMilli()
	bad := failures{of: map[string]error{}}
	for accounts, err := range b.pages(after) {
		if err != nil {
			return all, err
		}
		for _, a := range accounts {
			if len(all) == max {
				return all, bad.err()
			}
			if m, err := r.Money(a.ID); err == nil && !untold(m.Standing) {
				continue // most of them: spares the other look-ups
			}
			l, err := b.line(r, a, now)
			if err != nil {
				bad.add(a.Name, err)
			} else if untold(l.Standing) && l.Stores { // it may have been paid since
				all = append(all, l)
			}
		}
	}
	return all, bad.err()
}

// Told notes that the owner of the account of a name was told of a step. If he was told before, nothing changes; if the account
// stands elsewhere by now, the error wraps view.ErrStep.
func (b *Biller) Told(ctx context.Context, name string, step ledger.Step) error {
	return journal.Durably(ctx, b.cfg.Ledger, func(tx *journal.Tx) error {
		a, err := b.named(tx.Reader(), name)
		if err != nil {
			return err
		}
		if err := tx.Record(segment.Told{Account: a.ID, Step: step}); !errors.Is(err, view.ErrDuplicate) {
			return err
		}
		return nil
	})
}

// Transfer is a transfer with the names of its accounts.
type Transfer struct {
	view.Transfer
	FromName, ToName string // "" for books of no account
}

// Transfers returns at most max transfers, the first of them the one after number after.
func (b *Biller) Transfers(after uint64, max int) ([]Transfer, error) {
	r := b.cfg.Ledger.Acked()
	list, err := r.Transfers(after, max)
	if err != nil {
		return nil, err
	}
	names := map[holdfast.AccountID]string{{}: ""}
	name := func(k ledger.Book) string {
		if n, ok := names[k.Account]; ok || err != nil {
			return n
		}
		var a view.Account
		a, _, err = r.Account(k.Account)
		names[k.Account] = a.Name
		return a.Name
	}
	all := make([]Transfer, len(list))
	for i, t := range list {
		all[i] = Transfer{t, name(t.From), name(t.To)}
	}
	return all, err
}
