package source

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// dirent encodes a directory entry as getdents64 does.
func dirent(inode uint64, name string) []byte {
	n := (direntHead + len(name) + 1 + 7) &^ 7
	b := binary.NativeEndian.AppendUint64(nil, inode)
	b = binary.NativeEndian.AppendUint64(b, 0)
	b = binary.NativeEndian.AppendUint16(b, uint16(n))
	b = append(append(b, 0), name...)
	return append(b, make([]byte, n-len(b))...)
}

// A name whose file system gives it no inode number is a name like others.
func TestNamesWithoutInodeAreListed(t *testing.T) {
	b := slices.Concat(dirent(5, "."), dirent(2, ".."), dirent(0, "none"), dirent(7, "some"), dirent(0, "..."))
	got, err := direntNames(b, nil)
	if want := "[none some ...]"; err != nil || fmt.Sprint(got) != want {
		t.Fatalf("%v, want %s: %v", got, want, err)
	}
	for n := range b {
		got, err := direntNames(b[:n], nil)
		whole := n == len(dirent(1, ".")) || n == 2*24 || n == 3*24 || n == 4*24 || n == 0
		if (err == nil) != whole {
			t.Fatalf("%d bytes of %d: %v, %v", n, len(b), got, err)
		}
	}
	for what, x := range map[string][]byte{"no name": dirent(1, ""), "length 0": make([]byte, 24)} {
		if _, err := direntNames(x, nil); err == nil {
			t.Errorf("%s was accepted", what)
		}
	}
}

// The kernel's own lists are understood.
func TestDirentNamesOfTheKernel(t *testing.T) {
	dir := t.TempDir()
	want := []string{"a", "a name that is rather longer than the others are", ".hidden", "...", "\xff"}
	for _, name := range want {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := open(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var got []string
	buf := make([]byte, 512) // several reads
	for {
		n, err := readDirent(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		if got, err = direntNames(buf[:n], got); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
}
