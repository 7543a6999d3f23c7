//go:build linux || darwin || freebsd

package target

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
)

// stagePrefix begins the name of the staging directory; 16 hexadecimal digits follow.
const stagePrefix = ".holdfast-restore-"

// Target is a directory that is being restored into. Its methods may be called concurrently for different paths.
type Target struct {
	opt      Options
	name     string
	euid     int
	groups   map[uint32]bool // that a user may give files to
	fresh    bool            // there was nothing in it
	finished bool

	stage     int // descriptor of the staging directory, which is locked
	stageName string
	next      atomic.Uint64 // names in the staging directory

	dirs  dirCache
	files fileCache
	todo  dirLog
	warn  warnings

	// written holds all that this run wrote and that may be linked to: by device and inode / 64, a bit for each
	// inode. File systems give out inodes in runs, so that a million files need about a megabyte.
	written   map[inodes]uint64
	writtenMu sync.Mutex
}

// inodes names 64 inodes in a row.
type inodes struct{ dev, row uint64 }

func checkSystemPath(string) error { return nil }

// Open opens the directory dir for restoring, and makes it, private, if it is not there. A directory that is not empty
// is refused with ErrNotEmpty unless Options.Overwrite is set or an interrupted restore left it.
func Open(dir string, opt Options) (*Target, error) {
	t := &Target{opt: opt, name: dir, euid: os.Geteuid(), stage: -1, groups: map[uint32]bool{}, written: map[inodes]uint64{}}
	t.groups[uint32(os.Getegid())] = true
	if gids, err := os.Getgroups(); err == nil {
		for _, g := range gids {
			t.groups[uint32(g)] = true
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make target directory: %w", err)
	}
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("open target directory %q: %w", dir, err)
	}
	t.dirs.init(t, fd)
	t.files.init()
	if err := t.openStage(fd); err != nil {
		t.Close()
		return nil, fmt.Errorf("restore into %q: %w", dir, err)
	}
	t.todo.create = func() (*os.File, error) {
		fd, err := openat(t.stage, t.temp(), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), "directories"), nil
	}
	return t, nil
}

// openStage finds the staging directory of an interrupted restore, or makes one.
func (t *Target) openStage(root int) error {
	names, err := list(root)
	if err != nil {
		return err
	}
	var stages []string
	for _, name := range names {
		if rest, ok := strings.CutPrefix(name, stagePrefix); ok && len(rest) == 16 {
			stages = append(stages, name)
		}
	}
	t.fresh = len(names) == 0
	for _, name := range stages {
		fd, err := t.adoptStage(root, name)
		if err != nil {
			return err
		}
		if fd < 0 {
			continue
		}
		if t.stage >= 0 { // one is enough
			unix.Unlinkat(root, name, unix.AT_REMOVEDIR)
			unix.Close(fd)
			continue
		}
		t.stage, t.stageName = fd, name
	}
	if t.stage >= 0 {
		return nil
	}
	if len(names) > 0 && !t.opt.Overwrite {
		return ErrNotEmpty
	}
	var b [8]byte
	rand.Read(b[:])
	t.stageName = stagePrefix + hex.EncodeToString(b[:])
	if err := unix.Mkdirat(root, t.stageName, 0o700); err != nil {
		return fmt.Errorf("make staging directory: %w", err)
	}
	fd, err := t.adoptStage(root, t.stageName)
	if err == nil && fd < 0 {
		err = fmt.Errorf("staging directory: %w", ErrUnsafe)
	}
	if err != nil {
		return err
	}
	t.stage = fd
	return nil
}

// adoptStage locks and empties a staging directory. It returns -1 for what is not one of ours.
func (t *Target) adoptStage(root int, name string) (int, error) {
	fd, err := openat(root, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	switch err {
	case nil:
	case unix.EIO, unix.EMFILE, unix.ENFILE, unix.ENOMEM:
		return -1, fmt.Errorf("open staging directory: %w", err)
	default:
		return -1, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("look at staging directory: %w", err)
	}
	if int(st.Uid) != t.euid || uint32(st.Mode)&0o077 != 0 {
		unix.Close(fd)
		return -1, nil
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		unix.Close(fd)
		if err == unix.EWOULDBLOCK {
			return -1, ErrBusy
		}
		return -1, fmt.Errorf("lock staging directory: %w", err)
	}
	names, err := list(fd)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("read staging directory: %w", err)
	}
	for _, n := range names {
		if err := unix.Unlinkat(fd, n, 0); err != nil {
			unix.Close(fd)
			return -1, nil // holds what we never put there: not a staging directory
		}
	}
	// Neither a set-id bit nor a default ACL of the target may reach what is made here.
	if err := unix.Fchmod(fd, 0o700); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("set mode of staging directory: %w", err)
	}
	dropDefaultACL(fd)
	return fd, nil
}

