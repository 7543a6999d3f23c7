package requests

import (
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"holdfast/service/bucket"
)

// Report is what a history says about a time. Times are in seconds.
type Report struct {
	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Saved time.Time `json:"saved,omitzero"` // when the file was written of which this was read
	// Verdicts say what stands out, in a sentence each.
	Verdicts []string `json:"verdicts"`
	Ops      []Op     `json:"operations"` // those that were used
	When     []Period `json:"when"`       // oldest first
	Failures []Single `json:"failures"`   // newest first
	Slowest  []Single `json:"slowest"`    // slowest first; of the last day
}

// Op is one operation.
type Op struct {
	Op       bucket.Op               `json:"op"`
	Attempts uint64                  `json:"attempts"` // that were answered or failed
	Answered uint64                  `json:"answered"`
	Failed   uint64                  `json:"failed"`
	Classes  map[bucket.Class]uint64 `json:"classes"`            // those that occurred; canceled and open are not attempts
	Good     Latency                 `json:"latency_of_answers"` // seconds
	Bad      Latency                 `json:"latency_of_failures"`
	// Alike is the share of failures that took about as long as Bad.Median.
	Alike     float64  `json:"failures_alike"`
	Same      []Chance `json:"by_failures_of_the_same_request"` // 0, 1, 2, 3 or more
	ByAttempt []Chance `json:"by_attempt"`                      // 1, 2, 3 or more of a call; from the third on it is another request
	Hedges    uint64   `json:"hedges"`
	Won       uint64   `json:"hedges_won"`
	Exhausted uint64   `json:"exhausted"`
	PerHour   float64  `json:"exhausted_per_hour"`
}

// Latency says how long calls took, seconds.
type Latency struct {
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
}

// Chance is how often something failed of how often it was tried.
type Chance struct {
	Tried  uint64 `json:"tried"`
	Failed uint64 `json:"failed"`
	Alone  uint64 `json:"failed_alone"` // while the store answered other requests
}

// P returns the share that failed; NaN of none.
func (c Chance) P() float64 { return float64(c.Failed) / float64(c.Tried) }

// Period is what happened in a part of the time.
type Period struct {
	Begin     time.Time `json:"begin"`
	Length    float64   `json:"length"` // seconds
	Attempts  uint64    `json:"attempts"`
	Failed    uint64    `json:"failed"`
	Repeated  Chance    `json:"repeated"` // attempts at requests that had failed before
	Exhausted uint64    `json:"exhausted"`
	Bad       float64   `json:"median_of_failures"` // seconds
}

// Single is one attempt.
type Single struct {
	Began     time.Time    `json:"began"`
	Op        bucket.Op    `json:"op"`
	Class     bucket.Class `json:"class"`
	Attempt   int          `json:"attempt"`
	Same      int          `json:"failures_before"`
	Hedge     bool         `json:"hedge,omitempty"`
	Exhausted bool         `json:"exhausted,omitempty"`
	Took      float64      `json:"took"` // seconds
	Bytes     int64        `json:"bytes"`
}

// Report says what happened in the time of this length up to now, by whole minutes if that is an hour at most, otherwise by
// whole hours; 0 is everything that is kept.
func (h *History) Report(since time.Duration) Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.report(time.Now(), since)
}

// Read is Report for a stopped service. It changes nothing. What can be read of a damaged file is reported, with an
// error that wraps ErrDamaged.
func Read(path string, since time.Duration) (Report, error) {
	f, err := os.Open(path)
	if err != nil {
		return Report{}, err
	}
	defer f.Close()
	h := New()
	written, err := h.load(f)
	r := h.report(time.Now(), since)
	if written > 0 {
		r.Saved = time.UnixMilli(written).UTC()
	}
	return r, err
}

// maxPeriods bounds the periods of a report: the hours of a day, and the one that has begun.
const maxPeriods = 25

