package sim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/bucket/buckettest"
	"holdfast/service/bucket/sim"
)

func TestConformance(t *testing.T) {
	buckettest.Conformance(t, func(testing.TB) bucket.Bucket { return sim.New(1) })
}

// once returns an OnOp that gives f to the first call of op and nothing to others.
func once(op sim.Op, f sim.Fault) func(sim.Op, string, int) sim.Fault {
	return func(o sim.Op, _ string, attempt int) sim.Fault {
		if o == op && attempt == 1 {
			return f
		}
		return sim.Fault{}
	}
}

func content(t testing.TB, s *sim.Store, key string) string {
	t.Helper()
	b, err := s.Connect(0).Get(t.Context(), key, 0, -1)
	if errors.Is(err, bucket.ErrNotFound) {
		return "absent"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Every write fault in every form: what the caller is told, when, and what the store then holds.
func TestWriteFaults(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name   string
		fault  sim.Fault
		err    error         // nil: none
		after  time.Duration // how long the call took
		now    bool          // applied when it returned
		inTime bool          // applied an hour later
		landed bool          // applied after Land
	}{
		{"none", sim.Fault{}, nil, 0, true, true, true},
		{"error, not applied", sim.Fault{Err: boom}, boom, 0, false, false, false},
		{"error, applied", sim.Fault{Err: boom, Applied: true}, boom, 0, true, true, true},
		{"error, late", sim.Fault{Err: boom, Late: time.Minute}, boom, 0, false, true, true},
		{"error, lands on demand", sim.Fault{Err: boom, Late: sim.UntilLand}, boom, 0, false, false, true},
		{"hang, not applied", sim.Fault{Hang: true}, context.DeadlineExceeded, 30 * time.Second, false, false, false},
		{"hang, applied", sim.Fault{Hang: true, Applied: true}, context.DeadlineExceeded, 30 * time.Second, true, true, true},
		{"hang, late", sim.Fault{Hang: true, Late: time.Minute}, context.DeadlineExceeded, 30 * time.Second, false, true, true},
		{"slow", sim.Fault{Slow: 5 * time.Second}, nil, 5 * time.Second, true, true, true},
		{"too slow", sim.Fault{Slow: time.Hour}, context.DeadlineExceeded, 30 * time.Second, false, false, false},
		{"slow, then error", sim.Fault{Slow: sim.CursedDelay, Err: boom}, boom, sim.CursedDelay, false, false, false},
	} {
		for op, w := range map[sim.Op]struct {
			call        func(ctx context.Context, b bucket.Bucket) error
			before, was string
		}{
			sim.OpPut:    {func(ctx context.Context, b bucket.Bucket) error { return b.Put(ctx, "k", []byte("new")) }, "absent", "new"},
			sim.OpDelete: {func(ctx context.Context, b bucket.Bucket) error { return b.Delete(ctx, "old") }, "old", "absent"},
			sim.OpSwap:   {func(ctx context.Context, b bucket.Bucket) error { return b.Swap(ctx, "s", nil, []byte("new")) }, "absent", "new"},
		} {
			key := map[sim.Op]string{sim.OpPut: "k", sim.OpDelete: "old", sim.OpSwap: "s"}[op]
			synctest.Test(t, func(t *testing.T) {
				b := sim.New(1)
				if err := b.Put(t.Context(), "old", []byte("old")); err != nil {
					t.Fatal(err)
				}
				b = b.Store().Connect(1)
				b.OnOp(once(op, c.fault))
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				start := time.Now()
				err := w.call(ctx, b)
				if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
					t.Errorf("%s %s: %v, want %v", op, c.name, err, c.err)
				}
				if d := time.Since(start); d != c.after {
					t.Errorf("%s %s: it took %v, want %v", op, c.name, d, c.after)
				}
				check := func(when string, applied bool) {
					want := w.before
					if applied {
						want = w.was
					}
					if got := content(t, b.Store(), key); got != want {
						t.Errorf("%s %s, %s: %q, want %q", op, c.name, when, got, want)
					}
				}
				check("at once", c.now)
				time.Sleep(time.Hour)
				synctest.Wait()
				check("an hour later", c.inTime)
				b.Store().Land()
				check("landed", c.landed)
				if v := b.Store().Violations(); len(v) > 0 {
					t.Error(v)
				}
			})
		}
	}
}

