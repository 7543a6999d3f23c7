// Package torture makes trees that are hard to back up and restore, and describes trees exactly, for tests.
package torture

import "io"

// Options say how large a tree to make.
type Options struct {
	LargeDir int // entries of the large directory
}

// Make makes the tree in dir, which must be there and empty. As root it has devices, foreign owners and
// trusted attributes as well.
func Make(dir string, opt Options) error { return nil }

// Describe writes a line for each path under dir, in a fixed order, with all that a restore must bring back.
// Two trees are equal when their descriptions are.
func Describe(w io.Writer, dir string) error { return nil }
