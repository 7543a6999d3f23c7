package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"holdfast/internal/never"
	"holdfast/service/bucket"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// How long one call to the bucket may take, and for how long it is repeated at a start before that ends. A
// dependency that hangs is worse than one that fails: every call has a deadline.
const (
	putTimeout   = 150 * time.Second // of a segment on the slowest line that package steady has patience with
	putPatience  = 5 * time.Minute
	getTimeout   = 30 * time.Second
	getPatience  = 2 * time.Minute
	listTimeout  = 60 * time.Second
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
	watchEvery   = 30 * time.Second
	// refusedPatience replaces a longer one where the bucket answers, and refuses: a person has to do something.
	refusedPatience = 10 * time.Second
	// forever is the patience of a journal that is open: what it owes to its clients is not given up because the
	// bucket is away.
	forever time.Duration = 0
)

// commit takes a sealed segment to its acknowledgement. It is all that happens, in order; several run at
// a time, one a segment. It says at each step what a crash there leaves behind.
func (j *Journal) commit(p *pending) {
	defer j.work.Done()

	// 1. Store it. Segments may land in any order, and this one may land although we are told that it
	// failed, or long after. Crash: the next owner's list shows it or does not; nobody was told anything, so
	// both are right. If it shows, and all before it, it is accepted; if one before it is missing, it is
	// outside the accepted table for ever (JOURNAL 2, 7).
	select {
	case j.slots <- struct{}{}:
	case <-j.stopped:
		return
	}
	key, err := j.put(j.ctx, forever, p.pos, p.sealed, &p.calls)
	<-j.slots
	if err != nil {
		j.stop(fmt.Errorf("store segment %s: %w", p.pos, err))
		return
	}
	// Memory that changed under us must not become what counts as kept. Crash: as before.
	if err := intact(p, key); err != nil {
		j.stop(err)
		return
	}

	// 2. Wait until every earlier segment is durable as well. Crash: as before.
	select {
	case <-p.beforeDurable:
	case <-j.stopped:
		return
	}
	close(p.durable)

	// 3. Read the epoch object; the read begins now, after everything up to here is durable (JOURNAL 3).
	// If it still names our claim, then whoever claims the cell later lists it later, and finds this segment
	// and all before it. If it does not, another owner may have listed before this segment landed: then it
	// is not part of the journal, and we must not say that it is. Crash: durable, not acknowledged, accepted
	// by the next owner.
	if err := j.confirm(j.ctx, forever); err != nil {
		j.stop(fmt.Errorf("segment %s: %w", p.pos, err))
		return
	}

	// 4. Acknowledge in order, so that the view grows by whole segments.
	select {
	case <-p.beforeAcked:
	case <-j.stopped:
		return
	}

	// 5. Add it to the view on disk, which from step 3 on may contain it (JOURNAL 10). Crash: the view has
	// all of it or nothing, and the next start replays from where the view is.
	if err := j.commitView(p, key); err != nil {
		j.stop(fmt.Errorf("add segment %s to the view: %w", p.pos, err))
		return
	}

	// 6. The commit point for everybody who waits: from here on the segment counts as kept.
	close(p.acked)

	// 7. Make room, once no call to the bucket reads the bytes any more: one that another overtook may still.
	p.calls.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	p.sealed.Body = nil
	if len(j.free)+j.held <= maxPending { // and no more than one in cur
		j.free = append(j.free, p.b)
	}
	j.giveBack()
	p.b, p.beforeDurable, p.beforeAcked = nil, nil, nil
	j.maybeSeal()
}

// commitView moves a segment's rows from the overlay to the store.
func (j *Journal) commitView(p *pending, key segment.Key) error {
	// Which nonce landed is known only now; it is a local fact and not part of the digest.
	j.mu.Lock()
	nonce := view.NewLayer(j.overlay)
	err := view.SetNonce(nonce, key)
	j.overlay.Add(nonce, p.layer)
	j.mu.Unlock()
	if err != nil {
		return err
	}
	// p.layer does not change any more; readers of the overlay see the same rows above and below.
	if err := j.store.Commit(p.layer); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.overlay.Drop(p.layer)
	j.queue = j.queue[1:]
	j.acked = p.pos
	return nil
}

