package tidy

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest  = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz|Benchmark)[A-Za-z0-9_]+)`")
	testFunc   = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	noDecoders = map[string]string{"client/chunk": "it cuts what it is given and decodes nothing"}
)

// tests returns the names of the tests of each directory.
func tests(t *testing.T) map[string]map[string]bool {
	t.Helper()
	all := map[string]map[string]bool{}
	for _, file := range tracked(t, "_test.go") {
		raw, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		dir := path.Dir(file)
		if all[dir] == nil {
			all[dir] = map[string]bool{}
		}
		for _, m := range testFunc.FindAllSubmatch(raw, -1) {
			all[dir][string(m[1])] = true
		}
	}
	return all
}

// TestClassesAreTested: docs/decisions/tests.md lists what must be caught and the tests that catch it, and each is there.
func TestClassesAreTested(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "docs/decisions/tests.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, begun := strings.Cut(string(raw), "<!-- classes: begin -->")
	table, _, ended := strings.Cut(table, "<!-- classes: end -->")
	if !begun || !ended {
		t.Fatal("docs/decisions/tests.md has no table of classes between its marks")
	}
	have := tests(t)
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[1]) == "class" {
			continue
		}
		rows++
		named := namedTest.FindAllStringSubmatch(cells[2], -1)
		if len(named) == 0 {
			t.Errorf("no test for %q", strings.TrimSpace(cells[1]))
		}
		for _, m := range named {
			if !have[m[1]][m[2]] {
				t.Errorf("docs/decisions/tests.md names %s in %s, which is not there", m[2], m[1])
			}
		}
	}
	if rows != 14 {
		t.Errorf("%d classes, want 14", rows)
	}
}

// TestDecodersHaveCeilings: where something is fuzzed, it is held to a ceiling on memory as well.
func TestDecodersHaveCeilings(t *testing.T) {
	for dir, names := range tests(t) {
		fuzzed := false
		for name := range names {
			fuzzed = fuzzed || strings.HasPrefix(name, "Fuzz")
		}
		if fuzzed && !names["TestMemoryCeiling"] && noDecoders[dir] == "" {
			t.Errorf("%s has fuzz targets and no TestMemoryCeiling", dir)
		}
	}
}
