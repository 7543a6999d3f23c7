// Package serve answers clients: it turns the requests of package wire into questions to the view and
// records for the journal. It keeps nothing that matters: after a crash everything it knew is either in
// the journal or will be said again by the clients.
//
// What it keeps in memory are sessions (who uploads, and which batch comes next) and the bytes of
// requests under way, both bounded whatever the clients do.
package serve

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/service/billing"
	"holdfast/service/identity"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/wire"
)

// Ceilings of the memory for bodies that are being read or written, bytes: over all clients, and for one
// vault.
const (
	uploadMemory = 64 << 20
	uploadShare  = 32 << 20
	fetchMemory  = 32 << 20
	fetchShare   = 16 << 20
	// Lists of names that are being looked for, with what is known of each.
	listMemory = 12 << 20
	listShare  = 6 << 20
)

const (
	memoryPatience = 30 * time.Second // how long an upload waits for memory before it is told busy
	slowGrace      = 30 * time.Second // a body may take this long ...
	slowRate       = 8 << 10          // ... and the time for its size at this many bytes a second
	headerPatience = 20 * time.Second
	idlePatience   = 3 * time.Minute
	drainPatience  = 20 * time.Second // for requests under way when the service is told to end
	// Requests under way: of all callers, of one vault or account, and of all keys that have none. What is
	// beyond is told that the service is busy; as many again are cut off without a word.
	maxRequests   = 1024
	partyRequests = 256
	aliens        = 128
	maxHeader     = 16 << 10
	// What a client sends before its turn is kept unread, up to streamBuffer bytes a request. All streams of a connection
	// together can hold that much, so that a batch whose turn has come is never stuck behind those that wait.
	maxStreams   = 32
	streamBuffer = 192 << 10
	// maxFrame bounds one frame of HTTP/2; each connection keeps memory for its largest.
	maxFrame = 16 << 10
)

// Config says what a Server serves. Journal and Identity are required.
type Config struct {
	Journal  *journal.Journal
	Identity *identity.Identity
	Log      *slog.Logger // nil discards
	// Notice, if set, returns what the operator has to say: one line of at most wire.MaxNotice bytes, or "".
	Notice func() string
	// Billing, if set, says who may write and what it costs.
	Billing *billing.Biller
	// ReadOnly, if set, returns what the service takes no more at the moment.
	ReadOnly func() Closed
}

// Server answers clients. It is safe for concurrent use.
type Server struct {
	j      *journal.Journal
	id     *identity.Identity
	log    *slog.Logger
	notice func() string
	// billing is nil if nothing costs anything.
	billing *billing.Biller
	// readOnly is nil if nothing is ever refused.
	readOnly func() Closed

	uploads, fetches, lists *budget
	limits                  limits
	meter                   *meter
	lobby                   lobby
	reads                   chan struct{} // holds a token for every read of the bucket
	ending                  atomic.Bool   // told to end: takes nothing new
	behind                  atomic.Bool   // it was logged that a client knows more than the journal
	unread                  atomic.Int64  // when it was last logged that the bucket does not answer readers, ns

	mu       sync.Mutex
	requests map[party]int // under way; no line for none
	underWay int           // of them all
	refused  map[wire.Code]uint64
	sessions map[holdfast.SessionID]*session
	// created says which vault a connection key created since this process began, unless a machine with that key is
	// enrolled: one is enough, and more would be a way to fill the journal for nothing.
	created map[[32]byte]holdfast.VaultID
	swept   time.Time // created was, of keys that are enrolled

	ownersMu sync.Mutex
	// owners has ownerTag of the owner key of each vault that the view had when it was last asked, by number.
	owners []uint64
}

