package tidy

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// systems are the systems whose build tags are looked behind.
var systems = []string{"linux", "darwin", "freebsd", "windows"}

// pkg is what go list says of one package.
type pkg struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// packages lists the packages of the module with the imports that they have on any system.
func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	all := map[string]*pkg{}
	for _, goos := range systems {
		cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v\n%s", err, &stderr)
		}
		for dec := json.NewDecoder(bytes.NewReader(out)); ; {
			var p pkg
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if have := all[p.ImportPath]; have != nil {
				have.Imports = append(have.Imports, p.Imports...)
				have.TestImports = append(have.TestImports, p.TestImports...)
				have.XTestImports = append(have.XTestImports, p.XTestImports...)
			} else {
				all[p.ImportPath] = &p
			}
		}
	}
	if len(all) < 5 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

// within reports whether the package is dir or below it.
func within(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

func ours(pkg string) bool { return within(pkg, "holdfast") }

// walls says what of this module each part of it may import. The longest matching prefix counts.
// Tests are bound by it too, except that they may use internal/ freely.
var walls = map[string][]string{
	"holdfast":               {},
	"holdfast/internal":      {"holdfast/internal"},
	"holdfast/history":       {"holdfast/internal"},
	"holdfast/wire":          {"holdfast/internal", "holdfast/history"},
	"holdfast/client":        {"holdfast/internal", "holdfast/history", "holdfast/wire", "holdfast/client"},
	"holdfast/service":       {"holdfast/internal", "holdfast/history", "holdfast/wire", "holdfast/service"},
	"holdfast/watch":         {"holdfast/internal", "holdfast/history", "holdfast/wire", "holdfast/watch"},
	"holdfast/watch/probe":   {"holdfast/internal", "holdfast/history", "holdfast/wire", "holdfast/watch", "holdfast/client"},
	"holdfast/cmd/holdfast":  {"holdfast/internal", "holdfast/history", "holdfast/wire", "holdfast/client"},
	"holdfast/cmd/holdfastd": {"holdfast/internal", "holdfast/history", "holdfast/wire", "holdfast/service"},
	"holdfast/cmd/holdwatch": {"holdfast/internal", "holdfast/history", "holdfast/wire", "holdfast/watch"},
	"holdfast/e2e":           {"holdfast"}, // test files only
	"holdfast/docs/models":   {"holdfast/internal"},
	"holdfast/sim":           {"holdfast"}, // test files only
}

// breach says why importer may not import imported, or nothing.
func breach(importer, imported string) string {
	if !ours(imported) || imported == "holdfast" {
		return "" // the nouns are for everybody
	}
	best := ""
	for prefix := range walls {
		if within(importer, prefix) && len(prefix) > len(best) && (prefix != "holdfast" || importer == prefix) {
			best = prefix
		}
	}
	if best == "" {
		return "no rule says what " + importer + " may import: add one to walls"
	}
	for _, allowed := range walls[best] {
		if within(imported, allowed) {
			return ""
		}
	}
	return importer + " may not import " + imported
}

func TestImportWalls(t *testing.T) {
	for _, p := range packages(t) {
		imports := slices.Sorted(slices.Values(slices.Concat(p.Imports, p.TestImports, p.XTestImports)))
		for _, i := range slices.Compact(imports) {
			if i == p.ImportPath {
				continue
			}
			if why := breach(p.ImportPath, i); why != "" {
				t.Error(why)
			}
		}
		if (within(p.ImportPath, "holdfast/e2e") || within(p.ImportPath, "holdfast/sim")) && len(p.Imports) > 0 {
			t.Errorf("%s is for test files only", p.ImportPath)
		}
	}
}

func TestBreachFindsWhatItShould(t *testing.T) {
	for _, c := range []struct {
		importer, imported string
		ok                 bool
	}{
		{"holdfast/client/backup", "holdfast/service/journal", false},
		{"holdfast/service/serve", "holdfast/client/seal", false},
		{"holdfast/service/serve", "holdfast/client/keyring", false},
		{"holdfast/watch/probe", "holdfast/service/view", false},
		{"holdfast/watch/pager", "holdfast/client/backup", false},
		{"holdfast/watch/probe", "holdfast/client/backup", true},
		{"holdfast/cmd/holdfast", "holdfast/service/serve", false},
		{"holdfast/cmd/holdfastd", "holdfast/client/backup", false},
		{"holdfast", "holdfast/internal/enc", false},
		{"holdfast/internal/enc", "holdfast/client/seal", false},
		{"holdfast/wire", "holdfast/history", true},
		{"holdfast/history", "holdfast/wire", false},
		{"holdfast/odd", "holdfast/wire", false},
		{"holdfast/client/seal", "holdfast", true},
		{"holdfast/client/seal", "crypto/sha256", true},
	} {
		if got := breach(c.importer, c.imported) == ""; got != c.ok {
			t.Errorf("%s importing %s: allowed = %v, want %v", c.importer, c.imported, got, c.ok)
		}
	}
}

// dependency is one line of the table in docs/decisions/dependencies.md.
type dependency struct {
	module   string
	packages []string // that may import it; none if only tests do
}

const dependencies = "docs/decisions/dependencies.md"

// readDependencies reads the table "| module | imported by | why |".
func readDependencies(t *testing.T) []dependency {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, dependencies))
	if err != nil {
		t.Fatal(err)
	}
	var out []dependency
	for line := range strings.Lines(string(raw)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| `") || len(cells) != 3 {
			continue
		}
		d := dependency{module: strings.Trim(strings.TrimSpace(cells[0]), "`")}
		for p := range strings.SplitSeq(cells[1], ",") {
			if p = strings.Trim(strings.TrimSpace(p), "`"); p != "tests" {
				d.packages = append(d.packages, "holdfast/"+p)
			}
		}
		if len(strings.TrimSpace(cells[2])) < 20 {
			t.Errorf("%s gives no reason for %s", dependencies, d.module)
		}
		out = append(out, d)
	}
	return out
}

