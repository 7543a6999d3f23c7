package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/part"
	"holdfast/service/account"
	"holdfast/service/admin"
)

// plainText is the inverse of escape.
func plainText(s string) string {
	return regexp.MustCompile(`%[0-9A-F]{2}`).ReplaceAllStringFunc(s, func(x string) string {
		c, _ := strconv.ParseUint(x[1:], 16, 8)
		return string([]byte{byte(c)})
	})
}

func TestEscape(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "anna": "anna", "Anna & Söhne": "Anna & Söhne", "a:b;c|d": "a%3Ab%3Bc|d", " a  b ": "%20a %20b%20", "   ": "%20%20%20",
		"20 % off": "20 % off", "100%": "100%", "%3A": "%253A", "%3a": "%253a", "%3:": "%3%3A", "%%41": "%%2541", "a\tb\n": "a%09b%0A", "\xff�": "%FF\uFFFD",
		"a\u00a0b": "a%C2%A0b", "\U0001f600": "\U0001f600",
	} {
		if got := escape(s, ":"); got != want {
			t.Errorf("%q is %q, not %q", s, got, want)
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	letters := []string{"a", "3", "B", "%", ":", ";", " ", "|", ")", "ö", "\t", "\u00a0", "\xff"}
	for range 100_000 {
		s := ""
		for range rng.IntN(8) {
			s += letters[rng.IntN(len(letters))]
		}
		e := escape(s, ":")
		if plainText(e) != s {
			t.Fatalf("%q is %q, which is %q", s, e, plainText(e))
		}
		if strings.ContainsAny(e, ":;\t\n") || strings.Contains(e, "  ") || strings.TrimSpace(e) != e {
			t.Fatalf("%q is %q", s, e)
		}
	}
}

// hostile are names and texts that mean something to hledger.
var hostile = []string{
	"a  b", "a;b", "; a", "a:b", ":", "assets:payments", "(a)", "[a]", "* a", "! a", "= a", "a = 1 EUR", "a @ 2 EUR", "| a", "a | b", "a ) b", ") a", "# a", "% a", "%41", "~ a",
	"2026-01-01", "2026-01-01 * b", "1 EUR", "-1", "\"a\"", "{a}", "account a", "include /etc/passwd", "end", "comment", "alias a=b", "Müller & Söhne", "date:2026-01-02", "a, date:2026-01-02", "ß",
	"a'b", "\\", "\\ a", "<a>", "[2026-01-02]", "\U0001f600",
}

// pages returns some transfers, so many at a time.
func pages(all []admin.Transfer, n int) func() (admin.Transfers, error) {
	return func() (admin.Transfers, error) {
		t := admin.Transfers{Currency: "EUR", Transfers: all[:min(n, len(all))]}
		all = all[len(t.Transfers):]
		return t, nil
	}
}

// hledger takes the journal with --strict whatever accounts are called and transfers are for, and reads from it what was written.
func TestJournalIsRead(t *testing.T) {
	part.Need(t, "hledger")
	var all []admin.Transfer
	var names, texts, codes []string
	for i, s := range hostile {
		if err := account.CheckName(s); err != nil {
			t.Fatal(err)
		}
		names, texts = append(names, s), append(texts, s)
		code := fmt.Sprintf("payment:%s%d", strings.ReplaceAll(s, " ", ""), i)
		codes = append(codes, code)
		all = append(all, admin.Transfer{
			Number: uint64(i + 1), Time: time.Date(2026, 11, 23, 1, 2, 3, 0, time.UTC), ID: code, Text: s, Amount: "0.000000000001",
			From: admin.Book{Kind: "payments"}, To: admin.Book{Kind: "customer", Name: s},
		})
	}
	var b strings.Builder
	out := bufio.NewWriter(&b)
	if err := errors.Join(writeJournal(out, pages(all, 7)), out.Flush()); err != nil {
		t.Fatal(err)
	}
	hledger := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("hledger", append([]string{"-f", "-"}, args...)...)
		cmd.Stdin = strings.NewReader(b.String())
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("hledger %s: %v\n%s\n%s", args, err, out, b.String())
		}
		return string(out)
	}
	lines := func(s, before string) (out []string) {
		for line := range strings.Lines(s) {
			if line, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), before); ok {
				out = append(out, plainText(line))
			}
		}
		slices.Sort(out)
		return out
	}
	equal := func(what string, got, want []string) {
		t.Helper()
		want = slices.Clone(want)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s are\n%q and not\n%q", what, got, want)
		}
	}
	hledger("check", "--strict")
	equal("accounts", lines(hledger("accounts"), "liabilities:customers:"), names)
	equal("declared accounts", lines(hledger("accounts", "--declared"), "liabilities:customers:"), names)
	equal("texts", lines(hledger("descriptions"), ""), texts)
	equal("codes", lines(hledger("codes"), ""), codes)
	if got := hledger("balance", "^assets", "-N", "-c", "1.000000000000 EUR"); strings.TrimSpace(got) != fmt.Sprintf("0.0000000000%d EUR  assets:payments", len(all)) {
		t.Errorf("%d payments of a pico are %s", len(all), got)
	}
	if got := strings.Fields(hledger("balance", "--flat", "-N", "liabilities:customers:ß", "-c", "1.000000000000 EUR")); len(got) != 3 || got[0] != "-0.000000000001" {
		t.Errorf("one of them is %q", got)
	}
}

