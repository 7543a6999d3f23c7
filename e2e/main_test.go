//go:build linux

// Package e2e runs the two programs as a person would, built once and started as processes of their own:
// real files, real TLS, a real bucket on disk. It holds the scenarios that need all of that, and the
// ceilings on memory and traffic. Heavy ones run with HOLDFAST_HEAVY=1 only.
package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"holdfast/internal/s3server"
)

// holdfast and holdfastd are the paths of the programs under test.
var holdfast, holdfastd string

// atEnd is what is done after all tests.
var atEnd []func()

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getenv(tortureAt) != "" { // see makeTortureAs
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "holdfast-e2e-bin-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // other users run them, too
		return 0, err
	}
	cmd := exec.Command("go", "build", "-o", dir, "../cmd/holdfast", "../cmd/holdfastd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("build the programs: %w\n%s", err, &out)
	}
	holdfast, holdfastd = filepath.Join(dir, "holdfast"), filepath.Join(dir, "holdfastd")
	for _, v := range s3server.Env() {
		name, value, _ := strings.Cut(v, "=")
		if err := os.Setenv(name, value); err != nil {
			return 0, err
		}
	}
	if err := manyAtATime(); err != nil {
		return 0, err
	}
	code := m.Run()
	for _, fn := range atEnd {
		fn()
	}
	return code, nil
}

// manyAtATime lets more tests run side by side than there are processors, unless -parallel says how many: most of what
// they do is wait, for a disk, for the end of a program, for a time to pass.
func manyAtATime() error {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if said {
		return nil
	}
	return flag.Set("test.parallel", fmt.Sprint(3*runtime.GOMAXPROCS(0)))
}
