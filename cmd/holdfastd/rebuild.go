package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"holdfast/service/journal"
	"holdfast/service/quiet"
)

func rebuildCommand() *cobra.Command {
	var dir string
	var single bool
	c := &cobra.Command{
		Use:   "rebuild --data DIR",
		Short: "Make the view anew from the bucket, while the service is stopped",
		Args:  exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			d, err := openData(dir)
			if err != nil {
				return err
			}
			defer d.close()
			d.single = single
			rep, err := journal.Rebuild(c.Context(), d.config(quiet.New(os.Stderr, slog.LevelWarn)))
			if err != nil {
				return fmt.Errorf("rebuild the view: %w", err)
			}
			report(c.OutOrStdout(), "rebuilt  ", rep)
			return nil
		},
	}
	dataFlag(c, &dir)
	singleFlag(c, &single)
	return c
}