func (t *Target) temp() string { return strconv.FormatUint(t.next.Add(1), 36) }

// place renames a finished thing from the staging directory to its path.
func (t *Target) place(temp, path string) error {
	dir, name := split(path)
	h, err := t.dirs.get(dir, true)
	if err != nil {
		return err
	}
	defer t.dirs.put(h)
	if t.taken(temp, h.fd, name) {
		return fmt.Errorf("restore %q: %w", path, ErrSameName)
	}
	switch err := renameat(t.stage, temp, h.fd, name); err {
	case nil:
		return nil
	case unix.EXDEV:
		return fmt.Errorf("restore %q: its directory is on another file system than the target: restore into that file system directly", path)
	case unix.EISDIR, unix.EEXIST, unix.ENOTEMPTY:
		return fmt.Errorf("restore %q: a directory is in its place: move it away", path)
	default:
		return fmt.Errorf("restore %q: %w", path, err)
	}
}

// taken reports whether name is something that this run wrote, and not just another link of temp. An archive has
// each path once, but a file system may take two of them for one: "a" and "A".
func (t *Target) taken(temp string, dir int, name string) bool {
	var there, own unix.Stat_t
	if unix.Fstatat(dir, name, &there, unix.AT_SYMLINK_NOFOLLOW) != nil || !t.wroteIt(&there) {
		return false
	}
	return temp == "" || unix.Fstatat(t.stage, temp, &own, unix.AT_SYMLINK_NOFOLLOW) != nil || own.Dev != there.Dev || own.Ino != there.Ino
}

// wrote notes that this run wrote the file of st.
func (t *Target) wrote(st *unix.Stat_t) {
	t.writtenMu.Lock()
	defer t.writtenMu.Unlock()
	t.written[inodes{uint64(st.Dev), uint64(st.Ino) / 64}] |= 1 << (uint64(st.Ino) % 64)
}

