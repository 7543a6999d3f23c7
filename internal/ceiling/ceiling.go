// Package ceiling lets a test hold a decoder to a ceiling on the memory that it takes: so many bytes, and so many
// more for each byte that it is given, whatever lengths and counts the input claims.
package ceiling

import (
	"bytes"
	"runtime"
	"slices"
	"testing"
)

// Ceiling is how much a decoder may allocate for an input, freed memory included.
type Ceiling struct {
	Fixed  int // bytes
	Factor int // bytes for each byte of input
}

// tries is how often an input is decoded before what it takes counts as too much.
const tries = 5

// maxPlaces bounds at how many places of one seed Check writes.
const maxPlaces = 120

// Check calls decode with each seed, with each seed cut short, and with the largest numbers of 1, 2, 4 and 8 bytes,
// the smallest ones above 2^20 and 2^30, and long varints in the place of what is there, each with what follows and
// without it. It fails where one call allocates more than c allows. mend, unless nil, makes an input one that
// gets past the decoder's check sums. The test must not run beside others.
func Check(t testing.TB, c Ceiling, seeds [][]byte, mend func([]byte) []byte, decode func([]byte)) {
	t.Helper()
	if len(seeds) == 0 {
		t.Fatal("nothing to decode")
	}
	for _, seed := range seeds {
		decode(seed) // whatever is made once
		c.check(t, "a seed", seed, decode)
		step := max(1, len(seed)/maxPlaces)
		for at := 0; at < len(seed); at += step {
			for _, large := range claims {
				to := min(at+len(large), len(seed))
				whole := slices.Concat(seed[:at], large, seed[to:])
				for what, in := range map[string][]byte{"with": whole, "without": whole[:at+len(large)]} {
					in = bytes.Clone(in)
					if mend != nil {
						in = mend(in)
					}
					if !c.check(t, what+" the rest", in, decode) {
						t.Errorf("%x at %d of %d bytes, %s the rest", large, at, len(seed), what)
						return
					}
				}
			}
		}
	}
}

// claims are numbers, big-endian, that no honest input has where they are.
var claims = [][]byte{
	{0xff}, {0xff, 0xff}, {0xff, 0xff, 0xff, 0xff}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	{0x00, 0x10, 0x00, 0x01}, {0x40, 0x00, 0x00, 0x01}, {0x7f, 0xff, 0xff, 0xff}, {0, 0, 0, 0, 0x40, 0, 0, 1},
	{0x80, 0x80, 0x80, 0x40}, {0xff, 0xff, 0xff, 0xff, 0x07}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, // varints
}

// check decodes one input.
func (c Ceiling) check(t testing.TB, what string, in []byte, decode func([]byte)) bool {
	t.Helper()
	var before, after runtime.MemStats
	var took uint64
	most := uint64(c.Fixed + c.Factor*len(in))
	// The runtime allocates now and then as well, and that is counted. It does not do so each time; a decoder
	// that takes too much does.
	for try := range tries {
		runtime.ReadMemStats(&before)
		decode(in)
		runtime.ReadMemStats(&after)
		if took = after.TotalAlloc - before.TotalAlloc; took <= most {
			break
		}
		if try > 0 {
			runtime.GC()
		}
	}
	if took > most {
		t.Errorf("%d bytes allocated for an input of %d, %s: at most %d belong", took, len(in), what, most)
		return false
	}
	return true
}
