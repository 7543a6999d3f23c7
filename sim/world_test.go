// Package sim runs clients and the service in one process: the real client, the real protocol over real TLS,
// the real journal, and under it a bucket in memory with faults. Time is virtual. It is for what neither side
// can be tested for alone and processes are too coarse for: a crash at every single write, a writer who does not
// keep to the rules.
package sim

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/client/seal"
	"holdfast/history"
	"holdfast/internal/pipenet"
	"holdfast/service/account"
	"holdfast/service/billing"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/identity"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/serve"
	"holdfast/service/view"
	"holdfast/wire"
)

// TestMain makes what packages share between their users, so that it belongs to no bubble.
func TestMain(m *testing.M) {
	mach := keyring.OwnerOf(holdfast.Key{}).NewMachine(holdfast.VaultID{}, holdfast.GroupID{}, holdfast.RightsAll, 64<<10)
	s, _, err := seal.NewSession(rand.Reader, mach)
	if err == nil {
		keys, plain := mach.GroupKeys(), make([]byte, 1000)
		_, err = s.Seal(keys.NameOf(holdfast.KindChunk, plain), holdfast.KindChunk, plain, nil, nil)
	}
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// world is a service on a simulated bucket, and one customer's owner. All of it lives in a synctest bubble.
type world struct {
	*testing.T
	owner keyring.Owner
	id    *identity.Identity
	host  [16]byte // of the service's data directory

	// with, if set, gives the service another bucket to use than a new connection itself, or prepares that one.
	with func(*sim.Bucket) bucket.Bucket
	disk *view.Disk   // that the view is on; nil for a new one at each start
	log  *slog.Logger // nil discards
	// readOnly, if set, says what the service takes no more.
	readOnly func() serve.Closed
	watch    time.Duration // between two looks of the journal at its epoch; 0 is as it always is
	// charges, if set, makes what charges the accounts; the world runs it never.
	charges func(j *journal.Journal, settle func(context.Context)) *billing.Biller

	mu     sync.Mutex // guards what a restart replaces, against clients that dial meanwhile
	bucket *sim.Bucket
	j      *journal.Journal
	srv    *serve.Server
	money  *billing.Biller // nil without charges
	l      *pipenet.Listener
	end    func() error // nil while the service is down

	first    *machine // enrolled with all rights
	machines []*machine
}

// machine is an enrolled machine and what it speaks to the service with.
type machine struct {
	*keyring.Machine
	w     *world
	c     *remote.Client
	cache string
	addr  net.Addr
}

// inWorld runs fn in a bubble with a service that is serving and a vault of owner's with one machine, which
// has all rights and the group 1.
func inWorld(t *testing.T, owner keyring.Owner, fn func(w *world)) { inWorldWith(t, owner, nil, fn) }

// inWorldWith is inWorld with another bucket for the service than the simulated one itself.
func inWorldWith(t *testing.T, owner keyring.Owner, with func(*sim.Bucket) bucket.Bucket, fn func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		// The bubble begins in 2000. Files were made today, and must not be of the future.
		time.Sleep(time.Since(time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC)))
		w := &world{T: t, owner: owner, host: [16]byte{1}, with: with, bucket: sim.New(1)}
		var err error
		if w.id, err = identity.New("file:///b", "service:1"); err != nil {
			t.Fatal(err)
		}
		w.start()
		defer func() {
			for _, m := range w.machines {
				m.c.Close()
			}
			if w.end != nil {
				w.stop()
			}
			time.Sleep(10 * time.Second) // both ends of a connection say goodbye, for 5 seconds at most
			if v := w.bucket.Store().Violations(); len(v) > 0 {
				t.Errorf("violations: %v", v)
			}
		}()
		w.enrolFirst()
		fn(w)
	})
}

// config is that of the journal, over the newest connection to the bucket.
func (w *world) config() journal.Config {
	cfg := journal.Config{Bucket: w.bucket, Cell: w.id.Cell, Host: w.host, LogKey: w.id.LogKey(), Log: w.log, Watch: w.watch}
	if w.with != nil {
		cfg.Bucket = w.with(w.bucket)
	}
	return cfg
}

func (w *world) start() {
	w.Helper()
	cfg := w.config()
	cfg.Create = true
	if err := w.serve(cfg); err != nil {
		w.Fatal(err)
	}
}

// serve starts a service.
func (w *world) serve(cfg journal.Config) (err error) {
	if w.disk != nil {
		cfg.Store, err = w.disk.Open()
		if errors.Is(err, view.ErrDamaged) { // it is made anew
			w.disk = view.NewDisk()
			cfg.Store, err = w.disk.Open()
		}
		if err != nil {
			return err
		}
	}
	j, err := journal.Open(w.Context(), cfg)
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	var srv *serve.Server
	var money *billing.Biller
	if w.charges != nil {
		money = w.charges(j, func(ctx context.Context) { srv.Settle(ctx) })
	}
	srv = serve.New(serve.Config{Journal: j, Identity: w.id, ReadOnly: w.readOnly, Billing: money})
	l := pipenet.Listen()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, l) }()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.j, w.srv, w.money, w.l = j, srv, money, l
	w.end = func() error {
		cancel()
		return <-served
	}
	return nil
}

