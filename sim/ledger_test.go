package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/keyring"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/service/billing"
	"holdfast/service/bucket/sim"
	"holdfast/service/journal"
	"holdfast/service/ledger"
	"holdfast/service/policy"
	"holdfast/service/reclaim"
	"holdfast/service/serve"
	"holdfast/service/view"
	"holdfast/wire"
)

// unwell is a ledger with which something is wrong: each call of it waits for that first, and fails with its error.
type unwell struct {
	*journal.Journal
	ill func(context.Context) error
}

func (u *unwell) MayDelete(ctx context.Context) error {
	if err := u.ill(ctx); err != nil {
		return err
	}
	return u.Journal.MayDelete(ctx)
}

func (u *unwell) Accounts(after string, max int) ([]view.Account, error) {
	if err := u.ill(context.Background()); err != nil {
		return nil, err
	}
	return u.Journal.Accounts(after, max)
}

func (u *unwell) Append(ctx context.Context, fn func(*journal.Tx) error) (*journal.Ticket, error) {
	if err := u.ill(ctx); err != nil {
		return nil, err
	}
	return u.Journal.Append(ctx, fn)
}

// ledgerDay is what customers met on a day.
type ledgerDay struct {
	longest map[string]time.Duration // by what they asked for
	asked   int
	failed  []error
	charged int // transfers that the ledger has at the end
}

// live runs a day in which a customer who is paid backs up, restores, deletes and asks what he uses, every hour, and
// one who is not is refused new backups and restores. Before it, the ledger is well; ill says what is wrong with it since. With
// naive, requests that write ask the ledger first, as services did that are no more.
func live(t *testing.T, ill func(context.Context) error, naive bool) (d ledgerDay) {
	d.longest = map[string]time.Duration{}
	dir := tree(t, 1, 300<<10)
	inWorld(t, owner, func(w *world) {
		books := &unwell{ill: func(context.Context) error { return nil }}
		end := make(chan struct{})
		w.stop()
		w.charges = func(j *journal.Journal, settle func(context.Context)) *billing.Biller {
			books.Journal = j
			return billing.New(billing.Config{Ledger: books, Prices: ledger.Prices{Stored: 1000 * ledger.Unit, Out: ledger.Unit}, Grace: 90 * day, Settle: settle})
		}
		if naive {
			w.readOnly = func() serve.Closed {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
				defer cancel()
				books.ill(ctx)
				return serve.Closed{}
			}
		}
		w.disk = view.NewDisk()
		w.start()
		poor := w.settler(keyring.OwnerOf(holdfast.Key{2}), "poor")
		w.first.backup(dir, "s")
		debt, _ := poor.backup(dir, "s")
		pay := func(name string, days int) error {
			l, err := w.money.Account(name)
			if err != nil {
				return err
			}
			_, _, err = w.money.Pay(w.Context(), name, fmt.Sprint(name, days), l.Daily*ledger.Amount(days), "")
			return err
		}
		if _, err := w.money.Run(w.Context()); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(pay("customer", 1000), pay("poor", 80)); err != nil {
			t.Fatal(err)
		}

		w.bucket.OnOp(func(sim.Op, string, int) sim.Fault { return sim.Fault{Slow: 80 * time.Millisecond} })
		books.ill = func(ctx context.Context) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() { // whoever does not listen is let go when the day is over
				select {
				case <-end:
					cancel()
				case <-ctx.Done():
				}
			}()
			return ill(ctx)
		}
		ctx, cancel := context.WithCancel(w.Context())
		loops := make(chan struct{}, 2)
		go func() { w.money.Loop(ctx); loops <- struct{}{} }()
		go func() {
			policy.Loop(ctx, w.j, w.id.LogKey(), billing.Arrears, w.money.Moved(), slog.New(slog.DiscardHandler))
			loops <- struct{}{}
		}()
		do := func(what string, fn func() error) {
			began := time.Now()
			if err := fn(); err != nil {
				d.failed = append(d.failed, fmt.Errorf("%s: %w", what, err))
			}
			d.asked++
			d.longest[what] = max(d.longest[what], time.Since(began))
		}
		restores := func(m *machine, a history.Archive) error {
			v, err := restore.Open(w.Context(), m.Machine, m.c)
			if err != nil {
				return err
			}
			out := filepath.Join(t.TempDir(), "out")
			r, err := v.Extract(w.Context(), a, out, restore.Options{})
			if err == nil && (r.Problems > 0 || !slices.Equal(contents(t, out), contents(t, dir))) {
				err = fmt.Errorf("%d problems, or other contents", r.Problems)
			}
			return err
		}
		for hour := range 24 {
			if err := os.WriteFile(filepath.Join(dir, "tree", "changes"), fmt.Appendf(nil, "%d", hour), 0o644); err != nil {
				t.Fatal(err)
			}
			var r backup.Result
			do("backup", func() (err error) { r, err = backup.Run(w.Context(), w.first.config(dir, "s")); return err })
			if d.failed != nil {
				break
			}
			do("restore", func() error { return restores(w.first, r.Archive) })
			do("usage", func() error { _, err := w.first.c.Usage(w.Context()); return err })
			do("delete", func() error {
				_, err := w.first.c.SubmitAsOwner(w.Context(), owner.SignKey(), history.TypeDelete, history.IDs{r.Archive.ID}.Encode())
				return err
			})
			do("refusal", func() error {
				if _, err := backup.Run(w.Context(), poor.config(dir, "s")); wire.CodeOf(err) != wire.CodeOutOfCredit {
					return fmt.Errorf("%v", err)
				}
				return nil
			})
			do("restore of one who is not paid", func() error {
				if hour > 0 {
					return nil
				}
				os.Remove(filepath.Join(dir, "tree", "changes"))
				return restores(poor, debt)
			})
			time.Sleep(time.Hour)
		}
		close(end)
		cancel()
		<-loops
		<-loops
		all, err := w.j.Acked().Transfers(0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		d.charged = len(all)
	})
	return d
}

