// Package restore reads archives back: it lists them and what is in them, extracts them into a
// directory, and verifies them without one.
//
// Extract walks the archive's tree in windows of bounded size. A window first plans: directories are
// made, files are begun, and the pieces of all files are gathered by block. Then each block that the
// window needs is fetched once, about in the order in which the bucket holds them, opened, and written
// into every place where it belongs; a file is completed with its last piece. A file that an earlier,
// interrupted run completed is read and compared instead of being fetched.
//
// What is damaged is reported with the paths that it concerns, and everything else is restored.
package restore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/seal"
	"holdfast/client/tree"
	"holdfast/history"
)

// Vault is a customer's vault, opened for reading: its verified history and the keys of its sessions.
// It is safe for concurrent use.
type Vault struct {
	m       *keyring.Machine
	c       *remote.Client
	History *history.Vault
	reader  *seal.Reader

	mu    sync.Mutex
	nodes map[holdfast.Name][]byte // plaintexts of tree and archive blocks, nodeCache bytes at most
	bytes int
	roots map[holdfast.RecordID]*archive.Root
}

const nodeCache = 8 << 20

// Open reads and verifies the vault's history. The error wraps keyring.ErrNoReadKey if m may only write.
func Open(ctx context.Context, m *keyring.Machine, c *remote.Client) (*Vault, error) {
	reader, err := seal.NewReader(m)
	if err != nil {
		return nil, err
	}
	h, err := c.History(ctx)
	if err != nil {
		return nil, err
	}
	if err := reader.AddSessions(h); err != nil {
		return nil, err
	}
	return &Vault{m: m, c: c, History: h, reader: reader, nodes: map[holdfast.Name][]byte{}, roots: map[holdfast.RecordID]*archive.Root{}}, nil
}

// BlockError is a block that could not be had or opened.
type BlockError struct {
	Name holdfast.Name
	Err  error // wraps remote.ErrAbsent, remote.ErrDamaged, seal.ErrDamaged or archive.ErrDamaged
}

func (e *BlockError) Error() string { return fmt.Sprintf("block %.8s: %v", e.Name, e.Err) }

func (e *BlockError) Unwrap() error { return e.Err }

// Damaged reports whether err says that something stored is not what was stored, or is gone.
func Damaged(err error) bool {
	for _, d := range []error{remote.ErrAbsent, remote.ErrDamaged, seal.ErrDamaged, archive.ErrDamaged} {
		if errors.Is(err, d) {
			return true
		}
	}
	return false
}

// opened is a fetched block: what it holds, or why it cannot be had. size is that of what was fetched, bytes.
type opened func(name holdfast.Name, size int, kind holdfast.Kind, plain []byte, err error) error

// fetch gets blocks and opens them; fn is called once for each, from several goroutines. Of a block whose newest copy is
// damaged or does not open, it tries the others: somebody with a stolen key may have stored garbage under the
// name before us, or after. The error that fn sees is then that of the newest, a *BlockError.
func (v *Vault) fetch(ctx context.Context, group holdfast.GroupID, names []holdfast.Name, fn opened) error {
	none := func(name holdfast.Name, size int, newest error) error {
		return fn(name, size, 0, nil, &BlockError{name, newest})
	}
	return v.c.FetchAny(ctx, group, names, func(name holdfast.Name, sealed []byte) (bad, err error) {
		kind, plain, bad := v.reader.Open(group, name, sealed)
		switch {
		case bad == nil:
			return nil, fn(name, len(sealed), kind, plain, nil)
		case !Damaged(bad): // so no other copy will open
			return nil, none(name, len(sealed), bad)
		}
		return bad, nil
	}, none)
}

