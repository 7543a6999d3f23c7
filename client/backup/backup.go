// Package backup makes an archive: it walks a tree in step with the catalog of the archive before,
// reads what is new, cuts, packs, seals and uploads it, builds the archive's tree, and commits.
//
// Run shows the whole job in order. The commit point is one line; before it everything is durable, and
// after it only the local catalog is renewed, which costs time when it is lost and nothing else.
//
// # What is read
//
// A file is unchanged when size, mtime, ctime (ns), inode and device all agree with the catalog; then its
// extents are taken from there. A file that changed so shortly before it was read that another change
// could leave the same times is entered into the new catalog without its state, so that it is read again
// next time. A file whose pack is less than half in use is read again as well, so that its content moves
// into a new pack.
//
// # What is trusted
//
// The catalog says what a file held when it was last read, never what the service has: a commit is
// refused while a block is missing. Then the run begins again, reading those files whose blocks the
// service named, and at last without the catalog.
//
// # Memory
//
// Bounded by constants, whatever the number and size of files, except for the extents of one file: 48
// bytes for each 256 KiB of it.
package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/catalog"
	"holdfast/client/chunk"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/seal"
	"holdfast/client/source"
	"holdfast/client/tree"
	"holdfast/history"
	"holdfast/wire"
)

const (
	// PartialEvery is how long a run goes on before it commits what it has as a partial archive.
	PartialEvery = 12 * time.Hour

	maxRuns   = 3         // over a tree, when the service says that blocks are missing
	maxSkew   = time.Hour // between this machine's clock and the service's stamp on an archive
	maxSample = 4         // blocks of a new archive that are fetched and opened at once
)

// What a run finds that the service did wrong.
var (
	// ErrClock comes with an archive that is made and whole.
	ErrClock = errors.New("the service's clock and this machine's are more than an hour apart")
	// ErrHave reports a service that has a block when it is asked, and lacks it when it matters.
	ErrHave = errors.New("the service lacks blocks that it says it has")
	// ErrNotKept comes with an archive that is committed and cannot be read.
	ErrNotKept = errors.New("the service did not keep what it said it had stored")
	// ErrSeries reports a series that this machine may not write to.
	ErrSeries = errors.New("this machine may write to certain series only")
)

// Config says what to back up and how. Client is nil for a dry run without a service.
type Config struct {
	Machine  *keyring.Machine
	Client   *remote.Client
	Series   string
	Base     string   // directory that relative roots start from; "" is the current one
	Roots    []string // at least one
	Exclude  []string // patterns, as source.CompileExclude takes them
	CacheDir string   // for the catalog; "" for none
	DryRun   bool     // say what would be done, read no content, send nothing
	// UploadAlways sends every block that is read without asking which are there: who watches the line learns
	// nothing from what is left out.
	UploadAlways bool
	Progress     *Progress
	Problem      func(archive.Verdict)      // is told of each path with a problem as it is met; may be nil
	Warn         func(message string)       // is told what the user should know; may be nil
	Partial      time.Duration              // 0 means PartialEvery
	Fault        func(string, uint64) error // as source.Options.Fault, for tests
	FaultXattrs  func(string) error         // as source.Options.FaultXattrs, for tests
}

// Progress counts as a run goes on. It may be read at any time.
type Progress struct {
	Entries atomic.Uint64 // paths walked
	Bytes   atomic.Uint64 // contents walked, whether read or not
	Read    atomic.Uint64 // bytes read
	Sent    atomic.Uint64 // sealed bytes that the service holds durably
}

// Result says what a run did.
type Result struct {
	Archive     history.Archive // zero after a dry run
	Previous    bool            // an earlier archive's catalog was used
	Counts      history.Counts
	Entries     uint64
	Bytes       uint64 // of content in the archive
	FilesRead   uint64
	BytesRead   uint64
	DataBlocks  uint64 // uploaded, of file contents and verdict lists
	DataBytes   uint64 // their plaintext
	MetaBlocks  uint64 // uploaded, of the archive's tree
	MetaBytes   uint64
	KnownBlocks uint64 // asked about and there already
	Sent        uint64 // sealed bytes uploaded
	Runs        int    // over the tree; more than one after a refused or a partial commit
	Partials    int    // partial archives committed on the way
	// Damaged is what the service said of this machine's group at the beginning, sorted by name; DamagedMore says that there is more.
	Damaged     []Damage
	DamagedMore bool
}

