package bucket

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrWeak reports a store that does not keep what the journal rests on.
var ErrWeak = errors.New("this store cannot be used: it does not keep what a backup service needs of it")

// ErrUnconditional is the ErrWeak of a store of which only the conditional writes are no good: see Alone.
var ErrUnconditional = fmt.Errorf("%w", ErrWeak)

const (
	probeObjects = 4 // written, listed and read, one after another
	probeRounds  = 4 // of conditional writes
	probeRivals  = 8 // at a time in each round
	probeTries   = 3 // of a round in which a call failed: what it did is unknown
	probeCall    = 30 * time.Second
	probeLate    = "late"         // what a conditional write would write whose condition does not hold
	probeOld     = 24 * time.Hour // after which what another probe left is removed
)

// Probe writes, lists, reads and swaps a few small objects under prefix + "probe/", removes them, and returns nil if b
// keeps its promises: a list begun after a write shows it, a read begun after a write or swap shows it, and of swaps
// of one object at the same time exactly one is applied. An error that wraps ErrWeak names what b lacks; any
// other means that b could not be asked. A probe that finds nothing is no proof, and a careless store is
// found by it.
//
// It may run beside other probes, and beside owners of the cell. Crash: a few objects are left, which a probe
// a day later removes.
func Probe(ctx context.Context, b Bucket, prefix string) error {
	return (&probe{b: b, dir: prefix + "probe/", rivals: probeRivals}).run(ctx)
}

// ProbeAlone is Probe for a store without conditional writes that is used through Alone: all the rest must be as it should.
func ProbeAlone(ctx context.Context, b Bucket, prefix string) error {
	return (&probe{b: Alone(b), dir: prefix + "probe/", rivals: 1}).run(ctx)
}

func (p *probe) run(ctx context.Context) error {
	var id [8]byte
	rand.Read(id[:])
	p.own = fmt.Sprintf("%s%016x-%x-", p.dir, time.Now().UnixMilli(), id)
	err := p.list(ctx)
	if err == nil {
		err = p.swap(ctx)
	}
	if no := p.clean(context.WithoutCancel(ctx)); err == nil && no != nil {
		err = fmt.Errorf("remove what was written: %w", no)
	}
	if err != nil {
		return fmt.Errorf("probe the bucket: %w", err)
	}
	return nil
}

type probe struct {
	b      Bucket
	dir    string   // of all probes
	own    string   // begins this probe's keys
	keys   []string // that may be there
	rivals int      // that swap at the same time
}

func (p *probe) key(what string, n int) string {
	k := fmt.Sprintf("%s%s-%d", p.own, what, n)
	p.keys = append(p.keys, k)
	return k
}

func weak(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrWeak, fmt.Sprintf(format, a...))
}

func unconditional(what string) error { return fmt.Errorf("%w: %s", ErrUnconditional, what) }

// call runs fn with a deadline, and again if it fails: what fails now and then is usable.
func call(ctx context.Context, fn func(context.Context) error) (err error) {
	for range probeTries {
		c, cancel := context.WithTimeout(ctx, probeCall)
		err = fn(c)
		cancel()
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrWeak) {
			break
		}
	}
	return err
}

// list writes objects and looks whether a list and a read that begin afterwards show each.
func (p *probe) list(ctx context.Context) error {
	for n := range probeObjects {
		k, body := p.key("put", n), []byte(strings.Repeat("probe ", n+1))
		if err := call(ctx, func(ctx context.Context) error { return p.b.Put(ctx, k, body) }); err != nil {
			return err
		}
		var seen []Object
		if err := call(ctx, func(ctx context.Context) (err error) {
			seen = nil
			return ListAll(ctx, p.b, p.own, "", func(o Object) error { seen = append(seen, o); return nil })
		}); err != nil {
			return err
		}
		if len(seen) != n+1 || seen[n] != (Object{k, int64(len(body))}) {
			return weak("a list that was begun after a write was acknowledged does not show it (list-after-write consistency)")
		}
		if err := p.reads(ctx, k, body, nil, "an object"); err != nil {
			return err
		}
	}
	return nil
}

