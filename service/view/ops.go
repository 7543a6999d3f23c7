package view

import (
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// DiskOp is one operation of the database on its disk.
type DiskOp struct {
	Name  string // such as "write" or "rename"
	Path  string
	Write bool // it changes the disk, or makes a change durable
}

// opsFS is a file system on which every operation goes through around, which calls do once, never or again.
type opsFS struct {
	vfs.FS
	around func(op DiskOp, do func() error) error
}

func (w *opsFS) write(name, path string, do func() error) error {
	return w.around(DiskOp{name, path, true}, do)
}

func (w *opsFS) read(name, path string, do func() error) error {
	return w.around(DiskOp{name, path, false}, do)
}

// file is what opening a file in w returns. A file that was opened by an operation that is said to have failed is closed.
func (w *opsFS) file(f vfs.File, path string, err error) (vfs.File, error) {
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	return &opsFile{f, w, path}, nil
}

func (w *opsFS) Unwrap() vfs.FS { return w.FS }

func (w *opsFS) Create(name string, c vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = w.write("create", name, func() (err error) { f, err = w.FS.Create(name, c); return err })
	return w.file(f, name, err)
}

func (w *opsFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (f vfs.File, err error) {
	err = w.write("open for writing", name, func() (err error) { f, err = w.FS.OpenReadWrite(name, c, opts...); return err })
	return w.file(f, name, err)
}

func (w *opsFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = w.write("reuse", from, func() (err error) { f, err = w.FS.ReuseForWrite(from, to, c); return err })
	return w.file(f, to, err)
}

func (w *opsFS) Open(name string, opts ...vfs.OpenOption) (f vfs.File, err error) {
	err = w.read("open", name, func() (err error) { f, err = w.FS.Open(name, opts...); return err })
	return w.file(f, name, err)
}

func (w *opsFS) OpenDir(name string) (f vfs.File, err error) {
	err = w.read("open directory", name, func() (err error) { f, err = w.FS.OpenDir(name); return err })
	return w.file(f, name, err)
}

func (w *opsFS) Link(from, to string) error {
	return w.write("link", from, func() error { return w.FS.Link(from, to) })
}

func (w *opsFS) Rename(from, to string) error {
	return w.write("rename", from, func() error { return w.FS.Rename(from, to) })
}

func (w *opsFS) Remove(name string) error {
	return w.write("remove", name, func() error { return w.FS.Remove(name) })
}

func (w *opsFS) RemoveAll(name string) error {
	return w.write("remove all", name, func() error { return w.FS.RemoveAll(name) })
}

func (w *opsFS) MkdirAll(name string, perm os.FileMode) error {
	return w.write("make directory", name, func() error { return w.FS.MkdirAll(name, perm) })
}

func (w *opsFS) Lock(name string) (c io.Closer, err error) {
	err = w.read("lock", name, func() (err error) { c, err = w.FS.Lock(name); return err })
	if err != nil && c != nil {
		c.Close()
		c = nil
	}
	return c, err
}

func (w *opsFS) List(name string) (names []string, err error) {
	err = w.read("list", name, func() (err error) { names, err = w.FS.List(name); return err })
	return names, err
}

func (w *opsFS) Stat(name string) (info vfs.FileInfo, err error) {
	err = w.read("stat", name, func() (err error) { info, err = w.FS.Stat(name); return err })
	return info, err
}

// GetDiskUsage tells the database how much room there is; it merges no more at a time than fits there. A disk that cannot be
// asked is no trouble.
func (w *opsFS) GetDiskUsage(name string) (vfs.DiskUsage, error) {
	u, err := w.FS.GetDiskUsage(name)
	if err != nil {
		return u, vfs.ErrUnsupported
	}
	return u, nil
}

type opsFile struct {
	vfs.File
	w    *opsFS
	path string
}

func (f *opsFile) Write(p []byte) (n int, err error) {
	err = f.w.write("write", f.path, func() error {
		m, err := f.File.Write(p[n:]) // the rest, if it is called again
		n += m
		return err
	})
	return n, err
}

func (f *opsFile) WriteAt(p []byte, at int64) (n int, err error) {
	err = f.w.write("write", f.path, func() error {
		m, err := f.File.WriteAt(p[n:], at+int64(n))
		n += m
		return err
	})
	return n, err
}

func (f *opsFile) Sync() error { return f.w.write("sync", f.path, f.File.Sync) }

func (f *opsFile) SyncData() error { return f.w.write("sync", f.path, f.File.SyncData) }

func (f *opsFile) SyncTo(length int64) (full bool, err error) {
	err = f.w.write("sync", f.path, func() (err error) { full, err = f.File.SyncTo(length); return err })
	return full, err
}

func (f *opsFile) Read(p []byte) (n int, err error) {
	err = f.w.read("read", f.path, func() (err error) { n, err = f.File.Read(p); return err })
	return n, err
}

func (f *opsFile) ReadAt(p []byte, at int64) (n int, err error) {
	err = f.w.read("read", f.path, func() (err error) { n, err = f.File.ReadAt(p, at); return err })
	return n, err
}
