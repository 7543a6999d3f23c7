package view

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"holdfast"
	"holdfast/internal/ceiling"
	"holdfast/internal/part"
	"holdfast/service/segment"
)

var checkpointAt = meta{cell: holdfast.CellID{7}, pos: segment.Position{Epoch: 3, Seq: 9}, hash: [32]byte{8}, time: 5}

// taken is a checkpoint as it would lie in the bucket.
type taken struct {
	Manifest
	raw [][]byte
}

func take(t testing.TB, s *Store) *taken {
	t.Helper()
	p, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	c := &taken{Manifest: Manifest{Version: Version, Nonce: [8]byte{1}}}
	c.Cell, c.Position, c.Hash = p.Position()
	if c.Digest, err = p.Digest(context.Background()); err != nil {
		t.Fatal(err)
	}
	err = p.Parts(context.Background(), 64<<10, func(raw []byte, rows uint32) error {
		c.raw = append(c.raw, bytes.Clone(raw))
		c.Parts = append(c.Parts, PartOf([8]byte{byte(len(c.raw))}, raw, rows))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *taken) get(_ context.Context, i int) ([]byte, error) { return c.raw[i], nil }

// edit replaces part i and has the manifest name what is there then.
func (c *taken) edit(i int, raw []byte) *taken {
	e := &taken{Manifest: c.Manifest, raw: slices.Clone(c.raw)}
	e.Parts, e.raw[i] = slices.Clone(c.Parts), raw
	e.Parts[i] = PartOf(c.Parts[i].Nonce, raw, c.Parts[i].Rows)
	return e
}

// allRows returns every row of s, local ones included.
func allRows(t testing.TB, s *Store) map[string]string {
	t.Helper()
	it, err := s.db.NewIter(&pebble.IterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	all := map[string]string{}
	for ok := it.First(); ok; ok = it.Next() {
		all[string(it.Key())] = string(it.Value())
	}
	return all
}

func sameRows(t testing.TB, s *Store, want map[string]string) {
	t.Helper()
	got := allRows(t, s)
	if len(got) != len(want) {
		t.Fatalf("%d rows, want %d", len(got), len(want))
	}
	for k, v := range want {
		if w, ok := got[k]; !ok || w != v {
			t.Fatalf("row %.40q is %.40q, want %.40q", k, w, v)
		}
	}
}

// populate fills s with n rows of blocks and some of other sizes, whose bytes depend on seed.
func populate(t testing.TB, s *Store, n int, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	l := NewLayer(s)
	flush := func() {
		if err := s.Commit(l); err != nil {
			t.Fatal(err)
		}
		l.Reset()
	}
	if err := checkpointAt.put(l); err != nil {
		t.Fatal(err)
	}
	put := func(k, v []byte) {
		if err := l.Put(k, v); err != nil {
			t.Fatal(err)
		}
		if l.Size() > 1<<20 {
			flush()
		}
	}
	var b [blockSize]byte
	for i := range n {
		var name holdfast.Name
		for k := 0; k < len(name); k += 8 {
			binary.BigEndian.PutUint64(name[k:], rng.Uint64())
		}
		binary.BigEndian.PutUint64(b[8:], uint64(i/4000))
		copy(b[25:41], name[8:])
		k := blockKey(rowBlock, uint32(i%3), name)
		put(k[:], b[:])
		switch {
		case i%1000 == 0:
			k = blockKey(rowLinks, uint32(i%3), name)
			put(k[:], bytes.Repeat(name[:], 1+rng.IntN(holdfast.MaxLinks/4)))
		case i%100 == 0:
			put(nonceKey(segment.Position{Epoch: 1, Seq: uint64(i)}), name[:8])
		}
	}
	put([]byte{rowVault}, nil) // an empty value
	flush()
}

func memStore(t testing.TB) *Store {
	t.Helper()
	s, err := OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestCheckpointRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 300, 6000} {
		s := memStore(t)
		populate(t, s, n, uint64(n))
		want := allRows(t, s)
		p, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "zz", "committed meanwhile") // is not of the snapshot
		c := take(t, s)
		var d PartDigest
		for i, raw := range c.raw {
			if err := errors.Join(d.Add(raw), c.Parts[i].Check(raw)); err != nil {
				t.Fatal(err)
			}
			if len(raw) > MaxPart {
				t.Fatalf("part %d has %d bytes", i, len(raw))
			}
		}
		if sum, rows := d.Sum(); sum != c.Digest || sum != digest(t, s) || rows != c.Rows() || int(rows) != len(want)+1 {
			t.Fatalf("%d rows: the parts have the digest %x and %d rows, the store %x and %d", n, sum, rows, c.Digest, len(want)+1)
		}
		if n == 6000 && len(c.Parts) < 3*tableParts/2 {
			t.Fatalf("only %d parts: make the test larger", len(c.Parts))
		}
		m, err := ParseManifest(c.Encode())
		if err != nil || !bytes.Equal(m.Encode(), c.Encode()) {
			t.Fatalf("the manifest comes back as %+v, %v", m, err)
		}

		// Into an empty store, and over rows that are replaced.
		for _, before := range []int{0, 500} {
			to := memStore(t)
			if before > 0 {
				populate(t, to, before, 99)
				put(t, to, "zzz", "is to go")
			}
			if err := to.Load(context.Background(), &m, 4, c.get); err != nil {
				t.Fatal(err)
			}
			sameRows(t, to, allRows(t, s))
			if got := digest(t, to); got != c.Digest {
				t.Fatalf("digest %x after loading, want %x", got, c.Digest)
			}
			put(t, to, "zz", "changed", "after", "added")
			if v, err := to.Get([]byte("zz")); err != nil || string(v) != "changed" {
				t.Fatalf("a row that was loaded cannot be changed: %q, %v", v, err)
			}
		}

		// What the snapshot shows is what was there when it was taken.
		var rows int
		err = p.Parts(context.Background(), PartSize, func(raw []byte, _ uint32) error {
			_, _, err := eachRow(raw, nil, func(k, v []byte) error {
				rows++
				if w, ok := want[string(k)]; !ok || w != string(v) {
					return fmt.Errorf("row %.40q was not there", k)
				}
				return nil
			})
			return err
		})
		if err != nil || rows != len(want) {
			t.Fatalf("the snapshot has %d rows, want %d: %v", rows, len(want), err)
		}
		p.Close()
		p.Close()
	}
}

// A store is closed although a snapshot of it is open, which is of no use from then on.
func TestSnapshotOfClosedStore(t *testing.T) {
	s := memStore(t)
	populate(t, s, 100, 1)
	p, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Digest(context.Background()); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := p.Parts(context.Background(), PartSize, func([]byte, uint32) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	p.Close()
	if _, err := s.Snapshot(); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// Nothing of a checkpoint is used that is not whole, in every part, or of another place: the store stays as it was.
func TestBadCheckpoint(t *testing.T) {
	s := memStore(t)
	populate(t, s, 6000, 1)
	good := take(t, s)
	last := len(good.Parts) - 1
	row := func(k, v string) []byte { return appendRow(nil, []byte(k), []byte(v)) }
	whole := func(i int, f func(*taken)) *taken {
		c := good.edit(i, good.raw[i])
		f(c)
		return c
	}
	cases := map[string]*taken{
		"a part cut":            whole(5, func(c *taken) { c.raw[5] = c.raw[5][:len(c.raw[5])-1] }),
		"a part empty":          whole(5, func(c *taken) { c.raw[5] = nil }),
		"a bit flipped":         whole(5, func(c *taken) { c.raw[5] = bytes.Clone(c.raw[5]); c.raw[5][1000] ^= 4 }),
		"another part":          whole(5, func(c *taken) { c.raw[5] = c.raw[6] }),
		"another version":       whole(0, func(c *taken) { c.Version++ }),
		"another cell":          whole(0, func(c *taken) { c.Cell[0]++ }),
		"another position":      whole(0, func(c *taken) { c.Position.Seq++ }),
		"another hash":          whole(0, func(c *taken) { c.Hash[0]++ }),
		"a count that is wrong": whole(5, func(c *taken) { c.Parts[5].Rows++ }),
		"the last part missing": whole(0, func(c *taken) { c.Parts, c.raw = c.Parts[:last], c.raw[:last] }),
		"a part twice": whole(0, func(c *taken) {
			c.Parts, c.raw = slices.Insert(c.Parts, 3, c.Parts[3]), slices.Insert(c.raw, 3, c.raw[3])
		}),
		"a part twice, at a end": whole(0, func(c *taken) {
			c.Parts, c.raw = slices.Insert(c.Parts, 8, c.Parts[7]), slices.Insert(c.raw, 8, c.raw[7])
		}),
		"parts exchanged": whole(0, func(c *taken) {
			c.Parts[3], c.Parts[4], c.raw[3], c.raw[4] = c.Parts[4], c.Parts[3], c.raw[4], c.raw[3]
		}),
		"half a row":           good.edit(5, good.raw[5][:len(good.raw[5])-3]),
		"rows out of order":    good.edit(last, slices.Concat(good.raw[last], row("a", "b"))),
		"a row twice":          good.edit(last, slices.Concat(good.raw[last], row("y", "b"), row("y", "c"))),
		"no place in its rows": good.edit(0, good.raw[0]), // see below
		"not a part":           good.edit(5, append([]byte("HOLDCKP2"), good.raw[5][8:]...)),
		"a key without end":    good.edit(last, slices.Concat(good.raw[last], []byte{0xff, 0xff, 0xff, 0xff}, []byte("key"))),
	}
	cases["rows out of order"].Parts[last].Rows++
	cases["a row twice"].Parts[last].Rows += 2
	gone := cases["no place in its rows"]
	for i, raw := range gone.raw {
		at := bytes.Index(raw, []byte{0, 0, 0, 1, rowMeta, 0, 0, 0})
		if at < 0 {
			continue
		}
		raw = bytes.Clone(raw)
		raw[at+4]++ // it is a row of another name now
		gone.raw[i], gone.Parts[i] = raw, PartOf([8]byte{}, raw, gone.Parts[i].Rows)
	}
	for name, c := range cases {
		to := memStore(t)
		populate(t, to, 50, 2)
		before := allRows(t, to)
		if err := to.Load(context.Background(), &c.Manifest, 4, c.get); !errors.Is(err, ErrCheckpoint) {
			t.Errorf("%s: %v", name, err)
		}
		sameRows(t, to, before)
		if _, err := to.fs.Stat(to.fs.PathJoin(to.dir, incoming)); err == nil {
			t.Errorf("%s: tables are left behind", name)
		}
		if err := to.Load(context.Background(), &good.Manifest, 4, good.get); err != nil {
			t.Errorf("after %s a good one is refused: %v", name, err)
		}
		to.Close()
	}

	// A reader or a line can err where the store does not: a part that is wrong once is read again.
	var reads atomic.Int32
	to := memStore(t)
	err := to.Load(context.Background(), &good.Manifest, 4, func(ctx context.Context, i int) ([]byte, error) {
		if reads.Add(1)%3 == 1 {
			return good.raw[(i+1)%len(good.raw)], nil
		}
		return good.get(ctx, i)
	})
	if err != nil || digest(t, to) != good.Digest {
		t.Fatal(err)
	}
	// The fetcher's own error comes back.
	broken := errors.New("no line")
	err = memStore(t).Load(context.Background(), &good.Manifest, 4, func(context.Context, int) ([]byte, error) { return nil, broken })
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	// So does the end of the context.
	ctx, cancel := context.WithCancel(context.Background())
	err = to.Load(ctx, &good.Manifest, 4, func(ctx context.Context, i int) ([]byte, error) {
		if i == 3 {
			cancel()
		}
		return good.raw[i], ctx.Err()
	})
	if !errors.Is(err, context.Canceled) || digest(t, to) != good.Digest {
		t.Fatal(err)
	}
}

// The power is cut at each operation of loading on the disk: what is left is the store as it was, or the whole checkpoint, and
// nothing else lies about.
func TestLoadCrashes(t *testing.T) {
	from := memStore(t)
	populate(t, from, 3000, 1)
	c := take(t, from)
	setUp := func() (*Disk, *Store, map[string]string) {
		disk := NewDisk()
		s, err := disk.Open()
		if err != nil {
			t.Fatal(err)
		}
		populate(t, s, 20, 2)
		if err := s.db.Flush(); err != nil { // else a power cut takes it, which is right and says nothing
			t.Fatal(err)
		}
		return disk, s, allRows(t, s)
	}
	seen := map[string]int{}
	for n := 1; ; n++ {
		disk, s, before := setUp()
		var ops atomic.Int32
		crash := make(chan *Disk, 1)
		disk.OnOp(func(op DiskOp) DiskFault {
			if int(ops.Add(1)) == n {
				crash <- disk.Crash(50, uint64(n))
			}
			return DiskFault{}
		})
		if err := s.Load(context.Background(), &c.Manifest, 4, c.get); err != nil {
			t.Fatal(err)
		}
		disk.OnOp(nil)
		done := int(ops.Load()) < n
		if done {
			crash <- disk.Crash(0, 0) // loaded is durable
		}
		s.Close()
		after := <-crash
		s, err := after.Open()
		if err != nil {
			t.Fatalf("operation %d: %v", n, err)
		}
		got := allRows(t, s)
		switch len(got) {
		case len(before):
			sameRows(t, s, before)
			seen["before"]++
			if done {
				t.Fatal("a checkpoint that was loaded is gone after a power cut")
			}
		case int(c.Rows()):
			sameRows(t, s, allRows(t, from))
			seen["after"]++
		default:
			t.Fatalf("operation %d: %d rows; there were %d, and are %d in the checkpoint", n, len(got), len(before), c.Rows())
		}
		if _, err := s.fs.Stat(s.fs.PathJoin(s.dir, incoming)); err == nil {
			t.Fatalf("operation %d: tables are left behind", n)
		}
		s.Close()
		if done {
			break
		}
	}
	if seen["before"] < 10 || seen["after"] < 2 {
		t.Fatalf("power was cut %v", seen)
	}
}

// An error of a write while a checkpoint is loaded is the event that it is at any other time; what is left is one of the two.
func TestLoadOnFailingDisk(t *testing.T) {
	from := memStore(t)
	populate(t, from, 300, 1)
	c := take(t, from)
	for _, name := range []string{"write", "sync", "create", "link", "make directory"} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, applied %v", name, applied), func(t *testing.T) {
				disk := NewDisk()
				var failing atomic.Bool
				events := catch(t, func() { failing.Store(false) })
				s, err := disk.Open()
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				disk.OnOp(func(op DiskOp) DiskFault {
					if failing.Load() && op.Name == name {
						return DiskFault{syscall.EIO, applied}
					}
					return DiskFault{}
				})
				failing.Store(true)
				err = s.Load(context.Background(), &c.Manifest, 4, c.get)
				if len(events.all()) == 0 {
					t.Error("the disk's fault was never met")
				}
				if n := len(allRows(t, s)); err == nil && n != int(c.Rows()) || err != nil && n != 0 {
					t.Errorf("%d rows of %d after %v", n, c.Rows(), err)
				}
			})
		}
	}
}

