package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/restore"
	"holdfast/history"
)

// decisionDoc says of one archive whether it stays, in JSON.
type decisionDoc struct {
	Archive string    `json:"archive"` // SERIES@TIME
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Keep    bool      `json:"keep"`
	Why     []string  `json:"why"`
}

func newPrune(g *globals) *cobra.Command {
	var owner ownerFlag
	var keep keepFlags
	var dry, asJSON bool
	cmd := &cobra.Command{
		Use:   "prune SERIES --keep-... [--dry-run] [--json] [--owner FILE|-]",
		Short: "Delete the archives of a series that no rule keeps",
		Long: `Prune deletes those archives of SERIES that no rule keeps, as ` + "`holdfast delete`" + ` does: they can be brought
back for some days. With --dry-run it only says of each archive whether and why it stays.

The rules count the service's times, in UTC. Partial archives stay while no complete one is newer.`,
		Args: args(cobra.ExactArgs(1), "holdfast prune SERIES --keep-... [--dry-run] [--json] [--owner FILE|-]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			m, c, err := g.connect(warn)
			if err != nil {
				return err
			}
			defer c.Close()
			p, err := keep.read(m.Series(a[0]))
			if err != nil {
				return err
			}
			if p.None() {
				return usage("prune needs at least one rule, like --keep-last 7 or --keep-daily 30")
			}
			h, err := c.History(cmd.Context())
			if err != nil {
				return err
			}
			archives := h.OfSeries(p.Series)
			if len(archives) == 0 {
				return fmt.Errorf("there is no archive of series %q; `holdfast list` shows the names", a[0])
			}
			docs := []decisionDoc{}
			var drop []holdfast.RecordID
			for i, d := range history.Keep(p, archives) {
				if archives[i].State != history.Live {
					continue
				}
				docs = append(docs, decisionDoc{restore.Name(h, a[0], archives[i]), d.ID.String(), time.Unix(0, archives[i].Time).UTC(), d.Keep, d.Why})
				if !d.Keep {
					drop = append(drop, d.ID)
				}
			}
			out := cmd.OutOrStdout()
			if asJSON {
				if err := writeDoc(out, docs); err != nil {
					return err
				}
			} else if dry {
				for _, d := range docs {
					verb := "goes"
					if d.Keep {
						verb = "stays"
					}
					fmt.Fprintf(out, "%-40s  %-5s  %s\n", oneLine(d.Archive), verb, strings.Join(d.Why, "; "))
				}
			}
			if dry {
				return nil
			}
			ids := history.SortIDs(drop)
			if len(ids) == 0 {
				if !asJSON {
					fmt.Fprintln(out, "the rules keep every archive")
				}
				return nil
			}
			after, err := owner.submit(cmd, g, m, c, history.TypeDelete, batches(ids)...)
			if err != nil {
				return err
			}
			if !asJSON {
				sayChange(cmd, after, history.TypeDelete, ids)
			}
			return nil
		},
	}
	keep.add(cmd)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "delete nothing, say what would be deleted and why")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	owner.add(cmd, ownerInstead)
	return cmd
}
