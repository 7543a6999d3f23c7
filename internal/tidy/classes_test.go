package tidy

import (
	"fmt"
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

// TestScenariosAreTested: docs/decisions/tests.md has a row for each scenario, with tests that are there, of which one at
// least has its number.
func TestScenariosAreTested(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "docs/decisions/tests.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, begun := strings.Cut(string(raw), "<!-- scenarios: begin -->")
	table, _, ended := strings.Cut(table, "<!-- scenarios: end -->")
	if !begun || !ended {
		t.Fatal("docs/decisions/tests.md has no table of scenarios between its marks")
	}
	const last = 16
	have, rows := tests(t), map[string]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || strings.HasPrefix(cells[1], "---") || strings.TrimSpace(cells[1]) == "scenario" {
			continue
		}
		id := strings.TrimSpace(cells[1])
		rows[id] = true
		named := namedTest.FindAllStringSubmatch(cells[3], -1)
		its := regexp.MustCompile("^TestScenario" + id + "([^0-9]|$)")
		own := false
		for _, m := range named {
			if !have[m[1]][m[2]] {
				t.Errorf("%s names %s in %s, which is not there", id, m[2], m[1])
			}
			own = own || its.MatchString(m[2])
		}
		if !own {
			t.Errorf("%s has no test of its own", id)
		}
	}
	for n := 1; n <= last; n++ {
		if id := fmt.Sprint("S", n); !rows[id] {
			t.Errorf("no row for scenario %s", id)
		}
	}
	if len(rows) != last {
		t.Errorf("%d scenarios, want %d", len(rows), last)
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
