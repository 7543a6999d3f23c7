// Package journal appends records and blocks to the one journal of a cell, makes them durable in the
// bucket, acknowledges them, and recovers the view of them. docs/format/4-journal.md states the rules;
// where a line of code keeps one of them, its number is beside it.
//
// The life of a record: Append validates it against everything sequenced before it and puts it into the
// segment that is being filled (append.go). That segment is sealed when it is large or old enough or
// somebody waits for it; commit takes it from there to its acknowledgement and is the one function to read
// first (commit.go). Open claims the cell, finds out what the journal is, and replays it (recover.go).
package journal

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"holdfast"
	"holdfast/service/bucket"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// How long the journal gathers, and how much it has pending.
const (
	// maxAge is how long a record waits for company before its segment is sealed.
	maxAge = 5 * time.Second
	// flushEvery is the least time between two seals that somebody waits for (JOURNAL 15).
	flushEvery = 250 * time.Millisecond
	// maxPending bounds the segments that are sealed and still in memory: not acknowledged, or read by a call to the
	// bucket that another overtook. Beyond it Append waits: memory is bounded by these and the one being filled.
	maxPending = 3
	// maxPuts bounds the segments on their way to the bucket at one time, each by maxCalls calls at most.
	maxPuts = 2
	// maxRows is how much of the view a segment changes before it is sealed, bytes of keys and values: rows
	// that wait for their acknowledgement are in memory, at two to three times this.
	maxRows = 4 << 20
	// maxAppend bounds what one Append adds, in bytes; what is added to a segment below its target size then
	// always fits.
	maxAppend = 24 << 20
)

// Config says which journal, where.
type Config struct {
	Bucket   bucket.Bucket
	Cell     holdfast.CellID
	Host     [16]byte // random, of the data directory: who may claim the cell again without Takeover
	Takeover bool     // claim the cell although another host owns it
	Probe    bool     // look first whether the bucket keeps its promises (bucket.Probe); it is refused if not
	// SingleOwner says that no other process ever claims the cell: a bucket that lacks nothing but conditional writes is not refused.
	SingleOwner bool
	Create      bool   // begin the cell's journal if the bucket has none; without it that is ErrNoJournal
	Dir         string // of the view; made if absent; "" keeps the view in memory
	LogKey      ed25519.PrivateKey
	Log         *slog.Logger // nil discards
	// Progress, if set, is told at a start how many of the segments that it replays it has, each time that it gets on.
	Progress func(done, all int)
	// Store, if set, is used as the view instead of opening Dir. Close closes it.
	Store *view.Store

	// Watch is the time between two looks at the epoch object and the clocks; 0 is 30 s. More is for where time is
	// simulated and many days pass.
	Watch time.Duration

	report   bool // find the digest that Recover reports
	partSize int  // of checkpoints, bytes; 0 is view.PartSize
	behind   int  // replaces minBehind

	clock func() time.Time // what the journal's time follows; nil is time.Now. A test in which many days pass sets it: the view's timers are slow
}

// Errors that a caller acts on.
var (
	// ErrStopped is wrapped by everything after the journal stopped, with the cause: nothing more will be
	// acknowledged until the process starts anew.
	ErrStopped = errors.New("the journal has stopped")
	// ErrClosed is wrapped, beside ErrStopped, by everything after Close.
	ErrClosed = errors.New("the journal is closed")
	// ErrLost reports that another process owns the cell now. It is final (JOURNAL 5).
	ErrLost = errors.New("another process has taken this cell over")
	// ErrOwned reports that the cell belongs to another host and Config.Takeover is not set.
	ErrOwned = errors.New("the cell belongs to another host; if that one is gone for good, holdfastd serve --takeover takes the cell over")
	// ErrNoJournal reports a bucket without any trace of the cell: it is not the one in which the cell's journal
	// was begun, or was emptied. Starting anew there would hide that everything is gone.
	ErrNoJournal = errors.New("the bucket holds no journal of this service; it is not the bucket that the service was made with, or it was emptied")
	// ErrDamaged reports bytes in the bucket, or a view, that fail their checks twice.
	ErrDamaged = errors.New("damaged")
	// ErrContradiction reports that the bucket does not show what was once acknowledged, or shows two
	// contents for one thing. Nothing is written until a person has looked.
	ErrContradiction = errors.New("the bucket contradicts what was acknowledged")
	// ErrTooLarge reports a call of Append that adds more than one segment can take.
	ErrTooLarge = errors.New("too much for one append")
)

