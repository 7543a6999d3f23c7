//go:build !linux

package torture

import (
	"errors"
	"io"
)

var errSystem = errors.New("torture: trees are made and described on Linux only")

// Make makes the tree in dir, which must be there and empty.
func Make(dir string, opt Options) error { return errSystem }

// Describe writes a line for each path under dir.
func Describe(w io.Writer, dir string) error { return errSystem }
