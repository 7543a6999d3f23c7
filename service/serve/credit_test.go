package serve

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/billing"
	"holdfast/service/ledger"
	"holdfast/wire"
)

const (
	day      = 24 * time.Hour
	grace    = 90 * day
	shortest = ledger.MinGrace * time.Millisecond
)

// charge has the service charge for what is stored, a good part of the currency for each of the tests' small blocks, and keep data
// for so long after writing has stopped. Nothing runs by itself.
func (w *world) charge(grace time.Duration) *billing.Biller {
	b := billing.New(billing.Config{
		Ledger: w.j, Prices: ledger.Prices{Stored: 10_000 * ledger.Unit}, Currency: "EUR", Grace: grace, Settle: w.srv.Settle,
	})
	w.srv.billing = b
	return b
}

func (w *world) run(b *billing.Biller) {
	w.Helper()
	_, err := b.Run(w.Context())
	w.ok(err, "run")
}

// pay pays an amount of the currency.
func (w *world) pay(b *billing.Biller, who, id string, amount ledger.Amount) {
	w.Helper()
	_, _, err := b.Pay(w.Context(), who, id, amount, "")
	w.ok(err, "pay")
}

// used returns what the service says of the caller's account.
func (c *client) used() (u wire.Usage) {
	c.w.Helper()
	b, err := c.do("GET", wire.PathUsage, nil)
	if err == nil {
		err = json.Unmarshal(b, &u)
	}
	c.w.ok(err, "usage")
	return u
}

// refused checks that a session is not opened, for want of credit, and in which words.
func (c *client) refused(message string) {
	c.w.Helper()
	r, _ := c.openRecord()
	_, err := c.record(wire.PathSession, r)
	if wire.CodeOf(err) != wire.CodeOutOfCredit || err.Error() != message {
		c.w.Errorf("a new session: %v, want %q", err, message)
	}
}

// stopped returns a customer who has stored a block, committed an archive and not paid, and his session, which is open.
func (w *world) stopped(b *billing.Biller, who string) (c *client, sid holdfast.SessionID, commit history.Record) {
	w.Helper()
	c = w.customer(who, holdfast.RightsAll)
	sid = c.open() // before the first run everybody may write
	st, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindArchive, 10)))
	if err != nil || st.Stored != 1 {
		w.Fatalf("upload: %+v, %v", st, err)
	}
	commit = c.commitRecord(sid, name(1))
	_, err = c.record(wire.PathRecords, commit)
	w.ok(err, "commit")
	c.advance(commit)
	w.run(b)
	return c, sid, commit
}

const (
	notPaid = "The account is not paid: new backups are refused, everything that is stored can be restored, and is kept until %s."
	nothing = "The account is not paid; nothing is stored before it is."
)

