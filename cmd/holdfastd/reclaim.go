package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/reclaim"
)

func reclaimCommand() *cobra.Command {
	var dir string
	var now, dry, asJSON bool
	c := &cobra.Command{
		Use:   "reclaim --data DIR {--now | --dry-run}",
		Short: "Free what nothing needs any more, now",
		Long: `Free what nothing needs any more, while the service is running. The service does so by itself, once an hour
unless config.toml says otherwise; with --now it does so at once, and a breaker that has stopped the job is closed.

Blocks that no archive needs and that no running backup may rely on are condemned; segments that are mostly dead are
cleaned, which copies what is live in them to others; segments without live blocks are retired, and deleted after
seven days. Nothing is freed while deleting is frozen. With --dry-run it says what it would do, and changes nothing. It
may be interrupted at any time: the service ends what it has begun, and goes on when it is due.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if dry {
				r, err := admin.PlanReclaim(c.Context(), dir)
				if err != nil {
					return err
				}
				return printReclaim(c, r, asJSON)
			}
			if err := atOnce(c, now, "--now or --dry-run"); err != nil {
				return err
			}
			var sum reclaim.Report
			for more := true; more; more = sum.More {
				r, _, err := runJob[reclaim.Report](c.Context(), dir, reclaim.JobName)
				if err != nil {
					return err
				}
				sum = sum.Plus(r)
			}
			return printReclaim(c, sum, asJSON)
		},
	}
	jobFlags(c, &dir, &now, &asJSON)
	c.Flags().BoolVarP(&dry, "dry-run", "n", false, "only say what there is to be done, with or without --now")
	return c
}

func printReclaim(c *cobra.Command, r reclaim.Report, asJSON bool) error {
	out := c.OutOrStdout()
	if asJSON {
		return printJSON(out, r)
	}
	lines := []struct {
		what, of string
		a        reclaim.Amount
	}{
		{"condemned", "blocks", r.Condemned},
		{"cleaned", "segments, of which was copied", r.Cleaned},
		{"merged", "small segments, of which was copied", r.Merged},
		{"retired", "segments", r.Retired},
		{"deleted", "segments", r.Removed},
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(out, "%-10s%d %s, %d bytes\n", l.what, l.a.Count, l.of, l.a.Bytes); err != nil {
			return err
		}
	}
	if r.Late.Count > 0 {
		if _, err := fmt.Fprintf(out, "late      %d objects of deleted segments had landed again and were deleted, %d bytes\n", r.Late.Count, r.Late.Bytes); err != nil {
			return err
		}
	}
	if r.Held > 0 {
		if _, err := fmt.Fprintf(out, "held      %d blocks, because a backup that is under way may rely on them\n", r.Held); err != nil {
			return err
		}
	}
	for _, l := range r.Left {
		if _, err := fmt.Fprintf(out, "left      %s\n", l); err != nil {
			return err
		}
	}
	return nil
}
