package target

import (
	"strconv"

	"golang.org/x/sys/unix"
)

func (o object) setxattr(name string, value []byte) error {
	if o.fd >= 0 {
		return unix.Fsetxattr(o.fd, name, value, 0)
	}
	// There is no call that takes a directory and a name.
	return unix.Lsetxattr("/proc/self/fd/"+strconv.Itoa(o.at)+"/"+o.name, name, value, 0)
}

func removexattr(fd int, name string) { unix.Fremovexattr(fd, name) }

// syncAll makes everything on the file system of fd durable: one call for all the files of a restore.
func syncAll(fd int) error { return unix.Syncfs(fd) }

func mknodat(at int, name string, mode uint32, dev uint64) error {
	return unix.Mknodat(at, name, mode, int(dev))
}
