package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"holdfast/service/journal"
	"holdfast/service/quiet"
)

func checkCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "check --data DIR",
		Short: "Compare the view with the bucket and every checksum, while the service is stopped",
		Long: `Compare the view with the bucket, add up the books of the ledger, and read every byte of every block to compare its
checksum, while the service is stopped. Exits with 4 if anything is wrong, and says what.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			d, err := openData(dir)
			if err != nil {
				return err
			}
			defer d.close()
			log := quiet.New(os.Stderr, slog.LevelWarn)
			rep, err := journal.Check(c.Context(), d.config(log), nil)
			for _, p := range rep.Problems {
				fmt.Fprintln(c.OutOrStdout(), p)
			}
			if err != nil {
				return fmt.Errorf("check: %w", err)
			}
			report(c.OutOrStdout(), "checked  ", rep)
			if rep.Older == 0 {
				fmt.Fprintf(c.OutOrStdout(), "blocks     %d, %d bytes, all as they were stored\n", rep.Blocks, rep.Bytes)
			} else {
				fmt.Fprintf(c.OutOrStdout(), "blocks     %d, %d bytes; %d of them are damaged, which does no harm: they were stored anew since, or freed\n", rep.Blocks, rep.Bytes, rep.Older)
			}
			if rep.Books > 0 {
				fmt.Fprintf(c.OutOrStdout(), "books      %d, which add up to zero\n", rep.Books)
			}
			if q := rep.Quarantine; q.Count > 0 {
				fmt.Fprintf(c.OutOrStdout(), "outside    %d objects, %d bytes, are not part of the journal; no harm is done\n", q.Count, q.Bytes)
				for _, o := range q.Objects {
					fmt.Fprintf(c.OutOrStdout(), "  %s  %d bytes: %s\n", o.Key, o.Size, o.Why)
				}
			}
			return nil
		},
	}
	dataFlag(c, &dir)
	return c
}
