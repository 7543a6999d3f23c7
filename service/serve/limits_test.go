package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/segment"
	"holdfast/wire"
)

// capped returns a customer whose machine may store so much a day.
func (w *world) capped(account string, bytes, blocks uint64) *client {
	w.Helper()
	c := w.stranger()
	w.ok(c.redeem(w.account(account)), "redeem")
	_, err := c.record(wire.PathRecords, c.genesis())
	w.ok(err, "genesis")
	e := history.Enrol{
		SignKey: pub(c.sign), TLSKey: pub(c.tls), Rights: holdfast.RightsAll, Group: c.group, Chunk: history.DefaultChunk,
		DayBytes: bytes, DayBlocks: blocks,
	}
	w.ok(c.ownerSays(history.TypeEnrol, e.Encode()), "enrol")
	return c
}

func (c *client) usage() (u wire.Usage) {
	c.w.Helper()
	b, err := c.do("GET", wire.PathUsage, nil)
	c.w.ok(err, "usage")
	c.w.ok(json.Unmarshal(b, &u), "usage")
	return u
}

// refused returns the refusal in err.
func (w *world) refused(err error) *wire.Error {
	w.Helper()
	var e *wire.Error
	if !errors.As(err, &e) {
		w.Fatalf("%v is no refusal", err)
	}
	return e
}

// TestDailyCap: a machine stores up to its cap, is told what it is and when it may go on, keeps what it stored, and
// goes on the next day. Neither a crash nor another session gives it more.
func TestDailyCap(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.capped("a", 10*holdfast.LeastBilled, 0)
		sid := c.open()
		var frames [][]byte
		for i := range 12 {
			frames = append(frames, frame(name(i), sealed(sid, holdfast.KindChunk, 10)))
		}
		_, err := c.upload(sid, 1, frames[:7]...)
		w.ok(err, "below the cap")
		exceeded := func(err error, what string) {
			w.Helper()
			w.want(wire.CodeCapExceeded, err, what)
			e := w.refused(err)
			midnight := time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)
			if want := (wire.Cap{Bytes: 10 * holdfast.LeastBilled, UsedBytes: 10 * holdfast.LeastBilled, UsedBlocks: 10, Resets: midnight}); e.Cap == nil || *e.Cap != want {
				w.Errorf("%s: %+v, want %+v", what, e.Cap, want)
			}
			for _, said := range []string{"40960 bytes", midnight.Format(time.RFC3339)} {
				if !strings.Contains(e.Message, said) {
					w.Errorf("%s: %q does not say %s", what, e.Message, said)
				}
			}
			if e.RetryAfter != 0 || e.Code.Retryable() {
				w.Errorf("%s: a client would wait for hours", what)
			}
		}
		_, err = c.upload(sid, 2, frames[5:]...) // two are known: they count for nothing
		exceeded(err, "a batch beyond the cap")
		w.j.Flush()
		later(time.Second)
		got, err := c.have(sid, name(6), name(7), name(9), name(10), name(11))
		if err != nil || got != "0101010000" {
			w.Errorf("what was stored of it: %s, %v", got, err)
		}
		w.crash()
		w.start()
		c.connect("h2")
		if u := c.usage(); u.Today == nil || u.Today.UsedBlocks != 10 || u.Blocks != 10 || u.BilledBytes != 10*holdfast.LeastBilled {
			w.Errorf("usage after a crash: %+v, today %+v", u, u.Today)
		}
		sid = c.open()
		_, err = c.upload(sid, 1, frames[5:]...)
		exceeded(err, "after a crash, in another session")
		// Other things go on.
		_, err = c.fetch(c.group, name(1))
		w.ok(err, "fetch")
		_, err = c.upload(sid, 1, frames[:3]...)
		w.ok(err, "what is known")

		later(time.Until(time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)))
		sid = c.open()
		st, err := c.upload(sid, 1, frames[5:]...)
		if err != nil || st.Stored != 2 || st.Known != 5 {
			w.Errorf("the next day: %+v, %v", st, err)
		}
	})
}

