package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"holdfast"
)

// Block frames carry sealed blocks in both directions, one after another until the body ends:
//
//	name 32, status u8, length u32, sealed bytes
//
// Uploads have status 0 (FrameBlock) only. In answers to a fetch the other statuses have length 0.
const (
	FrameBlock   = 0 // sealed bytes follow
	FrameAbsent  = 1 // the group has no such block
	FrameDamaged = 2 // the service's copy fails its checksum
)

// FrameOverhead is the size of a frame without its sealed bytes.
const FrameOverhead = 32 + 1 + 4

// Frame is one block on the wire.
type Frame struct {
	Name   holdfast.Name
	Status uint8
	Sealed []byte
}

// ErrFrame reports bytes that are not block frames.
var ErrFrame = errors.New("malformed block frame")

// AppendFrame appends f's encoding to b.
func AppendFrame(b []byte, f Frame) []byte {
	return append(AppendFrameHeader(b, f), f.Sealed...)
}

// AppendFrameHeader appends f's encoding up to its sealed bytes to b, for a caller that writes these itself.
func AppendFrameHeader(b []byte, f Frame) []byte {
	b = append(b, f.Name[:]...)
	b = append(b, f.Status)
	return binary.BigEndian.AppendUint32(b, uint32(len(f.Sealed)))
}

// readStep is as much memory as ReadFrame takes on a frame's word, bytes: few blocks are longer.
const readStep = 512 << 10

// ReadFrame reads one frame. It returns io.EOF at a clean end, and an error that wraps ErrFrame or
// io.ErrUnexpectedEOF otherwise. What a frame says of its length is believed up to readStep bytes; beyond, memory
// grows with what has come.
func ReadFrame(r io.Reader) (Frame, error) {
	var f Frame
	var h [FrameOverhead]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if err == io.EOF {
			return f, io.EOF
		}
		return f, fmt.Errorf("read block frame: %w", err)
	}
	n, err := f.parse(h[:])
	if err != nil {
		return f, err
	}
	if n > 0 {
		f.Sealed = make([]byte, min(n, readStep))
		for have := 0; ; {
			if _, err := io.ReadFull(r, f.Sealed[have:]); err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return f, fmt.Errorf("read block frame: %w", err)
			}
			if have = len(f.Sealed); have == n {
				break
			}
			f.Sealed = append(make([]byte, 0, min(n, 2*have)), f.Sealed...)[:min(n, 2*have)]
		}
	}
	return f, nil
}

// NextFrame decodes the frame that b begins with and returns what follows it; the frame aliases b. The
// errors are those of ReadFrame; b must not be empty.
func NextFrame(b []byte) (f Frame, rest []byte, err error) {
	if len(b) < FrameOverhead {
		return f, nil, fmt.Errorf("read block frame: %w", io.ErrUnexpectedEOF)
	}
	n, err := f.parse(b)
	if err != nil {
		return f, nil, err
	}
	if len(b)-FrameOverhead < n {
		return f, nil, fmt.Errorf("read block frame: %w", io.ErrUnexpectedEOF)
	}
	if n > 0 {
		f.Sealed = b[FrameOverhead : FrameOverhead+n : FrameOverhead+n]
	}
	return f, b[FrameOverhead+n:], nil
}

// parse decodes the part of a frame before its sealed bytes and returns the number of these.
func (f *Frame) parse(h []byte) (int, error) {
	copy(f.Name[:], h[:32])
	f.Status = h[32]
	n := binary.BigEndian.Uint32(h[33:])
	switch {
	case f.Status > FrameDamaged:
		return 0, fmt.Errorf("%w: status %d", ErrFrame, f.Status)
	case n > holdfast.MaxBlock:
		return 0, fmt.Errorf("%w: %d bytes exceed the limit of %d", ErrFrame, n, holdfast.MaxBlock)
	case (f.Status == FrameBlock) != (n > 0):
		return 0, fmt.Errorf("%w: status %d with %d bytes", ErrFrame, f.Status, n)
	}
	return int(n), nil
}

// BlockHeader is the clear part of a sealed block:
//
//	version u8 = 1, suite u8 = 1, kind u8, session 16, nonce 12, n u32, links 32 x n, sorted, unique
type BlockHeader struct {
	Kind    holdfast.Kind
	Session holdfast.SessionID
	Nonce   [12]byte
	Links   []holdfast.Name
}

// BlockHeaderSize is the size of a block header with n links.
func BlockHeaderSize(n int) int { return 35 + 32*n }

// ErrBlock reports bytes that are not a sealed block of this version.
var ErrBlock = errors.New("malformed block")

// AppendBlockHeader appends h's encoding to b. Links must be sorted and unique.
func AppendBlockHeader(b []byte, h BlockHeader) []byte {
	b = append(b, 1, 1, byte(h.Kind))
	b = append(b, h.Session[:]...)
	b = append(b, h.Nonce[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(h.Links)))
	for _, l := range h.Links {
		b = append(b, l[:]...)
	}
	return b
}

// ParseBlockHeader decodes the clear header of a sealed block and returns what follows it, which it
// does not check except that it can hold a GCM tag. The error wraps ErrBlock.
func ParseBlockHeader(sealed []byte) (BlockHeader, []byte, error) {
	var h BlockHeader
	fail := func(format string, args ...any) (BlockHeader, []byte, error) {
		return BlockHeader{}, nil, fmt.Errorf("%w: "+format, append([]any{ErrBlock}, args...)...)
	}
	if len(sealed) > holdfast.MaxBlock {
		return fail("%d bytes exceed the limit of %d", len(sealed), holdfast.MaxBlock)
	}
	if len(sealed) < BlockHeaderSize(0)+16 {
		return fail("only %d bytes", len(sealed))
	}
	if sealed[0] != 1 || sealed[1] != 1 {
		return fail("version %d, suite %d", sealed[0], sealed[1])
	}
	h.Kind = holdfast.Kind(sealed[2])
	if !h.Kind.Valid() {
		return fail("unknown %s", h.Kind)
	}
	copy(h.Session[:], sealed[3:19])
	copy(h.Nonce[:], sealed[19:31])
	n := binary.BigEndian.Uint32(sealed[31:35])
	if n > holdfast.MaxLinks || BlockHeaderSize(int(n))+16 > len(sealed) {
		return fail("%d links in %d bytes", n, len(sealed))
	}
	if h.Kind.Leaf() && n != 0 {
		return fail("%s with links", h.Kind)
	}
	if n > 0 {
		h.Links = make([]holdfast.Name, n)
	}
	for i := range h.Links {
		copy(h.Links[i][:], sealed[35+32*i:])
		if i > 0 && string(h.Links[i-1][:]) >= string(h.Links[i][:]) {
			return fail("links are not sorted and unique")
		}
	}
	return h, sealed[BlockHeaderSize(int(n)):], nil
}

// ParseNames decodes a body that is a list of at most holdfast.MaxHave names.
func ParseNames(b []byte) ([]holdfast.Name, error) {
	if len(b)%32 != 0 || len(b) == 0 || len(b) > 32*holdfast.MaxHave {
		return nil, fmt.Errorf("%w: %d bytes are not 1 to %d names", ErrFrame, len(b), holdfast.MaxHave)
	}
	out := make([]holdfast.Name, len(b)/32)
	for i := range out {
		copy(out[i][:], b[32*i:])
	}
	return out, nil
}

// AppendNames appends names as ParseNames reads them.
func AppendNames(b []byte, names []holdfast.Name) []byte {
	for i := range names {
		b = append(b, names[i][:]...)
	}
	return b
}
