package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/bucket/steady"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// cell is a cell in which customers without cryptography come and go, for seeds that are cheap: the journal, its view on a
// disk that can lose power and its jobs are real, and there is no network. One goroutine, which draws from the seed
// what happens next, does all of it; only what is to be paused in the middle has a goroutine of its own.
type cell struct {
	*testing.T
	seed uint64
	rng  *rand.Rand
	// seen is what this run came to; faults are what it injected.
	seen     *sometimes
	store    *sim.Store
	faults   *faults
	steadily bool // the service has its retry loop over the bucket
	large    bool // some blocks are so large that segments are not tiny
	hosts    byte

	p         *process // that owns the cell; nil while none runs
	paused    []*process
	customers []*customer
	till      *till

	stash   map[string][]byte // segments to land once more
	bad     map[badBlock]bool // damaged behind everybody's back, and not stored anew since
	hidden  map[string][]byte // landings that the bucket does not show for a while
	steps   []string          // what happened, for whoever has to find out why
	began   time.Time
	removed uint64 // segments that were removed, at the newest look
}

type badBlock struct {
	c    *customer
	name holdfast.Name
}

// customer is a customer with what he was promised.
type customer struct {
	*viewtest.Customer
	archives []*archive
	unsure   []*archive // of which nobody knows whether they were committed
	pool     []viewtest.Block
	next     int
	run      *run
	keep     uint32 // of the policy; 0 for none
}

// archive is what a commit promised.
type archive struct {
	commit  history.Record
	root    viewtest.Block
	blocks  []viewtest.Block // all below the root
	state   history.State
	deleted int64 // ns; journal time at which it was deleted
	maybe   bool  // a process ended while it was deleted or brought back
}

// run is a backup that is under way.
type run struct {
	in     *process  // that the session is of; nil for one that has ended
	used   time.Time // the session, for the last time
	chunks []viewtest.Block
	told   map[holdfast.Name]bool // what the session was told is there, or was stored by it
	asked  bool
	step   int
}

func (c *cell) reached(state string) { c.seen.reached(state) }

func (c *cell) note(format string, a ...any) {
	c.steps = append(c.steps, fmt.Sprintf("%9s  ", time.Since(c.began).Round(time.Second))+fmt.Sprintf(format, a...))
}

// chance is true in n of a hundred draws.
func (c *cell) chance(n int) bool { return c.rng.IntN(100) < n }

// must ends the seed if err is not nil.
func (c *cell) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

var ctx = context.Background()

// config is that of a journal of p's.
func (c *cell) config(p *process) journal.Config {
	cfg := journal.Config{
		Bucket: p, Cell: holdfast.CellID{0xce, 0x11}, Host: [16]byte{p.host}, LogKey: viewtest.LogKey(), Create: true,
		Watch: 4*time.Minute + 30*time.Second,
	}
	if c.steadily {
		cfg.Bucket = steady.New(p, steady.Config{})
	}
	return cfg
}

// start starts a process on a disk; takeover has it claim the cell although another host owned it. Under faults it may
// take a few attempts.
func (c *cell) start(disk *view.Disk, host byte, takeover bool) {
	c.Helper()
	for try := 0; ; try++ {
		p := &process{Bucket: c.store.Connect(c.seed), c: c, disk: disk, host: host, failed: map[segment.Position]string{}}
		p.OnOp(c.faults.suffer)
		err := c.open(p, takeover)
		if err == nil {
			c.p = p
			c.started(p.j.Info())
			break
		}
		if try == 20 {
			c.Fatalf("no start after %d attempts: %v", try, err)
		}
		c.note("no start: %v", err)
		if errors.Is(err, view.ErrDamaged) {
			disk = view.NewDisk()
		}
		time.Sleep(time.Minute)
	}
	c.resume()
}

// started notes from what a start made its view.
func (c *cell) started(i journal.Info) {
	bundles, first := 0, false
	for _, k := range c.store.Keys() {
		if _, err := segment.ParseBundleKey(k); err == nil {
			bundles++
		}
		if p, err := segment.ParseKey(k); err == nil && p.Position == (segment.Position{Epoch: 1}) {
			first = true
		}
	}
	switch {
	case i.Checkpoint != (segment.Position{}):
		c.reached("a start began with a checkpoint")
	case i.Rebuilt && bundles > 0 && !first:
		c.reached("a start began with bundles alone")
	}
}