// TestLimiter holds the number against one that takes as it pleases, for many parties and random times.
func TestLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 1))
		l := newLimiter(rate{burst: 10, second: 2})
		start, taken := time.Now(), 0.0
		for range 10_000 {
			n := float64(1 + rng.IntN(3))
			wait := l.take(who{key: [32]byte{1}}, n)
			if wait == 0 {
				taken += n
			} else if rng.IntN(2) == 0 {
				time.Sleep(wait + time.Nanosecond)
				if l.take(who{key: [32]byte{1}}, n) != 0 {
					t.Fatal("not even after the time that it said")
				}
				taken += n
			}
			time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
			if most := 10 + 2*time.Since(start).Seconds(); taken > most+1e-6 {
				t.Fatalf("%v were taken, at most %v", taken, most)
			}
		}
		if wait := l.take(who{key: [32]byte{2}}, 1000); wait != 0 || l.take(who{key: [32]byte{2}}, 1) == 0 {
			t.Error("more than the burst must take all of it, once")
		}
	})
}

// TestLimiterCannotBeReset: who is refused and floods the table with others is refused still, and memory is bounded.
func TestLimiterCannotBeReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(rate{burst: 10, second: 0.1})
		mine := who{key: [32]byte{1}}
		l.take(mine, 10)
		for i := range 3 * maxLines {
			l.take(who{vault: holdfast.VaultID{byte(i), byte(i >> 8), byte(i >> 16), 1}}, 1)
			if i%1000 == 0 {
				time.Sleep(time.Second / 2)
			}
		}
		if len(l.lines) > maxLines {
			t.Errorf("%d lines", len(l.lines))
		}
		if l.take(mine, 9) == 0 {
			t.Error("a flood gave a fresh bucket")
		}
		time.Sleep(2 * time.Minute) // all of them are full again
		for i := range maxLines {
			if l.take(who{account: holdfast.AccountID{byte(i), byte(i >> 8), 1}}, 10) != 0 {
				t.Fatalf("newcomer %d of %d has no bucket of his own", i, maxLines)
			}
		}
		if l.take(mine, 10) != 0 || l.take(mine, 1) == 0 {
			t.Error("among those for whom there is no room, the bucket is shared and full once")
		}
	})
}

func TestNetworkOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.77:80": "192.0.2.0/24", "[2001:db8:1:2::3]:443": "2001:db8:1::/48", "[::ffff:192.0.2.9]:1": "192.0.2.0/24",
		"[fe80::1%eth0]:1": "fe80::/48",
	} {
		if got := networkOf(addr); got.String() != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	for _, addr := range []string{"", "pipe", "host:1"} {
		if got := networkOf(addr); got != (netip.Prefix{}) {
			t.Errorf("%q: %s", addr, got)
		}
	}
}

// idle opens n connections from each of the networks that say nothing, and returns how many the service keeps.
func (w *world) idle(n int, from ...net.Addr) (open func() int) {
	var mu sync.Mutex
	kept := 0
	for _, addr := range from {
		for range n {
			c, err := w.dial(w.Context(), addr)
			w.ok(err, "dial")
			mu.Lock()
			kept++
			mu.Unlock()
			go func() {
				io.Copy(io.Discard, c)
				mu.Lock()
				defer mu.Unlock()
				kept--
			}()
		}
		synctest.Wait()
	}
	return func() int {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return kept
	}
}

// TestStrangersConnections: connections that say nothing are bounded, by network and in all, and known machines and
// newcomers get through meanwhile.
func TestStrangersConnections(t *testing.T) {
	inWorld(t, func(w *world) {
		good := w.customer("good", holdfast.RightsAll)
		home := w.home()
		one := w.idle(2*strangersOfOne, home)
		if n := one(); n != strangersOfOne {
			w.Errorf("%d connections of one network are open", n)
		}
		var homes []net.Addr
		for range 10 {
			homes = append(homes, w.home())
		}
		all := w.idle(strangersOfOne, homes...)
		if n := one() + all(); n != maxStrangers {
			w.Errorf("%d connections of strangers are open", n)
		}
		good.hello()
		fresh := *good
		fresh.connect("h2")
		fresh.hello()
		w.stranger().hello()
		later(headerPatience + time.Second)
		if n := one() + all(); n != 0 {
			w.Errorf("%d connections that never spoke are open", n)
		}
	})
}

