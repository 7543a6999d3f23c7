package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/keyring"
	"holdfast/client/restore"
	"holdfast/client/seal"
	"holdfast/client/tree"
	"holdfast/history"
)

func newList(g *globals) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list [ARCHIVE [PATH]] [--json]",
		Short: "List archives, or what is inside one",
		Long: `List without arguments lists the vault's archives. With ARCHIVE, which is SERIES for the latest,
SERIES@TIME or the beginning of an id, it lists all that is inside, or all that is below PATH.`,
		Args: args(cobra.MaximumNArgs(2), "holdfast list [ARCHIVE [PATH]]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			m, c, err := g.connect(warn)
			if err != nil {
				return err
			}
			defer c.Close()
			fresh := c.Fresh()
			out := bufio.NewWriter(cmd.OutOrStdout())
			if len(a) == 0 && m.ReadSeed == nil {
				h, err := c.History(cmd.Context())
				if err != nil {
					return err
				}
				sayFresh(fresh)
				sayFrozen(h)
				sayUnpaid(h)
				listSealed(out, h)
				return out.Flush()
			}
			v, err := restore.Open(cmd.Context(), m, c)
			if err != nil {
				return err
			}
			sayFresh(fresh)
			sayOldKey(m, v.History)
			sayFrozen(v.History)
			sayUnpaid(v.History)
			if len(a) == 0 {
				err = listArchives(cmd.Context(), out, v, asJSON)
			} else {
				var at string
				if len(a) > 1 {
					at = a[1]
				}
				err = listInside(cmd.Context(), out, m, v, a[0], at, asJSON)
			}
			if ferr := out.Flush(); err == nil {
				err = ferr
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// sayFresh tells the user of a machine without a memory what it cannot check.
func sayFresh(fresh bool) {
	if fresh {
		warn("freshness unverified: this machine remembers nothing of the vault, so an old state could not be told from the newest")
	}
}

func sayFrozen(h *history.Vault) {
	if h.Frozen {
		warn("deleting is frozen in this vault; `holdfast thaw` ends that, with the owner's key")
	}
}

// sayUnpaid says from when on archives may lapse, and of which that became true. It is said at every occasion: who is
// told once may have been on holiday.
func sayUnpaid(h *history.Vault) {
	if h.Arrears != 0 {
		warn(fmt.Sprintf("THE ACCOUNT HAS NO CREDIT. From %s on the service may delete the archives of this vault; pay before that", time.Unix(0, h.Arrears).UTC().Format(time.RFC3339)))
	}
	var lapsed uint64
	var first *time.Time // that one of them is gone for good
	for _, a := range h.Archives {
		if a.State != history.Lapsed {
			continue
		}
		lapsed++
		if t := until(h, a); first == nil || t.Before(*first) {
			first = t
		}
	}
	if lapsed == 0 {
		return
	}
	how := "bring back what you need with `holdfast undelete`"
	if h.Overdue(time.Now().UnixNano()) {
		how = "pay, then " + how
	}
	warn(fmt.Sprintf("%s lapsed, as nobody paid, and can be brought back until %s: %s", plural(lapsed, "archive"), first.Format(time.RFC3339), how))
}

// odd is what sets single archives apart from others of a vault.
type odd struct {
	h      *history.Vault
	jumped map[holdfast.RecordID]bool // see history.Vault.Jumps
}

func oddOf(h *history.Vault) odd { return odd{h, h.Jumps()} }

// waits reports whether a jumped when it was committed and the owner has not confirmed its series since.
func (o odd) waits(a history.Archive) bool {
	return o.jumped[a.ID] && o.h.Series[a.Commit.Series].Confirmed < a.N
}

// listSealed lists what a key that cannot read may know of archives.
func listSealed(w io.Writer, h *history.Vault) {
	o := oddOf(h)
	for _, a := range h.Archives {
		fmt.Fprintf(w, "series %.8s  %s  by %.8s  %d blocks uploaded%s%s\n", a.Commit.Series, time.Unix(0, a.Time).UTC().Format(time.RFC3339), a.Signer, a.Commit.Blocks, partialMark(a), o.mark(a))
	}
}

func partialMark(a history.Archive) string {
	if a.Commit.Partial {
		return "  partial"
	}
	return ""
}

// mark says of an archive what sets it apart from others.
func (o odd) mark(a history.Archive) (s string) {
	if t := until(o.h, a); t != nil {
		s = fmt.Sprintf("  %s, can be brought back until %s", a.State, t.Format(time.RFC3339))
		if a.State == history.Lapsed && o.h.Overdue(time.Now().UnixNano()) {
			s += ", after paying"
		}
	}
	if a.Suspect {
		s += "  suspect: made with a key that is revoked"
	}
	if o.waits(a) {
		s += "  changed abruptly"
	}
	return s
}

// until returns the time until which an archive that is not live can be brought back, or nil. A longer
// delay that is set later makes it later; nothing makes it earlier.
func until(h *history.Vault, a history.Archive) *time.Time {
	if a.State == history.Live {
		return nil
	}
	seconds := h.Delay.Seconds
	if seconds == 0 {
		seconds = history.DefaultDelay
	}
	at := h.Since(a) + int64(seconds)*1e9
	if h.Delay.Next != 0 { // a shorter one, from a known time on
		at = min(at, max(h.Delay.At, h.Since(a)+int64(h.Delay.Next)*1e9))
	}
	t := time.Unix(0, at).UTC()
	return &t
}

// archiveDoc is one archive in JSON.
type archiveDoc struct {
	Archive    string    `json:"archive"` // SERIES@TIME
	ID         string    `json:"id"`
	Series     string    `json:"series"`
	Time       time.Time `json:"time"` // the service's clock
	Began      time.Time `json:"began"`
	Host       string    `json:"host"`
	User       string    `json:"user"`
	Machine    string    `json:"machine"` // who signed it
	Client     string    `json:"client"`
	Roots      []string  `json:"roots"`
	Args       []string  `json:"args,omitempty"`
	Partial    bool      `json:"partial,omitempty"`
	Entries    uint64    `json:"entries"`
	Bytes      uint64    `json:"bytes"`
	Stored     uint64    `json:"stored"`
	Unchanged  uint64    `json:"unchanged"`
	Excluded   uint64    `json:"excluded"`
	Vanished   uint64    `json:"vanished"`
	Changed    uint64    `json:"changed"`
	Unreadable uint64    `json:"unreadable"`

	State   string     `json:"state"`             // live, deleted, expired or lapsed
	Until   *time.Time `json:"until,omitempty"`   // if it is not live: can be brought back until then at least
	Suspect bool       `json:"suspect,omitempty"` // committed with a key that is revoked since before
	Jumped  bool       `json:"jumped,omitempty"`  // very different from those before it, and the owner has not confirmed it
}

func (o odd) doc(a history.Archive, r *archive.Root) archiveDoc {
	c := r.Counts
	return archiveDoc{
		State: a.State.String(), Until: until(o.h, a), Suspect: a.Suspect, Jumped: o.waits(a),
		Archive: restore.Name(o.h, r.Series, a), ID: a.ID.String(), Series: r.Series,
		Time: time.Unix(0, a.Time).UTC(), Began: time.Unix(0, r.Time).UTC(),
		Host: r.Host, User: r.User, Machine: a.Signer.String(), Client: r.Client, Roots: r.Roots, Args: r.Args, Partial: a.Commit.Partial,
		Entries: r.Entries, Bytes: r.Bytes,
		Stored: c.Stored, Unchanged: c.Unchanged, Excluded: c.Excluded, Vanished: c.Vanished, Changed: c.Changed, Unreadable: c.Unreadable,
	}
}

func listArchives(ctx context.Context, w io.Writer, v *restore.Vault, asJSON bool) error {
	docs := []archiveDoc{}
	odd := oddOf(v.History)
	jumped := map[string]bool{} // series by name
	var bad, first error
	lost := 0
	// One damaged archive must not hide the others.
	roots, err := v.Roots(ctx, v.History.Archives)
	if err != nil && !restore.Damaged(err) {
		return err
	}
	for i, a := range v.History.Archives {
		var r *archive.Root
		if err == nil {
			r = roots[i]
		} else if r, bad = v.Root(ctx, a); bad != nil {
			if !restore.Damaged(bad) {
				return bad
			}
			warn(fmt.Sprintf("archive %.16s of %s: %v", a.ID, time.Unix(0, a.Time).UTC().Format(time.RFC3339), bad))
			first = worse(first, bad)
			lost++
			continue
		}
		d := odd.doc(a, r)
		jumped[d.Series] = jumped[d.Series] || d.Jumped
		if asJSON {
			docs = append(docs, d)
			continue
		}
		fmt.Fprintf(w, "%-40s  %9d paths  %10s  by %.8s  %s:%s%s%s\n", oneLine(d.Archive), d.Entries, size(d.Bytes), d.Machine, oneLine(d.Host), quote(strings.Join(d.Roots, " ")), unreadMark(d), partialMark(a)+odd.mark(a))
	}
	for _, name := range slices.Sorted(maps.Keys(jumped)) {
		if jumped[name] {
			warn(fmt.Sprintf("series %s changed abruptly: look whether you know why. Until the owner says `holdfast confirm %s`, no policy and no machine deletes in it", oneLine(name), oneLine(name)))
		}
	}
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if err := e.Encode(docs); err != nil {
			return fmt.Errorf("write list: %w", err)
		}
	}
	if errors.Is(first, seal.ErrOldKey) {
		return fmt.Errorf("%s of %d cannot be read: %w", plural(uint64(lost), "archive"), len(v.History.Archives), first)
	}
	if err != nil {
		return &codeError{exitDamaged, fmt.Errorf("%s of %d cannot be read (%w); the others can be listed, `holdfast verify` tells which are whole, and the service's operator should know", plural(uint64(lost), "archive"), len(v.History.Archives), cmp.Or(first, err))}
	}
	return nil
}

func unreadMark(d archiveDoc) string {
	if d.Unreadable > 0 {
		return fmt.Sprintf("  %d unreadable", d.Unreadable)
	}
	return ""
}

// entryDoc is one entry in JSON.
type entryDoc struct {
	pathDoc
	Type       string    `json:"type"`
	Mode       string    `json:"mode"` // octal
	UID        uint32    `json:"uid"`
	GID        uint32    `json:"gid"`
	User       string    `json:"user,omitempty"`
	Group      string    `json:"group,omitempty"`
	Size       uint64    `json:"size"`
	Mtime      string    `json:"mtime"` // seconds since 1970, with nine decimals
	Target     *pathDoc  `json:"target,omitempty"`
	Link       *pathDoc  `json:"link,omitempty"`
	Device     *[2]int64 `json:"device,omitempty"`
	Xattrs     []string  `json:"xattrs,omitempty"` // names
	Changed    bool      `json:"changed,omitempty"`
	Unreadable bool      `json:"unreadable,omitempty"`
}

var typeNames = map[archive.Type]string{
	archive.TypeFile: "file", archive.TypeDir: "dir", archive.TypeSymlink: "symlink", archive.TypeFIFO: "fifo",
	archive.TypeChar: "char", archive.TypeBlock: "block", archive.TypeSocket: "socket",
}

func entryOf(e *archive.Entry) entryDoc {
	d := entryDoc{
		pathDoc: pathOf(e.Path), Type: typeNames[e.Type], Mode: fmt.Sprintf("%04o", e.Mode), UID: e.UID, GID: e.GID, User: e.User, Group: e.Group,
		Size: e.Size, Mtime: fmt.Sprintf("%d.%09d", e.Mtime.Sec, e.Mtime.Nsec),
		Changed: e.Flags&archive.FlagChanged != 0, Unreadable: e.Flags&archive.FlagUnreadable != 0,
	}
	if e.Target != "" {
		p := pathOf(e.Target)
		d.Target = &p
	}
	if e.Link != "" {
		p := pathOf(e.Link)
		d.Link = &p
	}
	if e.Type == archive.TypeChar || e.Type == archive.TypeBlock {
		d.Device = &[2]int64{int64(e.Major), int64(e.Minor)}
	}
	for _, x := range e.Xattrs {
		d.Xattrs = append(d.Xattrs, strings.ToValidUTF8(x.Name, "\ufffd"))
	}
	return d
}

func listInside(ctx context.Context, w io.Writer, m *keyring.Machine, v *restore.Vault, spec, at string, asJSON bool) error {
	a, err := restore.Find(m, v.History, spec)
	if err != nil {
		return err
	}
	r, err := v.Root(ctx, a)
	if err != nil {
		return err
	}
	t := v.Tree(a, r)
	at = strings.Trim(path.Clean("/"+at), "/")
	if at != "" {
		if _, err := t.Lookup(ctx, at); err != nil {
			return fmt.Errorf("%w; `holdfast list %s` shows what is in it", err, spec)
		}
	}
	var lost uint64
	span := tree.Span{Prefix: at, Lost: func(l tree.Lost) error {
		p := restore.LostPart(l)
		warn(fmt.Sprintf("%s: %v", quote(p.Path), p.Err))
		lost += max(l.Entries, 1)
		return nil
	}}
	whole := func() error {
		if lost == 0 {
			return nil
		}
		return &codeError{exitDamaged, fmt.Errorf("%s of this archive cannot be listed, because the service's copy is damaged or gone; look for them in an older archive, and tell the service's operator", plural(lost, "path"))}
	}
	if !asJSON {
		err := t.Walk(ctx, span, func(e *archive.Entry) error {
			_, err := fmt.Fprintln(w, line(e))
			return err
		})
		return cmp.Or(err, whole())
	}
	// One document, written as it is read: {"archive": ..., "verdicts": [...], "entries": [...]}.
	j := &stream{w: w}
	j.raw(`{"archive": `)
	j.value(oddOf(v.History).doc(a, r))
	j.raw(`, "verdicts": [`)
	first := true
	err = v.Verdicts(ctx, a, r, func(x archive.Verdict) error {
		if at != "" && x.Path != at && !strings.HasPrefix(x.Path, at+"/") {
			return nil
		}
		j.item(&first, problemOf(x))
		return j.err
	})
	if err != nil {
		return err
	}
	j.raw(`], "entries": [`)
	first = true
	if err := t.Walk(ctx, span, func(e *archive.Entry) error {
		j.item(&first, entryOf(e))
		return j.err
	}); err != nil {
		return err
	}
	j.raw("]}\n")
	return cmp.Or(j.err, whole())
}

// stream writes JSON piece by piece and keeps its first error.
type stream struct {
	w   io.Writer
	err error
}

func (s *stream) raw(text string) {
	if s.err == nil {
		_, s.err = io.WriteString(s.w, text)
	}
}

func (s *stream) value(v any) {
	b, err := json.Marshal(v)
	if s.err == nil {
		s.err = err
	}
	s.raw(string(b))
}

func (s *stream) item(first *bool, v any) {
	if !*first {
		s.raw(",")
	}
	*first = false
	s.raw("\n")
	s.value(v)
}

// line shows an entry as ls -l does.
func line(e *archive.Entry) string {
	owner := func(name string, id uint32) string {
		if name != "" {
			return oneLine(name)
		}
		return fmt.Sprint(id)
	}
	what := fmt.Sprint(e.Size)
	if e.Type == archive.TypeChar || e.Type == archive.TypeBlock {
		what = fmt.Sprintf("%d,%d", e.Major, e.Minor)
	}
	s := fmt.Sprintf("%s %s/%s %12s %s %s", modeText(e), owner(e.User, e.UID), owner(e.Group, e.GID), what, e.Mtime.Std().Format("2006-01-02 15:04:05"), quote(e.Path))
	switch {
	case e.Link != "":
		s += " link to " + quote(e.Link)
	case e.Target != "":
		s += " -> " + quote(e.Target)
	}
	if e.Flags&archive.FlagUnreadable != 0 {
		s += " (could not be read)"
	}
	if e.Flags&archive.FlagChanged != 0 {
		s += " (changed while it was read)"
	}
	return s
}

func modeText(e *archive.Entry) string {
	b := []byte("?rwxrwxrwx")
	if i := int(e.Type); i > 0 && i < 8 {
		b[0] = "?-dlpcbs"[i]
	}
	for i := range 9 {
		if e.Mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit  uint32
		at   int
		x, n byte
	}{{0o4000, 3, 's', 'S'}, {0o2000, 6, 's', 'S'}, {0o1000, 9, 't', 'T'}} {
		if e.Mode&s.bit != 0 {
			if b[s.at] == 'x' {
				b[s.at] = s.x
			} else {
				b[s.at] = s.n
			}
		}
	}
	return string(b)
}
