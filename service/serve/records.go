package serve

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/account"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/wire"
)

// historyPart is how much of a history one answer holds, bytes; the protocol allows wire.MaxHistory.
const historyPart = 512 << 10

// hello tells any key what the service is and what it knows the key as.
func (s *Server) hello(w http.ResponseWriter, r *http.Request, c caller) error {
	h := wire.Hello{
		Protocol: holdfast.ProtocolVersion,
		Cell:     s.id.Cell.String(),
		Time:     time.Now().UTC(),
		State:    s.State(),
		Notice:   s.notice(),
		LogKey:   hex.EncodeToString(s.id.LogKey().Public().(ed25519.PublicKey)),
		You:      c.standing.String(),
		Limits: map[string]int64{
			"batch":        holdfast.MaxBatch,
			"batch_blocks": holdfast.MaxBatchBlocks,
			"batch_links":  holdfast.MaxBatchLinks,
			"block":        holdfast.MaxBlock,
			"names":        holdfast.MaxHave,
			"links":        holdfast.MaxLinks,
			"record":       holdfast.MaxRecord,
			"ahead":        maxAhead,
			"history":      wire.MaxHistory,
		},
	}
	switch {
	case c.revoked():
		h.You = "revoked"
	case c.standing == enrolled:
		v, ok, err := s.j.Acked().Vault(c.machine.Vault)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("look up vault %.8s of a machine: %w", c.machine.Vault, view.ErrDamaged)
		}
		h.Vault, h.Rights = v.ID.String(), c.machine.Enrol.Rights.String()
		h.N, h.Head = v.N, v.Head.String()
		h.Chain = chain(c.machine.Chain)
		h.Credit = s.credit(c.account)
	}
	return writeJSON(w, http.StatusOK, h)
}

// redeem exchanges a token's secret for an account.
func (s *Server) redeem(w http.ResponseWriter, r *http.Request, c caller) error {
	b, err := body(w, r, wire.MaxJSON)
	if err != nil {
		return err
	}
	var q wire.Redeem
	if err := parseJSON(b, &q); err != nil {
		return err
	}
	var secret [32]byte
	if err := parseHex(secret[:], q.Secret, "token's secret"); err != nil {
		return err
	}
	if err := s.limits.guess(c); err != nil {
		return err
	}
	if err := s.taking(writeRecord); err != nil {
		return err
	}
	// Whoever has a token has it since it is durable. So a wrong one does not even make the journal's writers wait.
	if _, ok, err := s.j.Acked().Token(wire.HashSecret(secret)); err != nil || !ok {
		return cmp.Or(err, view.ErrTokenUnknown)
	}
	ctx, cancel := s.bounded(r.Context())
	defer cancel()
	id, err := account.Redeem(ctx, s.j, secret, c.key)
	if err != nil {
		return overdue(ctx, err)
	}
	return writeJSON(w, http.StatusOK, wire.Redeemed{Account: id.String()})
}

// taking refuses while the service takes nothing new, or not what is to be written.
func (s *Server) taking(w write) error {
	if s.j.Err() != nil {
		return journal.ErrStopped
	}
	if s.ending.Load() {
		return &wire.Error{Code: wire.CodeMaintenance, Message: "The service is being restarted.", RetryAfter: 2}
	}
	if err := s.down(); err != nil {
		return err
	}
	return s.ReadOnly().refuses(w)
}

