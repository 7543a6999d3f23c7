package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket"
	"holdfast/service/journal"
	"holdfast/service/policy"
	"holdfast/service/reclaim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// hollow is a bucket that keeps no blocks: of each it remembers the 32 bytes that it repeats (see fill), and makes it again
// when it is read. Everything else it keeps. It counts what is asked of it, and by which job.
type hollow struct {
	mu      sync.Mutex
	keys    []string // sorted
	objects map[string]hollowObject
	job     string
	asked   map[string]int   // by job and operation
	wrote   map[string]int64 // bytes, by job
	// trailers is how many bytes of trailers were written.
	trailers int64
}

type hollowObject struct {
	size   int64
	tail   []byte // from size - len(tail) on
	blocks []hollowBlock
}

type hollowBlock struct {
	off, len uint32
	seed     [32]byte
}

func newHollow() *hollow {
	return &hollow{objects: map[string]hollowObject{}, asked: map[string]int{}, wrote: map[string]int64{}, job: "customers"}
}

// fill makes a block of a seed.
func fill(b []byte, seed [32]byte) {
	for n := copy(b, seed[:]); n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// as has what follows counted as that job's.
func (h *hollow) as(job string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.job = job
}

func (h *hollow) count(op bucket.Op) { h.asked[h.job+" "+string(op)]++ }

func (h *hollow) set(key string, o hollowObject) {
	if _, ok := h.objects[key]; !ok {
		i, _ := slices.BinarySearch(h.keys, key)
		h.keys = slices.Insert(h.keys, i, key)
	}
	h.objects[key] = o
}

func (h *hollow) Put(_ context.Context, key string, body []byte) error {
	o := hollowObject{size: int64(len(body))}
	if k, err := segment.ParseKey(key); err == nil {
		t, err := k.Parse(body[len(body)-int(k.Trailer):], o.size)
		if err != nil {
			return err
		}
		for _, r := range t.Records {
			var b hollowBlock
			switch r := r.Record.(type) {
			case segment.Stored:
				b.off, b.len = r.Off, r.Len
			case segment.Moved:
				b.off, b.len = r.Off, r.Len
			default:
				continue
			}
			copy(b.seed[:], body[b.off:])
			o.blocks = append(o.blocks, b)
		}
		body = body[len(body)-int(k.Trailer):]
	}
	o.tail = slices.Clone(body)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count(bucket.OpPut)
	h.wrote[h.job] += o.size
	if strings.Contains(key, "/log/") {
		h.trailers += int64(len(o.tail))
	}
	h.set(key, o)
	return nil
}

func (h *hollow) Get(_ context.Context, key string, off, n int64) ([]byte, error) {
	h.mu.Lock()
	h.count(bucket.OpGet)
	o, ok := h.objects[key]
	h.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("get %s: %w", key, bucket.ErrNotFound)
	}
	if n < 0 {
		n = o.size - off
	}
	if off < 0 || off+n > o.size {
		return nil, fmt.Errorf("get %s: %w", key, bucket.ErrShort)
	}
	p := make([]byte, n)
	if at := o.size - int64(len(o.tail)); off+n > at {
		copy(p[max(0, at-off):], o.tail[max(0, off-at):])
	}
	for _, b := range o.blocks {
		from, to := int64(b.off), int64(b.off)+int64(b.len)
		if to <= off || from >= off+n {
			continue
		}
		if from < off || to > off+n { // a part of a block
			whole := make([]byte, b.len)
			fill(whole, b.seed)
			copy(p[max(0, from-off):], whole[max(0, off-from):])
			continue
		}
		fill(p[from-off:to-off], b.seed)
	}
	return p, nil
}

