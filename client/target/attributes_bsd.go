//go:build darwin || freebsd

package target

import (
	"errors"

	"golang.org/x/sys/unix"
)

var errNoXattr = errors.New("this system keeps attributes of files and directories only")

func (o object) setxattr(name string, value []byte) error {
	if o.fd >= 0 {
		return unix.Fsetxattr(o.fd, name, value, 0)
	}
	return errNoXattr
}

func removexattr(fd int, name string) { unix.Fremovexattr(fd, name) }

// syncAll makes everything durable; there is no call for one file system. It reports no errors.
func syncAll(int) error {
	unix.Sync()
	return nil
}
