// Package sim keeps a bucket in memory and misbehaves on request, in every way that a real store was
// seen to, each in both forms: failed and not applied, failed but applied.
//
// A Store is what survives; a Bucket is one process's connection to it. A test of crashes drops the
// Bucket (CrashAt, Crash) and connects a new one to the same Store.
//
// What a call suffers is decided by OnOp, or else by Profile from (seed, op, key, attempt) alone, so
// that a schedule does not depend on the order of goroutines. All waiting is by timers: inside a
// testing/synctest bubble it takes no time.
//
// The Store also watches its user. Different content under one key that is not swapped, or a body that
// changes during its Put, is a violation of the journal's rules: see Violations.
package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/service/bucket"
)

// Op is a call of bucket.Bucket.
type Op = bucket.Op

// The calls.
const (
	OpPut    = bucket.OpPut
	OpGet    = bucket.OpGet
	OpList   = bucket.OpList
	OpDelete = bucket.OpDelete
	OpSwap   = bucket.OpSwap
	OpNow    = bucket.OpNow
)

// Errors of faults, for tests that look for them; a user of a bucket cannot know them.
var (
	ErrFault   = errors.New("simulated: InternalError")
	ErrCrashed = fmt.Errorf("simulated: this process is dead: %w", bucket.ErrClosed)
)

// CursedDelay is how long a cursed request takes to fail, as seen on S3.
const CursedDelay = 4880 * time.Millisecond

// UntilLand is a Late that waits for Store.Land.
const UntilLand time.Duration = -1

// Fault is what one call suffers. The zero Fault is none. Slow comes first, then the call is applied (or
// not), then it hangs, fails or answers.
type Fault struct {
	Slow    time.Duration // wait before anything else; the call gives up, not applied, if its ctx ends first
	Err     error         // returned at once; the call is not applied unless Applied or Late say so
	Hang    bool          // return only when ctx ends, with its error; not applied unless Applied or Late say so
	Applied bool          // with Err or Hang: applied all the same, before it fails
	// Late, with Err or Hang, applies a Put, Delete or Swap that long after it failed (UntilLand: when the
	// test says so). A late Swap compares when it lands.
	Late  time.Duration
	Short bool // Get: the answer lacks its last byte and half the rest, and there is no error
	Flip  bool // Get: one bit of the answer is wrong, which one depends on (seed, key, attempt)
	Wrong bool // Get: the bytes are those of another object, or zeros where there is none as long
	Hide  bool // List: the object that was put last under the prefix is missing. Get: ErrNotFound
}

// Profile gives each fault a chance in a million calls to which it can happen. Each is drawn anew for
// every attempt, except Cursed.
type Profile struct {
	// Cursed: this identical request fails at every attempt after CursedDelay, not applied. A Get of another range or a
	// List of another page is another request.
	Cursed  int
	Fail    int // Err, not applied
	Applied int // Err, applied (writes)
	Hang    int // not applied
	Hung    int // Hang, applied (writes)
	Late    int // Hang, applied up to LateMax after it gave up (writes)
	Slow    int // up to SlowMax
	Short   int
	Flip    int
	Wrong   int
	Hide    int

	SlowMax, LateMax time.Duration // 0: 10 s and 10 min
	// Canon maps a key to what is drawn on, so that a random part of keys does not make every run
	// another; nil is the key itself.
	Canon func(key string) string
}

// Store is the content, shared by all Buckets connected to it.
type Store struct {
	mu         sync.Mutex
	objects    map[string]object
	hashes     map[string]uint64 // of the content of every key that was ever put and never swapped
	serial     uint64
	skew       time.Duration
	late       []func() // waiting for Land; each applies once
	violations []string
}

type object struct {
	body   []byte // never changed
	serial uint64 // of the put, rising
}

// Bucket is one process's connection to a Store. Set Profile and AfterOp before the first call.
type Bucket struct {
	// Profile applies if OnOp was given nothing.
	Profile Profile
	// AfterOp, if set, is called when a call was applied, or was not, and before it answers. With OnOp, which
	// is called before, it is a gate: one that does not return until told so pauses a process there. A call
	// that was held by OnOp is applied even if its ctx has ended since, as one is that lay in some queue.
	AfterOp func(op Op, key string, attempt int)

	seed  uint64
	store *Store

	mu       sync.Mutex
	onOp     func(op Op, key string, attempt int) Fault
	attempts map[string]int
	ops      map[Op]int
	writes   int
	crashAt  int // the write with this number is the last; 0 is never
	applied  bool
	dead     bool
	died     chan struct{} // closed when dead
}

var _ bucket.Bucket = (*Bucket)(nil)

// New returns a Bucket on a new Store.
func New(seed uint64) *Bucket {
	return (&Store{objects: map[string]object{}, hashes: map[string]uint64{}}).Connect(seed)
}

