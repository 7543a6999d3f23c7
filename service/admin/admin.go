// Package admin lets the operator speak to a running service: HTTP and JSON over a Unix socket in the
// service's data directory. Who may open the socket is the operator; there is no other check.
//
//	POST /accounts   {"name": NAME}                 makes an account and answers {"token": TOKEN}
//	GET  /accounts   answers Accounts, at most maxAccounts, in the order of their names; ?after=NAME goes on
//	POST /tokens     {"name": NAME}                 a further token for an account that exists, likewise
//	GET  /status     answers a Status; ?digest=1 includes the digest, which reads the whole view
//	GET  /sweep      answers a Quarantine: what in the bucket is not part of the journal
//	POST /sweep      deletes of it what may be deleted, and answers a Quarantine of that
//	GET  /reclaim    answers a reclaim.Report of what that job would do
//	POST /jobs/NAME  runs a background job once and answers a Ran
//	GET  /requests answers a requests.Report of all that is kept, or of ?since=DURATION
//	GET  /account    answers the Account of ?name=NAME
//	POST /payments   {"name": NAME, "id": ID, "amount": DECIMAL, "text": TEXT} books a payment once and answers a Paid
//	GET  /warnings   answers Warnings, at most MaxWarnings; ?after=NAME goes on; ?tell=1 is refused if that cannot be noted
//	POST /warnings   {"name": NAME, "step": STEP}   notes that one was told
//	GET  /credit     answers Credited, what crediting ?incident=ID&hours=N would come to
//	POST /credit     does it
//	GET  /transfers  answers Transfers, at most maxTransfers, after number ?after=N
//	POST /thaw       {"by": NAME, "reason": TEXT}   ends every freeze of deleting and answers a list of Freeze: those
//
// A request that fails is answered with {"error": SENTENCE} and a status of 400 or more.
package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"holdfast"
	"holdfast/service/account"
	"holdfast/service/billing"
	"holdfast/service/identity"
	"holdfast/service/jobs"
	"holdfast/service/journal"
	"holdfast/service/reclaim"
	"holdfast/service/requests"
	"holdfast/service/room"
	"holdfast/service/segment"
	"holdfast/service/serve"
	"holdfast/service/view"
	"holdfast/wire"
)

// SocketName is the name of the socket in the data directory.
const SocketName = "admin.sock"

// ErrNotServing reports that no service is running on a data directory.
var ErrNotServing = errors.New("no service is running there; start it with holdfastd serve")

// Status is what the operator is told about a running service.
type Status struct {
	State    wire.State `json:"state"`
	Version  string     `json:"version"`
	Cell     string     `json:"cell"`
	Address  string     `json:"address"`
	Bucket   string     `json:"bucket"`
	Started  time.Time  `json:"started"`
	Position string     `json:"position"` // of the newest acknowledged segment
	Hash     string     `json:"hash"`     // of its trailer
	Segments uint64     `json:"segments"`
	Blocks   uint64     `json:"blocks"`
	Bytes    uint64     `json:"bytes"` // of sealed blocks
	Sessions int        `json:"sessions"`
	// Refused counts the requests of clients that were refused since the start, by the reason that they were given.
	Refused map[wire.Code]uint64 `json:"refused"`
	// Recovery is how the last start went.
	Recovery Recovery `json:"recovery"`
	// Outside counts the objects that the last start found outside the journal; see Quarantine.
	Outside      int    `json:"outside_objects"`
	OutsideBytes int64  `json:"outside_bytes"`
	Digest       string `json:"digest,omitempty"` // of the view, if asked for
	// Trouble says since when the bucket does not do what is asked, and why; absent if it does.
	Trouble *Trouble `json:"trouble,omitempty"`
	// Room says how full the disks are.
	Room []Fill `json:"room"`
	// Forecasts says which of them will be full within days, the soonest first.
	Forecasts []room.Forecast `json:"forecasts"`
	// ReadOnly says what the service takes no more, and why; empty if it takes everything.
	ReadOnly string `json:"read_only,omitempty"`
	// Frozen says why nothing is deleted at the moment; empty if it is.
	Frozen []Freeze `json:"frozen"`
	// Ended is the newest freezes that ended by themselves in this process.
	Ended []Ended `json:"ended,omitempty"`
	// SingleOwner says what the bucket lacks, if it is used on the operator's word that no other process claims the cell.
	SingleOwner string `json:"single_owner,omitempty"`
	// Retired is what waits to be deleted; Removed is how many segments were.
	Retired reclaim.Waiting `json:"retired"`
	Removed uint64          `json:"removed_segments"`
	// ObjectBytes is the size of all segments in the bucket, those that wait to be deleted included.
	ObjectBytes uint64 `json:"object_bytes"`
	// Damaged is how many blocks are known to be damaged in the bucket and were not stored anew, counted up to MaxDamaged.
	Damaged int `json:"damaged_blocks"`
	// Warnings is what owners were not told yet; absent if there is nothing.
	Warnings *Waiting `json:"warnings,omitempty"`
	// Jobs says how the background jobs are; empty if there are none.
	Jobs []jobs.Status `json:"jobs"`
}

