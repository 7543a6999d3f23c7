package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"holdfast/client/archive"
	"holdfast/client/restore"
	"holdfast/client/seal"
	"holdfast/history"
)

func newVerify(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "verify [ARCHIVE]",
		Short: "Read back and check everything, restoring nothing",
		Long: `Verify reads everything that ARCHIVE holds, or every archive of the vault, opens it and checks it. It
needs as much traffic as restoring, and no space.`,
		Args: args(cobra.MaximumNArgs(1), "holdfast verify [ARCHIVE]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			m, err := g.machine()
			if err != nil {
				return err
			}
			opt := restore.Options{Progress: new(restore.Progress)}
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
			archives := v.History.Archives
			if len(a) == 0 && len(archives) == 0 {
				warn("the vault holds no archives; `holdfast create` makes one")
				return nil
			}
			if len(a) == 1 {
				found, err := restore.Find(m, v.History, a[0])
				if err != nil {
					return err
				}
				archives = []history.Archive{found}
			}
			var first error // of what is damaged
			opt.Problem = func(p restore.Problem) {
				if restore.Damaged(p.Err) {
					first = worse(first, fmt.Errorf("%s: %w", quote(p.Path), p.Err))
					bar.say(fmt.Sprintf("%s: %s%v", quote(p.Path), damagedMark(p.Err), p.Err))
				}
			}
			began := time.Now()
			var sum restore.Result
			damaged := 0
			all, err := v.Verify(cmd.Context(), archives, opt, func(_ history.Archive, r *archive.Root) { bar.more(r.Bytes, r.Entries) })
			for _, x := range all {
				if x.Err != nil {
					first = worse(first, x.Err)
					bar.say(fmt.Sprintf("archive %.16s of %s: %s%v", x.Archive.ID, time.Unix(0, x.Archive.Time).UTC().Format(time.RFC3339), damagedMark(x.Err), x.Err))
				}
				if x.Err != nil || x.Result.Damaged > 0 {
					damaged++
				}
				sum = sum.Plus(x.Result)
			}
			bar.stop()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "verified %s\n  checked    %s with %s\n  fetched    %s, %s sealed\n  took       %.1f s\n", plural(uint64(len(archives)), "archive"),
				plural(sum.Entries, "path"), size(sum.Bytes), plural(sum.Blocks, "block"), size(sum.Fetched), time.Since(began).Seconds())
			if sum.Unread > 0 {
				fmt.Fprintf(out, "  %-9d  could not be read when the archives were made\n", sum.Unread)
			}
			if errors.Is(first, seal.ErrOldKey) {
				return fmt.Errorf("%s of %d cannot be checked: %w", plural(uint64(damaged), "archive"), len(archives), first)
			}
			if damaged > 0 {
				return &codeError{exitDamaged, fmt.Errorf("%s of %d damaged (%w): what is named above cannot be restored from there; look for it in other archives, and tell the service's operator", plural(uint64(damaged), "archive"), len(archives), first)}
			}
			fmt.Fprintln(out, "  everything is there and right")
			return nil
		},
	}
}

// worse returns which of two reasons counts for the exit code: damage rather than a key file that is out of
// date, then the first.
func worse(first, err error) error {
	if first == nil || errors.Is(first, seal.ErrOldKey) && !errors.Is(err, seal.ErrOldKey) {
		return err
	}
	return first
}

func damagedMark(err error) string {
	if errors.Is(err, seal.ErrOldKey) {
		return ""
	}
	return "damaged: "
}
