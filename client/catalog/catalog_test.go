package catalog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/archive/archivetest"
	"holdfast/client/keyring"
	"holdfast/internal/part"
)

// remake rewrites the vectors; it is for the day a format gets a new version, never to make a test pass.
var remake = flag.Bool("make-vectors", false, "write testdata anew")

var (
	key   = holdfast.Key{1, 2, 3}
	bound = Binding{Vault: holdfast.VaultID{1}, Signer: holdfast.SignerID{2}, Series: holdfast.SeriesID{3}, Archive: holdfast.RecordID{4}}
)

// items returns about n items of a tree.
func items(seed uint64, n int) (its []*Item) {
	for i, e := range archivetest.Entries(seed, n) {
		its = append(its, &Item{Entry: *e, Stat: stat(i)})
	}
	return its
}

func stat(i int) Stat {
	return Stat{Size: uint64(i) * 7, Mtime: archive.Time{Sec: int64(i) - 5, Nsec: 999_999_999}, Ctime: archive.Time{Sec: 1 << 33}, Inode: 1<<63 + uint64(i), Device: 2049}
}

// totals says of every pack of its that it is 4 MiB long.
func totals(its []*Item) map[holdfast.Name]uint64 {
	m := map[holdfast.Name]uint64{}
	for _, it := range its {
		for _, x := range it.Entry.Extents {
			if x.Kind == holdfast.KindPack {
				m[x.Name] = 4 << 20
			}
		}
	}
	return m
}

// failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func write(t failer, path string, key holdfast.Key, b Binding, its []*Item) {
	t.Helper()
	w, err := Create(path, key)
	if err != nil {
		t.Fatal(err)
	}
	add(t, w, its)
	if err := w.Finish(b, totals(its)); err != nil {
		t.Fatal(err)
	}
}

func add(t failer, w *Writer, its []*Item) {
	t.Helper()
	for _, it := range its {
		if err := w.Add(it); err != nil {
			t.Fatal(err)
		}
	}
}

// readAll returns the items up to an error, which is nil for the end.
func readAll(r *Reader) (its []*Item, err error) {
	defer r.Close()
	for {
		it, err := r.Next()
		if err == io.EOF {
			return its, nil
		}
		if err != nil {
			return its, err
		}
		its = append(its, &it)
	}
}

func read(path string, key holdfast.Key, want Binding) ([]*Item, error) {
	r, err := Open(path, key, want)
	if err != nil {
		return nil, err
	}
	return readAll(r)
}

func same(t failer, got, want []*Item) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d items became %d", len(want), len(got))
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("item %+v became %+v", want[i], got[i])
		}
	}
}

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		its := items(rapid.Uint64().Draw(t, "seed"), rapid.IntRange(0, 500).Draw(t, "n"))
		path := filepath.Join(dir, "c")
		write(t, path, key, bound, its)
		r, err := Open(path, key, bound)
		if err != nil {
			t.Fatal(err)
		}
		live := map[holdfast.Name]uint64{}
		for _, it := range its {
			for _, x := range it.Entry.Extents {
				if x.Kind == holdfast.KindPack {
					live[x.Name] += x.Len
				}
			}
		}
		if r.Items() != uint64(len(its)) || len(r.Packs()) != len(live) {
			t.Fatalf("%d items, %d packs", r.Items(), len(r.Packs()))
		}
		for n, p := range r.Packs() {
			if p.Total != 4<<20 || p.Live != min(p.Total, live[n]) {
				t.Fatalf("pack %v, want %d live", p, live[n])
			}
		}
		got, err := readAll(r)
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, its)
	})
}

// TestManyPacks has a pack table of several sections, just full and one over.
func TestManyPacks(t *testing.T) {
	for _, n := range []int{packsAPart, packsAPart + 1, 3*packsAPart + 5} {
		var its []*Item
		for i := range n {
			its = append(its, &Item{Entry: archive.Entry{Path: fmt.Sprintf("%06d", i), Type: archive.TypeFile, Size: 1, Content: [16]byte{1},
				Extents: []archive.Extent{{Kind: holdfast.KindPack, Name: archivetest.Name(i), Len: 1}}}})
		}
		path := filepath.Join(t.TempDir(), "c")
		write(t, path, key, bound, its)
		r, err := Open(path, key, bound)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Packs()) != n {
			t.Errorf("%d packs became %d", n, len(r.Packs()))
		}
		if got, err := readAll(r); err != nil || len(got) != n {
			t.Errorf("%d items, %v", len(got), err)
		}
	}
}

