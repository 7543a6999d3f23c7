package requests

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/ceiling"
	"holdfast/service/bucket"
)

func equal(a, b any) bool { return reflect.DeepEqual(a, b) }

// logged is what was logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) log() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logged) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// examples returns one page of each kind, filled.
func examples() (all [][]byte) {
	h := New()
	began := time.Unix(1467288000, 0) // 30 June 2016, 12:00
	for i := range 1000 {
		h.Add(some(i, began))
	}
	for i := range pages {
		if p := h.page(i); p != nil {
			p.seq, p.written = 7, began.UnixMilli()
			all = append(all, p.encode())
		}
	}
	return all
}

// The format does not change without another version.
func TestPagesAreAsTheyWere(t *testing.T) {
	h := sha256.New()
	all := examples()
	for _, b := range all {
		h.Write(b)
		if p, err := decodePage(b); err != nil || !bytes.Equal(p.encode(), b) {
			t.Fatalf("a page does not decode: %v", err)
		}
	}
	const want = "1fc4feacf004f4cf074aebcca6b59c235a3c23dbcd53f9fd4bad92241e5fd1d7"
	if got := hex.EncodeToString(h.Sum(nil)); len(all) < 5 || got != want {
		t.Errorf("%d pages have the hash %s, want %s", len(all), got, want)
	}
}

// What no history writes is refused although its checksum is right.
func TestStrangePages(t *testing.T) {
	all := examples() // minute, hour, latencies, failures, slowest
	sum, err := decodePage(all[2])
	if err != nil {
		t.Fatal(err)
	}
	sum.recent[0].N[5], sum.recent[0].Sum[5] = 0, 1
	for name, b := range map[string][]byte{
		"no sequence number":   with(all[0], 8, 0, 0, 0, 0, 0, 0, 0, 0),
		"another kind":         with(all[0], 5, kindHour),
		"no kind":              with(all[0], 5, 99),
		"another place":        with(all[0], 7, all[0][7]+1),
		"begin within a slice": with(all[0], 23, all[0][23]+1),
		"begin of no slice":    with(all[2], 23, 1),
		"a sum of nothing":     sum.encode(),
		"another operation":    with(all[3], headSize+16, ops),
		"another class":        with(all[3], headSize+17, classes),
		"something behind":     with(all[3], pageSize-1, 1),
		"a reserved field":     with(all[3], headSize+21, 1),
	} {
		if _, err := decodePage(b); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// with returns a page with other bytes somewhere.
func with(b []byte, at int, x ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[at:], x)
	return mend(b)
}

// mend makes the checksum right.
func mend(b []byte) []byte {
	if len(b) == pageSize {
		binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], crcTable))
	}
	return b
}

func FuzzPage(f *testing.F) {
	for _, b := range examples() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = mend(bytes.Clone(b))
		p, err := decodePage(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("%v is not ErrDamaged", err)
			}
			return
		}
		if !bytes.Equal(p.encode(), b) {
			t.Fatal("it encodes to other bytes")
		}
		// Whatever it says can be reported.
		h := New()
		for i := range pages {
			if kind, index := kindOf(i); kind == p.kind && index == p.index {
				h.set(i, p)
			}
		}
		h.report(time.Unix(p.begin, 0).Add(time.Minute), 0)
		h.Latency(bucket.OpPut, 1, 0.95)
	})
}

// TestMemoryCeiling: no page makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	ceiling.Check(t, ceiling.Ceiling{Fixed: 32 << 10, Factor: 4}, examples(), mend, func(b []byte) { decodePage(b) })
}

// Every flipped bit of a page is found.
func TestFlippedBits(t *testing.T) {
	for _, b := range examples() {
		for i := 0; i < 8*len(b); i += 13 {
			b[i/8] ^= 1 << (i % 8)
			if _, err := decodePage(b); !errors.Is(err, ErrDamaged) {
				t.Fatalf("bit %d: %v", i, err)
			}
			b[i/8] ^= 1 << (i % 8)
		}
	}
}

