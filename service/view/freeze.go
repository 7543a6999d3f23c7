package view

import (
	"errors"
	"fmt"

	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// What Apply refuses about freezing.
var (
	// ErrFrozen refuses what purges, expires or condemns while deleting is frozen in the cell (JOURNAL 14).
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

func (f Freeze) put(rows Rows) error {
	b := append(u64(uint64(f.Since)), u64(uint64(f.Clock))...)
	for _, n := range []uint64{uint64(f.Store), f.Place.Epoch, f.Place.Seq} {
		b = append(b, u64(n)...)
	}
	return rows.Put([]byte{rowFreeze, byte(f.Reason)}, append(b, f.Text...))
}

func loadFreeze(rows Getter, reason segment.Reason) (f Freeze, ok bool, err error) {
	ok, err = load(rows, []byte{rowFreeze, byte(reason)}, func(r *enc.Reader) {
		f = Freeze{reason, r.I64(), r.I64(), r.I64(), segment.Position{Epoch: r.U64(), Seq: r.U64()}, string(r.Bytes(r.Len()))}
	})
	return f, ok, err
}

// Freezes returns every reason for which deleting is frozen; none if it is not.
func (r Reader) Freezes() ([]Freeze, error) { return loadFreezes(r.rows) }

func loadFreezes(rows Getter) (all []Freeze, err error) {
	for reason := segment.Reason(1); reason <= segment.MaxReason; reason++ {
		f, ok, err := loadFreeze(rows, reason)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, f)
		}
	}
	return all, nil
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
	return Freeze{rec.Reason, timeMS, rec.Clock, rec.Store, rec.Place, rec.Text}.put(rows)
}

// applyThawed ends the freeze that it names, and no later one of the same reason.
func applyThawed(rows Rows, rec segment.Thawed) error {
	f, ok, err := loadFreeze(rows, rec.Reason)
	if err != nil {
		return err
	}
	if !ok || f.Since != rec.Since {
		return fmt.Errorf("thaw %s: %w", rec.Reason, ErrNotFrozen)
	}
	return rows.Delete([]byte{rowFreeze, byte(rec.Reason)})
}
