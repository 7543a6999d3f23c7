// Package dir keeps a bucket in a directory of a local disk.
//
// # Layout
//
//	ROOT/.holdfast-bucket   the line "holdfast bucket 1": without it a directory is not taken for a bucket,
//	                        so that an unmounted disk is not mistaken for an empty one
//	ROOT/.lock              flock(2) on it serialises Swap among processes
//	ROOT/.tmp/*             objects being written, each under the flock of its writer
//	ROOT/KEY                objects; directories 0700, files 0600
//
// # Durability
//
// Put writes a temporary file, syncs it, renames it to its key and syncs the directory; only then does
// it return. Directories are synced into their parents before anything is renamed into them, by every
// process that uses them, because the one that made them may have died before it did. So:
//
//   - a crash at any moment leaves the object absent or whole, and a temporary file that nothing reads;
//   - after a return without error, a power cut does not take the object away;
//   - nor after Get or List has shown it: a process that died between renaming and syncing leaves an
//     object that is seen and not yet durable, and a takeover must not build on it. List syncs the
//     directories that it shows, Get those that this process has not synced, or failed to sync, before;
//   - a failed sync fails the call, and what it was about is written anew under a new temporary file: the
//     kernel may have dropped the pages and would report success the next time.
//
// Open removes the temporary files of writers that died: those whose lock it gets.
package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/internal/durable"
	"holdfast/service/bucket"
)

const (
	marker        = ".holdfast-bucket"
	markerContent = "holdfast bucket 1\n"
	lockName      = ".lock"
	tmpName       = ".tmp"

	// maxSwap bounds an object that is compared by Swap, bytes.
	maxSwap = 64 << 10
	// lockPoll is how often a Swap that waits for another process's looks again.
	lockPoll = 5 * time.Millisecond
	// coarse is how far apart two changes of a directory are that no file system stamps with the same time.
	coarse = 3 * time.Second
)

// Bucket is a directory. It holds no lock and needs no Close.
type Bucket struct {
	root    string
	syncDir func(dir string) error // durable.SyncDir, but for tests
	// step makes one call of the operating system on path; tests have it fail, before the call or after it.
	step func(call, path string, do func() error) error

	mu sync.Mutex
	// settled holds the directories that are durable up to root, and durable in themselves as far as
	// dead processes and this one changed them.
	settled map[string]bool
	// left is what the first page of a directory left for the others; the last one forgets it.
	left rest
}

// rest is the keys that come after those of a page, while the directory is as it was.
type rest struct {
	dir    fs.FileInfo // before it was read; nil for none
	prefix string
	from   string   // all keys of prefix in it that come after this one are:
	keys   []string // sorted, and none of a directory
}

var (
	_ bucket.Bucket = (*Bucket)(nil)
	_ bucket.OnDisk = (*Bucket)(nil)
)

// Create makes root a bucket and opens it. A bucket that is there already is opened as it is; another
// directory with something in it is refused.
func Create(root string) (*Bucket, error) {
	root = filepath.Clean(root)
	if _, err := os.Lstat(filepath.Join(root, marker)); err == nil {
		return Open(root)
	}
	if err := durable.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("create bucket %s: %w", root, err)
	}
	es, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("create bucket: %w", err)
	}
	for _, e := range es {
		// A new ext file system has lost+found; a Create that was cut short or runs beside us leaves the rest.
		if n := e.Name(); n != "lost+found" && !strings.HasPrefix(n, ".tmp") && n != marker {
			return nil, fmt.Errorf("create bucket: %s is not empty and not a bucket; name a new directory", root)
		}
	}
	if err := durable.WriteFile(filepath.Join(root, marker), []byte(markerContent), 0o600); err != nil {
		return nil, fmt.Errorf("create bucket: %w", err)
	}
	return Open(root)
}

// Disk is part of bucket.OnDisk.
func (b *Bucket) Disk() string { return b.root }

// Open opens a bucket that Create made, and removes what dead writers left half written.
func Open(root string) (*Bucket, error) {
	return openWith(root, func(_, _ string, do func() error) error { return do() })
}

