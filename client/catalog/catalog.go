// Package catalog keeps, on the machine that backs up, the entries of the previous archive of a series.
package catalog

import (
	"errors"

	"holdfast"
	"holdfast/client/archive"
)

// ErrUnusable reports a catalog that is absent for every purpose: damaged, cut short, of another machine,
// vault, series or archive, or of another version. The next run reads every file again.
var ErrUnusable = errors.New("catalog cannot be used")

// Binding is what a catalog is about. It is compared whole.
type Binding struct {
	Vault   holdfast.VaultID
	Signer  holdfast.SignerID
	Series  holdfast.SeriesID
	Archive holdfast.RecordID // the commit record of the archive whose entries these are
}

// Stat identifies a state of a file: it is unchanged when all of it agrees.
type Stat struct {
	Size         uint64
	Mtime, Ctime archive.Time
	Inode        uint64
	Device       uint64
}

// Same reports whether s and o are the same state of the same file. The zero Stat is the same as
// nothing, itself included: it marks a file that must be read again next time.
func (s Stat) Same(o Stat) bool { return s == o && s != Stat{} }

// Item is an entry of the previous archive and the state in which its file was read.
type Item struct {
	Entry archive.Entry
	Stat  Stat
}

// Pack is what is known of one pack.
type Pack struct {
	Total uint64 // bytes of its plaintext
	Live  uint64 // bytes of it that the entries of the catalog refer to; at most Total
}

// Reader reads a catalog from front to back in constant memory.
type Reader struct{}

// Open opens the catalog at path if it is whole in its header and pack table and bound to want. The error
// wraps fs.ErrNotExist or ErrUnusable.
func Open(path string, key holdfast.Key, want Binding) (*Reader, error) { panic("catalog: not yet") }

// Items returns how many items there are.
func (r *Reader) Items() uint64 { panic("catalog: not yet") }

// Packs returns the packs that the entries refer to.
func (r *Reader) Packs() map[holdfast.Name]Pack { panic("catalog: not yet") }

// Next returns the next item, in the archive's order, and io.EOF after the last only if the catalog was
// whole. Any other error wraps ErrUnusable: the items returned before it were authentic and may be used,
// the rest is as if there were no catalog.
func (r *Reader) Next() (Item, error) { panic("catalog: not yet") }

// Close closes the file.
func (r *Reader) Close() error { panic("catalog: not yet") }

// Writer writes a new catalog beside the old one.
type Writer struct{}

// Create begins a catalog that will be at path. Until Finish, what is there stays.
func Create(path string, key holdfast.Key) (*Writer, error) { panic("catalog: not yet") }

// Add adds an item, in the archive's order.
func (w *Writer) Add(it *Item) error { panic("catalog: not yet") }

// Finish completes the catalog and puts it in place: call it after the archive b.Archive is committed.
// packs are the total plaintext bytes of (at least) the packs that the entries refer to.
func (w *Writer) Finish(b Binding, packs map[holdfast.Name]uint64) error { panic("catalog: not yet") }

// Abort drops the new catalog. It does nothing after Finish.
func (w *Writer) Abort() { panic("catalog: not yet") }
