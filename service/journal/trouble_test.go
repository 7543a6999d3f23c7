package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/internal/never"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
)

// The bucket is away for an hour, or a day, in every form. The journal does not stop, says since when and why, waits
// with a bounded amount of memory and log, and goes on by itself: everything that it took before is acknowledged,
// in order.
func TestOutage(t *testing.T) {
	forms := map[string]sim.Fault{
		"fails":        {Err: sim.ErrFault},
		"slow to fail": {Slow: sim.CursedDelay, Err: sim.ErrFault},
		"silent":       {Hang: true},
		"late":         {Hang: true, Late: 10 * time.Minute},
		"applied":      {Err: sim.ErrFault, Applied: true},
		"denied":       {Err: &bucket.Error{Class: bucket.ClassDenied, Err: errors.New("AccessDenied")}},
		"empty":        {Err: bucket.ErrNotFound},
	}
	for form, fault := range forms {
		for _, long := range []time.Duration{time.Hour, 24 * time.Hour} {
			if long > time.Hour && form != "fails" {
				continue
			}
			t.Run(fmt.Sprintf("%s for %s", form, long), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { outage(t, fault, long) })
			})
		}
	}
}

// lines is a log that is read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func outage(t *testing.T, fault sim.Fault, long time.Duration) {
	ctx := context.Background()
	b := sim.New(1)
	var log lines
	cfg := config(b)
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	j := mustOpen(t, cfg)
	c := newClient(t, j, 1)
	if err := c.backup(ctx, 0, 4); err != nil {
		t.Fatal(err)
	}
	if since, cause := j.Trouble(); !since.IsZero() {
		t.Fatal(since, cause)
	}
	if err := c.record(ctx, c.Open()); err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	var away atomic.Bool
	away.Store(true)
	b.OnOp(func(sim.Op, string, int) sim.Fault {
		if away.Load() {
			return fault
		}
		return sim.Fault{}
	})
	// More than fits: appending waits, and only as long as its caller does. (The simulation copies what is put to it:
	// this is only for a form with few calls.)
	var tickets []*Ticket
	full := false
	for i := 0; !full; i++ {
		size := 4 << 20
		if !fault.Hang {
			size, full = 1000, i == 20
			time.Sleep(time.Second)
			j.Flush()
		}
		blk := c.Chunk(9000+i, size)
		short, cancel := context.WithTimeout(ctx, time.Minute)
		tk, err := j.Append(short, func(tx *Tx) error { return tx.Stored(c.Session, blk.Name, blk.Kind, nil, blk.Sealed) })
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			full = true
		case err != nil:
			t.Fatal(err)
		case i > (maxPending+2)*segment.Target>>22:
			t.Fatalf("%d blocks of 4 MiB are in memory", i)
		default:
			tickets, c.sent = append(tickets, tk), append(c.sent, blk)
		}
	}
	time.Sleep(time.Until(began.Add(long)))
	if err := j.Err(); err != nil {
		t.Fatalf("it stopped: %v", err)
	}
	since, cause := j.Trouble()
	if since.IsZero() || since.Sub(began) > time.Minute || since.Before(began.Add(-time.Minute)) || cause == nil {
		t.Errorf("in trouble since %s, for %v; it began %s", since, cause, began)
	}
	if fault.Err != nil && !errors.Is(cause, fault.Err) {
		t.Errorf("the cause is said to be %v", cause)
	}
	for i, tk := range tickets {
		select {
		case <-tk.Done():
			t.Fatalf("segment of block %d is acknowledged", i)
		default:
		}
	}
	if n := strings.Count(log.String(), "\n"); n > 100+3*int(long/time.Minute) {
		t.Errorf("%d lines in the log", n)
	}
	if denied := bucket.ClassOf(fault.Err) == bucket.ClassDenied; denied != strings.Contains(log.String(), "level=ERROR msg=\"the bucket refuses this service") {
		t.Errorf("denied is %v, and the log says %.300s", denied, log.String())
	}

	away.Store(false)
	// A call that hangs is left alone until its deadline, the others come back within their backoff.
	within(t, putTimeout+2*lastBackoff, "coming back", func() {
		for _, tk := range tickets {
			if err := tk.Wait(ctx); err != nil {
				t.Fatal(err)
			}
		}
	})
	c.acked = append(c.acked, c.sent[len(c.sent)-len(tickets):]...)
	if since, cause := j.Trouble(); !since.IsZero() {
		t.Errorf("still in trouble since %s: %v", since, cause)
	}
	if err := c.backup(ctx, 1, 4); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Hour) // everything late has landed
	c.check(t, j)
	checkStore(t, b.Store(), j)
	mustClose(t, j)
	j = mustOpen(t, config(b))
	c.check(t, j)
	mustClose(t, j)
}

