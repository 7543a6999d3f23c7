package archive

import (
	"time"

	"holdfast"
)

// Type is the type of a file-system object.
type Type uint8

// The types of entries. A hard link is an entry of type TypeFile (or any but TypeDir) whose Link is set.
const (
	TypeFile    Type = 1
	TypeDir     Type = 2
	TypeSymlink Type = 3
	TypeFIFO    Type = 4
	TypeChar    Type = 5 // character device
	TypeBlock   Type = 6 // block device
	TypeSocket  Type = 7
)

// Entry is one path of an archive: what a person would miss if it did not come back.
type Entry struct {
	Path   string // relative, components separated by '/', any bytes but NUL; no empty, "." or ".." components
	Type   Type
	Mode   uint32 // permission, set-id and sticky bits: at most 07777
	UID    uint32
	GID    uint32
	User   string // names as the source machine knew them; "" where it knew none
	Group  string
	Mtime  Time
	Size   uint64 // of a file's content, bytes
	Target string // of a symlink
	// Link is the path of an earlier entry of the same archive that is the same file; Extents is empty then.
	Link   string
	Major  uint32 // of a device
	Minor  uint32
	Xattrs []Xattr // sorted by name; POSIX ACLs are the system.posix_acl_* attributes
	// Extents are the content of a file, in order; their lengths add up to Size.
	Extents []Extent
	// Content is the first 16 bytes of the name that the whole content would have as one chunk. It is
	// set where the content lies in packs (and holes), whose names tell nothing of one file, else zero.
	Content [16]byte
	Flags   Flags
}

// Flags mark an entry that is not simply what was on the disk.
type Flags uint8

// The flags of an entry.
const (
	FlagChanged    Flags = 1 << 0 // the file changed while it was read: the content is as read
	FlagUnreadable Flags = 1 << 1 // the content (or a directory's list) could not be read; Size is what stat said, Extents is empty
)

// Time is a point in time as file systems know it, exact from year 0 to far beyond 2262.
type Time struct {
	Sec  int64  // since 1970
	Nsec uint32 // below 1,000,000,000
}

// Std returns t as a time.Time.
func (t Time) Std() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// TimeOf returns t as a Time.
func TimeOf(t time.Time) Time { return Time{t.Unix(), uint32(t.Nanosecond())} }

// Xattr is one extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Extent is a piece of a file's content: a range of a block's plaintext, or a hole.
type Extent struct {
	Kind holdfast.Kind // KindChunk or KindPack; 0 is a hole
	Name holdfast.Name // of the block; zero for a hole
	Off  uint32        // where the piece begins in the block's plaintext; 0 for a chunk or hole
	Len  uint64        // bytes; for a chunk its whole plaintext
}

// Hole reports whether e is a hole: Len zero bytes that were never stored.
func (e Extent) Hole() bool { return e.Kind == 0 }
