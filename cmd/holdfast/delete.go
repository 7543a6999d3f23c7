package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/wire"
)

func newDelete(g *globals) *cobra.Command {
	var owner ownerFlag
	cmd := &cobra.Command{
		Use:   "delete SERIES@TIME... [--owner FILE|-]",
		Short: "Delete archives; they can be brought back for some days",
		Long: `Delete marks archives as deleted. Until the time that it says, they can be read as before, and
` + "`holdfast undelete`" + ` brings them back; then the service removes them for good.

A machine may not delete the last complete archive of a series, nor more than half of a series; the owner may.`,
		Args: args(cobra.MinimumNArgs(1), "holdfast delete SERIES@TIME... [--owner FILE|-]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			return change(cmd, g, &owner, a, history.TypeDelete, history.Live)
		},
	}
	owner.add(cmd, ownerInstead)
	return cmd
}

func newUndelete(g *globals) *cobra.Command {
	var owner ownerFlag
	cmd := &cobra.Command{
		Use:   "undelete SERIES@TIME... [--owner FILE|-]",
		Short: "Bring deleted archives back",
		Long: `Undelete brings archives back that were deleted, expired or lapsed and that are not removed for good yet, as
` + "`holdfast list`" + ` shows. No policy expires those again that were deleted or expired. What lapsed because the account had
no credit comes back only when that is paid, and then policies go on to apply to it.`,
		Args: args(cobra.MinimumNArgs(1), "holdfast undelete SERIES@TIME... [--owner FILE|-]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			return change(cmd, g, &owner, a, history.TypeUndelete, history.Deleted, history.Expired, history.Lapsed)
		},
	}
	owner.add(cmd, ownerInstead)
	return cmd
}

// change has a record of type t made of the archives that specs name, which must be in one of the states.
func change(cmd *cobra.Command, g *globals, owner *ownerFlag, specs []string, t history.Type, states ...history.State) error {
	m, c, h, err := g.visit(cmd.Context())
	if err != nil {
		return err
	}
	defer c.Close()
	ids, err := pick(m, h, specs, states...)
	if err != nil {
		return err
	}
	if a, ok := lapsed(h, ids); ok && h.Overdue(time.Now().UnixNano()) { // for which the owner need not type words
		return &wire.Error{Code: wire.CodeOutOfCredit, Message: fmt.Sprintf("Archive %.16s lapsed and cannot be brought back before the account is paid; it is gone for good after %s.", a.ID, until(h, a).Format(time.RFC3339))}
	}
	after, err := owner.submit(cmd, g, m, c, t, batches(ids)...)
	if err != nil {
		return err
	}
	sayChange(cmd, after, t, ids)
	return nil
}

// lapsed returns the first of those archives that lapsed.
func lapsed(h *history.Vault, ids history.IDs) (history.Archive, bool) {
	for _, id := range ids {
		if a, ok := h.Find(id); ok && a.State == history.Lapsed {
			return a, true
		}
	}
	return history.Archive{}, false
}

// pick returns the archives that specs name, each as SERIES@TIME: what is deleted is named exactly.
func pick(m *keyring.Machine, h *history.Vault, specs []string, states ...history.State) (history.IDs, error) {
	var ids []holdfast.RecordID
	for _, spec := range specs {
		if !strings.Contains(spec, "@") {
			return nil, usage("%q names no time; name each archive as SERIES@TIME, `holdfast list` shows them", spec)
		}
		a, err := restore.Find(m, h, spec, states...)
		if err != nil {
			if other, oerr := restore.Find(m, h, spec); oerr == nil {
				err = fmt.Errorf("archive %s is %s", spec, other.State)
			}
			return nil, err
		}
		ids = append(ids, a.ID)
	}
	return history.SortIDs(ids), nil
}

// batches cuts ids into the fields of as many records as they need.
func batches(ids history.IDs) (fields [][]byte) {
	for part := range slices.Chunk(ids, history.MaxIDs) {
		fields = append(fields, part.Encode())
	}
	return fields
}

func sayChange(cmd *cobra.Command, h *history.Vault, t history.Type, ids history.IDs) {
	out := cmd.OutOrStdout()
	if t == history.TypeUndelete {
		fmt.Fprintf(out, "brought back %s\n", plural(uint64(len(ids)), "archive"))
		return
	}
	fmt.Fprintf(out, "deleted %s", plural(uint64(len(ids)), "archive"))
	if a, ok := h.Find(ids[0]); ok {
		if t := until(h, a); t != nil {
			fmt.Fprintf(out, "; `holdfast undelete` brings them back until %s", t.Format(time.RFC3339))
		}
	}
	fmt.Fprintln(out)
}

func newFreeze(g *globals) *cobra.Command {
	var owner ownerFlag
	cmd := &cobra.Command{
		Use:   "freeze [--owner FILE|-]",
		Short: "Stop all deleting in the vault, until the owner thaws it",
		Long: `Freeze is for the moment when something is wrong: from then on no machine deletes, and the service neither
expires archives nor removes deleted ones for good. A machine that may read can freeze; only the owner thaws.`,
		Args: args(cobra.NoArgs, "holdfast freeze [--owner FILE|-]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.say(cmd, &owner, history.TypeFreeze, "deleting is frozen; `holdfast thaw` ends that, with the owner's key")
		},
	}
	owner.add(cmd, ownerInstead)
	return cmd
}

func newThaw(g *globals) *cobra.Command {
	var owner ownerFlag
	cmd := &cobra.Command{
		Use:   "thaw [--owner FILE|-]",
		Short: "Let archives be deleted again",
		Long:  `Thaw ends a freeze. The owner signs it.`,
		Args:  args(cobra.NoArgs, "holdfast thaw [--owner FILE|-]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return g.say(cmd, &owner, history.TypeThaw, "deleting is allowed again")
		},
	}
	owner.add(cmd, ownerAlways)
	return cmd
}

// say has one record without fields added, and says so.
func (g *globals) say(cmd *cobra.Command, owner *ownerFlag, t history.Type, done string) error {
	m, c, err := g.connect(warn)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := owner.submit(cmd, g, m, c, t, nil); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), done)
	return nil
}