func (c *cell) open(p *process, takeover bool) (err error) {
	cfg := c.config(p)
	cfg.Takeover = takeover
	if cfg.Store, err = p.disk.Open(); err != nil {
		return err
	}
	p.j, err = journal.Open(ctx, cfg)
	return err
}

// resume tells the customers what became of what they were not sure of, as their clients find out.
func (c *cell) resume() {
	c.Helper()
	for _, u := range c.customers {
		u.resume(c)
	}
	c.sync()
}

// resume takes the customer's chains from the journal.
func (u *customer) resume(c *cell) {
	c.Helper()
	raw, err := c.p.j.Acked().History(u.Vault, 0, 1<<30)
	c.must(err)
	there := map[holdfast.RecordID]bool{}
	for _, e := range entries(c, raw) {
		u.Accepted(e.Record)
		there[e.Record.ID()] = true
	}
	for _, a := range u.unsure {
		if there[a.commit.ID()] {
			u.committed(c, a)
		}
	}
	u.unsure = nil
	for _, a := range u.archives {
		if !there[a.commit.ID()] {
			c.Fatalf("a commit that was acknowledged is not in the history of vault %.8s", u.Vault)
		}
	}
}

// committed notes an archive that is there.
func (u *customer) committed(c *cell, a *archive) {
	u.archives = append(u.archives, a)
	for _, b := range a.blocks {
		if b.Kind == holdfast.KindChunk {
			u.pool = append(u.pool, b)
		}
	}
	if len(u.pool) > 60 {
		u.pool = slices.Clone(u.pool[len(u.pool)-60:])
	}
}

// stop ends the process in order, and crash without a word.
func (c *cell) stop() {
	if c.p != nil {
		err := c.p.j.Close(ctx)
		if err != nil && !gone(err) {
			c.Errorf("close: %v", err)
		}
		c.p = nil
	}
}

func (c *cell) crash() {
	c.p.Crash()
	c.p.goOn()
	c.p.j.Close(ctx)
	c.p = nil
}

// alive starts another process if the one that there was has ended.
func (c *cell) alive() {
	c.Helper()
	if c.p != nil && !c.p.dead() {
		return
	}
	if c.p != nil {
		if err := c.p.j.Err(); err != nil && !gone(err) && !errors.Is(err, sim.ErrCrashed) {
			c.Errorf("the journal stopped: %v", err)
		}
	}
	c.restart()
}

// restart starts a process after one that has ended, or ends now: on what a power cut leaves of its disk, or on another
// host with nothing but the bucket.
func (c *cell) restart() {
	c.Helper()
	disk, host := c.p.disk, c.p.host
	takeover := false
	c.crash()
	switch n := c.rng.IntN(4); n {
	case 0, 1:
		percent := []int{0, 50, 100}[c.rng.IntN(3)]
		c.note("start on what is left of the disk, with %d%% of what was not synced", percent)
		disk = disk.Crash(percent, c.rng.Uint64())
	case 2:
		c.note("start with an empty disk")
		disk = view.NewDisk()
	case 3:
		c.hosts++
		c.note("another host takes over")
		disk, host, takeover = view.NewDisk(), c.hosts, true
	}
	if n := c.rng.IntN(4); n == 0 { // then there are the trailers
		c.note("what checkpoints there are is damaged")
		for _, key := range c.store.Keys() {
			if strings.Contains(key, "/manifest-") {
				c.store.Damage(key, func(body []byte) []byte { body[len(body)/2] ^= 4; return body })
			}
		}
	}
	c.start(disk, host, takeover)
}

// takeover has another host take over while the owner is paused, wherever it is.
func (c *cell) takeover() {
	c.Helper()
	c.paused = append(c.paused, c.p)
	c.hosts++
	c.start(view.NewDisk(), c.hosts, true)
}

