package journal

import (
	"holdfast"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// liveAt returns the block that a view has at a place, under that name, as its group's or as an alternate. The session is
// the one that stored it.
func liveAt(r view.Reader, sid holdfast.SessionID, name holdfast.Name, pos segment.Position, off uint32) (view.Block, bool, error) {
	s, ok, err := r.Session(sid)
	if err != nil || !ok {
		return view.Block{}, false, err
	}
	b, ok, err := r.Block(s.Vault, s.Group, name)
	for i := uint32(0); err == nil && ok; i++ {
		if b.Pos == pos && b.Off == off {
			return b, true, nil
		}
		b, ok, err = r.Alternate(s.Vault, s.Group, name, i)
	}
	return view.Block{}, false, err
}