// Journal is an open journal. It is safe for concurrent use.
//
// When mu is free: overlay is the view of everything in queue and cur, in that order, above store; queue
// holds the sealed segments that are not acknowledged, oldest first, each with a commit at work; every
// record in cur was accepted by view.Apply after all of queue; pos, prev and time are those of the newest
// sealed segment (of the newest acknowledged one if queue is empty), except that time also covers cur.
type Journal struct {
	cfg    Config
	log    *slog.Logger
	logPub ed25519.PublicKey
	claim  segment.Claim // ours
	mine   []byte        // its encoding, as the epoch object must read
	store  *view.Store   // acknowledged segments only (JOURNAL 10)
	info   Info
	// table is how every epoch before ours ended, as our takeover record says; it never changes.
	table []segment.Accepted
	// What Rebuild found, before our own takeover record: it compares with what the predecessor had.
	foundDigest [32]byte
	foundPos    segment.Position

	// freeing is held by the one who bundles or removes; proven and bad are its.
	freeing chan struct{}
	proven  map[segment.BundleKey]bool // bundles that this process has read whole, at most maxProven
	bad     map[segment.BundleKey]bool // that were damaged then, likewise
	// undeleted says when a delete of a segment that was retired failed last.
	undeleted map[segment.Position]time.Time

	ctx     context.Context // ends when the journal stops
	cancel  context.CancelFunc
	trouble trouble
	work    sync.WaitGroup // commits, watch, observe
	slots   chan struct{}  // holds a token for every segment on its way
	stopped chan struct{}

	mu        sync.RWMutex
	overlay   *view.Overlay
	cur       *pending
	queue     []*pending
	pos       segment.Position
	prev      [32]byte
	time      int64 // ms
	acked     segment.Position
	wanted    bool      // somebody waits for cur
	closing   bool      // cur is sealed without regard to flushEvery; nothing is appended any more
	lastFlush time.Time // last seal that somebody waited for
	timer     *time.Timer
	room      chan struct{} // closed when cur was replaced
	reserved  bool          // the next segment is one that appendAlone makes: nothing else is added to cur
	free      []*segment.Builder
	held      int           // sealed segments in memory: queue, and those acknowledged of which calls still read; and the place that is lent
	lent      bool          // a place is, see Borrow
	borrowing bool          // somebody waits for one
	returned  chan struct{} // closed when held has become less
	err       error         // why it stopped; wraps ErrStopped
	clocks    clocks
	missing   map[segment.Position]*absence // what the bucket said it does not have
	bundledTo segment.Position              // up to which bundles hold all trailers; zero for none
	ended     []Ended
	open      map[holdfast.SessionID]sessionStart // of this process, neither ended nor forgotten
	wake      chan struct{}                       // tells watch that something is owed

	suspects suspects // has a lock of its own

	checkpoints checkpoints
}

// Info says what Open did.
type Info struct {
	Epoch    uint64
	Replayed int  // segments
	Records  int  // in them
	Rebuilt  bool // the view was absent or of no use and was made anew
	// Checkpoint is where the checkpoint stands from which the view was made, before those segments; zero if there was none to
	// be used, or no need of one.
	Checkpoint segment.Position
	Duration   time.Duration // from the beginning of Open
	// Quarantine is what the bucket showed then that is not part of the journal.
	Quarantine Quarantine
	// SingleOwner says why the bucket is used on Config.SingleOwner's word; "" if it is as it should be.
	SingleOwner string
}

// Info says what Open did.
func (j *Journal) Info() Info { return j.info }

