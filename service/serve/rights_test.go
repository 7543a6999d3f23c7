package serve

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/journal"
	"holdfast/wire"
)

// byOwner signs a record of the owner, in its chain.
func (c *client) byOwner(t history.Type, fields []byte) history.Record {
	return history.Sign(history.Body{Type: t, Vault: c.vault, Seq: c.own.Seq, Prev: c.own.Prev, Fields: fields}, c.owner, c.hist)
}

// ownerSays posts a record of the owner over c's connection.
func (c *client) ownerSays(t history.Type, fields []byte) error {
	r := c.byOwner(t, fields)
	_, err := c.record(wire.PathRecords, r)
	if err == nil {
		c.own = history.Link{Seq: c.own.Seq + 1, Prev: r.ID()}
	}
	return err
}

// says posts a record of the machine.
func (c *client) says(t history.Type, fields []byte) error {
	r := c.signed(t, fields)
	_, err := c.record(wire.PathRecords, r)
	if err == nil {
		c.advance(r)
	}
	return err
}

// second enrols another machine in c's vault and group.
func (c *client) second(rights holdfast.Rights) *client {
	c.w.Helper()
	m := *c
	m.tls, m.sign, m.chain = newKey(), newKey(), history.Link{}
	m.connect("h2")
	r := c.enrol(&m, rights)
	_, err := c.record(wire.PathRecords, r)
	c.w.ok(err, "enrol a second machine")
	c.own = history.Link{Seq: c.own.Seq + 1, Prev: r.ID()}
	return &m
}

// commits completes n archives with that root and returns their IDs.
func (c *client) commits(sid holdfast.SessionID, root holdfast.Name, n int) (ids []holdfast.RecordID) {
	c.w.Helper()
	for range n {
		r := c.commitRecord(sid, root)
		_, err := c.record(wire.PathRecords, r)
		c.w.ok(err, "commit")
		c.advance(r)
		ids = append(ids, r.ID())
	}
	return ids
}

func ids(of ...holdfast.RecordID) []byte { return history.SortIDs(of).Encode() }

// Two processes with one key sign at the same time. The one that is refused finds the other's record in the
// history, although that was not durable yet when it was refused.
func TestStaleChainIsToldWithItsReason(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		c.open() // and the next record waits for the next flush
		twin := *c
		first, _ := c.openRecord()
		done := make(chan error)
		go func() {
			_, err := c.record(wire.PathSession, first)
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			w.Fatalf("the first record did not wait: %v", err)
		default:
		}
		second, _ := twin.openRecord()
		_, err := twin.record(wire.PathSession, second)
		w.want(wire.CodeStaleChain, err, "the second record")
		b, err := twin.do("GET", fmt.Sprintf("%s?after=%d", wire.PathHistory, twin.n), nil)
		w.ok(err, "history")
		e := history.ReadEntry(enc.NewReader(b))
		if e.Record.ID() != first.ID() {
			w.Errorf("the history does not show the record that the refusal rests on, but %d bytes", len(b))
		}
		w.ok(<-done, "the first record")
	})
}

