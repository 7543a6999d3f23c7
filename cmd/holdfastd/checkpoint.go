package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/config"
	"holdfast/service/jobs"
	"holdfast/service/journal"
	"holdfast/service/segment"
)

const checkpointJob = "checkpoint"

// checkpointReport is what the job says to whoever asked for it.
type checkpointReport struct {
	Position string  `json:"position"`
	Digest   string  `json:"digest"`
	Object   string  `json:"object"`
	Rows     uint64  `json:"rows"`
	Bytes    int64   `json:"bytes"`
	Parts    int     `json:"parts"`
	Removed  int     `json:"removed"` // objects
	Untidy   string  `json:"untidy,omitempty"`
	Seconds  float64 `json:"seconds"`
}

// checkpoints returns the job that makes checkpoints: by itself, when enough was appended since the newest.
func checkpoints(j *journal.Journal, set config.Checkpoint) jobs.Job {
	return jobs.Job{Name: checkpointJob, Every: set.Every.Duration, Rests: true, Run: func(ctx context.Context, t *jobs.Turn) (jobs.Result, error) {
		since, at, err := j.SinceCheckpoint(ctx)
		if err != nil {
			return jobs.Result{}, err
		}
		if !t.Asked && since < set.Segments {
			last := "there is none"
			if at != (segment.Position{}) {
				last = "the newest is at " + at.String()
			}
			return jobs.Result{Text: fmt.Sprintf("%d segments were added since, which is not enough for a checkpoint; %s", since, last)}, nil
		}
		r, err := j.Checkpoint(ctx)
		if err != nil {
			return jobs.Result{}, err
		}
		t.Did(1)
		rep := checkpointReport{
			Position: r.Position.String(), Digest: fmt.Sprintf("%x", r.Digest), Object: r.Object, Rows: r.Rows, Bytes: r.Bytes, Parts: r.Parts,
			Removed: r.Removed, Seconds: r.Duration.Seconds(),
		}
		text := fmt.Sprintf("at %s: %d rows, %d bytes; removed %d objects", r.Position, r.Rows, r.Bytes, r.Removed)
		if r.Untidy != nil {
			rep.Untidy = r.Untidy.Error()
			text += "; older ones were not all removed: " + rep.Untidy
		}
		return jobs.Result{Text: text, Report: rep}, nil
	}}
}

func checkpointCommand() *cobra.Command {
	var dir string
	var now, asJSON bool
	c := &cobra.Command{
		Use:   "checkpoint --data DIR --now",
		Short: "Write the view into the bucket, so that a start is quick, now",
		Long: `Write the view into the bucket, so that a start is quick, while the service is running. The service does so by
itself, once a day if enough was added unless config.toml says otherwise; with --now it does so at once, and a breaker
that has stopped the job is closed.

A checkpoint is read back and compared with the view before it counts. Then all but the two newest are removed. Nothing
is lost without one: a start reads everything that it needs from the segments, which takes longer. It may be
interrupted at any time.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if err := atOnce(c, now, "--now"); err != nil {
				return err
			}
			r, _, err := runJob[checkpointReport](c.Context(), dir, checkpointJob)
			if err != nil {
				return err
			}
			out := c.OutOrStdout()
			if asJSON {
				return printJSON(out, r)
			}
			fmt.Fprintf(out, "checkpoint  %d rows, %d bytes in %v\nposition    %s\ndigest      %s\n",
				r.Rows, r.Bytes, time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond), r.Position, r.Digest)
			if r.Untidy != "" {
				fmt.Fprintf(out, "older ones were not all removed, which the next run does: %s\n", r.Untidy)
			}
			return nil
		},
	}
	jobFlags(c, &dir, &now, &asJSON)
	return c
}