// Complete reports whether everything that was found could be read.
func (r Result) Complete() bool { return r.Counts.Unreadable == 0 }

// Unrepaired returns how many blocks that this machine stored are damaged still.
func (r Result) Unrepaired() (n int) {
	for _, d := range r.Damaged {
		if d.Mine && !d.Repaired {
			n++
		}
	}
	return n
}

// errPartial ends a walk that has gone on for long.
var errPartial = errors.New("time for a partial archive")

// errFull is errPartial when it goes on tomorrow, because of the machine's daily cap.
var errFull = fmt.Errorf("%w: the daily cap is nearly used up", errPartial)

// Run makes one archive.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if cfg.Progress == nil {
		cfg.Progress = new(Progress)
	}
	if cfg.Warn == nil {
		cfg.Warn = func(string) {}
	}
	if cfg.Problem == nil {
		cfg.Problem = func(archive.Verdict) {}
	}
	if cfg.Partial == 0 {
		cfg.Partial = PartialEvery
	}
	rules, err := source.CompileExclude(cfg.Exclude)
	if err != nil {
		return Result{}, err
	}
	var sum Result
	distrust := map[holdfast.Name]bool{} // blocks that the service said are missing, or damaged
	var known known
	for refused := 0; ; {
		r := run{cfg: cfg, rules: rules, distrust: distrust, known: &known, blind: refused == maxRuns-1}
		res, err := r.once(ctx)
		sum = sum.plus(res)
		names, missing := remote.Missing(err)
		switch {
		case missing && refused < maxRuns-1:
			refused++
			for _, n := range names {
				distrust[n] = true
			}
			cfg.Warn("the service lacks blocks that it should have; reading their files again")
		case missing: // and all were asked for, or acknowledged, in this very run
			which := "and does not say which"
			if len(names) > 0 {
				which = fmt.Sprintf("block %.8s among them", names[0])
			}
			return sum, fmt.Errorf("make an archive of %s: %w, %s (%w)", cfg.Series, ErrHave, which, err)
		case errors.Is(err, errFull):
			sum.Partials++
			return sum, r.today.refusal()
		case errors.Is(err, errPartial):
			sum.Partials++
		default:
			return sum, err
		}
		p := cfg.Progress
		p.Entries.Store(0)
		p.Bytes.Store(0)
	}
}

// plus adds what a later run over the same tree did.
func (r Result) plus(next Result) Result {
	next.Runs += r.Runs
	next.Partials += r.Partials
	next.FilesRead += r.FilesRead
	next.BytesRead += r.BytesRead
	next.DataBlocks += r.DataBlocks
	next.DataBytes += r.DataBytes
	next.MetaBlocks += r.MetaBlocks
	next.MetaBytes += r.MetaBytes
	next.KnownBlocks += r.KnownBlocks
	next.Sent += r.Sent
	return next
}

// run is one walk over the tree.
type run struct {
	cfg      Config
	rules    *source.Rules
	distrust map[holdfast.Name]bool
	known    *known // of damaged blocks; the same for all walks of a run
	blind    bool   // use no catalog

	keys     keyring.GroupKeys
	prev     *previous
	pipe     *pipeline
	today    *allowance // nil without a daily cap
	tree     *tree.Builder
	catalog  *catalog.Writer // nil if there is none
	pack     *packer
	verdicts *archive.VerdictWriter
	chunker  *chunk.Chunker
	lost     map[string]archive.Verdict // first names of hard links that could not be stored
	small    []byte
	res      Result
}

