package source

import (
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
)

// openPath opens a directory for passing through, which needs no right to list it.
const openPath = unix.O_PATH

// xattrReader reads extended attributes. Linux has no call that takes a directory and a name, so names are reached
// through /proc/self/fd, which leads to the very directory: no component of a path can be swapped.
type xattrReader struct {
	list, value []byte
	state       int8 // 0: not known whether /proc is there; 1: it is; -1: it is not
}

// The kernel's own limits on a list of names and on a value, bytes.
const (
	maxXattrList  = 64 << 10
	maxXattrValue = 64 << 10
)

func (x *xattrReader) proc() bool {
	if x.state == 0 {
		x.state = -1
		if unix.Access("/proc/self/fd", unix.X_OK) == nil {
			x.state = 1
		}
	}
	return x.state > 0
}

// at reads those of name in the directory fd, without following name.
func (x *xattrReader) at(fd int, name string, typ archive.Type, to *[]archive.Xattr) error {
	if x.proc() {
		p := "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
		return x.read(to,
			func(b []byte) (int, error) { return unix.Llistxattr(p, b) },
			func(n string, b []byte) (int, error) { return unix.Lgetxattr(p, n, b) })
	}
	// Without /proc only what can be opened without side effects has attributes that can be read.
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

// path reads those of a directory that was opened with openPath.
func (x *xattrReader) path(fd int, to *[]archive.Xattr) error {
	if !x.proc() {
		return nil
	}
	p := "/proc/self/fd/" + strconv.Itoa(fd)
	return x.read(to,
		func(b []byte) (int, error) { return unix.Listxattr(p, b) },
		func(n string, b []byte) (int, error) { return unix.Getxattr(p, n, b) })
}

// fd reads those of an open file.
func (x *xattrReader) fd(fd int, to *[]archive.Xattr) error {
	return x.read(to,
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(n string, b []byte) (int, error) { return unix.Fgetxattr(fd, n, b) })
}

func (x *xattrReader) read(to *[]archive.Xattr, list func([]byte) (int, error), get func(string, []byte) (int, error)) error {
	if x.list == nil {
		x.list, x.value = make([]byte, maxXattrList), make([]byte, maxXattrValue)
	}
	*to = nil
	var n int
	err := again(func() (err error) { n, err = list(x.list); return err })
	if err != nil {
		if err == unix.ENOTSUP || gone(err) {
			return nil
		}
		return err
	}
	var failed error
	for name := range strings.SplitSeq(strings.TrimSuffix(string(x.list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		var v int
		err := again(func() (err error) { v, err = get(name, x.value); return err })
		switch {
		case err == nil:
			*to = append(*to, archive.Xattr{Name: name, Value: append([]byte(nil), x.value[:v]...)})
		case err == unix.ENODATA || gone(err): // removed meanwhile
		case failed == nil:
			failed = err
		}
	}
	slices.SortFunc(*to, func(a, b archive.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return failed
}
