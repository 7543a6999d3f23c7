// Package steady makes one bucket of a store that fails now and then, hangs, is slow, or fails one particular request
// for ever. It is the one place where a request to the store is tried again.
//
//   - Every attempt has a deadline, made from the size of what it moves.
//   - One identical request is tried twice at most, the second time over a fresh connection: stores have been seen to
//     fail a request each time that it is repeated. Then a Get asks for another range and cuts, a List for pages of another
//     size; what changes the store goes back to the caller, who knows another way: a Put another key, a Swap and a Delete
//     a look at what is there. That a request has failed twice is remembered for an hour.
//   - A Get or List that is slow is begun a second time beside itself, over a fresh connection and as another
//     request. The first answer wins. A Put is doubled by its caller, under another key (bucket.Paced).
//   - Both take from a budget, so that what is done about trouble adds little to it.
//   - When nothing at all is answered any more, a breaker opens: calls return ErrDown at once, and one at a time
//     goes through to see.
//
// All attempts are counted in a requests.History. docs/storage.md says what is done about which class of error.
package steady

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/requests"
)

// How long an attempt may take: patience, and the time in which what it moves arrives at leastRate. A line that is
// slower is given more time after each attempt of slackFrom bytes or more that was not in time: up to mostSlack
// times as long for what it moves.
const (
	patience  = 10 * time.Second
	leastRate = 1 << 20 // bytes a second
	slackFrom = 1 << 20 // bytes
	mostSlack = 8
)

// How often, and when.
const (
	perRequest   = 2 // attempts at one identical request
	perCall      = 5 // attempts of one Get or List, hedges apart
	ways         = 3 // of one Get or List at the same time
	largeWays    = 2 // if it moves slackFrom bytes or more: a line that is slow must not be filled with the same
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 2 * time.Second
	longestAfter = 10 * time.Second // of what the store asks to wait
	quickly      = time.Second      // in which a Get or List failed that is worth trying again as it is
)

// When a call is slow: slowTimes the time in which 95 % of the recent ones of that size were answered, but within
// bounds. With too few to say: soonestUnknown, and the time of what it moves at unknownRate.
const (
	slowQuantile   = 0.95
	slowTimes      = 2
	soonest        = 300 * time.Millisecond
	latest         = 3 * time.Second // unless 80 % of that are exceeded by 5 % of calls as it is
	soonestUnknown = 2 * time.Second
	unknownRate    = 4 << 20 // bytes a second
)

// The budget for attempts beyond the first of each call, and for hedges: each takes one. In a time of s seconds in
// which n calls are answered there are at most budget + n/answersPerToken + s/secondsPerToken of them. Another way to
// answer a Get or List may be two requests or more; those are paid for as well, and may leave a debt.
const (
	budget          = 100
	answersPerToken = 10
	secondsPerToken = 2
)

// The breaker opens when breakAfter has passed without any answer, breakFailures attempts have failed in it, and those
// were breakRequests different requests at least: one that fails for ever alone is no reason. Open, it lets one attempt
// at a time through, firstProbe to lastProbe after another, half of it by chance.
const (
	breakAfter    = 5 * time.Second
	breakFailures = 5
	breakRequests = 3
	firstProbe    = 1 * time.Second
	lastProbe     = 5 * time.Second
)

// What is remembered of requests that failed.
const (
	rememberTime = time.Hour
	remembered   = 1024
)

// Config is what a Bucket may be given; the zero Config is complete.
type Config struct {
	History *requests.History // nil: one in memory
	Log     *slog.Logger      // nil discards
}

// Bucket is a store whose trouble is dealt with. It is safe for concurrent use.
type Bucket struct {
	b   bucket.Bucket
	h   *requests.History
	log *slog.Logger

	mu      sync.Mutex
	tokens  float64   // up to budget; below 0 is a debt
	filled  time.Time // when tokens was last made up for the time
	slack   time.Duration
	failed  map[request]failure
	breaker breaker
}

var _ bucket.Paced = (*Bucket)(nil)

// New returns b with its trouble dealt with.
func New(b bucket.Bucket, c Config) *Bucket {
	if c.History == nil {
		c.History = requests.New()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Bucket{b: b, h: c.History, log: c.Log, tokens: budget, filled: time.Now(), slack: 1, failed: map[request]failure{}}
}

// request is what makes two requests the same. The after of a List is part of its key.
type request struct {
	op     bucket.Op
	key    string
	off, n int64
}

// failure is what is known of a request that failed.
type failure struct {
	times int
	last  time.Time
}

// attempt is one attempt at a request.
type attempt struct {
	request
	other bool  // it is a request that nobody made before, and its failure is not remembered
	n     int   // of the call, from 1
	hedge bool  // beside another
	last  bool  // if it fails, this request is not tried again
	bytes int64 // that it moves
}

// String names the request in errors.
func (r request) String() string {
	key, _, _ := strings.Cut(r.key, "\x00")
	return strings.TrimSpace(string(r.op) + " " + key)
}

// one makes one attempt and counts it. ctx is the caller's.
func (b *Bucket) one(ctx context.Context, a attempt, call func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", a.request, err)
	}
	h := requests.Attempt{Op: a.op, N: a.n, Hedge: a.hedge, Began: time.Now(), Bytes: a.bytes}
	probe, err := b.admit()
	if err != nil {
		h.Class = bucket.ClassOpen
		b.h.Add(h)
		return err // names the request that failed, and not this one, which was not sent
	}
	limit := b.limit(a.bytes, probe)
	c, cancel := context.WithTimeout(ctx, limit)
	err = call(c)
	h.Took = time.Since(h.Began)
	h.Class = classOf(ctx, c, err, h.Took)
	cancel()
	h.Same, h.Exhausted = b.settle(a, h, probe, err)
	b.h.Add(h)
	if h.Class == bucket.ClassTimeout && ctx.Err() == nil {
		// Not the caller's deadline: it must not take this error for that.
		err = &bucket.Error{Class: h.Class, Err: fmt.Errorf("%s: no answer within %s (%v)", a.request, limit.Round(time.Second), err)}
	}
	return err
}

