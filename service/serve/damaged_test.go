package serve

import (
	"context"
	"testing"
	"time"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/wire"
)

// damaged asks for the damaged blocks of a group, page by page.
func (c *client) damaged(group holdfast.GroupID) (all []wire.Damaged, err error) {
	for at := path(wire.PathDamaged, group); ; {
		b, err := c.do("GET", at, nil)
		if err != nil {
			return all, err
		}
		part, err := wire.ParseDamaged(b)
		if err != nil || len(part) == 0 {
			return all, err
		}
		all = append(all, part...)
		at = path(wire.PathDamaged, group) + "?after=" + all[len(all)-1].Name.String()
	}
}

// TestDamagedIsTold: damaged blocks are told to the machines of their group, in order and in pages, with who stored them; they are
// absent for who asks or links, and are accepted anew. A fetch that meets one has it looked at.
func TestDamagedIsTold(t *testing.T) {
	inWorld(t, func(w *world) {
		const many = wire.MaxDamaged + 10
		c := w.customer("a", holdfast.RightsAll)
		mate := c.second(holdfast.RightsAll)
		mate.group = c.group
		sid := c.open()
		var batch []byte
		for i := range many {
			batch = append(batch, frame(name(i), sealed(sid, holdfast.KindChunk, 50))...)
		}
		_, err := c.upload(sid, 1, batch)
		w.ok(err, "upload")
		reader := func(n holdfast.Name) journal.Candidate {
			b, ok, err := w.j.Acked().Block(c.vault, c.group, n)
			if err != nil || !ok {
				t.Fatal(err)
			}
			return journal.Candidate{Name: n, Block: b}
		}

		// One is bad in the bucket: who fetches it is told, and the service finds out.
		one := reader(name(5))
		seg, _, err := w.j.Acked().Segment(one.Block.Pos)
		w.ok(err, "look up its segment")
		w.bucket.Store().Damage(seg.Key.String(), func(raw []byte) []byte { raw[one.Block.Off+40] ^= 1; return raw })
		frames, err := c.fetch(c.group, name(5))
		if w.ok(err, "fetch"); len(frames) != 1 || frames[0].Status != wire.FrameDamaged {
			t.Errorf("%+v", frames)
		}
		later(5 * time.Minute)
		if all, err := c.damaged(c.group); err != nil || len(all) != 1 || all[0] != (wire.Damaged{Name: name(5), Kind: holdfast.KindChunk, Mine: true}) {
			t.Errorf("%+v, %v", all, err)
		}

		var rest []journal.Candidate
		for i := range many {
			rest = append(rest, reader(name(i)))
		}
		if n, err := w.j.NoteDamage(context.Background(), rest, false); err != nil || n != many-1 {
			t.Fatal(n, err)
		}
		for who, m := range map[string]*client{"who stored them": c, "a machine of the group": mate} {
			all, err := m.damaged(c.group)
			if err != nil || len(all) != many {
				t.Errorf("%s is told of %d of %d, %v", who, len(all), many, err)
			}
			for i, d := range all {
				if d != (wire.Damaged{Name: name(i), Kind: holdfast.KindChunk, Mine: m == c}) {
					t.Fatalf("%s: %+v", who, d)
				}
			}
		}
		if got, err := c.have(sid, name(3)); err != nil || got != "00" {
			t.Errorf("have says %s, %v", got, err)
		}
		_, err = c.upload(sid, 2, frame(name(9000), sealed(sid, holdfast.KindTree, 50, name(3))))
		w.want(wire.CodeMissing, err, "a link to a damaged block")
		again := c.open()
		st, err := c.upload(again, 1, frame(name(3), sealed(again, holdfast.KindChunk, 50)))
		if w.ok(err, "send it again"); st.Stored != 1 {
			t.Errorf("%+v", st)
		}
		if all, err := c.damaged(c.group); err != nil || len(all) != many-1 {
			t.Errorf("%d are damaged still, %v", len(all), err)
		}

		_, err = c.damaged(holdfast.GroupID{0xee})
		w.want(wire.CodeForbidden, err, "another group")
		if all, err := w.customer("b", holdfast.RightsAll).damaged(c.group); err != nil || len(all) != 0 {
			t.Errorf("another vault with a group of that name is told of %d, %v", len(all), err)
		}
		_, err = c.second(holdfast.RightRead).damaged(c.group)
		w.want(wire.CodeForbidden, err, "a machine that may not write")
		_, err = c.do("GET", path(wire.PathDamaged, c.group)+"?after=zz", nil)
		w.want(wire.CodeBadRequest, err, "no name")
	})
}
