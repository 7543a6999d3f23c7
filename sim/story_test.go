package sim

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/internal/never"
	"holdfast/internal/part"
	"holdfast/service/account"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/bucket/steady"
	"holdfast/service/jobs"
	"holdfast/service/policy"
	"holdfast/service/reclaim"
	"holdfast/service/serve"
	"holdfast/service/view"
	"holdfast/wire"
)

// The outage of July 2016, in its own numbers. Day 0 was 30 June.
const (
	// jobBegins is when the routine job that frees blocks started.
	jobBegins = 16*day + 12*time.Hour + 50*time.Minute + 2*time.Second
	// diskFull is when its log had filled the disk, and everything stopped, and aborts is how often it had been begun by then.
	diskFull = 24*day + 10*time.Hour + 15*time.Minute + 19*time.Second
	aborts   = 142
	// keepDays is for how long the residents keep an archive.
	keepDays = 4
)

// story is a cell of the story: residents that back up daily, a bucket of which certain requests fail for ever from
// day 0 on, and a disk of bounded size for everything that the service keeps locally.
type story struct {
	*world
	seed     uint64
	days     int
	day0     time.Time
	people   []*resident
	cursed   int           // requests of a million
	fileSize int           // bytes of a file at most; 0 is 40,000
	naive    bool          // the service has the retry loop of then
	keep     time.Duration // for how long residents keep an archive
	store    *sim.Bucket   // that the service uses: well until somebody says otherwise

	diskSize int64        // bytes; 0 is unlimited
	leaked   atomic.Int64 // bytes on the disk beside the view
	full     atomic.Bool

	ctx    context.Context // ends when the service has stopped
	cancel context.CancelFunc

	closed func() serve.Closed // what the service takes no more; nil takes everything
	begin  func()              // what else is made when the disk is
	hourly func()              // what else is done each hour

	mu                sync.Mutex
	failed            []error // what did not succeed
	backups, reads    int
	refused, accepted int // backups while there is no room for them
	deleted           int // archives meanwhile
}

// resident is a customer.
type resident struct {
	*machine
	s     *story
	owner keyring.Owner
	n     int
	dir   string
	rng   *rand.Rand
	stall stall
	last  *history.Archive           // newest that he was told of
	was   []string                   // contents of it
	acked map[holdfast.RecordID]bool // archives of which he was told that they are there, and which he did not ask to be deleted
}

// naive is the retry loop of then: a request that fails is repeated as it is, three times in all, and then given up.
type naive struct{ bucket.Bucket }

func thrice(ctx context.Context, call func() error) (err error) {
	for try := range 3 {
		if err = call(); err == nil || bucket.ClassOf(err).Answer() || ctx.Err() != nil {
			break
		}
		time.Sleep(100 * time.Millisecond << try)
	}
	return err
}

func (n naive) Put(ctx context.Context, key string, body []byte) error {
	return thrice(ctx, func() error { return n.Bucket.Put(ctx, key, body) })
}

func (n naive) Get(ctx context.Context, key string, off, size int64) (p []byte, err error) {
	err = thrice(ctx, func() error {
		p, err = n.Bucket.Get(ctx, key, off, size)
		return err
	})
	return p, err
}

func (n naive) List(ctx context.Context, prefix, after string, max int) (all []bucket.Object, err error) {
	err = thrice(ctx, func() error {
		all, err = n.Bucket.List(ctx, prefix, after, max)
		return err
	})
	return all, err
}

func (n naive) Delete(ctx context.Context, key string) error {
	return thrice(ctx, func() error { return n.Bucket.Delete(ctx, key) })
}

func (n naive) Now(ctx context.Context) (now time.Time, err error) {
	err = thrice(ctx, func() error {
		now, err = n.Bucket.Now(ctx)
		return err
	})
	return now, err
}

// connect is a connection to the bucket as the service makes it.
func (s *story) connect(b *sim.Bucket) bucket.Bucket {
	b = b.Store().Connect(s.seed)
	b.Profile = sim.Profile{Cursed: s.cursed, Canon: func(key string) string {
		_, key, _ = strings.Cut(key, "/") // another cell is made each time
		return key
	}}
	b.OnOp(func(sim.Op, string, int) sim.Fault { return sim.Fault{} })
	s.store = b
	if s.naive {
		return naive{b}
	}
	return steady.New(b, steady.Config{})
}

