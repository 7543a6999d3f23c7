package remote

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
	"strings"
	"time"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/wire"
)

const (
	maxSign      = 8           // times that one record is signed anew after another process of this machine was faster
	behindLimit  = time.Minute // how long a service may refuse a record that continues all that it shows
	maxAhead     = time.Hour   // between this machine's clock and the newest stamp, before the user is told
	maxEntry     = 16 << 10    // bytes of one history entry in an answer
	maxHistoryTo = 1 << 30     // bytes of history that one run follows
)

// History returns the vault's history, verified from its first record to the newest: every signature,
// tag, chain and head, and that it continues what this machine saw in earlier runs. The error wraps one
// of package history's where the service is not to be trusted.
func (c *Client) History(ctx context.Context) (*history.Vault, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.follow(ctx); err != nil {
		return nil, err
	}
	return c.snapshot(), nil
}

// Fresh reports whether this machine remembered no head when the client was made: then an old state of
// the service cannot be told from the newest.
func (c *Client) Fresh() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memory.path == "" || c.memory.n == 0
}

func (c *Client) snapshot() *history.Vault { return c.vault.Clone() }

// greet tells the user, once, what the operator has to say, and that the account is not paid; c.mu is held. It asks once and not
// for long: nothing else of the answer is used, and what is wrong with the service the next request will tell.
func (c *Client) greet(ctx context.Context) {
	if c.greeted || c.opt.Notify == nil {
		return
	}
	c.greeted = true
	ctx, cancel := context.WithTimeout(ctx, greetLimit)
	defer cancel()
	w := &watch{idle: time.AfterFunc(greetLimit, cancel), progress: func(int64) {}, step: func() {}}
	defer w.idle.Stop()
	r, err := c.attempt(ctx, http.MethodGet, wire.PathHello, nil, w)
	if err != nil {
		return
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, wire.MaxJSON))
	var h wire.Hello
	if err != nil || json.Unmarshal(b, &h) != nil {
		return
	}
	if h.Notice != "" {
		c.opt.Notify("notice from the operator of " + c.m.Address + ": " + cut(h.Notice))
	}
	if s := c.owes(h.Credit); s != "" {
		c.opt.Notify(s)
	}
}

// follow brings c.vault up to what the service shows; c.mu is held.
func (c *Client) follow(ctx context.Context) error {
	c.greet(ctx)
	total := 0
	for {
		b, err := c.call(ctx, http.MethodGet, fmt.Sprintf("%s?after=%d", wire.PathHistory, c.vault.N), nil, wire.MaxHistory)
		if err != nil {
			return fmt.Errorf("read history: %w", err)
		}
		if len(b) == 0 {
			break
		}
		if total += len(b); total > maxHistoryTo {
			return fmt.Errorf("read history: %w: more than %d bytes", ErrProtocol, maxHistoryTo)
		}
		rd := enc.NewReader(b)
		for rd.Err() == nil && rd.Len() > 0 {
			e := history.ReadEntry(rd)
			if rd.Err() != nil {
				break
			}
			if err := c.take(e); err != nil {
				return err
			}
		}
		if err := rd.Done(); err != nil {
			return fmt.Errorf("read history: %w: %w", history.ErrFormat, err)
		}
	}
	if c.vault.N == 0 {
		return fmt.Errorf("%w: the service shows no history of this vault", history.ErrOrder)
	}
	if err := c.memory.end(c.vault); err != nil {
		return err
	}
	// Times decide what may be purged. A service that is ahead says so with the next stamp at the latest; whether
	// it or this machine is wrong, nobody can tell from here, and it must not keep anybody from restoring.
	if ahead := time.Until(time.Unix(0, c.vault.Time)); ahead > maxAhead && c.opt.Notify != nil && !c.ahead {
		c.ahead = true
		c.opt.Notify(fmt.Sprintf("the newest record of the history is stamped %v in the future; set this machine's clock if it is wrong, else do not believe the times that the service gives", ahead.Round(time.Minute)))
	}
	return c.memory.keep(c.vault)
}

// take verifies that e comes next and adds it; c.mu is held.
func (c *Client) take(e history.Entry) error {
	if err := c.vault.Follow(e, ed25519.PublicKey(c.m.LogKey[:]), c.m.Hist); err != nil {
		return err
	}
	if err := c.memory.check(c.vault); err != nil {
		return err
	}
	if c.awaited == (place{e.N, e.Record.ID()}) {
		c.awaited = place{}
	}
	if c.opt.Record != nil {
		c.opt.Record(e)
	}
	return nil
}

