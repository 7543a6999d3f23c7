// Package target writes a restored tree.
package target

import (
	"errors"

	"holdfast/client/archive"
)

// ErrNotEmpty reports a target directory that holds something already.
var ErrNotEmpty = errors.New("directory is not empty")

// Options say how to restore.
type Options struct {
	Privileged bool // also restore set-id bits, devices, security.* and trusted.* attributes
	Overwrite  bool // use a directory that is not empty; files of it that differ are replaced
}

// Warning is something of the archive that the target could not take, reported once for all paths.
type Warning struct {
	What  string // for people, in the plural: "owners not restored (not running as root)"
	Count uint64 // paths concerned
	First string // the first of them, and the error if there was one
}

// Target is a directory that is being restored into. Its methods may be called concurrently for different paths.
type Target struct{}

// File is a file that is being restored.
type File struct{}

// Existing is a file that an earlier run completed, open for comparing its content.
type Existing struct{}

// Open opens or makes the directory to restore into.
func Open(dir string, opt Options) (*Target, error) { return nil, nil }

// Mkdir makes a directory; its attributes are set by FinishDirs.
func (t *Target) Mkdir(e *archive.Entry) error { return nil }

// Begin begins a file. Nothing is opened before the first WriteAt, and the number of open files is bounded, so
// that many thousands of files may be begun at a time. e must not change until Commit or Abort.
func (t *Target) Begin(e *archive.Entry) (*File, error) { return nil, nil }

// WriteAt writes content; what is never written stays a hole. It may be called concurrently.
func (f *File) WriteAt(p []byte, off int64) (int, error) { return 0, nil }

// Commit sets the file's attributes and gives it its name.
func (f *File) Commit() error { return nil }

// Abort removes what was written.
func (f *File) Abort() {}

// Symlink makes a symbolic link.
func (t *Target) Symlink(e *archive.Entry) error { return nil }

// Hardlink makes e another name of e.Link, which this run must have written.
func (t *Target) Hardlink(e *archive.Entry) error { return nil }

// Node makes a FIFO, socket or device.
func (t *Target) Node(e *archive.Entry) error { return nil }

// Has reports whether e's file is there already as Commit would leave it, content not looked at: it returns the
// file for comparing, and nil if there is none such.
func (t *Target) Has(e *archive.Entry) *Existing { return nil }

// ReadAt reads content; holes are zeros.
func (x *Existing) ReadAt(p []byte, off int64) (int, error) { return 0, nil }

// Keep takes the file as one that this run wrote.
func (x *Existing) Keep() {}

// Close closes the file.
func (x *Existing) Close() error { return nil }

// FinishDirs sets the attributes of all directories and makes everything durable.
func (t *Target) FinishDirs() error { return nil }

// Warnings returns what could not be restored, in a fixed order.
func (t *Target) Warnings() []Warning { return nil }

// Close releases the target. Without FinishDirs before it, a later Open of the directory continues.
func (t *Target) Close() error { return nil }
