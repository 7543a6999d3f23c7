package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/service/account"
	"holdfast/service/admin"
)

func accountCommand() *cobra.Command {
	c := &cobra.Command{Use: "account", Short: "Make accounts and tokens", RunE: group}
	c.AddCommand(
		tokenCommand("add NAME --data DIR", "Make an account and print a token for it", admin.AddAccount),
		tokenCommand("token NAME --data DIR", "Print a further token for an account", admin.NewToken),
	)
	return c
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
