package segment

import (
	"iter"

	"holdfast"
)

// Placed is a block that lies in a segment.
type Placed struct {
	Session holdfast.SessionID // that stored it, there or in the segment from which it was moved
	Name    holdfast.Name
	Off     uint32 // where it begins in the body
	Len     uint32
	Sum     [16]byte // of the sealed block
}

// Blocks returns what the records of a trailer put into its segment, in their order: what was stored there, and what was moved
// there. Each lies inside the body.
func (t *Trailer) Blocks() iter.Seq[Placed] {
	return func(yield func(Placed) bool) {
		for _, r := range t.Records {
			var p Placed
			switch r := r.Record.(type) {
			case Stored:
				p = Placed{r.Session, r.Name, r.Off, r.Len, r.Sum}
			case Moved:
				p = Placed{r.Session, r.Name, r.Off, r.Len, r.Sum}
			default:
				continue
			}
			if !yield(p) {
				return
			}
		}
	}
}
