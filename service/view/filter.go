package view

import (
	"hash/maphash"
)

// filter is a Bloom filter over the keys of block rows. All bits of a key are in one line of the processor's cache. The
// seed is ours, so that nobody can choose names that collide.
type filter struct {
	seed  maphash.Seed
	lines []filterLine
}

type filterLine [8]uint64

const (
	filterBits   = 12 // for each expected key, at least
	filterProbes = 5
	maxFilter    = 64 << 20 // bytes
)

// newFilter returns an empty filter for about n keys.
func newFilter(seed maphash.Seed, n int64) *filter {
	size := int64(1 << 10)
	for size < maxFilter && size*8 < n*filterBits {
		size *= 2
	}
	return &filter{seed, make([]filterLine, size/64)}
}

func (f *filter) hash(key []byte) uint64 { return maphash.Bytes(f.seed, key) }

// line returns the line of a hash. Its other bits say which 9 bits each are the places in it.
func (f *filter) line(hash uint64) *filterLine { return &f.lines[hash&uint64(len(f.lines)-1)] }

// spread makes the places of a hash out of it: 9 bits for each probe.
func spread(hash uint64) uint64 { return hash * 0x9e3779b97f4a7c15 >> (64 - 9*filterProbes) }

func (f *filter) add(hash uint64) {
	l, p := f.line(hash), spread(hash)
	for range filterProbes {
		l[p>>6&7] |= 1 << (p & 63)
		p >>= 9
	}
}

func (f *filter) has(hash uint64) bool {
	l, p := f.line(hash), spread(hash)
	for range filterProbes {
		if l[p>>6&7]&(1<<(p&63)) == 0 {
			return false
		}
		p >>= 9
	}
	return true
}