// Open claims the cell, recovers the view and returns a journal that accepts records. Besides I/O errors it
// returns ErrOwned, ErrLost (to a claim that came after ours), ErrContradiction, ErrDamaged or bucket.ErrWeak.
func Open(ctx context.Context, cfg Config) (*Journal, error) { return open(ctx, cfg, false) }

// open is Open; fresh makes the view anew even if it is of use.
func open(ctx context.Context, cfg Config, fresh bool) (*Journal, error) {
	began := time.Now()
	j := &Journal{
		cfg: cfg, log: cfg.Log, logPub: cfg.LogKey.Public().(ed25519.PublicKey),
		slots: make(chan struct{}, maxPuts), stopped: make(chan struct{}), room: make(chan struct{}), returned: make(chan struct{}),
		open: map[holdfast.SessionID]sessionStart{}, wake: make(chan struct{}, 1), missing: map[segment.Position]*absence{},
		freeing: make(chan struct{}, 1), proven: map[segment.BundleKey]bool{}, bad: map[segment.BundleKey]bool{},
		undeleted: map[segment.Position]time.Time{},
	}
	if j.cfg.Watch == 0 {
		j.cfg.Watch = watchEvery
	}
	if j.cfg.clock == nil {
		j.cfg.clock = time.Now
	}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	j.trouble.log = j.log
	j.ctx, j.cancel = context.WithCancel(context.Background())
	ok := false
	defer func() {
		if !ok {
			j.cancel()
			if j.store != nil {
				j.store.Close()
			}
		}
	}()
	var err error
	if j.store, err = openStore(cfg, j.log); err != nil {
		return nil, err
	}

	if cfg.Probe {
		if err := j.probe(ctx); err != nil {
			return nil, err
		}
	}

	// Claim, then list, then write the takeover record (JOURNAL 4). A crash after the claim costs an epoch
	// number and nothing else: the next start claims the next.
	if err := j.claimCell(ctx); err != nil {
		return nil, fmt.Errorf("claim cell %s: %w", cfg.Cell, err)
	}
	chain, err := j.findChain(ctx)
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	// What the clocks say now goes into the takeover's own segment: after a crash behind it, nobody could tell
	// that the clock jumped (JOURNAL 14).
	j.time, j.clocks.seen = chain.time, chain.time
	if err := j.look(ctx); err != nil {
		j.log.Warn("the clocks were not compared; nothing is deleted until they are", "err", err)
	}
	takeover, err := j.takeOver(ctx, chain)
	if err != nil {
		return nil, fmt.Errorf("take over epoch %d: %w", j.claim.Epoch, err)
	}
	j.table, j.info.Quarantine = chain.table, chain.outside
	// Our takeover record is acknowledged, and with it everything that it accepts: only now the view may
	// contain the last segments of our predecessor (JOURNAL 10). A crash here is a crash at any other time.
	if err := j.catchUp(ctx, chain, takeover, fresh); err != nil {
		return nil, fmt.Errorf("replay journal: %w", err)
	}

	st, err := j.Acked().Stats()
	if err != nil {
		return nil, err
	}
	j.overlay = view.NewOverlay(j.store)
	j.pos, j.prev, j.time, j.acked = st.Position, st.Hash, st.Time, st.Position
	j.cur = j.newPending()
	j.timer = time.AfterFunc(maxAge, j.tick)
	j.info.Epoch, j.info.Duration = j.claim.Epoch, time.Since(began)
	j.log.Info("journal open", "position", j.pos, "checkpoint", j.info.Checkpoint, "replayed", j.info.Replayed, "rebuilt", j.info.Rebuilt, "took", j.info.Duration)
	if q := j.info.Quarantine; q.Count > 0 {
		j.log.Warn("objects outside the journal", "objects", q.Count, "bytes", q.Bytes)
	}
	j.bundledTo = chain.bundled()
	if err := j.unlisted(ctx, chain); err != nil {
		return nil, fmt.Errorf("look for what is live: %w", err)
	}
	for _, f := range j.freezes() {
		j.log.Error("all deleting is frozen", "reason", f.Reason, "since", time.UnixMilli(f.Since).UTC(), "found", f.Text)
	}
	ok = true
	j.work.Add(2)
	go j.watch()
	go j.observe()
	return j, nil
}

