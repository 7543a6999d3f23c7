//go:build linux

package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"holdfast/history"
	"holdfast/service/segment"
)

// journal reads all records of the service's bucket, in order, with nothing but the documented format.
func journal(t testing.TB, s *service) []segment.Timed {
	t.Helper()
	type object struct {
		key  segment.Key
		path string
	}
	var objects []object
	err := filepath.WalkDir(s.bucket, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(s.bucket, p)
		if err != nil {
			return err
		}
		if k, err := segment.ParseKey(filepath.ToSlash(rel)); err == nil {
			objects = append(objects, object{k, p})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(objects, func(a, b object) int {
		return a.key.Position.Compare(b.key.Position)
	})
	var out []segment.Timed
	for _, o := range objects {
		f, err := os.Open(o.path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		raw := make([]byte, o.key.Trailer)
		if _, err := f.ReadAt(raw, info.Size()-int64(len(raw))); err != nil {
			t.Fatal(err)
		}
		f.Close()
		tr, err := segment.ParseTrailer(raw)
		if err != nil {
			t.Fatalf("%s: %v", o.path, err)
		}
		out = append(out, tr.Records...)
	}
	if len(out) == 0 {
		t.Fatal("the bucket holds no records")
	}
	return out
}

// storedKinds returns the sealed bytes by kind that were stored after the n-1-th commit of the journal
// up to the n-th; n = 0 counts everything.
func storedKinds(t testing.TB, s *service, n int) map[string]int64 {
	t.Helper()
	kinds := map[string]int64{}
	commits := 1
	for _, r := range journal(t, s) {
		switch r := r.Record.(type) {
		case segment.Stored:
			if n == 0 || commits == n {
				kinds[r.Kind.String()] += int64(r.Len)
			}
		case segment.History:
			if body, err := history.ParseBody(r.Entry.Record.Body); err != nil {
				t.Fatal(err)
			} else if body.Type == history.TypeCommit {
				commits++
			}
		}
	}
	return kinds
}

// commits counts the archives that the journal holds.
func commits(t testing.TB, s *service) int {
	t.Helper()
	n := 0
	for _, r := range journal(t, s) {
		if h, ok := r.Record.(segment.History); ok {
			if body, err := history.ParseBody(h.Entry.Record.Body); err != nil {
				t.Fatal(err)
			} else if body.Type == history.TypeCommit {
				n++
			}
		}
	}
	return n
}