// once makes one pass. It returns errPartial after it has committed a partial archive.
func (r *run) once(ctx context.Context) (res Result, err error) {
	cfg := r.cfg
	began := time.Now()
	r.res.Runs = 1
	r.keys = cfg.Machine.GroupKeys()
	r.lost = map[string]archive.Verdict{}
	series := cfg.Machine.Series(cfg.Series)
	binding := catalog.Binding{Vault: cfg.Machine.Vault, Signer: cfg.Machine.Signer(), Series: series}

	// 1. What the vault's history says, verified; in it the archive that this one follows.
	if cfg.Client != nil {
		vault, err := cfg.Client.History(ctx)
		if err != nil {
			return r.res, err
		}
		if e := vault.Machines[binding.Signer].Enrol; !e.MayCommit(series) {
			return r.res, fmt.Errorf("%w: %q is none of the %d that the owner named when it was enrolled", ErrSeries, cfg.Series, len(e.Series))
		} else if (e.DayBytes > 0 || e.DayBlocks > 0) && !cfg.DryRun {
			c, err := cfg.Client.Today(ctx)
			if err != nil {
				return r.res, err
			}
			r.today = newAllowance(c)
		}
		for _, a := range vault.Archives {
			if a.Commit.Series == series && a.Signer == binding.Signer {
				binding.Archive = a.ID
			}
		}
	}

	// Then which blocks are damaged: the catalog is not to be believed in these.
	if err := r.learn(ctx); err != nil {
		return r.res, err
	}

	// 2. The catalog of that archive, if there is one that can be used.
	catalogPath := filepath.Join(cfg.CacheDir, "catalog-"+series.String())
	catalogKey := keyring.Derive(cfg.Machine.Seed, "catalog")
	if cfg.CacheDir != "" && !r.blind && binding.Archive != (holdfast.RecordID{}) {
		rd, err := catalog.Open(catalogPath, catalogKey, binding)
		switch {
		case err == nil:
			defer rd.Close()
			r.res.Previous = true
			r.prev = newPrevious(rd, r.distrust)
		case !errors.Is(err, fs.ErrNotExist):
			cfg.Warn(fmt.Sprintf("%v; every file is read again", err))
		}
	}
	if cfg.DryRun {
		return r.res, r.dry(ctx)
	}

	// 3. A session. Its secret exists in memory only; its record is durable before its first block.
	sess, err := cfg.Client.OpenSession(ctx)
	if err != nil {
		return r.res, err
	}
	defer sess.Close()
	r.pipe = newPipeline(ctx, sess, &r.keys, !cfg.UploadAlways, r.today)
	defer r.pipe.close()
	defer func() {
		r.pipe.cancel(err)
		r.count(sess)
		res = r.res
	}()
	stop := r.reportSent(sess)
	defer stop()
	ctx = r.pipe.ctx // an upload that fails ends the walk

	// 4. Walk and read. Blocks go into the pipeline, entries into the tree and the new catalog.
	r.tree = tree.NewBuilder(&r.keys.Meta, func(_ context.Context, kind holdfast.Kind, plain []byte, links []holdfast.Name) (holdfast.Name, error) {
		return r.pipe.put(kind, plain, links, nil, false)
	})
	r.verdicts = archive.NewVerdictWriter(&r.keys.Meta, func(_ context.Context, plain []byte) (holdfast.Name, error) {
		return r.pipe.put(holdfast.KindChunk, plain, nil, nil, false)
	})
	r.createCatalog(catalogPath, catalogKey)
	defer func() {
		if r.catalog != nil {
			r.catalog.Abort()
		}
	}()
	r.pack = &packer{pipe: r.pipe, totals: map[holdfast.Name]uint64{}, emit: func(it *catalog.Item) error { return r.emit(ctx, it) }}
	walk := source.Walk(ctx, cfg.Base, cfg.Roots, source.Options{Exclude: r.rules, Fault: cfg.Fault, FaultXattrs: cfg.FaultXattrs}, func(it *source.Item) error {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if time.Since(began) > cfg.Partial && r.res.Counts.Stored > 0 {
			return errPartial
		}
		return r.item(ctx, it)
	})
	if walk != nil && !errors.Is(walk, errPartial) {
		return r.res, r.cause(walk)
	}
	if err := r.pack.close(); err != nil {
		return r.res, r.cause(err)
	}

	// 5. The root: it names the tree and the verdict list.
	root := archive.Root{
		Time: began.UnixNano(), Host: hostname(), User: username(), Series: cfg.Series, Client: holdfast.Version,
		Roots: cfg.Roots, Counts: r.res.Counts, Prev: binding.Archive,
	}
	for _, x := range cfg.Exclude {
		root.Args = append(root.Args, "--exclude", x)
	}
	if root.Tree, root.Height, err = r.tree.Finish(ctx); err != nil {
		return r.res, r.cause(err)
	}
	if root.Verdicts, err = r.verdicts.Finish(ctx); err != nil {
		return r.res, r.cause(err)
	}
	root.Entries, root.Bytes = r.tree.Entries(), r.tree.Bytes()
	r.res.Entries, r.res.Bytes = root.Entries, root.Bytes
	plain, links, err := root.Encode()
	if err != nil {
		return r.res, fmt.Errorf("encode archive: %w", err)
	}
	name, err := r.pipe.put(holdfast.KindArchive, plain, links, nil, false)
	if err != nil {
		return r.res, r.cause(err)
	}

	// 6. Everything is durable after this.
	if err := r.pipe.finish(); err != nil {
		return r.res, r.cause(err)
	}
	r.count(sess)

	// 7. The commit. A crash before it leaves blocks that the next run finds; after it, an archive.
	r.res.Archive, err = sess.Commit(ctx, history.Commit{
		Series: series, Root: name, Blocks: sess.Stats().Stored, Partial: walk != nil, Counts: r.res.Counts,
	})
	if err != nil {
		return r.res, r.cause(err)
	}
	skew := time.Since(time.Unix(0, r.res.Archive.Time))

	// 8. Was that the truth? A few blocks are read back. If they are not there, the old catalog stays, which
	// does not fit this archive: the next run reads every file again and asks for all blocks.
	if walk == nil {
		if err := r.readBack(ctx); err != nil {
			return r.res, err
		}
	}

	// 9. What the service damaged of earlier archives, as far as the old catalog still tells what it was.
	r.res.Damaged, r.res.DamagedMore = r.repair(ctx, sess, catalogPath, catalogKey, binding), r.known.more
	r.keepRoot(r.rootsPath(series), plain)

	// 10. The new catalog. If this fails or never happens, the next run reads every file again.
	binding.Archive = r.res.Archive.ID
	r.finishCatalog(binding, walk != nil)
	if walk != nil {
		return r.res, walk
	}
	if skew.Abs() > maxSkew {
		where := "in the past"
		if skew < 0 {
			where = "in the future"
		}
		return r.res, fmt.Errorf("the archive is made, but %w: it is stamped %s, %v %s", ErrClock,
			time.Unix(0, r.res.Archive.Time).UTC().Format(time.RFC3339), skew.Abs().Round(time.Minute), where)
	}
	return r.res, nil
}

