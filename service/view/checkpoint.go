package view

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast"
	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// A checkpoint is all rows of the view at one position of the journal, in parts, and a manifest that names the parts.
// docs/format/6-checkpoints.md states the bytes.
const (
	partMagic     = "HOLDCKP1"
	manifestMagic = "HOLDCKM1"
	// PartSize is the size at which a part ends, bytes.
	PartSize = 4 << 20
	// MaxRowKey and MaxRowValue bound a row, bytes. No row comes near: the largest are the links of one block.
	MaxRowKey   = 1 << 10
	MaxRowValue = 4 << 20
	// MaxPart bounds a part, bytes: one row more than its target.
	MaxPart = 8 + PartSize + rowHead + MaxRowKey + MaxRowValue
	// MaxParts bounds the parts of a checkpoint: 256 GiB of rows.
	MaxParts = 1 << 16
	// MaxManifest bounds a manifest, bytes.
	MaxManifest = manifestHead + MaxParts*manifestPart

	rowHead      = 4 + 4
	manifestHead = 8 + 1 + 8 + 8 + 8 + 32 + 32 + 8 + 4
	manifestPart = 8 + 4 + 4 + 32

	// tableParts is how many parts become one table of the database.
	tableParts = 8
	// partReads is how often a part must come back wrong before it is called damaged.
	partReads = 4
	// incoming is the directory in that of the view in which tables are made; what a crash left there the next Open removes.
	incoming = "incoming"
)

// ErrCheckpoint reports a part or manifest that is not what it claims to be, or not of this version.
var ErrCheckpoint = errors.New("malformed checkpoint")

// Manifest names the parts of a checkpoint and says of what they are.
type Manifest struct {
	Version  uint8 // of the rows
	Cell     holdfast.CellID
	Position segment.Position // of the newest segment that the rows contain
	Hash     [32]byte         // of that segment
	Digest   [32]byte         // of the rows, as Store.Digest
	Nonce    [8]byte          // random: no two manifests are equal
	Parts    []Part           // 1 to MaxParts, in the order of their rows
}

// Part is one part of a checkpoint.
type Part struct {
	Nonce [8]byte // of its key in the bucket
	Size  uint32  // bytes
	Rows  uint32  // at least 1
	Sum   [32]byte
}

// PartOf returns what a manifest says of raw.
func PartOf(nonce [8]byte, raw []byte, rows uint32) Part {
	return Part{nonce, uint32(len(raw)), rows, sha256.Sum256(raw)}
}

// Check returns an error that wraps ErrCheckpoint if raw is not the part.
func (p Part) Check(raw []byte) error {
	if len(raw) != int(p.Size) || sha256.Sum256(raw) != p.Sum {
		return fmt.Errorf("%w: the part is not the one that the manifest names", ErrCheckpoint)
	}
	return nil
}

// Rows returns the number of rows in all parts.
func (m *Manifest) Rows() (n uint64) {
	for _, p := range m.Parts {
		n += uint64(p.Rows)
	}
	return n
}

// Bytes returns the size of all parts.
func (m *Manifest) Bytes() (n int64) {
	for _, p := range m.Parts {
		n += int64(p.Size)
	}
	return n
}

// Encode returns the content of the manifest's object.
func (m *Manifest) Encode() []byte {
	b := make([]byte, 0, manifestHead+len(m.Parts)*manifestPart)
	b = append(append(b, manifestMagic...), m.Version)
	b = append(b, m.Cell[:]...)
	b = append(b, u64(m.Position.Epoch)...)
	b = append(b, u64(m.Position.Seq)...)
	b = append(b, m.Hash[:]...)
	b = append(b, m.Digest[:]...)
	b = append(b, m.Nonce[:]...)
	b = append(b, u32(uint32(len(m.Parts)))...)
	for _, p := range m.Parts {
		b = append(b, p.Nonce[:]...)
		b = append(b, u32(p.Size)...)
		b = append(b, u32(p.Rows)...)
		b = append(b, p.Sum[:]...)
	}
	return b
}

