package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/history"
)

// keepFlags are the rules that say which archives stay.
type keepFlags struct {
	policy history.Policy
	within string
}

func (k *keepFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Uint32Var(&k.policy.Last, "keep-last", 0, "keep the newest `N` archives")
	f.Uint32Var(&k.policy.Hourly, "keep-hourly", 0, "keep the newest archive of each of `N` hours that have one")
	f.Uint32Var(&k.policy.Daily, "keep-daily", 0, "the same for `N` days")
	f.Uint32Var(&k.policy.Weekly, "keep-weekly", 0, "the same for `N` weeks")
	f.Uint32Var(&k.policy.Monthly, "keep-monthly", 0, "the same for `N` months")
	f.Uint32Var(&k.policy.Yearly, "keep-yearly", 0, "the same for `N` years")
	f.StringVar(&k.within, "keep-within", "", "keep all that are at most this much older than the newest: `TIME` like 36h, 30d, 8w or 2y")
}

// read returns the rules as a policy of a series.
func (k *keepFlags) read(series holdfast.SeriesID) (history.Policy, error) {
	k.policy.Series = series
	if k.within != "" {
		var err error
		if k.policy.Within, err = parseWithin(k.within); err != nil {
			return k.policy, err
		}
	}
	return k.policy, nil
}

var units = map[byte]uint64{'h': 3600, 'd': 86400, 'w': 7 * 86400, 'y': 365 * 86400}

// parseWithin returns the seconds of a time like 30d.
func parseWithin(s string) (uint64, error) {
	if s != "" {
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
		if u := units[s[len(s)-1]]; err == nil && u > 0 && n > 0 && n*u <= history.MaxWithin {
			return n * u, nil
		}
	}
	return 0, usage("%q is no time; say a number and h, d, w or y for hours, days, weeks or years, up to 200y", s)
}

// rules says a policy in words.
func rules(p history.Policy) string {
	if p.None() {
		return "keep everything"
	}
	var all []string
	for _, x := range []struct {
		n    uint32
		what string
	}{{p.Last, "last"}, {p.Hourly, "hourly"}, {p.Daily, "daily"}, {p.Weekly, "weekly"}, {p.Monthly, "monthly"}, {p.Yearly, "yearly"}} {
		if x.n > 0 {
			all = append(all, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	if p.Within > 0 {
		all = append(all, "all within "+days(p.Within))
	}
	return "keep " + strings.Join(all, ", ")
}

// days says a number of seconds in days, if it is whole days, or else in hours.
func days(seconds uint64) string {
	if seconds%86400 == 0 {
		return plural(seconds/86400, "day")
	}
	return time.Duration(seconds * 1e9).String()
}

func newPolicy(g *globals) *cobra.Command {
	policy := &cobra.Command{
		Use:   "policy",
		Short: "Say which archives the service may expire",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, a []string) error {
			if len(a) > 0 {
				return usage("there is no command %q; `holdfast policy --help` lists them", "policy "+a[0])
			}
			return cmd.Help()
		},
	}
	policy.AddCommand(newPolicySet(g), newPolicyDelay(g), newPolicyShow(g))
	return policy
}

func newPolicySet(g *globals) *cobra.Command {
	var owner ownerFlag
	var keep keepFlags
	var all bool
	cmd := &cobra.Command{
		Use:   "set [SERIES] --keep-...|--keep-all [--owner FILE]",
		Short: "Set the policy of a series, or of all that have none of their own",
		Long: `Policy set has the service expire those archives of SERIES, or of every series without a policy of its own,
that no rule keeps. They must be 30 days old, and can be brought back like deleted ones. The owner signs.

` + "`holdfast prune SERIES --dry-run`" + ` with the same rules shows beforehand what stays and what goes.`,
		Args: args(cobra.MaximumNArgs(1), "holdfast policy set [SERIES] --keep-...|--keep-all [--owner FILE]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			m, c, err := g.connect(warn)
			if err != nil {
				return err
			}
			defer c.Close()
			var series holdfast.SeriesID
			if len(a) == 1 {
				series = m.Series(a[0])
			}
			p, err := keep.read(series)
			switch {
			case err != nil:
				return err
			case p.None() != all:
				return usage("say either rules, like --keep-last 7 --keep-daily 30, or --keep-all for no expiry at all")
			}
			h, err := c.History(cmd.Context())
			if err != nil {
				return err
			}
			if len(a) == 1 && len(h.OfSeries(series)) == 0 {
				return fmt.Errorf("there is no archive of series %q; `holdfast list` shows the names", a[0])
			}
			if _, err := owner.submit(cmd, g, m, c, history.TypePolicy, p.Encode()); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), rules(p))
			return nil
		},
	}
	keep.add(cmd)
	cmd.Flags().BoolVar(&all, "keep-all", false, "keep everything: nothing is expired")
	owner.add(cmd, ownerAlways)
	return cmd
}

