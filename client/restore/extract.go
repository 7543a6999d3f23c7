package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/keyring"
	"holdfast/client/target"
	"holdfast/client/tree"
	"holdfast/history"
)

// Limits of one window, and of what is remembered beyond it.
const (
	windowFiles  = 250_000
	windowPieces = 500_000
	windowBytes  = 48 << 20 // of memory for entries, estimated

	maxFirsts = 1 << 16 // first names of hard links that are remembered as good
)

// ErrUnread marks an entry that could not be read when the archive was made, so that its content is not in it.
var ErrUnread = errors.New("it could not be read when the archive was made, so its content is not in the archive")

// Result says what a run did.
type Result struct {
	Entries  uint64 // restored or checked
	Files    uint64
	Bytes    uint64 // of content
	Kept     uint64 // files that were there already and are right
	Blocks   uint64 // fetched
	Fetched  uint64 // sealed bytes fetched
	Problems uint64 // paths that could not be restored or verified
	Unread   uint64 // of these, paths whose content is not in the archive
	Damaged  uint64 // of these, paths that need a damaged or missing block
	Warnings []target.Warning
}

// Plus adds what another run did.
func (r Result) Plus(o Result) Result {
	r.Entries += o.Entries
	r.Files += o.Files
	r.Bytes += o.Bytes
	r.Kept += o.Kept
	r.Blocks += o.Blocks
	r.Fetched += o.Fetched
	r.Problems += o.Problems
	r.Unread += o.Unread
	r.Damaged += o.Damaged
	return r
}

// Options say what to extract and whom to tell.
type Options struct {
	Paths      []string // archive paths; none means everything
	Privileged bool
	Progress   *Progress     // may be nil
	Problem    func(Problem) // is told of each problem as it is met, from one goroutine at a time; may be nil
}

// Extract restores an archive into dir. Paths with problems are reported and counted, and the rest is
// restored; an error ends the run, and the same call goes on from there later.
func (v *Vault) Extract(ctx context.Context, a history.Archive, dir string, opt Options) (res Result, err error) {
	root, err := v.Root(ctx, a)
	if err != nil {
		return res, err
	}
	t := v.Tree(a, root)
	paths, parents, err := choose(ctx, t, opt.Paths)
	if err != nil {
		return res, err
	}
	to, err := target.Open(dir, target.Options{Privileged: opt.Privileged})
	if err != nil {
		return res, err
	}
	defer func() {
		if cerr := to.Close(); err == nil {
			err = cerr
		}
	}()
	r, err := v.newRun(ctx, a, opt)
	if err != nil {
		return res, err
	}
	r.to, r.tree, r.paths = to, t, paths
	for _, e := range parents {
		if err := to.Mkdir(e); err != nil {
			return r.result(), err
		}
	}
	walkErr := r.walk(t, paths)
	// What was planned before the walk failed is still restored.
	if ctx.Err() != nil {
		return r.result(), context.Cause(ctx)
	}
	if err := r.flush(); err != nil {
		return r.result(), err
	}
	if walkErr != nil && !Damaged(walkErr) {
		return r.result(), walkErr // not finished: the target stays one that can be gone on with
	}
	if err := to.FinishDirs(); err != nil {
		return r.result(), err
	}
	res = r.result()
	res.Warnings = to.Warnings()
	return res, walkErr
}

