package serve

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"holdfast"
	"holdfast/wire"
)

// budget shares a number of bytes of memory among requests, so that memory has a ceiling whatever the number of
// clients. One vault gets at most a part of it, so that slow or hostile
// clients of one vault cannot keep the others out.
//
// Nor can those of several vaults together: when somebody has waited for cutAfter, the vault that holds most
// loses what it has held for longest, unless that is younger than cutAge, or the vault holds no more than its
// even part or cutFloor. Honest clients on slow lines hold less than that.
//
// When mu is free: free is what total has left after held, which counts granted by vault; nobody waits whose turn
// it is and whose bytes are free.
type budget struct {
	total, each int64

	mu      sync.Mutex
	free    int64
	held    map[holdfast.VaultID]int64
	queue   []*claim
	granted map[*claim]struct{}
}

const (
	cutAfter = 5 * time.Second  // of waiting for memory
	cutAgain = time.Second      // until somebody else is cut for the same wait
	cutAge   = 15 * time.Second // for which memory can be held in any case
	cutFloor = 4 << 20          // bytes that one vault can hold in any case
)

// errCut ends what held memory that others wait for.
var errCut = errors.New("memory was held for too long that others wait for")

// claim is one request's wait for memory, and then its hold on it.
type claim struct {
	vault   holdfast.VaultID
	n       int64
	cut     func() // ends the request, soon; nil once that was asked for
	since   time.Time
	granted chan struct{}
}

func newBudget(total, each int64) *budget {
	return &budget{
		total: total, each: each, free: total,
		held: map[holdfast.VaultID]int64{}, granted: map[*claim]struct{}{},
	}
}

// acquire waits for n bytes, at most each, and returns what gives them back. The error is ctx's. cut is called, at
// most once and from another goroutine, if others need the memory: the caller then gives it back as soon as it can.
func (b *budget) acquire(ctx context.Context, v holdfast.VaultID, n int64, cut func()) (release func(), err error) {
	if n > b.each {
		panic("serve: a request for more memory than one vault may have")
	}
	c := &claim{vault: v, n: n, cut: cut, granted: make(chan struct{})}
	b.mu.Lock()
	b.queue = append(b.queue, c)
	b.grant()
	b.mu.Unlock()
	var once sync.Once
	release = func() {
		once.Do(func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.free += n
			delete(b.granted, c)
			if b.held[v] -= n; b.held[v] == 0 {
				delete(b.held, v)
			}
			b.grant()
		})
	}
	timer := time.NewTimer(cutAfter)
	defer timer.Stop()
	for waiting := true; waiting; {
		select {
		case <-c.granted:
			return release, nil
		case <-timer.C:
			if end := b.victim(c); end != nil {
				end()
			}
			timer.Reset(cutAgain)
		case <-ctx.Done():
			waiting = false
		}
	}
	b.mu.Lock()
	i := slices.Index(b.queue, c)
	if i >= 0 {
		b.queue = slices.Delete(b.queue, i, i+1)
		b.grant() // it may have stood in somebody's way
	}
	b.mu.Unlock()
	if i < 0 {
		release()
	}
	return nil, context.Cause(ctx)
}

// grant serves the queue: first who holds least, and of those who came first; mu is held. So what one vault gives
// back is not its own again while others wait. A vault at its limit is passed over; a claim that waits for others'
// memory is not, so that large claims are not starved by small ones.
func (b *budget) grant() {
	for {
		next := -1
		for i, c := range b.queue {
			if b.held[c.vault]+c.n <= b.each && (next < 0 || b.held[c.vault] < b.held[b.queue[next].vault]) {
				next = i
			}
		}
		if next < 0 || b.queue[next].n > b.free {
			return
		}
		c := b.queue[next]
		b.queue = slices.Delete(b.queue, next, next+1)
		b.free -= c.n
		b.held[c.vault] += c.n
		b.granted[c] = struct{}{}
		c.since = time.Now()
		close(c.granted)
	}
}

// victim returns what ends the request that is to make room for c, or nil.
func (b *budget) victim(c *claim) (cut func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Contains(b.queue, c) || b.held[c.vault]+c.n > b.each {
		return nil // it has what it wants, or waits for memory of its own vault
	}
	parties := map[holdfast.VaultID]bool{}
	var most holdfast.VaultID
	for v, n := range b.held {
		parties[v] = true
		if n > b.held[most] {
			most = v
		}
	}
	for _, q := range b.queue {
		parties[q.vault] = true
	}
	if b.held[most] <= max(cutFloor, b.total/int64(len(parties))) {
		return nil
	}
	var old *claim
	for g := range b.granted {
		if g.vault == most && g.cut != nil && (old == nil || g.since.Before(old.since)) {
			old = g
		}
	}
	if old == nil || time.Since(old.since) < cutAge {
		return nil
	}
	cut, old.cut = old.cut, nil
	return cut
}

// memory waits for n bytes of b for a request of v's, and refuses when that takes too long. See budget.acquire.
func (s *Server) memory(ctx context.Context, b *budget, v holdfast.VaultID, n int64, cut func()) (release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, memoryPatience)
	defer cancel()
	release, err = b.acquire(ctx, v, n, cut)
	if errors.Is(err, context.DeadlineExceeded) {
		err = &wire.Error{Code: wire.CodeBusy, Message: "The service is moving as much as it can; try again in a moment.", RetryAfter: 2}
	}
	return release, err
}

// cutter ends a request before its time.
type cutter struct {
	ctx    context.Context // ends with errCut
	cancel context.CancelCauseFunc
	rc     *http.ResponseController
	mu     sync.Mutex
	ended  bool // the handler has returned; rc is of no use
	done   bool // it was cut
}

func newCutter(w http.ResponseWriter, r *http.Request) *cutter {
	c := &cutter{rc: http.NewResponseController(w)}
	c.ctx, c.cancel = context.WithCancelCause(r.Context())
	return c
}

// end must be called before the handler returns.
func (c *cutter) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.cancel(nil)
}

// cutReading ends the request's context and the reading of its body.
func (c *cutter) cutReading() { c.cut(c.rc.SetReadDeadline) }

// cutWriting ends the request's context and the writing of its answer.
func (c *cutter) cutWriting() { c.cut(c.rc.SetWriteDeadline) }

// cutAll is both.
func (c *cutter) cutAll() {
	c.cut(func(t time.Time) error { return errors.Join(c.rc.SetReadDeadline(t), c.rc.SetWriteDeadline(t)) })
}

func (c *cutter) cut(deadline func(time.Time) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.done = true
	c.cancel(errCut)
	deadline(time.Now())
}

// unless calls fn, which sets a deadline, unless the request was cut.
func (c *cutter) unless(fn func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return errCut
	}
	fn()
	return nil
}
