package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
)

func creditCommand() *cobra.Command {
	var dir, incident string
	var now, dry, asJSON bool
	var hours int
	c := &cobra.Command{
		Use:   "credit --incident ID --hours N --data DIR {--now | --dry-run}",
		Short: "Credit all accounts for an outage",
		Long: `Credit every account for an outage: for each hour of it that had begun, one day of what keeping all that it stores now
costs. Each account is credited once for an incident, however often this is run and whatever interrupts it: ID names the
incident, up to 40 printable characters without spaces. With --dry-run it says what it would come to, and changes
nothing. The service must be running.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data", "incident"); err != nil {
				return err
			}
			if hours < 1 {
				return usageError{fmt.Errorf("--hours is missing, or below 1; see %s --help", c.CommandPath())}
			}
			if !now && !dry {
				return usageError{errors.New("say --now, or --dry-run to see what it would come to")}
			}
			r, err := admin.Credit(c.Context(), dir, incident, hours, dry)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if asJSON {
				return printJSON(out, r)
			}
			_, err = fmt.Fprintf(out, "credits   %d accounts, %s together; %d of them had theirs already\n", r.Accounts, in(r.Sum, r.Currency), r.Known)
			return err
		},
	}
	jobFlags(c, &dir, &now, &asJSON)
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what it would come to, with or without --now")
	c.Flags().StringVar(&incident, "incident", "", "`ID` of the outage: each account is credited once for it")
	c.Flags().IntVar(&hours, "hours", 0, "so many hours, `N`, had begun")
	return c
}
