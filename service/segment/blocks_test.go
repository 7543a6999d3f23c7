package segment

import (
	"slices"
	"testing"
)

// TestBlocks: what was stored in a segment and what was moved there is in it, in the order of the records, and nothing else.
func TestBlocks(t *testing.T) {
	a := Placed{Session: [16]byte{1}, Name: [32]byte{2}, Off: 3, Len: 4, Sum: [16]byte{5}}
	b := Placed{Session: [16]byte{6}, Name: [32]byte{7}, Off: 8, Len: 9, Sum: [16]byte{10}}
	tr := Trailer{Records: []Timed{
		{1, Takeover{}},
		{1, Moved{Session: b.Session, Name: b.Name, From: Position{1, 2}, FromOff: 77, Off: b.Off, Len: b.Len, Sum: b.Sum}},
		{2, Condemned{Session: a.Session, Name: a.Name}},
		{3, Stored{Session: a.Session, Name: a.Name, Off: a.Off, Len: a.Len, Sum: a.Sum}},
		{3, Damaged{Session: a.Session, Name: a.Name}},
	}}
	if got := slices.Collect(tr.Blocks()); !slices.Equal(got, []Placed{b, a}) {
		t.Errorf("%v", got)
	}
	for p := range tr.Blocks() {
		if p != b {
			t.Errorf("the first is %v", p)
		}
		break
	}
}
