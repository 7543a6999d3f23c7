//go:build linux || darwin || freebsd

package source

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
)

const (
	// maxOpenDirs bounds the descriptors of the directories on the way to the current one. Those further up are
	// closed and found again through "..", which is believed only if it is the same directory.
	maxOpenDirs = 64
	// maxName is longer than any name, bytes: 255 UTF-16 units can take three bytes each.
	maxName = 1 << 10
	// maxOwners bounds the remembered names of users and of groups.
	maxOwners = 4096
)

// dir is a directory on the way from a root to the current path.
type dir struct {
	fd     int // -1 while closed
	id     inode
	parent *dir // nil for where a root starts
	name   string
	up     int // length of the parent's archive path in walker.path
	link   *linkDir
	pinned bool // above a root: stays open, because it may have been reached through a link
	lost   bool // was closed and could not be found again
}

type inode struct{ dev, ino uint64 }

// linkDir is the part of a hard-linked file's path that it shares with others of its directory.
type linkDir struct {
	parent *linkDir
	name   string
}

func (l *linkDir) path(name string) string {
	if l == nil || l.name == "" {
		return name
	}
	return l.parent.path(l.name) + "/" + name
}

// first is the path under which a file with several links was met first.
type first struct {
	dir  *linkDir
	name string
	left uint64 // links not met yet
}

type walker struct {
	ctx    context.Context
	opt    Options
	fn     func(*Item) error
	path   []byte // archive path of the current directory
	stack  []*dir // open or closed, from a root's start to the current directory
	low    int    // stack[:low] is closed, but for the pinned ones
	links  map[inode]first
	users  map[uint32]string
	groups map[uint32]string
	xattrs xattrReader
	dirent []byte
	target []byte
}