// stop ends the service in order.
func (w *world) stop() {
	w.Helper()
	if err := w.end(); err != nil {
		w.Errorf("serve: %v", err)
	}
	w.end = nil
	if err := w.j.Close(context.WithoutCancel(w.Context())); err != nil {
		w.Errorf("close journal: %v", err)
	}
}

// crash ends the service without a word, and starts another with nothing but the bucket: its view is made anew.
func (w *world) crash() {
	w.Helper()
	gone := w.lose()
	w.start()
	gone()
}

// lose ends the service without a word; gone returns when what is left of it, which takes its time, has ended.
func (w *world) lose() (gone func()) {
	w.bucket.Crash()
	end, j := w.end, w.j
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bucket, w.end = w.bucket.Store().Connect(2), nil
	return func() {
		end()
		j.Close(context.WithoutCancel(w.Context()))
	}
}

// mortal is the service's end of a pipe. A process that is dead says nothing.
type mortal struct {
	net.Conn
	dead func() bool
}

func (m mortal) Write(p []byte) (int, error) {
	if m.dead() {
		m.Close()
		return 0, net.ErrClosed
	}
	return m.Conn.Write(p)
}

// dial connects to the service that is up at the moment.
func (m *machine) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	m.w.mu.Lock()
	l, bucket := m.w.l, m.w.bucket
	m.w.mu.Unlock()
	a, b := net.Pipe()
	return a, l.Connect(ctx, pipenet.From(mortal{b, bucket.Crashed}, m.addr))
}

// machine returns a machine with a fresh key that is not enrolled.
func (w *world) machine(vault holdfast.VaultID, group byte, rights holdfast.Rights) *machine {
	w.Helper()
	return w.machineOf(w.owner, vault, group, rights)
}

// machineOf is machine of another owner.
func (w *world) machineOf(owner keyring.Owner, vault holdfast.VaultID, group byte, rights holdfast.Rights) *machine {
	w.Helper()
	m := &machine{Machine: owner.NewMachine(vault, holdfast.GroupID{group}, rights, 64<<10), w: w, cache: w.TempDir()}
	m.Address, m.ServiceKey, m.LogKey = "service:1", wire.PublicKey(w.id.TLSKey().Public().(ed25519.PublicKey)), wire.PublicKey(w.id.LogKey().Public().(ed25519.PublicKey))
	m.addr = &net.TCPAddr{IP: net.IPv4(10, 0, byte(len(w.machines)), 1), Port: 1000}
	m.c = remote.Dial(m.Machine, remote.Options{CacheDir: m.cache, DialContext: m.dial})
	w.machines = append(w.machines, m)
	return m
}

func (w *world) enrolFirst() {
	w.Helper()
	w.first = w.settler(w.owner, "customer")
}

// settler makes an account for that owner, and a vault with one machine.
func (w *world) settler(owner keyring.Owner, name string) *machine {
	w.Helper()
	secret, err := account.Add(w.Context(), w.j, name)
	if err != nil {
		w.Fatal(err)
	}
	blank := owner.NewMachine(holdfast.VaultID{}, holdfast.GroupID{1}, holdfast.RightsAll, 64<<10)
	genesis := remote.Genesis(owner, blank.Hist)
	m := w.machineOf(owner, holdfast.VaultID(genesis.ID()), 1, holdfast.RightsAll)
	if err := m.c.Enrol(w.Context(), wire.Token{Secret: secret}, owner.SignKey(), genesis); err != nil {
		w.Fatal(err)
	}
	return m
}

// enrol has the owner enrol another machine.
func (w *world) enrol(group byte, rights holdfast.Rights) *machine {
	w.Helper()
	m := w.machine(w.first.Vault, group, rights)
	w.ownerSays(history.TypeEnrol, m.Enrol().Encode())
	return m
}

func (w *world) ownerSays(t history.Type, fields []byte) {
	w.Helper()
	if _, err := w.first.c.SubmitAsOwner(w.Context(), w.owner.SignKey(), t, fields); err != nil {
		w.Fatal(err)
	}
}

// config backs up dir/tree as a series of that name.
func (m *machine) config(dir, series string) backup.Config {
	return backup.Config{Machine: m.Machine, Client: m.c, Series: series, Base: dir, Roots: []string{"tree"}, CacheDir: m.cache}
}

// backup makes an archive, which must be complete.
func (m *machine) backup(dir, series string) (history.Archive, backup.Result) {
	m.w.Helper()
	r, err := backup.Run(m.w.Context(), m.config(dir, series))
	if err != nil || !r.Complete() {
		m.w.Fatalf("back up %s: %+v, %v", series, r, err)
	}
	return r.Archive, r
}

// open reads the vault's history anew.
func (m *machine) open() *restore.Vault {
	m.w.Helper()
	v, err := restore.Open(m.w.Context(), m.Machine, m.c)
	if err != nil {
		m.w.Fatal(err)
	}
	return v
}

