package tree

import (
	"bytes"
	"fmt"
	"math"

	"holdfast/client/archive"
)

// node is a decoded node: items of a leaf or children.
type node struct {
	level    int
	items    []leafItem
	children []child
	first    []byte
	last     []byte
	entries  uint64
	bytes    uint64
}

// leafItem is an entry with its first extents, or extents that continue one.
type leafItem struct {
	key     []byte
	entry   *archive.Entry
	extents []archive.Extent
}

// parseNode decodes a node and checks everything that it says by itself. The error wraps archive.ErrDamaged.
func parseNode(plain []byte) (*node, error) {
	r, head, err := archive.OpenPage(plain, headSize)
	if err != nil {
		return nil, err
	}
	n := &node{level: int(head[1])}
	switch count := r.Left(); {
	case head[0] != version:
		r.Fail("version %d is not %d: use a newer holdfast", head[0], version)
	case n.level >= archive.MaxHeight:
		r.Fail("level %d", n.level)
	case count == 0:
		r.Fail("node without items")
	case count > 1 && len(plain) > maxNode:
		r.Fail("node of %d bytes", len(plain))
	}
	for r.Left() > 0 {
		// A key lives as long as the node, so it needs its own memory.
		key := bytes.Clone(r.Item())
		if r.Err() != nil {
			break
		}
		base, cont := archive.SplitKey(key)
		if n.first == nil {
			n.first = key
		} else if c := compareKeys(n.last, key); c > 0 || c == 0 && !cont {
			r.Fail("keys are not in order")
		} else if n.level == 0 && cont {
			if was, _ := archive.SplitKey(n.last); !bytes.Equal(was, base) {
				r.Fail("extents do not follow their file")
			}
		}
		n.last = key
		switch {
		case n.level > 0:
			c := child{key: key, name: r.Ref(), entries: r.Uvarint(), bytes: r.Uvarint()}
			n.add(r, c.entries, c.bytes)
			n.children = append(n.children, c)
		case cont:
			n.items = append(n.items, leafItem{key: key, extents: r.Extents()})
		default:
			e := r.Entry(base)
			if e == nil {
				break
			}
			n.add(r, 1, e.Stored())
			n.items = append(n.items, leafItem{key: key, entry: e})
		}
	}
	if err := r.Done(); err != nil {
		return nil, err
	}
	return n, nil
}

// add adds to the node's sums, within bounds.
func (n *node) add(r *archive.PageReader, entries, size uint64) {
	if entries > math.MaxInt64-n.entries || size > math.MaxInt64-n.bytes {
		r.Fail("sums exceed 2^63")
		return
	}
	n.entries += entries
	n.bytes += size
}

// fits checks the node against its place: c is what the level above says of it, next the first key that
// comes after it. The error wraps archive.ErrDamaged.
func (n *node) fits(c child, level int, root bool, next []byte) error {
	switch {
	case n.level != level:
		return fmt.Errorf("%w: level %d where %d belongs", archive.ErrDamaged, n.level, level)
	case n.entries != c.entries || n.bytes != c.bytes:
		return fmt.Errorf("%w: it sums up to %d entries, %d bytes and not to %d, %d", archive.ErrDamaged, n.entries, n.bytes, c.entries, c.bytes)
	case !root && !bytes.Equal(n.first, c.key):
		return fmt.Errorf("%w: its first key is not what the level above says", archive.ErrDamaged)
	case root && level > 0 && len(n.children) < 2:
		return fmt.Errorf("%w: root with a single child", archive.ErrDamaged)
	case next != nil && !below(n.last, next):
		return fmt.Errorf("%w: its keys reach into the next node", archive.ErrDamaged)
	}
	return nil
}
