package keyring

import (
	"bytes"
	"testing"

	"holdfast"
	"holdfast/internal/ceiling"
	"holdfast/wire"
)

// TestMemoryCeiling: no file, request or grant makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	c := ceiling.Ceiling{Fixed: 128 << 10, Factor: 16}
	mend := func(text []byte) []byte { // with the right check sum, as whoever made it would
		var w writer
		for l := range bytes.Lines(text) {
			if len(l) > 1 && l[0] != '#' && !bytes.HasPrefix(l, []byte("check ")) {
				w.b = append(append(w.b, bytes.TrimSuffix(l, []byte("\n"))...), '\n')
			}
		}
		return w.sum()
	}
	ceiling.Check(t, c, [][]byte{testMachine(holdfast.RightsAll).Encode()}, mend, func(b []byte) { Parse(b) })
	ceiling.Check(t, c, [][]byte{ownerFile().Encode()}, mend, func(b []byte) { ParseOwner(b) })
	packed, err := Pack(testMachine(holdfast.RightsAll).Encode())
	if err != nil {
		t.Fatal(err)
	}
	ceiling.Check(t, c, [][]byte{packed}, nil, func(b []byte) { Unpack(b) })
	p := testPending(holdfast.RightsAll)
	ceiling.Check(t, c, [][]byte{p.Encode()}, mend, func(b []byte) { ParsePending(b) })
	ceiling.Check(t, c, [][]byte{p.Request().encode()}, nil, func(b []byte) { ParseRequest(wire.Line(requestPrefix, b)) })
	g := testGrant(t, p, holdfast.RightsAll)
	ceiling.Check(t, c, [][]byte{append(g.body(), g.sig[:]...)}, nil, func(b []byte) { ParseGrant(wire.Line(grantPrefix, b)) })
}
