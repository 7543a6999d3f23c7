package requests

import (
	"math"
	"time"

	"holdfast/service/bucket"
)

// buckets is how many classes of time a histogram has: below 1 ms, then two to the octave from 1 ms on, the last
// without end (from 46 s).
const buckets = 33

// tick is the unit of the times that are kept.
const tick = 100 * time.Microsecond

// hist is a histogram of times. It knows the sum of each class, so that times that are alike, such as those of one
// kind of failure, come out as they were.
type hist struct {
	N   [buckets]uint32
	Sum [buckets]uint32 // ticks
}

// edges are the upper bounds of the classes but the last.
var edges = func() (e [buckets - 1]time.Duration) {
	for i := range e {
		e[i] = time.Duration(float64(time.Millisecond) * math.Pow(2, float64(i)/2))
	}
	return e
}()

// place returns the class of a time.
func place(d time.Duration) int {
	lo, hi := 0, buckets-1
	for lo < hi {
		if mid := (lo + hi) / 2; d < edges[mid] {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// ticks returns a time in ticks, rounded, within 32 bits.
func ticks(d time.Duration) uint32 {
	return uint32(min(max(0, (d+tick/2)/tick), math.MaxUint32))
}

// plus adds without going round.
func plus(x *uint32, n uint32) { *x = uint32(min(uint64(*x)+uint64(n), math.MaxUint32)) }

func (h *hist) add(d time.Duration) {
	i := place(d)
	plus(&h.N[i], 1)
	plus(&h.Sum[i], ticks(d))
}

func (h *hist) merge(o *hist) {
	for i := range h.N {
		plus(&h.N[i], o.N[i])
		plus(&h.Sum[i], o.Sum[i])
	}
}

func (h *hist) count() (n uint64) {
	for _, x := range h.N {
		n += uint64(x)
	}
	return n
}

// at returns the class in which the quantile lies; -1 if nothing was counted.
func (h *hist) at(quantile float64) int {
	n, seen := h.count(), uint64(0)
	rank := uint64(math.Ceil(quantile * float64(n)))
	for i, x := range h.N {
		if seen += uint64(x); x > 0 && seen >= rank {
			return i
		}
	}
	return -1
}

// mean returns the mean of the class in which the quantile lies.
func (h *hist) mean(quantile float64) time.Duration {
	i := h.at(quantile)
	if i < 0 {
		return 0
	}
	return time.Duration(h.Sum[i]) * tick / time.Duration(h.N[i])
}

// upper returns the upper bound of that class; of the last its mean.
func (h *hist) upper(quantile float64) time.Duration {
	if i := h.at(quantile); i >= 0 && i < len(edges) {
		return edges[i]
	}
	return h.mean(quantile)
}

// What an operation is counted by.
const (
	failures0 = 4 // failures of the same request before: 0, 1, 2, more
	attempts0 = 3 // attempts of a call: 1, 2, more
	classes   = 14
	ops       = 6
)

// counts is what is counted of one operation in one slice. Attempts that the caller ended or that were not sent are in
// Classes only.
type counts struct {
	Classes         [classes]uint32   // as bucket.Classes
	Tried           [failures0]uint32 // by how often the same request had failed before
	Failed          [failures0]uint32 // of these
	Alone           [failures0]uint32 // of these: while the store answered others
	Attempts        [attempts0]uint32 // by number within the call
	AttemptsFailed  [attempts0]uint32
	Hedges, Won     uint32
	Exhausted       uint32
	MaxGood, MaxBad uint32 // ticks
	Good, Bad       hist   // of what was answered, and of what failed
}

func (c *counts) add(a Attempt, class int, alone bool) {
	plus(&c.Classes[class], 1)
	if a.Hedge && a.Class != bucket.ClassOpen {
		plus(&c.Hedges, 1)
	}
	if !a.Class.Answer() && !a.failed() {
		return
	}
	same, n := min(max(a.Same, 0), failures0-1), min(max(a.N, 1), attempts0)-1
	plus(&c.Tried[same], 1)
	plus(&c.Attempts[n], 1)
	if !a.failed() {
		c.Good.add(a.Took)
		c.MaxGood = max(c.MaxGood, ticks(a.Took))
		if a.Hedge {
			plus(&c.Won, 1)
		}
		return
	}
	c.Bad.add(a.Took)
	c.MaxBad = max(c.MaxBad, ticks(a.Took))
	plus(&c.Failed[same], 1)
	plus(&c.AttemptsFailed[n], 1)
	if alone {
		plus(&c.Alone[same], 1)
	}
	if a.Exhausted {
		plus(&c.Exhausted, 1)
	}
}

func (c *counts) merge(o *counts) {
	mergeAll(c.Classes[:], o.Classes[:])
	mergeAll(c.Tried[:], o.Tried[:])
	mergeAll(c.Failed[:], o.Failed[:])
	mergeAll(c.Alone[:], o.Alone[:])
	mergeAll(c.Attempts[:], o.Attempts[:])
	mergeAll(c.AttemptsFailed[:], o.AttemptsFailed[:])
	plus(&c.Hedges, o.Hedges)
	plus(&c.Won, o.Won)
	plus(&c.Exhausted, o.Exhausted)
	c.MaxGood, c.MaxBad = max(c.MaxGood, o.MaxGood), max(c.MaxBad, o.MaxBad)
	c.Good.merge(&o.Good)
	c.Bad.merge(&o.Bad)
}

func mergeAll(into, from []uint32) {
	for i := range into {
		plus(&into[i], from[i])
	}
}

// slice is what happened in one minute or hour.
type slice struct {
	Begin int64 // Unix seconds; in the head of its page
	Ops   [ops]counts
}

// The classes of size of a Put or Get, bytes; the last has no bound.
var sizes = [...]int64{4 << 10, 64 << 10, 1 << 20, 4 << 20}

// recent is how long answers took lately: Put by size, Get by size, then List, Delete, Swap and Now.
type recent [2*(len(sizes)+1) + 4]hist

// halveAt is at how many answers a histogram of recent is halved, so that it follows what changes.
const halveAt = 512

// giveUp is from when on a request that its caller ended says something about the store: it would have taken that
// long at least.
const giveUp = 300 * time.Millisecond

// sizeClass returns the index in recent.
func sizeClass(op int, bytes int64) int {
	if op > 1 { // not Put or Get
		return 2*(len(sizes)+1) + op - 2
	}
	i := 0
	for i < len(sizes) && bytes > sizes[i] {
		i++
	}
	return op*(len(sizes)+1) + i
}

func (r *recent) add(a Attempt, op int) {
	if !a.Class.Answer() && (a.Class != bucket.ClassCanceled || a.Took < giveUp) {
		return
	}
	h := &r[sizeClass(op, a.Bytes)]
	h.add(a.Took)
	if h.count() < halveAt {
		return
	}
	for i, n := range h.N {
		if n > 0 {
			h.Sum[i] = uint32(uint64(h.Sum[i]) * uint64(n/2) / uint64(n))
			h.N[i] = n / 2
		}
	}
}

// single is one attempt; the zero value is none.
type single struct {
	Began    int64  // Unix ms
	Took     uint32 // ticks
	Bytes    uint32
	Op       uint8 // index in bucket.Ops
	Class    uint8 // index in bucket.Classes
	N        uint8 // from 1
	Same     uint8
	Bits     uint8
	Reserved [3]uint8 // zero
}

const (
	bitHedge     = 1
	bitExhausted = 2
)

// ring is a bounded set of single attempts, in no order.
type ring [Failures]single

func singleOf(a Attempt, op, class int) single {
	s := single{
		Began: a.Began.UnixMilli(), Took: ticks(a.Took), Bytes: uint32(min(max(a.Bytes, 0), math.MaxUint32)),
		Op: uint8(op), Class: uint8(class), N: uint8(min(max(a.N, 1), 255)), Same: uint8(min(max(a.Same, 0), 255)),
	}
	if a.Hedge {
		s.Bits |= bitHedge
	}
	if a.Exhausted {
		s.Bits |= bitExhausted
	}
	return s
}

// newest puts s in the place of the oldest.
func (r *ring) newest(s single) {
	oldest := 0
	for i := range r {
		if r[i].N == 0 {
			oldest = i
			break
		}
		if r[i].Began < r[oldest].Began {
			oldest = i
		}
	}
	r[oldest] = s
}

// slowest puts s in the place of one that is a day older or, if there is none, of the quickest, and reports whether
// it did: not if that was slower.
func (r *ring) slowest(s single) bool {
	quickest := 0
	for i := range r {
		if r[i].N == 0 || r[i].Began < s.Began-24*3600*1000 {
			r[i] = s
			return true
		}
		if r[i].Took < r[quickest].Took {
			quickest = i
		}
	}
	if s.Took <= r[quickest].Took {
		return false
	}
	r[quickest] = s
	return true
}
