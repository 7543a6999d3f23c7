package restore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/remote"
	"holdfast/client/remote/remotetest"
	"holdfast/client/restore"
	"holdfast/client/tree"
	"holdfast/history"
	"holdfast/wire"
)

// world is a service with one archive of a small tree in it.
type world struct {
	t   *testing.T
	svc *remotetest.Service
	c   *remote.Client
	dir string
	v   *restore.Vault
	a   history.Archive
}

func content(seed, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func newWorld(t *testing.T, files map[string]int) *world {
	t.Helper()
	w := &world{t: t, svc: remotetest.New(t), dir: t.TempDir()}
	w.svc.Links = true
	w.c = w.svc.Enrol(remote.Options{})
	for p, size := range files {
		w.write(p, content(size, size))
	}
	w.backup()
	return w
}

func (w *world) write(path string, b []byte) {
	w.t.Helper()
	p := filepath.Join(w.dir, path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(p, b, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) backup() {
	w.t.Helper()
	r, err := backup.Run(w.t.Context(), backup.Config{Machine: w.svc.Machine, Client: w.c, Series: "s", Base: w.dir, Roots: []string{"."}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.a = r.Archive
	w.open()
}

// open forgets what was read from the service before.
func (w *world) open() {
	w.t.Helper()
	v, err := restore.Open(w.t.Context(), w.svc.Machine, w.c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.v = v
}

func (w *world) extract(out string, paths ...string) (restore.Result, []restore.Problem, error) {
	var problems []restore.Problem
	res, err := w.v.Extract(w.t.Context(), w.a, out, restore.Options{Paths: paths, Problem: func(p restore.Problem) { problems = append(problems, p) }})
	return res, problems, err
}

// found lists the files below dir.
func found(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	if err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, p)
			out = append(out, filepath.ToSlash(rel))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// holding returns the names of the blocks that hold a file.
func (w *world) holding(path string) []holdfast.Name {
	w.t.Helper()
	root, err := w.v.Root(w.t.Context(), w.a)
	if err != nil {
		w.t.Fatal(err)
	}
	e, err := w.v.Tree(w.a, root).Lookup(w.t.Context(), path)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []holdfast.Name
	for _, x := range e.Extents {
		names = append(names, x.Name)
	}
	return names
}

var mixed = map[string]int{"a/one": 200 << 10, "a/two": 1000, "b/three": 300 << 10, "b/four": 70 << 10, "c": 1500}

// TestDamageIsNamed alters stored blocks in every way that a service can; what is hit is named, and the
// rest is restored.
func TestDamageIsNamed(t *testing.T) {
	for what, harm := range map[string]func(w *world, n holdfast.Name){
		"flipped bit":       func(w *world, n holdfast.Name) { w.svc.Blocks[n][len(w.svc.Blocks[n])/2] ^= 1 },
		"cut short":         func(w *world, n holdfast.Name) { w.svc.Blocks[n] = w.svc.Blocks[n][:100] },
		"gone":              func(w *world, n holdfast.Name) { delete(w.svc.Blocks, n) },
		"known as damaged":  func(w *world, n holdfast.Name) { w.svc.State[n] = wire.FrameDamaged },
		"another in place":  func(w *world, n holdfast.Name) { w.svc.Blocks[n] = w.svc.Blocks[w.holding("b/four")[0]] },
		"empty in place":    func(w *world, n holdfast.Name) { w.svc.Blocks[n] = bytes.Repeat([]byte{1}, 60) },
		"headers exchanged": func(w *world, n holdfast.Name) { copy(w.svc.Blocks[n], w.svc.Blocks[w.holding("b/four")[0]][:35]) },
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, mixed)
			harm(w, w.holding("a/one")[0])
			w.open()
			out := filepath.Join(t.TempDir(), "out")
			res, problems, err := w.extract(out)
			if err != nil || res.Damaged != 1 || len(problems) != 1 || problems[0].Path != "a/one" || !restore.Damaged(problems[0].Err) {
				t.Errorf("extract: %+v, %+v, %v", res, problems, err)
			}
			if got := found(t, out); !slices.Equal(got, []string{"a/two", "b/four", "b/three", "c"}) {
				t.Errorf("restored %v", got)
			}
			all, err := w.v.Verify(t.Context(), w.v.History.Archives, restore.Options{}, nil)
			if err != nil || len(all) != 1 || all[0].Result.Damaged != 1 {
				t.Errorf("verify: %+v, %v", all, err)
			}
		})
	}
}

// TestDamagedTreeLeavesOthers damages the root or the tree of one archive of two.
func TestDamagedTreeLeavesOthers(t *testing.T) {
	for _, kind := range []holdfast.Kind{holdfast.KindTree, holdfast.KindArchive} {
		t.Run(kind.String(), func(t *testing.T) {
			w := newWorld(t, mixed)
			bad := w.a
			before := map[holdfast.Name]bool{}
			for n := range w.svc.Blocks {
				before[n] = true
			}
			w.write("d", content(9, 900))
			w.backup()
			for n, b := range w.svc.Blocks {
				if before[n] && holdfast.Kind(b[2]) == kind {
					b[len(b)-1] ^= 1
				}
			}
			w.open()
			all, err := w.v.Verify(t.Context(), w.v.History.Archives, restore.Options{}, nil)
			if err != nil || len(all) != 2 || !restore.Damaged(all[0].Err) || all[1].Err != nil || all[1].Result.Damaged != 0 {
				t.Errorf("verify: %+v, %v", all, err)
			}
			if _, err := w.v.Extract(t.Context(), bad, filepath.Join(t.TempDir(), "bad"), restore.Options{}); !restore.Damaged(err) {
				t.Errorf("extract of the damaged archive: %v", err)
			}
			if res, _, err := w.extract(filepath.Join(t.TempDir(), "good")); err != nil || res.Problems != 0 {
				t.Errorf("extract of the other: %+v, %v", res, err)
			}
		})
	}
}

func TestExtractChosenPaths(t *testing.T) {
	w := newWorld(t, mixed)
	// x1 is met first, so that x2 and x3 are links to it.
	w.write("links/x1", content(5, 5000))
	for _, p := range []string{"y/x2", "y/x3"} {
		os.MkdirAll(filepath.Join(w.dir, "y"), 0o755)
		if err := os.Link(filepath.Join(w.dir, "links/x1"), filepath.Join(w.dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	w.backup()
	for _, x := range []struct {
		paths []string
		want  string
	}{
		{[]string{"a"}, "a/one a/two"},
		{[]string{"/b/four/", "./c", "b/four"}, "b/four c"},
		{[]string{"a/one", "a"}, "a/one a/two"},
		{[]string{"y"}, "y/x2 y/x3"},
		{[]string{"."}, "a/one a/two b/four b/three c links/x1 y/x2 y/x3"},
	} {
		out := filepath.Join(t.TempDir(), "out")
		res, problems, err := w.extract(out, x.paths...)
		if err != nil || res.Problems != 0 {
			t.Errorf("%v: %+v, %v, %v", x.paths, res, problems, err)
		}
		if got := strings.Join(found(t, out), " "); got != x.want {
			t.Errorf("%v restored %s, want %s", x.paths, got, x.want)
		}
		if x.paths[0] == "y" {
			a, err1 := os.Stat(filepath.Join(out, "y/x2"))
			b, err2 := os.Stat(filepath.Join(out, "y/x3"))
			if err := errors.Join(err1, err2); err != nil || !os.SameFile(a, b) {
				t.Errorf("two names of one file came back as two files: %v", err)
			}
			if got, err := os.ReadFile(filepath.Join(out, "y/x3")); err != nil || !bytes.Equal(got, content(5, 5000)) {
				t.Errorf("and with other content: %v", err)
			}
		}
	}
	for _, p := range []string{"nothing", "a/one/below", "a/../b"} {
		out := filepath.Join(t.TempDir(), "out")
		if _, _, err := w.extract(out, "c", p); err == nil || (!errors.Is(err, tree.ErrNotFound) && !strings.Contains(p, "..")) {
			t.Errorf("%s: %v", p, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: a refused extract made its target", p)
		}
	}
}

// TestScenarioC11Resume interrupts a restore after each number of blocks; the next one does not fetch what
// is there and right, and notices what is there and wrong.
func TestScenarioC11Resume(t *testing.T) {
	files := map[string]int{}
	for i := range 30 {
		files[fmt.Sprintf("f%02d", i)] = 66<<10 + i
	}
	w := newWorld(t, files)
	whole, _, err := w.extract(filepath.Join(t.TempDir(), "whole"))
	if err != nil || whole.Kept != 0 || whole.Blocks != 30 { // one block a file, or the counts below mean nothing
		t.Fatalf("%+v, %v", whole, err)
	}
	for stop := 1; stop < 30; stop += 9 {
		out := filepath.Join(t.TempDir(), "out")
		ctx, cancel := context.WithCancel(t.Context())
		opt := restore.Options{Progress: new(restore.Progress)}
		w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/fetch") {
				return false
			}
			body := make([]byte, r.ContentLength)
			r.Body.Read(body)
			names, err := wire.ParseNames(body)
			if err != nil || len(names) < 30 {
				t.Errorf("%d names: %v", len(names), err)
			}
			for _, n := range names[:stop] {
				rw.Write(wire.AppendFrame(nil, wire.Frame{Name: n, Sealed: w.svc.Blocks[n]}))
			}
			rw.(http.Flusher).Flush()
			for opt.Progress.Bytes.Load() < uint64(stop*66<<10) {
				runtime.Gosched() // the client writes what it was sent, file by file; then it is interrupted
			}
			cancel()
			<-r.Context().Done()
			return true
		}
		_, err := w.v.Extract(ctx, w.a, out, opt)
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped after %d blocks: %v", stop, err)
		}
		w.svc.Hook = nil
		// One that is there gets other bytes of the same size and time.
		for _, p := range found(t, out) {
			info, err := os.Stat(filepath.Join(out, p))
			if size, ok := files[p]; err != nil || !ok || info.Size() != int64(size) {
				continue
			}
			if err := errors.Join(os.WriteFile(filepath.Join(out, p), make([]byte, info.Size()), 0o644), os.Chtimes(filepath.Join(out, p), info.ModTime(), info.ModTime())); err != nil {
				t.Fatal(err)
			}
			break
		}
		res, problems, err := w.extract(out)
		if err != nil || len(problems) != 0 || res.Files != 30 {
			t.Fatalf("stopped after %d blocks, then: %+v, %v, %v", stop, res, problems, err)
		}
		// The last of them may have been begun only, and one was altered.
		if int(res.Kept) < stop-2 || int(res.Kept) >= stop || res.Blocks != 30-res.Kept {
			t.Errorf("stopped after %d blocks: %d files were kept and %d blocks fetched", stop, res.Kept, res.Blocks)
		}
		for p, size := range files {
			if got, err := os.ReadFile(filepath.Join(out, p)); err != nil || !bytes.Equal(got, content(size, size)) {
				t.Errorf("%s: %v", p, err)
			}
		}
	}
}

func TestFind(t *testing.T) {
	w := newWorld(t, mixed)
	first := w.a
	m := w.svc.Machine
	h := w.v.History
	whole := restore.Name(h, "s", first)
	if a, err := restore.Find(m, h, "s"); err != nil || a.ID != first.ID {
		t.Errorf("latest: %v, %v", a, err)
	}
	for _, spec := range []string{whole, strings.TrimSuffix(whole, "Z"), whole[:8], "s@"} {
		if a, err := restore.Find(m, h, spec); err != nil || a.ID != first.ID {
			t.Errorf("%s: %v, %v", spec, a, err)
		}
	}
	w.backup()
	second, h := w.a, w.v.History
	if a, err := restore.Find(m, h, "s"); err != nil || a.ID != second.ID {
		t.Errorf("latest of two: %v, %v", a, err)
	}
	for _, a := range []history.Archive{first, second} {
		if got, err := restore.Find(m, h, restore.Name(h, "s", a)); err != nil || got.ID != a.ID {
			t.Errorf("%s: %v, %v", restore.Name(h, "s", a), got, err)
		}
	}
	for _, spec := range []string{"s@20", "t", "s@1999", "", "t@"} {
		if a, err := restore.Find(m, h, spec); !errors.Is(err, restore.ErrNoArchive) {
			t.Errorf("%q: %v, %v", spec, a, err)
		}
	}
	if _, err := restore.Find(m, h, "s@20"); strings.Contains(err.Error(), "no such archive") || !strings.Contains(err.Error(), restore.Name(h, "s", second)) {
		t.Errorf("a name that two archives have: %v", err)
	}
	// A partial archive is not the latest, but can be named.
	h.Archives[1].Commit.Partial = true
	if a, err := restore.Find(m, h, "s"); err != nil || a.ID != first.ID {
		t.Errorf("latest complete: %v, %v", a, err)
	}
	if a, err := restore.Find(m, h, restore.Name(h, "s", second)); err != nil || a.ID != second.ID {
		t.Errorf("partial by name: %v, %v", a, err)
	}
}

// TestServiceGoesDuringWalk: the archive's tree cannot be read to its end while nothing waits to be written.
// That is an interruption like any other: the same command goes on later.
func TestServiceGoesDuringWalk(t *testing.T) {
	w := newWorld(t, nil)
	const dirs = 8000 // with long names, so that the tree is read in several steps
	for i := range dirs {
		if err := os.MkdirAll(filepath.Join(w.dir, fmt.Sprintf("%04d-%x", i, content(i, 120))), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.backup()
	c := w.svc.Dial(remote.Options{Patience: -1})
	v, err := restore.Open(t.Context(), w.svc.Machine, c)
	if err != nil {
		t.Fatal(err)
	}
	fetches := 0
	w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/fetch") {
			return false
		}
		if fetches++; fetches <= 3 {
			return false
		}
		rw.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	out := filepath.Join(t.TempDir(), "out")
	_, err = v.Extract(t.Context(), w.a, out, restore.Options{})
	var away *remote.UnavailableError
	if !errors.As(err, &away) {
		t.Fatalf("got %v after %d fetches, want that the service is away", err, fetches)
	}
	w.svc.Hook = nil
	if _, _, err := w.extract(out); err != nil {
		t.Fatalf("going on: %v", err)
	}
	if es, err := os.ReadDir(out); err != nil || len(es) != dirs { // and no staging directory
		t.Errorf("%d of %d directories, %v", len(es), dirs, err)
	}
}

// TestFindLeavesDeleted: the latest is the latest that is not deleted; those that are can be named exactly.
func TestFindLeavesDeleted(t *testing.T) {
	m := remotetest.New(t).Machine
	s := m.Series("s")
	live := history.Archive{ID: holdfast.RecordID{1}, Time: 1e18, Commit: history.Commit{Series: s}}
	gone := history.Archive{ID: holdfast.RecordID{2}, Time: 2e18, Commit: history.Commit{Series: s}, State: history.Deleted}
	h := &history.Vault{Archives: []history.Archive{live, gone}}
	if a, err := restore.Find(m, h, "s"); err != nil || a.ID != live.ID {
		t.Errorf("the latest is %.8s, %v", a.ID, err)
	}
	name := restore.Name(h, "s", gone)
	if a, err := restore.Find(m, h, name); err != nil || a.ID != gone.ID {
		t.Errorf("a deleted archive, named exactly, is %.8s, %v", a.ID, err)
	}
	if _, err := restore.Find(m, h, name, history.Live); !errors.Is(err, restore.ErrNoArchive) {
		t.Errorf("a deleted archive among the live ones: %v", err)
	}
	h.Archives = h.Archives[1:]
	if _, err := restore.Find(m, h, "s"); !errors.Is(err, restore.ErrNoArchive) || !strings.Contains(err.Error(), "deleted") {
		t.Errorf("a series of which all is deleted: %v", err)
	}
}

// TestFindByID: what has no other name of its own can be named by its id. A series of that name goes first.
func TestFindByID(t *testing.T) {
	m := remotetest.New(t).Machine
	s := m.Series("s")
	id := func(text string) (id holdfast.RecordID) {
		copy(id[:], text)
		return id
	}
	one := history.Archive{ID: id("\x12\x34\x56\x78\x9a"), Time: 1e18, Commit: history.Commit{Series: s}}
	two := history.Archive{ID: id("\x12\x34\x56\x78\x9b"), Time: 1e18, Commit: history.Commit{Series: s}}
	other := history.Archive{ID: id("\xab\xcd\xef\x01"), Time: 1e18, Commit: history.Commit{Series: m.Series("123456789b")}}
	h := &history.Vault{Archives: []history.Archive{one, two}}
	for spec, want := range map[string]history.Archive{"123456789a": one, "123456789b": two, two.ID.String(): two} {
		if a, err := restore.Find(m, h, spec); err != nil || a.ID != want.ID {
			t.Errorf("%s: %.16s, %v", spec, a.ID, err)
		}
	}
	for _, spec := range []string{"1234567", "12345678", "123456789", "123456789c", "123456789A", "@123456789a"} {
		if a, err := restore.Find(m, h, spec); !errors.Is(err, restore.ErrNoArchive) {
			t.Errorf("%q is %.16s, %v", spec, a.ID, err)
		}
	}
	if _, err := restore.Find(m, h, "12345678"); !strings.Contains(err.Error(), one.ID.String()) || !strings.Contains(err.Error(), two.ID.String()) {
		t.Errorf("ids that begin alike: %v", err)
	}
	// Of one time: the message says how they can be told apart.
	if _, err := restore.Find(m, h, restore.Name(h, "s", one)); !errors.Is(err, restore.ErrNoArchive) || !strings.Contains(err.Error(), "123456789a") {
		t.Errorf("two archives of one time: %v", err)
	}
	h.Archives = append(h.Archives, other)
	if a, err := restore.Find(m, h, "123456789b"); err != nil || a.ID != other.ID {
		t.Errorf("a series that is called like an id: %.16s, %v", a.ID, err)
	}
	if _, err := restore.Find(m, h, "123456789b", history.Deleted); !errors.Is(err, restore.ErrNoArchive) {
		t.Errorf("a series that is called like an id, none of it deleted: %v", err)
	}
	if _, err := restore.Find(m, h, "123456789a", history.Deleted); !errors.Is(err, restore.ErrNoArchive) {
		t.Errorf("an archive that is not deleted among those that are: %v", err)
	}
}
