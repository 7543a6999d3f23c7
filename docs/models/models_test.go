// Package models checks the models of this directory with Spin: those that must hold, and their variants that
// must fail. Each model says in its first comment what is to be done with it:
//
//	@holds NAME: FLAGS   no error in all states
//	@large NAME: FLAGS   the same, with HOLDFAST_MODELS=large only: minutes to hours
//	@fails NAME: FLAGS   an assertion must be violated
package models

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"holdfast/internal/part"
)

// Bounds of one run of the checker.
const (
	timeout      = 3 * time.Minute
	timeoutLarge = 3 * time.Hour
	memory       = 2000 // MiB
	memoryLarge  = 12000
	depth        = 1_000_000
)

var (
	task    = regexp.MustCompile(`(?m)^@(\w+) (.+?):[ \t]*(.*)$`)
	variant = regexp.MustCompile(`V_(\w+)`)
)

func TestModels(t *testing.T) {
	part.Need(t, "spin", "gcc")
	if testing.Short() {
		t.Skip("takes a minute or two")
	}
	files, err := filepath.Glob("*.pml")
	if err != nil || len(files) == 0 {
		t.Fatal("no models", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range task.FindAllStringSubmatch(string(text), -1) {
			what, name, flags := m[1], m[2], strings.Fields(m[3])
			t.Run(strings.TrimSuffix(file, ".pml")+"/"+name, func(t *testing.T) {
				if what == "large" && os.Getenv("HOLDFAST_MODELS") != "large" {
					t.Skip("takes minutes to hours: set HOLDFAST_MODELS=large")
				}
				out := check(t, file, flags, what == "large")
				failed := strings.Contains(out, "assertion violated")
				whole := strings.Contains(out, "errors: 0") && !strings.Contains(out, "max search depth too small") && !strings.Contains(out, "Search not completed")
				switch {
				case what == "fails" && !failed:
					t.Errorf("this variant must violate an assertion, and does not:\n%s", out)
				case what != "fails" && failed:
					t.Errorf("an assertion is violated:\n%s", out)
				case what != "fails" && !whole:
					t.Errorf("the search was not completed:\n%s", out)
				}
			})
		}
	}
}

// check generates, compiles and runs the checker of a model and returns what it says.
func check(t *testing.T, file string, flags []string, large bool) string {
	t.Helper()
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	limit, mem := timeout, memory
	if large {
		limit, mem = timeoutLarge, memoryLarge
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		return string(out)
	}
	run("spin", append(append([]string{"-a"}, flags...), path)...)
	cc := []string{"-O1", "-w", "-DSAFETY", "-DVECTORSZ=512", fmt.Sprintf("-DMEMLIM=%d", mem), "-o", "pan", "pan.c"}
	if large {
		cc = append([]string{"-DCOLLAPSE"}, cc...)
	}
	run("gcc", cc...)
	// -E: that nothing can go on is no error here; processes may stop anywhere.
	return run(filepath.Join(dir, "pan"), "-E", fmt.Sprintf("-m%d", depth))
}

// TestVariantsAreChecked finds variants in a model that no line asks for, and lines that ask for none.
func TestVariantsAreChecked(t *testing.T) {
	files, err := filepath.Glob("*.pml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		comment, code, ok := strings.Cut(string(raw), "*/")
		if !ok || !strings.HasPrefix(comment, "/*\n"+file+": ") {
			t.Errorf("%s does not begin with a comment that begins with its name", file)
		}
		for _, need := range []string{"Assumed:", "Promised", "@holds ", "@fails reached:"} {
			if !strings.Contains(comment, need) {
				t.Errorf("%s: its comment lacks %q", file, need)
			}
		}
		asked, there := map[string]bool{}, map[string]bool{}
		for _, m := range task.FindAllStringSubmatch(comment, -1) {
			for _, v := range variant.FindAllStringSubmatch(m[3], -1) {
				asked[v[1]] = true
			}
		}
		for _, v := range variant.FindAllStringSubmatch(code, -1) {
			there[v[1]] = true
		}
		for v := range there {
			if !asked[v] {
				t.Errorf("%s: no line checks V_%s", file, v)
			}
			if strings.Count(comment, v) < 3 { // name, flag, explanation
				t.Errorf("%s: nothing explains %s", file, v)
			}
		}
		for v := range asked {
			if !there[v] {
				t.Errorf("%s has no V_%s", file, v)
			}
		}
	}
}