// drop removes something from the staging directory. Its inode may be given to a stranger's file next, and is not one
// that this run wrote any more.
func (t *Target) drop(temp string) {
	var st unix.Stat_t
	if unix.Fstatat(t.stage, temp, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Nlink == 1 {
		t.writtenMu.Lock()
		t.written[inodes{uint64(st.Dev), uint64(st.Ino) / 64}] &^= 1 << (uint64(st.Ino) % 64)
		t.writtenMu.Unlock()
	}
	unix.Unlinkat(t.stage, temp, 0)
}

// wroteIt reports whether this run wrote the file of st.
func (t *Target) wroteIt(st *unix.Stat_t) bool {
	t.writtenMu.Lock()
	defer t.writtenMu.Unlock()
	return t.written[inodes{uint64(st.Dev), uint64(st.Ino) / 64}]&(1<<(uint64(st.Ino)%64)) != 0
}

// Mkdir makes a directory; its attributes are set by FinishDirs. A directory that is there is used.
func (t *Target) Mkdir(e *archive.Entry) error {
	if err := check(e); err != nil {
		return err
	}
	dir, name := split(e.Path)
	h, err := t.dirs.get(dir, true)
	if err != nil {
		return err
	}
	defer t.dirs.put(h)
	err = unix.Mkdirat(h.fd, name, 0o700)
	if err == unix.EEXIST {
		err = t.existing(h.fd, name)
	}
	if err != nil {
		return fmt.Errorf("make directory %q: %w", e.Path, err)
	}
	return t.todo.add(e)
}

// existing makes sure that name is a directory that can be written, replacing anything else.
func (t *Target) existing(parent int, name string) error {
	fd, err := t.openDir(parent, name)
	if err == nil {
		defer unix.Close(fd)
		var st unix.Stat_t
		if t.euid != 0 && unix.Fstat(fd, &st) == nil && uint32(st.Mode)&0o700 != 0o700 {
			return unix.Fchmod(fd, 0o700)
		}
		return nil
	}
	if err != unix.ENOTDIR && err != unix.ELOOP && err != unix.EMLINK {
		return err
	}
	if t.taken("", parent, name) {
		return ErrSameName
	}
	if err := unix.Unlinkat(parent, name, 0); err != nil {
		return err
	}
	return unix.Mkdirat(parent, name, 0o700)
}

// openDir opens a directory, never through a link. One of the user's own that an earlier run had already closed to
// him is opened to him again; FinishDirs will close it.
func (t *Target) openDir(parent int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := openat(parent, name, flags, 0)
	if err == unix.EACCES && t.euid != 0 && !t.fresh {
		if unix.Fchmodat(parent, name, 0o700, unix.AT_SYMLINK_NOFOLLOW) == nil {
			fd, err = openat(parent, name, flags, 0)
		}
	}
	return fd, err
}

// Symlink makes a symbolic link.
func (t *Target) Symlink(e *archive.Entry) error {
	if err := check(e); err != nil {
		return err
	}
	temp := t.temp()
	if err := unix.Symlinkat(e.Target, t.stage, temp); err != nil {
		return fmt.Errorf("make symbolic link %q: %w", e.Path, err)
	}
	return t.finishNode(temp, e)
}

// Node makes a FIFO, a socket or a device; a device only with Options.Privileged.
func (t *Target) Node(e *archive.Entry) error {
	if err := check(e); err != nil {
		return err
	}
	var mode uint32
	var dev uint64
	switch e.Type {
	case archive.TypeFIFO:
		mode = unix.S_IFIFO
	case archive.TypeSocket:
		mode = unix.S_IFSOCK
	case archive.TypeChar, archive.TypeBlock:
		if !t.opt.Privileged {
			t.warn.add(warnDevice, e.Path, nil)
			return nil
		}
		mode = unix.S_IFCHR
		if e.Type == archive.TypeBlock {
			mode = unix.S_IFBLK
		}
		dev = unix.Mkdev(e.Major, e.Minor)
		if unix.Major(dev) != e.Major || unix.Minor(dev) != e.Minor {
			t.warn.add(warnDeviceFail, e.Path, errors.New("its number is too large for this system"))
			return nil
		}
	default:
		return fmt.Errorf("make %q: type %d is no node", e.Path, e.Type)
	}
	temp := t.temp()
	if err := mknodat(t.stage, temp, mode|0o600, dev); err != nil {
		if err == unix.ENOSPC || err == unix.EDQUOT {
			return fmt.Errorf("make %q: %w", e.Path, err)
		}
		t.warn.add(warnDeviceFail, e.Path, err)
		return nil
	}
	return t.finishNode(temp, e)
}

// finishNode gives what is not a file or directory its attributes and its place. In the staging directory names are as
// safe as descriptors: nobody else can change them.
func (t *Target) finishNode(temp string, e *archive.Entry) error {
	err := t.attributes(object{fd: -1, at: t.stage, name: temp}, e)
	if err == nil {
		err = t.place(temp, e.Path)
	}
	if err != nil {
		t.drop(temp)
	}
	return err
}

// Hardlink makes e.Path another name of e.Link, which this run must have written or kept.
func (t *Target) Hardlink(e *archive.Entry) error {
	if err := check(e); err != nil {
		return err
	}
	if err := checkPath(e.Link); err != nil {
		return err
	}
	dir, name := split(e.Link)
	h, err := t.dirs.get(dir, false)
	if err != nil {
		return err
	}
	temp := t.temp()
	err = unix.Linkat(h.fd, name, t.stage, temp, 0)
	t.dirs.put(h)
	if err != nil {
		return fmt.Errorf("make hard link %q to %q: %w", e.Path, e.Link, err)
	}
	// A name in the staging directory does not change under us, so that what is looked at is what is placed.
	defer unix.Unlinkat(t.stage, temp, 0) // renaming onto another link of the same file leaves it
	var st unix.Stat_t
	if err := unix.Fstatat(t.stage, temp, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("make hard link %q to %q: %w", e.Path, e.Link, err)
	}
	if !t.wroteIt(&st) {
		return fmt.Errorf("make hard link %q to %q: this restore did not write that: %w", e.Path, e.Link, ErrUnsafe)
	}
	return t.place(temp, e.Path)
}

// Begin begins a file. Nothing is opened before the first WriteAt, and the number of open files is bounded, so
// that many thousands of files may be begun at a time. e must not change until Commit or Abort.
func (t *Target) Begin(e *archive.Entry) (*File, error) {
	if err := check(e); err != nil {
		return nil, err
	}
	return &File{t: t, e: e, temp: t.next.Add(1), fd: -1}, nil
}

// File is a file that is being restored.
type File struct {
	t    *Target
	e    *archive.Entry
	temp uint64     // its name in the staging directory
	mu   sync.Mutex // held while it is opened

	// The rest belongs to fileCache.mu.
	fd         int // -1 while closed
	pins       int // calls that use fd now
	made       bool
	ended      bool
	err        error // of closing it early
	prev, next *File // by last use
}

func (f *File) tempName() string { return strconv.FormatUint(f.temp, 36) }

// WriteAt writes content; what is never written stays a hole. It may be called concurrently.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || uint64(off) > f.e.Size || uint64(len(p)) > f.e.Size-uint64(off) {
		return 0, fmt.Errorf("write %q: %d bytes at %d exceed its size of %d", f.e.Path, len(p), off, f.e.Size)
	}
	fd, err := f.t.files.pin(f)
	if err != nil {
		return 0, fmt.Errorf("write %q: %w", f.e.Path, err)
	}
	defer f.t.files.unpin(f)
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, fmt.Errorf("write %q: %w", f.e.Path, err)
		}
		done += n
	}
	return done, nil
}