// Every kind of book on each side: what each is called, and its sign.
func TestJournalSigns(t *testing.T) {
	customer, payments, revenue, credits := admin.Book{Kind: "customer", Name: "anna"}, admin.Book{Kind: "payments"}, admin.Book{Kind: "revenue"}, admin.Book{Kind: "credits"}
	var all []admin.Transfer
	for i, x := range [][2]admin.Book{{payments, customer}, {customer, revenue}, {credits, customer}, {customer, payments}} {
		all = append(all, admin.Transfer{Number: uint64(i), Time: time.Unix(0, 0).UTC(), ID: fmt.Sprint(i), From: x[0], To: x[1], Amount: "1.00", Text: "x"})
	}
	for _, n := range []int{1, 2, 100} {
		var b strings.Builder
		out := bufio.NewWriter(&b)
		if err := errors.Join(writeJournal(out, pages(all, n)), out.Flush()); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(b.String()) {
			if strings.HasPrefix(line, "    ") {
				got = append(got, strings.TrimSpace(line))
			}
		}
		if want := []string{
			"assets:payments  1.00 EUR", "liabilities:customers:anna  -1.00 EUR",
			"liabilities:customers:anna  1.00 EUR", "income:use  -1.00 EUR",
			"expenses:credits  1.00 EUR", "liabilities:customers:anna  -1.00 EUR",
			"liabilities:customers:anna  1.00 EUR", "assets:payments  -1.00 EUR",
		}; !slices.Equal(got, want) {
			t.Errorf("%d at a time:\n%s", n, b.String())
		}
		if !strings.HasSuffix(b.String(), "\n; transfers: 4\n") || strings.Count(b.String(), "commodity") != 1 {
			t.Errorf("%d at a time:\n%s", n, b.String())
		}
	}
}

func TestTransfersAreJSON(t *testing.T) {
	for _, count := range []int{0, 1, 5} {
		all := make([]admin.Transfer, count)
		for i := range all {
			all[i] = admin.Transfer{Number: uint64(i), ID: "x", Text: "<\u2028>"}
		}
		var b strings.Builder
		out := bufio.NewWriter(&b)
		if err := errors.Join(writeTransfers(out, pages(all, 2)), out.Flush()); err != nil {
			t.Fatal(err)
		}
		var got []admin.Transfer
		if err := json.Unmarshal([]byte(b.String()), &got); err != nil || !slices.Equal(got, all) {
			t.Errorf("%v: %s", err, b.String())
		}
	}
}

// What fails in the middle is no end.
func TestLedgerFails(t *testing.T) {
	boom := errors.New("boom")
	next := pages(make([]admin.Transfer, 0), 1)
	for name, write := range map[string]func(*bufio.Writer, func() (admin.Transfers, error)) error{"journal": writeJournal, "JSON": writeTransfers} {
		calls := 0
		var b strings.Builder
		err := write(bufio.NewWriter(&b), func() (admin.Transfers, error) {
			if calls++; calls == 2 {
				return admin.Transfers{}, boom
			}
			t, err := next()
			t.Transfers = []admin.Transfer{{From: admin.Book{Kind: "payments"}, To: admin.Book{Kind: "revenue"}}}
			return t, err
		})
		if !errors.Is(err, boom) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
