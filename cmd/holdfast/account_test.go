package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/wire"
)

// TestAccount: what is stored, paid and charged, and how long that lasts, in words and in JSON.
func TestAccount(t *testing.T) {
	warm(t)
	end := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	day := time.Date(2026, 5, 2, 0, 0, 0, 0, time.UTC)
	money := func(c *wire.Credit) *wire.Money {
		return &wire.Money{Balance: "-0.50", Daily: "0.012", Credit: c, Currency: "EUR", Stored: "0.0049", In: "0.00", Out: "0.05"}
	}
	const costs = "  balance    -0.50 EUR\n  costs      0.012 EUR a day for what is stored now\n"
	const prices = "  prices     of 10^9 bytes: 0.0049 EUR a month to keep, 0.00 to receive, 0.05 to send\n"
	for _, x := range []struct {
		what  string
		usage wire.Usage
		want  string
	}{
		{"free", wire.Usage{}, ""},
		{"new and not paid", wire.Usage{Money: money(&wire.Credit{State: wire.CreditStopped, End: end})}, costs + "  lasts      the account is not paid, and nothing is stored before it is\n" + prices},
		{"new and paid", wire.Usage{Money: money(nil)}, costs + "  lasts      no end is in sight\n" + prices},
		{"paid", wire.Usage{Blocks: 1, Money: money(&wire.Credit{State: wire.CreditPaid, Days: 200, End: end})}, costs + "  lasts      new backups stop in 200 days, on 2026-12-01\n" + prices},
		{"paid for ever", wire.Usage{Blocks: 1, Money: money(&wire.Credit{State: wire.CreditPaid, Days: 1_000_000, End: end})}, costs + "  lasts      no end is in sight\n" + prices},
		{"low", wire.Usage{Blocks: 1, Money: money(&wire.Credit{State: wire.CreditLow, Days: 7, End: end})}, costs + "  lasts      new backups stop in 7 days, on 2026-12-01\n" + prices},
		{"stopped", wire.Usage{Blocks: 1, Money: money(&wire.Credit{State: wire.CreditStopped, Days: 90, End: end})}, costs + "  lasts      new backups are refused, and the archives are deleted in 90 days, on 2026-12-01\n" + prices},
		{"lapsed", wire.Usage{Blocks: 1, Money: money(&wire.Credit{State: wire.CreditLapsed, End: end})}, costs + "  lasts      the archives are being deleted, and can be brought back for a while only\n" + prices},
		{"a cap", wire.Usage{Today: &wire.Cap{Bytes: 1 << 30, UsedBytes: 1 << 20, UsedBlocks: 1, Resets: day}}, "  today      this machine stored 1.0 MiB of 1.0 GiB and 1 block; the next day begins at 2026-05-02T00:00:00Z\n"},
		{"another cap", wire.Usage{Today: &wire.Cap{Blocks: 9, UsedBlocks: 3, Resets: day}}, "  today      this machine stored 0 bytes and 3 blocks of 9; the next day begins at 2026-05-02T00:00:00Z\n"},
	} {
		t.Run(x.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				u := x.usage
				u.Account, u.StoredBytes, u.BilledBytes, u.ReceivedBytes, u.SentBytes, u.AsOf = strings.Repeat("01", 16), 1<<20, 2<<20, 3<<20, 4<<20, day
				w.tell("usage", func(_, _ []byte) []byte {
					b, err := json.Marshal(u)
					if err != nil {
						t.Error(err)
					}
					return b
				})
				want := "account " + u.Account + "\n  stores     1.0 MiB in " + plural(u.Blocks, "block") + ", billed as 2.0 MiB\n  received   3.0 MiB\n  sent       4.0 MiB\n" + x.want
				if s := w.ok("account"); s.out != want {
					t.Errorf("says\n%swant\n%s", s.out, want)
				}
				var got wire.Usage
				if err := json.Unmarshal([]byte(w.ok("account", "--json").out), &got); err != nil {
					t.Fatal(err)
				}
				if a, b := encoded(t, got), encoded(t, u); a != b {
					t.Errorf("JSON says\n%s\nwant\n%s", a, b)
				}
			})
		})
	}
}

