package identity

import (
	"testing"

	"holdfast/internal/ceiling"
)

// TestMemoryCeiling: no identity file makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	ceiling.Check(t, ceiling.Ceiling{Fixed: 32 << 10, Factor: 8}, [][]byte{fixed().Encode()}, nil, func(b []byte) { Parse(b) })
}
