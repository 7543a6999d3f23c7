package torture

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Make makes the tree in dir, which must be there and empty. It is the same each time. As root it has devices, foreign
// owners, set-id bits, files that nobody may read and trusted attributes as well; as a user it has only what a user
// can read again and restore without privileges.
//
// Its directories' names say what they hold. The longest path is 4,000 bytes below dir.
func Make(dir string, opt Options) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", dir, err)
	}
	m := &maker{at: fd, root: os.Geteuid() == 0, rand: rand.New(rand.NewPCG(14, 14))}
	defer unix.Close(fd)
	m.names()
	m.contents()
	m.times()
	m.sparse()
	m.links()
	m.special()
	m.attributes()
	m.modes()
	m.long()
	m.deep()
	m.large(opt.LargeDir)
	m.dirTimes()
	if m.err != nil {
		return fmt.Errorf("make torture tree in %q: %w", dir, m.err)
	}
	return nil
}

// maker makes things below a directory and keeps the first error.
type maker struct {
	at   int
	root bool
	rand *rand.Rand
	err  error
}

func (m *maker) do(what, name string, f func() error) {
	if m.err != nil {
		return
	}
	if err := f(); err != nil {
		m.err = fmt.Errorf("%s %.100q: %w", what, name, err)
	}
}

func (m *maker) dir(name string) {
	m.do("make directory", name, func() error { return unix.Mkdirat(m.at, name, 0o755) })
}

// within runs f with the directory name, made if it is not there, as the place where things are made.
func (m *maker) within(name string, f func()) {
	if m.err != nil {
		return
	}
	if err := unix.Mkdirat(m.at, name, 0o755); err != nil && err != unix.EEXIST {
		m.err = fmt.Errorf("make directory %.100q: %w", name, err)
		return
	}
	fd, err := unix.Openat(m.at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		m.err = fmt.Errorf("open directory %.100q: %w", name, err)
		return
	}
	above := m.at
	m.at = fd
	f()
	m.at = above
	unix.Close(fd)
}

// open makes a file and hands its descriptor to f.
func (m *maker) open(name string, f func(fd int) error) {
	m.do("make file", name, func() error {
		fd, err := unix.Openat(m.at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		return errors.Join(f(fd), unix.Close(fd))
	})
}

func write(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (m *maker) file(name, content string) {
	m.open(name, func(fd int) error { return write(fd, []byte(content), 0) })
}

func (m *maker) random(n int) []byte {
	p := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], m.rand.Uint64())
	}
	return p[:n]
}