// readBack fetches and opens some blocks of a committed archive, chosen so that the service cannot know which.
// A service that keeps nothing is found at once, one that drops a block here and there by `holdfast verify`.
func (r *run) readBack(ctx context.Context) error {
	m := r.cfg.Machine
	reader, err := seal.NewReader(m)
	if errors.Is(err, keyring.ErrNoReadKey) {
		return nil // a machine that only writes cannot
	}
	if err != nil {
		return err
	}
	h, err := r.cfg.Client.History(ctx)
	if err != nil {
		return r.excuse(err)
	}
	if h.ReadKey != m.ReadKey {
		r.cfg.Warn("the vault has another read key than this machine, so this machine cannot read what it stores now; run `holdfast key update`. If you did not rotate the key, somebody else has the owner's words")
	}
	if err := reader.AddSessions(h); err != nil {
		return err
	}
	err = r.cfg.Client.FetchAny(ctx, m.Group, r.pipe.sample, func(name holdfast.Name, sealed []byte) (bad, err error) {
		if r.readable(h, sealed) {
			_, _, bad = reader.Open(m.Group, name, sealed)
		}
		return bad, nil
	}, func(name holdfast.Name, _ int, newest error) error {
		return fmt.Errorf("the archive is committed, but %w: block %.8s: %w", ErrNotKept, name, newest)
	})
	return r.excuse(err)
}

