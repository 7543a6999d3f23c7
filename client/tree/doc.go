// Package tree stores the entries of an archive as a content-defined search tree (a prolly tree): the
// shape of the tree depends on the entries and a secret key alone, not on how they came to be. So equal
// maps have equal roots, a small change rewrites few nodes, and nodes are shared between archives.
//
// # Node
//
// A node is a page (package archive) with a head of two bytes; it is a block of kind tree. All integers
// are big-endian.
//
//	names    u32 n, then n x 32 bytes, sorted, distinct: exactly the block's links
//	version  u8 = 1
//	level    u8: 0 for a leaf, at most 15
//	count    u32: items; at least 1
//	items    each a key, shortened by what it shares with the key before, then fields
//
// The items of a leaf are entries and continued extents (package archive). Those of an inner node are its
// children, in order:
//
//	key      of the child's first item
//	child    u16: index of its name in names
//	entries  uvarint: entries below it
//	bytes    uvarint: sum over the sizes of files below it whose content is in the archive (Entry.Stored)
//
// # Order
//
// Keys increase strictly through a level, but for items that continue the same file: those have equal
// keys. All keys of a node lie below the next node's first key (or equal it, for continued extents).
// The root is the only node of its level and, unless it is a leaf, has at least two children.
//
// # Borders
//
// The writer fills a node with items and ends it
//
//   - before an item that would make it longer than 256 KiB, if there is an item in it already;
//   - after an item with which it is at least 16 KiB long, if there is a border after that item (in an
//     inner node: if it has at least two items).
//
// There is a border after an item of a key if floor(h * 49152 / 2^64) < weight, where h is the first 8
// bytes of HMAC-SHA256(K_tree of metadata, (16 + level) u8 || key). After an item that continues extents
// the hash is over 2 u8 || kind u8 || name 32 || offset u32 || length u64 of the item's last extent.
// The weight of a leaf's item is the length of the last component of its path (0 for continued extents),
// plus the length of its fields, plus 32 for each extent that is a chunk. That of an inner node's item is the
// length of the last component of its key (what follows the last 0x00), plus 44. A node is about 64 KiB
// long on average. Values weigh on borders only through their length, so changing one seldom moves any.
//
// Readers do not check borders: any tree in the right order is a tree.
package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"holdfast"
	"holdfast/client/archive"
)

// Sizes of nodes in bytes of plaintext.
const (
	minNode    = 16 << 10
	spreadNode = 48 << 10 // from minNode to the next border, on average
	maxNode    = 256 << 10

	version     = 1
	headSize    = 2
	childWeight = 44
)

// Put stores a block and returns its name; kind is always holdfast.KindTree here. It may keep plain and
// links, and may upload later, but children are put before their parents.
type Put func(ctx context.Context, kind holdfast.Kind, plain []byte, links []holdfast.Name) (holdfast.Name, error)

// Get returns the verified plaintexts of tree blocks, in the order of names, which are distinct. If some of
// them are damaged or not there, the error is a Bad, and the others are returned with it. It must be safe
// for concurrent use.
type Get func(ctx context.Context, names []holdfast.Name) ([][]byte, error)

// Bad is the error of a Get that some blocks could not be had from: by name, what is wrong with each.
type Bad map[holdfast.Name]error

// Error gives the error of the first name.
func (b Bad) Error() string {
	var first holdfast.Name
	for n := range b {
		if b[first] == nil || bytes.Compare(n[:], first[:]) < 0 {
			first = n
		}
	}
	if len(b) > 1 {
		return fmt.Sprintf("%v (and %d blocks more)", b[first], len(b)-1)
	}
	return fmt.Sprint(b[first])
}

// Unwrap returns the error of each name.
func (b Bad) Unwrap() []error { return slices.Collect(maps.Values(b)) }

// Lost is a part of a tree that cannot be read: some or all of what lies from one path up to another.
type Lost struct {
	From    string // the first path of the part
	Before  string // where it ends: the next path that can be read, or the file that it ends in; "" is the end of the tree, and From means that path alone
	Entries uint64 // how many it holds
	Err     error  // wraps archive.ErrDamaged, or is what Get said
}

// ErrNotFound reports that an archive has no entry of that path.
var ErrNotFound = errors.New("the archive has no such path")

// component returns what follows the last 0x00 of a key.
func component(key []byte) []byte { return key[bytes.LastIndexByte(key, 0)+1:] }

// child is an inner node's item.
type child struct {
	key     []byte
	name    holdfast.Name
	entries uint64
	bytes   uint64
}

// compareKeys orders the keys of items.
func compareKeys(a, b []byte) int { return bytes.Compare(a, b) }

// below reports whether an item of that key may stand before a node whose first key is next.
func below(key, next []byte) bool {
	c := compareKeys(key, next)
	if c == 0 {
		_, cont := archive.SplitKey(key)
		return cont
	}
	return c < 0
}
