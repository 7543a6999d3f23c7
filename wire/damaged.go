package wire

import (
	"bytes"
	"fmt"

	"holdfast"
	"holdfast/internal/enc"
)

// Damaged is a block that the service knows to be damaged in its bucket: it counts as absent, and its owner may send it again.
//
//	name 32, kind u8, mine u8 (0 or 1)
type Damaged struct {
	Name holdfast.Name
	Kind holdfast.Kind
	Mine bool // stored by the machine that asks
}

const (
	// MaxDamaged bounds the blocks in one answer to PathDamaged.
	MaxDamaged  = 1024
	damagedSize = 32 + 1 + 1
	// MaxDamagedBody bounds the answer, bytes.
	MaxDamagedBody = MaxDamaged * damagedSize
)

// AppendDamaged appends the encoding of all, which are sorted by name.
func AppendDamaged(b []byte, all []Damaged) []byte {
	for _, d := range all {
		b = append(append(b, d.Name[:]...), byte(d.Kind), 0)
		if d.Mine {
			b[len(b)-1] = 1
		}
	}
	return b
}

// ParseDamaged is the inverse of AppendDamaged. It refuses what is not sorted by name, or has a name twice.
func ParseDamaged(raw []byte) ([]Damaged, error) {
	if len(raw) > MaxDamagedBody || len(raw)%damagedSize != 0 {
		return nil, fmt.Errorf("list of damaged blocks: %w: %d bytes", ErrFrame, len(raw))
	}
	all := make([]Damaged, len(raw)/damagedSize)
	r := enc.NewReader(raw)
	for i := range all {
		d := &all[i]
		r.Fixed(d.Name[:])
		d.Kind = holdfast.Kind(r.U8())
		mine := r.U8()
		d.Mine = mine == 1
		switch {
		case mine > 1 || !d.Kind.Valid():
			return nil, fmt.Errorf("list of damaged blocks: %w: block %s has kind %d, mine %d", ErrFrame, d.Name, d.Kind, mine)
		case i > 0 && bytes.Compare(all[i-1].Name[:], d.Name[:]) >= 0:
			return nil, fmt.Errorf("list of damaged blocks: %w: block %s is out of order", ErrFrame, d.Name)
		}
	}
	return all, nil
}
