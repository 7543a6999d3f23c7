// Package source reads a customer's tree: it walks it in the order of an archive, says for each path what
// is there, and reads contents as extents of data and holes.
//
// Reading is hostile work. While we read, somebody may replace any name by a symbolic link, a FIFO or a
// device. Each directory is therefore entered by descriptor, one component at a time and without following
// links; each file is opened with O_NOFOLLOW and O_NONBLOCK, and what it is is asked of the open descriptor.
// Only the directories that the user named, and those above them, are reached through links.
//
// Nothing is left out silently: each path that the walk meets is reported once, with a verdict if it is not
// simply there. A read error is returned as one; it never becomes zeros.
//
// Memory does not grow with the tree. Held are the names of the directories on the way to the current one,
// one path for each hard-linked file of which not all links were met, and a bounded number of descriptors.
package source

import (
	"context"
	"errors"
	"io"
	"time"

	"holdfast/client/archive"
)

// ErrVanished reports a file that was listed but was not there any more when it was to be opened.
var ErrVanished = errors.New("vanished before it could be read")

// Options say how to walk.
type Options struct {
	// Exclude says what to leave out; nil leaves out nothing.
	Exclude *Rules
	// Fault, if set, is called before each read of content with the archive path and the offset, and its
	// error is returned in place of the read's. Tests make read errors and races with it.
	Fault func(path string, off uint64) error
	// FaultXattrs, if set, is called when a path's extended attributes are read, and its error is returned in
	// place of theirs. It is for tests.
	FaultXattrs func(path string) error
}

// Stat is the identity of a file's state: content is unchanged when all but Nlink agree.
type Stat struct {
	Size         uint64
	Mtime, Ctime archive.Time
	Inode        uint64
	Device       uint64
	Nlink        uint64
}

// granularity is how coarse the clocks of file systems are at worst: two seconds on FAT, plus slack.
const granularity = 3 * time.Second

// Recent reports whether the file changed so shortly before now, or after it, that another change may leave
// the same times. now is the time before its reading began. Such a file must be read again next time.
func (s Stat) Recent(now time.Time) bool {
	limit := now.Add(-granularity)
	return s.Mtime.Std().After(limit) || s.Ctime.Std().After(limit)
}

// Item is one path that the walk met.
//
//   - Verdict.What Excluded or Vanished: there is nothing to store. Of Entry only Path is set, and Type where it
//     is known.
//   - Unreadable with Type 0: nothing is known, and nothing to store.
//   - Unreadable with FlagUnreadable in Entry.Flags: store the entry without content (a directory whose list
//     could not be read, or only in part).
//   - Unreadable without the flag: only an attribute could not be read; store the entry with its content.
type Item struct {
	Entry   archive.Entry // without Extents and Content
	Stat    Stat
	Verdict archive.Verdict // What is 0 where there is nothing to report; never Changed, which File.Check tells

	open func(*Item) (*File, error)
}

// Region is a piece of a file: Len bytes of data, or a hole.
type Region struct {
	Off, Len uint64
	Hole     bool
}

// Walk reports base's roots and all below them, in the order of an archive: component by component, names as
// unsigned bytes, a directory before what is in it. It stops at fn's first error and returns it.
//
// A root is a path relative to base, or absolute. Its archive path is what is left without a leading slash,
// "." components, and everything up to the last ".."; the directories above a root are reported as well, so
// that they come back as they were. A root with nothing left ("." or "/") stands for all that is in it. Roots
// inside one another are walked once. A root that is not there is an error before anything is reported, and so
// are two roots that would give one archive path to two places.
//
// fn owns the Item. It may call Open only before it returns.
func Walk(ctx context.Context, base string, roots []string, opt Options, fn func(*Item) error) error {
	return walk(ctx, base, roots, opt, fn)
}

// Open opens the file for reading, and brings Entry and Stat up to date with what it then is. It must be called
// inside the walk's fn and only for an item of TypeFile without Link; the File may be read and closed later, by
// another goroutine. An error wraps ErrVanished where the file is gone or is not a file any more.
func (it *Item) Open() (*File, error) {
	if it.open == nil {
		panic("source: Open of an item that has no content, or after its walk went on")
	}
	return it.open(it)
}

var _ io.ReadCloser = (*File)(nil)
