package serve

import (
	"time"

	"holdfast"
	"holdfast/service/billing"
	"holdfast/service/ledger"
	"holdfast/service/view"
	"holdfast/wire"
)

// lastRun is for how long sessions that were open when an account's writing stopped may go on: a backup that runs for days
// commits a partial archive every 12 hours.
const lastRun = 24 * time.Hour

// mayWrite refuses an account whose writing has stopped for longer than that. It asks a table in memory and nothing else, and who
// is not there may: no request waits for money (package billing).
func (s *Server) mayWrite(a holdfast.AccountID, longer time.Duration) error {
	if s.billing == nil {
		return nil
	}
	l, ok := s.billing.Board().Of(a)
	if !ok || l.Standing.Step < ledger.Stopped || l.Standing.Step < ledger.Lapsed && time.Since(time.UnixMilli(l.Standing.Stop)) < longer {
		return nil
	}
	if l.Standing.Step == ledger.Lapsed {
		return refusal(wire.CodeOutOfCredit, "The account is not paid, and its archives are being deleted since %s; pay to stop that, for a while they can be brought back.",
			time.UnixMilli(l.Standing.Since).UTC().Format(time.DateOnly))
	}
	if !l.Stores {
		return refusal(wire.CodeOutOfCredit, "The account is not paid; nothing is stored before it is.")
	}
	return refusal(wire.CodeOutOfCredit, "The account is not paid: new backups are refused, everything that is stored can be restored, and is kept until %s.",
		l.End.Format(time.DateOnly))
}

// credit returns how an account stands, or nil if it is paid or not known.
func (s *Server) credit(a holdfast.AccountID) *wire.Credit {
	if s.billing == nil {
		return nil
	}
	l, ok := s.billing.Board().Of(a)
	if !ok || !l.Stores {
		return nil
	}
	return creditOf(l)
}

func creditOf(l billing.Line) *wire.Credit {
	c := &wire.Credit{State: wire.CreditLow, Days: int(l.Left), End: l.End}
	switch s := l.Standing.Step; {
	case s == ledger.Paid && !l.Stores:
		return nil
	case s == ledger.Paid:
		c.State = wire.CreditPaid
	case s == ledger.Lapsed:
		c.State = wire.CreditLapsed
	case s >= ledger.Stopped:
		c.State = wire.CreditStopped
	}
	return c
}

// money returns what an account has and pays, or nil if nothing costs anything, or that cannot be found out now: what it uses is
// said all the same.
func (s *Server) money(r view.Reader, a holdfast.AccountID) *wire.Money {
	if s.billing == nil {
		return nil
	}
	l, p, ok := s.billing.Of(r, a)
	if !ok {
		return nil
	}
	return &wire.Money{
		Balance: l.Balance.String(), Daily: l.Daily.String(), Credit: creditOf(l),
		Currency: s.billing.Currency(), Stored: p.Stored.String(), In: p.In.String(), Out: p.Out.String(),
	}
}
