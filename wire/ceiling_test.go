package wire

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"holdfast"
	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: nothing that the other side sends makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	c := ceiling.Ceiling{Fixed: 8 << 10, Factor: 4}
	frame := AppendFrame(nil, Frame{Name: [32]byte{1}, Sealed: seq(0, 300)})
	frames := AppendFrame(bytes.Clone(frame), Frame{Name: [32]byte{2}, Status: FrameAbsent})
	// A frame's reader may not know how much there is to come: it grows with what has come, up to one more step.
	ceiling.Check(t, ceiling.Ceiling{Fixed: 600 << 10, Factor: 4}, [][]byte{frame, frames}, nil, func(b []byte) { ReadFrame(bytes.NewReader(b)) })
	ceiling.Check(t, c, [][]byte{frame, frames}, nil, func(b []byte) { NextFrame(b) })
	ceiling.Check(t, c, [][]byte{append(AppendBlockHeader(nil, header()), seq(0, 20)...)}, nil, func(b []byte) { ParseBlockHeader(b) })
	ceiling.Check(t, c, [][]byte{seq(0, 96)}, nil, func(b []byte) { ParseNames(b) })
	ceiling.Check(t, c, [][]byte{[]byte(Token{Address: "a:1"}.String())}, nil, func(b []byte) { ParseToken(string(b)) })
}

// Frames of every length around the steps in which they are read come back.
func TestLongFramesComeBack(t *testing.T) {
	for _, n := range []int{readStep - 1, readStep, readStep + 1, 2*readStep - 1, 2 * readStep, 2*readStep + 1, 4*readStep + 7, holdfast.MaxBlock} {
		f := Frame{Name: [32]byte{1}, Sealed: make([]byte, n)}
		for i := range f.Sealed {
			f.Sealed[i] = byte(i * 7 >> 3)
		}
		b := AppendFrame(nil, f)
		r := iotest.HalfReader(bytes.NewReader(append(b, 1)))
		if got, err := ReadFrame(r); err != nil || !bytes.Equal(got.Sealed, f.Sealed) {
			t.Errorf("%d bytes: %d came back, %v", n, len(got.Sealed), err)
		}
		if rest, _ := io.ReadAll(r); len(rest) != 1 {
			t.Errorf("%d bytes: %d are left after it", n, len(rest))
		}
		if _, err := ReadFrame(bytes.NewReader(b[:len(b)-1])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes, cut: %v", n, err)
		}
	}
}
