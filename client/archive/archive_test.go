package archive_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/archive/archivetest"
	"holdfast/client/keyring"
	"holdfast/history"
)

// make rewrites the vectors; it is for the day a format gets a new version, never to make a test pass.
var remake = flag.Bool("make-vectors", false, "write testdata anew")

// vector compares got with the bytes that are fixed for ever in testdata/name, as hex, 32 bytes a line.
func vector(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *remake {
		var b strings.Builder
		for part := range slices.Chunk(got, 32) {
			fmt.Fprintf(&b, "%x\n", part)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the encoding changed: got %x", name, got)
	}
	return want
}

// encodePage writes entries into one page; files are cut after every n extents.
func encodePage(es []*archive.Entry, n int) []byte {
	var p archive.Page
	for _, e := range es {
		key := archive.AppendKey(nil, e.Path)
		k := min(n, len(e.Extents))
		p.Entry(key, e, e.Extents[:k])
		for rest := e.Extents[k:]; len(rest) > 0; rest = rest[k:] {
			k = min(n, len(rest))
			p.Extents(key, rest[:k])
		}
	}
	plain, _ := p.Encode(nil)
	return plain
}

// decodePage is the inverse of encodePage, and also encodes again what it read, cut as it was cut.
func decodePage(plain []byte) (es []*archive.Entry, again []byte, err error) {
	r, _, err := archive.OpenPage(plain, 0)
	if err != nil {
		return nil, nil, err
	}
	var j archive.Joiner
	var p archive.Page
	for r.Left() > 0 {
		key, cont := archive.SplitKey(bytes.Clone(r.Item()))
		if cont {
			xs := r.Extents()
			if r.Err() != nil {
				break
			}
			if err := j.Extents(key, xs); err != nil {
				return nil, nil, err
			}
			p.Extents(key, xs)
			continue
		}
		e := r.Entry(key)
		if e == nil {
			break
		}
		p.Entry(key, e, e.Extents)
		was, err := j.Entry(key, e)
		if err != nil {
			return nil, nil, err
		}
		if was != nil {
			es = append(es, was)
		}
	}
	if err := r.Done(); err != nil {
		return nil, nil, err
	}
	last, err := j.Finish()
	if err != nil {
		return nil, nil, err
	}
	if last != nil {
		es = append(es, last)
	}
	again, _ = p.Encode(nil)
	return es, again, nil
}

// sample has an entry of every form.
func sample() []*archive.Entry {
	pack, chunk := archivetest.Name("pack"), archivetest.Name("chunk")
	return []*archive.Entry{
		{Path: "a", Type: archive.TypeDir, Mode: 0o755, User: "root", Group: "root", Mtime: archive.Time{Sec: -1 << 40, Nsec: 999999999}},
		{Path: "a/b", Type: archive.TypeFile, Mode: 0o4644, UID: 1000, GID: math.MaxUint32, User: "u", Group: "g", Mtime: archive.Time{Sec: 1 << 35, Nsec: 1}, Size: 7,
			Extents: []archive.Extent{{Kind: holdfast.KindPack, Name: pack, Off: 9, Len: 7}}, Content: [16]byte{1, 2, 3}},
		{Path: "a/c", Type: archive.TypeFile, Link: "a/b", Size: 7},
		{Path: "a/d", Type: archive.TypeFile, Size: 1<<40 + 4, Extents: []archive.Extent{
			{Kind: holdfast.KindChunk, Name: chunk, Len: 1}, {Len: 1 << 40}, {Kind: holdfast.KindChunk, Name: chunk, Len: 1},
			{Kind: holdfast.KindPack, Name: pack, Off: holdfast.MaxPlain - 2, Len: 2}}},
		{Path: "a/e\xff\n", Type: archive.TypeFile},
		{Path: "a!", Type: archive.TypeFile, Flags: archive.FlagChanged | archive.FlagUnreadable, Size: 12345},
		{Path: "b", Type: archive.TypeSymlink, Target: "/nowhere"},
		{Path: "c", Type: archive.TypeFIFO, Xattrs: []archive.Xattr{{Name: "user.a", Value: []byte("1")}, {Name: "user.b", Value: []byte{}}}},
		{Path: "d", Type: archive.TypeChar, Major: 1, Minor: 3},
		{Path: "e", Type: archive.TypeBlock, Major: 259, Minor: math.MaxUint32},
		{Path: "f", Type: archive.TypeSocket},
	}
}

func sampleRoot() *archive.Root {
	return &archive.Root{
		Tree: archivetest.Name("tree"), Height: 2, Entries: 11, Bytes: 1 << 41, Time: 1e18, Host: "host", User: "user", Series: "home",
		Client: "0.1", Roots: []string{"photos", "../x"}, Args: []string{"--exclude=*.o"},
		Counts:   history.Counts{Stored: 1, Unchanged: 2, Excluded: 3, Vanished: 4, Changed: 5, Unreadable: 6},
		Verdicts: []holdfast.Name{archivetest.Name("v2"), archivetest.Name("v1")}, Prev: holdfast.RecordID{9},
	}
}

func sampleVerdicts() []archive.Verdict {
	return []archive.Verdict{
		{Path: "a", What: archive.Excluded, Why: "excluded by *.o"},
		{Path: "a/b", What: archive.Vanished},
		{Path: "a!", What: archive.Changed},
		{Path: "\xff", What: archive.Unreadable, Why: "permission denied"},
	}
}

func TestVectors(t *testing.T) {
	es, _, err := decodePage(vector(t, "page.hex", encodePage(sample(), 2)))
	if err != nil || !reflect.DeepEqual(es, sample()) {
		t.Errorf("page decodes to %+v, %v", es, err)
	}
	plain, links, err := sampleRoot().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(links) != 3 || !slices.IsSortedFunc(links, func(a, b holdfast.Name) int { return bytes.Compare(a[:], b[:]) }) {
		t.Errorf("root has links %v", links)
	}
	r, err := archive.ParseRoot(vector(t, "root.hex", plain))
	if err != nil || !reflect.DeepEqual(r, sampleRoot()) {
		t.Errorf("root decodes to %+v, %v", r, err)
	}
	empty, links, err := (&archive.Root{}).Encode()
	if err != nil || len(links) != 0 {
		t.Errorf("empty root: links %v, %v", links, err)
	}
	if r, err := archive.ParseRoot(vector(t, "root-empty.hex", empty)); err != nil || !reflect.DeepEqual(r, &archive.Root{}) {
		t.Errorf("empty root decodes to %+v, %v", r, err)
	}
	vs, err := readVerdicts(vector(t, "verdicts.hex", writeVerdicts(t, sampleVerdicts())[0]))
	if err != nil || !reflect.DeepEqual(vs, sampleVerdicts()) {
		t.Errorf("verdicts decode to %+v, %v", vs, err)
	}
}

var cuts = keyring.Cuts{Tree: holdfast.Key{1, 2, 3}}

// writeVerdicts returns the chunks of a list.
func writeVerdicts(t testing.TB, vs []archive.Verdict) (chunks [][]byte) {
	w := archive.NewVerdictWriter(&cuts, func(_ context.Context, p []byte) (holdfast.Name, error) {
		chunks = append(chunks, p)
		return archivetest.Name(string(p)), nil
	})
	for _, v := range vs {
		if err := w.Add(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	names, err := w.Finish(t.Context())
	if err != nil || len(names) != len(chunks) {
		t.Fatal(names, err)
	}
	return chunks
}

func readVerdicts(chunks ...[]byte) (vs []archive.Verdict, err error) {
	var r archive.VerdictReader
	for _, c := range chunks {
		if err := r.Chunk(c, func(v archive.Verdict) error { vs = append(vs, v); return nil }); err != nil {
			return nil, err
		}
	}
	return vs, nil
}

func TestVerdictsMoveFewCuts(t *testing.T) {
	var vs []archive.Verdict
	for i := range 20000 {
		vs = append(vs, archive.Verdict{Path: fmt.Sprintf("dir/%06d", i), What: archive.Excluded, Why: "excluded by *.o"})
	}
	before := writeVerdicts(t, vs)
	got, err := readVerdicts(before...)
	if err != nil || !reflect.DeepEqual(got, vs) {
		t.Fatal("list changed", err)
	}
	vs = slices.Delete(vs, 10, 11)
	fresh := 0
	for _, c := range writeVerdicts(t, vs) {
		if len(c) > 512<<10+8<<10 {
			t.Errorf("chunk of %d bytes", len(c))
		}
		if !slices.ContainsFunc(before, func(b []byte) bool { return bytes.Equal(b, c) }) {
			fresh++
		}
	}
	if len(before) < 4 || fresh > 2 {
		t.Errorf("removing a verdict made %d of %d chunks new", fresh, len(before))
	}
	if _, err := readVerdicts(before[1], before[0]); !errors.Is(err, archive.ErrDamaged) {
		t.Errorf("chunks in another order: %v", err)
	}
}

func TestVerdictWriterRefuses(t *testing.T) {
	w := archive.NewVerdictWriter(&cuts, nil)
	if err := w.Add(t.Context(), archive.Verdict{Path: "b", What: archive.Changed, Why: strings.Repeat("x", 1<<20)}); err != nil {
		t.Errorf("a long reason: %v", err)
	}
	for _, v := range []archive.Verdict{{Path: "b", What: 1}, {Path: "a", What: 1}, {Path: "c"}, {Path: "c", What: 5}, {Path: "/c", What: 1}} {
		if err := w.Add(t.Context(), v); !errors.Is(err, archive.ErrEntry) {
			t.Errorf("verdict %v: %v", v, err)
		}
	}
}

func TestPageRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		es := archivetest.Entries(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(0, 60).Draw(t, "n"))
		for _, e := range es {
			if err := e.Check(); err != nil {
				t.Fatal(err)
			}
		}
		plain := encodePage(es, rapid.IntRange(1, archive.MaxItemExtents).Draw(t, "cut"))
		got, again, err := decodePage(plain)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(plain, again) {
			t.Fatal("encodes again to other bytes")
		}
		if len(got) != len(es) {
			t.Fatalf("%d entries became %d", len(es), len(got))
		}
		for i := range es {
			if !reflect.DeepEqual(es[i], got[i]) {
				t.Fatalf("entry %+v became %+v", es[i], got[i])
			}
		}
	})
}

