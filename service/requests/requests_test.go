package requests

import (
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"holdfast/service/bucket"
)

// some returns an attempt of a kind that i chooses.
func some(i int, began time.Time) Attempt {
	return Attempt{
		Op: bucket.Ops[i%len(bucket.Ops)], Class: bucket.Classes[i/3%len(bucket.Classes)], N: 1 + i%5, Same: i % 6, Hedge: i%7 == 0, Exhausted: i%11 == 0,
		Began: began, Took: time.Duration(i%4000) * 17 * time.Millisecond, Bytes: int64(i) << (i % 20),
	}
}

// op returns what a report says about an operation.
func (r Report) op(op bucket.Op) Op {
	for _, o := range r.Ops {
		if o.Op == op {
			return o
		}
	}
	return Op{}
}

// The classes of bucket.Class and the operations have their fixed places in the file: more need another version.
func TestPlacesAreFixed(t *testing.T) {
	if len(bucket.Ops) != ops || len(bucket.Classes) != classes {
		t.Fatalf("%d operations and %d classes, the format has room for %d and %d", len(bucket.Ops), len(bucket.Classes), ops, classes)
	}
	var o, c []string
	for _, x := range bucket.Ops {
		o = append(o, string(x))
	}
	for _, x := range bucket.Classes {
		c = append(c, string(x))
	}
	if s := strings.Join(o, " "); s != "put get list delete swap now" {
		t.Errorf("operations: %s", s)
	}
	if s := strings.Join(c, " "); s != "ok not_found condition server busy timeout connection corrupt denied clock full config open canceled" {
		t.Errorf("classes: %s", s)
	}
}

// Quantiles err by less than half an octave, and not at all where times are alike.
func TestQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var h hist
		d := time.Duration(math.Exp(rng.Float64()*math.Log(30e9/2e6)) * 2e6) // 2 ms to 30 s
		for range 100 {
			h.add(d)
		}
		for _, q := range []float64{0, 0.01, 0.5, 0.99, 1} {
			if m := h.mean(q); (m - d).Abs() > tick {
				t.Errorf("the mean at %v of times of %v is %v", q, d, m)
			}
			if u := h.upper(q); u < d || u > d*1415/1000 {
				t.Errorf("the upper bound at %v of times of %v is %v", q, d, u)
			}
		}
	}
	var h hist
	for i := range 1000 {
		h.add(time.Duration(i) * 10 * time.Millisecond)
	}
	for q, want := range map[float64]time.Duration{0.5: 5 * time.Second, 0.99: 9900 * time.Millisecond} {
		if got := h.mean(q); got < want*7/10 || got > want*14/10 {
			t.Errorf("%v of 0 to 10 s: %v", q, got)
		}
	}
	if (&hist{}).mean(0.5) != 0 || (&hist{}).upper(0.5) != 0 {
		t.Error("nothing has a median")
	}
}

// Latency follows what happens now, knows sizes apart, and says nothing of what it does not know.
func TestLatency(t *testing.T) {
	h := New()
	add := func(op bucket.Op, c bucket.Class, took time.Duration, n int64, times int) {
		for range times {
			h.Add(Attempt{Op: op, Class: c, N: 1, Began: time.Now(), Took: took, Bytes: n})
		}
	}
	within := func(op bucket.Op, n int64, want time.Duration) {
		t.Helper()
		if got := h.Latency(op, n, 0.95); got < want || got > want*1415/1000 {
			t.Errorf("%s of %d bytes: %v, want %v", op, n, got, want)
		}
	}
	add(bucket.OpPut, bucket.ClassOK, time.Second, 16<<20, fewest-1)
	if d := h.Latency(bucket.OpPut, 16<<20, 0.95); d != 0 {
		t.Errorf("of %d answers: %v", fewest-1, d)
	}
	add(bucket.OpPut, bucket.ClassOK, time.Second, 16<<20, 100)
	add(bucket.OpPut, bucket.ClassOK, 10*time.Millisecond, 4000, 100)
	add(bucket.OpGet, bucket.ClassNotFound, 20*time.Millisecond, 4000, 100)
	add(bucket.OpNow, bucket.ClassOK, 30*time.Millisecond, 0, 100)
	within(bucket.OpPut, 5<<20, time.Second)
	within(bucket.OpPut, 1, 10*time.Millisecond)
	within(bucket.OpGet, 4096, 20*time.Millisecond)
	within(bucket.OpNow, 0, 30*time.Millisecond)
	add(bucket.OpNow, bucket.ClassServer, time.Minute, 0, 1000) // failures say nothing about answers
	add(bucket.OpNow, bucket.ClassCanceled, 200*time.Millisecond, 0, 1000)
	within(bucket.OpNow, 0, 30*time.Millisecond)
	add(bucket.OpNow, bucket.ClassCanceled, 2*time.Second, 0, 30) // it would have taken longer still
	within(bucket.OpNow, 0, 2*time.Second)
	add(bucket.OpPut, bucket.ClassOK, 3*time.Second, 16<<20, 3*halveAt)
	within(bucket.OpPut, 16<<20, 3*time.Second)
	add(bucket.OpPut, bucket.ClassOK, 100*time.Millisecond, 16<<20, 10*halveAt)
	within(bucket.OpPut, 16<<20, 100*time.Millisecond)
}