// choose resolves the paths that a user named, outermost first, and finds the directories above them.
func choose(ctx context.Context, t *tree.Tree, given []string) (paths []string, parents []*archive.Entry, err error) {
	if len(given) == 0 {
		return []string{""}, nil, nil
	}
	for _, p := range given {
		var parts []string
		for c := range strings.SplitSeq(p, "/") {
			if c == ".." {
				return nil, nil, fmt.Errorf("path %q: an archive has no \"..\"; name the path as `holdfast list` shows it", p)
			}
			if c != "" && c != "." {
				parts = append(parts, c)
			}
		}
		paths = append(paths, strings.Join(parts, "/"))
	}
	slices.SortFunc(paths, archive.ComparePaths)
	kept := paths[:0]
	for _, p := range paths {
		if p == "" {
			return []string{""}, nil, nil
		}
		if n := len(kept); n == 0 || !below(p, kept[n-1]) {
			kept = append(kept, p)
		}
	}
	seen := map[string]bool{}
	for _, p := range kept {
		for i, c := range p {
			if c != '/' || seen[p[:i]] {
				continue
			}
			seen[p[:i]] = true
			switch e, err := t.Lookup(ctx, p[:i]); {
			case err == nil && e.Type == archive.TypeDir:
				parents = append(parents, e)
			case err != nil && !errors.Is(err, tree.ErrNotFound):
				return nil, nil, err
			}
		}
		if _, err := t.Lookup(ctx, p); err != nil {
			return nil, nil, fmt.Errorf("%w; `holdfast list ARCHIVE` shows what is in it", err)
		}
	}
	return kept, parents, nil
}

// below reports whether p is dir or inside it.
func below(p, dir string) bool {
	return dir == "" || p == dir || (strings.HasPrefix(p, dir) && p[len(dir)] == '/')
}

// run is one extraction or verification. Its fields belong to the walking goroutine except where they
// are atomic or mu is named.
type run struct {
	ctx    context.Context
	v      *Vault
	a      history.Archive
	opt    Options
	keys   keyring.GroupKeys
	tree   *tree.Tree
	paths  []string
	to     *target.Target            // nil when verifying
	seen   map[[16]byte]uint32       // when verifying: blocks that are good, and the length of their plaintext
	firsts map[string]bool           // first names of hard links that were looked up and are good
	moved  map[string]*archive.Entry // first names of hard links that were not chosen: the entry that stands for them

	// The window.
	files  []*file
	pieces []piece
	late   []*archive.Entry // links and special files: after the files
	memory int

	mu       sync.Mutex // guards problems and, when verifying, seen
	problems struct{ all, unread, damaged uint64 }
	entries  uint64
	done     atomic.Uint64 // files
	kept     atomic.Uint64
	blocks   atomic.Uint64
	before   uint64 // Progress.Bytes and Fetched when the run began
	beforeF  uint64
}

// file is a file of the window.
type file struct {
	e    *archive.Entry
	to   *target.File
	left atomic.Int32 // pieces that are not written yet
	bad  atomic.Bool
}

// piece is a range of a block's plaintext and where it belongs.
type piece struct {
	name holdfast.Name
	file uint32
	off  uint32 // in the block
	len  uint32
	kind holdfast.Kind
	at   uint64 // in the file
}

func (v *Vault) newRun(ctx context.Context, a history.Archive, opt Options) (*run, error) {
	keys, err := v.m.GroupKeysOf(a.Commit.Group)
	if err != nil {
		return nil, err
	}
	if opt.Progress == nil {
		opt.Progress = new(Progress)
	}
	if opt.Problem == nil {
		opt.Problem = func(Problem) {}
	}
	r := &run{ctx: ctx, v: v, a: a, opt: opt, keys: keys, moved: map[string]*archive.Entry{}, firsts: map[string]bool{}}
	r.before, r.beforeF = opt.Progress.Bytes.Load(), opt.Progress.Fetched.Load()
	return r, nil
}

func (r *run) result() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Result{
		Entries: r.entries, Files: r.done.Load(), Kept: r.kept.Load(), Blocks: r.blocks.Load(),
		Bytes: r.opt.Progress.Bytes.Load() - r.before, Fetched: r.opt.Progress.Fetched.Load() - r.beforeF,
		Problems: r.problems.all, Unread: r.problems.unread, Damaged: r.problems.damaged,
	}
}

// problem reports that a path could not be dealt with.
func (r *run) problem(path string, err error) { r.report(Problem{Path: path, Err: err}, 1) }

// report counts a problem of that many paths and tells of it.
func (r *run) report(p Problem, paths uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems.all += paths
	if errors.Is(p.Err, ErrUnread) {
		r.problems.unread += paths
	}
	if Damaged(p.Err) {
		r.problems.damaged += paths
	}
	r.opt.Problem(p)
}

