//go:build linux

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/part"
)

// TestManyRuns backs up a tree of small files again and again with 1 % of them changed. The bucket must
// stay below 1.5 times one full backup of the last state, the archives' own trees aside, and reading the last
// archive must not cost more than twice its bytes, although its files are scattered over many packs.
func TestManyRuns(t *testing.T) {
	runs, files := 25, 1000
	if part.Heavy() {
		runs, files = 100, 4000
	}
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 7, files)
	r := rand.New(noise(8))
	for run := range runs {
		if run > 0 {
			for range files / 100 {
				i := r.IntN(files)
				writeText(t, filepath.Join(tree, fmt.Sprintf("%03d", i/50), fmt.Sprintf("file-%05d", i)), r.Uint64(), r.IntN(32<<10))
			}
		}
		c.ok("create", "-C", dir, "tree", "tree")
	}
	kinds := storedKinds(t, s, 0)
	data, trees := kinds["chunk"]+kinds["pack"], kinds["tree"]+kinds["archive"]

	fresh := newService(t)
	f := newClient(t, fresh)
	f.ok("create", "-C", dir, "tree", "tree")
	full := storedKinds(t, fresh, 0)
	fullData := full["chunk"] + full["pack"]
	t.Logf("%d runs: %d KiB of data, %d KiB of trees, bucket %d KiB; one full backup: %d KiB of data, %d KiB of trees, bucket %d KiB",
		runs, data>>10, trees>>10, s.bucketBytes()>>10, fullData>>10, (full["tree"]+full["archive"])>>10, fresh.bucketBytes()>>10)
	if all := s.bucketBytes() - trees; all > fresh.bucketBytes()*3/2 {
		t.Errorf("without the archives' trees the bucket holds %d bytes, more than 1.5 times the %d of one full backup", all, fresh.bucketBytes())
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

// TestMillionFiles holds the ceilings on memory, and with them scenario C14's directory of a million
// entries.
func TestMillionFiles(t *testing.T) {
	files := 30_000
	if part.Heavy() {
		files = 1_000_000
	}
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	tree := filepath.Join(dir, "tree", "large")
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
	same(t, filepath.Join(dir, "tree"), filepath.Join(dir, "out", "tree"))
}
