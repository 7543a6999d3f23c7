//go:build !windows

package main

import (
	"io/fs"
	"os"
	"syscall"
)

// links returns how many names a file has.
func links(st fs.FileInfo) uint64 {
	if x, ok := st.Sys().(*syscall.Stat_t); ok {
		return uint64(x.Nlink)
	}
	return 1
}

// own gives path the owner of the file that st is of, so that root may rewrite a user's file.
func own(path string, st fs.FileInfo) error {
	x, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(x.Uid) == os.Geteuid() {
		return nil
	}
	return os.Chown(path, int(x.Uid), int(x.Gid))
}
