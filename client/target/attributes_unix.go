//go:build linux || darwin || freebsd

package target

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/client/archive"
)

// object is what gets attributes: an open file or directory, or a name in the staging directory.
type object struct {
	fd   int // -1 if it cannot be opened without effects
	at   int
	name string // in the directory at; "." for a directory itself
}

// wanted returns mode and owner as they will be set; -1 stands for what will be left as it is.
func (t *Target) wanted(e *archive.Entry) (mode uint32, uid, gid int) {
	mode, uid, gid = e.Mode, int(e.UID), int(e.GID)
	if !t.opt.Privileged {
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	if t.euid != 0 {
		uid = t.euid
		if !t.groups[e.GID] {
			gid = -1
		}
	}
	return mode, uid, gid
}

// attributes sets owner, time, attributes and mode, in this order: a change of owner takes set-id bits and capabilities
// away; a directory's time can be set only while it can be entered, which an ACL may forbid; attributes can be set only
// while the file can be written, and ACLs alter modes. At the end it looks at what came of it, and notes the file as written by this run.
func (t *Target) attributes(o object, e *archive.Entry) error {
	fail := func(doing string, err error) error { return fmt.Errorf("%s of %q: %w", doing, e.Path, err) }
	mode, uid, gid := t.wanted(e)
	if mode != e.Mode {
		t.warn.add(warnSetID, e.Path, nil)
	}
	if t.euid != 0 && (uint32(uid) != e.UID || gid < 0) {
		t.warn.add(warnOwner, e.Path, nil)
	}
	var st unix.Stat_t
	if err := o.stat(&st); err != nil {
		return fail("look at attributes", err)
	}
	if int(st.Uid) != uid || gid >= 0 && int(st.Gid) != gid {
		if err := o.chown(uid, gid); err != nil {
			// Maps of users, root squashing and some file systems refuse owners even to root.
			t.warn.add(warnInexact, e.Path, err)
			mode &^= unix.S_ISUID | unix.S_ISGID // the bits were meant for another owner
		}
	}
	if ts, err := unix.TimeToTimespec(e.Mtime.Std()); err != nil {
		t.warn.add(warnInexact, e.Path, err)
	} else if err := unix.UtimesNanoAt(o.at, o.name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("set time", err)
	}
	acl := false
	for _, x := range e.Xattrs {
		if !t.opt.Privileged && (strings.HasPrefix(x.Name, "security.") || strings.HasPrefix(x.Name, "trusted.")) {
			t.warn.add(warnPrivileged, e.Path, nil)
			continue
		}
		if err := o.setxattr(x.Name, x.Value); err != nil {
			if err == unix.ENOSPC && o.full() {
				return fail("set attributes", err)
			}
			t.warn.add(warnXattr, e.Path, fmt.Errorf("%s: %w", x.Name, err))
		}
		acl = acl || strings.HasPrefix(x.Name, "system.")
	}
	link := e.Type == archive.TypeSymlink
	if !link && (uint32(st.Mode)&0o7777 != mode || mode&0o6000 != 0 || acl) {
		if err := o.chmod(mode); err != nil {
			if err != unix.EPERM && err != unix.ENOTSUP {
				return fail("set mode", err)
			}
			t.warn.add(warnInexact, e.Path, err)
		}
	}
	if err := o.stat(&st); err != nil {
		return fail("look at attributes", err)
	}
	if !link && uint32(st.Mode)&0o7777 != mode || mtime(&st) != e.Mtime || int(st.Uid) != uid || gid >= 0 && int(st.Gid) != gid {
		t.warn.add(warnInexact, e.Path, nil)
	}
	if e.Type != archive.TypeDir {
		t.wrote(&st)
	}
	return nil
}

func (o object) stat(st *unix.Stat_t) error {
	if o.fd >= 0 {
		return unix.Fstat(o.fd, st)
	}
	return unix.Fstatat(o.at, o.name, st, unix.AT_SYMLINK_NOFOLLOW)
}

func (o object) chown(uid, gid int) error {
	if o.fd >= 0 {
		return unix.Fchown(o.fd, uid, gid)
	}
	return unix.Fchownat(o.at, o.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

func (o object) chmod(mode uint32) error {
	if o.fd >= 0 {
		return unix.Fchmod(o.fd, mode)
	}
	// Not for symbolic links: without O_NOFOLLOW, but in the staging directory, where nobody swaps names.
	return unix.Fchmodat(o.at, o.name, mode, 0)
}

// full reports whether the file system is full: ENOSPC of an attribute may also mean that it is too large.
func (o object) full() bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(o.at, &fs) == nil && fs.Bavail <= 0
}

func mtime(st *unix.Stat_t) archive.Time {
	return archive.Time{Sec: int64(st.Mtim.Sec), Nsec: uint32(st.Mtim.Nsec)}
}

// dropDefaultACL removes the ACL that a directory would hand on to what is made in it.
func dropDefaultACL(fd int) { removexattr(fd, "system.posix_acl_default") }

// dropOtherACLs removes the ACLs that a directory inherited when it was made, and that its entry does not have.
func dropOtherACLs(fd int, e *archive.Entry) {
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		if !has(e, name) {
			removexattr(fd, name)
		}
	}
}

func has(e *archive.Entry, name string) bool {
	for _, x := range e.Xattrs {
		if x.Name == name {
			return true
		}
	}
	return false
}