// MaxDamaged is up to which number damaged blocks are counted.
const MaxDamaged = 100_000

// Ran is how a turn of a background job went.
type Ran struct {
	More   bool            `json:"more"` // it can go on at once
	Text   string          `json:"text"`
	Report json.RawMessage `json:"report"`
}

// Trouble is what keeps the service from making anything durable. It goes on trying by itself.
type Trouble struct {
	Since time.Time `json:"since"`
	Cause string    `json:"cause"`
}

// Fill is how full a disk is.
type Fill struct {
	room.Fill
	Percent int64 `json:"percent"`
}

// readOnly tells an operator why and how far the service is read-only.
func (s *Server) readOnly() string {
	c := s.Service.ReadOnly()
	switch {
	case c.Records:
		return "it was started with --read-only and takes nothing new"
	case c == serve.Closed{}:
		return ""
	}
	what := "new backups are"
	if c.Blocks {
		what = "new backups, and blocks of those under way, are"
	}
	_, since, worst := s.Room.State()
	return fmt.Sprintf("since %s %s refused: %s; restores and deletions go on. Make room, or give it a larger disk", since.UTC().Format(time.RFC3339), what, worst)
}

// Freeze is a reason for which all deleting is frozen.
type Freeze struct {
	Reason string    `json:"reason"` // "clocks", "jump" or "contradiction"
	Since  time.Time `json:"since"`  // journal time
	Found  string    `json:"found"`
	// Observed says what looking again has found since, if that is done.
	Observed string `json:"observed,omitempty"`
}

// Ended is a freeze that ended by itself.
type Ended struct {
	Freeze
	Until time.Time `json:"until"`
	Why   string    `json:"why"`
}

func freezes(all []view.Freeze) []Freeze {
	out := []Freeze{}
	for _, f := range all {
		out = append(out, Freeze{Reason: f.Reason.String(), Since: time.UnixMilli(f.Since).UTC(), Found: f.Text})
	}
	return out
}

// Recovery says what a start of the service had to do.
type Recovery struct {
	Replayed int     `json:"replayed_segments"`
	Rebuilt  bool    `json:"rebuilt"` // the view was made anew from the bucket
	Seconds  float64 `json:"seconds"`
}

// Account is what the operator is told about an account.
type Account struct {
	Name        string `json:"name"`
	ID          string `json:"id"`
	Blocks      uint64 `json:"blocks"`
	StoredBytes uint64 `json:"stored_bytes"`
	BilledBytes uint64 `json:"billed_bytes"` // each block counts as holdfast.LeastBilled at least
	Asked       uint64 `json:"asked"`        // names that its machines asked about
	Money       *Money `json:"money,omitempty"`
}

// Accounts answers who the accounts are.
type Accounts struct {
	Accounts []Account `json:"accounts"`
}

// maxAccounts bounds the accounts in one answer.
const maxAccounts = 1000

// Quarantine is what lies in the bucket and is not part of the journal.
type Quarantine struct {
	Count   int       `json:"count"`
	Bytes   int64     `json:"bytes"`
	Objects []Outside `json:"objects"` // the first of them
}

// Outside is one object in quarantine.
type Outside struct {
	Key   string `json:"key"`
	Size  int64  `json:"size"`
	Why   string `json:"why"`
	Sweep bool   `json:"sweep"` // it may be deleted
}

// maxAnswer bounds what a client of the socket reads, bytes.
const maxAnswer = 4 << 20

// Server answers the operator.
type Server struct {
	Journal  *journal.Journal
	Identity *identity.Identity
	Service  *serve.Server
	Room     *room.Watch
	Requests *requests.History
	Jobs     *jobs.Runner   // nil if there are none
	Reclaim  reclaim.Config // of the job that frees space
	Money    *billing.Biller
	started  time.Time
}