// lost reports a part of the tree that cannot be read, and with it what it is of.
func (r *run) lost(l tree.Lost) error {
	r.opt.Progress.Entries.Add(l.Entries)
	r.entries += l.Entries
	r.report(LostPart(l), max(l.Entries, 1))
	return nil
}

// LostPart says which paths are missing because a part of the archive's tree cannot be read.
func LostPart(l tree.Lost) Problem {
	if l.Before == l.From {
		return Problem{l.From, l.Err}
	}
	to := "the end"
	if l.Before != "" {
		to = fmt.Sprintf("%q", l.Before)
	}
	return Problem{l.From, fmt.Errorf("the archive's list of paths cannot be read from here up to %s (paths: %d): %w", to, l.Entries, l.Err)}
}

// local sorts out an error of the target: one that will meet every path ends the run, and one of this
// path alone is reported.
func (r *run) local(path string, err error) error {
	for _, f := range []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EIO, syscall.ENODEV} {
		if errors.Is(err, f) {
			return fmt.Errorf("restore %q: %w; make room or choose another --target, then run the same command again: it goes on from here", path, err)
		}
	}
	r.problem(path, err)
	return nil
}

func (r *run) walk(t *tree.Tree, paths []string) error {
	for _, p := range paths {
		if err := t.Walk(r.ctx, tree.Span{Prefix: p, Lost: r.lost}, r.entry); err != nil {
			return err
		}
	}
	return nil
}

// entry plans one entry, and runs the window when it is full.
func (r *run) entry(e *archive.Entry) error {
	r.opt.Progress.Entries.Add(1)
	r.entries++
	if e.Link != "" && r.to != nil && !r.chosen(e.Link) {
		// The file's first name is not being restored. The first of its other names stands for it.
		if first := r.moved[e.Link]; first != nil {
			e.Link = first.Path
		} else {
			whole, err := r.first(e)
			if err != nil {
				return r.damaged(e.Path, err)
			}
			r.moved[e.Link] = e
			e.Size, e.Target, e.Extents, e.Content, e.Link = whole.Size, whole.Target, whole.Extents, whole.Content, ""
			e.Flags |= whole.Flags & archive.FlagUnreadable
		}
	}
	if e.Flags&archive.FlagUnreadable != 0 {
		r.problem(e.Path, ErrUnread)
		if e.Type != archive.TypeDir {
			return nil
		}
	}
	switch {
	case e.Type == archive.TypeDir:
		if r.to != nil {
			if err := r.to.Mkdir(e); err != nil {
				return r.local(e.Path, err)
			}
		}
		return nil
	case e.Link != "" || e.Type != archive.TypeFile:
		if r.to == nil {
			if e.Link != "" && !r.firsts[e.Link] {
				if _, err := r.first(e); err != nil {
					return r.damaged(e.Path, err)
				}
			}
		} else {
			r.late = append(r.late, e)
			r.memory += 300 + len(e.Path) + len(e.Target)
		}
	default:
		if err := r.file(e); err != nil {
			return err
		}
	}
	if len(r.files) >= windowFiles || len(r.pieces) >= windowPieces || r.memory >= windowBytes {
		return r.flush()
	}
	return nil
}

// first returns the entry of which e is another name. An error that is Damaged is about e alone.
func (r *run) first(e *archive.Entry) (*archive.Entry, error) {
	first, err := r.tree.Lookup(r.ctx, e.Link)
	switch {
	case errors.Is(err, tree.ErrNotFound):
		return nil, fmt.Errorf("%w: it is another name of %q, which is not in the archive", archive.ErrDamaged, e.Link)
	case err != nil:
		return nil, fmt.Errorf("it is another name of %q: %w", e.Link, err)
	case first.Type != e.Type || first.Link != "":
		return nil, fmt.Errorf("%w: it is another name of %q, which is not such a file", archive.ErrDamaged, e.Link)
	}
	if len(r.firsts) == maxFirsts {
		clear(r.firsts)
	}
	r.firsts[e.Link] = true
	return first, nil
}

