//go:build linux

package source_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
	"holdfast/client/source"
)

// TestScenarioC10SourceRace backs up, as root where the tests run as that, the directory of somebody who all the
// time swaps a file and a directory for links to what he may not read, and a file for a FIFO. Nothing of the secret
// is read, nothing outside the tree is walked, and no walk waits for a writer of the FIFO.
func TestScenarioC10SourceRace(t *testing.T) {
	const secret = "SECRET"
	const dirs = 8 // the more, the likelier that one is swapped between two calls
	dir := tree(t, "victim/inside", "victim/below/deep", "tree/f", "tree/g")
	victim, base := filepath.Join(dir, "victim"), filepath.Join(dir, "tree")
	for _, p := range []string{"inside", "below/deep"} {
		if err := os.WriteFile(filepath.Join(victim, p), []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Symlink(filepath.Join(victim, "inside"), filepath.Join(base, "l")),
		unix.Mkfifo(filepath.Join(base, "p"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	pairs := [][][2]string{{{"f", "l"}}, {{"g", "p"}}, nil}
	for i := range dirs {
		a, b := fmt.Sprint("a", i), fmt.Sprint("b", i)
		pairs[2] = append(pairs[2], [2]string{a, b})
		if err := errors.Join(os.MkdirAll(filepath.Join(base, a, "below"), 0o755), os.Symlink(victim, filepath.Join(base, b))); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	for _, some := range pairs {
		wg.Go(func() {
			for i := 0; ; i++ {
				pair := some[i%len(some)]
				select {
				case <-stop:
					return
				default:
					if err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(base, pair[0]), unix.AT_FDCWD, filepath.Join(base, pair[1]), unix.RENAME_EXCHANGE); err != nil {
						t.Errorf("swap: %v", err)
						return
					}
				}
			}
		})
	}
	seen := map[string]map[archive.Type]int{}
	lost := 0 // to the race, between two calls
	for round := 0; round < 500 || round < 50_000 && lost == 0; round++ {
		err := source.Walk(context.Background(), dir, []string{"tree"}, source.Options{}, func(it *source.Item) error {
			e := &it.Entry
			if strings.Contains(e.Path, "inside") || strings.Contains(e.Path, "deep") {
				t.Fatalf("%s is in the archive", e.Path)
			}
			if it.Verdict.What != 0 {
				lost++
			}
			if seen[e.Path] == nil {
				seen[e.Path] = map[archive.Type]int{}
			}
			seen[e.Path][e.Type]++
			if e.Type != archive.TypeFile || e.Link != "" {
				return nil
			}
			if round%2 == 0 {
				runtime.Gosched() // between looking and opening
			}
			f, err := it.Open()
			if err != nil {
				lost++
				return nil
			}
			defer f.Close()
			for {
				if _, err := f.Next(); err != nil {
					return nil
				}
				if b, err := io.ReadAll(f); err != nil || strings.Contains(string(b), secret) {
					t.Fatalf("%s gives %q, %v", e.Path, b, err)
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"tree/a0", "tree/f", "tree/g"} {
		if len(seen[p]) < 2 {
			t.Errorf("%s was always the same: %v", p, seen[p])
		}
	}
	if lost == 0 {
		t.Error("the race was none")
	}
	t.Logf("%d paths were lost to the race", lost)
}