func walk(ctx context.Context, base string, roots []string, opt Options, fn func(*Item) error) error {
	w := &walker{
		ctx: ctx, opt: opt, fn: fn,
		links: map[inode]first{}, users: map[uint32]string{}, groups: map[uint32]string{},
		dirent: make([]byte, 64<<10),
		target: make([]byte, 4<<10),
	}
	starts := map[inode]*start{}
	defer func() {
		for _, d := range w.stack {
			d.close()
		}
		for _, s := range starts {
			s.dir.close()
		}
	}()
	tops, err := w.plan(base, roots, starts)
	if err != nil {
		return err
	}
	for _, t := range tops {
		w.stack = append(w.stack[:0], t.from.dir)
		w.low = 0
		var err error
		if t.node.name == "" {
			err = w.all(t.from)
		} else {
			err = w.node(t.from.dir, t.node)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// start is a directory from which roots are entered.
type start struct {
	dir  *dir
	tree node
}

// top is a first component of the archive, or all of a start.
type top struct {
	from *start
	node *node
}

// plan opens where the roots start, makes sure that all of them are there and none claims another's path, and
// returns them in the order of the archive.
func (w *walker) plan(base string, roots []string, starts map[inode]*start) ([]top, error) {
	if len(roots) == 0 {
		return nil, errors.New("there is no path to back up: name at least one")
	}
	var tops []top
	owner := map[string]top{}
	var whole *start
	var wholeGiven, anyGiven string
	for _, root := range roots {
		p, err := parseRoot(base, root)
		if err != nil {
			return nil, err
		}
		fd, err := open(unix.AT_FDCWD, p.start, openPath|unix.O_DIRECTORY)
		if err != nil {
			return nil, fmt.Errorf("open directory %q: %w", p.start, err)
		}
		d := &dir{fd: fd, pinned: true}
		var st unix.Stat_t
		if err := fstat(fd, &st); err != nil {
			d.close()
			return nil, fmt.Errorf("stat directory %q: %w", p.start, err)
		}
		d.id = inodeOf(&st)
		s := starts[d.id]
		if s == nil {
			s = &start{dir: d}
			starts[d.id] = s
		} else {
			d.close()
		}
		if err := exists(s.dir, p); err != nil {
			return nil, fmt.Errorf("path %q cannot be backed up: %w", root, err)
		}
		if whole != nil && whole != s {
			return nil, errOverlap(wholeGiven, root, "")
		}
		if len(p.parts) == 0 {
			if len(starts) > 1 {
				return nil, errOverlap(anyGiven, root, "")
			}
			whole, wholeGiven = s, root
		} else if o, ok := owner[p.parts[0]]; !ok {
			owner[p.parts[0]] = top{from: s, node: &node{given: root}}
		} else if o.from != s {
			return nil, errOverlap(o.node.given, root, p.parts[0])
		}
		anyGiven = root
		s.tree.insert(p, p.parts)
	}
	if whole != nil {
		return []top{{whole, &whole.tree}}, nil
	}
	for _, s := range starts {
		for _, n := range s.tree.kids {
			if err := behindLink(s.dir.fd, n); err != nil {
				return nil, err
			}
			tops = append(tops, top{s, n})
		}
	}
	sortTops(tops)
	return tops, nil
}

// exists says whether the root is there, followed as far as the walk will follow it.
func exists(from *dir, p place) error {
	if len(p.parts) == 0 {
		return nil
	}
	fd := from.fd
	defer func() {
		if fd != from.fd {
			unix.Close(fd)
		}
	}()
	for i, part := range p.parts {
		if i == len(p.parts)-1 && !p.follow {
			var st unix.Stat_t
			return fstatat(fd, part, &st)
		}
		next, err := open(fd, part, openPath|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		if fd != from.fd {
			unix.Close(fd)
		}
		fd = next
	}
	return nil
}

// behindLink refuses a root that is a symbolic link together with a root behind it: the archive would need a
// link and a directory of one name.
func behindLink(fd int, n *node) error {
	if len(n.kids) == 0 {
		return nil
	}
	var st unix.Stat_t
	if n.root && !n.follow {
		if err := fstatat(fd, n.name, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return fmt.Errorf("paths %q and %q cannot be in one archive: the first is a symbolic link; write it with a slash at the end to back up what it points to", n.given, n.kids[0].given)
		}
	}
	next, err := open(fd, n.name, openPath|unix.O_DIRECTORY)
	if err != nil {
		return nil // the walk will say what is wrong
	}
	defer unix.Close(next)
	for _, k := range n.kids {
		if err := behindLink(next, k); err != nil {
			return err
		}
	}
	return nil
}

// all walks what is in a start.
func (w *walker) all(s *start) error {
	// The start was opened for passing through only; listing needs a descriptor of its own.
	fd, err := open(s.dir.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", ".", err)
	}
	list, err := w.list(fd)
	unix.Close(fd)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", ".", err)
	}
	return w.children(s.dir, list)
}

// node walks a component of the roots.
func (w *walker) node(d *dir, n *node) error {
	if n.root && !n.follow {
		return w.entry(d, n.name)
	}
	// A directory above a root, or a root meant through its link: reached as the user wrote it.
	p := w.join(n.name)
	fd, err := open(d.fd, n.name, openPath|unix.O_DIRECTORY)
	var st unix.Stat_t
	if err == nil {
		err = fstat(fd, &st)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return w.failed(p, "open", err)
	}
	c := &dir{fd: fd, id: inodeOf(&st), parent: d, name: n.name, up: len(w.path), pinned: true}
	it := &Item{}
	w.fill(it, p, &st)
	if r := w.opt.Exclude.match(p, true); r != "" {
		c.close()
		return w.report(&Item{Entry: archive.Entry{Path: p, Type: archive.TypeDir}, Verdict: excluded(p, r)})
	}
	w.attributes(it, w.xattrs.path(fd, &it.Entry.Xattrs))
	w.push(c)
	defer w.pop()
	if !n.root {
		if err := w.report(it); err != nil {
			return err
		}
		for _, k := range n.kids {
			if err := w.node(c, k); err != nil {
				return err
			}
		}
		return nil
	}
	rfd, err := open(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	var list names
	if err == nil {
		list, err = w.list(rfd)
		unix.Close(rfd)
	}
	if err != nil {
		it.unreadable("its list cannot be read", err)
	}
	if err := w.report(it); err != nil {
		return err
	}
	return w.children(c, list)
}

// children walks the listed names of d, the top of the stack.
func (w *walker) children(d *dir, list names) error {
	for _, ref := range list.refs {
		if err := w.entry(d, string(list.bytes(ref))); err != nil {
			return err
		}
	}
	return nil
}

// entry walks one name of d, the top of the stack.
func (w *walker) entry(d *dir, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	p := w.join(name)
	if d.lost {
		return w.report(&Item{Entry: archive.Entry{Path: p}, Verdict: archive.Verdict{Path: p, What: archive.Vanished, Why: "its directory was moved while it was read"}})
	}
	// What is replaced by something of another type between two calls is looked at anew, a few times.
	for range 4 {
		var st unix.Stat_t
		if err := fstatat(d.fd, name, &st); err != nil {
			if r := w.opt.Exclude.match(p, false); r != "" {
				return w.report(&Item{Entry: archive.Entry{Path: p}, Verdict: excluded(p, r)})
			}
			return w.failed(p, "stat", err)
		}
		it := &Item{}
		w.fill(it, p, &st)
		isDir := it.Entry.Type == archive.TypeDir
		if r := w.opt.Exclude.match(p, isDir); r != "" {
			return w.report(&Item{Entry: archive.Entry{Path: p, Type: it.Entry.Type}, Verdict: excluded(p, r)})
		}
		switch it.Entry.Type {
		case 0:
			it.Entry = archive.Entry{Path: p}
			it.Verdict = archive.Verdict{Path: it.Entry.Path, What: archive.Unreadable, Why: fmt.Sprintf("files of type %#o are not known", st.Mode&unix.S_IFMT)}
			return w.report(it)
		case archive.TypeDir:
			if len(p) > archive.MaxPath-maxName {
				it.unreadable("its list was not read", errors.New("paths in it would be too long for an archive"))
				return w.report(it)
			}
			again, err := w.directory(d, name, p, it)
			if again {
				continue
			}
			return err
		case archive.TypeSymlink:
			t, err := w.readlink(d.fd, name)
			if err == unix.EINVAL {
				continue
			}
			if err != nil {
				return w.failed(p, "read link", err)
			}
			it.Entry.Target = t
		}
		w.attributes(it, w.xattrs.at(d.fd, name, it.Entry.Type, &it.Entry.Xattrs))
		id := inodeOf(&st)
		if it.Stat.Nlink > 1 {
			w.hardlink(it, d, name, id)
		}
		if it.Entry.Type == archive.TypeFile && it.Entry.Link == "" {
			it.open = func(it *Item) (*File, error) { return w.open(it, d, name, id) }
		}
		return w.report(it)
	}
	return w.report(&Item{Entry: archive.Entry{Path: p}, Verdict: archive.Verdict{Path: p, What: archive.Vanished, Why: "it was replaced again and again while it was looked at"}})
}

// directory walks a directory; again means that it is not one any more.
func (w *walker) directory(d *dir, name, p string, it *Item) (again bool, err error) {
	fd, err := open(d.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	switch {
	case err == unix.ENOTDIR || isLoop(err):
		return true, nil
	case err == unix.ENOENT:
		return false, w.failed(p, "open", err)
	case err != nil:
		w.attributes(it, w.xattrs.at(d.fd, name, archive.TypeDir, &it.Entry.Xattrs))
		it.unreadable("its list cannot be read", err)
		return false, w.report(it)
	}
	var st unix.Stat_t
	if err := fstat(fd, &st); err != nil {
		unix.Close(fd)
		return false, w.failed(p, "stat", err)
	}
	w.fill(it, p, &st)
	w.attributes(it, w.xattrs.fd(fd, &it.Entry.Xattrs))
	list, err := w.list(fd)
	if err != nil {
		it.unreadable("its list cannot be read", err)
	}
	c := &dir{fd: fd, id: inodeOf(&st), parent: d, name: name, up: len(w.path)}
	w.push(c)
	defer w.pop()
	if err := w.report(it); err != nil {
		return false, err
	}
	return false, w.children(c, list)
}

// push enters a directory.
func (w *walker) push(c *dir) {
	if len(w.path) > 0 {
		w.path = append(w.path, '/')
	}
	w.path = append(w.path, c.name...)
	w.stack = append(w.stack, c)
	if len(w.stack)-w.low > maxOpenDirs {
		if d := w.stack[w.low]; !d.pinned {
			d.close()
		}
		w.low++
	}
}

// pop leaves the directory on top, and finds the one above it again if it was closed.
func (w *walker) pop() {
	c := w.stack[len(w.stack)-1]
	w.stack = w.stack[:len(w.stack)-1]
	w.path = w.path[:c.up]
	d := c.parent
	if w.low >= len(w.stack) {
		w.low = len(w.stack) - 1
		if d.fd < 0 {
			d.fd = reopen(c, d)
			d.lost = d.fd < 0
		}
	}
	c.close()
}

// reopen opens d, the parent of c, anew.
func reopen(c, d *dir) int {
	try := func(from int, name string, flags int) int {
		if from < 0 {
			return -1
		}
		fd, err := open(from, name, unix.O_RDONLY|unix.O_DIRECTORY|flags)
		if err != nil {
			return -1
		}
		var st unix.Stat_t
		if fstat(fd, &st) != nil || inodeOf(&st) != d.id {
			unix.Close(fd)
			return -1
		}
		return fd
	}
	if fd := try(c.fd, "..", 0); fd >= 0 {
		return fd
	}
	// c was moved elsewhere. Go down to d from the nearest directory above it that is open.
	var way []*dir
	a := d
	for ; a.fd < 0; a = a.parent {
		way = append(way, a)
		if a.parent == nil {
			return -1
		}
	}
	fd := a.fd
	for i := len(way) - 1; i >= 0; i-- {
		next, err := open(fd, way[i].name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if fd != a.fd {
			unix.Close(fd)
		}
		if err != nil {
			return -1
		}
		fd = next
	}
	defer unix.Close(fd)
	return try(fd, ".", 0)
}

func (d *dir) close() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

// list reads the names in the directory fd. With an error it returns those that it got before it.
func (w *walker) list(fd int) (names, error) {
	var list names
	var err error
	var batch []string
	for {
		n, e := readDirent(fd, w.dirent)
		if e != nil || n == 0 {
			err = e
			break
		}
		batch, e = direntNames(w.dirent[:n], batch[:0])
		for _, name := range batch {
			if e := list.add(name); e != nil && err == nil {
				err = e
			}
		}
		if e != nil && err == nil {
			err = e
		}
	}
	list.sort()
	return list, err
}

func (w *walker) join(name string) string {
	if len(w.path) == 0 {
		return name
	}
	b := make([]byte, 0, len(w.path)+1+len(name))
	b = append(b, w.path...)
	b = append(b, '/')
	return string(append(b, name...))
}

// report hands an item to fn; after that it cannot be opened any more.
func (w *walker) report(it *Item) error {
	err := w.fn(it)
	it.open = nil
	return err
}

// failed reports a path of which nothing is known because doing failed.
func (w *walker) failed(p, doing string, err error) error {
	it := &Item{Entry: archive.Entry{Path: p}}
	if gone(err) {
		it.Verdict = archive.Verdict{Path: it.Entry.Path, What: archive.Vanished, Why: "it was listed, but was gone when it was to be read"}
	} else {
		it.Verdict = archive.Verdict{Path: it.Entry.Path, What: archive.Unreadable, Why: fmt.Sprintf("cannot %s it: %v", doing, err)}
	}
	return w.report(it)
}

func excluded(p, rule string) archive.Verdict {
	return archive.Verdict{Path: p, What: archive.Excluded, Why: "excluded by " + rule}
}

// unreadable says that content could not be read.
func (it *Item) unreadable(what string, err error) {
	it.Entry.Flags |= archive.FlagUnreadable
	it.Verdict = archive.Verdict{Path: it.Entry.Path, What: archive.Unreadable, Why: fmt.Sprintf("%s: %v", what, err)}
}

// attributes notes that an attribute could not be read.
func (w *walker) attributes(it *Item, err error) {
	if w.opt.FaultXattrs != nil && err == nil {
		err = w.opt.FaultXattrs(it.Entry.Path)
	}
	if err != nil && it.Verdict.What == 0 {
		it.Verdict = archive.Verdict{Path: it.Entry.Path, What: archive.Unreadable, Why: fmt.Sprintf("not all of its extended attributes could be read: %v", err)}
	}
}

// hardlink makes it a link to the first path of its file, or remembers it as that.
func (w *walker) hardlink(it *Item, d *dir, name string, id inode) {
	f, ok := w.links[id]
	if !ok {
		w.links[id] = first{d.linkDir(), name, it.Stat.Nlink - 1}
		return
	}
	it.Entry.Link = f.dir.path(f.name)
	it.Entry.Size = 0
	if f.left--; f.left == 0 {
		delete(w.links, id)
	} else {
		w.links[id] = f
	}
}

func (d *dir) linkDir() *linkDir {
	if d.link == nil && d.parent != nil {
		d.link = &linkDir{d.parent.linkDir(), d.name}
	}
	return d.link
}

// fill sets what stat says.
func (w *walker) fill(it *Item, p string, st *unix.Stat_t) {
	it.Stat = statOf(st)
	e := &it.Entry
	*e = archive.Entry{
		Path: p, Mode: uint32(st.Mode) & 07777, UID: st.Uid, GID: st.Gid, Mtime: it.Stat.Mtime,
		User: owner(w.users, st.Uid, userName), Group: owner(w.groups, st.Gid, groupName),
	}
	switch uint32(st.Mode) & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type = archive.TypeFile
		e.Size = it.Stat.Size
	case unix.S_IFDIR:
		e.Type = archive.TypeDir
	case unix.S_IFLNK:
		e.Type = archive.TypeSymlink
	case unix.S_IFIFO:
		e.Type = archive.TypeFIFO
	case unix.S_IFSOCK:
		e.Type = archive.TypeSocket
	case unix.S_IFCHR:
		e.Type = archive.TypeChar
		e.Major, e.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	case unix.S_IFBLK:
		e.Type = archive.TypeBlock
		e.Major, e.Minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
	}
}

func statOf(st *unix.Stat_t) Stat {
	return Stat{
		Size:   uint64(st.Size),
		Mtime:  archive.Time{Sec: int64(st.Mtim.Sec), Nsec: uint32(st.Mtim.Nsec)},
		Ctime:  archive.Time{Sec: int64(st.Ctim.Sec), Nsec: uint32(st.Ctim.Nsec)},
		Inode:  uint64(st.Ino),
		Device: uint64(st.Dev),
		Nlink:  uint64(st.Nlink),
	}
}

func inodeOf(st *unix.Stat_t) inode { return inode{uint64(st.Dev), uint64(st.Ino)} }

func owner(known map[uint32]string, id uint32, find func(string) string) string {
	name, ok := known[id]
	if !ok {
		if len(known) >= maxOwners {
			clear(known)
		}
		name = find(strconv.FormatUint(uint64(id), 10))
		known[id] = name
	}
	return name
}

func userName(id string) string {
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return ""
}

func groupName(id string) string {
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return ""
}

func (w *walker) readlink(fd int, name string) (string, error) {
	for {
		n, err := readlinkat(fd, name, w.target)
		if err != nil {
			return "", err
		}
		if n < len(w.target) {
			return string(w.target[:n]), nil
		}
		w.target = make([]byte, 2*len(w.target))
	}
}
