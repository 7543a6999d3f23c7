package tree

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/archive/archivetest"
	"holdfast/client/keyring"
)

// remake rewrites the vectors; it is for the day a format gets a new version, never to make a test pass.
var remake = flag.Bool("make-vectors", false, "write testdata anew")

var cuts = keyring.Cuts{Tree: holdfast.Key{1, 2, 3}}

// store keeps blocks by the hash of their plaintext and counts what is read.
type store struct {
	mu     sync.Mutex
	blocks map[holdfast.Name][]byte
	puts   int
	gets   int
}

func newStore() *store { return &store{blocks: map[holdfast.Name][]byte{}} }

func (s *store) put(_ context.Context, kind holdfast.Kind, plain []byte, links []holdfast.Name) (holdfast.Name, error) {
	if kind != holdfast.KindTree {
		return holdfast.Name{}, fmt.Errorf("a tree puts a %s", kind)
	}
	if n, err := parseNode(plain); err == nil && n.level > 0 {
		for _, l := range links {
			if s.blocks[l] == nil {
				return holdfast.Name{}, fmt.Errorf("parent before child %s", l)
			}
		}
	}
	s.puts++
	name := holdfast.Name(sha256.Sum256(plain))
	s.blocks[name] = plain
	return name, nil
}

func (s *store) get(_ context.Context, names []holdfast.Name) (plains [][]byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, n := range names {
		if slices.Contains(names[:i], n) {
			return nil, errors.New("a name twice in one Get")
		}
		p, ok := s.blocks[n]
		if !ok {
			return nil, fmt.Errorf("%w: no block %s", archive.ErrDamaged, n)
		}
		s.gets++
		plains = append(plains, p)
	}
	return plains, nil
}

// failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// build stores entries as a tree and returns its root.
func build(t failer, s *store, es []*archive.Entry) *archive.Root {
	b := NewBuilder(&cuts, s.put)
	for _, e := range es {
		if err := b.Add(context.Background(), e); err != nil {
			t.Fatal(err)
		}
	}
	root, height, err := b.Finish(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return &archive.Root{Tree: root, Height: height, Entries: b.Entries(), Bytes: b.Bytes()}
}

// walked collects what a walk calls back with.
func walked(t failer, s *store, r *archive.Root, span Span) (es []*archive.Entry) {
	err := Open(r, s.get).Walk(context.Background(), span, func(e *archive.Entry) error { es = append(es, e); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return es
}

func same(t failer, what string, got, want []*archive.Entry) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d entries, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("%s: entry %d is %+v, want %+v", what, i, got[i], want[i])
		}
	}
}

// plainFiles returns n small files in directories of 100.
func plainFiles(n int) (es []*archive.Entry) {
	for i := range n {
		if i%100 == 0 {
			es = append(es, &archive.Entry{Path: fmt.Sprintf("d%05d", i/100), Type: archive.TypeDir, Mode: 0o755})
		}
		es = append(es, smallFile(fmt.Sprintf("d%05d/f%02d.txt", i/100, i%100), i))
	}
	return es
}

func smallFile(path string, i int) *archive.Entry {
	return &archive.Entry{
		Path: path, Type: archive.TypeFile, Mode: 0o644, UID: 1000, GID: 1000, User: "alice", Group: "alice",
		Mtime: archive.Time{Sec: 1_600_000_000 + int64(i), Nsec: 5}, Size: 1000, Content: [16]byte{1, byte(i)},
		Extents: []archive.Extent{{Kind: holdfast.KindPack, Name: archivetest.Name("pack", i/40), Off: uint32(i % 40 * 1000), Len: 1000}},
	}
}

func TestReadsWhatWasBuilt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 1000).Draw(t, "n")
		es := archivetest.Entries(rapid.Uint64().Draw(t, "seed"), n)
		s := newStore()
		r := build(t, s, es)
		tr := Open(r, s.get)
		same(t, "walk", walked(t, s, r, Span{}), es)
		if len(es) == 0 {
			return
		}
		for range 4 {
			e := es[rapid.IntRange(0, len(es)-1).Draw(t, "entry")]
			got, err := tr.Lookup(context.Background(), e.Path)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "lookup", []*archive.Entry{got}, []*archive.Entry{e})
			if _, err := tr.Lookup(context.Background(), e.Path+"?"); !errors.Is(err, ErrNotFound) {
				t.Fatalf("lookup of what is not there: %v", err)
			}
			same(t, "prefix", walked(t, s, r, Span{Prefix: e.Path}), filter(es, func(x string) bool { return x == e.Path || strings.HasPrefix(x, e.Path+"/") }))
			same(t, "after", walked(t, s, r, Span{After: e.Path}), filter(es, func(x string) bool { return archive.ComparePaths(x, e.Path) > 0 }))
			dir := filepath.Dir(e.Path)
			if dir == "." {
				dir = ""
			}
			var list []*archive.Entry
			if err := tr.List(context.Background(), dir, func(e *archive.Entry) error { list = append(list, e); return nil }); err != nil {
				t.Fatal(err)
			}
			same(t, "list", list, filter(es, func(x string) bool { return inside(x, dir) }))
		}
	})
}

