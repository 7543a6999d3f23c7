package sim

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/internal/part"
	"holdfast/internal/pipenet"
	"holdfast/service/account"
	"holdfast/service/bucket/sim"
	"holdfast/wire"
)

// herd watches what many clients do to one service.
type herd struct {
	mu    sync.Mutex
	began time.Time
	dials []time.Duration // when each was tried
	open  int             // connections that the service has
	most  int
	sent  int64 // bytes by all clients
}

// herdConn is a client's end of a connection.
type herdConn struct {
	net.Conn
	h *herd
}

func (c herdConn) Write(p []byte) (int, error) {
	c.h.mu.Lock()
	c.h.sent += int64(len(p))
	c.h.mu.Unlock()
	return c.Conn.Write(p)
}

// served is the service's end of it.
type served struct {
	net.Conn
	h    *herd
	once *sync.Once
}

func (c served) Close() error {
	c.once.Do(func() {
		c.h.mu.Lock()
		c.h.open--
		c.h.mu.Unlock()
	})
	return c.Conn.Close()
}

// dial connects m, whose home is a network of its own.
func (h *herd) dial(m *machine) func(ctx context.Context, _, _ string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		m.w.mu.Lock()
		l, bucket := m.w.l, m.w.bucket
		m.w.mu.Unlock()
		near, far := pipenet.Pipe()
		h.mu.Lock()
		h.dials = append(h.dials, time.Since(h.began))
		h.open++
		h.most = max(h.most, h.open)
		h.mu.Unlock()
		there := served{mortal{far, bucket.Crashed}, h, new(sync.Once)}
		if err := l.Connect(ctx, pipenet.From(there, m.addr)); err != nil {
			there.Close()
			return nil, err
		}
		return herdConn{near, h}, nil
	}
}

// customer enrols the first machine of another customer, who is of herd h.
func (w *world) customer(i int, h *herd) *machine {
	w.Helper()
	secret, err := account.Add(w.Context(), w.j, fmt.Sprint("customer-", i))
	if err != nil {
		w.Fatal(err)
	}
	var key holdfast.Key
	binary.BigEndian.PutUint32(key[:], uint32(i)+1000)
	o := keyring.OwnerOf(key)
	blank := o.NewMachine(holdfast.VaultID{}, holdfast.GroupID{1}, holdfast.RightsAll, 64<<10)
	genesis := remote.Genesis(o, blank.Hist)
	m := &machine{Machine: o.NewMachine(holdfast.VaultID(genesis.ID()), holdfast.GroupID{1}, holdfast.RightsAll, 64<<10), w: w}
	m.Address, m.ServiceKey, m.LogKey = "service:1", wire.PublicKey(w.id.TLSKey().Public().(ed25519.PublicKey)), wire.PublicKey(w.id.LogKey().Public().(ed25519.PublicKey))
	m.addr = &net.TCPAddr{IP: net.IPv4(10, byte(1+i>>8), byte(i), 1), Port: 1000}
	m.c = remote.Dial(m.Machine, remote.Options{DialContext: h.dial(m)})
	w.machines = append(w.machines, m)
	if err := m.c.Enrol(w.Context(), wire.Token{Secret: secret}, o.SignKey(), genesis); err != nil {
		w.Fatal(err)
	}
	m.c.Close()
	return m
}

