package steady

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/bucket/buckettest"
	"holdfast/service/bucket/dir"
	"holdfast/service/bucket/sim"
	"holdfast/service/requests"
)

func TestConformanceOverSim(t *testing.T) {
	buckettest.Conformance(t, func(testing.TB) bucket.Bucket { return New(sim.New(1), Config{}) })
}

func TestConformanceOverDir(t *testing.T) {
	buckettest.Conformance(t, func(t testing.TB) bucket.Bucket {
		b, err := dir.Create(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return New(b, Config{})
	})
}

// seen is a request as it reached the store.
type seen struct {
	request
	fresh bool
	at    time.Time
}

// spy notes what reaches a store.
type spy struct {
	bucket.Bucket
	mu  sync.Mutex
	all []seen
}

func (s *spy) note(ctx context.Context, op bucket.Op, key string, off, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, seen{request{op, key, off, n}, bucket.IsFresh(ctx), time.Now()})
}

func (s *spy) Put(ctx context.Context, key string, body []byte) error {
	s.note(ctx, bucket.OpPut, key, 0, 0)
	return s.Bucket.Put(ctx, key, body)
}

func (s *spy) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	s.note(ctx, bucket.OpGet, key, off, n)
	return s.Bucket.Get(ctx, key, off, n)
}

func (s *spy) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	s.note(ctx, bucket.OpList, prefix+"\x00"+after, 0, int64(max))
	return s.Bucket.List(ctx, prefix, after, max)
}

func (s *spy) Delete(ctx context.Context, key string) error {
	s.note(ctx, bucket.OpDelete, key, 0, 0)
	return s.Bucket.Delete(ctx, key)
}

func (s *spy) Swap(ctx context.Context, key string, old, new []byte) error {
	s.note(ctx, bucket.OpSwap, key, 0, 0)
	return s.Bucket.Swap(ctx, key, old, new)
}

func (s *spy) Now(ctx context.Context) (time.Time, error) {
	s.note(ctx, bucket.OpNow, "", 0, 0)
	return s.Bucket.Now(ctx)
}

// world is a store with faults below a Bucket, with some objects that were there before.
type world struct {
	*Bucket
	sim *sim.Bucket
	spy *spy
	h   *requests.History
}

var body = []byte("0123456789abcdefghijklmnopqrstuvwxyz")

