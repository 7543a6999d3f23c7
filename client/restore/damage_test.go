package restore_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/restore"
	"holdfast/client/tree"
	"holdfast/history"
	"holdfast/wire"
)

// TestLostLeafLeavesTheRest takes away one leaf of an archive's tree after another: what is in the others
// comes back, and what is not is named and counted.
func TestLostLeafLeavesTheRest(t *testing.T) {
	w := newWorld(t, map[string]int{"first": 1000, "last": 2000})
	const files = 1500
	for i := range files {
		w.write(fmt.Sprintf("d/%04d-%x", i, content(i, 60)), content(i, 3))
	}
	w.backup()
	root, err := w.v.Root(t.Context(), w.a)
	if err != nil || root.Height < 2 {
		t.Fatalf("a tree of %d levels: %v", root.Height, err)
	}
	leaves := 0
	h, _, err := wire.ParseBlockHeader(w.svc.Blocks[root.Tree])
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range h.Links {
		b := w.svc.Blocks[n]
		leaves++
		b[len(b)-1] ^= 1
		w.open()
		out := filepath.Join(t.TempDir(), "out")
		res, problems, err := w.extract(out)
		if err != nil || res.Damaged == 0 || res.Damaged != res.Problems || len(problems) == 0 {
			t.Errorf("extract: %+v, %v, %v", res, problems, err)
		}
		if got := uint64(len(found(t, out))); got < res.Entries-res.Problems-2 || res.Entries != root.Entries {
			t.Errorf("%d of %d paths came back, %d are told of as missing", got, res.Entries, res.Problems)
		}
		for _, p := range problems {
			if !restore.Damaged(p.Err) || !strings.Contains(p.Err.Error(), "up to") {
				t.Errorf("%s: %v", p.Path, p.Err)
			}
		}
		all, err := w.v.Verify(t.Context(), []history.Archive{w.a}, restore.Options{}, nil)
		if err != nil || len(all) != 1 || all[0].Err != nil || all[0].Result.Damaged != res.Damaged {
			t.Errorf("verify: %+v, %v", all, err)
		}
		b[len(b)-1] ^= 1
	}
	if leaves < 3 {
		t.Errorf("%d leaves", leaves)
	}
}

// commit stores an archive of these entries as a writer could who does not keep to the rules.
func (w *world) commit(entries ...*archive.Entry) {
	w.t.Helper()
	ctx := w.t.Context()
	sess, err := w.c.OpenSession(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	defer sess.Close()
	keys := w.svc.Machine.GroupKeys()
	put := func(kind holdfast.Kind, plain []byte, links []holdfast.Name) holdfast.Name {
		name := keys.NameOf(kind, plain)
		sealed, err := sess.Secret().Seal(name, kind, plain, links, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := sess.Upload(ctx, name, sealed); err != nil {
			w.t.Fatal(err)
		}
		return name
	}
	b := tree.NewBuilder(&keys.Meta, func(_ context.Context, kind holdfast.Kind, plain []byte, links []holdfast.Name) (holdfast.Name, error) {
		return put(kind, plain, links), nil
	})
	for _, e := range entries {
		if err := b.Add(ctx, e); err != nil {
			w.t.Fatal(err)
		}
	}
	root := archive.Root{Series: "s", Roots: []string{"."}}
	if root.Tree, root.Height, err = b.Finish(ctx); err != nil {
		w.t.Fatal(err)
	}
	root.Entries, root.Bytes = b.Entries(), b.Bytes()
	plain, links, err := root.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	name := put(holdfast.KindArchive, plain, links)
	if err := sess.Drain(ctx); err != nil {
		w.t.Fatal(err)
	}
	if w.a, err = sess.Commit(ctx, history.Commit{Series: w.svc.Machine.Series("s"), Root: name, Blocks: sess.Stats().Stored}); err != nil {
		w.t.Fatal(err)
	}
	w.open()
}

// TestHardLinksLeadToFiles: a hard link to nothing, or to something else, is found by verify, and by extract.
func TestHardLinksLeadToFiles(t *testing.T) {
	file := &archive.Entry{Path: "a", Type: archive.TypeFile, Mode: 0o644}
	fifo := &archive.Entry{Path: "b", Type: archive.TypeFIFO, Mode: 0o644}
	link := func(path, to string) *archive.Entry {
		return &archive.Entry{Path: path, Type: archive.TypeFile, Mode: 0o644, Link: to}
	}
	for what, v := range map[string]struct {
		entries []*archive.Entry
		bad     []string
	}{
		"right ones":         {[]*archive.Entry{file, fifo, link("c", "a"), link("d", "a")}, nil},
		"to nothing":         {[]*archive.Entry{file, link("c", "aa"), link("d", "a"), link("e", "aa")}, []string{"c", "e"}},
		"to a FIFO":          {[]*archive.Entry{file, fifo, link("c", "b")}, []string{"c"}},
		"to another link":    {[]*archive.Entry{file, link("c", "a"), link("d", "c")}, []string{"d"}},
		"to what is missing": {[]*archive.Entry{file, link("c", "a/b")}, []string{"c"}},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, nil)
			w.commit(v.entries...)
			var told []string
			opt := restore.Options{Problem: func(p restore.Problem) {
				told = append(told, p.Path)
				if !restore.Damaged(p.Err) {
					t.Errorf("%s: %v", p.Path, p.Err)
				}
			}}
			all, err := w.v.Verify(t.Context(), []history.Archive{w.a}, opt, nil)
			if err != nil || all[0].Err != nil || all[0].Result.Damaged != uint64(len(v.bad)) || !slices.Equal(told, v.bad) {
				t.Errorf("verify: %+v, told of %v, want %v: %v", all, told, v.bad, err)
			}
			for _, p := range v.bad { // chosen alone, it would stand for its file
				told = nil
				out := filepath.Join(t.TempDir(), "out")
				opt.Paths = []string{p}
				res, err := w.v.Extract(t.Context(), w.a, out, opt)
				if _, serr := os.Lstat(filepath.Join(out, p)); err != nil || res.Damaged != 1 || serr == nil {
					t.Errorf("extract of %s: %+v, %v", p, res, err)
				}
			}
		})
	}
}
