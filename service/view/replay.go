package view

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast/service/segment"
)

const (
	// replayRows is the size of the changes that a Replay gathers before they are written, bytes. Two lots of them are in
	// memory.
	replayRows = 24 << 20
	// manyRecords is how many records must be coming for the database to be prepared for them.
	manyRecords = 200_000
	// replayRuns is how many lots lie beside one another in the database before they are merged into what is there, and
	// maxRuns how many at most: the next waits. What is left when it is closed is merged afterwards.
	replayRuns, maxRuns = 96, 128
	// replayParts is how many tables a lot is divided into: as many as are merged at the same time.
	replayParts = merges
	// replayBase is the size up to which all lots are merged into one level, bytes.
	replayBase = 2 << 30
)

// A Replay brings a store up to date with segments that follow its position. While the changes of some are written by
// another goroutine, the next are applied above them. It is not safe for concurrent use, and nobody else may commit to
// the store, or make a Snapshot, meanwhile.
//
// What is written is whole segments, in order; a crash leaves those before some segment, whatever else it takes.
type Replay struct {
	store  *Store
	rows   *bulk // what segments changed that are not being written yet
	below  *bulk // what is being written, or was
	done   chan error
	err    error             // of writing
	common map[string][]byte // rows for which thousands of blocks ask; nil: not there
	absent *filter           // unless nil: knows of every block row that there ever was
	work   []sortKey         // of the goroutine that writes
	bounds [][]byte          // likewise; the keys at which lots are divided, made from the first
	many   bool              // the database is prepared
	merged chan struct{}     // has something after lots were merged
	lot    int               // size of the changes that are gathered, bytes
}

// Replay begins a Replay of about that many records. Close ends it.
func (s *Store) Replay(records int64) (*Replay, error) {
	return s.replay(records, records >= manyRecords)
}

func (s *Store) replay(records int64, many bool) (*Replay, error) {
	seed := maphash.MakeSeed()
	r := &Replay{store: s, rows: newBulk(seed), below: newBulk(seed), common: map[string][]byte{}, many: many, merged: make(chan struct{}, 1), lot: replayRows}
	_, pos, _, err := s.Position()
	if err != nil {
		return nil, err
	}
	if pos == (segment.Position{}) {
		r.absent = newFilter(seed, records)
	}
	if many {
		err = s.reopen(r.prepare)
	}
	return r, err
}

// prepare makes a database take large lots of rows, which are hardly read: it keeps no log, since a lot is on disk whole
// before it is there, and merges many of them at once.
func (r *Replay) prepare(o *pebble.Options) {
	o.DisableWAL = true
	// The database begins to merge at half of that.
	o.L0CompactionThreshold = 2 * replayRuns
	o.L0StopWritesThreshold = 2 * maxRuns
	o.LBaseMaxBytes = replayBase
	o.EventListener.CompactionEnd = func(pebble.CompactionInfo) {
		select {
		case r.merged <- struct{}{}:
		default:
		}
	}
}

// Segment applies a segment as ApplySegment does. After an error, which may be one of a segment before, only Close is of
// use.
func (r *Replay) Segment(k segment.Key, size int64, t *segment.Trailer, logKey ed25519.PublicKey) error {
	if err := ApplySegment(r, k, size, t, logKey); err != nil {
		r.rows.reset() // half of it is there
		return err
	}
	if r.rows.size < r.lot {
		return nil
	}
	return r.write()
}

// Close waits until everything is written that was applied without error. Merging it goes on afterwards.
func (r *Replay) Close() error {
	err := r.write()
	if err == nil {
		err = r.wait()
	}
	if r.many {
		err = errors.Join(err, r.store.reopen(nil))
	}
	return err
}

// write begins to write what was applied, when everything before is written.
func (r *Replay) write() error {
	if err := r.wait(); err != nil {
		return err
	}
	if len(r.rows.rows) == 0 {
		return nil
	}
	r.rows.hint()
	r.rows, r.below = r.below, r.rows
	r.rows.reset()
	r.done = make(chan error, 1)
	go func() { r.done <- r.commit() }()
	return nil
}

func (r *Replay) wait() error {
	if r.done != nil {
		r.err, r.done = <-r.done, nil
	}
	return r.err
}

// maxCommon bounds the rows that a Replay remembers because each block asks for them.
const maxCommon = 4096

// isCommon says whether a row is one of those.
func isCommon(key []byte) bool { return key[0] == rowSession || key[0] == rowRevoked }