func newWorld(t testing.TB, onOp func(op sim.Op, key string, attempt int) sim.Fault) *world {
	t.Helper()
	s := sim.New(1)
	for _, k := range []string{"a/1", "a/2", "a/3", "s"} {
		if err := s.Put(t.Context(), k, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Put(t.Context(), "k", bytes.Repeat(body, 1000)); err != nil {
		t.Fatal(err)
	}
	s = s.Store().Connect(1)
	s.OnOp(onOp)
	w := &world{sim: s, spy: &spy{Bucket: s}, h: requests.New()}
	w.Bucket = New(w.spy, Config{History: w.h})
	return w
}

// calls makes one call of each operation; each returns its error, or says that the answer is wrong.
func (w *world) calls() map[bucket.Op]func(ctx context.Context) error {
	return map[bucket.Op]func(context.Context) error{
		bucket.OpPut: func(ctx context.Context) error { return w.Put(ctx, "new", body) },
		bucket.OpGet: func(ctx context.Context) error {
			p, err := w.Get(ctx, "k", 10+36*200, 5)
			if err == nil && string(p) != "abcde" {
				err = fmt.Errorf("Get answered %q", p)
			}
			return err
		},
		bucket.OpList: func(ctx context.Context) error {
			l, err := w.List(ctx, "a/", "", 0)
			if err == nil && len(l) != 3 {
				err = fmt.Errorf("List answered %v", l)
			}
			return err
		},
		bucket.OpDelete: func(ctx context.Context) error { return w.Delete(ctx, "a/1") },
		bucket.OpSwap:   func(ctx context.Context) error { return w.Swap(ctx, "s", body, []byte("new")) },
		bucket.OpNow:    func(ctx context.Context) error { _, err := w.Now(ctx); return err },
	}
}

// always gives each call of op the fault, all others none.
func always(op bucket.Op, f sim.Fault) func(sim.Op, string, int) sim.Fault {
	return first(op, 1<<30, f)
}

// first gives the first n attempts of op the fault.
func first(op bucket.Op, n int, f sim.Fault) func(sim.Op, string, int) sim.Fault {
	return func(o sim.Op, _ string, attempt int) sim.Fault {
		if o == op && attempt <= n {
			return f
		}
		return sim.Fault{}
	}
}

func failing(c bucket.Class) error {
	return &bucket.Error{Class: c, Err: errors.New("failing: " + string(c))}
}

// No identical request is made more than twice, the second time on a fresh connection; then a Get and a List are others,
// and what writes goes back to the caller, who learns the store's own error.
func TestAttempts(t *testing.T) {
	want := map[bucket.Op]int{bucket.OpPut: 2, bucket.OpGet: perCall, bucket.OpList: perCall, bucket.OpDelete: 2, bucket.OpSwap: 1, bucket.OpNow: 2}
	for _, op := range bucket.Ops {
		for _, class := range []bucket.Class{bucket.ClassServer, bucket.ClassBusy, bucket.ClassConnection, bucket.ClassCorrupt} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, always(op, sim.Fault{Err: failing(class)}))
				err := w.calls()[op](t.Context())
				if bucket.ClassOf(err) != class {
					t.Errorf("%s %s: %v", op, class, err)
				}
				if len(w.spy.all) != want[op] {
					t.Errorf("%s %s: %d attempts, want %d: %v", op, class, len(w.spy.all), want[op], w.spy.all)
				}
				times := map[request]int{}
				for i, s := range w.spy.all {
					if times[s.request]++; times[s.request] > perRequest {
						t.Errorf("%s %s: the same request %d times: %v", op, class, times[s.request], s)
					}
					if s.fresh != (i > 0) {
						t.Errorf("%s %s: attempt %d on a fresh connection: %v", op, class, i+1, s.fresh)
					}
					if i > 0 {
						gap := s.at.Sub(w.spy.all[i-1].at)
						if most := min(firstBackoff<<(i-1), lastBackoff); gap < most/2 || gap > most {
							t.Errorf("%s %s: attempt %d came %v after the one before, want up to %v", op, class, i+1, gap, most)
						}
					}
				}
			})
		}
	}
}

// What fails once is made good by the second attempt; what was applied and reported as failed is applied and reported.
func TestOneFailureIsNotSeen(t *testing.T) {
	for _, op := range bucket.Ops {
		for _, f := range []sim.Fault{
			{Err: sim.ErrFault}, {Err: sim.ErrFault, Applied: true}, {Err: sim.ErrFault, Late: sim.UntilLand},
			{Slow: sim.CursedDelay, Err: sim.ErrFault},
		} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, first(op, 1, f))
				err := w.calls()[op](t.Context())
				if op == bucket.OpSwap {
					// One attempt: whether it was applied is for the caller to see.
					if !errors.Is(err, sim.ErrFault) || len(w.spy.all) != 1 {
						t.Errorf("%+v: swap: %v after %d attempts", f, err, len(w.spy.all))
					}
					return
				}
				if err != nil {
					t.Errorf("%+v: %s: %v", f, op, err)
				}
				w.sim.Store().Land()
				keys := w.sim.Store().Keys()
				if op == bucket.OpPut && !slices.Contains(keys, "new") || op == bucket.OpDelete && slices.Contains(keys, "a/1") {
					t.Errorf("%+v: %s was reported done and the store holds %v", f, op, keys)
				}
			})
		}
	}
}

