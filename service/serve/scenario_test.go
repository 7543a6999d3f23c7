package serve

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/wire"
)

// inHostileWorld runs fn with an honest customer, who has to be served as ever when it is over, and a hostile one.
func inHostileWorld(t *testing.T, fn func(w *world, good, bad *client)) {
	inWorld(t, func(w *world) {
		good, bad := w.customer("good", holdfast.RightsAll), w.customer("bad", holdfast.RightsAll)
		w.serves(good)
		fn(w, good, bad)
		w.serves(good)
	})
}

// serves has c make an archive and read it back, and expects that nothing is refused and that it takes seconds.
func (w *world) serves(c *client) {
	w.Helper()
	start := time.Now()
	sid := c.open()
	c.n++
	chunk, root := holdfast.Name{1, byte(c.n)}, holdfast.Name{2, byte(c.n)}
	b := sealed(sid, holdfast.KindChunk, 1000)
	if got, err := c.have(sid, chunk, root); err != nil || got != "0000" {
		w.Errorf("an honest question: %s, %v", got, err)
	}
	_, err := c.upload(sid, 1, frame(chunk, b), frame(root, sealed(sid, holdfast.KindArchive, 10, chunk)))
	w.ok(err, "an honest upload")
	c.commits(sid, root, 1)
	got, err := c.fetch(c.group, chunk)
	if err != nil || len(got) != 1 || !bytes.Equal(got[0].Sealed, b) {
		w.Errorf("an honest fetch: %v", err)
	}
	_, err = c.do("POST", path(wire.PathClose, sid), nil)
	w.ok(err, "an honest close")
	if took := time.Since(start); took > 5*time.Second {
		w.Errorf("an honest backup took %v", took)
	}
}

// written returns how many bytes the service has in its bucket, once what is under way is there.
func (w *world) written() int64 {
	later(10 * time.Second)
	synctest.Wait()
	return w.bucket.Store().Bytes()
}

// Links to what is not there, and cycles: each is refused, names what is missing, and stores nothing.
func TestScenarioS11HostileClientLinks(t *testing.T) {
	inHostileWorld(t, func(w *world, good, bad *client) {
		gs := good.open()
		_, err := good.upload(gs, 1, frame(name(50), sealed(gs, holdfast.KindChunk, 10)))
		w.ok(err, "upload")
		sid := bad.open()
		link := func(n int, links ...int) []byte {
			var to []holdfast.Name
			for _, l := range links {
				to = append(to, name(l))
			}
			return frame(name(n), sealed(sid, holdfast.KindTree, 10, to...))
		}
		before := w.written()
		for what, x := range map[string]struct {
			frames  [][]byte
			missing []int
		}{
			"a block that was never there":     {[][]byte{link(1, 99)}, []int{99}},
			"a block of another vault":         {[][]byte{link(1, 50)}, []int{50}},
			"itself":                           {[][]byte{link(1, 1)}, []int{1}},
			"a cycle of two":                   {[][]byte{link(1, 2), link(2, 1)}, []int{2}},
			"a cycle of two, the other way":    {[][]byte{link(2, 1), link(1, 2)}, []int{1}},
			"a cycle of three through a chunk": {[][]byte{frame(name(3), sealed(sid, holdfast.KindChunk, 1)), link(4, 3, 5), link(5, 4)}, []int{5}},
		} {
			_, err := bad.upload(sid, 1, x.frames...)
			w.want(wire.CodeMissing, err, what)
			var missing []string
			for _, m := range x.missing {
				missing = append(missing, name(m).String())
			}
			if e := w.refused(err); fmt.Sprint(e.Missing) != fmt.Sprint(missing) {
				w.Errorf("%s: missing %v, want %v", what, e.Missing, missing)
			}
		}
		r := bad.commitRecord(sid, name(1))
		_, err = bad.record(wire.PathRecords, r)
		w.want(wire.CodeMissing, err, "an archive over nothing")
		if got, err := bad.have(sid, name(1), name(2), name(3), name(4), name(5), name(50)); err != nil || got != strings.Repeat("00", 6) {
			w.Errorf("after all of that: %s, %v", got, err)
		}
		if grew := w.written() - before; grew > 1000 {
			w.Errorf("refused blocks cost %d bytes", grew)
		}
		if u := bad.usage(); u.Blocks != 0 {
			w.Errorf("%+v", u)
		}
	})
}