// ParseManifest is the inverse of Encode; it accepts nothing that Encode does not make. The error wraps ErrCheckpoint.
func ParseManifest(raw []byte) (Manifest, error) {
	var m Manifest
	r := enc.NewReader(raw)
	if got := r.Bytes(len(manifestMagic)); r.Err() == nil && string(got) != manifestMagic {
		r.Fail("it does not begin with %q", manifestMagic)
	}
	m.Version = r.U8()
	r.Fixed(m.Cell[:])
	m.Position = segment.Position{Epoch: r.U64(), Seq: r.U64()}
	r.Fixed(m.Hash[:])
	r.Fixed(m.Digest[:])
	r.Fixed(m.Nonce[:])
	n := r.U32()
	if r.Err() == nil && (n == 0 || n > MaxParts || r.Len() != int(n)*manifestPart) {
		r.Fail("%d parts in %d bytes", n, r.Len())
	}
	if r.Err() == nil {
		m.Parts = make([]Part, n)
	}
	for i := range m.Parts {
		p := &m.Parts[i]
		r.Fixed(p.Nonce[:])
		p.Size, p.Rows = r.U32(), r.U32()
		r.Fixed(p.Sum[:])
		if r.Err() == nil && (p.Size > MaxPart || p.Rows == 0 || uint64(p.Rows)*(rowHead+1) > uint64(p.Size)) {
			r.Fail("part %d: %d rows in %d bytes", i, p.Rows, p.Size)
		}
	}
	if err := r.Done(); err != nil {
		return Manifest{}, fmt.Errorf("%w: manifest: %w", ErrCheckpoint, err)
	}
	return m, nil
}

// appendRow appends a row as parts have it, which is as Digest hashes it.
func appendRow(b, key, val []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(key)))
	b = append(b, key...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(val)))
	return append(b, val...)
}

// eachRow calls fn with every row of a part, of which the first comes after the key after. A part has rows of one kind only:
// local ones, or functions of the journal. It returns how many there are, and the last one's key, which like all of them lies
// in raw. Its own errors wrap ErrCheckpoint.
func eachRow(raw, after []byte, fn func(key, val []byte) error) (rows uint32, last []byte, err error) {
	bad := func(what string) (uint32, []byte, error) {
		return rows, last, fmt.Errorf("%w: row %d of a part: %s", ErrCheckpoint, rows, what)
	}
	if len(raw) > MaxPart || !bytes.HasPrefix(raw, []byte(partMagic)) {
		return bad("it does not begin as a part")
	}
	field := func(max int) (f []byte, ok bool) {
		if len(raw) < 4 {
			return nil, false
		}
		n := int64(binary.BigEndian.Uint32(raw))
		if raw = raw[4:]; n > int64(max) || n > int64(len(raw)) {
			return nil, false
		}
		f, raw = raw[:n:n], raw[n:]
		return f, true
	}
	last = after
	for raw = raw[len(partMagic):]; len(raw) > 0; rows++ {
		key, ok := field(MaxRowKey)
		if !ok || len(key) == 0 || key[0] == 0xff {
			return bad("its key is none")
		}
		val, ok := field(MaxRowValue)
		switch {
		case !ok:
			return bad("its value is cut")
		case bytes.Compare(key, last) <= 0:
			return bad("it does not follow the one before")
		case rows > 0 && last[0] == rowLocal && key[0] != rowLocal:
			return bad("local rows and others")
		}
		if err := fn(key, val); err != nil {
			return rows, last, err
		}
		last = key
	}
	if rows == 0 {
		return bad("there is none")
	}
	return rows, last, nil
}

// PartDigest computes the digest of the rows in parts. The zero PartDigest has seen none.
type PartDigest struct {
	h    hash.Hash
	last []byte
	rows uint64
}

// Add takes the next part. The error wraps ErrCheckpoint if it is malformed or does not follow the one before.
func (d *PartDigest) Add(raw []byte) error {
	rows, last, err := eachRow(raw, d.last, func(_, _ []byte) error { return nil })
	if err != nil {
		return err
	}
	if d.h == nil {
		d.h = sha256.New()
	}
	if last[0] != rowLocal {
		d.h.Write(raw[len(partMagic):]) // rows lie in parts as the digest wants them
	}
	d.last = append(d.last[:0], last...)
	d.rows += uint64(rows)
	return nil
}

// Sum returns what Store.Digest returns of a store with these rows, and how many they are, local ones included.
func (d *PartDigest) Sum() ([32]byte, uint64) {
	if d.h == nil {
		return sha256.Sum256(nil), 0
	}
	return [32]byte(d.h.Sum(nil)), d.rows
}

// Snapshot is the rows of a Store at one moment, whatever is committed afterwards. Close it soon: the database keeps old rows
// for it meanwhile. It is not safe for concurrent use.
type Snapshot struct {
	s    *Store
	snap *pebble.Snapshot
	m    meta
}

