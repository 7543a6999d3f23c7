package ceiling

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// recorder counts failures instead of failing.
type recorder struct {
	testing.TB
	failed int
}

func (r *recorder) Helper()               {}
func (r *recorder) Errorf(string, ...any) { r.failed++ }

var kept []byte

// A decoder that believes a count is found, one that compares it with what is there is not.
func TestCheckFindsWhatItShould(t *testing.T) {
	seed := append([]byte("head"), 0, 0, 0, 2, 'a', 'b')
	for _, believes := range []bool{false, true} {
		r := &recorder{TB: t}
		Check(r, Ceiling{Fixed: 4 << 10, Factor: 10}, [][]byte{seed}, nil, func(b []byte) {
			if len(b) < 8 {
				return
			}
			n := int(binary.BigEndian.Uint32(b[4:]))
			if believes {
				n = min(n, 1<<26) // a limit that is no ceiling
			} else if n > len(b)-8 {
				return
			}
			kept = make([]byte, n)
			copy(kept, fmt.Sprint(n))
		})
		if (r.failed > 0) != believes {
			t.Errorf("a decoder that believes %v fails %d times", believes, r.failed)
		}
	}
}
