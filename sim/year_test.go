package sim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
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
	// trailers is how many bytes of trailers were written, and history how many of history records in them.
	trailers, history int64
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
	o, history := hollowObject{size: int64(len(body))}, int64(0)
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
			case segment.History:
				history += int64(len(r.Entry.Append(nil)))
				continue
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
		h.history += history
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
func (h *hollow) holds(part string) (n, bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k, o := range h.objects {
		if strings.Contains(k, "/"+part+"/") {
			n, bytes = n+1, bytes+o.size
		}
	}
	return n, bytes
}

// subscriber is a customer of the year. His data are blocks, of which each has the same chance to be replaced on a day; his
// tree has a node for each nodeLinks of them, and a root over the nodes.
type subscriber struct {
	*viewtest.Customer
	blocks   []holdfast.Name
	nodes    []holdfast.Name
	archives []holdfast.RecordID
}

const (
	yearBlock  = 256 << 10
	yearBlocks = 2560 // of a customer
	yearProbe  = 16 << 10
	// nodeLinks is how many blocks a node of the real client's tree links to, about, and linkSize what the node has for each of
	// them, sealed, bytes.
	nodeLinks = 235
	linkSize  = 120
	// yearUpload is how much a customer sends in one go, bytes.
	yearUpload = 4 << 20
)

