package journal

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// gate pauses the process behind a bucket at its n-th call, before it is applied or before its answer
// arrives; from then on no call is applied and none answers until the gate is opened.
type gate struct {
	n      int
	after  bool
	paused chan struct{} // closed when it is
	opened chan struct{}

	mu   sync.Mutex
	ops  int
	id   string // of the n-th call
	shut bool
}

func newGate(b *sim.Bucket, n int, after bool) *gate {
	g := &gate{n: n, after: after, paused: make(chan struct{}), opened: make(chan struct{})}
	b.OnOp(func(op sim.Op, key string, attempt int) sim.Fault {
		g.mu.Lock()
		g.ops++
		if g.ops == g.n {
			g.id = fmt.Sprint(op, key, attempt)
			if !after {
				g.close()
			}
		}
		shut := g.shut
		g.mu.Unlock()
		if shut {
			<-g.opened
		}
		return sim.Fault{}
	})
	b.AfterOp = func(op sim.Op, key string, attempt int) {
		g.mu.Lock()
		if g.after && g.id == fmt.Sprint(op, key, attempt) {
			g.close()
		}
		shut := g.shut
		g.mu.Unlock()
		if shut {
			<-g.opened
		}
	}
	return g
}

// close pauses; mu is held.
func (g *gate) close() {
	if !g.shut {
		g.shut = true
		close(g.paused)
	}
}

// where names the call at which the process is paused.
func (g *gate) where() string {
	if i := strings.Index(g.id, "/"); i > 16 {
		return g.id[:i-16] + g.id[i:]
	}
	return g.id
}

// SCENARIOS S5: two owners at once, because the old one was only paused: before or after any of its calls to
// the bucket, from its first one on, a deletion included. Another one takes over meanwhile, works, and sweeps
// the quarantine. When the old one goes on it acknowledges nothing that the new one does not have, takes
// nothing away, stops, and does not come back by itself.
func TestScenarioS5PausedOwner(t *testing.T) {
	for _, after := range []bool{false, true} {
		ends := map[string]int{}
		step := 1
		if testing.Short() {
			step = 5
		}
		for n := 1; ; n += step {
			side := map[bool]string{false: "before", true: "after"}[after]
			reached := false
			ok := t.Run(fmt.Sprintf("%s call %d", side, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { reached = pausedOwner(t, n, after, ends) })
			})
			if !ok {
				return
			}
			if !reached {
				if n < 40 {
					t.Errorf("the owner made only %d calls", n)
				}
				break
			}
		}
		t.Logf("how the old owner ended: %v", ends)
		for _, need := range []string{"lost while it opened", "owned", "lost"} {
			if ends[need] == 0 && step == 1 {
				t.Errorf("no old owner ended as %q: %v", need, ends)
			}
		}
	}
}