// New returns a Server.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Notice == nil {
		cfg.Notice = func() string { return "" }
	}
	return &Server{
		j: cfg.Journal, id: cfg.Identity, log: cfg.Log, notice: cfg.Notice, billing: cfg.Billing, readOnly: cfg.ReadOnly,
		uploads:  newBudget(uploadMemory, uploadShare),
		fetches:  newBudget(fetchMemory, fetchShare),
		lists:    newBudget(listMemory, listShare),
		limits:   newLimits(),
		meter:    newMeter(),
		lobby:    lobby{in: map[holdfast.VaultID]int{}},
		reads:    make(chan struct{}, maxReads),
		requests: map[party]int{},
		refused:  map[wire.Code]uint64{},
		sessions: map[holdfast.SessionID]*session{},
		created:  map[[32]byte]holdfast.VaultID{},
	}
}

// State returns what the service is able to do at the moment.
func (s *Server) State() wire.State {
	switch {
	case s.j.Err() != nil:
		return wire.StateStopped
	case s.ending.Load():
		return wire.StateMaintenance
	case s.down() != nil:
		return wire.StateBackendDown
	case s.ReadOnly() != Closed{}:
		return wire.StateReadOnly
	}
	return wire.StateServing
}

// Refused returns how many requests were refused since the service began, by the reason that clients were given.
func (s *Server) Refused() map[wire.Code]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.refused)
}

// refuse counts one that is.
func (s *Server) refuse(c wire.Code) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[c]++
}

// Sessions returns how many sessions are open.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Serve answers the clients that connect to l, which it closes, until ctx ends or the journal stops. Then
// it takes nothing new, gives the requests under way a moment to end, and returns: nil after the end of
// ctx, the journal's error otherwise.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	h2 := &http.HTTP2Config{
		MaxConcurrentStreams:          maxStreams,
		MaxReceiveBufferPerStream:     streamBuffer,
		MaxReceiveBufferPerConnection: maxStreams * streamBuffer,
		MaxReadFrameSize:              maxFrame,
	}
	srv := &http.Server{
		Handler:           s.Handler(),
		TLSConfig:         wire.ServerConfig(s.id.TLSKey()),
		ReadHeaderTimeout: headerPatience,
		IdleTimeout:       idlePatience,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             h2,
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(newConnections(l), "", "") }()
	var err error
	select {
	case err = <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	case <-s.j.Stopped():
		err = s.j.Err()
	}
	s.ending.Store(true)
	if err == nil {
		s.j.Flush() // so that uploads under way learn soon that they are durable
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainPatience)
	defer cancel()
	if srv.Shutdown(patience) != nil {
		srv.Close()
	}
	<-served
	s.meter.forget() // or whoever restores a byte has an end write a segment
	s.Settle(patience)
	return err
}

// caller is who sent a request, as the acknowledged view knows the key of the connection.
type caller struct {
	key     [32]byte
	network netip.Prefix // that it calls from
	account holdfast.AccountID
	standing
	machine view.Machine // where standing is enrolled
}

// standing says what the service knows a key as; each includes those before it.
type standing int

const (
	unknown  standing = iota
	redeemed          // has an account
	enrolled          // is a machine of a vault
)

var errUnknownKey = refusal(wire.CodeUnknownKey, "This service does not know this machine's key; redeem a token first, or ask the owner to enrol it.")

// errRevoked answers every request but hello of a machine whose key was revoked.
var errRevoked = refusal(wire.CodeRevoked, "This machine's key was revoked by the vault's owner.")

func (st standing) String() string {
	return [...]string{"unknown", "account", "machine"}[st]
}

// revoked reports whether the caller is a machine that may do nothing any more.
func (c caller) revoked() bool { return c.standing == enrolled && c.machine.Revoked != 0 }

// stranger reports whether the caller is nobody whom the service knows or wants to: his limits are those of all of
// them, so that a stolen key that was revoked takes nothing from the vault that it was stolen from.
func (c caller) stranger() bool { return c.standing == unknown || c.revoked() }

