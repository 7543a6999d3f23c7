package tidy

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// bounded are the directories whose bounds docs/bounds.md lists, whole; of others it lists some.
var bounded = []string{"service", "cmd/holdfastd", "internal/never", "internal/durable"}

// forTests are those in them that only tests use.
var forTests = []string{"service/bucket/sim", "service/bucket/buckettest", "service/view/viewtest"}

// source is what the non-test files of one package declare.
type source struct {
	consts map[string]ast.Expr
	// grows names what can grow: fields and variables of map type, and channels, as "Type.field", "variable" or "function".
	grows []string
}

// sources parses the packages of the module.
func sources(t *testing.T) map[string]*source {
	t.Helper()
	all := map[string]*source{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "testdata" || d.Name() == ".git") {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return nil
		}
		rel, _ := filepath.Rel(root, filepath.Dir(p))
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, 0)
		if err != nil {
			return err
		}
		s := all[filepath.ToSlash(rel)]
		if s == nil {
			s = &source{consts: map[string]ast.Expr{}}
			all[filepath.ToSlash(rel)] = s
		}
		s.add(f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (s *source) add(f *ast.File) {
	for _, decl := range f.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			ast.Inspect(d, func(n ast.Node) bool {
				if c, ok := n.(*ast.CallExpr); ok && len(c.Args) > 1 {
					if id, ok := c.Fun.(*ast.Ident); ok && id.Name == "make" {
						if _, ok := c.Args[0].(*ast.ChanType); ok {
							s.grows = append(s.grows, d.Name.Name)
						}
					}
				}
				return true
			})
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch x := spec.(type) {
				case *ast.ValueSpec:
					for i, name := range x.Names {
						if d.Tok == token.CONST && i < len(x.Values) {
							s.consts[name.Name] = x.Values[i]
						}
						if d.Tok == token.VAR && isMap(x.Type) {
							s.grows = append(s.grows, name.Name)
						}
					}
				case *ast.TypeSpec:
					if st, ok := x.Type.(*ast.StructType); ok {
						for _, field := range st.Fields.List {
							for _, name := range field.Names {
								if isMap(field.Type) {
									s.grows = append(s.grows, x.Name.Name+"."+name.Name)
								}
							}
						}
					} else if isMap(x.Type) {
						s.grows = append(s.grows, x.Name.Name)
					}
				}
			}
		}
	}
}

func isMap(e ast.Expr) bool {
	_, ok := e.(*ast.MapType)
	return ok
}

// value evaluates a constant: its number, in bytes, nanoseconds or whatever it counts.
func value(all map[string]*source, pkg, name string) (constant.Value, error) {
	s := all[pkg]
	if s == nil || s.consts[name] == nil {
		return nil, fmt.Errorf("there is no constant %s in %s", name, pkg)
	}
	var eval func(e ast.Expr) (constant.Value, error)
	eval = func(e ast.Expr) (constant.Value, error) {
		switch x := e.(type) {
		case *ast.BasicLit:
			return constant.MakeFromLiteral(x.Value, x.Kind, 0), nil
		case *ast.ParenExpr:
			return eval(x.X)
		case *ast.Ident:
			return value(all, pkg, x.Name)
		case *ast.CallExpr: // a conversion
			return eval(x.Args[0])
		case *ast.SelectorExpr:
			of := x.X.(*ast.Ident).Name
			units := map[string]int64{"Nanosecond": 1, "Microsecond": 1e3, "Millisecond": 1e6, "Second": 1e9, "Minute": 60e9, "Hour": 3600e9}
			if of == "time" {
				return constant.MakeInt64(units[x.Sel.Name]), nil
			}
			for p := range all {
				if p == of || strings.HasSuffix(p, "/"+of) || of == "holdfast" && p == "." {
					if v, err := value(all, p, x.Sel.Name); err == nil {
						return v, nil
					}
				}
			}
		case *ast.BinaryExpr:
			a, err := eval(x.X)
			if err != nil {
				return nil, err
			}
			b, err := eval(x.Y)
			if err != nil {
				return nil, err
			}
			if x.Op == token.SHL {
				n, _ := constant.Uint64Val(b)
				return constant.Shift(a, token.SHL, uint(n)), nil
			}
			op := x.Op
			if op == token.QUO && a.Kind() == constant.Int && b.Kind() == constant.Int {
				op = token.QUO_ASSIGN
			}
			return constant.BinaryOp(a, op, b), nil
		}
		return nil, fmt.Errorf("constant %s of %s is of a form that this test does not know", name, pkg)
	}
	return eval(s.consts[name])
}

// number is value as a float64.
func number(all map[string]*source, ref string) (float64, error) {
	pkg, name, ok := strings.Cut(ref, ".")
	if strings.HasPrefix(ref, "holdfast.") {
		pkg, ok = ".", true
	}
	if !ok {
		return 0, fmt.Errorf("%q is not PACKAGE.CONSTANT", ref)
	}
	v, err := value(all, pkg, name)
	if err != nil {
		return 0, err
	}
	n, _ := constant.Float64Val(constant.ToFloat(v))
	return n, nil
}

// scale says what the units of docs/bounds.md are.
var scale = map[string]float64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "ms": 1e6, "s": 1e9, "min": 60e9, "h": 3600e9, "days": 24 * 3600e9}

