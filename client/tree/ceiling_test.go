package tree

import (
	"testing"

	"holdfast/client/archive/archivetest"
	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: no node makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	s := newStore()
	seeds := [][]byte{s.blocks[build(t, s, archivetest.Entries(3, 20)).Tree], s.blocks[build(t, s, plainFiles(5000)).Tree]}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 16 << 10, Factor: 60}, seeds, nil, func(b []byte) { parseNode(b) })
}
