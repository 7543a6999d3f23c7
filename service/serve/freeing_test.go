package serve

import (
	"errors"
	"testing"
	"time"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/wire"
)

// TestScenarioS10Sessions: what a session was told is there stays until the client closes the session, somebody else's
// opening finds it unused, or the process ends; then it may be freed, and who needs it is told to send it again.
func TestScenarioS10Sessions(t *testing.T) {
	for what, end := range map[string]func(w *world, c *client, sid holdfast.SessionID){
		"closed": func(w *world, c *client, sid holdfast.SessionID) {
			_, err := c.do("POST", path(wire.PathClose, sid), nil)
			w.ok(err, "close")
		},
		"forgotten, found by its owner": func(w *world, c *client, sid holdfast.SessionID) {
			_, err := c.have(sid, name(1))
			w.want(wire.CodeSessionGone, err, "a session unused for days")
		},
		"forgotten, found by another": func(w *world, c *client, sid holdfast.SessionID) {
			w.customer("b", holdfast.RightsAll).open()
		},
		"forgotten, found by the job that frees": func(w *world, c *client, sid holdfast.SessionID) {
			if n := w.srv.EndIdle(); n != 1 {
				w.Errorf("%d sessions were idle", n)
			}
			if n := w.srv.EndIdle(); n != 0 {
				w.Errorf("%d sessions were idle twice", n)
			}
		},
		"of a process that crashed": func(w *world, c *client, sid holdfast.SessionID) {
			w.crash()
			w.start()
		},
	} {
		t.Run(what, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := w.customer("a", holdfast.RightsAll)
				sid := c.open()
				_, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindChunk, 10)))
				w.ok(err, "upload")
				got, err := c.have(sid, name(1))
				if err != nil || got != "01" {
					w.Fatalf("%s, %v", got, err)
				}
				first, ok, err := w.j.Acked().Block(c.vault, c.group, name(1))
				if err != nil || !ok {
					w.Fatal(err)
				}
				condemn := func(want int) {
					t.Helper()
					if n, err := w.j.Condemn(w.Context(), []journal.Candidate{{Name: name(1), Block: first}}); err != nil || n != want {
						t.Errorf("%d blocks freed, want %d: %v", n, want, err)
					}
				}
				later(view.Keep + time.Minute)
				condemn(0)
				end(w, c, sid)
				later(time.Second)
				condemn(1)

				sid = c.open()
				got, err = c.have(sid, name(1))
				if err != nil || got != "00" {
					t.Errorf("a freed block is there: %s, %v", got, err)
				}
				parent := frame(name(2), sealed(sid, holdfast.KindArchive, 10, name(1)))
				_, err = c.upload(sid, 1, parent)
				w.want(wire.CodeMissing, err, "a parent of a freed block")
				var e *wire.Error
				if !errors.As(err, &e) || len(e.Missing) != 1 || e.Missing[0] != name(1).String() {
					t.Errorf("told to send %+v", e)
				}
				st, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindChunk, 10)), parent)
				if err != nil || st.Stored != 2 {
					t.Errorf("%+v, %v", st, err)
				}
				condemn(0) // the old place again
				_, err = c.record(wire.PathRecords, c.commitRecord(sid, name(2)))
				w.ok(err, "commit")
				f, err := c.fetch(c.group, name(1), name(2))
				if err != nil || len(f) != 2 || f[0].Status != wire.FrameBlock || f[1].Status != wire.FrameBlock {
					t.Errorf("%+v, %v", f, err)
				}
			})
		})
	}
}