func TestOldCatalogStaysUntilFinish(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	old, fresh := items(1, 50), items(2, 60)
	write(t, path, key, bound, old)
	check := func(what string, b Binding, want []*Item) {
		t.Helper()
		got, err := read(path, key, b)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		same(t, got, want)
	}
	w, err := Create(path, key)
	if err != nil {
		t.Fatal(err)
	}
	add(t, w, fresh)
	check("while the new one is written", bound, old)
	w.Abort()
	check("after Abort", bound, old)

	if w, err = Create(path, key); err != nil { // killed
		t.Fatal(err)
	}
	add(t, w, fresh[:5])
	next := bound
	next.Archive = holdfast.RecordID{5}
	write(t, path, key, next, fresh)
	check("after a run that was killed", next, fresh)
	if err := w.Finish(bound, totals(fresh)); err == nil {
		t.Error("a run whose file was taken by another finished")
	}
	check("after the slower of two runs", next, fresh)
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}
	if st, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && st.Mode() != 0o600 {
		t.Errorf("the catalog's mode is %v, %v", st.Mode(), err)
	}
}

func TestWriterRefuses(t *testing.T) {
	its := items(1, 50)
	w, err := Create(filepath.Join(t.TempDir(), "c"), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(its[1]); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(its[0]); err == nil {
		t.Error("items out of order were taken")
	}
	if err := w.Finish(bound, totals(its)); err == nil {
		t.Error("a spoilt catalog was finished")
	}
	if w, err = Create(filepath.Join(t.TempDir(), "c"), key); err != nil {
		t.Fatal(err)
	}
	add(t, w, its)
	if err := w.Finish(bound, nil); err == nil {
		t.Error("packs of unknown size were taken")
	}
}

// TestScenarioC4 gives the reader every catalog that is not the one it asked for: each is refused or ends
// in an error, what came before the error is true, and so nothing untrue reaches an archive.
func TestScenarioC4(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c")
	its := items(4, 1500)
	write(t, path, key, bound, its)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(t *testing.T, what string, file []byte, k holdfast.Key, want Binding) (before int) {
		t.Helper()
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := read(path, k, want)
		if !errors.Is(err, ErrUnusable) {
			t.Fatalf("%s: %d items, %v", what, len(got), err)
		}
		same(t, got, its[:len(got)])
		return len(got)
	}
	sections := split(whole)
	if len(sections) < 5 {
		t.Fatalf("only %d sections", len(sections))
	}

	t.Run("absent", func(t *testing.T) {
		if _, err := Open(path+"-absent", key, bound); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	t.Run("corrupted", func(t *testing.T) {
		for i := 0; i < len(whole); i += 1 + i/30 {
			p := bytes.Clone(whole)
			p[i] ^= 1 << (i % 8)
			refused(t, fmt.Sprintf("byte %d", i), p, key, bound)
		}
	})
	t.Run("truncated", func(t *testing.T) {
		for i := 0; i < len(whole); i += 1 + i/20 {
			refused(t, fmt.Sprintf("cut after %d bytes", i), whole[:i], key, bound)
		}
		for i := 1; i < len(sections); i++ {
			refused(t, fmt.Sprintf("without section %d", i), bytes.Join(slices.Delete(slices.Clone(sections), i, i+1), nil), key, bound)
		}
		refused(t, "with more", append(bytes.Clone(whole), 0), key, bound)
	})
	t.Run("reordered", func(t *testing.T) {
		s := slices.Clone(sections)
		s[2], s[3] = s[3], s[2]
		if n := refused(t, "two sections swapped", bytes.Join(s, nil), key, bound); n == 0 || n > len(its)/2 {
			t.Errorf("%d items came before the swapped sections", n)
		}
		s[3] = s[2]
		refused(t, "a section twice", bytes.Join(s, nil), key, bound)
	})
	t.Run("from another machine", func(t *testing.T) {
		refused(t, "another key", whole, holdfast.Key{9}, bound)
		b := bound
		b.Signer[0]++
		refused(t, "another signer", whole, key, b)
	})
	t.Run("from another vault or series", func(t *testing.T) {
		b := bound
		b.Vault[0]++
		refused(t, "another vault", whole, key, b)
		b = bound
		b.Series[0]++
		refused(t, "another series", whole, key, b)
	})
	t.Run("replayed", func(t *testing.T) {
		now := bound
		now.Archive = holdfast.RecordID{5}
		refused(t, "an older catalog", whole, key, now)
		// A section of an older catalog of the same archive and length, under the same key.
		write(t, path, key, bound, its)
		again, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s := split(again)
		if !bytes.Equal(s[2][4:len(s[2])-macSize], sections[2][4:len(sections[2])-macSize]) {
			t.Fatal("the two catalogs differ in their payloads")
		}
		s[2] = sections[2]
		refused(t, "a section of an older catalog", bytes.Join(s, nil), key, bound)
	})
	t.Run("from the future", func(t *testing.T) {
		p := bytes.Clone(whole)
		binary.BigEndian.PutUint16(p[len(magic):], version+1)
		k := newMACs(key, [saltSize]byte(p[len(magic)+2:]))
		copy(p[headerSize-macSize:], k.header(p[:headerSize-macSize]))
		refused(t, "a later version, authentic", p, key, bound)
	})
	t.Run("never finished", func(t *testing.T) {
		p := bytes.Clone(whole)
		clear(p[:headerSize])
		refused(t, "no header", p, key, bound)
	})
	t.Run("not a file", func(t *testing.T) {
		if _, err := Open(dir, key, bound); !errors.Is(err, ErrUnusable) {
			t.Error(err)
		}
	})
}

// split cuts a catalog into its header and sections.
func split(file []byte) (parts [][]byte) {
	parts = append(parts, file[:headerSize])
	for file = file[headerSize:]; len(file) > 0; {
		n := 4 + int(binary.BigEndian.Uint32(file)) + macSize
		parts = append(parts, file[:n])
		file = file[n:]
	}
	return parts
}

func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	its := items(3, 12)
	write(t, path, key, bound, its)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 8 * len(whole) {
		p := bytes.Clone(whole)
		p[i/8] ^= 1 << (i % 8)
		r, err := open(reader{bytes.NewReader(p)}, uint64(len(p)), key, bound)
		if err == nil {
			var got []*Item
			got, err = readAll(r)
			same(t, got, its[:len(got)])
		}
		if !errors.Is(err, ErrUnusable) {
			t.Errorf("bit %d: %v", i, err)
		}
	}
}

// reader is a catalog in memory.
type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }

func TestVector(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c")
	w, err := Create(path, key)
	if err != nil {
		t.Fatal(err)
	}
	w.head.salt = [saltSize]byte{1, 2, 3} // random otherwise
	w.macs = newMACs(key, w.head.salt)
	its := items(3, 12)
	add(t, w, its)
	if err := w.Finish(bound, totals(its)); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "catalog.hex")
	if *remake {
		var b strings.Builder
		for part := range slices.Chunk(got, 32) {
			fmt.Fprintf(&b, "%x\n", part)
		}
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the encoding changed: got %x", got)
	}
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	back, err := read(path, key, bound)
	if err != nil {
		t.Fatal(err)
	}
	same(t, back, its)
}

