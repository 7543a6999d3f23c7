package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/service/account"
	"holdfast/service/admin"
)

func accountCommand() *cobra.Command {
	c := &cobra.Command{Use: "account", Short: "Make accounts and tokens, say what accounts use, and book what is paid", RunE: group}
	c.AddCommand(
		tokenCommand("add NAME --data DIR", "Make an account and print a token for it", admin.AddAccount),
		accountList(),
		tokenCommand("token NAME --data DIR", "Print a further token for an account", admin.NewToken),
		accountShow(), accountPay(), accountRefund(), accountWarnings(),
	)
	return c
}

func accountList() *cobra.Command {
	var dir string
	var asJSON bool
	c := &cobra.Command{
		Use:   "list --data DIR",
		Short: "Say of each account what it stores, and how many blocks its machines asked about",
		Long: `Say of each account what it stores, what that counts as (each block as 4,096 bytes at least), and how many
blocks its machines asked about before uploading; where use is charged also its balance, and how it stands. The service must
be running.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			all, err := admin.GetAccounts(c.Context(), dir)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if asJSON {
				return printJSON(out, append([]admin.Account{}, all...))
			}
			for _, a := range all {
				_, err = fmt.Fprintf(out, "%s\n  %s\n", a.Name, used(a))
				if m := a.Money; err == nil && m != nil {
					_, err = fmt.Fprintf(out, "  %s %s; %s\n", m.Balance, m.Currency, m.Words)
				}
				if err != nil {
					return fmt.Errorf("write list: %w", err)
				}
			}
			return nil
		},
	}
	dataFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

// used says what an account stores.
func used(a admin.Account) string {
	return fmt.Sprintf("%d blocks, %d bytes, billed as %d; asked about %d", a.Blocks, a.StoredBytes, a.BilledBytes, a.Asked)
}

func tokenCommand(use, short string, ask func(ctx context.Context, dir, name string) (string, error)) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   use,
		Short: short,
		Long:  short + ". The service must be running. A token can be redeemed once, within 24 hours.",
		Args:  exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if err := account.CheckName(args[0]); err != nil {
				return usageError{err}
			}
			token, err := ask(c.Context(), dir, args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), token)
			return err
		},
	}
	dataFlag(c, &dir)
	return c
}
