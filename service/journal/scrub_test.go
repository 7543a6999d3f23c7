package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// scrubAll scrubs every segment, again and again where it cannot be read for now, and adds up.
func scrubAll(t *testing.T, j *Journal) (sum Scrubbed, segments int) {
	t.Helper()
	var after segment.Position
	for {
		some, err := j.Segments(after, 3)
		if err != nil {
			t.Fatal(err)
		}
		if len(some) == 0 {
			return sum, segments
		}
		for _, x := range some {
			s, live, err := j.ScrubSegment(context.Background(), x.Key.Position)
			for try := 0; err != nil; try++ {
				if try == 100 {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // virtual
				s, live, err = j.ScrubSegment(context.Background(), x.Key.Position)
			}
			if !live {
				t.Fatalf("segment %s is not live", x.Key.Position)
			}
			sum.Blocks, sum.Bytes, sum.Read = sum.Blocks+s.Blocks, sum.Bytes+s.Bytes, sum.Read+s.Read
			sum.Damaged, sum.Known, sum.Whole, sum.Spare = sum.Damaged+s.Damaged, sum.Known+s.Known, sum.Whole+s.Whole, sum.Spare+s.Spare
			sum.Mended, sum.Missing = sum.Mended || s.Mended, sum.Missing || s.Missing
			if s.Trailer != "" {
				sum.Trailer += s.Trailer + "\n"
			}
			segments++
			after = x.Key.Position
		}
	}
}

// damagedNames returns what the journal says is damaged of the client's group.
func (c *client) damagedNames(t *testing.T, j *Journal) map[holdfast.Name]bool {
	t.Helper()
	all, err := j.Damaged(c.Vault, c.Group, holdfast.Name{}, 10_000)
	if err != nil {
		t.Fatal(err)
	}
	names := map[holdfast.Name]bool{}
	for _, d := range all {
		names[d.Name] = true
	}
	return names
}

// TestScrubFinds damages a few blocks, in several ways, in every landing of their segment or in one of two. One cycle finds
// exactly those that are nowhere whole; a second one records nothing; and when the bytes come back, so does the word that
// they are whole.
func TestScrubFinds(t *testing.T) {
	for what, change := range map[string]func(body []byte, b view.Block, other []byte){
		"a bit":             func(body []byte, b view.Block, _ []byte) { body[b.Off+b.Len/2] ^= 4 },
		"zeros":             func(body []byte, b view.Block, _ []byte) { clear(body[b.Off : b.Off+b.Len]) },
		"another's bytes":   func(body []byte, b view.Block, other []byte) { copy(body[b.Off:b.Off+b.Len], other) },
		"only its last bit": func(body []byte, b view.Block, _ []byte) { body[b.Off+b.Len-1] ^= 0x80 },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(3)
				j := mustOpen(t, config(b))
				defer mustClose(t, j)
				c := newClient(t, j, 1)
				for run := range 3 {
					if err := c.backup(ctx, run, 9); err != nil {
						t.Fatal(err)
					}
				}
				// Two of three segments have a second landing.
				for i, f := range landings(t, b) {
					if i%3 > 0 {
						raw, err := b.Get(ctx, f.key.String(), 0, -1)
						if err != nil {
							t.Fatal(err)
						}
						f.key.Nonce[0]++
						if err := b.Put(ctx, f.key.String(), raw); err != nil {
							t.Fatal(err)
						}
					}
				}
				all := landings(t, b)
				byPlace := map[segment.Position][]found{}
				for _, f := range all {
					byPlace[f.key.Position] = append(byPlace[f.key.Position], f)
				}
				want := map[holdfast.Name]bool{}
				old := map[string][]byte{}
				one := 0
				for i, x := range c.acked {
					if i%3 != 1 {
						continue
					}
					row, ok, err := j.Acked().Block(c.Vault, c.Group, x.Name)
					if err != nil || !ok {
						t.Fatal(err)
					}
					hit := byPlace[row.Pos]
					if len(hit) == 2 && i%2 == 1 {
						hit = hit[one%2:][:1] // this one, or the other
						one++
					} else {
						want[x.Name] = true
					}
					for _, f := range hit {
						b.Store().Damage(f.key.String(), func(body []byte) []byte {
							if old[f.key.String()] == nil {
								old[f.key.String()] = bytes.Clone(body)
							}
							change(body, row, body[len(body)/3:])
							return body
						})
					}
				}
				if len(want) < 3 || one < 2 {
					t.Fatalf("only %d damaged, %d in one landing", len(want), one)
				}
				sum, n := scrubAll(t, j)
				if got := c.damagedNames(t, j); fmt.Sprint(got) != fmt.Sprint(want) || sum.Damaged != len(want) {
					t.Errorf("%d of %d found: %+v", len(got), len(want), sum)
				}
				if sum.Blocks != len(c.acked) || n < 9 || sum.Trailer != "" {
					t.Errorf("%d blocks of %d in %d segments: %+v", sum.Blocks, len(c.acked), n, sum)
				}
				if n, err := j.DamagedBlocks(1000); err != nil || n != len(want) {
					t.Errorf("%d counted, %v", n, err)
				}
				pos := j.Position()
				if sum, _ := scrubAll(t, j); sum.Damaged != 0 || sum.Known != len(want) || j.Position() != pos {
					t.Errorf("the second cycle: %+v", sum)
				}
				for key, body := range old {
					b.Store().Damage(key, func([]byte) []byte { return body })
				}
				if sum, _ := scrubAll(t, j); sum.Whole != len(want) || len(c.damagedNames(t, j)) != 0 {
					t.Errorf("after the bytes came back: %+v", sum)
				}
				c.check(t, j)
			})
		})
	}
}

