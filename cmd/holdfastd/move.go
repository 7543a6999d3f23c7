package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/bucket"
	"holdfast/service/bucket/open"
	"holdfast/service/bucket/steady"
	"holdfast/service/identity"
	"holdfast/service/journal"
	"holdfast/service/move"
	"holdfast/service/segment"
)

func moveCommand() *cobra.Command {
	var dir, bucketURL string
	var single bool
	c := &cobra.Command{
		Use:   "move --data DIR --bucket URL",
		Short: "Copy everything to another bucket and use that, while the service is stopped",
		Long: `Copy everything to another bucket and use that from then on, while the service is stopped. URL is that of a directory or
of a bucket on S3, as for init.

Every block is checked on its way. What is in the new bucket already is not copied again, so a move that was cut short goes on, and
other tools may have copied the objects below the cell's name with /log/ in it before. The object that makes the new bucket
a journal is written last, then the identity file is changed: before that nothing has happened to the service. Nothing is
deleted from the old bucket.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data", "bucket"); err != nil {
				return err
			}
			if err := open.Check(bucketURL); err != nil {
				return usageError{err}
			}
			return runMove(c.Context(), c.OutOrStdout(), dir, bucketURL, single)
		},
	}
	dataFlag(c, &dir)
	singleFlag(c, &single)
	c.Flags().StringVar(&bucketURL, "bucket", "", "`URL` of where the data will lie")
	return c
}

// runMove copies the cell, then changes the identity. A crash between leaves two whole buckets, of which the identity still
// names the old one.
func runMove(ctx context.Context, out io.Writer, dir, bucketURL string, single bool) error {
	d, err := openData(dir)
	if err != nil {
		return err
	}
	defer d.close()
	old := d.id.Bucket
	if bucketURL == old {
		return usageError{fmt.Errorf("the service uses that bucket already")}
	}
	next := *d.id
	next.Bucket = bucketURL
	if _, err := identity.Parse(next.Encode()); err != nil {
		return usageError{err}
	}
	b, err := open.Create(bucketURL)
	if err != nil {
		return err
	}
	var to bucket.Bucket = steady.New(b, steady.Config{})
	probe := bucket.Probe
	if single {
		probe = bucket.ProbeAlone
	}
	if err := probe(ctx, to, segment.CellPrefix(d.id.Cell)); err != nil {
		return fmt.Errorf("try the new bucket: %w", err)
	}
	if single {
		to = bucket.Alone(to)
	}
	from := steady.New(d.bucket, steady.Config{History: d.history})
	var said time.Time
	r, err := move.Cell(ctx, from, to, d.id.Cell, d.host, func(done, all int) {
		if time.Since(said) >= 10*time.Second || done == all {
			said = time.Now()
			fmt.Fprintf(os.Stderr, "holdfastd: %d of %d objects are in the new bucket\n", done, all)
		}
	})
	if errors.Is(err, move.ErrDamaged) {
		err = fmt.Errorf("%w: %w", journal.ErrDamaged, err)
	}
	if err != nil {
		return fmt.Errorf("move to %s: %w", bucketURL, err)
	}
	path := filepath.Join(dir, identity.FileName)
	if err := next.Replace(path); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, `moved      %d segments and bundles, of which %d were there; %d bytes copied
from       %s
to         %s
Replace the copy of %s that you keep elsewhere: the old one leads to the old bucket.
Run holdfastd check, start the service, and delete the old bucket when you are sure: never serve from both.
`, r.Objects, r.There, r.Bytes, old, bucketURL, path)
	return err
}
