//go:build linux

package torture_test

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/torture"
)

// TestDescribeSees changes one thing after another of a tree: each must change its description.
func TestDescribeSees(t *testing.T) {
	dir := t.TempDir()
	opened(t, dir)
	if err := torture.Make(dir, torture.Options{}); err != nil {
		t.Fatal(err)
	}
	before := describe(t, dir)
	if n := strings.Count(before, "\n"); n < 800 {
		t.Fatalf("the tree has %d paths only", n)
	}
	if got := describe(t, dir); got != before {
		t.Fatal("two descriptions of one tree differ")
	}
	for _, script := range []string{
		"printf x | dd of=contents/random-0004096 bs=1 conv=notrunc status=none && touch -r contents/random-0004095 contents/random-0004096",
		"chmod 601 contents/text",
		"touch -d '2001-01-01 00:00:00.000000001' names/--",
		"touch -h -d '2001-01-01' links/dangling",
		"touch -d '2001-01-01' empty/directory",
		"cp -p links/second links/x && mv links/x links/second",
		"setfattr -n user.text -v other attributes/file",
		"setfattr -x user.empty attributes/file",
		"fallocate -p -o 0 -l 4096 -n contents/zeros",
		"ln -sf elsewhere links/absolute",
		"rm names/*line",
		"touch names/new",
	} {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		after := describe(t, dir)
		if after == before {
			t.Errorf("not seen: %s", script)
		}
		before = after
	}
}

// opened makes a tree's directories accessible at the end, so that a user can remove them.
func opened(t testing.TB, dir string) {
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if d != nil && d.IsDir() {
				os.Chmod(p, 0o700)
			}
			return nil
		})
	})
}

func describe(t *testing.T, dir string) string {
	t.Helper()
	var b bytes.Buffer
	if err := torture.Describe(&b, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "contents")); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