// TestKnownConnections: one party has its share of the connections, and loses some of them to others when there is
// no more room.
func TestKnownConnections(t *testing.T) {
	cs := newConnections(nil)
	dial := func(p party) (*conn, error) {
		a, _ := net.Pipe()
		c := &conn{Conn: a, in: cs, used: time.Now()}
		if !cs.admit(c) {
			t.Fatal("a stranger is refused")
		}
		err := c.belongs(p)
		if err != nil {
			c.Close()
		}
		return c, err
	}
	var parties []party
	for i := range maxKnown/connsOfOne + 1 {
		parties = append(parties, party{vault: holdfast.VaultID{byte(i + 1)}})
	}
	for _, p := range parties[:len(parties)-1] {
		for range connsOfOne {
			if _, err := dial(p); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := dial(p); wire.CodeOf(err) != wire.CodeBusy {
			t.Errorf("one more than its share: %v", err)
		}
	}
	last := parties[len(parties)-1]
	n := 0
	for ; ; n++ {
		if _, err := dial(last); err != nil {
			break
		}
	}
	if n < maxKnown/len(parties)-1 || cs.known.size() != maxKnown || len(cs.strangers) != 0 {
		t.Errorf("the last party has %d connections of %d; %d strangers", n, cs.known.size(), len(cs.strangers))
	}
	for _, c := range cs.known {
		for x := range c {
			x.Close()
			x.Close()
		}
	}
	if len(cs.known) != 0 {
		t.Errorf("%d connections are left", cs.known.size())
	}
}

// TestFetchesWaitForMemory: two vaults that take no answer hold all of the memory for answers. Others get some of
// it, and are told busy when there is none.
func TestFetchesWaitForMemory(t *testing.T) {
	inWorld(t, func(w *world) {
		const size = 5 << 20
		stored := func(name string) *client {
			c := w.customer(name, holdfast.RightsAll)
			sid := c.open()
			for k := 1; k <= 4; k++ {
				_, err := c.upload(sid, k, frame(holdfast.Name{byte(k)}, sealed(sid, holdfast.KindChunk, size)))
				w.ok(err, "upload")
			}
			return c
		}
		good := stored("good")
		var held []*raw
		for _, c := range []*client{stored("bad"), stored("worse")} {
			for range 4 {
				r := c.raw()
				r.post(path(wire.PathFetch, c.group), wire.AppendNames(nil, []holdfast.Name{{1}, {2}, {3}, {4}}))
				held = append(held, r)
				go io.Copy(io.Discard, r)
				synctest.Wait()
			}
		}
		if free := w.srv.fetches.left(); free >= size {
			t.Fatalf("%d bytes are free", free)
		}
		start := time.Now()
		got, err := good.fetch(good.group, holdfast.Name{1})
		if waited := time.Since(start); err != nil || len(got) != 1 || len(got[0].Sealed) < size || waited < cutAfter || waited > cutAge+cutAgain {
			w.Errorf("fetch while two vaults hold all memory: %v after %v", err, waited)
		}
		for _, r := range held {
			r.Close()
		}
		later(time.Minute)
		if w.srv.fetches.left() != fetchMemory {
			t.Errorf("%d bytes are free", w.srv.fetches.left())
		}
		// And when it does not come, they are told so.
		var give []func()
		for i := range fetchMemory / cutFloor {
			release, err := w.srv.fetches.acquire(w.Context(), holdfast.VaultID{byte(i)}, cutFloor, func() { t.Error("who holds little was cut") })
			w.ok(err, "memory")
			give = append(give, release)
		}
		for what, ask := range map[string]func() error{
			"fetch":   func() error { _, err := good.fetch(good.group, holdfast.Name{1}); return err },
			"history": func() error { _, err := good.do("GET", wire.PathHistory+"?after=0", nil); return err },
		} {
			start := time.Now()
			err := ask()
			w.want(wire.CodeBusy, err, what+" without memory")
			if w.refused(err).RetryAfter == 0 || time.Since(start) != memoryPatience {
				t.Errorf("%s: %v after %v", what, err, time.Since(start))
			}
		}
		for _, release := range give {
			release()
		}
	})
}

// post asks for path with a body, and returns its stream.
func (r *raw) post(path string, body []byte) uint32 {
	head := []byte{0x83, 0x87, 0x04, byte(len(path))} // POST, https
	head = append(head, path...)
	head = append(head, 0x01, 1, 's')
	s := r.next
	r.next += 2
	r.frame(1, 4, s, head...)
	r.frame(0, 1, s, body...)
	return s
}

// TestLobby: uploads that wait for a turn which never comes are few, whoever sends them.
func TestLobby(t *testing.T) {
	inWorld(t, func(w *world) {
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(w.Context())
		waiting := func() int {
			w.srv.lobby.mu.Lock()
			defer w.srv.lobby.mu.Unlock()
			return w.srv.lobby.n
		}
		for i := range maxLobby/lobbyShare + 1 {
			c := w.customer(fmt.Sprint(i), holdfast.RightsAll)
			for range 2 {
				sid := c.open()
				for k := 2; k <= 2+lobbyShare/2; k++ { // number 1 never comes
					wg.Go(func() {
						r, _ := http.NewRequestWithContext(ctx, "POST", "https://service"+path(wire.PathBlocks, sid)+fmt.Sprintf("?seq=%d", k), bytes.NewReader(make([]byte, 1000)))
						c.request(r)
					})
				}
			}
			synctest.Wait()
			if n, most := waiting(), min(maxLobby, (i+1)*lobbyShare); n != most {
				t.Errorf("%d uploads wait, want %d", n, most)
			}
		}
		cancel()
		wg.Wait()
		synctest.Wait()
		if waiting() != 0 || len(w.srv.lobby.in) != 0 {
			t.Errorf("%d uploads wait, %v", waiting(), w.srv.lobby.in)
		}
	})
}

// TestPieces: a batch is appended in pieces that are small, in order, and nothing of it is left out.
func TestPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var batch []item
		for i := range rng.IntN(3000) {
			it := item{name: name(i)}
			if rng.IntN(50) == 0 {
				it.header.Links = make([]holdfast.Name, rng.IntN(holdfast.MaxLinks+1))
			}
			batch = append(batch, it)
		}
		next := 0
		for rest := batch; len(rest) > 0; {
			var piece []item
			piece, rest = cutPiece(rest)
			links := 0
			for _, it := range piece {
				if it.name != name(next) {
					t.Fatal("out of order")
				}
				next++
				links += len(it.header.Links)
			}
			if len(piece) == 0 || len(piece) > pieceBlocks || links > pieceLinks {
				t.Fatalf("a piece of %d blocks with %d links", len(piece), links)
			}
		}
		if next != len(batch) {
			t.Fatalf("%d of %d blocks", next, len(batch))
		}
	}
}