// pausedOwner is one run of TestScenarioS5PausedOwner; it reports whether the owner made n calls.
func pausedOwner(t *testing.T, n int, after bool, ends map[string]int) bool {
	ctx := context.Background()
	b := sim.New(1)
	first := mustOpen(t, config(b))
	c := &client{Customer: newCustomer(), j: first}
	run := 0
	if err := c.drive(ctx, &run, 1); err != nil {
		t.Fatal(err)
	}
	last := first.Position()
	mustClose(t, first)
	outside := segment.Key{Cell: testCell, Position: segment.Position{Epoch: last.Epoch, Seq: last.Seq + 2}, Trailer: 500}
	if err := b.Put(ctx, outside.String(), []byte("outside")); err != nil {
		t.Fatal(err)
	}

	old := b.Store().Connect(2)
	g := newGate(old, n, after)
	type result struct {
		j    *Journal
		open bool
		err  error
	}
	done := make(chan result, 1)
	go func() {
		j, err := Open(ctx, config(old))
		if err != nil {
			done <- result{err: err}
			return
		}
		c.j = j
		if err = c.drive(ctx, &run, 2); err == nil {
			_, err = j.Sweep(ctx)
		}
		if err == nil {
			err = c.drive(ctx, &run, 3)
		}
		done <- result{j, true, err}
	}()
	select {
	case <-g.paused:
	case r := <-done:
		if r.err != nil {
			t.Fatal(r.err)
		}
		mustClose(t, r.j)
		return false
	}
	synctest.Wait()
	if n%2 == 0 {
		time.Sleep(time.Hour) // every deadline of the old owner has passed
	}

	cfg := config(b.Store().Connect(3))
	cfg.Host, cfg.Takeover = hostB, true
	heir := mustOpen(t, cfg)
	other, otherRun := &client{Customer: viewtest.New(2), j: heir}, 0
	if err := other.drive(ctx, &otherRun, 1); err != nil {
		t.Fatalf("paused at %s: %v", g.where(), err)
	}
	if _, err := heir.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	before := b.Store().Keys()

	close(g.opened)
	r := <-done
	switch {
	case !r.open:
		end := "lost while it opened"
		switch {
		case errors.Is(r.err, ErrLost):
		case errors.Is(r.err, ErrOwned):
			end = "owned"
		case n%2 == 0 && !errors.Is(r.err, ErrContradiction) && !errors.Is(r.err, ErrDamaged):
			end = "out of patience" // an hour is too long for a start
		default:
			t.Fatalf("paused at %s, it ended with: %v", g.where(), r.err)
		}
		ends[end]++
	default:
		// It may have been about to say what had been true when it was paused; the next thing it cannot say.
		err := r.err
		// To one that was paused, the store's clock looks wrong, or it took too long to read.
		if err == nil || errors.Is(err, ErrClocks) || strings.Contains(err.Error(), "read the store's clock") {
			err = c.append(ctx, func(tx *Tx) error { return tx.Record(segment.Account{ID: holdfast.AccountID{9}, Name: "late"}) })
		}
		if !errors.Is(err, ErrLost) {
			t.Fatalf("paused at %s, it ended with: %v", g.where(), err)
		}
		ends["lost"]++
		<-r.j.Stopped()
		_ = r.j.Close(ctx)
	}
	if _, err := Open(ctx, config(old)); !errors.Is(err, ErrOwned) {
		t.Fatalf("paused at %s, its restart: %v", g.where(), err)
	}
	there := map[string]bool{}
	for _, k := range b.Store().Keys() {
		there[k] = true
	}
	for _, k := range before {
		if !there[k] {
			t.Errorf("paused at %s, it deleted %s", g.where(), k)
		}
	}
	for range 2 { // now, and after the heir's restart
		c.check(t, heir)
		other.check(t, heir)
		checkStore(t, b.Store(), heir)
		mustClose(t, heir)
		heir = mustOpen(t, cfg)
	}
	c.resume(t, heir)
	if err := c.drive(ctx, &run, 4); err != nil {
		t.Fatal(err)
	}
	c.check(t, heir)
	mustClose(t, heir)
	return true
}

// twice is a bucket that tries a put again under its key.
type twice struct{ bucket.Bucket }

func (b twice) Put(ctx context.Context, key string, body []byte) error {
	if err := b.Bucket.Put(ctx, key, body); err == nil {
		return nil
	}
	return b.Bucket.Put(ctx, key, body)
}

// SCENARIOS S7: a stalled writer's put finds its key absent, because what it had written there was deleted
// meanwhile, and succeeds. It acknowledges nothing for that.
func TestScenarioS7KeyAbsentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(twice{b}))
		c, run := &client{Customer: newCustomer(), j: j}, 0
		if err := c.drive(ctx, &run, 1); err != nil {
			t.Fatal(err)
		}
		swaps := b.Count(sim.OpSwap)
		// Of two segments on their way the first stalls. The second lands, its answer is lost, and the second
		// attempt under the same key stalls as well.
		release := make(chan struct{})
		var mu sync.Mutex
		var keys []string
		b.OnOp(func(op sim.Op, key string, attempt int) sim.Fault {
			if op != sim.OpPut {
				return sim.Fault{}
			}
			mu.Lock()
			if attempt == 1 {
				keys = append(keys, key)
			}
			first := key == keys[0]
			mu.Unlock()
			if !first && attempt == 1 {
				return sim.Fault{Err: sim.ErrFault, Applied: true}
			}
			<-release
			return sim.Fault{}
		})
		var tickets []*Ticket
		for range 2 {
			r := c.Open()
			tk, err := j.Append(ctx, func(tx *Tx) error { _, err := tx.History(r); return err })
			if err != nil {
				t.Fatal(err)
			}
			c.Accepted(r)
			tickets = append(tickets, tk)
			j.Flush()
			time.Sleep(time.Second)
		}
		has := func(key string) bool {
			_, err := b.Store().Connect(9).Get(ctx, key, 0, -1)
			if err != nil && !errors.Is(err, bucket.ErrNotFound) {
				t.Fatal(err)
			}
			return err == nil
		}
		mu.Lock()
		wrote := slices.Clone(keys)
		mu.Unlock()
		if len(wrote) != 2 || has(wrote[0]) || !has(wrote[1]) {
			t.Fatalf("the test does not do what it says: %v", wrote)
		}

		cfg := config(b.Store().Connect(2))
		cfg.Host, cfg.Takeover = hostB, true
		heir := mustOpen(t, cfg)
		if q := heir.Info().Quarantine; q.Count != 1 || q.Objects[0].Key != wrote[1] || !q.Objects[0].Sweep {
			t.Fatalf("quarantine %+v", q)
		}
		if q, err := heir.Sweep(ctx); err != nil || q.Count != 1 || has(wrote[1]) {
			t.Fatalf("swept %+v: %v", q, err)
		}

		close(release)
		for i, tk := range tickets {
			if err := tk.Wait(ctx); !errors.Is(err, ErrLost) {
				t.Errorf("segment %d: %v", i, err)
			}
		}
		_ = j.Close(ctx)
		if !has(wrote[0]) || !has(wrote[1]) {
			t.Fatal("the puts did not succeed: the test does not test")
		}
		if n := b.Count(sim.OpSwap); n != swaps {
			t.Errorf("%d conditional writes after the claim", n-swaps)
		}
		// They lie in quarantine, now and for the next start, and change nothing.
		for range 2 {
			if q, err := heir.Quarantine(ctx); err != nil || q.Count != 2 {
				t.Errorf("quarantine %+v: %v", q, err)
			}
			c.check(t, heir)
			checkStore(t, b.Store(), heir)
			mustClose(t, heir)
			heir = mustOpen(t, cfg)
		}
		if q, err := heir.Sweep(ctx); err != nil || q.Count != 2 {
			t.Errorf("swept %+v: %v", q, err)
		}
		c.resume(t, heir)
		if err := c.drive(ctx, &run, 2); err != nil {
			t.Fatal(err)
		}
		c.check(t, heir)
		mustClose(t, heir)
	})
}

