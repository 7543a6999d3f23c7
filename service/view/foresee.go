package view

import (
	"bytes"
	"encoding/binary"
	"slices"

	"holdfast"
	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// Unreferenced returns the blocks in l that have no references since a time before that (ms), of those whose rows l
// changed, in the order of their groups and names.
func (l *Layer) Unreferenced(before int64) (all []Unreferenced, err error) {
	var keys []string
	for k, v := range l.rows {
		if k[0] == rowBlock && v != nil {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		b, ok, err := loadBlock(l, []byte(k))
		if err != nil {
			return nil, err
		}
		if ok && b.Count == 0 && b.Since < before {
			all = append(all, Unreferenced{holdfast.Name([]byte(k[5:])), b})
		}
	}
	return all, nil
}

// Segments returns the segments whose rows l changed, neither retired nor removed, in the order of the journal.
func (l *Layer) Segments() (all []Segment, err error) {
	for k, v := range l.rows {
		if k[0] != rowSegment || v == nil {
			continue
		}
		var s Segment
		r := enc.NewReader(bytes.Clone(v))
		s.decode(r)
		if err := r.Done(); err != nil {
			return nil, err
		}
		pos := segment.Position{Epoch: binary.BigEndian.Uint64([]byte(k[1:])), Seq: binary.BigEndian.Uint64([]byte(k[9:]))}
		if s, _, err = s.found(l, pos); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Segment) int { return a.Key.Position.Compare(b.Key.Position) })
	return all, nil
}