// boundRow is a row of docs/bounds.md.
type boundRow struct {
	refs  []string // what stands in back quotes in the second column
	cells []string
}

func boundRows(t *testing.T, heading string) (rows []boundRow) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs/bounds.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, part, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("docs/bounds.md has no heading %q", heading)
	}
	part, _, _ = strings.Cut(part, "\n## ")
	ref := regexp.MustCompile("`([^`]+)`")
	for line := range strings.Lines(part) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what |") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		r := boundRow{cells: cells}
		for _, m := range ref.FindAllStringSubmatch(cells[1], -1) {
			r.refs = append(r.refs, m[1])
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		t.Fatalf("%q in docs/bounds.md has no rows", heading)
	}
	return rows
}

// TestBoundsAreTheCodes: each row of docs/bounds.md that names one constant has its figure, and what can grow in the service
// is in some row.
func TestBoundsAreTheCodes(t *testing.T) {
	all := sources(t)
	listed := map[string]bool{}
	for _, heading := range []string{"Memory", "Connections, files and goroutines", "Disk", "Time", "Sizes that are refused", "Not bounds", "The client"} {
		for _, r := range boundRows(t, heading) {
			for _, ref := range r.refs {
				listed[ref] = true
			}
			if heading == "Not bounds" || len(r.refs) == 0 {
				continue
			}
			got, err := number(all, r.refs[0])
			if err != nil {
				pkg, _, _ := strings.Cut(r.refs[0], ".")
				if s := all[pkg]; s == nil || !slices.Contains(s.grows, strings.TrimPrefix(r.refs[0], pkg+".")) {
					t.Errorf("%s: %v", r.cells[0], err)
				}
				continue
			}
			want, err := strconv.ParseFloat(strings.ReplaceAll(r.cells[2], ",", ""), 64)
			if err != nil {
				t.Errorf("%s: its bound %q is no number", r.cells[0], r.cells[2])
				continue
			}
			if s, ok := scale[r.cells[3]]; ok {
				want *= s
			}
			if got != want {
				t.Errorf("%s: %s is %g, and docs/bounds.md says %s %s", r.cells[0], r.refs[0], got, r.cells[2], r.cells[3])
			}
		}
	}
	limit := regexp.MustCompile(`^[mM]ax[A-Z]|Memory$|Share$|[sS]ize$|Buffer$|Patience$|Timeout$|^ahead$|^burst$|^Burst$`)
	for pkg, s := range all {
		if !slices.ContainsFunc(bounded, func(d string) bool { return within(pkg, d) }) || slices.ContainsFunc(forTests, func(d string) bool { return within(pkg, d) }) {
			continue
		}
		names := slices.Clone(s.grows)
		for name := range s.consts {
			if limit.MatchString(name) {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if !listed[pkg+"."+name] {
				t.Errorf("`%s.%s` can grow, or bounds something, and is not in docs/bounds.md", pkg, name)
			}
		}
	}
}

// TestBoundsAddUp: what is bounded in memory, on disk and in descriptors is together less than what there is.
func TestBoundsAddUp(t *testing.T) {
	all := sources(t)
	unit, err := os.ReadFile(filepath.Join(root, "packaging/holdfastd.service"))
	if err != nil {
		t.Fatal(err)
	}
	limit := regexp.MustCompile("`([A-Za-z]+=)([0-9A-Z]+)`")
	term := regexp.MustCompile("`[^`]+`|[0-9][0-9,]*")
	for _, x := range []struct {
		heading, unit string
	}{
		{"What the memory adds up to", "MiB"}, {"What the descriptors add up to", ""}, {"What the disk adds up to", "MiB"},
	} {
		var sum, ceiling float64
		for _, r := range boundRows(t, x.heading) {
			total := 0.0
			for product := range strings.SplitSeq(r.cells[1], "+") {
				n := 1.0
				for _, f := range term.FindAllString(product, -1) {
					var v float64
					var err error
					if f[0] == '`' {
						v, err = number(all, strings.Trim(f, "`"))
					} else {
						v, err = strconv.ParseFloat(strings.ReplaceAll(f, ",", ""), 64)
					}
					if err != nil {
						t.Errorf("%s: %v", r.cells[0], err)
					}
					n *= v
				}
				total += n
			}
			if x.unit == "MiB" {
				total /= 1 << 20
			}
			if said, err := strconv.ParseFloat(strings.ReplaceAll(r.cells[2], ",", ""), 64); err != nil || math.Abs(said-total) > 0.06 {
				t.Errorf("%s: %s, which is %.1f, and not %s", r.cells[0], r.cells[1], total, r.cells[2])
			}
			if m := limit.FindStringSubmatch(r.cells[0]); m != nil && !strings.Contains(string(unit), "\n"+m[1]+m[2]+"\n") {
				t.Errorf("the unit does not say %s%s", m[1], m[2])
			}
			if strings.HasPrefix(r.cells[0], "there is") {
				ceiling = total
			} else {
				sum += total
			}
		}
		if sum <= 0 || sum > ceiling {
			t.Errorf("%s: %.1f of %.1f", x.heading, sum, ceiling)
		}
		t.Logf("%s: %.1f of %.1f", x.heading, sum, ceiling)
	}
}