// Listen makes the socket in dir. One that an earlier process left is replaced: the caller holds the lock
// on dir.
func Listen(dir string) (net.Listener, error) {
	path := filepath.Join(dir, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace admin socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("listen on %s: the path is too long for a socket; use a data directory with a shorter one", path)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("protect admin socket: %w", err)
	}
	return l, nil
}

// Serve answers on l, which it closes, until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.started = time.Now()
	srv := &http.Server{Handler: s.handler(), ReadTimeout: time.Minute, BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve admin socket: %w", err)
	case <-ctx.Done():
		srv.Close()
		<-served
		return nil
	}
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /accounts", s.stores(s.token(s.add)))
	mux.HandleFunc("GET /accounts", func(w http.ResponseWriter, r *http.Request) {
		a, err := s.accounts(r.URL.Query().Get("after"))
		reply(w, a, err)
	})
	mux.HandleFunc("POST /tokens", s.stores(s.token(account.Token)))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		st, err := s.status(r.Context(), r.URL.Query().Get("digest") == "1")
		reply(w, st, err)
	})
	mux.HandleFunc("GET /sweep", quarantine(s.Journal.Quarantine))
	mux.HandleFunc("POST /sweep", s.writes(quarantine(s.Journal.Sweep)))
	mux.HandleFunc("GET /reclaim", s.writes(func(w http.ResponseWriter, r *http.Request) {
		p, err := reclaim.Plan(r.Context(), s.Reclaim)
		reply(w, p, err)
	}))
	mux.HandleFunc("POST /jobs/{name}", s.writes(s.job))
	mux.HandleFunc("POST /thaw", s.writes(s.thaw))
	mux.HandleFunc("GET /account", func(w http.ResponseWriter, r *http.Request) {
		a, err := s.account(r.URL.Query().Get("name"))
		reply(w, a, err)
	})
	mux.HandleFunc("POST /payments", s.stores(s.inCurrency(s.pay)))
	mux.HandleFunc("GET /warnings", func(w http.ResponseWriter, r *http.Request) {
		h := http.HandlerFunc(s.warnings)
		if r.URL.Query().Get("tell") == "1" {
			h = s.stores(h)
		}
		h(w, r)
	})
	mux.HandleFunc("POST /warnings", s.stores(s.told))
	mux.HandleFunc("GET /credit", s.inCurrency(s.credit(true)))
	mux.HandleFunc("POST /credit", s.stores(s.inCurrency(s.credit(false))))
	mux.HandleFunc("GET /transfers", s.inCurrency(s.transfers))
	mux.HandleFunc("GET /requests", func(w http.ResponseWriter, r *http.Request) {
		since, err := time.ParseDuration(cmp.Or(r.URL.Query().Get("since"), "0"))
		reply(w, s.Requests.Report(since), err)
	})
	return mux
}

// writes refuses what h would write while nothing is to be written at all.
func (s *Server) writes(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.Service.ReadOnly().Records {
			reply(w, nil, errors.New("the service was started with --read-only and writes nothing; start it without"))
			return
		}
		h(w, r)
	}
}

// stores refuses what h would have to store while nothing can be.
func (s *Server) stores(h http.HandlerFunc) http.HandlerFunc {
	return s.writes(func(w http.ResponseWriter, r *http.Request) {
		if since, cause := s.Journal.Trouble(); !since.IsZero() {
			reply(w, nil, fmt.Errorf("the bucket has not done what it was asked since %s: %w; try again when holdfastd status says serving", since.UTC().Format(time.RFC3339), cause))
			return
		}
		h(w, r)
	})
}

type nameRequest struct {
	Name string `json:"name"`
}

type tokenAnswer struct {
	Token string `json:"token"`
}

type errorAnswer struct {
	Error string `json:"error"`
}

// token answers with a token whose secret made makes.
func (s *Server) token(made func(context.Context, *journal.Journal, string) ([32]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q nameRequest
		if err := json.NewDecoder(io.LimitReader(r.Body, wire.MaxJSON)).Decode(&q); err != nil {
			reply(w, nil, fmt.Errorf("read request: %w", err))
			return
		}
		secret, err := made(r.Context(), s.Journal, q.Name)
		if errors.Is(err, view.ErrNameTaken) {
			err = fmt.Errorf("there is an account %q already; for a further token use holdfastd account token", q.Name)
		}
		reply(w, tokenAnswer{s.Identity.Token(secret).String()}, noAccount(err, q.Name))
	}
}

