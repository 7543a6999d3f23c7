package journal

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// pending is a segment from its first record to its acknowledgement.
type pending struct {
	b     *segment.Builder
	layer *view.Layer // what its records changed
	born  time.Time   // of the first record, by the clock
	first int64       // journal time of the first record, ms
	last  int64       // of the last
	end   view.End    // what it holds
	lent  bool        // it takes the place that was lent to whoever made it

	// Set by seal.
	pos           segment.Position
	sealed        segment.Sealed
	beforeDurable <-chan struct{} // durable of the segment before it
	beforeAcked   <-chan struct{} // acked of the segment before it

	calls sync.WaitGroup // to the bucket, that read sealed.Body

	durable chan struct{} // closed when it and every segment before it are in the bucket
	acked   chan struct{} // closed when it is acknowledged
}

// full reports whether p is to be sealed: it has its size, or has changed so many rows of the view that
// keeping them in memory costs more than its blocks.
func (p *pending) full() bool { return p.b.Size() >= segment.Target || p.layer.Size() >= maxRows }

func (j *Journal) newPending() *pending {
	p := &pending{layer: view.NewLayer(nil), durable: make(chan struct{}), acked: make(chan struct{})}
	if n := len(j.free); n > 0 {
		p.b, j.free = j.free[n-1], j.free[:n-1]
		p.b.Reset()
	} else {
		p.b = segment.NewBuilder(j.cfg.Cell)
	}
	return p
}

// Tx collects what one call of Append adds. It is valid only inside that call.
type Tx struct {
	j     *Journal // nil when Append is over
	layer *view.Layer
	now   int64
	size  int      // of the segment when it began
	n     int      // records
	end   view.End // what they put into the segment
	// opened is the sessions whose open records are in it.
	opened map[holdfast.SessionID]sessionStart
}

func (t *Tx) open() *pending {
	if t.j == nil {
		panic("journal: a Tx was used after its Append")
	}
	return t.j.cur
}

// Now returns the journal time of everything in this transaction, ms since 1970. A history entry that
// the caller stamps itself must carry exactly Now()*1e6 as its time; History does that.
func (t *Tx) Now() int64 { return t.now }

// Reader returns the view with everything sequenced before and in this transaction.
func (t *Tx) Reader() view.Reader { return view.NewReader(t.layer) }

// Stored adds a sealed block. It returns view.ErrDuplicate for a block that the group has already, a
// *view.MissingError, or view.ErrNoSession; after those errors the transaction can go on without it.
func (t *Tx) Stored(sid holdfast.SessionID, name holdfast.Name, kind holdfast.Kind, links []holdfast.Name, sealed []byte) error {
	p := t.open()
	// Apply will say the same, but only after the bytes were hashed and copied.
	s, ok, err := t.Reader().Session(sid)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: %s", view.ErrNoSession, sid)
	}
	if b, ok, err := t.Reader().Present(s.Vault, s.Group, name); err != nil {
		return err
	} else if ok && b.Promised(t.now) {
		return fmt.Errorf("block %s: %w", name, view.ErrDuplicate)
	}
	if len(sealed) > holdfast.MaxBlock {
		return fmt.Errorf("block %s: %w: %d bytes", name, ErrTooLarge, len(sealed))
	}
	if p.b.Size()-t.size+len(sealed)+32*len(links) > maxAppend {
		return ErrTooLarge
	}
	rec := segment.Stored{Session: sid, Name: name, Kind: kind, Len: uint32(len(sealed)), Sum: segment.SumOf(sealed), Links: links}
	base, of, err := t.Reader().Like(s.Vault, s.Group, links)
	if err != nil {
		return err
	}
	if len(of) > 0 {
		rec = rec.By(base, of)
	}
	m := p.b.Mark()
	rec.Off = p.b.AddBlock(sealed)
	err = t.Record(rec)
	if err != nil {
		p.b.Undo(m)
	}
	return err
}