func TestALateSwapComparesWhenItLands(t *testing.T) {
	b := sim.New(1)
	b.OnOp(once(sim.OpSwap, sim.Fault{Err: sim.ErrFault, Late: sim.UntilLand}))
	if err := b.Swap(t.Context(), "e", nil, []byte("1")); !errors.Is(err, sim.ErrFault) {
		t.Fatal(err)
	}
	if err := b.Swap(t.Context(), "e", nil, []byte("2")); err != nil {
		t.Fatal(err)
	}
	if n := b.Store().Land(); n != 1 {
		t.Fatalf("%d landed", n)
	}
	if got := content(t, b.Store(), "e"); got != "2" {
		t.Fatalf("the late swap made it %q", got)
	}
}

func TestReadFaults(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789"), 100)
	setup := func(f sim.Fault) *sim.Bucket {
		b := sim.New(1)
		for _, k := range []string{"a", "k", "z"} {
			if err := b.Put(t.Context(), k, append(body, k...)); err != nil {
				t.Fatal(err)
			}
		}
		b.OnOp(func(op sim.Op, _ string, attempt int) sim.Fault {
			if (op == sim.OpGet || op == sim.OpList) && attempt == 1 {
				return f
			}
			return sim.Fault{}
		})
		return b
	}
	get := func(b *sim.Bucket) ([]byte, error) { return b.Get(t.Context(), "k", 0, -1) }
	right := append(body, 'k')

	b := setup(sim.Fault{Short: true})
	if got, err := get(b); err != nil || len(got) >= len(right) || !bytes.HasPrefix(right, got) {
		t.Errorf("short: %d bytes, %v", len(got), err)
	}
	if got, err := get(b); err != nil || !bytes.Equal(got, right) {
		t.Errorf("after short: %v", err)
	}
	got, err := get(setup(sim.Fault{Flip: true}))
	wrong := 0
	for i := range got {
		for x := got[i] ^ right[i]; x != 0; x &= x - 1 {
			wrong++
		}
	}
	if err != nil || len(got) != len(right) || wrong != 1 {
		t.Errorf("flip: %d bits of %d bytes, %v", wrong, len(got), err)
	}
	if got, err := get(setup(sim.Fault{Wrong: true})); err != nil || !bytes.Equal(got, append(body, 'a')) {
		t.Errorf("wrong object: %d bytes, %v", len(got), err)
	}
	if _, err := get(setup(sim.Fault{Hide: true})); !errors.Is(err, bucket.ErrNotFound) {
		t.Errorf("hidden: %v", err)
	}
	if _, err := get(setup(sim.Fault{Err: sim.ErrFault})); !errors.Is(err, sim.ErrFault) {
		t.Errorf("error: %v", err)
	}
	for range 2 {
		b = setup(sim.Fault{Hide: true})
		if l, err := b.List(t.Context(), "", "", 0); err != nil || len(l) != 2 || l[1].Key != "k" {
			t.Errorf("hiding the fresh one: %v, %v", l, err)
		}
		if l, err := b.List(t.Context(), "", "", 0); err != nil || len(l) != 3 {
			t.Errorf("after hiding: %v, %v", l, err)
		}
	}
}

func TestCrashAt(t *testing.T) {
	for _, applied := range []bool{false, true} {
		b := sim.New(1)
		put := func(i int) error { return b.Put(t.Context(), fmt.Sprint(i), []byte{1}) }
		if err := put(0); err != nil {
			t.Fatal(err)
		}
		b.CrashAt(2, applied)
		if err := put(1); err != nil || b.Crashed() {
			t.Fatal(err)
		}
		for i := 2; i < 4; i++ {
			if err := put(i); !errors.Is(err, sim.ErrCrashed) || !b.Crashed() {
				t.Fatal(err)
			}
		}
		if _, err := b.Get(t.Context(), "0", 0, -1); !errors.Is(err, sim.ErrCrashed) {
			t.Fatal(err)
		}
		want := []string{"0", "1"}
		if applied {
			want = append(want, "2")
		}
		if got := b.Store().Keys(); !slices.Equal(got, want) {
			t.Fatalf("applied %v: %v", applied, got)
		}
		if n := b.Writes(); n != 3 {
			t.Fatalf("%d writes begun", n)
		}
	}
}