// TestScrubBelievesNoFault scrubs a bucket that is sound over a line that is not: bits are flipped, answers cut, hidden and
// those of other objects, and calls fail. Nothing is called damaged, and nothing is written.
func TestScrubBelievesNoFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(5)
		j := mustOpen(t, config(b))
		defer mustClose(t, j)
		c := newClient(t, j, 1)
		for run := range 3 {
			if err := c.backup(ctx, run, 9); err != nil {
				t.Fatal(err)
			}
		}
		pos, bad := j.Position(), 0
		var mu sync.Mutex
		dice := rand.New(rand.NewPCG(1, 2))
		b.OnOp(func(op sim.Op, key string, attempt int) (f sim.Fault) {
			if op != sim.OpGet && op != sim.OpList || key == segment.EpochKey(testCell) {
				return f
			}
			mu.Lock()
			defer mu.Unlock()
			switch dice.IntN(20) {
			case 0, 1:
				f.Flip = true
			case 2:
				f.Short = true
			case 3, 4:
				f.Wrong = true
			case 5:
				f.Err = errors.New("the line broke")
			default:
				return f
			}
			bad++
			return f
		})
		for range 5 {
			sum, _ := scrubAll(t, j)
			if sum.Damaged+sum.Whole+sum.Spare != 0 || sum.Trailer != "" || sum.Blocks != len(c.acked) {
				t.Errorf("%+v", sum)
			}
		}
		b.OnOp(nil)
		if bad < 50 {
			t.Errorf("only %d faults", bad)
		}
		if len(c.damagedNames(t, j)) != 0 || j.Position() != pos {
			t.Errorf("%d damaged, the journal went from %s to %s", len(c.damagedNames(t, j)), pos, j.Position())
		}
	})
}

