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
		Long: `Extract restores ARCHIVE, which is SERIES for the latest or SERIES@TIME, into DIR, which is made if it
is not there. With PATHs it restores only those and what is below them. An extract that was interrupted
goes on when the same command is run again.`,
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
			found, err := restore.Find(m, v.History, a[0])
			if err != nil {
				return err
			}
			root, err := v.Root(cmd.Context(), found)
			if err != nil {
				return err
			}
			if len(opt.Paths) == 0 {
				bar.total(root.Bytes, root.Entries)
			}
			opt.Problem = func(p restore.Problem) { bar.say(fmt.Sprintf("%s: not restored: %v", quote(p.Path), p.Err)) }
			began := time.Now()
			r, err := v.Extract(cmd.Context(), found, dir, opt)
			bar.stop()
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
