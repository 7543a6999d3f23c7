package view

import (
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestFullDisk: the end of the process is asked for before the database meets the error and panics.
func TestFullDisk(t *testing.T) {
	var full, told atomic.Bool
	defer func(f func(string)) { diskFull = f }(diskFull)
	diskFull = func(dir string) { // room is made, since a test cannot end here
		if dir != "view" {
			t.Errorf("told of %q", dir)
		}
		told.Store(true)
		full.Store(false)
	}
	s, err := open(stopWhenFull(errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			return syscall.ENOSPC
		}
		return nil
	})), "view"), "view")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	full.Store(true)
	for range 1000 { // writes are gathered, so that the first need not meet the disk
		l := NewLayer(nil)
		l.rows["\xf0row"] = make([]byte, 100<<10)
		if err := s.Commit(l); err != nil {
			t.Fatal(err)
		}
		if told.Load() {
			return
		}
	}
	t.Error("nobody was told that the disk is full")
}
