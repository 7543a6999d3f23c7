package sim

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/internal/part"
	"holdfast/service/account"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/bucket/steady"
	"holdfast/service/policy"
	"holdfast/service/view"
	"holdfast/wire"
)

// town is a service and its customers, all with their real code: what TestSeeds has no place for is in here, TLS, sealing,
// catalogs, retries, sessions. It costs a hundred times as much.
type town struct {
	*world
	seed   uint64
	rng    *rand.Rand
	seen   *sometimes
	faults *faults
	people []*person
	steps  []string
	began  time.Time
	paused []func() // end an owner that is paused, and was replaced
	gate   *gate
}

// person is a customer.
type person struct {
	*machine
	owner  keyring.Owner
	dir    string
	series string
	files  int
	kept   map[holdfast.RecordID]*kept
	unsure []string     // what the tree held at a run of which nobody knows how it ended
	lines  atomic.Int64 // bytes until the connection is cut; 0 for never
}

// kept is what an archive must bring back.
type kept struct {
	want    string // digest of the tree
	state   history.State
	deleted int64 // ns
	maybe   bool
}

// gate pauses a process of the service at its next call to the bucket.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // nil while it is open
}

func (g *gate) wait() {
	g.mu.Lock()
	c := g.closed
	g.mu.Unlock()
	if c != nil {
		<-c
	}
}

func (g *gate) shut() (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := make(chan struct{})
	g.closed = c
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.closed = nil
		close(c)
	}
}

// townRare are the states that a run of manyTowns must have come to; whether a few do is chance.
var townRare = []string{
	"a session that outlived its process was refused, and the client opened another",
	"a client was killed",
	"a connection was cut",
	"an archive was deleted and brought back",
	"an owner that was replaced while it was paused stopped",
	"the service was killed during a backup",
	"another host took over during a backup",
	"an archive was purged",
}

// TestTowns runs the real clients and the service as seeds draw it: they back up, change, delete, bring back, restore, are
// killed and cut off, while the service is killed, loses power or its disk, is paused and replaced, and its bucket
// suffers faults. After every step each archive that was committed comes back byte for byte, none that was not
// appears, and the view is what the bucket says. At the end the faults cease, everything goes on by itself, and what
// nobody needs is gone.
//
//	make sim TOWNS=100
//	go test ./sim -run 'TestTowns$' -seed 3
func TestTowns(t *testing.T) {
	n := cmp.Or(*townsFlag, 6)
	if *townsFlag == 0 && part.Heavy() {
		n = 20
	}
	seen := eachSeed(t, n, runTown)
	if *seedFlag == "" && n >= manyTowns {
		seen.require(t, townRare...)
	}
}

// manyTowns is from how many seeds on a run must have come to all that is rare.
const manyTowns = 100

func runTown(t *testing.T, seed uint64, seen, injected *sometimes) (simulated time.Duration) {
	v := &town{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 2)), seen: seen, gate: &gate{},
		faults: &faults{seed: seed, injected: injected},
	}
	v.faults.times = []int{0, 1, 3}[v.rng.IntN(3)]
	with := func(b *sim.Bucket) bucket.Bucket {
		b.OnOp(v.faults.suffer)
		gate := v.gate
		b.AfterOp = func(sim.Op, string, int) { gate.wait() }
		return steady.New(b, steady.Config{})
	}
	inWorldWith(t, keyring.OwnerOf(holdfast.Key{byte(seed), 1}), with, func(w *world) {
		v.world, v.began = w, time.Now()
		defer func() {
			v.wake()
			simulated = time.Since(v.began)
			if w.Failed() {
				w.Logf("seed %d; repeat it with: go test ./sim -run 'TestTowns$' -seed %d -v\n%s", seed, seed, strings.Join(v.steps, "\n"))
			}
		}()
		w.stop()
		w.disk = view.NewDisk()
		w.bucket = w.bucket.Store().Connect(seed)
		w.start()
		v.live(w.first, w.owner)
		for n := range 1 + v.rng.IntN(2) {
			v.settle(byte(2 + n))
		}
		v.faults.set(true)
		for range 24 {
			v.step()
			v.check(v.rng.IntN(6) == 0)
		}
		v.heal()
	})
	return simulated
}

func (v *town) note(format string, a ...any) {
	v.steps = append(v.steps, fmt.Sprintf("%9s  ", time.Since(v.began).Round(time.Second))+fmt.Sprintf(format, a...))
}

// live makes a person of a machine that is enrolled.
func (v *town) live(m *machine, owner keyring.Owner) *person {
	p := &person{machine: m, owner: owner, dir: v.TempDir(), series: fmt.Sprint(len(v.people)), kept: map[holdfast.RecordID]*kept{}}
	m.c.Close()
	m.c = remote.Dial(m.Machine, remote.Options{CacheDir: m.cache, DialContext: p.dialCut, Patience: time.Hour})
	v.people = append(v.people, p)
	for range 4 {
		p.change(v)
	}
	return p
}