// TestOutOfCredit: who has not paid may open no session, and what is open goes on for a day; everything else goes on, and all of it
// once he pays.
func TestOutOfCredit(t *testing.T) {
	for _, grace := range []time.Duration{grace, shortest} {
		t.Run(grace.String(), func(t *testing.T) {
			inWorld(t, func(w *world) {
				b := w.charge(grace)
				c, sid, commit := w.stopped(b, "a")
				end := time.Now().Add(grace).UTC()
				said := fmt.Sprintf(notPaid, end.Format(time.DateOnly))
				c.refused(said)
				want := wire.Credit{State: wire.CreditStopped, Days: int(grace / day), End: end.Truncate(time.Second)}
				if h := c.hello(); h.Credit == nil || *h.Credit != want {
					t.Errorf("hello says %+v, want %+v", h.Credit, want)
				}

				// Everything else goes on.
				if all, err := c.fetch(c.group, name(1)); err != nil || len(all) != 1 || all[0].Status != wire.FrameBlock {
					t.Errorf("fetch: %d blocks, %v", len(all), err)
				}
				if e, err := c.do("GET", wire.PathHistory+"?after=0", nil); err != nil || len(e) == 0 {
					t.Errorf("history: %d bytes, %v", len(e), err)
				}
				if u := c.used(); u.Blocks != 1 || u.Money == nil || u.Money.Credit == nil || *u.Money.Credit != want ||
					u.Money.Balance != "0.00" || u.Money.Daily == "0.00" || u.Money.Currency != "EUR" || u.Money.Stored != "10000.00" || u.Money.In != "0.00" {
					t.Errorf("usage: %+v", u.Money)
				}

				// The session that was open goes on for a day, also where the owner was told at once and the next step follows.
				w.ok(b.Told(w.Context(), "a", ledger.Stopped), "tell")
				w.run(b)
				l, err := b.Account("a")
				w.ok(err, "account")
				stop := time.UnixMilli(l.Standing.Stop)
				seq := 1
				upload := func(after time.Duration) error {
					later(time.Until(stop.Add(after)))
					w.run(b)
					if got, err := c.have(sid, name(1)); err != nil || got != "01" {
						t.Fatalf("have: %s, %v", got, err)
					}
					_, err := c.upload(sid, seq+1, frame(name(seq+1), sealed(sid, holdfast.KindChunk, 10)))
					if err == nil {
						seq++
					}
					return err
				}
				for after := time.Duration(0); after < day; after += sessionIdle / 2 {
					w.ok(upload(after), "blocks within a day")
				}
				w.ok(upload(day-time.Second), "blocks within a day")
				w.want(wire.CodeOutOfCredit, upload(day), "blocks a day later")
				late := c.commitRecord(sid, name(1))
				_, err = c.record(wire.PathRecords, late)
				w.ok(err, "a commit of what was stored")
				c.advance(late)
				del := c.signed(history.TypeDelete, history.IDs{commit.ID()}.Encode())
				_, err = c.record(wire.PathRecords, del)
				w.ok(err, "a deletion")
				c.advance(del)

				// Who pays writes at once; a little is not enough.
				w.pay(b, "a", "1", ledger.Unit/1000)
				w.want(wire.CodeOutOfCredit, upload(day), "blocks for too little")
				w.pay(b, "a", "2", 1000*ledger.Unit)
				w.ok(upload(day), "blocks")
				c.open()
				if h := c.hello(); h.Credit != nil {
					t.Errorf("hello says %+v", h.Credit)
				}
				if u := c.used(); u.Money == nil || u.Money.Credit == nil || u.Money.Credit.State != wire.CreditPaid || u.Money.Credit.Days < 100 {
					t.Errorf("usage: %+v", u.Money)
				}
			})
		})
	}
}

// TestNextStepIsNoNewDay: whoever keeps a session open until the owner is told, after which the next step may follow, writes no
// longer than for a day after the stop.
func TestNextStepIsNoNewDay(t *testing.T) {
	inWorld(t, func(w *world) {
		b := w.charge(shortest)
		c, sid, _ := w.stopped(b, "a")
		for range 5 * day / (sessionIdle / 2) {
			later(sessionIdle / 2)
			_, err := c.have(sid, name(1))
			w.ok(err, "have")
		}
		w.ok(b.Told(w.Context(), "a", ledger.Stopped), "tell")
		w.run(b)
		if l, err := b.Account("a"); err != nil || l.Standing.Step != ledger.Last30 {
			t.Fatalf("%+v, %v", l, err)
		}
		_, err := c.upload(sid, 2, frame(name(2), sealed(sid, holdfast.KindChunk, 10)))
		w.want(wire.CodeOutOfCredit, err, "blocks five days later")
	})
}

// TestCreditFailsOpen: billing that has not run, or not for a day, keeps nobody from writing.
func TestCreditFailsOpen(t *testing.T) {
	inWorld(t, func(w *world) {
		b := w.charge(grace)
		c, _, _ := w.stopped(b, "a")
		until := fmt.Sprintf(notPaid, time.Now().Add(grace).UTC().Format(time.DateOnly))
		later(25 * time.Hour)
		c.refused(until) // of what is known, nothing is forgotten
		later(time.Millisecond)
		c.open()
		if h := c.hello(); h.Credit != nil {
			t.Errorf("hello says %+v of what it does not know", h.Credit)
		}
		w.run(b)
		c.refused(until)
		w.charge(grace) // a process that has just begun
		c.open()
	})
}

// TestNewAccountIsNotPaid: who stores nothing is told that it must be paid first, and may write when it is.
func TestNewAccountIsNotPaid(t *testing.T) {
	inWorld(t, func(w *world) {
		b := w.charge(grace)
		c := w.customer("a", holdfast.RightsAll)
		w.run(b)
		c.refused(nothing)
		if h := c.hello(); h.Credit != nil {
			t.Errorf("hello says %+v of what is not stored", h.Credit)
		}
		if u := c.used(); u.Money.Credit == nil || u.Money.Credit.State != wire.CreditStopped {
			t.Errorf("usage: %+v", u.Money.Credit)
		}
		w.pay(b, "a", "1", ledger.Unit)
		c.open()
		if u := c.used(); u.Money.Credit != nil || u.Money.Balance != "1.00" {
			t.Errorf("usage: %+v", u.Money)
		}
	})
}