// record reads a record from a request and checks that the caller is the one to hand it in. Everything
// else is checked by the journal, at the moment when it is appended.
func (s *Server) record(w http.ResponseWriter, r *http.Request, c caller) (history.Record, history.Body, error) {
	raw, err := body(w, r, holdfast.MaxRecord+4+64+32)
	if err != nil {
		return history.Record{}, history.Body{}, err
	}
	rec, err := history.ParseRecord(raw)
	if err != nil {
		return rec, history.Body{}, err
	}
	b, err := history.ParseBody(rec.Body)
	if err != nil {
		return rec, b, err
	}
	if c.standing == enrolled && b.Type != history.TypeGenesis && b.Vault != c.machine.Vault {
		return rec, b, refusal(wire.CodeForbidden, "This machine belongs to another vault than the record names.")
	}
	if c.standing == unknown {
		return rec, b, s.mayReturn(c, rec, b)
	}
	switch b.Type {
	case history.TypeGenesis:
		err = s.mayCreate(c, holdfast.VaultID(rec.ID()))
	case history.TypeEnrol:
		var e history.Enrol
		switch e, err = history.ParseEnrol(b.Fields); {
		case err != nil:
		case c.standing == enrolled:
			err = s.mayHandIn(c, b)
		case e.TLSKey != c.key:
			err = refusal(wire.CodeForbidden, "A vault's first machine is enrolled over a connection of its own key.")
		}
	default:
		err = s.mayHandIn(c, b)
	}
	return rec, b, err
}

// mayHandIn says whether a machine may send a record of its vault: one that it signed itself, of a type that
// it has the right for, or one that the owner signed, whose key never connects by itself.
func (s *Server) mayHandIn(c caller, b history.Body) error {
	if c.standing != enrolled {
		return refusal(wire.CodeUnknownKey, "This machine's key has an account but is not enrolled in a vault.")
	}
	if b.Type.ByService() {
		return refusal(wire.CodeForbidden, "Records of type %s are made by the service itself.", b.Type)
	}
	if b.Signer == c.machine.Signer {
		switch right := b.Type.Right(); {
		case right == 0:
			return refusal(wire.CodeForbidden, "A record of type %s needs the owner's key.", b.Type)
		case !c.machine.Enrol.Rights.Has(right):
			return refusal(wire.CodeForbidden, "This machine may %s, but not %s.", c.machine.Enrol.Rights, right)
		}
		return nil
	}
	v, ok, err := s.j.Acked().Vault(c.machine.Vault)
	if err == nil && !ok {
		err = fmt.Errorf("look up vault %.8s of a machine: %w", c.machine.Vault, view.ErrDamaged)
	}
	if err == nil && (!b.Type.ByOwner() || b.Signer != history.SignerOf(v.Genesis.OwnerKey[:])) {
		err = refusal(wire.CodeForbidden, "This record is signed by another machine than the one that sends it.")
	}
	return err
}

// mayReturn lets a key that the service does not know hand in one thing: its own enrolment in a vault that
// is there, signed by that vault's owner. So somebody with the 24 words and a new machine comes back.
func (s *Server) mayReturn(c caller, rec history.Record, b history.Body) error {
	if b.Type != history.TypeEnrol {
		return errUnknownKey
	}
	e, err := history.ParseEnrol(b.Fields)
	if err != nil {
		return err
	}
	v, ok, err := s.j.Acked().Vault(b.Vault)
	switch {
	case err != nil:
		return err
	case !ok || e.TLSKey != c.key || rec.Verify(v.Genesis.OwnerKey[:]) != nil:
		return errUnknownKey
	}
	return nil
}

// vaults answers which vaults an owner key made. Who asks must know that key, which is in no place but in
// the vault's own records and key files.
func (s *Server) vaults(w http.ResponseWriter, r *http.Request, c caller) error {
	var owner [32]byte
	if err := parseHex(owner[:], r.PathValue("owner"), "owner key in the path"); err != nil {
		return err
	}
	if err := s.limits.guess(c); err != nil {
		return err
	}
	s.ownersMu.Lock()
	defer s.ownersMu.Unlock()
	now := s.j.Acked()
	n, err := now.Vaults()
	if err != nil {
		return err
	}
	vault := func(i int) (view.Vault, error) {
		id, _, err := now.VaultNo(uint32(i))
		if err != nil {
			return view.Vault{}, err
		}
		v, _, err := now.Vault(id)
		return v, err
	}
	for i := len(s.owners); i < int(n); i++ { // vaults are never renumbered: each is looked at once
		v, err := vault(i)
		if err != nil {
			return err
		}
		s.owners = append(s.owners, ownerTag(v.Genesis.OwnerKey))
	}
	found := wire.Vaults{Vaults: []string{}}
	for i, tag := range s.owners {
		if tag != ownerTag(owner) || len(found.Vaults) == maxFound {
			continue
		}
		v, err := vault(i)
		if err != nil {
			return err
		}
		if v.Genesis.OwnerKey == owner {
			found.Vaults = append(found.Vaults, v.ID.String())
		}
	}
	return writeJSON(w, http.StatusOK, found)
}

