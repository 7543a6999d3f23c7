package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"holdfast"
	"holdfast/client/archive"
)

// Tree reads a stored tree. It can be used from several goroutines at once if its Get can.
type Tree struct {
	root   child
	height int
	get    Get
}

// Open returns the tree that r names, read with get.
func Open(r *archive.Root, get Get) *Tree {
	return &Tree{child{name: r.Tree, entries: r.Entries, bytes: r.Bytes}, r.Height, get}
}

// Span says which part of a tree to walk; the zero Span is all of it.
type Span struct {
	Prefix string // only this path and what is below it; "" is everything
	After  string // only what comes after this path; "" is from the beginning

	// Lost, if set, is told of each part that cannot be read, in order between the entries, and the walk goes
	// on after it, unless Lost returns an error. Without it such a part ends the walk, as an error of the root
	// does in any case.
	Lost func(Lost) error
}

// Walk calls fn for the entries of span in order, fetching ahead. An entry is fn's to keep. The error
// wraps archive.ErrDamaged, or is that of get or fn.
func (t *Tree) Walk(ctx context.Context, span Span, fn func(*archive.Entry) error) error {
	w := &walk{get: t.get, fn: fn, ahead: maxAhead, lost: span.Lost}
	if span.Prefix != "" {
		w.low = archive.AppendKey(nil, span.Prefix)
		w.high = append(bytes.Clone(w.low), 1)
	}
	if span.After != "" {
		after := append(archive.ContinuedKey(archive.AppendKey(nil, span.After)), 0)
		if compareKeys(after, w.low) > 0 {
			w.low = after
		}
	}
	return t.run(ctx, w)
}

// List calls fn for the entries directly inside dir ("" is the top), in order; nothing if dir is not there
// or not a directory. It reads only the nodes on the way to them. A name that has no entry of its own,
// because only a path below it was archived, comes as a directory with nothing but its path.
func (t *Tree) List(ctx context.Context, dir string, fn func(*archive.Entry) error) error {
	w := &walk{get: t.get, fn: fn, ahead: 1}
	skip := 0
	if dir != "" {
		key := archive.AppendKey(nil, dir)
		w.low = append(bytes.Clone(key), 0, 1) // after the extents of dir itself, should it be a file
		w.high = append(key, 1)
		skip = len(dir) + 1
	}
	w.inside = func(key []byte) []byte {
		if i := bytes.IndexByte(key[skip:], 0); i >= 0 {
			return key[:skip+i]
		}
		return key
	}
	return t.run(ctx, w)
}

// Lookup returns the entry of path. The error wraps ErrNotFound or archive.ErrDamaged, or is that of get.
func (t *Tree) Lookup(ctx context.Context, path string) (*archive.Entry, error) {
	var found *archive.Entry
	w := &walk{get: t.get, ahead: maxAhead, fn: func(e *archive.Entry) error { found = e; return nil }}
	w.low = archive.AppendKey(nil, path)
	w.high = append(archive.ContinuedKey(w.low), 0) // the entry and the extents that continue it
	if err := t.run(ctx, w); err != nil {
		return nil, err
	}
	if found == nil {
		return nil, fmt.Errorf("%.200q: %w", path, ErrNotFound)
	}
	return found, nil
}

// maxAhead is how many leaves are fetched at a time, and again while those are read: 2 MiB on average,
// at most 8 MiB.
const maxAhead = 16

// walk reads the items of keys from low up to but without high, and calls fn for each entry.
type walk struct {
	get       Get
	fn        func(*archive.Entry) error
	low, high []byte // nil high is no end; low grows as parts are skipped
	ahead     int    // nodes fetched at a time: grows while none is skipped
	joiner    archive.Joiner
	lost      func(Lost) error
	path      string // of the entry that the joiner holds, or held last
	pass      []byte // with lost: key of a file of which a part is lost, so that the rest is passed over

	// inside, if set, returns what of an entry's key is directly inside the directory that is listed: all
	// of it, or the directory on the way to it. What lies below that is skipped.
	inside func(key []byte) []byte
}

func (t *Tree) run(ctx context.Context, w *walk) error {
	if t.height == 0 {
		return nil
	}
	if t.height > archive.MaxHeight {
		return fmt.Errorf("%w: tree of %d levels", archive.ErrDamaged, t.height)
	}
	// The deferred wait in nodes ends all fetching before run returns.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	plains, err := w.get(ctx, []holdfast.Name{t.root.name})
	if err != nil {
		return fmt.Errorf("read tree: %w", err)
	}
	if len(plains) != 1 {
		return fmt.Errorf("read tree: %w", errCount)
	}
	if err := w.node(ctx, t.root, t.height-1, true, nil, plains[0]); err != nil {
		return err
	}
	return w.finish()
}

// finish hands on the entry that waited for more extents.
func (w *walk) finish() error {
	path := w.path
	e, err := w.joiner.Finish()
	if err != nil && w.lost != nil {
		return w.lost(Lost{path, path, 1, err})
	}
	return w.emit(e, err)
}

// gap deals with a child that cannot be read; next is the first key after it.
func (w *walk) gap(c child, next []byte, err error) error {
	if w.lost == nil {
		return err
	}
	base, cont := archive.SplitKey(c.key)
	l := Lost{From: archive.KeyPath(base), Entries: c.entries, Err: err}
	if cont { // the rest of a file's extents, and maybe more
		if w.joiner.Drop() != nil {
			l.Entries++
		}
		w.pass = base
	} else if err := w.finish(); err != nil {
		return err
	}
	if next != nil {
		after, cont := archive.SplitKey(next)
		l.Before = archive.KeyPath(after)
		if cont {
			w.pass = after
		}
	}
	return w.lost(l)
}