// TestLapsedAccount: while archives are being deleted for want of money that is said, sessions are refused whenever they were opened,
// and what is there can be fetched.
func TestLapsedAccount(t *testing.T) {
	inWorld(t, func(w *world) {
		b := w.charge(shortest)
		c, _, _ := w.stopped(b, "a")
		for range 40 {
			all, err := b.Warnings("", 1)
			w.ok(err, "warnings")
			for _, l := range all {
				w.ok(b.Told(w.Context(), l.Name, l.Standing.Step), "tell")
			}
			later(day)
			w.run(b)
			if h := c.hello(); h.Credit == nil || h.Credit.Days < 0 {
				t.Fatalf("hello says %+v", h.Credit)
			} else if h.Credit.State == wire.CreditLapsed {
				break
			}
		}
		since := time.Now().UTC().Format(time.DateOnly)
		later(5 * time.Minute)
		c.refused("The account is not paid, and its archives are being deleted since " + since + "; pay to stop that, for a while they can be brought back.")
		w.srv.billing = nil
		sid := c.open()
		w.srv.billing = b
		_, err := c.upload(sid, 1, frame(name(2), sealed(sid, holdfast.KindChunk, 10)))
		w.want(wire.CodeOutOfCredit, err, "blocks in a session that is open")
		if all, err := c.fetch(c.group, name(1)); err != nil || len(all) != 1 || all[0].Status != wire.FrameBlock {
			t.Errorf("fetch: %d blocks, %v", len(all), err)
		}
		w.pay(b, "a", "1", 1000*ledger.Unit)
		_, err = c.upload(sid, 1, frame(name(2), sealed(sid, holdfast.KindChunk, 10)))
		w.ok(err, "blocks when it is paid")
	})
}

// TestCreditOfSteps: each step is one of the states that clients know.
func TestCreditOfSteps(t *testing.T) {
	for step, want := range []wire.CreditState{
		wire.CreditPaid, wire.CreditLow, wire.CreditLow, wire.CreditLow, wire.CreditLow,
		wire.CreditStopped, wire.CreditStopped, wire.CreditStopped, wire.CreditStopped, wire.CreditStopped, wire.CreditLapsed,
	} {
		end := time.Now().Add(7 * day)
		c := creditOf(billing.Line{Standing: ledger.Standing{Step: ledger.Step(step)}, Left: 7, End: end, Stores: true})
		if c == nil || *c != (wire.Credit{State: want, Days: 7, End: end}) {
			t.Errorf("step %d: %+v", step, c)
		}
	}
}

// TestSentBytesAreCountedOnce: what a fetch sends is said at once, recorded when it is settled, and counted once whatever happens; a
// crash forgets no more than what was not recorded.
func TestSentBytesAreCountedOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		b1, b2 := sealed(sid, holdfast.KindChunk, 1000), sealed(sid, holdfast.KindChunk, 20_000)
		_, err := c.upload(sid, 1, frame(name(1), b1), frame(name(2), b2))
		w.ok(err, "upload")
		fetch := func(names ...holdfast.Name) {
			t.Helper()
			_, err := c.fetch(c.group, names...)
			w.ok(err, "fetch")
		}
		sent, recorded := 0, 0
		check := func(what string) {
			t.Helper()
			v := w.j.Acked()
			vault, _, err := v.Vault(c.vault)
			w.ok(err, "vault")
			u, err := v.Usage(vault.Account, 0)
			w.ok(err, "usage of the view")
			if got := c.used(); got.SentBytes != uint64(sent) || u.Out != uint64(recorded) || got.ReceivedBytes != uint64(len(b1)+len(b2)) {
				t.Errorf("%s: %d bytes were sent and %d received, %d recorded; want %d and %d", what, got.SentBytes, got.ReceivedBytes, u.Out, sent, recorded)
			}
		}
		settle := func() {
			w.srv.Settle(w.Context())
			w.j.Flush()
			later(time.Minute)
			recorded = sent
		}
		check("at first")
		fetch(name(1), name(2), name(3)) // which is not there
		sent += len(b1) + len(b2)
		check("before it is settled")
		settle()
		check("settled")
		settle()
		check("settled twice")
		fetch(name(2))
		sent += len(b2)
		check("before the crash")
		w.crash()
		w.start()
		sent = recorded
		check("after a crash")
		fetch(name(1))
		sent += len(b1)
		settle()
		w.stop()
		w.start()
		check("after a restart")
	})
}
