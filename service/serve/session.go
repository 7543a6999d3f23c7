package serve

import (
	"net/http"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/wire"
)

const (
	sessionIdle = time.Hour // after which a session is forgotten
	maxSessions = 4096      // open at a time; one more forgets one of the vault that has most
	maxPerKey   = 8         // of one machine; opening more forgets the one unused for longest
)

// session is one upload. It lives in this process only: no session survives it (JOURNAL 15).
type session struct {
	id     holdfast.SessionID
	vault  holdfast.VaultID
	group  holdfast.GroupID
	signer holdfast.SignerID
	turns  *turns // of its batches

	// Guarded by Server.mu.
	ready bool  // its open record is durable
	start int64 // journal time of its open record, ms
	busy  int   // requests under way
	used  time.Time
}

var errSessionGone = refusal(wire.CodeSessionGone, "That session is not open; open a new one and ask again what is there.")

// open adds an open record to the history and opens its session once that is durable (JOURNAL 21). The
// same record again is answered alike while the session lives.
func (s *Server) open(w http.ResponseWriter, r *http.Request, c caller) error {
	rec, b, err := s.record(w, r, c)
	if err != nil {
		return err
	}
	if b.Type != history.TypeOpen {
		return refusal(wire.CodeBadRequest, "This request takes the record that opens a session, not %s.", b.Type)
	}
	o, err := history.ParseOpen(b.Fields)
	if err != nil {
		return err
	}
	if err := s.taking(writeSession); err != nil {
		return err
	}
	if err := s.mayWrite(c.account, 0); err != nil {
		return err
	}
	if err := s.limits.record(c, b.Vault, len(rec.Body)); err != nil {
		return err
	}
	ses, fresh, err := s.enlist(c, o)
	if err != nil {
		return err
	}
	e, p, err := s.enter(r, c, rec)
	if err == nil && p.known && fresh {
		err = errSessionGone // of an earlier process
	}
	s.mu.Lock()
	ses.busy--
	if err != nil && fresh {
		s.forget(ses.id)
	}
	if err == nil && !ses.ready {
		ses.ready, ses.start = true, p.now
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return writeBinary(w, e.Append(nil))
}

// enlist finds the session of an open record or makes it, not yet ready, and marks it busy.
func (s *Server) enlist(c caller, o history.Open) (ses *session, fresh bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if ses := s.sessions[o.Session]; ses != nil && ses.of(c) && ses.group == o.Group {
		ses.busy++
		ses.used = now
		return ses, false, nil
	} else if ses != nil {
		return nil, false, refusal(wire.CodeBadRequest, "That session's identity is taken; choose a random one.")
	}
	var mine int
	var oldest *session
	for id, x := range s.sessions {
		if x.busy > 0 {
			if x.of(c) {
				mine++
			}
			continue
		}
		if now.Sub(x.used) > sessionIdle {
			s.forget(id)
			continue
		}
		if x.of(c) {
			mine++
			if oldest == nil || x.used.Before(oldest.used) {
				oldest = x
			}
		}
	}
	if mine >= maxPerKey {
		if oldest == nil {
			return nil, false, &wire.Error{Code: wire.CodeBusy, Message: "This machine has too many sessions open.", RetryAfter: 10}
		}
		s.forget(oldest.id)
	}
	if len(s.sessions) >= maxSessions && !s.forgetOne() {
		return nil, false, &wire.Error{Code: wire.CodeBusy, Message: "Too many sessions are open; the service takes more in a while.", RetryAfter: 30}
	}
	ses = &session{
		id: o.Session, vault: c.machine.Vault, group: o.Group, signer: c.machine.Signer,
		turns: newTurns(), busy: 1, used: now,
	}
	s.sessions[ses.id] = ses
	return ses, true, nil
}

// forget forgets a session, and lets the journal condemn what it was promised. mu is held.
func (s *Server) forget(id holdfast.SessionID) {
	delete(s.sessions, id)
	s.j.EndSession(id)
}

// EndIdle forgets the sessions that were left unused for an hour, and returns how many these were: blocks that they may
// have been told of can be freed then. A client that comes back opens a new one.
func (s *Server) EndIdle() (ended int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, x := range s.sessions {
		if x.busy == 0 && time.Since(x.used) > sessionIdle {
			s.forget(id)
			ended++
		}
	}
	return ended
}

// forgetOne forgets an idle session of the vault that has most: machines cost a vault nothing, so that
// their number must not keep others out. mu is held.
func (s *Server) forgetOne() bool {
	count := map[holdfast.VaultID]int{}
	for _, x := range s.sessions {
		count[x.vault]++
	}
	var worst *session
	for _, x := range s.sessions {
		if x.busy > 0 {
			continue
		}
		if worst == nil || count[x.vault] > count[worst.vault] || x.vault == worst.vault && x.used.Before(worst.used) {
			worst = x
		}
	}
	if worst == nil {
		return false
	}
	s.forget(worst.id)
	return true
}

// of reports whether the session is the caller's.
func (ses *session) of(c caller) bool {
	return ses.vault == c.machine.Vault && ses.signer == c.machine.Signer
}

// session finds the open session that the request's path names and marks it busy until the returned
// function is called. It must be the caller's.
func (s *Server) session(r *http.Request, c caller) (*session, func(), error) {
	var id holdfast.SessionID
	if err := parseHex(id[:], r.PathValue("sid"), "session in the path"); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ses := s.sessions[id]
	if ses == nil || !ses.ready || !ses.of(c) {
		return nil, nil, errSessionGone
	}
	now := time.Now()
	if ses.busy == 0 && now.Sub(ses.used) > sessionIdle {
		s.forget(id)
		return nil, nil, errSessionGone
	}
	ses.busy++
	ses.used = now
	return ses, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		ses.busy--
		ses.used = time.Now()
	}, nil
}

