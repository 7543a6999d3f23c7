package backup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/backup"
	"holdfast/client/remote"
	"holdfast/client/remote/remotetest"
	"holdfast/client/restore"
	"holdfast/client/source"
	"holdfast/wire"
)

// world is a service, a machine and a tree.
type world struct {
	t     *testing.T
	svc   *remotetest.Service
	c     *remote.Client
	dir   string
	cache string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, svc: remotetest.New(t), dir: t.TempDir(), cache: t.TempDir()}
	w.svc.Links = true
	w.c = w.svc.Enrol(remote.Options{CacheDir: w.cache})
	return w
}

func (w *world) config() backup.Config {
	return backup.Config{Machine: w.svc.Machine, Client: w.c, Series: "s", Base: w.dir, Roots: []string{"tree"}, CacheDir: w.cache}
}

func (w *world) run(cfg backup.Config) backup.Result {
	w.t.Helper()
	r, err := backup.Run(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// write writes a file of pseudo-random bytes.
func (w *world) write(path string, seed byte, size int) {
	w.t.Helper()
	p := filepath.Join(w.dir, "tree", path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		w.t.Fatal(err)
	}
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed, byte(size)}).Read(b)
	if err := os.WriteFile(p, b, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// settle waits until no file of the tree is so new that it would be read again for that.
func (w *world) settle() {
	w.t.Helper()
	for recent := true; recent; {
		recent = false
		err := source.Walk(w.t.Context(), w.dir, []string{"tree"}, source.Options{}, func(it *source.Item) error {
			recent = recent || it.Stat.Recent(time.Now())
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
		<-time.After(50 * time.Millisecond) // the file system's clock cannot be set
	}
}

// restored extracts the latest archive and compares file contents with the tree's.
func (w *world) restored() {
	w.t.Helper()
	v, err := restore.Open(w.t.Context(), w.svc.Machine, w.c)
	if err != nil {
		w.t.Fatal(err)
	}
	a, err := restore.Find(w.svc.Machine, v.History, "s")
	if err != nil {
		w.t.Fatal(err)
	}
	out := filepath.Join(w.t.TempDir(), "out")
	res, err := v.Extract(w.t.Context(), a, out, restore.Options{Problem: func(p restore.Problem) { w.t.Errorf("%s: %v", p.Path, p.Err) }})
	if err != nil || res.Problems > 0 {
		w.t.Fatalf("extract: %+v, %v", res, err)
	}
	var files []os.FileInfo // each once, whatever its names
	if err := filepath.WalkDir(filepath.Join(w.dir, "tree"), func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(files, func(f os.FileInfo) bool { return os.SameFile(f, info) }) {
			files = append(files, info)
		}
		rel, _ := filepath.Rel(w.dir, p)
		want, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(out, rel))
		if err != nil || !bytes.Equal(got, want) {
			w.t.Errorf("%s came back with %d bytes, want %d: %v", rel, len(got), len(want), err)
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	if uint64(len(files)) != res.Files {
		w.t.Errorf("%d files restored of %d", res.Files, len(files))
	}
}

func (w *world) tree() {
	w.t.Helper()
	for i := range 300 {
		w.write(fmt.Sprintf("small/%03d", i), byte(i), 100+37*i)
	}
	w.write("empty", 0, 0)
	w.write("edge", 1, backup.SmallFile)
	w.write("beyond", 2, backup.SmallFile+1)
	w.write("large", 3, 5<<20)
}

func TestSecondRunReadsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tree()
	w.settle()
	first := w.run(w.config())
	if first.FilesRead != 304 || first.Previous || first.Counts.Unchanged != 0 || !first.Complete() {
		t.Errorf("first run: %+v", first)
	}
	w.restored()
	second := w.run(w.config())
	if second.FilesRead != 0 || second.BytesRead != 0 || second.DataBlocks != 0 || second.Counts.Stored != 0 || second.MetaBlocks != 1 || !second.Previous {
		t.Errorf("second run: %+v", second)
	}
	w.restored()

	dry := w.config()
	dry.DryRun = true
	w.write("large", 9, 5<<20)
	before := len(w.svc.Entries)
	res := w.run(dry)
	if res.FilesRead != 1 || res.BytesRead != 5<<20 || len(w.svc.Entries) != before {
		t.Errorf("dry run: %+v, and %d new records", res, len(w.svc.Entries)-before)
	}

	// Without the catalog everything is read, and nothing but the changed file is new.
	blind := w.config()
	blind.CacheDir = ""
	third := w.run(blind)
	if third.FilesRead != 304 || third.DataBytes > 5<<20 {
		t.Errorf("run without a catalog: %+v", third)
	}
	w.restored()
}

// TestMissingBlocksAreReadAgain takes blocks from the service that the catalog relies on.
func TestMissingBlocksAreReadAgain(t *testing.T) {
	t.Parallel()
	for _, kind := range []holdfast.Kind{holdfast.KindChunk, holdfast.KindPack, holdfast.KindTree} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.tree()
			w.settle()
			w.run(w.config())
			// Lose all blocks of the kind, and the trees above them, which a service does not keep without.
			for n, b := range w.svc.Blocks {
				if k := holdfast.Kind(b[2]); k == kind || !k.Leaf() {
					delete(w.svc.Blocks, n)
				}
			}
			r := w.run(w.config())
			if kind.Leaf() && r.Runs < 2 {
				t.Errorf("the archive was committed without its blocks: %+v", r)
			}
			w.restored()
		})
	}
}

// TestPartialArchives commits after every file or so.
func TestPartialArchives(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tree()
	w.settle()
	cfg := w.config()
	cfg.Partial = time.Nanosecond
	ctx, cancel := context.WithCancel(t.Context())
	sessions := 0
	w.svc.After = func(path string) bool {
		if path == "sessions" {
			if sessions++; sessions == 4 { // after three partial archives
				cancel()
			}
		}
		return false
	}
	if _, err := backup.Run(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted run: %v", err)
	}
	w.svc.After = nil
	cfg.Partial = 0
	r := w.run(cfg)
	if n := len(w.svc.Vault.Archives); n != 4 || !w.svc.Vault.Archives[0].Commit.Partial || w.svc.Vault.Archives[3].Commit.Partial {
		t.Errorf("%d archives", n)
	}
	if !r.Previous || r.Counts.Unchanged == 0 {
		t.Errorf("what the partial archives hold was read again: %+v", r)
	}
	w.restored()
}

// TestOutOfCreditAfterPartialArchives: what was committed before the account was not paid any more is the beginning of the run
// after it is.
func TestOutOfCreditAfterPartialArchives(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tree()
	w.settle()
	cfg := w.config()
	cfg.Partial = time.Nanosecond
	sessions := 0
	w.svc.Hook = func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != wire.PathSession {
			return false
		}
		if sessions++; sessions <= 3 {
			return false
		}
		rw.WriteHeader(wire.CodeOutOfCredit.Status())
		json.NewEncoder(rw).Encode(wire.Error{Code: wire.CodeOutOfCredit, Message: "The account is not paid."})
		return true
	}
	r, err := backup.Run(t.Context(), cfg)
	if wire.CodeOf(err) != wire.CodeOutOfCredit || r.Partials != 3 || r.Archive.N != 0 || sessions != 4 {
		t.Fatalf("%d sessions, %+v, %v", sessions, r, err)
	}
	w.svc.Hook = nil
	cfg.Partial = 0
	r = w.run(cfg)
	if n := len(w.svc.Vault.Archives); n != 4 || !w.svc.Vault.Archives[2].Commit.Partial || w.svc.Vault.Archives[3].Commit.Partial {
		t.Errorf("%d archives", n)
	}
	if !r.Previous || r.Counts.Unchanged == 0 {
		t.Errorf("what the partial archives hold was read again: %+v", r)
	}
	w.restored()
}