// inside reports whether path is directly in dir.
func inside(path, dir string) bool {
	rest, ok := path, true
	if dir != "" {
		rest, ok = strings.CutPrefix(path, dir+"/")
	}
	return ok && !strings.Contains(rest, "/")
}

func filter(es []*archive.Entry, keep func(string) bool) (out []*archive.Entry) {
	for _, e := range es {
		if keep(e.Path) {
			out = append(out, e)
		}
	}
	return out
}

func TestListNamesDirectoriesWithoutEntry(t *testing.T) {
	s := newStore()
	r := build(t, s, []*archive.Entry{
		{Path: "a", Type: archive.TypeFile}, {Path: "srv/photos/x", Type: archive.TypeFile}, {Path: "srv/photos/y", Type: archive.TypeFile}, {Path: "z", Type: archive.TypeFile}})
	for dir, want := range map[string][]string{"": {"a", "srv", "z"}, "srv": {"srv/photos"}, "srv/photos": {"srv/photos/x", "srv/photos/y"}, "a": nil, "b": nil} {
		var got []string
		if err := Open(r, s.get).List(t.Context(), dir, func(e *archive.Entry) error { got = append(got, e.Path); return nil }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("list of %q: %q, want %q", dir, got, want)
		}
	}
}

func TestListSkipsSubtrees(t *testing.T) {
	s := newStore()
	r := build(t, s, plainFiles(60_000))
	s.gets = 0
	n := 0
	if err := Open(r, s.get).List(t.Context(), "d00500", func(*archive.Entry) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	if n != 100 || s.gets > 6 {
		t.Errorf("listing one of 600 directories found %d entries and read %d of %d nodes", n, s.gets, len(s.blocks))
	}
	es := []*archive.Entry{{Path: "big", Type: archive.TypeDir}}
	for i := range 50_000 {
		es = append(es, smallFile(fmt.Sprintf("big/%06d", i), i))
	}
	es = append(es, &archive.Entry{Path: "last", Type: archive.TypeDir})
	s = newStore()
	r = build(t, s, es)
	s.gets, n = 0, 0
	if err := Open(r, s.get).List(t.Context(), "", func(*archive.Entry) error { n++; return nil }); err != nil {
		t.Fatal(err)
	}
	if n != 2 || s.gets > 6 {
		t.Errorf("listing the top found %d entries and read %d of %d nodes", n, s.gets, len(s.blocks))
	}
}

// TestEqualMapsHaveEqualRoots edits a map at random and compares its tree with that of the map built in
// one go, and, edited back, with the first.
func TestEqualMapsHaveEqualRoots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		es := archivetest.Entries(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(1, 2000).Draw(t, "n"))
		s := newStore()
		first := build(t, s, es)
		if i := rapid.IntRange(0, len(es)-1).Draw(t, "changed"); true {
			changed := slices.Clone(es)
			e := *changed[i]
			e.Mode ^= 1
			changed[i] = &e
			if r := build(t, s, changed); r.Tree == first.Tree {
				t.Fatal("other entries have the same root")
			}
		}
		// What a walk returns is the map again, whatever memory and nodes it came through.
		if again := build(t, s, walked(t, s, first, Span{})); !reflect.DeepEqual(again, first) {
			t.Fatalf("root %+v, built again %+v", first, again)
		}
	})
}

