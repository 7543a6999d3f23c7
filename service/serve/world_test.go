package serve

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/internal/pipenet"
	"holdfast/service/account"
	"holdfast/service/bucket/sim"
	"holdfast/service/identity"
	"holdfast/service/journal"
	"holdfast/wire"
)

// world is a service on a simulated bucket, with real TLS over pipes. All of it lives in a synctest bubble:
// times are virtual.
type world struct {
	*testing.T
	bucket *sim.Bucket
	id     *identity.Identity
	j      *journal.Journal
	srv    *Server
	l      *pipenet.Listener
	end    func() error
	// clients' idle connections must end before the bubble does
	clients []*client
	homes   int // networks that clients come from, so far
}

// inWorld runs fn in a bubble with a service that is serving.
func inWorld(t *testing.T, fn func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, bucket: sim.New(1)}
		var err error
		if w.id, err = identity.New("file:///b", "service:1"); err != nil {
			t.Fatal(err)
		}
		w.start()
		defer func() {
			for _, c := range w.clients {
				c.http.CloseIdleConnections()
			}
			if w.end != nil {
				w.stop()
			}
			if v := w.bucket.Store().Violations(); len(v) > 0 {
				t.Errorf("violations: %v", v)
			}
		}()
		fn(w)
	})
}

func (w *world) start() {
	w.Helper()
	var err error
	w.j, err = journal.Open(w.Context(), journal.Config{Create: true, Bucket: w.bucket, Cell: w.id.Cell, Host: [16]byte{1}, LogKey: w.id.LogKey()})
	if err != nil {
		w.Fatalf("open journal: %v", err)
	}
	w.serve()
}

// serve serves what the journal holds.
func (w *world) serve() {
	w.srv = New(Config{Journal: w.j, Identity: w.id})
	w.l = pipenet.Listen()
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	served := make(chan error, 1)
	go func() { served <- w.srv.Serve(ctx, w.l) }()
	w.end = func() error {
		cancel()
		return <-served
	}
}

// stop ends the service in order.
func (w *world) stop() {
	w.Helper()
	if err := w.end(); err != nil {
		w.Errorf("serve: %v", err)
	}
	w.end = nil
	if err := w.j.Close(context.WithoutCancel(w.Context())); err != nil {
		w.Errorf("close journal: %v", err)
	}
}

// crash ends the process without a word: nothing that it writes from now on arrives.
func (w *world) crash() {
	w.Helper()
	w.bucket.Crash()
	w.end()
	w.end = nil
	w.j.Close(context.WithoutCancel(w.Context()))
	w.bucket = w.bucket.Store().Connect(2)
}

// home returns an address in a network of its own.
func (w *world) home() net.Addr {
	w.homes++
	return &net.TCPAddr{IP: net.IPv4(10, byte(w.homes>>8), byte(w.homes), 1), Port: 1000}
}

// dial connects to the service from home.
func (w *world) dial(ctx context.Context, home net.Addr) (net.Conn, error) {
	a, b := net.Pipe()
	return a, w.l.Connect(ctx, pipenet.From(b, home))
}

// client is a small client by hand: it keeps keys and chains and checks nothing.
type client struct {
	w     *world
	tls   ed25519.PrivateKey
	sign  ed25519.PrivateKey
	owner ed25519.PrivateKey
	hist  holdfast.Key
	vault holdfast.VaultID
	group holdfast.GroupID
	read  [history.ReadKeySize]byte
	chain history.Link // of sign
	own   history.Link // of owner
	n     uint64
	head  holdfast.Head
	http  *http.Client
	home  net.Addr
}

