package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/wire"
)

// accountDoc is what account --json writes: of the service's answer, what it is asked for.
type accountDoc struct {
	Account  string      `json:"account"`
	Stored   uint64      `json:"stored_bytes"`
	Billed   uint64      `json:"billed_bytes"`
	Blocks   uint64      `json:"blocks"`
	Received uint64      `json:"received_bytes"`
	Sent     uint64      `json:"sent_bytes"`
	AsOf     time.Time   `json:"as_of"`
	Money    *wire.Money `json:"money,omitempty"` // where the operator charges for anything
	Today    *wire.Cap   `json:"today,omitempty"` // of this machine, if it has a daily cap
}

func newAccount(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "account [--json]",
		Short: "Show what the account stores, what it pays, and how long that lasts",
		Long: `Account shows what all vaults of the account store, and what was received and sent for them since it was made. Where the
operator charges, it shows what is left of what was paid, the prices, what a day costs, and when new backups stop or, if they have,
when the archives are deleted. Where this machine has a daily cap, it shows what is left of that.

Bytes are counted as they are sealed. Each block is billed as 4 KiB at least. The service alone says all this: this machine
cannot check it. What has stopped goes on at once when it is paid, and until then everything can be restored.`,
		Args: args(cobra.NoArgs, "holdfast account [--json]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, c, err := g.connect(warn)
			if err != nil {
				return err
			}
			defer c.Close()
			u, err := c.Usage(cmd.Context())
			if err != nil {
				return err
			}
			d := accountDoc{u.Account, u.StoredBytes, u.BilledBytes, u.Blocks, u.ReceivedBytes, u.SentBytes, u.AsOf, u.Money, u.Today}
			if asJSON {
				return writeDoc(cmd.OutOrStdout(), d)
			}
			d.write(cmd.OutOrStdout())
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// write writes the account for a person.
func (d accountDoc) write(w io.Writer) {
	fmt.Fprintln(w, "account "+d.Account)
	fmt.Fprintf(w, "  stores     %s in %s, billed as %s\n", size(d.Stored), plural(d.Blocks, "block"), size(d.Billed))
	fmt.Fprintf(w, "  received   %s\n", size(d.Received))
	fmt.Fprintf(w, "  sent       %s\n", size(d.Sent))
	if m := d.Money; m != nil {
		unit := strings.TrimRight(" "+m.Currency, " ")
		fmt.Fprintf(w, "  balance    %s%s\n", m.Balance, unit)
		fmt.Fprintf(w, "  costs      %s%s a day for what is stored now\n", m.Daily, unit)
		fmt.Fprintf(w, "  lasts      %s\n", d.lasts())
		fmt.Fprintf(w, "  prices     of 10^9 bytes: %s%s a month to keep, %s to receive, %s to send\n", m.Stored, unit, m.In, m.Out)
	}
	if c := d.Today; c != nil {
		fmt.Fprintf(w, "  today      this machine stored %s%s and %s%s; the next day begins at %s\n", size(c.UsedBytes), of(c.Bytes, size(c.Bytes)),
			plural(c.UsedBlocks, "block"), of(c.Blocks, fmt.Sprint(c.Blocks)), c.Resets.UTC().Format(time.RFC3339))
	}
}

// lasts says when something stops if nothing is paid.
func (d accountDoc) lasts() string {
	c := d.Money.Credit
	switch {
	case d.Blocks == 0 && c != nil && c.State != wire.CreditPaid:
		return "the account is not paid, and nothing is stored before it is"
	case c == nil, c.State == wire.CreditPaid && c.Days >= manyDays:
		return "no end is in sight"
	}
	return c.String()
}

// manyDays is how many days are as good as no end.
const manyDays = 100 * 365

// of says what of a limit was used; a limit of 0 is none.
func of(limit uint64, text string) string {
	if limit == 0 {
		return ""
	}
	return " of " + text
}