func TestRowTooLargeForCheckpoint(t *testing.T) {
	for _, ok := range []bool{true, false} {
		s := memStore(t)
		size := MaxRowValue
		if !ok {
			size++
		}
		put(t, s, "a", "b", strings.Repeat("k", MaxRowKey), string(make([]byte, size)))
		p, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		var d PartDigest
		err = p.Parts(context.Background(), PartSize, func(raw []byte, _ uint32) error { return d.Add(raw) })
		if (err == nil) != ok {
			t.Errorf("a row of %d bytes: %v", size, err)
		}
		if sum, _ := d.Sum(); ok && sum != digest(t, s) {
			t.Error("another digest")
		}
		p.Close()
	}
}

// The bytes are fixed for ever.
func TestCheckpointVector(t *testing.T) {
	s := memStore(t)
	put(t, s, "\x00n1", "local", "aa", "1", "b", "")
	c := take(t, s)
	c.Version, c.Cell, c.Position, c.Hash = 4, holdfast.CellID{1}, segment.Position{Epoch: 2, Seq: 3}, [32]byte{4}
	var got []string
	for _, raw := range append(slices.Clone(c.raw), c.Encode()) {
		got = append(got, hex.EncodeToString(raw))
	}
	want, err := os.ReadFile(filepath.Join("testdata", "checkpoint.hex"))
	if err != nil {
		t.Fatal(err)
	}
	if g := strings.Join(got, "\n") + "\n"; g != string(want) {
		t.Errorf("the bytes are now\n%s", g)
	}
	if sum := sha256.Sum256(c.raw[1][8:]); sum != digest(t, s) {
		t.Error("the digest is not the hash of the rows as they lie in the parts")
	}
}