func TestCrashEndsWaiting(t *testing.T) {
	for _, f := range []sim.Fault{{Slow: time.Hour}, {Hang: true}} {
		synctest.Test(t, func(t *testing.T) {
			b := sim.New(1)
			b.OnOp(func(sim.Op, string, int) sim.Fault { return f })
			start := time.Now()
			done := make(chan error, 1)
			go func() { done <- b.Put(context.Background(), "k", nil) }()
			synctest.Wait()
			b.Crash()
			if err := <-done; !errors.Is(err, sim.ErrCrashed) || time.Since(start) > 0 {
				t.Error(err, "after", time.Since(start))
			}
			if k := b.Store().Keys(); len(k) > 0 {
				t.Error("a dead process wrote", k)
			}
		})
	}
}

// The schedule of a profile depends on seed, operation, key and attempt, whatever the order of calls.
func TestProfileIsKeyed(t *testing.T) {
	p := sim.Profile{Cursed: 20_000, Fail: 100_000, Applied: 100_000, Short: 100_000, Flip: 100_000, Wrong: 100_000, Hide: 50_000}
	run := func(t *testing.T, seed uint64, order []int) string {
		b := sim.New(seed)
		b.Profile = p
		log := map[int]string{}
		for _, i := range order {
			key := fmt.Sprintf("k%d", i)
			for range 3 {
				err := b.Put(t.Context(), key, []byte("0123456789abcdef"))
				got, gerr := b.Get(t.Context(), key, 0, -1)
				log[i] += fmt.Sprint(err, got, gerr, "\n")
			}
		}
		return fmt.Sprint(log)
	}
	var up, down []int
	for i := range 200 {
		up, down = append(up, i), append([]int{i}, down...)
	}
	synctest.Test(t, func(t *testing.T) {
		p.Wrong = 0 // it shows what else is there
		a, b, c := run(t, 1, up), run(t, 1, down), run(t, 2, up)
		if a != b {
			t.Error("another order gave another schedule")
		}
		if a == c {
			t.Error("another seed gave the same schedule")
		}
	})
}

// Each fault of a profile happens about as often as it says, and a cursed request stays cursed.
func TestProfileRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			p  sim.Profile
			op sim.Op
		}{
			"cursed": {sim.Profile{Cursed: 100_000}, sim.OpPut}, "fail": {sim.Profile{Fail: 100_000}, sim.OpPut}, "applied": {sim.Profile{Applied: 100_000}, sim.OpPut},
			"hang": {sim.Profile{Hang: 100_000}, sim.OpGet}, "hung": {sim.Profile{Hung: 100_000}, sim.OpPut}, "late": {sim.Profile{Late: 100_000}, sim.OpPut},
			"short": {sim.Profile{Short: 100_000}, sim.OpGet}, "flip": {sim.Profile{Flip: 100_000}, sim.OpGet}, "hide": {sim.Profile{Hide: 100_000}, sim.OpGet}, "slow": {sim.Profile{Slow: 100_000}, sim.OpPut},
			"wrong": {sim.Profile{Wrong: 100_000}, sim.OpGet},
		} {
			b := sim.New(3)
			bad, stays := 0, 0
			for i := range 2000 {
				key := fmt.Sprintf("k%d", i)
				body := []byte("body of " + key)
				if err := b.Store().Connect(0).Put(t.Context(), key, body); err != nil {
					t.Fatal(err)
				}
				b.Profile = c.p
				failed := func() bool {
					ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
					defer cancel()
					start := time.Now()
					if c.op == sim.OpPut {
						return b.Put(ctx, key, body) != nil || time.Since(start) > 0
					}
					got, err := b.Get(ctx, key, 0, -1)
					return err != nil || !bytes.Equal(got, body)
				}
				if failed() {
					bad++
					again := 0
					for range 3 {
						if failed() {
							again++
						}
					}
					if again == 3 {
						stays++
					}
				}
			}
			if bad < 140 || bad > 260 || (stays == bad) != (name == "cursed") {
				t.Errorf("%s: %d of 2000, of which %d stay", name, bad, stays)
			}
			if v := b.Store().Violations(); len(v) > 0 {
				t.Error(v)
			}
		}
	})
}