// TestSameContentStaysWhereItIs reads small files again, because they are fresh, and finds what it has.
func TestSameContentStaysWhereItIs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tree()
	w.run(w.config())
	w.write("small/100", 100, 100+37*100) // the same bytes at another time
	w.write("small/200", 7, 5000)
	r := w.run(w.config())
	if r.FilesRead < 2 || r.DataBlocks != 1 || r.DataBytes != 5000 {
		t.Errorf("one small file has another content: %+v", r)
	}
	w.restored()
}

// TestPacksAreRenewed changes most members of each pack over several runs.
func TestPacksAreRenewed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 200 {
		w.write(fmt.Sprintf("%03d", i), byte(i), 8000)
	}
	w.settle()
	w.run(w.config())
	for i := range 200 {
		if i%5 > 1 {
			w.write(fmt.Sprintf("%03d", i), byte(i+1), 8001)
		}
	}
	w.settle()
	second := w.run(w.config())
	third := w.run(w.config())
	if second.FilesRead != 120 {
		t.Errorf("second run read %d files", second.FilesRead)
	}
	if third.FilesRead != 80 || third.Counts.Unchanged != second.Counts.Unchanged+second.Counts.Stored {
		t.Errorf("third run: %+v", third)
	}
	if fourth := w.run(w.config()); fourth.FilesRead != 0 {
		t.Errorf("fourth run: %+v", fourth)
	}
	w.restored()
}

