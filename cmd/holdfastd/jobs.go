package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/config"
	"holdfast/service/jobs"
	"holdfast/service/journal"
	"holdfast/service/reclaim"
	"holdfast/service/room"
	"holdfast/service/scrub"
	"holdfast/service/serve"
)

// jobs returns what runs the background jobs, and what one of them is to do.
func (d *data) jobs(set config.Config, j *journal.Journal, srv *serve.Server, space *room.Watch, log *slog.Logger) (*jobs.Runner, reclaim.Config) {
	freeing := reclaim.Config{
		Journal: j, Log: log, Share: share(set.Reclaim.Share), Deletes: set.Reclaim.DeletesPerHour, Copy: uint64(set.Reclaim.CopyPerHour),
		EndIdle: srv.EndIdle, Free: func() (uint64, bool) { return freeBytes(space, bucketDisk) }, Spending: new(reclaim.Spending),
	}
	full := func() string {
		if level, _, worst := space.State(); level >= room.Pause {
			return worst.String()
		}
		return ""
	}
	// What is read of a directory costs nothing but time.
	local := strings.HasPrefix(d.id.Bucket, "file:")
	reading := scrub.Config{Journal: j, Log: log, Cycle: set.Scrub.Cycle.Duration, Sample: set.Scrub.Sample, Budget: uint64(set.Scrub.BytesPerMonth)}
	shadow := scrub.ShadowConfig{
		Journal: j, Log: log, View: filepath.Join(d.dir, viewDir), Dir: filepath.Join(d.dir, scrub.DirName), Budget: uint64(set.Shadow.BytesPerMonth),
		Full: full, Free: func() (uint64, bool) { return freeBytes(space, dataDisk) },
	}
	if !local && reading.Sample == 0 {
		reading.Sample = scrub.RemoteSample
	}
	if !local && shadow.Budget == 0 {
		shadow.Budget = scrub.RemoteBudget
	}
	return jobs.New(jobs.Config{
		Path: filepath.Join(d.dir, jobs.FileName), Log: log,
		Full: full,
		Jobs: []jobs.Job{
			reclaim.Job(freeing, set.Reclaim.Every.Duration),
			checkpoints(j, set.Checkpoint),
			scrub.Job(reading, set.Scrub.Every.Duration),
			scrub.ShadowJob(shadow, set.Shadow.Every.Duration),
		},
	}), freeing
}

// jobFlags gives a command that runs a job its flags.
func jobFlags(c *cobra.Command, dir *string, now, asJSON *bool) {
	dataFlag(c, dir)
	c.Flags().BoolVar(now, "now", false, "do it at once")
	c.Flags().BoolVar(asJSON, "json", false, "for programs")
}

// atOnce refuses to run a job unless that was said, by one of the flags.
func atOnce(c *cobra.Command, now bool, flags string) error {
	if !now {
		return usageError{fmt.Errorf("say %s; the service does it by itself otherwise, see %s --help", flags, c.CommandPath())}
	}
	return nil
}

// runJob has the running service give a job a turn, and returns the report, which is an R.
func runJob[R any](ctx context.Context, dir, name string) (r R, ran admin.Ran, err error) {
	if ran, err = admin.RunJob(ctx, dir, name); err != nil {
		return r, ran, err
	}
	if err = json.Unmarshal(ran.Report, &r); err != nil {
		err = fmt.Errorf("read the service's answer: %w", err)
	}
	return r, ran, err
}

// share returns the percentage of the configuration as package reclaim wants it.
func share(percent int) int {
	if percent == 0 {
		return -1
	}
	return percent
}

// freeBytes returns how much room there is on a disk; there is no limit on what is on none.
func freeBytes(space *room.Watch, disk string) (free uint64, limited bool) {
	for _, f := range space.Fills() {
		if f.What == disk && f.Unit == "bytes" {
			return uint64(max(0, f.Size-f.Used)), true
		}
	}
	return 0, false
}

// waiting says what is freed and what of that is still in the bucket.
func waiting(st admin.Status) string {
	w, more, next := st.Retired, "", ""
	if w.More {
		more = " or more"
	}
	if !w.Next.IsZero() {
		next = ", the first after " + w.Next.Format(time.RFC3339)
	}
	return fmt.Sprintf("%d segments%s, %d bytes, wait to be deleted%s; %d are deleted", w.Count, more, w.Bytes, next, st.Removed)
}

// printJob writes how a background job is.
func printJob(out io.Writer, b jobs.Status) error {
	at := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	last := "it has not run yet"
	switch {
	case b.Running:
		last = "it runs since " + at(b.Began)
	case b.Error != "":
		last = fmt.Sprintf("FAILED at %s: %s", at(b.Ended), b.Error)
	case b.Turns > 0:
		last = fmt.Sprintf("%s: %s", at(b.Ended), cmp.Or(b.Text, "done"))
	}
	next := "by hand only"
	switch {
	case !b.Breaker.IsZero():
		next = fmt.Sprintf("NOT BEFORE %s, because it failed %d times in a row without getting anything done; run it by hand when the cause is mended", at(b.Breaker), b.Failures)
	case b.Rests != "":
		next = "when there is room: " + b.Rests
	case !b.Next.IsZero():
		next = at(b.Next)
	}
	_, err := fmt.Fprintf(out, "job       %s: %s\n          next: %s\n", b.Name, last, next)
	if err == nil && b.Used > 0 {
		_, err = fmt.Fprintf(out, "          used this month: %d bytes\n", b.Used)
	}
	return err
}