// asked returns the records of presence questions in the journal.
func (w *world) meteredRecords() (all []segment.Metered) {
	w.Helper()
	list, err := w.bucket.List(w.Context(), segment.LogPrefix(w.id.Cell), "", 1000)
	w.ok(err, "list segments")
	for _, o := range list {
		key, err := segment.ParseKey(o.Key)
		w.ok(err, "parse key")
		raw, err := w.bucket.Get(w.Context(), o.Key, o.Size-int64(key.Trailer), int64(key.Trailer))
		w.ok(err, "read segment")
		tr, err := key.Parse(raw, o.Size)
		w.ok(err, "parse segment")
		for _, r := range tr.Records {
			if a, ok := r.Record.(segment.Metered); ok {
				all = append(all, a)
			}
		}
	}
	return all
}

// TestQuestionsAreMetered: what an account asked is known at once, written down seldom, and known after an end and
// a crash.
func TestQuestionsAreMetered(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		ask := func(n int) {
			w.Helper()
			_, err := c.have(sid, make([]holdfast.Name, n)...)
			w.ok(err, "have")
		}
		asked := func(want uint64, when string) {
			w.Helper()
			if u := c.usage(); u.Asked != want {
				w.Errorf("%s: %d were asked, want %d", when, u.Asked, want)
			}
		}
		for range 50 {
			ask(10)
			later(time.Second)
		}
		asked(500, "before anything is written")
		if n := len(w.meteredRecords()); n != 0 {
			w.Errorf("%d records within a minute", n)
		}
		c.commits(sid, w.root(c, sid), 1) // with which it is written
		ask(3)
		asked(503, "after a commit")
		if all := w.meteredRecords(); len(all) != 1 || all[0].Names != 500 {
			w.Errorf("%+v", all)
		}
		for range 300 { // who writes nothing is written down once a minute
			ask(1)
			later(time.Second)
		}
		later(10 * time.Second)
		if n := len(w.meteredRecords()); n < 5 || n > 6 {
			w.Errorf("%d records of five minutes", n)
		}
		_, err := c.do("POST", path(wire.PathClose, sid), nil)
		w.ok(err, "close")
		later(10 * time.Second)
		w.crash()
		w.start()
		c.connect("h2")
		asked(803, "after a crash")
		sid = c.open()
		ask(7)
		w.stop()
		w.start()
		c.connect("h2")
		asked(810, "after a restart")
	})
}

// root has c store a root block, and returns its name.
func (w *world) root(c *client, sid holdfast.SessionID) holdfast.Name {
	w.Helper()
	_, err := c.upload(sid, 1, frame(name(200), sealed(sid, holdfast.KindArchive, 10)))
	w.ok(err, "upload root")
	return name(200)
}
