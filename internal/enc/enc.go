// Package enc reads and writes the project's binary formats: big-endian integers, byte strings with a
// u32 length ("lp"), and unsigned varints in their one shortest form.
//
// A Reader keeps its first error and returns zero values from then on, so that a decoder is a straight
// list of fields with one check at the end. Nothing is allocated before its length was compared with
// what is really there. What decodes re-encodes to the same bytes.
package enc

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrShort reports that the input ended inside a field.
var ErrShort = errors.New("input ends inside a field")

// Reader decodes one byte slice from front to back. The zero Reader is empty.
type Reader struct {
	b   []byte
	off int
	err error
}

// NewReader returns a Reader over b, which must not change while it is used.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// Offset returns how many bytes were consumed.
func (r *Reader) Offset() int { return r.off }

// Len returns how many bytes are left.
func (r *Reader) Len() int { return len(r.b) - r.off }

// Fail records an error found by the caller, unless there is an earlier one.
func (r *Reader) Fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
		r.off = len(r.b)
	}
}

// Bytes returns the next n bytes; the slice aliases the input. It returns nil after an error.
func (r *Reader) Bytes(n int) []byte {
	if r.err != nil {
		return nil
	}
	if n < 0 || n > r.Len() {
		r.err = ErrShort
		r.off = len(r.b)
		return nil
	}
	p := r.b[r.off : r.off+n : r.off+n]
	r.off += n
	return p
}

// Fixed fills dst.
func (r *Reader) Fixed(dst []byte) { copy(dst, r.Bytes(len(dst))) }

// U8 reads one byte.
func (r *Reader) U8() uint8 {
	if p := r.Bytes(1); p != nil {
		return p[0]
	}
	return 0
}

// U16 reads a big-endian 16-bit integer.
func (r *Reader) U16() uint16 {
	if p := r.Bytes(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

// U32 reads a big-endian 32-bit integer.
func (r *Reader) U32() uint32 {
	if p := r.Bytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

// U64 reads a big-endian 64-bit integer.
func (r *Reader) U64() uint64 {
	if p := r.Bytes(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// I64 reads a big-endian two's complement 64-bit integer.
func (r *Reader) I64() int64 { return int64(r.U64()) }

// LP reads a u32 length of at most max and that many bytes; the slice aliases the input.
func (r *Reader) LP(max int) []byte {
	n := r.U32()
	if r.err == nil && uint64(n) > uint64(max) {
		r.Fail("length %d exceeds the limit of %d", n, max)
		return nil
	}
	return r.Bytes(int(n))
}

// Uvarint reads an unsigned varint and refuses one that is not in its shortest form.
func (r *Reader) Uvarint() uint64 {
	if r.err != nil {
		return 0
	}
	v, n := binary.Uvarint(r.b[r.off:])
	if n <= 0 {
		r.err = ErrShort
		if n < 0 {
			r.err = errors.New("varint exceeds 64 bits")
		}
		r.off = len(r.b)
		return 0
	}
	if n > 1 && r.b[r.off+n-1] == 0 {
		r.Fail("varint is not in its shortest form")
		return 0
	}
	r.off += n
	return v
}

// UvarintMax reads an unsigned varint of at most max.
func (r *Reader) UvarintMax(max uint64) uint64 {
	v := r.Uvarint()
	if r.err == nil && v > max {
		r.Fail("number %d exceeds the limit of %d", v, max)
		return 0
	}
	return v
}

// VLP reads a varint length of at most max and that many bytes; the slice aliases the input.
func (r *Reader) VLP(max int) []byte {
	n := r.UvarintMax(uint64(max))
	if r.err != nil {
		return nil
	}
	return r.Bytes(int(n))
}

// Done returns the first error, or an error if input is left over.
func (r *Reader) Done() error {
	if r.err != nil {
		return r.err
	}
	if r.Len() != 0 {
		return fmt.Errorf("%d bytes follow the end", r.Len())
	}
	return nil
}

// AppendLP appends the u32 length of x, then x.
func AppendLP(b, x []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(x)))
	return append(b, x...)
}

// AppendVLP appends the varint length of x, then x.
func AppendVLP(b, x []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(x)))
	return append(b, x...)
}