// TestScenarioC1MidFile makes a read fail in the middle of one large and one small file.
func TestScenarioC1MidFile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tree()
	cfg := w.config()
	var told []string
	cfg.Problem = func(v archive.Verdict) {
		if v.What != archive.Unreadable {
			t.Errorf("%+v", v)
		}
		told = append(told, v.Path)
	}
	cfg.Fault = func(path string, off uint64) error {
		if path == "tree/small/007" || (path == "tree/large" && off > 1<<20) {
			return syscall.EIO
		}
		return nil
	}
	r := w.run(cfg)
	if r.Complete() || r.Counts.Unreadable != 2 || strings.Join(told, " ") != "tree/large tree/small/007" {
		t.Errorf("%+v, told of %v", r, told)
	}
	v, err := restore.Open(t.Context(), w.svc.Machine, w.c)
	if err != nil {
		t.Fatal(err)
	}
	root, err := v.Root(t.Context(), r.Archive)
	if err != nil {
		t.Fatal(err)
	}
	e, err := v.Tree(r.Archive, root).Lookup(t.Context(), "tree/large")
	if err != nil || e.Flags&archive.FlagUnreadable == 0 || len(e.Extents) != 0 || e.Size != 5<<20 {
		t.Errorf("entry of the unreadable file: %+v, %v", e, err)
	}
	var listed []archive.Verdict
	if err := v.Verdicts(t.Context(), r.Archive, root, func(v archive.Verdict) error { listed = append(listed, v); return nil }); err != nil || len(listed) != 2 {
		t.Errorf("the archive lists %+v, %v", listed, err)
	}
	out := filepath.Join(t.TempDir(), "out")
	res, err := v.Extract(t.Context(), r.Archive, out, restore.Options{})
	if err != nil || res.Unread != 2 || res.Problems != 2 {
		t.Errorf("extract: %+v, %v", res, err)
	}
	if _, err := os.Lstat(filepath.Join(out, "tree/large")); err == nil {
		t.Error("an unreadable file came back")
	}
	// The next run reads them.
	next := w.run(w.config())
	if !next.Complete() {
		t.Errorf("next run: %+v", next)
	}
	w.restored()
}

// TestRestartsInTheMiddle makes the service forget the session again and again.
func TestRestartsInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.tree()
	w.write("larger", 4, 40<<20)
	batches := 0
	w.svc.After = func(path string) bool {
		if path == "blocks" {
			if batches++; batches%5 == 0 {
				w.svc.Restart()
				return true
			}
		}
		return false
	}
	w.run(w.config())
	if batches < 10 {
		t.Errorf("only %d uploads", batches)
	}
	w.svc.After = nil
	w.restored()
}

