// Package remotetest is a service for the tests of client packages. It keeps blocks and records in memory
// and holds a client to the protocol: what breaks it fails the test.
package remotetest

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/history"
	"holdfast/internal/pipenet"
	"holdfast/wire"
)

// Service is a service that keeps its promises: it orders records as history.Vault allows, forgets sessions
// when it is restarted, takes batches in their order, and fails the test where the protocol is broken.
type Service struct {
	Machine *keyring.Machine
	Owner   keyring.Owner
	LogKey  ed25519.PrivateKey
	t       testing.TB
	key     ed25519.PrivateKey
	address string
	pipes   *pipenet.Listener // nil unless NewPiped made the service

	Mu      sync.Mutex // guards what follows, except while no request is under way
	Vault   *history.Vault
	Entries []history.Entry
	Blocks  map[holdfast.Name][]byte
	Order   []holdfast.Name         // as blocks were first stored
	State   map[holdfast.Name]uint8 // what a fetch answers instead of a block
	// Copies are what was stored under a name before Blocks, the first one first: what a fetch of another copy answers.
	Copies map[holdfast.Name][][]byte
	// Damaged are those of Blocks that are known to be damaged: they count as absent until they are sent again.
	Damaged map[holdfast.Name]bool
	Served  map[string]int // requests by the last part of their path
	Links   bool           // refuse blocks whose links are missing, and bytes that are no block

	// Notice is what the operator has to say.
	Notice string
	// Credit is how the account stands, if it is not paid, and Money what it pays.
	Credit *wire.Credit
	Money  *wire.Money
	// Skew is added to the service's clock.
	Skew time.Duration
	// Hook may answer a request in the service's place (true), or do something before it.
	Hook func(w http.ResponseWriter, r *http.Request) bool
	// Lie, one call at a time, returns what is said to a client instead of the true answer to what it asked.
	// The service has done what it was asked and stays as it is.
	Lie func(r *http.Request, asked, answer []byte) []byte
	// After is called, one call at a time, when the service has done what was asked, before it answers;
	// true drops the answer.
	After func(path string) bool
	after sync.Mutex

	sessions map[string]uint64 // open ones, and the number of their last batch
}