const (
	maxCalls   = 3       // that store one segment at one time
	largeCalls = 2       // if it is large: a line that is slow must not be filled with the same
	large      = 1 << 20 // bytes
)

// landing is one call to the bucket that stores a segment.
type landing struct {
	key  segment.Key
	took time.Duration
	err  error
}

// put stores a sealed segment and returns the key under which it is there. Every call is made under a fresh nonce:
// stores have been seen to fail one particular request for ever. While one takes unusually long, another is made beside it,
// and the first that succeeds wins. A call that failed, or was overtaken and called off, may have been applied, or be
// applied later; since the bytes are the same, one landing more is harmless (JOURNAL 6).
//
// A call that was overtaken reads s.Body until it returns, and may do that after put has: calls counts them.
func (j *Journal) put(ctx context.Context, patience time.Duration, pos segment.Position, s segment.Sealed, calls *sync.WaitGroup) (key segment.Key, err error) {
	e := j.trouble.begin("store segment " + pos.String())
	defer func() { e.end(err == nil) }()
	ctx, overtaken := context.WithCancel(ctx)
	defer overtaken()
	most := maxCalls
	if len(s.Body) > large {
		most = largeCalls
	}
	done := make(chan landing, maxCalls)
	atWork, began, backoff := 0, time.Now(), firstBackoff
	next := time.NewTimer(0) // to when another call is begun
	defer next.Stop()
	for {
		select {
		case <-next.C:
			way := ctx
			if atWork++; atWork > 1 {
				way = bucket.Hedge(ctx)
			}
			calls.Go(func() { done <- j.land(way, pos, s) })
			if slow := j.slowAfter(len(s.Body)); slow > 0 && atWork < most {
				next.Reset(time.Duration(atWork) * slow)
			}
		case l := <-done:
			atWork--
			if l.err == nil {
				return l.key, nil
			}
			if ctx.Err() != nil {
				return key, ctx.Err()
			}
			if errors.Is(l.err, bucket.ErrClosed) {
				return key, l.err
			}
			if !errors.Is(l.err, bucket.ErrSpent) {
				e.failed(l.err)
			}
			began = began.Add(max(0, l.took-putTimeout)) // as persist
			if err := impatient(patience, began, l.err); err != nil && atWork == 0 {
				return key, err
			}
			next.Reset(jitter(backoff))
			backoff = min(2*backoff, lastBackoff)
		case <-ctx.Done():
			return key, ctx.Err()
		}
	}
}

// land is one call of put.
func (j *Journal) land(ctx context.Context, pos segment.Position, s segment.Sealed) landing {
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	key, call := s.Key(j.cfg.Cell, pos, random[[8]byte]()), time.Now()
	err := j.cfg.Bucket.Put(ctx, key.String(), s.Body)
	return landing{key, time.Since(call), err}
}

// slowAfter returns after which time a Put of so many bytes is unusually slow; 0 if nobody knows.
func (j *Journal) slowAfter(bytes int) time.Duration {
	if p, ok := j.cfg.Bucket.(bucket.Paced); ok {
		return p.SlowAfter(bucket.OpPut, int64(bytes))
	}
	return 0
}

// intact compares the memory that was stored as a segment with what its records say. If it is not that, it is not known
// what lies in the bucket, and nobody may be told that it is kept.
func intact(p *pending, key segment.Key) error {
	body := p.sealed.Body[:len(p.sealed.Body)-int(p.sealed.TrailerLen)]
	t, err := key.Parse(p.sealed.Body[len(body):], int64(len(p.sealed.Body)))
	if err == nil {
		for b := range t.Blocks() {
			if segment.SumOf(body[b.Off:][:b.Len]) != b.Sum {
				err = fmt.Errorf("block %s at %d has another checksum", b.Name, b.Off)
				break
			}
		}
	}
	if err == nil {
		return nil
	}
	return impossible(never.Event{
		What:      fmt.Sprintf("the memory that holds segment %s changed after it was sealed: %v", p.pos, err),
		Where:     "object " + key.String(),
		Invariant: "the bytes of a segment are fixed when it is sealed (JOURNAL 6)",
		Todo:      "Suspect this machine's memory: test it, or bring the service back on another machine with holdfastd recover. Nobody was told that this segment is kept; clients send again what was in it.",
	})
}