// TestHardLinksOfUnreadable lets a part of a file with two names be unreadable. Without an attribute its
// content is stored, and both names come back as one file; without content both names say so.
func TestHardLinksOfUnreadable(t *testing.T) {
	t.Parallel()
	for what, v := range map[string]struct {
		xattrs, content bool // can be read
		problems        int
	}{
		"attributes": {false, true, 1},
		"content":    {true, false, 2},
		"both":       {false, false, 2},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.write("a", 1, 3000)
			w.write("c", 2, 200<<10)
			for from, to := range map[string]string{"a": "b", "c": "d"} {
				if err := os.Link(filepath.Join(w.dir, "tree", from), filepath.Join(w.dir, "tree", to)); err != nil {
					t.Fatal(err)
				}
			}
			cfg := w.config()
			first := func(path string) bool { return path == "tree/a" || path == "tree/c" }
			cfg.FaultXattrs = func(path string) error {
				if first(path) && !v.xattrs {
					return syscall.EACCES
				}
				return nil
			}
			cfg.Fault = func(path string, off uint64) error {
				if first(path) && !v.content {
					return syscall.EIO
				}
				return nil
			}
			r := w.run(cfg)
			if r.Counts.Unreadable != uint64(2*v.problems) {
				t.Errorf("%d unreadable, want %d", r.Counts.Unreadable, 2*v.problems)
			}
			if v.content {
				w.restored()
				return
			}
			vault, err := restore.Open(t.Context(), w.svc.Machine, w.c)
			if err != nil {
				t.Fatal(err)
			}
			var told []string
			out := filepath.Join(t.TempDir(), "out")
			res, err := vault.Extract(t.Context(), r.Archive, out, restore.Options{Problem: func(p restore.Problem) { told = append(told, p.Path) }})
			if err != nil || res.Unread != 4 || strings.Join(told, " ") != "tree/a tree/b tree/c tree/d" {
				t.Errorf("extract: %+v, told of %v, %v", res, told, err)
			}
		})
	}
}

// TestPacksKeepFilesApart stores a file beside a secret one, both in one pack. Whether it holds the secret as
// well does not show in the pack's size, for any length of it, as it would if the two were compressed together.
func TestPacksKeepFilesApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rnd := func(seed byte, n int) []byte {
		b := make([]byte, n)
		rand.NewChaCha8([32]byte{seed}).Read(b)
		return b
	}
	put := func(name string, parts ...[]byte) {
		if err := errors.Join(os.MkdirAll(filepath.Join(w.dir, "tree"), 0o755), os.WriteFile(filepath.Join(w.dir, "tree", name), bytes.Join(parts, nil), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	text := bytes.Repeat([]byte("All work and no play. "), 100)
	secret := rnd(1, 3000)
	cfg := w.config()
	cfg.CacheDir = ""
	pack := func() (size int) {
		before := len(w.svc.Order)
		w.run(cfg)
		for _, n := range w.svc.Order[before:] {
			if holdfast.Kind(w.svc.Blocks[n][2]) == holdfast.KindPack {
				if size != 0 {
					t.Fatal("two packs")
				}
				size = len(w.svc.Blocks[n])
			}
		}
		return size
	}
	put("secret", text, secret)
	for filler := range 6 {
		var sizes [2]int
		for i, guess := range [][]byte{rnd(2, 3000), secret} {
			put("guess", text, guess, rnd(3, 1000+200*filler))
			sizes[i] = pack()
		}
		if sizes[0] == 0 || sizes[0] != sizes[1] || sizes[0] > 2*len(text)+2*3000+1000+200*filler {
			t.Errorf("packs of %v bytes with a wrong guess and a right one", sizes)
		}
	}
}

// TestUploadAlways: the service is asked nothing, gets everything that is read, in each run, and the archive is whole.
func TestUploadAlways(t *testing.T) {
	w := newWorld(t)
	w.write("a", 1, 3<<20)
	w.write("b/c", 2, 100)
	for run := range 2 {
		cfg := w.config()
		cfg.CacheDir, cfg.UploadAlways = "", true
		r := w.run(cfg)
		if r.KnownBlocks != 0 || r.Sent < 3<<20 || r.BytesRead != 3<<20+100 {
			t.Errorf("run %d: %+v", run, r)
		}
	}
	if n := w.svc.Served["have"]; n != 0 {
		t.Errorf("the service was asked %d times which blocks it has", n)
	}
	if r := w.run(w.config()); r.DataBlocks != 0 || w.svc.Served["have"] == 0 {
		t.Errorf("a run that asks: %+v, %v", r, w.svc.Served)
	}
}
