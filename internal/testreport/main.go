// Testreport reads the output of "go test -json" on standard input and prints what a person
// wants of it: one line a package, with the slowest tests of one that took more than a minute, the whole output
// of what failed, the reason of what was skipped, and last a line "N passed, N failed, N skipped" that counts tests and subtests. It exits with 1 if anything
// failed, a package that does not build included.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// event is one line of go test -json; see "go doc test2json".
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Elapsed    float64
	Output     string
}

// A package that took more than slowPackage seconds has up to slowTests tests named that took slowTest or more.
const (
	slowPackage = 60
	slowTests   = 15
	slowTest    = 1
)

// took is how long a test took, in seconds. Tests that run side by side wait for one another, too.
type took struct {
	test    string
	seconds float64
}

func main() {
	ok, err := report(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// report copies what matters from r to w and says whether everything passed.
func report(r io.Reader, w io.Writer) (bool, error) {
	var passed, failed, skipped, packages int
	output := map[string][]string{} // package and test -> its lines
	hasFailedTest := map[string]bool{}
	slow := map[string][]took{} // package -> its slower tests, subtests aside
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			fmt.Fprintln(w, sc.Text())
			continue
		}
		id := e.Package + " " + e.Test
		switch e.Action {
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "output":
			output[id] = append(output[id], e.Output)
		case "pass", "fail", "skip":
			lines := output[id]
			delete(output, id)
			if e.Test == "" {
				packages++
				if e.Action == "fail" && !hasFailedTest[e.Package] {
					failed++ // it did not build, or died outside a test
					fmt.Fprint(w, strings.Join(lines, ""))
				}
				if e.Action != "skip" {
					fmt.Fprintf(w, "%-4s %s %.1fs\n", map[string]string{"pass": "ok", "fail": "FAIL"}[e.Action], e.Package, e.Elapsed)
				}
				if e.Elapsed > slowPackage {
					printSlowest(w, slow[e.Package])
				}
				delete(slow, e.Package)
				continue
			}
			if e.Elapsed >= slowTest && !strings.Contains(e.Test, "/") {
				slow[e.Package] = append(slow[e.Package], took{e.Test, e.Elapsed})
			}
			switch e.Action {
			case "pass":
				passed++
			case "fail":
				failed++
				hasFailedTest[e.Package] = true
				fmt.Fprint(w, strings.Join(lines, ""))
			case "skip":
				skipped++
				fmt.Fprintf(w, "skip %s %s: %s\n", e.Package, e.Test, reason(lines))
			}
		}
	}
	for id, lines := range output { // a process that died leaves tests without an end
		if len(lines) > 0 && !strings.HasSuffix(id, " ") {
			fmt.Fprint(w, strings.Join(lines, ""))
		}
	}
	if passed+failed+skipped+packages == 0 {
		failed++
		fmt.Fprintln(w, "FAIL: no test was run at all")
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return failed == 0, sc.Err()
}

// printSlowest prints the slowest tests of a package, the slowest first.
func printSlowest(w io.Writer, tests []took) {
	slices.SortStableFunc(tests, func(a, b took) int { return cmp.Compare(b.seconds, a.seconds) })
	for _, t := range tests[:min(len(tests), slowTests)] {
		fmt.Fprintf(w, "     %7.1fs %s\n", t.seconds, t.test)
	}
}

// reason finds the text of t.Skip among a skipped test's lines.
func reason(lines []string) string {
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "===") && !strings.HasPrefix(l, "---") {
			if _, text, ok := strings.Cut(l, ".go:"); ok {
				_, text, _ = strings.Cut(text, ": ")
				return text
			}
			return l
		}
	}
	return "no reason given"
}
