package segment

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"holdfast"
	"holdfast/internal/enc"
)

// A bundle is an object that repeats the trailers of consecutive segments, byte for byte, so that their objects can be
// deleted and no record is lost (JOURNAL 12). Overlapping bundles say the same.
//
//	magic     8    "HOLDBUN1"
//	cell      8
//	count     u32  trailers; 1 to 1,024
//	trailers  count x (u32 length, trailer)
//	end       8    "HOLDBEN1"
//
// One with more than one trailer has at most 8 MiB. It proves itself: the hash of the last trailer is in its key,
//
//	<cell 16 hex>/bundle/<epoch>-<seq>-<epoch>-<seq>-<nonce>-<hash 64 hex>     (16 hex each; the first and the last segment)
//
// and each trailer's prev is the hash of the trailer before it.
const (
	// MaxBundle bounds a bundle in bytes, unless it has one trailer only.
	MaxBundle = 8 << 20
	// MaxBundled bounds the trailers in a bundle.
	MaxBundled = 1024

	bundleMagic = "HOLDBUN1"
	bundleEnd   = "HOLDBEN1"
	bundleHead  = len(bundleMagic) + 8 + 4
	// minBundle is the size of a bundle without trailers.
	minBundle = bundleHead + len(bundleEnd)
)

// BundleKey is the name of a bundle in the bucket.
type BundleKey struct {
	Cell        holdfast.CellID
	First, Last Position
	Nonce       [8]byte  // random, fresh for every attempt
	Hash        [32]byte // of the trailer of Last
}

// BundlePrefix begins the keys of all bundles of a cell.
func BundlePrefix(cell holdfast.CellID) string { return cell.String() + "/bundle/" }

// String returns the object key.
func (k BundleKey) String() string {
	return fmt.Sprintf("%s%016x-%016x-%016x-%016x-%x-%x", BundlePrefix(k.Cell), k.First.Epoch, k.First.Seq, k.Last.Epoch, k.Last.Seq, k.Nonce, k.Hash)
}

// ParseBundleKey is the inverse of String; it accepts nothing that String does not make. The error wraps ErrFormat.
func ParseBundleKey(s string) (BundleKey, error) {
	var k BundleKey
	bad := fmt.Errorf("%w: %.200q is not the key of a bundle", ErrFormat, s)
	part := strings.Split(s, "/")
	if len(part) != 3 || part[1] != "bundle" {
		return k, bad
	}
	f := strings.Split(part[2], "-")
	if len(f) != 6 {
		return k, bad
	}
	for i, v := range []*uint64{&k.First.Epoch, &k.First.Seq, &k.Last.Epoch, &k.Last.Seq} {
		*v, _ = strconv.ParseUint(f[i], 16, 64) // what is not a number does not come back
	}
	for _, h := range []struct {
		dst []byte
		s   string
	}{{k.Cell[:], part[0]}, {k.Nonce[:], f[4]}, {k.Hash[:], f[5]}} {
		if len(h.s) == 2*len(h.dst) {
			_, _ = hex.Decode(h.dst, []byte(h.s))
		}
	}
	if k.String() != s || k.First.Compare(k.Last) > 0 {
		return BundleKey{}, bad
	}
	return k, nil
}

// Head is the part of a trailer before its sessions and records.
type Head struct {
	Cell     holdfast.CellID
	Position Position
	Prev     [32]byte
	BodySize uint32
}

// ParseHead decodes the head of a trailer that fills raw, and nothing behind it. The error wraps ErrFormat.
func ParseHead(raw []byte) (h Head, err error) {
	if len(raw) < minTrailer || len(raw) > MaxTrailer {
		return h, fmt.Errorf("%w: a trailer of %d bytes", ErrFormat, len(raw))
	}
	if n, err := FindTrailer(raw[len(raw)-FooterSize:]); err != nil || n != len(raw) {
		return h, fmt.Errorf("%w: the length or the end mark of a trailer is wrong", ErrFormat)
	}
	r := enc.NewReader(raw)
	if !bytes.Equal(r.Bytes(len(magic)), []byte(magic)) {
		return h, fmt.Errorf("%w: a trailer does not begin with %q", ErrFormat, magic)
	}
	r.Fixed(h.Cell[:])
	h.Position = Position{r.U64(), r.U64()}
	r.Fixed(h.Prev[:])
	r.I64() // its time
	h.BodySize = r.U32()
	return h, nil
}

