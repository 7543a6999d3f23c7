package view

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// What Apply refuses about freezing.
var (
	// ErrFrozen refuses what purges, expires, lapses or condemns while deleting is frozen in the cell (JOURNAL 14).
	ErrFrozen = errors.New("all deleting is frozen")
	// ErrNotFrozen refuses to thaw what is not frozen, or was frozen anew since.
	ErrNotFrozen = errors.New("deleting is not frozen for that reason, or was frozen anew since")
)

// Freeze is a reason for which deleting is frozen in the cell.
type Freeze struct {
	Reason segment.Reason
	Since  int64            // ms; journal time of its record
	Clock  int64            // ms since 1970; the service's then
	Store  int64            // ms; the store's then, 0 if it was not asked
	Place  segment.Position // that is missing, if that is the reason
	Text   string
}

// Freezes returns every reason for which deleting is frozen; none if it is not.
func (r Reader) Freezes() ([]Freeze, error) { return loadFreezes(r.rows) }

// loadFreezes reads the row of all reasons: one row, for it is looked up before each record that deletes.
func loadFreezes(rows Getter) (all []Freeze, err error) {
	_, err = load(rows, []byte{rowFreeze}, func(r *enc.Reader) {
		for r.Err() == nil && r.Len() > 0 {
			all = append(all, Freeze{
				segment.Reason(r.U8()), r.I64(), r.I64(), r.I64(), segment.Position{Epoch: r.U64(), Seq: r.U64()}, string(r.VLP(segment.MaxText)),
			})
		}
	})
	return all, err
}

// putFreezes writes the row; the reasons stand in order, so that equal freezes make equal rows.
func putFreezes(rows Rows, all []Freeze) error {
	if len(all) == 0 {
		return rows.Delete([]byte{rowFreeze})
	}
	slices.SortFunc(all, func(a, b Freeze) int { return cmp.Compare(a.Reason, b.Reason) })
	var b []byte
	for _, f := range all {
		b = append(b, byte(f.Reason))
		for _, n := range []uint64{uint64(f.Since), uint64(f.Clock), uint64(f.Store), f.Place.Epoch, f.Place.Seq} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
		b = enc.AppendVLP(b, []byte(f.Text))
	}
	return rows.Put([]byte{rowFreeze}, b)
}

// checkFreezes returns an error that wraps ErrFrozen while deleting is frozen.
func checkFreezes(rows Getter) error {
	all, err := loadFreezes(rows)
	if err == nil && len(all) > 0 {
		err = fmt.Errorf("%w (%s): %s", ErrFrozen, all[0].Reason, all[0].Text)
	}
	return err
}

// applyFrozen freezes, or freezes anew: a start that finds a reason does not know yet what the journal says.
func applyFrozen(rows Rows, timeMS int64, rec segment.Frozen) error {
	all, err := loadFreezes(rows)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(f Freeze) bool { return f.Reason == rec.Reason })
	return putFreezes(rows, append(all, Freeze{rec.Reason, timeMS, rec.Clock, rec.Store, rec.Place, rec.Text}))
}

// applyThawed ends the freeze that it names, and no later one of the same reason.
func applyThawed(rows Rows, rec segment.Thawed) error {
	all, err := loadFreezes(rows)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(f Freeze) bool { return f.Reason == rec.Reason && f.Since == rec.Since })
	if i < 0 {
		return fmt.Errorf("thaw %s: %w", rec.Reason, ErrNotFrozen)
	}
	return putFreezes(rows, slices.Delete(all, i, i+1))
}