// Names that do not match are not the service's to find. Whoever sends them reaches his own group only, pays, and
// cannot replace what is there.
func TestScenarioS11HostileClientNames(t *testing.T) {
	inHostileWorld(t, func(w *world, good, bad *client) {
		gs, sid := good.open(), bad.open()
		real := sealed(gs, holdfast.KindChunk, 100)
		garbage := func() []byte { return frame(name(1), sealed(sid, holdfast.KindChunk, 100)) }
		_, err := bad.upload(sid, 1, garbage()) // before anybody else
		w.ok(err, "garbage")
		if got, err := good.have(gs, name(1)); err != nil || got != "00" {
			w.Errorf("another vault's garbage is taken for the block: %s, %v", got, err)
		}
		_, err = good.upload(gs, 1, frame(name(1), real))
		w.ok(err, "upload")
		st, err := bad.upload(sid, 2, garbage())
		if err != nil || st != (wire.Stored{Known: 1}) {
			w.Errorf("garbage again: %+v, %v", st, err)
		}
		// Under the group of another vault there is nothing of it.
		if got, err := bad.fetch(holdfast.GroupID{8}, name(1)); err != nil || got[0].Status != wire.FrameAbsent {
			w.Errorf("%+v, %v", got, err)
		}
		if got, err := good.fetch(good.group, name(1)); err != nil || !bytes.Equal(got[0].Sealed, real) {
			w.Errorf("the block came back otherwise: %v", err)
		}
		if u := bad.usage(); u.Blocks != 1 || u.BilledBytes != holdfast.LeastBilled {
			w.Errorf("%+v", u)
		}
	})
}

// Tiny blocks, many of them: each is billed as LeastBilled, costs the service far less than that, and is stopped
// by the daily cap to the block.
func TestScenarioS11HostileClientTinyBlocks(t *testing.T) {
	const n, most = 12_000, 10_000
	inHostileWorld(t, func(w *world, good, bad *client) {
		flood := func(c *client) (wire.Stored, error) {
			sid := c.open()
			tiny := sealed(sid, holdfast.KindChunk, 0)
			var frames [][]byte
			for i := range n {
				var x holdfast.Name
				binary.BigEndian.PutUint32(x[:], uint32(i))
				frames = append(frames, frame(x, tiny))
			}
			return c.upload(sid, 1, frames...)
		}
		before := w.written()
		st, err := flood(bad)
		if err != nil || st.Stored != n {
			w.Errorf("%+v, %v", st, err)
		}
		u := bad.usage()
		if u.Blocks != n || u.BilledBytes != n*holdfast.LeastBilled || u.StoredBytes >= n*100 {
			w.Errorf("%+v", u)
		}
		if each := (w.written() - before) / n; each > 150 {
			w.Errorf("a tiny block costs %d bytes in the journal", each)
		}
		_, err = flood(w.capped("capped", 0, most))
		w.want(wire.CodeCapExceeded, err, "tiny blocks beyond the cap")
		if e := w.refused(err); e.Cap == nil || e.Cap.UsedBlocks != most {
			w.Errorf("%+v", e.Cap)
		}
	})
}

// Questions without end: refused after the burst, counted to the name, and of no consequence to others.
func TestScenarioS11HostileClientQuestions(t *testing.T) {
	inHostileWorld(t, func(w *world, good, bad *client) {
		// Scaled, and so slow that what passes of time makes no difference.
		w.srv.limits.keyNames.rate = rate{burst: 3 * holdfast.MaxHave, second: 500}
		w.srv.limits.vaultNames.rate = rate{burst: 5 * holdfast.MaxHave, second: 500}
		ask := func(c *client, sid holdfast.SessionID) error {
			_, err := c.have(sid, make([]holdfast.Name, holdfast.MaxHave)...)
			return err
		}
		flood := func(c *client, most int) {
			w.Helper()
			sid, n := c.open(), 0
			var err error
			for ; err == nil && n < 10; n++ {
				err = ask(c, sid)
			}
			w.want(wire.CodeBusy, err, "questions without end")
			e := w.refused(err)
			if n != most+1 || e.RetryAfter < 5 || e.RetryAfter > 9 {
				w.Errorf("after %d answers: %+v", n-1, e)
			}
			w.serves(good)
		}
		flood(bad, 3)
		other := bad.second(holdfast.RightsAll)
		flood(other, 2) // the vault has its limit, too
		if u := bad.usage(); u.Asked != 5*holdfast.MaxHave {
			w.Errorf("%d were asked", u.Asked)
		}
		w.crash() // the minute is over before
		w.start()
		bad.connect("h2")
		good.connect("h2")
		if u := bad.usage(); u.Asked < 3*holdfast.MaxHave {
			w.Errorf("after a crash %d were asked", u.Asked)
		}
		w.ok(ask(bad, bad.open()), "a question to the next process")
	})
}

