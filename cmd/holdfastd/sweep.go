package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
)

func sweepCommand() *cobra.Command {
	var dir string
	var dry, asJSON bool
	c := &cobra.Command{
		Use:   "sweep --data DIR",
		Short: "Delete segments that never became part of the journal",
		Long: `Delete segments that never became part of the journal, while the service is running. They are what an owner
wrote that was replaced or crashed, and what landed too late: nobody was told that any of it is kept, and it does
no harm. Other objects that do not belong in the bucket are listed and left alone. At most 1000 objects at a time.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			ask, done := admin.Sweep, "deleted"
			if dry {
				ask, done = admin.GetQuarantine, "outside"
			}
			q, err := ask(c.Context(), dir)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if asJSON {
				return printJSON(out, q)
			}
			for _, o := range q.Objects {
				left := ""
				if !o.Sweep {
					left = "; it is left alone"
				}
				fmt.Fprintf(out, "%s  %d bytes: %s%s\n", o.Key, o.Size, o.Why, left)
			}
			_, err = fmt.Fprintf(out, "%s  %d objects, %d bytes\n", done, q.Count, q.Bytes)
			return err
		},
	}
	dataFlag(c, &dir)
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only list what is there")
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}