// settle enrols another customer, with a vault of his own.
func (v *town) settle(n byte) {
	v.Helper()
	secret, err := account.Add(v.Context(), v.j, fmt.Sprintf("customer-%d", n))
	if err != nil {
		v.Fatal(err)
	}
	was := v.owner
	defer func() { v.owner = was }()
	v.owner = keyring.OwnerOf(holdfast.Key{byte(v.seed), n})
	blank := v.owner.NewMachine(holdfast.VaultID{}, holdfast.GroupID{1}, holdfast.RightsAll, 64<<10)
	genesis := remote.Genesis(v.owner, blank.Hist)
	m := v.machine(holdfast.VaultID(genesis.ID()), 1, holdfast.RightsAll)
	if err := m.c.Enrol(v.Context(), wire.Token{Secret: secret}, v.owner.SignKey(), genesis); err != nil {
		v.Fatal(err)
	}
	v.live(m, v.owner)
}

// dialCut is the machine's network, which may be cut after so many bytes.
func (p *person) dialCut(ctx context.Context, n, a string) (net.Conn, error) {
	c, err := p.dial(ctx, n, a)
	if err != nil {
		return nil, err
	}
	return line{c, p}, nil
}

type line struct {
	net.Conn
	p *person
}

func (l line) Write(b []byte) (int, error) {
	if n := int64(len(b)); l.p.lines.Load() > 0 && l.p.lines.Add(-n) <= 0 {
		l.p.lines.Store(0)
		l.Close()
		return 0, errors.New("cut")
	}
	return l.Conn.Write(b)
}

// change changes a person's files.
func (p *person) change(v *town) {
	v.Helper()
	tree := filepath.Join(p.dir, "tree")
	name, size := fmt.Sprint(p.files), 100+v.rng.IntN(3000)
	switch v.rng.IntN(6) {
	case 0:
		size = 60_000 + v.rng.IntN(100_000)
	case 1, 2:
		if p.files > 0 {
			name = fmt.Sprint(v.rng.IntN(p.files))
		}
	}
	p.files++
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(v.seed), byte(v.rng.Uint32()), byte(v.rng.Uint32())}).Read(b)
	if err := errors.Join(os.MkdirAll(tree, 0o755), os.WriteFile(filepath.Join(tree, name), b, 0o644)); err != nil {
		v.Fatal(err)
	}
	if v.rng.IntN(5) == 0 {
		os.Remove(filepath.Join(tree, fmt.Sprint(v.rng.IntN(p.files))))
	}
}

// holds is what a tree holds.
func holds(t testing.TB, dir string) string {
	t.Helper()
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(contents(t, dir), "\n"))))
}

// step does something that the seed draws.
func (v *town) step() {
	v.Helper()
	p := v.people[v.rng.IntN(len(v.people))]
	switch n := v.rng.IntN(100); {
	case n < 50:
		for range v.rng.IntN(4) {
			p.change(v)
		}
		v.backup(p)
	case n < 60:
		v.delete(p)
	case n < 64:
		v.undelete(p)
	case n < 76:
		d := time.Duration(v.rng.Int64N(int64([]time.Duration{time.Hour, day, 8 * day}[v.rng.IntN(3)])))
		v.note("%s pass", d.Round(time.Second))
		time.Sleep(d)
	case n < 80:
		done, err := policy.Run(v.Context(), v.j, v.id.LogKey(), nil)
		v.note("policies: %+v, %v", done, err)
	case n < 90:
		v.free()
	case n < 96:
		v.restart(false)
	default:
		if n := v.bucket.Store().Land(); n > 0 {
			v.note("%d writes land that were given up", n)
		}
	}
}