// FuzzSection puts any bytes into authentic sections: whoever holds the key can still not make the reader
// panic, and what it reads can be written again and reads the same.
func FuzzSection(f *testing.F) {
	for i := range uint64(3) {
		var w Writer
		for _, it := range items(i, 8) {
			w.key = archive.AppendKey(w.key[:0], it.Entry.Path)
			w.page.Entry(w.key, &it.Entry, it.Entry.Extents[:min(len(it.Entry.Extents), itemExtents)])
			w.stat(&it.Stat)
		}
		p, _ := w.page.Encode(nil)
		f.Add(p, []byte{})
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, payload, packs []byte) {
		h := header{binding: bound, items: 1, sections: 1, end: uint64(headerSize + 4 + len(payload) + macSize), packs: uint32(len(packs) / packSize)}
		k := newMACs(key, h.salt)
		if len(payload) > 11 {
			h.items = uint64(payload[3])
		}
		file := h.encode(k)
		section := func(kind uint8, number uint64, p []byte) {
			file = binary.BigEndian.AppendUint32(file, uint32(len(p)))
			file = append(file, p...)
			file = append(file, k.section(kind, number, p)...)
		}
		section(typeItems, 0, payload)
		if h.packs > 0 {
			section(typePacks, 1, packs)
		}
		r, err := open(reader{bytes.NewReader(file)}, uint64(len(file)), key, bound)
		if err != nil {
			return
		}
		its, _ := readAll(r)
		path := filepath.Join(dir, "c")
		write(t, path, key, bound, its)
		got, err := read(path, key, bound)
		if err != nil {
			t.Fatal(err)
		}
		same(t, got, its)
	})
}