func encoded(t *testing.T, u wire.Usage) string {
	t.Helper()
	b, err := json.Marshal(u)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestCreateSaysThatTheAccountIsLow: once a run, loudly, and for programs.
func TestCreateSaysThatTheAccountIsLow(t *testing.T) {
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.svc.Credit = &wire.Credit{State: wire.CreditLow, Days: 7, End: time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)}
		const want = "holdfast: the account is nearly used up: new backups stop in 7 days, on 2026-12-01; see `holdfast account`\n"
		s := w.ok("create", "-C", w.dir, "docs", "docs", "--json")
		var doc summary
		if err := json.Unmarshal([]byte(s.out), &doc); err != nil {
			t.Fatal(err)
		}
		if s.warn != want || doc.Credit == nil || *doc.Credit != *w.svc.Credit {
			t.Errorf("says %q and %+v", s.warn, doc.Credit)
		}
		for _, args := range [][]string{{"create", "-C", w.dir, "docs", "docs", "--dry-run"}, {"list"}, {"verify", "docs"}} {
			if s := w.ok(args...); s.warn != want {
				t.Errorf("%s says %q", args[0], s.warn)
			}
		}
		w.svc.Credit = nil
		if s := w.ok("create", "-C", w.dir, "docs", "docs", "--json"); s.warn != "" || strings.Contains(s.out, `"credit"`) {
			t.Errorf("of an account that is paid: %q\n%s", s.warn, s.out)
		}
	})
}

// TestOutOfCreditInTheMiddle: a backup that is refused in its middle ends with one sentence and asks no more, what is stored can
// be read, and when it is paid the same command goes on.
func TestOutOfCreditInTheMiddle(t *testing.T) {
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		before := len(w.svc.Vault.Archives)
		for i := range 24 {
			w.write("docs/new"+string(rune('a'+i)), 1<<20)
		}
		refused := 0
		taken := 3 // batches
		w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/blocks") {
				return false
			}
			w.svc.Mu.Lock()
			defer w.svc.Mu.Unlock()
			if taken--; taken >= 0 {
				return false
			}
			refused++
			io.Copy(io.Discard, r.Body)
			rw.WriteHeader(wire.CodeOutOfCredit.Status())
			json.NewEncoder(rw).Encode(wire.Error{Code: wire.CodeOutOfCredit, Message: "The account is not paid."})
			return true
		}
		began := time.Now()
		s := w.create("docs")
		const want = "holdfast: upload blocks: The account is not paid (what was uploaded until now is kept for two days); pay, then run the same command again\n"
		if s.code != exitUnavailable || s.line != want {
			t.Errorf("exit %d, %q", s.code, s.line)
		}
		if took := time.Since(began) - time.Minute; refused > 8 || took > time.Second { // each uploader asks once at most
			t.Errorf("asked %d times, for %v", refused, took)
		}
		if n := len(w.svc.Vault.Archives); n != before {
			t.Errorf("%d archives", n-before)
		}
		w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool { // as the service refuses it in the next run
			if r.URL.Path != wire.PathSession {
				return false
			}
			rw.WriteHeader(wire.CodeOutOfCredit.Status())
			json.NewEncoder(rw).Encode(wire.Error{Code: wire.CodeOutOfCredit, Message: "The account is not paid."})
			return true
		}
		if s := w.create("docs"); s.code != exitUnavailable || !strings.HasPrefix(s.line, "holdfast: open session: The account is not paid (what was uploaded") {
			t.Errorf("exit %d, %q", s.code, s.line)
		}
		if s := w.extract("photos"); s.code != 0 {
			t.Errorf("what is stored cannot be read: %s", s.line)
		}
		w.honest()
		s = w.ok("create", "-C", w.dir, "docs", "docs", "--json")
		var doc summary
		if err := json.Unmarshal([]byte(s.out), &doc); err != nil {
			t.Fatal(err)
		}
		if doc.KnownBlocks == 0 {
			t.Errorf("what was uploaded is sent again: %+v", doc)
		}
		if s := w.extract("docs"); s.code != 0 {
			t.Errorf("exit %d, %s", s.code, s.line)
		}
	})
}