// get returns the plaintexts of blocks of one kind, in the order of names. With a tree.Bad, which has a
// BlockError for each name, it returns those that are not in it.
func (v *Vault) get(ctx context.Context, group holdfast.GroupID, want holdfast.Kind, names []holdfast.Name) ([][]byte, error) {
	out := make([][]byte, len(names))
	place := make(map[holdfast.Name]int, len(names))
	var ask []holdfast.Name
	v.mu.Lock()
	for i, n := range names {
		place[n] = i
		if out[i] = v.nodes[n]; out[i] == nil {
			ask = append(ask, n)
		}
	}
	v.mu.Unlock()
	if len(ask) == 0 {
		return out, nil
	}
	bad := tree.Bad{}
	err := v.fetch(ctx, group, ask, func(name holdfast.Name, _ int, kind holdfast.Kind, plain []byte, err error) error {
		if err == nil && kind != want {
			err = &BlockError{name, fmt.Errorf("%w: %s where %s belongs", archive.ErrDamaged, kind, want)}
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if Damaged(err) {
			bad[name] = err
			return nil
		}
		if err != nil {
			return err
		}
		out[place[name]] = plain
		if want.Leaf() {
			return nil
		}
		for old, p := range v.nodes {
			if v.bytes+len(plain) <= nodeCache {
				break
			}
			v.bytes -= len(p)
			delete(v.nodes, old)
		}
		v.bytes += len(plain)
		v.nodes[name] = plain
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(bad) > 0 {
		return out, bad
	}
	return out, nil
}

// Root returns an archive's root. The error is Damaged or of the service.
func (v *Vault) Root(ctx context.Context, a history.Archive) (*archive.Root, error) {
	roots, err := v.Roots(ctx, []history.Archive{a})
	if err != nil {
		return nil, err
	}
	return roots[0], nil
}

// Roots returns the roots of several archives, read together.
func (v *Vault) Roots(ctx context.Context, as []history.Archive) ([]*archive.Root, error) {
	names := map[holdfast.GroupID][]holdfast.Name{}
	v.mu.Lock()
	for _, a := range as {
		if v.roots[a.ID] == nil && !slices.Contains(names[a.Commit.Group], a.Commit.Root) {
			names[a.Commit.Group] = append(names[a.Commit.Group], a.Commit.Root)
		}
	}
	v.mu.Unlock()
	parsed := map[holdfast.Name]*archive.Root{}
	for group, ns := range names {
		plains, err := v.get(ctx, group, holdfast.KindArchive, ns)
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		for i, p := range plains {
			if parsed[ns[i]], err = archive.ParseRoot(p); err != nil {
				return nil, fmt.Errorf("read archive: %w", err)
			}
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make([]*archive.Root, len(as))
	for i, a := range as {
		if r := parsed[a.Commit.Root]; r != nil {
			if v.m.Series(r.Series) != a.Commit.Series {
				return nil, fmt.Errorf("read archive: %w: it says that it belongs to another series than its record", archive.ErrDamaged)
			}
			v.roots[a.ID] = r
		}
		out[i] = v.roots[a.ID]
	}
	return out, nil
}

// Tree returns the tree of entries of an archive.
func (v *Vault) Tree(a history.Archive, r *archive.Root) *tree.Tree {
	return tree.Open(r, func(ctx context.Context, names []holdfast.Name) ([][]byte, error) {
		return v.get(ctx, a.Commit.Group, holdfast.KindTree, names)
	})
}

// Verdicts calls fn for each verdict of an archive.
func (v *Vault) Verdicts(ctx context.Context, a history.Archive, r *archive.Root, fn func(archive.Verdict) error) error {
	var rd archive.VerdictReader
	for _, name := range r.Verdicts {
		plain, err := v.get(ctx, a.Commit.Group, holdfast.KindChunk, []holdfast.Name{name})
		if err != nil {
			return fmt.Errorf("read verdicts: %w", err)
		}
		if err := rd.Chunk(plain[0], fn); err != nil {
			return fmt.Errorf("read verdicts: %w", err)
		}
	}
	return nil
}

// ErrNoArchive reports that there is no archive of that name, or more than one.
var ErrNoArchive = errors.New("no such archive")

// manyArchives is an ErrNoArchive whose text does not claim that there is none.
type manyArchives struct{ text string }

func (e *manyArchives) Error() string { return e.text }
func (e *manyArchives) Unwrap() error { return ErrNoArchive }

const (
	second = "2006-01-02T15:04:05"
	exact  = "2006-01-02T15:04:05.000000000"
)

// Name returns the name of a as SERIES@TIME, UTC to the second; where another archive of its series
// has the same second, to the nanosecond.
func Name(h *history.Vault, series string, a history.Archive) string {
	t := time.Unix(0, a.Time).UTC()
	layout := second
	for _, o := range h.Archives {
		if o.ID != a.ID && o.Commit.Series == a.Commit.Series && time.Unix(0, o.Time).UTC().Format(second) == t.Format(second) {
			layout = exact
			break
		}
	}
	return series + "@" + t.Format(layout) + "Z"
}

// minID is the shortest beginning of an archive's id that names it, hexadecimal digits.
const minID = 8

// Find returns the archive that spec names: SERIES for the newest that is complete, live and not suspect, SERIES@TIME with any
// beginning of the time that only one archive has, or, where there is no such series, any beginning of
// the archive's id from minID digits on that no other has. The error wraps ErrNoArchive.
func Find(m *keyring.Machine, h *history.Vault, spec string, states ...history.State) (history.Archive, error) {
	series, when, timed := strings.Cut(spec, "@")
	id := m.Series(series)
	var found, byID []history.Archive
	var known, partial, deleted, suspect bool
	for _, a := range h.Archives {
		known = known || a.Commit.Series == id
		if len(states) > 0 && !slices.Contains(states, a.State) {
			continue
		}
		if len(spec) >= minID && strings.HasPrefix(a.ID.String(), spec) {
			byID = append(byID, a)
		}
		if a.Commit.Series != id {
			continue
		}
		if !timed {
			if a.State != history.Live {
				deleted = true
				continue
			}
			if a.Commit.Partial {
				partial = true
				continue
			}
			if a.Suspect {
				suspect = true
				continue
			}
			found = append(found[:0], a)
		} else if strings.HasPrefix(time.Unix(0, a.Time).UTC().Format(exact), strings.TrimSuffix(when, "Z")) {
			found = append(found, a)
		}
	}
	if !known {
		found = byID
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var names []string
		for _, a := range found[:min(len(found), 3)] {
			if known {
				names = append(names, fmt.Sprintf("%s with id %.16s", Name(h, series, a), a.ID))
			} else {
				names = append(names, a.ID.String())
			}
		}
		if len(found) > len(names) {
			names = append(names, "...")
		}
		more := "the time, or give the beginning of the id"
		if !known {
			more = "the id"
		}
		return history.Archive{}, &manyArchives{fmt.Sprintf("%d archives begin with %q (%s); say more of %s", len(found), spec, strings.Join(names, ", "), more)}
	case suspect:
		return history.Archive{}, fmt.Errorf("%w: all of %q are suspect, made with a key that was revoked since before; if you know one to be good, name it as SERIES@TIME, `holdfast list` shows them", ErrNoArchive, spec)
	case partial:
		return history.Archive{}, fmt.Errorf("%w: %q has only partial archives so far; name one as SERIES@TIME, `holdfast list` shows them", ErrNoArchive, spec)
	case deleted:
		return history.Archive{}, fmt.Errorf("%w: all of %q are deleted; name one as SERIES@TIME while `holdfast list` shows it, or bring it back with `holdfast undelete`", ErrNoArchive, spec)
	}
	return history.Archive{}, fmt.Errorf("%w: %q; `holdfast list` shows what there is", ErrNoArchive, spec)
}

// Progress counts as a run goes on. It may be read at any time.
type Progress struct {
	Entries atomic.Uint64
	Bytes   atomic.Uint64 // of content, restored or checked
	Fetched atomic.Uint64 // sealed bytes received
}

// Problem is a path that could not be restored or verified.
type Problem struct {
	Path string
	Err  error
}
