package steady

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"holdfast/service/bucket"
)

// Put implements bucket.Bucket: two attempts at most, one if it is a hedge.
func (b *Bucket) Put(ctx context.Context, key string, body []byte) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	if len(body) > bucket.MaxObject {
		return &bucket.Error{Class: bucket.ClassConfig, Err: fmt.Errorf("put %s: %d bytes exceed the limit of %d", key, len(body), bucket.MaxObject)}
	}
	if bucket.IsHedge(ctx) && !b.take() {
		return bucket.ErrSpent
	}
	return b.twice(ctx, request{op: bucket.OpPut, key: key}, int64(len(body)), func(ctx context.Context) error { return b.b.Put(ctx, key, body) })
}

// Delete implements bucket.Bucket: two attempts at most.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	return b.twice(ctx, request{op: bucket.OpDelete, key: key}, 0, func(ctx context.Context) error { return b.b.Delete(ctx, key) })
}

// Now implements bucket.Bucket: two attempts at most.
func (b *Bucket) Now(ctx context.Context) (now time.Time, err error) {
	err = b.twice(ctx, request{op: bucket.OpNow}, 0, func(ctx context.Context) (err error) {
		now, err = b.b.Now(ctx)
		return err
	})
	return now, err
}

// Swap implements bucket.Bucket: one attempt. If it fails, the caller reads what became of it.
func (b *Bucket) Swap(ctx context.Context, key string, old, new []byte) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	a := attempt{request: request{op: bucket.OpSwap, key: key}, n: 1, last: true, bytes: int64(len(new))}
	return b.one(ctx, a, func(ctx context.Context) error { return b.b.Swap(ctx, key, old, new) })
}

// twice makes a call that has no other form: twice at most, and once if it has failed so often already that a caller who
// repeats it must know why.
func (b *Bucket) twice(ctx context.Context, r request, n int64, call func(context.Context) error) error {
	hedge := bucket.IsHedge(ctx)
	for try := 1; ; try++ {
		last := hedge || try == perRequest || b.timesFailed(r) >= perRequest-1
		err := b.one(ctx, attempt{request: r, n: try, bytes: n, hedge: hedge, last: last}, call)
		if last || !again(bucket.ClassOf(err)) || ctx.Err() != nil || !b.take() {
			return err
		}
		t := time.NewTimer(backoff(try, err))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
		ctx = bucket.Fresh(ctx)
	}
}

// Get implements bucket.Bucket. From the third attempt on, after one that took long to fail, and in a hedge, it asks for another range.
func (b *Bucket) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, err
	}
	g := &get{b: b, key: key}
	return read(ctx, b, request{bucket.OpGet, key, off, n}, max(0, n),
		func(ctx context.Context, a attempt) ([]byte, error) { return g.exact(ctx, a, off, n) },
		func(ctx context.Context, a attempt) ([]byte, error) { return g.other(ctx, a, off, n) })
}

// List implements bucket.Bucket. From the third attempt on, after one that took long to fail, and in a hedge, its pages are of another size.
func (b *Bucket) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	if max <= 0 || max > bucket.MaxList {
		max = bucket.MaxList
	}
	l := list{b: b, prefix: prefix}
	return read(ctx, b, request{bucket.OpList, prefix + "\x00" + after, 0, int64(max)}, 0,
		func(ctx context.Context, a attempt) ([]bucket.Object, error) { return l.page(ctx, a, after, max) },
		func(ctx context.Context, a attempt) ([]bucket.Object, error) { return l.other(ctx, a, after, max) })
}

// way makes one attempt to answer a call; the attempt is filled in but for what is asked.
type way[T any] func(ctx context.Context, a attempt) (T, error)

