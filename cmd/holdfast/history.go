package main

import (
	"cmp"
	"encoding/base32"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/remote"
	"holdfast/history"
)

// codeAlphabet has no letters that are mistaken for others when they are read aloud.
var codeAlphabet = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// codeBytes of a head are in its code: enough that not even the service, which chooses the times in its
// entries, finds two histories with one code.
const codeBytes = 15

// headCode returns a head in a form to be read aloud: its number, then 24 letters and digits in fours.
func headCode(n uint64, h holdfast.Head) string {
	text := codeAlphabet.EncodeToString(h[:codeBytes])
	s := strconv.FormatUint(n, 10)
	for i := 0; i < len(text); i += 4 {
		s += "-" + text[i:i+4]
	}
	return s
}

// parseCode returns the number in a code and the code as headCode writes it. Capitals, and o, i and l in
// the place of digits, are forgiven.
func parseCode(s string) (uint64, string, error) {
	number, text, _ := strings.Cut(strings.ToLower(strings.TrimSpace(s)), "-")
	text = strings.NewReplacer("-", "", "o", "0", "i", "1", "l", "1").Replace(text)
	n, err := strconv.ParseUint(number, 10, 64)
	raw, derr := codeAlphabet.DecodeString(text)
	if err != nil || derr != nil || n == 0 || len(raw) != codeBytes || codeAlphabet.EncodeToString(raw) != text {
		return 0, "", usage("%q is no head code; it is a number and six groups of four letters and digits, as `holdfast history` shows it", s)
	}
	var h holdfast.Head
	copy(h[:], raw)
	return n, headCode(n, h), nil
}

// recordDoc is one record of the history in JSON.
type recordDoc struct {
	N      uint64    `json:"n"`
	Time   time.Time `json:"time"` // the service's stamp
	Type   string    `json:"type"`
	Signer string    `json:"signer"` // "owner", "service", or the machine
	ID     string    `json:"id"`
	Head   string    `json:"head"`
	What   string    `json:"what,omitempty"`

	ids   history.IDs // of the archives that it deletes, brings back, expires, purges or lapses
	delay uint64      // seconds, of a record that sets the time for bringing back
}

