package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/part"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/jobs"
	"holdfast/service/journal"
	"holdfast/service/policy"
	"holdfast/service/reclaim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// workshop is a cell in which the job that frees blocks is aborted: the journal, its view on a disk and the job are real, the
// customers have no cryptography, and nothing but the aborts differs between two of them.
type workshop struct {
	*testing.T
	rng       *rand.Rand
	bucket    *sim.Bucket // of the process that runs
	disk      *view.Disk
	j         *journal.Journal
	customers []*lodger
	spending  reclaim.Spending
	written   *written

	mu     sync.Mutex
	ops    int  // of the bucket in this run of the job
	abort  int  // the operation of the run that is its last; 0 for none
	kind   kind // how it is aborted
	hit    bool // it was
	cancel context.CancelFunc
}

// kind is how a run is aborted at an operation.
type kind int

const (
	canceled   kind = iota // somebody ends the job there
	failing                // that operation and all later ones fail
	misleading             // likewise, but what writes is done all the same
	killed                 // the process dies there
	kinds
)

func (k kind) String() string {
	return [...]string{"canceled", "failing", "failing, applied", "killed"}[k]
}

// lodger is a customer.
type lodger struct {
	*viewtest.Customer
	next     int
	archives []shelved // that are live
}

// shelved is an archive.
type shelved struct {
	id     holdfast.RecordID
	blocks []viewtest.Block
}

// written is every record that was ever written, by its segment.
type written struct {
	mu       sync.Mutex
	segments map[segment.Position][]segment.Timed
	trailers map[segment.Position]int // bytes
}

// inWorkshop runs fn in a bubble with a cell that has customers whose archives come and go.
func inWorkshop(t *testing.T, fn func(w *workshop)) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{
			T: t, rng: rand.New(rand.NewPCG(142, 2016)), bucket: sim.New(1), disk: view.NewDisk(),
			written: &written{segments: map[segment.Position][]segment.Timed{}, trailers: map[segment.Position]int{}},
		}
		w.open()
		defer func() {
			w.must(w.j.Close(w.Context()))
			if v := w.bucket.Store().Violations(); len(v) > 0 {
				t.Errorf("violations: %v", v)
			}
		}()
		for n := range 4 {
			u := &lodger{Customer: viewtest.New(n)}
			w.must(w.append(func(tx *journal.Tx) error {
				return errors.Join(tx.Record(u.Account()), tx.Record(u.Token(1<<62)), tx.Record(u.Redeemed()))
			}))
			w.record(u, u.Genesis())
			w.record(u, u.Enrol())
			w.customers = append(w.customers, u)
		}
		fn(w)
	})
}

func (w *workshop) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// open starts a process on w.disk.
func (w *workshop) open() {
	w.Helper()
	w.bucket = w.bucket.Store().Connect(1)
	w.bucket.OnOp(w.suffer)
	store, err := w.disk.Open()
	w.must(err)
	w.j, err = journal.Open(w.Context(), journal.Config{
		Bucket: w.written.over(w.bucket), Cell: holdfast.CellID{0xce, 0x11}, Host: [16]byte{1}, LogKey: viewtest.LogKey(), Create: true,
		Watch: 5 * time.Minute, Store: store,
	})
	w.must(err)
}

// seen is a connection to the bucket that notes what segments are put.
type seen struct {
	bucket.Bucket
	w *written
}

func (w *written) over(b bucket.Bucket) bucket.Bucket { return seen{b, w} }

func (s seen) Put(ctx context.Context, key string, body []byte) error {
	if k, err := segment.ParseKey(key); err == nil {
		tr, err := segment.ParseTrailer(body[len(body)-int(k.Trailer):])
		if err != nil {
			return err
		}
		s.w.mu.Lock()
		s.w.segments[k.Position], s.w.trailers[k.Position] = tr.Records, int(k.Trailer)
		s.w.mu.Unlock()
	}
	return s.Bucket.Put(ctx, key, body)
}

// suffer is what each operation on the bucket does.
func (w *workshop) suffer(op sim.Op, key string, _ int) sim.Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.abort == 0 {
		return sim.Fault{}
	}
	if w.ops++; w.ops < w.abort {
		return sim.Fault{}
	}
	first := !w.hit
	w.hit = true
	switch w.kind {
	case canceled:
		w.cancel()
	case failing:
		return sim.Fault{Err: sim.ErrFault}
	case misleading:
		return sim.Fault{Err: sim.ErrFault, Applied: op.Writes()}
	case killed:
		if first {
			w.cancel()
			go w.bucket.Crash()
		}
		return sim.Fault{Hang: true}
	}
	return sim.Fault{}
}