func FuzzPart(f *testing.F) {
	f.Add(appendRow([]byte(partMagic), []byte("a"), []byte("b")))
	f.Add(appendRow(appendRow([]byte(partMagic), []byte("a"), nil), []byte("ab"), []byte("b")))
	f.Add(appendRow(appendRow([]byte(partMagic), []byte{0, 'n'}, nil), []byte{0, 'o'}, []byte("b")))
	f.Add([]byte(partMagic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		again := []byte(partMagic)
		var before []byte
		n, last, err := eachRow(raw, nil, func(k, v []byte) error {
			if bytes.Compare(k, before) <= 0 || len(k) > MaxRowKey || len(v) > MaxRowValue {
				t.Fatalf("row %q after %q", k, before)
			}
			before = k
			again = appendRow(again, k, v)
			return nil
		})
		if err != nil {
			if !errors.Is(err, ErrCheckpoint) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(again, raw) || n == 0 || !bytes.Equal(last, before) {
			t.Fatalf("%x comes back as %x", raw, again)
		}
		if _, _, err := eachRow(raw, last, func(_, _ []byte) error { return nil }); err == nil {
			t.Fatal("it follows itself")
		}
	})
}

func FuzzManifest(f *testing.F) {
	m := Manifest{Version: 4, Parts: []Part{{Size: 100, Rows: 2}, {Size: 50, Rows: 1}}}
	f.Add(m.Encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseManifest(raw)
		if err != nil {
			if !errors.Is(err, ErrCheckpoint) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(m.Encode(), raw) {
			t.Fatalf("%x comes back as %x", raw, m.Encode())
		}
	})
}

// TestMemoryCeiling: whatever lengths a part or a manifest claims, reading it takes no more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	s := memStore(t)
	populate(t, s, 20, 1)
	c := take(t, s)
	ceiling.Check(t, ceiling.Ceiling{Fixed: 4 << 10, Factor: 2}, c.raw, nil, func(raw []byte) {
		eachRow(raw, nil, func(_, _ []byte) error { return nil })
	})
	ceiling.Check(t, ceiling.Ceiling{Fixed: 4 << 10, Factor: 2}, [][]byte{c.Encode()}, nil, func(raw []byte) { ParseManifest(raw) })
}

