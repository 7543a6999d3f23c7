package sim

import (
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/internal/part"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/bucket/steady"
	"holdfast/service/journal"
	"holdfast/service/policy"
	"holdfast/service/segment"
)

// form is what the N-th operation suffers, and everything for a while after it, by whether it writes. Where a
// read and a write stand in one form, they have nothing to do with one another: it takes fewer runs.
type form struct {
	name        string
	write, read sim.Fault
	lasts       time.Duration
}

var forms = []form{
	{"fails", sim.Fault{Err: sim.ErrFault}, sim.Fault{Err: sim.ErrFault}, 0},
	{"fails, applied; comes short", sim.Fault{Err: sim.ErrFault, Applied: true}, sim.Fault{Short: true}, 0},
	{"hangs", sim.Fault{Hang: true}, sim.Fault{Hang: true}, 0},
	{"hangs, applied; has a bit flipped", sim.Fault{Hang: true, Applied: true}, sim.Fault{Flip: true}, 0},
	{"hangs, lands late; is another object", sim.Fault{Hang: true, Late: 3 * time.Minute}, sim.Fault{Wrong: true}, 0},
	{"fails, lands late; is not there", sim.Fault{Err: sim.ErrFault, Late: 3 * time.Minute}, sim.Fault{Hide: true}, 0},
	{"fails, lands in the end", sim.Fault{Err: sim.ErrFault, Late: sim.UntilLand}, sim.Fault{Slow: 20 * time.Second}, 0},
	{"and all for 10 s fail", sim.Fault{Err: sim.ErrFault}, sim.Fault{Err: sim.ErrFault}, 10 * time.Second},
	{"and all for 10 s fail, applied; hang", sim.Fault{Err: sim.ErrFault, Applied: true}, sim.Fault{Hang: true}, 10 * time.Second},
}

// nth counts the operations on a bucket while it is armed, and makes the n-th suffer.
type nth struct {
	form
	n int

	mu    sync.Mutex
	armed bool
	count int
	hit   string // what suffered first
	until time.Time
}

func (f *nth) onOp(op sim.Op, key string, _ int) sim.Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.armed {
		return sim.Fault{}
	}
	f.count++
	if f.count == f.n {
		f.hit, f.until = fmt.Sprint(op, " ", key), time.Now().Add(f.lasts)
	}
	switch {
	case f.count != f.n && !time.Now().Before(f.until):
		return sim.Fault{}
	case op.Writes():
		return f.write
	}
	return f.read
}

func (f *nth) arm(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = on
}

// journey is something whole that people do.
type journey struct {
	name string
	// least is how many operations it has at least, and step how far it is from one N to the next; 0 is 1.
	least, step int
	before      func(*traveller)
	// run does it, once more or for the first time. An error must name its cause, and be gone the next time.
	run func(*traveller) error
	// once is that one run must do: whoever does it goes on by himself.
	once bool
}

// traveller is on a journey.
type traveller struct {
	*world
	dirs     []string                            // trees
	archives []holdfast.RecordID                 // what was acknowledged
	is       map[holdfast.RecordID]string        // the tree of each that must come back
	state    map[holdfast.RecordID]history.State // of each, as it must be
	stray    string                              // an object in quarantine
}

func (v *traveller) backup(n int) error {
	r, err := backup.Run(v.Context(), v.first.config(v.dirs[n], fmt.Sprint(n)))
	if err == nil && !r.Complete() {
		err = fmt.Errorf("%+v", r)
	}
	if err == nil {
		v.archives, v.is[r.Archive.ID], v.state[r.Archive.ID] = append(v.archives, r.Archive.ID), v.dirs[n], history.Live
	}
	return err
}

// recover has a new data directory take over with nothing but the bucket.
func (v *traveller) recover(probe bool) error {
	if v.end != nil {
		v.lose()()
	}
	v.host[0]++ // it is another directory each time
	cfg := v.config()
	cfg.Takeover, cfg.Probe = true, probe
	_, err := journal.Rebuild(v.Context(), cfg)
	return err
}

