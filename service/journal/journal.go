// Package journal appends to the one journal of a cell, makes it durable in the bucket and recovers it.
package journal

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// Config says which journal, where.
type Config struct {
	Bucket   bucket.Bucket
	Cell     holdfast.CellID
	Host     [16]byte // random, of the data directory: who may claim the cell again without Takeover
	Takeover bool     // claim the cell although another host owns it
	Dir      string   // of the view; made if absent; "" keeps the view in memory
	LogKey   ed25519.PrivateKey
	Log      *slog.Logger // nil discards
	// Store, if set, is used as the view instead of opening Dir. Close closes it.
	Store *view.Store
}

// Errors that a caller acts on.
var (
	// ErrStopped is wrapped by everything after the journal stopped, with the cause: nothing more will be
	// acknowledged until the process starts anew.
	ErrStopped = errors.New("the journal has stopped")
	// ErrLost reports that another process owns the cell now. It is final (JOURNAL 5).
	ErrLost = errors.New("another process has taken this cell over")
	// ErrOwned reports that the cell belongs to another host and Config.Takeover is not set.
	ErrOwned = errors.New("the cell belongs to another host")
	// ErrDamaged reports bytes in the bucket that fail their checksum twice.
	ErrDamaged = errors.New("damaged in the bucket")
	// ErrTooLarge reports a call of Append that adds more than one segment can take.
	ErrTooLarge = errors.New("too much for one append")
)

// Journal is an open journal. It is safe for concurrent use.
type Journal struct{}

// Info says what Open did.
type Info struct {
	Epoch    uint64
	Replayed int           // segments
	Records  int           // in them
	Rebuilt  bool          // the view was absent or of no use and was made anew
	Duration time.Duration // from the beginning of Open
}

// Open claims the cell, recovers the view and returns a journal that accepts records.
func Open(ctx context.Context, cfg Config) (*Journal, error) { panic("not yet") }

// Info says what Open did.
func (j *Journal) Info() Info { panic("not yet") }

// Tx collects what one call of Append adds. It is valid only inside that call.
type Tx struct{}

// Now returns the journal time of everything in this transaction, ms since 1970. A history entry that
// the caller stamps itself must carry exactly Now()*1e6 as its time; History does that.
func (t *Tx) Now() int64 { panic("not yet") }

// Reader returns the view with everything sequenced before and in this transaction.
func (t *Tx) Reader() view.Reader { panic("not yet") }

// Stored adds a sealed block. It returns view.ErrDuplicate for a block that the group has already, a
// *view.MissingError, or view.ErrNoSession; after those errors the transaction can go on without it.
func (t *Tx) Stored(sid holdfast.SessionID, name holdfast.Name, kind holdfast.Kind, links []holdfast.Name, sealed []byte) error {
	panic("not yet")
}

// Record adds a record; a refusal (see view.Apply) leaves the transaction as it was.
func (t *Tx) Record(rec segment.Record) error { panic("not yet") }

// History stamps r as the next record of its vault, adds it and returns the entry. For a genesis record
// the vault is the record's ID. It returns view.ErrDuplicate if the record is there already (see
// view.Reader.Record), a *history.StaleError, or another refusal of view.Apply.
func (t *Tx) History(r history.Record) (history.Entry, error) { panic("not yet") }

// Ticket stands for the durability of what an Append added, and of everything that it could see.
type Ticket struct{}

// Wait returns nil once everything is acknowledged (JOURNAL 3), or an error that wraps ErrStopped or
// is that of ctx. After an error it is unknown whether it is durable.
func (t *Ticket) Wait(ctx context.Context) error { panic("not yet") }

// Done is closed once everything is acknowledged; it stays open if the journal stops before.
func (t *Ticket) Done() <-chan struct{} { panic("not yet") }

// Append runs fn alone in the sequencer and adds what it adds to its Tx, all of it or, if fn returns an
// error, nothing. fn must be quick and must not call the journal. It waits while too much is pending. Its
// error is that of fn, of ctx, or wraps ErrStopped.
func (j *Journal) Append(ctx context.Context, fn func(tx *Tx) error) (*Ticket, error) {
	panic("not yet")
}

// Flush makes what was appended durable soon instead of after a few seconds: at once, but at most once in
// 250 ms. It does not wait.
func (j *Journal) Flush() { panic("not yet") }

// Acked returns the view of acknowledged segments.
func (j *Journal) Acked() view.Reader { panic("not yet") }

// Sequenced calls fn with the view of everything appended, acknowledged or not. fn must be quick and
// must neither keep the Reader nor call the journal.
func (j *Journal) Sequenced(fn func(view.Reader) error) error { panic("not yet") }

// ReadBlock returns the sealed bytes of an acknowledged block. It verifies the checksum and reads once
// more before it returns an error that wraps ErrDamaged.
func (j *Journal) ReadBlock(ctx context.Context, b view.Block) ([]byte, error) { panic("not yet") }

// Read is the result of reading one block.
type Read struct {
	Sealed []byte
	Err    error
}

// ReadBlocks reads blocks of one segment, ascending by Off, with one request that spans all of them; the
// caller chooses them so that the span, gaps included, is what it wants to hold. One result a block, with
// errors as ReadBlock's. It panics if the blocks are of different segments or not in order.
func (j *Journal) ReadBlocks(ctx context.Context, blocks []view.Block) []Read { panic("not yet") }

// Position returns the newest acknowledged segment.
func (j *Journal) Position() segment.Position { panic("not yet") }

// Digest returns the hash of all journal-derived rows of the acknowledged view, and its position.
func (j *Journal) Digest(ctx context.Context) ([32]byte, segment.Position, error) { panic("not yet") }

// Stopped is closed when the journal stops by itself; Err says why.
func (j *Journal) Stopped() <-chan struct{} { panic("not yet") }

// Err returns why the journal stopped, or nil.
func (j *Journal) Err() error { panic("not yet") }

// Close flushes, waits until everything is acknowledged or ctx ends, and stops.
func (j *Journal) Close(ctx context.Context) error { panic("not yet") }

// Report is what Rebuild and Check found.
type Report struct {
	Position segment.Position
	Digest   [32]byte
	Segments int
	Records  int
	Blocks   int   // whose checksum was verified
	Bytes    int64 // of them
	Duration time.Duration
}

// Rebuild makes the view in cfg.Dir anew from the bucket, without claiming the cell.
func Rebuild(ctx context.Context, cfg Config) (Report, error) { panic("not yet") }

// Check compares the view in cfg.Dir with one rebuilt from the bucket and verifies the checksum of every
// block; no Journal may be open on that view. progress, unless nil, is called with bytes read so far. The
// error wraps ErrDamaged if something is wrong and names the first such thing.
func Check(ctx context.Context, cfg Config, progress func(done, total int64)) (Report, error) {
	panic("not yet")
}