// wake lets every process go on that was paused and replaced. It must acknowledge nothing more and stop for good.
func (c *cell) wake() {
	c.Helper()
	for _, p := range c.paused {
		c.note("the old owner goes on")
		at := p.j.Position()
		p.goOn()
		select {
		case <-p.j.Stopped():
		case <-time.After(30 * time.Minute):
			c.Errorf("an owner that was replaced goes on")
		}
		if err := p.j.Err(); !errors.Is(err, journal.ErrLost) {
			c.Errorf("an owner that was replaced ends with: %v", err)
		}
		if now := p.j.Position(); now != at {
			c.Errorf("an owner that was replaced acknowledged segment %s", now)
		}
		p.j.Close(ctx)
		c.reached("an owner that was replaced while it was paused stopped")
	}
	c.paused = nil
}

// append runs fn and waits until it is durable.
func (c *cell) append(fn func(*journal.Tx) error) error {
	t, err := c.p.j.Append(ctx, fn)
	if err != nil {
		return err
	}
	c.p.j.Flush()
	return t.Wait(ctx)
}

// record appends a record of a customer's. An error that says that the process has gone leaves it unknown whether it is
// there; a refusal is returned.
func (c *cell) record(u *customer, r history.Record) error {
	err := c.append(func(tx *journal.Tx) error {
		_, err := tx.History(r)
		if errors.Is(err, view.ErrDuplicate) {
			return nil
		}
		return err
	})
	if err == nil {
		u.Accepted(r)
	}
	return err
}

// enrol makes a customer.
func (c *cell) enrol() {
	c.Helper()
	u := &customer{Customer: viewtest.New(int(c.seed)*1000 + len(c.customers))}
	c.must(c.append(func(tx *journal.Tx) error {
		return errors.Join(tx.Record(u.Account()), tx.Record(u.Token(1<<62)), tx.Record(u.Redeemed()))
	}))
	c.must(c.record(u, u.Genesis()))
	c.must(c.record(u, u.Enrol()))
	c.customers = append(c.customers, u)
}

// begin begins a backup: some chunks that are new, and some that were in archives before, which may be there or not.
func (u *customer) begin(c *cell, dedup int) {
	r := &run{told: map[holdfast.Name]bool{}}
	fresh := func() viewtest.Block {
		u.next++
		size := 200 + c.rng.IntN(4000)
		if c.large && c.chance(30) {
			size = 300_000 + c.rng.IntN(500_000)
		}
		return u.Chunk(u.next, size)
	}
	if n := len(u.archives); n > 0 && c.chance(40) { // the same data as before, and little of it has changed
		for _, b := range u.archives[n-1].blocks {
			if b.Kind == holdfast.KindChunk {
				r.chunks = append(r.chunks, b)
			}
		}
		r.chunks[c.rng.IntN(len(r.chunks))] = fresh()
		u.run = r
		return
	}
	for range 1 + c.rng.IntN(6) {
		r.chunks = append(r.chunks, fresh())
	}
	for range dedup {
		if len(u.pool) > 0 {
			b := u.pool[c.rng.IntN(len(u.pool))]
			if !slices.ContainsFunc(r.chunks, func(x viewtest.Block) bool { return x.Name == b.Name }) {
				r.chunks = append(r.chunks, b)
			}
		}
	}
	u.run = r
}

// session makes sure that the run has a session of the process that runs. What an earlier one was told means nothing
// (JOURNAL 15).
func (u *customer) session(c *cell) error {
	defer func() { u.run.used = time.Now() }()
	if u.run.in == c.p {
		return nil
	}
	if u.run.in != nil {
		c.reached("a backup went on in another session, after a restart")
	}
	if err := c.record(u, u.Open()); err != nil {
		return err
	}
	u.run.in, u.run.told, u.run.asked, u.run.step = c.p, map[holdfast.Name]bool{}, false, 0
	return nil
}

// backup takes the next step of a backup. Between two of them anything can happen.
func (u *customer) backup(c *cell) error {
	if err := u.session(c); err != nil {
		return err
	}
	r := u.run
	switch r.step++; {
	case r.step == 1:
		return u.ask(c)
	case r.step == 2:
		half := r.chunks[:len(r.chunks)/2]
		return u.upload(c, half...)
	case r.step == 3:
		return u.upload(c, r.chunks...)
	}
	return u.commit(c)
}