const (
	// maxVaults bounds the vaults of a cell: each takes 8 bytes of memory, in owners.
	maxVaults = 1 << 19
	// maxCreated bounds the keys that created a vault and enrolled no machine in it.
	maxCreated = 16384
	// maxFound bounds the vaults of one owner that he is told of.
	maxFound = 1000
)

// ownerTag is what is kept in memory of an owner key.
func ownerTag(owner [32]byte) uint64 { return binary.BigEndian.Uint64(owner[:]) }

// mayCreate lets a connection key create one vault.
func (s *Server) mayCreate(c caller, v holdfast.VaultID) error {
	if c.standing == enrolled && c.machine.Vault != v {
		return refusal(wire.CodeForbidden, "This machine's key belongs to a vault already; make a new key for a new vault.")
	}
	if c.standing == enrolled {
		return nil // it is there
	}
	now := s.j.Acked()
	n, err := now.Vaults()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, ok := s.created[c.key]
	switch {
	case ok && old != v:
		return refusal(wire.CodeForbidden, "This key created a vault already; make a new key for a new vault.")
	case ok:
		return nil
	case n >= maxVaults:
		return refusal(wire.CodeForbidden, "This service has as many vaults as it can; its operator must begin another cell.")
	case len(s.created) >= maxCreated && time.Since(s.swept) >= time.Second:
		s.swept = time.Now()
		for k := range s.created {
			if _, enrolled, err := now.MachineByTLS(k); err != nil {
				return err
			} else if enrolled {
				delete(s.created, k) // what it is, everybody sees now
			}
		}
	}
	if len(s.created) >= maxCreated {
		return &wire.Error{Code: wire.CodeBusy, Message: "Too many vaults are being made; try again later.", RetryAfter: 60}
	}
	s.created[c.key] = v
	return nil
}

// records adds a record, of any type but open, to its vault's history and answers its entry once that is
// durable. The same record again is answered with the same entry (JOURNAL 22).
func (s *Server) records(w http.ResponseWriter, r *http.Request, c caller) error {
	rec, b, err := s.record(w, r, c)
	if err != nil {
		return err
	}
	if b.Type == history.TypeOpen {
		return refusal(wire.CodeBadRequest, "A session is opened by a request of its own.")
	}
	if err := s.taking(writeRecord); err != nil {
		return err
	}
	if err := s.limits.record(c, b.Vault, len(rec.Body)); err != nil {
		return err
	}
	if err := s.mayCommit(b); err != nil {
		return err
	}
	e, _, err := s.enter(r, c, rec)
	if err != nil {
		return err
	}
	return writeBinary(w, e.Append(nil))
}

const (
	// maxArchives bounds the archives of one series that are not purged: hourly ones for close to two years. Whatever
	// deletes or expires one looks at all of them.
	maxArchives = 1 << 14
	// maxSeries bounds the series of one vault.
	maxSeries = 1 << 14
)

// mayCommit refuses a commit to a series that has as many archives as it can have, or is one too many.
func (s *Server) mayCommit(b history.Body) error {
	if b.Type != history.TypeCommit {
		return nil
	}
	c, err := history.ParseCommit(b.Fields)
	if err != nil {
		return err
	}
	archives, series, err := s.j.Acked().Series(b.Vault, c.Series)
	switch {
	case err != nil:
		return err
	case archives >= maxArchives:
		return refusal(wire.CodeTooLarge, "The series has %d archives, as many as it can have; delete old ones, or have a policy do it, and go on when they are purged, or begin another series.", archives)
	case archives == 0 && series >= maxSeries:
		return refusal(wire.CodeTooLarge, "The vault has %d series, as many as it can have; go on with one that it has.", series)
	}
	return nil
}