// Connect returns a new Bucket on s, without faults.
func (s *Store) Connect(seed uint64) *Bucket {
	return &Bucket{seed: seed, store: s, attempts: map[string]int{}, ops: map[Op]int{}, died: make(chan struct{})}
}

// Store returns what b is connected to.
func (b *Bucket) Store() *Store { return b.store }

// CrashAt makes the n-th write from now (1 is the next) the last thing that the process does: it is
// applied or not, and it and everything after fails with ErrCrashed.
func (b *Bucket) CrashAt(n int, applied bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.crashAt, b.applied = b.writes+n, applied
}

// Crash makes everything from now on, and what waits, fail with ErrCrashed, not applied. What was said to
// land late still does.
func (b *Bucket) Crash() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.crash()
}

// crash is Crash with mu held.
func (b *Bucket) crash() {
	if !b.dead {
		b.dead = true
		close(b.died)
	}
}

// Crashed reports whether the process is dead.
func (b *Bucket) Crashed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dead
}

// Writes returns how many writes were begun on b: run once without faults to learn what CrashAt can reach.
func (b *Bucket) Writes() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.writes
}

// Count returns how many calls of op were begun on b.
func (b *Bucket) Count(op Op) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ops[op]
}

// Violations returns what the users of the store did that the journal's rules forbid.
func (s *Store) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.violations)
}

// Land applies everything that waits for it (UntilLand), in the order in which it was given up, and
// returns how many that were.
func (s *Store) Land() int {
	s.mu.Lock()
	late := s.late
	s.late = nil
	s.mu.Unlock()
	for _, f := range late {
		f()
	}
	return len(late)
}

// SetSkew sets how far the store's clock is ahead of ours.
func (s *Store) SetSkew(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.skew = d
}

// Keys returns all keys in order.
func (s *Store) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]string, 0, len(s.objects))
	for k := range s.objects {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Bytes returns the size of all objects.
func (s *Store) Bytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n int64
	for _, o := range s.objects {
		n += int64(len(o.body))
	}
	return n
}

// Damage replaces the object's content by what change makes of a copy of it, behind everybody's back; nil
// removes it. It panics if there is no such object.
func (s *Store) Damage(key string, change func(body []byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	if !ok {
		panic("sim: damage of an absent object " + key)
	}
	o.body = change(bytes.Clone(o.body))
	if o.body == nil {
		delete(s.objects, key)
		return
	}
	s.objects[key] = o
}

// Clone returns an independent copy of the store as it is now, without what waits to land.
func (s *Store) Clone() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Store{objects: map[string]object{}, hashes: map[string]uint64{}, serial: s.serial, skew: s.skew}
	for k, o := range s.objects {
		c.objects[k] = o
	}
	for k, h := range s.hashes {
		c.hashes[k] = h
	}
	return c
}

// OnOp makes fn alone say what each call suffers from now on; nil leaves it to Profile. attempt counts the calls of
// (op, key) on this Bucket from 1; the key of a List is its prefix, that of Now "". fn may be called by several
// goroutines at once.
func (b *Bucket) OnOp(fn func(op Op, key string, attempt int) Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.onOp = fn
}

// begin counts the call, which part tells from others of its op and key, finds its fault and waits out Slow. A dead process gets ErrCrashed; crashed
// tells that this very call is the last one, to be applied.
func (b *Bucket) begin(ctx context.Context, op Op, key, part string) (f Fault, attempt int, crashed bool, err error) {
	if err := ctx.Err(); err != nil {
		return f, 0, false, err
	}
	b.mu.Lock()
	if b.dead {
		b.mu.Unlock()
		return f, 0, false, ErrCrashed
	}
	b.ops[op]++
	id := string(op) + " " + key
	b.attempts[id]++
	attempt = b.attempts[id]
	if op.Writes() {
		b.writes++
		if b.writes == b.crashAt {
			b.crash()
			applied := b.applied
			b.mu.Unlock()
			if applied {
				return f, attempt, true, nil
			}
			return f, attempt, false, ErrCrashed
		}
	}
	onOp := b.onOp
	b.mu.Unlock()
	if onOp != nil {
		f = onOp(op, key, attempt)
	} else {
		f = b.Profile.draw(b.seed, op, key, part, attempt)
	}
	if f.Slow > 0 {
		err = b.wait(ctx, f.Slow)
	}
	return f, attempt, false, err
}

// wait waits for d, ctx or death; d < 0 is for ever.
func (b *Bucket) wait(ctx context.Context, d time.Duration) error {
	var c <-chan time.Time
	if d >= 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		c = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-b.died:
		return ErrCrashed
	case <-c:
		return nil
	}
}

