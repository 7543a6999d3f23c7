package backup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
)

const (
	groupBytes  = 2 << 20 // plaintext in one group, before its last block
	groupBlocks = 512     // blocks in one group; at most holdfast.MaxHave
	recentNames = 1 << 16 // names remembered as settled, in each of two generations
)

// pipeline turns plaintexts into uploaded blocks. Blocks gather into groups; a group is asked about as
// a whole, what the service lacks of it is sealed, and groups are uploaded strictly in order, so that a
// block never goes before one that it links to. A bounded number of groups is under way at a time,
// which bounds memory.
//
// put and finish belong to one goroutine.
type pipeline struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	sess   *remote.Session
	keys   *keyring.GroupKeys
	ask    bool // which blocks the service has
	today  *allowance

	cur    *group
	slots  chan struct{}
	queue  chan *group
	wg     sync.WaitGroup
	recent [2]map[holdfast.Name]struct{}
	closed bool

	mu    sync.Mutex
	count struct{ data, meta, known uint64 } // blocks
	bytes struct{ data, meta uint64 }        // plaintext of what was sealed
	// sample is maxSample of the blocks that the service has or was sent, each with the same chance.
	sample  []holdfast.Name
	sampled int // out of how many
}

type job struct {
	name   holdfast.Name
	kind   holdfast.Kind
	plain  []byte
	links  []holdfast.Name
	frames []int
	pooled bool
}

type group struct {
	jobs   []job
	bytes  int
	sealed [][]byte // by job; nil for what the service has
	ready  chan struct{}
}

// buffers holds chunks' plaintexts for reuse.
var buffers sync.Pool

func newPipeline(ctx context.Context, sess *remote.Session, keys *keyring.GroupKeys, ask bool, today *allowance) *pipeline {
	slots := 2 + runtime.GOMAXPROCS(0)
	p := &pipeline{sess: sess, keys: keys, ask: ask, today: today, slots: make(chan struct{}, slots), queue: make(chan *group, slots)}
	p.ctx, p.cancel = context.WithCancelCause(ctx)
	p.recent[0], p.recent[1] = map[holdfast.Name]struct{}{}, map[holdfast.Name]struct{}{}
	p.wg.Go(func() {
		for g := range p.queue {
			p.upload(g)
		}
	})
	return p
}

// put names a block and sees to it that the service has it, sooner or later. It keeps plain.
func (p *pipeline) put(kind holdfast.Kind, plain []byte, links []holdfast.Name, frames []int, pooled bool) (holdfast.Name, error) {
	name := p.keys.NameOf(kind, plain)
	if p.settled(name) {
		if pooled {
			buffers.Put(&plain)
		}
		return name, context.Cause(p.ctx)
	}
	if p.cur == nil {
		p.cur = &group{ready: make(chan struct{})}
	}
	p.cur.jobs = append(p.cur.jobs, job{name, kind, plain, links, frames, pooled})
	p.cur.bytes += len(plain)
	p.today.put(len(plain))
	if p.cur.bytes >= groupBytes || len(p.cur.jobs) == groupBlocks {
		return name, p.submit()
	}
	return name, context.Cause(p.ctx)
}

// settled reports whether name was put before in this run, as far as is remembered, and remembers it.
func (p *pipeline) settled(name holdfast.Name) bool {
	_, a := p.recent[0][name]
	_, b := p.recent[1][name]
	if a || b {
		return true
	}
	if len(p.recent[0]) == recentNames {
		p.recent[0], p.recent[1] = p.recent[1], p.recent[0]
		clear(p.recent[0])
	}
	p.recent[0][name] = struct{}{}
	return false
}

func (p *pipeline) submit() error {
	g := p.cur
	p.cur = nil
	if g == nil {
		return context.Cause(p.ctx)
	}
	select {
	case p.slots <- struct{}{}:
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
	p.queue <- g // never waits: it holds as many as there are slots
	p.wg.Go(func() {
		defer close(g.ready)
		if err := p.seal(g); err != nil {
			p.cancel(err)
		}
	})
	return context.Cause(p.ctx)
}

func (p *pipeline) seal(g *group) error {
	names := make([]holdfast.Name, len(g.jobs))
	for i, j := range g.jobs {
		names[i] = j.name
	}
	have, err := make([]bool, len(names)), error(nil)
	if p.ask {
		if have, err = p.sess.Have(p.ctx, names); err != nil {
			return err
		}
	}
	g.sealed = make([][]byte, len(g.jobs))
	var data, meta, known, dataBytes, metaBytes uint64
	for i := range g.jobs {
		j := &g.jobs[i]
		if have[i] {
			known++
		} else {
			if context.Cause(p.ctx) != nil {
				return nil
			}
			g.sealed[i], err = p.sess.Secret().Seal(j.name, j.kind, j.plain, j.links, j.frames)
			if err != nil {
				return fmt.Errorf("seal %s: %w", j.kind, err)
			}
			if j.kind.Leaf() {
				data, dataBytes = data+1, dataBytes+uint64(len(j.plain))
			} else {
				meta, metaBytes = meta+1, metaBytes+uint64(len(j.plain))
			}
		}
		p.today.settled(len(j.plain), len(g.sealed[i]))
		plain := j.plain
		j.plain = nil
		if j.pooled {
			buffers.Put(&plain) // not &j.plain: the pool's next user must not share a variable with the job
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count.data, p.count.meta, p.count.known = p.count.data+data, p.count.meta+meta, p.count.known+known
	p.bytes.data, p.bytes.meta = p.bytes.data+dataBytes, p.bytes.meta+metaBytes
	for _, n := range names {
		p.sampled++
		if len(p.sample) < maxSample {
			p.sample = append(p.sample, n)
		} else if i := rand.IntN(p.sampled); i < maxSample {
			p.sample[i] = n
		}
	}
	return nil
}

func (p *pipeline) upload(g *group) {
	<-g.ready
	for i, sealed := range g.sealed {
		if sealed == nil || context.Cause(p.ctx) != nil {
			continue
		}
		if err := p.sess.Upload(p.ctx, g.jobs[i].name, sealed); err != nil {
			p.cancel(err)
		}
		g.sealed[i] = nil
	}
	<-p.slots
}

// finish waits until everything that was put is durable.
func (p *pipeline) finish() error {
	if err := p.submit(); err != nil {
		return err
	}
	p.close()
	if err := context.Cause(p.ctx); err != nil {
		return err
	}
	return p.sess.Drain(p.ctx)
}

// close waits for the pipeline's goroutines. It may be called again.
func (p *pipeline) close() {
	if !p.closed {
		p.closed = true
		close(p.queue)
	}
	p.wg.Wait()
}
