package serve

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"testing"

	"holdfast"
	"holdfast/history"
	"holdfast/wire"
)

// TestTLSRevokedMidConnection revokes a machine while its connection is open, and again while an upload of it
// is half sent. The connection was made with a key that was good, and stays; nothing is done over it any more.
func TestTLSRevokedMidConnection(t *testing.T) {
	for _, proto := range []string{"h2", "http/1.1"} {
		t.Run(proto, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := w.customer("a", holdfast.RightsAll)
				m := c.second(holdfast.RightsAll)
				m.connect(proto)
				conns := 0
				over := httptrace.WithClientTrace(w.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
					if !i.Reused {
						conns++
					}
				}})
				ask := func(method, path string, body io.Reader, size int64) error {
					r, err := http.NewRequestWithContext(over, method, "https://service"+path, body)
					if err != nil {
						t.Fatal(err)
					}
					r.ContentLength = size
					_, err = m.request(r)
					return err
				}
				sid, witness := m.open(), c.open()
				w.ok(ask("GET", wire.PathUsage, nil, 0), "usage before the revocation")
				conns = 0

				// Half of a batch is sent, then the owner revokes the machine, then the rest is.
				batch := frame(name(1), sealed(sid, holdfast.KindChunk, 5000))
				body, send := io.Pipe()
				got := make(chan error, 1)
				go func() { got <- ask("POST", path(wire.PathBlocks, sid)+"?seq=1&flush=1", body, int64(len(batch))) }()
				if _, err := send.Write(batch[:len(batch)/2]); err != nil {
					t.Fatal(err)
				}
				w.ok(c.ownerSays(history.TypeRevoke, history.Revoke{Signer: signer(m)}.Encode()), "revoke")
				go func() { // the service may have stopped reading
					send.Write(batch[len(batch)/2:])
					send.Close()
				}()
				w.want(wire.CodeRevoked, <-got, "an upload that was half sent")

				for _, x := range []struct{ method, path string }{
					{"GET", wire.PathUsage}, {"GET", wire.PathHistory + "?after=0"}, {"GET", path(wire.PathDamaged, m.group)}, {"POST", path(wire.PathHave, sid)},
					{"POST", path(wire.PathFetch, m.group)}, {"POST", path(wire.PathBlocks, sid) + "?seq=2"}, {"POST", wire.PathRecords},
				} {
					w.want(wire.CodeRevoked, ask(x.method, x.path, nil, 0), fmt.Sprintf("%s %s after the revocation", x.method, x.path))
				}
				if conns != 0 {
					t.Errorf("%d new connections: the old one was to be asked", conns)
				}
				here, err := c.have(witness, name(1))
				if w.ok(err, "have"); here != "00" {
					t.Error("a block of the revoked machine is there")
				}
			})
		})
	}
}