// write runs a write: apply does it under the store's lock and returns the call's own answer.
func (b *Bucket) write(ctx context.Context, op Op, key string, apply func() error) error {
	f, attempt, crashed, err := b.begin(ctx, op, key, "")
	if err != nil {
		return err
	}
	defer b.answer(op, key, attempt)
	do := func() error {
		b.store.mu.Lock()
		defer b.store.mu.Unlock()
		return apply()
	}
	if crashed {
		_ = do()
		return ErrCrashed
	}
	if f.Err == nil && !f.Hang {
		if b.Crashed() { // while it was slow
			return ErrCrashed
		}
		return do()
	}
	if f.Applied {
		_ = do()
	}
	err = f.Err
	if f.Hang {
		err = b.wait(ctx, -1)
	}
	switch {
	case f.Late > 0:
		time.AfterFunc(f.Late, func() { _ = do() })
	case f.Late < 0:
		b.store.mu.Lock()
		b.store.late = append(b.store.late, func() { _ = do() })
		b.store.mu.Unlock()
	}
	return err
}

// answer is called before a call answers.
func (b *Bucket) answer(op Op, key string, attempt int) {
	if b.AfterOp != nil {
		b.AfterOp(op, key, attempt)
	}
}

// read runs the faults of a read; after it without error the call answers.
func (b *Bucket) read(ctx context.Context, op Op, key, part string) (Fault, int, error) {
	f, attempt, _, err := b.begin(ctx, op, key, part)
	if err == nil && f.Hang {
		err = b.wait(ctx, -1)
	}
	if err == nil {
		err = f.Err
	}
	return f, attempt, err
}

// Put implements bucket.Bucket.
func (b *Bucket) Put(ctx context.Context, key string, body []byte) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	if len(body) > bucket.MaxObject {
		return fmt.Errorf("put %s: %d bytes exceed the limit of %d", key, len(body), bucket.MaxObject)
	}
	mine := append([]byte{}, body...)
	s := b.store
	err := b.write(ctx, OpPut, key, func() error {
		if err := s.fits(key); err != nil {
			return err
		}
		sum := hash(mine)
		if old, ok := s.hashes[key]; ok && old != sum {
			s.violations = append(s.violations, "different content was put under "+key)
		}
		s.hashes[key] = sum
		s.put(key, mine)
		return nil
	})
	if !bytes.Equal(mine, body) {
		s.mu.Lock()
		s.violations = append(s.violations, "the body changed during the put of "+key)
		s.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

// put replaces the object; mu is held.
func (s *Store) put(key string, body []byte) {
	s.serial++
	s.objects[key] = object{body, s.serial}
}

// fits refuses a key that a directory could not hold beside the others; mu is held.
func (s *Store) fits(key string) error {
	for i, c := range key {
		if _, ok := s.objects[key[:i]]; c == '/' && ok {
			return fmt.Errorf("%s is an object", key[:i])
		}
	}
	return nil
}

// Get implements bucket.Bucket.
func (b *Bucket) Get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	if err := bucket.CheckKey(key); err != nil {
		return nil, err
	}
	p, err := b.get(ctx, key, off, n)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", key, err)
	}
	return p, nil
}

func (b *Bucket) get(ctx context.Context, key string, off, n int64) ([]byte, error) {
	f, attempt, err := b.read(ctx, OpGet, key, fmt.Sprint(off, n))
	if err != nil {
		return nil, err
	}
	defer b.answer(OpGet, key, attempt)
	s := b.store
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[key]
	if !ok || f.Hide {
		return nil, bucket.ErrNotFound
	}
	size := int64(len(o.body))
	if off < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("%d bytes at %d of %d: %w", n, off, size, bucket.ErrShort)
	}
	if n < 0 {
		n = size - off
	}
	p := append([]byte{}, o.body[off:off+n]...)
	if f.Wrong {
		p = s.wrong(key, off, n)
	}
	if f.Short && n > 0 {
		p = p[:(n-1)/2]
	}
	if f.Flip && len(p) > 0 {
		bit := draw(b.seed, "bit", key, attempt) % uint64(8*len(p))
		p[bit/8] ^= 1 << (bit % 8)
	}
	return p, nil
}

// wrong returns the range of the first other object that is long enough, or zeros; mu is held.
func (s *Store) wrong(key string, off, n int64) []byte {
	best := ""
	for k, o := range s.objects {
		if k != key && int64(len(o.body)) >= off+n && (best == "" || k < best) {
			best = k
		}
	}
	if best == "" {
		return make([]byte, n)
	}
	return append([]byte{}, s.objects[best].body[off:off+n]...)
}