// Enrol redeems the token that made m's account, creates the vault and enrols m in it. m.Vault must be
// the ID of genesis.
func (c *Client) Enrol(ctx context.Context, token wire.Token, owner ed25519.PrivateKey, genesis history.Record) error {
	body, err := json.Marshal(wire.Redeem{Secret: hex.EncodeToString(token.Secret[:])})
	if err != nil {
		return fmt.Errorf("redeem token: %w", err)
	}
	if _, err := c.call(ctx, http.MethodPost, wire.PathRedeem, body, wire.MaxJSON); err != nil {
		return fmt.Errorf("redeem token: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.vault.N == 0 {
		if err := c.post(ctx, wire.PathRecords, genesis); err != nil {
			return fmt.Errorf("create vault: %w", err)
		}
	}
	r := history.Sign(history.Body{
		Type: history.TypeEnrol, Vault: c.m.Vault,
		Seq: c.vault.Owner.Seq, Prev: c.vault.Owner.Prev,
		SeenN: c.vault.N, SeenHead: c.vault.Head,
		Time: time.Now().UnixNano(), Fields: c.m.Enrol().Encode(),
	}, owner, c.m.Hist)
	if err := c.post(ctx, wire.PathRecords, r); err != nil {
		return fmt.Errorf("enrol machine: %w", err)
	}
	if _, ok := c.vault.Machines[c.m.Signer()]; !ok {
		return fmt.Errorf("enrol machine: %w: the record is not in the vault's history", history.ErrOrder)
	}
	return c.memory.keep(c.vault)
}

// Vaults asks which vaults an owner key made. The answer is not verified; Return does that.
func (c *Client) Vaults(ctx context.Context, owner [32]byte) ([]holdfast.VaultID, error) {
	b, err := c.call(ctx, http.MethodGet, strings.Replace(wire.PathVaults, "{owner}", hex.EncodeToString(owner[:]), 1), nil, wire.MaxJSON)
	if err != nil {
		return nil, fmt.Errorf("look for the owner's vault: %w", err)
	}
	var v wire.Vaults
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("look for the owner's vault: %w: %w", ErrProtocol, err)
	}
	ids := make([]holdfast.VaultID, len(v.Vaults))
	for i, s := range v.Vaults {
		raw, err := hex.DecodeString(s)
		if err != nil || len(raw) != len(ids[i]) {
			return nil, fmt.Errorf("look for the owner's vault: %w", ErrProtocol)
		}
		copy(ids[i][:], raw)
	}
	return ids, nil
}

// Return enrols this machine, which the service does not know, in the vault m.Vault, and verifies the
// vault's whole history.
func (c *Client) Return(ctx context.Context, owner ed25519.PrivateKey) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var at history.Link // the history may be read only afterwards: the service says where the owner's chain stands
	for try := 1; ; try++ {
		r := history.Sign(history.Body{
			Type: history.TypeEnrol, Vault: c.m.Vault, Seq: at.Seq, Prev: at.Prev, Time: time.Now().UnixNano(), Fields: c.m.Enrol().Encode(),
		}, owner, c.m.Hist)
		err := c.post(ctx, wire.PathRecords, r)
		var we *wire.Error
		if errors.As(err, &we) && we.Code == wire.CodeStaleChain && we.Chain != nil && try < maxSign {
			prev, derr := hex.DecodeString(we.Chain.Prev)
			if derr != nil || len(prev) != len(at.Prev) {
				return fmt.Errorf("enrol machine: %w", ErrProtocol)
			}
			at.Seq = we.Chain.Seq
			copy(at.Prev[:], prev)
			continue
		}
		if err != nil {
			return fmt.Errorf("enrol machine: %w", err)
		}
		if _, ok := c.vault.Machines[c.m.Signer()]; !ok || c.vault.Genesis.OwnerKey != c.m.Owner {
			return fmt.Errorf("enrol machine: %w: it is not in a vault of this owner", history.ErrOrder)
		}
		return c.memory.keep(c.vault)
	}
}

// Genesis returns the record that creates a vault of this owner; its ID is the vault's ID.
func Genesis(o keyring.Owner, hist holdfast.Key) history.Record {
	return history.Sign(history.Body{Type: history.TypeGenesis, Time: time.Now().UnixNano(), Fields: o.Genesis().Encode()}, o.SignKey(), hist)
}

// submit signs a record of this machine over fields, and has it added to the history. It returns its ID.
func (c *Client) submit(ctx context.Context, path string, t history.Type, fields []byte) (holdfast.RecordID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sign(ctx, path, t, fields, c.m.SignKey(), func() history.Link { return c.vault.Machines[c.m.Signer()].Chain })
}

