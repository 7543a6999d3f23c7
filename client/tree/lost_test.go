package tree

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/archive/archivetest"
)

// losing is a Get of s without some of its nodes.
func losing(s *store, gone map[holdfast.Name]bool) Get {
	return func(ctx context.Context, names []holdfast.Name) ([][]byte, error) {
		bad := Bad{}
		out := make([][]byte, len(names))
		for i, n := range names {
			if gone[n] {
				bad[n] = fmt.Errorf("%w: %s is gone", archive.ErrDamaged, n)
				continue
			}
			p, err := s.get(ctx, []holdfast.Name{n})
			if err != nil {
				return nil, err
			}
			out[i] = p[0]
		}
		if len(bad) > 0 {
			return out, bad
		}
		return out, nil
	}
}

// TestLostPartsLeaveTheRest takes nodes out of a tree, or puts garbage there. Whatever does not lie in them is
// read, and whatever does is told of: by its place, and as a number.
func TestLostPartsLeaveTheRest(t *testing.T) {
	xs, size := archivetest.Chunks("big", 30_000)
	var es []*archive.Entry
	es = append(es, plainFiles(3000)...)
	es = append(es, &archive.Entry{Path: "m", Type: archive.TypeFile, Size: size, Extents: xs})
	for i := range 2000 {
		es = append(es, smallFile(fmt.Sprintf("n%05d", i), i))
	}
	s := newStore()
	r := build(t, s, es)
	if r.Height < 2 {
		t.Fatal("the tree is too low to lose parts of")
	}
	var names []holdfast.Name
	inner := 0
	for n, p := range s.blocks {
		if n != r.Tree {
			names = append(names, n)
			if node, err := parseNode(p); err == nil && node.level > 0 {
				inner++
			}
		}
	}
	slices.SortFunc(names, func(a, b holdfast.Name) int { return slices.Compare(a[:], b[:]) })
	if len(names) < 20 || r.Height > 2 && inner == 0 {
		t.Fatalf("%d nodes, %d of them inner ones, in %d levels", len(names), inner, r.Height)
	}
	check := func(t *testing.T, get Get, harmed bool) {
		t.Helper()
		at, missing := 0, uint64(0)
		var open []Lost // of what was told since the last entry
		err := Open(r, get).Walk(t.Context(), Span{Lost: func(l Lost) error {
			if !errors.Is(l.Err, archive.ErrDamaged) {
				t.Errorf("lost for another reason: %v", l.Err)
			}
			if l.Entries == 0 {
				t.Errorf("nothing is lost from %q to %q: %v", l.From, l.Before, l.Err)
			}
			missing += l.Entries
			open = append(open, l)
			return nil
		}}, func(e *archive.Entry) error {
			// Whatever was passed over since the last entry lies in one of the parts.
			for es[at].Path != e.Path {
				if !slices.ContainsFunc(open, func(l Lost) bool {
					p := es[at].Path
					return archive.ComparePaths(l.From, p) <= 0 && (l.Before == "" || l.Before == l.From && p == l.From || archive.ComparePaths(p, l.Before) < 0 || p == l.Before)
				}) {
					t.Fatalf("%s is not there, and nobody said so", es[at].Path)
				}
				if at++; at == len(es) {
					t.Fatalf("%s comes from nowhere", e.Path)
				}
			}
			same(t, "entry", []*archive.Entry{e}, es[at:at+1])
			at++
			open = nil
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		seen := uint64(0)
		_ = Open(r, get).Walk(t.Context(), Span{Lost: func(Lost) error { return nil }}, func(*archive.Entry) error { seen++; return nil })
		if seen+missing != r.Entries {
			t.Errorf("%d entries were read and %d told of as lost, of %d", seen, missing, r.Entries)
		}
		if harmed == (missing == 0) {
			t.Errorf("%d entries were lost", missing)
		}
		// Without Lost the walk ends there.
		if err := Open(r, get).Walk(t.Context(), Span{}, func(*archive.Entry) error { return nil }); harmed == (err == nil) || harmed && !errors.Is(err, archive.ErrDamaged) {
			t.Errorf("without Lost: %v", err)
		}
	}
	check(t, s.get, false)
	for i, n := range names {
		t.Run(fmt.Sprint("without ", i), func(t *testing.T) { check(t, losing(s, map[holdfast.Name]bool{n: true}), true) })
		t.Run(fmt.Sprint("garbage at ", i), func(t *testing.T) {
			was := s.blocks[n]
			defer func() { s.blocks[n] = was }()
			s.blocks[n] = []byte("garbage")
			check(t, s.get, true)
		})
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		t.Run(fmt.Sprint("several ", i), func(t *testing.T) {
			gone := map[holdfast.Name]bool{}
			for range 2 + rnd.IntN(len(names)) {
				gone[names[rnd.IntN(len(names))]] = true
			}
			check(t, losing(s, gone), true)
		})
	}
	stop := errors.New("stop")
	if err := Open(r, losing(s, map[holdfast.Name]bool{names[0]: true})).Walk(t.Context(), Span{Lost: func(Lost) error { return stop }}, func(*archive.Entry) error { return nil }); err != stop {
		t.Errorf("Lost ends the walk with %v", err)
	}
}

// A block that one file of equal chunks needs many times is lost for that file only.
func TestLostRepeatedPart(t *testing.T) {
	e := &archive.Entry{Path: "zeros", Type: archive.TypeFile, Extents: slices.Repeat([]archive.Extent{{Kind: holdfast.KindChunk, Name: holdfast.Name{7}, Len: 1 << 20}}, 150_000)}
	e.Size = 150_000 << 20
	first, next := &archive.Entry{Path: "a", Type: archive.TypeFile}, &archive.Entry{Path: "zeros1", Type: archive.TypeFile}
	s := newStore()
	r := build(t, s, []*archive.Entry{first, e, next})
	for n, p := range s.blocks {
		node, err := parseNode(p)
		if err != nil || n == r.Tree || node.entries > 0 {
			continue
		}
		var got []string
		err = Open(r, losing(s, map[holdfast.Name]bool{n: true})).Walk(t.Context(), Span{Lost: func(l Lost) error {
			got = append(got, fmt.Sprintf("-%s:%d", l.From, l.Entries))
			return nil
		}}, func(e *archive.Entry) error { got = append(got, e.Path); return nil })
		if want := "[a -zeros:1 zeros1]"; err != nil || fmt.Sprint(got) != want {
			t.Errorf("%v, want %s: %v", got, want, err)
		}
	}
}