func newHistory(g *globals) *cobra.Command {
	var expect string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "history [--expect-head CODE] [--json]",
		Short: "Verify and show the vault's history, and its head code to read aloud",
		Long: `History verifies every record of the vault, shows it, and prints the head code: whoever sees the same code on
another machine, or had it read aloud, sees the same history up to there. With --expect-head it ends with exit code
4 unless the history contains the head with that code.`,
		Args: args(cobra.NoArgs, "holdfast history [--expect-head CODE] [--json]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var wantN uint64
			var want string
			if expect != "" {
				var err error
				if wantN, want, err = parseCode(expect); err != nil {
					return err
				}
			}
			m, err := g.machine()
			if err != nil {
				return err
			}
			opt := g.options(m, warn)
			docs := []recordDoc{}
			var found string
			opt.Record = func(e history.Entry) {
				docs = append(docs, recordOf(e, m.Owner, m.LogKey))
				if e.N == wantN {
					found = headCode(e.N, e.Head)
				}
			}
			c := remote.Dial(m, opt)
			defer c.Close()
			fresh := c.Fresh()
			h, err := c.History(cmd.Context())
			if err != nil {
				return err
			}
			describe(docs, h)
			if found != want {
				return fmt.Errorf("%w: the service shows %s where %s is expected", history.ErrOrder, cmp.Or(found, fmt.Sprintf("only %d records", h.N)), want)
			}
			if want == "" {
				sayFresh(fresh)
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return writeDoc(out, struct {
					Code    string      `json:"head_code"`
					Records []recordDoc `json:"records"`
				}{headCode(h.N, h.Head), docs})
			}
			for _, d := range docs {
				fmt.Fprintf(out, "%6d  %s  %-11s  by %-8.8s  %s\n", d.N, d.Time.Format(time.RFC3339), d.Type, d.Signer, d.What)
			}
			fmt.Fprintf(out, "\nhead code  %s\n", headCode(h.N, h.Head))
			return nil
		},
	}
	cmd.Flags().StringVar(&expect, "expect-head", "", "fail unless the history contains the head with this `CODE`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// recordOf describes a verified entry.
func recordOf(e history.Entry, owner, logKey [32]byte) recordDoc {
	b, _ := history.ParseBody(e.Record.Body)
	d := recordDoc{N: e.N, Time: time.Unix(0, e.Time).UTC(), Type: b.Type.String(), Signer: b.Signer.String(), ID: e.Record.ID().String(), Head: e.Head.String()}
	switch b.Signer {
	case history.SignerOf(owner[:]):
		d.Signer = "owner"
	case history.SignerOf(logKey[:]):
		d.Signer = "service"
	}
	switch b.Type {
	case history.TypeEnrol:
		x, _ := history.ParseEnrol(b.Fields)
		d.What = fmt.Sprintf("machine %.8s may %s in group %.8s", history.SignerOf(x.SignKey[:]), x.Rights, x.Group)
		if len(x.Series) > 0 {
			d.What += fmt.Sprintf(", for %d series only", len(x.Series))
		}
	case history.TypeRevoke:
		x, _ := history.ParseRevoke(b.Fields)
		d.What = fmt.Sprintf("machine %.8s, not trusted since %s", x.Signer, time.Unix(0, min(x.Since, e.Time)).UTC().Format(time.RFC3339))
	case history.TypeCommit:
		x, _ := history.ParseCommit(b.Fields)
		d.What = fmt.Sprintf("series %.8s: %d stored, %d unchanged, %s", x.Series, x.Counts.Stored, x.Counts.Unchanged, plural(x.Blocks, "block"))
	case history.TypeDelete, history.TypeUndelete, history.TypeExpire, history.TypePurge, history.TypeLapse:
		d.ids, _ = history.ParseIDs(b.Type, b.Fields)
		d.What = plural(uint64(len(d.ids)), "archive")
	case history.TypePolicy:
		x, _ := history.ParsePolicy(b.Fields)
		d.What = fmt.Sprintf("series %.8s: %s", x.Series, rules(x))
	case history.TypeDelay:
		x, _ := history.ParseDelay(b.Fields)
		d.What, d.delay = days(x.Seconds), x.Seconds
	case history.TypeOpen:
		x, _ := history.ParseOpen(b.Fields)
		d.What = fmt.Sprintf("session %.8s", x.Session)
	case history.TypeRotateRead:
		x, _ := history.ParseRotateRead(b.Fields)
		id := history.ReadKeyIDOf(x.ReadKey[:])
		d.What = fmt.Sprintf("read key %x", id[:4])
	case history.TypeRewrap:
		x, _ := history.ParseRewrap(b.Fields)
		d.What = fmt.Sprintf("session %.8s for read key %x", x.Session, x.ReadKey[:4])
	case history.TypeConfirm:
		x, _ := history.ParseConfirm(b.Fields)
		d.What = fmt.Sprintf("series %.8s", x.Series)
	case history.TypeArrears:
		x, _ := history.ParseArrears(b.Fields)
		if d.What = "paid again"; x.Until != 0 {
			d.What = "the account has no credit: archives may lapse from " + time.Unix(0, x.Until).UTC().Format(time.RFC3339) + " on"
		}
	}
	return d
}

// describe adds what a record says only together with others: which archives changed abruptly, and which
// records made those that were deleted.
func describe(docs []recordDoc, h *history.Vault) {
	jumped := map[string]bool{}
	for id, yes := range h.Jumps() {
		jumped[id.String()] = yes
	}
	place := map[holdfast.RecordID]uint64{}
	for _, a := range slices.Concat(h.Archives, h.Purged) {
		place[a.ID] = a.N
	}
	var delay history.Undelete
	for i := range docs {
		d := &docs[i]
		if d.delay != 0 {
			if delay = delay.Set(d.delay, d.Time.UnixNano()); delay.Next != 0 {
				d.What += ", from " + time.Unix(0, delay.At).UTC().Format(time.RFC3339) + " on"
			}
		}
		var made []string
		for _, id := range d.ids {
			made = append(made, strconv.FormatUint(place[id], 10))
		}
		if len(made) > 0 {
			d.What += " of record " + strings.Join(made, ", ")
		}
		if jumped[d.ID] {
			d.What += ", changed abruptly"
		}
	}
}