// excuse lets pass what keeps this machine from reading back for now: the archive is made all the same.
func (r *run) excuse(err error) error {
	var away *remote.UnavailableError
	if errors.As(err, &away) || wire.CodeOf(err) != "" {
		r.cfg.Warn(fmt.Sprintf("the archive is made; a sample of it could not be read back: %v", err))
		return nil
	}
	return err
}

// readable reports whether the secret of a block's session is wrapped for this machine's read key. Around a
// rotation of that key, it need not be.
func (r *run) readable(h *history.Vault, sealed []byte) bool {
	b, _, err := wire.ParseBlockHeader(sealed)
	s, ok := h.Sessions[b.Session]
	if err != nil || !ok {
		return true // and opening it will fail, as it should
	}
	return s.WrappedFor(history.ReadKeyIDOf(r.cfg.Machine.ReadKey[:]))
}

// cause prefers the error that ended the pipeline to one that followed from it.
func (r *run) cause(err error) error {
	if c := context.Cause(r.pipe.ctx); c != nil {
		return c
	}
	return err
}

// item deals with one path that the walk met.
func (r *run) item(ctx context.Context, it *source.Item) error {
	c := &r.res.Counts
	r.cfg.Progress.Entries.Add(1)
	e := &it.Entry
	switch it.Verdict.What {
	case archive.Excluded:
		c.Excluded++
		return r.verdicts.Add(ctx, archive.Verdict{Path: e.Path, What: archive.Excluded, Why: it.Verdict.Why})
	case archive.Vanished:
		return r.problem(ctx, it, archive.Vanished, it.Verdict.Why)
	case archive.Unreadable:
		if err := r.problem(ctx, it, archive.Unreadable, it.Verdict.Why); err != nil || e.Type == 0 {
			return err // with no type, nothing is known of it
		}
	}
	stat := catalog.Stat{Size: it.Stat.Size, Mtime: it.Stat.Mtime, Ctime: it.Stat.Ctime, Inode: it.Stat.Inode, Device: it.Stat.Device}
	out := &catalog.Item{Entry: *e, Stat: stat}
	e = &out.Entry
	if it.Verdict.What == archive.Unreadable {
		out.Stat = catalog.Stat{}
	}
	if e.Link != "" {
		if v, ok := r.lost[e.Link]; ok {
			// Its first name is not in the archive, or without content, so this one cannot refer to it.
			if err := r.problem(ctx, it, archive.Unreadable, "its other name "+fmt.Sprintf("%q", v.Path)+" could not be read: "+v.Why); err != nil {
				return err
			}
			if v.What != archive.Unreadable {
				return nil
			}
			e.Link, e.Flags, out.Stat = "", e.Flags|archive.FlagUnreadable, catalog.Stat{}
		}
	}
	if err := e.Check(); err != nil && !isFile(e) {
		r.lose(it, archive.Unreadable, err.Error())
		return r.problem(ctx, it, archive.Unreadable, err.Error())
	}
	old, renew := r.prev.find(e.Path)
	same := old != nil && old.Entry.Type == e.Type && (old.Entry.Link == "") == (e.Link == "") && old.Stat.Same(out.Stat)
	if !isFile(e) {
		r.tally(same)
		return r.pack.add(out)
	}
	if same && !renew {
		e.Extents, e.Content, e.Size = old.Entry.Extents, old.Entry.Content, old.Entry.Size
		if err := e.Check(); err == nil {
			r.tally(true)
			r.cfg.Progress.Bytes.Add(e.Size)
			return r.pack.add(out)
		}
		e.Extents, e.Content = nil, [16]byte{}
	}
	if renew {
		old = nil
	}
	return r.file(ctx, it, out, same, old)
}

// isFile reports whether e's content is to be read.
func isFile(e *archive.Entry) bool {
	return e.Type == archive.TypeFile && e.Link == "" && e.Flags&archive.FlagUnreadable == 0
}

func (r *run) tally(same bool) {
	if same {
		r.res.Counts.Unchanged++
	} else {
		r.res.Counts.Stored++
	}
}