// Records without end cost the journal what is documented, and no more.
func TestScenarioS11HostileClientRecords(t *testing.T) {
	inHostileWorld(t, func(w *world, good, bad *client) {
		w.srv.limits.recordBytes.burst = 40_000 // scaled
		before, records := w.written(), bad.n
		start := time.Now()
		n := 0
		for {
			r, _ := bad.openRecord()
			_, err := bad.record(wire.PathSession, r)
			if err == nil {
				bad.advance(r)
				n++
				continue
			}
			w.want(wire.CodeBusy, err, "one record more")
			e := w.refused(err)
			if e.RetryAfter < 1 {
				w.Errorf("%+v", e)
			}
			w.serves(good)
			if time.Since(start) > 2*time.Minute {
				break
			}
			later(time.Duration(e.RetryAfter) * time.Second)
		}
		took := time.Since(start)
		most := 40_000 + int64(took.Seconds()*recordBytes.second)
		if grew := w.written() - before; grew > most*3/2 || n < 20 {
			w.Errorf("%d records took %d bytes in %v, at most %d", n, grew, took, most)
		}
		// What is said by the way is not forgotten: it is all in his history, and only there.
		if h := bad.hello(); h.N != records+uint64(n) {
			w.Errorf("%d records, %d are his", h.N, n)
		}
		if n := w.srv.Sessions(); n > maxPerKey {
			w.Errorf("%d sessions are open", n)
		}
		_, err := bad.do("POST", wire.PathRecords, make([]byte, holdfast.MaxRecord+200))
		w.want(wire.CodeTooLarge, err, "a record without end")
	})
}

// Sizes that lie are refused with what is wrong, and cost no more memory than the bytes that came.
func TestScenarioS11HostileClientSizes(t *testing.T) {
	inHostileWorld(t, func(w *world, good, bad *client) {
		sid := bad.open()
		blocks := path(wire.PathBlocks, sid) + "?seq=1"
		lie := func(at int, v uint32) []byte {
			f := frame(name(1), sealed(sid, holdfast.KindTree, 100))
			binary.BigEndian.PutUint32(f[at:], v)
			return f
		}
		record := func(length uint32) []byte {
			r, _ := bad.openRecord()
			b := r.Append(nil)
			binary.BigEndian.PutUint32(b, length)
			return b
		}
		const frameLen, linkCount = 33, wire.FrameOverhead + 31
		for what, x := range map[string]struct {
			path string
			body []byte
			want wire.Code
		}{
			"a frame longer than the body":  {blocks, lie(frameLen, 5<<20), wire.CodeBadRequest},
			"a frame beyond the limit":      {blocks, lie(frameLen, holdfast.MaxBlock+1), wire.CodeBadRequest},
			"a frame of 4 GiB":              {blocks, lie(frameLen, 1<<32-1), wire.CodeBadRequest},
			"a frame of nothing":            {blocks, lie(frameLen, 0), wire.CodeBadRequest},
			"a frame shorter than the body": {blocks, lie(frameLen, 60), wire.CodeBadRequest},
			"more links than bytes":         {blocks, lie(linkCount, holdfast.MaxLinks), wire.CodeBadRequest},
			"4 G links":                     {blocks, lie(linkCount, 1<<32-1), wire.CodeBadRequest},
			"a record of 4 GiB":             {wire.PathSession, record(1<<32 - 1), wire.CodeBadRequest},
			"a record of nothing":           {wire.PathSession, record(0), wire.CodeBadRequest},
			"half a name":                   {path(wire.PathHave, sid), make([]byte, 33), wire.CodeBadRequest},
			"no name":                       {path(wire.PathHave, sid), nil, wire.CodeBadRequest},
			"names beyond the limit":        {path(wire.PathHave, sid), make([]byte, 32*(holdfast.MaxHave+1)), wire.CodeTooLarge},
			"JSON beyond the limit":         {wire.PathRedeem, bytes.Repeat([]byte("["), wire.MaxJSON+1), wire.CodeTooLarge},
			"JSON of nothing but brackets":  {wire.PathRedeem, bytes.Repeat([]byte("["), wire.MaxJSON), wire.CodeBadRequest},
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := bad.do("POST", x.path, x.body)
			runtime.ReadMemStats(&after)
			w.want(x.want, err, what)
			if took := int64(after.TotalAlloc - before.TotalAlloc); took > 1<<20+8*int64(len(x.body)) {
				w.Errorf("%s: %d bytes were allocated for a body of %d", what, took, len(x.body))
			}
		}
		// A length that promises more than comes.
		const patience = slowGrace + holdfast.MaxBatch*time.Second/slowRate
		rd, wr := io.Pipe()
		r, _ := http.NewRequest("POST", "https://service"+blocks, rd)
		r.ContentLength = holdfast.MaxBatch
		go wr.Write(lie(0, 0)[:50])
		start := time.Now()
		_, err := bad.request(r)
		wr.Close()
		w.want(wire.CodeBusy, err, "a body that ends early, by HTTP/2")
		if took := time.Since(start); took > patience {
			w.Errorf("it was waited for for %v by HTTP/2", took)
		}
		line := bad.dial("http/1.1")
		fmt.Fprintf(line, "POST %s HTTP/1.1\r\nHost: s\r\nContent-Length: %d\r\n\r\nonly this", blocks, holdfast.MaxBatch)
		start = time.Now()
		answer, _ := io.ReadAll(line)
		line.NetConn().Close()
		if !bytes.Contains(answer, []byte(` 503 `)) || !bytes.Contains(answer, []byte(`"code":"busy"`)) {
			w.Errorf("a body that ends early, by HTTP/1.1: %q", answer)
		}
		if took := time.Since(start); took > patience+slowGrace+time.Second {
			w.Errorf("it was waited for for %v by HTTP/1.1", took)
		}
		if free := w.srv.uploads.left(); free != uploadMemory {
			w.Errorf("%d bytes are free", free)
		}
		_, err = bad.do("POST", blocks+"&flush=1", frame(name(1), sealed(sid, holdfast.KindChunk, 10)))
		w.ok(err, "an honest batch in the same session")
	})
}

