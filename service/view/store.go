package view

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	iofs "io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"holdfast"
	"holdfast/internal/never"
	"holdfast/service/segment"
)

// What the database may use of memory, bytes.
const (
	cacheSize    = 32 << 20
	memTableSize = 8 << 20
	memTables    = 3
	openFiles    = 256
	merges       = 2
)

// Reserve is what the view needs of its disk to go on deleting when nothing else is taken any more, bytes: what is in
// memory goes to a log, then to a table while the log is still there, and tables are merged.
const Reserve = 64 << 20

// Store keeps the rows of acknowledged segments (JOURNAL 10) in an embedded database. It is safe for
// concurrent use, except that there is one caller of Commit and Clear.
//
// A Commit is atomic and comes after all earlier ones, but is not synced: the view is derived, so that a
// power cut may take it back to an earlier segment, from where recovery replays. It never is ahead.
type Store struct {
	dir string
	// opened says whether damage is an event that must never happen: while the database is being opened, one that
	// is damaged is only of no use.
	opened *atomic.Bool
	mu     sync.RWMutex // held for reading by whoever uses db
	closed bool
	cache  *pebble.Cache
	db     *pebble.DB
	fs     vfs.FS
	opts   *pebble.Options        // as db has them
	fresh  func() *pebble.Options // makes them

	snapMu sync.Mutex
	snaps  map[*Snapshot]struct{} // open ones
	// hints is held while rows are committed, and while a hint is compared with its row.
	hints sync.Mutex
}

// ErrClosed reports the use of a Store after its Close.
var ErrClosed = errors.New("the view is closed")

// Open opens the store in dir, which is made if it is absent. The error wraps ErrDamaged if what is in dir
// is of no use and should be removed.
func Open(dir string) (*Store, error) { return open(guarded(vfs.Default, dir), dir) }

// guarded makes an error of a write to dir an event that must never happen, at the place where it is met: the database
// would go on, or panic, with rows that no longer follow the journal. What was asked for is tried once more if a test
// caught the event. Crash: as a kill; the next start replays from the bucket.
//
// So is an error of listing dir, once files are made there: the database is at work behind its opening by then, and
// would take away from itself what it works with.
func guarded(fs vfs.FS, dir string) vfs.FS {
	var working atomic.Bool
	return &opsFS{fs, func(op DiskOp, do func() error) error {
		err := do()
		if op.Name == "create" {
			working.Store(true)
		}
		if err == nil || !op.Write && (op.Name != "list" || !working.Load()) || slices.ContainsFunc(ordered, func(e error) bool { return errors.Is(err, e) }) {
			return err
		}
		what := err
		if !strings.Contains(err.Error(), op.Path) {
			what = fmt.Errorf("%s %s: %w", op.Name, op.Path, err)
		}
		never.Happened(cannotWrite(dir, what))
		return do()
	}}
}

// ordered are errors that say how things are named and who may do what, and nothing of the disk.
var ordered = []error{iofs.ErrNotExist, iofs.ErrExist, iofs.ErrPermission, syscall.ENOTDIR}

// cannotWrite is the event of an error on the view's disk.
func cannotWrite(dir string, err error) never.Event {
	e := never.Event{
		What:      err.Error(),
		Where:     "the view, in " + dir,
		Invariant: "The disk of the data directory takes what is written to the view: it has the rows of each segment before the next is acknowledged.",
		Todo: "Look at the disk of the data directory: its file system, the kernel's log, its cables. When it is sound, or replaced, make the view anew " +
			"from the bucket with holdfastd rebuild, which loses nothing; then holdfastd resume.",
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		e.Todo = "Make room on the disk of the data directory; holdfastd why names what may be deleted there. Then holdfastd resume, and start the service."
	}
	return e
}

// Damaged is the event of an error that wraps ErrDamaged, met while the service runs.
func Damaged(err error) never.Event {
	e := contradictory("the data directory", err.Error())
	e.Invariant = "The rows of the view agree with one another: what is counted or referred to is there."
	return e
}

// contradictory is the event of a view that is not what was written.
func contradictory(dir, what string) never.Event {
	return never.Event{
		What:      what,
		Where:     "the view, in " + dir,
		Invariant: "What is read from the view is what was written to it.",
		Todo: "Suspect the disk of the data directory, and the machine's memory. When they are sound, make the view anew from the bucket with holdfastd rebuild, " +
			"which loses nothing; then holdfastd resume.",
	}
}

