package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/wire"
)

func statusCommand() *cobra.Command {
	var dir string
	var asJSON, digest bool
	c := &cobra.Command{
		Use:   "status --data DIR",
		Short: "Say how the service is; exit 0 when it is serving",
		Args:  exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			st, err := admin.GetStatus(c.Context(), dir, digest)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if asJSON {
				err = printJSON(out, st)
			} else {
				_, err = fmt.Fprintf(out, "%s at %s since %s\ncell      %s\nbucket    %s\njournal   %s, %d segments\nblocks    %d, %d bytes\nsessions  %d\n",
					st.State, st.Address, st.Started.Format(time.RFC3339), st.Cell, st.Bucket, st.Position, st.Segments, st.Blocks, st.Bytes, st.Sessions)
				if n := st.Refused[wire.CodeBusy]; err == nil && n > 0 {
					_, err = fmt.Fprintf(out, "busy      %d requests were told to come again later\n", n)
				}
				if err == nil && st.Outside > 0 {
					_, err = fmt.Fprintf(out, "outside   %d objects, %d bytes, are not part of the journal; see holdfastd sweep\n", st.Outside, st.OutsideBytes)
				}
				if err == nil && st.SingleOwner != "" {
					_, err = fmt.Fprintf(out, "WARNING   runs with --single-owner: a second process that claims this cell is not kept away: %s\n", st.SingleOwner)
				}
				for _, f := range st.Room {
					if err == nil {
						_, err = fmt.Fprintf(out, "room      %s\n", f.Fill)
					}
				}
				for _, f := range st.Forecasts {
					if err == nil {
						_, err = fmt.Fprintf(out, "FULL SOON %s\n", f.Text(time.Now()))
					}
				}
				if err == nil && st.ReadOnly != "" {
					_, err = fmt.Fprintf(out, "READ-ONLY %s\n", st.ReadOnly)
				}
				if t := st.Trouble; err == nil && t != nil {
					_, err = fmt.Fprintf(out, "TROUBLE   nothing can be stored since %s: %s; the service goes on trying\n", t.Since.Format(time.RFC3339), t.Cause)
				}
				for _, f := range st.Frozen {
					if err == nil {
						_, err = fmt.Fprintf(out, "FROZEN    nothing is deleted since %s (%s): %s; see holdfastd thaw\n", f.Since.Format(time.RFC3339), f.Reason, f.Found)
					}
					if err == nil && f.Observed != "" {
						_, err = fmt.Fprintf(out, "          looked again: %s\n", f.Observed)
					}
				}
				for _, f := range st.Ended {
					if err == nil {
						_, err = fmt.Fprintf(out, "thawed    deleting was frozen from %s to %s (%s): %s; %s\n", f.Since.Format(time.RFC3339), f.Until.Format(time.RFC3339), f.Reason, f.Found, f.Why)
					}
				}
				if err == nil && (st.Retired.Count > 0 || st.Removed > 0) {
					_, err = fmt.Fprintf(out, "freed     %s\n", waiting(st))
				}
				if err == nil && st.Damaged > 0 {
					_, err = fmt.Fprintf(out, "DAMAGED   %s in the bucket; their owners' next runs are told to send them again\n", damagedBlocks(st.Damaged))
				}
				if w := st.Warnings; err == nil && w != nil {
					_, err = fmt.Fprintf(out, "UNTOLD    %s not told that their accounts are not paid, the first since %s; see holdfastd account warnings\n", untold(w.Count), w.Since.Format(time.RFC3339))
				}
				for _, b := range st.Jobs {
					if err == nil {
						err = printJob(out, b)
					}
				}
				if err == nil && digest {
					_, err = fmt.Fprintf(out, "digest    %s\n", st.Digest)
				}
			}
			if err == nil && st.State != wire.StateServing {
				err = fmt.Errorf("the service is not serving, but %s", st.State)
			}
			return err
		},
	}
	dataFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	c.Flags().BoolVar(&digest, "digest", false, "also compute the digest of the view, which reads all of it")
	return c
}