// What is added is in the report, for as long as it is kept, and in the time in which it was; memory stays within its bound.
func TestSlicesOfTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		for day := range 45 {
			for hour := range 24 {
				for i := range 60 {
					h.Add(some(day*hour*i, time.Now()))
					time.Sleep(time.Minute)
				}
			}
		}
		sum := func(since time.Duration) (n uint64) {
			for _, o := range h.Report(since).Ops {
				for _, x := range o.Classes {
					n += x
				}
			}
			return n
		}
		for since, want := range map[time.Duration]uint64{10 * time.Minute: 10, time.Hour: 60, 6 * time.Hour: 360, 24 * time.Hour: 24 * 60, 30 * 24 * time.Hour: 30 * 24 * 60} {
			if n := sum(since); n+60 < want || n > want+60 {
				t.Errorf("%v: %d attempts, want %d", since, n, want)
			}
		}
		if n := sum(0); n < (Hours-2)*60 || n > Hours*60 {
			t.Errorf("%d attempts are kept", n)
		}
		r := h.Report(24 * time.Hour)
		if len(r.When) < 20 || len(r.When) > maxPeriods || len(r.Failures) > Failures || len(r.Slowest) > Slowest {
			t.Errorf("%d periods, %d failures, %d slowest", len(r.When), len(r.Failures), len(r.Slowest))
		}
		// A clock that was set back counts on.
		h.Add(Attempt{Op: bucket.OpPut, Class: bucket.ClassOK, N: 1, Began: time.Unix(-5, 0)})
	})
	if n := unsafe.Sizeof(History{}) + (Minutes+Hours)*unsafe.Sizeof(slice{}); n > MaxMemory {
		t.Errorf("a full history takes %d bytes, and MaxMemory is %d", n, MaxMemory)
	}
}

// Counters that are full stay so.
func TestCountersDoNotGoRound(t *testing.T) {
	h := New()
	a := Attempt{Op: bucket.OpPut, Class: bucket.ClassServer, N: 1, Began: time.Now(), Took: time.Minute}
	h.Add(a)
	for _, s := range h.hours {
		if s != nil {
			c := &s.Ops[0]
			c.Tried[0], c.Failed[0], c.Classes[3], c.Bad.N[buckets-1] = math.MaxUint32, math.MaxUint32, math.MaxUint32, math.MaxUint32
		}
	}
	h.Add(a)
	if o := h.Report(0).op(bucket.OpPut); o.Failed != math.MaxUint32 || o.Answered != 0 {
		t.Errorf("%+v", o)
	}
}

// A request that fails again while others are answered stands out, and says since when; a store that was away for all does not
// look like that, and neither do failures by chance.
func TestVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		share  float64 // of first attempts that fail
		again  float64 // of second ones
		others bool    // are answered meanwhile
		want   string
	}{
		"july 2016":  {0.01, 1, true, "failures of put are correlated: a request that failed once fails again in 100 % of cases"},
		"by chance":  {0.02, 0.02, true, ""},
		"bad store":  {0.5, 0.55, true, ""},
		"all failed": {0.02, 1, false, ""},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := New()
			rng := rand.New(rand.NewPCG(1, 1))
			add := func(same int, fails bool) {
				a := Attempt{Op: bucket.OpPut, Class: bucket.ClassOK, N: same + 1, Same: same, Began: time.Now(), Took: 500 * time.Millisecond, Bytes: 1 << 20}
				if fails {
					a.Class, a.Took = bucket.ClassServer, 4880*time.Millisecond
				}
				time.Sleep(a.Took)
				h.Add(a)
			}
			begin := time.Now().Add(5 * time.Hour)
			for time.Since(begin) < 5*time.Hour {
				if time.Now().Before(begin) || rng.Float64() >= c.share {
					add(0, false)
				} else {
					add(0, true)
					if c.others {
						h.Add(Attempt{Op: bucket.OpGet, Class: bucket.ClassOK, N: 1, Began: time.Now()})
					} else {
						time.Sleep(time.Minute)
					}
					add(1, rng.Float64() < c.again)
				}
				time.Sleep(5 * time.Second)
			}
			got := strings.Join(h.Report(0).Verdicts, "\n")
			if !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
			if c.want != "" && !strings.Contains(got, "4.88 s; first seen "+begin.UTC().Format("2006-01-02 15")) {
				t.Errorf("%s: %q does not say that it began at %v", name, got, begin)
			}
		})
	}
}

// A history on disk goes on after Close, and Read says the same of it.
func TestHistoryGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	began := time.Now().Add(-3 * time.Hour)
	all := New()
	for run := range 4 {
		h := Open(path, nil)
		for i := range 500 {
			a := some(run*500+i, began.Add(time.Duration(run*40)*time.Minute))
			h.Add(a)
			all.Add(a)
		}
		h.Close()
		now := time.Now()
		read, err := Read(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		if read.Saved.IsZero() || now.Sub(read.Saved) > time.Minute {
			t.Errorf("saved %v", read.Saved)
		}
		want := all.Report(0)
		for _, op := range bucket.Ops {
			w, g := want.op(op), read.op(op)
			w.PerHour, g.PerHour = 0, 0
			if !equal(w, g) {
				t.Errorf("run %d: %s: %+v, want %+v", run, op, g, w)
			}
		}
		if !equal(want.Failures, read.Failures) || !equal(want.Slowest, read.Slowest) || !equal(want.When, read.When) {
			t.Errorf("run %d: other singles or periods", run)
		}
		if h.Latency(bucket.OpPut, 1, 0.5) != all.Latency(bucket.OpPut, 1, 0.5) {
			t.Errorf("run %d: other latencies", run)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != FileSize || st.Mode().Perm() != 0o600 {
			t.Errorf("run %d: the file: %v, %v", run, st, err)
		}
	}
}

func BenchmarkAdd(b *testing.B) {
	h := New()
	a := Attempt{Op: bucket.OpPut, Class: bucket.ClassOK, N: 1, Began: time.Now(), Took: 100 * time.Millisecond, Bytes: 1 << 20}
	for b.Loop() {
		h.Add(a)
	}
}