func newKey() ed25519.PrivateKey {
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func pub(k ed25519.PrivateKey) [32]byte { return wire.PublicKey(k.Public().(ed25519.PublicKey)) }

// stranger returns a client with fresh keys that the service does not know.
func (w *world) stranger() *client {
	c := &client{w: w, tls: newKey(), sign: newKey(), owner: newKey(), group: holdfast.GroupID{7}, home: w.home()}
	rand.Read(c.read[:])
	rand.Read(c.hist[:])
	c.connect("h2")
	return c
}

func (c *client) connect(proto string) {
	cfg := wire.ClientConfig(c.tls, pub(c.w.id.TLSKey()))
	cfg.NextProtos = []string{proto}
	c.http = &http.Client{Transport: &http.Transport{
		TLSClientConfig:   cfg,
		ForceAttemptHTTP2: proto == "h2",
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.w.dial(ctx, c.home) },
	}}
	c.w.clients = append(c.w.clients, c)
}

// do makes one request. A refusal is returned as an error of type *wire.Error; its HTTP status is checked.
func (c *client) do(method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequest(method, "https://service"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return c.request(r)
}

func (c *client) request(r *http.Request) ([]byte, error) {
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return b, nil
	}
	e := new(wire.Error)
	if err := json.Unmarshal(b, e); err != nil || e.Message == "" {
		return nil, fmt.Errorf("status %d with %q", resp.StatusCode, b)
	}
	if e.Code.Status() != resp.StatusCode {
		c.w.Errorf("%s came with status %d", e.Code, resp.StatusCode)
	}
	return nil, e
}

func (c *client) redeem(secret [32]byte) error {
	_, err := c.do("POST", wire.PathRedeem, fmt.Appendf(nil, `{"secret":"%x"}`, secret))
	return err
}

// record posts a record and follows its answer.
func (c *client) record(path string, r history.Record) (history.Entry, error) {
	b, err := c.do("POST", path, r.Append(nil))
	if err != nil {
		return history.Entry{}, err
	}
	rd := enc.NewReader(b)
	e := history.ReadEntry(rd)
	if err := rd.Done(); err != nil {
		return e, err
	}
	if e.N > c.n {
		c.n, c.head = e.N, e.Head
	}
	return e, nil
}

func (c *client) genesis() history.Record {
	g := history.Genesis{OwnerKey: pub(c.owner), ReadKey: c.read}
	r := history.Sign(history.Body{Type: history.TypeGenesis, Fields: g.Encode()}, c.owner, c.hist)
	c.vault = holdfast.VaultID(r.ID())
	c.own = history.Link{Seq: 1, Prev: r.ID()}
	return r
}

func (c *client) enrol(m *client, rights holdfast.Rights) history.Record {
	e := history.Enrol{SignKey: pub(m.sign), TLSKey: pub(m.tls), Rights: rights, Group: m.group, Chunk: history.DefaultChunk}
	return history.Sign(history.Body{Type: history.TypeEnrol, Vault: c.vault, Seq: c.own.Seq, Prev: c.own.Prev, Fields: e.Encode()}, c.owner, c.hist)
}

// signed signs a record of the machine, in its chain.
func (c *client) signed(t history.Type, fields []byte) history.Record {
	return history.Sign(history.Body{Type: t, Vault: c.vault, Seq: c.chain.Seq, Prev: c.chain.Prev, Fields: fields}, c.sign, c.hist)
}

// advance says that r is in the history.
func (c *client) advance(r history.Record) {
	c.chain = history.Link{Seq: c.chain.Seq + 1, Prev: r.ID()}
}

// account makes an account and returns the secret of its token.
func (w *world) account(name string) [32]byte {
	w.Helper()
	secret, err := account.Add(w.Context(), w.j, name)
	if err != nil {
		w.Fatal(err)
	}
	return secret
}

// customer returns a client with a vault of its own, enrolled with those rights.
func (w *world) customer(name string, rights holdfast.Rights) *client {
	w.Helper()
	c := w.stranger()
	if err := c.redeem(w.account(name)); err != nil {
		w.Fatal(err)
	}
	if _, err := c.record(wire.PathRecords, c.genesis()); err != nil {
		w.Fatal(err)
	}
	r := c.enrol(c, rights)
	if _, err := c.record(wire.PathRecords, r); err != nil {
		w.Fatal(err)
	}
	c.own = history.Link{Seq: 2, Prev: r.ID()}
	return c
}

