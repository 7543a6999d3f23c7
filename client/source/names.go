//go:build linux || darwin || freebsd

package source

import (
	"bytes"
	"errors"
	"slices"
)

// names is the list of one directory. It costs about the bytes of the names and eight bytes for each, so that a
// directory of a million entries can be held and sorted.
type names struct {
	text []byte
	refs []uint64 // offset into text << 16 | length
}

func (n *names) add(name string) error {
	if len(name) > 1<<16-1 || len(n.text) > 1<<40 {
		return errors.New("a name in it is too long")
	}
	n.refs = append(n.refs, uint64(len(n.text))<<16|uint64(len(name)))
	n.text = append(n.text, name...)
	return nil
}

func (n *names) bytes(ref uint64) []byte { return n.text[ref>>16:][:ref&0xffff] }

// sort puts the names into the order of their bytes and drops what a changing directory gave twice.
func (n *names) sort() {
	slices.SortFunc(n.refs, func(a, b uint64) int { return bytes.Compare(n.bytes(a), n.bytes(b)) })
	n.refs = slices.CompactFunc(n.refs, func(a, b uint64) bool { return bytes.Equal(n.bytes(a), n.bytes(b)) })
}
