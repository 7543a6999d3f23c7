package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"holdfast/wire"
)

// sources returns the parsed files of the service, without tests.
func sources(t *testing.T, dirs ...string) (files []*ast.File) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(token.NewFileSet(), p, nil, 0)
			files = append(files, f)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// text returns the value of an expression of constant strings, or "".
func text(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value)
		return s
	case *ast.BinaryExpr:
		return text(e.X) + text(e.Y)
	}
	return ""
}

// TestOperatingNamesWhatIsSaid: docs/operating.md has every line of the log that warns or is an error, every state that clients and status
// show, every exit status, and every command.
func TestOperatingNamesWhatIsSaid(t *testing.T) {
	raw, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	spaces := regexp.MustCompile(`\s+`)
	page := spaces.ReplaceAllString(string(raw), " ")
	names := func(what, s string) {
		t.Helper()
		if !strings.Contains(page, s) {
			t.Errorf("docs/operating.md does not have the %s %q", what, s)
		}
	}
	lines := 0
	for _, f := range sources(t, "../../service", ".") {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Warn" && sel.Sel.Name != "Error" {
				return true
			}
			if said := text(call.Args[0]); said != "" {
				lines++
				said, _, _ = strings.Cut(said, ";") // what follows is advice
				said, _, _ = strings.Cut(said, ":")
				names("line of the log", said)
			}
			return true
		})
	}
	if lines < 25 {
		t.Errorf("only %d lines of the log were found", lines)
	}
	for _, s := range []string{ // chosen by level, in service/journal
		"the bucket failed", "the bucket refuses this service",
	} {
		names("line of the log", s)
	}
	states := 0
	for _, f := range sources(t, "../../wire") {
		ast.Inspect(f, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if id, ok := v.Type.(*ast.Ident); ok && id.Name == "State" {
				states++
				names("state", "| `"+text(v.Values[0])+"` |")
			}
			return true
		})
	}
	if states < 5 || wire.StateServing == "" {
		t.Errorf("only %d states were found", states)
	}
	for _, code := range []int{0, exitFailed, exitUsage, exitDamaged, exitNever, exitLost} {
		names("exit status", "| "+strconv.Itoa(code)+" |")
	}
	for _, c := range command().Commands() {
		names("command", "holdfastd "+c.Name())
	}
}

// TestFilesAreNoStrangers: no file of a data directory that docs/operating.md tells of is taken for somebody else's, which an operator with
// a full disk may delete.
func TestFilesAreNoStrangers(t *testing.T) {
	raw, err := os.ReadFile("../../docs/operating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(raw), "\n## The data directory\n")
	table, _, _ = strings.Cut(table, "\n## ")
	dir, files := t.TempDir(), 0
	for line := range strings.Lines(table) {
		if first, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | "); first != strings.TrimSpace(line) {
			for _, name := range regexp.MustCompile("`([a-z.]+)").FindAllStringSubmatch(first, -1) {
				if err := os.WriteFile(filepath.Join(dir, name[1]), []byte("x"), 0o600); err != nil {
					t.Fatal(err)
				}
				files++
			}
		}
	}
	if files < 12 {
		t.Fatalf("%d files in the table", files)
	}
	var r reasons
	if err := r.strangers(dir); err != nil || len(r.Deletable) > 0 {
		t.Errorf("strangers: %+v, %v", r.Deletable, err)
	}
}
