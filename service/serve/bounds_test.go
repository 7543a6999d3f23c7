package serve

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket/sim"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/wire"
)

// TestSmallFrames: each connection keeps memory for its largest frame, so that one frame a connection must not cost
// everybody's memory.
func TestSmallFrames(t *testing.T) {
	inWorld(t, func(w *world) {
		r := w.stranger().raw()
		defer r.Close()
		var h [9]byte
		for {
			if _, err := io.ReadFull(r, h[:]); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, binary.BigEndian.Uint32(h[:4])>>8)
			if _, err := io.ReadFull(r, p); err != nil {
				t.Fatal(err)
			}
			if h[3] != 4 { // SETTINGS
				continue
			}
			for ; len(p) >= 6; p = p[6:] {
				if id, v := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:]); id == 5 && v > maxFrame {
					t.Errorf("the service takes frames of %d bytes", v)
				} else if id == 4 && v > streamBuffer {
					t.Errorf("the service keeps %d bytes of a request unread", v)
				}
			}
			break
		}
	})
}

// TestNoBodyWhereNoneBelongs: what nobody reads would be kept while the request waits.
func TestNoBodyWhereNoneBelongs(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("c", holdfast.RightsAll)
		sid := c.open()
		for _, x := range [][2]string{
			{"GET", wire.PathHello}, {"GET", wire.PathUsage}, {"GET", wire.PathHistory + "?after=0"}, {"GET", strings.Replace(wire.PathVaults, "{owner}", fmt.Sprintf("%064x", 1), 1)},
			{"POST", path(wire.PathClose, sid)},
		} {
			for _, announced := range []bool{true, false} {
				var body io.Reader = bytes.NewReader(make([]byte, 1000))
				if !announced {
					body = io.MultiReader(body)
				}
				r, err := http.NewRequest(x[0], "https://service"+x[1], body)
				w.ok(err, x[1])
				_, err = c.request(r)
				w.want(wire.CodeBadRequest, err, x[1]+" with a body")
			}
			_, err := c.do(x[0], x[1], nil)
			w.ok(err, x[1])
		}
	})
}

// TestListsHaveACeiling: lists of names that are being looked for hold memory while their requests are under way. Two
// vaults that never take their answers cannot keep a third from its own.
func TestListsHaveACeiling(t *testing.T) {
	inWorld(t, func(w *world) {
		good := w.customer("good", holdfast.RightsAll)
		names := make([]holdfast.Name, holdfast.MaxHave)
		for i := range names {
			rand.Read(names[i][:])
		}
		list := wire.AppendNames(nil, names)
		var held []*raw
		for i := range 3 {
			bad := w.customer(fmt.Sprint("bad", i), holdfast.RightsAll)
			for range 10 {
				r := bad.raw()
				// All but the last byte is announced and sent.
				head := []byte{0x83, 0x87, 0x04, byte(len(path(wire.PathFetch, bad.group)))}
				head = append(append(head, path(wire.PathFetch, bad.group)...), 0x01, 1, 's')
				r.frame(1, 4, r.next, head...)
				r.frame(0, 0, r.next, list[:1000]...)
				go io.Copy(io.Discard, r)
				held = append(held, r)
				synctest.Wait()
			}
		}
		if free := w.srv.lists.left(); free >= fetchCost*holdfast.MaxHave || free < 0 {
			t.Fatalf("%d bytes are free", free)
		}
		start := time.Now()
		if _, err := good.fetch(good.group, names...); err != nil || time.Since(start) > cutAge+cutAfter {
			t.Errorf("a fetch beside them: %v after %v", err, time.Since(start))
		}
		for _, r := range held {
			r.Close()
		}
		later(5 * time.Minute)
		w.srv.lobby.mu.Lock()
		waiting := w.srv.lobby.n
		w.srv.lobby.mu.Unlock()
		if free := w.srv.lists.left(); free != listMemory || waiting != 0 {
			t.Errorf("%d bytes are free, %d wait", free, waiting)
		}
	})
}

// TestReadsAreFew: each read of the bucket takes a connection or an open file.
func TestReadsAreFew(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("c", holdfast.RightsAll)
		sid := c.open()
		_, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindChunk, 100)))
		w.ok(err, "upload")
		b, _, err := w.j.Acked().Block(c.vault, c.group, name(1))
		w.ok(err, "look up")
		var now, most atomic.Int64
		gate := make(chan struct{})
		w.bucket.OnOp(func(op sim.Op, key string, _ int) sim.Fault {
			if _, err := segment.ParseKey(key); op == sim.OpGet && err == nil {
				most.Store(max(most.Load(), now.Add(1)))
				<-gate
				now.Add(-1)
			}
			return sim.Fault{}
		})
		var wg sync.WaitGroup
		for range 3 * maxReads {
			wg.Go(func() {
				if r := w.srv.read(w.Context(), []view.Block{b}); r[0].Err != nil {
					t.Error(r[0].Err)
				}
			})
		}
		synctest.Wait()
		if n := now.Load(); n != maxReads {
			t.Errorf("%d reads are under way, want %d", n, maxReads)
		}
		close(gate)
		wg.Wait()
		if most.Load() > maxReads {
			t.Errorf("%d reads at a time", most.Load())
		}
	})
}

