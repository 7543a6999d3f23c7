package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/journal"
	"holdfast/service/scrub"
)

func scrubCommand() *cobra.Command {
	var dir string
	var now, asJSON bool
	c := &cobra.Command{
		Use:   "scrub --data DIR --now",
		Short: "Read what is stored and compare checksums, now",
		Long: `Read what is stored and compare checksums, while the service is running. The service does so by itself, all of
it in 14 days where the bucket is a directory and a sample elsewhere, unless config.toml says otherwise; with --now it
reads the rest of the cycle that is under way, or all of a new one, at once. It may be interrupted: the service goes on.

Blocks that are damaged are named in the log, and to their owner's next run, which sends them again if it still has
their content. Exit code 4 if anything is damaged still.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if err := atOnce(c, now, "--now"); err != nil {
				return err
			}
			var sum scrub.Report
			for {
				r, _, err := runJob[scrub.Report](c.Context(), dir, scrub.JobName)
				if err != nil {
					return err
				}
				if sum = sum.Plus(r); sum.Done || r.Stopped != "" {
					break
				}
			}
			st, err := admin.GetStatus(c.Context(), dir, false)
			if err != nil {
				return err
			}
			sum.Known = st.Damaged
			out := c.OutOrStdout()
			if asJSON {
				err = printJSON(out, sum)
			} else {
				_, err = fmt.Fprintf(out, "%s\n%d bytes read; damaged and not stored anew: %d blocks\n", sum.Found, sum.Read, sum.Known)
				if err == nil && sum.Stopped != "" {
					_, err = fmt.Fprintf(out, "not all of it: %s\n", sum.Stopped)
				}
			}
			if err == nil && (sum.Known > 0 || sum.Trailers > sum.Mended || sum.Missing > 0) {
				err = fmt.Errorf("%w: what the bucket holds; the log names it", journal.ErrDamaged)
			}
			return err
		},
	}
	jobFlags(c, &dir, &now, &asJSON)
	return c
}

func shadowCommand() *cobra.Command {
	var dir string
	var now, asJSON bool
	c := &cobra.Command{
		Use:   "shadow --data DIR --now",
		Short: "Make the view anew from the bucket, beside the other, and compare",
		Long: `Make the view anew from the bucket, beside the one that the running service works with, and compare the two. The
service does so by itself, once a day unless config.toml says otherwise. How long it took is how long a recovery without
a checkpoint takes at the least.

If they differ, nothing is deleted any more, and if a second comparison says so again, the service stops. Exit code 4 then.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if err := atOnce(c, now, "--now"); err != nil {
				return err
			}
			began := time.Now()
			var s scrub.ShadowState
			var ran admin.Ran
			for {
				var err error
				if s, ran, err = runJob[scrub.ShadowState](c.Context(), dir, scrub.ShadowName); err != nil {
					return err
				}
				if !ran.More || s.Differed > 0 {
					break
				}
			}
			out := c.OutOrStdout()
			var err error
			if asJSON {
				err = printJSON(out, s)
			} else {
				_, err = fmt.Fprintln(out, ran.Text)
			}
			switch {
			case err != nil:
			case s.Differed > 0:
				err = fmt.Errorf("%w: the view is not what the journal in the bucket says; nothing is deleted before you have looked, and the service compares once more", journal.ErrDamaged)
			case s.Equal.Ended.Before(began):
				err = fmt.Errorf("they were not compared: %s", ran.Text)
			}
			return err
		},
	}
	jobFlags(c, &dir, &now, &asJSON)
	return c
}

// damagedBlocks says how many blocks are damaged.
func damagedBlocks(n int) string {
	if n >= admin.MaxDamaged {
		return fmt.Sprintf("%d blocks or more are damaged", n)
	}
	return fmt.Sprintf("%d blocks are damaged", n)
}