// read makes attempts until one is answered: first as the caller asked, then in another way. Beside one that is slow it
// makes hedges, in another way; what is answered first ends the rest. An attempt that fails is followed by the next when it
// is time for that, whatever is under way beside it.
func read[T any](ctx context.Context, b *Bucket, r request, n int64, same, other way[T]) (T, error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	type answer struct {
		v     T
		err   error
		hedge bool
	}
	done, atWork := make(chan answer, ways), 0 // nobody waits for what has lost
	begin := func(ctx context.Context, a attempt, w way[T]) {
		atWork++
		go func() {
			v, err := w(ctx, a)
			done <- answer{v, err, a.hedge}
		}()
	}
	most := ways
	if n >= slackFrom {
		most = largeWays
	}
	var (
		a       = attempt{request: r, bytes: n} // the newest, hedges apart
		failure answer                          // of it
		began   time.Time
		slow    time.Duration            // after which a hedge is made beside it; 0 if none is
		asked   = b.timesFailed(r)       // how often the request was made as it is
		timer   = time.NewTimer(1 << 62) // to the next hedge or attempt
		pausing <-chan struct{}          // between two attempts, when ctx ends
	)
	defer timer.Stop()
	next := func() {
		a.n++
		a.last, pausing = a.n == perCall, nil
		w := same
		if asked++; asked > perRequest {
			a.other, w = true, other
		}
		began, slow = time.Now(), b.SlowAfter(a.op, a.bytes)
		begin(ctx, a, w)
		if slow > 0 {
			timer.Reset(slow)
		}
	}
	for next(); ; {
		select {
		case <-pausing:
			return failure.v, failure.err
		case <-timer.C:
			if pausing != nil {
				ctx = bucket.Fresh(ctx)
				next()
				continue
			}
			if atWork < most && b.take() {
				h := a
				h.hedge, h.other = true, true
				begin(bucket.Hedge(ctx), h, other)
			}
			slow *= 2
			timer.Reset(slow)
		case got := <-done:
			atWork--
			class := bucket.ClassOf(got.err)
			if class.Answer() {
				return got.v, got.err
			}
			if !got.hedge {
				failure, slow = got, 0
				timer.Stop()
				if passes(class) && ctx.Err() == nil && a.n < perCall && b.take() {
					pausing = ctx.Done()
					timer.Reset(backoff(a.n, got.err))
				}
				if !again(class) || time.Since(began) > quickly {
					asked = perRequest
				}
			}
			if atWork == 0 && pausing == nil {
				return failure.v, failure.err
			}
		}
	}
}

// wrong is an answer that cannot be one.
func wrong(format string, a ...any) error {
	return &bucket.Error{Class: bucket.ClassCorrupt, Err: fmt.Errorf(format, a...)}
}

type get struct {
	b       *Bucket
	key     string
	inWhole atomic.Bool // whole was called
}