// reads looks whether a read shows want. A store that shows nothing, or what else was there once, is weak. Bytes that
// nobody ever wrote were changed on their way, or lie wrong: that is no lack of consistency, and they are read again.
func (p *probe) reads(ctx context.Context, key string, want []byte, once func([]byte) bool, what string) error {
	return call(ctx, func(ctx context.Context) error {
		got, err := p.b.Get(ctx, key, 0, -1)
		switch {
		case errors.Is(err, ErrNotFound), err == nil && !bytes.Equal(got, want) && once != nil && once(got):
			return weak("a read that was begun after %s was written does not show it (read-after-write consistency)", what)
		case err == nil && !bytes.Equal(got, want):
			return &Error{Class: ClassCorrupt, Err: fmt.Errorf("get %s: %d bytes came back that nobody wrote there", key, len(got))}
		}
		return err
	})
}

// swap has rivals swap one object at the same time, first from nothing and then from what the last round left.
func (p *probe) swap(ctx context.Context) error {
	for try, round := 0, 0; round < probeRounds; {
		key := p.key("swap", try)
		var now []byte
		var err error
		for round = 0; round < probeRounds && err == nil; round++ {
			now, err = p.race(ctx, key, round, now)
		}
		if try++; err != nil && (errors.Is(err, ErrWeak) || try == probeTries || ctx.Err() != nil) {
			return err
		} else if err != nil {
			round = 0 // what a failed call did is unknown: begin anew with another object
		}
	}
	return nil
}

// race has all rivals replace old at the same time, and one that expects what is no longer there afterwards. It
// returns what is there then. Some stores tell those that lose a race that there was a conflict, and not that the
// condition does not hold: who won decides, if anybody did.
func (p *probe) race(ctx context.Context, key string, round int, old []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, probeCall)
	defer cancel()
	errs := make([]error, p.rivals)
	bodyOf := func(round, i int) []byte { // twice: no flipped bit makes one of another
		return []byte(strings.Repeat("round "+strconv.Itoa(round)+", rival "+strconv.Itoa(i)+"; ", 2))
	}
	body := func(i int) []byte { return bodyOf(round, i) }
	once := func(got []byte) bool {
		for n := range (round + 1) * p.rivals {
			if bytes.Equal(got, bodyOf(n/p.rivals, n%p.rivals)) {
				return true
			}
		}
		return string(got) == probeLate
	}
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range errs {
		wg.Go(func() {
			<-begin
			errs[i] = p.b.Swap(ctx, key, old, body(i))
		})
	}
	close(begin)
	wg.Wait()
	won := -1
	var unknown error
	for i, err := range errs {
		switch {
		case err == nil && won >= 0:
			return nil, unconditional("of several conditional writes of one object at the same time, more than one was applied")
		case err == nil:
			won = i
		case errors.Is(err, ErrWeak):
			return nil, err
		case !errors.Is(err, ErrChanged):
			unknown = err
		}
	}
	if won < 0 && unknown != nil {
		return nil, unknown
	}
	if won < 0 {
		return nil, unconditional("of several conditional writes of one object at the same time, none was applied")
	}
	if err := p.reads(ctx, key, body(won), once, "an object by a conditional write"); err != nil {
		return nil, err
	}
	switch err := p.b.Swap(ctx, key, old, []byte(probeLate)); {
	case err == nil:
		return nil, unconditional("a conditional write was applied although its condition did not hold")
	case !errors.Is(err, ErrChanged):
		return nil, err
	}
	return body(won), p.reads(ctx, key, body(won), once, "an object by a conditional write")
}

// clean removes what this probe wrote, and what others left long ago.
func (p *probe) clean(ctx context.Context) error {
	keys := p.keys
	err := call(ctx, func(ctx context.Context) error {
		return ListAll(ctx, p.b, p.dir, "", func(o Object) error {
			ms, err := strconv.ParseInt(o.Key[len(p.dir):min(len(o.Key), len(p.dir)+16)], 16, 64)
			if err == nil && time.Since(time.UnixMilli(ms)) > probeOld {
				keys = append(keys, o.Key)
			}
			return nil
		})
	})
	for _, k := range keys {
		err = errors.Join(err, call(ctx, func(ctx context.Context) error { return p.b.Delete(ctx, k) }))
	}
	return err
}
