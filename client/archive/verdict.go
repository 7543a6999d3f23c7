package archive

import (
	"context"

	"holdfast"
	"holdfast/client/keyring"
)

// What became of a path that is not simply stored.
type What uint8

// The verdicts that an archive lists. Stored and unchanged paths are in the tree and only counted.
const (
	Excluded   What = 1 // by a rule, which Why names
	Vanished   What = 2 // gone between being listed and being read
	Changed    What = 3 // changed while being read: stored as read
	Unreadable What = 4 // Why says what the system answered
)

// Verdict says of one path why it is not simply stored.
type Verdict struct {
	Path string // as Entry.Path; of an excluded directory only its own
	What What
	Why  string // for a person: the rule, or the error
}

// PutChunk stores one chunk of a verdict list (kind chunk, no links) and returns its name. It may keep plain.
type PutChunk func(ctx context.Context, plain []byte) (holdfast.Name, error)

// VerdictWriter writes a verdict list as chunks. Memory is bounded by one chunk.
type VerdictWriter struct{}

// NewVerdictWriter returns a writer that cuts the list under cuts (those of metadata) and stores it with put.
func NewVerdictWriter(cuts *keyring.Cuts, put PutChunk) *VerdictWriter { panic("archive: not yet") }

// Add adds a verdict; paths must come in the archive's order, each once.
func (w *VerdictWriter) Add(ctx context.Context, v Verdict) error { panic("archive: not yet") }

// Finish stores what is left and returns the names of all chunks, in order.
func (w *VerdictWriter) Finish(ctx context.Context) ([]holdfast.Name, error) {
	panic("archive: not yet")
}

// VerdictReader decodes the chunks of a verdict list one after another.
type VerdictReader struct{}

// Chunk decodes the next chunk and calls fn for each of its verdicts. The error wraps ErrDamaged or is fn's.
func (r *VerdictReader) Chunk(plain []byte, fn func(Verdict) error) error { panic("archive: not yet") }