func newPolicyDelay(g *globals) *cobra.Command {
	var owner ownerFlag
	cmd := &cobra.Command{
		Use:   "delay TIME [--owner FILE]",
		Short: "Say for how long deleted archives can be brought back",
		Long: `Policy delay sets for how long an archive that was deleted or expired can be brought back, before it is gone for good:
TIME is like 36h, 14d or 8w, from one day to 365 days. A longer time holds at once, for what is deleted already as well.
A shorter one holds only when the time in force has passed: who steals the owner's key gains no time by it. The owner
signs.`,
		Args: args(cobra.ExactArgs(1), "holdfast policy delay TIME [--owner FILE]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			seconds, err := parseWithin(a[0])
			if err != nil {
				return err
			}
			if seconds < history.MinDelay || seconds > history.MaxDelay {
				return usage("%s is not from %s to %s", a[0], days(history.MinDelay), days(history.MaxDelay))
			}
			m, c, err := g.connect(warn)
			if err != nil {
				return err
			}
			defer c.Close()
			h, err := owner.submit(cmd, g, m, c, history.TypeDelay, history.Delay{Seconds: seconds}.Encode())
			if err != nil {
				return err
			}
			sayDelay(cmd.OutOrStdout(), h)
			return nil
		},
	}
	owner.add(cmd, ownerAlways)
	return cmd
}

// sayDelay says for how long what is deleted can be brought back, now and from when it will be shorter.
func sayDelay(w io.Writer, h *history.Vault) {
	fmt.Fprintf(w, "what is deleted or expired can be brought back for %s\n", days(h.Delay.In(h.Time)))
	if next, at := pendingDelay(h); next != 0 {
		fmt.Fprintf(w, "from %s on, for %s only\n", at.Format(time.RFC3339), days(next))
	}
}

// pendingDelay returns the shorter delay that does not hold yet, in seconds, and when it will; 0 for none.
func pendingDelay(h *history.Vault) (uint64, time.Time) {
	if h.Delay.Next == 0 || h.Time >= h.Delay.At {
		return 0, time.Time{}
	}
	return h.Delay.Next, time.Unix(0, h.Delay.At).UTC()
}

// policyDoc is one policy in JSON.
type policyDoc struct {
	Series   string `json:"series"`    // "" if this key cannot read the name, or for all
	SeriesID string `json:"series_id"` // zeros for all series without a policy of their own
	Last     uint32 `json:"keep_last"` // numbers of archives
	Hourly   uint32 `json:"keep_hourly"`
	Daily    uint32 `json:"keep_daily"`
	Weekly   uint32 `json:"keep_weekly"`
	Monthly  uint32 `json:"keep_monthly"`
	Yearly   uint32 `json:"keep_yearly"`
	Within   uint64 `json:"keep_within"` // seconds
}

// rulesDoc is what decides over archives, in JSON.
type rulesDoc struct {
	Policies    []policyDoc `json:"policies"`
	Delay       uint64      `json:"undelete_seconds"`
	Next        uint64      `json:"undelete_seconds_next,omitempty"` // a shorter time, from NextFrom on
	NextFrom    *time.Time  `json:"undelete_next_from,omitempty"`
	Frozen      bool        `json:"frozen"`
	Unconfirmed []string    `json:"unconfirmed"` // series that changed abruptly, by name or ID
}