// Snapshot returns the rows as they are now.
func (s *Store) Snapshot() (*Snapshot, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	p := &Snapshot{s: s, snap: s.db.NewSnapshot()}
	var err error
	if p.m, _, err = loadMeta(p); err != nil {
		p.snap.Close()
		return nil, err
	}
	s.snapMu.Lock()
	defer s.snapMu.Unlock()
	if s.snaps == nil {
		s.snaps = map[*Snapshot]struct{}{}
	}
	s.snaps[p] = struct{}{}
	return p, nil
}

// Get is part of Getter; the store's mu is held for reading.
func (p *Snapshot) Get(key []byte) ([]byte, error) {
	v, closer, err := p.snap.Get(key)
	if err == pebble.ErrNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, p.s.failed("read view", err)
	}
	defer closer.Close()
	return slices.Clone(v), nil
}

// Close gives the snapshot up. Closing the store does that, too.
func (p *Snapshot) Close() {
	p.s.mu.RLock()
	defer p.s.mu.RUnlock()
	p.release()
}

// release is Close with the store's mu held.
func (p *Snapshot) release() {
	p.s.snapMu.Lock()
	defer p.s.snapMu.Unlock()
	if _, open := p.s.snaps[p]; open {
		delete(p.s.snaps, p)
		p.snap.Close()
	}
}

// Position returns the cell, the newest segment of the rows, and its hash.
func (p *Snapshot) Position() (holdfast.CellID, segment.Position, [32]byte) {
	return p.m.cell, p.m.pos, p.m.hash
}

// Digest is Store.Digest of the snapshot.
func (p *Snapshot) Digest(ctx context.Context) ([32]byte, error) {
	p.s.mu.RLock()
	defer p.s.mu.RUnlock()
	if p.s.closed {
		return [32]byte{}, ErrClosed
	}
	d, _, err := p.s.digest(ctx, p.snap)
	return d, err
}

// Parts calls fn with one part after the other, all rows in order, and how many rows it has. Each ends at size bytes, which is
// PartSize but in tests. raw is valid during the call only; the memory of one part is all that is taken.
func (p *Snapshot) Parts(ctx context.Context, size int, fn func(raw []byte, rows uint32) error) error {
	from, buf := []byte{0}, make([]byte, 0, len(partMagic)+size+64<<10)
	for {
		buf = append(buf[:0], partMagic...)
		raw, rows, next, err := p.fill(ctx, buf, size, from)
		if err != nil {
			return fmt.Errorf("read the view for a checkpoint: %w", err)
		}
		if rows == 0 {
			return nil
		}
		if err := fn(raw, rows); err != nil {
			return err
		}
		buf, from = raw, next
	}
}

// fill appends rows from the key from on to a part until it is large enough, and returns the key at which the next begins.
// The iterator lives no longer than that: it keeps files that were merged away.
func (p *Snapshot) fill(ctx context.Context, part []byte, size int, from []byte) (_ []byte, rows uint32, next []byte, err error) {
	p.s.mu.RLock()
	defer p.s.mu.RUnlock()
	if p.s.closed {
		return nil, 0, nil, ErrClosed
	}
	it, err := p.snap.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: from, UpperBound: []byte{0xff}})
	if err != nil {
		return nil, 0, nil, err
	}
	local := false
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		k, v := it.Key(), it.Value()
		if rows > 0 && (len(part) >= size || local != (k[0] == rowLocal)) {
			next = slices.Clone(k)
			break
		}
		if len(k) > MaxRowKey || len(v) > MaxRowValue {
			err = fmt.Errorf("row %.40q of %d and %d bytes is too large", k, len(k), len(v))
			break
		}
		local = k[0] == rowLocal
		part = appendRow(part, k, v)
		rows++
	}
	if no := it.Close(); no != nil && ctx.Err() == nil {
		err = errors.Join(err, p.s.failed("read view", no))
	}
	if next == nil { // the last row: what comes after it is nothing
		next = []byte{0xff}
	}
	return part, rows, next, errors.Join(err, ctx.Err())
}

