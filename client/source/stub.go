package source

import "context"

// File is an open file of the tree.
type File struct{}

// Rules are compiled exclude patterns.
type Rules struct{}

// CompileExclude compiles patterns.
func CompileExclude(patterns []string) (*Rules, error) { return nil, nil }

// Next moves to the next region of the file; io.EOF follows the last.
func (f *File) Next() (Region, error) { return Region{}, nil }

// Read reads on in the current region, which must be data; io.EOF marks its end.
func (f *File) Read(p []byte) (int, error) { return 0, nil }

// Size returns how many bytes, data and holes, Next and Read have passed.
func (f *File) Size() uint64 { return 0 }

// Check reports whether the file changed since it was opened.
func (f *File) Check() (changed bool, err error) { return false, nil }

// Close closes the file.
func (f *File) Close() error { return nil }

func walk(ctx context.Context, base string, roots []string, opt Options, fn func(*Item) error) error {
	return nil
}