// peak returns the largest heap in use while fn runs, above what was in use before, bytes.
func peak(fn func()) uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	before := m.HeapInuse
	stop, most := make(chan struct{}), make(chan uint64)
	go func() {
		var top uint64
		for {
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapInuse)
			select {
			case <-stop:
				most <- top
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	fn()
	close(stop)
	return max(<-most, before) - before
}

// TestCheckpointMemory: making and loading a checkpoint takes the memory of a few parts, however many there are.
func TestCheckpointMemory(t *testing.T) {
	n := 200_000
	if part.Heavy() {
		n = 2_000_000
	}
	open := func() *Store {
		s, err := Open(filepath.Join(t.TempDir(), "view"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	s := open()
	populate(t, s, n, 1)
	dir := t.TempDir()
	m := Manifest{Version: Version}
	name := func(i int) string { return filepath.Join(dir, strconv.Itoa(i)) }
	making := peak(func() {
		p, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		m.Cell, m.Position, m.Hash = p.Position()
		err = p.Parts(context.Background(), PartSize, func(raw []byte, rows uint32) error {
			m.Parts = append(m.Parts, PartOf([8]byte{}, raw, rows))
			return os.WriteFile(name(len(m.Parts)-1), raw, 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	to := open()
	loading := peak(func() {
		if err := to.Load(context.Background(), &m, 4, func(_ context.Context, i int) ([]byte, error) { return os.ReadFile(name(i)) }); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%d rows, %d parts of %d MiB: %d MiB to make, %d MiB to load", m.Rows(), len(m.Parts), m.Bytes()>>20, making>>20, loading>>20)
	if limit := uint64(24 << 20); making > limit {
		t.Errorf("making a checkpoint took %d bytes", making)
	}
	if limit := uint64(96 << 20); loading > limit {
		t.Errorf("loading a checkpoint took %d bytes", loading)
	}
	if got, want := digest(t, to), digest(t, s); got != want {
		t.Errorf("digest %x, want %x", got, want)
	}
}

// BenchmarkLoad loads a checkpoint of HOLDFAST_BLOCKS blocks (100,000 if it is not set) from a directory.
func BenchmarkLoad(b *testing.B) {
	n, _ := strconv.Atoi(os.Getenv("HOLDFAST_BLOCKS"))
	if n == 0 {
		n = 100_000
	}
	s, err := Open(filepath.Join(b.TempDir(), "view"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	populateBlocks(b, s, n)
	p, err := s.Snapshot()
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	m := Manifest{Version: Version}
	m.Cell, m.Position, m.Hash = p.Position()
	name := func(i int) string { return filepath.Join(dir, strconv.Itoa(i)) }
	began := time.Now()
	err = p.Parts(context.Background(), PartSize, func(raw []byte, rows uint32) error {
		m.Parts = append(m.Parts, PartOf([8]byte{}, raw, rows))
		return os.WriteFile(name(len(m.Parts)-1), raw, 0o600)
	})
	p.Close()
	if err != nil {
		b.Fatal(err)
	}
	written := float64(n) / time.Since(began).Seconds()
	loaded, cpu := 0, time.Duration(0)
	for b.Loop() {
		used := processTime(b)
		to, err := Open(filepath.Join(b.TempDir(), "view"))
		if err != nil {
			b.Fatal(err)
		}
		if err := to.Load(context.Background(), &m, 4, func(_ context.Context, i int) ([]byte, error) { return os.ReadFile(name(i)) }); err != nil {
			b.Fatal(err)
		}
		loaded, cpu = loaded+n, cpu+processTime(b)-used
		b.StopTimer()
		to.Close()
		b.StartTimer()
	}
	b.ReportMetric(written, "written/s")
	b.ReportMetric(float64(m.Bytes())/float64(n), "bytes/block")
	b.ReportMetric(float64(loaded)/b.Elapsed().Seconds(), "blocks/s")
	b.ReportMetric(float64(cpu.Nanoseconds())/float64(loaded), "cpu-ns/block") // says more on a machine that is busy
}

// processTime returns what this process has used of the processors.
func processTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// populateBlocks fills s with n blocks in order, which is quick.
func populateBlocks(tb testing.TB, s *Store, n int) {
	tb.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	l := NewLayer(nil)
	if err := checkpointAt.put(l); err != nil {
		tb.Fatal(err)
	}
	var b [blockSize]byte
	var name holdfast.Name
	step := ^uint64(0)/uint64(n) - 1
	for i := range n {
		binary.BigEndian.PutUint64(name[:], uint64(i)*step)
		for k := 8; k < len(name); k += 8 {
			binary.BigEndian.PutUint64(name[k:], rng.Uint64())
		}
		blk := Block{Pos: segment.Position{Epoch: 3, Seq: uint64(i / 4000)}, Off: rng.Uint32N(16 << 20), Len: rng.Uint32N(1 << 20), Count: 1, Stored: int64(i)}
		binary.BigEndian.PutUint64(blk.Sum[:], rng.Uint64())
		binary.BigEndian.PutUint64(blk.Sum[8:], rng.Uint64())
		k := blockKey(rowBlock, 1, name)
		if err := l.Put(k[:], blk.encode(&b)); err != nil {
			tb.Fatal(err)
		}
		if l.Size() > 4<<20 || i == n-1 {
			if err := s.Commit(l); err != nil {
				tb.Fatal(err)
			}
			l.Reset()
		}
	}
}