// backup makes an archive, while the client or the service may be killed, the line cut, the owner replaced.
func (v *town) backup(p *person) {
	v.Helper()
	want := holds(v, p.dir)
	ctx, cancel := context.WithCancel(v.Context())
	defer cancel()
	type result struct {
		r   backup.Result
		err error
	}
	done := make(chan result, 1)
	event := v.rng.IntN(10)
	if event == 0 {
		p.lines.Store(1 + v.rng.Int64N(60_000))
	}
	v.note("%s backs up", p.series)
	go func() {
		r, err := backup.Run(ctx, p.config(p.dir, p.series))
		done <- result{r, err}
	}()
	var got *result
	wait := func(d time.Duration) {
		select {
		case r := <-done:
			got = &r
		case <-time.After(d):
		}
	}
	if event >= 1 && event <= 3 {
		wait(time.Duration(v.rng.Int64N(int64(800 * time.Millisecond))))
	}
	killed := false
	switch {
	case got != nil:
	case event == 1:
		v.note("%s is killed", p.series)
		cancel()
		killed = true
		v.seen.reached("a client was killed")
	case event == 2:
		before := v.opened(p)
		v.seen.reached("the service was killed during a backup")
		v.restart(false)
		wait(2 * time.Hour)
		if got != nil && got.err == nil && before > 0 && v.opened(p) > before {
			v.seen.reached("a session that outlived its process was refused, and the client opened another")
		}
	case event == 3:
		v.seen.reached("another host took over during a backup")
		v.restart(true)
		wait(time.Duration(v.rng.Int64N(int64(30 * time.Minute))))
		v.wake()
	}
	if got == nil {
		r := <-done
		got = &r
	}
	if event == 0 && p.lines.Load() == 0 {
		v.seen.reached("a connection was cut")
	}
	p.lines.Store(0)
	switch {
	case got.err == nil && got.r.Complete():
		v.note("%s has archive %.8s", p.series, got.r.Archive.ID)
		p.kept[got.r.Archive.ID] = &kept{want: want, state: history.Live}
	case got.err != nil:
		v.note("%s failed: %v", p.series, got.err)
		if !killed && v.faults.times == 0 {
			v.Errorf("back up: %v", got.err)
		}
		p.unsure = append(p.unsure, want)
	default:
		v.Errorf("back up: %+v", got.r)
	}
}

// opened returns how many sessions the person's machine has opened.
func (v *town) opened(p *person) (n int) {
	v.Helper()
	raw, err := v.j.Acked().History(p.Vault, 0, 1<<30)
	if err != nil {
		return 0
	}
	for _, e := range entries(v, raw) {
		if b, err := history.ParseBody(e.Record.Body); err == nil && b.Type == history.TypeOpen {
			n++
		}
	}
	return n
}

// restart has another process of the service start: after one that is killed, on what is left of its disk or on none;
// or, with paused, on another host while the owner is paused, which it will find out.
func (v *town) restart(paused bool) {
	v.Helper()
	old := v.end
	j, was := v.j, v.bucket
	if paused {
		v.note("the owner is paused, and another host takes over")
		open := v.gate.shut()
		v.lock(func() {
			v.bucket, v.end = was.Store().Connect(v.seed), nil
			v.gate = &gate{}
		})
		v.paused = append(v.paused, func() {
			open()
			select {
			case <-j.Stopped():
			case <-time.After(time.Hour):
				v.Error("an owner that was replaced goes on")
			}
			v.seen.reached("an owner that was replaced while it was paused stopped")
			old()
			j.Close(context.WithoutCancel(v.Context()))
		})
		v.host[0]++
		v.disk = view.NewDisk()
		v.again(true)
		return
	}
	gone := v.lose()
	v.lock(func() { v.bucket = v.bucket.Store().Connect(v.seed) })
	takeover := false
	switch v.rng.IntN(3) {
	case 0:
		v.note("the service is killed, and starts on what is left of its disk")
		v.disk = v.disk.Crash([]int{0, 50, 100}[v.rng.IntN(3)], v.rng.Uint64())
	case 1:
		v.note("the service is killed, and starts with an empty disk")
		v.disk = view.NewDisk()
	case 2:
		v.note("the service is killed, and another host takes over")
		v.disk, takeover = view.NewDisk(), true
		v.host[0]++
	}
	v.again(takeover)
	gone()
}

// wake lets each owner go on that is paused and was replaced. It must stop for good.
func (v *town) wake() {
	for _, end := range v.paused {
		end()
	}
	v.paused = nil
}

func (v *town) lock(fn func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fn()
}

// again starts the service, which may take a few attempts.
func (v *town) again(takeover bool) {
	v.Helper()
	for try := 0; ; try++ {
		cfg := v.world.config()
		cfg.Create, cfg.Takeover = true, takeover
		err := v.serve(cfg)
		if err == nil {
			return
		}
		if try == 20 {
			v.Fatalf("no start after %d attempts: %v", try, err)
		}
		v.note("no start: %v", err)
		v.lock(func() { v.bucket = v.bucket.Store().Connect(v.seed) })
		time.Sleep(time.Minute)
	}
}

// say sends a record about an archive.
func (v *town) say(p *person, t history.Type, id holdfast.RecordID) error {
	_, err := p.c.SubmitAsOwner(v.Context(), p.owner.SignKey(), t, history.IDs{id}.Encode())
	v.note("%s: %s archive %.8s: %v", p.series, t, id, err)
	return err
}

