package target

import "golang.org/x/sys/unix"

func mknodat(at int, name string, mode uint32, dev uint64) error {
	return unix.Mknodat(at, name, mode, dev)
}
