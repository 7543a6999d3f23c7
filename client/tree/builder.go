package tree

import (
	"context"
	"fmt"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/keyring"
)

// Builder builds a tree from entries in order. Memory is bounded by a node a level and the largest entry.
// It is not safe for concurrent use.
type Builder struct {
	borders *archive.Borders
	put     Put
	levels  []*level // from the leaves up
	key     []byte
	last    string // path of the last entry
	leaf    bool   // it is not a directory
	entries uint64
	bytes   uint64
}

// level is the node of one level that is being filled.
type level struct {
	page    archive.Page
	first   []byte // key of its first item
	entries uint64 // below it
	bytes   uint64
	stored  int   // nodes of this level that are done
	end     child // the last of them
}

// NewBuilder returns a builder of one tree; cuts are those of the group's metadata.
func NewBuilder(cuts *keyring.Cuts, put Put) *Builder {
	return &Builder{borders: archive.NewBorders(cuts.Tree), put: put}
}

// Add adds an entry, which must come after all earlier ones (archive.ComparePaths); it keeps nothing of
// it. The error wraps archive.ErrEntry, and nothing was added then, or is put's, and the tree is lost.
func (b *Builder) Add(ctx context.Context, e *archive.Entry) error {
	if err := e.Check(); err != nil {
		return err
	}
	if b.last != "" {
		if archive.ComparePaths(b.last, e.Path) >= 0 {
			return fmt.Errorf("%w: %.200q: out of order", archive.ErrEntry, e.Path)
		}
		if b.leaf && len(e.Path) > len(b.last) && e.Path[len(b.last)] == '/' && e.Path[:len(b.last)] == b.last {
			return fmt.Errorf("%w: %.200q: lies below what is not a directory", archive.ErrEntry, e.Path)
		}
	}
	b.last, b.leaf = e.Path, e.Type != archive.TypeDir
	b.entries++
	b.bytes += e.Stored()

	b.key = archive.AppendKey(b.key[:0], e.Path)
	n := b.borders.CutExtents(e.Extents)
	it := item{key: b.key, base: b.key, first: e, extents: e.Extents[:n], entries: 1, bytes: e.Stored()}
	if err := b.add(ctx, 0, it); err != nil {
		return err
	}
	cont := archive.ContinuedKey(b.key)
	for rest := e.Extents[n:]; len(rest) > 0; rest = rest[n:] {
		n = b.borders.CutExtents(rest)
		if err := b.add(ctx, 0, item{key: cont, base: b.key, extents: rest[:n]}); err != nil {
			return err
		}
	}
	return nil
}

// item is what a level gets: an entry (first is set), continued extents, or a child.
type item struct {
	key     []byte
	base    []byte // of a leaf's item: the key of its path
	first   *archive.Entry
	extents []archive.Extent
	child   *child
	entries uint64
	bytes   uint64
}

// write writes it into p and returns the length of a leaf item's fields.
func (it *item) write(p *archive.Page) int {
	switch {
	case it.child != nil:
		p.Item(it.key)
		p.Ref(it.child.name)
		p.Uvarint(it.child.entries)
		p.Uvarint(it.child.bytes)
		return 0 // a child's weight is fixed
	case it.first != nil:
		return p.Entry(it.base, it.first, it.extents)
	}
	return p.Extents(it.base, it.extents)
}

// add puts an item into a level's node, and ends the node where the rules say so.
func (b *Builder) add(ctx context.Context, lv int, it item) error {
	if lv == len(b.levels) {
		if lv == archive.MaxHeight {
			return fmt.Errorf("%w: more entries than a tree of %d levels holds", archive.ErrEntry, lv)
		}
		b.levels = append(b.levels, &level{})
	}
	l := b.levels[lv]
	fields := it.write(&l.page)
	if l.page.Items() > 1 && l.page.Size(headSize) > maxNode {
		l.page.Undo()
		if err := b.end(ctx, lv); err != nil {
			return err
		}
		fields = it.write(&l.page)
	}
	if l.page.Items() == 1 {
		l.first = append(l.first[:0], it.key...)
	}
	l.entries += it.entries
	l.bytes += it.bytes
	if l.page.Size(headSize) < minNode {
		return nil
	}
	if border := b.border(lv, &it, fields); !border || lv > 0 && l.page.Items() < 2 {
		return nil
	}
	return b.end(ctx, lv)
}

// border reports whether a node may end after it.
func (b *Builder) border(lv int, it *item, fields int) bool {
	if it.child != nil {
		return b.borders.AfterKey(lv, it.key, len(component(it.key))+childWeight, spreadNode)
	}
	weight := fields
	for _, x := range it.extents {
		if x.Kind == holdfast.KindChunk {
			weight += len(x.Name)
		}
	}
	if it.first == nil {
		return b.borders.AfterExtents(it.extents[len(it.extents)-1], weight, spreadNode)
	}
	return b.borders.AfterKey(lv, it.key, weight+len(component(it.key)), spreadNode)
}

// end stores a level's node and adds it to the level above.
func (b *Builder) end(ctx context.Context, lv int) error {
	l := b.levels[lv]
	plain, links := l.page.Encode([]byte{version, byte(lv)})
	name, err := b.put(ctx, holdfast.KindTree, plain, links)
	if err != nil {
		return fmt.Errorf("store tree node: %w", err)
	}
	l.end = child{key: append([]byte(nil), l.first...), name: name, entries: l.entries, bytes: l.bytes}
	l.stored++
	l.entries, l.bytes = 0, 0
	return b.add(ctx, lv+1, item{key: l.end.key, child: &l.end, entries: l.end.entries, bytes: l.end.bytes})
}

// Finish stores what is left. Root is zeros and height 0 if nothing was added. Nothing may be added later.
func (b *Builder) Finish(ctx context.Context) (root holdfast.Name, height int, err error) {
	for lv := 0; lv < len(b.levels); lv++ {
		l := b.levels[lv]
		if l.page.Items() > 0 {
			if err := b.end(ctx, lv); err != nil {
				return holdfast.Name{}, 0, err
			}
		}
		if l.stored == 1 { // the level above would hold this one child only
			return l.end.name, lv + 1, nil
		}
	}
	return holdfast.Name{}, 0, nil
}

// Entries returns how many entries were added.
func (b *Builder) Entries() uint64 { return b.entries }

// Bytes returns the sum of Entry.Stored over what was added.
func (b *Builder) Bytes() uint64 { return b.bytes }