// An owner that has nothing to store says as well that its bucket is away.
func TestTroubleOfAnIdleJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		j := mustOpen(t, config(b))
		b.OnOp(func(sim.Op, string, int) sim.Fault { return sim.Fault{Err: sim.ErrFault} })
		time.Sleep(watchEvery + failingAfter + 2*time.Second)
		if since, _ := j.Trouble(); since.IsZero() {
			t.Error("the bucket is away, and it does not say so")
		}
		b.OnOp(nil)
		time.Sleep(2 * lastBackoff)
		if since, cause := j.Trouble(); !since.IsZero() {
			t.Error(since, cause)
		}
		mustClose(t, j)
	})
}

// One request that is cursed, or slow, is not trouble: the others are served.
func TestCursedRequestIsNoTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c := newClient(t, j, 1)
		var puts atomic.Int32
		b.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
			if op == sim.OpPut && puts.Add(1)%2 == 1 {
				return sim.Fault{Slow: sim.CursedDelay, Err: sim.ErrFault}
			}
			return sim.Fault{}
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for run := range 5 {
				if err := c.backup(ctx, run, 4); err != nil {
					t.Error(err)
				}
			}
		}()
		for {
			select {
			case <-done:
				mustClose(t, j)
				return
			case <-time.After(time.Second):
			}
			if since, cause := j.Trouble(); !since.IsZero() {
				t.Fatalf("trouble since %s: %v", since, cause)
			}
		}
	})
}

// What was given up once, within something that is tried for long as well, says so once.
func TestImpatientOnce(t *testing.T) {
	long := time.Now().Add(-time.Minute)
	inner := impatient(time.Second, long, sim.ErrFault)
	if outer := impatient(time.Second, long, fmt.Errorf("read: %w", inner)); !errors.Is(inner, ErrUnavailable) || outer.Error() != "read: "+inner.Error() {
		t.Errorf("%v, and in it %v", outer, inner)
	}
}

// A start does not wait for ever: the process ends with one sentence, and whoever started it does so again. What a
// person has to mend is told at once.
func TestStartGivesUp(t *testing.T) {
	for form, x := range map[string]struct {
		fault sim.Fault
		in    time.Duration
	}{
		"fails":  {sim.Fault{Err: sim.ErrFault}, getPatience + 2*lastBackoff},
		"silent": {sim.Fault{Hang: true}, getPatience + getTimeout + 2*lastBackoff},
		"denied": {sim.Fault{Err: &bucket.Error{Class: bucket.ClassDenied, Err: errors.New("AccessDenied")}}, refusedPatience + 2*lastBackoff},
	} {
		t.Run(form, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := sim.New(1)
				mustClose(t, mustOpen(t, config(b)))
				b.OnOp(func(sim.Op, string, int) sim.Fault { return x.fault })
				within(t, x.in, "giving up", func() {
					_, err := Open(t.Context(), config(b))
					if !errors.Is(err, ErrUnavailable) || x.fault.Err != nil && !errors.Is(err, x.fault.Err) || strings.Contains(err.Error(), "\n") {
						t.Errorf("start: %v", err)
					}
				})
				b.OnOp(nil)
				mustClose(t, mustOpen(t, config(b)))
			})
		})
	}
}