// run runs the job. If abort is not 0 it is aborted at that operation on the bucket; what fails is mended half a minute
// later, and who was killed is started anew. It reports whether the run came so far.
func (w *workshop) run(abort int, k kind) (r reclaim.Report, hit bool) {
	w.Helper()
	run, cancel := context.WithCancel(w.Context())
	defer cancel()
	w.mu.Lock()
	w.ops, w.abort, w.kind, w.hit, w.cancel = 0, abort, k, false, cancel
	w.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		var err error
		r, err = reclaim.Run(run, reclaim.Config{Journal: w.j, Spending: &w.spending})
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-time.After(30 * time.Second):
		cancel()
		err = <-done
	}
	w.mu.Lock()
	hit, w.abort = w.hit, 0
	w.mu.Unlock()
	if !hit && err != nil {
		w.Errorf("a run that was not aborted: %v", err)
	}
	if hit && k == killed {
		w.bucket.Crash()
		w.j.Close(w.Context())
		w.disk = w.disk.Crash(50, w.rng.Uint64())
		w.open()
	}
	return r, hit
}

// append makes records durable.
func (w *workshop) append(fn func(*journal.Tx) error) error {
	t, err := w.j.Append(w.Context(), fn)
	if err != nil {
		return err
	}
	w.j.Flush()
	return t.Wait(w.Context())
}

func (w *workshop) record(u *lodger, r history.Record) {
	w.Helper()
	w.must(w.append(func(tx *journal.Tx) error {
		_, err := tx.History(r)
		return err
	}))
	u.Accepted(r)
}

// backup makes an archive of some blocks.
func (w *workshop) backup(u *lodger) {
	w.Helper()
	w.record(u, u.Open())
	var a shelved
	store := func(blocks ...viewtest.Block) {
		w.must(w.append(func(tx *journal.Tx) (err error) {
			for _, b := range blocks {
				err = errors.Join(err, tx.Stored(u.Session, b.Name, b.Kind, b.Links, b.Sealed))
			}
			return err
		}))
		a.blocks = append(a.blocks, blocks...)
	}
	var all []viewtest.Block
	var chunks []holdfast.Name
	for range 6 {
		u.next++
		all = append(all, u.Chunk(u.next, 1000+u.next*7919%20_000))
		chunks = append(chunks, all[len(all)-1].Name)
	}
	store(all[:3]...) // an archive lies in some segments
	store(all[3:]...)
	tree := u.Over(holdfast.KindTree, u.next, chunks...)
	root := u.Over(holdfast.KindArchive, u.next, tree.Name)
	store(tree, root)
	c := u.Commit(root.Name)
	w.record(u, c)
	w.j.EndSession(u.Session)
	a.id = c.ID()
	u.archives = append(u.archives, a)
}

// hour is what happens between two runs: one customer backs up and deletes his oldest archive, and the policies run.
func (w *workshop) hour(i int) {
	w.Helper()
	u := w.customers[i%len(w.customers)]
	w.backup(u)
	if len(u.archives) > 3 {
		w.record(u, u.ByOwner(history.TypeDelete, history.IDs{u.archives[0].id}.Encode()))
		u.archives = u.archives[1:]
	}
	_, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), nil)
	w.must(err)
}

// rest is what a workshop comes to.
type rest struct {
	local        int64 // bytes on the disk
	objects, all int64 // in the bucket, and their bytes
	log          int64 // bytes of trailers, but of takeovers
	records      map[segment.Type]int
	twice        []string // what was freed more than once
}

// week is the story's: customers go on, and the job runs every 80 minutes until it has been aborted so often, at its first
// operation on the bucket, its 14th, its 27th, and so on around; or, if that is 0, so often in all. Then it runs until there is
// nothing more to do.
func (w *workshop) week(aborts, runs int) (out rest, ran int) {
	w.Helper()
	for i := range 40 { // before it, so that there is something to free
		w.hour(i)
		time.Sleep(6 * time.Hour)
	}
	hits := 0
	for i := 0; i < runs || hits < aborts && i < 10*aborts; i++ {
		w.hour(i)
		at := noOperation
		if aborts > 0 {
			at = 1 + hits*13%40
		}
		if _, hit := w.run(at, kind(hits)%kinds); hit {
			hits++
		}
		time.Sleep((diskFull - jobBegins) / 142)
		ran = i + 1
	}
	if hits != aborts {
		w.Errorf("%d runs of %d were aborted", hits, ran)
	}
	for range 18 { // the last archives are purged, and everything is freed and removed
		time.Sleep(day)
		_, err := policy.Run(w.Context(), w.j, viewtest.LogKey(), nil)
		w.must(err)
		for range 5 {
			if r, _ := w.run(noOperation, 0); !r.More {
				break
			}
		}
	}
	w.whole()
	return w.rest(), ran
}

