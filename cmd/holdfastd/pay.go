package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/account"
	"holdfast/service/admin"
	"holdfast/service/ledger"
)

func accountShow() *cobra.Command {
	var dir string
	var asJSON bool
	c := &cobra.Command{
		Use:   "show NAME --data DIR",
		Short: "Say what an account stores, has and pays, and how it stands",
		Long: `Say what an account stores, what is left of what it paid, what keeping everything costs a day, how many days that
pays for, and whether its owner was told. The service must be running.`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if err := account.CheckName(args[0]); err != nil {
				return usageError{err}
			}
			a, err := admin.GetAccount(c.Context(), dir, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), a)
			}
			return printAccount(c.OutOrStdout(), a)
		},
	}
	dataFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

func accountPay() *cobra.Command {
	return payCommand("pay NAME AMOUNT --id ID [--text TEXT] --data DIR", "Book what an account paid", `Book what an account paid: AMOUNT is a decimal number of the currency, like 12 or 3.50. Who has paid enough may
write at once.`, "")
}

func accountRefund() *cobra.Command {
	return payCommand("refund NAME AMOUNT --id ID [--text TEXT] --data DIR", "Book what an account was paid back", `Book what an account was paid back: AMOUNT is a decimal number of the currency, like 12 or 3.50.`, "-")
}

// payCommand books amounts behind a sign.
func payCommand(use, short, long, sign string) *cobra.Command {
	var dir, id, text string
	var asJSON bool
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Long: long + `

ID says which payment it is: its number at the bank, or an invoice's, up to 40 printable characters without spaces. The
same command again changes nothing, so that one that was interrupted, or of which the answer was lost, is simply given again.
Another payment under the same id is refused. The service must be running. It says so when the payment is durable.`,
		Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "data", "id"); err != nil {
				return err
			}
			if err := account.CheckName(args[0]); err != nil {
				return usageError{err}
			}
			amount, err := ledger.Parse(args[1])
			if err != nil {
				return usageError{err}
			}
			if amount <= 0 {
				return usageError{fmt.Errorf("AMOUNT is %s, and must be above zero; account pay is for what came in, account refund for what was paid back", amount)}
			}
			p, err := admin.Pay(c.Context(), dir, args[0], id, sign+args[1], text)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if asJSON {
				return printJSON(out, p)
			}
			done := "booked"
			if p.Known {
				done = "known already, nothing changed"
			}
			if _, err := fmt.Fprintf(out, "%s\n", done); err != nil {
				return err
			}
			return printAccount(out, p.Account)
		},
	}
	dataFlag(c, &dir)
	c.Flags().StringVar(&id, "id", "", "`ID` of the payment: the same twice is booked once")
	c.Flags().StringVar(&text, "text", "", "`TEXT` that says what it is, up to 500 bytes")
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

// printAccount writes how an account is.
func printAccount(out io.Writer, a admin.Account) error {
	m := a.Money
	_, err := fmt.Fprintf(out, "account   %s\nstores    %s\nbalance   %s\n", a.Name, used(a), in(m.Balance, m.Currency))
	switch {
	case err != nil:
		return err
	case !m.Charged:
		_, err = fmt.Fprintln(out, "cost      nothing is charged")
		return err
	}
	_, err = fmt.Fprintf(out, "cost      %s a day\nstands    %s\n", in(m.Daily, m.Currency), standing(*m))
	return err
}

// in says an amount of a currency, which may have no name.
func in(amount, currency string) string {
	if currency == "" {
		return amount
	}
	return amount + " " + currency
}

// standing says how an account stands: its step, when that ends, and whether its owner knows.
func standing(m admin.Money) string {
	s := m.Words
	if m.Left != nil {
		what := "writing stops"
		if m.Step >= ledger.Stopped {
			what = "archives are deleted"
		}
		if m.Step < ledger.Lapsed {
			s += fmt.Sprintf("; %s left until %s, %s", days(*m.Left), what, m.End.Format(time.DateOnly))
		}
	}
	switch {
	case m.Step == ledger.Paid:
	case m.Told.IsZero():
		s += "; NOT TOLD"
	default:
		s += "; told " + m.Told.Format(time.RFC3339)
	}
	return s
}

func days(n int64) string {
	if n == 1 {
		return "1 day"
	}
	return fmt.Sprintf("%d days", n)
}
