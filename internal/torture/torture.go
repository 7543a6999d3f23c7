// Package torture makes trees that are hard to back up and restore, and describes trees exactly, for tests.
// It shares no code with the client, so that the two do not make the same mistakes. It works on Linux.
package torture

// Options say how large a tree to make.
type Options struct {
	LargeDir int // entries of the large directory; 0 makes a small one
}