// problem records a verdict on a path.
func (r *run) problem(ctx context.Context, it *source.Item, what archive.What, why string) error {
	switch what {
	case archive.Vanished:
		r.res.Counts.Vanished++
	case archive.Changed:
		r.res.Counts.Changed++
	case archive.Unreadable:
		r.res.Counts.Unreadable++
	}
	v := archive.Verdict{Path: it.Entry.Path, What: what, Why: why}
	r.cfg.Problem(v)
	return r.verdicts.Add(ctx, v)
}

// lose remembers that the archive has no content under this path, so that no other name of the file refers
// to it.
func (r *run) lose(it *source.Item, what archive.What, why string) {
	if it.Stat.Nlink > 1 && it.Entry.Link == "" {
		r.lost[it.Entry.Path] = archive.Verdict{Path: it.Entry.Path, What: what, Why: why}
	}
}

// file reads a file's content into out and hands it on. same says that only its pack is to be renewed; if
// that is not the reason, old is the file as the catalog has it, or nil.
func (r *run) file(ctx context.Context, it *source.Item, out *catalog.Item, same bool, old *catalog.Item) error {
	if r.res.FilesRead > 0 && !r.today.room(it.Stat.Size) {
		return errFull
	}
	now := time.Now()
	told := it.Verdict.What != 0 // a path gets one verdict
	f, err := it.Open()
	if err != nil {
		if errors.Is(err, source.ErrVanished) && !told {
			r.lose(it, archive.Vanished, err.Error())
			return r.problem(ctx, it, archive.Vanished, err.Error())
		}
		return r.unreadable(ctx, it, out, err, told)
	}
	defer f.Close()
	// Opening brought these up to date.
	xattrs := out.Entry.Xattrs
	out.Entry = it.Entry
	if out.Entry.Xattrs == nil {
		out.Entry.Xattrs = xattrs
	}
	e := &out.Entry
	e.Extents = nil
	out.Stat = catalog.Stat{Size: it.Stat.Size, Mtime: it.Stat.Mtime, Ctime: it.Stat.Ctime, Inode: it.Stat.Inode, Device: it.Stat.Device}
	r.res.FilesRead++
	small := e.Size <= SmallFile
	var hash holdfast.Name
	var cut bool
	if small {
		hash, cut, err = r.readSmall(f, e)
	} else {
		err = r.readLarge(f, e)
	}
	if err != nil {
		if c := context.Cause(ctx); c != nil {
			return c
		}
		return r.unreadable(ctx, it, out, err, told)
	}
	changed, err := f.Check()
	if err != nil {
		return r.unreadable(ctx, it, out, err, told)
	}
	if changed || cut {
		e.Flags |= archive.FlagChanged
		out.Stat = catalog.Stat{}
		if !told {
			if err := r.problem(ctx, it, archive.Changed, "changed while it was read; stored as read"); err != nil {
				return err
			}
		}
	} else {
		r.tally(same)
		if told || it.Stat.Recent(now) {
			out.Stat = catalog.Stat{}
		}
	}
	if err := e.Check(); err != nil {
		return r.unreadable(ctx, it, out, err, told)
	}
	if small {
		if old != nil && sameContent(&old.Entry, e) {
			e.Extents = old.Entry.Extents // touched and not changed: packing it anew would store it twice
			return r.pack.add(out)
		}
		return r.pack.addSmall(out, r.small, hash)
	}
	return r.pack.add(out)
}

// sameContent reports whether two entries of small files have the same content, holes included.
func sameContent(a, b *archive.Entry) bool {
	return a.Content != [16]byte{} && a.Content == b.Content && a.Size == b.Size &&
		slices.EqualFunc(a.Extents, b.Extents, func(x, y archive.Extent) bool { return x.Kind == y.Kind && x.Len == y.Len })
}

