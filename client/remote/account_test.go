package remote_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"holdfast/client/remote"
	"holdfast/client/remote/remotetest"
	"holdfast/wire"
)

// TestCredit: who uses the service is told once that the account is not paid, and nothing that cannot be.
func TestCredit(t *testing.T) {
	f := remotetest.New(t)
	f.Enrol(remote.Options{}).Close()
	end := time.Date(2026, 12, 1, 23, 0, 0, 0, time.FixedZone("", -7200)) // the 2nd in UTC
	for _, x := range []struct {
		credit *wire.Credit
		want   string
	}{
		{nil, ""},
		{&wire.Credit{State: wire.CreditPaid, Days: 400, End: end}, ""},
		{&wire.Credit{State: wire.CreditLow, Days: 7, End: end}, "the account is nearly used up: new backups stop in 7 days, on 2026-12-02; see `holdfast account`"},
		{&wire.Credit{State: wire.CreditLow, Days: 1, End: end}, "the account is nearly used up: new backups stop within a day; see `holdfast account`"},
		{&wire.Credit{State: wire.CreditLow, End: end}, "the account is nearly used up: new backups stop now; see `holdfast account`"},
		{&wire.Credit{State: wire.CreditStopped, Days: 90, End: end}, "the account is not paid: new backups are refused, and the archives are deleted in 90 days, on 2026-12-02; see `holdfast account`"},
		{&wire.Credit{State: wire.CreditLapsed, End: end}, "the account is not paid: the archives are being deleted, and can be brought back for a while only; see `holdfast account`"},
		{&wire.Credit{State: wire.CreditLow, Days: 1_000_000, End: end}, "the account is nearly used up: new backups stop in 1000000 days, on 2026-12-02; see `holdfast account`"},
		// Nonsense.
		{&wire.Credit{Days: 7, End: end}, ""},
		{&wire.Credit{State: "low\x1b[2J", Days: 7, End: end}, ""},
		{&wire.Credit{State: wire.CreditLow, Days: -1, End: end}, ""},
		{&wire.Credit{State: wire.CreditLow, Days: 1_000_001, End: end}, ""},
		{&wire.Credit{State: wire.CreditLow, Days: 7}, ""},
		{&wire.Credit{State: wire.CreditLow, Days: 7, End: end.AddDate(200, 0, 0)}, ""},
	} {
		f.Credit = x.credit
		var told []string
		c := f.Dial(remote.Options{Notify: func(s string) { told = append(told, s) }})
		for range 2 {
			if _, err := c.History(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Join(told, "|"); got != x.want {
			t.Errorf("%+v: the user is told %q, want %q", x.credit, got, x.want)
		}
		if got := c.Credit(); (got != nil) != (x.want != "") || got != nil && (got.State != x.credit.State || got.Days != x.credit.Days || !got.End.Equal(end)) {
			t.Errorf("%+v: known as %+v", x.credit, got)
		}
		c.Close()
	}
}

// TestUsageIsSound: what is said of an account can be shown to people, or it is no answer.
func TestUsageIsSound(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{})
	sound := wire.Usage{
		Account: strings.Repeat("01", 16),
		Money: &wire.Money{
			Balance: "-123456789012345678901234567.000000000001", Daily: "0.01", Currency: "€ / 円", Stored: "0.0049", In: "0", Out: "12.50",
			Credit: &wire.Credit{State: wire.CreditPaid, Days: 1_000_000, End: time.Date(2126, 1, 1, 0, 0, 0, 0, time.UTC)},
		},
	}
	ask := func(what string, change func(u *wire.Usage), good bool) {
		t.Helper()
		u, m, credit := sound, *sound.Money, *sound.Money.Credit
		m.Credit, u.Money = &credit, &m
		change(&u)
		f.Lie = func(*http.Request, []byte, []byte) []byte {
			b, err := json.Marshal(u)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		got, err := c.Usage(t.Context())
		if good && (err != nil || got.Account != u.Account || (got.Money == nil) != (u.Money == nil)) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		if !good && (!errors.Is(err, remote.ErrProtocol) || got != (wire.Usage{})) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
		if today, err := c.Today(t.Context()); err != nil || (today == nil) != (u.Today == nil) {
			t.Errorf("%s keeps a machine from learning its cap: %v", what, err)
		}
	}
	ask("as it is", func(u *wire.Usage) {}, true)
	ask("no money", func(u *wire.Usage) { u.Money = nil }, true)
	ask("no credit", func(u *wire.Usage) { u.Money.Credit = nil }, true)
	ask("no currency", func(u *wire.Usage) { u.Money.Currency = "" }, true)
	ask("the longest currency", func(u *wire.Usage) { u.Money.Currency = strings.Repeat("x", wire.MaxCurrency) }, true)
	for _, s := range []string{"", "0x0101", strings.Repeat("01", 15), strings.Repeat("01", 17), strings.Repeat("\x1b[", 16)} {
		ask("account "+s, func(u *wire.Usage) { u.Account = s }, false)
	}
	for _, s := range []string{"\x1b[2J", "a\nb", "\u009b2J", "\u202eRUE", strings.Repeat("x", wire.MaxCurrency+1)} {
		ask("currency "+s, func(u *wire.Usage) { u.Money.Currency = s }, false)
	}
	for _, s := range []string{"", "-", ".", "1.", ".5", "1.2.3", "--1", "+1", "1e9", "0x10", " 1", "1 ", "1,5", "NaN", "١", "1\x1b[2J", strings.Repeat("9", 49)} {
		for i, set := range []func(*wire.Money){
			func(m *wire.Money) { m.Balance = s }, func(m *wire.Money) { m.Daily = s }, func(m *wire.Money) { m.Stored = s },
			func(m *wire.Money) { m.In = s }, func(m *wire.Money) { m.Out = s },
		} {
			ask(string(rune('0'+i))+": "+s, func(u *wire.Usage) { set(u.Money) }, false)
		}
	}
	ask("a price below zero", func(u *wire.Usage) { u.Money.Out = "-1" }, false)
	ask("a standing that is none", func(u *wire.Usage) { u.Money.Credit.State = "rich" }, false)
	ask("days that are none", func(u *wire.Usage) { u.Money.Credit.Days = -1 }, false)
	f.Lie = func(*http.Request, []byte, []byte) []byte {
		return []byte(`{"account": "` + sound.Account + `", "money": {"credit": {"days": 1e40}}}`)
	}
	if _, err := c.Usage(t.Context()); !errors.Is(err, remote.ErrProtocol) {
		t.Errorf("days beyond counting: %v", err)
	}
}