func TestPageUndo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		es := archivetest.Entries(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(2, 20).Draw(t, "n"))
		var p archive.Page
		for i, e := range es {
			key := archive.AppendKey(nil, e.Path)
			first := e.Extents[:min(3, len(e.Extents))]
			if rapid.Bool().Draw(t, "undo") {
				j := rapid.IntRange(i, len(es)-1).Draw(t, "other")
				p.Entry(archive.AppendKey(nil, es[j].Path), es[j], es[j].Extents)
				p.Undo()
			}
			p.Entry(key, e, first)
		}
		size := p.Size(0)
		got, _ := p.Encode(nil)
		var q archive.Page
		for _, e := range es {
			q.Entry(archive.AppendKey(nil, e.Path), e, e.Extents[:min(3, len(e.Extents))])
		}
		want, _ := q.Encode(nil)
		if !bytes.Equal(got, want) {
			t.Fatal("Undo left something behind")
		}
		if size != len(got) {
			t.Fatalf("Size said %d for %d bytes", size, len(got))
		}
	})
}

// TestDamage flips every bit of every vector: it is an error, or the one encoding of something else (a
// page is authentic only inside its sealed block).
func TestDamage(t *testing.T) {
	page := encodePage(sample(), 2)
	root, _, _ := sampleRoot().Encode()
	verdicts := writeVerdicts(t, sampleVerdicts())[0]
	for name, c := range map[string]struct {
		plain []byte
		again func([]byte) ([]byte, error)
	}{
		"page":     {page, func(p []byte) ([]byte, error) { _, again, err := decodePage(p); return again, err }},
		"root":     {root, rootAgain},
		"verdicts": {verdicts, verdictsAgain},
	} {
		for i := range 8 * len(c.plain) {
			p := bytes.Clone(c.plain)
			p[i/8] ^= 1 << (i % 8)
			again, err := c.again(p)
			if err == nil && !bytes.Equal(again, p) {
				t.Errorf("%s, bit %d: decodes, but encodes again to other bytes", name, i)
			}
			if err != nil && !errors.Is(err, archive.ErrDamaged) {
				t.Errorf("%s, bit %d: %v", name, i, err)
			}
		}
		for i := range c.plain {
			if again, err := c.again(c.plain[:i]); err == nil && !bytes.Equal(again, c.plain[:i]) {
				t.Errorf("%s cut after %d bytes: no error", name, i)
			}
		}
		if _, err := c.again(append(bytes.Clone(c.plain), 0)); err == nil {
			t.Errorf("%s with a byte more: no error", name)
		}
	}
}

