package serve

import (
	"context"
	"slices"
	"sync"

	"holdfast"
)

// budget shares a number of bytes of memory among requests, first come first served, so that memory has a
// ceiling whatever the number of clients. One vault gets at most a part of it, so that slow or hostile
// clients of one vault cannot keep the others out.
//
// When mu is free: free is what total has left after held; nobody waits whose turn it is and whose bytes
// are free.
type budget struct {
	total, each int64

	mu    sync.Mutex
	free  int64
	held  map[holdfast.VaultID]int64
	queue []*claim
}

// claim is one request's wait for memory.
type claim struct {
	vault   holdfast.VaultID
	n       int64
	granted chan struct{}
}

func newBudget(total, each int64) *budget {
	return &budget{total: total, each: each, free: total, held: map[holdfast.VaultID]int64{}}
}

// acquire waits for n bytes, at most each, and returns what gives them back. The error is ctx's.
func (b *budget) acquire(ctx context.Context, v holdfast.VaultID, n int64) (release func(), err error) {
	if n > b.each {
		panic("serve: a request for more memory than one vault may have")
	}
	c := &claim{v, n, make(chan struct{})}
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
			if b.held[v] -= n; b.held[v] == 0 {
				delete(b.held, v)
			}
			b.grant()
		})
	}
	select {
	case <-c.granted:
		return release, nil
	case <-ctx.Done():
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

// grant serves the queue in order; mu is held. A vault at its limit is passed over; a claim that waits
// for others' memory is not, so that large claims are not starved by small ones.
func (b *budget) grant() {
	rest := b.queue[:0]
	blocked := false
	for _, c := range b.queue {
		if blocked || b.held[c.vault]+c.n > b.each {
			rest = append(rest, c)
			continue
		}
		if c.n > b.free {
			blocked = true
			rest = append(rest, c)
			continue
		}
		b.free -= c.n
		b.held[c.vault] += c.n
		close(c.granted)
	}
	clear(b.queue[len(rest):])
	b.queue = rest
}