// Key returns the key of the trailer's segment without its nonce, and the size of its object.
func (h Head) Key(raw []byte) (k Key, size int64) {
	k = Key{Cell: h.Cell, Position: h.Position, Trailer: uint32(len(raw)), Hash: HashOf(raw)}
	return k, int64(h.BodySize) + int64(len(raw))
}

// link holds the trailers of a bundle to the chain.
type link struct {
	cell holdfast.CellID
	n    int
	last Position
	hash [32]byte
}

// next accepts the trailer that follows, or refuses it.
func (l *link) next(raw []byte) (Head, error) {
	h, err := ParseHead(raw)
	switch {
	case err != nil:
		return h, err
	case h.Cell != l.cell:
		return h, fmt.Errorf("%w: segment %s is of cell %s", ErrFormat, h.Position, h.Cell)
	case l.n > 0 && !h.Position.follows(l.last):
		return h, fmt.Errorf("%w: segment %s after %s", ErrFormat, h.Position, l.last)
	case l.n > 0 && h.Prev != l.hash:
		return h, fmt.Errorf("%w: segment %s does not continue %s", ErrFormat, h.Position, l.last)
	}
	l.n, l.last, l.hash = l.n+1, h.Position, HashOf(raw)
	return h, nil
}

// follows reports whether a segment at p can come right after one at q.
func (p Position) follows(q Position) bool {
	return p.Compare(q) > 0 && (p == q.Next() || p.Seq == 0)
}

// BundleBuilder gathers the trailers of one bundle in memory. It is not safe for concurrent use.
type BundleBuilder struct {
	buf   []byte
	first Position
	link  link
}

// NewBundleBuilder returns an empty BundleBuilder.
func NewBundleBuilder(cell holdfast.CellID) *BundleBuilder {
	b := &BundleBuilder{link: link{cell: cell}}
	b.buf = append(append(append(b.buf, bundleMagic...), cell[:]...), 0, 0, 0, 0)
	return b
}

// Len returns how many trailers were added.
func (b *BundleBuilder) Len() int { return b.link.n }

// Last returns the place and the hash of the trailer that was added last.
func (b *BundleBuilder) Last() (Position, [32]byte) { return b.link.last, b.link.hash }

// Fits reports whether another trailer of n bytes may be added.
func (b *BundleBuilder) Fits(n int) bool {
	return b.link.n == 0 || b.link.n < MaxBundled && len(b.buf)+4+n+len(bundleEnd) <= MaxBundle
}

// Add copies a trailer that continues the one before. The error wraps ErrFormat and changes nothing. Add panics if it
// does not fit.
func (b *BundleBuilder) Add(trailer []byte) error {
	return b.AddFrom(len(trailer), func(p []byte) error {
		copy(p, trailer)
		return nil
	})
}

// AddFrom is Add of a trailer of n bytes that fill writes to where it will be, so that it is in memory once.
func (b *BundleBuilder) AddFrom(n int, fill func(p []byte) error) error {
	if !b.Fits(n) {
		panic("segment: a trailer does not fit into a bundle")
	}
	before := len(b.buf)
	b.buf = binary.BigEndian.AppendUint32(b.buf, uint32(n))
	b.buf = slices.Grow(b.buf, n+len(bundleEnd))
	p := b.buf[len(b.buf) : len(b.buf)+n]
	err := fill(p)
	var h Head
	if err == nil {
		h, err = b.link.next(p)
	}
	if err != nil {
		b.buf = b.buf[:before]
		return err
	}
	if b.link.n == 1 {
		b.first = h.Position
	}
	b.buf = b.buf[:len(b.buf)+n]
	return nil
}

// Finish returns the bundle and its key; b is of no use any more. It panics if nothing was added.
func (b *BundleBuilder) Finish(nonce [8]byte) (BundleKey, []byte) {
	if b.link.n == 0 {
		panic("segment: a bundle without trailers")
	}
	binary.BigEndian.PutUint32(b.buf[bundleHead-4:], uint32(b.link.n))
	k := BundleKey{Cell: b.link.cell, First: b.first, Last: b.link.last, Nonce: nonce, Hash: b.link.hash}
	return k, append(b.buf, bundleEnd...)
}