// damaged reports that a path cannot be read back, if that is what err says; another error ends the run.
func (r *run) damaged(path string, err error) error {
	if !Damaged(err) {
		return err
	}
	r.problem(path, err)
	return nil
}

func (r *run) chosen(path string) bool {
	for _, p := range r.paths {
		if below(path, p) {
			return true
		}
	}
	return false
}

// file plans a file.
func (r *run) file(e *archive.Entry) error {
	f := &file{e: e}
	if r.to != nil {
		if x := r.to.Has(e); x != nil {
			same, err := r.same(x, e)
			if same {
				x.Keep()
			}
			if cerr := x.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return r.local(e.Path, err)
			}
			if same {
				r.kept.Add(1)
				r.done.Add(1)
				r.opt.Progress.Bytes.Add(e.Size)
				return nil
			}
		}
		var err error
		if f.to, err = r.to.Begin(e); err != nil {
			return r.local(e.Path, err)
		}
	}
	var at uint64
	n := 0
	for _, x := range e.Extents {
		if !x.Hole() {
			r.pieces = append(r.pieces, piece{name: x.Name, file: uint32(len(r.files)), off: x.Off, len: uint32(x.Len), kind: x.Kind, at: at})
			n++
		} else {
			r.opt.Progress.Bytes.Add(x.Len)
		}
		at += x.Len
	}
	e.Extents = nil // the pieces hold it
	if n == 0 {
		return r.complete(f)
	}
	f.left.Store(int32(n))
	r.files = append(r.files, f)
	r.memory += 400 + len(e.Path) + 64*n
	for _, x := range e.Xattrs {
		r.memory += 64 + len(x.Name) + len(x.Value)
	}
	return nil
}

// same compares the content of a file that is there with what the archive says of it.
func (r *run) same(x *target.Existing, e *archive.Entry) (bool, error) {
	var buf []byte
	read := func(off, n uint64) ([]byte, error) {
		if uint64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		buf = buf[:n]
		m, err := x.ReadAt(buf, int64(off))
		if err == io.EOF || (err == nil && uint64(m) < n) {
			return nil, nil // shorter than it was a moment ago
		}
		return buf, err
	}
	if e.Content != [16]byte{} {
		if e.Size > holdfast.MaxPlain {
			return false, nil // no writer of ours makes such a thing: fetch it
		}
		b, err := read(0, e.Size)
		if b == nil || err != nil {
			return false, err
		}
		name := r.keys.NameOf(holdfast.KindChunk, b)
		return bytes.Equal(name[:16], e.Content[:]), nil
	}
	var at uint64
	for _, ext := range e.Extents {
		for end := at + ext.Len; at < end; {
			if r.ctx.Err() != nil {
				return false, context.Cause(r.ctx)
			}
			n := min(end-at, holdfast.MaxPlain)
			b, err := read(at, n)
			if b == nil || err != nil {
				return false, err
			}
			switch {
			case ext.Hole():
				if len(bytes.TrimLeft(b, "\x00")) > 0 {
					return false, nil
				}
			case ext.Kind != holdfast.KindChunk || r.keys.NameOf(holdfast.KindChunk, b) != ext.Name:
				return false, nil
			}
			at += n
		}
	}
	return true, nil
}

// flush runs the window: it fetches every block that the window needs, once, and completes its files.
func (r *run) flush() error {
	// In the order in which the walk met them, which is about the order in which they were stored.
	var names []holdfast.Name
	met := make(map[holdfast.Name]struct{}, len(r.pieces)/4)
	for i := range r.pieces {
		n := r.pieces[i].name
		if _, ok := met[n]; !ok {
			met[n] = struct{}{}
			if r.known(n) {
				continue
			}
			names = append(names, n)
		}
	}
	met = nil
	slices.SortStableFunc(r.pieces, func(a, b piece) int { return bytes.Compare(a.name[:], b.name[:]) })
	if err := r.recheck(); err != nil {
		return err
	}
	if len(names) > 0 {
		if err := r.v.fetch(r.ctx, r.a.Commit.Group, names, r.block); err != nil {
			r.abort()
			return err
		}
	}
	if r.to != nil {
		for _, e := range r.late {
			if err := r.special(e); err != nil {
				return err
			}
		}
	}
	r.files, r.pieces, r.late, r.memory = nil, r.pieces[:0], nil, 0
	return nil
}

