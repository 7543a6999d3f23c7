package segment

import (
	"encoding/binary"
	"fmt"

	"holdfast"
	"holdfast/internal/enc"
)

// Base says which links a block has by those of another block of its group. A tree of which one entry changed links to
// nearly the same blocks as before: said in full, the links of such trees would be most of what trailers hold.
type Base struct {
	Name    holdfast.Name
	Without []uint32 // places in the links of Name, ascending: those that are no links here
}

// none reports whether there is no base.
func (b Base) none() bool { return b.Name == holdfast.Name{} }

// By returns s, which has no base, with its links said by those of the block base, if that is shorter; otherwise s. of
// are all links of base, sorted and unique.
func (s Stored) By(base holdfast.Name, of []holdfast.Name) Stored {
	if s.Kind.Leaf() || !sorted(s.Links) {
		return s // which is no record: it is refused as such
	}
	b := Base{Name: base}
	var more []holdfast.Name
	i := 0
	for _, l := range s.Links {
		for ; i < len(of) && string(of[i][:]) < string(l[:]); i++ {
			b.Without = append(b.Without, uint32(i))
		}
		if i < len(of) && of[i] == l {
			i++
		} else {
			more = append(more, l)
		}
	}
	for ; i < len(of); i++ {
		b.Without = append(b.Without, uint32(i))
	}
	by := s
	by.Base, by.Links = b, more
	if by.linksSize() >= s.linksSize() {
		return s
	}
	return by
}

// All returns all links of s, sorted and unique, of which of are those of its base. The error wraps ErrFormat: s does not
// fit to that base.
func (s Stored) All(of []holdfast.Name) ([]holdfast.Name, error) {
	if s.Base.none() {
		return s.Links, nil
	}
	if len(of) == 0 {
		return nil, fmt.Errorf("%w: block %s has the links of %s, which is not there or has none", ErrFormat, s.Name, s.Base.Name)
	}
	without, more := s.Base.Without, s.Links
	if n := len(without); n > len(of) || n > 0 && int(without[n-1]) >= len(of) {
		return nil, fmt.Errorf("%w: block %s is without links that its base %s has not", ErrFormat, s.Name, s.Base.Name)
	}
	n := len(of) - len(without) + len(more)
	if n > holdfast.MaxLinks {
		return nil, fmt.Errorf("%w: block %s: %d links exceed the limit of %d", ErrFormat, s.Name, n, holdfast.MaxLinks)
	}
	all := make([]holdfast.Name, 0, n)
	for i := range of {
		if len(without) > 0 && int(without[0]) == i {
			without = without[1:]
			continue
		}
		for len(more) > 0 && string(more[0][:]) < string(of[i][:]) {
			all, more = append(all, more[0]), more[1:]
		}
		if len(more) > 0 && more[0] == of[i] {
			return nil, fmt.Errorf("%w: block %s has link %s twice", ErrFormat, s.Name, more[0])
		}
		all = append(all, of[i])
	}
	return append(all, more...), nil
}

func (s Stored) linksSize() int { return len(s.appendLinks(nil)) }

// appendLinks encodes how many links are said in full, with the base or without one, then the base, then those.
func (s Stored) appendLinks(b []byte) []byte {
	n := uint64(len(s.Links)) << 1
	if s.Base.none() {
		b = binary.AppendUvarint(b, n)
	} else {
		b = binary.AppendUvarint(b, n|1)
		b = append(b, s.Base.Name[:]...)
		b = binary.AppendUvarint(b, uint64(len(s.Base.Without)))
		next := uint32(0)
		for _, i := range s.Base.Without {
			b = binary.AppendUvarint(b, uint64(i-next))
			next = i + 1
		}
	}
	for i := range s.Links {
		b = append(b, s.Links[i][:]...)
	}
	return b
}

func (s *Stored) readLinks(r *enc.Reader) {
	n := r.UvarintMax(2*min(holdfast.MaxLinks, uint64(r.Len()/32)) + 1)
	if n&1 == 1 {
		r.Fixed(s.Base.Name[:])
		if r.Err() == nil && s.Base.none() {
			r.Fail("the base has no name")
		}
		if m := r.UvarintMax(min(holdfast.MaxLinks, uint64(r.Len()))); m > 0 {
			s.Base.Without = make([]uint32, m)
		}
		next := uint64(0)
		for i := range s.Base.Without {
			next += r.UvarintMax(holdfast.MaxLinks)
			if r.Err() == nil && next >= holdfast.MaxLinks {
				r.Fail("link %d is none of a base", next)
			}
			s.Base.Without[i] = uint32(next)
			next++
		}
	}
	if n >>= 1; n > 0 && r.Err() == nil {
		if n > uint64(r.Len()/32) {
			r.Fail("%d links in %d bytes", n, r.Len())
			return
		}
		s.Links = make([]holdfast.Name, n)
	}
	for i := range s.Links {
		r.Fixed(s.Links[i][:])
	}
}

func (s Stored) checkLinks() error {
	w := s.Base.Without
	switch {
	case s.Kind.Leaf() && (len(s.Links) > 0 || !s.Base.none()):
		return fmt.Errorf("block %s: a %s with links", s.Name, s.Kind)
	case len(s.Links) > holdfast.MaxLinks:
		return fmt.Errorf("block %s: %d links exceed the limit of %d", s.Name, len(s.Links), holdfast.MaxLinks)
	case s.Base.none() && len(w) > 0:
		return fmt.Errorf("block %s: it is without links of a base, and has none", s.Name)
	case len(w) > 0 && w[len(w)-1] >= holdfast.MaxLinks:
		return fmt.Errorf("block %s: link %d is none of a base", s.Name, w[len(w)-1])
	}
	for i := 1; i < len(w); i++ {
		if w[i-1] >= w[i] {
			return fmt.Errorf("block %s: places in the links of its base are not sorted and unique", s.Name)
		}
	}
	if !sorted(s.Links) {
		return fmt.Errorf("block %s: links are not sorted and unique", s.Name)
	}
	return nil
}

// sorted reports whether names are sorted and unique.
func sorted(names []holdfast.Name) bool {
	for i := 1; i < len(names); i++ {
		if string(names[i-1][:]) >= string(names[i][:]) {
			return false
		}
	}
	return true
}