// What trying again does not change is not tried again; answers are returned at once.
func TestNotTriedAgain(t *testing.T) {
	for _, op := range bucket.Ops {
		for _, class := range []bucket.Class{bucket.ClassDenied, bucket.ClassClock, bucket.ClassFull, bucket.ClassConfig} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, always(op, sim.Fault{Err: failing(class)}))
				began := time.Now()
				err := w.calls()[op](t.Context())
				if bucket.ClassOf(err) != class || len(w.spy.all) != 1 || time.Since(began) > 0 {
					t.Errorf("%s: %v after %d attempts and %v, want %s at once", op, err, len(w.spy.all), time.Since(began), class)
				}
			})
		}
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for want, call := range map[error]func() error{
			bucket.ErrNotFound: func() error { _, err := w.Get(t.Context(), "none", 1, 2); return err },
			bucket.ErrShort:    func() error { _, err := w.Get(t.Context(), "k", 35_000, 1001); return err },
			bucket.ErrChanged:  func() error { return w.Swap(t.Context(), "s", nil, body) },
		} {
			w.spy.all = nil
			if err := call(); !errors.Is(err, want) || len(w.spy.all) != 1 {
				t.Errorf("%v after %d attempts, want %v", err, len(w.spy.all), want)
			}
		}
		w.spy.all = nil
		if err := w.Put(t.Context(), "NOT A KEY", nil); !errors.Is(err, bucket.ErrKey) || len(w.spy.all) > 0 {
			t.Errorf("%v, %d requests", err, len(w.spy.all))
		}
		if since, _ := w.Down(); !since.IsZero() {
			t.Error("answers count as failures")
		}
	})
}

// What the store asks to wait is waited, within a bound.
func TestRetryAfter(t *testing.T) {
	for asked, waited := range map[time.Duration]time.Duration{3 * time.Second: 3 * time.Second, time.Hour: longestAfter} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, first(bucket.OpPut, 1, sim.Fault{Err: &bucket.Error{Class: bucket.ClassBusy, After: asked, Err: errors.New("SlowDown")}}))
			began := time.Now()
			if err := w.Put(t.Context(), "new", body); err != nil || time.Since(began) != waited {
				t.Errorf("asked to wait %v: %v after %v, want %v", asked, err, time.Since(began), waited)
			}
		})
	}
}

