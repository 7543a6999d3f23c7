// Package blake3 is the one place where the project meets a BLAKE3 implementation: the hash with a
// 32-byte result, keyed (names, nonces, checks that need a secret) and plain (checksums).
package blake3

import impl "lukechampine.com/blake3"

// Size is the size of a hash, bytes.
const Size = 32

// Keyed returns the keyed hash of the parts, one after another: nothing marks where a part ends.
func Keyed(key [32]byte, parts ...[]byte) [32]byte {
	h := NewKeyed(key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum32()
}

// Sum returns the plain hash of the parts, one after another: nothing marks where a part ends.
func Sum(parts ...[]byte) [32]byte {
	h := Hasher{impl.New(Size, nil)}
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum32()
}

// Hasher is a keyed hash of what is written to it. It is not safe for concurrent use.
type Hasher struct{ h *impl.Hasher }

// NewKeyed returns a Hasher under key.
func NewKeyed(key [32]byte) *Hasher { return &Hasher{impl.New(Size, key[:])} }

// Write adds p to what is hashed; it never fails.
func (h *Hasher) Write(p []byte) (int, error) { return h.h.Write(p) }

// Sum32 returns the hash of everything written so far; more may be written afterwards.
func (h *Hasher) Sum32() (sum [32]byte) {
	h.h.Sum(sum[:0])
	return sum
}