func (c *client) openRecord() (history.Record, holdfast.SessionID) {
	o := history.Open{Group: c.group, ReadKey: history.ReadKeyIDOf(c.read[:])}
	rand.Read(o.Session[:])
	return c.signed(history.TypeOpen, o.Encode()), o.Session
}

// open opens a session.
func (c *client) open() holdfast.SessionID {
	c.w.Helper()
	r, sid := c.openRecord()
	if _, err := c.record(wire.PathSession, r); err != nil {
		c.w.Fatal(err)
	}
	c.advance(r)
	return sid
}

func path(pattern string, id fmt.Stringer) string {
	pattern = strings.Replace(pattern, "{sid}", id.String(), 1)
	return strings.Replace(pattern, "{group}", id.String(), 1)
}

func name(i int) holdfast.Name { return holdfast.Name{byte(i >> 8), byte(i), 0xaa} }

// sealed makes a block that the service cannot tell from a real one, with size bytes beside its tag.
func sealed(sid holdfast.SessionID, kind holdfast.Kind, size int, links ...holdfast.Name) []byte {
	b := wire.AppendBlockHeader(nil, wire.BlockHeader{Kind: kind, Session: sid, Links: links})
	payload := make([]byte, 16+size)
	rand.Read(payload)
	return append(b, payload...)
}

func frame(n holdfast.Name, sealed []byte) []byte {
	return wire.AppendFrame(nil, wire.Frame{Name: n, Sealed: sealed})
}

// upload sends a batch and asks for it to be made durable at once.
func (c *client) upload(sid holdfast.SessionID, seq int, frames ...[]byte) (wire.Stored, error) {
	var st wire.Stored
	b, err := c.do("POST", path(wire.PathBlocks, sid)+fmt.Sprintf("?seq=%d&flush=1", seq), bytes.Join(frames, nil))
	if err == nil {
		err = json.Unmarshal(b, &st)
	}
	return st, err
}

func (c *client) have(sid holdfast.SessionID, names ...holdfast.Name) (string, error) {
	b, err := c.do("POST", path(wire.PathHave, sid), wire.AppendNames(nil, names))
	return hex.EncodeToString(b), err
}

func (c *client) commitRecord(sid holdfast.SessionID, root holdfast.Name) history.Record {
	return c.signed(history.TypeCommit, history.Commit{Session: sid, Group: c.group, Root: root, Series: holdfast.SeriesID{1}}.Encode())
}

func (c *client) fetch(group holdfast.GroupID, names ...holdfast.Name) ([]wire.Frame, error) {
	b, err := c.do("POST", path(wire.PathFetch, group), wire.AppendNames(nil, names))
	if err != nil {
		return nil, err
	}
	var out []wire.Frame
	for len(b) > 0 {
		f, rest, err := wire.NextFrame(b)
		if err != nil {
			return nil, err
		}
		out, b = append(out, f), rest
	}
	return out, nil
}

func (c *client) hello() wire.Hello {
	c.w.Helper()
	var h wire.Hello
	b, err := c.do("GET", wire.PathHello, nil)
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	if err != nil {
		c.w.Fatal(err)
	}
	return h
}

// want fails the test unless err is a refusal with that code.
func (w *world) want(code wire.Code, err error, what string) {
	w.Helper()
	if wire.CodeOf(err) != code {
		w.Errorf("%s: got %v, want %s", what, err, code)
	}
}

func (w *world) ok(err error, what string) {
	w.Helper()
	if err != nil {
		w.Fatalf("%s: %v", what, err)
	}
}

// later lets virtual time pass.
func later(d time.Duration) { time.Sleep(d) }

// left returns how much of the memory is free.
func (b *budget) left() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.free
}
