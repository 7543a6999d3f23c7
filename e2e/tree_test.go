//go:build linux

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/part"
)

// same fails t unless two trees are equal in everything that rsync can see: content, types, modes,
// owners, times to the nanosecond, hard links, ACLs, extended attributes, devices.
func same(t testing.TB, want, got string, extra ...string) {
	t.Helper()
	part.Need(t, "rsync")
	args := append([]string{"-aHAX", "--checksum", "--dry-run", "--itemize-changes", "--delete", "--modify-window=-1"}, extra...)
	out, err := exec.Command("rsync", append(args, want+"/", got+"/")...).CombinedOutput()
	if err != nil {
		t.Fatalf("rsync: %v\n%s", err, out)
	}
	if len(out) > 0 {
		lines := strings.SplitAfter(string(out), "\n")
		if len(lines) > 20 {
			lines = append(lines[:20], fmt.Sprintf("... and %d more\n", len(lines)-20))
		}
		t.Errorf("%s and %s differ:\n%s", want, got, strings.Join(lines, ""))
	}
}

// noise is a reproducible source of incompressible bytes.
func noise(seed uint64) *rand.ChaCha8 {
	var s [32]byte
	for i := range 8 {
		s[i] = byte(seed >> (8 * i))
	}
	return rand.NewChaCha8(s)
}

// writeNoise writes size incompressible bytes that depend on the seed only.
func writeNoise(t testing.TB, path string, seed uint64, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	src := noise(seed)
	buf := make([]byte, 1<<20)
	for size > 0 {
		n := min(size, int64(len(buf)))
		src.Read(buf[:n])
		if _, err := f.Write(buf[:n]); err != nil {
			t.Fatal(err)
		}
		size -= n
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// writeText writes size bytes that compress about as program text does.
func writeText(t testing.TB, path string, seed uint64, size int) {
	t.Helper()
	const words = "the backup of a file is a list of blocks and each has a name that nobody can guess without key "
	list := strings.Fields(words)
	r := rand.New(noise(seed))
	var b strings.Builder
	for b.Len() < size {
		fmt.Fprintf(&b, "%s %d ", list[r.IntN(len(list))], r.IntN(1000))
	}
	write(t, path, b.String()[:size])
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// smallTree makes a tree of n files of 0 to 32 KiB in directories of 50 below dir/name.
func smallTree(t testing.TB, dir, name string, seed uint64, n int) string {
	t.Helper()
	r := rand.New(noise(seed))
	for i := range n {
		sub := filepath.Join(dir, name, fmt.Sprintf("%03d", i/50))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		writeText(t, filepath.Join(sub, fmt.Sprintf("file-%05d", i)), r.Uint64(), r.IntN(32<<10))
	}
	return filepath.Join(dir, name)
}