func TestDependencies(t *testing.T) {
	table := readDependencies(t)
	raw, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	var direct []string
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "require" && f[1] != "(" {
			f = f[1:]
		}
		if len(f) == 2 && strings.Contains(f[0], ".") && strings.HasPrefix(f[1], "v") {
			direct = append(direct, f[0])
		}
	}
	var named []string
	for _, d := range table {
		named = append(named, d.module)
	}
	slices.Sort(direct)
	slices.Sort(named)
	if !slices.Equal(direct, named) {
		t.Errorf("go.mod requires directly\n%q, but %s lists\n%q", direct, dependencies, named)
	}

	used := map[string][]string{} // module -> packages that import it outside tests
	usedByTests := map[string]bool{}
	for _, p := range packages(t) {
		for i, imports := range [][]string{p.Imports, slices.Concat(p.TestImports, p.XTestImports)} {
			slices.Sort(imports)
			for _, imp := range slices.Compact(imports) {
				if ours(imp) || !strings.Contains(strings.Split(imp, "/")[0], ".") {
					continue
				}
				at := -1 // of the innermost module that the package lies in
				for i, d := range table {
					if within(imp, d.module) && (at < 0 || len(d.module) > len(table[at].module)) {
						at = i
					}
				}
				if at < 0 {
					t.Errorf("%s imports %s, which %s does not list", p.ImportPath, imp, dependencies)
					continue
				}
				d := table[at]
				tests := i == 1
				if tests {
					usedByTests[d.module] = true
				} else {
					used[d.module] = append(used[d.module], p.ImportPath)
				}
				if !slices.Contains(d.packages, p.ImportPath) && !(tests && len(d.packages) == 0) {
					t.Errorf("%s imports %s, which only %q may", p.ImportPath, imp, d.packages)
				}
			}
		}
	}
	for _, d := range table {
		if len(d.packages) == 0 && !usedByTests[d.module] {
			t.Errorf("%s says that tests import %s, but none does", dependencies, d.module)
		}
		for _, p := range d.packages {
			if !slices.Contains(used[d.module], p) {
				t.Errorf("%s says that %s imports %s, but it does not", dependencies, p, d.module)
			}
		}
	}
}

// selfExplaining are methods whose meaning an interface of the standard library fixes.
var selfExplaining = map[string]bool{
	"String": true, "GoString": true, "Error": true, "Unwrap": true, "Is": true, "Len": true, "Less": true, "Swap": true,
	"MarshalText": true, "UnmarshalText": true, "MarshalJSON": true, "UnmarshalJSON": true, "LogValue": true,
}

