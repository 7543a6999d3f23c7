package view

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"testing"
)

func TestFilterForgetsNothing(t *testing.T) {
	f := newFilter(maphash.MakeSeed(), 5000)
	k := func(group uint32, i int) [blockKeySize]byte {
		return blockKey(rowBlock, group, sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i))))
	}
	for i := range 5000 {
		b := k(uint32(i%3), i)
		f.add(f.hash(b[:]))
	}
	wrong := 0
	for i := range 5000 {
		b := k(uint32(i%3), i)
		if !f.has(f.hash(b[:])) {
			t.Fatal("a key was forgotten")
		}
		if b = k(uint32(i%3+1), i); f.has(f.hash(b[:])) { // another group's block of that name
			wrong++
		}
	}
	if wrong > 500 {
		t.Errorf("%d of 5000 absent keys are thought to be there", wrong)
	}
}