// TestScenarioS2LedgerHangs: the ledger hangs for a day, or fails, or takes an hour for each call. Not one request fails or is
// slower than on a day on which it is well. Had a request to ask it, all would.
func TestScenarioS2LedgerHangs(t *testing.T) {
	well := live(t, func(context.Context) error { return nil }, false)
	for _, err := range well.failed {
		t.Error(err)
	}
	if well.asked != 24*6 || well.charged <= 2 {
		t.Fatalf("%d requests, %d transfers", well.asked, well.charged)
	}
	hangs := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for what, ill := range map[string]func(context.Context) error{
		"it hangs": hangs,
		"it fails": func(context.Context) error { return errors.New("the ledger is away") },
		"it takes an hour": func(ctx context.Context) error {
			select {
			case <-time.After(time.Hour):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	} {
		d := live(t, ill, false)
		for _, err := range d.failed {
			t.Errorf("%s: %v", what, err)
		}
		if d.asked != well.asked {
			t.Errorf("%s: %d requests of %d", what, d.asked, well.asked)
		}
		for _, k := range slices.Sorted(maps.Keys(well.longest)) {
			t.Logf("%s: %s took %v at most, %v when it is well", what, k, d.longest[k], well.longest[k])
			if d.longest[k] > well.longest[k] {
				t.Errorf("%s: %s took %v, and %v when it is well", what, k, d.longest[k], well.longest[k])
			}
		}
		if d.charged >= well.charged && what != "it takes an hour" {
			t.Errorf("%s: there are %d transfers", what, d.charged)
		}
	}
	if d := live(t, hangs, true); len(d.failed) == 0 && d.longest["backup"] <= well.longest["backup"] {
		t.Errorf("asking a ledger that hangs took no time: %v", d.longest)
	} else {
		t.Logf("who asks a ledger that hangs: %d requests failed, the longest took %v", len(d.failed), slices.Max(slices.Collect(maps.Values(d.longest))))
	}
}

// purse is a world in which accounts are charged, with the hours of its service.
type purse struct {
	*world
	told  map[string]int // how often each customer was told of each step, with the day
	order []string
	began time.Time
}

// inPurse runs fn in a world in which keeping what tree makes costs something.
func inPurse(t *testing.T, fn func(p *purse)) {
	inWorld(t, owner, func(w *world) {
		w.stop()
		w.charges = func(j *journal.Journal, settle func(context.Context)) *billing.Biller {
			return billing.New(billing.Config{
				Ledger: j, Prices: ledger.Prices{Stored: 1000 * ledger.Unit, In: ledger.Unit, Out: ledger.Unit}, Grace: 90 * day, Settle: settle,
			})
		}
		w.disk, w.watch = view.NewDisk(), 4*time.Minute
		w.start()
		p := &purse{world: w, told: map[string]int{}}
		fn(p)
		p.sums()
	})
}

// pay pays for that many days of what the account keeps now.
func (p *purse) pay(name, id string, days int) {
	p.Helper()
	l, err := p.money.Account(name)
	if err == nil {
		_, _, err = p.money.Pay(p.Context(), name, id, l.Daily*ledger.Amount(days), "")
	}
	if err != nil {
		p.Fatal(err)
	}
}

func (p *purse) line(name string) billing.Line {
	p.Helper()
	l, err := p.money.Account(name)
	if err != nil {
		p.Fatal(err)
	}
	return l
}

// until lets the service's hours pass up to the beginning of a day: accounts are charged, policies run, owners are told. Every
// fifth day the process ends without a word. A person who tells owners does it twice in a row now and then.
func (p *purse) until(days int) {
	p.Helper()
	for {
		hour := int(time.Since(p.began) / time.Hour)
		if hour >= days*24 {
			return
		}
		if hour%120 == 119 {
			p.disk = p.disk.Crash(50, uint64(hour))
			p.crash()
		}
		if _, err := p.money.Run(p.Context()); err != nil {
			p.Fatal(err)
		}
		if _, err := policy.Run(p.Context(), p.j, p.id.LogKey(), billing.Arrears); err != nil {
			p.Fatal(err)
		}
		all, err := p.money.Warnings("", 100)
		if err != nil {
			p.Fatal(err)
		}
		for _, l := range all {
			said := fmt.Sprintf("%s, %s: day %d", l.Name, l.Standing.Step, hour/24)
			p.told[said]++
			p.order = append(p.order, said)
			for range 1 + hour%2 {
				if err := p.money.Told(p.Context(), l.Name, l.Standing.Step); err != nil {
					p.Fatal(err)
				}
			}
		}
		time.Sleep(time.Until(p.began.Add(time.Duration(hour+1) * time.Hour)))
	}
}

// sums fails unless the sum over all books is zero.
func (p *purse) sums() {
	p.Helper()
	var sum ledger.Balance
	books := []ledger.Book{{Kind: ledger.Payments}, {Kind: ledger.Revenue}, {Kind: ledger.Credits}}
	all, err := p.j.Accounts("", 100)
	for _, a := range all {
		books = append(books, ledger.Of(a.ID))
	}
	for _, b := range books {
		v, no := p.j.Acked().Balance(b)
		err = errors.Join(err, no)
		sum = sum.Sum(v)
	}
	if err != nil || !sum.Zero() {
		p.Errorf("the sum of %d books is %s, %v", len(books), sum, err)
	}
}

// states returns how many of the machine's archives are in each state, as a client follows the history.
func (p *purse) states(m *machine) string {
	p.Helper()
	h := m.open().History
	n := map[history.State]int{history.Purged: len(h.Purged)}
	for _, a := range h.Archives {
		n[a.State]++
	}
	return fmt.Sprintf("%d live, %d lapsed, %d purged", n[history.Live], n[history.Lapsed], n[history.Purged])
}

// refused fails unless a new backup is refused for want of credit.
func (p *purse) refused(m *machine, dir string) {
	p.Helper()
	if _, err := backup.Run(p.Context(), m.config(dir, "s")); wire.CodeOf(err) != wire.CodeOutOfCredit {
		p.Errorf("a backup of one who is not paid: %v", err)
	}
}

// TestScenarioS13OutOfMoney: a customer has paid for 150 days, and pays no more. With 30, 14, 7 and 1 days left he is told, each
// once; then writing stops, with 90 days of his own money left, and everything else goes on: he restores, deletes and brings back.
// Before the 90 days are over he is told four times more. Then his archives go the slow way of all deletion, and the history that his
// client verifies proves each of these times. Whoever pays at any time before they are gone has all of them back, byte
// for byte. His neighbour, who is paid, notices nothing.
func TestScenarioS13OutOfMoney(t *testing.T) {
	for _, pays := range []bool{true, false} {
		t.Run(fmt.Sprintf("pays in the end %v", pays), func(t *testing.T) {
			dir, other := tree(t, 1, 300<<10), tree(t, 2, 300<<10)
			inPurse(t, func(p *purse) {
				neighbour := p.settler(keyring.OwnerOf(holdfast.Key{2}), "neighbour")
				his, _ := neighbour.backup(other, "s")
				p.first.backup(dir, "s")
				p.first.backup(dir, "s")
				if _, err := p.money.Run(p.Context()); err != nil {
					t.Fatal(err)
				}
				p.pay("neighbour", "n", 100_000)
				p.pay("customer", "c", 150)
				p.began = time.Now()
				first := p.first.open().History.Archives[0]

				p.until(60)
				p.first.backup(dir, "s") // nothing new in it; the hour in which writing stops has not come
				p.until(61)
				p.refused(p.first, dir)
				p.first.restores(first, dir)
				for _, x := range []history.Type{history.TypeDelete, history.TypeUndelete} {
					p.ownerSays(x, history.IDs{first.ID}.Encode())
				}
				if a := p.first.open().History.Arrears; a < p.began.Add(150*day-time.Hour).UnixNano() || a > p.began.Add(151*day).UnixNano() {
					t.Errorf("the history says that archives may lapse on %v", time.Unix(0, a).UTC())
				}
				p.until(149)
				if s := p.states(p.first); s != "3 live, 0 lapsed, 0 purged" {
					t.Errorf("on day 149: %s", s)
				}
				p.first.restores(first, dir)
				p.until(152)
				if s := p.states(p.first); s != "0 live, 3 lapsed, 0 purged" {
					t.Errorf("on day 152: %s", s)
				}
				p.refused(p.first, dir)
				if _, err := p.first.c.SubmitAsOwner(p.Context(), owner.SignKey(), history.TypeUndelete, history.IDs{first.ID}.Encode()); wire.CodeOf(err) != wire.CodeOutOfCredit {
					t.Errorf("brought back before anything was paid: %v", err)
				}
				if pays {
					time.Sleep(time.Until(time.Unix(0, p.first.open().History.Archives[0].Changed).Add(7*day - time.Minute))) // in the last minute
					p.pay("customer", "d", 500)
					p.until(163) // and does nothing more for days
					var ids []holdfast.RecordID
					for _, a := range p.first.open().History.Archives {
						ids = append(ids, a.ID)
					}
					p.ownerSays(history.TypeUndelete, history.SortIDs(ids).Encode())
					p.first.backup(dir, "s")
					if s := p.states(p.first); s != "4 live, 0 lapsed, 0 purged" {
						t.Errorf("after paying: %s", s)
					}
					p.first.restores(first, dir)
				} else {
					p.until(170)
					if s := p.states(p.first); s != "0 live, 0 lapsed, 3 purged" {
						t.Errorf("on day 170: %s", s)
					}
					free(p.world)
					if l := p.line("customer"); l.Stores {
						t.Errorf("%+v", l)
					}
				}
				neighbour.backup(other, "s")
				neighbour.restores(his, other)

				var want []string
				for _, x := range []struct {
					s   ledger.Step
					day int
				}{
					{ledger.Warn30, 30}, {ledger.Warn14, 46}, {ledger.Warn7, 53}, {ledger.Warn1, 59}, {ledger.Stopped, 60},
					{ledger.Last30, 120}, {ledger.Last14, 136}, {ledger.Last7, 143}, {ledger.Last1, 149}, {ledger.Lapsed, 150},
				} {
					want = append(want, fmt.Sprintf("customer, %s: day %d", x.s, x.day))
				}
				if !slices.Equal(p.order, want) {
					t.Errorf("told\n%q\nwant\n%q", p.order, want)
				}
			})
		})
	}
}

// free runs the job that frees blocks for as long as takes it to free all.
func free(w *world) {
	w.Helper()
	for range 30 {
		if _, err := reclaim.Run(w.Context(), reclaim.Config{Journal: w.j, EndIdle: w.srv.EndIdle}); err != nil {
			w.Fatal(err)
		}
		time.Sleep(day)
	}
}

// TestScenarioS13NobodyElsesMoney: what a customer pays is what he uses. Strangers, neighbours, and whoever stole a key that reads
// or a key that writes up to its cap, take nothing from him beyond what docs/money.md says: reading everything once a day, and
// the cap.
func TestScenarioS13NobodyElsesMoney(t *testing.T) {
	dir, other := tree(t, 1, 300<<10), tree(t, 2, 3<<20)
	spent := func(t *testing.T, thieves func(p *purse, a history.Archive)) (cost ledger.Balance, keeping, all ledger.Amount) {
		inPurse(t, func(p *purse) {
			a, _ := p.first.backup(dir, "s")
			if _, err := p.money.Run(p.Context()); err != nil {
				t.Fatal(err)
			}
			p.pay("customer", "c", 10_000)
			p.began = time.Now()
			p.until(1)
			before := p.line("customer")
			u, err := p.j.Acked().Usage(before.ID, 0)
			if err != nil {
				t.Fatal(err)
			}
			thieves(p, a)
			time.Sleep(time.Until(p.began.Add(24 * time.Hour)))
			p.until(2)
			after := p.line("customer")
			cost, keeping = before.Balance.Sum(negative(after.Balance)), before.Daily
			all = ledger.Amount(u.Bytes) * ledger.Unit / 1_000_000_000
		})
		return cost, keeping, all
	}
	alone, keeping, all := spent(t, func(*purse, history.Archive) {})
	if alone.Int().Sign() <= 0 || alone.Int().Int64() > int64(keeping)*26/24 {
		t.Fatalf("a day costs %s, of %s", alone, keeping)
	}
	beside, _, _ := spent(t, func(p *purse, a history.Archive) {
		neighbour := p.settler(keyring.OwnerOf(holdfast.Key{2}), "neighbour")
		neighbour.backup(other, "s")
		stranger := p.machine(p.first.Vault, 1, holdfast.RightsAll)
		for range 50 {
			if _, err := restore.Open(p.Context(), stranger.Machine, stranger.c); err == nil {
				t.Error("a stranger opened the vault")
			}
		}
	})
	if more := beside.Sum(negative(alone)).Int().Int64(); more*1000 > int64(keeping) { // the day of one began some ms later
		t.Errorf("with others beside him he pays %s, and %s without", beside, alone)
	}
	reader, _, _ := spent(t, func(p *purse, a history.Archive) {
		for range 30 {
			p.first.restores(a, dir)
		}
	})
	if more := reader.Sum(negative(alone)).Int().Int64(); more <= 0 || more > int64(all) {
		t.Errorf("a thief who reads everything 30 times costs %d, and everything once %d", more, all)
	}
}

func negative(b ledger.Balance) ledger.Balance {
	n := ledger.Balance{Hi: ^b.Hi, Lo: ^b.Lo}
	return n.Plus(1)
}
