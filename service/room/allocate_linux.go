package room

import (
	"os"
	"syscall"
)

// allocate gives f size bytes that have their place on the disk.
func allocate(f *os.File, size int64) error {
	for {
		switch err := syscall.Fallocate(int(f.Fd()), 0, 0, size); err {
		case syscall.EINTR:
		case syscall.EOPNOTSUPP, syscall.ENOSYS:
			return write(f, size)
		default:
			return err
		}
	}
}