// identify finds out who sent a request. Rights are looked up for every request, so that a change acts
// on connections that are open.
func (s *Server) identify(r *http.Request) (c caller, err error) {
	c.network = networkOf(r.RemoteAddr)
	if c.key, err = wire.PeerKey(r.TLS); err != nil {
		return c, err
	}
	v := s.j.Acked()
	m, ok, err := v.MachineByTLS(c.key)
	if err != nil {
		return c, err
	}
	if ok {
		c.standing, c.machine, c.account = enrolled, m, m.Account
		return c, nil
	}
	c.account, ok, err = v.AccountByTLS(c.key)
	if ok {
		c.standing = redeemed
	}
	return c, err
}

// handler answers one request of a caller; its error becomes the refusal.
type handler func(w http.ResponseWriter, r *http.Request, c caller) error

// Handler returns the handler of all requests. It needs connections made with wire.ServerConfig.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	for _, x := range []struct {
		method, path string
		need         standing
		right        holdfast.Rights
		h            handler
	}{
		{http.MethodGet, wire.PathHello, unknown, 0, s.hello},
		{http.MethodPost, wire.PathRedeem, unknown, 0, s.redeem},
		{http.MethodPost, wire.PathRecords, unknown, 0, s.records},
		{http.MethodGet, wire.PathVaults, unknown, 0, s.vaults},
		{http.MethodGet, wire.PathHistory, enrolled, 0, s.history},
		{http.MethodPost, wire.PathSession, enrolled, holdfast.RightWrite, s.open},
		{http.MethodPost, wire.PathHave, enrolled, holdfast.RightWrite, s.have},
		{http.MethodPost, wire.PathBlocks, enrolled, holdfast.RightWrite, s.blocks},
		{http.MethodPost, wire.PathClose, enrolled, holdfast.RightWrite, s.close},
		{http.MethodPost, wire.PathFetch, enrolled, holdfast.RightRead, s.fetch},
		{http.MethodGet, wire.PathDamaged, enrolled, holdfast.RightWrite, s.damaged},
		{http.MethodGet, wire.PathUsage, redeemed, 0, s.usage},
	} {
		if x.method == http.MethodGet || x.path == wire.PathClose {
			x.h = bodiless(x.h)
		}
		mux.Handle(x.method+" "+x.path, s.checked(x.need, x.right, x.h))
		mux.Handle(x.path, s.checked(unknown, 0, func(http.ResponseWriter, *http.Request, caller) error {
			return refusal(wire.CodeBadRequest, "This request is made with %s.", x.method)
		}))
	}
	mux.Handle("/", s.checked(unknown, 0, func(http.ResponseWriter, *http.Request, caller) error {
		return refusal(wire.CodeNotFound, "There is no such request in version %d of the protocol.", holdfast.ProtocolVersion)
	}))
	return s.faults(mux)
}

// bodiless refuses a body: it would be kept unread while the request is answered, and is part of no budget.
func bodiless(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request, c caller) error {
		if r.ContentLength != 0 {
			return refusal(wire.CodeBadRequest, "This request has no body.")
		}
		return h(w, r, c)
	}
}

// party is who shares a number of requests under way and of connections: a vault, an account without one, or, as
// zeros, all strangers. Keys cost nothing, so that a share for each of them is none.
type party struct {
	vault   holdfast.VaultID
	account holdfast.AccountID
}

func (c caller) party() party {
	switch {
	case c.stranger():
		return party{}
	case c.standing == enrolled:
		return party{vault: c.machine.Vault}
	}
	return party{account: c.account}
}

// admit counts a request until the returned function is called. The error says that there are too many.
func (s *Server) admit(p party) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	share := partyRequests
	if p == (party{}) {
		share = aliens
	}
	if s.underWay >= maxRequests || s.requests[p] >= share {
		err = &wire.Error{Code: wire.CodeBusy, Message: "Too many requests are under way; try again in a moment.", RetryAfter: 2}
	}
	if s.underWay >= 2*maxRequests || s.requests[p] >= 2*share {
		// Even to say so costs too much.
		panic(http.ErrAbortHandler)
	}
	s.underWay++
	s.requests[p]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.underWay--
		if s.requests[p]--; s.requests[p] == 0 {
			delete(s.requests, p)
		}
	}, err
}