// restores extracts an archive and compares it with dir/tree, byte for byte.
func (m *machine) restores(a history.Archive, dir string) {
	m.w.Helper()
	out := filepath.Join(m.w.TempDir(), "out")
	r, err := m.open().Extract(m.w.Context(), a, out, restore.Options{Problem: func(p restore.Problem) { m.w.Errorf("%s: %v", p.Path, p.Err) }})
	if err != nil || r.Problems > 0 {
		m.w.Errorf("extract: %+v, %v", r, err)
		return
	}
	if want, got := contents(m.w, dir), contents(m.w, out); !slices.Equal(want, got) {
		m.w.Errorf("%d paths came back of %d, or with other contents", len(got), len(want))
	}
}

// contents lists the files of a tree with their contents.
func contents(t testing.TB, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		list = append(list, fmt.Sprintf("%s %x", rel, b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// tree makes dir/tree: small files, which share packs, and two that are cut into chunks, one of large bytes.
func tree(t testing.TB, seed byte, large int) (dir string) {
	t.Helper()
	dir = t.TempDir()
	r := mrand.NewChaCha8([32]byte{seed})
	write := func(name string, size int) {
		b := make([]byte, size)
		r.Read(b)
		p := filepath.Join(dir, "tree", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 60 {
		write(fmt.Sprintf("small/%02d", i), 500+300*i)
	}
	write("large", large)
	write("other/large", 400<<10)
	write("empty", 0)
	return dir
}

// stored is a block as it lies in the bucket.
type stored struct {
	segment.Stored
	sealed []byte
}

// journaled reads the bucket with nothing but the documented format: all blocks and history records, in order.
// each is called for every one of them.
func (w *world) journaled(each func(r any)) {
	w.Helper()
	type object struct {
		key  segment.Key
		name string
	}
	b := w.bucket.Store().Connect(3)
	var objects []object
	for _, name := range w.bucket.Store().Keys() {
		if k, err := segment.ParseKey(name); err == nil {
			objects = append(objects, object{k, name})
		}
	}
	slices.SortFunc(objects, func(a, b object) int { return a.key.Position.Compare(b.key.Position) })
	for _, o := range objects {
		raw, err := b.Get(w.Context(), o.name, 0, -1)
		if err != nil {
			w.Fatal(err)
		}
		tr, err := segment.ParseTrailer(raw[len(raw)-int(o.key.Trailer):])
		if err != nil {
			w.Fatalf("%s: %v", o.name, err)
		}
		for _, t := range tr.Records {
			switch r := t.Record.(type) {
			case segment.Stored:
				each(stored{r, raw[r.Off:][:r.Len]})
			case segment.History:
				each(r.Entry)
			}
		}
	}
}

// wrapped fails unless every block in the bucket comes after the open record of its session, that record's wrap
// opens, and the block with it. It returns how many blocks and sessions there are.
func (w *world) wrapped() (blocks, sessions int) {
	w.Helper()
	reader, err := seal.NewReader(w.first.Machine)
	if err != nil {
		w.Fatal(err)
	}
	group := map[holdfast.SessionID]holdfast.GroupID{}
	w.journaled(func(r any) {
		switch r := r.(type) {
		case history.Entry:
			b, err := history.ParseBody(r.Record.Body)
			if err != nil {
				w.Fatal(err)
			}
			if b.Type != history.TypeOpen {
				return
			}
			o, err := history.ParseOpen(b.Fields)
			if err != nil {
				w.Fatal(err)
			}
			if err := reader.AddOpen(o, b.Signer); err != nil {
				w.Fatal(err)
			}
			if err := reader.CheckSession(o.Session); err != nil {
				w.Errorf("session %.8s: %v", o.Session, err)
			}
			group[o.Session] = o.Group
			sessions++
		case stored:
			g, ok := group[r.Session]
			if !ok {
				w.Errorf("block %.8s lies in the bucket, and the wrap of its session %.8s is not before it", r.Name, r.Session)
				return
			}
			if _, _, err := reader.Open(g, r.Name, r.sealed); err != nil {
				w.Errorf("block %.8s: %v", r.Name, err)
			}
			blocks++
		}
	})
	return blocks, sessions
}

// verified reads back every archive of the vault. It has a connection of its own: a backup that is under way may hold
// the lock of its client while it waits, and in a bubble time stands still for who waits for a lock.
func (w *world) verified() (archives int) {
	w.Helper()
	reader := *w.first
	reader.c = remote.Dial(reader.Machine, remote.Options{DialContext: reader.dial})
	defer reader.c.Close()
	v := reader.open()
	all, err := v.Verify(w.Context(), v.History.Archives, restore.Options{Problem: func(p restore.Problem) { w.Errorf("%s: %v", p.Path, p.Err) }}, nil)
	if err != nil {
		w.Fatal(err)
	}
	for _, a := range all {
		if a.Err != nil {
			w.Errorf("archive %.8s: %v", a.Archive.ID, a.Err)
		}
	}
	return len(all)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