// TestRecordsByTypeAndRight holds who may sign what, and that the owner's records may come over any of the
// vault's machines.
func TestRecordsByTypeAndRight(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		_, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindArchive, 50)))
		w.ok(err, "upload")
		a := c.commits(sid, name(1), 5)
		reader, writer, deleter := c.second(holdfast.RightRead), c.second(holdfast.RightWrite), c.second(holdfast.RightDelete)

		none := []byte(nil)
		policy := history.Policy{Last: 3}.Encode()
		for _, x := range []struct {
			t      history.Type
			fields []byte
			may    *client // nil: no machine
		}{
			{history.TypeFreeze, none, reader},
			{history.TypeDelete, ids(a[0]), deleter},
			{history.TypeUndelete, ids(a[0]), deleter},
			{history.TypeThaw, none, nil},
			{history.TypePolicy, policy, nil},
			{history.TypeDelay, history.Delay{Seconds: 86400}.Encode(), nil},
			{history.TypeConfirm, history.Confirm{Series: holdfast.SeriesID{1}}.Encode(), nil},
			{history.TypeRevoke, history.Revoke{Signer: signer(c)}.Encode(), nil},
			{history.TypeRotateRead, history.RotateRead{}.Encode(), nil},
			{history.TypeExpire, ids(a[0]), nil},
			{history.TypePurge, ids(a[0]), nil},
			{history.TypeArrears, history.Arrears{Until: 1 << 62}.Encode(), nil},
			{history.TypeLapse, ids(a[0]), nil},
		} {
			for _, m := range []*client{reader, writer, deleter} {
				if m != x.may {
					w.want(wire.CodeForbidden, m.says(x.t, x.fields), x.t.String()+" by a machine without that right")
				}
			}
			if x.may == nil {
				continue
			}
			w.ok(x.may.says(x.t, x.fields), x.t.String()+" by a machine with that right")
			if x.t == history.TypeFreeze {
				w.want(wire.CodeFrozen, deleter.says(history.TypeDelete, ids(a[0])), "delete while frozen")
				writer.own = c.own
				w.ok(writer.ownerSays(history.TypeThaw, none), "the owner's thaw by way of a machine that may only write")
				c.own = writer.own
			}
		}
		w.want(wire.CodeForbidden, c.ownerSays(history.TypePurge, ids(a[0])), "the owner does not purge")
		w.want(wire.CodeForbidden, c.ownerSays(history.TypeArrears, history.Arrears{}.Encode()), "the owner does not say that he paid")
		w.want(wire.CodeForbidden, c.ownerSays(history.TypeLapse, ids(a[0])), "the owner does not lapse")
		w.want(wire.CodeNeedsOwner, deleter.says(history.TypeDelete, ids(a...)), "a machine deletes all")
		w.want(wire.CodeNeedsOwner, deleter.says(history.TypeDelete, ids(a[:3]...)), "a machine deletes more than half")
		w.want(wire.CodeBadRequest, deleter.says(history.TypeUndelete, ids(a[0])), "undelete what is live")
		w.ok(c.ownerSays(history.TypeDelete, ids(a...)), "the owner deletes all")
		other := w.customer("b", holdfast.RightsAll)
		w.want(wire.CodeForbidden, func() error {
			_, err := other.record(wire.PathRecords, c.byOwner(history.TypeFreeze, none))
			return err
		}(), "another vault's owner record")
		stranger := *c
		stranger.owner = newKey()
		w.want(wire.CodeForbidden, stranger.ownerSays(history.TypeThaw, none), "somebody who is not the owner thaws")
	})
}

// TestRevokedKeyIsRefusedAtOnce: connections and sessions that were open before do not help.
func TestRevokedKeyIsRefusedAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		m := c.second(holdfast.RightsAll)
		before, sid := c.open(), m.open()
		_, err := c.upload(before, 1, frame(name(1), sealed(before, holdfast.KindChunk, 50)))
		w.ok(err, "upload")
		_, err = m.upload(sid, 1, frame(name(2), sealed(sid, holdfast.KindChunk, 50)))
		w.ok(err, "upload")
		got, err := c.have(before, name(1), name(2))
		if w.ok(err, "have"); got != "0101" {
			w.Errorf("have says %s before the revocation", got)
		}
		later(time.Minute)
		w.ok(c.ownerSays(history.TypeRevoke, history.Revoke{Signer: signer(m)}.Encode()), "revoke")

		open, _ := m.openRecord()
		_, openErr := m.record(wire.PathSession, open)
		_, haveErr := m.have(sid, name(1))
		_, blocksErr := m.upload(sid, 2, frame(name(3), sealed(sid, holdfast.KindChunk, 50)))
		_, closeErr := m.do("POST", path(wire.PathClose, sid), nil)
		_, fetchErr := m.fetch(m.group, name(1))
		_, historyErr := m.do("GET", wire.PathHistory+"?after=0", nil)
		_, usageErr := m.do("GET", wire.PathUsage, nil)
		for what, err := range map[string]error{
			"open": openErr, "have": haveErr, "blocks": blocksErr, "close": closeErr, "fetch": fetchErr, "history": historyErr, "usage": usageErr,
			"freeze": m.says(history.TypeFreeze, nil),
			"the owner's record by way of it": func() error {
				_, err := m.record(wire.PathRecords, c.byOwner(history.TypeFreeze, nil))
				return err
			}(),
		} {
			w.want(wire.CodeRevoked, err, what)
		}
		var h wire.Hello
		b, err := m.do("GET", wire.PathHello, nil)
		if w.ok(errors.Join(err, json.Unmarshal(b, &h)), "hello"); h.You != "revoked" || h.Vault != "" {
			w.Errorf("hello tells a revoked key %+v", h)
		}

		// What it stored is not there for those who deduplicate, and can be stored anew.
		got, err = c.have(before, name(1), name(2))
		if w.ok(err, "have"); got != "0100" {
			w.Errorf("have says %s after the revocation", got)
		}
		st, err := c.upload(before, 2, frame(name(2), sealed(before, holdfast.KindChunk, 60)))
		if w.ok(err, "upload again"); st.Stored != 1 {
			w.Errorf("a suspect block was not stored anew: %+v", st)
		}
		got, err = c.have(before, name(2))
		if w.ok(err, "have"); got != "01" {
			w.Errorf("have says %s of a block that was stored anew", got)
		}
	})
}