func TestViolations(t *testing.T) {
	b := sim.New(1)
	put := func(key, body string) {
		if err := b.Put(t.Context(), key, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	put("k", "one")
	put("k", "one")
	if err := b.Delete(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	put("k", "one")
	if v := b.Store().Violations(); len(v) > 0 {
		t.Fatal(v)
	}
	put("k", "two")
	if v := b.Store().Violations(); len(v) != 1 || !strings.Contains(v[0], "different content") {
		t.Fatal(v)
	}
	b = sim.New(1)
	body := []byte("one")
	b.OnOp(func(sim.Op, string, int) sim.Fault {
		body[0] = 'O' // in the middle of the Put, as a caller that reuses its buffer too early would
		return sim.Fault{}
	})
	if err := b.Put(t.Context(), "k", body); err != nil {
		t.Fatal(err)
	}
	if v := b.Store().Violations(); len(v) != 1 || !strings.Contains(v[0], "changed during") {
		t.Fatal(v)
	}
}

func TestDamageAndClone(t *testing.T) {
	b := sim.New(1)
	if err := b.Put(t.Context(), "k", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	c := b.Store().Clone()
	b.Store().Damage("k", func(p []byte) []byte { p[0] ^= 1; return p })
	if x, y := content(t, b.Store(), "k"), content(t, c, "k"); x != "`bc" || y != "abc" {
		t.Fatal(x, y)
	}
	b.Store().Damage("k", func([]byte) []byte { return nil })
	if x, y := content(t, b.Store(), "k"), content(t, c, "k"); x != "absent" || y != "abc" {
		t.Fatal(x, y)
	}
	if n := c.Bytes(); n != 3 {
		t.Fatal(n)
	}
}

func TestSkew(t *testing.T) {
	b := sim.New(1)
	b.Store().SetSkew(time.Hour)
	now, err := b.Now(t.Context())
	if err != nil || time.Until(now).Round(time.Minute) != time.Hour {
		t.Fatal(now, err)
	}
}

// A process is paused before a call is applied or before its answer, and its deadline passes meanwhile.
func TestGates(t *testing.T) {
	for _, side := range []string{"before", "after"} {
		synctest.Test(t, func(t *testing.T) {
			b := sim.New(1)
			open := make(chan struct{})
			var seen []string
			if side == "before" {
				b.OnOp(func(op sim.Op, key string, attempt int) sim.Fault {
					seen = append(seen, fmt.Sprint(op, " ", key, " ", attempt))
					<-open
					return sim.Fault{}
				})
			} else {
				b.AfterOp = func(op sim.Op, key string, attempt int) {
					seen = append(seen, fmt.Sprint(op, " ", key, " ", attempt))
					<-open
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- b.Put(ctx, "k", []byte("x")) }()
			time.Sleep(time.Hour)
			want := map[string]string{"before": "absent", "after": "x"}[side]
			if got := content(t, b.Store(), "k"); got != want || len(done) != 0 {
				t.Errorf("paused %s the put, the store has %q", side, got)
			}
			close(open)
			if err := <-done; err != nil || content(t, b.Store(), "k") != "x" {
				t.Errorf("paused %s the put: %v", side, err)
			}
			b.Get(t.Context(), "k", 0, -1)
			b.List(t.Context(), "", "", 0)
			b.Delete(t.Context(), "k")
			b.Swap(t.Context(), "s", nil, []byte("y"))
			b.Now(t.Context())
			if got := strings.Join(seen, ","); got != "put k 1,get k 1,list  1,delete k 1,swap s 1,now  1" {
				t.Errorf("%s: %s", side, got)
			}
		})
	}
}

// A curse is on one identical request: another range, page or key is another, and the same stays cursed.
func TestCurseIsOnOneRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		if err := b.Put(t.Context(), "k", make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		b = b.Store().Connect(1)
		b.Profile = sim.Profile{Cursed: 300_000}
		cursed := map[string]int{}
		for _, op := range []string{"get", "list"} {
			for i := range 100 {
				call := func() error {
					if op == "list" {
						_, err := b.List(t.Context(), "", "", 1+i)
						return err
					}
					_, err := b.Get(t.Context(), "k", int64(i), 10)
					return err
				}
				first := call()
				for range 3 {
					began := time.Now()
					if err := call(); (err == nil) != (first == nil) || err != nil && time.Since(began) != sim.CursedDelay {
						t.Fatalf("%s %d: %v after %v, and %v at first", op, i, err, time.Since(began), first)
					}
				}
				if first != nil {
					cursed[op]++
				}
			}
			if n := cursed[op]; n < 15 || n > 45 {
				t.Errorf("%d of 100 %s requests are cursed, want about 30", n, op)
			}
		}
	})
}
