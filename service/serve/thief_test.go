package serve

import (
	"testing"
	"time"

	"holdfast"
	"holdfast/wire"
)

// TestThiefBurnsHisCap: a thief fills his key's daily cap on several days, with blocks and with archives of
// nothing. That ends what he may store, and nobody else's: the other machine of the vault goes on backing up and
// reads what it had, and what the thief added to the bill is no more than his caps.
func TestThiefBurnsHisCap(t *testing.T) {
	const days, blocks = 5, 20
	inWorld(t, func(w *world) {
		thief := w.capped("a", 0, blocks)
		honest := thief.second(holdfast.RightsAll)
		archive := func(c *client, day, seq int) error {
			sid := c.open()
			leaf, root := name(1000*day+seq), name(20000+1000*day+seq)
			if _, err := c.upload(sid, 1, frame(leaf, sealed(sid, holdfast.KindChunk, 500)), frame(root, sealed(sid, holdfast.KindArchive, 100, leaf))); err != nil {
				return err
			}
			r := c.commitRecord(sid, root)
			_, err := c.record(wire.PathRecords, r)
			if err == nil {
				c.advance(r)
			}
			return err
		}
		w.ok(archive(honest, 0, 999), "the good archive")
		for day := range days {
			stored := 0
			var err error
			for seq := 0; err == nil && seq <= blocks; seq++ {
				if err = archive(thief, day, seq); err == nil {
					stored += 2
				}
			}
			w.want(wire.CodeCapExceeded, err, "what exceeds the thief's cap")
			if stored != blocks {
				w.Errorf("on day %d he stored %d blocks, with a cap of %d", day, stored, blocks)
			}
			w.ok(archive(honest, day+1, 998), "the other machine's archive of that day")
			got, err := honest.fetch(honest.group, name(999), name(20999))
			if w.ok(err, "fetch"); len(got) != 2 || got[0].Status != wire.FrameBlock || got[1].Status != wire.FrameBlock {
				w.Errorf("the good archive on day %d: %v", day, got)
			}
			later(time.Until(time.Now().UTC().Truncate(24 * time.Hour).Add(25 * time.Hour)))
		}
		if u, most := honest.usage(), uint64(2+days*(blocks+2)); u.Blocks != most || u.BilledBytes > most*holdfast.LeastBilled {
			w.Errorf("the bill: %+v, for %d blocks", u, most)
		}
	})
}