// close forgets a session. One that is not there was forgotten before.
func (s *Server) close(w http.ResponseWriter, r *http.Request, c caller) error {
	ses, end, err := s.session(r, c)
	if err == nil {
		end()
		s.mu.Lock()
		s.forget(ses.id)
		s.mu.Unlock()
		s.settleAsked(r.Context(), c.account)
	} else if err != errSessionGone {
		return err
	}
	return writeJSON(w, http.StatusOK, struct{}{})
}

// What a name in a list takes of memory while its request is under way, bytes: the name as it came and parsed, and what is
// found of it.
const (
	haveCost  = 2*32 + 32 + 1
	fetchCost = 2*32 + 32 + 3*120
)

// names reads a list of names, and holds memory for it, so much for each, until release is called.
func (s *Server) names(w http.ResponseWriter, r *http.Request, c caller, cost int64, cut *cutter) (names []holdfast.Name, release func(), err error) {
	most := int64(32 * holdfast.MaxHave)
	if n := r.ContentLength; n > most {
		return nil, nil, tooLarge(most)
	} else if n >= 0 {
		most = n
	}
	leave, err := s.lobby.enter(c.machine.Vault)
	if err != nil {
		return nil, nil, err
	}
	release, err = s.memory(r.Context(), s.lists, c.machine.Vault, max(1, most/32)*cost, cut.cutAll)
	leave()
	if err != nil {
		return nil, nil, err
	}
	b, err := body(w, r, most)
	if err == nil {
		names, err = wire.ParseNames(b)
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return names, release, nil
}

// have says which blocks the session need not send (JOURNAL 17). What a revoked key may have stored is not
// among them.
func (s *Server) have(w http.ResponseWriter, r *http.Request, c caller) error {
	ses, end, err := s.session(r, c)
	if err != nil {
		return err
	}
	defer end()
	cut := newCutter(w, r)
	defer cut.end()
	names, release, err := s.names(w, r, c, haveCost, cut)
	if err != nil {
		return err
	}
	defer release()
	if err := s.limits.names(c, len(names)); err != nil {
		return err
	}
	// Of acknowledged blocks only: one that is not durable yet can still be lost with this process.
	v := s.j.Acked()
	out := make([]byte, len(names))
	for i, n := range names {
		blk, ok, err := v.Present(ses.vault, ses.group, n)
		if err != nil {
			return err
		}
		if ok && blk.Promised(ses.start) {
			out[i] = 1
		}
	}
	if s.meter.asked(c.account, len(names)) {
		s.settleAsked(r.Context(), c.account)
	}
	if s.meter.full() {
		s.Settle(r.Context())
	}
	return writeBinary(w, out)
}
