//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/part"
)

// TestManyRuns backs up a tree again and again with 1 % of its files changed. Most files are small and most
// bytes are in a few large ones, as usual; a small file changes altogether, a large one in one place. Nothing is
// ever freed here: the bucket keeps every state. It must stay below 1.5 times one full backup of the
// last one, the archives' own trees aside, and reading the last archive must not cost more than twice
// its bytes, although its files are scattered over the packs of many runs.
func TestManyRuns(t *testing.T) {
	t.Parallel()
	runs, small, large := 25, 600, 12
	if part.Heavy() {
		runs, small, large = 100, 1900, 100
	}
	const largeSize = 2 << 20
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 7, small)
	r := rand.New(noise(8))
	largeFile := func(i int) string { return filepath.Join(tree, fmt.Sprintf("large-%03d", i)) }
	for i := range large {
		writeNoise(t, largeFile(i), r.Uint64(), largeSize)
	}
	for run := range runs {
		if run > 0 {
			for range (small + large) / 100 {
				if i := r.IntN(small + large); i < small {
					writeText(t, filepath.Join(tree, fmt.Sprintf("%03d", i/50), fmt.Sprintf("file-%05d", i)), r.Uint64(), r.IntN(32<<10))
				} else {
					overwrite(t, largeFile(i-small), fmt.Sprintf("run %d", run), r.Int64N(largeSize-100))
				}
			}
		}
		c.ok("create", "-C", dir, "tree", "tree")
	}
	trees := func(s *service) int64 { k := storedKinds(t, s, 0); return k["tree"] + k["archive"] }
	all, full := s.bucketBytes(), int64(0)

	fresh := newService(t)
	f := newClient(t, fresh)
	f.ok("create", "-C", dir, "tree", "tree")
	full = fresh.bucketBytes()
	t.Logf("after %d runs the bucket has %d KiB, %d of them trees; one full backup %d KiB, %d of them trees",
		runs, all>>10, trees(s)>>10, full>>10, trees(fresh)>>10)
	if all-trees(s) > full*3/2 {
		t.Errorf("without the archives' trees the bucket holds %d bytes, more than 1.5 times the %d of one full backup", all-trees(s), full)
	}

	once := f.ok("extract", "tree", "--target", filepath.Join(dir, "fresh"))
	last := c.ok("extract", "tree", "--target", filepath.Join(dir, "out"))
	t.Logf("extracting reads %d KiB after %d runs, %d KiB after one", last.read>>10, runs, once.read>>10)
	if last.read > 2*once.read {
		t.Errorf("extracting the last archive reads %d bytes, more than twice the %d of a fresh one", last.read, once.read)
	}
	same(t, tree, filepath.Join(dir, "out", "tree"))
	s.clean()
}

// overwrite puts text over what a file has at off.
func overwrite(t testing.TB, file, text string, off int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTouchedFiles sets the times of all files: they are read again, but nothing is stored but a new tree.
// Then some small files are touched while others change; only the others may be stored.
func TestTouchedFiles(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	const files = 300
	tree := smallTree(t, dir, "tree", 9, files)
	create := []string{"create", "-C", dir, "tree", "tree"}
	c.ok(create...)
	now := time.Now()
	for i := range files {
		if err := os.Chtimes(filepath.Join(tree, fmt.Sprintf("%03d", i/50), fmt.Sprintf("file-%05d", i)), now, now); err != nil {
			t.Fatal(err)
		}
	}
	writeNoise(t, filepath.Join(tree, "005", "file-00260"), 1, 20_000)
	c.ok(create...)
	if kinds := storedKinds(t, s, 2); kinds["chunk"]+kinds["pack"] > 30_000 {
		t.Errorf("300 files touched and one of 20,000 bytes changed: %v bytes stored by kind", kinds)
	}
	c.ok("extract", "tree", "--target", filepath.Join(dir, "out"))
	same(t, tree, filepath.Join(dir, "out", "tree"))
}

// TestMillionFiles holds the ceilings on memory, and with them scenario C14's directory of a million
// entries.
func TestMillionFiles(t *testing.T) { // not beside others: it takes ten gigabytes of the disk
	files := 30_000
	if part.Heavy() {
		files = 1_000_000
	}
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := filepath.Join(dir, "tree", "large")
	for _, d := range []string{tree, filepath.Join(dir, "out", "tree", "large")} {
		t.Cleanup(func() {
			if _, err := os.Stat(d); err == nil {
				each(t, d, func(name string) error { return os.Remove(filepath.Join(d, name)) })
			}
		})
	}
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range files {
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprintf("%07d", i)), fmt.Appendf(nil, "file %d of %d", i, i*i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range [][]string{
		{"create", "-C", dir, "many", "tree"},
		{"create", "-C", dir, "many", "tree"},
		{"extract", "many", "--target", filepath.Join(dir, "out")},
		{"verify", "many"},
	} {
		before := s.bucketBytes()
		o := c.ok(step...)
		t.Logf("%s: %v, client %d MiB, service %d MiB, bucket grew by %d KiB", step[0], o.took, o.rss>>20, s.peak()>>20, (s.bucketBytes()-before)>>10)
	}
	out := filepath.Join(dir, "out", "tree")
	same(t, filepath.Join(dir, "tree"), out, "--no-checksum")
	sameBytes(t, tree, filepath.Join(out, "large"))
}

// manyAtOnce is how many files are read or removed at a time where there are a million: a disk may take a millisecond for each.
const manyAtOnce = 64

// each calls fn with every name in a directory, many at once.
func each(t testing.TB, dir string, fn func(name string) error) {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var next, failed atomic.Int64
	var all sync.WaitGroup
	for range manyAtOnce {
		all.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(names)); i = next.Add(1) - 1 {
				if err := fn(names[i].Name()); err != nil && failed.Add(1) <= 20 {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n := failed.Load(); n > 20 {
		t.Errorf("%d more", n-20)
	}
}

// sameBytes fails the test unless each file of one directory is in the other, byte for byte.
func sameBytes(t testing.TB, want, got string) {
	t.Helper()
	each(t, want, func(name string) error {
		a, err := os.ReadFile(filepath.Join(want, name))
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(got, name))
		if err == nil && !bytes.Equal(a, b) {
			err = fmt.Errorf("%s: %q, not %q", name, b, a)
		}
		return err
	})
}
