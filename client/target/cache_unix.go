//go:build linux || darwin || freebsd

package target

import (
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

// Bounds on open descriptors. Together they stay well below the usual limit of 1,024.
const (
	maxOpenFiles = 256
	maxOpenDirs  = 128
)

// dirCache holds descriptors of directories below the target. Its lock is held while directories are opened: that
// takes microseconds, and no directory is opened or made twice.
type dirCache struct {
	mu    sync.Mutex
	t     *Target
	root  *handle
	known map[string]*handle
	lru   handle // ring of known handles, the last used behind it
}

// handle is an open directory. It may be evicted while refs is 0.
type handle struct {
	fd         int
	path       string
	refs       int
	prev, next *handle
}

func (c *dirCache) init(t *Target, fd int) {
	c.t = t
	c.root = &handle{fd: fd, refs: 1}
	c.known = map[string]*handle{}
	c.lru.prev, c.lru.next = &c.lru, &c.lru
}

func (h *handle) unlink() { h.prev.next, h.next.prev = h.next, h.prev }

func (c *dirCache) front(h *handle) {
	h.prev, h.next = &c.lru, c.lru.next
	h.prev.next, h.next.prev = h, h
}

// get returns the directory path, which must go to put. Missing directories are made, private, if create is set.
func (c *dirCache) get(path string, create bool) (*handle, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if path == "" {
		return c.root, nil
	}
	h, ok := c.known[path]
	if ok {
		h.unlink()
		c.front(h)
		h.refs++
		return h, nil
	}
	// Go up to the nearest directory that is open, and down again from there.
	from, end := c.root, 0
	for i := len(path) - 1; i > 0; i-- {
		if path[i] == '/' {
			if h, ok := c.known[path[:i]]; ok {
				from, end = h, i+1
				break
			}
		}
	}
	from.refs++ // evict must not take it
	for {
		next := end
		for next < len(path) && path[next] != '/' {
			next++
		}
		fd, err := c.enter(from.fd, path[end:next], create)
		if err != nil {
			from.refs--
			return nil, fmt.Errorf("open directory %q: %w", path[:next], err)
		}
		h = &handle{fd: fd, path: path[:next], refs: 1}
		from.refs--
		c.known[h.path] = h
		c.front(h)
		c.evict()
		if next == len(path) {
			return h, nil
		}
		from, end = h, next+1
	}
}

func (c *dirCache) put(h *handle) {
	if h == c.root {
		return
	}
	c.mu.Lock()
	h.refs--
	c.mu.Unlock()
}

func (c *dirCache) evict() {
	for h := c.lru.prev; h != &c.lru && len(c.known) > maxOpenDirs; {
		v := h
		h = h.prev
		if v.refs == 0 {
			v.unlink()
			delete(c.known, v.path)
			unix.Close(v.fd)
		}
	}
}

// enter opens the directory name.
func (c *dirCache) enter(parent int, name string, create bool) (int, error) {
	fd, err := c.t.openDir(parent, name)
	if err == unix.ELOOP || err == unix.EMLINK || err == unix.ENOTDIR {
		return -1, fmt.Errorf("it is not a directory: %w", ErrUnsafe)
	}
	if err != unix.ENOENT || !create {
		return fd, err
	}
	if err := unix.Mkdirat(parent, name, 0o700); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return c.t.openDir(parent, name)
}

func (c *dirCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, h := range c.known {
		unix.Close(h.fd)
		delete(c.known, p)
	}
	if c.root != nil && c.root.fd >= 0 {
		unix.Close(c.root.fd)
		c.root.fd = -1
	}
}

// fileCache bounds the number of open files: those not used for longest are closed, and opened again when needed.
type fileCache struct {
	mu   sync.Mutex
	open int
	lru  File // ring of open files, the last used behind it
}

func (c *fileCache) init() { c.lru.prev, c.lru.next = &c.lru, &c.lru }

func (c *fileCache) front(f *File) {
	f.prev, f.next = &c.lru, c.lru.next
	f.prev.next, f.next.prev = f, f
}

// pin opens f, or finds it open, and keeps it open until unpin.
func (c *fileCache) pin(f *File) (int, error) {
	f.mu.Lock() // so that only one of several writers opens it
	defer f.mu.Unlock()
	c.mu.Lock()
	if f.ended {
		c.mu.Unlock()
		panic("target: use of a file after Commit or Abort")
	}
	if f.fd >= 0 {
		f.pins++
		f.prev.next, f.next.prev = f.next, f.prev
		c.front(f)
		fd := f.fd
		c.mu.Unlock()
		return fd, nil
	}
	c.open++
	for v := c.lru.prev; v != &c.lru && c.open > maxOpenFiles; {
		old := v
		v = v.prev
		if old.pins == 0 {
			c.drop(old)
		}
	}
	made := f.made
	c.mu.Unlock()
	flags := unix.O_WRONLY | unix.O_NOFOLLOW
	if !made {
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err := openat(f.t.stage, f.tempName(), flags, 0o600)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.open--
		return -1, err
	}
	f.fd, f.made = fd, true
	f.pins++
	c.front(f)
	return fd, nil
}

// drop closes f; mu is held. Some file systems report a failed write only then.
func (c *fileCache) drop(f *File) {
	f.prev.next, f.next.prev = f.next, f.prev
	f.prev, f.next = nil, nil
	c.open--
	if err := unix.Close(f.fd); err != nil && err != unix.EINTR && f.err == nil {
		f.err = err
	}
	f.fd = -1
}

func (c *fileCache) unpin(f *File) {
	c.mu.Lock()
	f.pins--
	c.mu.Unlock()
}

// end closes f for good and returns what went wrong with closing it.
func (c *fileCache) end(f *File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.ended = true
	if f.fd >= 0 {
		c.drop(f)
	}
	return f.err
}

func (c *fileCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.lru.next != nil && c.lru.next != &c.lru {
		c.drop(c.lru.next)
	}
}

func openat(at int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(at, name, flags|unix.O_CLOEXEC, mode)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, err
		}
		return fd, nil
	}
}

func renameat(from int, name string, to int, newName string) error {
	for {
		if err := unix.Renameat(from, name, to, newName); err != unix.EINTR {
			return err
		}
	}
}

// preadFull fills p from off on, as io.ReaderAt does.
func preadFull(fd int, p []byte, off int64, path string) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("read %q: %w", path, err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// list returns the names in a directory that is small or ours.
func list(fd int) ([]string, error) {
	// A descriptor of its own, because listing moves the offset, and from the start.
	d, err := openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(d)
	buf := make([]byte, 32<<10)
	var names []string
	for {
		n, err := unix.ReadDirent(d, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return names, nil
		}
		for b := buf[:n]; len(b) > 0; {
			used, _, more := unix.ParseDirent(b, -1, names)
			names, b = more, b[used:]
		}
	}
}