// probe looks whether the bucket keeps its promises. One without conditional writes is used if the configuration
// says that nobody else ever claims the cell. What a person must set right first is not tried again for long.
func (j *Journal) probe(ctx context.Context) error {
	ask := func(probe func(context.Context, bucket.Bucket, string) error) error {
		return persist(ctx, getPatience, probeTimeout, func(ctx context.Context) error {
			err := probe(ctx, j.cfg.Bucket, segment.CellPrefix(j.cfg.Cell))
			switch class := bucket.ClassOf(err); {
			case errors.Is(err, bucket.ErrWeak), class == bucket.ClassDenied, class == bucket.ClassConfig:
				err = final{err}
			}
			return err
		})
	}
	err := ask(bucket.Probe)
	if !errors.Is(err, bucket.ErrUnconditional) || !j.cfg.SingleOwner {
		return err
	}
	if err := ask(bucket.ProbeAlone); err != nil {
		return err
	}
	j.cfg.Bucket = bucket.Alone(j.cfg.Bucket)
	j.info.SingleOwner = err.Error()
	j.log.Error("RUNNING ON A STORE WITHOUT CONDITIONAL WRITES (--single-owner): two processes that claim this cell at the same time are not kept apart, "+
		"and one of them stops for good or the cell must be mended by hand; make sure that there is one", "found", err)
	return nil
}

// Acked returns the view of acknowledged segments.
func (j *Journal) Acked() view.Reader { return view.NewReader(j.store) }

// Sequenced calls fn with the view of everything appended, acknowledged or not. fn must be quick and
// must neither keep the Reader nor call the journal.
func (j *Journal) Sequenced(fn func(view.Reader) error) error {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return fn(view.NewReader(j.overlay))
}

// Position returns the newest acknowledged segment.
func (j *Journal) Position() segment.Position {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.acked
}

// Digest returns the hash of all journal-derived rows of the acknowledged view, and its position.
func (j *Journal) Digest(ctx context.Context) ([32]byte, segment.Position, error) {
	return j.store.Digest(ctx)
}

// Stopped is closed when the journal stops, by itself or by Close; Err says why.
func (j *Journal) Stopped() <-chan struct{} { return j.stopped }

// Err returns why the journal stopped, or nil.
func (j *Journal) Err() error {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.err
}

// stop ends the journal for good: nothing is acknowledged from here on. The first cause stays.
func (j *Journal) stop(cause error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stopLocked(cause)
}

// stopLocked is stop with mu held.
func (j *Journal) stopLocked(cause error) {
	if j.err != nil {
		return
	}
	j.err = fmt.Errorf("%w: %w", ErrStopped, cause)
	j.timer.Stop()
	j.cancel()
	close(j.stopped)
	if !errors.Is(cause, ErrClosed) {
		j.log.Error("journal stopped", "err", cause)
	}
}

// Close flushes, waits until everything is acknowledged or ctx ends, and stops. Everything that fails
// from then on wraps ErrClosed, Acked's answers included.
func (j *Journal) Close(ctx context.Context) error {
	j.mu.Lock()
	j.closing = true
	j.maybeSeal()
	t := j.ticket()
	j.mu.Unlock()
	err := t.Wait(ctx)
	if errors.Is(err, ErrClosed) {
		err = nil // closed before
	}
	j.stop(ErrClosed)
	j.work.Wait()
	return errors.Join(err, j.store.Close())
}

// random returns n random bytes' worth of b.
func random[T [8]byte | [16]byte]() (b T) {
	switch p := any(&b).(type) {
	case *[8]byte:
		rand.Read(p[:])
	case *[16]byte:
		rand.Read(p[:])
	}
	return b
}
