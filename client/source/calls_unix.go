//go:build linux || darwin || freebsd

package source

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The calls below go on after a signal. Go's own runtime sends itself signals, and file systems in user space
// and on the network let them interrupt.

func open(at int, name string, flags int) (fd int, err error) {
	err = again(func() error { fd, err = unix.Openat(at, name, flags|unix.O_CLOEXEC, 0); return err })
	if err != nil {
		return -1, err
	}
	return fd, nil
}

func fstat(fd int, st *unix.Stat_t) error { return again(func() error { return unix.Fstat(fd, st) }) }

func fstatat(at int, name string, st *unix.Stat_t) error {
	return again(func() error { return unix.Fstatat(at, name, st, unix.AT_SYMLINK_NOFOLLOW) })
}

func pread(fd int, p []byte, off int64) (n int, err error) {
	err = again(func() error { n, err = unix.Pread(fd, p, off); return err })
	return n, err
}

func seek(fd int, off int64, whence int) (to int64, err error) {
	err = again(func() error { to, err = unix.Seek(fd, off, whence); return err })
	return to, err
}

func readDirent(fd int, p []byte) (n int, err error) {
	err = again(func() error { n, err = unix.ReadDirent(fd, p); return err })
	return n, err
}

func readlinkat(at int, name string, p []byte) (n int, err error) {
	err = again(func() error { n, err = unix.Readlinkat(at, name, p); return err })
	return n, err
}

func again(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// gone reports whether err says that a name is not there any more.
func gone(err error) bool { return err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ESTALE }

// isLoop reports whether O_NOFOLLOW met a symbolic link. FreeBSD says EMLINK.
func isLoop(err error) bool { return err == unix.ELOOP || err == unix.EMLINK }

func sortTops(t []top) {
	slices.SortFunc(t, func(a, b top) int { return strings.Compare(a.node.name, b.node.name) })
}
