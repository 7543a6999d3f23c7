//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	hf "holdfast"
	"holdfast/client/chunk"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/seal"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/segment"
	"holdfast/wire"
)

// vault is a customer with an owner file at hand and a machine of his that is in good hands.
type vault struct {
	s     *service
	home  *client // may do everything; its key is the owner's to use
	owner keyring.OwnerFile
}

func newVault(t testing.TB, s *service) *vault {
	t.Helper()
	v := &vault{s: s, home: newClient(t, s)}
	var err error
	if v.owner, err = keyring.LoadOwner(v.home.owner(), nil); err != nil {
		t.Fatal(err)
	}
	return v
}

// machine reads a client's key file.
func (c *client) machine() *keyring.Machine {
	c.t.Helper()
	m, err := keyring.Load(c.key(), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// remote returns a connection of this machine that gives up at the first failure and remembers nothing.
func (c *client) remote() *remote.Client {
	return remote.Dial(c.machine(), remote.Options{Patience: -1})
}

// inSession calls fn, which must succeed, with a session of this machine.
func (c *client) inSession(fn func(s *remote.Session) error) {
	c.t.Helper()
	r := c.remote()
	defer r.Close()
	s, err := r.OpenSession(context.Background())
	if err == nil {
		defer s.Close()
		err = fn(s)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// history returns the vault's history as c verifies it.
func (c *client) history() *history.Vault {
	c.t.Helper()
	r := c.remote()
	defer r.Close()
	h, err := r.History(context.Background())
	if err != nil {
		c.t.Fatal(err)
	}
	return h
}

// derive makes a key file of its own in a fresh place, as `key derive` does with these arguments.
func (v *vault) derive(t testing.TB, args ...string) *client {
	t.Helper()
	c := unenrolled(t)
	v.home.ok(append([]string{"key", "derive", c.key(), "--owner", v.home.owner()}, args...)...)
	return c
}

// rotate makes another read key the current one, and the home machine's.
func (v *vault) rotate() {
	v.home.t.Helper()
	v.home.ok("key", "rotate-read", "--owner", v.home.owner())
}

// archived makes n archives of a tree of at least 120 files and returns them and the tree.
func (c *client) archived(t testing.TB, series string, n int) (tree string, made []listed) {
	t.Helper()
	dir := scratch(t)
	tree = smallTree(t, dir, "tree", uint64(len(series)), 120)
	for range n {
		c.ok("create", "-C", dir, series, "tree")
	}
	return tree, c.of(series)
}

// of lists the archives of one series.
func (c *client) of(series string) (made []listed) {
	c.t.Helper()
	for _, a := range c.archives() {
		if strings.HasPrefix(a.Archive, series+"@") {
			made = append(made, a)
		}
	}
	return made
}

// restores checks that an archive comes back byte for byte.
func (c *client) restores(archive, tree string) {
	c.t.Helper()
	out := filepath.Join(scratch(c.t), "out")
	c.ok("extract", archive, "--target", out)
	same(c.t, tree, filepath.Join(out, filepath.Base(tree)))
}

// refusedCLI checks that a command fails with one sentence in which text is.
func (c *client) refusedCLI(code int, text string, args ...string) {
	c.t.Helper()
	o := c.exits(code, args...)
	if !strings.Contains(o.stderr, text) {
		c.t.Errorf("holdfast %s does not say %q: %s", strings.Join(args, " "), text, o.stderr)
	}
	lines := strings.Split(strings.TrimSpace(o.stderr), "\n")
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "holdfast: ") || strings.Contains(last, "%!") {
		c.t.Errorf("holdfast %s ends with %q", strings.Join(args, " "), last)
	}
}

// wants checks that err is a refusal with that code.
func wants(t testing.TB, code wire.Code, err error, what string) {
	t.Helper()
	if wire.CodeOf(err) != code {
		t.Errorf("%s: %v, want it refused as %s", what, err, code)
	}
}

// raw speaks the protocol with a machine's keys and without any of the client's own checks.
type raw struct {
	t    testing.TB
	m    *keyring.Machine
	http *http.Client
}

func (c *client) raw() *raw {
	c.t.Helper()
	m := c.machine()
	r := &raw{t: c.t, m: m, http: &http.Client{Transport: &http.Transport{TLSClientConfig: wire.ClientConfig(m.TLSKey(), m.ServiceKey)}}}
	c.t.Cleanup(r.http.CloseIdleConnections)
	return r
}

// do makes one request; a refusal is a *wire.Error.
func (r *raw) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	resp, err := r.begin(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Close()
	return io.ReadAll(resp)
}

// begin makes one request and returns the body of the answer.
func (r *raw) begin(ctx context.Context, method, path string, body []byte) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+r.m.Address+path, bytes.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var we wire.Error
	if json.Unmarshal(b, &we) != nil || we.Code == "" || resp.StatusCode != we.Code.Status() {
		return nil, fmt.Errorf("HTTP %s: %s", resp.Status, b)
	}
	return nil, &we
}

func (r *raw) hello() (h wire.Hello) {
	r.t.Helper()
	b, err := r.do(context.Background(), http.MethodGet, wire.PathHello, nil)
	if err == nil {
		err = json.Unmarshal(b, &h)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// body returns a record's body that continues the machine's chain.
func (r *raw) body(t history.Type, fields []byte) history.Body {
	r.t.Helper()
	b := history.Body{Type: t, Vault: r.m.Vault, Time: time.Now().UnixNano(), Fields: fields}
	if c := r.hello().Chain; c != nil {
		prev, err := hex.DecodeString(c.Prev)
		if err != nil || len(prev) != len(b.Prev) {
			r.t.Fatal(err)
		}
		b.Seq = c.Seq
		copy(b.Prev[:], prev)
	}
	return b
}

// post hands a record in.
func (r *raw) post(path string, rec history.Record) (e history.Entry, err error) {
	b, err := r.do(context.Background(), http.MethodPost, path, rec.Append(nil))
	if err != nil {
		return e, err
	}
	rd := enc.NewReader(b)
	e = history.ReadEntry(rd)
	return e, rd.Done()
}

// says signs a record with the machine's key and hands it in.
func (r *raw) says(t history.Type, fields []byte) error {
	r.t.Helper()
	_, err := r.post(wire.PathRecords, history.Sign(r.body(t, fields), r.m.SignKey(), r.m.Hist))
	return err
}

// saysAs hands in a record that claims to be somebody else's, with a signature by the machine's key.
func (r *raw) saysAs(signer ed25519.PublicKey, t history.Type, fields []byte) error {
	r.t.Helper()
	b := r.body(t, fields)
	rec := history.Sign(b, r.m.SignKey(), r.m.Hist)
	b.Signer = history.SignerOf(signer)
	rec.Body = b.Encode()
	_, err := r.post(wire.PathRecords, rec)
	return err
}

// fetch asks for blocks of a group and returns how many were answered with their bytes.
func (r *raw) fetch(group hf.GroupID, names ...hf.Name) (n int, err error) {
	b, err := r.do(context.Background(), http.MethodPost, strings.Replace(wire.PathFetch, "{group}", group.String(), 1), wire.AppendNames(nil, names))
	for err == nil && len(b) > 0 {
		var f wire.Frame
		if f, b, err = wire.NextFrame(b); f.Status == wire.FrameBlock {
			n++
		}
	}
	return n, err
}

// chunksOf cuts and names a file as a machine of m's group does.
func chunksOf(t testing.TB, m *keyring.Machine, file string) (names []hf.Name, plains [][]byte) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	keys := m.GroupKeys()
	for c := chunk.New(f, &keys.Data, int(m.Chunk)); ; {
		b, err := c.Next(nil)
		if err == io.EOF {
			return names, plains
		}
		if err != nil {
			t.Fatal(err)
		}
		names, plains = append(names, keys.NameOf(hf.KindChunk, b)), append(plains, b)
	}
}

// garbage stores blocks that are nothing under given names, as a thief who has written his own client.
func (c *client) garbage(names []hf.Name) {
	c.t.Helper()
	c.inSession(func(s *remote.Session) error {
		for i, n := range names {
			b := wire.AppendBlockHeader(nil, wire.BlockHeader{Kind: hf.KindChunk, Session: s.Secret().ID})
			fill := make([]byte, 300)
			noise(uint64(i)).Read(fill)
			if err := s.Upload(context.Background(), n, append(b, fill...)); err != nil {
				return err
			}
		}
		if err := s.Drain(context.Background()); err != nil {
			return err
		}
		if st := s.Stats(); int(st.Stored) != len(names) {
			c.t.Errorf("of %d blocks of garbage the service took %d", len(names), st.Stored)
		}
		return nil
	})
}

// opensSessions returns which of the vault's sessions, oldest first, somebody opens who has that key file and
// a copy of the whole bucket.
func opensSessions(t testing.TB, s *service, m *keyring.Machine) (open []bool) {
	t.Helper()
	reader, err := seal.NewReader(m)
	if err != nil {
		t.Fatal(err)
	}
	type session struct {
		open    history.Open
		signer  hf.SignerID
		rewraps []history.Rewrap
	}
	var all []*session
	byID := map[hf.SessionID]*session{}
	for _, r := range journal(t, s) {
		h, ok := r.Record.(segment.History)
		if !ok {
			continue
		}
		b, err := history.ParseBody(h.Entry.Record.Body)
		if err != nil {
			t.Fatal(err)
		}
		if b.Vault != m.Vault {
			continue
		}
		switch b.Type {
		case history.TypeOpen:
			o, err := history.ParseOpen(b.Fields)
			if err != nil {
				t.Fatal(err)
			}
			x := &session{open: o, signer: b.Signer}
			all, byID[o.Session] = append(all, x), x
		case history.TypeRewrap:
			w, err := history.ParseRewrap(b.Fields)
			if err != nil {
				t.Fatal(err)
			}
			byID[w.Session].rewraps = append(byID[w.Session].rewraps, w)
		}
	}
	for _, x := range all {
		if err := reader.AddOpen(x.open, x.signer, x.rewraps...); err != nil {
			t.Fatal(err)
		}
		err := reader.CheckSession(x.open.Session)
		if err != nil && !errors.Is(err, seal.ErrDamaged) {
			t.Fatal(err)
		}
		open = append(open, err == nil)
	}
	return open
}
