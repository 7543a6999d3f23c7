package serve

import (
	"fmt"
	"net/http"

	"holdfast"
	"holdfast/service/view"
	"holdfast/wire"
)

// damaged answers which blocks of the caller's group are damaged in the bucket, so that its next run sends them again.
func (s *Server) damaged(w http.ResponseWriter, r *http.Request, c caller) error {
	var group holdfast.GroupID
	if err := parseHex(group[:], r.PathValue("group"), "group in the path"); err != nil {
		return err
	}
	if group != c.machine.Enrol.Group {
		return refusal(wire.CodeForbidden, "This machine belongs to another group.")
	}
	var after holdfast.Name
	if q := r.URL.Query(); q.Has("after") {
		if err := parseHex(after[:], q.Get("after"), "name to begin after"); err != nil {
			return err
		}
	}
	found, err := s.j.Damaged(c.machine.Vault, group, after, wire.MaxDamaged)
	if err != nil {
		return err
	}
	now := s.j.Acked()
	all := make([]wire.Damaged, len(found))
	for i, d := range found {
		ses, ok, err := now.Session(d.Block.Session)
		if err == nil && !ok {
			err = fmt.Errorf("look up session %s of a block: %w", d.Block.Session, view.ErrDamaged)
		}
		if err != nil {
			return err
		}
		all[i] = wire.Damaged{Name: d.Name, Kind: d.Block.Kind, Mine: ses.Signer == c.machine.Signer}
	}
	return writeBinary(w, wire.AppendDamaged(nil, all))
}