// A head without end is cut off early, and a large one refused, by both kinds of HTTP.
func TestScenarioS11HostileClientHeaders(t *testing.T) {
	inHostileWorld(t, func(w *world, good, bad *client) {
		// By hand, so that nothing but the service stops it: HTTP/2 continuations, and HTTP/1 lines.
		raw := bad.raw()
		sent := endless(raw, func() []byte {
			h := append(binary.BigEndian.AppendUint32(nil, 16000<<8|9), 0, 0, 0, 0, 1)
			if raw.next == 1 {
				raw.next, h[3] = 3, 1
			}
			return append(h, bytes.Repeat([]byte{0x00, 1, 'x', 1, 'y'}, 3200)...)
		})
		if sent > 4<<20 {
			w.Errorf("HTTP/2: %d bytes of a head were taken", sent)
		}
		line := bad.dial("http/1.1")
		line.Write([]byte("GET /v1/hello HTTP/1.1\r\nHost: s\r\n"))
		sent = endless(line, func() []byte { return []byte("X: " + strings.Repeat("y", 1000) + "\r\n") })
		if sent > 4*maxHeader {
			w.Errorf("HTTP/1.1: %d bytes of a head were taken", sent)
		}
		line = bad.dial("http/1.1")
		go fmt.Fprintf(line, "GET /v1/hello HTTP/1.1\r\nHost: s\r\nX: %s\r\n\r\n", strings.Repeat("y", 2*maxHeader))
		answer := make([]byte, 12)
		if _, err := io.ReadFull(line, answer); err != nil || string(answer) != "HTTP/1.1 431" {
			w.Errorf("a head of %d bytes: %q, %v", 2*maxHeader, answer, err)
		}
		line.NetConn().Close()
	})
}

// endless writes parts to c until that fails, and returns how many bytes were taken.
func endless(c net.Conn, part func() []byte) (sent int) {
	defer c.Close()
	go io.Copy(io.Discard, c)
	c.SetWriteDeadline(time.Now().Add(time.Hour))
	for sent < 64<<20 {
		n, err := c.Write(part())
		sent += n
		if err != nil {
			break
		}
	}
	return sent
}

