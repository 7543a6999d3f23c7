package torture

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Describe writes a line for each path under dir, in a fixed order, with all that a restore must bring back: type,
// mode, owner, time, hard links, target, device number, attributes, and of a file the size, where there is data, and
// the hash of that data. dir itself is not described. Two trees are equal when their descriptions are.
func Describe(w io.Writer, dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", dir, err)
	}
	b := bufio.NewWriter(w)
	d := describer{w: b, seen: map[[2]uint64]string{}, xattrs: make([]byte, 64<<10)}
	if err := d.dir(fd, ""); err != nil {
		return fmt.Errorf("describe %q: %w", dir, err)
	}
	return b.Flush()
}

type describer struct {
	w      *bufio.Writer
	seen   map[[2]uint64]string
	xattrs []byte
}

// dir describes what is in the directory fd, and closes it.
func (d *describer) dir(fd int, path string) error {
	defer unix.Close(fd)
	var names []string
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err != nil {
			return fmt.Errorf("list %q: %w", path, err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	slices.Sort(names)
	for _, name := range names {
		p := name
		if path != "" {
			p = path + "/" + name
		}
		if err := d.entry(fd, name, p); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
	}
	return nil
}

func (d *describer) entry(at int, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	fmt.Fprintf(d.w, "%q %07o %d:%d %d.%09d", path, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	typ := st.Mode & unix.S_IFMT
	if typ == unix.S_IFCHR || typ == unix.S_IFBLK {
		fmt.Fprintf(d.w, " dev=%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if err := d.attributes(fmt.Sprintf("/proc/self/fd/%d/%s", at, name)); err != nil {
		return err
	}
	if typ != unix.S_IFDIR && st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := d.seen[id]; ok {
			fmt.Fprintf(d.w, " links=%d same=%q\n", st.Nlink, first)
			return nil
		}
		d.seen[id] = path
		fmt.Fprintf(d.w, " links=%d", st.Nlink)
	}
	switch typ {
	case unix.S_IFLNK:
		b := make([]byte, 8<<10)
		n, err := unix.Readlinkat(at, name, b)
		if err != nil {
			return err
		}
		fmt.Fprintf(d.w, " target=%q\n", b[:n])
	case unix.S_IFREG:
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := d.content(fd, st.Size); err != nil {
			return err
		}
		d.w.WriteByte('\n')
	case unix.S_IFDIR:
		d.w.WriteByte('\n')
		fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return d.dir(fd, path)
	default:
		d.w.WriteByte('\n')
	}
	return nil
}

func (d *describer) attributes(p string) error {
	n, err := unix.Llistxattr(p, d.xattrs)
	if err == unix.ENOTSUP {
		return nil
	}
	if err != nil {
		return err
	}
	names := strings.Split(strings.TrimSuffix(string(d.xattrs[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(p, name, d.xattrs)
		if err != nil {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
		fmt.Fprintf(d.w, " %q=%x", name, d.xattrs[:n])
	}
	return nil
}

// content writes the size, the map of data and the hash of all data.
func (d *describer) content(fd int, size int64) error {
	fmt.Fprintf(d.w, " size=%d data=", size)
	h := sha256.New()
	buf := make([]byte, 256<<10)
	for off := int64(0); off < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		fmt.Fprintf(d.w, "%d-%d,", data, hole)
		for off = data; off < hole; {
			n, err := unix.Pread(fd, buf[:min(int64(len(buf)), hole-off)], off)
			if err != nil {
				return err
			}
			if n == 0 {
				return io.ErrUnexpectedEOF
			}
			h.Write(buf[:n])
			off += int64(n)
		}
	}
	fmt.Fprintf(d.w, " sha256=%x", h.Sum(nil))
	return nil
}