// unreadable stores an entry without content.
func (r *run) unreadable(ctx context.Context, it *source.Item, out *catalog.Item, why error, told bool) error {
	r.lose(it, archive.Unreadable, why.Error())
	if !told {
		if err := r.problem(ctx, it, archive.Unreadable, why.Error()); err != nil {
			return err
		}
	}
	e := &out.Entry
	e.Flags |= archive.FlagUnreadable
	e.Extents, e.Content, e.Size = nil, [16]byte{}, it.Stat.Size
	out.Stat = catalog.Stat{}
	if e.Check() != nil {
		return nil // nothing of it can be stored; the verdict says so
	}
	return r.pack.add(out)
}

// readSmall reads a file into r.small (its data without the holes) and sets e's extents, size and hash.
// cut says that there was more than a small file holds: it grew since it was opened.
func (r *run) readSmall(f *source.File, e *archive.Entry) (hash holdfast.Name, cut bool, err error) {
	r.small = r.small[:0]
	var whole []byte // with the holes, if there are any
	var size uint64
	for !cut {
		reg, err := f.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return hash, false, err
		}
		if reg.Hole {
			n := min(reg.Len, SmallFile-size)
			cut = n < reg.Len
			if n == 0 {
				continue
			}
			if whole == nil {
				whole = append(make([]byte, 0, SmallFile), r.small...)
			}
			whole = append(whole, make([]byte, n)...)
			e.Extents = append(e.Extents, archive.Extent{Len: n})
			size += n
			continue
		}
		begin := len(r.small)
		for {
			if cap(r.small)-len(r.small) < SmallFile/4 {
				r.small = append(make([]byte, 0, cap(r.small)+SmallFile), r.small...)
			}
			n, err := f.Read(r.small[len(r.small):cap(r.small)])
			r.small = r.small[:len(r.small)+n]
			if over := int(size) + len(r.small) - begin - SmallFile; over > 0 {
				r.small, cut = r.small[:len(r.small)-over], true
				break
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				return hash, false, err
			}
		}
		data := r.small[begin:]
		r.progress(uint64(len(data)))
		if len(data) == 0 {
			continue
		}
		if whole != nil {
			whole = append(whole, data...)
		}
		e.Extents = append(e.Extents, archive.Extent{Kind: holdfast.KindPack, Len: uint64(len(data))})
		size += uint64(len(data))
	}
	e.Size = size
	if len(r.small) == 0 {
		return hash, cut, nil
	}
	if whole == nil {
		whole = r.small
	}
	hash = r.keys.NameOf(holdfast.KindChunk, whole)
	copy(e.Content[:], hash[:])
	return hash, cut, nil
}

// readLarge reads a file as chunks and sets e's extents and size.
func (r *run) readLarge(f *source.File, e *archive.Entry) error {
	e.Size = 0
	for {
		reg, err := f.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if reg.Hole {
			if reg.Len > 0 {
				e.Extents = append(e.Extents, archive.Extent{Len: reg.Len})
				e.Size += reg.Len
				r.cfg.Progress.Bytes.Add(reg.Len)
			}
			continue
		}
		if r.chunker == nil {
			r.chunker = chunk.New(f, &r.keys.Data, int(r.cfg.Machine.Chunk))
		} else {
			r.chunker.Reset(f)
		}
		for {
			buf := buffer()
			plain, err := r.chunker.Next(buf)
			if err == io.EOF {
				buffers.Put(&buf)
				break
			}
			if err != nil {
				return err
			}
			n := uint64(len(plain))
			r.progress(n)
			name, err := r.pipe.put(holdfast.KindChunk, plain, nil, nil, true)
			if err != nil {
				return err
			}
			e.Extents = append(e.Extents, archive.Extent{Kind: holdfast.KindChunk, Name: name, Len: n})
			e.Size += n
		}
	}
}

func buffer() []byte {
	if b, ok := buffers.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return make([]byte, 0, history.DefaultChunk+history.DefaultChunk/2)
}

func (r *run) progress(n uint64) {
	r.res.BytesRead += n
	r.cfg.Progress.Read.Add(n)
	r.cfg.Progress.Bytes.Add(n)
}

// emit takes entries whose extents are complete, in the archive's order.
func (r *run) emit(ctx context.Context, it *catalog.Item) error {
	if err := r.tree.Add(ctx, &it.Entry); err != nil {
		return err
	}
	if r.catalog != nil {
		if err := r.catalog.Add(it); err != nil {
			r.dropCatalog(err)
		}
	}
	return nil
}