// year is a service of which time passes.
type year struct {
	*testing.T
	h     *hollow
	j     *journal.Journal
	disk  *view.Disk
	rng   *rand.Rand
	all   []*subscriber
	spent reclaim.Spending

	scratch     []byte // of the block that is sent
	point, rows int64  // see figures
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

// name makes a name as random as real ones.
func (y *year) name() (n holdfast.Name) {
	for i := 0; i < len(n); i += 8 {
		binary.BigEndian.PutUint64(n[i:], y.rng.Uint64())
	}
	return n
}

// piece is a block that is made when it is sent.
type piece struct {
	name  holdfast.Name
	kind  holdfast.Kind
	size  int
	links []holdfast.Name // sorted
}

// upload stores blocks as a client does, which waits until all are durable.
func (y *year) upload(c *subscriber, all []piece) {
	y.Helper()
	var t *journal.Ticket
	for len(all) > 0 {
		n, bytes := 0, 0
		for n < len(all) && bytes < yearUpload {
			bytes += all[n].size
			n++
		}
		var err error
		t, err = y.j.Append(ctx, func(tx *journal.Tx) error {
			for _, p := range all[:n] {
				sealed := y.scratch[:p.size]
				fill(sealed, p.name)
				if err := tx.Stored(c.Session, p.name, p.kind, p.links, sealed); err != nil {
					return err
				}
			}
			return nil
		})
		y.must(err)
		all = all[n:]
	}
	y.j.Flush()
	y.must(t.Wait(ctx))
}

// first fills a customer with so many blocks.
func (y *year) first(c *subscriber, blocks int) {
	c.blocks, c.nodes = make([]holdfast.Name, blocks), make([]holdfast.Name, (blocks+nodeLinks-1)/nodeLinks)
}

// backup replaces each of a customer's blocks with a chance of one in so many, all of them the first time, and commits an
// archive. What is stored anew is what the real client stores anew: these blocks, the nodes above them, and the root.
func (y *year) backup(c *subscriber, oneIn, size int) {
	y.Helper()
	y.record(c, c.Open())
	var stored []piece
	dirty := make([]bool, len(c.nodes))
	for i := range c.blocks {
		if len(c.archives) > 0 && y.rng.IntN(oneIn) > 0 {
			continue
		}
		c.blocks[i] = y.name()
		dirty[i/nodeLinks] = true
		stored = append(stored, piece{c.blocks[i], holdfast.KindChunk, size, nil})
	}
	for i, some := range slices.Collect(slices.Chunk(c.blocks, nodeLinks)) {
		if dirty[i] {
			c.nodes[i] = y.name()
			stored = append(stored, piece{c.nodes[i], holdfast.KindTree, linkSize * len(some), sorted(some)})
		}
	}
	root := piece{y.name(), holdfast.KindArchive, 1 << 10, sorted(c.nodes)}
	y.upload(c, append(stored, root))
	commit := c.Commit(root.name)
	y.record(c, commit)
	c.archives = append(c.archives, commit.ID())
	y.j.EndSession(c.Session)
}

func sorted(names []holdfast.Name) []holdfast.Name {
	names = slices.Clone(names)
	slices.SortFunc(names, func(a, b holdfast.Name) int { return bytes.Compare(a[:], b[:]) })
	return names
}

// forget deletes all archives but the newest so many.
func (y *year) forget(c *subscriber, keep int) {
	y.Helper()
	if n := len(c.archives) - keep; n > 0 {
		y.record(c, c.ByOwner(history.TypeDelete, history.SortIDs(slices.Clone(c.archives[:n])).Encode()))
		c.archives = slices.Clone(c.archives[n:])
	}
}

// figures are what is to be bounded, and what bounds it.
type figures struct {
	day int
	// Segments; of them, the live ones, those that wait to be deleted, and those that are gone.
	live, waiting, removed int64
	blocks, liveBytes      int64 // that are live
	objects, objectBytes   int64 // in the log
	bundles, bundleBytes   int64
	point, rows            int64 // bytes of the newest checkpoint, and about what of it is no history
	disk                   int64 // bytes
	history                int64 // bytes of history records that were ever made
	replayed               int   // segments, at a start without a disk
	written                int64 // bytes, ever
}

// most returns the larger of each of the figures that may grow no more.
func (f figures) most(g figures) figures {
	h := g
	for _, x := range []struct {
		to   *int64
		f, g int64
	}{
		{&h.live, f.live, g.live}, {&h.waiting, f.waiting, g.waiting}, {&h.liveBytes, f.liveBytes, g.liveBytes}, {&h.objects, f.objects, g.objects},
		{&h.objectBytes, f.objectBytes, g.objectBytes}, {&h.disk, f.disk, g.disk}, {&h.rows, f.rows, g.rows},
	} {
		*x.to = max(x.f, x.g)
	}
	h.replayed = max(f.replayed, g.replayed)
	return h
}

func (f figures) String() string {
	return fmt.Sprintf("day %d: %d live segments with %d MB live in %d blocks, %d wait to be removed, %d are removed; %d objects of %d MB in the log; %d bundles of %d kB; a checkpoint of %d kB; %d kB on the disk, and %d kB of history; %d MB written",
		f.day, f.live, f.liveBytes>>20, f.blocks, f.waiting, f.removed, f.objects, f.objectBytes>>20, f.bundles, f.bundleBytes>>10, f.point>>10, f.disk>>10, f.history>>10, f.written>>20)
}

// figures takes the figures, but for that of a start.
func (y *year) figures(day int) (f figures) {
	y.Helper()
	st, err := y.j.Acked().Stats()
	y.must(err)
	f = figures{day: day, live: int64(st.Segments), waiting: int64(st.Retired), removed: int64(st.Removed), liveBytes: int64(st.Bytes), blocks: int64(st.Blocks)}
	f.objects, f.objectBytes = y.h.holds("log")
	f.bundles, f.bundleBytes = y.h.holds("bundle")
	f.point, f.rows = y.point, y.rows
	for _, n := range y.h.wrote {
		f.written += n
	}
	f.disk, f.history = y.disk.Used(), y.h.history
	return f
}

// look has the service start anew without its disk, and adds to f how much it replays then.
func (y *year) look(f figures) figures {
	y.Helper()
	y.h.as("start")
	y.must(y.j.Close(ctx))
	y.open(view.NewDisk())
	i := y.j.Info()
	if i.Checkpoint == (segment.Position{}) {
		y.Errorf("day %d: the start did not begin with a checkpoint", f.day)
	}
	f.replayed = i.Replayed
	y.Logf("%d blocks; a start without a disk has a checkpoint, and replays %d segments", f.blocks, f.replayed)
	return f
}

// TestYear has customers back up every day, who replace 10 % of their data in a month and keep seven archives, and a
// probe, which stores a little, and deletes what it stored before. What the service keeps, in the bucket and to start with, is
// bounded by what is live and not by what was ever written, and the trailers that it keeps for ever are under 0.2 % of that. By
// default it is six weeks with four customers and a probe every four hours; HOLDFAST_YEAR=1 (make sim-year) makes it a year with
// 200, and the probe every five minutes; HOLDFAST_YEAR=12 one with a twelfth of the customers and of the probes. Either way a customer has 640 MiB, and the probe runs as often as all customers or half
// as often again.
//
// Sizes are those of real blocks: the bucket makes blocks again instead of keeping them. Policies and reclaim run every four hours
// instead of every hour, and checkpoints are made every week instead of every day, to save time.
func TestYear(t *testing.T) {
	days, customers, probe := 42, 4, 4*time.Hour
	// What is compared is the most of everything in the days from so many on and that of those from again on: those before come
	// to what it will be. Of a service of which as much is cleaned at one time, each has a time of cleaning, 12 weeks apart.
	from, till, again := 28, 35, 36
	if v := os.Getenv("HOLDFAST_YEAR"); v != "" {
		part, err := strconv.Atoi(v)
		if err != nil || part < 1 || part > 48 || 288%part != 0 {
			t.Fatalf("HOLDFAST_YEAR=%s: say 1 for a whole year, or 2, 3, 4, 6, ... for so small a part of its customers and its probes", v)
		}
		days, customers, probe = 365, (200+part-1)/part, time.Duration(part)*5*time.Minute
		from, till, again = 100, 204, 261
	}
	synctest.Test(t, func(t *testing.T) {
		y := &year{T: t, h: newHollow(), rng: rand.New(rand.NewPCG(1, 3)), scratch: make([]byte, yearBlock)}
		y.open(view.NewDisk())
		for n := range customers + 1 { // the last is the probe
			c := &subscriber{Customer: viewtest.New(n + 1)}
			y.append(func(tx *journal.Tx) error {
				return errors.Join(tx.Record(c.Account()), tx.Record(c.Token(1<<62)), tx.Record(c.Redeemed()))
			})
			y.record(c, c.Genesis())
			y.record(c, c.Enrol())
			y.first(c, yearBlocks)
			y.all = append(y.all, c)
		}
		y.first(y.all[customers], 1)
		var before, after figures
		for day := 1; day <= days; day++ {
			y.day(day, probe)
			f := y.figures(day)
			if day == till || day == days {
				f = y.look(f)
			}
			switch {
			case day >= again:
				after = after.most(f)
			case day >= from && day <= till:
				before = before.most(f)
			}
			if day%7 == 0 {
				y.Log(f)
				y.checkpoint()
			}
		}
		y.h.as("end")
		y.must(y.j.Close(ctx))
		y.cost()
		y.bounded(before, after)
	})
}

// day has a day pass: customers one after another, and the probe between them.
func (y *year) day(day int, probe time.Duration) {
	y.Helper()
	customers := y.all[:len(y.all)-1]
	slots := int(24 * time.Hour / probe)
	for slot := range slots {
		y.h.as("probe")
		y.backup(y.all[len(customers)], 1, yearProbe)
		y.forget(y.all[len(customers)], 1)
		y.h.as("customers")
		for n := slot * len(customers) / slots; n < (slot+1)*len(customers)/slots; n++ {
			y.backup(customers[n], 300, yearBlock) // a tenth in a month
			if day%7 == n%7 {
				y.forget(customers[n], 7)
			}
		}
		if slot*6/slots != (slot+1)*6/slots {
			y.h.as("policy")
			_, err := policy.Run(ctx, y.j, viewtest.LogKey(), nil)
			y.must(err)
			y.reclaim()
		}
		time.Sleep(probe)
	}
}

// reclaim frees what can be freed.
func (y *year) reclaim() {
	y.Helper()
	y.h.as("reclaim")
	for more := true; more; {
		r, err := reclaim.Run(ctx, reclaim.Config{Journal: y.j, Spending: &y.spent})
		y.must(err)
		more = r.More
	}
}

func (y *year) checkpoint() {
	y.Helper()
	y.h.as("checkpoint")
	r, err := y.j.Checkpoint(ctx)
	y.must(err)
	y.point, y.rows = r.Bytes, r.Bytes-y.h.history
}

// bounded fails if what is kept grows although what is live does not. What is kept for ever is history, which is what clients
// verify, in the view as well, and trailers.
func (y *year) bounded(before, after figures) {
	y.Helper()
	if after.removed <= before.removed || before.removed == 0 {
		y.Errorf("nothing is removed any more: %d segments, then %d", before.removed, after.removed)
	}
	for what, n := range map[string][2]int64{
		"live segments": {before.live, after.live}, "segments that wait": {before.waiting, after.waiting},
		"objects": {before.objects, after.objects}, "bytes in the log": {before.objectBytes, after.objectBytes},
		"live bytes": {before.liveBytes, after.liveBytes}, "segments replayed at a start": {int64(before.replayed), int64(after.replayed)},
		"rows that are no history": {before.rows, after.rows},
	} {
		if n[1] > n[0]*13/10+200 {
			y.Errorf("%s: %d, and later %d", what, n[0], n[1])
		}
	}
	if most := y.h.trailers + (after.live+after.waiting+after.removed)*8; after.bundleBytes > most {
		y.Errorf("bundles have %d bytes, and all trailers %d", after.bundleBytes, y.h.trailers)
	}
	if after.bundleBytes*1000 > after.written*2 {
		y.Errorf("bundles have %d bytes, more than 0.2 %% of the %d that were ever written", after.bundleBytes, after.written)
	}
	// At most a quarter of what is kept is dead, and copies lie beside what they were made of for a week.
	if most := after.liveBytes * 7 / 3; after.objectBytes > most+64<<20 {
		y.Errorf("%d bytes lie in the bucket for %d that are live", after.objectBytes, after.liveBytes)
	}
	// The database writes what it has anew, beside what it had.
	if after.disk > 3*after.point+64<<20 {
		y.Errorf("%d bytes are on the disk, and a checkpoint has %d", after.disk, after.point)
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
