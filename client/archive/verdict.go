package archive

import (
	"bytes"
	"context"
	"fmt"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/internal/enc"
)

// What says what became of a path that is not simply stored.
type What uint8

// The verdicts that an archive lists. Stored and unchanged paths are in the tree and only counted.
const (
	Excluded   What = 1 // by a rule, which Why names
	Vanished   What = 2 // gone between being listed and being read
	Changed    What = 3 // changed while being read: stored as read
	Unreadable What = 4 // Why says what the system answered
)

func (w What) String() string {
	switch w {
	case Excluded:
		return "excluded"
	case Vanished:
		return "vanished"
	case Changed:
		return "changed"
	case Unreadable:
		return "unreadable"
	}
	return fmt.Sprintf("verdict %d", uint8(w))
}

// Verdict says of one path why it is not simply stored.
type Verdict struct {
	Path string // as Entry.Path; of an excluded directory only its own
	What What
	Why  string // for a person: the rule, or the error
}

// MaxWhy bounds Verdict.Why in bytes; a longer one is cut.
const MaxWhy = 4 << 10

// The sizes of the chunks of a verdict list, bytes. A chunk can exceed maxVerdicts by less than one verdict.
const (
	minVerdicts    = 32 << 10
	spreadVerdicts = 96 << 10
	maxVerdicts    = 512 << 10
	verdictVersion = 1
)

// PutChunk stores one chunk of a verdict list (kind chunk, no links) and returns its name. It may keep plain.
type PutChunk func(ctx context.Context, plain []byte) (holdfast.Name, error)

// VerdictWriter writes a verdict list as chunks. Memory is bounded by one chunk.
type VerdictWriter struct {
	put     PutChunk
	borders *Borders
	buf     []byte
	key     []byte
	last    string
	names   []holdfast.Name
}

// NewVerdictWriter returns a writer that cuts the list under cuts (those of metadata) and stores it with put.
func NewVerdictWriter(cuts *keyring.Cuts, put PutChunk) *VerdictWriter {
	return &VerdictWriter{put: put, borders: NewBorders(cuts.Tree)}
}

// Add adds a verdict; paths must come in the archive's order, each once. The error wraps ErrEntry or is put's.
func (w *VerdictWriter) Add(ctx context.Context, v Verdict) error {
	if err := checkPath(v.Path); err != nil {
		return fmt.Errorf("%w: verdict: %w", ErrEntry, err)
	}
	if v.What < Excluded || v.What > Unreadable {
		return fmt.Errorf("%w: %.200q: unknown %s", ErrEntry, v.Path, v.What)
	}
	if w.last != "" && ComparePaths(w.last, v.Path) >= 0 {
		return fmt.Errorf("%w: verdict on %.200q is out of order", ErrEntry, v.Path)
	}
	w.last = v.Path
	if len(w.buf) == 0 {
		w.buf = append(w.buf, verdictVersion)
	}
	before := len(w.buf)
	w.buf = append(w.buf, byte(v.What))
	w.buf = enc.AppendVLP(w.buf, []byte(v.Path))
	w.buf = enc.AppendVLP(w.buf, []byte(v.Why[:min(len(v.Why), MaxWhy)]))
	w.key = AppendKey(w.key[:0], v.Path)
	if len(w.buf) >= maxVerdicts ||
		len(w.buf) >= minVerdicts && w.borders.at(domainVerdict, w.key, len(w.buf)-before, spreadVerdicts) {
		return w.flush(ctx)
	}
	return nil
}

func (w *VerdictWriter) flush(ctx context.Context) error {
	if len(w.buf) == 0 {
		return nil
	}
	if len(w.names) == maxVerdictChunks {
		return fmt.Errorf("%w: more verdicts than an archive holds: exclude the directory above them", ErrEntry)
	}
	n, err := w.put(ctx, bytes.Clone(w.buf))
	if err != nil {
		return fmt.Errorf("store verdicts: %w", err)
	}
	w.names = append(w.names, n)
	w.buf = w.buf[:0]
	return nil
}

// Finish stores what is left and returns the names of all chunks, in order.
func (w *VerdictWriter) Finish(ctx context.Context) ([]holdfast.Name, error) {
	if err := w.flush(ctx); err != nil {
		return nil, err
	}
	return w.names, nil
}

// VerdictReader decodes the chunks of a verdict list one after another. The zero VerdictReader is before
// the first chunk.
type VerdictReader struct{ last string }

// Chunk decodes the next chunk and calls fn for each of its verdicts. The error wraps ErrDamaged or is fn's.
func (d *VerdictReader) Chunk(plain []byte, fn func(Verdict) error) error {
	r := enc.NewReader(plain)
	if v := r.U8(); r.Err() == nil && v != verdictVersion {
		r.Fail("version %d is not %d", v, verdictVersion)
	}
	if r.Err() == nil && r.Len() == 0 {
		r.Fail("chunk without a verdict")
	}
	for r.Err() == nil && r.Len() > 0 {
		v := Verdict{What: What(r.U8()), Path: string(r.VLP(MaxPath)), Why: string(r.VLP(MaxWhy))}
		if r.Err() != nil {
			break
		}
		if err := checkPath(v.Path); err != nil {
			r.Fail("%w", err)
		} else if v.What < Excluded || v.What > Unreadable {
			r.Fail("unknown %s", v.What)
		} else if d.last != "" && ComparePaths(d.last, v.Path) >= 0 {
			r.Fail("%.200q is out of order", v.Path)
		} else if err := fn(v); err != nil {
			return err
		}
		d.last = v.Path
	}
	if err := r.Err(); err != nil {
		return fmt.Errorf("%w: verdict list: %w", ErrDamaged, err)
	}
	return nil
}
