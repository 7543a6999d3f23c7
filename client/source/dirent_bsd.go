//go:build darwin || freebsd

package source

import "golang.org/x/sys/unix"

// direntNames appends the names in b, which a read of a directory returned, but for "." and "..". Here an
// entry with inode 0 is a name that was removed.
func direntNames(b []byte, to []string) ([]string, error) {
	for len(b) > 0 {
		var n int
		n, _, to = unix.ParseDirent(b, -1, to)
		b = b[n:]
	}
	return to, nil
}
