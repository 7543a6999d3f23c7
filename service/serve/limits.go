package serve

import (
	"math"
	"net"
	"net/netip"
	"sync"
	"time"

	"holdfast"
	"holdfast/wire"
)

// How often something may happen. All of these are far above what our own client does at its fastest; they keep
// one customer, or a stranger, from costing what everybody pays for.
var (
	// A client that backs up 1 GB/s makes about a thousand requests a second.
	keyRequests   = rate{burst: 4_000, second: 2_000}
	vaultRequests = rate{burst: 16_000, second: 8_000}
	// Making a vault takes fewer than ten requests before the key is known.
	strangerRequests = rate{burst: 100, second: 10}
	// Redeeming, and looking for an owner's vaults: what guesses would be made with.
	guesses = rate{burst: 20, second: 0.5}
	// A client names a block for each 256 KiB that it reads, 64 KiB if its group wants small ones: even then this
	// is 32 GiB at once and 512 MiB/s from then on.
	keyNames   = rate{burst: 1 << 19, second: 1 << 13}
	vaultNames = rate{burst: 8 << 19, second: 8 << 13}
	// Records, by the bytes that they take in the journal: about 10,000 backups at once and 4,000 an hour from
	// then on. Whoever rotates the read key wraps anew the secret of each session that there ever was.
	recordBytes = rate{burst: 32 << 20, second: 4 << 10}
)

// recordOverhead is what a record takes in the journal and the view beside its own bytes, about.
const recordOverhead = 512

// maxLines bounds the buckets of one limiter.
const maxLines = 4096

// rate is how often something may happen: burst at once, and so often a second in the long run.
type rate struct{ burst, second float64 }

// limiter keeps a bucket for everybody who did something lately, in bounded memory. A bucket that would be full
// again says nothing and is forgotten when room is needed; any other stays. So nobody gets a fresh bucket by
// pushing his own out: he would have to wait until it is full. When maxLines others are busy at the same time,
// those who come then share one bucket.
type limiter struct {
	rate
	mu    sync.Mutex
	lines map[who]*bucket
	rest  bucket // of those for whom there is no room
	swept time.Time
}

// bucket holds what its owner may still do.
type bucket struct {
	level float64
	at    time.Time // of the level
}

// who is limited: one of its fields is set, or none for callers without an address.
type who struct {
	key     [32]byte
	vault   holdfast.VaultID
	account holdfast.AccountID
	network netip.Prefix // of a stranger
}

func newLimiter(r rate) *limiter {
	return &limiter{rate: r, lines: map[who]*bucket{}, rest: bucket{level: r.burst}}
}

// now returns what is in the bucket at that time.
func (l *limiter) now(b *bucket, t time.Time) float64 {
	return min(l.burst, b.level+l.second*t.Sub(b.at).Seconds())
}

// take takes n, at most the burst, from w's bucket and returns 0, or takes nothing and returns how long it will
// be until there is enough.
func (l *limiter) take(w who, n float64) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	b := l.lines[w]
	if b == nil {
		b = l.line(w, now)
	}
	n = min(n, l.burst)
	b.level, b.at = l.now(b, now), now
	if b.level < n {
		return time.Duration((n - b.level) / l.second * float64(time.Second))
	}
	b.level -= n
	return 0
}

// line makes a bucket for w; mu is held.
func (l *limiter) line(w who, now time.Time) *bucket {
	if len(l.lines) >= maxLines && now.Sub(l.swept) >= time.Second {
		l.swept = now
		for k, b := range l.lines {
			if l.now(b, now) >= l.burst {
				delete(l.lines, k)
			}
		}
	}
	if len(l.lines) >= maxLines {
		return &l.rest
	}
	b := &bucket{level: l.burst, at: now}
	l.lines[w] = b
	return b
}

// slowDown takes n of each of ws, and refuses for as long as one of them has not enough.
func (l *limiter) slowDown(n float64, what string, ws ...who) error {
	for _, w := range ws {
		if wait := l.take(w, n); wait > 0 {
			e := refusal(wire.CodeBusy, "%s; go on in a moment.", what)
			e.RetryAfter = int(math.Ceil(wait.Seconds()))
			return e
		}
	}
	return nil
}

// limits are the limiters of a Server.
type limits struct {
	keyRequests, vaultRequests, strangerRequests *limiter
	guesses, keyNames, vaultNames, recordBytes   *limiter
}

func newLimits() limits {
	return limits{
		newLimiter(keyRequests), newLimiter(vaultRequests), newLimiter(strangerRequests),
		newLimiter(guesses), newLimiter(keyNames), newLimiter(vaultNames), newLimiter(recordBytes),
	}
}

const tooManyRequests = "One machine may not make that many requests"

// request counts one request of c.
func (l *limits) request(c caller) error {
	switch {
	case c.stranger():
		return l.strangerRequests.slowDown(1, "Machines without an account may not make that many requests from one network", who{network: c.network})
	case c.standing == redeemed:
		return l.keyRequests.slowDown(1, tooManyRequests, who{key: c.key})
	}
	if err := l.keyRequests.slowDown(1, tooManyRequests, who{key: c.key}); err != nil {
		return err
	}
	return l.vaultRequests.slowDown(1, "The machines of one vault may not make that many requests", who{vault: c.machine.Vault})
}

// guess counts one request by which somebody could look for secrets of others.
func (l *limits) guess(c caller) error {
	w := who{key: c.key}
	if c.stranger() {
		w = who{network: c.network}
	}
	return l.guesses.slowDown(1, "One machine may not try that often", w)
}

// names counts presence questions.
func (l *limits) names(c caller, n int) error {
	const what = "The service does not look for that many blocks at a time"
	if err := l.keyNames.slowDown(float64(n), what, who{key: c.key}); err != nil {
		return err
	}
	return l.vaultNames.slowDown(float64(n), what, who{vault: c.machine.Vault})
}

// record counts a record of size bytes that is to be added to the history of a vault, of which the account is
// zeros unless c made no vault yet.
func (l *limits) record(c caller, vault holdfast.VaultID, size int) error {
	w := who{vault: vault}
	if c.standing == redeemed {
		w = who{account: c.account}
	}
	return l.recordBytes.slowDown(float64(size+recordOverhead), "One vault may not add that many records to its history", w)
}

// networkOf returns who shares the limits of strangers with the machine at an address: a /24 of IPv4, a /48 of
// IPv6. Addresses inside one cost nothing.
func networkOf(addr string) netip.Prefix {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.Prefix{}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{}
	}
	bits := 48
	if a = a.Unmap().WithZone(""); a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