// impossible stops the process. Where a test does not let it, it returns the event as an error.
func impossible(e never.Event) error {
	never.Happened(e)
	return errors.New(e.String())
}

// agreed is how many reads in a row must show the same other claim before ours is lost. The object has no check sum: two
// reads of many thousands, each with a bit flipped, come to agree.
const agreed = 3

// confirm reads the epoch object and returns nil if it names our claim. It returns ErrLost once some reads
// agreed on another claim, so that flipped bits do not end the process.
func (j *Journal) confirm(ctx context.Context, patience time.Duration) (err error) {
	e := j.trouble.begin("read the epoch object")
	defer func() { e.end(err == nil) }()
	var other []byte
	reads := 0 // that showed other
	return persist(ctx, patience, getTimeout, func(ctx context.Context) (err error) {
		defer func() {
			if err != nil {
				e.failed(err)
			}
		}()
		raw, err := j.cfg.Bucket.Get(ctx, segment.EpochKey(j.cfg.Cell), 0, -1)
		if err != nil {
			return err
		}
		if bytes.Equal(raw, j.mine) {
			return nil
		}
		c, err := segment.ParseClaim(raw)
		if err != nil {
			return err
		}
		if !bytes.Equal(raw, other) {
			other, reads = raw, 0
		}
		if reads++; reads < agreed {
			return fmt.Errorf("the epoch object names epoch %d of host %x", c.Epoch, c.Host)
		}
		return final{fmt.Errorf("%w: epoch %d of host %x", ErrLost, c.Epoch, c.Host)}
	})
}

// watch reads the epoch object now and then, so that an owner that has nothing to acknowledge learns as well
// that it was replaced (JOURNAL 5) or that the bucket is away, and compares the clocks (JOURNAL 14).
func (j *Journal) watch() {
	defer j.work.Done()
	tick := time.NewTicker(j.cfg.Watch)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := j.confirm(j.ctx, forever); err != nil { // another owner, or our end
				j.stop(err)
				return
			}
			if err := j.look(j.ctx); err != nil && j.ctx.Err() == nil {
				j.log.Warn("the clocks were not compared", "err", err)
			}
		case <-j.wake:
		case <-j.stopped:
			return
		}
		if err := j.settle(j.ctx); err != nil && j.Err() == nil {
			j.log.Warn("what is frozen is not recorded yet", "err", err)
		}
	}
}

// final is an error that trying again does not change.
type final struct{ error }

// Unwrap returns the error itself.
func (f final) Unwrap() error { return f.error }

// persist calls fn until it succeeds, returns a final error, or patience is over; each call gets timeout.
// It waits a little longer after each failure. Time beyond timeout that a call took is not counted: this process was
// paused then, and is to find out what became of its cell rather than to give up.
func persist(ctx context.Context, patience, timeout time.Duration, fn func(context.Context) error) error {
	began, backoff := time.Now(), firstBackoff
	for {
		c, cancel := context.WithTimeout(ctx, timeout)
		call := time.Now()
		err := fn(c)
		cancel()
		began = began.Add(max(0, time.Since(call)-timeout))
		var f final
		switch {
		case err == nil:
			return nil
		case errors.As(err, &f):
			return f.error
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, bucket.ErrClosed):
			return err
		}
		if err := impatient(patience, began, err); err != nil {
			return err
		}
		t := time.NewTimer(jitter(backoff))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// jitter makes half of a wait random, so that many waiters do not come back at once.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2) }

// impatient returns an error if what failed with err just now has been tried for longer than patience, which is
// short for what a person has to mend. It wraps ErrUnavailable unless the bucket did answer, with what cannot be.
func impatient(patience time.Duration, began time.Time, err error) error {
	if patience == forever {
		return nil
	}
	if refused(err) {
		patience = min(patience, refusedPatience)
	}
	waited := time.Since(began)
	if waited < patience {
		return nil
	}
	for _, answer := range []error{ErrNoJournal, ErrContradiction, ErrDamaged, ErrOwned, ErrLost, ErrUnavailable} {
		if errors.Is(err, answer) {
			return err
		}
	}
	return fmt.Errorf("%w for %s: %w", ErrUnavailable, waited.Round(time.Second), err)
}