// BundleReader takes a bundle apart as it arrives. What it returned is proven when it returned io.EOF, and not before:
// the proof of each trailer is in the one after it, and that of the last in the key.
type BundleReader struct {
	key   BundleKey
	r     io.Reader
	left  int64 // bytes not read
	count uint32
	link  link
	buf   []byte
	err   error
}

// NewBundleReader returns a reader of the bundle that key names and that has size bytes.
func NewBundleReader(key BundleKey, r io.Reader, size int64) *BundleReader {
	return &BundleReader{key: key, r: r, left: size, link: link{cell: key.Cell}}
}

// Next returns the next trailer, which is valid until the next call, and its head; io.EOF after the last if everything
// is as the key says. Other errors wrap ErrFormat, or are those of the source; an error is returned for ever.
func (b *BundleReader) Next() (raw []byte, h Head, err error) {
	if b.err == nil {
		raw, h, b.err = b.next()
	}
	if b.err != nil && b.err != io.EOF {
		return nil, Head{}, fmt.Errorf("bundle %s to %s: %w", b.key.First, b.key.Last, b.err)
	}
	return raw, h, b.err
}

func (b *BundleReader) next() (raw []byte, h Head, err error) {
	if b.link.n == 0 {
		if err := b.head(); err != nil {
			return nil, h, err
		}
	}
	if b.link.n == int(b.count) {
		return nil, h, b.end()
	}
	raw, err = b.take(4)
	if err != nil {
		return nil, h, err
	}
	// Nothing is allocated for what is not there.
	n := int64(binary.BigEndian.Uint32(raw))
	if n < minTrailer || n > MaxTrailer || n > b.left-int64(len(bundleEnd)) {
		return nil, h, fmt.Errorf("%w: a trailer of %d bytes, with %d left", ErrFormat, n, b.left)
	}
	if raw, err = b.take(int(n)); err != nil {
		return nil, h, err
	}
	if h, err = b.link.next(raw); err == nil && b.link.n == 1 && h.Position != b.key.First {
		err = fmt.Errorf("%w: it begins with segment %s", ErrFormat, h.Position)
	}
	return raw, h, err
}

func (b *BundleReader) head() error {
	if b.left < int64(minBundle) || b.left > MaxTrailer+int64(minBundle)+4 {
		return fmt.Errorf("%w: %d bytes", ErrFormat, b.left)
	}
	size := b.left
	raw, err := b.take(bundleHead)
	if err != nil {
		return err
	}
	r := enc.NewReader(raw)
	var cell holdfast.CellID
	if !bytes.Equal(r.Bytes(len(bundleMagic)), []byte(bundleMagic)) {
		return fmt.Errorf("%w: it does not begin with %q", ErrFormat, bundleMagic)
	}
	r.Fixed(cell[:])
	b.count = r.U32()
	switch {
	case cell != b.key.Cell:
		return fmt.Errorf("%w: it is of cell %s", ErrFormat, cell)
	case b.count == 0 || b.count > MaxBundled || b.count > 1 && size > MaxBundle:
		return fmt.Errorf("%w: %d trailers in %d bytes", ErrFormat, b.count, size)
	}
	return nil
}

func (b *BundleReader) end() error {
	raw, err := b.take(len(bundleEnd))
	switch {
	case err != nil:
		return err
	case string(raw) != bundleEnd:
		return fmt.Errorf("%w: it does not end with %q", ErrFormat, bundleEnd)
	case b.left != 0:
		return fmt.Errorf("%w: %d bytes are left over", ErrFormat, b.left)
	case b.link.last != b.key.Last || b.link.hash != b.key.Hash:
		return fmt.Errorf("%w: its last trailer, of segment %s, is not the one that its key names", ErrFormat, b.link.last)
	}
	return io.EOF
}

// take reads n bytes.
func (b *BundleReader) take(n int) ([]byte, error) {
	if cap(b.buf) < n {
		b.buf = make([]byte, n)
	}
	b.buf = b.buf[:n]
	if _, err := io.ReadFull(b.r, b.buf); err != nil {
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: it ends too early", ErrFormat)
		}
		return nil, err
	}
	b.left -= int64(n)
	return b.buf, nil
}
