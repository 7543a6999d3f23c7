package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/backup"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/client/source"
	"holdfast/history"
	"holdfast/wire"
)

// maxProblems bounds the problems in a JSON summary; the archive lists them all.
const maxProblems = 10_000

func newCreate(g *globals) *cobra.Command {
	var cfg backup.Config
	var asJSON bool
	const form = "holdfast create SERIES PATH..."
	cmd := &cobra.Command{
		Use:   "create SERIES PATH... [-C DIR] [--exclude PATTERN] [--upload-always] [--dry-run] [--json]",
		Short: "Make an archive of some paths",
		Long: `Create makes the archive SERIES@TIME of the given paths. Paths are kept as given without a leading
slash: "create a -C /srv photos" makes an archive that holds photos.

A PATTERN of --exclude is a shell glob for names ("*.o"), for paths from anywhere ("build/*.o") or, with
a leading slash, from the top of the archive; ** stands for any number of directories, and a trailing
slash fits directories only. What is in an excluded directory is excluded with it.

With --upload-always the service is not asked which blocks it has: all that is read is uploaded once, so that
nobody can tell from what is left out whether some content was in the backup before. Files that did not
change are not read, so not uploaded.

A machine with a daily cap that comes near it commits what it has as a partial archive and ends with 5; the
same command goes on from there the next day. An account that is not paid stores nothing new: that ends with 5 as well, and
the same command goes on once it is paid. What is left of an account that is nearly used up is said on standard error.

A file is read only if it changed since the last archive of the series. What could not be read is listed
in the archive, said on standard error, and makes the exit code 3.

If the service says that it found blocks damaged, files that need them are read again, and what this machine still
has of their content is stored anew, so that earlier archives are whole again. The summary names them; the exit code is 3
if some that this machine stored are damaged still.

A machine that may read fetches a few blocks of the new archive at once. Exit code 4 together with the archive's
name says that the service did not keep them, or stamped the archive more than an hour from this machine's clock.

At the end it tells what others did to the vault since this machine's last archive: deletions above all, and
machines, keys and policies.`,
		Args: args(cobra.MinimumNArgs(2), form),
		RunE: func(cmd *cobra.Command, a []string) error {
			cfg.Series, cfg.Roots = a[0], a[1:]
			if err := checkSeries(cfg.Series); err != nil {
				return err
			}
			if _, err := source.CompileExclude(cfg.Exclude); err != nil {
				return usage("%v", err)
			}
			return create(cmd, g, cfg, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&cfg.Base, "directory", "C", "", "look for relative paths in `DIR` instead of the current directory")
	f.StringArrayVar(&cfg.Exclude, "exclude", nil, "leave out what fits `PATTERN`; may be repeated")
	f.BoolVar(&cfg.UploadAlways, "upload-always", false, "do not ask the service which blocks it has, upload all that is read")
	f.BoolVar(&cfg.DryRun, "dry-run", false, "say what would be done, read no content, store nothing")
	f.BoolVar(&asJSON, "json", false, "write the summary as JSON")
	return cmd
}

// checkSeries refuses names that could not be typed back.
func checkSeries(s string) error {
	if s == "" || len(s) > 200 || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return usage("%q is no name for a series; use up to 200 bytes of printable text", s)
	}
	if strings.TrimSpace(s) != s {
		return usage("%q is no name for a series, because of the space at its ends; choose a name without it", s)
	}
	if strings.Contains(s, "@") {
		return usage("%q is no name for a series, because @ comes before an archive's time; choose a name without it", s)
	}
	return nil
}

// summary is what create --json writes.
type summary struct {
	Archive         string       `json:"archive,omitempty"` // SERIES@TIME
	ID              string       `json:"id,omitempty"`
	Series          string       `json:"series"`
	Time            *time.Time   `json:"time,omitempty"` // the service's clock
	DryRun          bool         `json:"dry_run,omitempty"`
	Complete        bool         `json:"complete"` // everything that was found could be read
	Stored          uint64       `json:"stored"`   // paths that are new or changed
	Unchanged       uint64       `json:"unchanged"`
	Excluded        uint64       `json:"excluded"`
	Vanished        uint64       `json:"vanished"`
	Changed         uint64       `json:"changed"` // while being read
	Unreadable      uint64       `json:"unreadable"`
	Entries         uint64       `json:"entries"`
	Bytes           uint64       `json:"bytes"`
	FilesRead       uint64       `json:"files_read"`
	BytesRead       uint64       `json:"bytes_read"`
	DataBlocks      uint64       `json:"data_blocks_uploaded"`
	MetaBlocks      uint64       `json:"meta_blocks_uploaded"`
	KnownBlocks     uint64       `json:"blocks_known"`
	BytesSent       uint64       `json:"bytes_sent"`
	Seconds         float64      `json:"seconds"`
	Damaged         []damageDoc  `json:"damaged,omitempty"` // blocks of earlier archives that the service had damaged
	DamagedOmitted  uint64       `json:"damaged_omitted,omitempty"`
	DamagedMore     bool         `json:"damaged_more,omitempty"` // the service knows of more, which a later run asks about
	News            []recordDoc  `json:"news,omitempty"`         // by others, since this machine's last complete archive
	Credit          *wire.Credit `json:"credit,omitempty"`       // how the account stands, if it is not paid
	Problems        []problemDoc `json:"problems"`
	ProblemsOmitted uint64       `json:"problems_omitted,omitempty"`
}

// problemDoc is one path with a verdict.
type problemDoc struct {
	pathDoc
	What string `json:"what"`
	Why  string `json:"why"`
}

// damageDoc is a block that the service found damaged, and what became of it.
type damageDoc struct {
	Block    string `json:"block"`
	Kind     string `json:"kind"`
	Mine     bool   `json:"mine"`     // stored by this machine, not by another of its group
	Repaired bool   `json:"repaired"` // by this run, or by somebody else meanwhile
}

func create(cmd *cobra.Command, g *globals, cfg backup.Config, asJSON bool) error {
	m, err := g.machine()
	if err != nil {
		return err
	}
	cfg.Machine, cfg.CacheDir = m, g.cacheDir(m)
	cfg.Progress = new(backup.Progress)
	bar := newBar(cmd.Context(), cfg.Progress.Bytes.Load, cfg.Progress.Entries.Load)
	defer bar.stop()
	if bar != nil {
		go func() { bar.total(countTree(cmd.Context(), cfg.Base, cfg.Roots)) }()
	}
	others := news{self: m.Signer(), owner: m.Owner, logKey: m.LogKey}
	opt := g.options(m, bar.say)
	opt.Record = others.take
	cfg.Client = remote.Dial(m, opt)
	defer cfg.Client.Close()
	cfg.Warn = bar.say
	problems, omitted := []problemDoc{}, uint64(0)
	cfg.Problem = func(v archive.Verdict) {
		if asJSON {
			if len(problems) < maxProblems {
				problems = append(problems, problemOf(v))
			} else {
				omitted++
			}
		}
		bar.say(fmt.Sprintf("%s: %s: %s", quote(v.Path), whatOf(v.What), v.Why))
	}
	began := time.Now()
	r, failed := backup.Run(cmd.Context(), cfg)
	bar.stop()
	if failed != nil && r.Archive.N == 0 {
		if wire.CodeOf(failed) == wire.CodeOutOfCredit { // then this is what matters, and nothing else will say it
			if h, err := cfg.Client.History(cmd.Context()); err == nil {
				sayUnpaid(h)
			}
			failed = fmt.Errorf("%w (what was uploaded until now is kept for two days)", failed) // as blocks are that no archive refers to
		}
		return failed
	}
	s := summary{
		Series: cfg.Series, DryRun: cfg.DryRun, Complete: r.Complete(),
		Stored: r.Counts.Stored, Unchanged: r.Counts.Unchanged, Excluded: r.Counts.Excluded,
		Vanished: r.Counts.Vanished, Changed: r.Counts.Changed, Unreadable: r.Counts.Unreadable,
		Entries: r.Entries, Bytes: r.Bytes, FilesRead: r.FilesRead, BytesRead: r.BytesRead,
		DataBlocks: r.DataBlocks, MetaBlocks: r.MetaBlocks, KnownBlocks: r.KnownBlocks, BytesSent: r.Sent,
		Seconds: time.Since(began).Seconds(), Problems: problems, ProblemsOmitted: omitted,
		Credit: cfg.Client.Credit(),
	}
	s.DamagedMore = r.DamagedMore
	for i, d := range r.Damaged {
		if i == maxProblems {
			s.DamagedOmitted = uint64(len(r.Damaged) - i)
			break
		}
		s.Damaged = append(s.Damaged, damageDoc{d.Name.String(), d.Kind.String(), d.Mine, d.Repaired})
	}
	if !cfg.DryRun {
		h, err := cfg.Client.History(cmd.Context())
		if err != nil {
			return err
		}
		t := time.Unix(0, r.Archive.Time).UTC()
		s.News = others.until(r.Archive.ID.String(), h)
		sayUnpaid(h)
		s.Archive, s.ID, s.Time = restore.Name(h, cfg.Series, r.Archive), r.Archive.ID.String(), &t
	}
	if asJSON {
		e := json.NewEncoder(cmd.OutOrStdout())
		e.SetIndent("", "  ")
		if err := e.Encode(s); err != nil {
			return fmt.Errorf("write summary: %w", err)
		}
	} else {
		s.write(cmd.OutOrStdout())
	}
	if failed != nil { // although the archive is committed
		return failed
	}
	if !s.Complete || r.Unrepaired() > 0 {
		return exit(exitUnread)
	}
	return nil
}

// write writes the summary for a person.
func (s *summary) write(w io.Writer) {
	if s.DryRun {
		fmt.Fprintf(w, "dry run of %s: nothing was stored\n", s.Series)
	} else {
		fmt.Fprintln(w, s.Archive)
	}
	fmt.Fprintf(w, "  holds      %s with %s: %d new or changed, %d unchanged\n", plural(s.Entries, "path"), size(s.Bytes), s.Stored, s.Unchanged)
	read := "read      "
	if s.DryRun {
		read = "would read"
	}
	if s.FilesRead == 0 {
		fmt.Fprintf(w, "  %s nothing: no file has changed\n", read)
	} else {
		fmt.Fprintf(w, "  %s %s with %s\n", read, plural(s.FilesRead, "file"), size(s.BytesRead))
	}
	if !s.DryRun {
		data := "no data blocks"
		if s.DataBlocks > 0 {
			data = plural(s.DataBlocks, "data block")
		}
		fmt.Fprintf(w, "  uploaded   %s and %s of the archive's tree, %s sealed; already there: %d\n", data, plural(s.MetaBlocks, "block"), size(s.BytesSent), s.KnownBlocks)
	}
	for _, x := range []struct {
		n    uint64
		what string
	}{{s.Excluded, "excluded"}, {s.Vanished, "vanished before they could be read"}, {s.Changed, "changed while they were read; stored as read"}, {s.Unreadable, "could not be read"}} {
		if x.n > 0 {
			fmt.Fprintf(w, "  %-9d  %s\n", x.n, x.what)
		}
	}
	s.writeDamage(w)
	fmt.Fprintf(w, "  took       %.1f s\n", s.Seconds)
	if len(s.News) > 0 {
		fmt.Fprintln(w, "since this machine's last archive:")
	}
	for _, d := range s.News[:min(len(s.News), maxNews)] {
		fmt.Fprintf(w, "  %s  %s by %.8s  %s\n", d.Time.Format(time.RFC3339), d.Type, d.Signer, d.What)
	}
	if more := len(s.News) - maxNews; more > 0 {
		fmt.Fprintf(w, "  and %d more; `holdfast history` shows them\n", more)
	}
}

// maxDamaged bounds the damaged blocks that a person is told of, lines.
const maxDamaged = 20

// writeDamage says what became of blocks that the service damaged. Those that are damaged still come first.
func (s *summary) writeDamage(w io.Writer) {
	if len(s.Damaged) == 0 {
		return
	}
	var lost, repaired, others []damageDoc
	for _, d := range s.Damaged {
		switch {
		case d.Repaired:
			repaired = append(repaired, d)
		case d.Mine:
			lost = append(lost, d)
		default:
			others = append(others, d)
		}
	}
	fmt.Fprintf(w, "  damaged    %s at the service: %d repaired, %d not", plural(uint64(len(s.Damaged))+s.DamagedOmitted, "block"), len(repaired), len(lost))
	if len(others) > 0 {
		fmt.Fprintf(w, ", %d for other machines of the group to repair", len(others))
	}
	if s.DamagedMore {
		fmt.Fprint(w, "; there are more, for the next run")
	}
	fmt.Fprintln(w)
	all := append(append([]damageDoc(nil), lost...), repaired...)
	for _, d := range all[:min(len(all), maxDamaged)] {
		what := "NOT repaired"
		if d.Repaired {
			what = "repaired"
		}
		fmt.Fprintf(w, "    %-12s  %s %s\n", what, d.Kind, d.Block)
	}
	if more := len(all) - maxDamaged; more > 0 {
		fmt.Fprintf(w, "    and %d more; --json lists them\n", more)
	}
	if len(lost) > 0 {
		fmt.Fprintln(w, "    this run has not what these held: blocks of another series are repaired by its own next run; of the rest,")
		fmt.Fprintln(w, "    older archives that need them have holes, and `holdfast verify` names the files. This archive is whole")
	}
}

// maxNews bounds what is told of others, lines.
const maxNews = 10

// news collects what others did to the vault: whoever reads what a nightly run says learns in time that archives
// were deleted, or a machine was enrolled, by somebody who should not have.
type news struct {
	self          holdfast.SignerID
	owner, logKey [32]byte

	docs   []recordDoc // since the machine's last complete archive
	before []recordDoc // between the one before that and it
	last   string      // that archive's id; "" if there is none
}

// take is told every record in order.
func (n *news) take(e history.Entry) {
	b, err := history.ParseBody(e.Record.Body)
	if err != nil {
		return // it was verified
	}
	if b.Signer == n.self {
		if c, err := history.ParseCommit(b.Fields); b.Type == history.TypeCommit && err == nil && !c.Partial {
			if n.last == "" {
				n.docs = nil // how the machine came in is no news to it
			}
			n.before, n.docs, n.last = n.docs, nil, e.Record.ID().String()
		}
		return
	}
	switch b.Type {
	case history.TypeOpen, history.TypeCommit, history.TypeRewrap, history.TypePurge:
		return // the daily round
	}
	n.docs = append(n.docs, recordOf(e, n.owner, n.logKey))
}

// until returns what happened before the archive that has that id, and after the complete one before it.
func (n *news) until(id string, h *history.Vault) []recordDoc {
	docs := n.docs
	if n.last == id {
		docs = n.before
	} else if n.last == "" {
		docs = nil
	}
	describe(docs, h)
	return docs
}

func problemOf(v archive.Verdict) problemDoc {
	return problemDoc{pathOf(v.Path), whatOf(v.What), v.Why}
}

func whatOf(w archive.What) string {
	switch w {
	case archive.Excluded:
		return "excluded"
	case archive.Vanished:
		return "vanished"
	case archive.Changed:
		return "changed"
	}
	return "unreadable"
}
