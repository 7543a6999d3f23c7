package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"holdfast/service/segment"
	"holdfast/service/view"
)

// How long one call to the bucket may take, and for how long it is repeated before the journal stops. A
// dependency that hangs is worse than one that fails: every call has a deadline.
const (
	putTimeout   = 60 * time.Second
	putPatience  = 5 * time.Minute
	getTimeout   = 30 * time.Second
	getPatience  = 2 * time.Minute
	listTimeout  = 60 * time.Second
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 5 * time.Second
	watchEvery   = 30 * time.Second
	putsPerKey   = 2 // a request that keeps failing is abandoned for a new one
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
	key, err := j.put(j.ctx, p.pos, p.sealed)
	<-j.slots
	if err != nil {
		j.stop(fmt.Errorf("store segment %s: %w", p.pos, err))
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
	if err := j.confirm(j.ctx); err != nil {
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

	// 7. Make room.
	j.mu.Lock()
	defer j.mu.Unlock()
	p.sealed.Body = nil
	j.free = append(j.free, p.b)
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

// put stores a sealed segment and returns the key under which it is there. It makes at most two attempts
// under one key, then takes a fresh nonce: stores have been seen to fail one particular request for ever.
// A failed attempt may have been applied, or be applied later; since the bytes are the same, one landing
// more is harmless (JOURNAL 6).
func (j *Journal) put(ctx context.Context, pos segment.Position, s segment.Sealed) (segment.Key, error) {
	var key segment.Key
	attempt := 0
	err := persist(ctx, putPatience, putTimeout, func(ctx context.Context) error {
		if attempt%putsPerKey == 0 {
			key = s.Key(j.cfg.Cell, pos, random[[8]byte]())
		}
		attempt++
		err := j.cfg.Bucket.Put(ctx, key.String(), s.Body)
		if err != nil {
			j.log.Warn("store segment", "position", pos, "attempt", attempt, "err", err)
		}
		return err
	})
	return key, err
}

// confirm reads the epoch object and returns nil if it names our claim. It returns ErrLost once two reads
// agreed on another claim, so that one flipped bit does not end the process.
func (j *Journal) confirm(ctx context.Context) error {
	var other []byte
	return persist(ctx, getPatience, getTimeout, func(ctx context.Context) error {
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
			other = raw
			return fmt.Errorf("the epoch object names epoch %d of host %x", c.Epoch, c.Host)
		}
		return final{fmt.Errorf("%w: epoch %d of host %x", ErrLost, c.Epoch, c.Host)}
	})
}

// watch reads the epoch object now and then, so that an owner that has nothing to acknowledge learns as well
// that it was replaced (JOURNAL 5), and compares the clocks (JOURNAL 14). A bucket that does not answer is no reason
// to stop: the next acknowledgement will see.
func (j *Journal) watch() {
	defer j.work.Done()
	tick := time.NewTicker(j.cfg.watch)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := j.confirm(j.ctx); errors.Is(err, ErrLost) {
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
		case time.Since(began) >= patience:
			return fmt.Errorf("gave up after %s: %w", time.Since(began).Round(time.Second), err)
		}
		// Half of the wait is random, so that many waiters do not come back at once.
		t := time.NewTimer(backoff/2 + rand.N(backoff/2))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		backoff = min(2*backoff, lastBackoff)
	}
}
