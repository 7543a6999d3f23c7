package serve

import (
	"context"
	"sync"
	"time"

	"holdfast/wire"
)

// turns keeps the batches of one session in order: batch k gets memory for its body after batch k-1 got
// its, and is appended to the journal after batch k-1 was. Then a batch that holds memory waits only for
// batches that hold theirs, and the memory of all sessions cannot be taken by batches that wait for one
// that cannot get any.
//
// A batch that was appended before may be sent again at any time. If a batch fails, those behind it that
// are under way are refused, and the turn goes back to it.
//
// When mu is free: next <= admit; every batch from next to admit-1 is under way, as at least one attempt.
type turns struct {
	mu      sync.Mutex
	next    uint64 // the batch to be appended next
	admit   uint64 // the batch to get memory next
	live    map[*attempt]struct{}
	waiting int
	change  chan struct{} // closed and replaced at every change
}

// attempt is one upload of one batch, from when it was let in to when it is done.
type attempt struct {
	k    uint64
	void bool // a batch before it failed
}

const (
	maxAhead     = 64               // batches beyond the one to be appended next
	maxWaiting   = 64               // requests of one session that wait for their turn
	turnPatience = 30 * time.Second // how long one waits
)

func newTurns() *turns {
	return &turns{next: 1, admit: 1, live: map[*attempt]struct{}{}, change: make(chan struct{})}
}

func (t *turns) changed() {
	close(t.change)
	t.change = make(chan struct{})
}

var errOrder = &wire.Error{Code: wire.CodeOutOfOrder, Message: "This batch came before the one that precedes it; send that one again, then this."}

// enter lets batch k in when its turn has come and acquire, called then, has returned without an error.
// The caller must call done or fail for the attempt.
func (t *turns) enter(ctx context.Context, k uint64, acquire func() error) (*attempt, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if k >= t.next+maxAhead {
		return nil, errOrder
	}
	if t.waiting >= maxWaiting {
		return nil, &wire.Error{Code: wire.CodeBusy, Message: "Too many uploads of this session wait for their turn.", RetryAfter: 1}
	}
	if k > t.admit {
		t.waiting++
		timer := time.NewTimer(turnPatience)
		defer timer.Stop()
		for k > t.admit {
			change := t.change
			t.mu.Unlock()
			var err error
			select {
			case <-change:
			case <-timer.C:
				err = errOrder
			case <-ctx.Done():
				err = context.Cause(ctx)
			}
			t.mu.Lock()
			if err != nil {
				t.waiting--
				return nil, err
			}
		}
		t.waiting--
	}
	a := &attempt{k: k}
	t.live[a] = struct{}{}
	t.mu.Unlock()
	err := acquire()
	t.mu.Lock()
	if err != nil {
		t.leave(a)
		return nil, err
	}
	if a.void {
		t.leave(a)
		return nil, errOrder
	}
	if k == t.admit {
		t.admit++
		t.changed()
	}
	return a, nil
}

// turn waits until all batches before a's were appended.
func (t *turns) turn(ctx context.Context, a *attempt) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		switch {
		case a.void:
			return errOrder
		case a.k <= t.next:
			return nil
		}
		change := t.change
		t.mu.Unlock()
		var err error
		select {
		case <-change:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		t.mu.Lock()
		if err != nil {
			return err
		}
	}
}

// done says that a's batch was appended.
func (t *turns) done(a *attempt) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, a)
	if a.k == t.next {
		t.next++
		t.changed()
	}
}

// fail says that a's batch was not appended by this attempt.
func (t *turns) fail(a *attempt) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave(a)
}

// leave removes an attempt that failed; mu is held. If it was the only one of a batch that was let in
// and not appended, the turn goes back to that batch.
func (t *turns) leave(a *attempt) {
	delete(t.live, a)
	if a.void || a.k < t.next || a.k >= t.admit {
		return
	}
	for b := range t.live {
		if b.k == a.k && !b.void {
			return
		}
	}
	t.admit = a.k
	for b := range t.live {
		if b.k > a.k {
			b.void = true
		}
	}
	t.changed()
}