// New starts a service without a vault. It ends with the test.
func New(t testing.TB) *Service {
	t.Helper()
	f := prepare(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", wire.ServerConfig(f.key))
	if err != nil {
		t.Fatal(err)
	}
	f.serve(l)
	return f
}

// NewPiped is New with connections in memory, which Service.Pipe makes: for tests in a bubble of package synctest.
func NewPiped(t testing.TB) *Service {
	t.Helper()
	f := prepare(t)
	f.pipes = pipenet.Listen()
	f.serve(tls.NewListener(f.pipes, wire.ServerConfig(f.key)))
	return f
}

func seed(b byte) []byte {
	s := make([]byte, 32)
	s[0] = b
	return s
}

func prepare(t testing.TB) *Service {
	return &Service{
		t: t, key: ed25519.NewKeyFromSeed(seed(2)), LogKey: ed25519.NewKeyFromSeed(seed(3)),
		sessions: map[string]uint64{}, Blocks: map[holdfast.Name][]byte{}, State: map[holdfast.Name]uint8{}, Copies: map[holdfast.Name][][]byte{}, Served: map[string]int{}, Damaged: map[holdfast.Name]bool{}, Vault: &history.Vault{},
	}
}

func (f *Service) serve(l net.Listener) {
	srv := &http.Server{Handler: f, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	f.t.Cleanup(func() { srv.Close(); <-done })
	f.address = l.Addr().String()
	f.Own(keyring.OwnerOf(holdfast.Key(seed(1))))
}

// Own makes o the owner of the vault that Enrol will make.
func (f *Service) Own(o keyring.Owner) {
	f.Owner = o
	// A fixed group: where files are cut depends on its keys, and a test must not.
	f.Machine = f.NewMachine(holdfast.GroupID{4}, holdfast.RightsAll)
}

// NewMachine returns another machine of the owner, which is not enrolled.
func (f *Service) NewMachine(group holdfast.GroupID, rights holdfast.Rights) *keyring.Machine {
	m := f.Owner.NewMachine(f.Vault.ID, group, rights, history.DefaultChunk)
	m.Address = f.address
	m.ServiceKey = wire.PublicKey(f.key.Public().(ed25519.PublicKey))
	m.LogKey = wire.PublicKey(f.LogKey.Public().(ed25519.PublicKey))
	return m
}

// Pipe connects to a service that NewPiped made.
func (f *Service) Pipe(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := pipenet.Pipe()
	return near, f.pipes.Connect(ctx, far)
}

// Enrol makes the vault through a client, which it returns.
func (f *Service) Enrol(opt remote.Options) *remote.Client {
	f.t.Helper()
	genesis := remote.Genesis(f.Owner, f.Machine.Hist)
	f.Machine.Vault = holdfast.VaultID(genesis.ID())
	c := f.Dial(opt)
	if err := c.Enrol(f.t.Context(), wire.Token{}, f.Owner.SignKey(), genesis); err != nil {
		f.t.Fatal(err)
	}
	return c
}

// Dial returns another client with the same key.
func (f *Service) Dial(opt remote.Options) *remote.Client {
	c := remote.Dial(f.Machine, opt)
	f.t.Cleanup(c.Close)
	return c
}

// Restart forgets what a service keeps in memory only.
func (f *Service) Restart() {
	f.Mu.Lock()
	defer f.Mu.Unlock()
	f.sessions = map[string]uint64{}
}

func (f *Service) now() time.Time { return time.Now().Add(f.Skew) }

func (f *Service) dropped(path string) bool {
	f.after.Lock()
	defer f.after.Unlock()
	return f.After != nil && f.After(path)
}

// ServeHTTP answers one request.
func (f *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.Hook != nil && f.Hook(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client went away
	}
	f.Mu.Lock()
	last := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	f.Served[last]++
	answer, err := f.answer(r, body)
	if f.Lie != nil && err == nil {
		answer = f.Lie(r, body, answer)
	}
	f.Mu.Unlock()
	if err == nil && f.dropped(last) {
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		var we *wire.Error
		if !errors.As(err, &we) {
			f.t.Errorf("%s %s: %v", r.Method, r.URL, err)
			we = &wire.Error{Code: wire.CodeBadRequest, Message: err.Error()}
		}
		w.WriteHeader(we.Code.Status())
		json.NewEncoder(w).Encode(we)
		return
	}
	w.Write(answer)
}

func (f *Service) answer(r *http.Request, body []byte) ([]byte, error) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, wire.Prefix+"/"), "/")
	switch parts[0] {
	case "hello":
		return json.Marshal(wire.Hello{
			Protocol: holdfast.ProtocolVersion, Cell: "0000000000000001", Time: f.now(), State: wire.StateServing, Notice: f.Notice, LogKey: hex.EncodeToString(f.Machine.LogKey[:]),
			You: "machine", Vault: f.Vault.ID.String(), Rights: f.Machine.Rights.String(), N: f.Vault.N, Head: f.Vault.Head.String(), Credit: f.Credit,
		})
	case "usage":
		u := wire.Usage{Account: "00000000000000000000000000000001", Blocks: uint64(len(f.Blocks)), ByteSeconds: "0.000", AsOf: f.now(), Money: f.Money}
		for _, b := range f.Blocks {
			u.StoredBytes += uint64(len(b))
		}
		return json.Marshal(u)
	case "vaults":
		v := wire.Vaults{Vaults: []string{}}
		if f.Vault.N > 0 && parts[1] == hex.EncodeToString(f.Vault.Genesis.OwnerKey[:]) {
			v.Vaults = append(v.Vaults, f.Vault.ID.String())
		}
		return json.Marshal(v)
	case "redeem":
		return []byte(`{"account":"00000000000000000000000000000001"}`), nil
	case "history":
		after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
		if err != nil {
			return nil, err
		}
		var out []byte
		for _, e := range f.Entries {
			if e.N > after && len(out) < 2000 { // in several answers
				out = e.Append(out)
			}
		}
		return out, nil
	case "records":
		return f.record(body, false)
	case "sessions":
		if len(parts) == 1 {
			return f.record(body, true)
		}
		return f.session(parts[1], parts[2], r, body)
	case "groups":
		if parts[2] == "damaged" {
			return f.damaged(r)
		}
		names, err := wire.ParseNames(body)
		if err != nil {
			return nil, err
		}
		var out []byte
		for _, n := range names {
			fr := wire.Frame{Name: n, Status: f.State[n]}
			number, err := strconv.Atoi(cmp.Or(r.URL.Query().Get("copy"), "0"))
			if err != nil || number < 0 || number > wire.MaxCopy {
				return nil, fmt.Errorf("copy %q", r.URL.Query().Get("copy"))
			}
			if number > 0 {
				fr.Status = wire.FrameBlock
			}
			if fr.Status == wire.FrameBlock {
				if number == 0 {
					fr.Sealed = f.Blocks[n]
				} else if c := f.Copies[n]; number <= len(c) {
					fr.Sealed = c[number-1]
				}
				if fr.Sealed == nil {
					fr.Status = wire.FrameAbsent
				}
			}
			out = wire.AppendFrame(out, fr)
		}
		return out, nil
	}
	return nil, fmt.Errorf("no such request")
}

