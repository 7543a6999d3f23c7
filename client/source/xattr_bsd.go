//go:build darwin || freebsd

package source

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
)

// openPath opens a directory for passing through; here it needs the right to list it as well.
const openPath = unix.O_RDONLY

// xattrReader reads extended attributes of files and directories. Those of symbolic links and special files
// are not kept on this system: they could be reached only by a path that may change under way.
type xattrReader struct{}

// maxXattrValue bounds a value, bytes. Resource forks are the largest met in practice.
const maxXattrValue = 64 << 10

func (x *xattrReader) at(fd int, name string, typ archive.Type, to *[]archive.Xattr) error {
	if typ != archive.TypeFile && typ != archive.TypeDir {
		return nil
	}
	f, err := open(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil // reading the content will say so
	}
	defer unix.Close(f)
	return x.fd(f, to)
}

func (x *xattrReader) path(fd int, to *[]archive.Xattr) error { return x.fd(fd, to) }

func (x *xattrReader) fd(fd int, to *[]archive.Xattr) error {
	*to = nil
	n, err := unix.Flistxattr(fd, nil)
	if err != nil {
		if err == unix.ENOTSUP || err == unix.EPERM {
			return nil
		}
		return err
	}
	if n == 0 {
		return nil
	}
	list := make([]byte, min(n, 1<<20))
	if n, err = unix.Flistxattr(fd, list); err != nil {
		return err
	}
	var failed error
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, maxXattrValue)
		v, err := unix.Fgetxattr(fd, name, value)
		if err == nil {
			*to = append(*to, archive.Xattr{Name: name, Value: append([]byte(nil), value[:v]...)})
		} else if failed == nil {
			failed = err
		}
	}
	slices.SortFunc(*to, func(a, b archive.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return failed
}