// TestSmallChangeRewritesFewNodes makes changes of every sort to a large map: each rewrites the nodes on
// its path and perhaps a neighbour, wherever it happens.
func TestSmallChangeRewritesFewNodes(t *testing.T) {
	es := plainFiles(30_000)
	s := newStore()
	first := build(t, s, es)
	nodes := len(s.blocks)
	if nodes < 20 {
		t.Fatalf("only %d nodes", nodes)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	worst, sum, changes := 0, 0, 0
	for i := range 24 {
		at := rng.IntN(len(es))
		for es[at].Type == archive.TypeDir {
			at = rng.IntN(len(es))
		}
		after := slices.Clone(es)
		switch e := *es[at]; i % 4 {
		case 0: // other times and place
			e.Mtime.Sec += 1e6
			e.Extents = []archive.Extent{{Kind: holdfast.KindPack, Name: archivetest.Name("new", i), Len: 1000}}
			after[at] = &e
		case 1: // gone
			after = slices.Delete(after, at, at+1)
		case 2: // a new neighbour
			e.Path += "~"
			after = slices.Insert(after, at+1, &e)
		case 3: // grown to many chunks
			e.Content = [16]byte{}
			e.Extents, e.Size = archivetest.Chunks("grown", 100)
			after[at] = &e
		}
		had := len(s.blocks)
		if r := build(t, s, after); r.Tree == first.Tree {
			t.Fatal("nothing changed")
		}
		fresh := len(s.blocks) - had
		worst, sum, changes = max(worst, fresh), sum+fresh, changes+1
	}
	t.Logf("%d nodes; a change rewrites %.1f on average, %d at worst", nodes, float64(sum)/float64(changes), worst)
	if worst > 3+first.Height || float64(sum)/float64(changes) > 1.3*float64(first.Height) {
		t.Errorf("a change rewrites %.1f nodes on average, %d at worst, of %d in %d levels", float64(sum)/float64(changes), worst, nodes, first.Height)
	}
}

// TestInsertInFrontOfLargeFile puts a chunk before 40,000 others: all but a few of their nodes stay.
func TestInsertInFrontOfLargeFile(t *testing.T) {
	xs, size := archivetest.Chunks("big", 40_000)
	s := newStore()
	build(t, s, []*archive.Entry{{Path: "big", Type: archive.TypeFile, Size: size, Extents: xs}})
	had := len(s.blocks)
	xs = slices.Insert(slices.Clone(xs), 0, archive.Extent{Kind: holdfast.KindChunk, Name: holdfast.Name{7}, Len: 1})
	e := &archive.Entry{Path: "big", Type: archive.TypeFile, Size: size + 1, Extents: xs}
	r := build(t, s, []*archive.Entry{e})
	if fresh := len(s.blocks) - had; had < 15 || fresh > 4 {
		t.Errorf("%d of %d nodes are new", fresh, had)
	}
	same(t, "walk", walked(t, s, r, Span{}), []*archive.Entry{e})
}

// TestOneExtentRepeated stores a file of equal chunks: continued items, whole nodes even, are equal then.
func TestOneExtentRepeated(t *testing.T) {
	e := &archive.Entry{Path: "zeros", Type: archive.TypeFile, Extents: slices.Repeat([]archive.Extent{{Kind: holdfast.KindChunk, Name: holdfast.Name{7}, Len: 1 << 20}}, 150_000)}
	e.Size = 150_000 << 20
	next := &archive.Entry{Path: "zeros1", Type: archive.TypeFile}
	s := newStore()
	r := build(t, s, []*archive.Entry{e, next})
	if len(s.blocks) > 20 {
		t.Errorf("%d different nodes", len(s.blocks))
	}
	same(t, "walk", walked(t, s, r, Span{}), []*archive.Entry{e, next})
	same(t, "after", walked(t, s, r, Span{After: "zeros"}), []*archive.Entry{next})
	got, err := Open(r, s.get).Lookup(t.Context(), "zeros")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "lookup", []*archive.Entry{got}, []*archive.Entry{e})
}

