// Package tree stores the entries of an archive as a content-defined search tree (a prolly tree).
package tree

import (
	"context"
	"errors"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/keyring"
)

// Put stores a block and returns its name; kind is always holdfast.KindTree here. It may keep plain and
// links, and may upload later, but children are put before their parents.
type Put func(ctx context.Context, kind holdfast.Kind, plain []byte, links []holdfast.Name) (holdfast.Name, error)

// Get returns the verified plaintexts of tree blocks, in the order of names, which are distinct. It is
// called from one goroutine besides the caller's, never concurrently with itself.
type Get func(ctx context.Context, names []holdfast.Name) ([][]byte, error)

// ErrNotFound reports that an archive has no entry of that path.
var ErrNotFound = errors.New("the archive has no such path")

// Builder builds a tree from entries in order. Memory is bounded by a node a level and the largest entry.
type Builder struct{}

// NewBuilder returns a builder of one tree; cuts are those of the group's metadata.
func NewBuilder(cuts *keyring.Cuts, put Put) *Builder { panic("tree: not yet") }

// Add adds an entry, which must come after all earlier ones (archive.ComparePaths); it keeps nothing of it.
func (b *Builder) Add(ctx context.Context, e *archive.Entry) error { panic("tree: not yet") }

// Finish stores what is left. Root is zeros and height 0 if nothing was added.
func (b *Builder) Finish(ctx context.Context) (root holdfast.Name, height int, err error) {
	panic("tree: not yet")
}

// Entries returns how many entries were added.
func (b *Builder) Entries() uint64 { panic("tree: not yet") }

// Bytes returns the sum of Entry.Stored over what was added.
func (b *Builder) Bytes() uint64 { panic("tree: not yet") }

// Tree reads a stored tree. It holds no state and can be used from several goroutines if get can.
type Tree struct{}

// Open returns the tree that r names, read with get.
func Open(r *archive.Root, get Get) *Tree { panic("tree: not yet") }

// Span says which part of a tree to walk; the zero Span is all of it.
type Span struct {
	Prefix string // only this path and what is below it; "" is everything
	After  string // only what comes after this path; "" is from the beginning
}

// Walk calls fn for the entries of span in order, fetching ahead. An entry is fn's to keep. The error
// wraps archive.ErrDamaged, or is that of get or fn.
func (t *Tree) Walk(ctx context.Context, span Span, fn func(*archive.Entry) error) error {
	panic("tree: not yet")
}

// List calls fn for the entries directly inside dir ("" is the top), in order. A name at the top that has
// no entry of its own, because only a path below it was archived, comes as a bare directory.
func (t *Tree) List(ctx context.Context, dir string, fn func(*archive.Entry) error) error {
	panic("tree: not yet")
}

// Lookup returns the entry of path. The error wraps ErrNotFound or archive.ErrDamaged, or is that of get.
func (t *Tree) Lookup(ctx context.Context, path string) (*archive.Entry, error) {
	panic("tree: not yet")
}