// checked calls h for callers of that standing and with that right, and turns errors into answers.
func (s *Server) checked(need standing, right holdfast.Rights, h handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &answer{ResponseWriter: w}
		c, err := s.identify(r)
		leave, full := s.admit(c.party())
		defer leave()
		if r.ProtoMajor == 2 {
			// Otherwise what is left of a short answer waits for the client after the handler's end, uncounted.
			defer http.NewResponseController(w).Flush()
		}
		if err == nil {
			err = full
		}
		if own, ok := r.Context().Value(connKey{}).(*conn); err == nil && ok {
			err = own.belongs(c.party())
		}
		if err == nil {
			err = s.limits.request(c)
		}
		switch {
		case err != nil:
		case c.revoked() && r.Pattern != http.MethodGet+" "+wire.PathHello:
			err = errRevoked
		case c.standing < need && c.standing == unknown:
			err = errUnknownKey
		case c.standing < need:
			err = refusal(wire.CodeUnknownKey, "This machine's key has an account but is not enrolled in a vault.")
		case c.standing == enrolled && !c.machine.Enrol.Rights.Has(right):
			err = refusal(wire.CodeForbidden, "This machine may %s, but not %s.", c.machine.Enrol.Rights, right)
		default:
			err = h(out, r, c)
		}
		if err == nil {
			return
		}
		e := *s.explain(r, err) // a copy: some are shared
		e.Notice = s.notice()
		s.refuse(e.Code)
		if out.begun {
			// Part of the answer is out: only a broken connection says that it is not whole.
			panic(http.ErrAbortHandler)
		}
		if r.ProtoMajor == 1 {
			// A client that is still sending might otherwise see a broken connection in place of the answer.
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(slowGrace))
			io.Copy(io.Discard, io.LimitReader(r.Body, holdfast.MaxBatch))
		}
		writeJSON(w, e.Code.Status(), &e)
	})
}

// answer remembers whether part of an answer was written.
type answer struct {
	http.ResponseWriter
	begun bool
}

func (a *answer) Write(p []byte) (int, error) {
	a.begun = true
	return a.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	b = append(b, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	patient(w, len(b))
	w.WriteHeader(status)
	w.Write(b) // a client that is gone is its own concern
	return nil
}

func writeBinary(w http.ResponseWriter, b []byte) error {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	patient(w, len(b))
	w.Write(b)
	return nil
}

// patient gives the client time to take the next n bytes of an answer, and what is left of it after the
// handler's end: nobody holds a request for ever by not reading the answer.
func patient(w http.ResponseWriter, n int) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(slowGrace + time.Duration(n)*time.Second/slowRate))
}

// body reads a whole body of at most limit bytes.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(slowGrace + time.Duration(limit)*time.Second/slowRate))
	defer rc.SetReadDeadline(time.Time{})
	b, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBody, err)
	}
	if int64(len(b)) > limit {
		return nil, tooLarge(limit)
	}
	return b, nil
}

// errBody reports a body that did not arrive whole.
var errBody = errors.New("the request's body did not arrive whole")

func tooLarge(limit int64) error {
	return refusal(wire.CodeTooLarge, "The body of this request may have %d bytes at most.", limit)
}

// parseJSON decodes b; fields that it does not know are left for later versions.
func parseJSON(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return refusal(wire.CodeBadRequest, "The body is not the JSON of this request.")
	}
	return nil
}

// parseHex fills dst from exactly its number of lower-case hex digits.
func parseHex(dst []byte, s, what string) error {
	if len(s) == 2*len(dst) {
		if _, err := hex.Decode(dst, []byte(s)); err == nil && hex.EncodeToString(dst) == s {
			return nil
		}
	}
	return refusal(wire.CodeBadRequest, "The %s is not %d lower-case hex digits.", what, 2*len(dst))
}
