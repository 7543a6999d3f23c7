//go:build linux

package e2e

import (
	"maps"
	"math"
	"slices"
	"testing"

	"holdfast/history"
	"holdfast/service/bucket"
	"holdfast/service/segment"
)

// journal reads all records of the service's bucket, in order, with nothing but the documented format: what
// the newest takeover accepts, and what came after it.
func journal(t testing.TB, s *service) []segment.Timed {
	t.Helper()
	b := s.place.open(t)
	landed := map[segment.Position]bucket.Object{} // any landing will do: they are equal
	for _, o := range s.place.objects(t) {
		if k, err := segment.ParseKey(o.Key); err == nil {
			landed[k.Position] = o
		}
	}
	positions := slices.SortedFunc(maps.Keys(landed), segment.Position.Compare)
	if len(positions) == 0 {
		t.Fatal("the bucket holds no segments")
	}
	records := func(p segment.Position) []segment.Timed {
		k, err := segment.ParseKey(landed[p].Key)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := b.Get(t.Context(), landed[p].Key, landed[p].Size-int64(k.Trailer), int64(k.Trailer))
		if err != nil {
			t.Fatal(err)
		}
		tr, err := k.Parse(raw, landed[p].Size)
		if err != nil {
			t.Fatal(err)
		}
		return tr.Records
	}
	newest := positions[len(positions)-1].Epoch
	first, ok := records(segment.Position{Epoch: newest})[0].Record.(segment.Takeover)
	if !ok {
		t.Fatalf("epoch %d does not begin with a takeover", newest)
	}
	last := map[uint64]uint64{newest: math.MaxUint64}
	for _, e := range first.Table {
		last[e.Epoch] = e.LastSeq
	}
	var out []segment.Timed
	for _, p := range positions {
		if l, ok := last[p.Epoch]; ok && p.Seq <= l {
			out = append(out, records(p)...)
		}
	}
	return out
}

// storedKinds returns the sealed bytes by kind that were stored after the n-1-th commit of the journal
// up to the n-th; n = 0 counts everything.
func storedKinds(t testing.TB, s *service, n int) map[string]int64 {
	t.Helper()
	kinds := map[string]int64{}
	commits := 1
	for _, r := range journal(t, s) {
		switch r := r.Record.(type) {
		case segment.Stored:
			if n == 0 || commits == n {
				kinds[r.Kind.String()] += int64(r.Len)
			}
		case segment.History:
			if body, err := history.ParseBody(r.Entry.Record.Body); err != nil {
				t.Fatal(err)
			} else if body.Type == history.TypeCommit {
				commits++
			}
		}
	}
	return kinds
}

// commits counts the archives that the journal holds.
func commits(t testing.TB, s *service) int {
	t.Helper()
	n := 0
	for _, r := range journal(t, s) {
		if h, ok := r.Record.(segment.History); ok {
			if body, err := history.ParseBody(h.Entry.Record.Body); err != nil {
				t.Fatal(err)
			} else if body.Type == history.TypeCommit {
				n++
			}
		}
	}
	return n
}