// Load replaces all rows by those of a checkpoint, all or none: it makes tables of the parts beside the database, which
// then takes them in at once. get fetches a part; it is called by as many goroutines as loaders says, each of which takes the memory
// of two parts, and again for a part that comes back wrong. Nobody else may use the store meanwhile.
//
// Nothing is used that is not as the manifest says, in every part, or that is not of the manifest's place in the journal,
// or of another Version. The error wraps ErrCheckpoint then; it is get's if that failed; otherwise it is the view's own
// disk's. In any case the store is as it was.
//
// Crash: before the tables are taken in, they lie in a directory of their own, which the next Open removes; afterwards the
// store has them all, on disk.
func (s *Store) Load(ctx context.Context, m *Manifest, loaders int, get func(ctx context.Context, part int) ([]byte, error)) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if m.Version != Version {
		return fmt.Errorf("%w: its rows have version %d, this program's %d", ErrCheckpoint, m.Version, Version)
	}
	l := &loading{s: s, m: m, get: get, dir: s.fs.PathJoin(s.dir, incoming), tables: make([]table, (len(m.Parts)+tableParts-1)/tableParts)}
	defer s.fs.RemoveAll(l.dir)
	if err := errors.Join(s.fs.RemoveAll(l.dir), s.fs.MkdirAll(l.dir, 0o700)); err != nil {
		return fmt.Errorf("make a place for tables: %w", err)
	}
	if err := l.build(ctx, loaders); err != nil {
		return err
	}
	var paths []string
	for i, t := range l.tables {
		if i > 0 && bytes.Compare(t.first, l.tables[i-1].last) <= 0 {
			return fmt.Errorf("%w: part %d does not follow the one before", ErrCheckpoint, i*tableParts)
		}
		paths = append(paths, t.path)
	}
	if got, _, err := loadMeta(oneRow(l.meta)); err != nil {
		return fmt.Errorf("%w: %w", ErrCheckpoint, err)
	} else if got.cell != m.Cell || got.pos != m.Position || got.hash != m.Hash {
		return fmt.Errorf("%w: its rows are of segment %s of cell %s, its manifest is of %s of %s", ErrCheckpoint, got.pos, got.cell, m.Position, m.Cell)
	}
	if _, err := s.db.IngestAndExcise(ctx, paths, nil, nil, pebble.KeyRange{Start: []byte{0}, End: []byte{0xff}}); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return s.failed("take in a checkpoint", err)
	}
	return nil
}

// loading is one Load at work. Each table belongs to one of its goroutines; mu guards meta.
type loading struct {
	s      *Store
	m      *Manifest
	get    func(context.Context, int) ([]byte, error)
	dir    string
	tables []table

	mu   sync.Mutex
	meta []byte // the row that says where the journal stands
}

// table is one table that was made of parts.
type table struct {
	path        string
	first, last []byte // keys
}

// build makes all tables.
func (l *loading) build(ctx context.Context, loaders int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan int)
	var work sync.WaitGroup
	for range min(loaders, len(l.tables)) {
		work.Go(func() {
			for i := range next {
				if err := l.table(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range l.tables {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	work.Wait()
	return context.Cause(ctx)
}

// table makes table i of its parts.
func (l *loading) table(ctx context.Context, i int) (err error) {
	t := &l.tables[i]
	t.path = l.s.fs.PathJoin(l.dir, fmt.Sprintf("%06d", i))
	f, err := l.s.fs.Create(t.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("make a table: %w", err)
	}
	// As the database itself writes what lies deepest.
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), l.s.opts.MakeWriterOptions(len(l.s.opts.Levels)-1, l.s.db.TableFormat()))
	defer func() {
		if no := w.Close(); no != nil && err == nil {
			err = fmt.Errorf("write a table: %w", no)
		}
	}()
	for p := i * tableParts; p < min((i+1)*tableParts, len(l.m.Parts)); p++ {
		raw, err := l.part(ctx, p)
		if err != nil {
			return err
		}
		rows, last, err := eachRow(raw, t.last, func(key, val []byte) error {
			if t.first == nil {
				t.first = slices.Clone(key)
			}
			if len(key) == 1 && key[0] == rowMeta {
				l.mu.Lock()
				l.meta = slices.Clone(val)
				l.mu.Unlock()
			}
			if err := w.Set(key, val); err != nil {
				return fmt.Errorf("write a table: %w", err)
			}
			return nil
		})
		if err == nil && rows != l.m.Parts[p].Rows {
			err = fmt.Errorf("%w: %d rows, the manifest says %d", ErrCheckpoint, rows, l.m.Parts[p].Rows)
		}
		if err != nil {
			return fmt.Errorf("part %d: %w", p, err)
		}
		t.last = slices.Clone(last)
	}
	return nil
}

// part fetches a part and holds it to the manifest.
func (l *loading) part(ctx context.Context, i int) ([]byte, error) {
	for reads := 1; ; reads++ {
		raw, err := l.get(ctx, i)
		if err != nil {
			return nil, fmt.Errorf("part %d: %w", i, err)
		}
		if err = l.m.Parts[i].Check(raw); err == nil {
			return raw, nil
		}
		if reads == partReads {
			return nil, fmt.Errorf("part %d: %w", i, err)
		}
	}
}