// enter makes rec the next of its vault's history, unless it is there already, and returns its entry once
// that is durable, with the journal time of the request in ms and whether it was there. What the caller's account
// used meanwhile goes with it.
func (s *Server) enter(r *http.Request, c caller, rec history.Record) (e history.Entry, p place, err error) {
	used, keep := s.meter.take(c.account), false
	defer func() {
		if !keep {
			s.meter.add(c.account, used)
		}
	}()
	t, err := s.append(r.Context(), func(tx *journal.Tx) (err error) {
		p.now = tx.Now()
		e, err = tx.History(rec)
		if err == nil && used != (tally{}) {
			err = tx.Record(used.record(c.account))
			keep = err == nil
		}
		if !errors.Is(err, view.ErrDuplicate) {
			return err
		}
		p.known = true
		var ok bool
		_, e, ok, err = tx.Reader().Record(rec.ID())
		if err == nil && !ok {
			err = view.ErrDamaged
		}
		return err
	})
	var stale *history.StaleError
	if errors.As(err, &stale) {
		s.untilDurable(r.Context())
	}
	if err != nil {
		return e, p, err
	}
	s.j.Flush()
	return e, p, s.wait(r.Context(), t)
}

// untilDurable returns when all that is sequenced is durable, so that who is refused because of a record finds
// it in the history.
func (s *Server) untilDurable(ctx context.Context) {
	t, err := s.append(ctx, func(*journal.Tx) error { return nil })
	if err != nil {
		return
	}
	s.j.Flush()
	s.wait(ctx, t)
}

// place says how a record came into the journal.
type place struct {
	now   int64 // journal time, ms
	known bool  // it was there before
}

// history answers the entries of the caller's vault after a given one.
func (s *Server) history(w http.ResponseWriter, r *http.Request, c caller) error {
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil {
		return refusal(wire.CodeBadRequest, "The request needs ?after=N, the number of the last record that the client has.")
	}
	// The memory is held until the client has taken the answer.
	cut := newCutter(w, r)
	defer cut.end()
	release, err := s.memory(r.Context(), s.fetches, c.machine.Vault, historyPart, cut.cutWriting)
	if err != nil {
		return err
	}
	defer release()
	b, err := s.j.Acked().History(c.machine.Vault, after, historyPart)
	if err != nil {
		return err
	}
	return writeBinary(w, b)
}

// usage answers what the caller's account stores.
func (s *Server) usage(w http.ResponseWriter, r *http.Request, c caller) error {
	v := s.j.Acked()
	st, err := v.Stats()
	if err != nil {
		return err
	}
	now := max(st.Time, time.Now().UnixMilli())
	u, err := v.Usage(c.account, now)
	if err != nil {
		return err
	}
	a := wire.Usage{
		Account:           c.account.String(),
		StoredBytes:       u.Bytes,
		BilledBytes:       u.Billed,
		Blocks:            u.Blocks,
		Asked:             u.Asked + s.Asked(c.account),
		ByteSeconds:       byteSeconds(u.Stored),
		BilledByteSeconds: byteSeconds(u.Paid),
		AsOf:              time.UnixMilli(u.AsOf).UTC(),
		ReceivedBytes:     u.In,
		SentBytes:         u.Out + s.meter.count(c.account).sent,
		Money:             s.money(v, c.account),
	}
	if e := c.machine.Enrol; c.standing == enrolled && (e.DayBytes > 0 || e.DayBlocks > 0) {
		d, err := v.Today(c.machine.Vault, c.machine.Signer, now)
		if err != nil {
			return err
		}
		a.Today = &wire.Cap{
			Bytes: e.DayBytes, Blocks: e.DayBlocks, UsedBytes: d.Bytes, UsedBlocks: d.Blocks, Resets: time.UnixMilli(d.Resets()).UTC(),
		}
	}
	return writeJSON(w, http.StatusOK, a)
}

// byteSeconds writes a 128-bit number of byte milliseconds as decimal byte seconds, exactly.
func byteSeconds(i view.Integral) string {
	n := i.Int()
	q, m := n.QuoRem(n, big.NewInt(1000), new(big.Int))
	return fmt.Sprintf("%s.%03d", q, m)
}