// List implements bucket.Bucket.
func (b *Bucket) List(ctx context.Context, prefix, after string, max int) ([]bucket.Object, error) {
	f, attempt, err := b.read(ctx, OpList, prefix, fmt.Sprint(after, max))
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", prefix, err)
	}
	defer b.answer(OpList, prefix, attempt)
	if max <= 0 || max > bucket.MaxList {
		max = bucket.MaxList
	}
	s := b.store
	s.mu.Lock()
	defer s.mu.Unlock()
	hidden := ""
	if f.Hide {
		var last uint64
		for k, o := range s.objects {
			if strings.HasPrefix(k, prefix) && o.serial > last {
				hidden, last = k, o.serial
			}
		}
	}
	var out []bucket.Object
	for k, o := range s.objects {
		if strings.HasPrefix(k, prefix) && k > after && k != hidden {
			out = append(out, bucket.Object{Key: k, Size: int64(len(o.body))})
		}
	}
	slices.SortFunc(out, func(a, b bucket.Object) int { return strings.Compare(a.Key, b.Key) })
	if len(out) > max {
		out = slices.Clone(out[:max])
	}
	return out, nil
}

// Delete implements bucket.Bucket.
func (b *Bucket) Delete(ctx context.Context, key string) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	err := b.write(ctx, OpDelete, key, func() error {
		delete(b.store.objects, key)
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// Swap implements bucket.Bucket.
func (b *Bucket) Swap(ctx context.Context, key string, old, new []byte) error {
	if err := bucket.CheckKey(key); err != nil {
		return err
	}
	s := b.store
	absent, was, is := old == nil, bytes.Clone(old), append([]byte{}, new...)
	err := b.write(ctx, OpSwap, key, func() error {
		o, ok := s.objects[key]
		if ok == absent || ok && !bytes.Equal(o.body, was) {
			return bucket.ErrChanged
		}
		if err := s.fits(key); err != nil {
			return err
		}
		delete(s.hashes, key)
		s.put(key, is)
		return nil
	})
	if err != nil {
		return fmt.Errorf("swap %s: %w", key, err)
	}
	return nil
}

// Now implements bucket.Bucket.
func (b *Bucket) Now(ctx context.Context) (time.Time, error) {
	_, attempt, err := b.read(ctx, OpNow, "", "")
	if err != nil {
		return time.Time{}, fmt.Errorf("ask the store's clock: %w", err)
	}
	defer b.answer(OpNow, "", attempt)
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	return time.Now().Add(b.store.skew), nil
}

// draw returns the faults of one call.
func (p Profile) draw(seed uint64, op Op, key, part string, attempt int) Fault {
	if p.Canon != nil {
		key = p.Canon(key)
	}
	hit := func(name string, chance int) bool {
		return chance > 0 && draw(seed, name+" "+string(op), key, attempt)%1_000_000 < uint64(chance)
	}
	upTo := func(name string, limit, standard time.Duration) time.Duration {
		if limit == 0 {
			limit = standard
		}
		return time.Duration(draw(seed, name+" "+string(op), key, attempt)%uint64(limit)) + 1
	}
	if p.Cursed > 0 && draw(seed, "cursed "+string(op)+part, key, 0)%1_000_000 < uint64(p.Cursed) {
		return Fault{Slow: CursedDelay, Err: ErrFault}
	}
	var f Fault
	if hit("slow", p.Slow) {
		f.Slow = upTo("how slow", p.SlowMax, 10*time.Second)
	}
	switch w := op.Writes(); {
	case hit("fail", p.Fail):
		f.Err = ErrFault
	case w && hit("applied", p.Applied):
		f.Err, f.Applied = ErrFault, true
	case hit("hang", p.Hang):
		f.Hang = true
	case w && hit("hung", p.Hung):
		f.Hang, f.Applied = true, true
	case w && hit("late", p.Late):
		f.Hang, f.Late = true, upTo("how late", p.LateMax, 10*time.Minute)
	case op == OpGet && hit("short", p.Short):
		f.Short = true
	case op == OpGet && hit("flip", p.Flip):
		f.Flip = true
	case op == OpGet && hit("wrong", p.Wrong):
		f.Wrong = true
	case (op == OpGet || op == OpList) && hit("hide", p.Hide):
		f.Hide = true
	}
	return f
}

// draw returns 64 bits that depend on its arguments and nothing else.
func draw(seed uint64, what, key string, attempt int) uint64 {
	h := fnv.New64a()
	var n [16]byte
	binary.BigEndian.PutUint64(n[:], seed)
	binary.BigEndian.PutUint64(n[8:], uint64(attempt))
	h.Write(n[:])
	h.Write([]byte(what + "\x00" + key))
	// FNV mixes its last bytes badly: finish as splitmix64 does.
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

var hashSeed = maphash.MakeSeed()

func hash(b []byte) uint64 { return maphash.Bytes(hashSeed, b) }
