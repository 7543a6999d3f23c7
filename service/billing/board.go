package billing

import (
	"maps"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/service/ledger"
	"holdfast/service/view"
)

// fresh is for how long what the Board says holds, if nothing says it again.
const fresh = 25 * time.Hour

// Line is how an account stands.
type Line struct {
	view.Account
	Standing ledger.Standing
	Left     int64          // days, as ledger.Standing.Left, and not below 0
	End      time.Time      // as ledger.Standing.End: UTC, to the second
	Balance  ledger.Balance // exactly
	Daily    ledger.Amount  // what keeping everything costs a day
	Stores   bool
}

// Board is what is known of the accounts that are not paid. Nobody waits for it, and who is not on it may write: so may everybody
// before the first run, and when there was none for a day.
type Board struct{ now atomic.Pointer[boardLines] }

type boardLines struct {
	at    time.Time
	lines map[holdfast.AccountID]Line
}

func (b *Board) set(lines map[holdfast.AccountID]Line) { b.now.Store(&boardLines{time.Now(), lines}) }

// put changes the line of one account.
func (b *Board) put(l Line) {
	for {
		old := b.now.Load()
		if old == nil {
			return // everybody may write
		}
		lines := maps.Clone(old.lines)
		if delete(lines, l.ID); l.Standing.Step != ledger.Paid {
			lines[l.ID] = l
		}
		if b.now.CompareAndSwap(old, &boardLines{old.at, lines}) {
			return
		}
	}
}

// Of returns how an account stands. It reports false if that is paid, or not known.
func (b *Board) Of(id holdfast.AccountID) (Line, bool) {
	now := b.now.Load()
	if now == nil || time.Since(now.at) > fresh {
		return Line{}, false
	}
	l, ok := now.lines[id]
	return l, ok
}

// line returns how an account stands at now (ms).
func (b *Biller) line(r view.Reader, a view.Account, now int64) (Line, error) {
	m, _, f, err := b.facts(r, a.ID, now)
	if err != nil {
		return Line{}, err
	}
	end := time.UnixMilli(m.Standing.End(f)).UTC().Truncate(time.Second)
	return Line{a, m.Standing, max(0, m.Standing.Left(f)), end, f.Balance, f.Daily, f.Stores}, nil
}

// Of returns how an account stands by the view of r, and what it is charged. It reports false if nothing costs anything, or the
// view cannot say. It asks no Ledger: it is for those who answer requests.
func (b *Biller) Of(r view.Reader, id holdfast.AccountID) (Line, ledger.Prices, bool) {
	if !b.Charges() {
		return Line{}, ledger.Prices{}, false
	}
	l, err := b.line(r, view.Account{ID: id}, time.Now().UnixMilli())
	return l, b.cfg.Prices, err == nil
}
