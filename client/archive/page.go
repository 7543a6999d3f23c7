package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"holdfast"
	"holdfast/internal/enc"
)

// contMark follows the key of a file in the keys of the items that continue its extents.
var contMark = []byte{0, 0}

// AppendKey appends the key of path: its bytes with 0x00 for '/'.
func AppendKey(b []byte, path string) []byte {
	for i := range len(path) {
		b = append(b, rank(path[i]))
	}
	return b
}

// KeyPath is the inverse of AppendKey; the path still has to be checked.
func KeyPath(key []byte) string {
	p := bytes.ReplaceAll(key, []byte{0}, []byte{'/'})
	return string(p)
}

// Page builds a page: items in the order of their keys, and the table of the block names that they refer
// to. It keeps its memory from one page to the next. The zero Page is empty.
type Page struct {
	buf   []byte // encoded items; references are zeros until Encode
	refs  []ref
	ids   map[holdfast.Name]int // place in names
	names []holdfast.Name       // in the order of first use
	items int
	key   []byte // of the last item
	was   []byte // of the item before it, for Undo
	undo  struct{ buf, refs, names int }
}

// ref is a place in buf that will hold the index of a name in the sorted table.
type ref struct{ at, id int }

// Items returns how many items there are.
func (p *Page) Items() int { return p.items }

// Size returns the exact length of what Encode will return for a head of that many bytes.
func (p *Page) Size(head int) int { return 4 + 32*len(p.names) + head + 4 + len(p.buf) }

// Item begins an item. What is written next belongs to it.
func (p *Page) Item(key []byte) {
	p.undo.buf, p.undo.refs, p.undo.names = len(p.buf), len(p.refs), len(p.names)
	shared := 0
	if p.items > 0 {
		shared = common(p.key, key)
	}
	p.Uvarint(uint64(shared))
	p.Bytes(key[shared:])
	p.was, p.key = p.key, append(p.was[:0], key...)
	p.items++
}

// Undo removes the last item. It can be called once after each call of Item.
func (p *Page) Undo() {
	for _, n := range p.names[p.undo.names:] {
		delete(p.ids, n)
	}
	p.buf, p.refs, p.names = p.buf[:p.undo.buf], p.refs[:p.undo.refs], p.names[:p.undo.names]
	p.key, p.was = p.was, p.key
	p.items--
}

// U8 writes a byte.
func (p *Page) U8(v uint8) { p.buf = append(p.buf, v) }

// Uvarint writes an unsigned varint.
func (p *Page) Uvarint(v uint64) { p.buf = binary.AppendUvarint(p.buf, v) }

// Bytes writes a varint length and x.
func (p *Page) Bytes(x []byte) { p.buf = enc.AppendVLP(p.buf, x) }

func (p *Page) str(x string) {
	p.Uvarint(uint64(len(x)))
	p.buf = append(p.buf, x...)
}

// Time writes a time: seconds as a zigzag varint, then nanoseconds as a varint.
func (p *Page) Time(t Time) {
	p.buf = binary.AppendVarint(p.buf, t.Sec)
	p.Uvarint(uint64(t.Nsec))
}

// Ref writes a reference to a name: its index in the table, u16.
func (p *Page) Ref(n holdfast.Name) {
	id, ok := p.ids[n]
	if !ok {
		if p.ids == nil {
			p.ids = map[holdfast.Name]int{}
		}
		id = len(p.names)
		p.ids[n] = id
		p.names = append(p.names, n)
	}
	p.refs = append(p.refs, ref{len(p.buf), id})
	p.buf = append(p.buf, 0, 0)
}

// Encode returns the page and the names in it, sorted, and makes p empty. Both results are the caller's.
func (p *Page) Encode(head []byte) (plain []byte, names []holdfast.Name) {
	if len(p.names) > holdfast.MaxLinks {
		panic(fmt.Sprintf("archive: page with %d names", len(p.names)))
	}
	plain = make([]byte, 0, p.Size(len(head)))
	names = slices.Clone(p.names)
	slices.SortFunc(names, compareNames)
	plain = appendTable(plain, names)
	place := make([]uint16, len(names)) // by order of first use
	for i, n := range names {
		place[p.ids[n]] = uint16(i)
	}
	for _, r := range p.refs {
		binary.BigEndian.PutUint16(p.buf[r.at:], place[r.id])
	}
	plain = append(plain, head...)
	plain = binary.BigEndian.AppendUint32(plain, uint32(p.items))
	plain = append(plain, p.buf...)
	p.buf, p.refs, p.names, p.key, p.items = p.buf[:0], p.refs[:0], p.names[:0], p.key[:0], 0
	clear(p.ids)
	return plain, names
}