func TestComments(t *testing.T) {
	fset := token.NewFileSet()
	comments := map[string][]string{} // directory -> files with a package comment
	dirs := map[string]bool{}
	for _, file := range tracked(t, ".go") {
		f, err := parser.ParseFile(fset, filepath.Join(root, file), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			continue
		}
		dir := path.Dir(file)
		dirs[dir] = true
		if f.Doc != nil {
			comments[dir] = append(comments[dir], file)
			want, or := "Package "+f.Name.Name, ""
			if name := path.Base(dir); f.Name.Name == "main" {
				want, or = strings.ToUpper(name[:1])+name[1:], "Command "+name
			}
			if text := f.Doc.Text(); !strings.HasPrefix(text, want+" ") && (or == "" || !strings.HasPrefix(text, or+" ")) {
				t.Errorf("%s: the package comment begins with %.30q, not with %q", file, text, want)
			}
		}
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, decl := range f.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Doc == nil && d.Name.IsExported() && !(d.Recv != nil && (!receiverExported(d) || selfExplaining[d.Name.Name])) {
					t.Errorf("%s: %s has no doc comment", fset.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
							t.Errorf("%s: type %s has no doc comment", fset.Position(s.Pos()), s.Name.Name)
						}
					case *ast.ValueSpec:
						for _, n := range s.Names {
							if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
								t.Errorf("%s: %s has no doc comment", fset.Position(n.Pos()), n.Name)
							}
						}
					}
				}
			}
		}
	}
	for dir := range dirs {
		if n := len(comments[dir]); n != 1 {
			t.Errorf("package in %s has %d package comments %q, want one", dir, n, comments[dir])
		}
		switch base := path.Base(dir); base {
		case "util", "utils", "common", "helpers", "types", "manager", "misc":
			t.Errorf("package name %s says nothing", base)
		}
	}
}

func receiverExported(d *ast.FuncDecl) bool {
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return false
		}
	}
}

// tracked lists the files below the root with the given suffix, by slash-separated relative path,
// without those of directories that hold no source.
func tracked(t *testing.T, suffix string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			if n := e.Name(); n == ".git" || n == "bin" || n == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if rel, err := filepath.Rel(root, p); err != nil {
			return err
		} else if strings.HasSuffix(rel, suffix) && e.Type().IsRegular() {
			out = append(out, filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPackageMap checks that the table in ARCHITECTURE.md names every package and no other.
func TestPackageMap(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(raw), "| package | job |")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no table of packages")
	}
	listed := map[string]bool{}
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 {
			continue
		}
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			listed[name[1]] = true
		}
	}
	for p := range packages(t) {
		if name := strings.TrimPrefix(p, "holdfast/"); !listed[name] {
			t.Errorf("ARCHITECTURE.md does not name package %s", name)
		} else {
			delete(listed, name)
		}
	}
	for name := range listed {
		t.Errorf("ARCHITECTURE.md names package %s, which is not there", name)
	}
}

var (
	link     = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)\s]*)?\)`)
	document = regexp.MustCompile(`(?:[\w.-]+/)*[\w.-]+\.md\b`)
)

// TestDocumentsPointAtWhatExists checks every relative link of every document, and that a document that
// is named anywhere, in code as well, is there.
func TestDocumentsPointAtWhatExists(t *testing.T) {
	documents := tracked(t, ".md")
	exists := map[string]bool{}
	for _, d := range documents {
		exists[d] = true
		exists[path.Base(d)] = true
	}
	for _, file := range documents {
		raw, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(raw), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, path.Dir(file), m[1])); err != nil {
				t.Errorf("%s links to %s, which is not there", file, m[1])
			}
		}
	}
	for _, file := range slices.Concat(documents, tracked(t, ".go")) {
		if strings.HasPrefix(file, "internal/tidy/") {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range document.FindAllString(string(raw), -1) {
			if !exists[strings.TrimPrefix(name, "./")] && !exists[path.Join(path.Dir(file), name)] && !strings.Contains(string(raw), "://"+name) && !exists[path.Base(name)] {
				t.Errorf("%s speaks of %s, which is not there", file, name)
			}
		}
	}
}
