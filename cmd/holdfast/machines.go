package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/history"
)

// machineDoc is one enrolled machine in JSON.
type machineDoc struct {
	Machine  string     `json:"machine"`
	Rights   string     `json:"rights"`
	Group    string     `json:"group"`
	Series   []string   `json:"series,omitempty"` // that it is limited to: names, or IDs where this machine cannot read the name
	DayBytes uint64     `json:"day_bytes,omitempty"`
	Blocks   uint64     `json:"day_blocks,omitempty"`
	Enrolled time.Time  `json:"enrolled"`
	Archives int        `json:"archives"`          // that are not purged
	Suspect  int        `json:"suspect,omitempty"` // of these
	Last     *time.Time `json:"last,omitempty"`    // its newest archive
	Host     string     `json:"host,omitempty"`    // as that archive says, if this machine may read it
	Revoked  *time.Time `json:"revoked_since,omitempty"`
	This     bool       `json:"this,omitempty"` // whose key file was used
}

func newKeyList(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the machines of the vault",
		Long: `List shows who may do what in the vault, in the order of enrolment: each machine, the group in which it
deduplicates, its rights, its archives, and, with a key that may read, the host that its newest archive names.`,
		Args: args(cobra.NoArgs, "holdfast key list [--json]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := g.machine()
			if err != nil {
				return err
			}
			enrolled := map[holdfast.SignerID]time.Time{}
			opt := g.options(m, warn)
			opt.Record = func(e history.Entry) {
				if b, err := history.ParseBody(e.Record.Body); err == nil && b.Type == history.TypeEnrol {
					x, _ := history.ParseEnrol(b.Fields)
					enrolled[history.SignerOf(x.SignKey[:])] = time.Unix(0, e.Time).UTC()
				}
			}
			c := remote.Dial(m, opt)
			defer c.Close()
			fresh := c.Fresh()
			h, err := c.History(cmd.Context())
			if err != nil {
				return err
			}
			sayFresh(fresh)
			newest := map[holdfast.SignerID]history.Archive{}
			for _, a := range h.Archives {
				newest[a.Signer] = a
			}
			hosts := map[holdfast.SignerID]string{}
			if m.ReadSeed != nil {
				if hosts, err = hostsOf(cmd.Context(), m, c, newest); err != nil {
					return err
				}
			}
			names := map[holdfast.SeriesID]string{}
			if slices.ContainsFunc(slices.Collect(maps.Values(h.Machines)), func(x history.Machine) bool { return len(x.Enrol.Series) > 0 }) {
				if _, names, err = seriesNames(cmd.Context(), m, c); err != nil {
					return err
				}
			}
			docs := []machineDoc{}
			for _, id := range slices.SortedFunc(maps.Keys(h.Machines), func(a, b holdfast.SignerID) int { return enrolled[a].Compare(enrolled[b]) }) {
				x := h.Machines[id]
				d := machineDoc{
					Machine: id.String(), Rights: x.Enrol.Rights.String(), Group: x.Enrol.Group.String(), DayBytes: x.Enrol.DayBytes, Blocks: x.Enrol.DayBlocks,
					Enrolled: enrolled[id], Host: hosts[id], This: id == m.Signer(),
				}
				for _, s := range x.Enrol.Series {
					d.Series = append(d.Series, nameOf(names, s))
				}
				if x.Revoked != 0 {
					t := time.Unix(0, x.Since).UTC()
					d.Revoked = &t
				}
				for _, a := range h.Archives {
					if a.Signer == id {
						t := time.Unix(0, a.Time).UTC()
						d.Archives, d.Last = d.Archives+1, &t
					}
					if a.Signer == id && a.Suspect {
						d.Suspect++
					}
				}
				docs = append(docs, d)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return writeDoc(out, docs)
			}
			for _, d := range docs {
				fmt.Fprintln(out, d.line())
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// line shows a machine to people.
func (d machineDoc) line() string {
	s := fmt.Sprintf("%.16s  group %.8s  %-17s  enrolled %s  %s", d.Machine, d.Group, d.Rights, d.Enrolled.Format(time.DateOnly), plural(uint64(d.Archives), "archive"))
	if d.Last != nil {
		s += ", the newest " + d.Last.Format(time.RFC3339)
	}
	if d.Host != "" {
		s += " of host " + oneLine(d.Host)
	}
	if len(d.Series) > 0 {
		s += "  for series " + oneLine(strings.Join(d.Series, ", ")) + " only"
	}
	if d.DayBytes > 0 {
		s += fmt.Sprintf("  %s a day at most", size(d.DayBytes))
	}
	if d.Blocks > 0 {
		s += fmt.Sprintf("  %s a day at most", plural(d.Blocks, "block"))
	}
	if d.Revoked != nil {
		s += "  revoked, not trusted since " + d.Revoked.Format(time.RFC3339)
	}
	if d.Suspect > 0 {
		s += "  " + plural(uint64(d.Suspect), "archive") + " suspect"
	}
	if d.This {
		s += "  this machine"
	}
	return s
}

// hostsOf reads in each machine's newest archive which host it says it was made on. What cannot be read is
// left out: other commands tell about damage.
func hostsOf(ctx context.Context, m *keyring.Machine, c *remote.Client, newest map[holdfast.SignerID]history.Archive) (map[holdfast.SignerID]string, error) {
	v, err := restore.Open(ctx, m, c)
	if err != nil {
		return nil, err
	}
	hosts := map[holdfast.SignerID]string{}
	for id, a := range newest {
		r, err := v.Root(ctx, a)
		if restore.Damaged(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		hosts[id] = r.Host
	}
	return hosts, nil
}

func newKeyRevoke(g *globals) *cobra.Command {
	var owner ownerFlag
	var since string
	cmd := &cobra.Command{
		Use:   "revoke MACHINE [--since TIME] [--owner FILE]",
		Short: "Take all rights from a machine, at once and for good",
		Long: `Revoke takes all rights from MACHINE, of which the beginning of what ` + "`holdfast key list`" + ` shows is enough. With
--since, what it did from that time on is suspect: its archives are marked and no policy removes them, and nobody
deduplicates against what it stored. Give the time when the key may have been stolen. The owner signs.`,
		Args: args(cobra.ExactArgs(1), "holdfast key revoke MACHINE [--since TIME] [--owner FILE]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			at := int64(math.MaxInt64) // the service's stamp counts then
			if since != "" {
				t, err := parseTime(since)
				if err != nil {
					return err
				}
				at = t.UnixNano()
			}
			m, c, h, err := g.visit(cmd.Context())
			if err != nil {
				return err
			}
			defer c.Close()
			id, err := findMachine(h, a[0])
			if err != nil {
				return err
			}
			after, err := owner.submit(cmd, g, m, c, history.TypeRevoke, history.Revoke{Signer: id, Since: at}.Encode())
			if err != nil {
				return err
			}
			suspect := 0
			for _, x := range after.Archives {
				if x.Suspect && x.Signer == id {
					suspect++
				}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "revoked machine %.16s; %s of it suspect\n", id, plural(uint64(suspect), "archive"))
			return nil
		},
	}
	cmd.Flags().StringVar(&since, "since", "", "what it did since this `TIME` is suspect: 2006-01-02 or 2006-01-02T15:04:05Z")
	owner.add(cmd, ownerAlways)
	return cmd
}

func parseTime(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil && t.Year() > 1970 && t.Year() < 2200 {
			return t, nil
		}
	}
	return time.Time{}, usage("%q is no time; write 2006-01-02 (UTC) or 2006-01-02T15:04:05Z", s)
}

// findMachine returns the one machine whose ID begins so.
func findMachine(h *history.Vault, prefix string) (id holdfast.SignerID, err error) {
	n := 0
	for x := range h.Machines {
		if strings.HasPrefix(hex.EncodeToString(x[:]), strings.ToLower(prefix)) && len(prefix) >= 4 {
			id = x
			n++
		}
	}
	switch n {
	case 1:
		return id, nil
	case 0:
		return id, fmt.Errorf("no machine %q; `holdfast key list` shows them, four digits are the least", prefix)
	}
	return id, fmt.Errorf("%d machines begin with %q; give more of it", n, prefix)
}