// exact asks for a range.
func (g *get) exact(ctx context.Context, a attempt, off, n int64) (p []byte, err error) {
	a.request = request{bucket.OpGet, g.key, off, n}
	a.bytes = max(0, n)
	err = g.b.one(ctx, a, func(ctx context.Context) error {
		if p, err = g.b.b.Get(ctx, g.key, off, n); err == nil && n >= 0 && int64(len(p)) != n {
			return wrong("get %s: the store answered %d bytes of %d", g.key, len(p), n)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

const (
	widest = 4096 // bytes by which another range begins before what is wanted, or reaches beyond it
	narrow = 64   // bytes: with less before it, another range ends behind what is wanted
)

// other answers a Get without making the same request: from a range that begins before it or, where there is little
// before, from one that ends behind it.
func (g *get) other(ctx context.Context, a attempt, off, n int64) ([]byte, error) {
	a.other = true
	switch {
	case off < 0 || n > bucket.MaxObject: // in no object
		return g.exact(ctx, a, off, n)
	case off == 0 && n < 0:
		return g.whole(ctx, a)
	case off >= narrow || n < 0:
		return g.wider(ctx, a, off, n)
	}
	return g.longer(ctx, a, off, n)
}

// wider begins before the range.
func (g *get) wider(ctx context.Context, a attempt, off, n int64) ([]byte, error) {
	more, all := 1+rand.Int64N(min(off, widest)), n
	if n >= 0 {
		all += more
	}
	p, err := g.exact(ctx, a, off-more, all)
	if err == nil && int64(len(p)) < more {
		return nil, fmt.Errorf("get %s from %d: %w", g.key, off, bucket.ErrShort)
	}
	return p[min(int64(len(p)), more):], err
}

// longer ends behind the range. If the object ends before that, it reads the range in two parts, or all that is left of
// the object if there is nothing to part.
func (g *get) longer(ctx context.Context, a attempt, off, n int64) ([]byte, error) {
	p, err := g.exact(ctx, a, off, n+1+rand.Int64N(widest))
	if !errors.Is(err, bucket.ErrShort) {
		return p[:min(int64(len(p)), n)], err
	}
	if n >= 2 {
		return g.parts(ctx, g.b.more(a), off, n)
	}
	a.other = false
	p, err = g.exact(ctx, g.b.more(a), off, -1)
	if err == nil && int64(len(p)) < n {
		return nil, fmt.Errorf("get %s: %w", g.key, bucket.ErrShort)
	}
	return p[:min(int64(len(p)), n)], err
}

// parts reads a range of two bytes or more in two requests.
func (g *get) parts(ctx context.Context, a attempt, off, n int64) ([]byte, error) {
	cut := 1 + rand.Int64N(n-1)
	head, err := g.exact(ctx, a, off, cut)
	if err != nil {
		return nil, err
	}
	tail, err := g.exact(ctx, g.b.more(a), off+cut, n-cut)
	if err != nil {
		return nil, err
	}
	return append(head, tail...), nil
}

// twins is how many requests together are made for each part of a small object.
const twins = 3

// race makes requests for the ranges that span gives of 0 to twins-1, at the same time. It returns the first that is answered, and
// where that begins.
func (g *get) race(ctx context.Context, a attempt, span func(k int64) (off, n int64)) (int64, []byte, error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	type answer struct {
		off int64
		p   []byte
		err error
	}
	done := make(chan answer, twins)
	for k := range int64(twins) {
		go func() {
			off, n := span(k)
			p, err := g.exact(ctx, g.b.more(a), off, n)
			done <- answer{off, p, err}
		}()
	}
	var last answer
	for range twins {
		if last = <-done; bucket.ClassOf(last.err).Answer() {
			break
		}
	}
	return last.off, last.p, last.err
}

// surely reads a part of an object of that size in several requests that begin or end elsewhere. Four parts one after another
// would meet too much of what is cursed.
func (g *get) surely(ctx context.Context, a attempt, off, n, size int64) ([]byte, error) {
	from, p, err := g.race(ctx, a, func(k int64) (int64, int64) {
		if off > 0 {
			return off - k, n + k
		}
		return 0, min(n+k, size)
	})
	if err != nil {
		return nil, err
	}
	return p[off-from:][:n], nil
}

// apart reads all of an object in two parts, one after the other.
func (g *get) apart(ctx context.Context, a attempt, size int64) ([]byte, error) {
	if size <= 2*twins || size > widest {
		return g.parts(ctx, a, 0, size)
	}
	cut := twins + rand.Int64N(size-2*twins)
	head, err := g.surely(ctx, a, 0, cut, size)
	if err != nil {
		return nil, err
	}
	tail, err := g.surely(ctx, a, cut, size-cut, size)
	if err != nil {
		return nil, err
	}
	return append(slices.Clip(head), tail...), nil
}

// end reads an object from one of its first bytes on, or from several of them at the same time.
func (g *get) end(ctx context.Context, a attempt, several bool) (int64, []byte, error) {
	drawn := rand.Int64N(32)
	if !several {
		p, err := g.exact(ctx, a, 1+drawn, -1)
		return 1 + drawn, p, err
	}
	return g.race(ctx, a, func(k int64) (int64, int64) { return 1 + (drawn+k)%32, -1 })
}

// whole reads an object of unknown size as it was at one time, though it may be one that is swapped: first its end, which tells
// the size, then the range that is all of it. Where that was asked for as well, it reads all of it in parts until two
// readings agree: no content comes back after another.
func (g *get) whole(ctx context.Context, a attempt) ([]byte, error) {
	before := g.inWhole.Swap(true)
	from, end, err := g.end(ctx, a, before)
	if errors.Is(err, bucket.ErrShort) {
		from = 1
		end, err = g.exact(ctx, g.b.more(a), from, -1)
	}
	if errors.Is(err, bucket.ErrShort) {
		return g.exact(ctx, g.b.more(a), 0, 0) // it is empty
	}
	if err != nil {
		return nil, err
	}
	size := from + int64(len(end))
	var p, again []byte
	a = g.b.more(a)
	if size == 1 || g.b.timesFailed(request{bucket.OpGet, g.key, 0, size}) < perRequest && !before {
		a.other = false
		p, err = g.exact(ctx, a, 0, size)
		again = p
	} else if p, err = g.apart(ctx, a, size); err == nil {
		again, err = g.apart(ctx, a, size)
	}
	if errors.Is(err, bucket.ErrShort) || err == nil && !(bytes.Equal(p[from:], end) && bytes.Equal(p, again)) {
		return nil, wrong("get %s: it changed while it was read", g.key)
	}
	return p, err
}

type list struct {
	b      *Bucket
	prefix string
}

// page asks for one page.
func (l list) page(ctx context.Context, a attempt, after string, max int) (page []bucket.Object, err error) {
	a.request = request{bucket.OpList, l.prefix + "\x00" + after, 0, int64(max)}
	err = l.b.one(ctx, a, func(ctx context.Context) error {
		if page, err = l.b.b.List(ctx, l.prefix, after, max); err != nil {
			return err
		}
		if len(page) > max {
			return wrong("list %q: the store answered %d objects where %d were asked for", l.prefix, len(page), max)
		}
		last := after
		for _, o := range page {
			if o.Key <= last || !strings.HasPrefix(o.Key, l.prefix) {
				return wrong("list %q: the store answered %.100q after %.100q", l.prefix, o.Key, last)
			}
			last = o.Key
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return page, nil
}

// other answers a List without making the same request: from a longer page or, where there is none, from two.
func (l list) other(ctx context.Context, a attempt, after string, max int) ([]bucket.Object, error) {
	a.other = true
	if more := bucket.MaxList - max; more > 0 {
		page, err := l.page(ctx, a, after, max+1+rand.IntN(more))
		return page[:min(len(page), max)], err
	}
	size := max/2 + rand.IntN(max/2)
	page, err := l.page(ctx, a, after, size)
	if err != nil || len(page) < size {
		return page, err
	}
	rest, err := l.page(ctx, l.b.more(a), page[size-1].Key, max-size)
	if err != nil {
		return nil, err
	}
	return append(page, rest...), nil
}