// tell lives through the story until it ends: residents do what they do each day, and job is begun on day 16.
// after is called when a new service has started on a bucket that is well.
func (s *story) tell(t *testing.T, people int, job, after func()) {
	s.keep = cmp.Or(s.keep, keepDays*day)
	inWorldWith(t, keyring.OwnerOf(holdfast.Key{16, 7}), s.connect, func(w *world) {
		s.world, w.watch = w, 5*time.Minute
		s.ctx, s.cancel = context.WithCancel(w.Context())
		defer s.cancel()
		for n := range people {
			s.arrive(n)
		}
		w.stop()
		w.disk, w.readOnly = view.NewDisk(), s.closed
		w.disk.OnOp(func(op view.DiskOp) view.DiskFault {
			if op.Write && s.full.Load() {
				return view.DiskFault{Err: syscall.ENOSPC}
			}
			return view.DiskFault{}
		})
		if s.begin != nil {
			s.begin()
		}
		w.start()
		s.day0 = time.Now()
		s.store.OnOp(nil) // and so the faults of its profile begin

		var busy sync.WaitGroup
		for _, r := range s.people {
			busy.Go(func() { r.live() })
		}
		// What the operator's machine does by itself.
		busy.Go(func() {
			for s.wait(time.Now().Add(time.Hour)) {
				if _, err := policy.Run(s.ctx, s.j, s.id.LogKey(), nil); err != nil && s.ctx.Err() == nil {
					s.Logf("day %.2f: policies: %v", s.today(), err)
				}
			}
		})
		if s.hourly != nil {
			busy.Go(func() {
				for s.hourly(); s.wait(time.Now()); s.hourly() {
				}
			})
		}
		busy.Go(func() {
			if s.wait(s.day0.Add(jobBegins)) {
				job()
			}
		})
		s.wait(s.day0.Add(time.Duration(s.days) * day))
		s.cancel()
		busy.Wait()
		s.heal()
		after()
	})
}

// heal ends the service, if it has not stopped, and starts another with nothing but a bucket that is well.
func (s *story) heal() {
	s.full.Store(false)
	gone := s.lose()
	s.naive, s.readOnly = false, nil
	s.ctx = context.WithoutCancel(s.ctx)
	s.disk = view.NewDisk()
	s.start()
	gone()
}

// today returns how many days the story has lasted.
func (s *story) today() float64 { return time.Since(s.day0).Hours() / 24 }

// wait returns true at that time, or false if the service has stopped before.
func (s *story) wait(until time.Time) bool {
	select {
	case <-time.After(time.Until(until)):
		return true
	case <-s.ctx.Done():
		return false
	}
}

// local returns how many bytes of the disk are in use, and notes whether it is full.
func (s *story) local() int64 {
	n := s.disk.Used() + s.leaked.Load()
	if s.diskSize > 0 && n >= s.diskSize {
		s.full.Store(true)
	}
	return n
}

// arrive makes a customer with some files.
func (s *story) arrive(n int) {
	s.Helper()
	r := &resident{s: s, owner: keyring.OwnerOf(holdfast.Key{7, byte(n), byte(n >> 8)}), n: n, dir: s.TempDir(), rng: rand.New(rand.NewPCG(s.seed, uint64(n))), acked: map[holdfast.RecordID]bool{}}
	r.machine = s.settler(r.owner, fmt.Sprint("resident ", n))
	r.c.Close()
	r.c = remote.Dial(r.Machine, remote.Options{CacheDir: r.cache, DialContext: func(ctx context.Context, n, a string) (net.Conn, error) {
		c, err := r.dial(ctx, n, a)
		if err != nil {
			return nil, err
		}
		return heard{c, &r.stall}, nil
	}})
	for i := range 6 {
		r.write(i)
	}
	s.people = append(s.people, r)
}

// write gives one of the resident's files other contents.
func (r *resident) write(i int) {
	b := make([]byte, 2000+r.rng.IntN(cmp.Or(r.s.fileSize, 40_000)))
	rand.NewChaCha8([32]byte{byte(r.s.seed), byte(r.n), byte(r.rng.Uint32()), byte(r.rng.Uint32()), byte(r.rng.Uint32())}).Read(b)
	p := filepath.Join(r.dir, "tree", fmt.Sprint(i))
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644)); err != nil {
		r.s.Error(err)
	}
}

// live is what a resident does: each day at his time he backs up, restores now and then, and deletes what is old.
func (r *resident) live() {
	s := r.s
	at := time.Duration(r.rng.Int64N(int64(20 * time.Hour)))
	for d := range s.days {
		if !s.wait(s.day0.Add(time.Duration(d)*day + at)) {
			return
		}
		if s.closed == nil || !s.closed().Sessions {
			r.write(r.rng.IntN(6))
		}
		r.stall.progress(false)
		r.stall.progress(true)
		err := r.daily(d)
		r.stall.progress(true)
		r.stall.progress(false)
		if err != nil && s.ctx.Err() == nil {
			s.mu.Lock()
			s.failed = append(s.failed, fmt.Errorf("day %.2f, resident %d: %w", s.today(), r.n, err))
			s.mu.Unlock()
		}
	}
}

