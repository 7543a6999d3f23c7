package view

import (
	"fmt"
	"math/bits"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// Reader answers questions about a view: of acknowledged segments only, or of everything sequenced. All
// methods return false, without an error, for what is not there.
type Reader struct{ rows Getter }

// NewReader returns a Reader over rows.
func NewReader(rows Getter) Reader { return Reader{rows} }

// Block returns where a block of a group is.
func (r Reader) Block(v holdfast.VaultID, g holdfast.GroupID, name holdfast.Name) (Block, bool, error) {
	n, ok, err := loadGroup(r.rows, v, g)
	if err != nil || !ok {
		return Block{}, false, err
	}
	k := blockKey(rowBlock, n, name)
	return loadBlock(r.rows, k[:])
}

// Present returns where a block of a group is, if those who deduplicate or link may rely on it: a suspect
// or damaged block (see the package comment) is not there.
func (r Reader) Present(v holdfast.VaultID, g holdfast.GroupID, name holdfast.Name) (Block, bool, error) {
	b, ok, err := r.Block(v, g, name)
	if err != nil || !ok {
		return b, ok, err
	}
	n, _, err := loadGroup(r.rows, v, g)
	if err != nil {
		return b, false, err
	}
	if b.Damaged {
		return b, false, nil
	}
	rev, err := loadRevocations(r.rows, n)
	if err != nil || len(rev) == 0 {
		return b, err == nil, err
	}
	bad, err := rev.suspect(r.rows, b)
	return b, err == nil && !bad, err
}

// Alternate returns suspect block number i, from 0 on, that was stored anew under that name.
func (r Reader) Alternate(v holdfast.VaultID, g holdfast.GroupID, name holdfast.Name, i uint32) (Block, bool, error) {
	n, ok, err := loadGroup(r.rows, v, g)
	if err != nil || !ok {
		return Block{}, false, err
	}
	k := blockKey(rowAlternate, n, name)
	return loadBlock(r.rows, append(k[:], u32(i)...))
}

// Links returns the links of a block of a group; none if there is no such block.
func (r Reader) Links(v holdfast.VaultID, g holdfast.GroupID, name holdfast.Name) ([]holdfast.Name, error) {
	n, ok, err := loadGroup(r.rows, v, g)
	if err != nil || !ok {
		return nil, err
	}
	k := blockKey(rowLinks, n, name)
	return loadLinks(r.rows, k[:])
}

func loadLinks(rows Getter, k []byte) (links []holdfast.Name, err error) {
	_, err = load(rows, k, func(rd *enc.Reader) {
		links = make([]holdfast.Name, rd.Len()/32)
		for i := range links {
			rd.Fixed(links[i][:])
		}
	})
	return links, err
}

// Segment returns the segment at pos, unless it was removed. One that is retired can be read for a while by those who
// looked up before where a block is.
func (r Reader) Segment(pos segment.Position) (Segment, bool, error) {
	s, ok, err := loadSegment(r.rows, pos)
	if err != nil || ok {
		return s, ok, err
	}
	return loadRetired(r.rows, pos)
}

// MachineByTLS returns the machine that a connection key is enrolled for.
func (r Reader) MachineByTLS(key [32]byte) (Machine, bool, error) {
	t, ok, err := loadTLS(r.rows, key)
	if err != nil || !ok || t.vault == (holdfast.VaultID{}) {
		return Machine{}, false, err
	}
	return r.Signer(t.vault, t.signer)
}

// AccountByTLS returns the account of a connection key that redeemed a token or is enrolled.
func (r Reader) AccountByTLS(key [32]byte) (holdfast.AccountID, bool, error) {
	t, ok, err := loadTLS(r.rows, key)
	return t.account, ok, err
}

// Account returns an account.
func (r Reader) Account(id holdfast.AccountID) (Account, bool, error) {
	name, err := r.rows.Get(key(rowAccount, id[:]))
	if err != nil || name == nil {
		return Account{}, false, err
	}
	return Account{id, string(name)}, true, nil
}

// AccountByName returns the account of that name.
func (r Reader) AccountByName(name string) (Account, bool, error) {
	var id holdfast.AccountID
	ok, err := load(r.rows, key(rowAccountName, []byte(name)), func(rd *enc.Reader) { rd.Fixed(id[:]) })
	if err != nil || !ok {
		return Account{}, false, err
	}
	return Account{id, name}, true, nil
}

// Usage returns what an account stores, with the integral carried on to the journal time now (ms).
func (r Reader) Usage(id holdfast.AccountID, now int64) (Usage, error) {
	u, err := loadUsage(r.rows, usageKey(id))
	u.advance(now)
	return u, err
}

// Today returns what a machine with a daily cap stored on the day of the journal time now (ms).
func (r Reader) Today(v holdfast.VaultID, s holdfast.SignerID, now int64) (Day, error) {
	k := dayKey(v, s)
	return loadDay(r.rows, k[:], now)
}

// advance carries the integrals on to now, if that is later.
func (u *Usage) advance(now int64) {
	if now <= u.AsOf {
		return
	}
	u.Stored.add(u.Bytes, now-u.AsOf)
	u.Paid.add(u.Billed, now-u.AsOf)
	u.AsOf = now
}

// add adds bytes over ms.
func (i *Integral) add(bytes uint64, ms int64) {
	hi, lo := bits.Mul64(bytes, uint64(ms))
	var carry uint64
	i.Lo, carry = bits.Add64(i.Lo, lo, 0)
	i.Hi, _ = bits.Add64(i.Hi, hi, carry)
}

// Token returns the token with the hash of a secret (wire.HashSecret).
func (r Reader) Token(hash [32]byte) (Token, bool, error) { return loadToken(r.rows, hash) }

// Vault returns a vault.
func (r Reader) Vault(id holdfast.VaultID) (Vault, bool, error) { return loadVault(r.rows, id) }

// Vaults returns how many vaults there are.
func (r Reader) Vaults() (uint32, error) {
	m, _, err := loadMeta(r.rows)
	return m.vaults, err
}

// VaultNo returns vault number i, from 0 on.
func (r Reader) VaultNo(i uint32) (holdfast.VaultID, bool, error) {
	var v holdfast.VaultID
	ok, err := load(r.rows, key(rowVaultNo, u32(i)), func(rd *enc.Reader) { rd.Fixed(v[:]) })
	return v, ok, err
}

// Archives returns a vault with one of its series, by number from 0 in the order of their first commits: the archives of
// it that are not purged, the policies that concern it, delay, arrears and freeze; all that history.Vault.Expirable,
// Lapsable and Purgeable look at. It has no machines and no sessions. It says no if there is no such vault or series.
func (r Reader) Archives(id holdfast.VaultID, series uint32) (*history.Vault, bool, error) {
	v, ok, err := loadVault(r.rows, id)
	if err != nil || !ok || series >= v.series {
		return nil, false, err
	}
	var s holdfast.SeriesID
	ok, err = load(r.rows, key(rowSeriesNo, id[:], u32(series)), func(rd *enc.Reader) { rd.Fixed(s[:]) })
	if err == nil && !ok {
		err = fmt.Errorf("series %d of vault %s: %w: it is not there", series, id, ErrDamaged)
	}
	l := newLoader(r.rows, v)
	if err == nil {
		err = l.series(s)
	}
	if err != nil {
		return nil, false, err
	}
	return l.done(), true, nil
}

// Series returns how many archives a series has that are not purged, and how many series its vault has.
func (r Reader) Series(id holdfast.VaultID, s holdfast.SeriesID) (archives, series uint32, err error) {
	v, _, err := loadVault(r.rows, id)
	if err != nil {
		return 0, 0, err
	}
	row, _, err := loadSeries(r.rows, id, s)
	return row.archives, v.series, err
}

// Signer returns the machine of a vault that signs as signer.
func (r Reader) Signer(v holdfast.VaultID, signer holdfast.SignerID) (Machine, bool, error) {
	m, ok, err := loadMachine(r.rows, v, signer)
	if err != nil || !ok {
		return Machine{}, false, err
	}
	t, ok, err := loadTLS(r.rows, m.Enrol.TLSKey)
	if err == nil && !ok {
		err = fmt.Errorf("machine %s: %w: its connection key is not there", signer, ErrDamaged)
	}
	return Machine{v, t.account, signer, m.Enrol, m.Chain, m.Revoked, m.Since}, err == nil, err
}

// Session returns a session.
func (r Reader) Session(id holdfast.SessionID) (Session, bool, error) { return loadSession(r.rows, id) }

// History returns the entries of a vault from number after+1 on, encoded one after another: as many as
// fit into max bytes, but at least one if there is one.
func (r Reader) History(v holdfast.VaultID, after uint64, max int) ([]byte, error) {
	var out []byte
	for n := after + 1; n != 0; n++ {
		raw, err := r.rows.Get(key(rowHistory, v[:], u64(n)))
		if err != nil {
			return nil, err
		}
		if raw == nil || len(out) > 0 && len(out)+len(raw) > max {
			break
		}
		out = append(out, raw...)
	}
	return out, nil
}

// Record returns the entry of the record with that identity.
func (r Reader) Record(id holdfast.RecordID) (holdfast.VaultID, history.Entry, bool, error) {
	var v holdfast.VaultID
	var n uint64
	var e history.Entry
	ok, err := load(r.rows, key(rowRecord, id[:]), func(rd *enc.Reader) {
		rd.Fixed(v[:])
		n = rd.U64()
	})
	if err != nil || !ok {
		return v, e, false, err
	}
	ok, err = load(r.rows, key(rowHistory, v[:], u64(n)), func(rd *enc.Reader) { e = history.ReadEntry(rd) })
	if err == nil && !ok {
		err = fmt.Errorf("record %s: %w: its entry is not there", id, ErrDamaged)
	}
	return v, e, err == nil, err
}

// Stats returns the totals of the cell; all zero before its first segment.
func (r Reader) Stats() (Stats, error) {
	m, _, err := loadMeta(r.rows)
	return Stats{m.pos, m.hash, m.time, m.segments, m.blocks, m.bytes, m.retired, m.removed, m.objects}, err
}
