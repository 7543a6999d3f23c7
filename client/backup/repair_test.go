package backup_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/restore"
	"holdfast/history"
)

// damage has the service find that all its blocks of a kind are bad, and returns how many those are.
func (w *world) damage(kind holdfast.Kind) (n int) {
	for name, b := range w.svc.Blocks {
		if holdfast.Kind(b[2]) == kind {
			bad := bytes.Clone(b)
			bad[len(bad)-1] ^= 1
			w.svc.Blocks[name], w.svc.Damaged[name] = bad, true
			n++
		}
	}
	return n
}

// archives returns those of the series, oldest first.
func (w *world) archives() []history.Archive { return w.svc.Vault.Archives }

// extract restores an archive and returns the contents of its files.
func (w *world) extract(a history.Archive) (files map[string][]byte, problems uint64) {
	w.t.Helper()
	v, err := restore.Open(w.t.Context(), w.svc.Machine, w.c)
	if err != nil {
		w.t.Fatal(err)
	}
	out := filepath.Join(w.t.TempDir(), "out")
	res, err := v.Extract(w.t.Context(), a, out, restore.Options{})
	if err != nil {
		return nil, 1
	}
	files = map[string][]byte{}
	err = filepath.WalkDir(out, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(out, p)
		files[rel], err = os.ReadFile(p)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return files, res.Problems
}

// TestNextRunRepairs: the service finds all its blocks of a kind damaged. The next run stores them again under their
// names, although no file changed but one, so that the earlier archive comes back as it was.
func TestNextRunRepairs(t *testing.T) {
	t.Parallel()
	for _, kind := range []holdfast.Kind{holdfast.KindChunk, holdfast.KindPack, holdfast.KindTree, holdfast.KindArchive} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.tree()
			w.settle()
			w.run(w.config())
			want, bad := w.extract(w.archives()[0])
			if bad > 0 || len(want) != 304 {
				t.Fatalf("%d files, %d problems before", len(want), bad)
			}
			n := w.damage(kind)
			if files, bad := w.extract(w.archives()[0]); bad == 0 && len(files) == len(want) {
				t.Fatal("the damage does no harm")
			}
			// A new file makes other packs, nodes and roots of the next archive.
			w.write("small/0000", 77, 9000)
			w.settle()
			var warned []string
			cfg := w.config()
			cfg.Warn = func(s string) { warned = append(warned, s) }
			r := w.run(cfg)
			if len(r.Damaged) != n || r.Unrepaired() != 0 || len(w.svc.Damaged) != 0 || len(warned) != 1 {
				t.Errorf("%d damaged, told of %d, %d not repaired, %d left, warned %q", n, len(r.Damaged), r.Unrepaired(), len(w.svc.Damaged), warned)
			}
			got, bad := w.extract(w.archives()[0])
			if bad > 0 || len(got) != len(want) {
				t.Errorf("%d files of %d and %d problems after the repair", len(got), len(want), bad)
			}
			for p, b := range want {
				if !bytes.Equal(got[p], b) {
					t.Errorf("%s came back with %d bytes, want %d", p, len(got[p]), len(b))
				}
			}
			w.restored()
			if r := w.run(w.config()); len(r.Damaged) != 0 || r.FilesRead != 0 {
				t.Errorf("the run after: %+v", r)
			}
		})
	}
}

