//go:build !(linux || darwin || freebsd)

package target

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"holdfast/client/archive"
)

// On this system a target is kept with an os.Root, which leads nothing outside. Contents, times, the read-only
// attribute, symbolic and hard links are restored; owners, other modes, attributes, devices and FIFOs are not, and
// holes are written as the system does. Warnings says what was left out.

const stagePrefix = ".holdfast-restore-"

// Target is a directory that is being restored into. Its methods may be called concurrently for different paths.
type Target struct {
	opt      Options
	name     string
	root     *os.Root
	stage    string
	fresh    bool
	finished bool
	next     atomic.Uint64
	todo     dirLog
	warn     warnings

	writtenMu sync.Mutex
	written   map[uint64]struct{} // hashes of paths
	seed      maphash.Seed
}

// checkSystemPath refuses names that mean something else to this system.
func checkSystemPath(p string) error {
	if runtime.GOOS == "windows" && strings.ContainsAny(p, `\:*?"<>|`) {
		return fmt.Errorf("path %.200q: this system has no such names: %w", p, ErrUnsafe)
	}
	return nil
}

// Open opens the directory dir for restoring, and makes it if it is not there. A directory that is not empty is refused
// with ErrNotEmpty unless Options.Overwrite is set or an interrupted restore left it.
func Open(dir string, opt Options) (*Target, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make target directory: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open target directory: %w", err)
	}
	t := &Target{opt: opt, name: dir, root: root, written: map[uint64]struct{}{}, seed: maphash.MakeSeed()}
	t.todo.create = func() (*os.File, error) {
		return root.OpenFile(t.temp(t.next.Add(1)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err := t.openStage(); err != nil {
		root.Close()
		return nil, fmt.Errorf("restore into %q: %w", dir, err)
	}
	return t, nil
}

func (t *Target) names(dir string) ([]string, error) {
	f, err := t.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (t *Target) openStage() error {
	names, err := t.names(".")
	if err != nil {
		return err
	}
	t.fresh = len(names) == 0
	for _, n := range names {
		if rest, ok := strings.CutPrefix(n, stagePrefix); ok && len(rest) == 16 {
			if err := t.root.RemoveAll(n); err != nil {
				return ErrBusy // open files cannot be removed here
			}
			t.stage = n
		}
	}
	if t.stage == "" {
		if !t.fresh && !t.opt.Overwrite {
			return ErrNotEmpty
		}
		var b [8]byte
		rand.Read(b[:])
		t.stage = stagePrefix + hex.EncodeToString(b[:])
	}
	return t.root.Mkdir(t.stage, 0o700)
}

func (t *Target) temp(n uint64) string { return t.stage + "/" + strconv.FormatUint(n, 36) }

func (t *Target) wrote(path string) {
	t.writtenMu.Lock()
	t.written[maphash.String(t.seed, path)] = struct{}{}
	t.writtenMu.Unlock()
}

func (t *Target) place(temp, path string) error {
	dir, _ := split(path)
	if dir != "" {
		if err := t.root.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	// An archive has each path once, but a file system may take two of them for one: "a" and "A".
	was, err := t.root.Lstat(path)
	if err == nil && t.fresh {
		if own, err := t.root.Lstat(temp); err != nil || !os.SameFile(was, own) {
			return fmt.Errorf("restore %q: %w", path, ErrSameName)
		}
	}
	if err := t.root.Rename(temp, path); err != nil {
		return fmt.Errorf("restore %q: %w", path, err)
	}
	t.wrote(path)
	return nil
}

// missing counts what this system does not have.
func (t *Target) missing(e *archive.Entry) {
	if len(e.Xattrs) > 0 {
		t.warn.add(warnXattr, e.Path, nil)
	}
}

// Mkdir makes a directory; its attributes are set by FinishDirs. A directory that is there is used.
func (t *Target) Mkdir(e *archive.Entry) error {
	if err := check(e); err != nil {
		return err
	}
	if err := t.root.MkdirAll(e.Path, 0o700); err != nil {
		return fmt.Errorf("make directory %q: %w", e.Path, err)
	}
	t.missing(e)
	return t.todo.add(e)
}

// Symlink makes a symbolic link.
func (t *Target) Symlink(e *archive.Entry) error {
	if err := check(e); err != nil {
		return err
	}
	temp := t.temp(t.next.Add(1))
	if err := t.root.Symlink(e.Target, temp); err != nil {
		t.warn.add(warnSystem, e.Path, err) // needs a right that few users have
		return nil
	}
	return t.place(temp, e.Path)
}

// Hardlink makes e.Path another name of e.Link, which this run must have written or kept.
func (t *Target) Hardlink(e *archive.Entry) error {
	if err := errors.Join(check(e), checkPath(e.Link)); err != nil {
		return err
	}
	t.writtenMu.Lock()
	_, ok := t.written[maphash.String(t.seed, e.Link)]
	t.writtenMu.Unlock()
	if !ok {
		return fmt.Errorf("make hard link %q to %q: this restore did not write that: %w", e.Path, e.Link, ErrUnsafe)
	}
	temp := t.temp(t.next.Add(1))
	if err := t.root.Link(e.Link, temp); err != nil {
		return fmt.Errorf("make hard link %q to %q: %w", e.Path, e.Link, err)
	}
	return t.place(temp, e.Path)
}

// Node counts a FIFO, socket or device, which this system cannot make.
func (t *Target) Node(e *archive.Entry) error {
	t.warn.add(warnSystem, e.Path, nil)
	return check(e)
}

// Begin begins a file. Nothing is opened before the first WriteAt, and files are not kept open, so that many thousands
// of files may be begun at a time. e must not change until Commit or Abort.
func (t *Target) Begin(e *archive.Entry) (*File, error) {
	if err := check(e); err != nil {
		return nil, err
	}
	return &File{t: t, e: e, temp: t.temp(t.next.Add(1))}, nil
}

// File is a file that is being restored.
type File struct {
	t    *Target
	e    *archive.Entry
	temp string
	mu   sync.Mutex
	made bool
}

// with calls f with the file open.
func (f *File) with(do func(*os.File) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	flags := os.O_WRONLY
	if !f.made {
		flags |= os.O_CREATE | os.O_EXCL
	}
	w, err := f.t.root.OpenFile(f.temp, flags, 0o600)
	if err != nil {
		return fmt.Errorf("write %q: %w", f.e.Path, err)
	}
	f.made = true
	if err := errors.Join(do(w), w.Close()); err != nil {
		return fmt.Errorf("write %q: %w", f.e.Path, err)
	}
	return nil
}

// WriteAt writes content; what is never written stays a hole. It may be called concurrently.
func (f *File) WriteAt(p []byte, off int64) (n int, err error) {
	if off < 0 || uint64(off) > f.e.Size || uint64(len(p)) > f.e.Size-uint64(off) {
		return 0, fmt.Errorf("write %q: %d bytes at %d exceed its size of %d", f.e.Path, len(p), off, f.e.Size)
	}
	err = f.with(func(w *os.File) (err error) { n, err = w.WriteAt(p, off); return err })
	return n, err
}

// Commit sets the file's size and time and gives it its name. After it, or its error, f is done with.
func (f *File) Commit() error {
	err := f.with(func(w *os.File) error { return errors.Join(w.Truncate(int64(f.e.Size)), w.Sync()) })
	if err == nil {
		f.t.missing(f.e)
		if err = f.t.root.Chtimes(f.temp, f.e.Mtime.Std(), f.e.Mtime.Std()); err == nil {
			err = f.t.place(f.temp, f.e.Path)
		}
	}
	if err == nil && f.e.Mode&0o200 == 0 {
		err = f.t.root.Chmod(f.e.Path, fs.FileMode(f.e.Mode&0o777)) // later it could not be renamed
	}
	if err != nil {
		f.Abort()
		return err
	}
	return nil
}

// Abort removes what was written. It does nothing after Commit.
func (f *File) Abort() {
	if f.made {
		f.t.root.Remove(f.temp)
	}
}

// Existing is a file that an earlier run completed, open for comparing its content.
type Existing struct {
	t    *Target
	path string
	f    *os.File
}

// Has reports whether e's file is there already with its size and time: it returns the file for comparing its content,
// and nil if there is none such.
func (t *Target) Has(e *archive.Entry) *Existing {
	if t.fresh || e.Type != archive.TypeFile || check(e) != nil {
		return nil
	}
	was, err := t.root.Lstat(e.Path)
	if err != nil || !was.Mode().IsRegular() || uint64(was.Size()) != e.Size || archive.TimeOf(was.ModTime()) != e.Mtime {
		return nil
	}
	f, err := t.root.Open(e.Path)
	if err != nil {
		return nil
	}
	if fi, err := f.Stat(); err != nil || !os.SameFile(was, fi) {
		f.Close()
		return nil
	}
	return &Existing{t, e.Path, f}
}

// ReadAt reads content; holes are zeros.
func (x *Existing) ReadAt(p []byte, off int64) (int, error) {
	n, err := x.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read %q: %w", x.path, err)
	}
	return n, err
}

// Keep takes the file as one that this run wrote.
func (x *Existing) Keep() { x.t.wrote(x.path) }

// Close closes the file.
func (x *Existing) Close() error { return x.f.Close() }

// FinishDirs sets the times of all directories, deepest first. Nothing may be restored after it. Files were made durable
// one by one.
func (t *Target) FinishDirs() error {
	var first error
	err := t.todo.backwards(func(e *archive.Entry) {
		if err := t.root.Chtimes(e.Path, e.Mtime.Std(), e.Mtime.Std()); err != nil && first == nil {
			first = fmt.Errorf("set time of %q: %w", e.Path, err)
		}
	})
	if err == nil {
		err = first
	}
	t.finished = err == nil
	return err
}

// Warnings returns what could not be restored, in a fixed order.
func (t *Target) Warnings() []Warning { return t.warn.list() }

// Close releases the target. Without a successful FinishDirs before it the staging directory stays, and a later Open
// continues.
func (t *Target) Close() error {
	t.todo.close()
	var err error
	if t.finished {
		err = t.root.RemoveAll(t.stage)
	}
	return errors.Join(err, t.root.Close())
}