// Another range or other pages give exactly what was asked for, whatever that is.
func TestOtherRequestsAnswerTheSame(t *testing.T) {
	same := func(what string, got, want any, err, no error) {
		t.Helper()
		if bucket.ClassOf(err) != bucket.ClassOf(no) || errors.Is(err, bucket.ErrShort) != errors.Is(no, bucket.ErrShort) ||
			errors.Is(err, bucket.ErrNotFound) != errors.Is(no, bucket.ErrNotFound) || err == nil && fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%s: %v, %v; want %v, %v", what, got, err, want, no)
		}
	}
	ctx := t.Context()
	s := sim.New(1)
	y := &spy{Bucket: s}
	b := New(y, Config{})
	for _, size := range []int64{0, 1, 2, 3, 31, 32, 33, 34, 40, 9000} {
		key := fmt.Sprintf("o/%d", size)
		whole := make([]byte, size)
		for i := range whole {
			whole[i] = byte(i * 7)
		}
		if err := s.Put(ctx, key, whole); err != nil {
			t.Fatal(err)
		}
		offs := []int64{-1, 0, 1, 2, size / 2, size - 1, size, size + 1, size + 5000}
		for _, off := range offs {
			for _, n := range []int64{-1, 0, 1, 2, 3, size / 2, size - off - 1, size - off, size - off + 1, size, size + 1} {
				if n < -1 {
					continue
				}
				for range 8 { // ranges are random
					y.all = nil
					want, no := s.Get(ctx, key, off, n)
					got, err := (&get{b: b, key: key}).other(ctx, attempt{n: 3}, off, n)
					same(fmt.Sprintf("%d at %d of %d", n, off, size), got, want, err, no)
					for _, q := range y.all {
						if q.off == off && q.n == n && off >= 0 {
							t.Fatalf("%d at %d of %d is asked for as it was", n, off, size)
						}
					}
				}
			}
		}
		_, no := s.Get(ctx, "none", 0, size)
		got, err := (&get{b: b, key: "none"}).other(ctx, attempt{n: 3}, 0, size)
		same("nothing", got, "", err, no)
	}
	for i := range 2*bucket.MaxList + 3 {
		if err := s.Put(ctx, fmt.Sprintf("l/%04d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, after := range []string{"", "l/0000", "l/1001", "l/1002", "l/1003", "l/1999", "l/2002", "z"} {
		for _, max := range []int{1, 2, 999, 1000} {
			for range 4 {
				y.all = nil
				want, no := s.List(ctx, "l/", after, max)
				got, err := list{b, "l/"}.other(ctx, attempt{n: 3}, after, max)
				same(fmt.Sprintf("list after %q, %d", after, max), got, want, err, no)
				for _, q := range y.all {
					if q.n == int64(max) && strings.HasSuffix(q.key, "\x00"+after) {
						t.Fatalf("a page of %d after %q is asked for as it was", max, after)
					}
				}
			}
		}
	}
}

// Requests that fail for ever are abandoned: every call is answered, rightly and soon, no identical request is made a third
// time, not even by a caller who repeats the call, and the breaker stays shut.
func TestCursedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		big := bytes.Repeat(body, 2000)
		for i := range 100 {
			if err := w.sim.Put(t.Context(), fmt.Sprintf("o/%02d", i), big); err != nil {
				t.Fatal(err)
			}
		}
		w.sim.Profile = sim.Profile{Cursed: 50_000}
		longest, cursed := time.Duration(0), 0
		for round := range 2 {
			for i := range 100 {
				for _, r := range [][2]int64{{0, -1}, {0, 500}, {1000, 4000}, {70_000, -1}} {
					began := time.Now()
					got, err := w.Get(t.Context(), fmt.Sprintf("o/%02d", i), r[0], r[1])
					to := int64(len(big))
					if r[1] >= 0 {
						to = r[0] + r[1]
					}
					if err != nil || !bytes.Equal(got, big[r[0]:to]) {
						t.Fatalf("round %d, object %d, %v: %d bytes, %v", round, i, r, len(got), err)
					}
					longest = max(longest, time.Since(began))
					if time.Since(began) > 0 {
						cursed++
					}
					time.Sleep(time.Second)
				}
				if l, err := w.List(t.Context(), fmt.Sprintf("o/%d", i%10), "", 0); err != nil || len(l) != 10 {
					t.Fatalf("list: %v, %v", l, err)
				}
			}
		}
		t.Logf("%d of 800 reads met a cursed request; the longest took %v", cursed, longest)
		if cursed < 20 {
			t.Errorf("%d cursed requests only", cursed)
		}
		if longest >= 10*time.Second {
			t.Errorf("a read took %v", longest)
		}
		for _, f := range w.h.Report(0).Failures {
			if f.Same >= perRequest {
				t.Errorf("a request that had failed %d times was made again", f.Same)
			}
		}
		for _, o := range w.h.Report(0).Ops {
			if n := o.Classes[bucket.ClassOpen]; n > 0 {
				t.Errorf("the breaker kept %d requests of %s away", n, o.Op)
			}
		}
	})
}