// Strangers without end: those of one network are told to wait, those of others and known machines are served, and
// guessing tokens and owners is slower still. None of it reaches the journal.
func TestScenarioS11HostileClientStrangers(t *testing.T) {
	inHostileWorld(t, func(w *world, good, bad *client) {
		before := w.written()
		one := w.stranger()
		until := func(what string, do func(*client) error, answered wire.Code, most float64) {
			w.Helper()
			n := 0
			var err error
			for ; n < 1000; n++ {
				c := w.stranger() // a key costs nothing
				c.home = one.home
				err = do(c)
				c.http.CloseIdleConnections()
				if wire.CodeOf(err) != answered {
					break
				}
			}
			w.want(wire.CodeBusy, err, what)
			if e := w.refused(err); float64(n) != most || e.RetryAfter < 1 {
				w.Errorf("%s: refused after %d: %+v", what, n, e)
			}
			other := w.stranger()
			if err := do(other); wire.CodeOf(err) != answered {
				w.Errorf("%s, from elsewhere: %v", what, err)
			}
			good.home, one.home = one.home, good.home // a known machine from the same place
			good.connect("h2")
			w.serves(good)
			good.home, one.home = one.home, good.home
			later(time.Minute)
		}
		hello := func(c *client) error { _, err := c.do("GET", wire.PathHello, nil); return err }
		until("hello", hello, "", strangerRequests.burst)
		until("guessing tokens", func(c *client) error { return c.redeem([32]byte{1}) }, wire.CodeTokenUnknown, guesses.burst)
		until("looking for owners", func(c *client) error {
			_, err := c.do("GET", strings.Replace(wire.PathVaults, "{owner}", strings.Repeat("0", 64), 1), nil)
			return err
		}, "", guesses.burst)
		honest := int64(3 * 20_000) // what serves writes
		if grew := w.written() - before; grew > honest {
			w.Errorf("strangers made the journal grow by %d bytes", grew)
		}
	})
}

// A key that was revoked is a stranger's: whoever stole it takes nothing from the vault's share of anything.
func TestScenarioS11HostileClientRevoked(t *testing.T) {
	inHostileWorld(t, func(w *world, good, bad *client) {
		thief := good.second(holdfast.RightsAll)
		thief.home = w.home()
		thief.connect("h2")
		thief.hello()
		w.ok(good.ownerSays(history.TypeRevoke, history.Revoke{Signer: signer(thief), Since: time.Now().UnixNano()}.Encode()), "revoke")
		n := 0
		var err error
		for ; n < 1000 && wire.CodeOf(err) != wire.CodeBusy; n++ {
			_, err = thief.do("GET", wire.PathUsage, nil)
			if code := wire.CodeOf(err); code != wire.CodeRevoked && code != wire.CodeBusy {
				w.Fatalf("%v", err)
			}
		}
		if n != int(strangerRequests.burst)+1 {
			w.Errorf("busy after %d requests", n)
		}
		w.srv.limits.vaultRequests.mu.Lock()
		b := w.srv.limits.vaultRequests.lines[who{vault: good.vault}]
		used := vaultRequests.burst - b.level
		w.srv.limits.vaultRequests.mu.Unlock()
		if used > 50 {
			w.Errorf("the vault paid for %v requests", used)
		}
	})
}

// S12: a machine's clock says the year 2500 in everything that it signs. The service's stamps say when it was, so that
// the keep-rules see an archive of today, and the one after it is newer.
func TestScenarioS12FutureClockThroughTheService(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		root := w.root(c, sid)
		future := time.Date(2500, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano() - 1<<40
		commit := func(clock int64) history.Entry {
			r := history.Sign(history.Body{
				Type: history.TypeCommit, Vault: c.vault, Seq: c.chain.Seq, Prev: c.chain.Prev, Time: clock,
				Fields: history.Commit{Session: sid, Group: c.group, Root: root, Series: holdfast.SeriesID{1}}.Encode(),
			}, c.sign, c.hist)
			e, err := c.record(wire.PathRecords, r)
			w.ok(err, "commit")
			c.advance(r)
			if off := time.Since(time.Unix(0, e.Time)).Abs(); off > time.Minute {
				w.Errorf("stamped %v away from now", off)
			}
			later(time.Hour)
			return e
		}
		commit(time.Now().UnixNano())
		odd := commit(future)
		last := commit(time.Now().UnixNano())
		w.ok(c.ownerSays(history.TypePolicy, history.Policy{Series: holdfast.SeriesID{1}, Last: 1}.Encode()), "policy")
		v, ok, err := w.j.Acked().Archives(c.vault, 0)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		expire := v.Expirable(time.Now().Add(40 * 24 * time.Hour).UnixNano())
		var gone []holdfast.RecordID
		for _, x := range expire {
			gone = append(gone, x)
		}
		if len(gone) != 2 {
			t.Fatalf("%d archives expire, want all but the newest", len(gone))
		}
		for _, id := range gone {
			if id == last.Record.ID() {
				t.Error("the archive of the future displaced the newest")
			}
		}
		if odd.Time >= last.Time {
			t.Errorf("%d is not before %d", odd.Time, last.Time)
		}
	})
}