// add makes an account, and has it charged from now on.
func (s *Server) add(ctx context.Context, j *journal.Journal, name string) ([32]byte, error) {
	secret, err := account.Add(ctx, j, name)
	if err == nil {
		s.Money.Wake()
	}
	return secret, err
}

type thawRequest struct {
	By     string `json:"by"`
	Reason string `json:"reason"`
}

func (s *Server) thaw(w http.ResponseWriter, r *http.Request) {
	var q thawRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, wire.MaxJSON)).Decode(&q); err != nil {
		reply(w, nil, fmt.Errorf("read request: %w", err))
		return
	}
	if q.By == "" {
		reply(w, nil, errors.New("the request does not say who thaws"))
		return
	}
	ended, err := s.Journal.Thaw(r.Context(), q.By, q.Reason)
	reply(w, freezes(ended), err)
}

// job runs a background job once.
func (s *Server) job(w http.ResponseWriter, r *http.Request) {
	if s.Jobs == nil {
		reply(w, nil, errors.New("this service runs no background jobs"))
		return
	}
	res, err := s.Jobs.Now(r.Context(), r.PathValue("name"))
	if err != nil {
		reply(w, nil, err)
		return
	}
	report, err := json.Marshal(res.Report)
	reply(w, Ran{res.More, res.Text, report}, err)
}

// quarantine answers with what found finds.
func quarantine(found func(context.Context) (journal.Quarantine, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q, err := found(r.Context())
		a := Quarantine{Count: q.Count, Bytes: q.Bytes, Objects: []Outside{}}
		for _, o := range q.Objects {
			a.Objects = append(a.Objects, Outside(o))
		}
		reply(w, a, err)
	}
}

func (s *Server) status(ctx context.Context, digest bool) (Status, error) {
	v, err := s.Journal.Acked().Stats()
	if err != nil {
		return Status{}, err
	}
	info := s.Journal.Info()
	st := Status{
		State:    s.Service.State(),
		Version:  holdfast.Version,
		Cell:     s.Identity.Cell.String(),
		Address:  s.Identity.Address,
		Bucket:   s.Identity.Bucket,
		Started:  s.started.UTC().Truncate(time.Second),
		Position: v.Position.String(),
		Hash:     hex.EncodeToString(v.Hash[:]),
		Segments: v.Segments,
		Blocks:   v.Blocks,
		Bytes:    v.Bytes,
		Sessions: s.Service.Sessions(),
		Refused:  s.Service.Refused(),
		Recovery: Recovery{info.Replayed, info.Rebuilt, info.Duration.Seconds()},

		Outside: info.Quarantine.Count, OutsideBytes: info.Quarantine.Bytes,
		Frozen: freezes(s.Journal.Freezes()), SingleOwner: info.SingleOwner,
		Removed: v.Removed, ObjectBytes: v.Objects, Jobs: []jobs.Status{},
	}
	if st.Retired, err = reclaim.Wait(s.Journal); err != nil {
		return Status{}, err
	}
	if st.Damaged, err = s.Journal.DamagedBlocks(MaxDamaged); err != nil {
		return Status{}, err
	}
	if st.Warnings, err = s.waiting(); err != nil {
		return Status{}, err
	}
	if s.Jobs != nil {
		st.Jobs = s.Jobs.Status()
	}
	st.ReadOnly, st.Room, st.Forecasts = s.readOnly(), []Fill{}, s.Room.Forecasts()
	for _, f := range s.Room.Fills() {
		st.Room = append(st.Room, Fill{f, f.Percent()})
	}
	for i, f := range st.Frozen {
		if f.Reason == segment.ReasonContradiction.String() {
			st.Frozen[i].Observed = s.Journal.Observed()
		}
	}
	for _, e := range s.Journal.Ended() {
		st.Ended = append(st.Ended, Ended{freezes([]view.Freeze{e.Freeze})[0], e.At.UTC(), e.Why})
	}
	if since, cause := s.Journal.Trouble(); !since.IsZero() {
		st.Trouble = &Trouble{since.UTC().Truncate(time.Second), cause.Error()}
	}
	if digest {
		d, _, err := s.Journal.Digest(ctx)
		if err != nil {
			return st, err
		}
		st.Digest = hex.EncodeToString(d[:])
	}
	return st, nil
}

