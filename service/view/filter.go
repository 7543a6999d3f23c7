package view

import "encoding/binary"

// filter is a Bloom filter over the keys of block rows. Names are hashes already, so that their bytes
// serve as the filter's hashes; names chosen to collide only make it useless, never wrong.
type filter struct {
	bits []uint64
	mask uint64
}

const (
	filterBits   = 10 // for each expected key, at least
	filterProbes = 4
	maxFilter    = 64 << 20 // bytes
)

// newFilter returns an empty filter for about n keys.
func newFilter(n int64) *filter {
	size := int64(1 << 10)
	for size < maxFilter && size*8 < n*filterBits {
		size *= 2
	}
	return &filter{make([]uint64, size/8), uint64(size*8 - 1)}
}

// probe returns two hashes of a block's key; the group is part of both.
func probe[K string | []byte](key K) (a, b uint64) {
	k := key[:blockKeySize]
	var p [16]byte
	copy(p[:], k[blockKeySize-16:])
	group := uint64(k[1])<<24 | uint64(k[2])<<16 | uint64(k[3])<<8 | uint64(k[4])
	return binary.BigEndian.Uint64(p[:]) + group*0x9e3779b97f4a7c15, binary.BigEndian.Uint64(p[8:]) | 1
}

func (f *filter) add(key string) {
	a, b := probe(key)
	for range filterProbes {
		f.bits[a&f.mask/64] |= 1 << (a & 63)
		a += b
	}
}

func (f *filter) has(key []byte) bool {
	a, b := probe(key)
	for range filterProbes {
		if f.bits[a&f.mask/64]&(1<<(a&63)) == 0 {
			return false
		}
		a += b
	}
	return true
}
