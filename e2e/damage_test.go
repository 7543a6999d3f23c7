//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	hf "holdfast"
	"holdfast/service/segment"
)

// spoil flips bits in the middle of a stored block that pick chooses, in the bucket.
func spoil(t *testing.T, s *service, pick func(segment.Stored) bool) {
	t.Helper()
	var objects []string
	if err := filepath.WalkDir(s.bucket, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			objects = append(objects, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, p := range objects {
		rel, err := filepath.Rel(s.bucket, p)
		if err != nil {
			t.Fatal(err)
		}
		k, err := segment.ParseKey(filepath.ToSlash(rel))
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		tr, err := segment.ParseTrailer(raw[len(raw)-int(k.Trailer):])
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range tr.Records {
			if b, ok := r.Record.(segment.Stored); ok && pick(b) {
				raw[b.Off+b.Len/2] ^= 0xff
				overwriteObject(t, p, raw)
				return
			}
		}
	}
	t.Fatal("the bucket has no such block")
}

// TestDamagedLeaf: a part of an archive's list of paths is damaged in the bucket. List, extract and verify go past
// it, name it, and end with 4.
func TestDamagedLeaf(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	const files = 1500
	for i := range files {
		write(t, filepath.Join(dir, "tree", fmt.Sprintf("%04d-%s", i, strings.Repeat("x", 150))), fmt.Sprint(i))
	}
	c.ok("create", "-C", dir, "s", "tree")
	nodes := map[hf.Name]segment.Stored{}
	for _, r := range journal(t, s) {
		if b, ok := r.Record.(segment.Stored); ok && b.Kind == hf.KindTree {
			nodes[b.Name] = b
		}
	}
	inner := func(b segment.Stored) bool {
		for _, l := range b.Links {
			if _, ok := nodes[l]; ok {
				return true
			}
		}
		return false
	}
	var leaves int
	for _, b := range nodes {
		if !inner(b) {
			leaves++
		}
	}
	if leaves < 2 {
		t.Fatalf("a tree of %d leaves", leaves)
	}
	spoil(t, s, func(b segment.Stored) bool { return b.Kind == hf.KindTree && !inner(b) })

	var listed int
	o := c.exits(4, "list", "s")
	for line := range strings.Lines(o.stdout) {
		if strings.Contains(line, "xxx") {
			listed++
		}
	}
	c.has(o, "cannot be read from here up to")
	if listed == 0 || listed >= files {
		t.Errorf("%d of %d files are listed", listed, files)
	}
	var doc struct{ Entries []struct{ Path string } }
	if o := c.exits(4, "list", "s", "--json"); json.Unmarshal([]byte(o.stdout), &doc) != nil || len(doc.Entries) < listed || len(doc.Entries) > listed+1 {
		t.Errorf("list --json has %d entries", len(doc.Entries))
	}
	out := filepath.Join(dir, "out")
	o = c.exits(4, "extract", "s", "--target", out)
	c.has(o, "cannot be read from here up to")
	found, err := filepath.Glob(filepath.Join(out, "tree", "*xxx"))
	if err != nil || len(found) != listed {
		t.Errorf("%d files were restored, %d are listed: %v", len(found), listed, err)
	}
	for _, p := range found {
		var i int
		got, err := os.ReadFile(p)
		if n, serr := fmt.Sscanf(filepath.Base(p), "%04d-", &i); n != 1 || serr != nil || err != nil || string(got) != fmt.Sprint(i) {
			t.Errorf("%.8s came back as %q: %v", filepath.Base(p), got, err)
		}
	}
	c.has(c.exits(4, "verify"), "cannot be read from here up to")
}

// TestArchiveByID: two archives that one time names are told apart by their ids.
func TestArchiveByID(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := newClient(t, s)
	dir := scratch(t)
	var docs []struct{ ID, Archive, Time string }
	for i := range 2 {
		write(t, filepath.Join(dir, "tree", "f"), fmt.Sprint(i))
		c.ok("create", "-C", dir, "s", "tree")
	}
	if err := json.Unmarshal([]byte(c.ok("list", "--json").stdout), &docs); err != nil || len(docs) != 2 || docs[0].ID == docs[1].ID || docs[0].Time == docs[1].Time {
		t.Fatalf("list --json: %+v, %v", docs, err)
	}
	c.has(c.exits(1, "list", "s@20"), docs[0].ID[:16])
	for i, d := range docs {
		for n, name := range []string{d.ID[:8], d.ID} {
			out := filepath.Join(dir, fmt.Sprint("out", i, n))
			c.ok("extract", name, "--target", out)
			if got, err := os.ReadFile(filepath.Join(out, "tree", "f")); err != nil || string(got) != fmt.Sprint(i) {
				t.Errorf("extract %s: %q, %v", name, got, err)
			}
		}
	}
	c.exits(1, "extract", docs[0].ID[:7], "--target", filepath.Join(dir, "none"))
}