// bundleAll puts one bundle of all trailers into the bucket.
func bundleAll(t *testing.T, b *sim.Bucket) {
	t.Helper()
	w := segment.NewBundleBuilder(testCell)
	for _, f := range landings(t, b) {
		raw, err := b.Get(context.Background(), f.key.String(), f.size-int64(f.key.Trailer), int64(f.key.Trailer))
		if err == nil {
			err = w.Add(raw)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	k, body := w.Finish([8]byte{9})
	if err := b.Put(context.Background(), k.String(), body); err != nil {
		t.Fatal(err)
	}
}

// TestScrubTrailers damages the trailers of segments. Where a bundle holds it and every block is whole, the segment is stored
// anew, and a start from nothing finds everything; where a block is lost as well, that is recorded; and where no bundle
// holds it, deleting freezes.
func TestScrubTrailers(t *testing.T) {
	for what, v := range map[string]struct {
		bundled bool
		change  func(body []byte, trailer int) []byte
		mended  bool
		damaged int
	}{
		"a bit, bundled":        {true, func(b []byte, n int) []byte { b[len(b)-n/2] ^= 1; return b }, true, 0},
		"cut off, bundled":      {true, func(b []byte, n int) []byte { return b[:len(b)-n-1] }, false, 1},
		"all gone, bundled":     {true, func(b []byte, n int) []byte { return b[:1] }, false, 3},
		"a bit, in no bundle":   {false, func(b []byte, n int) []byte { b[len(b)-n/2] ^= 1; return b }, false, 0},
		"emptied, in no bundle": {false, func(b []byte, n int) []byte { return []byte{} }, false, 0},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(3)
				j := mustOpen(t, config(b))
				c := newClient(t, j, 1)
				if err := c.backup(ctx, 1, 9); err != nil {
					t.Fatal(err)
				}
				if v.bundled {
					bundleAll(t, b)
				}
				row, ok, err := j.Acked().Block(c.Vault, c.Group, c.acked[0].Name) // the first of three in its segment
				if err != nil || !ok {
					t.Fatal(err)
				}
				seg, _, err := j.Acked().Segment(row.Pos)
				if err != nil || seg.Blocks != 3 {
					t.Fatalf("%+v, %v", seg, err)
				}
				b.Store().Damage(seg.Key.String(), func(body []byte) []byte { return v.change(body, int(seg.Key.Trailer)) })
				s, live, err := j.ScrubSegment(ctx, row.Pos)
				if err != nil || !live || s.Trailer == "" || s.Mended != v.mended || s.Damaged != v.damaged {
					t.Errorf("%+v, %v, %v", s, live, err)
				}
				if frozen := errors.Is(j.MayDelete(ctx), view.ErrFrozen); frozen == v.bundled {
					t.Errorf("deleting is frozen: %v", frozen)
				}
				if v.mended {
					if s, _, err := j.ScrubSegment(ctx, row.Pos); err != nil || s.Trailer != "" || s.Blocks != 3 {
						t.Errorf("scrubbed again: %+v, %v", s, err)
					}
				}
				mustClose(t, j)
				if !v.mended {
					return
				}
				j = mustOpen(t, config(b)) // with an empty view
				defer mustClose(t, j)
				c.check(t, j)
			})
		})
	}
}

// TestSuspects: what a reader found bad is looked at within minutes, and recorded if it is.
func TestSuspects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(3)
		j := mustOpen(t, config(b))
		defer mustClose(t, j)
		c := newClient(t, j, 1)
		if err := c.backup(ctx, 1, 6); err != nil {
			t.Fatal(err)
		}
		var rows []view.Block
		for _, x := range c.acked[:2] {
			row, ok, err := j.Acked().Block(c.Vault, c.Group, x.Name)
			if err != nil || !ok {
				t.Fatal(err)
			}
			rows = append(rows, row)
			j.Suspect(x.Name, row)
		}
		seg, _, err := j.Acked().Segment(rows[1].Pos)
		if err != nil {
			t.Fatal(err)
		}
		b.Store().Damage(seg.Key.String(), func(body []byte) []byte { body[rows[1].Off] ^= 1; return body })
		time.Sleep(2 * lookFor)
		synctest.Wait()
		if got := c.damagedNames(t, j); len(got) != 1 || !got[c.acked[1].Name] {
			t.Errorf("%v", got)
		}
	})
}

// A freeze is recorded whatever was found: a text that is too long, and ends within a letter where it is cut, or is none.
func TestDoubtIsRecorded(t *testing.T) {
	for _, found := range []string{strings.Repeat("x", segment.MaxText-1) + "é", "bytes \xff\xfe"} {
		synctest.Test(t, func(t *testing.T) {
			cfg := config(sim.New(1))
			j := mustOpen(t, cfg)
			j.Doubt(found)
			time.Sleep(time.Minute)
			mustClose(t, j)
			j = mustOpen(t, cfg)
			if f := j.Freezes(); len(f) != 1 || f[0].Reason != segment.ReasonView || !strings.HasPrefix(found, f[0].Text) || len(f[0].Text) < 5 {
				t.Errorf("after a restart it is frozen for %v", f)
			}
			mustClose(t, j)
		})
	}
}
