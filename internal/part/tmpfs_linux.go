package part

import (
	"fmt"
	"os"
	"syscall"
	"testing"
)

// SmallDisk mounts a file system of so many bytes on an empty directory, until the end of the test. It needs the part
// Tmpfs.
func SmallDisk(t testing.TB, dir string, size int64) {
	t.Helper()
	Need(t, Tmpfs)
	if err := mount(dir, size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func mount(dir string, size int64) error {
	if err := syscall.Mount("holdfast-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", size)); err != nil {
		return fmt.Errorf("mount a file system of %d bytes: %w", size, err)
	}
	return nil
}

// noTmpfs says why no small file system can be mounted, or nothing.
func noTmpfs() string {
	dir, err := os.MkdirTemp("", "holdfast-part-")
	if err == nil {
		defer os.Remove(dir)
		err = mount(dir, 1<<20)
	}
	if err == nil {
		err = syscall.Unmount(dir, syscall.MNT_DETACH)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}
