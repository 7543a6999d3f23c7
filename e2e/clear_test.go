//go:build linux

package e2e

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"holdfast/history"
	"holdfast/service/segment"
	"holdfast/wire"
)

// TestEverythingInClear lists, for a known backup, every field that the service stores unencrypted, and
// compares the list with the table in docs/security.md. Then it looks for what must not be there.
func TestEverythingInClear(t *testing.T) {
	t.Parallel()
	s := newService(t)
	c := unenrolled(t)
	c.ok("init", "--token", s.token("Ada-in-clear"), "--key", c.key(), "--owner", filepath.Join(c.dir, "owner"))
	dir := scratch(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{
		"a file's name":      "MARKER-file-name",
		"a directory's name": "MARKER-directory-name",
		"a link's target":    "MARKER-link-target",
		"a file's content":   "MARKER-file-content",
		"the series":         "MARKER-series",
		"an exclude pattern": "MARKER-exclude",
		"the path of -C":     filepath.Base(dir),
	}
	if len(host) >= 4 { // shorter ones occur by chance
		secrets["the host's name"] = host
	}
	write(t, filepath.Join(dir, "MARKER-directory-name", "MARKER-file-name"), strings.Repeat("MARKER-file-content ", 1000))
	write(t, filepath.Join(dir, "MARKER-directory-name", "MARKER-exclude-this"), "x")
	writeNoise(t, filepath.Join(dir, "MARKER-directory-name", "large"), 1, 3<<20)
	if err := os.Symlink("MARKER-link-target", filepath.Join(dir, "MARKER-directory-name", "link")); err != nil {
		t.Fatal(err)
	}
	c.ok("create", "-C", dir, "--exclude", "MARKER-exclude*", "MARKER-series", "MARKER-directory-name")
	s.stop()

	found := map[string]bool{}
	for _, r := range journal(t, s) {
		switch r := r.Record.(type) {
		case segment.History:
			fields(found, "history", r, "Entry.Record.Body")
			body, err := history.ParseBody(r.Entry.Record.Body)
			if err != nil {
				t.Fatal(err)
			}
			fields(found, "body", body, "Fields")
			parsed, err := parseFields(body)
			if err != nil {
				t.Fatal(err)
			}
			fields(found, body.Type.String(), parsed)
		default:
			fields(found, r.Type().String(), r)
		}
	}
	found["record.Time"] = true // of every record, journal time
	for _, k := range []any{segment.Key{}} {
		fields(found, "key", k)
	}
	fields(found, "trailer", segment.Trailer{}, "Records")
	fields(found, "block", wire.BlockHeader{})
	found["block.length"] = true
	found["epoch object"] = true
	if err := filepath.WalkDir(s.data, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if rel, err := filepath.Rel(s.data, p); err == nil && rel != "." {
			top, _, below := strings.Cut(rel, "/")
			if below || !e.IsDir() {
				found["data/"+top] = true
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	if strings.Contains(s.log.String(), "room is getting short") {
		found["data/ballast"] = true // it is not made on a disk that is nearly full, as this one is
	}

	var is []string
	for f := range found {
		is = append(is, f)
	}
	slices.Sort(is)
	said := documentedInClear(t)
	for _, f := range is {
		if !slices.Contains(said, f) {
			t.Errorf("the service stores %s in clear, and docs/security.md does not say so", f)
		}
	}
	for _, f := range said {
		if !found[f] {
			t.Errorf("docs/security.md says that the service stores %s in clear, but this backup shows no such thing", f)
		}
	}

	// What is written is what was listed: none of the secrets is anywhere, the account's name is.
	seen := map[string]bool{}
	for _, place := range []string{s.bucket, s.data} {
		if err := filepath.WalkDir(place, func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return err
			}
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			for what, secret := range secrets {
				if bytes.Contains(raw, []byte(secret)) || strings.Contains(p, secret) {
					t.Errorf("%s is in %s", what, p)
				}
			}
			if bytes.Contains(raw, []byte("Ada-in-clear")) {
				seen["account"] = true
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if !seen["account"] {
		t.Error("the search does not even find the account's name, which is in clear")
	}
	for what, secret := range secrets {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("%s is in the service's log", what)
		}
	}
}

func parseFields(b history.Body) (any, error) {
	switch b.Type {
	case history.TypeGenesis:
		return history.ParseGenesis(b.Fields)
	case history.TypeEnrol:
		return history.ParseEnrol(b.Fields)
	case history.TypeOpen:
		return history.ParseOpen(b.Fields)
	default:
		return history.ParseCommit(b.Fields)
	}
}

// fields adds the names of all fields of a struct, those of structs within it by their path.
func fields(into map[string]bool, prefix string, v any, without ...string) {
	var walk func(path string, typ reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			into[prefix+"."+path] = true
			return
		}
		for f := range typ.Fields() {
			at := strings.TrimPrefix(path+"."+f.Name, ".")
			if !slices.Contains(without, at) {
				walk(at, f.Type)
			}
		}
	}
	walk("", reflect.TypeOf(v))
}

var inCode = regexp.MustCompile("`([^`]+)`")

// documentedInClear returns the names in the first column of the table in docs/security.md.
func documentedInClear(t *testing.T) []string {
	t.Helper()
	raw, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(raw), "<!-- in clear: begin -->")
	table, _, ok2 := strings.Cut(table, "<!-- in clear: end -->")
	if !ok || !ok2 {
		t.Fatal("docs/security.md has no table of what is in clear")
	}
	var out []string
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for _, m := range inCode.FindAllStringSubmatch(cells[1], -1) {
			out = append(out, m[1])
		}
	}
	return out
}