func (h *hollow) List(_ context.Context, prefix, after string, most int) (out []bucket.Object, err error) {
	if most <= 0 || most > bucket.MaxList {
		most = bucket.MaxList
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count(bucket.OpList)
	i, _ := slices.BinarySearch(h.keys, max(prefix, after))
	for ; i < len(h.keys) && len(out) < most; i++ {
		if k := h.keys[i]; k > after {
			if !strings.HasPrefix(k, prefix) {
				break
			}
			out = append(out, bucket.Object{Key: k, Size: h.objects[k].size})
		}
	}
	return out, nil
}

func (h *hollow) Delete(_ context.Context, key string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count(bucket.OpDelete)
	if _, ok := h.objects[key]; ok {
		delete(h.objects, key)
		i, _ := slices.BinarySearch(h.keys, key)
		h.keys = slices.Delete(h.keys, i, i+1)
	}
	return nil
}

func (h *hollow) Swap(_ context.Context, key string, old, new []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.count(bucket.OpSwap)
	if o, ok := h.objects[key]; ok != (old != nil) || ok && string(o.tail) != string(old) {
		return bucket.ErrChanged
	}
	h.set(key, hollowObject{size: int64(len(new)), tail: slices.Clone(new)})
	return nil
}

func (h *hollow) Now(context.Context) (time.Time, error) { return time.Now(), nil }

// holds returns number and bytes of the objects below a prefix of the cell's.
func (h *hollow) holds(part string) (n int, bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, o := range h.objects {
		if strings.Contains(k, "/"+part+"/") {
			n, bytes = n+1, bytes+o.size
		}
	}
	return n, bytes
}

// subscriber is a customer of the year. His data are blocks of 256 KiB, of which churn are replaced in a month.
type subscriber struct {
	*viewtest.Customer
	blocks   []holdfast.Name
	archives []holdfast.RecordID
	next     int
}

const (
	yearBlock = 256 << 10
	yearProbe = 16 << 10
)

// year is a service of which time passes.
type year struct {
	*testing.T
	h    *hollow
	j    *journal.Journal
	disk *view.Disk
	rng  *rand.Rand
	all  []*subscriber
	led  reclaim.Ledger
}

func (y *year) must(err error) {
	y.Helper()
	if err != nil {
		y.Fatal(err)
	}
}

func (y *year) open(disk *view.Disk) {
	y.Helper()
	store, err := disk.Open()
	y.must(err)
	y.disk = disk
	y.j, err = journal.Open(ctx, journal.Config{
		Bucket: y.h, Cell: holdfast.CellID{0xce, 0x11}, Host: [16]byte{1}, LogKey: viewtest.LogKey(), Create: true, Store: store, Watch: 4 * time.Minute,
	})
	y.must(err)
}

func (y *year) append(fn func(tx *journal.Tx) error) {
	y.Helper()
	t, err := y.j.Append(ctx, fn)
	y.must(err)
	y.j.Flush()
	y.must(t.Wait(ctx))
}

func (y *year) record(c *subscriber, r history.Record) {
	y.Helper()
	y.append(func(tx *journal.Tx) error {
		_, err := tx.History(r)
		return err
	})
	c.Accepted(r)
}

// block makes a block of a customer's.
func (c *subscriber) block(kind holdfast.Kind, size int, links []holdfast.Name) viewtest.Block {
	c.next++
	b := viewtest.Block{Kind: kind, Sealed: make([]byte, size), Links: slices.Clone(links)}
	copy(b.Name[:], c.Vault[:16])
	binary.BigEndian.PutUint64(b.Name[16:], uint64(c.next))
	fill(b.Sealed, b.Name)
	slices.SortFunc(b.Links, func(a, b holdfast.Name) int { return strings.Compare(string(a[:]), string(b[:])) })
	return b
}

// backup replaces some of the customer's blocks and commits an archive: one tree node for every 235 blocks, as the real
// client's, of which those are stored anew that changed.
func (y *year) backup(c *subscriber, replace int, size int) {
	y.Helper()
	y.record(c, c.Open())
	var stored []viewtest.Block
	for i := range replace {
		b := c.block(holdfast.KindChunk, size, nil)
		stored = append(stored, b)
		if at := y.rng.IntN(max(1, len(c.blocks))); i < len(c.blocks) && len(c.archives) > 0 {
			c.blocks[at] = b.Name
		} else {
			c.blocks = append(c.blocks, b.Name)
		}
	}
	var nodes []holdfast.Name
	for some := range slices.Chunk(c.blocks, 235) {
		links := slices.Clone(some)
		slices.SortFunc(links, func(a, b holdfast.Name) int { return strings.Compare(string(a[:]), string(b[:])) })
		t := c.block(holdfast.KindTree, 28<<10, slices.Compact(links))
		stored, nodes = append(stored, t), append(nodes, t.Name)
	}
	root := c.block(holdfast.KindArchive, 1<<10, nodes)
	stored = append(stored, root)
	for some := range slices.Chunk(stored, 16) {
		y.append(func(tx *journal.Tx) error {
			for _, b := range some {
				if err := tx.Stored(c.Session, b.Name, b.Kind, b.Links, b.Sealed); err != nil {
					return err
				}
			}
			return nil
		})
	}
	commit := c.Commit(root.Name)
	y.record(c, commit)
	c.archives = append(c.archives, commit.ID())
	y.j.EndSession(c.Session)
}

// forget deletes all archives but the newest so many.
func (y *year) forget(c *subscriber, keep int) {
	y.Helper()
	if n := len(c.archives) - keep; n > 0 {
		y.record(c, c.ByOwner(history.TypeDelete, history.SortIDs(slices.Clone(c.archives[:n])).Encode()))
		c.archives = slices.Clone(c.archives[n:])
	}
}

// figures are what is to be bounded.
type figures struct {
	day                     int
	live, waiting, removed  uint64 // segments
	liveBytes               uint64
	objects                 int
	objectBytes             int64
	bundles                 int
	bundleBytes, pointBytes int64
	disk                    int64 // bytes
	replayed                int   // segments, at a start without a disk
	written                 int64
}

func (f figures) String() string {
	return fmt.Sprintf("day %d: %d live segments of %d MB live, %d wait to be removed, %d are removed; %d objects of %d MB in the log; %d bundles of %d kB; checkpoints of %d kB; %d kB on the disk; "+
		"a start without a disk replays %d segments; %d MB written",
		f.day, f.live, f.liveBytes>>20, f.waiting, f.removed, f.objects, f.objectBytes>>20, f.bundles, f.bundleBytes>>10, f.pointBytes>>10, f.disk>>10, f.replayed, f.written>>20)
}

// look takes the figures, and has the service start anew without its disk.
func (y *year) look(day int) (f figures) {
	y.Helper()
	st, err := y.j.Acked().Stats()
	y.must(err)
	f = figures{day: day, live: st.Segments, waiting: st.Retired, removed: st.Removed, liveBytes: st.Bytes}
	f.objects, f.objectBytes = y.h.holds("log")
	f.bundles, f.bundleBytes = y.h.holds("bundle")
	_, f.pointBytes = y.h.holds("checkpoint")
	for _, n := range y.h.wrote {
		f.written += n
	}
	f.disk = y.disk.Used()
	y.must(y.j.Close(ctx))
	y.open(view.NewDisk())
	i := y.j.Info()
	if i.Checkpoint == (segment.Position{}) {
		y.Errorf("day %d: the start did not begin with a checkpoint", day)
	}
	f.replayed = i.Replayed
	y.Log(f)
	return f
}

// TestYear has customers back up every day, who replace 10 % of their data in a month and keep seven archives, and a
// probe. What the service keeps, in the bucket and to start with, is bounded by what is live and not by what was ever
// written. By default it is six weeks with few customers and a probe every six hours; HOLDFAST_YEAR=1 (make sim-year)
// makes it a year with 200, and the probe every five minutes.
//
// Sizes are those of real blocks: the bucket makes blocks again instead of keeping them.
func TestYear(t *testing.T) {
	days, early, customers, blocks, probe := 42, 30, 10, 40, 6*time.Hour
	if os.Getenv("HOLDFAST_YEAR") == "1" {
		days, early, customers, blocks, probe = 365, 90, 200, 160, 5*time.Minute
	}
	synctest.Test(t, func(t *testing.T) {
		y := &year{T: t, h: newHollow(), rng: rand.New(rand.NewPCG(1, 3))}
		y.open(view.NewDisk())
		for n := range customers + 1 { // the last is the probe
			c := &subscriber{Customer: viewtest.New(n + 1)}
			y.append(func(tx *journal.Tx) error {
				return errors.Join(tx.Record(c.Account()), tx.Record(c.Token(1<<62)), tx.Record(c.Redeemed()))
			})
			y.record(c, c.Genesis())
			y.record(c, c.Enrol())
			y.all = append(y.all, c)
		}
		prober := y.all[customers]
		var first, last figures
		for day := 1; day <= days; day++ {
			// Spread over the day: customers one after another, the probe between them.
			step, slots := probe, int(24*time.Hour/probe)
			for slot := range slots {
				y.h.as("probe")
				y.backup(prober, 1, yearProbe)
				prober.blocks = prober.blocks[:0]
				y.forget(prober, 1)
				y.h.as("customers")
				for n := slot * customers / slots; n < (slot+1)*customers/slots; n++ {
					c := y.all[n]
					replace := blocks
					if day > 1 {
						replace = 0
						for range blocks { // a tenth in a month
							if y.rng.IntN(300) == 0 {
								replace++
							}
						}
					}
					y.backup(c, replace, yearBlock)
					if day%7 == n%7 {
						y.forget(c, 7)
					}
				}
				if (slot*24/slots) != ((slot+1)*24/slots) || slots < 24 { // hourly
					y.h.as("policy")
					_, err := policy.Run(ctx, y.j, viewtest.LogKey())
					y.must(err)
				}
				time.Sleep(step)
			}
			y.h.as("reclaim")
			for more := true; more; {
				r, err := reclaim.Run(ctx, reclaim.Config{Journal: y.j, Ledger: &y.led})
				y.must(err)
				more = r.More
			}
			y.h.as("start")
			switch day {
			case early:
				first = y.look(day)
			case days:
				last = y.look(day)
			}
			y.h.as("checkpoint")
			_, err := y.j.Checkpoint(ctx)
			y.must(err)
		}
		y.bounded(first, last)
		y.h.as("end")
		y.must(y.j.Close(ctx))
		y.cost()
	})
}

// bounded fails if what is kept grows although what is live does not.
func (y *year) bounded(before, after figures) {
	y.Helper()
	if after.removed <= before.removed || before.removed == 0 {
		y.Errorf("nothing is removed any more: %d segments, then %d", before.removed, after.removed)
	}
	for what, n := range map[string][2]int64{
		"live segments": {int64(before.live), int64(after.live)}, "segments that wait": {int64(before.waiting), int64(after.waiting)},
		"objects": {int64(before.objects), int64(after.objects)}, "bytes in the log": {before.objectBytes, after.objectBytes},
		"live bytes": {int64(before.liveBytes), int64(after.liveBytes)}, "segments replayed at a start": {int64(before.replayed), int64(after.replayed)},
	} {
		if n[1] > n[0]*13/10+200 {
			y.Errorf("%s: %d, and later %d", what, n[0], n[1])
		}
	}
	if most := y.h.trailers + int64(after.live+after.waiting+after.removed)*8; after.bundleBytes > most {
		y.Errorf("bundles have %d bytes, and all trailers %d", after.bundleBytes, y.h.trailers)
	}
	if after.objectBytes > 4*int64(after.liveBytes) {
		y.Errorf("%d bytes lie in the bucket for %d that are live", after.objectBytes, after.liveBytes)
	}
}

// cost says what was asked of the bucket, by whom, and what it costs at the prices of docs/operating.md.
func (y *year) cost() {
	y.Helper()
	customers := y.h.wrote["customers"] + y.h.wrote["probe"]
	_, bundles := y.h.holds("bundle")
	total := int64(0)
	for _, n := range y.h.wrote {
		total += n
	}
	y.Logf("customers and the probe wrote %d MB, freeing space %d MB and checkpoints %d MB: %.2f bytes for each of theirs; bundles are %.3f %% of all that was written",
		customers>>20, y.h.wrote["reclaim"]>>20, y.h.wrote["checkpoint"]>>20, float64(total)/float64(customers), 100*float64(bundles)/float64(total))
	for _, job := range []string{"customers", "probe", "policy", "reclaim", "checkpoint"} {
		put, get, list, del := y.h.asked[job+" put"], y.h.asked[job+" get"], y.h.asked[job+" list"], y.h.asked[job+" delete"]
		dollars := float64(put+list)*5e-6 + float64(get)*0.4e-6
		y.Logf("%-10s %9d PUT %9d GET %9d LIST %9d DELETE  %10d MB written  $%.2f", job, put, get, list, del, y.h.wrote[job]>>20, dollars)
	}
}
