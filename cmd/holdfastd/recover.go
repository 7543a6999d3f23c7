package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/never"
	"holdfast/service/bucket/open"
	"holdfast/service/bucket/steady"
	"holdfast/service/identity"
	"holdfast/service/journal"
	"holdfast/service/quiet"
	"holdfast/service/segment"
)

func recoverCommand() *cobra.Command {
	var file, dir string
	var single bool
	c := &cobra.Command{
		Use:   "recover --identity FILE --data NEWDIR",
		Short: "Bring a service back from its bucket and its identity file",
		Long: `Bring a service back from its bucket and its identity file, in a new data directory on any machine.

The new directory takes the service over: a process that still runs on an old one stops for good, without
losing anything that it acknowledged.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "identity", "data"); err != nil {
				return err
			}
			return runRecover(c.Context(), c.OutOrStdout(), file, dir, single)
		},
	}
	c.Flags().StringVar(&file, "identity", "", "`FILE` with the service's identity")
	dataFlag(c, &dir)
	singleFlag(c, &single)
	return c
}

// runRecover claims the cell for the new directory and rebuilds the view from the bucket. The identity
// file is written last, so that a directory that was not finished holds no service and the command can
// be repeated.
func runRecover(ctx context.Context, out io.Writer, file, dir string, single bool) error {
	id, err := identity.Load(file)
	if err != nil {
		return err
	}
	if err := vacant(dir); err != nil {
		return err
	}
	b, err := open.Bucket(id.Bucket)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	l, err := lock(dir)
	if err != nil {
		return err
	}
	defer l.Close()
	host, err := createHost(dir)
	if err != nil {
		return err
	}
	if _, err := never.Install(dir); err != nil {
		return err
	}
	log := quiet.New(os.Stderr, slog.LevelWarn)
	cfg := journal.Config{
		Bucket: steady.New(b, steady.Config{Log: log}), Cell: id.Cell, Host: host, Takeover: true, Probe: true,
		Dir: filepath.Join(dir, viewDir), LogKey: id.LogKey(),
		Log: log, SingleOwner: single,
	}
	rep, err := journal.Recover(ctx, cfg)
	if err != nil {
		return fmt.Errorf("rebuild the view from %s: %w", id.Bucket, err)
	}
	if err := id.Create(filepath.Join(dir, identity.FileName)); err != nil {
		return err
	}
	report(out, "recovered", rep)
	return nil
}

// report prints what rebuild, recover or check found.
func report(out io.Writer, done string, r journal.Report) {
	fmt.Fprintf(out, "%s  %d segments, %d records in %v\n", done, r.Segments, r.Records, r.Duration.Round(time.Millisecond))
	if r.Checkpoint != (segment.Position{}) {
		fmt.Fprintf(out, "after      the checkpoint at %s\n", r.Checkpoint)
	}
	fmt.Fprintf(out, "position   %s\ndigest     %x\n", r.Position, r.Digest)
}