// abort drops the files that were begun and are not complete.
func (r *run) abort() {
	for _, f := range r.files {
		if f.to != nil && f.left.Load() > 0 {
			f.to.Abort()
		}
	}
}

// of returns the pieces of the window that lie in a block.
func (r *run) of(name holdfast.Name) []piece {
	i, _ := slices.BinarySearchFunc(r.pieces, name, func(p piece, n holdfast.Name) int { return bytes.Compare(p.name[:], n[:]) })
	j := i
	for j < len(r.pieces) && r.pieces[j].name == name {
		j++
	}
	return r.pieces[i:j]
}

// block deals with one fetched block. It is called from several goroutines.
func (r *run) block(name holdfast.Name, size int, kind holdfast.Kind, plain []byte, err error) error {
	r.blocks.Add(1)
	r.opt.Progress.Fetched.Add(uint64(size))
	if err == nil {
		r.remember(name, len(plain))
	}
	for _, p := range r.of(name) {
		if err := r.place(p, kind, plain, err); err != nil {
			return err
		}
	}
	return nil
}

// place writes one piece into its file and completes the file with its last one.
func (r *run) place(p piece, kind holdfast.Kind, plain []byte, err error) error {
	f := r.files[p.file]
	if err == nil {
		err = fits(p, kind, len(plain))
	}
	if err == nil && f.e.Content != [16]byte{} && uint64(p.len) == f.e.Size {
		// Costs little here, and a restore that is interrupted relies on it when it goes on.
		if n := r.keys.NameOf(holdfast.KindChunk, plain[p.off:p.off+p.len]); !bytes.Equal(n[:16], f.e.Content[:]) {
			err = &BlockError{p.name, fmt.Errorf("%w: a file's content does not match its hash", archive.ErrDamaged)}
		}
	}
	if err != nil {
		if !f.bad.Swap(true) {
			r.problem(f.e.Path, err)
		}
	} else {
		if f.to != nil && !f.bad.Load() {
			if _, werr := f.to.WriteAt(plain[p.off:p.off+p.len], int64(p.at)); werr != nil {
				if !f.bad.Swap(true) {
					if err := r.local(f.e.Path, werr); err != nil {
						return err
					}
				}
			}
		}
		r.opt.Progress.Bytes.Add(uint64(p.len))
	}
	if f.left.Add(-1) > 0 {
		return nil
	}
	return r.complete(f)
}

// fits checks an extent against the block that it names.
func fits(p piece, kind holdfast.Kind, size int) error {
	if kind != 0 && kind != p.kind {
		return &BlockError{p.name, fmt.Errorf("%w: %s where %s belongs", archive.ErrDamaged, kind, p.kind)}
	}
	if uint64(p.off)+uint64(p.len) > uint64(size) || (p.kind == holdfast.KindChunk && int(p.len) != size) {
		return &BlockError{p.name, fmt.Errorf("%w: an extent does not fit its block", archive.ErrDamaged)}
	}
	return nil
}

// complete gives a file its name, or drops it if a piece is missing.
func (r *run) complete(f *file) error {
	if f.bad.Load() {
		if f.to != nil {
			f.to.Abort()
		}
		return nil
	}
	if f.to != nil {
		if err := f.to.Commit(); err != nil {
			return r.local(f.e.Path, err)
		}
	}
	r.done.Add(1)
	return nil
}

// special makes links and special files, after the files of their window.
func (r *run) special(e *archive.Entry) error {
	var err error
	switch {
	case e.Link != "":
		err = r.to.Hardlink(e)
	case e.Type == archive.TypeSymlink:
		err = r.to.Symlink(e)
	default:
		err = r.to.Node(e)
	}
	if err != nil {
		return r.local(e.Path, err)
	}
	return nil
}