func (h *History) report(now time.Time, since time.Duration) Report {
	all, each := h.hours[:], time.Hour
	if since > 0 && since <= time.Hour {
		all, each = h.minutes[:], time.Minute
	}
	longest := each * time.Duration(len(all))
	if since <= 0 || since > longest {
		since = longest
	}
	from := now.Add(-since).Truncate(each)
	var used []*slice
	for _, s := range all {
		if s != nil && !time.Unix(s.Begin, 0).Before(from) && !time.Unix(s.Begin, 0).After(now) {
			used = append(used, s)
		}
	}
	slices.SortFunc(used, func(a, b *slice) int { return int(a.Begin - b.Begin) })
	if len(used) > 0 {
		from = time.Unix(used[0].Begin, 0)
	}
	r := Report{From: from.UTC(), To: now.UTC(), Verdicts: []string{}, Ops: []Op{}, When: periods(used, from, now, each)}
	for i, op := range bucket.Ops {
		var c counts
		for _, s := range used {
			c.merge(&s.Ops[i])
		}
		if o := opOf(op, &c); len(o.Classes) > 0 {
			o.PerHour = float64(o.Exhausted) / max(now.Sub(from).Hours(), 1./60)
			r.Ops = append(r.Ops, o)
		}
	}
	r.Failures = h.failures.since(from)
	slices.SortFunc(r.Failures, func(a, b Single) int { return b.Began.Compare(a.Began) })
	r.Slowest = h.slowest.since(from)
	slices.SortFunc(r.Slowest, func(a, b Single) int { return int((b.Took - a.Took) * 1e4) })
	r.Verdicts = append(r.Verdicts, verdicts(r)...)
	return r
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1e4) / 1e4 }

func opOf(op bucket.Op, c *counts) Op {
	o := Op{Op: op, Classes: map[bucket.Class]uint64{}, Hedges: uint64(c.Hedges), Won: uint64(c.Won), Exhausted: uint64(c.Exhausted)}
	for i, n := range c.Classes {
		if n > 0 {
			o.Classes[bucket.Classes[i]] = uint64(n)
		}
	}
	o.Good, o.Bad = latency(&c.Good, c.MaxGood), latency(&c.Bad, c.MaxBad)
	o.Alike = c.Bad.alike()
	for i := range c.Tried {
		o.Same = append(o.Same, Chance{uint64(c.Tried[i]), uint64(c.Failed[i]), uint64(c.Alone[i])})
		o.Attempts += uint64(c.Tried[i])
		o.Failed += uint64(c.Failed[i])
	}
	o.Answered = o.Attempts - min(o.Failed, o.Attempts)
	for i := range c.Attempts {
		o.ByAttempt = append(o.ByAttempt, Chance{Tried: uint64(c.Attempts[i]), Failed: uint64(c.AttemptsFailed[i])})
	}
	return o
}

func latency(h *hist, most uint32) Latency {
	return Latency{seconds(h.mean(0.5)), seconds(h.mean(0.99)), seconds(time.Duration(most) * tick)}
}

// alike returns the share of times that lie beside the median, in its class or the next: within a factor of two or
// so.
func (h *hist) alike() float64 {
	i := h.at(0.5)
	if i < 0 {
		return 0
	}
	n := uint64(h.N[i])
	if i > 0 && i < buckets-1 {
		n += uint64(max(h.N[i-1], h.N[i+1]))
	}
	return float64(n) / float64(h.count())
}

