package serve

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/bucket/sim"
	"holdfast/wire"
)

// away makes the bucket fail until back is called.
func (w *world) away(fault sim.Fault) (back func()) {
	var on atomic.Bool
	on.Store(true)
	w.bucket.OnOp(func(sim.Op, string, int) sim.Fault {
		if on.Load() {
			return fault
		}
		return sim.Fault{}
	})
	return func() { on.Store(false) }
}

// isDown fails the test unless a request was answered backend_down, with when to come back, within so much time.
func (w *world) isDown(what string, within time.Duration, ask func() error) {
	w.Helper()
	began := time.Now()
	err := ask()
	var e *wire.Error
	if !errors.As(err, &e) || e.Code != wire.CodeBackendDown || e.RetryAfter == 0 {
		w.Errorf("%s: %v", what, err)
	}
	if took := time.Since(began); took > within {
		w.Errorf("%s was answered after %s", what, took)
	}
}

// The bucket is away for an hour. What was under way is told so after a while, everything new at once; nothing that the
// view can answer is refused. A commit and an upload that were told so are in the journal once, and asked again the
// client hears so.
func TestBackendDown(t *testing.T) {
	for form, fault := range map[string]sim.Fault{
		"fails":   {Err: sim.ErrFault},
		"silent":  {Hang: true},
		"applied": {Err: sim.ErrFault, Applied: true}, // it became durable, and nobody is told
	} {
		t.Run(form, func(t *testing.T) {
			inWorld(t, func(w *world) {
				c := w.customer("anna", holdfast.RightsAll)
				sid := c.open()
				root, late := name(1), name(2)
				if _, err := c.upload(sid, 1, frame(root, sealed(sid, holdfast.KindArchive, 3000))); err != nil {
					w.Fatal(err)
				}
				back := w.away(fault)
				commit := c.commitRecord(sid, root)
				second := frame(late, sealed(sid, holdfast.KindChunk, 1000))

				longest := waitPatience + 15*time.Second // silence is trouble after half a minute
				done := make(chan struct{})
				go func() {
					defer close(done)
					w.isDown("an upload under way", longest, func() error { _, err := c.upload(sid, 2, second); return err })
				}()
				w.isDown("a commit under way", longest, func() error { _, err := c.record(wire.PathRecords, commit); return err })
				<-done
				if s := w.srv.State(); s != wire.StateBackendDown {
					t.Errorf("state %s", s)
				}
				time.Sleep(50 * time.Minute) // of the hour after which a session is forgotten
				r, _ := c.openRecord()
				w.isDown("a new session", 0, func() error { _, err := c.record(wire.PathSession, r); return err })
				w.isDown("an upload", 0, func() error { _, err := c.upload(sid, 3, second); return err })
				w.isDown("the commit again", 0, func() error { _, err := c.record(wire.PathRecords, commit); return err })
				w.isDown("a token", 0, func() error { return w.stranger().redeem([32]byte{1}) })
				w.isDown("a fetch", 2*time.Minute, func() error { _, err := c.fetch(c.group, root); return err })
				if known, err := c.have(sid, root, late); err != nil || known != "0100" {
					t.Errorf("have: %v, %v", known, err)
				}
				if h := c.hello(); h.State != wire.StateBackendDown {
					t.Errorf("hello: %+v", h)
				}
				if w.j.Err() != nil {
					t.Fatal(w.j.Err())
				}

				back()
				time.Sleep(2 * time.Minute)
				if s := w.srv.State(); s != wire.StateServing {
					t.Errorf("state %s afterwards", s)
				}
				e, err := c.record(wire.PathRecords, commit)
				if err != nil {
					t.Fatalf("the commit again: %v", err)
				}
				st, err := c.upload(sid, 2, second)
				if err != nil || st.Known != 1 || st.Stored != 0 {
					t.Errorf("the upload again: %+v, %v", st, err)
				}
				w.entered(c, e)
				w.stop()
				w.start()
				w.entered(c, e)
			})
		})
	}
}

// entered fails the test unless the vault's history has one commit, and that is e.
func (w *world) entered(c *client, e history.Entry) {
	w.Helper()
	raw, err := c.do("GET", wire.PathHistory+"?after=0", nil)
	if err != nil {
		w.Fatal(err)
	}
	n := 0
	for rd := enc.NewReader(raw); rd.Err() == nil && rd.Len() > 0; {
		x := history.ReadEntry(rd)
		b, err := history.ParseBody(x.Record.Body)
		if err != nil {
			w.Fatal(err)
		}
		if b.Type == history.TypeCommit {
			if n++; x.N != e.N || x.Record.ID() != e.Record.ID() {
				w.Errorf("entry %d is another commit than entry %d", x.N, e.N)
			}
		}
	}
	if n != 1 {
		w.Errorf("%d commits in the history", n)
	}
}
