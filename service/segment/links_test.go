package segment

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"holdfast"
)

// names draws sorted, unique names of a small world.
func names(t *rapid.T, what string) []holdfast.Name {
	var all []holdfast.Name
	for i, in := range rapid.SliceOfN(rapid.Bool(), 0, 90).Draw(t, what) {
		if in {
			all = append(all, holdfast.Name{byte(i + 1)})
		}
	}
	return all
}

// TestLinksByBase: whatever the links of a block and of its base are, all come back; and they are said by the base exactly
// where that is shorter.
func TestLinksByBase(t *testing.T) {
	by := 0
	rapid.Check(t, func(t *rapid.T) {
		links, of := names(t, "links"), names(t, "of")
		if rapid.Bool().Draw(t, "alike") {
			of = slices.Clone(links)
			for range rapid.IntRange(0, 2).Draw(t, "changes") {
				if len(of) > 0 {
					of = slices.Delete(of, 0, 1)
				}
			}
		}
		s := Stored{Kind: holdfast.KindTree, Len: 1, Links: links}
		got := s.By(holdfast.Name{0xff}, of)
		all, err := got.All(of)
		if err != nil || !slices.Equal(all, links) {
			t.Fatalf("%v by %v: %v, %v", links, of, all, err)
		}
		if err := got.check(); err != nil {
			t.Fatal(err)
		}
		same := 0
		for _, l := range links {
			if slices.Contains(of, l) {
				same++
			}
		}
		// The base takes its name, a number, and a byte for each that is missing.
		shorter := 33+len(of)-same < 32*same
		if got.Base.none() == shorter {
			t.Fatalf("%d links, %d of the base, %d the same: by the base %v", len(links), len(of), same, !got.Base.none())
		}
		if shorter {
			by++
		}
	})
	if by == 0 {
		t.Error("no links were said by a base")
	}
}

// TestLinksThatDoNotFit: a base that has not the links that a record says is refused.
func TestLinksThatDoNotFit(t *testing.T) {
	of := []holdfast.Name{{1}, {2}, {3}}
	many := make([]holdfast.Name, holdfast.MaxLinks)
	for i := range many {
		many[i] = holdfast.Name{1, byte(i >> 8), byte(i)}
	}
	for what, c := range map[string]struct {
		s  Stored
		of []holdfast.Name
	}{
		"no base there":      {Stored{Base: Base{holdfast.Name{9}, []uint32{0}}}, nil},
		"no base, all of it": {Stored{Base: Base{holdfast.Name{9}, nil}, Links: []holdfast.Name{{2}}}, nil},
		"a link behind":      {Stored{Base: Base{holdfast.Name{9}, []uint32{3}}}, of},
		"more than there":    {Stored{Base: Base{holdfast.Name{9}, []uint32{0, 1, 2, 3}}}, of},
		"the base's own too": {Stored{Base: Base{holdfast.Name{9}, []uint32{0}}, Links: []holdfast.Name{{2}}}, of},
		"too many together":  {Stored{Base: Base{holdfast.Name{9}, nil}, Links: []holdfast.Name{{2}}}, many},
	} {
		if all, err := c.s.All(c.of); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %d links, %v", what, len(all), err)
		}
	}
	// One that takes the place of the base's is none of the base's.
	s := Stored{Base: Base{holdfast.Name{9}, []uint32{1}}, Links: []holdfast.Name{{2}, {4}}}
	if all, err := s.All(of); err != nil || !slices.Equal(all, []holdfast.Name{{1}, {2}, {3}, {4}}) {
		t.Errorf("%v, %v", all, err)
	}
}