// periods gathers slices into at most maxPeriods parts of the same length, without those in which nothing happened.
func periods(used []*slice, from, now time.Time, each time.Duration) []Period {
	out := []Period{}
	length := each
	for n := now.Sub(from); length*maxPeriods < n; {
		length += each
	}
	var bad hist
	for _, s := range used {
		begin := from.Add(time.Unix(s.Begin, 0).Sub(from).Truncate(length)).UTC()
		if len(out) == 0 || out[len(out)-1].Begin != begin {
			out, bad = append(out, Period{Begin: begin, Length: length.Seconds()}), hist{}
		}
		p := &out[len(out)-1]
		for i := range s.Ops {
			c := &s.Ops[i]
			for k := range c.Tried {
				p.Attempts += uint64(c.Tried[k])
				p.Failed += uint64(c.Failed[k])
				if k > 0 {
					p.Repeated.Tried += uint64(c.Tried[k])
					p.Repeated.Failed += uint64(c.Failed[k])
					p.Repeated.Alone += uint64(c.Alone[k])
				}
			}
			p.Exhausted += uint64(c.Exhausted)
			bad.merge(&c.Bad)
		}
		p.Bad = seconds(bad.mean(0.5))
	}
	return out
}

func (r *ring) since(from time.Time) []Single {
	out := []Single{}
	for _, s := range r {
		if s.N == 0 || s.Began < from.UnixMilli() {
			continue
		}
		out = append(out, Single{
			Began: time.UnixMilli(s.Began).UTC(), Op: bucket.Ops[s.Op], Class: bucket.Classes[s.Class], Attempt: int(s.N), Same: int(s.Same),
			Hedge: s.Bits&bitHedge != 0, Exhausted: s.Bits&bitExhausted != 0,
			Took: seconds(time.Duration(s.Took) * tick), Bytes: int64(s.Bytes),
		})
	}
	return out
}

// When the chance that a request fails again counts as much higher than that of any request.
const (
	fewestRepeats = 5   // that failed while others were answered
	correlated    = 0.5 // of those that were repeated
	timesHigher   = 3
)

// When an operation counts as failing.
const (
	fewestAttempts = 20
	mostlyFailing  = 0.5
)

// verdicts says what stands out.
func verdicts(r Report) (out []string) {
	for _, o := range r.Ops {
		first := o.Same[0].P()
		for k := len(o.Same) - 1; k > 0; k-- {
			c := o.Same[k]
			again := float64(c.Alone) / float64(c.Tried)
			if c.Alone < fewestRepeats || again < correlated || again < timesHigher*first {
				continue
			}
			text := fmt.Sprintf("failures of %s are correlated: a request that failed %s fails again in %s of cases (%d of %d), while the store answers others; requests made for the first time fail in %s of cases",
				o.Op, []string{"", "once", "twice", "three times or more"}[k], Percent(again), c.Alone, c.Tried, Percent(first))
			if o.Alike >= 0.8 {
				text += fmt.Sprintf("; failures take about the same time, %.2f s", o.Bad.Median)
			}
			if since, ok := firstAlone(r.When); ok {
				text += "; first seen " + since.Format("2006-01-02 15:04") + " UTC"
			}
			out = append(out, text+"; such requests are abandoned for new ones, see docs/storage.md")
			break
		}
		if o.Attempts >= fewestAttempts && float64(o.Failed) > mostlyFailing*float64(o.Attempts) {
			out = append(out, fmt.Sprintf("%s of the attempts at %s failed", Percent(float64(o.Failed)/float64(o.Attempts)), o.Op))
		}
	}
	return out
}

// firstAlone returns the first period in which repeated requests failed while others were answered, unless it is the first of all:
// then that may have begun earlier.
func firstAlone(when []Period) (time.Time, bool) {
	i := slices.IndexFunc(when, func(p Period) bool { return p.Repeated.Alone > 0 })
	if i <= 0 {
		return time.Time{}, false
	}
	return when[i].Begin, true
}

// Percent writes a share for people, so that a small one is not nothing.
func Percent(p float64) string {
	switch p *= 100; {
	case math.IsNaN(p):
		return "-"
	case p > 0 && p < 0.1:
		return fmt.Sprintf("%.2g %%", p)
	case p < 10:
		return fmt.Sprintf("%.1f %%", p)
	}
	return fmt.Sprintf("%.0f %%", p)
}