// TestCreatedIsBounded: the keys that are remembered because they created a vault are so many at most.
func TestCreatedIsBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range maxCreated - 1 {
			var k [32]byte
			binary.BigEndian.PutUint64(k[:], uint64(i))
			w.srv.created[k] = holdfast.VaultID{1}
		}
		c := w.customer("one more", holdfast.RightsAll) // the last for whom there is room
		// He is a machine by now, and is forgotten for the next. For the one after that, nobody is.
		d := w.stranger()
		w.ok(d.redeem(w.account("d")), "redeem")
		_, err := d.record(wire.PathRecords, d.genesis())
		w.ok(err, "create a vault in the place of "+fmt.Sprint(c.vault))
		e := w.stranger()
		w.ok(e.redeem(w.account("e")), "redeem")
		later(2 * time.Second)
		_, err = e.record(wire.PathRecords, e.genesis())
		w.want(wire.CodeBusy, err, "one vault too many")
		if len(w.srv.created) != maxCreated {
			t.Errorf("%d keys are remembered", len(w.srv.created))
		}
		// Again the same vault is no other.
		_, err = d.record(wire.PathRecords, d.genesis())
		w.ok(err, "the same again")
	})
}

// TestOwnersThatLookAlike: only 8 bytes of an owner key are in memory; what is answered is the vaults of the whole key.
func TestOwnersThatLookAlike(t *testing.T) {
	inWorld(t, func(w *world) {
		a, b := w.customer("a", holdfast.RightsAll), w.customer("b", holdfast.RightsAll)
		ask := func(c *client) string {
			out, err := c.do("GET", strings.Replace(wire.PathVaults, "{owner}", fmt.Sprintf("%x", pub(c.owner)), 1), nil)
			w.ok(err, "vaults")
			return strings.TrimSpace(string(out))
		}
		ask(a)
		for i := range w.srv.owners {
			w.srv.owners[i] = ownerTag(pub(a.owner))
		}
		if got, want := ask(a), fmt.Sprintf(`{"vaults":[%q]}`, a.vault); got != want || len(w.srv.owners) != 2 {
			t.Errorf("%s, want %s", got, want)
		}
		for i := range w.srv.owners {
			w.srv.owners[i] = ownerTag(pub(b.owner))
		}
		if got, want := ask(b), fmt.Sprintf(`{"vaults":[%q]}`, b.vault); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

// TestAskedIsBounded: what is counted in memory of accounts that asked and went away is recorded when it is of many.
func TestAskedIsBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("c", holdfast.RightsAll)
		sid := c.open()
		var all []holdfast.AccountID
		_, err := w.j.Append(w.Context(), func(tx *journal.Tx) error {
			for i := range maxMetered {
				id := holdfast.AccountID{1, byte(i >> 8), byte(i)}
				all = append(all, id)
				w.ok(tx.Record(segment.Account{ID: id, Name: fmt.Sprint("account ", i)}), "account")
			}
			return nil
		})
		w.ok(err, "accounts")
		for _, a := range all {
			w.srv.meter.add(a, tally{sent: 1})
		}
		w.srv.meter.add(holdfast.AccountID{2}, tally{sent: 1}) // who restores waits for nothing, and makes nobody wait
		if n := len(w.srv.meter.lines); n != maxMetered {
			t.Errorf("something is counted of %d accounts", n)
		}
		for _, a := range all {
			w.srv.meter.asked(a, 7)
		}
		_, err = c.have(sid, name(1))
		w.ok(err, "have")
		if n := len(w.srv.meter.lines); n != 0 {
			t.Errorf("something is counted of %d accounts", n)
		}
		later(10 * time.Second)
		for _, a := range all {
			if u, err := w.j.Acked().Usage(a, 0); err != nil || u.Asked != 7 {
				t.Fatalf("account %s asked about %d, %v", a, u.Asked, err)
			}
		}
	})
}

// TestSeriesAreBounded: a series has so many archives at most, and a vault so many series.
func TestSeriesAreBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		store, err := view.OpenMem()
		w.ok(err, "open a view")
		w.j, err = journal.Open(w.Context(), journal.Config{Bucket: w.bucket, Cell: w.id.Cell, Host: [16]byte{1}, LogKey: w.id.LogKey(), Store: store})
		w.ok(err, "open journal")
		w.serve()
		c := w.customer("c", holdfast.RightsAll)
		sid := c.open()
		_, err = c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindArchive, 100)))
		w.ok(err, "upload")
		commit := func(series byte) error {
			r := c.signed(history.TypeCommit, history.Commit{Session: sid, Group: c.group, Root: name(1), Series: holdfast.SeriesID{series}}.Encode())
			_, err := c.record(wire.PathRecords, r)
			if err == nil {
				c.advance(r)
			}
			return err
		}
		w.ok(commit(1), "commit")
		// What follows takes too long to be done: the view is told of it.
		set := func(row []byte, at int, n uint32) {
			old, err := store.Get(row)
			w.ok(err, "read the view")
			binary.BigEndian.PutUint32(old[at:], n)
			l := view.NewLayer(store)
			w.ok(errors.Join(l.Put(row, old), store.Commit(l)), "change the view")
		}
		series := append(append([]byte{'c'}, c.vault[:]...), append([]byte{1}, make([]byte, 15)...)...)
		set(series, 4, maxArchives)
		w.want(wire.CodeTooLarge, commit(1), "an archive too many")
		w.ok(commit(2), "another series")
		set(series, 4, 1)
		w.ok(commit(1), "when there is room")
		if n, of, err := w.j.Acked().Series(c.vault, holdfast.SeriesID{1}); n != 2 || of != 2 || err != nil {
			t.Errorf("%d archives, %d series, %v", n, of, err)
		}
	})
}