// ask asks what is there, as the service answers: from what is acknowledged.
func (u *customer) ask(c *cell) error {
	s, ok, err := c.p.j.Acked().Session(u.Session)
	if err != nil || !ok {
		return fmt.Errorf("a session that was acknowledged is not there: %v", err)
	}
	for _, b := range u.run.chunks {
		row, ok, err := c.p.j.Acked().Present(u.Vault, u.Group, b.Name)
		if err != nil {
			return err
		}
		if ok && row.Promised(s.Start) {
			u.run.told[b.Name] = true
		}
	}
	u.run.asked = true
	return nil
}

// upload stores what the session was not told to be there.
func (u *customer) upload(c *cell, blocks ...viewtest.Block) error {
	stored, based := map[holdfast.Name]bool{}, false
	err := c.append(func(tx *journal.Tx) error {
		for _, b := range blocks {
			if u.run.told[b.Name] {
				continue
			}
			base, of, err := tx.Reader().Like(u.Vault, u.Group, b.Links)
			if err != nil {
				return err
			}
			based = based || (segment.Stored{Kind: b.Kind, Links: b.Links}).By(base, of).Base.Name != holdfast.Name{}
			err = tx.Stored(u.Session, b.Name, b.Kind, b.Links, b.Sealed)
			switch {
			case err == nil:
				stored[b.Name] = true
			case !errors.Is(err, view.ErrDuplicate):
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if based {
		c.reached("a tree said its links by one before")
	}
	for _, b := range blocks {
		u.run.told[b.Name] = true
		if !stored[b.Name] {
			continue
		}
		if c.bad[badBlock{u, b.Name}] {
			delete(c.bad, badBlock{u, b.Name})
			c.reached("a damaged block was stored anew by its owner")
		}
		if slices.ContainsFunc(u.pool, func(x viewtest.Block) bool { return x.Name == b.Name }) {
			c.reached("a block that had been condemned was asked for again, and stored anew")
		}
	}
	return nil
}

// commit stores trees and root and commits. If the service lacks something, the client sends it again; but nothing may be
// lacking that the session was told is there.
func (u *customer) commit(c *cell) error {
	r := u.run
	u.next++
	a := &archive{state: history.Live}
	var names []holdfast.Name
	for i := 0; i < len(r.chunks); i += 4 {
		var below []holdfast.Name
		for _, b := range r.chunks[i:min(i+4, len(r.chunks))] {
			below = append(below, b.Name)
		}
		t := u.Over(holdfast.KindTree, u.next*100+i, below...)
		a.blocks, names = append(a.blocks, t), append(names, t.Name)
	}
	a.root = u.Over(holdfast.KindArchive, u.next, names...)
	err := u.upload(c, append(slices.Clone(a.blocks), a.root)...)
	var m *view.MissingError
	if errors.As(err, &m) {
		// What a scrub found damaged since is sent again.
		var again []viewtest.Block
		for _, b := range r.chunks {
			row, ok, no := c.p.j.Acked().Block(u.Vault, u.Group, b.Name)
			if no == nil && ok && row.Damaged && slices.Contains(m.Names, b.Name) {
				again = append(again, b)
				delete(r.told, b.Name)
			}
		}
		if len(again) == len(m.Names) {
			if err = u.upload(c, again...); err == nil {
				err = u.upload(c, append(slices.Clone(a.blocks), a.root)...)
			}
			m = nil
		}
	}
	if m != nil {
		return fmt.Errorf("the session was told that %v is there: %w", m.Names, err)
	}
	if err != nil {
		return err
	}
	a.blocks = append(a.blocks, r.chunks...)
	a.commit = u.Commit(a.root.Name)
	u.unsure = append(u.unsure, a)
	if err := c.record(u, a.commit); err != nil {
		return err
	}
	u.unsure = nil
	u.committed(c, a)
	c.p.j.EndSession(u.Session)
	u.run = nil
	return nil
}

// abandon has the client of a backup killed. The service forgets the session an hour later.
func (u *customer) abandon(c *cell) {
	if u.run.in == c.p {
		c.p.j.EndSession(u.Session)
	}
	u.run = nil
	c.reached("a client was killed")
}

// live returns the customer's archives in that state.
func (u *customer) in(state history.State) (all []*archive) {
	for _, a := range u.archives {
		if a.state == state {
			all = append(all, a)
		}
	}
	return all
}

// sync compares the archives with what the view says of them, and learns what the service expired and purged. It may
// do neither before its time.
func (c *cell) sync() {
	c.Helper()
	st, err := c.p.j.Acked().Stats()
	c.must(err)
	for _, u := range c.customers {
		there := map[holdfast.RecordID]history.Archive{}
		for series := uint32(0); ; series++ {
			v, ok, err := c.p.j.Acked().Archives(u.Vault, series)
			c.must(err)
			if !ok {
				break
			}
			for _, a := range v.Archives {
				there[a.ID] = a
			}
		}
		for i, a := range u.archives {
			is, ok := there[a.commit.ID()]
			delete(there, a.commit.ID())
			now := is.State
			if !ok {
				now = history.Purged
			}
			was := a.state
			switch {
			case a.maybe && now != history.Purged:
				a.maybe, a.deleted = false, is.Changed
			case now == was:
				continue
			case was == history.Live && now == history.Expired:
				c.reached("a policy expired an archive")
				newer := 0
				for _, b := range u.archives[i+1:] {
					if b.state == history.Live {
						newer++
					}
				}
				if u.keep == 0 || newer < int(u.keep) {
					c.Errorf("archive %.8s is expired, and the policy keeps it", a.commit.ID())
				}
				a.deleted = is.Changed
			case was != history.Live && now == history.Purged:
				if time.Duration(st.Time*1e6-a.deleted) < undeleteDelay {
					c.Errorf("archive %.8s was deleted at %d and is purged at %d", a.commit.ID(), a.deleted, st.Time*1e6)
				}
			default:
				c.Errorf("archive %.8s was %s and is %s", a.commit.ID(), was, now)
			}
			a.state = now
		}
		for _, a := range u.unsure {
			delete(there, a.commit.ID())
		}
		for id := range there {
			c.Errorf("archive %.8s is there, and nobody committed it", id)
		}
	}
	if st.Removed < c.removed {
		c.Errorf("%d segments are removed, and %d were", st.Removed, c.removed)
	}
	c.removed = st.Removed
}

const undeleteDelay = history.DefaultDelay * time.Second

// check is the oracle. whole has it also make a view anew from nothing but the bucket and compare.
func (c *cell) check(whole bool) {
	c.Helper()
	c.sync()
	l := c.lying()
	r := c.p.j.Acked()
	var sum, blocks uint64
	for _, u := range c.customers {
		done := map[holdfast.Name]bool{}
		for _, a := range u.archives {
			if a.state == history.Purged {
				continue
			}
			for _, b := range append([]viewtest.Block{a.root}, a.blocks...) {
				if !done[b.Name] {
					done[b.Name] = true
					c.intact(l, r, u, b)
				}
			}
		}
		usage, err := r.Usage(u.ID, 0)
		c.must(err)
		sum, blocks = sum+usage.Bytes, blocks+usage.Blocks
	}
	st, err := r.Stats()
	c.must(err)
	if st.Bytes != sum || st.Blocks != blocks {
		c.Errorf("the customers store %d blocks of %d bytes, and the cell has %d of %d", blocks, sum, st.Blocks, st.Bytes)
	}
	if v := c.store.Violations(); len(v) > 0 {
		c.Errorf("violations: %v", v)
	}
	c.booked()
	if whole {
		c.rebuilt()
	}
	if c.Failed() {
		c.FailNow()
	}
}

// lying is what lies in the bucket, without faults on the way.
type lying struct {
	calm *sim.Bucket
	at   map[segment.Position][]string // the landings of each segment
}

func (c *cell) lying() lying {
	l := lying{c.store.Connect(0), map[segment.Position][]string{}}
	for _, key := range c.store.Keys() {
		if k, err := segment.ParseKey(key); err == nil {
			l.at[k.Position] = append(l.at[k.Position], key)
		}
	}
	return l
}

// intact fails unless a block that an archive needs is referenced and lies in the bucket where the view says.
func (c *cell) intact(l lying, r view.Reader, u *customer, b viewtest.Block) {
	c.Helper()
	row, ok, err := r.Block(u.Vault, u.Group, b.Name)
	c.must(err)
	if !ok || row.Count == 0 {
		c.Errorf("block %.8s of an archive is there: %v, with %d references", b.Name, ok, row.Count)
		return
	}
	if s, ok, err := r.Segment(row.Pos); err != nil || !ok || s.Retired != 0 {
		c.Errorf("block %.8s of an archive is in segment %s, which is not live: %v", b.Name, row.Pos, err)
		return
	}
	for _, key := range l.at[row.Pos] {
		if got, err := l.calm.Get(ctx, key, int64(row.Off), int64(row.Len)); err == nil && string(got) == string(b.Sealed) {
			delete(c.bad, badBlock{u, b.Name})
			return
		}
	}
	for k := range c.hidden {
		if p, err := segment.ParseKey(k); err == nil && p.Position == row.Pos {
			return
		}
	}
	if !c.bad[badBlock{u, b.Name}] {
		c.Errorf("block %.8s of an archive does not come back from segment %s, which has %d landings", b.Name, row.Pos, len(l.at[row.Pos]))
	}
}

// rebuilt fails unless the view equals one made anew from the bucket, by a takeover of a copy of it.
func (c *cell) rebuilt() {
	c.Helper()
	for range 10 {
		have, pos, err := c.p.j.Digest(ctx)
		c.must(err)
		copied := c.store.Clone()
		for k, body := range c.hidden {
			c.must(copied.Connect(0).Put(ctx, k, body))
		}
		disk := view.NewDisk()
		store, err := disk.Open()
		c.must(err)
		r, err := journal.Rebuild(ctx, journal.Config{
			Bucket: copied.Connect(9), Cell: holdfast.CellID{0xce, 0x11}, Host: [16]byte{0xff}, LogKey: viewtest.LogKey(), Takeover: true, Store: store,
		})
		if err != nil {
			c.Fatalf("rebuild: %v", err)
		}
		if r.Position == pos {
			if r.Digest != have {
				c.Errorf("the view at %s is not what the bucket says", pos)
			}
			c.reached("the view was made anew from the bucket and compared")
			return
		}
		time.Sleep(10 * time.Second) // something is under way
	}
	c.Error("the journal does not come to rest")
}

// wrote keeps some of the segments that landed, to land once more much later.
func (c *cell) wrote(kind, key string, body []byte) {
	if _, err := segment.ParseKey(key); err != nil || len(c.stash) >= 12 {
		return
	}
	if drawn(c.seed, "stash", canon(key), 0)%8 == 0 {
		c.stash[key] = slices.Clone(body)
	}
}

// mayDelete fails unless a segment may be deleted: it is retired, or gone, by what is acknowledged; its grace is over; and
// a bundle has its trailer (JOURNAL 8, 12, 19).
func (c *cell) mayDelete(p *process, key string) {
	k, err := segment.ParseKey(key)
	if err != nil {
		c.Errorf("a delete of %s", key)
		return
	}
	s, ok, err := p.j.Acked().Segment(k.Position)
	if err != nil && !gone(err) || ok && (s.Retired == 0 || time.Duration(p.j.Now()-s.Retired)*time.Millisecond < view.Grace) {
		c.Errorf("a delete of segment %s, which was not retired a grace ago: %+v, %v", k.Position, s, err)
	}
	covered := false
	for _, name := range c.store.Keys() {
		b, err := segment.ParseBundleKey(name)
		covered = covered || err == nil && b.First.Compare(k.Position) <= 0 && b.Last.Compare(k.Position) >= 0
	}
	if !covered {
		c.Errorf("a delete of segment %s, whose trailer is in no bundle", k.Position)
	}
}

// landAgain stores a segment once more that landed long ago: as it did then, or under a nonce of its own.
func (c *cell) landAgain() {
	keys := slices.Sorted(maps.Keys(c.stash))
	if len(keys) == 0 {
		return
	}
	gone := slices.DeleteFunc(slices.Clone(keys), func(name string) bool {
		k, err := segment.ParseKey(name)
		c.must(err)
		_, there, err := c.p.j.Acked().Segment(k.Position)
		c.must(err)
		return there || k.Position.Compare(c.p.j.Position()) > 0
	})
	if len(gone) > 0 && c.chance(70) {
		keys = gone
	}
	name := keys[c.rng.IntN(len(keys))]
	body := c.stash[name]
	k, err := segment.ParseKey(name)
	c.must(err)
	if c.chance(50) {
		c.rng2(k.Nonce[:])
	}
	if k.Position.Compare(c.p.j.Position()) > 0 {
		return
	}
	_, live, err := c.p.j.Acked().Segment(k.Position) // or retired
	c.must(err)
	there := 0
	for _, o := range c.store.Keys() {
		if strings.HasPrefix(o, segment.Prefix(k.Cell, k.Position)) {
			there++
			if o == k.String() {
				return
			}
		}
	}
	c.note("segment %s lands once more", k.Position)
	c.must(c.store.Connect(0).Put(ctx, k.String(), body))
	switch {
	case live:
		c.reached("a twin of a segment landed")
	case there == 0:
		c.reached("a removed segment landed once more")
	}
	delete(c.stash, name)
}

func (c *cell) rng2(b []byte) {
	for i := range b {
		b[i] = byte(c.rng.Uint64())
	}
}

// damage flips a bit of a block that an archive needs, in every landing.
func (c *cell) damage() {
	u := c.customers[c.rng.IntN(len(c.customers))]
	live := u.in(history.Live)
	if len(live) == 0 || len(c.bad) > 2 {
		return
	}
	a := live[c.rng.IntN(len(live))]
	b := a.blocks[c.rng.IntN(len(a.blocks))]
	if b.Kind != holdfast.KindChunk || !slices.ContainsFunc(u.pool, func(x viewtest.Block) bool { return x.Name == b.Name }) {
		return // only what its owner still has
	}
	row, ok, err := c.p.j.Acked().Block(u.Vault, u.Group, b.Name)
	c.must(err)
	if !ok || row.Damaged {
		return
	}
	c.note("block %.8s in segment %s is damaged", b.Name, row.Pos)
	for _, key := range c.store.Keys() {
		if strings.HasPrefix(key, segment.Prefix(holdfast.CellID{0xce, 0x11}, row.Pos)) {
			c.store.Damage(key, func(body []byte) []byte { body[row.Off+row.Len/2] ^= 1; return body })
		}
	}
	c.bad[badBlock{u, b.Name}] = true
}

// hide has the bucket not show a live segment, and show removes that again. Ten minutes of it are an event that must never
// happen.
func (c *cell) hide() (found bool) {
	u := c.customers[c.rng.IntN(len(c.customers))]
	live := u.in(history.Live)
	if len(live) == 0 {
		return false
	}
	row, ok, err := c.p.j.Acked().Block(u.Vault, u.Group, live[c.rng.IntN(len(live))].root.Name)
	c.must(err)
	if !ok {
		return false
	}
	c.hidden = map[string][]byte{}
	for _, key := range c.store.Keys() {
		if strings.HasPrefix(key, segment.Prefix(holdfast.CellID{0xce, 0x11}, row.Pos)) {
			body, err := c.store.Connect(0).Get(ctx, key, 0, -1)
			c.must(err)
			c.hidden[key] = body
			c.store.Damage(key, func([]byte) []byte { return nil })
		}
	}
	c.note("the bucket does not show segment %s", row.Pos)
	_, err = c.p.j.ReadBlock(ctx, row)
	return err != nil
}

func (c *cell) show() {
	for key, body := range c.hidden {
		c.must(c.store.Connect(0).Put(ctx, key, body))
	}
	c.hidden = nil
}

var _ bucket.Bucket = (*process)(nil)

// entries decodes a history.
func entries(t testing.TB, raw []byte) (all []history.Entry) {
	t.Helper()
	for r := enc.NewReader(raw); r.Len() > 0; {
		e := history.ReadEntry(r)
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		all = append(all, e)
	}
	return all
}
