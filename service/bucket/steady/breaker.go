package steady

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"holdfast/service/bucket"
)

// breaker knows since when nothing was answered. Its user's lock protects it.
type breaker struct {
	open     bool
	probing  bool          // one attempt is under way
	next     time.Time     // when the next one may go through
	wait     time.Duration // before it
	since    time.Time     // begin of the first attempt that failed since the last answer
	cause    error         // newest failure
	failures int           // since then
	failed   [breakRequests]request
	distinct int // of failed that are set, each another
}

// admit lets an attempt through, or not. probe is true if it is the one that sees whether the store answers again.
func (b *Bucket) admit() (probe bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := &b.breaker
	switch {
	case !k.open:
		return false, nil
	case k.probing || time.Now().Before(k.next):
		return false, fmt.Errorf("%w (since %s; newest failure: %v)", bucket.ErrDown, k.since.UTC().Format(time.RFC3339), k.cause)
	}
	k.probing = true
	return true, nil
}

// answered closes it: whatever was asked, the store is there.
func (k *breaker) answered(log *slog.Logger) {
	if k.open {
		log.Warn("the store answers again", "after", time.Since(k.since).Round(time.Millisecond))
	}
	if k.failures > 0 || k.open {
		*k = breaker{}
	}
}

// unsaid is told of an attempt that ended without saying anything about the store.
func (k *breaker) unsaid(probe bool) {
	if probe {
		k.probing = false
	}
}

// failure counts a failure of an attempt that began then, and opens the breaker if it is time.
func (k *breaker) failure(log *slog.Logger, began time.Time, r request, probe bool, cause error) {
	if k.failures == 0 {
		k.since = began
	}
	k.failures++
	k.cause = cause
	if k.distinct < breakRequests && !k.has(r) {
		k.failed[k.distinct] = r
		k.distinct++
	}
	switch {
	case k.open && probe:
		k.probing = false
		k.wait = min(2*k.wait, lastProbe)
	case !k.open && k.failures >= breakFailures && k.distinct == breakRequests && time.Since(k.since) >= breakAfter:
		k.open, k.wait = true, firstProbe
		log.Error("the store answers nothing any more; asking now and then", "since", k.since.UTC().Format(time.RFC3339), "failures", k.failures, "err", cause)
	default:
		return
	}
	k.next = time.Now().Add(k.wait/2 + rand.N(k.wait/2+1))
}

func (k *breaker) has(r request) bool {
	for _, f := range k.failed[:k.distinct] {
		if f == r {
			return true
		}
	}
	return false
}
