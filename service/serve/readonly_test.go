package serve

import (
	"errors"
	"sync/atomic"
	"testing"

	"holdfast"
	"holdfast/history"
	"holdfast/wire"
)

// TestReadOnly: what is refused at each level, with what words, and that the rest goes on; and that it all ends when
// there is room again.
func TestReadOnly(t *testing.T) {
	const why = "There is no room since noon."
	for _, x := range []struct {
		name                      string
		closed                    Closed
		sessions, blocks, records bool // are taken
	}{
		{"short of room", Closed{Sessions: true, Why: why}, false, true, true},
		{"hardly any room", Closed{Sessions: true, Blocks: true, Why: why}, false, false, true},
		{"told to", Closed{Records: true, Why: why}, false, false, false},
	} {
		t.Run(x.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				var closed atomic.Value
				closed.Store(Closed{})
				w.srv.readOnly = func() Closed { return closed.Load().(Closed) }
				c := w.customer("anna", holdfast.RightsAll)
				token := w.account("berta")
				sid := c.open()
				_, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindArchive, 1000)))
				w.ok(err, "upload")
				old := c.commitRecord(sid, name(1))
				_, err = c.record(wire.PathRecords, old)
				w.ok(err, "commit")
				c.advance(old)
				_, err = c.upload(sid, 2, frame(name(2), sealed(sid, holdfast.KindArchive, 2000)))
				w.ok(err, "upload")

				closed.Store(x.closed)
				is := func(taken bool, err error, what string) {
					t.Helper()
					var e *wire.Error
					switch {
					case taken && err != nil:
						t.Errorf("%s: %v", what, err)
					case !taken && (!errors.As(err, &e) || e.Code != wire.CodeReadOnly || e.Message != why || e.RetryAfter != readOnlyRetry):
						t.Errorf("%s: %v", what, err)
					}
				}
				if h := c.hello(); h.State != wire.StateReadOnly {
					t.Errorf("hello says %s", h.State)
				}
				r, _ := c.openRecord()
				_, err = c.record(wire.PathSession, r)
				is(x.sessions, err, "a session")
				_, err = c.upload(sid, 3, frame(name(3), sealed(sid, holdfast.KindChunk, 10)))
				is(x.blocks, err, "blocks")
				is(x.records, w.stranger().redeem(token), "a token")
				commit := c.commitRecord(sid, name(2)) // of what was taken before
				_, err = c.record(wire.PathRecords, commit)
				is(x.records, err, "a commit")
				if x.records {
					c.advance(commit)
				}
				del := c.signed(history.TypeDelete, ids(old.ID()))
				_, err = c.record(wire.PathRecords, del)
				is(x.records, err, "a deletion")
				if x.records {
					c.advance(del)
				}
				// Reading never ends.
				got, err := c.fetch(c.group, name(1), name(2))
				if err != nil || len(got) != 2 || got[0].Status != wire.FrameBlock || got[1].Status != wire.FrameBlock {
					t.Errorf("fetched %+v, %v", got, err)
				}
				if known, err := c.have(sid, name(2)); err != nil || known != "01" {
					t.Errorf("have: %s, %v", known, err)
				}
				if _, err := c.do("GET", wire.PathHistory+"?after=0", nil); err != nil {
					t.Errorf("history: %v", err)
				}

				closed.Store(Closed{})
				if h := c.hello(); h.State != wire.StateServing {
					t.Errorf("with room again, hello says %s", h.State)
				}
				sid = c.open()
				_, err = c.upload(sid, 1, frame(name(4), sealed(sid, holdfast.KindArchive, 1000)))
				w.ok(err, "upload with room again")
			})
		})
	}
}