func (p *person) in(v *town, state history.State) (id holdfast.RecordID, k *kept) {
	var ids []holdfast.RecordID
	for id, k := range p.kept {
		if k.state == state {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return id, nil
	}
	id = history.SortIDs(ids)[v.rng.IntN(len(ids))]
	return id, p.kept[id]
}

func (v *town) delete(p *person) {
	v.Helper()
	id, k := p.in(v, history.Live)
	if k == nil {
		return
	}
	before := time.Now().UnixNano()
	if err := v.say(p, history.TypeDelete, id); err != nil {
		k.maybe = true
		return
	}
	k.state, k.deleted = history.Deleted, before
}

func (v *town) undelete(p *person) {
	v.Helper()
	id, k := p.in(v, history.Deleted)
	if k == nil {
		return
	}
	if err := v.say(p, history.TypeUndelete, id); err != nil {
		k.maybe = true
		return
	}
	k.state = history.Live
	v.seen.reached("an archive was deleted and brought back")
}

// check is the oracle; all has it read every archive back, or else one of each person.
func (v *town) check(every bool) {
	v.Helper()
	if err := v.j.Err(); err != nil {
		v.Errorf("the journal stopped: %v", err)
		v.restart(false)
	}
	for _, p := range v.people {
		v.has(p, every)
	}
	(&traveller{world: v.world}).rebuilt()
	if bad := v.bucket.Store().Violations(); len(bad) > 0 {
		v.Errorf("violations: %v", bad)
	}
	if v.Failed() {
		v.FailNow()
	}
}

// has compares what a person has with what was promised.
func (v *town) has(p *person, every bool) {
	v.Helper()
	var h *restore.Vault
	var err error
	for try := 0; ; try++ {
		if h, err = restore.Open(v.Context(), p.Machine, p.c); err == nil {
			break
		}
		if v.note("%s cannot open its vault: %v", p.series, err); try == 5 {
			v.Fatal(err)
		}
		time.Sleep(time.Minute)
	}
	there := map[holdfast.RecordID]history.Archive{}
	for _, a := range h.History.Archives {
		there[a.ID] = a
	}
	now := time.Now().UnixNano()
	for id, a := range there {
		if p.kept[id] != nil || len(p.unsure) == 0 {
			continue
		}
		// A run of which nobody knew how it ended had committed.
		want := v.comesBack(p, h, a)
		for i, w := range p.unsure {
			if w == want {
				p.kept[id] = &kept{want: want, state: history.Live}
				p.unsure = append(p.unsure[:i], p.unsure[i+1:]...)
				break
			}
		}
	}
	for id, k := range p.kept {
		a, ok := there[id]
		delete(there, id)
		is := history.Purged
		if ok {
			is = a.State
		}
		switch {
		case k.maybe && is != history.Purged:
			k.maybe, k.state, k.deleted = false, is, a.Changed
		case is == k.state:
		case k.state == history.Deleted && is == history.Purged:
			if time.Duration(now-k.deleted) < undeleteDelay {
				v.Errorf("archive %.8s is purged before its time", id)
			}
			k.state = is
			v.seen.reached("an archive was purged")
		default:
			v.Errorf("archive %.8s was %s and is %s", id, k.state, is)
		}
	}
	for id := range there {
		v.Errorf("archive %.8s is there, and nobody committed it", id)
	}
	read := 0
	for _, a := range h.History.Archives {
		k := p.kept[a.ID]
		if k == nil || k.state != history.Live || !every && read > 0 {
			continue
		}
		read++
		if got := v.comesBack(p, h, a); got != k.want {
			v.Errorf("archive %.8s came back with other contents", a.ID)
		}
	}
}

// comesBack restores an archive and returns what the tree holds.
func (v *town) comesBack(p *person, h *restore.Vault, a history.Archive) string {
	v.Helper()
	out := filepath.Join(v.TempDir(), "out")
	defer os.RemoveAll(out)
	r, err := h.Extract(v.Context(), a, out, restore.Options{Problem: func(b restore.Problem) { v.Errorf("%s: %v", b.Path, b.Err) }})
	if err != nil || r.Problems > 0 {
		v.Errorf("extract %.8s: %+v, %v", a.ID, r, err)
	}
	return holds(v, out)
}

func (v *town) heal() {
	v.Helper()
	v.note("the faults cease")
	v.faults.set(false)
	v.bucket.Store().Land()
	v.wake()
	time.Sleep(10 * time.Minute)
	for _, p := range v.people {
		want := holds(v, p.dir)
		r, err := backup.Run(v.Context(), p.config(p.dir, p.series))
		if err != nil || !r.Complete() {
			v.Fatalf("back up, without faults: %+v, %v", r, err)
		}
		p.kept[r.Archive.ID] = &kept{want: want, state: history.Live}
	}
	v.check(true)
}
