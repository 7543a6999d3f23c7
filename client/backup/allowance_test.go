package backup

import (
	"testing"

	"holdfast"
	"holdfast/wire"
)

func TestAllowance(t *testing.T) {
	if newAllowance(nil).room(1<<60) != true {
		t.Error("no cap is a cap")
	}
	const mib = 1 << 20
	a := newAllowance(&wire.Cap{Bytes: 100 * mib, UsedBytes: 10 * mib})
	left := uint64((100 - 10) * mib)
	left -= reserve(100*mib, reserveBytes)
	room := func(what string) {
		t.Helper()
		if !a.room(left) || a.room(left+1) {
			t.Errorf("%s: not exactly %d bytes are left", what, left)
		}
	}
	room("at first")
	a.put(2 * mib)
	left -= 2 * mib
	room("with a block on its way")
	a.settled(2*mib, mib) // it was compressed
	left += mib
	room("with that block sealed")
	a.put(2 * mib)
	a.settled(2*mib, 0)
	room("with a block that was there")
	a.put(1)
	a.settled(1, 100)
	left -= holdfast.LeastBilled
	room("with a tiny block")

	b := newAllowance(&wire.Cap{Blocks: 200, UsedBlocks: 100})
	for range 200 - 100 - reserveBlocks {
		if !b.room(0) {
			t.Fatal("too early")
		}
		b.put(1)
	}
	if !b.room(0) || b.room(1<<16) {
		t.Error("not exactly none of the blocks is left")
	}
	if r := reserve(1000, reserveBytes); r != 500 {
		t.Errorf("of a small cap %d are kept back", r)
	}
}
