package sim

import (
	"slices"
	"strings"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/policy"
	"holdfast/service/reclaim"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

// reclaim runs the job that frees space. What nobody uses any more, as an hour counts for the service, is ended first.
func (c *cell) reclaim(p *process) (reclaim.Report, error) {
	return reclaim.Run(ctx, reclaim.Config{Journal: p.j, EndIdle: func() (ended int) {
		for _, u := range c.customers {
			if u.run != nil && u.run.in == p && time.Since(u.run.used) > time.Hour {
				p.j.EndSession(u.Session)
				u.run.in = nil
				ended++
			}
		}
		return ended
	}})
}

// free frees space, or makes a checkpoint: in peace, or until the process ends at a step that the seed draws, or is
// paused there, and another host takes over.
func (c *cell) free() {
	c.Helper()
	p, kinds := c.p, freeingSteps
	what, job := "reclaim", func() error {
		r, err := c.reclaim(p)
		c.note("%s: %v", r, err)
		return err
	}
	if c.chance(25) {
		kinds = checkpointSteps
		what, job = "checkpoint", func() error {
			r, err := p.j.Checkpoint(ctx)
			c.note("checkpoint of %d rows at %s: %v", r.Rows, r.Position, err)
			return err
		}
	} else if c.chance(70) {
		time.Sleep(time.Duration(c.rng.Int64N(int64(4 * day)))) // so that there is something to free
		c.policies()
		if c.p.dead() {
			return
		}
	}
	kind := kinds[c.rng.IntN(len(kinds))]
	if kind == deletesPoint {
		for range 2 {
			if _, err := p.j.Checkpoint(ctx); err != nil || c.backupOf() != nil {
				break
			}
		}
		if c.p.dead() {
			return
		}
	}
	if slices.Contains([]string{writesBundle, deletesBundle, deletesSegment, writesRemoved}, kind) && c.chance(60) {
		// Something is to wait for its grace, and then it is over.
		r, err := c.reclaim(p)
		c.note("%s: %v", r, err)
		time.Sleep(view.Grace + time.Duration(c.rng.Int64N(int64(day))))
		if c.p.dead() {
			return
		}
	}
	if end := c.rng.IntN(10); end < 7 {
		p.arm(kind, 1, c.chance(50), end == 0)
		c.note("%s; it is to end, or to be paused, at %s", what, kind)
	}
	done := make(chan error, 1)
	go func() { done <- job() }()
	var err error
	select {
	case err = <-done:
		p.disarm()
	case <-p.isHeld(): // nil if it is not to be paused
		c.note("the process is paused at %s", kind)
		c.takeover()
		c.reached("a takeover came while the owner was cleaning")
		c.wake()
		err = <-done
		if err == nil {
			c.note("the old owner's job ended well") // its last write was on its way when it was paused
		}
		return
	}
	if err != nil && !gone(err) && c.faults.times == 0 {
		c.Errorf("%s: %v", what, err)
	}
}

// backupOf has somebody take a step, so that the journal moves on.
func (c *cell) backupOf() error {
	u := c.customers[0]
	if u.run == nil {
		u.begin(c, 0)
	}
	return u.backup(c)
}

// freeze has the bucket not show what it has, while space is to be freed.
func (c *cell) freeze() {
	c.Helper()
	if !c.hide() || len(c.p.j.Freezes()) == 0 { // the read may have failed of something else
		c.show()
		return
	}
	asked := c.p.asked()
	before, err := c.p.j.Acked().Stats()
	c.must(err)
	r, err := c.reclaim(c.p)
	c.note("reclaim while it is frozen: %s, %v", r, err)
	after, no := c.p.j.Acked().Stats()
	if c.p.dead() {
		c.show()
		return
	}
	c.must(no)
	if len(c.p.j.Freezes()) > 0 && err == nil && r.Progress() == 0 {
		c.reached("deleting was frozen when space was to be freed, and nothing was deleted")
	}
	if c.p.asked() > asked || after.Blocks != before.Blocks || after.Retired != before.Retired || after.Removed != before.Removed {
		c.Errorf("deleting is frozen, and something is deleted: %s; %d deletes; %+v, then %+v", r, c.p.asked()-asked, before, after)
	}
	time.Sleep(2 * time.Minute)
	c.show()
	time.Sleep(40 * time.Minute)
}

// heal ends the faults. From here on everything goes on by itself: backups end, what is damaged is stored anew by whoever
// has it, what nothing needs is gone, to the last block and object.
func (c *cell) heal() {
	c.Helper()
	c.note("the faults cease")
	c.faults.set(false)
	c.store.Land()
	c.wake()
	c.alive()
	for _, u := range c.customers {
		for u.run != nil {
			c.must(u.backup(c))
		}
	}
	for i := range c.till.payments {
		c.pay(&c.till.payments[i])
	}
	for k := range c.stash {
		delete(c.stash, k)
	}
	time.Sleep(20 * time.Minute)
	c.store.Land()
	c.check(true)
	if f := c.p.j.Freezes(); len(f) > 0 {
		time.Sleep(2 * day)
	}
	c.mend()
	for _, u := range c.customers { // no policy expires anything any more
		c.must(c.record(u, u.ByOwner(history.TypePolicy, history.Policy{Series: u.Series, Last: 1000}.Encode())))
	}
	// The hourly and daily jobs, for as long as it takes: deleted archives to be purged, blocks to be kept, the grace.
	for range 8 {
		time.Sleep(3 * day)
		_, err := policy.Run(ctx, c.p.j, viewtest.LogKey(), nil)
		c.must(err)
		c.sync()
		for more := true; more; {
			r, err := c.reclaim(c.p)
			c.must(err)
			c.note("%s", r)
			more = r.More
		}
	}
	c.check(true)
	c.clean()
}

// scrub reads some segments, or all of them.
func (c *cell) scrub(max int) (damaged int, err error) {
	all, err := c.p.j.Segments(segment.Position{}, 10_000)
	if err != nil {
		return 0, err
	}
	if len(all) > max {
		all = all[c.rng.IntN(len(all)-max):][:max]
	}
	for _, s := range all {
		r, _, err := c.p.j.ScrubSegment(ctx, s.Key.Position)
		if err != nil {
			return damaged, err
		}
		damaged += r.Damaged
	}
	return damaged, nil
}

// mend has everything scrubbed, and the owners of what is damaged back it up once more.
func (c *cell) mend() {
	c.Helper()
	n, err := c.scrub(10_000)
	c.must(err)
	c.note("%d blocks are damaged, of %d; one of no use to anybody is not looked for", n, len(c.bad))
	for _, u := range c.customers {
		var lost []viewtest.Block
		for _, b := range u.pool {
			if c.bad[badBlock{u, b.Name}] && !slices.ContainsFunc(lost, func(x viewtest.Block) bool { return x.Name == b.Name }) {
				lost = append(lost, b)
			}
		}
		if len(lost) == 0 {
			continue
		}
		u.begin(c, 0)
		for _, b := range lost { // some may be in what it begins with
			if !slices.ContainsFunc(u.run.chunks, func(x viewtest.Block) bool { return x.Name == b.Name }) {
				u.run.chunks = append(u.run.chunks, b)
			}
		}
		for u.run != nil {
			c.must(u.backup(c))
		}
	}
	for _, u := range c.customers {
		for _, a := range u.archives {
			for _, b := range a.blocks {
				if a.state != history.Purged && c.bad[badBlock{u, b.Name}] {
					c.intact(c.lying(), c.p.j.Acked(), u, b) // a twin that is good may have landed
				}
			}
		}
	}
	for b := range c.bad {
		row, ok, err := c.p.j.Acked().Block(b.c.Vault, b.c.Group, b.name)
		c.must(err)
		if !ok || row.Count == 0 {
			delete(c.bad, b) // nothing needs it
		} else if slices.ContainsFunc(b.c.pool, func(x viewtest.Block) bool { return x.Name == b.name }) {
			c.Errorf("block %.8s was damaged, and its owner was not told to store it anew", b.name)
		}
	}
	c.check(true)
}

// clean fails if anything is left that nothing needs.
func (c *cell) clean() {
	c.Helper()
	r := c.p.j.Acked()
	blocks := uint64(0)
	for _, u := range c.customers {
		needed := map[holdfast.Name]bool{}
		for _, a := range u.archives {
			if a.state == history.Purged {
				continue
			}
			needed[a.root.Name] = true
			for _, b := range a.blocks {
				needed[b.Name] = true
			}
		}
		for name := range needed {
			blocks++
			for i := uint32(0); ; i++ {
				_, ok, err := r.Alternate(u.Vault, u.Group, name, i)
				c.must(err)
				if !ok {
					break
				}
				blocks++ // goes with the one that took its name
			}
		}
	}
	st, err := r.Stats()
	c.must(err)
	if st.Blocks != blocks {
		c.Errorf("%d blocks are kept, and %d are needed", st.Blocks, blocks)
		free, _, err := c.p.j.Unreferenced(1<<62, nil, 1000)
		c.must(err)
		for _, b := range free {
			c.Logf("block %.8s has had no references since %s", b.Name, time.UnixMilli(b.Block.Since).Sub(c.began))
		}
	}
	left := map[string]int{}
	gone := map[segment.Position]bool{}
	for _, key := range c.store.Keys() {
		k, err := segment.ParseKey(key)
		if err != nil {
			kind := "else"
			if f := strings.Split(key, "/"); len(f) > 1 {
				kind = f[1]
			}
			left[kind]++
			continue
		}
		left["log"]++
		if _, live, err := r.Segment(k.Position); err != nil || !live {
			gone[k.Position] = true
		}
	}
	c.note("%+v; %v", st, left)
	waiting := 0
	for pos := (segment.Position{}); ; {
		page, err := c.p.j.Retired(pos, 100)
		c.must(err)
		for _, s := range page {
			delete(gone, s.Key.Position)
			pos = s.Key.Position
			waiting++
		}
		if len(page) < 100 {
			break
		}
	}
	// What is in quarantine is an operator's to sweep.
	q, err := c.p.j.Quarantine(ctx)
	c.must(err)
	if len(gone) > q.Count {
		c.Errorf("%d segments lie in the bucket that are neither live nor retired, and %d are in quarantine", len(gone), q.Count)
	}
	if waiting > 150 {
		c.Errorf("%d segments still wait to be removed", waiting)
	}
	if st.Segments > 200 {
		c.Errorf("%d segments for %d blocks", st.Segments, st.Blocks)
	}
}

func (v *town) free() {
	v.Helper()
	r, err := reclaim.Run(v.Context(), reclaim.Config{Journal: v.j, EndIdle: v.srv.EndIdle})
	v.note("%s: %v", r, err)
	if v.rng.IntN(3) == 0 {
		p, err := v.j.Checkpoint(v.Context())
		v.note("checkpoint of %d rows at %s: %v", p.Rows, p.Position, err)
	}
}