// emit hands a complete entry to fn.
func (w *walk) emit(e *archive.Entry, err error) error {
	if err != nil || e == nil {
		return err
	}
	return w.fn(e)
}

// node reads one node: what its parent says of it is c, and next is the first key after it, if any.
func (w *walk) node(ctx context.Context, c child, level int, root bool, next, plain []byte) error {
	n, err := parseNode(plain)
	if err == nil {
		err = n.fits(c, level, root, next)
	}
	if err != nil {
		err = fmt.Errorf("tree node %.8s: %w", c.name, err)
		if root {
			return err
		}
		return w.gap(c, next, err)
	}
	if level > 0 {
		return w.nodes(ctx, n.children, level-1, next)
	}
	for i := range n.items {
		if err := w.item(&n.items[i]); err != nil {
			return err
		}
	}
	return nil
}

// item handles one item of a leaf.
func (w *walk) item(it *leafItem) error {
	if compareKeys(it.key, w.low) < 0 || w.high != nil && compareKeys(it.key, w.high) >= 0 {
		return nil
	}
	base, cont := archive.SplitKey(it.key)
	if w.pass != nil && bytes.Equal(base, w.pass) && cont {
		return nil
	}
	if cont {
		err := w.joiner.Extents(base, it.extents)
		if err == nil || w.lost == nil {
			return err
		}
		l := Lost{From: archive.KeyPath(base), Before: archive.KeyPath(base), Err: err}
		if w.joiner.Drop() != nil {
			l.Entries = 1
		}
		w.pass = base
		return w.lost(l)
	}
	if err := w.finish(); err != nil {
		return err
	}
	e := it.entry
	if w.inside != nil {
		if top := w.inside(base); len(top) < len(base) {
			e, base = &archive.Entry{Path: e.Path[:len(top)], Type: archive.TypeDir}, top
		}
		if e.Type == archive.TypeDir {
			w.low = append(bytes.Clone(base), 1)
		}
	}
	w.path = e.Path
	if _, err := w.joiner.Entry(base, e); err != nil {
		if w.lost == nil {
			return err
		}
		w.joiner.Drop()
		w.pass = base
		return w.lost(Lost{e.Path, e.Path, 1, err})
	}
	return nil
}

// nodes reads those of the children of a node, all of that level, that lie in the span; next is the
// first key after the node.
func (w *walk) nodes(ctx context.Context, cs []child, level int, next []byte) error {
	after := func(i int) []byte { // the first key that child i cannot hold
		if i+1 < len(cs) {
			return cs[i+1].key
		}
		return next
	}
	skip := func(i int) bool { // all of child i lies before low, which is never the key of continued extents
		if w.pass != nil && cs[i].entries == 0 {
			if base, cont := archive.SplitKey(cs[i].key); cont && bytes.Equal(base, w.pass) {
				return true // or a hostile tree could have the same few nodes passed over for ever
			}
		}
		a := after(i)
		return a != nil && compareKeys(a, w.low) <= 0
	}
	var coming *fetch
	defer func() {
		if coming != nil {
			coming.cancel()
			<-coming.done
		}
	}()
	for i := 0; i < len(cs); {
		if coming == nil && skip(i) {
			w.ahead = 1
			i++
			continue
		}
		f := coming
		if f == nil {
			if f = w.fetch(ctx, w.window(cs, i, level)); f == nil {
				return nil
			}
		}
		coming = nil
		<-f.done
		f.cancel()
		if f.err != nil {
			return fmt.Errorf("read tree: %w", f.err)
		}
		if w.ahead > 1 {
			coming = w.fetch(ctx, w.window(cs, i+len(f.cs), level))
		}
		for _, c := range f.cs {
			if bad := f.bad[c.name]; bad != nil && !skip(i) {
				if err := w.gap(c, after(i), fmt.Errorf("read tree: %w", bad)); err != nil {
					return err
				}
			} else if !skip(i) {
				if err := w.node(ctx, c, level, false, after(i), f.plain[c.name]); err != nil {
					return err
				}
			}
			i++
		}
		w.ahead = min(2*w.ahead, maxAhead)
	}
	return nil
}

// window returns the next children to fetch together; none beyond high.
func (w *walk) window(cs []child, from, level int) []child {
	to, n := from, w.ahead
	if level > 0 {
		n = min(n, 2) // one inner node leads to hundreds of leaves
	}
	for to < len(cs) && to-from < n && (w.high == nil || compareKeys(cs[to].key, w.high) < 0) {
		to++
	}
	return cs[from:to]
}

var errCount = errors.New("get returned another number of blocks than was asked for")

// fetch is a Get under way.
type fetch struct {
	cs     []child
	plain  map[holdfast.Name][]byte
	bad    Bad // nodes that cannot be had, though others can
	err    error
	done   chan struct{}
	cancel context.CancelFunc
}

// fetch begins to get the nodes of cs, if any. Whoever gets the result waits for done.
func (w *walk) fetch(ctx context.Context, cs []child) *fetch {
	if len(cs) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	f := &fetch{cs: cs, plain: map[holdfast.Name][]byte{}, done: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(f.done)
		var names []holdfast.Name
		for _, c := range cs { // two leaves of one file's equal extents can be one block
			if _, dup := f.plain[c.name]; !dup {
				f.plain[c.name] = nil
				names = append(names, c.name)
			}
		}
		plains, err := w.get(ctx, names)
		if len(plains) != len(names) && (err == nil || errors.As(err, new(Bad))) {
			err = errCount
		}
		if f.err = err; w.lost != nil && errors.As(err, &f.bad) {
			f.err = nil
		}
		if f.err != nil {
			return
		}
		for i, n := range names {
			f.plain[n] = plains[i]
		}
	}()
	return f
}