// OpenMem returns an empty store in memory.
func OpenMem() (*Store, error) { return open(vfs.NewMem(), "view") }

func open(fs vfs.FS, dir string, set ...func(*pebble.Options)) (s *Store, err error) {
	cache := pebble.NewCache(cacheSize)
	var db *pebble.DB
	var opened atomic.Bool
	defer func() {
		if e := recover(); e != nil {
			bad, ok := e.(unusable)
			if !ok {
				panic(e)
			}
			if db != nil {
				db.Close()
			}
			cache.Unref()
			s, err = nil, fmt.Errorf("open view %s: %w: %s", dir, ErrDamaged, bad)
		}
	}()
	fresh := func() *pebble.Options {
		opts := &pebble.Options{
			Cache:              cache,
			FS:                 fs,
			FormatMajorVersion: pebble.FormatNewest,
			Logger:             logger{dir, &opened},
			EventListener: &pebble.EventListener{BackgroundError: func(err error) {
				if opened.Load() {
					never.Happened(contradictory(dir, fmt.Sprintf("the database cannot tidy up: %v", err)))
				}
			}},
			MaxOpenFiles:                openFiles,
			MemTableSize:                memTableSize,
			MemTableStopWritesThreshold: memTables,
			// More than one when many tables wait for it.
			CompactionConcurrencyRange: func() (int, int) { return 1, merges },
		}
		opts.Experimental.CompactionScheduler = &turns{opened: &opened}
		for i := range opts.Levels {
			// Most look-ups during a backup are for blocks that are not there.
			opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		}
		for _, fn := range set {
			fn(opts)
		}
		opts.EnsureDefaults()
		return opts
	}
	opts := fresh()
	if db, err = pebble.Open(dir, opts); err != nil {
		cache.Unref()
		// An error of the operating system (no permission, no space, locked by another process) says nothing
		// about the rows; a file that should be there and is not does.
		var no syscall.Errno
		if errors.As(err, &no) && no != syscall.ENOENT {
			return nil, fmt.Errorf("open view %s: %w", dir, err)
		}
		return nil, fmt.Errorf("open view %s: %w: %w", dir, ErrDamaged, err)
	}
	s = &Store{dir: dir, opened: &opened, cache: cache, db: db, fs: fs, opts: opts, fresh: fresh}
	_, _, err = loadMeta(s)
	if left := fs.PathJoin(dir, incoming); err == nil { // of a checkpoint that was being taken in
		if _, no := fs.Stat(left); no == nil {
			err = fs.RemoveAll(left)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open view %s: %w", dir, err), s.Close())
	}
	s.ready()
	return s, nil
}

// ready says that the database is open.
func (s *Store) ready() {
	s.opened.Store(true)
	s.opts.Experimental.CompactionScheduler.UpdateGetAllowedWithoutPermission()
}

// logger is deaf to the database's chatter. What the database calls fatal is an event that must never happen: going on
// would answer from rows that no longer follow the journal.
type logger struct {
	dir    string
	opened *atomic.Bool
}

// unusable is what the database calls fatal while it is being opened.
type unusable string

func (logger) Infof(string, ...any)  {}
func (logger) Errorf(string, ...any) {}

func (l logger) Fatalf(format string, a ...any) {
	what := fmt.Sprintf(format, a...)
	if !l.opened.Load() {
		panic(unusable(what))
	}
	never.Happened(contradictory(l.dir, what))
}

// failed is the error of reading or writing the database. No caller can do anything about it: it is an event that must
// never happen.
func (s *Store) failed(doing string, err error) error {
	if !s.opened.Load() {
		return fmt.Errorf("%s: %w: %w", doing, ErrDamaged, err)
	}
	never.Happened(contradictory(s.dir, fmt.Sprintf("%s: %v", doing, err)))
	return fmt.Errorf("%s: %w", doing, err)
}

// Close releases the store. Readers over it fail with ErrClosed from then on.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	for p := range s.snaps {
		p.release()
	}
	s.closed = true
	err := s.db.Close()
	s.cache.Unref()
	if err != nil {
		return fmt.Errorf("close view: %w", err)
	}
	return nil
}

// Get is part of Getter.
func (s *Store) Get(key []byte) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	v, closer, err := s.db.Get(key)
	if err == pebble.ErrNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, s.failed("read view", err)
	}
	out := slices.Clone(v)
	if err := closer.Close(); err != nil {
		return nil, s.failed("read view", err)
	}
	return out, nil
}

