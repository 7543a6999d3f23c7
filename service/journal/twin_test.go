package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"holdfast/service/bucket"
	"holdfast/service/bucket/dir"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
)

// spoilable is a bucket whose objects can be changed behind everybody's back; nil removes one.
type spoilable struct {
	bucket.Bucket
	damage func(key string, change func([]byte) []byte)
}

func spoilableSim(t *testing.T) spoilable {
	b := sim.New(1)
	return spoilable{b, b.Store().Damage}
}

func spoilableDir(t *testing.T) spoilable {
	path := filepath.Join(t.TempDir(), "bucket")
	b, err := dir.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return spoilable{b, func(key string, change func([]byte) []byte) {
		name := filepath.Join(path, filepath.FromSlash(key))
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if raw = change(raw); raw == nil {
			err = os.Remove(name)
		} else {
			err = os.WriteFile(name, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}}
}

// landings returns every landing of every segment, in the order of the journal.
func landings(t *testing.T, b bucket.Bucket) []found {
	t.Helper()
	l, err := list(context.Background(), config(b))
	if err != nil {
		t.Fatal(err)
	}
	return l.segments
}

// TestDamagedLanding has every segment land twice and damages one landing of each, or the other, in several
// ways: every start, with the old view and from nothing, finds the whole journal, every block is served and
// checked, and deleting is not frozen. With both landings damaged, start and reader say so.
func TestDamagedLanding(t *testing.T) {
	flip := func(at func(body []byte) int) func([]byte) []byte {
		return func(b []byte) []byte {
			b = bytes.Clone(b)
			b[at(b)] ^= 0x10
			return b
		}
	}
	ways := map[string]func([]byte) []byte{
		"a bit of the trailer":  flip(func(b []byte) int { return len(b) - 40 }),
		"a bit of the end mark": flip(func(b []byte) int { return len(b) - 1 }),
		"a bit of a block": func(b []byte) []byte {
			n, err := segment.FindTrailer(b[len(b)-segment.FooterSize:])
			if err != nil || n == len(b) {
				return b // there is none
			}
			return flip(func([]byte) int { return 0 })(b)
		},
		"cut in the middle": func(b []byte) []byte { return b[:len(b)/2] },
		"cut to nothing":    func(b []byte) []byte { return b[:0] },
		"gone":              func([]byte) []byte { return nil },
	}
	for name, make := range map[string]func(*testing.T) spoilable{"sim": spoilableSim, "dir": spoilableDir} {
		for way, change := range ways {
			for _, bad := range []string{"first", "second", "both"} {
				t.Run(fmt.Sprintf("%s/%s/%s", name, way, bad), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { damagedLanding(t, make(t), change, way, bad) })
				})
			}
		}
	}
}

func damagedLanding(t *testing.T, b spoilable, change func([]byte) []byte, way, bad string) {
	ctx := context.Background()
	cfg := config(b.Bucket)
	cfg.Dir = filepath.Join(t.TempDir(), "view")
	j := mustOpen(t, cfg)
	c := newClient(t, j, 1)
	for run := range 2 {
		if err := c.backup(ctx, run, 4); err != nil {
			t.Fatal(err)
		}
	}
	// What a late landing leaves: the same bytes under another nonce.
	for _, f := range landings(t, b) {
		raw, err := b.Get(ctx, f.key.String(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		twin := f.key
		twin.Nonce[0] ^= 0xff
		if err := b.Put(ctx, twin.String(), raw); err != nil {
			t.Fatal(err)
		}
	}
	all := landings(t, b)
	for i := 0; i < len(all); i += 2 {
		if bad != "second" {
			b.damage(all[i].key.String(), change)
		}
		if bad != "first" {
			b.damage(all[i+1].key.String(), change)
		}
	}
	blocks := strings.Contains(way, "block") // and the trailers are whole
	if bad == "both" {
		row, ok, err := j.Acked().Block(c.Vault, c.Group, c.acked[0].Name)
		if err != nil || !ok {
			t.Fatal(err)
		}
		_, err = j.ReadBlock(ctx, row)
		switch damaged := errors.Is(err, ErrDamaged); {
		case way == "gone" && !errors.Is(err, bucket.ErrNotFound), way == "gone" && damaged:
			t.Errorf("a block of a segment that is gone: %v", err)
		case (blocks || strings.HasPrefix(way, "cut")) && way != "cut in the middle" && !damaged:
			t.Errorf("a damaged block: %v", err)
		}
		if f := j.Freezes(); (len(f) == 1 && f[0].Reason == segment.ReasonContradiction) != (way == "gone") {
			t.Errorf("frozen: %+v", f)
		}
	} else {
		c.check(t, j)
		if f := j.Freezes(); len(f) != 0 {
			t.Errorf("frozen: %+v", f)
		}
	}
	mustClose(t, j)

	for _, fresh := range []bool{false, true} {
		j, err := open(ctx, cfg, fresh)
		if bad == "both" && !blocks {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrContradiction) && !errors.Is(err, ErrNoJournal) {
				t.Fatalf("fresh %v: no landing is whole, and the start says %v", fresh, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("fresh %v: %v", fresh, err)
		}
		if bad != "both" {
			c.check(t, j)
		}
		mustClose(t, j)
		if r, err := Check(ctx, cfg, nil); errors.Is(err, ErrDamaged) != (bad == "both") {
			t.Errorf("fresh %v: check says %+v, %v", fresh, r, err)
		}
	}
}

// TestScenarioS1LiveSegmentIsGone has the store answer 404 for a live segment: deleting freezes, also for the next
// process and the one that takes over, while reading the rest and writing go on; until a person says that it was
// found.
func TestScenarioS1LiveSegmentIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := newClient(t, j, 1)
		if err := c.backup(ctx, 0, 4); err != nil {
			t.Fatal(err)
		}
		if err := j.MayDelete(ctx); err != nil {
			t.Fatal(err)
		}
		lost := c.acked[0]
		row, _, err := j.Acked().Block(c.Vault, c.Group, lost.Name)
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := j.Acked().Segment(row.Pos)
		if err != nil {
			t.Fatal(err)
		}
		gone := true
		b.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			return sim.Fault{Hide: gone && op == sim.OpGet && key == s.Key.String()}
		})
		if _, err := j.ReadBlock(ctx, row); !errors.Is(err, bucket.ErrNotFound) {
			t.Fatal(err)
		}
		frozen := func(j *Journal) {
			t.Helper()
			if err := j.MayDelete(ctx); err == nil || !strings.Contains(err.Error(), row.Pos.String()) {
				t.Errorf("the bucket contradicts the journal, and it may delete: %v", err)
			}
			if _, err := j.Sweep(ctx); err == nil {
				t.Error("it swept")
			}
			if _, err := j.Condemn(ctx, []Candidate{{lost.Name, row}}); err == nil {
				t.Error("it condemned")
			}
		}
		frozen(j)
		if err := c.backup(ctx, 1, 4); err != nil {
			t.Errorf("writing does not go on: %v", err)
		}
		mustClose(t, j)

		cfg := config(b)
		cfg.Host, cfg.Takeover = hostB, true
		gone = false // it is back, and that alone proves nothing
		j = mustOpen(t, cfg)
		defer mustClose(t, j)
		frozen(j)
		c.check(t, j)
		if f, err := j.Thaw(ctx, "operator", "the store had lost a node"); err != nil || len(f) != 1 {
			t.Fatal(f, err)
		}
		if err := j.MayDelete(ctx); err != nil {
			t.Error(err)
		}
		checkStore(t, b.Store(), j)
	})
}
