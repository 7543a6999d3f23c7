package archive

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"holdfast"
)

// ErrDamaged reports bytes that are not what an encoder of this version writes.
var ErrDamaged = errors.New("archive is damaged")

// ErrEntry reports an entry that no archive can hold.
var ErrEntry = errors.New("entry cannot be archived")

// Limits on one entry, in bytes unless they say otherwise.
const (
	MaxPath      = 64 << 10
	MaxTarget    = 64 << 10
	MaxOwner     = 1 << 10   // a user or group name
	MaxXattrName = 1 << 10   // of one attribute
	MaxXattrs    = 512 << 10 // names and values of all attributes of one entry together
	MaxExtents   = 1 << 24   // number of extents of one file
)

// ComparePaths orders paths as an archive does: component by component, bytes unsigned, so that
// everything below a directory directly follows it.
func ComparePaths(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if x, y := rank(a[i]), rank(b[i]); x != y {
			return int(x) - int(y)
		}
	}
	return len(a) - len(b)
}

// rank is the byte that stands for c in an item's key.
func rank(c byte) byte {
	if c == '/' {
		return 0
	}
	return c
}

// checkPath says whether p is a relative path of plain components.
func checkPath(p string) error {
	if len(p) == 0 || len(p) > MaxPath {
		return fmt.Errorf("path of %d bytes", len(p))
	}
	if strings.IndexByte(p, 0) >= 0 {
		return errors.New("path with a NUL byte")
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == "" || c == "." || c == ".." {
			return fmt.Errorf("path with a component %q", c)
		}
	}
	return nil
}

// Check says whether an archive can hold e. The error wraps ErrEntry.
func (e *Entry) Check() error {
	err := e.checkFields()
	if err == nil {
		err = e.checkContent()
	}
	if err != nil {
		return fmt.Errorf("%w: %.200q: %w", ErrEntry, e.Path, err)
	}
	return nil
}

// checkFields checks everything but the extents.
func (e *Entry) checkFields() error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	switch {
	case e.Type < TypeFile || e.Type > TypeSocket:
		return fmt.Errorf("unknown type %d", e.Type)
	case e.Flags&^(FlagChanged|FlagUnreadable) != 0:
		return fmt.Errorf("unknown flags %#x", uint8(e.Flags))
	case e.Mode > 0o7777:
		return fmt.Errorf("mode %#o", e.Mode)
	case len(e.User) > MaxOwner || len(e.Group) > MaxOwner:
		return errors.New("owner's name is too long")
	case e.Mtime.Nsec >= 1e9:
		return fmt.Errorf("%d nanoseconds in a second", e.Mtime.Nsec)
	case e.Size > math.MaxInt64:
		return fmt.Errorf("size of %d bytes", e.Size)
	case e.Type != TypeFile && (e.Size != 0 || e.Content != [16]byte{}):
		return errors.New("content where only a file has any")
	case e.Type != TypeSymlink && e.Target != "":
		return errors.New("target where only a symlink has one")
	case e.Type == TypeSymlink && e.Target == "" && e.Link == "" && e.Flags&FlagUnreadable == 0:
		return errors.New("symlink without a target")
	case len(e.Target) > MaxTarget || strings.IndexByte(e.Target, 0) >= 0:
		return errors.New("target is too long or has a NUL byte")
	case e.Type != TypeChar && e.Type != TypeBlock && (e.Major != 0 || e.Minor != 0):
		return errors.New("device number where only a device has one")
	case (e.Link != "" || e.Flags&FlagUnreadable != 0) && e.Content != [16]byte{}:
		return errors.New("hash of a content that is not there")
	}
	if e.Link != "" {
		if e.Type == TypeDir {
			return errors.New("hard link to a directory")
		}
		if err := checkPath(e.Link); err != nil {
			return fmt.Errorf("hard link: %w", err)
		}
		if ComparePaths(e.Link, e.Path) >= 0 {
			return errors.New("hard link to a later entry")
		}
	}
	total := 0
	for i, x := range e.Xattrs {
		if x.Name == "" || len(x.Name) > MaxXattrName || strings.IndexByte(x.Name, 0) >= 0 {
			return fmt.Errorf("extended attribute with a name of %d bytes", len(x.Name))
		}
		if i > 0 && e.Xattrs[i-1].Name >= x.Name {
			return errors.New("extended attributes are not sorted")
		}
		if total += len(x.Name) + len(x.Value); total > MaxXattrs {
			return fmt.Errorf("more than %d bytes of extended attributes", MaxXattrs)
		}
	}
	return nil
}

// checkContent checks the extents against one another and against the fields.
func (e *Entry) checkContent() error {
	if !e.hasContent() {
		if len(e.Extents) != 0 {
			return errors.New("extents where there is no content")
		}
		return nil
	}
	if len(e.Extents) > MaxExtents {
		return fmt.Errorf("more than %d extents", MaxExtents)
	}
	var sum uint64
	chunks, packs := false, false
	for _, x := range e.Extents {
		if err := x.check(); err != nil {
			return err
		}
		if x.Len > math.MaxInt64-sum {
			return errors.New("content of more than 2^63 bytes")
		}
		sum += x.Len
		chunks = chunks || x.Kind == holdfast.KindChunk
		packs = packs || x.Kind == holdfast.KindPack
	}
	if sum != e.Size {
		return fmt.Errorf("extents of %d bytes for a size of %d", sum, e.Size)
	}
	if (packs && !chunks) != (e.Content != [16]byte{}) {
		return errors.New("hash of the content is set if and only if all of it lies in packs")
	}
	return nil
}

func (x Extent) check() error {
	if x.Len == 0 {
		return errors.New("empty extent")
	}
	switch x.Kind {
	case 0:
		if x.Name != (holdfast.Name{}) || x.Off != 0 || x.Len > math.MaxInt64 {
			return errors.New("hole with a name, an offset or an impossible length")
		}
	case holdfast.KindChunk:
		if x.Off != 0 || x.Len > holdfast.MaxPlain {
			return errors.New("extent is not a whole chunk")
		}
	case holdfast.KindPack:
		if x.Len > holdfast.MaxPlain || uint64(x.Off)+x.Len > holdfast.MaxPlain {
			return errors.New("extent reaches beyond its pack")
		}
	default:
		return fmt.Errorf("extent in a block of %s", x.Kind)
	}
	return nil
}

// hasContent reports whether e's content is in the archive under e itself.
func (e *Entry) hasContent() bool {
	return e.Type == TypeFile && e.Link == "" && e.Flags&FlagUnreadable == 0
}

// Stored returns how many bytes of content the archive holds for e: its size, or 0 if it is a hard link
// to an earlier entry or its content could not be read.
func (e *Entry) Stored() uint64 {
	if !e.hasContent() {
		return 0
	}
	return e.Size
}
