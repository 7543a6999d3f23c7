package history

import (
	"testing"

	"holdfast"
	"holdfast/internal/ceiling"
	"holdfast/internal/enc"
)

// TestMemoryCeiling: no record makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	c := ceiling.Ceiling{Fixed: 8 << 10, Factor: 8}
	for typ, f := range fields() {
		ceiling.Check(t, c, [][]byte{f}, nil, func(b []byte) { reencode(typ, b) })
		ceiling.Check(t, c, [][]byte{Body{Type: typ, Fields: f}.Encode()}, nil, func(b []byte) { ParseBody(b) })
	}
	r := Sign(Body{Type: TypeGenesis, Fields: genesis().Encode()}, owner, hist)
	ceiling.Check(t, c, [][]byte{r.Append(nil)}, nil, func(b []byte) { ParseRecord(b) })
	e := Stamp(holdfast.VaultID(r.ID()), 1, holdfast.Head{}, 1, r, log)
	ceiling.Check(t, c, [][]byte{e.Append(nil)}, nil, func(b []byte) { ReadEntry(enc.NewReader(b)) })
}