func TestNodeSizes(t *testing.T) {
	es := plainFiles(50_000)
	for i := range 30 { // entries larger than a node
		e := &archive.Entry{Path: fmt.Sprintf("x%d", i), Type: archive.TypeDir}
		for j := range 8 {
			e.Xattrs = append(e.Xattrs, archive.Xattr{Name: fmt.Sprintf("user.%d", j), Value: bytes.Repeat([]byte{byte(i)}, 60_000)})
		}
		es = append(es, e)
	}
	long := strings.Repeat("y", archive.MaxPath-3)
	for i := range 100 { // and the longest keys
		es = append(es, &archive.Entry{Path: fmt.Sprintf("y%s%02d", long, i), Type: archive.TypeDir})
		es = append(es, &archive.Entry{Path: fmt.Sprintf("z%02d%s", i, long), Type: archive.TypeDir})
	}
	slices.SortFunc(es, func(a, b *archive.Entry) int { return archive.ComparePaths(a.Path, b.Path) })
	s := newStore()
	r := build(t, s, es)
	if r.Height < 4 {
		t.Errorf("the longest keys make %d levels only", r.Height)
	}
	same(t, "walk", walked(t, s, r, Span{}), es)
	leaves, sum := 0, 0
	for _, p := range s.blocks {
		n, err := parseNode(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(p) > maxNode && len(n.items) > 1 || len(p) > holdfast.MaxPlain {
			t.Errorf("node of %d bytes with %d items", len(p), len(n.items))
		}
		if n.level == 0 && len(n.items) > 10 {
			leaves++
			sum += len(p)
		}
	}
	if mean := sum / leaves; mean < 40<<10 || mean > 90<<10 {
		t.Errorf("leaves are %d bytes long on average", mean)
	}
}

func TestBuilderRefuses(t *testing.T) {
	dir := func(p string) *archive.Entry { return &archive.Entry{Path: p, Type: archive.TypeDir} }
	for name, es := range map[string][]*archive.Entry{
		"out of order": {dir("b"), dir("a")},
		"twice":        {dir("b"), dir("b")},
		"below a file": {{Path: "b", Type: archive.TypeFile}, dir("b/c")},
		"no path":      {dir("")},
	} {
		b := NewBuilder(&cuts, newStore().put)
		var err error
		for _, e := range es {
			err = b.Add(t.Context(), e)
		}
		if !errors.Is(err, archive.ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := errors.New("no")
	b := NewBuilder(&cuts, func(context.Context, holdfast.Kind, []byte, []holdfast.Name) (holdfast.Name, error) {
		return holdfast.Name{}, bad
	})
	b.Add(t.Context(), dir("a"))
	if _, _, err := b.Finish(t.Context()); !errors.Is(err, bad) {
		t.Errorf("a put that fails: %v", err)
	}
}

// TestWalkEndsWithItsCallback stops a walk in the middle; run with -race, it also shows that no fetch
// outlives it.
func TestWalkEndsWithItsCallback(t *testing.T) {
	s := newStore()
	r := build(t, s, plainFiles(50_000))
	stop := errors.New("stop")
	running := 0
	var mu sync.Mutex
	get := func(ctx context.Context, names []holdfast.Name) ([][]byte, error) {
		mu.Lock()
		running++
		mu.Unlock()
		defer func() { mu.Lock(); running--; mu.Unlock() }()
		return s.get(ctx, names)
	}
	n := 0
	err := Open(r, get).Walk(t.Context(), Span{}, func(*archive.Entry) error {
		if n++; n == 5000 {
			return stop
		}
		return nil
	})
	mu.Lock()
	defer mu.Unlock()
	if err != stop || n != 5000 || running != 0 {
		t.Errorf("walk: %v after %d entries, %d fetches running", err, n, running)
	}
	failing := func(ctx context.Context, names []holdfast.Name) ([][]byte, error) {
		if len(names) > 1 {
			return nil, stop
		}
		return s.get(ctx, names)
	}
	if err := Open(r, failing).Walk(t.Context(), Span{}, func(*archive.Entry) error { return nil }); !errors.Is(err, stop) {
		t.Errorf("a get that fails: %v", err)
	}
}

// vectorEntries are a tree of two levels.
func vectorEntries() []*archive.Entry {
	es := archivetest.Entries(7, 500)
	for i := range 1500 { // long names, not shared, make several leaves
		es = append(es, &archive.Entry{Path: fmt.Sprintf("%x-%0200d", sha256.Sum256(fmt.Append(nil, i)), i), Type: archive.TypeDir})
	}
	xs, size := archivetest.Chunks("big", 3000)
	es = append(es, &archive.Entry{Path: "\x01big", Type: archive.TypeFile, Size: size, Extents: xs})
	slices.SortFunc(es, func(a, b *archive.Entry) int { return archive.ComparePaths(a.Path, b.Path) })
	return es
}

// TestVectors compares the whole shape of a tree with what is fixed for ever: SHA-256 of each node, in the
// order in which they are put, and one small leaf and inner node in full.
func TestVectors(t *testing.T) {
	type vector struct {
		Key     string // K_tree, hex
		Root    string // SHA-256 of the root's plaintext
		Height  int
		Entries uint64
		Bytes   uint64
		Nodes   []string // SHA-256 of each node's plaintext; blocks are named so in this test
		Leaf    string   // a leaf of three entries, hex
	}
	s := newStore()
	v := vector{Key: fmt.Sprintf("%x", [32]byte(cuts.Tree))}
	b := NewBuilder(&cuts, func(ctx context.Context, k holdfast.Kind, p []byte, l []holdfast.Name) (holdfast.Name, error) {
		n, err := s.put(ctx, k, p, l)
		v.Nodes = append(v.Nodes, n.String())
		return n, err
	})
	for _, e := range vectorEntries() {
		if err := b.Add(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	root, height, err := b.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v.Root, v.Height, v.Entries, v.Bytes = root.String(), height, b.Entries(), b.Bytes()
	small := build(t, s, plainFiles(2))
	v.Leaf = fmt.Sprintf("%x", s.blocks[small.Tree])

	path := filepath.Join("testdata", "tree.json")
	if *remake {
		j, _ := json.MarshalIndent(v, "", "\t")
		if err := os.WriteFile(path, append(j, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var want vector
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(v, want) {
		t.Errorf("the tree changed: %+v, want %+v", v, want)
	}
}

// encode is the inverse of parseNode.
func (n *node) encode() []byte {
	var p archive.Page
	for _, it := range n.items {
		base, cont := archive.SplitKey(it.key)
		if cont {
			p.Extents(base, it.extents)
		} else {
			p.Entry(base, it.entry, it.entry.Extents)
		}
	}
	for _, c := range n.children {
		it := item{key: c.key, child: &c}
		it.child.entries, it.child.bytes = c.entries, c.bytes
		it.write(&p)
	}
	plain, _ := p.Encode([]byte{version, byte(n.level)})
	return plain
}

// TestDamage flips every bit of a leaf and an inner node: an error, or the one encoding of another node
// (nodes are authentic only inside their sealed blocks).
func TestDamage(t *testing.T) {
	s := newStore()
	leaf := s.blocks[build(t, s, archivetest.Entries(3, 20)).Tree]
	es := plainFiles(5000)
	inner := s.blocks[build(t, s, es).Tree]
	for name, plain := range map[string][]byte{"leaf": leaf, "inner": inner} {
		if len(plain) == 0 || len(plain) > 20_000 {
			t.Fatalf("%s has %d bytes", name, len(plain))
		}
		for i := range 8 * len(plain) {
			p := bytes.Clone(plain)
			p[i/8] ^= 1 << (i % 8)
			n, err := parseNode(p)
			if err == nil && !bytes.Equal(n.encode(), p) {
				t.Errorf("%s, bit %d: decodes, but encodes again to other bytes", name, i)
			}
			if err != nil && !errors.Is(err, archive.ErrDamaged) {
				t.Errorf("%s, bit %d: %v", name, i, err)
			}
		}
		for i := range plain {
			if _, err := parseNode(plain[:i]); err == nil {
				t.Errorf("%s cut after %d bytes: no error", name, i)
			}
		}
	}
}

func FuzzNode(f *testing.F) {
	s := newStore()
	f.Add(s.blocks[build(f, s, archivetest.Entries(3, 20)).Tree])
	f.Add(s.blocks[build(f, s, plainFiles(5000)).Tree])
	f.Fuzz(func(t *testing.T, p []byte) {
		if n, err := parseNode(p); err == nil && !bytes.Equal(n.encode(), p) {
			t.Error("decodes, but encodes again to other bytes")
		}
	})
}

// TestHostileTrees walks trees that no builder makes, whose nodes are each well-formed.
func TestHostileTrees(t *testing.T) {
	dirs := func(paths ...string) (n *node) {
		n = &node{}
		for _, p := range paths {
			n.items = append(n.items, leafItem{key: archive.AppendKey(nil, p), entry: &archive.Entry{Path: p, Type: archive.TypeDir}})
		}
		return n
	}
	more := func(path string, xs ...archive.Extent) *node {
		return &node{items: []leafItem{{key: archive.ContinuedKey(archive.AppendKey(nil, path)), extents: xs}}}
	}
	first := func(n *node) []byte {
		if n.level > 0 {
			return n.children[0].key
		}
		return n.items[0].key
	}
	s := newStore()
	put := func(n *node) holdfast.Name {
		name, err := s.put(t.Context(), holdfast.KindTree, n.encode(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	over := func(level int, kids ...*node) *node {
		n := &node{level: level}
		for _, k := range kids {
			c := child{key: first(k), name: put(k), entries: uint64(len(k.items))}
			for _, it := range k.items {
				if it.entry == nil {
					c.entries--
				} else {
					c.bytes += it.entry.Stored()
				}
			}
			for _, g := range k.children {
				c.entries += g.entries
				c.bytes += g.bytes
			}
			n.children = append(n.children, c)
		}
		return n
	}
	edit := func(n *node, f func(*child)) *node { f(&n.children[len(n.children)-1]); return n }
	huge := &node{items: []leafItem{{key: []byte("f"), entry: &archive.Entry{Path: "f", Type: archive.TypeFile, Size: 1 << 18}}}}
	// Fourteen levels, each of many times the same child, which holds continued extents: 400^14 leaves.
	bomb := more("f", slices.Repeat([]archive.Extent{{Len: 1}}, archive.MaxItemExtents)...)
	for lv := 1; lv < archive.MaxHeight-1; lv++ {
		n := over(lv, bomb)
		n.children = slices.Repeat(n.children, 400)
		bomb = n
	}
	fileUp := over(1, huge)
	for lv := 2; lv < archive.MaxHeight-1; lv++ {
		fileUp = over(lv, fileUp)
	}
	good := over(1, dirs("a", "b"), dirs("c", "d"))
	for name, c := range map[string]struct {
		root *node
		ok   bool
		set  func(*archive.Root)
	}{
		"a good one":        {root: good, ok: true},
		"other entries":     {root: good, set: func(r *archive.Root) { r.Entries++ }},
		"other bytes":       {root: good, set: func(r *archive.Root) { r.Bytes++ }},
		"too low":           {root: good, set: func(r *archive.Root) { r.Height-- }},
		"too high":          {root: good, set: func(r *archive.Root) { r.Height++ }},
		"far too high":      {root: good, set: func(r *archive.Root) { r.Height = archive.MaxHeight + 1 }},
		"one child":         {root: over(1, dirs("a"))},
		"overlapping":       {root: over(1, dirs("a", "c"), dirs("b", "d"))},
		"last in the next":  {root: over(1, dirs("a", "c"), dirs("c", "d"))},
		"count of a child":  {root: edit(over(1, dirs("a"), dirs("b")), func(c *child) { c.entries++ })},
		"bytes of a child":  {root: edit(over(1, dirs("a"), dirs("b")), func(c *child) { c.bytes++ })},
		"key of a child":    {root: edit(over(1, dirs("a"), dirs("b")), func(c *child) { c.key = []byte("aa") })},
		"missing child":     {root: edit(over(1, dirs("a"), dirs("b")), func(c *child) { c.name = holdfast.Name{1} })},
		"level of a child":  {root: over(2, dirs("a"), dirs("b"))},
		"below a file":      {root: over(1, &node{items: []leafItem{{key: []byte("a"), entry: &archive.Entry{Path: "a", Type: archive.TypeFile}}}}, dirs("a/b"))},
		"orphaned extents":  {root: over(1, dirs("a"), more("a", archive.Extent{Len: 1}))},
		"extents at first":  {root: over(1, more("a", archive.Extent{Len: 1}), dirs("b"))},
		"incomplete file":   {root: over(1, huge, dirs("g"))},
		"a bomb of extents": {root: over(archive.MaxHeight-1, fileUp, bomb)},
	} {
		t.Run(name, func(t *testing.T) {
			r := &archive.Root{Tree: put(c.root), Height: c.root.level + 1}
			for _, k := range c.root.children {
				r.Entries += k.entries
				r.Bytes += k.bytes
			}
			if c.set != nil {
				c.set(r)
			}
			err := Open(r, s.get).Walk(t.Context(), Span{}, func(*archive.Entry) error { return nil })
			if c.ok != (err == nil) || err != nil && !errors.Is(err, archive.ErrDamaged) {
				t.Errorf("walk: %v", err)
			}
			// Nor does it say nothing, or go on for ever, where it may pass over what is wrong.
			told := 0
			err = Open(r, s.get).Walk(t.Context(), Span{Lost: func(Lost) error { told++; return nil }}, func(*archive.Entry) error { return nil })
			if c.ok != (err == nil && told == 0) || told > 10 {
				t.Errorf("walk past what is lost: %v, told %d times", err, told)
			}
		})
	}
}

func BenchmarkBuild(b *testing.B) {
	es := plainFiles(100_000)
	b.ReportAllocs()
	for b.Loop() {
		build(b, newStore(), es)
	}
}

func BenchmarkWalk(b *testing.B) {
	s := newStore()
	r := build(b, s, plainFiles(100_000))
	b.ReportAllocs()
	for b.Loop() {
		if err := Open(r, s.get).Walk(b.Context(), Span{}, func(*archive.Entry) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