func signer(c *client) holdfast.SignerID {
	p := pub(c.sign)
	return history.SignerOf(p[:])
}

// TestReturn: a key that nobody knows enrols itself with the owner's signature, and does nothing else.
func TestReturn(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		w.ok(c.ownerSays(history.TypeFreeze, nil), "freeze")
		vaults := func(m *client, owner [32]byte) (v wire.Vaults) {
			b, err := m.do("GET", "/v1/vaults/"+hex.EncodeToString(owner[:]), nil)
			w.ok(errors.Join(err, json.Unmarshal(b, &v)), "vaults")
			return v
		}
		m := *c
		m.tls, m.sign, m.chain = newKey(), newKey(), history.Link{}
		m.connect("h2")
		if v := vaults(&m, pub(c.owner)); len(v.Vaults) != 1 || v.Vaults[0] != c.vault.String() {
			w.Errorf("the owner's vaults are %v", v)
		}
		if v := vaults(&m, pub(m.sign)); len(v.Vaults) != 0 {
			w.Errorf("a stranger's vaults are %v", v)
		}
		post := func(r history.Record) error { _, err := m.record(wire.PathRecords, r); return err }
		w.want(wire.CodeUnknownKey, post(c.byOwner(history.TypeThaw, nil)), "an owner's record that does not enrol")
		w.want(wire.CodeUnknownKey, post(c.enrol(w.stranger(), holdfast.RightsAll)), "the enrolment of another key")
		thief := m
		thief.owner = newKey()
		w.want(wire.CodeUnknownKey, post(thief.enrol(&m, holdfast.RightsAll)), "an enrolment that the owner did not sign")
		blind := *c
		blind.own = history.Link{}
		w.want(wire.CodeStaleChain, post(blind.enrol(&m, holdfast.RightsAll)), "an enrolment that does not continue the owner's chain")
		w.ok(post(c.enrol(&m, holdfast.RightsAll)), "enrolment")
		m.open()
	})
}

// TestUnpaidIsOutOfCredit: what lapsed comes back to who pays, and who asks before is told that this is why.
func TestUnpaidIsOutOfCredit(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.customer("a", holdfast.RightsAll)
		sid := c.open()
		_, err := c.upload(sid, 1, frame(name(1), sealed(sid, holdfast.KindArchive, 50)))
		w.ok(err, "upload")
		a := c.commits(sid, name(1), 1)
		ours := func(typ history.Type, fields []byte) {
			t.Helper()
			done, err := w.j.Append(w.Context(), func(tx *journal.Tx) error {
				v, _, err := tx.Reader().Vault(c.vault)
				if err != nil {
					return err
				}
				_, err = tx.History(history.SignByService(history.Body{Type: typ, Vault: c.vault, Seq: v.Service.Seq, Prev: v.Service.Prev, Fields: fields}, w.id.LogKey()))
				return err
			})
			w.ok(err, typ.String())
			w.j.Flush()
			w.ok(done.Wait(w.Context()), typ.String())
		}
		until := time.Now().Add(31 * 24 * time.Hour)
		ours(history.TypeArrears, history.Arrears{Until: until.UnixNano()}.Encode())
		for time.Now().Before(until) {
			time.Sleep(24 * time.Hour)
			w.ok(w.j.MayDelete(w.Context()), "a look at the clocks")
		}
		ours(history.TypeLapse, ids(a[0]))
		w.want(wire.CodeOutOfCredit, c.says(history.TypeUndelete, ids(a[0])), "undelete what lapsed")
		ours(history.TypeArrears, history.Arrears{}.Encode())
		w.ok(c.says(history.TypeUndelete, ids(a[0])), "undelete after paying")
	})
}