func (r *run) createCatalog(path string, key holdfast.Key) {
	if r.cfg.CacheDir == "" {
		return
	}
	err := os.MkdirAll(r.cfg.CacheDir, 0o700)
	if err == nil {
		r.catalog, err = catalog.Create(path, key)
	}
	if err != nil {
		r.catalog = nil
		r.dropCatalog(err)
	}
}

// dropCatalog goes on without a new catalog: no space for a cache is no reason to have no backup.
func (r *run) dropCatalog(err error) {
	if r.catalog != nil {
		r.catalog.Abort()
		r.catalog = nil
	}
	r.cfg.Warn(fmt.Sprintf("cannot keep a catalog (%v); the next backup will read every file again, give it room with --cache", err))
}

func (r *run) finishCatalog(b catalog.Binding, partial bool) {
	if r.catalog == nil {
		return
	}
	totals := r.pack.totals
	if r.prev != nil {
		for name, k := range r.prev.packs {
			totals[name] = k.Total
		}
	}
	if partial {
		// What the walk did not reach is not in the partial archive. The next walk still profits from
		// knowing it, and whether its blocks are there the service checks at the next commit.
		for r.prev != nil && r.prev.next != nil {
			if err := r.catalog.Add(r.prev.next); err != nil {
				r.dropCatalog(err)
				return
			}
			r.prev.advance()
		}
	}
	if err := r.catalog.Finish(b, totals); err != nil {
		r.dropCatalog(err)
	}
	r.catalog = nil
}

// count takes over what the pipeline and the session have counted.
func (r *run) count(sess *remote.Session) {
	r.pipe.mu.Lock()
	defer r.pipe.mu.Unlock()
	r.res.DataBlocks, r.res.DataBytes = r.pipe.count.data, r.pipe.bytes.data
	r.res.MetaBlocks, r.res.MetaBytes = r.pipe.count.meta, r.pipe.bytes.meta
	r.res.KnownBlocks = r.pipe.count.known
	r.res.Sent = sess.Stats().Bytes
}

// reportSent keeps Progress.Sent up to date until the returned function is called.
func (r *run) reportSent(sess *remote.Session) (stop func()) {
	done, finished := make(chan struct{}), make(chan struct{})
	before := r.cfg.Progress.Sent.Load()
	go func() {
		defer close(finished)
		t := time.NewTicker(200 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				r.cfg.Progress.Sent.Store(before + sess.Stats().Acked)
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-finished }
}

// dry walks and compares, and reads no content.
func (r *run) dry(ctx context.Context) error {
	return source.Walk(ctx, r.cfg.Base, r.cfg.Roots, source.Options{Exclude: r.rules}, func(it *source.Item) error {
		c := &r.res.Counts
		r.cfg.Progress.Entries.Add(1)
		switch it.Verdict.What {
		case archive.Excluded:
			c.Excluded++
			return nil
		case archive.Vanished:
			c.Vanished++
			return nil
		case archive.Unreadable:
			c.Unreadable++
			r.cfg.Problem(archive.Verdict{Path: it.Entry.Path, What: archive.Unreadable, Why: it.Verdict.Why})
			return nil
		}
		r.res.Entries++
		stat := catalog.Stat{Size: it.Stat.Size, Mtime: it.Stat.Mtime, Ctime: it.Stat.Ctime, Inode: it.Stat.Inode, Device: it.Stat.Device}
		old, renew := r.prev.find(it.Entry.Path)
		same := old != nil && old.Entry.Type == it.Entry.Type && old.Stat.Same(stat)
		r.tally(same)
		if isFile(&it.Entry) {
			r.res.Bytes += it.Entry.Size
			if !same || renew {
				r.res.FilesRead++
				r.res.BytesRead += it.Entry.Size
			}
		}
		return context.Cause(ctx)
	})
}

func hostname() string {
	h, _ := os.Hostname() // an archive without it is no worse
	return h
}

func username() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}
