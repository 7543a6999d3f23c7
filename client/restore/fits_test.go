package restore

import (
	"testing"

	"holdfast"
)

// TestExtentsFitTheirBlocks: a hostile writer can seal a tree whose extents reach anywhere.
func TestExtentsFitTheirBlocks(t *testing.T) {
	const size = 1000
	for _, x := range []struct {
		p    piece
		kind holdfast.Kind
		ok   bool
	}{
		{piece{kind: holdfast.KindPack, off: 0, len: size}, holdfast.KindPack, true},
		{piece{kind: holdfast.KindPack, off: 999, len: 1}, holdfast.KindPack, true},
		{piece{kind: holdfast.KindPack, off: 999, len: 2}, holdfast.KindPack, false},
		{piece{kind: holdfast.KindPack, off: 1000, len: 1}, holdfast.KindPack, false},
		{piece{kind: holdfast.KindPack, off: 1<<32 - 1, len: 2}, holdfast.KindPack, false},
		{piece{kind: holdfast.KindPack, off: 0, len: size}, holdfast.KindChunk, false},
		{piece{kind: holdfast.KindChunk, len: size}, holdfast.KindChunk, true},
		{piece{kind: holdfast.KindChunk, len: size - 1}, holdfast.KindChunk, false},
		{piece{kind: holdfast.KindChunk, len: size}, holdfast.KindTree, false},
	} {
		if err := fits(x.p, x.kind, size); (err == nil) != x.ok || (err != nil && !Damaged(err)) {
			t.Errorf("extent at %d of %d bytes of a %s, in a %s of %d: %v", x.p.off, x.p.len, x.p.kind, x.kind, size, err)
		}
	}
}