// TestScenarioS14ThunderingHerd: every customer's backup begins at midnight, one half of them while the service is down,
// and the service comes back a minute later on a store that is slow. Those who wait come back spread over time; those who are
// too many are told busy; there is a bound on connections; nobody sends the same more often than each half minute; and everybody has an archive
// within the stated time.
func TestScenarioS14ThunderingHerd(t *testing.T) {
	customers, within, again := 300, 5*time.Minute, 2.0
	if part.Heavy() {
		customers, within, again = 500, 8*time.Minute, 8 // each is refused some times before there is room
	}
	const (
		down    = time.Minute
		maxOpen = 256 + 768 + 64 // what package serve allows, and some that are being closed
		window  = 100 * time.Millisecond
	)
	dir := t.TempDir()
	for i := range 12 {
		p := filepath.Join(dir, "tree", fmt.Sprint("file", i))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, random(60<<10), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	inWorld(t, owner, func(w *world) {
		h := &herd{began: time.Now()}
		var all []*machine
		for i := range customers {
			all = append(all, w.customer(i, h))
		}
		alone := h.sent
		cfg := all[0].config(dir, "alone")
		cfg.CacheDir = ""
		if _, err := backup.Run(w.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		alone = h.sent - alone // what one client sends that has the service for itself
		for _, m := range all {
			m.c.Close()
		}
		time.Sleep(10 * time.Second) // goodbyes

		// The service is away, and back after a minute with a store that takes fifteen seconds for each segment.
		gone := w.lose()
		w.bucket.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
			if op == sim.OpPut {
				return sim.Fault{Slow: 15 * time.Second}
			}
			return sim.Fault{Slow: 50 * time.Millisecond}
		})
		w.l.Close()
		h.mu.Lock()
		h.began, h.dials, h.sent, h.open, h.most = time.Now(), nil, 0, 0, 0
		h.mu.Unlock()
		type result struct {
			err error
			at  time.Duration
		}
		results := make(chan result, customers)
		for i, m := range all {
			go func() {
				if i%2 == 0 {
					time.Sleep(down)
				}
				cfg := m.config(dir, "s")
				cfg.CacheDir = ""
				r, err := backup.Run(w.Context(), cfg)
				if err == nil && !r.Complete() {
					err = fmt.Errorf("not complete: %+v", r)
				}
				results <- result{err, time.Since(h.began) - down}
			}()
		}
		time.Sleep(down)
		w.start()
		var times []time.Duration
		for range customers {
			r := <-results
			if r.err != nil {
				t.Errorf("a backup after %v: %v", r.at, r.err)
			}
			times = append(times, r.at)
		}
		gone()
		slices.Sort(times)
		busy := w.srv.Refused()[wire.CodeBusy]
		peak := crowd(h.dials, 20*time.Second, down-1, window)
		t.Logf("%d customers: half after %v, all after %v; at most %d connections; %d refusals were busy; the most that came in %v while the service was down were %d of %d; %.2f bytes sent for each needed",
			customers, times[len(times)/2], times[len(times)-1], h.most, busy, window, peak, customers/2, float64(h.sent)/float64(alone*int64(customers)))
		if last := times[len(times)-1]; last > within {
			t.Errorf("the last backup ends %v after the service came back, stated are %v", last, within)
		}
		if h.most > maxOpen {
			t.Errorf("there were %d connections, more than %d", h.most, maxOpen)
		}
		if peak == 0 || peak > customers/2/4 {
			t.Errorf("while the service is down, %d of %d clients come within %v: they are not spread", peak, customers/2, window)
		}
		// Who finds no room waits for it for half a minute, and only then is told to come again, with the same bytes.
		if sent := float64(h.sent) / float64(alone*int64(customers)); sent > again {
			t.Errorf("the herd sends %.2f times what is needed, more than %.1f", sent, again)
		}
		if busy == 0 {
			t.Error("nobody was told busy: this was no herd")
		}
		w.bucket.OnOp(nil)
		for _, i := range []int{0, 1, customers / 2, customers - 1} {
			v := all[i].open()
			if n := len(v.History.Archives); n < 1 {
				t.Fatalf("customer %d has %d archives", i, n)
			}
			all[i].restores(v.History.Archives[len(v.History.Archives)-1], dir)
		}
	})
}

// crowd returns the most that happened within a time of length window, from a time on to another.
func crowd(times []time.Duration, from, to, window time.Duration) (most int) {
	times = slices.Sorted(slices.Values(times))
	first := 0
	for i, at := range times {
		for at-times[first] > window {
			first++
		}
		if times[first] >= from && at < to {
			most = max(most, i-first+1)
		}
	}
	return most
}