func (m *maker) mtime(name string, sec int64, nsec int64) {
	m.do("set time of", name, func() error {
		ts := []unix.Timespec{{Sec: sec, Nsec: nsec}, {Sec: sec, Nsec: nsec}}
		return unix.UtimesNanoAt(m.at, name, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (m *maker) chmod(name string, mode uint32) {
	m.do("set mode of", name, func() error { return unix.Fchmodat(m.at, name, mode, 0) })
}

func (m *maker) chown(name string, uid, gid int) {
	m.do("set owner of", name, func() error { return unix.Fchownat(m.at, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW) })
}

func (m *maker) xattr(name, attr string, value []byte) {
	m.do("set attribute of", name, func() error {
		return unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", m.at, name), attr, value, 0)
	})
}

func (m *maker) link(from, to string) {
	m.do("make hard link", to, func() error { return unix.Linkat(m.at, from, m.at, to, 0) })
}

func (m *maker) symlink(target, name string) {
	m.do("make symlink", name, func() error { return unix.Symlinkat(target, m.at, name) })
}

func (m *maker) node(name string, mode uint32, dev uint64) {
	m.do("make node", name, func() error { return unix.Mknodat(m.at, name, mode, int(dev)) })
}

func (m *maker) names() {
	m.within("names", func() {
		for _, name := range []string{
			"latin1-caf\xe9", "\xff\xfe\xfd", "\xc3", "new\nline", "\n", "trailing newline\n", "tab\tbell\a\x1b[31m", " ", " lead and trail ",
			"...", "..x", ".hidden", "-rf", "--", "*", "?", "[a]", "back\\slash", "quote'\"`", "$HOME", "%s%n", "~", "#", "a:b", "CON", "NUL.txt", "x.",
			"Case", "case", "e\u0301 decomposed", "\u00e9 composed", "\u202eright to left", "日本語", "\x01", "\x7f",
			strings.Repeat("n", 255), strings.Repeat("\xf0\x9f\x92\xbe", 63) + "abc", strings.Repeat("\xff", 255),
		} {
			m.file(name, "named "+name)
		}
	})
	// The order of an archive is not that of whole paths: order/a/b comes before order/a-b and order/a.txt.
	m.within("order", func() {
		m.within("a", func() { m.file("b", "1"); m.file("\xff", "2") })
		for _, name := range []string{"a-b", "a.txt", "a!", "a\x01", "a b", "aa", "A"} {
			m.file(name, name)
		}
		m.within("a0", func() { m.file("b", "3") })
	})
	m.within("empty", func() { m.dir("directory") })
}

func (m *maker) contents() {
	m.within("contents", func() {
		for _, n := range []int{0, 1, 2, 511, 4095, 4096, 4097, 65535, 65536, 65537, 262144, 300_000, 1<<20 + 1, 5 << 20} {
			p := m.random(n)
			m.open(fmt.Sprintf("random-%07d", n), func(fd int) error { return write(fd, p, 0) })
			if n == 65537 || n == 300_000 {
				m.open(fmt.Sprintf("random-%07d-again", n), func(fd int) error { return write(fd, p, 0) })
			}
		}
		m.open("zeros", func(fd int) error { return write(fd, make([]byte, 3<<20), 0) })
		m.open("text", func(fd int) error { return write(fd, bytes.Repeat([]byte("all work and no play\n"), 40_000), 0) })
		m.open("period", func(fd int) error { return write(fd, bytes.Repeat([]byte{1, 2, 3}, 700_000), 0) })
	})
}

// Times that ext4 can keep: from 1901 to May 2446.
var times = []struct{ sec, nsec int64 }{
	{-1 << 31, 0}, {-1 << 31, 1}, {-1, 999_999_999}, {-1, 0}, {0, 0}, {0, 1}, {1, 999_999_999}, {1<<31 - 1, 5}, {1 << 31, 5},
	{1<<32 - 1, 999_999_999}, {1 << 32, 0}, {5_000_000_000, 123_456_789}, {1<<33 + 7, 1}, {15_032_385_535, 0},
}

func (m *maker) times() {
	m.within("times", func() {
		for _, t := range times {
			name := fmt.Sprintf("%+d.%09d", t.sec, t.nsec)
			m.file(name, name)
			m.mtime(name, t.sec, t.nsec)
			m.symlink("to "+name, "link"+name)
			m.mtime("link"+name, t.sec, t.nsec)
		}
	})
}

func (m *maker) sparse() {
	m.within("sparse", func() {
		sparse := func(name string, size int64, data map[int64]int) {
			m.open(name, func(fd int) error {
				if err := unix.Ftruncate(fd, size); err != nil {
					return err
				}
				for off, n := range data {
					p := bytes.Repeat([]byte(fmt.Sprintf("%s at %d. ", name, off)), n/10+1)[:n]
					if err := write(fd, p, off); err != nil {
						return err
					}
				}
				return unix.Fsync(fd) // so that what is data and what is hole does not change any more
			})
		}
		sparse("all-hole", 10<<20, nil)
		sparse("one-byte-of-hole", 1, nil)
		sparse("hole-first", 8<<20, map[int64]int{6 << 20: 2 << 20})
		sparse("hole-last", 8<<20, map[int64]int{0: 1 << 20})
		sparse("odd-end", 5<<20+123, map[int64]int{1 << 20: 5000, 5 << 20: 100})
		teeth := map[int64]int{}
		for i := range int64(64) {
			teeth[i<<17] = 4096
		}
		sparse("teeth", 64<<17, teeth)
		sparse("tebibyte", 1<<40, map[int64]int{0: 4096, 1 << 39: 100_000, 1<<40 - 4096: 4096})
	})
}

func (m *maker) links() {
	m.within("links", func() {
		m.file("first", "one file with three names")
		m.link("first", "second")
		m.within("below", func() { m.file("own", "another file") })
		m.link("first", "below/third")
		m.link("below/own", "own-too")
		m.file("empty", "")
		m.link("empty", "empty-too")
		m.symlink("first", "symlink")
		m.link("symlink", "symlink-too")
		m.node("fifo", unix.S_IFIFO|0o640, 0)
		m.link("fifo", "fifo-too")
		m.symlink("nowhere", "dangling")
		m.symlink("/etc/passwd", "absolute")
		m.symlink("../../../../../../../..", "up")
		m.symlink("below", "directory")
		m.symlink("loop", "loop")
		m.symlink("new\nline \xff", "odd")
		m.symlink(strings.Repeat("long/", 800)[:3999], "long")
	})
}

func (m *maker) special() {
	m.within("special", func() {
		m.node("fifo", unix.S_IFIFO|0o600, 0)
		m.node("socket", unix.S_IFSOCK|0o755, 0)
		if m.root {
			m.node("null", unix.S_IFCHR|0o666, unix.Mkdev(1, 3))
			m.node("big-numbers", unix.S_IFCHR|0o600, unix.Mkdev(0xfff, 0xfffff))
			m.node("loop", unix.S_IFBLK|0o660, unix.Mkdev(7, 200))
		}
	})
}

// acl is a POSIX ACL as the kernel's attribute has it: version 2, then tag, permissions and ID of each entry.
func acl(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

func (m *maker) attributes() {
	const none = 1<<32 - 1
	// user::rw-, user:1234:r--, group::r--, group:4321:rwx, mask::rwx, other::---
	access := acl([3]uint32{1, 6, none}, [3]uint32{2, 4, 1234}, [3]uint32{4, 4, none}, [3]uint32{8, 7, 4321}, [3]uint32{16, 7, none}, [3]uint32{32, 0, none})
	// Directories that inherit it must stay open to their owner, or a user could not read them again.
	inherited := bytes.Clone(access)
	inherited[4+2] = 7
	m.within("attributes", func() {
		m.file("file", "with attributes")
		m.xattr("file", "user.text", []byte("value"))
		m.xattr("file", "user.empty", nil)
		m.xattr("file", "user.binary", []byte{0, 1, 2, 255, 0, '\n'})
		m.xattr("file", "user."+strings.Repeat("x", 250), []byte("a name of 255 bytes"))
		m.xattr("file", "user.\xff\n", []byte("an odd name"))
		m.file("large", "")
		m.xattr("large", "user.large", m.random(3000))
		m.file("read-only", "its attribute can be set only before its mode")
		m.xattr("read-only", "user.x", []byte("y"))
		m.chmod("read-only", 0o444)
		m.file("acl", "")
		m.xattr("acl", "system.posix_acl_access", access)
		m.within("acl-directory", func() {
			m.file("before", "made before the default ACL: inherits nothing")
			m.dir("directory-before")
		})
		m.xattr("acl-directory", "user.of-directory", []byte("1"))
		m.xattr("acl-directory", "system.posix_acl_default", inherited)
		m.within("acl-directory", func() {
			m.file("after", "inherits")
			m.dir("directory-after")
		})
		if m.root {
			m.xattr("file", "trusted.secret", []byte("root only"))
			m.symlink("file", "symlink")
			m.xattr("symlink", "trusted.of-symlink", []byte("root only"))
			m.node("fifo", unix.S_IFIFO|0o600, 0)
			m.xattr("fifo", "trusted.of-fifo", []byte("root only"))
			m.file("capable", "#!/bin/true\n")
			m.chmod("capable", 0o755)
			// cap_net_raw, permitted and effective: revision 2 of struct vfs_cap_data.
			cap := binary.LittleEndian.AppendUint32(nil, 0x02000001)
			cap = binary.LittleEndian.AppendUint32(cap, 1<<13)
			m.xattr("capable", "security.capability", append(cap, make([]byte, 12)...))
		}
	})
}

func (m *maker) modes() {
	m.within("modes", func() {
		for _, mode := range []uint32{0o400, 0o444, 0o500, 0o600, 0o644, 0o640, 0o755, 0o777, 0o666} {
			name := fmt.Sprintf("file-%04o", mode)
			m.file(name, name)
			m.chmod(name, mode)
		}
		for _, mode := range []uint32{0o500, 0o555, 0o700, 0o777, 0o1777} {
			name := fmt.Sprintf("directory-%04o", mode)
			m.within(name, func() {
				m.file("inside", "")
				m.dir("below")
			})
			m.chmod(name, mode)
		}
		if !m.root {
			return
		}
		for _, mode := range []uint32{0, 0o2755, 0o4755, 0o6711, 0o1644, 0o7777} {
			name := fmt.Sprintf("file-%04o", mode)
			m.file(name, name)
			m.chown(name, 12345, 54321) // first: it takes away set-id bits
			m.chmod(name, mode)
		}
		m.within("directory-0000", func() { m.file("inside", "") })
		m.chmod("directory-0000", 0)
		m.within("directory-2775", func() {})
		m.chown("directory-2775", 0, 54321)
		m.chmod("directory-2775", 0o2775)
		m.within("directory-2775", func() { m.file("inherits-group", ""); m.dir("inherits-bit") })
	})
	if m.root {
		m.within("owners", func() {
			for _, o := range [][2]int{{1, 1}, {65534, 65534}, {12345, 54321}, {0, 7}, {1<<31 + 5, 1<<31 + 6}, {1<<32 - 2, 1<<32 - 2}} {
				name := fmt.Sprintf("%d-%d", o[0], o[1])
				m.file(name, name)
				m.chown(name, o[0], o[1])
				m.symlink("owned", "link-"+name)
				m.chown("link-"+name, o[0], o[1])
				m.node("fifo-"+name, unix.S_IFIFO|0o622, 0)
				m.chown("fifo-"+name, o[0], o[1])
				m.within("dir-"+name, func() { m.file("inside", "") })
				m.chown("dir-"+name, o[0], o[1])
			}
		})
	}
}

// long makes a path of 4,000 bytes with few, long components.
func (m *maker) long() {
	var down func(left int)
	down = func(left int) {
		if left <= 255 {
			m.file(strings.Repeat("f", left), "at the end of a long path")
			return
		}
		n := min(250, left-2)
		m.within(strings.Repeat("d", n), func() { down(left - n - 1) })
	}
	m.within("long", func() { down(4000 - len("long/")) })
}

// deep makes more levels than anybody keeps open directories.
func (m *maker) deep() {
	var down func(level int)
	down = func(level int) {
		m.file("a", fmt.Sprint("level ", level))
		if level < 300 {
			m.within("d", func() { down(level + 1) })
		}
		m.file("z", fmt.Sprint("level ", level))
	}
	m.within("deep", func() { down(1) })
}

func (m *maker) large(n int) {
	m.within("large", func() {
		for i := range max(n, 100) {
			name := fmt.Sprintf("entry-%07d", i*7919%10_000_000)
			m.file(name, name)
		}
	})
}

// dirTimes is last, because whatever is made in a directory changes its time.
func (m *maker) dirTimes() {
	for i, name := range []string{"names", "empty", "times", "links", "modes", "long", "deep"} {
		t := times[i%len(times)]
		m.mtime(name, t.sec, t.nsec)
	}
	m.mtime("empty/directory", -86400, 500)
	m.mtime("modes/directory-0500", 1<<32, 1)
	m.mtime("attributes/acl-directory", 1, 2)
}