func newPolicyShow(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the policies, and what keeps the service from following them",
		Args:  args(cobra.NoArgs, "holdfast policy show [--json]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, c, err := g.connect(warn)
			if err != nil {
				return err
			}
			defer c.Close()
			fresh := c.Fresh()
			h, names, err := seriesNames(cmd.Context(), m, c)
			if err != nil {
				return err
			}
			sayFresh(fresh)
			sayOldKey(m, h)
			d := rulesDoc{Policies: []policyDoc{}, Delay: h.Delay.In(h.Time), Frozen: h.Frozen, Unconfirmed: []string{}}
			if next, at := pendingDelay(h); next != 0 {
				d.Next, d.NextFrom = next, &at
			}
			for _, id := range slices.SortedFunc(maps.Keys(h.Policies), compareSeries) {
				p := h.Policies[id]
				d.Policies = append(d.Policies, policyDoc{names[id], id.String(), p.Last, p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly, p.Within})
			}
			for _, id := range slices.SortedFunc(maps.Keys(h.Series), compareSeries) {
				if h.Series[id].Unconfirmed() {
					d.Unconfirmed = append(d.Unconfirmed, nameOf(names, id))
				}
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return writeDoc(out, d)
			}
			for _, p := range d.Policies {
				id := holdfast.SeriesID{}
				name := "every other series"
				if p.SeriesID != id.String() {
					name = "series " + cmp.Or(p.Series, p.SeriesID[:8])
				}
				fmt.Fprintf(out, "%s: %s\n", oneLine(name), rules(history.Policy{Last: p.Last, Hourly: p.Hourly, Daily: p.Daily, Weekly: p.Weekly, Monthly: p.Monthly, Yearly: p.Yearly, Within: p.Within}))
			}
			if len(d.Policies) == 0 {
				fmt.Fprintln(out, "no policy: the service keeps everything")
			}
			sayDelay(out, h)
			for _, s := range d.Unconfirmed {
				fmt.Fprintf(out, "series %s changed abruptly: nothing of it is expired before `holdfast confirm`\n", oneLine(s))
			}
			sayFrozen(h)
			sayUnpaid(h)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func compareSeries(a, b holdfast.SeriesID) int { return slices.Compare(a[:], b[:]) }

func nameOf(names map[holdfast.SeriesID]string, id holdfast.SeriesID) string {
	return cmp.Or(names[id], fmt.Sprintf("%.8s", id))
}

func writeDoc(w io.Writer, d any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	return nil
}

// seriesNames returns the vault's history and the names of its series, of which the history knows only
// IDs: each is in the root of its newest archive, if this key can read that.
func seriesNames(ctx context.Context, m *keyring.Machine, c *remote.Client) (*history.Vault, map[holdfast.SeriesID]string, error) {
	if m.ReadSeed == nil {
		h, err := c.History(ctx)
		return h, nil, err
	}
	v, err := restore.Open(ctx, m, c)
	if err != nil {
		return nil, nil, err
	}
	names := map[holdfast.SeriesID]string{}
	for _, a := range slices.Backward(v.History.Archives) {
		if _, ok := names[a.Commit.Series]; ok {
			continue
		}
		switch r, err := v.Root(ctx, a); {
		case err == nil:
			names[a.Commit.Series] = r.Series
		case !restore.Damaged(err):
			return nil, nil, err
		}
	}
	return v.History, names, nil
}

func newConfirm(g *globals) *cobra.Command {
	var owner ownerFlag
	cmd := &cobra.Command{
		Use:   "confirm SERIES [--owner FILE]",
		Short: "Say that an abrupt change of a series is right",
		Long: `When a series changes abruptly (half of its paths gone, or most of its content new at once), nothing of it is
expired and no machine deletes of it, until its owner has looked and confirms that the change is right.`,
		Args: args(cobra.ExactArgs(1), "holdfast confirm SERIES [--owner FILE]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			m, c, h, err := g.visit(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			id := m.Series(a[0])
			if _, ok := h.Series[id]; !ok {
				return fmt.Errorf("there is no series %q; `holdfast list` shows the names", a[0])
			}
			if _, err := owner.submit(cmd, g, m, c, history.TypeConfirm, history.Confirm{Series: id}.Encode()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "confirmed series %s as it is now\n", oneLine(a[0]))
			return nil
		},
	}
	owner.add(cmd, ownerAlways)
	return cmd
}
