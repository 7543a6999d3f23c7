// Package chunk cuts a stream into chunks at borders that depend on the content near them and on two
// secrets, so that a change moves few borders and an observer of sizes learns little of the content.
//
// # Borders
//
// avg is the group's average size in bytes, a power of two; min = avg/4 and max = 4*avg. Positions count
// from the chunk's beginning: position p lies before byte p. Over the bytes b and the table Gear:
//
//	gear(p)  64-bit: h = 0, then for each of the 64 bytes before p, in order: h = 2*h + Gear[byte], mod 2^64
//	mac(p)   AES-256-CBC-MAC under the key Cut of the same 64 bytes: x = 0 (16 bytes), then for each of
//	         the four 16-byte pieces, in order: x = AES(Cut, x XOR piece)
//	border   min <= p < max, and gear(p) < 2^56 (its top byte is 0), and the first 8 bytes of mac(p) as
//	         u64 little-endian are below floor(2^72 / (avg - min))
//
// A chunk ends at its first border, else at max, else at the end of the stream. The next chunk begins
// there, and nothing before its beginning matters to it. So, above min, one position in avg-min is a border.
// An empty stream has no chunks.
//
// gear only proposes: its table is secret, but what hides the content is mac, a pseudo-random function.
//
// # Repetitions
//
// In data of one constant or of a short period, every position can be a candidate, and computing mac at
// each would cost fifty times the rest. A position whose 64 bytes equal those at an earlier position of
// the same chunk is no border, because the chunk would have ended at the earlier one. So the Chunker
// remembers where it met a candidate first, and skips what repeats from there. This changes no border.
package chunk

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"io"
	"math/bits"

	"holdfast"
	"holdfast/client/keyring"
)

// Limits of the average size, bytes.
const (
	MinAverage = 1 << 10
	MaxAverage = holdfast.MaxPlain / 4
)

const (
	window   = 64  // bytes that decide about a position
	memoSize = 256 // candidates remembered; a power of two
)

// Chunker cuts one stream. It holds a buffer of eight times the average size and is not safe for
// concurrent use.
type Chunker struct {
	r         io.Reader
	gear      *[256]uint64
	mac       cipher.Block
	min, max  int
	threshold uint64
	buf       []byte // buf[begin:end] was read and not yet returned
	begin     int
	end       int
	err       error // what r said last; io.EOF or a failure
	memo      [memoSize]candidate
	chunks    uint32 // counts chunks, so that memo need not be cleared
	x         [aes.BlockSize]byte
}

// candidate is a position of the current chunk that gear proposed and that was no border.
type candidate struct {
	gear  uint64
	pos   int32
	chunk uint32 // the Chunker's count when this was written
}

// New returns a Chunker of r with these keys and this average size. It panics if avg is not a power of
// two between MinAverage and MaxAverage.
func New(r io.Reader, c *keyring.Cuts, avg int) *Chunker {
	if avg < MinAverage || avg > MaxAverage || avg&(avg-1) != 0 {
		panic("chunk: average size is not a power of two in its limits")
	}
	mac, err := aes.NewCipher(c.Cut[:])
	if err != nil {
		panic("chunk: " + err.Error()) // only a wrong key length does this
	}
	t := &Chunker{gear: &c.Gear, mac: mac, min: avg / 4, max: 4 * avg, buf: make([]byte, 8*avg)}
	t.threshold, _ = bits.Div64(1<<8, 0, uint64(avg-t.min))
	t.Reset(r)
	return t
}

// Reset makes the Chunker cut another stream from its beginning, with the same keys.
func (t *Chunker) Reset(r io.Reader) {
	t.r, t.begin, t.end, t.err = r, 0, 0, nil
}

// Next returns the next chunk, in buf if its capacity suffices. At the end of the stream it returns
// io.EOF. An error of the reader is returned as it is, instead of the chunk in which it fell.
func (t *Chunker) Next(buf []byte) ([]byte, error) {
	t.fill()
	if t.err != nil && t.err != io.EOF {
		return nil, t.err
	}
	if t.begin == t.end {
		return nil, io.EOF
	}
	n := t.cut(t.buf[t.begin:t.end])
	buf = append(buf[:0], t.buf[t.begin:t.begin+n]...)
	t.begin += n
	return buf, nil
}

// fill reads until the buffer holds a chunk of any size or the stream has ended.
func (t *Chunker) fill() {
	if t.end-t.begin >= t.max || t.err != nil {
		return
	}
	if len(t.buf)-t.begin < t.max {
		t.end = copy(t.buf, t.buf[t.begin:t.end])
		t.begin = 0
	}
	for empty := 0; t.end-t.begin < t.max && t.err == nil; {
		var n int
		n, t.err = t.r.Read(t.buf[t.end:])
		t.end += n
		if n > 0 {
			empty = 0
		} else if empty++; empty > 100 && t.err == nil {
			t.err = io.ErrNoProgress
		}
	}
}

// cut returns the length of the chunk at the beginning of data, which is longer than max or ends with
// the stream.
func (t *Chunker) cut(data []byte) int {
	data = data[:min(len(data), t.max)]
	if len(data) <= t.min {
		return len(data)
	}
	t.chunks++
	if t.chunks == 0 { // after 2^32 chunks the memo could mistake an old one's candidates for this one's
		t.memo = [memoSize]candidate{}
		t.chunks = 1
	}
	gear := t.gear
	var h uint64
	for _, b := range data[t.min-window : t.min] {
		h = h<<1 + gear[b]
	}
	for p := t.min; p < len(data); {
		if h < 1<<56 {
			next := t.candidate(data, p, h)
			if next == p {
				return p
			}
			if next > p+1 { // skipped: let the hash catch up
				for _, b := range data[max(p, next-window):next] {
					h = h<<1 + gear[b]
				}
				p = next
				continue
			}
		}
		// The hot loop: one byte a step until the next candidate.
		h = h<<1 + gear[data[p]]
		p++
		for p < len(data) && h >= 1<<56 {
			h = h<<1 + gear[data[p]]
			p++
		}
	}
	return len(data)
}

// candidate looks at position p, which gear proposes. It returns p if p is a border, else the next
// position that may be one.
func (t *Chunker) candidate(data []byte, p int, h uint64) int {
	m := &t.memo[(h*0x9e3779b97f4a7c15)>>(64-8)]
	w := data[p-window : p]
	if m.chunk == t.chunks && m.gear == h {
		q := int(m.pos)
		if bytes.Equal(data[q-window:q], w) {
			n := matching(data[p:], data[q:])
			// Every position up to p+n has the window of the one p-q before it, which was no border.
			return min(p+n+1, len(data))
		}
	}
	for i := 0; i < window; i += aes.BlockSize {
		for j := range t.x {
			t.x[j] ^= w[i+j]
		}
		t.mac.Encrypt(t.x[:], t.x[:])
	}
	v := binary.LittleEndian.Uint64(t.x[:])
	clear(t.x[:])
	if v < t.threshold {
		return p
	}
	*m = candidate{gear: h, pos: int32(p), chunk: t.chunks}
	return p + 1
}

// matching returns how many bytes at the beginning of a, which is the shorter, equal those of b.
func matching(a, b []byte) int {
	n := 0
	for ; n+8 <= len(a); n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
	}
	for ; n < len(a) && a[n] == b[n]; n++ {
	}
	return n
}