func (r *resident) daily(d int) error {
	s := r.s
	_, shut, err := r.backUp()
	switch {
	case err != nil:
		return err
	case shut:
		return r.shut()
	}
	if d%5 == r.n%5 {
		if err := r.newest(); err != nil {
			return err
		}
	}
	v, err := r.c.History(s.ctx)
	if err != nil {
		return fmt.Errorf("ask for the history: %w", err)
	}
	var old history.IDs
	for _, a := range v.Archives {
		if a.State == history.Live && time.Since(time.Unix(0, a.Time)) > r.s.keep {
			old = append(old, a.ID)
			delete(r.acked, a.ID)
		}
	}
	if len(old) == 0 {
		return nil
	}
	slices.SortFunc(old, func(a, b holdfast.RecordID) int { return bytes.Compare(a[:], b[:]) })
	if _, err := r.c.SubmitAsOwner(s.ctx, r.owner.SignKey(), history.TypeDelete, old.Encode()); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// restore extracts an archive and compares it with what the files were.
func (r *resident) restore(a history.Archive, was []string) error {
	v, err := restore.Open(r.s.ctx, r.Machine, r.c)
	if err != nil {
		return err
	}
	out := filepath.Join(r.s.TempDir(), "out")
	defer os.RemoveAll(out)
	x, err := v.Extract(r.s.ctx, a, out, restore.Options{})
	if err == nil && (x.Problems > 0 || !slices.Equal(was, contents(r.s, out))) {
		err = fmt.Errorf("not all came back: %+v", x)
	}
	return err
}

// whole has every resident read back every archive that he has, which must be all that he was told of, and restore the newest byte
// for byte.
func (s *story) whole() (archives int) {
	s.Helper()
	for _, r := range s.people {
		s.first = r.machine
		archives += s.verified()
		live := map[holdfast.RecordID]bool{}
		for _, a := range r.open().History.Archives {
			live[a.ID] = a.State == history.Live
		}
		for id := range r.acked {
			if !live[id] {
				s.Errorf("archive %.8s of resident %d is lost", id, r.n)
			}
		}
		if err := r.newest(); err != nil || r.last == nil {
			s.Errorf("resident %d: %v", r.n, err)
		}
	}
	return archives
}

// longest returns the longest stall that anybody saw.
func (s *story) longest() (d time.Duration) {
	for _, r := range s.people {
		d = max(d, r.stall.longest)
	}
	return d
}

// TestScenarioR1TheOutage is the story with the service as it is: the same requests fail for ever, and everybody's backups and
// restores succeed, nobody waits for long, and the job frees what is to be freed.
func TestScenarioR1TheOutage(t *testing.T) {
	people, longest := 4, 15*time.Second
	if part.Heavy() {
		people = 40
	}
	s := &story{seed: storySeed, days: 26, cursed: storyCursed}
	defer never.Catch(func(e never.Event) { t.Errorf("an event that must never happen: %s", e) })()
	var freed reclaim.Report
	runs := 0
	s.tell(t, people, func() {
		before := s.local()
		jobs.New(jobs.Config{Jobs: []jobs.Job{{Name: "reclaim", Every: 12 * time.Hour, Run: func(ctx context.Context, turn *jobs.Turn) (jobs.Result, error) {
			rep, err := reclaim.Run(ctx, reclaim.Config{Journal: s.j, Did: turn.Did, Enough: turn.Enough})
			if err != nil && ctx.Err() == nil {
				t.Errorf("day %.2f: %v", s.today(), err)
			}
			runs++
			freed.Condemned.Count += rep.Condemned.Count
			freed.Retired.Count += rep.Retired.Count
			freed.Removed.Count += rep.Removed.Count
			return jobs.Result{More: rep.More, Text: rep.String()}, err
		}}}}).Loop(s.ctx)
		// The history of what is backed up stays for ever, and more residents have more of it.
		grows := int64(storyGrows + (people-4)*8*(16<<10))
		if s.Logf("the disk: %d bytes when the job began, %d at the end", before, s.local()); s.local() > before+grows {
			t.Errorf("in eight days what is on the disk grew from %d to %d bytes", before, s.local())
		}
		if state := s.srv.State(); state != wire.StateServing {
			t.Errorf("state %s", state)
		}
	}, func() {
		if n := s.whole(); n < people*keepDays {
			t.Errorf("%d archives", n)
		}
	})
	for _, err := range s.failed {
		t.Error(err)
	}
	t.Logf("%d residents, %d backups, %d restores; the longest that anybody heard nothing: %v; %d runs condemned %d blocks, retired %d segments and deleted %d",
		people, s.backups, s.reads, s.longest(), runs, freed.Condemned.Count, freed.Retired.Count, freed.Removed.Count)
	if s.longest() >= longest {
		t.Errorf("somebody heard nothing for %v", s.longest())
	}
	if s.backups != people*s.days || s.reads < people*s.days/5 {
		t.Errorf("%d backups and %d restores", s.backups, s.reads)
	}
	if freed.Condemned.Count < people*10 || freed.Retired.Count == 0 || freed.Removed.Count == 0 { // though some of the deletes fail for ever
		t.Errorf("%d runs freed %+v", runs, freed)
	}
}

// jobOfThen is the job as it was: before it frees a block it logs that on the local disk, and what it then writes to the bucket has the same name at every attempt. A request that exhausts its
// retries aborts it, and it is begun anew, from the start.
type jobOfThen struct {
	*story
	list   []view.Unreferenced
	logged map[holdfast.Name]int // how often it logged that a block is free
	aborts int
}

// logSize is what the log grows by for each block, bytes: one of ours stands for some hundred of theirs.
const logSize = 64 << 10

// frees finds what is to be freed.
func (o *jobOfThen) frees() {
	var err error
	if o.list, _, err = o.j.Unreferenced(view.CondemnableBefore(o.j.Now()), nil, 1_000_000); err != nil {
		o.Error(err)
	}
	o.logged = map[holdfast.Name]int{}
}

// attempt is one, from the start.
func (o *jobOfThen) attempt(b bucket.Bucket) error {
	for _, u := range o.list {
		o.logged[u.Name]++
		o.leaked.Add(logSize)
	}
	o.local()
	const pieces = 20 // that each takes
	for i := range pieces * len(o.list) {
		if err := b.Put(o.ctx, fmt.Sprintf("freed/%d", i), []byte("freed")); err != nil {
			return err
		}
	}
	return nil
}

// TestScenarioR1TheOutageAsItWas is the control: the same world with the retry loop and the job of then fails as the original did.
// The job is aborted again and again, its log fills the disk, an event that must never happen stops everything; and
// nothing is lost.
func TestScenarioR1TheOutageAsItWas(t *testing.T) {
	s := &story{seed: storySeed, days: 26, cursed: storyCursed, naive: true}
	people := 4
	if part.Heavy() {
		people = 40
	}
	o := &jobOfThen{story: s}
	var stopped float64
	var what never.Event
	defer never.Catch(func(e never.Event) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if stopped == 0 {
			stopped, what = s.today(), e
			s.bucket.Crash() // nothing that it does from here on arrives anywhere
			s.cancel()
		}
	})()
	s.tell(t, people, func() {
		o.frees()
		s.diskSize = s.local() + aborts*int64(len(o.list))*logSize // as the story has it
		t.Logf("a disk of %d bytes, of which %d are free; %d blocks to free", s.diskSize, s.diskSize-s.local(), len(o.list))
		b := s.connect(s.bucket)
		s.store.OnOp(nil)
		for at := time.Now(); s.wait(at); at = at.Add((diskFull - jobBegins) / aborts) {
			err := o.attempt(b)
			if err == nil {
				t.Error("the job came to its end")
			}
			if err == nil {
				return
			}
			for n := 0; s.full.Load() && s.wait(time.Now().Add(time.Minute)); n++ { // until the database writes what it has gathered
				account.Add(s.ctx, s.j, fmt.Sprint("new customer ", n))
			}
			if o.aborts++; !errors.Is(err, sim.ErrFault) && s.ctx.Err() == nil {
				t.Errorf("attempt %d: %v", o.aborts, err)
			}
		}
	}, func() {
		archives := s.whole()
		t.Logf("after the stop %d archives, and everything in them", archives)
		if archives < people*keepDays {
			t.Errorf("%d archives", archives)
		}
	})
	t.Logf("%d backups; %d runs of customers failed; %d attempts of the job; stopped on day %.2f: %s", s.backups, len(s.failed), o.aborts, stopped, what.What)
	if o.aborts < aborts-2 || o.aborts > aborts+2 || stopped < 24 || stopped > 25 {
		t.Errorf("%d attempts, and it stopped on day %.2f", o.aborts, stopped)
	}
	for name, n := range o.logged {
		if n < aborts-2 {
			t.Errorf("that block %.8s is free was logged %d times", name, n)
		}
	}
}

const (
	storySeed   = 1
	storyCursed = 10_000 // of a million requests
	storyGrows  = 2 << 20
)
