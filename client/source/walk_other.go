//go:build !(linux || darwin || freebsd)

package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"holdfast/client/archive"
)

// On this system only what Go's os package knows is kept: types, sizes, times, symbolic links, the read-only
// attribute. There are no owners, ACLs, attributes, hard links or holes, and no inode numbers and change times to
// tell an altered file whose size and time are the same. Contents are opened below an os.Root.

type walker struct {
	ctx  context.Context
	opt  Options
	fn   func(*Item) error
	root *os.Root
}

type top struct {
	root *os.Root
	node *node
}

func walk(ctx context.Context, base string, roots []string, opt Options, fn func(*Item) error) error {
	if len(roots) == 0 {
		return errors.New("there is no path to back up: name at least one")
	}
	starts := map[string]*os.Root{}
	trees := map[string]*node{}
	owners := map[string]place{}
	defer func() {
		for _, r := range starts {
			r.Close()
		}
	}()
	var whole, any place
	for _, given := range roots {
		p, err := parseRoot(base, given)
		if err != nil {
			return err
		}
		if starts[p.start] == nil {
			r, err := os.OpenRoot(p.start)
			if err != nil {
				return fmt.Errorf("open directory %q: %w", p.start, err)
			}
			starts[p.start], trees[p.start] = r, &node{given: given}
		}
		if len(p.parts) > 0 {
			if _, err := starts[p.start].Lstat(strings.Join(p.parts, "/")); err != nil {
				return fmt.Errorf("path %q cannot be backed up: %w", given, err)
			}
		}
		switch {
		case whole.given != "" && whole.start != p.start:
			return errOverlap(whole.given, given, "")
		case len(p.parts) == 0:
			if len(starts) > 1 {
				return errOverlap(any.given, given, "")
			}
			whole = p
		default:
			o, ok := owners[p.parts[0]]
			if !ok {
				owners[p.parts[0]] = p
			} else if o.start != p.start {
				return errOverlap(o.given, given, p.parts[0])
			}
		}
		any = p
		trees[p.start].insert(p, p.parts)
	}
	var tops []top
	for start, tree := range trees {
		if tree.root {
			w := walker{ctx, opt, fn, starts[start]}
			return w.children(".", "")
		}
		for _, n := range tree.kids {
			tops = append(tops, top{starts[start], n})
		}
	}
	slices.SortFunc(tops, func(a, b top) int { return strings.Compare(a.node.name, b.node.name) })
	for _, t := range tops {
		w := walker{ctx, opt, fn, t.root}
		if err := w.node("", t.node); err != nil {
			return err
		}
	}
	return nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func (w *walker) node(dir string, n *node) error {
	p := join(dir, n.name)
	if n.root {
		return w.entry(p)
	}
	fi, err := w.root.Stat(p)
	if err != nil {
		return w.failed(p, err)
	}
	it := itemOf(p, fi)
	if r := w.opt.Exclude.match(p, true); r != "" {
		return w.exclude(it, r)
	}
	if err := w.fn(it); err != nil {
		return err
	}
	for _, k := range n.kids {
		if err := w.node(p, k); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) exclude(it *Item, rule string) error {
	p := it.Entry.Path
	return w.fn(&Item{Entry: archive.Entry{Path: p, Type: it.Entry.Type}, Verdict: archive.Verdict{Path: p, What: archive.Excluded, Why: "excluded by " + rule}})
}

func (w *walker) failed(p string, err error) error {
	v := archive.Verdict{Path: p, What: archive.Unreadable, Why: fmt.Sprintf("cannot look at it: %v", err)}
	if errors.Is(err, fs.ErrNotExist) {
		v.What, v.Why = archive.Vanished, "it was listed, but was gone when it was to be read"
	}
	return w.fn(&Item{Entry: archive.Entry{Path: p}, Verdict: v})
}

func (w *walker) names(name string) ([]string, error) {
	f, err := w.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.Readdirnames(-1)
	slices.Sort(list)
	return list, err
}

func (w *walker) children(name, p string) error {
	list, err := w.names(name)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", name, err)
	}
	return w.each(p, list)
}

func (w *walker) each(p string, list []string) error {
	for _, name := range list {
		if err := w.entry(join(p, name)); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) entry(p string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	fi, err := w.root.Lstat(p)
	if err != nil {
		return w.failed(p, err)
	}
	it := itemOf(p, fi)
	if r := w.opt.Exclude.match(p, fi.IsDir()); r != "" {
		return w.exclude(it, r)
	}
	switch it.Entry.Type {
	case archive.TypeDir:
		list, err := w.names(p)
		if err != nil {
			it.unreadable("its list cannot be read", err)
		}
		if err := w.fn(it); err != nil {
			return err
		}
		return w.each(p, list)
	case archive.TypeSymlink:
		if it.Entry.Target, err = w.root.Readlink(p); err != nil {
			return w.failed(p, err)
		}
	case archive.TypeFile:
		it.open = func(it *Item) (*File, error) { return w.open(it, fi) }
	default:
		it.Verdict = archive.Verdict{Path: p, What: archive.Unreadable, Why: "files of its type are not kept on this system"}
		it.Entry = archive.Entry{Path: p}
	}
	err = w.fn(it)
	it.open = nil
	return err
}

func itemOf(p string, fi fs.FileInfo) *Item {
	t := archive.TimeOf(fi.ModTime())
	it := &Item{Entry: archive.Entry{Path: p, Mode: uint32(fi.Mode().Perm()), Mtime: t}, Stat: Stat{Size: uint64(fi.Size()), Mtime: t, Nlink: 1}}
	switch fi.Mode().Type() {
	case 0:
		it.Entry.Type, it.Entry.Size = archive.TypeFile, uint64(fi.Size())
	case fs.ModeDir:
		it.Entry.Type = archive.TypeDir
	case fs.ModeSymlink:
		it.Entry.Type = archive.TypeSymlink
	}
	return it
}

func (it *Item) unreadable(what string, err error) {
	it.Entry.Flags |= archive.FlagUnreadable
	it.Verdict = archive.Verdict{Path: it.Entry.Path, What: archive.Unreadable, Why: fmt.Sprintf("%s: %v", what, err)}
}

// File is an open file of the tree. It gives the content that the file had room for when it was opened: a file that
// grows meanwhile is not followed. It is for one goroutine at a time.
type File struct {
	f     *os.File
	path  string
	fault func(string, uint64) error
	st    Stat
	begun bool
	done  uint64
	short bool
}

func (w *walker) open(it *Item, was fs.FileInfo) (*File, error) {
	p := it.Entry.Path
	f, err := w.root.Open(p)
	if err == nil {
		var fi fs.FileInfo
		if fi, err = f.Stat(); err == nil {
			if os.SameFile(was, fi) && fi.Mode().IsRegular() {
				verdict := it.Verdict
				open := it.open
				*it = *itemOf(p, fi)
				it.Verdict, it.open = verdict, open
				return &File{f: f, path: p, fault: w.opt.Fault, st: it.Stat}, nil
			}
			err = fs.ErrNotExist
		}
		f.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		it.Verdict = archive.Verdict{Path: p, What: archive.Vanished, Why: "it was listed, but was gone when it was to be read"}
		return nil, fmt.Errorf("open %q: %w", p, ErrVanished)
	}
	it.unreadable("cannot open it", err)
	return nil, fmt.Errorf("open %q: %w", p, err)
}

// Next moves on to the next region and returns it; io.EOF follows the last. Here there is one region at most.
func (f *File) Next() (Region, error) {
	if f.begun || f.st.Size == 0 {
		return Region{}, io.EOF
	}
	f.begun = true
	return Region{0, f.st.Size, false}, nil
}

// Read reads on in the current region, which must be data; io.EOF marks its end. A file that ends early gives
// io.EOF early.
func (f *File) Read(p []byte) (int, error) {
	if !f.begun || f.short || f.done >= f.st.Size {
		return 0, io.EOF
	}
	if n := f.st.Size - f.done; uint64(len(p)) > n {
		p = p[:n]
	}
	if f.fault != nil {
		if err := f.fault(f.path, f.done); err != nil {
			return 0, fmt.Errorf("read %q at %d: %w", f.path, f.done, err)
		}
	}
	n, err := f.f.Read(p)
	f.done += uint64(n)
	if err == io.EOF {
		f.short = true
		return n, io.EOF
	}
	if err != nil {
		return n, fmt.Errorf("read %q at %d: %w", f.path, f.done, err)
	}
	return n, nil
}

// Size returns how many bytes of content were passed so far: after the last region, the size of what was read.
func (f *File) Size() uint64 { return f.done }

// Check reports whether the file changed since it was opened: grew, shrank or was written.
func (f *File) Check() (changed bool, err error) {
	fi, err := f.f.Stat()
	if err != nil {
		return false, fmt.Errorf("stat %q: %w", f.path, err)
	}
	return f.short || uint64(fi.Size()) != f.st.Size || archive.TimeOf(fi.ModTime()) != f.st.Mtime, nil
}

// Close closes the file.
func (f *File) Close() error { return f.f.Close() }