// Commit sets the file's size and attributes and gives it its name. After it, or its error, f is done with.
func (f *File) Commit() error {
	err := f.commit()
	if err != nil {
		f.Abort()
	}
	return err
}

func (f *File) commit() error {
	t, e := f.t, f.e
	fd, err := t.files.pin(f)
	if err != nil {
		return fmt.Errorf("restore %q: %w", e.Path, err)
	}
	err = t.setSize(fd, e)
	if err == nil {
		err = t.attributes(object{fd: fd, at: t.stage, name: f.tempName()}, e)
	}
	t.files.unpin(f)
	if err != nil {
		return err
	}
	if err := t.files.end(f); err != nil {
		return fmt.Errorf("write %q: %w", e.Path, err)
	}
	return t.place(f.tempName(), e.Path)
}

// setSize makes the hole at a file's end.
func (t *Target) setSize(fd int, e *archive.Entry) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("restore %q: %w", e.Path, err)
	}
	if uint64(st.Size) == e.Size {
		return nil
	}
	if err := unix.Ftruncate(fd, int64(e.Size)); err != nil {
		return fmt.Errorf("set size of %q: %w", e.Path, err)
	}
	return nil
}

// Abort removes what was written. It does nothing after Commit.
func (f *File) Abort() {
	f.t.files.end(f)
	if f.made {
		f.t.drop(f.tempName()) // not there any more if it was placed
	}
}

// Existing is a file that an earlier run completed, open for comparing its content.
type Existing struct {
	t    *Target
	path string
	fd   int
	st   unix.Stat_t
}

// Has reports whether e's file is there already with size, time, mode and owner as Commit would leave them: it returns
// the file for comparing its content, and nil if there is none such. Extended attributes are not compared: Commit sets
// them before the file gets its name.
func (t *Target) Has(e *archive.Entry) *Existing {
	if t.fresh || e.Type != archive.TypeFile || check(e) != nil {
		return nil
	}
	dir, name := split(e.Path)
	h, err := t.dirs.get(dir, false)
	if err != nil {
		return nil
	}
	fd, err := openat(h.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	t.dirs.put(h)
	if err != nil {
		return nil
	}
	x := &Existing{t: t, path: e.Path, fd: fd}
	mode, uid, gid := t.wanted(e)
	if err := unix.Fstat(fd, &x.st); err != nil || uint32(x.st.Mode) != unix.S_IFREG|mode || uint64(x.st.Size) != e.Size ||
		mtime(&x.st) != e.Mtime || int(x.st.Uid) != uid || gid >= 0 && int(x.st.Gid) != gid {
		x.Close()
		return nil
	}
	return x
}

// ReadAt reads content; holes are zeros.
func (x *Existing) ReadAt(p []byte, off int64) (int, error) {
	return preadFull(x.fd, p, off, x.path)
}

// Keep takes the file as one that this run wrote.
func (x *Existing) Keep() { x.t.wrote(&x.st) }

// Close closes the file.
func (x *Existing) Close() error { return unix.Close(x.fd) }

// FinishDirs sets the attributes of all directories, deepest first, and makes all that was restored durable.
// Nothing may be restored after it.
func (t *Target) FinishDirs() error {
	var first error
	err := t.todo.backwards(func(e *archive.Entry) {
		if err := t.finishDir(e); err != nil && first == nil {
			first = err
		}
	})
	if err == nil {
		err = first
	}
	if err == nil {
		if err = syncAll(t.dirs.root.fd); err != nil {
			err = fmt.Errorf("write %q to disk: %w", t.name, err)
		}
	}
	t.finished = err == nil
	return err
}

func (t *Target) finishDir(e *archive.Entry) error {
	h, err := t.dirs.get(e.Path, false)
	if err != nil {
		return err
	}
	defer t.dirs.put(h)
	dropOtherACLs(h.fd, e)
	return t.attributes(object{fd: h.fd, at: h.fd, name: "."}, e)
}

// Warnings returns what could not be restored, in a fixed order.
func (t *Target) Warnings() []Warning { return t.warn.list() }

// Close releases the target. Without a successful FinishDirs before it the staging directory stays, and a later Open
// continues.
func (t *Target) Close() error {
	t.files.close()
	t.todo.close()
	var err error
	if t.stage >= 0 {
		if t.finished {
			names, _ := list(t.stage)
			for _, n := range names {
				unix.Unlinkat(t.stage, n, 0)
			}
			if err = unix.Unlinkat(t.dirs.root.fd, t.stageName, unix.AT_REMOVEDIR); err != nil {
				err = fmt.Errorf("remove staging directory of %q: %w", t.name, err)
			}
		}
		unix.Close(t.stage)
		t.stage = -1
	}
	t.dirs.close()
	return err
}