// classOf returns the class of what an attempt returned. That its caller's ctx ended it says something about the store only if
// it was the deadline and there was time to answer.
func classOf(caller, attempt context.Context, err error, took time.Duration) bucket.Class {
	class := bucket.ClassOf(err)
	switch {
	case class.Answer():
	case caller.Err() != nil && (!errors.Is(caller.Err(), context.DeadlineExceeded) || took < time.Second):
		return bucket.ClassCanceled
	case attempt.Err() != nil:
		return bucket.ClassTimeout
	}
	return class
}

// limit is how long an attempt may take that moves n bytes. While one sees whether the store answers again all others
// wait for it: it is given no slack.
func (b *Bucket) limit(n int64, probe bool) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := rateTime(n, leastRate)
	if n >= slackFrom && !probe {
		d *= b.slack
	}
	return patience + d
}

// rateTime is how long n bytes take.
func rateTime(n, rate int64) time.Duration {
	return time.Duration(max(0, n)) * time.Second / time.Duration(rate)
}

// settle draws the conclusions from an attempt that has ended. It returns how often the request had failed before, and
// whether it is given up.
func (b *Bucket) settle(a attempt, h requests.Attempt, probe bool, err error) (same int, exhausted bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case h.Class.Answer():
		b.breaker.answered(b.log)
		b.fill(1. / answersPerToken)
		if a.bytes >= slackFrom && 4*h.Took < patience+b.slack*rateTime(a.bytes, leastRate) {
			b.slack = max(1, b.slack/2)
		}
		if len(b.failed) > 0 {
			same = b.times(a.request)
			delete(b.failed, a.request)
		}
		return same, false
	case h.Class == bucket.ClassCanceled:
		b.breaker.unsaid(probe)
		return b.times(a.request), false
	}
	if h.Class == bucket.ClassTimeout && a.bytes >= slackFrom {
		b.slack = min(mostSlack, 2*b.slack)
	}
	if h.Class == bucket.ClassFull {
		b.breaker.answered(b.log) // it is there, and what needs no room must go on
	} else {
		b.breaker.failure(b.log, h.Began, a.request, probe, err)
	}
	if a.other {
		return 0, a.last && !a.hedge
	}
	same = b.times(a.request)
	b.remember(a.request, same+1)
	return same, !a.hedge && (a.last || same+1 >= perRequest || !again(h.Class))
}

// again reports whether the same request may be tried once more after a failure of this class.
func again(c bucket.Class) bool {
	switch c {
	case bucket.ClassServer, bucket.ClassBusy, bucket.ClassConnection, bucket.ClassCorrupt:
		return true
	}
	return false
}

// passes reports whether another request may do better after a failure of this class.
func passes(c bucket.Class) bool { return again(c) || c == bucket.ClassTimeout }

// times returns how often a request has failed; mu is held.
func (b *Bucket) times(r request) int {
	f, ok := b.failed[r]
	if !ok || time.Since(f.last) > rememberTime {
		return 0
	}
	return f.times
}

// remember notes a failure; mu is held. If there are too many, those that are old or else any are forgotten.
func (b *Bucket) remember(r request, times int) {
	if _, ok := b.failed[r]; !ok && len(b.failed) >= remembered {
		var any request
		for k, f := range b.failed {
			if any = k; time.Since(f.last) > rememberTime {
				break
			}
		}
		delete(b.failed, any)
	}
	b.failed[r] = failure{times, time.Now()}
}

// timesFailed is times for those who do not hold mu.
func (b *Bucket) timesFailed(r request) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.times(r)
}

// fill adds to the budget, and what the time since has added; mu is held.
func (b *Bucket) fill(n float64) {
	now := time.Now()
	n += max(0, now.Sub(b.filled).Seconds()/secondsPerToken)
	b.tokens, b.filled = max(-budget, min(budget, b.tokens+n)), now
}

// take takes one from the budget and reports whether there was one.
func (b *Bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fill(0); b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// more is a for a further request of the same attempt. It is paid for, be it with a debt, and is not another hedge.
func (b *Bucket) more(a attempt) attempt {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(-1)
	a.hedge = false
	return a
}

// SlowAfter is part of bucket.Paced.
func (b *Bucket) SlowAfter(op bucket.Op, n int64) time.Duration {
	b.mu.Lock()
	b.fill(0)
	none := b.tokens < 1 || b.breaker.open
	b.mu.Unlock()
	if none {
		return 0
	}
	usual := b.h.Latency(op, n, slowQuantile)
	if usual == 0 {
		return soonestUnknown + rateTime(n, unknownRate)
	}
	return max(min(max(slowTimes*usual, soonest), latest), usual*5/4)
}

// Down is part of bucket.Paced.
func (b *Bucket) Down() (since time.Time, cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.breaker.open {
		return time.Time{}, nil
	}
	return b.breaker.since, b.breaker.cause
}

// backoff is how long to wait after the attempt n of a call, which failed with err.
func backoff(n int, err error) time.Duration {
	most := min(firstBackoff<<(n-1), lastBackoff)
	wait := most/2 + rand.N(most/2)
	var e *bucket.Error
	if errors.As(err, &e) {
		wait = max(wait, min(e.After, longestAfter))
	}
	return wait
}
