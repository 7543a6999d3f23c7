package journal

import (
	"bytes"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// TestTreesByTheOneBefore: a tree that is stored again and again with one changed entry says its links once; afterwards
// the changes only. A rebuild makes all of them again, also when the first has been freed.
func TestTreesByTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		defer func() { mustClose(t, j) }()
		c := newClient(t, j, 1)
		if err := c.record(ctx, c.Open()); err != nil {
			t.Fatal(err)
		}
		store := func(blocks ...viewtest.Block) {
			t.Helper()
			if err := c.upload(ctx, blocks...); err != nil {
				t.Fatal(err)
			}
		}
		const links, versions = 200, 10
		var chunks []viewtest.Block
		for i := range links + versions {
			chunks = append(chunks, c.Chunk(1000+i, 10))
		}
		slices.SortFunc(chunks, func(a, b viewtest.Block) int { return bytes.Compare(a.Name[:], b.Name[:]) })
		store(chunks...)
		var names []holdfast.Name
		for _, b := range chunks {
			names = append(names, b.Name)
		}
		var trees []viewtest.Block
		for v := range versions {
			// The smallest stays; the next goes, and one comes.
			below := append([]holdfast.Name{names[0]}, names[v+1:v+links]...)
			trees = append(trees, c.Over(holdfast.KindTree, 1000+v, below...))
			store(trees[v])
		}
		same := func() {
			t.Helper()
			for _, tree := range trees {
				got, err := j.Acked().Links(c.Vault, c.Group, tree.Name)
				if err != nil || !slices.Equal(got, tree.Links) {
					t.Errorf("tree %s: %d links, %v", tree.Name, len(got), err)
				}
			}
		}
		same()
		list, err := findChain(ctx, config(b), 1<<63, anyChain)
		if err != nil {
			t.Fatal(err)
		}
		said := 0
		err = list.all().trailers(ctx, config(b), func(_ found, tr *segment.Trailer) error {
			for _, r := range tr.Records {
				if s, ok := r.Record.(segment.Stored); ok {
					said += len(s.Links)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if most := links + versions; said > most {
			t.Errorf("%d links are said in full for %d trees of %d links; %d would do", said, versions, links, most)
		}
		checkStore(t, b.Store(), j)

		// All trees but the last go; it says what it does by what is not there any more.
		j.EndSession(c.Session)
		time.Sleep(2 * view.Keep)
		last := trees[versions-1]
		free := slices.DeleteFunc(c.unreferenced(t, j), func(u Candidate) bool { return u.Name == last.Name })
		if n, err := j.Condemn(ctx, free); err != nil || n < versions-1 {
			t.Fatal(n, err)
		}
		trees = []viewtest.Block{last}
		same()
		checkStore(t, b.Store(), j)
		mustClose(t, j)
		j = mustOpen(t, config(b)) // in memory: from the bucket
		same()
	})
}