// noOperation is no operation.
const noOperation = 1 << 30

// whole fails unless what the live archives need comes back, and the view is what the bucket says.
func (w *workshop) whole() {
	w.Helper()
	for _, u := range w.customers {
		for _, a := range u.archives {
			for _, b := range a.blocks {
				row, ok, err := w.j.Acked().Present(u.Vault, u.Group, b.Name)
				w.must(err)
				if !ok || row.Count == 0 {
					w.Errorf("a block that an archive needs is there: %v, with %d references", ok, row.Count)
					continue
				}
				if got := w.j.ReadBlocks(w.Context(), []view.Block{row})[0]; got.Err != nil || !bytes.Equal(got.Sealed, b.Sealed) {
					w.Errorf("a block that an archive needs does not come back: %v", got.Err)
				}
			}
		}
	}
	have, pos, err := w.j.Digest(w.Context())
	w.must(err)
	r, err := journal.Rebuild(w.Context(), journal.Config{
		Bucket: w.bucket.Store().Clone().Connect(9), Cell: holdfast.CellID{0xce, 0x11}, Host: [16]byte{9}, LogKey: viewtest.LogKey(), Takeover: true,
	})
	w.must(err)
	if r.Position != pos || r.Digest != have {
		w.Errorf("the view at %s is not what the bucket says at %s", pos, r.Position)
	}
}

// rest counts.
func (w *workshop) rest() rest {
	w.Helper()
	out := rest{local: w.disk.Used(), all: w.bucket.Store().Bytes(), objects: int64(len(w.bucket.Store().Keys())), records: map[segment.Type]int{}}
	type placed struct {
		segment.Position
		off uint32
		holdfast.Name
	}
	once := map[any]int{}
	w.written.mu.Lock()
	defer w.written.mu.Unlock()
	accepted := w.accepted()
	for pos, records := range w.written.segments {
		if !accepted(pos) {
			continue
		}
		if pos.Seq > 0 {
			out.log += int64(w.written.trailers[pos])
		}
		for _, t := range records {
			out.records[t.Record.Type()]++
			switch r := t.Record.(type) {
			case segment.Condemned:
				once[placed{r.Place, r.Off, r.Name}]++
			case segment.Moved:
				once[placed{r.From, r.FromOff, r.Name}]++
			case segment.Retired:
				once[r]++
			case segment.Removed:
				once[r]++
			}
		}
	}
	for what, n := range once {
		if n > 1 {
			out.twice = append(out.twice, fmt.Sprintf("%+v %d times", what, n))
		}
	}
	return out
}

// accepted says which segments are part of the journal: of earlier epochs those that the newest takeover names.
func (w *workshop) accepted() func(segment.Position) bool {
	now := w.j.Position()
	last := map[uint64]uint64{now.Epoch: now.Seq}
	for _, t := range w.written.segments[segment.Position{Epoch: now.Epoch}] {
		if r, ok := t.Record.(segment.Takeover); ok {
			for _, a := range r.Table {
				last[a.Epoch] = a.LastSeq
			}
		}
	}
	return func(p segment.Position) bool {
		seq, ok := last[p.Epoch]
		return ok && p.Seq <= seq
	}
}