// Rule has the owner sign a record of that type over fields, or the service if it is of its own, behind the back of
// the clients.
func (f *Service) Rule(typ history.Type, fields []byte) {
	f.t.Helper()
	f.Mu.Lock()
	defer f.Mu.Unlock()
	r := history.Sign(history.Body{Type: typ, Vault: f.Vault.ID, Seq: f.Vault.Owner.Seq, Prev: f.Vault.Owner.Prev, Fields: fields}, f.Owner.SignKey(), f.Machine.Hist)
	if typ.ByService() {
		last := f.Vault.Service
		r = history.SignByService(history.Body{Type: typ, Vault: f.Vault.ID, Seq: last.Seq, Prev: last.Prev, Fields: fields}, f.LogKey)
	}
	if _, err := f.record(r.Append(nil), false); err != nil {
		f.t.Fatal(err)
	}
}

func (f *Service) record(body []byte, open bool) ([]byte, error) {
	rec, err := history.ParseRecord(body)
	if err != nil {
		return nil, err
	}
	for _, e := range f.Entries {
		if e.Record.ID() == rec.ID() {
			if open && !f.opened(rec) {
				return nil, &wire.Error{Code: wire.CodeSessionGone, Message: "of an earlier process"}
			}
			return e.Append(nil), nil
		}
	}
	if b, _ := history.ParseBody(rec.Body); b.Type == history.TypeOpen {
		if o, err := history.ParseOpen(b.Fields); err == nil && o.ReadKey != history.ReadKeyIDOf(f.Vault.ReadKey[:]) {
			return nil, &wire.Error{Code: wire.CodeBadRequest, Message: "not the current read key"}
		}
	}
	at := max(f.now().UnixNano(), f.Vault.Time) // never backwards
	if _, err := f.Vault.Check(rec, at, f.LogKey.Public().(ed25519.PublicKey)); err != nil {
		var stale *history.StaleError
		if errors.As(err, &stale) {
			return nil, &wire.Error{Code: wire.CodeStaleChain, Message: "stale", Chain: &wire.Chain{Seq: stale.Want.Seq, Prev: hex.EncodeToString(stale.Want.Prev[:])}}
		}
		return nil, err
	}
	if b, _ := history.ParseBody(rec.Body); f.Links && b.Type == history.TypeCommit {
		if c, _ := history.ParseCommit(b.Fields); !f.there(c.Root) {
			return nil, missing(c.Root)
		}
	}
	id := f.Vault.ID
	if f.Vault.N == 0 {
		id = holdfast.VaultID(rec.ID())
	}
	e := history.Stamp(id, f.Vault.N+1, f.Vault.Head, at, rec, f.LogKey)
	if err := f.Vault.Follow(e, f.LogKey.Public().(ed25519.PublicKey), f.Machine.Hist); err != nil {
		return nil, err
	}
	f.Entries = append(f.Entries, e)
	if open {
		f.openSession(rec)
	}
	return e.Append(nil), nil
}