// What a call costs over that of the store below, here one in memory.
func BenchmarkCall(b *testing.B) {
	plain := sim.New(1)
	if err := plain.Put(b.Context(), "k", body); err != nil {
		b.Fatal(err)
	}
	for name, s := range map[string]bucket.Bucket{"plain": plain, "steady": New(plain, Config{})} {
		b.Run("get/"+name, func(b *testing.B) {
			for b.Loop() {
				if _, err := s.Get(b.Context(), "k", 0, 30); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("put/"+name, func(b *testing.B) {
			for b.Loop() {
				if err := s.Put(b.Context(), "k", body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// picky fails certain requests for ever.
type picky struct {
	*spy
	cursed func(request) bool
}

func (p picky) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	got, err := p.spy.Get(ctx, key, off, n)
	p.mu.Lock() // of the spy
	defer p.mu.Unlock()
	if p.cursed(request{bucket.OpGet, key, off, n}) {
		return nil, failing(bucket.ClassServer)
	}
	return got, err
}

// An object of which both requests for all of it are cursed is read in parts, and none of these is made a third time.
func TestWholeObjectInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.Bucket.b = picky{w.spy, func(r request) bool { return r.off == 0 && (r.n < 0 || r.n == int64(len(body))) }}
		for range 3 {
			if got, err := w.Get(t.Context(), "s", 0, -1); err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%q, %v", got, err)
			}
		}
		times := map[request]int{}
		for _, s := range w.spy.all {
			times[s.request]++
		}
		for _, n := range []int64{-1, int64(len(body))} {
			if x := times[request{bucket.OpGet, "s", 0, n}]; x != perRequest {
				t.Errorf("the request for %d bytes from 0 was made %d times", n, x)
			}
		}
	})
}

// An object that is swapped while it is read in parts is never returned as a mixture.
func TestNoMixture(t *testing.T) {
	// The end is the same in all of them, as it is in the claims of one host.
	version := func(i int) []byte {
		return append(bytes.Repeat([]byte{'0' + byte(i%70)}, 24), bytes.Repeat([]byte{'-'}, 24)...)
	}
	for period := 1; period <= 6; period++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			gets := 0
			w.Bucket.b = picky{w.spy, func(r request) bool {
				if gets++; gets%period == 0 {
					w.sim.Store().Damage("s", func([]byte) []byte { return version(gets / period) })
				}
				return r.off == 0 && (r.n < 0 || r.n == 48)
			}}
			w.sim.Store().Damage("s", func([]byte) []byte { return version(0) })
			for range 100 {
				got, err := w.Get(t.Context(), "s", 0, -1)
				if err == nil && !bytes.Equal(got, version(int(got[0]-'0'))) {
					t.Fatalf("every %d reads: %s", period, got)
				}
				w.mu.Lock()
				w.tokens = budget
				w.mu.Unlock()
			}
		})
	}
}

// What another way asks beyond one request is paid for.
func TestFurtherRequestsArePaidFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.Bucket.b = picky{w.spy, func(r request) bool { return r.off == 0 && r.n == int64(len(body)) }}
		if got, err := w.Get(t.Context(), "s", 0, int64(len(body))); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%q, %v", got, err)
		}
		// Two attempts; then a range that is too long, and two parts.
		if paid := budget - w.tokens; len(w.spy.all) != 5 || paid < 3 || paid > 4 {
			t.Errorf("%d requests, %v paid", len(w.spy.all), paid)
		}
	})
}

// A read that took seconds to fail is not made again as it is: whoever waits has waited long enough.
func TestSlowFailureIsNotRepeated(t *testing.T) {
	for _, slow := range []time.Duration{sim.CursedDelay, 10 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(op sim.Op, key string, attempt int) sim.Fault {
				if op == bucket.OpGet && attempt <= 2 {
					return sim.Fault{Slow: slow, Err: sim.ErrFault}
				}
				return sim.Fault{}
			})
			want := request{bucket.OpGet, "k", 10 + 36*200, 5}
			if err := w.calls()[bucket.OpGet](t.Context()); err != nil {
				t.Fatal(err)
			}
			times := 0
			for _, s := range w.spy.all {
				if s.request == want {
					times++
				}
			}
			if limit := map[bool]int{true: 1, false: 2}[slow > time.Second]; times != limit {
				t.Errorf("after %v: made %d times, want %d", slow, times, limit)
			}
		})
	}
}
