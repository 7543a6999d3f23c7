package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"holdfast/client/restore"
)

func newExtract(g *globals) *cobra.Command {
	var dir string
	var opt restore.Options
	const form = "holdfast extract ARCHIVE --target DIR [PATH...]"
	cmd := &cobra.Command{
		Use:   "extract ARCHIVE --target DIR [PATH...] [--privileged]",
		Short: "Restore an archive, or some paths of it, into a directory",
		Long: `Extract restores ARCHIVE, which is SERIES for the latest, SERIES@TIME or the beginning of an id (see
list --json), into DIR, which is made if it is not there. With PATHs it restores only those and what is
below them. An extract that was interrupted goes on when the same command is run again.`,
		Args: args(cobra.MinimumNArgs(1), form),
		RunE: func(cmd *cobra.Command, a []string) error {
			if dir == "" {
				return usage("extract needs a directory to restore into; name it with --target")
			}
			m, err := g.machine()
			if err != nil {
				return err
			}
			opt.Paths, opt.Progress = a[1:], new(restore.Progress)
			bar := newBar(cmd.Context(), opt.Progress.Bytes.Load, opt.Progress.Entries.Load)
			defer bar.stop()
			c := g.dial(m, bar.say)
			defer c.Close()
			fresh := c.Fresh()
			v, err := restore.Open(cmd.Context(), m, c)
			if err != nil {
				return err
			}
			sayFresh(fresh)
			sayOldKey(m, v.History)
			found, err := restore.Find(m, v.History, a[0])
			if err != nil {
				return err
			}
			root, err := v.Root(cmd.Context(), found)
			if err != nil {
				return fmt.Errorf("%s: %w", a[0], err)
			}
			if len(opt.Paths) == 0 {
				bar.total(root.Bytes, root.Entries)
			}
			var first *restore.Problem // of the damaged ones
			opt.Problem = func(p restore.Problem) {
				bar.say(fmt.Sprintf("%s: not restored: %v", quote(p.Path), p.Err))
				if first == nil && restore.Damaged(p.Err) {
					first = &p
				}
			}
			began := time.Now()
			r, err := v.Extract(cmd.Context(), found, dir, opt)
			bar.stop()
			if restore.Damaged(err) {
				return fmt.Errorf("%s: %w", a[0], err)
			}
			if err != nil {
				return err
			}
			for _, w := range r.Warnings {
				warn(fmt.Sprintf("%s (paths: %d, the first: %s)", w.What, w.Count, w.First))
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%s\n  restored   %s with %s into %s\n", restore.Name(v.History, root.Series, found), plural(r.Entries-min(r.Problems, r.Entries), "path"), size(r.Bytes), dir)
			if r.Kept > 0 {
				fmt.Fprintf(out, "  kept       %s that were there already and are right\n", plural(r.Kept, "file"))
			}
			fmt.Fprintf(out, "  fetched    %s, %s sealed\n", plural(r.Blocks, "block"), size(r.Fetched))
			if r.Problems > 0 {
				fmt.Fprintf(out, "  %-9d  could not be restored\n", r.Problems)
			}
			fmt.Fprintf(out, "  took       %.1f s\n", time.Since(began).Seconds())
			if first != nil {
				return &codeError{exitDamaged, fmt.Errorf("%s of %s not restored, because the service's copy is damaged or gone (%s: %w); look for it in an older archive, and tell the service's operator",
					plural(r.Damaged, "path"), restore.Name(v.History, root.Series, found), quote(first.Path), first.Err)}
			}
			return exit(resultCode(r))
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "target", "", "`DIR` to restore into")
	f.BoolVar(&opt.Privileged, "privileged", false, "also restore set-id bits, devices, security and trusted attributes")
	return cmd
}

// resultCode returns the exit code of a run that came to its end.
func resultCode(r restore.Result) int {
	switch {
	case r.Damaged > 0:
		return exitDamaged
	case r.Problems > r.Unread:
		return exitFailed
	case r.Unread > 0:
		return exitUnread
	}
	return exitComplete
}