// TestWhatIsGoneIsNamed: content that is nowhere any more cannot be repaired; the run's own archive is whole, the block is
// named, now and at every later run, and what else was damaged is repaired all the same.
func TestWhatIsGoneIsNamed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tree()
	w.settle()
	w.run(w.config())
	large := w.damage(holdfast.KindChunk)
	w.damage(holdfast.KindPack)
	w.damage(holdfast.KindTree)
	for _, gone := range []string{"large", "small/150"} {
		if err := os.Remove(filepath.Join(w.dir, "tree", gone)); err != nil {
			t.Fatal(err)
		}
	}
	all := len(w.svc.Damaged)
	r := w.run(w.config())
	w.restored()
	left := map[holdfast.Kind]int{}
	for _, d := range r.Damaged {
		if d.Repaired == w.svc.Damaged[d.Name] || !d.Mine {
			t.Errorf("%+v, and damaged at the service: %v", d, w.svc.Damaged[d.Name])
		}
		if !d.Repaired {
			left[d.Kind]++
		}
	}
	if len(r.Damaged) != all || r.Unrepaired() != len(w.svc.Damaged) {
		t.Errorf("told of %d of %d, %d unrepaired of %d", len(r.Damaged), all, r.Unrepaired(), len(w.svc.Damaged))
	}
	// All chunks of the large file but not those of the others; the one pack with the small file; and nodes that need these.
	if left[holdfast.KindChunk] == 0 || left[holdfast.KindChunk] == large || left[holdfast.KindPack] != 1 || left[holdfast.KindTree] == 0 {
		t.Errorf("not repaired: %v", left)
	}
	if again := w.run(w.config()); again.Unrepaired() != r.Unrepaired() || again.FilesRead != 0 {
		t.Errorf("the next run: %d unrepaired, %d files read", again.Unrepaired(), again.FilesRead)
	}
	w.restored()
}

// TestInterleavedPacksAreRepaired makes more packs that lie across one another than are put together at a time.
func TestInterleavedPacksAreRepaired(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const packs, files = 20, 8
	for gen := range packs { // each run packs its new files, which lie all over the tree
		for i := range files {
			w.write(fmt.Sprintf("%d/%02d", i, gen), byte(gen), 3000+i)
		}
		w.run(w.config())
	}
	n := w.damage(holdfast.KindPack)
	if n != packs {
		t.Fatalf("%d packs, want %d", n, packs)
	}
	cfg := w.config()
	cfg.Warn = func(s string) { t.Log(s) }
	r := w.run(cfg)
	if len(r.Damaged) != n || r.Unrepaired() != 0 {
		t.Errorf("%d damaged, %d not repaired", len(r.Damaged), r.Unrepaired())
	}
	w.restored()
	for i, a := range w.archives() {
		if files, bad := w.extract(a); bad > 0 || len(files) != min(i+1, packs)*8 {
			t.Errorf("archive %d: %d files, %d problems", i, len(files), bad)
		}
	}
}

// TestRootsFileIsNotTrusted: rubbish in the file with the roots does no harm, and it stays small.
func TestRootsFileIsNotTrusted(t *testing.T) {
	between := append([]byte{0, 0, 0, 3, 1, 2, 3}, bytes.Repeat(append([]byte{0, 0, 0x20, 0}, make([]byte, 0x2000)...), 150)...)
	for what, c := range map[string]struct {
		before, behind []byte
		lost           int
	}{
		"rubbish behind":  {nil, []byte{0xff, 0xff, 0xff, 0xff}, 0},
		"rubbish between": {between, nil, 1}, // what is good lies beyond what is read
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.write("a", 1, 100)
			w.settle()
			w.run(w.config())
			match, err := filepath.Glob(filepath.Join(w.cache, "roots-*"))
			if err != nil || len(match) != 1 {
				t.Fatalf("%q, %v", match, err)
			}
			good, err := os.ReadFile(match[0])
			if err != nil {
				t.Fatal(err)
			}
			w.damage(holdfast.KindArchive)
			if len(w.svc.Damaged) != 1 {
				t.Fatalf("%d roots are damaged", len(w.svc.Damaged))
			}
			if err := os.WriteFile(match[0], slices.Concat(c.before, good, c.behind), 0o600); err != nil {
				t.Fatal(err)
			}
			r := w.run(backup.Config{Machine: w.svc.Machine, Client: w.c, Series: "s", Base: w.dir, Roots: []string{"tree"}, CacheDir: w.cache})
			if r.Unrepaired() != c.lost {
				t.Errorf("%d not repaired, want %d", r.Unrepaired(), c.lost)
			}
			if fi, err := os.Stat(match[0]); err != nil || fi.Size() > 1<<20 {
				t.Errorf("%v, %v", fi.Size(), err)
			}
		})
	}
}