func rootAgain(p []byte) ([]byte, error) {
	r, err := archive.ParseRoot(p)
	if err != nil {
		return nil, err
	}
	again, _, err := r.Encode()
	return again, err
}

func verdictsAgain(p []byte) ([]byte, error) {
	vs, err := readVerdicts(p)
	if err != nil {
		return nil, err
	}
	var again []byte
	w := archive.NewVerdictWriter(&cuts, func(_ context.Context, p []byte) (holdfast.Name, error) {
		if again != nil {
			p = append(again, p[1:]...) // a fuzzed chunk may be longer than the writer makes them
		}
		again = p
		return holdfast.Name{}, nil
	})
	for _, v := range vs {
		if err := w.Add(context.Background(), v); err != nil {
			return nil, err
		}
	}
	_, err = w.Finish(context.Background())
	return again, err
}

func FuzzPage(f *testing.F) {
	f.Add(encodePage(sample(), 2))
	f.Add(encodePage(archivetest.Entries(1, 20), 100))
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, again, err := decodePage(p); err == nil && !bytes.Equal(again, p) {
			t.Error("decodes, but encodes again to other bytes")
		}
	})
}

func FuzzRoot(f *testing.F) {
	p, _, _ := sampleRoot().Encode()
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		if again, err := rootAgain(p); err == nil && !bytes.Equal(again, p) {
			t.Error("decodes, but encodes again to other bytes")
		}
	})
}