// What is in quarantine, and what of it may be swept: never what is accepted, under any nonce, never what
// is no segment, never the epoch that is not over.
func TestQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		b := sim.New(1)
		j := mustOpen(t, config(b))
		c, run := &client{Customer: newCustomer(), j: j}, 0
		if err := c.drive(ctx, &run, 1); err != nil {
			t.Fatal(err)
		}
		last := j.Position()
		mustClose(t, j)
		j = mustOpen(t, config(b))
		if err := c.resumed(t, j).drive(ctx, &run, 2); err != nil {
			t.Fatal(err)
		}
		accepted := b.Store().Keys()

		put := func(key, body string) string {
			if err := b.Put(ctx, key, []byte(body)); err != nil {
				t.Fatal(err)
			}
			return key
		}
		twin := objects(b.Store())[1]
		twin.Nonce[0]++
		raw, err := b.Get(ctx, objects(b.Store())[1].String(), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		put(twin.String(), string(raw))
		late := func(epoch, seq uint64) string {
			return put(segment.Key{Cell: testCell, Position: segment.Position{Epoch: epoch, Seq: seq}, Trailer: 500}.String(), "late")
		}
		late(2, j.Position().Seq+1) // on its way, for all we know
		gone := []string{late(1, last.Seq+1), late(1, last.Seq+7)}
		stray := put(segment.LogPrefix(testCell)+"readme", "who put this here?")

		q, err := j.Quarantine(ctx)
		if err != nil || q.Count != 3 || len(q.Objects) != 3 || q.Bytes != 8+18 {
			t.Fatalf("%+v %v", q, err)
		}
		for i, o := range q.Objects {
			if want := append(gone, stray)[i]; o.Key != want || o.Sweep != (want != stray) || o.Why == "" {
				t.Errorf("%+v, want %s", o, want)
			}
		}

		// Clocks that disagree delete nothing (S16), in either direction.
		for _, skew := range []time.Duration{maxSkew + time.Minute, -maxSkew - time.Minute} {
			b.Store().SetSkew(skew)
			if _, err := j.Sweep(ctx); !errors.Is(err, ErrClocks) || b.Count(sim.OpDelete) != 0 {
				t.Fatalf("clocks are apart by %s, and it swept: %v", skew, err)
			}
		}
		b.Store().SetSkew(0)
		if _, err := j.Sweep(ctx); !errors.Is(err, view.ErrFrozen) || errors.Is(err, ErrClocks) || b.Count(sim.OpDelete) != 0 {
			t.Fatalf("the clocks agree only just now, and it swept: %v", err)
		}
		time.Sleep(steadyFor[segment.ReasonClocks] + time.Minute)
		swept, err := j.Sweep(ctx)
		if err != nil || swept.Count != 2 || b.Count(sim.OpDelete) != 2 {
			t.Fatalf("%+v %v", swept, err)
		}
		there := map[string]bool{}
		for _, k := range b.Store().Keys() {
			there[k] = true
		}
		for _, k := range append(accepted, twin.String(), stray) {
			if !there[k] {
				t.Errorf("%s was swept", k)
			}
		}
		for _, k := range gone {
			if there[k] {
				t.Errorf("%s is still there", k)
			}
		}
		c.check(t, j)
		_ = j.Close(ctx)

		// One that has lost the cell finds that out, and deletes nothing.
		b = b.Store().Connect(5)
		for _, k := range b.Store().Keys() {
			if strings.Contains(k, "/log/0000000000000002/") && strings.HasSuffix(k, strings.Repeat("0", 64)) {
				b.Store().Damage(k, func([]byte) []byte { return nil })
			}
		}
		j = mustOpen(t, config(b))
		late(1, last.Seq+1)
		cfg := config(b.Store().Connect(6))
		cfg.Host, cfg.Takeover = hostB, true
		mustClose(t, mustOpen(t, cfg))
		if _, err := j.Sweep(ctx); !errors.Is(err, ErrLost) || b.Count(sim.OpDelete) != 0 {
			t.Fatalf("the loser swept: %v", err)
		}
		<-j.Stopped()
		_ = j.Close(ctx)
	})
}