func compareNames(a, b holdfast.Name) int { return bytes.Compare(a[:], b[:]) }

// common returns the length of the longest common beginning.
func common(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// appendTable appends a table of sorted, distinct names.
func appendTable(b []byte, names []holdfast.Name) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(names)))
	for _, n := range names {
		b = append(b, n[:]...)
	}
	return b
}

// table is a decoded table of names that knows which of them were referred to.
type table struct {
	raw  []byte // 32 bytes a name
	used []bool
	left int // names not referred to yet
}

func readTable(r *enc.Reader) table {
	n := r.U32()
	if r.Err() == nil && n > holdfast.MaxLinks {
		r.Fail("table of %d names exceeds the limit of %d", n, holdfast.MaxLinks)
	}
	raw := r.Bytes(32 * int(n))
	if r.Err() != nil {
		return table{}
	}
	for i := 32; i < len(raw); i += 32 {
		if bytes.Compare(raw[i-32:i], raw[i:i+32]) >= 0 {
			r.Fail("table of names is not sorted")
			return table{}
		}
	}
	return table{raw, make([]bool, n), int(n)}
}

// ref reads a reference.
func (t *table) ref(r *enc.Reader) (n holdfast.Name) {
	i := int(r.U16())
	if r.Err() != nil {
		return n
	}
	if i >= len(t.used) {
		r.Fail("reference to name %d of %d", i, len(t.used))
		return n
	}
	if !t.used[i] {
		t.used[i] = true
		t.left--
	}
	return holdfast.Name(t.raw[32*i:])
}

// done fails if there is a name that nothing refers to.
func (t *table) done(r *enc.Reader) error {
	if r.Err() == nil && t.left != 0 {
		r.Fail("nothing refers to %d names of the table", t.left)
	}
	return r.Done()
}

// PageReader decodes a page item by item: Item, then the fields of it, until Left is 0; then Done. It
// keeps its first error, returned by Err and Done, and zero values come from then on.
type PageReader struct {
	*enc.Reader
	table table
	left  uint32
	key   []byte
	user  string // of the previous entry, so that equal ones share memory
	group string
}