// paced is a bucket that says after which time a call is slow.
type paced struct {
	*sim.Bucket
	slow time.Duration
}

func (p paced) SlowAfter(op bucket.Op, _ int64) time.Duration {
	if op != bucket.OpPut {
		return 0
	}
	return p.slow
}

func (paced) Down() (time.Time, error) { return time.Time{}, nil }

// A put that is slow is overtaken by another under a nonce of its own. What became of the slow one, called off, landed
// before or long after, does not matter; its memory is not used again while it reads it.
func TestPutIsOvertaken(t *testing.T) {
	for form, fault := range map[string]sim.Fault{
		"hangs":          {Hang: true},
		"landed":         {Hang: true, Applied: true},
		"lands late":     {Hang: true, Late: time.Minute},
		"slow":           {Slow: 20 * time.Second},
		"cursed":         {Slow: sim.CursedDelay, Err: sim.ErrFault},
		"slow and holds": {},
	} {
		t.Run(form, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				j := mustOpen(t, config(paced{b, time.Second}))
				c := newClient(t, j, 1)
				var puts, under atomic.Int32
				b.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
					if op != sim.OpPut || puts.Add(1)%2 == 0 {
						return sim.Fault{}
					}
					if form == "slow and holds" {
						// A disk that hangs hangs its caller, whatever that says.
						if n := under.Add(1); n > maxPending {
							t.Errorf("%d calls hold memory", n)
						}
						defer under.Add(-1)
						time.Sleep(30 * time.Second)
					}
					return fault
				})
				longest := time.Duration(0)
				for run := range 4 {
					began := time.Now()
					if err := c.backup(ctx, run, 7); err != nil {
						t.Fatal(err)
					}
					longest = max(longest, time.Since(began))
				}
				if bound := 30 * time.Second; longest > bound && form != "slow and holds" {
					t.Errorf("a backup took %s, more than %s", longest, bound)
				}
				time.Sleep(time.Hour)
				c.check(t, j)
				checkStore(t, b.Store(), j)
				mustClose(t, j)
				j = mustOpen(t, config(b))
				c.check(t, j)
				mustClose(t, j)
			})
		})
	}
}

// caught runs fn and returns the never events that it came upon.
func caught(t *testing.T, fn func()) (events []never.Event) {
	t.Helper()
	release := never.Catch(func(e never.Event) { events = append(events, e) })
	defer release()
	fn()
	return events
}

// Memory that changes under a sealed segment, in a block or in a record, is found before anybody is told that the
// segment is kept.
func TestMemoryThatChanges(t *testing.T) {
	for what, at := range map[string]func(p *pending) int{
		"block":   func(p *pending) int { return 100 },
		"trailer": func(p *pending) int { return len(p.sealed.Body) - 60 },
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := context.Background()
				b := sim.New(1)
				j := mustOpen(t, config(b))
				c := newClient(t, j, 1)
				if err := c.record(ctx, c.Open()); err != nil {
					t.Fatal(err)
				}
				b.AfterOp = func(op sim.Op, _ string, _ int) {
					if op != sim.OpPut {
						return
					}
					j.mu.Lock()
					p := j.queue[0]
					j.mu.Unlock()
					p.sealed.Body[at(p)] ^= 1
				}
				blk := c.Chunk(1, 5000)
				var err error
				events := caught(t, func() {
					err = c.append(ctx, func(tx *Tx) error { return tx.Stored(c.Session, blk.Name, holdfast.KindChunk, nil, blk.Sealed) })
				})
				if len(events) != 1 || !strings.Contains(events[0].Invariant, "JOURNAL 6") || !errors.Is(err, ErrStopped) {
					t.Errorf("%+v, %v", events, err)
				}
				_ = j.Close(ctx)
			})
		})
	}
}