// resumed is resume, for a chain of calls.
func (c *client) resumed(t *testing.T, j *Journal) *client {
	c.resume(t, j)
	return c
}

// An owner that has nothing to do learns that it was replaced; one whose bucket is away for a while does not
// stop for that.
func TestIdleOwnerNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := sim.New(1)
		var down atomic.Bool
		b.OnOp(func(sim.Op, string, int) sim.Fault { return sim.Fault{Hang: down.Load()} })
		j := mustOpen(t, config(b))
		down.Store(true)
		time.Sleep(time.Hour)
		down.Store(false)
		time.Sleep(getTimeout)
		if err := j.Err(); err != nil {
			t.Fatalf("idle, and the bucket was away: %v", err)
		}
		cfg := config(b.Store().Connect(2))
		cfg.Host, cfg.Takeover = hostB, true
		heir := mustOpen(t, cfg)
		within(t, watchEvery+getTimeout, "noticing", func() { <-j.Stopped() })
		if err := j.Err(); !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		_ = j.Close(t.Context())
		mustClose(t, heir)
	})
}

// Two owners are paused at random, the second while it takes over from the first or later; a third one takes
// over from both. They go on in either order.
func TestThreeOwners(t *testing.T) {
	seeds := uint64(40)
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		ok := t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { threeOwners(t, rand.New(rand.NewPCG(seed, 3))) })
		})
		if !ok {
			return
		}
	}
}

func threeOwners(t *testing.T, r *rand.Rand) {
	ctx := context.Background()
	store := sim.New(1).Store()
	type owner struct {
		*client
		g    *gate
		done chan error
	}
	var owners []*owner
	for i := range 2 {
		b := store.Connect(uint64(i))
		o := &owner{
			client: &client{Customer: viewtest.New(i + 1)},
			g:      newGate(b, 1+2*i+r.IntN(60), r.IntN(2) == 0), done: make(chan error, 1),
		}
		owners = append(owners, o)
		cfg := config(b)
		// One that may take over and is paused before its claim does so later, rightly: the second has claimed.
		cfg.Host, cfg.Takeover = [16]byte{byte(i + 1)}, i == 1
		go func() {
			j, err := Open(ctx, cfg)
			if err != nil {
				o.done <- err
				return
			}
			o.j = j
			run := 0
			if err = o.drive(ctx, &run, 2); err == nil {
				_, err = j.Sweep(ctx)
			}
			if err == nil {
				err = o.drive(ctx, &run, 4)
			}
			<-j.Stopped() // by watch, if by nothing else
			o.done <- errors.Join(err, j.Err())
			_ = j.Close(ctx)
		}()
		<-o.g.paused
		synctest.Wait()
	}
	cfg := config(store.Connect(3))
	cfg.Host, cfg.Takeover = [16]byte{3}, true
	heir := mustOpen(t, cfg)
	c, run := &client{Customer: viewtest.New(3), j: heir}, 0
	if err := c.drive(ctx, &run, 1); err != nil {
		t.Fatal(err)
	}
	if r.IntN(2) == 0 {
		if _, err := heir.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if r.IntN(2) == 0 {
		owners[0], owners[1] = owners[1], owners[0]
	}
	for _, o := range owners {
		close(o.g.opened)
		if err := <-o.done; !errors.Is(err, ErrLost) && !errors.Is(err, ErrStopped) && o.j != nil {
			t.Fatalf("paused at %s, it ended with: %v", o.g.where(), err)
		}
		time.Sleep(time.Duration(r.IntN(3)) * time.Minute)
	}
	if err := c.drive(ctx, &run, 2); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, o := range append(owners, &owner{client: c}) {
			o.check(t, heir)
		}
		checkStore(t, store, heir)
		if _, err := heir.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		mustClose(t, heir)
		heir = mustOpen(t, cfg)
	}
	mustClose(t, heir)
}