// TestScenarioR2: a week in which the job that frees blocks is aborted 142 times, at one operation on the bucket after
// another, in every way, leaves on the disk and in the bucket what a week leaves in which it never was, but for a constant, and in
// the log a small segment for each abort at most; and each block, segment and object is freed once.
func TestScenarioR2(t *testing.T) {
	often := aborts
	if part.Heavy() {
		often = 2 * aborts // and the constants are the same
	}
	var calm, aborted rest
	runs := 0
	inWorkshop(t, func(w *workshop) { aborted, runs = w.week(often, 0) })
	inWorkshop(t, func(w *workshop) { calm, _ = w.week(0, runs) })
	t.Logf("%d runs, of which %d were aborted: %+v; or never: %+v", runs, often, aborted, calm)
	for name, twice := range map[string][]string{"never aborted": calm.twice, "aborted": aborted.twice} {
		if len(twice) > 0 {
			t.Errorf("%s: freed twice: %v", name, twice)
		}
	}
	// What is left when all is done does not depend on the aborts. The records of what was done do, by one small segment
	// for each abort at most, whatever there was to free: what was begun and is recorded stays recorded.
	n := int64(often)
	const (
		disk    = 12 << 20 // bytes: the database keeps what it replaced for a while
		all     = 512 << 10
		some    = 64      // objects
		log     = 1 << 10 // bytes for each abort
		moves   = 10      // for each abort: what it puts off is moved together with more, later
		condemn = segment.TypeCondemned
	)
	if calm.records[condemn] == 0 || calm.records[segment.TypeRemoved] == 0 || aborted.records[condemn] != calm.records[condemn] {
		t.Errorf("condemned %d and %d blocks", calm.records[condemn], aborted.records[condemn])
	}
	for _, x := range []struct {
		what             string
		aborted, is, mos int64
	}{
		{"bytes on the disk", aborted.local, calm.local, disk},
		{"bytes of the log", aborted.log, calm.log, n * log},
		{"bytes in the bucket", aborted.all, calm.all, all},
		{"objects in the bucket", aborted.objects, calm.objects, some},
		{"moved records", int64(aborted.records[segment.TypeMoved]), int64(calm.records[segment.TypeMoved]), n * moves},
		{"retired records", int64(aborted.records[segment.TypeRetired]), int64(calm.records[segment.TypeRetired]), n},
		{"removed records", int64(aborted.records[segment.TypeRemoved]), int64(calm.records[segment.TypeRemoved]), n},
	} {
		if x.aborted > x.is+x.mos {
			t.Errorf("%s: %d, and %d if it was never aborted", x.what, x.aborted, x.is)
		}
	}
}

// TestScenarioR2Stops: a job that brings the process down each time that it runs is run three times, and then once a day, and
// what it leaves does not grow. When the cause is gone, it goes on by itself.
func TestScenarioR2Stops(t *testing.T) {
	inWorkshop(t, func(w *workshop) {
		for i := range 40 {
			w.hour(i)
			time.Sleep(6 * time.Hour)
		}
		before := w.rest()
		dir := t.TempDir()
		path := filepath.Join(dir, "jobs 0")
		var deaths []time.Time
		did := uint64(0)
		began := time.Now()
		// life is one process, and reports whether the job killed it.
		life := func(n int, deadly bool) (died bool) {
			ctx, end := context.WithCancel(w.Context())
			job := reclaim.Job(reclaim.Config{Journal: w.j}, time.Hour)
			run := job.Run
			killed := make(chan string, 1)
			job.Run = func(ctx context.Context, turn *jobs.Turn) (jobs.Result, error) {
				if deadly { // what is on the disk when it dies is what is there now
					b, err := os.ReadFile(path)
					next := filepath.Join(dir, fmt.Sprint("jobs ", n+1))
					if err = errors.Join(err, os.WriteFile(next, b, 0o600)); err != nil {
						w.Error(err)
					}
					killed <- next
					<-ctx.Done()
					return jobs.Result{}, ctx.Err()
				}
				res, err := run(ctx, turn)
				if r, ok := res.Report.(reclaim.Report); ok && err == nil {
					did += r.Progress()
				}
				return res, err
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				jobs.New(jobs.Config{Jobs: []jobs.Job{job}, Path: path}).Loop(ctx)
			}()
			select {
			case next := <-killed:
				deaths = append(deaths, time.Now())
				w.bucket.Crash()
				path, died = next, true
			case <-time.After(70 * time.Minute):
			}
			end()
			<-done
			w.j.Close(w.Context())
			w.disk = w.disk.Crash(50, w.rng.Uint64())
			w.open()
			return died
		}
		for n := range 7 * 24 * 60 / 80 {
			life(n, true)
			time.Sleep(10 * time.Minute)
		}
		days := int(time.Since(began)/day) + 1
		if len(deaths) < 5 || len(deaths) > 3+days || deaths[2].Sub(began) > 6*time.Hour || deaths[3].Sub(deaths[2]) < 23*time.Hour {
			t.Errorf("in %d days the job ran at %v", days, deaths)
		}
		after := w.rest()
		if after.log > before.log+4<<10 || after.records[segment.TypeCondemned] != before.records[segment.TypeCondemned] {
			t.Errorf("the log had %d bytes and has %d", before.log, after.log)
		}
		for n := 1000; n < 1030 && did == 0; n++ {
			life(n, false)
		}
		t.Logf("in %d days it ran %d times; when the cause was gone, it did %d", days, len(deaths), did)
		if did == 0 {
			t.Error("it does not go on when the cause is gone")
		}
		w.whole()
	})
}
