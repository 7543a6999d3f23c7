package seal

import (
	"testing"

	"holdfast"
	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: no block makes its reader take more memory than one plaintext may be long, even if a writer
// who has the keys sealed it; and no more than a few times its own length before it is authentic.
func TestMemoryCeiling(t *testing.T) {
	m, s, r := pair(t)
	plain, links := tree(3, text(300))
	name, sealed := seal(t, s, holdfast.KindTree, plain, links, nil)
	ceiling.Check(t, ceiling.Ceiling{Fixed: 16 << 10, Factor: 8}, [][]byte{sealed}, nil, func(b []byte) { r.Open(m.Group, name, b) })
	ceiling.Check(t, ceiling.Ceiling{Fixed: 4 << 10, Factor: 4}, [][]byte{plain}, nil, func(b []byte) { Links(b) })

	var scratch []byte
	inners := [][]byte{innerOf(500, codecZstd, compress(&scratch, text(500), []int{100, 400})), innerOf(5, codecRaw, []byte("hello"))}
	opened := s.keys.NameOf(holdfast.KindChunk, text(500))
	ceiling.Check(t, ceiling.Ceiling{Fixed: holdfast.MaxPlain + 3<<20, Factor: 8}, inners, nil, func(b []byte) {
		r.Open(m.Group, opened, forge(s, opened, holdfast.KindChunk, nil, b))
	})
}
