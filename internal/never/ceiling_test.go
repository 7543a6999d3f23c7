package never

import (
	"bytes"
	"testing"

	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: no file makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	file := bytes.Repeat([]byte{' '}, FileSize)
	var l log
	for l.seq < slots {
		slot, at, err := l.next(entry{Stop: &Stop{ID: "bako-tiru", Stack: string(bytes.Repeat([]byte("stack\n"), 900))}})
		if err != nil {
			t.Fatal(err)
		}
		copy(file[at:], slot)
		l.seq++
	}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 64 << 10, Factor: 8}, [][]byte{file}, nil, func(b []byte) { parse(b) })
}