func openWith(root string, step func(call, path string, do func() error) error) (*Bucket, error) {
	root = filepath.Clean(root)
	b := &Bucket{root: root, syncDir: durable.SyncDir, step: step, settled: map[string]bool{}}
	var got []byte
	err := b.step("read", filepath.Join(root, marker), func() (err error) {
		got, err = os.ReadFile(filepath.Join(root, marker))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open bucket: %s has no file %s and so is not a bucket; is its disk mounted?", root, marker)
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket: %w", err)
	}
	if string(got) != markerContent {
		return nil, fmt.Errorf("open bucket: %s is of a format that this version does not know", filepath.Join(root, marker))
	}
	if err := b.step("mkdir", filepath.Join(root, tmpName), func() error { return durable.MkdirAll(filepath.Join(root, tmpName), 0o700) }); err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", root, err)
	}
	if err := b.sweep(); err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", root, err)
	}
	return b, nil
}

// sweep removes temporary files whose writer is gone. A live writer holds the lock of its file, and one
// that had not locked it yet notices that it was unlinked (create).
func (b *Bucket) sweep() error {
	es, err := b.readDir(filepath.Join(b.root, tmpName))
	if err != nil {
		return err
	}
	for _, e := range es {
		p := filepath.Join(b.root, tmpName, e.Name())
		f, err := b.open(p, os.O_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if flock(f, syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			err = b.step("unlink", p, func() error { return os.Remove(p) })
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// open opens a file for its owner alone.
func (b *Bucket) open(path string, how int) (f *os.File, err error) {
	err = b.step("open", path, func() (err error) {
		f, err = os.OpenFile(path, how, 0o600)
		return err
	})
	return f, err
}

// readDir returns what is in a directory, in no order.
func (b *Bucket) readDir(path string) (es []fs.DirEntry, err error) {
	d, err := b.open(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	err = b.step("read directory", path, func() (err error) {
		es, err = d.ReadDir(-1)
		return err
	})
	return es, err
}

// create makes a locked temporary file. The lock ends with the file or the process.
func (b *Bucket) create() (*os.File, error) {
	for {
		var f *os.File
		if err := b.step("create", filepath.Join(b.root, tmpName), func() (err error) {
			f, err = os.CreateTemp(filepath.Join(b.root, tmpName), "put-*")
			return err
		}); err != nil {
			return nil, err
		}
		if err := b.step("lock", f.Name(), func() error { return flock(f, syscall.LOCK_EX) }); err != nil {
			f.Close()
			os.Remove(f.Name())
			return nil, err
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
			f.Close()
			return nil, err
		}
		if st.Nlink > 0 {
			return f, nil
		}
		f.Close() // swept by another process before it was locked
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}

func (b *Bucket) path(key string) string { return filepath.Join(b.root, filepath.FromSlash(key)) }

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body []byte) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	if err := b.put(ctx, key, body); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

func (b *Bucket) put(ctx context.Context, key string, body []byte) (err error) {
	if len(body) > bucket.MaxObject {
		return fmt.Errorf("%d bytes exceed the limit of %d", len(body), bucket.MaxObject)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p := b.path(key)
	if err := b.settle(filepath.Dir(p)); err != nil {
		return err
	}
	f, err := b.create()
	if err != nil {
		return err
	}
	// Until the rename, a crash leaves a temporary file that the next Open removes.
	if err := b.write(ctx, f, body); err != nil {
		os.Remove(f.Name())
		f.Close()
		return err
	}
	// From here on the object may be seen; it is whole. Until the directory is synced, a power cut may
	// take it away again, and we have not said that it is there.
	err = b.step("rename", p, func() error { return os.Rename(f.Name(), p) })
	if err != nil {
		os.Remove(f.Name())
		b.unsettle(filepath.Dir(p)) // it may have been renamed all the same
	}
	f.Close() // after the rename, so that no sweep takes the file for a dead writer's; it is synced
	if err != nil {
		return err
	}
	return b.sync(filepath.Dir(p))
}

// write fills and syncs f, and gives up between steps when ctx ends.
func (b *Bucket) write(ctx context.Context, f *os.File, body []byte) error {
	if err := b.step("write", f.Name(), func() error { _, err := f.Write(body); return err }); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.step("sync", f.Name(), f.Sync); err != nil {
		return err
	}
	return ctx.Err()
}

// settle makes dir (root or below it) if it is not there, and makes it, its chain of parents and what
// can be seen in it durable, once a process.
func (b *Bucket) settle(dir string) error {
	b.mu.Lock()
	done := b.settled[dir]
	b.mu.Unlock()
	if done {
		return nil
	}
	if dir != b.root {
		if err := b.settle(filepath.Dir(dir)); err != nil {
			return err
		}
		if err := b.step("mkdir", dir, func() error { return os.Mkdir(dir, 0o700) }); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := b.sync(filepath.Dir(dir)); err != nil {
			return err
		}
	}
	if err := b.sync(dir); err != nil {
		return err
	}
	b.mu.Lock()
	b.settled[dir] = true
	b.mu.Unlock()
	return nil
}

// sync makes what can be seen in dir durable. After a failure nothing there counts as durable.
func (b *Bucket) sync(dir string) error {
	err := b.step("sync", dir, func() error { return b.syncDir(dir) })
	if err != nil {
		b.unsettle(dir)
	}
	return err
}

// unsettle notes that what can be seen in dir may not be durable.
func (b *Bucket) unsettle(dir string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.settled, dir)
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, err
	}
	p, err := b.get(ctx, key, off, n)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	return p, nil
}

func (b *Bucket) get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := b.open(b.path(key), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, bucket.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st fs.FileInfo
	if err := b.step("stat", f.Name(), func() (err error) { st, err = f.Stat(); return err }); err != nil {
		return nil, err
	}
	if st.IsDir() {
		return nil, bucket.ErrNotFound
	}
	if err := b.settle(filepath.Dir(b.path(key))); err != nil {
		return nil, err
	}
	size := st.Size()
	if off < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("%d bytes at %d of %d: %w", n, off, size, bucket.ErrShort)
	}
	if n < 0 {
		n = size - off
	}
	if n > bucket.MaxObject {
		return nil, fmt.Errorf("%d bytes exceed the limit of %d", n, bucket.MaxObject)
	}
	p := make([]byte, n)
	err = b.step("read", f.Name(), func() error { _, err := f.ReadAt(p, off); return err })
	if err == io.EOF && n == 0 {
		err = nil
	}
	if err == io.EOF {
		err = bucket.ErrShort
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// List implements bucket.Bucket. A page reads whole every directory that prefix and after leave in question: 60 ms for
// one of 65,000 segments, a terabyte. The next page does not, if nothing was stored there or deleted for some seconds.
func (b *Bucket) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	if max <= 0 || max > bucket.MaxList {
		max = bucket.MaxList
	}
	var out []bucket.Object
	if err := b.list(ctx, "", prefix, after, max, &out); err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	return out, nil
}

// list appends the objects below the directory whose keys begin with at ("" or ending in '/').
func (b *Bucket) list(ctx context.Context, at, prefix, after string, max int, out *[]bucket.Object) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	dir, err := b.stat(b.path(at))
	var keys []string
	read := false
	if err == nil {
		if keys, read = b.unchanged(dir, prefix, after); !read {
			keys, err = b.keys(at, prefix, after)
		}
	}
	if errors.Is(err, fs.ErrNotExist) && at != "" {
		return nil
	}
	if err != nil {
		return err
	}
	if len(keys) > 0 {
		if err := b.settle(b.path(at)); err != nil {
			return err
		}
		if err := b.sync(b.path(at)); err != nil {
			return err
		}
	}
	for i, key := range keys {
		if strings.HasSuffix(key, "/") {
			if err := b.list(ctx, key, prefix, after, max, out); err != nil {
				return err
			}
		} else {
			st, err := b.stat(b.path(key))
			if errors.Is(err, fs.ErrNotExist) {
				continue // deleted since
			}
			if err != nil {
				return err
			}
			*out = append(*out, bucket.Object{Key: key, Size: st.Size()})
		}
		if len(*out) == max {
			if !read && !strings.HasSuffix(key, "/") {
				b.leave(rest{dir, prefix, key, keys[i+1:]})
			}
			return nil
		}
	}
	if read {
		b.leave(rest{}) // that was the last page
	}
	return nil
}

func (b *Bucket) stat(path string) (st fs.FileInfo, err error) {
	err = b.step("stat", path, func() (err error) { st, err = os.Stat(path); return err })
	return st, err
}

// keys reads a directory and returns, sorted, what in it may be wanted or hold such: keys, and with '/' those of directories.
func (b *Bucket) keys(at, prefix, after string) (keys []string, err error) {
	es, err := b.readDir(b.path(at))
	if err != nil {
		return nil, err
	}
	// The order of keys is that of names with the '/' that follows a directory's: "a-b" < "a/b" < "a0".
	for _, e := range es {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		key := at + e.Name()
		if !e.IsDir() {
			if key > after && strings.HasPrefix(key, prefix) && bucket.CheckKey(key) == nil {
				keys = append(keys, key)
			}
			continue
		}
		key += "/"
		wanted := strings.HasPrefix(key, prefix) || strings.HasPrefix(prefix, key)
		if passed := after > key && !strings.HasPrefix(after, key); wanted && !passed {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, nil
}

// leave remembers what a page left. A directory that was changed just before it was read may be changed again within
// the same tick of its file system's clock, and nothing would show that.
func (b *Bucket) leave(r rest) {
	if r.dir == nil || time.Since(r.dir.ModTime()) < coarse || slices.ContainsFunc(r.keys, func(k string) bool { return strings.HasSuffix(k, "/") }) {
		r = rest{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = r
}

// unchanged returns the keys of prefix after after, if an earlier page left those of this directory, and it is as it was then.
func (b *Bucket) unchanged(dir fs.FileInfo, prefix, after string) ([]string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.left
	if l.dir == nil || l.prefix != prefix || after < l.from || !os.SameFile(l.dir, dir) || !l.dir.ModTime().Equal(dir.ModTime()) {
		return nil, false
	}
	i, found := slices.BinarySearch(l.keys, after)
	if found {
		i++
	}
	return l.keys[i:], true
}

// Delete implements bucket.Bucket. The directories stay.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	p := b.path(key)
	err := b.step("unlink", p, func() error { return syscall.Unlink(p) }) // not os.Remove, which would remove an empty directory
	if err == syscall.ENOENT || err == syscall.ENOTDIR {
		return nil
	}
	if st, serr := os.Lstat(p); err != nil && serr == nil && st.IsDir() {
		return nil
	}
	if err == nil {
		err = b.sync(filepath.Dir(p))
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// Swap implements bucket.Bucket.
func (b *Bucket) Swap(ctx context.Context, key string, old, new []byte) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	if err := b.swap(ctx, key, old, new); err != nil {
		return fmt.Errorf("swap %s: %w", key, err)
	}
	return nil
}

func (b *Bucket) swap(ctx context.Context, key string, old, new []byte) error {
	if len(new) > maxSwap {
		return fmt.Errorf("%d bytes exceed the limit of %d", len(new), maxSwap)
	}
	l, err := b.open(filepath.Join(b.root, lockName), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return err
	}
	defer l.Close() // and with it the lock
	// Not a blocking flock: its holder may be a paused process, and ctx must end the wait.
	lock := func() error {
		return b.step("lock", l.Name(), func() error { return flock(l, syscall.LOCK_EX|syscall.LOCK_NB) })
	}
	for err = lock(); err == syscall.EWOULDBLOCK; err = lock() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("another process holds %s: %w", filepath.Join(b.root, lockName), ctx.Err())
		case <-time.After(lockPoll):
		}
	}
	if err != nil {
		return err
	}
	cur, err := b.get(ctx, key, 0, -1)
	switch {
	case errors.Is(err, bucket.ErrNotFound):
		if old != nil {
			return bucket.ErrChanged
		}
	case err != nil:
		return err
	case old == nil || !bytes.Equal(cur, old):
		return bucket.ErrChanged
	}
	return b.put(ctx, key, new)
}

// Now implements bucket.Bucket: the clock of a local disk is ours.
func (b *Bucket) Now(ctx context.Context) (time.Time, error) { return time.Now(), ctx.Err() }