func (s *Server) accounts(after string) (Accounts, error) {
	a := Accounts{Accounts: []Account{}}
	list, err := s.Journal.Accounts(after, maxAccounts)
	for _, x := range list {
		one, uerr := s.usage(x)
		if uerr != nil {
			return a, uerr
		}
		one.Money = s.listed(x.ID)
		a.Accounts = append(a.Accounts, one)
	}
	return a, err
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		v = errorAnswer{err.Error()}
	}
	json.NewEncoder(w).Encode(v)
}

// AddAccount asks the service on dir for a new account and returns its token.
func AddAccount(ctx context.Context, dir, name string) (string, error) {
	var t tokenAnswer
	err := ask(ctx, dir, http.MethodPost, "/accounts", nameRequest{name}, &t)
	return t.Token, err
}

// GetAccounts asks the service on dir for all accounts and what they use.
func GetAccounts(ctx context.Context, dir string) (all []Account, err error) {
	for after := ""; ; {
		var a Accounts
		if err := ask(ctx, dir, http.MethodGet, "/accounts?after="+url.QueryEscape(after), nil, &a); err != nil {
			return nil, err
		}
		all = append(all, a.Accounts...)
		if len(a.Accounts) < maxAccounts {
			return all, nil
		}
		after = a.Accounts[maxAccounts-1].Name
	}
}

// NewToken asks the service on dir for a further token for an account.
func NewToken(ctx context.Context, dir, name string) (string, error) {
	var t tokenAnswer
	err := ask(ctx, dir, http.MethodPost, "/tokens", nameRequest{name}, &t)
	return t.Token, err
}

// GetStatus asks the service on dir how it is.
func GetStatus(ctx context.Context, dir string, digest bool) (Status, error) {
	var st Status
	path := "/status"
	if digest {
		path += "?digest=1"
	}
	err := ask(ctx, dir, http.MethodGet, path, nil, &st)
	return st, err
}

// GetQuarantine asks the service on dir what in its bucket is not part of the journal.
func GetQuarantine(ctx context.Context, dir string) (q Quarantine, err error) {
	err = ask(ctx, dir, http.MethodGet, "/sweep", nil, &q)
	return q, err
}

// GetRequests asks the service on dir about its requests to the bucket in the time of this length up to now; 0 is all
// that is kept.
func GetRequests(ctx context.Context, dir string, since time.Duration) (r requests.Report, err error) {
	err = ask(ctx, dir, http.MethodGet, "/requests?since="+since.String(), nil, &r)
	return r, err
}

// PlanReclaim asks the service on dir what the job that frees space would do.
func PlanReclaim(ctx context.Context, dir string) (r reclaim.Report, err error) {
	err = ask(ctx, dir, http.MethodGet, "/reclaim", nil, &r)
	return r, err
}

// RunJob has the service on dir run a background job once, and waits for it.
func RunJob(ctx context.Context, dir, name string) (ran Ran, err error) {
	err = ask(ctx, dir, http.MethodPost, "/jobs/"+url.PathEscape(name), nil, &ran)
	return ran, err
}

// Sweep tells the service on dir to delete what may be deleted of that, and returns what it deleted.
func Sweep(ctx context.Context, dir string) (q Quarantine, err error) {
	err = ask(ctx, dir, http.MethodPost, "/sweep", nil, &q)
	return q, err
}

// Thaw tells the service on dir that whoever by names has looked, and why deleting may go on. It returns what was
// frozen.
func Thaw(ctx context.Context, dir, by, reason string) (ended []Freeze, err error) {
	err = ask(ctx, dir, http.MethodPost, "/thaw", thawRequest{by, reason}, &ended)
	return ended, err
}

// ask makes one request to the service on dir. The error wraps ErrNotServing if nobody answers.
func ask(ctx context.Context, dir, method, path string, q, answer any) error {
	var body io.Reader
	if q != nil {
		b, err := json.Marshal(q)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, body)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	c := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, SocketName))
		},
	}}
	resp, err := c.Do(r)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s: %w", dir, ErrNotServing)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%s: only the user that runs the service may speak to it", dir)
	}
	if err != nil {
		return fmt.Errorf("ask the service: %w", err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode != http.StatusOK {
		var e errorAnswer
		if dec.Decode(&e) != nil || e.Error == "" {
			return fmt.Errorf("ask the service: it answered %s", resp.Status)
		}
		return errors.New(e.Error)
	}
	if err := dec.Decode(answer); err != nil {
		return fmt.Errorf("read the service's answer: %w", err)
	}
	return nil
}
