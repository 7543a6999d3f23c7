//go:build linux || darwin || freebsd

package source

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
)

// File is an open file of the tree. It gives the content that the file had room for when it was opened: a file that
// grows meanwhile is not followed. It is for one goroutine at a time.
type File struct {
	fd    int
	path  string
	fault func(string, uint64) error
	st    Stat   // when opened
	off   uint64 // of the next byte
	end   uint64 // of the current region
	hole  bool   // the current region is a hole
	done  uint64 // bytes passed, holes included
	flat  bool   // there are no holes, or they cannot be asked for
	short bool   // the file ended before its size
}

func (w *walker) open(it *Item, d *dir, name string, id inode) (*File, error) {
	p := it.Entry.Path
	fail := func(fd int, err error) (*File, error) {
		if fd >= 0 {
			unix.Close(fd)
		}
		// Another link of the file may do better, and must not point to a path without content.
		if f, ok := w.links[id]; ok && f.name == name && f.dir == d.linkDir() {
			delete(w.links, id)
		}
		if gone(err) || errors.Is(err, ErrVanished) {
			it.Verdict = archive.Verdict{Path: p, What: archive.Vanished, Why: "it was listed, but was gone when it was to be read"}
			return nil, fmt.Errorf("open %q: %w", p, ErrVanished)
		}
		it.unreadable("cannot open it", err)
		return nil, fmt.Errorf("open %q: %w", p, err)
	}
	// O_NONBLOCK, because it may be a FIFO by now, and O_NOCTTY, because it may be a terminal.
	fd, err := open(d.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		if isLoop(err) || err == unix.ENXIO {
			err = ErrVanished // a symbolic link or a socket took its place
		}
		return fail(-1, err)
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		return fail(fd, err)
	}
	if uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG {
		return fail(fd, ErrVanished)
	}
	if now := statOf(&st); now != it.Stat {
		verdict := it.Verdict
		if inodeOf(&st) != id {
			delete(w.links, id)
			verdict = archive.Verdict{}
		}
		w.fill(it, p, &st)
		it.Verdict = verdict
		w.attributes(it, w.xattrs.fd(fd, &it.Entry.Xattrs))
	}
	// Blocks are of 512 bytes. A file with at least as many as its size needs has no holes worth asking for.
	flat := uint64(st.Blocks)*512 >= uint64(st.Size)
	return &File{fd: fd, path: p, fault: w.opt.Fault, st: it.Stat, flat: flat}, nil
}

// Next moves on to the next region and returns it; io.EOF follows the last. What was not read of the region
// before it is passed over.
func (f *File) Next() (Region, error) {
	f.off = f.end
	if f.st.Size == 0 && !f.short {
		f.short = true // asked once
		if err := f.lying(); err != nil {
			return Region{}, err
		}
		f.short = false
		return Region{}, io.EOF
	}
	if f.short || f.off >= f.st.Size {
		return Region{}, io.EOF
	}
	f.hole, f.end = false, f.st.Size
	if !f.flat {
		if err := f.seek(); err != nil {
			return Region{}, err
		}
	}
	if f.end <= f.off {
		return Region{}, io.EOF
	}
	r := Region{f.off, f.end - f.off, f.hole}
	if f.hole {
		f.off = f.end
		f.done += r.Len
	}
	return r, nil
}

// seek asks the file system where the region at off ends.
func (f *File) seek() error {
	data, err := seek(f.fd, int64(f.off), unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO:
		// A hole up to the end, unless the end has come nearer: what is not there must not become zeros.
		var st unix.Stat_t
		if err := fstat(f.fd, &st); err != nil {
			return fmt.Errorf("stat %q: %w", f.path, err)
		}
		f.hole = true
		if uint64(st.Size) < f.end {
			f.end = max(uint64(st.Size), f.off)
			f.short = true
		}
		return nil
	case err != nil:
		f.flat = true // the file system does not tell; read everything
		return nil
	case uint64(data) > f.off:
		f.hole, f.end = true, min(uint64(data), f.end)
		return nil
	}
	hole, err := seek(f.fd, int64(f.off), unix.SEEK_HOLE)
	if err != nil || uint64(hole) <= f.off {
		f.flat = true
		return nil
	}
	f.end = min(uint64(hole), f.end)
	return nil
}

// lying says whether an empty file has content after all, as in /proc: its file system does not know sizes.
func (f *File) lying() error {
	var b [1]byte
	n, err := f.pread(b[:], 0)
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("read %q: its file system gives its size as 0, but there is content", f.path)
	}
	return nil
}

// Read reads on in the current region, which must be data; io.EOF marks its end. A file that ends early gives
// io.EOF early.
func (f *File) Read(p []byte) (int, error) {
	if f.off >= f.end || f.short {
		return 0, io.EOF
	}
	if n := f.end - f.off; uint64(len(p)) > n {
		p = p[:n]
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.pread(p, f.off)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		f.short = true
		return 0, io.EOF
	}
	f.off += uint64(n)
	f.done += uint64(n)
	return n, nil
}

func (f *File) pread(p []byte, off uint64) (int, error) {
	if f.fault != nil {
		if err := f.fault(f.path, off); err != nil {
			return 0, fmt.Errorf("read %q at %d: %w", f.path, off, err)
		}
	}
	n, err := pread(f.fd, p, int64(off))
	if err != nil {
		return 0, fmt.Errorf("read %q at %d: %w", f.path, off, err)
	}
	return n, nil
}

// Size returns how many bytes of content, holes included, were passed so far: after the last region, the size of
// what was read.
func (f *File) Size() uint64 { return f.done }

// Check reports whether the file changed since it was opened: grew, shrank, was written or otherwise altered.
func (f *File) Check() (changed bool, err error) {
	var st unix.Stat_t
	if err := fstat(f.fd, &st); err != nil {
		return false, fmt.Errorf("stat %q: %w", f.path, err)
	}
	now := statOf(&st)
	// A hard link made or removed changes the ctime alone. That it cannot be told from a write and back of the
	// times is why it counts as a change.
	return f.short || now.Size != f.st.Size || now.Mtime != f.st.Mtime || now.Ctime != f.st.Ctime, nil
}

// Close closes the file.
func (f *File) Close() error {
	if f.fd < 0 {
		return nil
	}
	err := unix.Close(f.fd)
	f.fd = -1
	return err
}