// Position returns the cell, the newest segment and its hash; all zero before the first.
func (s *Store) Position() (holdfast.CellID, segment.Position, [32]byte, error) {
	m, _, err := loadMeta(s)
	return m.cell, m.pos, m.hash, err
}

// commit commits b. The database panics where it cannot write its log.
func commit(b *pebble.Batch) (err error) {
	defer func() {
		if e := recover(); e != nil {
			err = fmt.Errorf("the database gave up: %v", e)
		}
	}()
	return b.Commit(pebble.NoSync)
}

// Commit writes what the layer changed, all of it or nothing.
func (s *Store) Commit(l *Layer) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	s.hints.Lock()
	defer s.hints.Unlock()
	b := s.db.NewBatchWithSize(l.size + 16*len(l.rows))
	defer b.Close()
	for k, v := range l.rows {
		var err error
		if v == nil {
			err = b.Delete([]byte(k), nil)
		} else {
			op := b.SetDeferred(len(k), len(v))
			copy(op.Key, k)
			copy(op.Value, v)
			err = op.Finish()
		}
		if err == nil {
			err = hints(k, v, func(h, v []byte) error {
				if v == nil {
					return b.Delete(h, nil)
				}
				return b.Set(h, v, nil)
			})
		}
		if err != nil {
			return fmt.Errorf("write view: %w", err)
		}
	}
	if err := commit(b); err != nil {
		return s.failed("write view", err)
	}
	return nil
}

// Clear removes all rows.
func (s *Store) Clear() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if err := s.db.DeleteRange([]byte{0}, []byte{0xff}, pebble.Sync); err != nil {
		return s.failed("clear view", err)
	}
	return nil
}

// Accounts returns at most max accounts in the order of their names, the first of them the one after the name after.
func (s *Store) Accounts(after string, max int) ([]Account, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	// The smallest key after that of a name is the same with a zero byte.
	from := key(rowAccountName, []byte(after), []byte{0})
	if after == "" {
		from = []byte{rowAccountName}
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: []byte{rowAccountName + 1}})
	if err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	var all []Account
	for ok := it.First(); ok && len(all) < max; ok = it.Next() {
		a := Account{Name: string(it.Key()[1:])}
		if copy(a.ID[:], it.Value()) != len(a.ID) {
			err = fmt.Errorf("account %q: %w", a.Name, ErrDamaged)
		}
		all = append(all, a)
	}
	if no := it.Close(); no != nil {
		return nil, s.failed("list accounts", no)
	}
	if err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	return all, nil
}

// Digest returns SHA-256 over every row that is a function of the journal, in order of their keys: u32
// length and key, u32 length and value. Two views of one prefix of one journal have the same digest,
// however they were made (JOURNAL 13). It also returns the position of the rows that it hashed.
func (s *Store) Digest(ctx context.Context) ([32]byte, segment.Position, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return [32]byte{}, segment.Position{}, ErrClosed
	}
	return s.digest(ctx, s.db)
}

// digest is Digest of the rows that db shows. mu is held.
func (s *Store) digest(ctx context.Context, db pebble.Reader) ([32]byte, segment.Position, error) {
	// An iterator sees the rows of one moment, whatever is committed meanwhile.
	it, err := db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: []byte{rowLocal + 1}})
	if err != nil {
		return [32]byte{}, segment.Position{}, fmt.Errorf("digest view: %w", err)
	}
	var pos segment.Position
	h := sha256.New()
	buf := make([]byte, 0, 64<<10)
	for ok, n := it.First(), 0; ok && err == nil; ok, n = it.Next(), n+1 {
		k, v := it.Key(), it.Value()
		buf = appendRow(buf, k, v)
		if len(k) == 1 && k[0] == rowMeta {
			var m meta
			m, _, err = loadMeta(oneRow(slices.Clone(v)))
			pos = m.pos
		}
		if len(buf) > 32<<10 {
			h.Write(buf)
			buf = buf[:0]
			err = errors.Join(err, ctx.Err())
		}
	}
	h.Write(buf)
	if no := it.Close(); no != nil && ctx.Err() == nil {
		err = errors.Join(err, s.failed("digest view", no))
	}
	if err != nil {
		return [32]byte{}, segment.Position{}, fmt.Errorf("digest view: %w", err)
	}
	return [32]byte(h.Sum(nil)), pos, nil
}

// oneRow answers every Get with itself.
type oneRow []byte

func (r oneRow) Get([]byte) ([]byte, error) { return r, nil }
