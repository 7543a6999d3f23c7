package serve

import (
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/wire"
)

// raw is an HTTP/2 connection by hand, for what no library does.
type raw struct {
	w *world
	*tls.Conn
	next uint32 // stream
}

// dial makes a TLS connection with c's key.
func (c *client) dial(proto string) *tls.Conn {
	c.w.Helper()
	conn, err := c.w.dial(c.w.Context(), c.home)
	if err != nil {
		c.w.Fatal(err)
	}
	cfg := wire.ClientConfig(c.tls, pub(c.w.id.TLSKey()))
	cfg.NextProtos = []string{proto}
	return tls.Client(conn, cfg)
}

// raw connects with c's key. The service may send the answers' heads, but not one byte of a body.
func (c *client) raw() *raw {
	c.w.Helper()
	r := &raw{c.w, c.dial("h2"), 1}
	r.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	r.frame(4, 0, 0, 0, 4, 0, 0, 0, 0) // SETTINGS: initial window 0
	return r
}

func (r *raw) frame(typ, flags byte, stream uint32, payload ...byte) {
	h := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(typ))
	h = binary.BigEndian.AppendUint32(append(h, flags), stream)
	if _, err := r.Write(append(h, payload...)); err != nil {
		r.w.Fatal(err)
	}
}

// get asks for path, and returns its stream.
func (r *raw) get(path string) uint32 {
	head := []byte{0x82, 0x87, 0x04, byte(len(path))} // GET, https, a path without Huffman code
	head = append(head, path...)
	head = append(head, 0x01, 1, 's') // authority
	s := r.next
	r.next += 2
	r.frame(1, 5, s, head...) // HEADERS, the end of headers and of the stream
	return s
}

// reset waits until the service gives stream up.
func (r *raw) reset(stream uint32, patience time.Duration) error {
	r.SetReadDeadline(time.Now().Add(patience))
	for {
		var h [9]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return err
		}
		p := make([]byte, binary.BigEndian.Uint32(h[:4])>>8)
		if _, err := io.ReadFull(r, p); err != nil {
			return err
		}
		if h[3] == 3 && binary.BigEndian.Uint32(h[5:]) == stream {
			return nil
		}
		if h[3] == 0 && len(p) > 0 {
			return fmt.Errorf("%d bytes in a window of none", len(p))
		}
	}
}

// TestAnswerThatNobodyTakes asks and gives no window for the answer, which costs a stranger nothing and the
// service a goroutine, a buffer and a connection.
func TestAnswerThatNobodyTakes(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("ada", 7)
		for _, x := range []struct {
			c    *client
			path string
		}{{w.stranger(), wire.PathHello}, {w.stranger(), "/v1/nothing"}, {c, wire.PathUsage}, {c, wire.PathHistory + "?after=0"}} {
			r := x.c.raw()
			if err := r.reset(r.get(x.path), 2*time.Minute); err != nil {
				t.Errorf("GET %s: the answer still waits: %v", x.path, err)
			}
			r.Close()
		}
	})
}

// TestRequestsAreBounded holds as many requests as connections allow, and expects that others are served.
func TestRequestsAreBounded(t *testing.T) {
	inWorld(t, func(w *world) {
		good := w.customer("good", holdfast.RightsAll)
		bad := w.customer("bad", holdfast.RightsAll)
		for _, x := range []struct {
			who   string
			by    func() *client
			share int
		}{{"strangers", w.stranger, aliens}, {"one vault", func() *client { return bad }, partyRequests}} {
			var held []*raw
			for range 2 * x.share / 16 {
				r := x.by().raw()
				for range 32 {
					r.get(wire.PathHello)
				}
				go io.Copy(io.Discard, r) // refusals do not wait
				held = append(held, r)
			}
			synctest.Wait()
			w.srv.mu.Lock()
			n := w.srv.underWay
			w.srv.mu.Unlock()
			if n != 2*x.share {
				t.Errorf("%s: %d requests are under way", x.who, n)
			}
			good.hello()
			c := x.by()
			if x.who == "one vault" {
				if _, err := c.do("GET", wire.PathHello, nil); err == nil {
					t.Errorf("%s: one more is served", x.who)
				}
			}
			later(slowGrace + time.Second)
			synctest.Wait()
			c.hello()
			for _, r := range held {
				r.Close()
			}
		}
		if w.srv.underWay != 0 || len(w.srv.requests) != 0 {
			t.Errorf("%d requests are under way, %v", w.srv.underWay, w.srv.requests)
		}
	})
}

// TestSessionsOfOneVault: a customer enrols machine after machine and opens all sessions that there are.
func TestSessionsOfOneVault(t *testing.T) {
	inWorld(t, func(w *world) {
		good := w.customer("good", holdfast.RightsAll)
		kept := good.open()
		bad := w.customer("bad", holdfast.RightsAll)
		for range maxSessions/maxPerKey + 1 {
			m := *bad
			m.tls, m.sign, m.chain = newKey(), newKey(), history.Link{}
			m.connect("h2")
			r := bad.enrol(&m, holdfast.RightsAll)
			_, err := bad.record(wire.PathRecords, r)
			w.ok(err, "enrol")
			bad.own = history.Link{Seq: bad.own.Seq + 1, Prev: r.ID()}
			for range maxPerKey {
				m.open()
			}
			m.http.CloseIdleConnections()
			later(time.Second)
		}
		good.open()
		_, err := good.have(kept, name(1))
		w.ok(err, "a session that was open before")
		if n := w.srv.Sessions(); n > maxSessions {
			t.Errorf("%d sessions are open", n)
		}
	})
}

// TestBatchOfManySmallThings: what costs the service more than its bytes is bounded by number.
func TestBatchOfManySmallThings(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("ada", holdfast.RightsAll)
		sid := c.open()
		small := sealed(sid, holdfast.KindChunk, 0)
		var frames [][]byte
		for i := range holdfast.MaxBatchBlocks + 1 {
			n := name(i)
			n[3] = byte(i >> 16)
			frames = append(frames, frame(n, small))
		}
		_, err := c.upload(sid, 1, frames...)
		w.want(wire.CodeTooLarge, err, "too many blocks")
		st, err := c.upload(sid, 1, frames[1:]...)
		if err != nil || st.Stored != holdfast.MaxBatchBlocks {
			t.Errorf("as many blocks as are allowed: %+v, %v", st, err)
		}
		var links []holdfast.Name
		for i := range holdfast.MaxLinks {
			links = append(links, holdfast.Name{byte(i >> 8), byte(i), 0xaa})
		}
		frames = nil
		for i := range 7 {
			frames = append(frames, frame(holdfast.Name{0xff, byte(i)}, sealed(sid, holdfast.KindTree, 10, links...)))
		}
		_, err = c.upload(sid, 2, frames...)
		w.want(wire.CodeTooLarge, err, "too many links")
		_, err = c.upload(sid, 2, frames[1:]...)
		w.want(wire.CodeMissing, err, "as many links as are allowed, of which some are not there")
	})
}

// TestSlowBody: who is too slow may try again, because a line that stalls is nobody's mistake.
func TestSlowBody(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("ada", holdfast.RightsAll)
		sid := c.open()
		rd, wr := io.Pipe()
		r, err := http.NewRequest("POST", "https://service"+path(wire.PathBlocks, sid)+"?seq=1", rd)
		w.ok(err, "request")
		r.ContentLength = 1 << 20
		go wr.Write(make([]byte, 1000))
		_, err = c.request(r)
		wr.Close()
		w.want(wire.CodeBusy, err, "a slow body")
	})
}
