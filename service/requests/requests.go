// Package requests keeps a bounded history of the requests to the bucket: how long they took, how they ended, and how
// likely one is to fail that failed before. "Every third try of the same request fails the same way after 4.88 s"
// is to be seen in a minute, not found in a week.
//
// The history is counted by operation in slices of time: each minute of the last hour and each hour of the last 40
// days. Beside that there are the newest failures and the slowest requests of a day, one by one, without their keys,
// and how long answers took lately, by size, from which hedging takes its time (Latency).
//
// # The file
//
// A History may be kept in a file of FileSize bytes, which are written once when it is made, so that a full disk
// takes nothing away later. It is pages of 4,096 bytes, big-endian, zero after the last field:
//
//	u32 CRC-32C of the rest of the page
//	u8  version, 1
//	u8  kind: 1 minute, 2 hour, 3 latencies, 4 failures, 5 slowest
//	u16 index among those of its kind
//	u64 sequence number, rising with each time that the page is written; from 1
//	i64 begin of the slice, Unix seconds; 0 for the kinds 3 to 5
//	i64 when it was written, Unix milliseconds
//	    what is counted: the fields of slice, recent or ring in their order
//
// A page has two places, one in each half of the file, which are written in turn: of a write that is cut short
// remains the one before. A place that was never used is all zero. What is in use is written every minute and
// at the end; a crash loses a minute. There is nothing else in the file, and nothing rests on it: one that is damaged is put aside
// (DamagedSuffix) and a new one goes on with what could be read.
package requests

import (
	"sync"
	"time"

	"holdfast/service/bucket"
)

// FileName is the name of the file in the data directory.
const FileName = "requests"

// What a history is bounded by. All of it is reached after 40 days.
const (
	Minutes  = 60      // slices of a minute
	Hours    = 40 * 24 // slices of an hour
	Failures = 120     // newest failures, one by one
	Slowest  = 120     // slowest requests of a day, one by one

	// FileSize is the size of the file, bytes.
	FileSize = 2 * pages * pageSize
	// MaxMemory bounds the memory that a History takes, bytes: every slice, and twice as much as is written at
	// one time.
	MaxMemory = (Minutes+Hours)*pageSize + 16*pageSize
)

// Attempt is one request to the store and its end.
type Attempt struct {
	Op    bucket.Op
	Class bucket.Class
	N     int // which attempt of its call it was, from 1
	// Same is how often this identical request had failed before; the second attempt at another range, say, is
	// another request.
	Same      int
	Hedge     bool // begun beside one that was slow. It has won if it was answered: the loser is cancelled
	Exhausted bool // it failed, and this request is not tried again: it is abandoned for another, or given up
	Began     time.Time
	Took      time.Duration
	Bytes     int64 // that it was to move
}

// failed reports whether the store failed the attempt.
func (a Attempt) failed() bool {
	return !a.Class.Answer() && a.Class != bucket.ClassCanceled && a.Class != bucket.ClassOpen
}

// companyTime is how long ago another request was answered at most, for a failure to count as one that the others
// did not share.
const companyTime = 5 * time.Second

// History counts attempts. It is safe for concurrent use.
type History struct {
	mu       sync.Mutex
	minutes  [Minutes]*slice // each where slot puts it
	hours    [Hours]*slice
	recent   recent
	failures ring // the newest
	slowest  ring
	answered time.Time // when the store last answered
	dirty    [pages]bool

	disk disk
}

// Add counts an attempt that has ended.
func (h *History) Add(a Attempt) {
	op, class := indexOf(bucket.Ops, a.Op), indexOf(bucket.Classes, a.Class)
	if op < 0 || class < 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	end := a.Began.Add(a.Took)
	alone := a.failed() && h.answered.After(a.Began.Add(-companyTime))
	if a.Class.Answer() && end.After(h.answered) {
		h.answered = end
	}
	minute, i := slot(h.minutes[:], end, time.Minute)
	hour, k := slot(h.hours[:], end, time.Hour)
	minute.Ops[op].add(a, class, alone)
	hour.Ops[op].add(a, class, alone)
	h.recent.add(a, op)
	h.dirty[i], h.dirty[Minutes+k], h.dirty[pageRecent] = true, true, true
	if a.failed() {
		h.failures.newest(singleOf(a, op, class))
		h.dirty[pageFailures] = true
	}
	if (a.failed() || a.Class.Answer()) && h.slowest.slowest(singleOf(a, op, class)) {
		h.dirty[pageSlowest] = true
	}
}

// slot returns the slice of the time t, made anew if another time has its place.
func slot(all []*slice, t time.Time, each time.Duration) (*slice, int) {
	s := int64(each / time.Second)
	n := max(0, t.Unix()) / s
	i := int(n % int64(len(all)))
	if all[i] == nil || all[i].Begin != n*s {
		all[i] = &slice{Begin: n * s}
	}
	return all[i], i
}

// fewest is how many answers Latency needs.
const fewest = 20

// Latency returns how long the quickest share of quantile (0 to 1) of the recent answers took to calls of op that
// moved about as many bytes; 0 if there were too few to say. Beyond a few milliseconds it errs by up to 41 %, upwards.
func (h *History) Latency(op bucket.Op, bytes int64, quantile float64) time.Duration {
	i := indexOf(bucket.Ops, op)
	if i < 0 {
		return 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	hist := &h.recent[sizeClass(i, bytes)]
	if hist.count() < fewest {
		return 0
	}
	return hist.upper(quantile)
}

func indexOf[T comparable](all []T, x T) int {
	for i, y := range all {
		if x == y {
			return i
		}
	}
	return -1
}