// Submit signs a record of this machine over fields, has it added to the history, and returns the vault with it.
func (c *Client) Submit(ctx context.Context, t history.Type, fields []byte) (*history.Vault, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.follow(ctx); err != nil {
		return nil, err
	}
	_, err := c.sign(ctx, wire.PathRecords, t, fields, c.m.SignKey(), func() history.Link { return c.vault.Machines[c.m.Signer()].Chain })
	return c.snapshot(), err
}

// SubmitAsOwner is Submit with a record that the owner signs. It reaches the service over this machine's
// connection: the owner's key never connects by itself.
func (c *Client) SubmitAsOwner(ctx context.Context, owner ed25519.PrivateKey, t history.Type, fields []byte) (*history.Vault, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.follow(ctx); err != nil {
		return nil, err
	}
	_, err := c.sign(ctx, wire.PathRecords, t, fields, owner, func() history.Link { return c.vault.Owner })
	return c.snapshot(), err
}

// sign signs a record with key, after what chain then returns, and has it added; c.mu is held.
func (c *Client) sign(ctx context.Context, path string, t history.Type, fields []byte, key ed25519.PrivateKey, chainOf func() history.Link) (holdfast.RecordID, error) {
	var behind time.Time // since when the service has refused what continues all that it shows
	pause := firstPause
	for try := 1; ; {
		chain := chainOf()
		r := history.Sign(history.Body{
			Type: t, Vault: c.m.Vault, Seq: chain.Seq, Prev: chain.Prev,
			SeenN: c.vault.N, SeenHead: c.vault.Head,
			Time: time.Now().UnixNano(), Fields: fields,
		}, key, c.m.Hist)
		err := c.post(ctx, path, r)
		if err == nil {
			return r.ID(), c.memory.keep(c.vault)
		}
		if code := wire.CodeOf(err); code != wire.CodeStaleChain && code != wire.CodeBehind {
			return holdfast.RecordID{}, err
		}
		// Another process with this key wrote a record since. The same record again would have
		// been answered with its place, so this one is not in the history and never will be.
		if ferr := c.follow(ctx); ferr != nil {
			return holdfast.RecordID{}, ferr
		}
		if chainOf() != chain {
			if try++; try > maxSign {
				return holdfast.RecordID{}, err
			}
			behind, pause = time.Time{}, firstPause
			continue
		}
		// No record explains it. A process that another one has taken the cell over from says so until it
		// finds out, on connections that were made to it. For longer only a service does that has lost
		// records which it acknowledged, or hides some.
		if behind.IsZero() {
			behind = time.Now()
		}
		if time.Since(behind)+pause > min(c.opt.Patience, behindLimit) {
			return holdfast.RecordID{}, fmt.Errorf("%w: it refuses a record that continues everything it showed (%v)", history.ErrOrder, err)
		}
		c.http.CloseIdleConnections()
		if err := sleep(ctx, jitter(pause)); err != nil {
			return holdfast.RecordID{}, err
		}
		pause = min(2*pause, longPause)
	}
}

// post has the service add r, and follows the history to it; c.mu is held. Asked again with the same
// record, the service answers with the place that it has already.
func (c *Client) post(ctx context.Context, path string, r history.Record) error {
	b, err := c.call(ctx, http.MethodPost, path, r.Append(nil), maxEntry)
	if err != nil {
		return err
	}
	rd := enc.NewReader(b)
	e := history.ReadEntry(rd)
	if err := rd.Done(); err != nil {
		return fmt.Errorf("read entry: %w: %w", history.ErrFormat, err)
	}
	if !bytes.Equal(e.Record.Body, r.Body) {
		return fmt.Errorf("%w: the service answered with another record", history.ErrOrder)
	}
	switch {
	case e.N == c.vault.N+1:
		return c.take(e)
	case e.N <= c.vault.N: // which is verified, and r is not in it
		return fmt.Errorf("%w: the service says that it added a record as number %d, which is another one", history.ErrOrder, e.N)
	}
	c.awaited = place{e.N, r.ID()}
	if err := c.follow(ctx); err != nil {
		return err
	}
	if c.awaited != (place{}) {
		return fmt.Errorf("%w: the service says that it added record %d, but its history does not show it there and ends at %d", history.ErrOrder, e.N, c.vault.N)
	}
	return nil
}

// Missing returns the names that the service said are missing, if err is such a refusal.
func Missing(err error) ([]holdfast.Name, bool) {
	var we *wire.Error
	if !errors.As(err, &we) || we.Code != wire.CodeMissing {
		return nil, false
	}
	var names []holdfast.Name
	for _, s := range we.Missing {
		var n holdfast.Name
		if b, err := hex.DecodeString(s); err == nil && len(b) == len(n) {
			copy(n[:], b)
			names = append(names, n)
		}
	}
	return names, true
}
