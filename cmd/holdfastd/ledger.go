package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/ledger"
)

func ledgerCommand() *cobra.Command {
	var dir string
	var asJSON bool
	c := &cobra.Command{
		Use:   "ledger --data DIR [--json]",
		Short: "Write all transfers of money as an hledger journal",
		Long: `Write all transfers of money on standard output, from the first one on, as a journal that hledger reads, also with
--strict. Amounts are exact, to 12 digits. Signs are those of accounting: what customers paid is positive below assets and
negative below liabilities. Characters of names and texts that mean something to hledger are written as % and two digits.
The last line says how many transfers there are. With --json, an array of them. The service must be running.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			out := bufio.NewWriter(c.OutOrStdout())
			write := writeJournal
			if asJSON {
				write = writeTransfers
			}
			if err := write(out, transfers(c.Context(), dir)); err != nil {
				return err
			}
			return out.Flush()
		},
	}
	dataFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

// transfers returns a function that returns the next transfers of the service on dir, none at the end.
func transfers(ctx context.Context, dir string) func() (admin.Transfers, error) {
	after := uint64(0)
	return func() (admin.Transfers, error) {
		t, err := admin.GetTransfers(ctx, dir, after)
		if n := len(t.Transfers); n > 0 {
			after = t.Transfers[n-1].Number
		}
		return t, err
	}
}

// writeTransfers writes all that next returns as a JSON array.
func writeTransfers(out *bufio.Writer, next func() (admin.Transfers, error)) error {
	sep := "["
	for {
		page, err := next()
		if err != nil {
			return err
		}
		for _, t := range page.Transfers {
			b, err := json.Marshal(t)
			if err != nil {
				return fmt.Errorf("encode transfer: %w", err)
			}
			fmt.Fprintf(out, "%s\n  %s", sep, b)
			sep = ","
		}
		if len(page.Transfers) == 0 {
			_, err := out.WriteString(strings.TrimPrefix(sep, ",") + "\n]\n")
			return err
		}
	}
}

// writeJournal writes all that next returns as an hledger journal. An account is declared before it is used first.
func writeJournal(out *bufio.Writer, next func() (admin.Transfers, error)) error {
	declared := map[string]bool{}
	for n := 0; ; {
		page, err := next()
		if err != nil {
			return err
		}
		if n == 0 {
			fmt.Fprintf(out, "; holdfastd ledger\ndecimal-mark .\ncommodity 1000.00 %s\n", page.Currency)
		}
		for _, t := range page.Transfers {
			n++
			from, to := bookName(t.From), bookName(t.To)
			for _, b := range []string{from, to} {
				if !declared[b] {
					declared[b] = true
					fmt.Fprintf(out, "\naccount %s\n", b)
				}
			}
			// A book that gives something is a debit: our sums are zero with either sign, and this is accounting's.
			head := fmt.Sprintf("%s (%s) %s", t.Time.Format(time.DateOnly), escape(t.ID, ")"), escape(t.Text, "|"))
			fmt.Fprintf(out, "\n%s\n    %s  %s %s\n    %s  -%s %s\n", strings.TrimRight(head, " "), from, t.Amount, page.Currency, to, t.Amount, page.Currency)
		}
		if len(page.Transfers) == 0 {
			_, err := fmt.Fprintf(out, "\n; transfers: %d\n", n)
			return err
		}
	}
}

// bookName is a book's account in an hledger journal.
func bookName(b admin.Book) string {
	switch b.Kind {
	case ledger.Customer.String():
		return "liabilities:customers:" + escape(b.Name, ":")
	case ledger.Payments.String():
		return "assets:payments"
	case ledger.Revenue.String():
		return "income:use"
	case ledger.Credits.String():
		return "expenses:credits"
	}
	panic("holdfastd: there is no book of " + b.Kind)
}

// escape writes s so that hledger takes it as it is, and no other text is written in the same way: each byte of what could mean
// something to it, which are semicolons, the characters of special, what does not print, and all spaces but single ones within,
// becomes % and two digits, and so does a % that could be taken for the beginning of that.
func escape(s, special string) string {
	var b strings.Builder
	before := ' '
	for i, r := range s {
		n := utf8.RuneLen(r)
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], string(r)) {
			n = 1 // not UTF-8
		}
		rest := s[i+n:]
		last := before
		before = r
		switch {
		case r == ' ' && last != ' ' && rest != "":
		case r == '%' && !(len(rest) >= 2 && isHex(rest[0]) && isHex(rest[1])):
		case r == ' ', r == '%', r == ';', strings.ContainsRune(special, r), n == 1 && r == utf8.RuneError, !unicode.IsPrint(r):
			for _, c := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
			continue
		}
		b.WriteString(s[i : i+n])
	}
	return b.String()
}

func isHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' || c >= 'a' && c <= 'f' }