// OpenPage begins to decode a page whose head has that many bytes, and returns the head. The page must
// not change while it is read. The error wraps ErrDamaged.
func OpenPage(plain []byte, head int) (*PageReader, []byte, error) {
	r := &PageReader{Reader: enc.NewReader(plain)}
	r.table = readTable(r.Reader)
	h := r.Bytes(head)
	r.left = r.U32()
	if r.Err() == nil && uint64(r.left) > uint64(r.Len()) {
		r.Fail("%d items in %d bytes", r.left, r.Len())
	}
	if err := r.Err(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return r, h, nil
}

// Left returns how many items were not begun yet; 0 after an error.
func (r *PageReader) Left() int {
	if r.Err() != nil {
		return 0
	}
	return int(r.left)
}

// Item begins the next item and returns its key, which is valid until the next call.
func (r *PageReader) Item() []byte {
	r.left--
	shared := r.UvarintMax(uint64(len(r.key)))
	tail := r.VLP(MaxPath + len(contMark))
	if r.Err() != nil {
		return nil
	}
	if int(shared) < len(r.key) && len(tail) > 0 && tail[0] == r.key[shared] {
		r.Fail("key does not share all it could with the key before")
	}
	if int(shared)+len(tail) > MaxPath+len(contMark) {
		r.Fail("key of %d bytes", int(shared)+len(tail))
	}
	if r.Err() != nil {
		return nil
	}
	r.key = append(r.key[:shared], tail...)
	return r.key
}

// Ref reads a reference to a name.
func (r *PageReader) Ref() holdfast.Name { return r.table.ref(r.Reader) }

// Time reads a time.
func (r *PageReader) Time() Time {
	u := r.Uvarint()
	return Time{int64(u>>1) ^ -int64(u&1), uint32(r.UvarintMax(1e9 - 1))}
}

// Done returns the first error, or an error if something is left over or a name was not referred to. The
// error wraps ErrDamaged.
func (r *PageReader) Done() error {
	if r.Err() == nil && r.left != 0 {
		r.Fail("%d items were not read", r.left)
	}
	if err := r.table.done(r.Reader); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

// SplitKey takes the key of a leaf's item apart: the key of the path, and whether the item continues the
// extents of that path.
func SplitKey(key []byte) (path []byte, cont bool) {
	if bytes.HasSuffix(key, contMark) {
		return key[:len(key)-len(contMark)], true
	}
	return key, false
}

// ContinuedKey returns the key of the items that continue the extents of a path, in memory of its own.
func ContinuedKey(path []byte) []byte { return append(slices.Clip(path), contMark...) }

// Entry writes an entry as one item with its first extents, and returns the length of its fields, that
// is, of everything but its key and names. Extents writes the rest as further items.
func (p *Page) Entry(key []byte, e *Entry, first []Extent) int {
	p.Item(key)
	begin := len(p.buf)
	p.U8(uint8(e.Type))
	p.U8(uint8(e.Flags))
	p.Uvarint(uint64(e.Mode))
	p.Uvarint(uint64(e.UID))
	p.Uvarint(uint64(e.GID))
	p.str(e.User)
	p.str(e.Group)
	p.Time(e.Mtime)
	p.str(e.Link)
	switch e.Type {
	case TypeFile:
		p.Uvarint(e.Size)
	case TypeSymlink:
		p.str(e.Target)
	case TypeChar, TypeBlock:
		p.Uvarint(uint64(e.Major))
		p.Uvarint(uint64(e.Minor))
	}
	p.Uvarint(uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		p.str(x.Name)
		p.Bytes(x.Value)
	}
	if e.hasContent() {
		if e.Content == [16]byte{} {
			p.U8(0)
		} else {
			p.U8(1)
			p.buf = append(p.buf, e.Content[:]...)
		}
		p.extents(first)
	}
	return len(p.buf) - begin
}

// Extents writes an item that continues the extents of the path whose key is given, and returns the
// length of its fields.
func (p *Page) Extents(key []byte, more []Extent) int {
	p.Item(ContinuedKey(key))
	begin := len(p.buf)
	p.extents(more)
	return len(p.buf) - begin
}

func (p *Page) extents(xs []Extent) {
	p.Uvarint(uint64(len(xs)))
	for _, x := range xs {
		p.U8(uint8(x.Kind))
		if !x.Hole() {
			p.Ref(x.Name)
		}
		if x.Kind == holdfast.KindPack {
			p.Uvarint(uint64(x.Off))
		}
		p.Uvarint(x.Len)
	}
}

// Entry reads an entry whose path has that key, and its first extents. A nil entry means an error.
func (r *PageReader) Entry(key []byte) *Entry {
	e := &Entry{Path: KeyPath(key)}
	if bytes.IndexByte(key, '/') >= 0 {
		r.Fail("key with a slash")
	}
	e.Type = Type(r.U8())
	e.Flags = Flags(r.U8())
	e.Mode = uint32(r.UvarintMax(0o7777))
	e.UID = uint32(r.UvarintMax(1<<32 - 1))
	e.GID = uint32(r.UvarintMax(1<<32 - 1))
	e.User = share(r.VLP(MaxOwner), &r.user)
	e.Group = share(r.VLP(MaxOwner), &r.group)
	e.Mtime = r.Time()
	e.Link = string(r.VLP(MaxPath))
	switch e.Type {
	case TypeFile:
		e.Size = r.Uvarint()
	case TypeSymlink:
		e.Target = string(r.VLP(MaxTarget))
	case TypeChar, TypeBlock:
		e.Major = uint32(r.UvarintMax(1<<32 - 1))
		e.Minor = uint32(r.UvarintMax(1<<32 - 1))
	}
	if n := r.UvarintMax(uint64(r.Len() / 2)); n > 0 && r.Err() == nil {
		e.Xattrs = make([]Xattr, 0, min(n, 64))
		for range n {
			x := Xattr{Name: string(r.VLP(MaxXattrName)), Value: bytes.Clone(r.VLP(MaxXattrs))}
			if r.Err() != nil {
				return nil
			}
			e.Xattrs = append(e.Xattrs, x)
		}
	}
	if e.hasContent() {
		switch r.U8() {
		case 0:
		case 1:
			r.Fixed(e.Content[:])
			if r.Err() == nil && e.Content == [16]byte{} {
				r.Fail("hash of the content is marked as set but is zeros")
			}
		default:
			r.Fail("mark of the content's hash is neither 0 nor 1")
		}
		e.Extents = r.extents(0)
	}
	if r.Err() == nil {
		if err := e.checkFields(); err != nil {
			r.Fail("entry %.200q: %w", e.Path, err)
		}
	}
	if r.Err() != nil {
		return nil
	}
	return e
}

// Extents reads the extents of an item that continues those of an earlier one; there is at least one.
func (r *PageReader) Extents() []Extent { return r.extents(1) }

func (r *PageReader) extents(least uint64) []Extent {
	n := r.UvarintMax(min(MaxItemExtents, uint64(r.Len()/2))) // the shortest extent is a hole of two bytes
	if r.Err() == nil && n < least {
		r.Fail("item of %d extents", n)
	}
	if n == 0 || r.Err() != nil {
		return nil
	}
	xs := make([]Extent, n)
	for i := range xs {
		x := &xs[i]
		x.Kind = holdfast.Kind(r.U8())
		if !x.Hole() {
			x.Name = r.Ref()
		}
		if x.Kind == holdfast.KindPack {
			x.Off = uint32(r.UvarintMax(holdfast.MaxPlain))
		}
		x.Len = r.Uvarint()
		if r.Err() == nil {
			if err := x.check(); err != nil {
				r.Fail("%w", err)
			}
		}
		if r.Err() != nil {
			return nil
		}
	}
	return xs
}

// share returns b as a string, and last itself if they are equal.
func share(b []byte, last *string) string {
	if string(b) != *last {
		*last = string(b)
	}
	return *last
}

// Joiner puts entries together again from the items of a leaf or a catalog, and checks what only shows
// across items: order, that nothing lies below what is not a directory, and that extents are complete.
// The zero Joiner is before the first item.
type Joiner struct {
	pending *Entry
	key     []byte // of the last entry
	sum     uint64 // bytes of its extents so far
	leaf    bool   // it is not a directory
}

var errJoin = errors.New("items do not belong together")

// Entry adds an entry with its first extents; key is that of its path. It returns the entry before it,
// which is complete now, or nil.
func (j *Joiner) Entry(key []byte, e *Entry) (*Entry, error) {
	done, err := j.Finish()
	if err != nil {
		return nil, err
	}
	if len(j.key) > 0 {
		if bytes.Compare(j.key, key) >= 0 {
			return nil, fmt.Errorf("%w: %w: %.200q is out of order", ErrDamaged, errJoin, e.Path)
		}
		if j.leaf && len(key) > len(j.key) && key[len(j.key)] == 0 && bytes.HasPrefix(key, j.key) {
			return nil, fmt.Errorf("%w: %w: %.200q lies below what is not a directory", ErrDamaged, errJoin, e.Path)
		}
	}
	// What lies below a file follows it directly, so remembering one key is enough.
	j.key = append(j.key[:0], key...)
	j.pending, j.leaf, j.sum = e, e.Type != TypeDir, 0
	for _, x := range e.Extents {
		if err := j.add(x); err != nil {
			return nil, err
		}
	}
	return done, nil
}

// Extents adds an item that continues the entry of that key.
func (j *Joiner) Extents(key []byte, more []Extent) error {
	if j.pending == nil || !bytes.Equal(j.key, key) || !j.pending.hasContent() {
		return fmt.Errorf("%w: %w: extents without their file", ErrDamaged, errJoin)
	}
	if len(j.pending.Extents)+len(more) > MaxExtents {
		return fmt.Errorf("%w: %.200q: more than %d extents", ErrDamaged, j.pending.Path, MaxExtents)
	}
	for _, x := range more {
		if err := j.add(x); err != nil {
			return err
		}
	}
	j.pending.Extents = append(j.pending.Extents, more...)
	return nil
}

// add counts one extent. It stops at the size that the entry claims, so that no loop of items is endless.
func (j *Joiner) add(x Extent) error {
	if x.Len > j.pending.Size-j.sum {
		return fmt.Errorf("%w: %.200q: extents exceed its size", ErrDamaged, j.pending.Path)
	}
	j.sum += x.Len
	return nil
}

// Drop forgets the last entry, whose extents are not all to be had, and returns it; nil if there is none
// that waits for them.
func (j *Joiner) Drop() *Entry {
	e := j.pending
	j.pending = nil
	return e
}

// Finish returns the last entry, which is complete now, or nil if there is none.
func (j *Joiner) Finish() (*Entry, error) {
	e := j.pending
	j.pending = nil
	if e == nil {
		return nil, nil
	}
	if err := e.checkContent(); err != nil {
		return nil, fmt.Errorf("%w: %.200q: %w", ErrDamaged, e.Path, err)
	}
	return e, nil
}