// count returns how many attempts a file knows.
func count(t *testing.T, path string) (n uint64) {
	t.Helper()
	r, err := Read(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range r.Ops {
		n += o.Attempts
	}
	return n
}

// A writing that is cut short anywhere, at any page, loses what it was to add and nothing more.
func TestTornWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	one := Attempt{Op: bucket.OpPut, Class: bucket.ClassOK, N: 1, Began: time.Now().Add(-time.Hour)}
	var before []byte
	h := Open(path, nil)
	for range 3 { // both places of each page are used
		var err error
		if before, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		h.Add(one)
		h.save()
	}
	h.Close()
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i := 0; i < len(after); i += pageSize {
		if bytes.Equal(before[i:i+pageSize], after[i:i+pageSize]) {
			continue
		}
		changed++
		for _, cut := range []int{3, 2000, pageSize - 1} {
			torn := bytes.Clone(after)
			copy(torn[i+cut:i+pageSize], before[i+cut:i+pageSize])
			if bytes.Equal(torn, after) {
				continue // what was cut off is as it was before
			}
			other := filepath.Join(t.TempDir(), FileName)
			if err := os.WriteFile(other, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if n := count(t, other); n != 2 && n != 3 {
				t.Errorf("page %d cut at %d: %d attempts, want 2 or 3", i/pageSize, cut, n)
			}
			var l logged
			again := Open(other, l.log())
			again.Add(one)
			again.Close()
			if n := count(t, other); n < 3 || l.count("WARN") > 0 {
				t.Errorf("page %d cut at %d: %d attempts after another run: %s", i/pageSize, cut, n, &l.b)
			}
		}
	}
	if changed < 2 {
		t.Errorf("%d pages changed", changed)
	}
}

// A damaged file is put aside, with a warning, and what can be read of it is in the new one.
func TestDamagedFile(t *testing.T) {
	one := Attempt{Op: bucket.OpPut, Class: bucket.ClassServer, N: 1, Began: time.Now()}
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"too short":       func(b []byte) []byte { return b[:len(b)-1] },
		"half":            func(b []byte) []byte { return b[:len(b)/2] },
		"too long":        func(b []byte) []byte { return append(b, 0) },
		"something else":  func([]byte) []byte { return bytes.Repeat([]byte("not a history "), 100_000) },
		"both of a page":  func(b []byte) []byte { b[pageFailures*pageSize]++; b[(pages+pageFailures)*pageSize]++; return b },
		"another version": func(b []byte) []byte { return others(b) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), FileName)
			h := Open(path, nil)
			for range 3 {
				h.Add(one)
				h.save()
			}
			h.Close()
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b = damage(b)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := Read(path, 0)
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("Read: %v", err)
			}
			var l logged
			h = Open(path, l.log())
			if l.count("WARN") != 1 || l.count(path+DamagedSuffix) != 1 {
				t.Errorf("logged: %s", &l.b)
			}
			h.Add(one)
			h.Close()
			if got, err := os.ReadFile(path + DamagedSuffix); err != nil || !bytes.Equal(got, b) {
				t.Errorf("the damaged file is not as it was: %v", err)
			}
			if n := count(t, path); n != r.op(bucket.OpPut).Attempts+1 {
				t.Errorf("%d attempts, %d could be read before", n, r.op(bucket.OpPut).Attempts)
			}
			if name == "both of a page" && count(t, path) != 4 {
				t.Error("what was not damaged is lost")
			}
		})
	}
}

// others makes all pages those of another version.
func others(b []byte) []byte {
	for i := 0; i < len(b); i += pageSize {
		if p := b[i : i+pageSize]; !allZero(p) {
			p[4]++
			mend(p)
		}
	}
	return b
}

// A file that cannot be made, read or written stops nothing, is complained about once, and is kept again when it can be.
func TestDiskTrouble(t *testing.T) {
	one := Attempt{Op: bucket.OpPut, Class: bucket.ClassOK, N: 1, Began: time.Now()}
	t.Run("no place", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "later")
		path := filepath.Join(dir, FileName)
		var l logged
		h := Open(path, l.log())
		for range 5 {
			h.Add(one)
			h.save()
		}
		if l.count("is not kept on disk") != 1 {
			t.Errorf("logged: %s", &l.b)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		h.save()
		h.Close()
		if n := count(t, path); n != 5 || l.count("kept again") != 1 {
			t.Errorf("%d attempts; logged: %s", n, &l.b)
		}
	})
	t.Run("cannot be read", func(t *testing.T) {
		path := t.TempDir() // reading a directory fails
		var l logged
		h := Open(path, l.log())
		for range 5 {
			h.Add(one)
			h.save()
		}
		h.Close()
		if l.count("is not kept on disk") != 1 || h.Report(0).op(bucket.OpPut).Attempts != 5 {
			t.Errorf("logged: %s", &l.b)
		}
		if st, err := os.Stat(path); err != nil || !st.IsDir() {
			t.Errorf("what was there is gone: %v", err)
		}
	})
	t.Run("cannot be written", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), FileName)
		var l logged
		h := Open(path, l.log())
		h.Add(one)
		h.save()
		good := h.disk.f
		bad, err := os.Open(path) // for reading only
		if err != nil {
			t.Fatal(err)
		}
		defer bad.Close()
		h.disk.f = bad
		for range 4 {
			h.Add(one)
		}
		for range 3 {
			h.save()
		}
		if l.count("is not kept on disk") != 1 || count(t, path) != 1 {
			t.Errorf("%d attempts; logged: %s", count(t, path), &l.b)
		}
		h.disk.f = good
		h.save()
		h.Close()
		if n := count(t, path); n != 5 || l.count("kept again") != 1 {
			t.Errorf("%d attempts; logged: %s", n, &l.b)
		}
	})
}

// Without Close, a minute is lost at most.
func TestSavedEveryMinute(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	synctest.Test(t, func(t *testing.T) {
		h := Open(path, nil)
		defer h.Close()
		for range 10 {
			h.Add(Attempt{Op: bucket.OpPut, Class: bucket.ClassOK, N: 1, Began: time.Now()})
			time.Sleep(30 * time.Second)
		}
		synctest.Wait()
		if n := count(t, path); n < 8 {
			t.Errorf("%d of 10 attempts were written", n)
		}
	})
}

// Reading changes nothing, and where there is nothing it says so.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(filepath.Join(dir, FileName), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if es, _ := os.ReadDir(dir); len(es) > 0 {
		t.Errorf("it made %v", es)
	}
	Open(filepath.Join(dir, FileName), nil).Close()
	if err := os.Chmod(filepath.Join(dir, FileName), 0o400); err != nil {
		t.Fatal(err)
	}
	if r, err := Read(filepath.Join(dir, FileName), 0); err != nil || len(r.Ops) > 0 || !r.Saved.IsZero() && time.Since(r.Saved) > time.Minute {
		t.Errorf("%+v, %v", r, err)
	}
}