// Record adds a record other than Stored; a refusal (see view.Apply) leaves the transaction as it was.
// What is refused here never reaches the journal, and what is accepted here replay accepts, because both
// ask the same function in the same order (JOURNAL 1).
func (t *Tx) Record(rec segment.Record) error {
	p := t.open()
	if d, err := deletes(rec); err != nil {
		return err
	} else if d {
		if err := t.j.mayDelete(t.now); err != nil {
			return err
		}
	}
	m := p.b.Mark()
	if err := p.b.AddRecord(t.now, rec); err != nil {
		return err
	}
	if p.b.Size()-t.size > maxAppend {
		p.b.Undo(m)
		return ErrTooLarge
	}
	if err := view.Apply(t.layer, t.j.pos.Next(), t.now, rec, t.j.logPub); err != nil {
		p.b.Undo(m)
		return err
	}
	t.n++
	t.end.Add(rec)
	return nil
}

// History stamps r as the next record of its vault, adds it and returns the entry. For a genesis record
// the vault is the record's ID. It returns view.ErrDuplicate if the record is there already (see
// view.Reader.Record), a *history.StaleError, or another refusal of view.Apply.
func (t *Tx) History(r history.Record) (history.Entry, error) {
	t.open()
	body, err := history.ParseBody(r.Body)
	if err != nil {
		return history.Entry{}, err
	}
	vault := body.Vault
	if body.Type == history.TypeGenesis {
		vault = holdfast.VaultID(r.ID())
	}
	v, _, err := t.Reader().Vault(vault)
	if err != nil {
		return history.Entry{}, err
	}
	e := history.Stamp(vault, v.N+1, v.Head, t.now*1e6, r, t.j.cfg.LogKey)
	if err := t.Record(segment.History{Vault: vault, Entry: e}); err != nil {
		return history.Entry{}, err
	}
	if body.Type == history.TypeOpen {
		o, err := history.ParseOpen(body.Fields)
		if err != nil {
			return history.Entry{}, err
		}
		if t.opened == nil {
			t.opened = map[holdfast.SessionID]sessionStart{}
		}
		t.opened[o.Session] = sessionStart{vault, t.now}
	}
	return e, nil
}

// Ticket stands for the durability of what an Append added, and of everything that it could see.
type Ticket struct {
	j     *Journal
	acked chan struct{}
}

// Wait returns nil once everything is acknowledged (JOURNAL 3), or an error that wraps ErrStopped or
// is that of ctx. After an error it is unknown whether it is durable.
func (t *Ticket) Wait(ctx context.Context) error {
	select {
	case <-t.acked:
		return nil
	case <-ctx.Done():
	case <-t.j.stopped:
	}
	select {
	case <-t.acked:
		return nil
	default:
	}
	if err := t.j.Err(); err != nil {
		return err
	}
	return ctx.Err()
}

// Done is closed once everything is acknowledged; it stays open if the journal stops before.
func (t *Ticket) Done() <-chan struct{} { return t.acked }

// closed is what a ticket waits for when nothing is pending.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// ticket returns a ticket for everything sequenced. mu is held.
func (j *Journal) ticket() *Ticket {
	t := &Ticket{j, closed}
	if n := len(j.queue); n > 0 {
		t.acked = j.queue[n-1].acked
	}
	if j.cur.b.Records() > 0 {
		t.acked = j.cur.acked
	}
	return t
}

// Appender is what Durably needs of a Journal.
type Appender interface {
	Append(ctx context.Context, fn func(tx *Tx) error) (*Ticket, error)
	Flush()
}

// Durably appends what fn adds, and returns once that is acknowledged. Its error is that of Append or of Ticket.Wait.
func Durably(ctx context.Context, j Appender, fn func(tx *Tx) error) error {
	t, err := j.Append(ctx, fn)
	if err != nil {
		return err
	}
	j.Flush()
	return t.Wait(ctx)
}

// Append runs fn alone in the sequencer (JOURNAL 1) and adds what it adds to its Tx, all of it or, if fn
// returns an error, nothing. fn must be quick and must not call the journal. Append waits while too much is
// pending. Its error is that of fn, of ctx, or wraps ErrStopped.
func (j *Journal) Append(ctx context.Context, fn func(tx *Tx) error) (*Ticket, error) {
	if err := j.lockForAppend(ctx); err != nil {
		return nil, err
	}
	defer j.mu.Unlock()
	if err := j.add(fn); err != nil {
		return nil, err
	}
	t := j.ticket()
	j.maybeSeal()
	return t, nil
}

