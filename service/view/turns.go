package view

import (
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// turns lets a database merge its tables, as many at a time as it likes, once it is open. The scheduler that the database
// brings lets it begin while it is being opened, and opening waits for what was begun: a start that leaves much to be merged
// would wait for a fifth of its time. That one also looks ten times a second whether there is more to do; here it is told.
// It serves one database, from pebble.Open to its Close.
type turns struct {
	opened *atomic.Bool
	db     pebble.DBForCompaction

	mu      sync.Mutex
	running int  // merges
	giving  bool // give runs
	poked   bool // there may be more to do than when it looked
	closed  bool
	gave    sync.WaitGroup
}

var _ pebble.CompactionScheduler = (*turns)(nil)

// Register is called once, by a database that is being opened.
func (t *turns) Register(_ int, db pebble.DBForCompaction) { t.db = db }

// Unregister is called once, by a database that is being closed. After it no turn is given.
func (t *turns) Unregister() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.gave.Wait()
}

// TrySchedule is called when there is something to merge. If there is no turn, the database remembers that it waits.
func (t *turns) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	if !t.take() {
		return false, nil
	}
	return true, t
}

// take takes a turn if there is one.
func (t *turns) take() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || !t.opened.Load() || t.running >= t.db.GetAllowedWithoutPermission() {
		return false
	}
	t.running++
	return true
}

// Done is called when a merge has ended.
func (t *turns) Done() {
	t.back()
	t.UpdateGetAllowedWithoutPermission()
}

func (t *turns) back() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running--
}

// UpdateGetAllowedWithoutPermission is called when there may be more turns than before: tables were added, or the database is
// open. The caller may hold locks of the database.
func (t *turns) UpdateGetAllowedWithoutPermission() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.poked = true
	if t.giving || t.closed {
		return
	}
	t.giving = true
	t.gave.Go(t.give)
}

// give gives turns to merges that wait for one. It holds no lock while it asks: the database takes its own.
func (t *turns) give() {
	for t.more() {
		for t.take() {
			if waiting, _ := t.db.GetWaitingCompaction(); !waiting || !t.db.Schedule(t) {
				t.back()
				break
			}
		}
	}
}

// more reports whether give is to look once more.
func (t *turns) more() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.giving = t.poked && !t.closed
	t.poked = false
	return t.giving
}

// Started, MeasureCPU and CumulativeStats are told of a merge that has a turn.
func (t *turns) Started()                                          {}
func (t *turns) MeasureCPU(pebble.CompactionGoroutineKind)         {}
func (t *turns) CumulativeStats(pebble.CompactionGrantHandleStats) {}
