package archive

import "errors"

// ErrDamaged reports a block that is not what an encoder of this version writes.
var ErrDamaged = errors.New("archive is damaged")

// ErrEntry reports an entry that no archive can hold.
var ErrEntry = errors.New("entry cannot be archived")

// Limits on one entry, in bytes unless they say otherwise.
const (
	MaxPath      = 64 << 10
	MaxTarget    = 64 << 10
	MaxOwner     = 1 << 10 // a user or group name
	MaxXattrName = 1 << 10
	MaxXattrs    = 512 << 10 // names and values of all attributes together
	MaxExtents   = 1 << 24   // number of extents of one file
)

// ComparePaths orders paths as an archive does: component by component, bytes unsigned.
func ComparePaths(a, b string) int { panic("archive: not yet") }

// Check says whether an archive can hold e. The error wraps ErrEntry.
func (e *Entry) Check() error { panic("archive: not yet") }

// Stored returns how many bytes of content the archive holds for e: its size, or 0 if it is a hard link
// to an earlier entry or its content could not be read.
func (e *Entry) Stored() uint64 { panic("archive: not yet") }