func TestZeroStatIsLikeNothing(t *testing.T) {
	if (Stat{}).Same(Stat{}) {
		t.Error("an unknown state is the same as another")
	}
	if !stat(1).Same(stat(1)) {
		t.Error("a state is not the same as itself")
	}
	for i, f := range []func(*Stat){
		func(s *Stat) { s.Size++ }, func(s *Stat) { s.Mtime.Nsec-- }, func(s *Stat) { s.Mtime.Sec++ }, func(s *Stat) { s.Ctime.Sec++ },
		func(s *Stat) { s.Ctime.Nsec++ }, func(s *Stat) { s.Inode++ }, func(s *Stat) { s.Device++ },
	} {
		s := stat(1)
		f(&s)
		if s.Same(stat(1)) {
			t.Errorf("change %d does not show", i)
		}
	}
}

func TestKeyIsOfTheMachine(t *testing.T) {
	a, b := &keyring.Machine{Seed: holdfast.Key{1}}, &keyring.Machine{Seed: holdfast.Key{2}}
	if Key(a) == Key(b) {
		t.Error("two machines have one key")
	}
}

// TestMemory writes and reads a catalog of many small files and holds what is in use in between to a
// constant: 40 MB for a million, and far less here.
func TestMemory(t *testing.T) {
	n := 100_000
	if part.Heavy() {
		n = 1_000_000
	}
	base := inUse()
	path := filepath.Join(t.TempDir(), "c")
	w, err := Create(path, key)
	if err != nil {
		t.Fatal(err)
	}
	packs := map[holdfast.Name]uint64{}
	peak := uint64(0)
	watch := func(i int) {
		if i%(n/5) == n/10 {
			peak = max(peak, inUse())
		}
	}
	for i := range n {
		x := archive.Extent{Kind: holdfast.KindPack, Name: archivetest.Name(i / 100), Off: uint32(i % 100 * 5000), Len: 5000}
		packs[x.Name] = 500_000
		it := Item{Stat: stat(i), Entry: archive.Entry{Path: fmt.Sprintf("d%05d/file%07d", i/1000, i), Type: archive.TypeFile, Mode: 0o644, User: "alice", Group: "users",
			Size: 5000, Content: [16]byte{1}, Extents: []archive.Extent{x}}}
		if err := w.Add(&it); err != nil {
			t.Fatal(err)
		}
		watch(i)
	}
	if err := w.Finish(bound, maps.Clone(packs)); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path, key, bound)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := range n {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		watch(i)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatal(err)
	}
	runtime.KeepAlive(packs)
	st, _ := os.Stat(path)
	t.Logf("%d items: %d bytes a file item, %d kB of memory", n, st.Size()/int64(n), (peak-base)/1000)
	if limit := uint64(4e6 + 32*n); peak-base > limit {
		t.Errorf("%d items took %d bytes of memory, more than %d", n, peak-base, limit)
	}
}

// inUse returns the bytes of live memory.
func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