// check refuses a block that the service cannot keep.
func (f *Service) check(fr wire.Frame) error {
	if !f.Links {
		return nil
	}
	h, _, err := wire.ParseBlockHeader(fr.Sealed)
	if err != nil {
		return err
	}
	var lacks []holdfast.Name
	for _, l := range h.Links {
		if !f.there(l) {
			lacks = append(lacks, l)
		}
	}
	if len(lacks) > 0 {
		return missing(lacks...)
	}
	return nil
}

func missing(names ...holdfast.Name) error {
	e := &wire.Error{Code: wire.CodeMissing, Message: "Blocks that are needed are not there."}
	for _, n := range names[:min(len(names), wire.MaxMissing)] {
		e.Missing = append(e.Missing, n.String())
	}
	return e
}

// there reports whether a block counts as present.
func (f *Service) there(n holdfast.Name) bool { return f.Blocks[n] != nil && !f.Damaged[n] }

// damaged answers in pages of 2.
func (f *Service) damaged(r *http.Request) ([]byte, error) {
	var all []wire.Damaged
	for n := range f.Damaged {
		if n.String() > r.URL.Query().Get("after") {
			all = append(all, wire.Damaged{Name: n, Kind: holdfast.Kind(f.Blocks[n][2]), Mine: true})
		}
	}
	slices.SortFunc(all, func(a, b wire.Damaged) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	return wire.AppendDamaged(nil, all[:min(2, len(all))]), nil
}

// opened reports whether the session of an open record is still open.
func (f *Service) opened(rec history.Record) bool {
	b, _ := history.ParseBody(rec.Body)
	o, _ := history.ParseOpen(b.Fields)
	_, ok := f.sessions[o.Session.String()]
	return ok
}

func (f *Service) openSession(rec history.Record) {
	b, _ := history.ParseBody(rec.Body)
	o, err := history.ParseOpen(b.Fields)
	if err != nil {
		f.t.Errorf("open record: %v", err)
	}
	f.sessions[o.Session.String()] = 0
}

func (f *Service) session(sid, what string, r *http.Request, body []byte) ([]byte, error) {
	done, ok := f.sessions[sid]
	if !ok {
		return nil, &wire.Error{Code: wire.CodeSessionGone, Message: "gone"}
	}
	switch what {
	case "have":
		names, err := wire.ParseNames(body)
		if err != nil {
			return nil, err
		}
		out := make([]byte, len(names))
		for i, n := range names {
			if f.there(n) {
				out[i] = 1
			}
		}
		return out, nil
	case "blocks":
		seq, err := strconv.ParseUint(r.URL.Query().Get("seq"), 10, 64)
		if err != nil || seq == 0 {
			return nil, fmt.Errorf("batch number: %w", err)
		}
		if seq > done+1 {
			return nil, &wire.Error{Code: wire.CodeOutOfOrder, Message: "early"}
		}
		if len(body) > holdfast.MaxBatch {
			return nil, fmt.Errorf("batch of %d bytes", len(body))
		}
		f.sessions[sid] = max(done, seq)
		var st wire.Stored
		for rd := strings.NewReader(string(body)); rd.Len() > 0; {
			fr, err := wire.ReadFrame(rd)
			if err != nil {
				return nil, err
			}
			if f.there(fr.Name) {
				st.Known++
				continue
			}
			if err := f.check(fr); err != nil {
				return nil, err
			}
			st.Stored++
			if f.Damaged[fr.Name] {
				delete(f.Damaged, fr.Name)
				f.Copies[fr.Name] = append(f.Copies[fr.Name], f.Blocks[fr.Name])
			} else {
				f.Order = append(f.Order, fr.Name)
			}
			f.Blocks[fr.Name] = fr.Sealed
		}
		return json.Marshal(st)
	case "close":
		delete(f.sessions, sid)
		return []byte("{}"), nil
	}
	return nil, fmt.Errorf("no such request")
}
