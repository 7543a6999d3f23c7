package journal

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket"
	"holdfast/service/bucket/dir"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

func benchName(i int) holdfast.Name {
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
}

func benchJournal(b *testing.B, on bucket.Bucket, viewDir string) (*Journal, *client) {
	cfg := config(on)
	cfg.Dir = viewDir
	j, err := Open(context.Background(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	c := &client{Customer: viewtest.New(1), j: j}
	if err := errors.Join(c.enrol(context.Background()), c.record(context.Background(), c.Open())); err != nil {
		b.Fatal(err)
	}
	return j, c
}

// BenchmarkAppend stores blocks of 256 KiB through the sequencer into a directory and waits for the last
// to be acknowledged.
func BenchmarkAppend(b *testing.B) {
	on, err := dir.Create(filepath.Join(b.TempDir(), "bucket"))
	if err != nil {
		b.Fatal(err)
	}
	j, c := benchJournal(b, on, filepath.Join(b.TempDir(), "view"))
	sealed := make([]byte, 256<<10)
	ctx := context.Background()
	b.SetBytes(int64(len(sealed)))
	var last *Ticket
	for i := 0; b.Loop(); i++ {
		name := benchName(i)
		last, err = j.Append(ctx, func(tx *Tx) error {
			return tx.Stored(c.Session, name, holdfast.KindChunk, nil, sealed)
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	j.Flush()
	if err := errors.Join(last.Wait(ctx), j.Close(ctx)); err != nil {
		b.Fatal(err)
	}
}

// writer writes the journal of one customer to a directory: real trailers, and bodies that are holes.
type writer struct {
	b    *testing.B
	on   *dir.Bucket
	root string
	*client
	builder *segment.Builder
	pos     segment.Position
	prev    [32]byte
	now     int64
	v       view.Vault
	sealed  []byte   // each block's bytes
	sum     [16]byte // of them
	per     int      // blocks in a segment
	in      int      // blocks in this one
	n       int      // blocks
}

// newWriter returns a writer of segments with that many blocks, of which each has that size.
func newWriter(b *testing.B, perSegment, size int) *writer {
	w := &writer{b: b, root: filepath.Join(b.TempDir(), "bucket"), builder: segment.NewBuilder(testCell), per: perSegment, sealed: make([]byte, size)}
	w.sum = segment.SumOf(w.sealed)
	var err error
	if w.on, err = dir.Create(w.root); err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	j, c := benchJournal(b, w.on, "")
	w.client = c
	w.v, _, err = view.NewReader(j.store).Vault(c.Vault)
	if err = errors.Join(err, j.Close(ctx)); err != nil {
		b.Fatal(err)
	}
	ch, err := findChain(ctx, config(w.on), 1<<63, anyChain)
	if err != nil {
		b.Fatal(err)
	}
	w.pos, w.prev = ch.position()
	w.now = ch.time
	return w
}

// seal writes the segment, and begins the next.
func (w *writer) seal() {
	if w.builder.Records() == 0 {
		return
	}
	w.pos = w.pos.Next()
	s := w.builder.Seal(w.pos, w.prev)
	f, err := os.Create(filepath.Join(w.root, filepath.FromSlash(s.Key(testCell, w.pos, [8]byte{}).String())))
	if err != nil {
		w.b.Fatal(err)
	}
	body := len(s.Body) - int(s.TrailerLen)
	_, err = f.WriteAt(s.Body[body:], int64(body))
	if err = errors.Join(err, f.Close()); err != nil {
		w.b.Fatal(err)
	}
	w.prev = s.Hash
	w.builder.Reset()
	w.in = 0
	w.now += 100
}

func (w *writer) add(rec segment.Record) {
	if err := w.builder.AddRecord(w.now, rec); err != nil {
		w.b.Fatal(err)
	}
}

// tell adds a record of the customer's history.
func (w *writer) tell(r history.Record) {
	e := history.Stamp(w.Vault, w.v.N+1, w.v.Head, w.now*1e6, r, viewtest.LogKey())
	w.add(segment.History{Vault: w.Vault, Entry: e})
	w.v.N, w.v.Head = e.N, e.Head
	w.Accepted(r)
}

// store adds a block.
func (w *writer) store(kind holdfast.Kind, links ...holdfast.Name) holdfast.Name {
	slices.SortFunc(links, func(a, b holdfast.Name) int { return bytes.Compare(a[:], b[:]) })
	name := benchName(w.n)
	w.n++
	w.add(segment.Stored{
		Session: w.Session, Name: name, Kind: kind, Off: w.builder.AddBlock(w.sealed), Len: uint32(len(w.sealed)), Sum: w.sum, Links: slices.Compact(links),
	})
	if w.in++; w.in == w.per {
		w.seal()
	}
	return name
}

// backups adds that many blocks, about: files of 64 chunks with a node each, one chunk in 64 of which some earlier run
// stored; a directory's node for each 64 files; and an archive, in a session of its own, for each 20 directories, or what is
// left.
func (w *writer) backups(blocks int) {
	old := rand.New(rand.NewPCG(1, 1))
	var files []int // number of the first chunk of each
	for end := w.n + blocks; w.n < end; {
		w.tell(w.Open())
		var top []holdfast.Name
		for d := 0; d < 20 && w.n < end; d++ {
			var nodes []holdfast.Name
			for f := 0; f < 64 && w.n < end; f++ {
				var links []holdfast.Name
				if len(files) > 0 {
					links = append(links, benchName(files[old.IntN(len(files))]))
				}
				files = append(files, w.n)
				for len(links) < 64 {
					links = append(links, w.store(holdfast.KindChunk))
				}
				nodes = append(nodes, w.store(holdfast.KindTree, links...))
			}
			top = append(top, w.store(holdfast.KindTree, nodes...))
		}
		w.tell(w.Commit(w.store(holdfast.KindArchive, top...)))
	}
	w.seal()
}

// replaySizes are how many blocks the journals of BenchmarkReplay have: HOLDFAST_BLOCKS, or 100,000.
func replaySizes(b *testing.B) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("HOLDFAST_BLOCKS"), "100000"))
	if err != nil || n < 1 {
		b.Fatal("HOLDFAST_BLOCKS is not a number of blocks")
	}
	return n
}

// bundle writes bundles of all trailers that are there, as Journal.Bundle does.
func (w *writer) bundle() {
	ctx, cfg := context.Background(), config(w.on)
	ch, err := findChain(ctx, cfg, 1<<63, anyChain)
	if err != nil {
		w.b.Fatal(err)
	}
	b := segment.NewBundleBuilder(testCell)
	put := func() error {
		k, body := b.Finish([8]byte{})
		b = segment.NewBundleBuilder(testCell)
		return w.on.Put(ctx, k.String(), body)
	}
	err = ch.all().each(ctx, cfg, func(r raw) error {
		trailer, err := w.on.Get(ctx, r.key.String(), r.size-int64(r.key.Trailer), int64(r.key.Trailer))
		if err == nil && !b.Fits(len(trailer)) {
			err = put()
		}
		return errors.Join(err, b.Add(trailer))
	})
	if err = errors.Join(err, put()); err != nil {
		w.b.Fatal(err)
	}
}

// BenchmarkReplay makes a view on disk from the trailers of a journal of HOLDFAST_BLOCKS blocks (100,000, if it is
// not set) that lies in a directory: with 64 blocks in a segment, as those of 256 KiB, and with 2,500; and with 64 from
// bundles. The log is listed as well.
//
// It reports blocks a second, the time of processors that each took, and the most memory that the process had resident.
func BenchmarkReplay(b *testing.B) {
	blocks := replaySizes(b)
	for _, form := range []struct {
		per     int
		bundled bool
	}{{64, false}, {64, true}, {2500, false}} {
		b.Run(fmt.Sprintf("blocks=%d/segment=%d/bundled=%v", blocks, form.per, form.bundled), func(b *testing.B) {
			w := newWriter(b, form.per, 64)
			w.backups(blocks)
			if form.bundled {
				w.bundle()
			}
			time.Sleep(4 * time.Second) // as before a start: nothing is written any more
			cfg := config(w.on)
			var peak uint64
			n := 0
			var used, listing time.Duration
			b.ResetTimer()
			for b.Loop() {
				viewDir := filepath.Join(b.TempDir(), "view")
				stop := watchHeap(&peak)
				used -= cpuTime()
				began := time.Now()
				ch, err := findChain(context.Background(), cfg, 1<<63, anyChain)
				if err != nil {
					b.Fatal(err)
				}
				listing += time.Since(began)
				store, err := view.Open(viewDir)
				if err != nil {
					b.Fatal(err)
				}
				if _, err = replay(context.Background(), cfg, store, ch.all()); err != nil {
					b.Fatal(err)
				}
				used += cpuTime()
				n += w.n
				b.StopTimer()
				settle()
				stop()
				if err := errors.Join(store.Close(), os.RemoveAll(viewDir)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "blocks/s")
			b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(n), "cpu-us/block")
			b.ReportMetric(float64(listing.Milliseconds())/float64(b.N), "ms-listing")
			b.ReportMetric(float64(peak)/(1<<20), "peak-MiB")
		})
	}
}

// settle waits until the process has nothing to do: until the database of a view has merged its tables.
func settle() {
	for idle := 0; idle < 5; {
		before := cpuTime()
		time.Sleep(100 * time.Millisecond)
		if idle++; cpuTime()-before > 10*time.Millisecond {
			idle = 0
		}
	}
}

// watchHeap raises peak to what the process takes of memory, as the runtime counts it and the database beside it,
// until stop is called.
func watchHeap(peak *uint64) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			*peak = max(*peak, resident())
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// resident returns what the process has resident, bytes; 0 where that is not known.
func resident() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages uint64
	fmt.Sscan(string(raw), &size, &pages)
	return pages * uint64(os.Getpagesize())
}

// cpuTime returns what the process has used of its processors.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// freed is how many blocks BenchmarkFree frees at a time.
const freed = 1000

// BenchmarkFree frees 1,000 blocks of a backup that was aborted, in a cell of HOLDFAST_BLOCKS blocks (100,000, if it is
// not set): finds and condemns them, moves what is live between them, and retires the segments. One half of them
// lies together, of the other each beside a block that is live.
func BenchmarkFree(b *testing.B) {
	blocks := replaySizes(b)
	b.Run(fmt.Sprintf("blocks=%d", blocks), func(b *testing.B) {
		const rounds = 8
		w := newWriter(b, 64, 17<<10)
		for range rounds {
			w.tell(w.Open())
			for range freed / 2 {
				w.store(holdfast.KindChunk)
			}
			var nodes, links []holdfast.Name
			for i := range freed / 2 {
				w.store(holdfast.KindChunk)
				if links = append(links, w.store(holdfast.KindChunk)); len(links) == 50 || i == freed/2-1 {
					nodes, links = append(nodes, w.store(holdfast.KindTree, links...)), nil
				}
			}
			w.tell(w.Commit(w.store(holdfast.KindArchive, nodes...)))
			w.seal()
			w.backups(blocks / rounds)
		}
		ctx := context.Background()
		later := 4 * 24 * time.Hour
		cfg := config(lateBucket{w.on, later})
		cfg.Dir, cfg.clock = filepath.Join(b.TempDir(), "view"), func() time.Time { return time.Now().Add(later) }
		j, err := Open(ctx, cfg)
		if err != nil {
			b.Fatal(err)
		}
		var used, took []time.Duration
		settle()
		b.ResetTimer()
		for range rounds { // whatever b.N is: there is no more to free
			cpu, began := cpuTime(), time.Now()
			if err := freeOnce(ctx, j); err != nil {
				b.Fatal(err)
			}
			used, took = append(used, cpuTime()-cpu), append(took, time.Since(began))
		}
		b.StopTimer()
		if err := j.Close(ctx); err != nil {
			b.Fatal(err)
		}
		slices.Sort(used)
		slices.Sort(took)
		b.ReportMetric(float64(used[rounds/2].Microseconds())/1e3, "cpu-ms/1000-freed")
		b.ReportMetric(float64(took[rounds/2].Microseconds())/1e3, "ms/1000-freed")
	})
}

// freeOnce frees as many blocks as one round of BenchmarkFree made.
func freeOnce(ctx context.Context, j *Journal) error {
	c, err := j.CondemnUnreferenced(ctx, freed)
	if err != nil {
		return err
	}
	if c.Blocks != freed {
		return fmt.Errorf("%d blocks were condemned, and %d held", c.Blocks, c.Held)
	}
	page, _, err := j.Sparse(75, nil, 200)
	if err != nil {
		return err
	}
	page = slices.DeleteFunc(page, func(s view.Segment) bool { return s.Body() == 0 })
	m, err := j.Clean(ctx, page, CleanLimits{Bytes: 1 << 40})
	if err != nil {
		return err
	}
	if m.Failed > 0 || m.Blocks < freed/3 {
		return fmt.Errorf("%d blocks were moved, and %d could not be read: %w", m.Blocks, m.Failed, m.Why)
	}
	r, err := j.Retire(ctx, page)
	if err == nil && r.Segments < freed/64 {
		err = fmt.Errorf("%d segments were retired", r.Segments)
	}
	return err
}

// lateBucket has a clock that is ahead.
type lateBucket struct {
	*dir.Bucket
	by time.Duration
}

func (l lateBucket) Now(ctx context.Context) (time.Time, error) {
	t, err := l.Bucket.Now(ctx)
	return t.Add(l.by), err
}