func FuzzVerdicts(f *testing.F) {
	f.Add(writeVerdicts(f, sampleVerdicts())[0])
	f.Fuzz(func(t *testing.T, p []byte) {
		if again, err := verdictsAgain(p); err == nil && !bytes.Equal(again, p) {
			t.Error("decodes, but encodes again to other bytes")
		}
	})
}

func TestOrderIsByComponents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		path := rapid.Map(rapid.SliceOfN(rapid.StringMatching(`[!-.0a\x{ff}]{1,3}`), 1, 4), func(c []string) string { return strings.Join(c, "/") })
		a, b := path.Draw(t, "a"), path.Draw(t, "b")
		got := archive.ComparePaths(a, b)
		if want := slices.Compare(strings.Split(a, "/"), strings.Split(b, "/")); sign(got) != want {
			t.Errorf("ComparePaths(%q, %q) = %d, want %d", a, b, got, want)
		}
		if want := bytes.Compare(archive.AppendKey(nil, a), archive.AppendKey(nil, b)); sign(got) != want {
			t.Errorf("keys of %q and %q compare as %d, paths as %d", a, b, want, got)
		}
	})
}

func sign(n int) int { return max(-1, min(1, n)) }

func TestCheck(t *testing.T) {
	long := strings.Repeat("x", archive.MaxPath)
	pack := archive.Extent{Kind: holdfast.KindPack, Name: holdfast.Name{1}, Len: 5}
	chunk := archive.Extent{Kind: holdfast.KindChunk, Name: holdfast.Name{1}, Len: 5}
	file := func(x ...archive.Extent) archive.Entry {
		e := archive.Entry{Path: "f", Type: archive.TypeFile, Extents: x}
		for _, x := range x {
			e.Size += x.Len
		}
		return e
	}
	with := func(e archive.Entry, f func(*archive.Entry)) archive.Entry { f(&e); return e }
	hashed := func(e *archive.Entry) { e.Content[0] = 1 }
	for name, c := range map[string]struct {
		e  archive.Entry
		ok bool
	}{
		"longest path":            {archive.Entry{Path: long, Type: archive.TypeDir}, true},
		"longer path":             {archive.Entry{Path: long + "x", Type: archive.TypeDir}, false},
		"no path":                 {archive.Entry{Type: archive.TypeDir}, false},
		"absolute":                {archive.Entry{Path: "/a", Type: archive.TypeDir}, false},
		"trailing slash":          {archive.Entry{Path: "a/", Type: archive.TypeDir}, false},
		"dot dot":                 {archive.Entry{Path: "a/../b", Type: archive.TypeDir}, false},
		"dot":                     {archive.Entry{Path: ".", Type: archive.TypeDir}, false},
		"NUL":                     {archive.Entry{Path: "a\x00", Type: archive.TypeDir}, false},
		"dots in a name":          {archive.Entry{Path: "...", Type: archive.TypeDir}, true},
		"no type":                 {archive.Entry{Path: "a"}, false},
		"unknown type":            {archive.Entry{Path: "a", Type: 8}, false},
		"mode":                    {archive.Entry{Path: "a", Type: archive.TypeDir, Mode: 0o10000}, false},
		"nanoseconds":             {archive.Entry{Path: "a", Type: archive.TypeDir, Mtime: archive.Time{Nsec: 1e9}}, false},
		"flags":                   {archive.Entry{Path: "a", Type: archive.TypeDir, Flags: 4}, false},
		"unreadable directory":    {archive.Entry{Path: "a", Type: archive.TypeDir, Flags: archive.FlagUnreadable}, true},
		"directory with a size":   {archive.Entry{Path: "a", Type: archive.TypeDir, Size: 1}, false},
		"file with a target":      {archive.Entry{Path: "a", Type: archive.TypeFile, Target: "x"}, false},
		"symlink":                 {archive.Entry{Path: "a", Type: archive.TypeSymlink, Target: "x"}, true},
		"symlink without target":  {archive.Entry{Path: "a", Type: archive.TypeSymlink}, false},
		"hard link":               {archive.Entry{Path: "a", Type: archive.TypeFile, Link: "B"}, true},
		"hard link to later":      {archive.Entry{Path: "a", Type: archive.TypeFile, Link: "b"}, false},
		"hard link to itself":     {archive.Entry{Path: "a", Type: archive.TypeFile, Link: "a"}, false},
		"hard link outside":       {archive.Entry{Path: "a", Type: archive.TypeFile, Link: "../x"}, false},
		"hard linked directory":   {archive.Entry{Path: "a", Type: archive.TypeDir, Link: "B"}, false},
		"hard link with content":  {with(file(chunk), func(e *archive.Entry) { e.Link = "B" }), false},
		"device numbers":          {archive.Entry{Path: "a", Type: archive.TypeFIFO, Major: 1}, false},
		"empty file":              {file(), true},
		"chunk":                   {file(chunk), true},
		"chunk with a hash":       {with(file(chunk), hashed), false},
		"pack":                    {with(file(pack), hashed), true},
		"pack without a hash":     {file(pack), false},
		"pack and hole":           {with(file(pack, archive.Extent{Len: 9}), hashed), true},
		"pack and chunk":          {file(pack, chunk), true},
		"hole":                    {file(archive.Extent{Len: math.MaxInt64}), true},
		"holes beyond 2^63":       {file(archive.Extent{Len: math.MaxInt64}, archive.Extent{Len: 1}), false},
		"empty hole":              {file(archive.Extent{}), false},
		"hole with a name":        {file(archive.Extent{Name: holdfast.Name{1}, Len: 1}), false},
		"chunk with an offset":    {file(archive.Extent{Kind: holdfast.KindChunk, Off: 1, Len: 1}), false},
		"chunk too long":          {file(archive.Extent{Kind: holdfast.KindChunk, Len: holdfast.MaxPlain + 1}), false},
		"beyond the pack":         {with(file(archive.Extent{Kind: holdfast.KindPack, Off: holdfast.MaxPlain, Len: 1}), hashed), false},
		"extent in a tree":        {file(archive.Extent{Kind: holdfast.KindTree, Len: 1}), false},
		"other size":              {with(file(chunk), func(e *archive.Entry) { e.Size++ }), false},
		"attributes not in order": {archive.Entry{Path: "a", Type: archive.TypeDir, Xattrs: []archive.Xattr{{Name: "b"}, {Name: "a"}}}, false},
		"attribute twice":         {archive.Entry{Path: "a", Type: archive.TypeDir, Xattrs: []archive.Xattr{{Name: "a"}, {Name: "a"}}}, false},
		"largest attributes":      {archive.Entry{Path: "a", Type: archive.TypeDir, Xattrs: []archive.Xattr{{Name: "a", Value: make([]byte, archive.MaxXattrs-1)}}}, true},
		"larger attributes":       {archive.Entry{Path: "a", Type: archive.TypeDir, Xattrs: []archive.Xattr{{Name: "a", Value: make([]byte, archive.MaxXattrs)}}}, false},
	} {
		err := c.e.Check()
		if (err == nil) != c.ok || err != nil && !errors.Is(err, archive.ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
		// A decoder refuses what Check refuses, unless the encoding has no room for it.
		if es, _, derr := decodePage(encodePage([]*archive.Entry{&c.e}, 100)); derr == nil && !c.ok && es[0].Check() != nil {
			t.Errorf("%s: decoded although no archive can hold it", name)
		}
	}
}

func TestJoinerRefuses(t *testing.T) {
	dir := func(p string) *archive.Entry { return &archive.Entry{Path: p, Type: archive.TypeDir} }
	big := func(p string) *archive.Entry { return &archive.Entry{Path: p, Type: archive.TypeFile, Size: 10} }
	hole := []archive.Extent{{Len: 6}}
	add := func(j *archive.Joiner, e *archive.Entry) error {
		_, err := j.Entry(archive.AppendKey(nil, e.Path), e)
		return err
	}
	for name, f := range map[string]func(j *archive.Joiner) error{
		"out of order": func(j *archive.Joiner) error { add(j, dir("b")); return add(j, dir("a")) },
		"twice":        func(j *archive.Joiner) error { add(j, dir("b")); return add(j, dir("b")) },
		"below a file": func(j *archive.Joiner) error {
			add(j, &archive.Entry{Path: "b", Type: archive.TypeFile})
			return add(j, dir("b/c"))
		},
		"no file":        func(j *archive.Joiner) error { return j.Extents([]byte("a"), hole) },
		"other file":     func(j *archive.Joiner) error { add(j, big("b")); return j.Extents([]byte("a"), hole) },
		"of a directory": func(j *archive.Joiner) error { add(j, dir("b")); return j.Extents([]byte("b"), hole) },
		"too many bytes": func(j *archive.Joiner) error {
			add(j, big("b"))
			j.Extents([]byte("b"), hole)
			return j.Extents([]byte("b"), hole)
		},
		"too few bytes":    func(j *archive.Joiner) error { add(j, big("b")); j.Extents([]byte("b"), hole); return add(j, dir("c")) },
		"too few, the end": func(j *archive.Joiner) error { add(j, big("b")); _, err := j.Finish(); return err },
	} {
		if err := f(new(archive.Joiner)); !errors.Is(err, archive.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