// restore extracts the archive with that number and compares it with what its tree holds.
func (v *traveller) restore(n int) error {
	h, err := restore.Open(v.Context(), v.first.Machine, v.first.c)
	if err != nil {
		return err
	}
	out := filepath.Join(v.TempDir(), "out")
	r, err := h.Extract(v.Context(), h.History.Archives[n], out, restore.Options{Problem: func(p restore.Problem) { v.Errorf("%s: %v", p.Path, p.Err) }})
	if err == nil && (r.Problems > 0 || !slices.Equal(contents(v, v.is[v.archives[n]]), contents(v, out))) {
		err = fmt.Errorf("not all came back: %+v", r)
	}
	return err
}

// sapling makes dir/tree: some small files and two that are cut into chunks.
func sapling(t testing.TB, seed byte) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, size := range map[string]int{"a": 100, "b": 5000, "empty": 0, "sub/large": 150 << 10, "sub/larger": 300 << 10} {
		p := filepath.Join(dir, "tree", name)
		b := make([]byte, size)
		mrand.NewChaCha8([32]byte{seed, byte(len(name))}).Read(b)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var journeys = []journey{
	{
		name: "backup", least: 7, once: true,
		before: func(v *traveller) { v.must(v.backup(0)) },
		run:    func(v *traveller) error { return v.backup(1) },
	},
	{
		name: "restore", least: 6, once: true,
		before: func(v *traveller) {
			for i := range 5 { // what the last archive needs lies in many segments
				v.must(os.WriteFile(filepath.Join(v.dirs[0], "tree", fmt.Sprint(i)), make([]byte, 1000*i), 0o600))
				time.Sleep(time.Minute)
				v.must(v.backup(0))
			}
			for _, id := range v.archives[:4] {
				delete(v.is, id)
			}
		},
		run: func(v *traveller) error { return v.restore(4) },
	},
	{
		name: "recover", least: 9,
		before: func(v *traveller) { v.must(v.backup(0)); v.must(v.backup(1)) },
		run:    func(v *traveller) error { return v.recover(false) },
	},
	{
		name: "probe and recover", least: 85, step: 11,
		before: func(v *traveller) { v.must(v.backup(0)) },
		run:    func(v *traveller) error { return v.recover(true) },
	},
	{
		name: "delete", least: 10,
		before: func(v *traveller) {
			for range 3 {
				v.must(v.backup(0))
			}
			v.must(v.submit(history.TypeDelete, v.archives[0]))
			v.strayed()
			v.stop()
			time.Sleep(8 * 24 * time.Hour) // it may be purged
			v.start()
		},
		run: func(v *traveller) error {
			if a, ok := v.first.open().History.Find(v.archives[1]); !ok {
				return fmt.Errorf("archive %.8s is gone", v.archives[1])
			} else if a.State == history.Live {
				v.must(v.submit(history.TypeDelete, a.ID))
			}
			v.must(v.submit(history.TypeUndelete, v.archives[1]))
			if _, err := policy.Run(v.Context(), v.j, v.id.LogKey(), nil); err != nil {
				return err
			}
			if _, err := v.j.Sweep(v.Context()); err != nil {
				return err
			}
			v.state[v.archives[0]] = history.Purged
			if slices.Contains(v.bucket.Store().Keys(), v.stray) {
				v.Error("what was swept is there")
			}
			return nil
		},
	},
}

func (v *traveller) must(err error) {
	v.Helper()
	if err != nil {
		v.Fatal(err)
	}
}

func (v *traveller) submit(t history.Type, id holdfast.RecordID) error {
	_, err := v.first.c.SubmitAsOwner(v.Context(), v.owner.SignKey(), t, history.IDs{id}.Encode())
	return err
}

// strayed puts a segment of this epoch into the bucket that the next owner will not accept.
func (v *traveller) strayed() {
	v.Helper()
	keys := v.bucket.Store().Keys()
	k, err := segment.ParseKey(keys[len(keys)-1])
	v.must(err)
	k.Position.Seq += 7
	v.stray = k.String()
	v.must(v.bucket.Store().Connect(5).Put(v.Context(), v.stray, []byte("stray")))
}

// rebuilt fails unless the view equals one made anew from the bucket.
func (v *traveller) rebuilt() {
	v.Helper()
	for range 10 {
		have, pos, err := v.j.Digest(v.Context())
		v.must(err)
		r, err := journal.Rebuild(v.Context(), journal.Config{
			Bucket: v.bucket.Store().Clone().Connect(9), Cell: v.id.Cell, Host: [16]byte{9}, LogKey: v.id.LogKey(), Takeover: true,
		})
		v.must(err)
		if r.Position == pos {
			if r.Digest != have {
				v.Errorf("the view at %s is not what the bucket says", pos)
			}
			return
		}
		time.Sleep(10 * time.Second) // something is under way
	}
	v.Error("the journal does not come to rest")
}

// whole fails unless everything that was acknowledged is there, and nothing else.
func (v *traveller) whole() {
	v.Helper()
	v.wrapped()
	v.rebuilt()
	got := map[holdfast.RecordID]history.Archive{}
	for _, a := range v.first.open().History.Archives {
		got[a.ID] = a
	}
	for id, want := range v.state {
		a, ok := got[id]
		delete(got, id)
		switch {
		case want == history.Purged:
			if ok {
				v.Errorf("archive %.8s is %s, and was purged", id, a.State)
			}
		case !ok || a.State != want:
			v.Errorf("archive %.8s, which is %s, is there: %v, and %s", id, want, ok, a.State)
		case v.is[id] != "":
			v.first.restores(a, v.is[id])
		}
	}
	if len(got) > 0 {
		v.Errorf("archives that nobody was told of: %v", got)
	}
}

// TestFailEveryBucketOperation makes the N-th operation on the bucket fail, for N = 1, 2, 3, ... until a journey has
// fewer, in every form: a whole backup, a whole restore, a whole recovery, and deleting with all that follows. Each
// time the journey comes to its end, by itself or, where a person or the next hour does it again, after an error that
// names its cause; what was acknowledged is there, comes back, and nothing else does; the view is what the bucket says.
func TestFailEveryBucketOperation(t *testing.T) {
	for _, j := range journeys {
		t.Run(j.name, func(t *testing.T) {
			for i, f := range forms {
				t.Run(f.name, func(t *testing.T) {
					t.Parallel()
					if !part.Heavy() { // one for each form, spread over the journey
						if n := 1 + i*j.least/len(forms); !failNth(t, j, &nth{form: f, n: n}, i%2 == 0) {
							t.Errorf("it has no operation %d", n)
						}
						return
					}
					n := 1
					for failNth(t, j, &nth{form: f, n: n}, (n+i)%2 == 0) && !t.Failed() {
						n += max(1, j.step)
					}
					if n <= j.least {
						t.Errorf("it ended before operation %d", n)
					}
				})
			}
		})
	}
}

// failNth goes on a journey on which the n-th operation fails, and reports whether there are so many. With steadily the
// service has its retry loop over the bucket, as it always has; without, the journal must bear what that would hide.
func failNth(t *testing.T, j journey, f *nth, steadily bool) (reached bool) {
	with := func(b *sim.Bucket) bucket.Bucket {
		b.OnOp(f.onOp)
		if steadily {
			return steady.New(b, steady.Config{})
		}
		return b
	}
	inWorldWith(t, owner, with, func(w *world) {
		v := &traveller{world: w, dirs: []string{sapling(w, 1), sapling(w, 2)}, is: map[holdfast.RecordID]string{}, state: map[holdfast.RecordID]history.State{}}
		j.before(v)
		f.arm(true)
		err := j.run(v)
		f.arm(false)
		defer func() {
			if w.Failed() {
				w.Logf("operation %d, %s, %s (retry loop: %v): %v", f.n, f.hit, f.name, steadily, err)
			}
		}()
		if reached = f.hit != ""; !reached && err == nil {
			return
		}
		if err != nil && (j.once || !named(err)) {
			w.Errorf("the %s ends with: %v", j.name, err)
		}
		if w.end != nil && w.j.Err() != nil {
			w.Fatal(w.j.Err())
		}
		time.Sleep(time.Minute)
		v.must(j.run(v))
		if w.end == nil {
			w.start()
		}
		time.Sleep(10 * time.Minute)
		w.bucket.Store().Land()
		v.whole()
		w.crash()
		v.whole()
	})
	return reached
}

// named reports whether an error has what failed in it.
func named(err error) bool {
	return errors.Is(err, sim.ErrFault) || bucket.ClassOf(err) == bucket.ClassTimeout || errors.Is(err, bucket.ErrWeak)
}
