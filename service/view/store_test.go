package view

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/segment"
)

func readEntry(t *testing.T, raw []byte) (history.Entry, int) {
	t.Helper()
	r := enc.NewReader(raw)
	e := history.ReadEntry(r)
	if r.Err() != nil {
		t.Fatal(r.Err())
	}
	return e, r.Offset()
}

func put(t *testing.T, s *Store, kv ...string) {
	t.Helper()
	l := NewLayer(s)
	for i := 0; i < len(kv); i += 2 {
		if err := l.Put([]byte(kv[i]), []byte(kv[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(l); err != nil {
		t.Fatal(err)
	}
}

func digest(t *testing.T, s *Store) [32]byte {
	t.Helper()
	d, _, err := s.Digest(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDigestDependsOnRowsAndNothingElse(t *testing.T) {
	mem := func(kv ...string) *Store {
		s, err := OpenMem()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		put(t, s, kv...)
		return s
	}
	a := mem("aa", "1", "ab", "2")
	b := mem("ab", "9")
	put(t, b, "ab", "2")
	put(t, b, "aa", "1")
	if digest(t, a) != digest(t, b) {
		t.Fatal("the order of writing shows")
	}
	put(t, b, "\x00n1", "local")
	if digest(t, a) != digest(t, b) {
		t.Fatal("a local row shows")
	}
	for _, kv := range [][]string{{"aa", "1"}, {"aa", "1a", "b", "2"}, {"aa", "1", "ab", "3"}, {"aa", "1", "ac", "2"}} {
		if digest(t, mem(kv...)) == digest(t, a) {
			t.Errorf("%q has the digest of other rows", kv)
		}
	}
}

func TestOverlayHidesWhatIsNotAcknowledged(t *testing.T) {
	s, err := OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put(t, s, "a", "0", "b", "0")
	o := NewOverlay(s)
	get := func(g Getter, k, want string) {
		t.Helper()
		v, err := g.Get([]byte(k))
		if err != nil || string(v) != want {
			t.Fatalf("%s is %q, %v; want %q", k, v, err, want)
		}
	}
	one, two := NewLayer(nil), NewLayer(nil)
	tx := NewLayer(o)
	tx.Put([]byte("a"), []byte("1"))
	tx.Put([]byte("c"), []byte("1"))
	get(tx, "a", "1")
	get(o, "a", "0")
	o.Add(tx, one)
	tx = NewLayer(o)
	tx.Put([]byte("a"), []byte("2"))
	tx.Delete([]byte("b"))
	get(tx, "b", "")
	o.Add(tx, two)
	get(o, "a", "2")
	get(o, "b", "")
	get(s, "a", "0")
	if err := s.Commit(one); err != nil {
		t.Fatal(err)
	}
	o.Drop(one)
	get(s, "a", "1")
	get(s, "c", "1")
	get(o, "a", "2")
	get(o, "b", "")
	if err := s.Commit(two); err != nil {
		t.Fatal(err)
	}
	o.Drop(two)
	get(s, "a", "2")
	get(s, "b", "")
	if len(o.rows) != 0 {
		t.Fatal("the overlay keeps what is in the store")
	}
}

// After a power cut the store holds exactly the rows of some earlier Commit, however much of what was not
// synced reached the disk.
func TestCrashedStoreIsAPrefix(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s, err := open(fs, "view")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const commits = 160
	var at [commits + 1][32]byte // digest after each commit
	at[0] = digest(t, s)
	rnd := rand.New(rand.NewPCG(1, 2))
	type clone struct {
		fs    *vfs.MemFS
		after int
	}
	var clones []clone
	for i := 1; i <= commits; i++ {
		l := NewLayer(s)
		m := meta{cell: holdfast.CellID{1}, pos: segment.Position{Epoch: 1, Seq: uint64(i)}, hash: [32]byte{byte(i), byte(i >> 8)}}
		if err := m.put(l); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			l.Put(fmt.Appendf(nil, "b%d", rnd.IntN(200)), make([]byte, 6000))
			l.Put(fmt.Appendf(nil, "b%d", rnd.IntN(500)), fmt.Appendf(nil, "%d", i))
		}
		if err := s.Commit(l); err != nil {
			t.Fatal(err)
		}
		at[i] = digest(t, s)
		if i%31 == 0 {
			for _, percent := range []int{0, 30, 70, 100} {
				clones = append(clones, clone{fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rnd}), i})
			}
		}
	}
	lost, refused := 0, 0
	for _, c := range clones {
		s, err := open(c.fs, "view")
		if errors.Is(err, ErrDamaged) {
			refused++ // it will be made anew
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, pos, _, err := s.Position()
		if err != nil {
			t.Fatal(err)
		}
		if int(pos.Seq) > c.after || digest(t, s) != at[pos.Seq] {
			t.Fatalf("crash after commit %d: the rows are not those of commit %d", c.after, pos.Seq)
		}
		if int(pos.Seq) < c.after {
			lost++
		}
		s.Close()
	}
	t.Logf("%d crashes: %d lost commits, %d were refused", len(clones), lost, refused)
	if lost == 0 {
		t.Error("no crash lost anything: the test does not test")
	}
}

func TestDamagedStoreIsSaidToBeDamaged(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "view")
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "bx", "1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get([]byte("bx")); !errors.Is(err, ErrClosed) {
		t.Fatalf("get after close: %v", err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "MANIFEST-*"))
	for _, f := range files {
		if err := os.Truncate(f, 3); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(dir); !errors.Is(err, ErrDamaged) {
		t.Fatalf("open a damaged view: %v", err)
	}
	// What the operating system refuses is no damage, and must not have the view removed.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(file, "view")); err == nil || errors.Is(err, ErrDamaged) {
		t.Fatalf("open below a file: %v", err)
	}
}