// add is Append with mu held and room in cur.
func (j *Journal) add(fn func(tx *Tx) error) error {
	p := j.cur
	// Journal time never runs backwards, whatever the clock does (JOURNAL 14).
	tx := &Tx{j: j, layer: view.NewLayer(j.overlay), now: max(j.time, j.now()), size: p.b.Size()}
	mark, kept := p.b.Mark(), false
	defer func() { // also when fn panics
		tx.j = nil
		if !kept {
			p.b.Undo(mark)
		}
	}()
	if err := fn(tx); err != nil {
		if errors.Is(err, view.ErrDamaged) { // nobody changes a row meanwhile
			impossible(view.Damaged(err))
		}
		return err
	}
	kept = true
	if tx.n > 0 {
		if p.b.Records() == tx.n {
			p.born, p.first = time.Now(), tx.now
		}
		p.last, j.time = tx.now, tx.now
		p.end.Plus(tx.end)
		maps.Copy(j.open, tx.opened)
		j.overlay.Add(tx.layer, p.layer)
	}
	return nil
}

// lockForAppend returns with mu held when there is room in cur.
func (j *Journal) lockForAppend(ctx context.Context) error {
	for {
		j.mu.Lock()
		room, err := j.room, j.err
		switch {
		case err != nil:
		case j.closing:
			err = fmt.Errorf("%w: %w", ErrStopped, ErrClosed)
		case !j.cur.full() && !j.reserved:
			return nil
		}
		j.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-room:
		case <-j.stopped:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Flush makes what was appended durable soon instead of after a few seconds: at once, but at most once in
// 250 ms (JOURNAL 15). It does not wait.
func (j *Journal) Flush() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.wanted = j.cur.b.Records() > 0
	j.maybeSeal()
}

// tick is called by the timer.
func (j *Journal) tick() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.maybeSeal()
}

// maybeSeal seals cur if it is time for that and not too much is pending (the next acknowledgement asks
// again), or else sets the timer. mu is held.
func (j *Journal) maybeSeal() {
	most := maxPending
	if j.borrowing && !j.closing {
		most-- // the next place is for who waits to borrow it
	}
	if j.err != nil || j.cur.b.Records() == 0 || j.held >= most {
		return
	}
	now := time.Now()
	due := j.cur.born.Add(maxAge)
	if flush := j.lastFlush.Add(flushEvery); j.wanted && flush.Before(due) {
		due = flush
	}
	if !j.cur.full() && !j.reserved && now.Before(due) && !j.closing {
		j.timer.Reset(due.Sub(now))
		return
	}
	if j.wanted {
		j.wanted, j.lastFlush = false, now
	}
	j.seal()
}

// seal fixes the bytes of cur for ever and starts its commit. mu is held.
//
// Position, previous hash and content are sealed once (JOURNAL 6): every attempt to store the segment
// stores these bytes, under a key that differs in its nonce only.
func (j *Journal) seal() {
	p := j.cur
	p.pos = j.pos.Next()
	p.sealed = p.b.Seal(p.pos, j.prev)
	end := view.NewLayer(j.overlay)
	p.end.Key, p.end.Prev, p.end.Size = p.sealed.Key(j.cfg.Cell, p.pos, [8]byte{}), j.prev, int64(len(p.sealed.Body))
	p.end.First, p.end.Last = p.first, p.last
	err := view.EndSegment(end, p.end)
	if err != nil {
		// Only the view's own disk can have failed: what EndSegment refuses is not built here.
		j.stopLocked(fmt.Errorf("seal segment %s: %w", p.pos, err))
		return
	}
	j.overlay.Add(end, p.layer)
	p.beforeDurable, p.beforeAcked = closed, closed
	if n := len(j.queue); n > 0 {
		p.beforeDurable, p.beforeAcked = j.queue[n-1].durable, j.queue[n-1].acked
	}
	j.queue = append(j.queue, p)
	if !p.lent {
		j.held++
	}
	j.pos, j.prev = p.pos, p.sealed.Hash
	j.cur = j.newPending()
	j.makeRoom()
	j.work.Add(1)
	go j.commit(p)
}

// makeRoom wakes those who wait for room in cur. mu is held.
func (j *Journal) makeRoom() {
	close(j.room)
	j.room = make(chan struct{})
}