// Get is part of Rows.
func (r *Replay) Get(key []byte) ([]byte, error) {
	common := isCommon(key)
	if common {
		if v, ok := r.common[string(key)]; ok {
			return v, nil
		}
	}
	h := r.rows.hash(key)
	if r.absent != nil && key[0] == rowBlock && !r.absent.has(h) {
		return nil, nil
	}
	v, ok := r.rows.get(key, h)
	if !ok {
		v, ok = r.below.get(key, h)
	}
	if !ok {
		var err error
		if v, err = r.store.Get(key); err != nil {
			return nil, err
		}
	}
	if common {
		if len(r.common) >= maxCommon {
			clear(r.common)
		}
		r.common[string(key)] = bytes.Clone(v)
	}
	return v, nil
}

// Put is part of Rows.
func (r *Replay) Put(key, val []byte) error {
	if val == nil {
		val = []byte{}
	}
	r.put(key, val)
	return nil
}

// Delete is part of Rows.
func (r *Replay) Delete(key []byte) error {
	r.put(key, nil)
	return nil
}

func (r *Replay) put(key, val []byte) {
	if isCommon(key) {
		delete(r.common, string(key))
	}
	h := r.rows.hash(key)
	if r.absent != nil && key[0] == rowBlock {
		r.absent.add(h)
	}
	r.rows.put(key, h, val)
}

// hint adds the hints of the rows in b.
func (b *bulk) hint() {
	for n := range len(b.rows) {
		k, v := b.bytes(&b.rows[n])
		hints(k, v, func(h, v []byte) error {
			b.put(h, b.hash(h), v)
			return nil
		})
	}
}

// commit writes the rows below, all of them or nothing.
func (r *Replay) commit() error {
	s := r.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	s.hints.Lock()
	defer s.hints.Unlock()
	var err error
	if r.many {
		err = r.ingest()
	} else {
		err = r.batch()
	}
	if err != nil {
		return s.failed("write view", err)
	}
	return nil
}

func (r *Replay) batch() error {
	b := r.store.db.NewBatchWithSize(r.below.size + 16*len(r.below.rows))
	defer b.Close()
	for _, p := range r.below.sorted(&r.work) {
		var err error
		if k, v := r.below.at(p); v == nil {
			err = b.Delete(k, nil)
		} else {
			err = b.Set(k, v, nil)
		}
		if err != nil {
			return err
		}
	}
	return commit(b)
}

// ingest makes tables of the rows, divided at the same keys in every lot, so that what lies on either side can be merged at
// the same time, and has the database take all of them in, or none. Crash: before that, they lie in a
// directory of their own, which the next Open removes; afterwards they are on disk.
func (r *Replay) ingest() error {
	s := r.store
	for s.db.Metrics().Levels[0].Sublevels >= maxRuns {
		<-r.merged
	}
	dir := s.fs.PathJoin(s.dir, incoming)
	if err := s.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	rows := r.below.sorted(&r.work)
	if r.bounds == nil {
		for part := 1; part < replayParts && len(rows) >= replayParts; part++ {
			k, _ := r.below.at(rows[part*len(rows)/replayParts])
			r.bounds = append(r.bounds, bytes.Clone(k))
		}
	}
	var paths []string
	for part := range replayParts {
		n := len(rows) // of this part
		if part < len(r.bounds) {
			n, _ = slices.BinarySearchFunc(rows, r.bounds[part], func(p sortKey, bound []byte) int {
				k, _ := r.below.at(p)
				return bytes.Compare(k, bound)
			})
		}
		if n > 0 {
			path := s.fs.PathJoin(dir, fmt.Sprint("replay-", part))
			if err := r.table(path, rows[:n]); err != nil {
				return err
			}
			paths = append(paths, path)
		}
		rows = rows[n:]
	}
	err := s.db.Ingest(context.Background(), paths)
	s.opts.Experimental.CompactionScheduler.UpdateGetAllowedWithoutPermission() // which the database does not do here
	return err
}

// table makes a table of rows below, in order.
func (r *Replay) table(path string, rows []sortKey) error {
	s := r.store
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	opts := s.opts.MakeWriterOptions(0, s.db.TableFormat())
	opts.Compression = sstable.NoCompression
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), opts)
	for _, p := range rows {
		if k, v := r.below.at(p); v == nil {
			err = w.Delete(k)
		} else {
			err = w.Set(k, v)
		}
		if err != nil {
			break
		}
	}
	return errors.Join(err, w.Close())
}

// reopen opens the database again, with other options if tune is not nil. If there are more tables than it likes, it begins to
// merge them then.
func (s *Store) reopen(tune func(*pebble.Options)) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.opened.Store(false)
	defer s.opened.Store(true)
	if err := s.db.Flush(); err != nil {
		return s.failed("write view", err)
	}
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close view: %w", err)
	}
	opts := s.fresh()
	if tune != nil {
		tune(opts)
	}
	if s.db, err = pebble.Open(s.dir, opts); err != nil {
		s.closed = true
		s.cache.Unref()
		return fmt.Errorf("open view: %w", err)
	}
	s.opts = opts
	s.ready()
	return nil
}
