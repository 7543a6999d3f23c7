package view

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
)

// addition is one signed record on its way into the rows of its vault.
type addition struct {
	rows   Rows
	part   *history.Vault // before the record, as far as the record concerns it
	v      Vault          // after it
	body   history.Body   // checked
	entry  history.Entry
	timeMS int64
}

// apply writes what the record changes, except the record itself.
func (c *addition) apply() error {
	next := history.Link{Seq: c.body.Seq + 1, Prev: c.entry.Record.ID()}
	m, byMachine := c.part.Machines[c.body.Signer]
	byMachine = byMachine && c.body.Type.Right() != 0
	switch {
	case c.body.Type.ByService():
		c.v.Service = next
	case !byMachine:
		c.v.Owner = next
	}
	if err := c.fields(); err != nil {
		return err
	}
	if byMachine {
		m.Chain = next
		if err := putMachine(c.rows, c.v.ID, c.body.Signer, m); err != nil {
			return err
		}
	}
	return c.v.put(c.rows)
}

func (c *addition) fields() error {
	f := c.body.Fields
	switch c.body.Type {
	case history.TypeGenesis:
		return c.genesis(f)
	case history.TypeEnrol:
		return applyEnrol(c.rows, &c.v, f)
	case history.TypeOpen:
		return applyOpen(c.rows, c.v, c.body, c.timeMS)
	case history.TypeCommit:
		return c.commit(f)
	case history.TypeRevoke:
		return c.revoke(f)
	case history.TypeRotateRead:
		k, err := history.ParseRotateRead(f)
		if err != nil {
			return err
		}
		return c.readKey(history.ReadKeyIDOf(k.ReadKey[:]))
	case history.TypeRewrap:
		w, err := history.ParseRewrap(f)
		if err != nil {
			return err
		}
		return c.rows.Put(key(rowRewrap, w.Session[:], w.ReadKey[:]), u64(c.entry.N))
	case history.TypePolicy:
		p, err := history.ParsePolicy(f)
		if err != nil {
			return err
		}
		return c.rows.Put(key(rowPolicy, c.v.ID[:], p.Series[:]), f)
	case history.TypeDelay:
		d, err := history.ParseDelay(f)
		c.v.Delay = c.v.Delay.Set(d.Seconds, c.entry.Time)
		return err
	case history.TypeFreeze, history.TypeThaw:
		c.v.Frozen = c.body.Type == history.TypeFreeze
		return nil
	case history.TypeConfirm:
		x, err := history.ParseConfirm(f)
		if err != nil {
			return err
		}
		row, _, err := loadSeries(c.rows, c.v.ID, x.Series)
		if err != nil {
			return err
		}
		row.Confirmed = c.entry.N
		return row.put(c.rows, c.v.ID, x.Series)
	case history.TypeArrears:
		a, err := history.ParseArrears(f)
		c.v.Arrears, c.v.Told = a.Until, c.entry.Time
		return err
	case history.TypeDelete, history.TypeUndelete, history.TypeExpire, history.TypePurge, history.TypeLapse:
		return c.archives(f)
	}
	panic("view: no rule for " + c.body.Type.String() + " records")
}

func (c *addition) genesis(f []byte) error {
	g, err := history.ParseGenesis(f)
	if err != nil {
		return err
	}
	m, _, err := loadMeta(c.rows)
	if err != nil {
		return err
	}
	if err := c.rows.Put(key(rowVaultNo, u32(m.vaults)), c.v.ID[:]); err != nil {
		return err
	}
	m.vaults++
	if err := m.put(c.rows); err != nil {
		return err
	}
	if err := c.rows.Put(key(rowGenesis, c.v.ID[:]), f); err != nil {
		return err
	}
	return c.readKey(history.ReadKeyIDOf(g.ReadKey[:]))
}

// readKey makes id the current read key.
func (c *addition) readKey(id history.ReadKeyID) error {
	c.v.ReadKey = id
	c.v.readKeys++
	return c.rows.Put(key(rowReadKey, c.v.ID[:], id[:]), u32(c.v.readKeys-1))
}

// commit adds an archive to its series, and a reference to its root.
func (c *addition) commit(f []byte) error {
	if err := applyCommit(c.rows, c.v, f); err != nil {
		return err
	}
	x, err := history.ParseCommit(f)
	if err != nil {
		return err
	}
	s, ok, err := loadSeries(c.rows, c.v.ID, x.Series)
	if err != nil {
		return err
	}
	if !ok {
		s.number = c.v.series
		c.v.series++
		if err := c.rows.Put(key(rowSeriesNo, c.v.ID[:], u32(s.number)), x.Series[:]); err != nil {
			return err
		}
	}
	a := archiveRow{history.Archive{
		ID: c.entry.Record.ID(), N: c.entry.N, Time: c.entry.Time, Signer: c.body.Signer, Commit: x,
	}, s.archives}
	if err := a.putSlot(c.rows, c.v.ID); err != nil {
		return err
	}
	s.archives++
	s.Series = s.Add(x, c.entry.N)
	if err := s.put(c.rows, c.v.ID, x.Series); err != nil {
		return err
	}
	return a.put(c.rows, c.v.ID)
}

// revoke notes what is suspect from now on: the machine's row says it of archives, the group's of blocks.
func (c *addition) revoke(f []byte) error {
	r, err := history.ParseRevoke(f)
	if err != nil {
		return err
	}
	m := c.part.Machines[r.Signer]
	m.Revoked, m.Since = c.entry.N, min(r.Since, c.entry.Time)
	if err := putMachine(c.rows, c.v.ID, r.Signer, m); err != nil {
		return err
	}
	n, ok, err := loadGroup(c.rows, c.v.ID, m.Enrol.Group)
	if err != nil || !ok {
		return err // without a group there are no blocks, and without the right to sign there will be none
	}
	rev, err := loadRevocations(c.rows, n)
	if err != nil {
		return err
	}
	rev = slices.DeleteFunc(rev, func(x revocation) bool { return x.signer == r.Signer })
	rev = append(rev, revocation{r.Signer, floor(m.Since, 1e6), c.timeMS, c.entry.N})
	return rev.put(c.rows, n)
}

// floor divides and rounds down, so that a time before 1970 does not become a later one.
func floor(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// archives deletes, undeletes, expires, purges or lapses. Only a purge changes a count (JOURNAL 16).
func (c *addition) archives(f []byte) error {
	ids, err := history.ParseIDs(c.body.Type, f)
	if err != nil {
		return err
	}
	machine := c.body.Signer != history.SignerOf(c.v.Genesis.OwnerKey[:])
	for _, id := range ids {
		a, ok, err := loadArchive(c.rows, c.v.ID, id)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("archive %s: %w: it is not there", id, ErrDamaged) // Check found it
		}
		a.Apply(c.body.Type, c.entry.Time, machine)
		if c.body.Type == history.TypePurge {
			err = c.purge(a)
		} else {
			err = a.put(c.rows, c.v.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// purge takes an archive out of its series and the reference from its root.
func (c *addition) purge(a archiveRow) error {
	v, series := c.v.ID, a.Commit.Series
	s, ok, err := loadSeries(c.rows, v, series)
	if err == nil && (!ok || s.archives == 0 || a.slot >= s.archives) {
		err = fmt.Errorf("archive %s: %w: it has no place in its series", a.ID, ErrDamaged)
	}
	if err != nil {
		return err
	}
	// The last archive takes the slot that becomes free.
	s.archives--
	lastKey := key(rowSlot, v[:], series[:], u32(s.archives))
	if a.slot != s.archives {
		id, err := loadSlot(c.rows, lastKey)
		if err != nil {
			return err
		}
		last, ok, err := loadArchive(c.rows, v, id)
		if err == nil && !ok {
			err = fmt.Errorf("archive %s: %w: it is not there", id, ErrDamaged)
		}
		if err != nil {
			return err
		}
		last.slot = a.slot
		if err := last.put(c.rows, v); err != nil {
			return err
		}
		if err := last.putSlot(c.rows, v); err != nil {
			return err
		}
	}
	if err := c.rows.Delete(lastKey); err != nil {
		return err
	}
	if err := s.put(c.rows, v, series); err != nil {
		return err
	}
	if err := c.rows.Delete(key(rowArchive, v[:], a.ID[:])); err != nil {
		return err
	}
	n, ok, err := loadGroup(c.rows, v, a.Commit.Group)
	if err != nil {
		return err
	}
	if err == nil && !ok {
		err = fmt.Errorf("archive %s: %w: its group is not there", a.ID, ErrDamaged)
	}
	if err != nil {
		return err
	}
	return unreference(c.rows, blockKey(rowBlock, n, a.Commit.Root), c.timeMS)
}

// archiveRow is an archive and its place among those of its series. Suspect is not in the row; it follows
// from the machine's.
type archiveRow struct {
	history.Archive
	slot uint32
}

func (a archiveRow) put(rows Rows, v holdfast.VaultID) error {
	b := append(u64(a.N), u64(uint64(a.Time))...)
	b = append(b, a.Signer[:]...)
	b = append(b, byte(a.State))
	b = append(b, u64(uint64(a.Changed))...)
	b = append(b, flag(a.Machine), flag(a.Held))
	b = append(b, u32(a.slot)...)
	return rows.Put(key(rowArchive, v[:], a.ID[:]), append(b, a.Commit.Encode()...))
}

func (a archiveRow) putSlot(rows Rows, v holdfast.VaultID) error {
	return rows.Put(key(rowSlot, v[:], a.Commit.Series[:], u32(a.slot)), a.ID[:])
}

func loadArchive(rows Getter, v holdfast.VaultID, id holdfast.RecordID) (a archiveRow, ok bool, err error) {
	ok, err = load(rows, key(rowArchive, v[:], id[:]), func(r *enc.Reader) {
		a.ID, a.N, a.Time = id, r.U64(), r.I64()
		r.Fixed(a.Signer[:])
		a.State, a.Changed = history.State(r.U8()), r.I64()
		a.Machine, a.Held = r.U8() == 1, r.U8() == 1
		a.slot = r.U32()
		c, err := history.ParseCommit(r.Bytes(r.Len()))
		if err != nil {
			r.Fail("%w", err)
		}
		a.Commit = c
	})
	return a, ok, err
}

func loadSlot(rows Getter, k []byte) (id holdfast.RecordID, err error) {
	ok, err := load(rows, k, func(r *enc.Reader) { r.Fixed(id[:]) })
	if err == nil && !ok {
		err = fmt.Errorf("row %q: %w: it is not there", k, ErrDamaged)
	}
	return id, err
}

// seriesRow is a series with its number in the vault and how many archives it has.
type seriesRow struct {
	history.Series
	number, archives uint32
}

func (s seriesRow) put(rows Rows, v holdfast.VaultID, id holdfast.SeriesID) error {
	b := append(u32(s.number), u32(s.archives)...)
	b = append(b, u64(s.Jumped)...)
	b = append(b, u64(s.Confirmed)...)
	b = append(b, byte(len(s.Past)))
	for _, p := range s.Past {
		b = append(b, u64(p.Paths)...)
		b = append(b, u64(p.Unchanged)...)
	}
	return rows.Put(key(rowSeries, v[:], id[:]), b)
}

func loadSeries(rows Getter, v holdfast.VaultID, id holdfast.SeriesID) (s seriesRow, ok bool, err error) {
	ok, err = load(rows, key(rowSeries, v[:], id[:]), func(r *enc.Reader) {
		s.number, s.archives = r.U32(), r.U32()
		s.Jumped, s.Confirmed = r.U64(), r.U64()
		for range min(r.U8(), history.MaxPast) {
			s.Past = append(s.Past, history.Past{Paths: r.U64(), Unchanged: r.U64()})
		}
	})
	return s, ok, err
}

// revocation is what a group must know of a revoked machine.
type revocation struct {
	signer holdfast.SignerID
	since  int64  // ms
	until  int64  // ms; journal time of the record
	n      uint64 // number of the record
}

const revocationSize = 32 + 8 + 8 + 8

type revocations []revocation

func (rev revocations) put(rows Rows, group uint32) error {
	b := make([]byte, 0, revocationSize*len(rev))
	for _, x := range rev {
		b = append(b, x.signer[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(x.since))
		b = binary.BigEndian.AppendUint64(b, uint64(x.until))
		b = binary.BigEndian.AppendUint64(b, x.n)
	}
	return rows.Put(key(rowRevoked, u32(group)), b)
}

func loadRevocations(rows Getter, group uint32) (rev revocations, err error) {
	var k [5]byte
	k[0] = rowRevoked
	binary.BigEndian.PutUint32(k[1:], group)
	raw, err := rows.Get(k[:])
	if err != nil || raw == nil {
		return nil, err
	}
	_, err = load(oneRow(raw), k[:], func(r *enc.Reader) {
		rev = make(revocations, r.Len()/revocationSize)
		for i := range rev {
			x := &rev[i]
			r.Fixed(x.signer[:])
			x.since, x.until, x.n = r.I64(), r.I64(), r.U64()
		}
	})
	return rev, err
}

// revoked reports whether the machine that signs as signer is.
func (rev revocations) revoked(signer holdfast.SignerID) bool {
	return slices.ContainsFunc(rev, func(x revocation) bool { return x.signer == signer })
}

// suspect reports whether b may be, or link to, what somebody stored with a stolen key; see the package
// comment.
func (rev revocations) suspect(rows Getter, b Block) (bool, error) {
	if len(rev) == 0 {
		return false, nil
	}
	s, ok, err := loadSession(rows, b.Session)
	if err != nil {
		return false, err
	}
	if !ok {
		return false, fmt.Errorf("session %s of a block: %w: it is not there", b.Session, ErrDamaged)
	}
	return slices.ContainsFunc(rev, func(x revocation) bool {
		if b.Stored < x.since {
			return false
		}
		return s.Signer == x.signer || !b.Kind.Leaf() && b.Stored <= x.until && s.N < x.n
	}), nil
}

// putAlternate keeps the row and the links of a block that is stored anew.
func putAlternate(rows Rows, group uint32, name holdfast.Name, b Block) error {
	k := blockKey(rowAlternate, group, name)
	var at []byte
	for i := uint32(0); ; i++ {
		at = append(k[:], u32(i)...)
		if have, err := rows.Get(at); err != nil {
			return err
		} else if have == nil {
			break
		}
	}
	b.Count, b.Since = 0, 0
	var buf [blockSize]byte
	if err := rows.Put(at, b.encode(&buf)); err != nil {
		return err
	}
	lk := blockKey(rowLinks, group, name)
	links, err := rows.Get(lk[:])
	if err != nil || links == nil {
		return err
	}
	at[0] = rowAltLinks
	if err := rows.Put(at, slices.Clone(links)); err != nil {
		return err
	}
	return rows.Delete(lk[:])
}

// loader makes of rows the part of a vault that a rule looks at.
type loader struct {
	rows Getter
	v    Vault
	part *history.Vault
	have map[holdfast.SeriesID]bool
}

func newLoader(rows Getter, v Vault) *loader {
	return &loader{rows: rows, v: v, have: map[holdfast.SeriesID]bool{}, part: &history.Vault{
		ID: v.ID, Genesis: v.Genesis, N: v.N, Head: v.Head, Time: v.Time, Owner: v.Owner, Service: v.Service,
		ReadKeys: []history.ReadKeyID{v.ReadKey}, Delay: v.Delay, Arrears: v.Arrears, Told: v.Told, Frozen: v.Frozen,
		Machines: map[holdfast.SignerID]history.Machine{}, Sessions: map[holdfast.SessionID]history.Session{},
		Series: map[holdfast.SeriesID]history.Series{}, Policies: map[holdfast.SeriesID]history.Policy{},
	}}
}

// done returns the part, with its archives in the order of their commits.
func (l *loader) done() *history.Vault {
	slices.SortFunc(l.part.Archives, func(a, b history.Archive) int { return cmp.Compare(a.N, b.N) })
	return l.part
}

func (l *loader) machine(s holdfast.SignerID) error {
	if _, ok := l.part.Machines[s]; ok {
		return nil
	}
	m, ok, err := loadMachine(l.rows, l.v.ID, s)
	if ok {
		l.part.Machines[s] = m
	}
	return err
}

func (l *loader) session(id holdfast.SessionID, anyVault bool) error {
	s, ok, err := loadSession(l.rows, id)
	if ok && (anyVault || s.Vault == l.v.ID) {
		l.part.Sessions[id] = history.Session{Signer: s.Signer, Open: history.Open{Session: id, Group: s.Group}}
	}
	return err
}

// wraps adds to a session whether its secret is wrapped for the current read key.
func (l *loader) wraps(id holdfast.SessionID) error {
	row, ok, err := loadSession(l.rows, id)
	if err != nil || !ok || row.Vault != l.v.ID {
		return err
	}
	var body history.Body
	if _, err = load(l.rows, key(rowHistory, l.v.ID[:], u64(row.N)), func(r *enc.Reader) {
		body, err = history.ParseBody(history.ReadEntry(r).Record.Body)
	}); err != nil {
		return err
	}
	o, err := history.ParseOpen(body.Fields)
	if err != nil {
		return fmt.Errorf("session %s: %w: %w", id, ErrDamaged, err)
	}
	s := history.Session{Signer: row.Signer, Open: o}
	known, err := l.rows.Get(key(rowRewrap, id[:], l.v.ReadKey[:]))
	if known != nil {
		s.Rewraps = []history.Rewrap{{Session: id, ReadKey: l.v.ReadKey}}
	}
	l.part.Sessions[id] = s
	return err
}

// archive adds one archive.
func (l *loader) archive(id holdfast.RecordID) (history.Archive, bool, error) {
	a, ok, err := loadArchive(l.rows, l.v.ID, id)
	if err != nil || !ok {
		return a.Archive, false, err
	}
	m, known := l.part.Machines[a.Signer]
	if !known {
		if m, _, err = loadMachine(l.rows, l.v.ID, a.Signer); err != nil {
			return a.Archive, false, err
		}
	}
	a.Suspect = m.Revoked != 0 && a.Time >= m.Since
	return a.Archive, true, nil
}

// series adds a series with its archives and the policies that may concern it.
func (l *loader) series(id holdfast.SeriesID) error {
	if l.have[id] {
		return nil
	}
	l.have[id] = true
	s, ok, err := loadSeries(l.rows, l.v.ID, id)
	if err != nil || !ok {
		return err
	}
	l.part.Series[id] = s.Series
	for _, p := range []holdfast.SeriesID{id, {}} {
		raw, err := l.rows.Get(key(rowPolicy, l.v.ID[:], p[:]))
		if err != nil {
			return err
		}
		if raw != nil {
			if l.part.Policies[p], err = history.ParsePolicy(raw); err != nil {
				return fmt.Errorf("policy of vault %s: %w: %w", l.v.ID, ErrDamaged, err)
			}
		}
	}
	for i := range s.archives {
		aid, err := loadSlot(l.rows, key(rowSlot, l.v.ID[:], id[:], u32(i)))
		if err != nil {
			return err
		}
		a, ok, err := l.archive(aid)
		if err == nil && !ok {
			err = fmt.Errorf("archive %s: %w: it is not there", aid, ErrDamaged)
		}
		if err != nil {
			return err
		}
		l.part.Archives = append(l.part.Archives, a)
	}
	return nil
}

// maxNamed bounds the archives of all series together that one record names an archive of: so many are looked at, and are
// in memory, while everybody else waits.
const maxNamed = 1 << 15

// named adds every archive that a record names, and, if the rule looks at them, all others of its series.
func (l *loader) named(t history.Type, fields []byte, whole bool) error {
	ids, bad := history.ParseIDs(t, fields)
	if bad != nil {
		return nil // left to Check, which refuses it
	}
	left, counted := int64(maxNamed), map[holdfast.SeriesID]bool{}
	for _, id := range ids {
		a, ok, err := l.archive(id)
		if err != nil {
			return err
		}
		if !ok {
			continue // left to Check, too
		}
		if id := a.Commit.Series; !counted[id] {
			counted[id] = true
			s, _, err := loadSeries(l.rows, l.v.ID, id)
			if err != nil {
				return err
			}
			if left -= int64(s.archives); left < 0 {
				return fmt.Errorf("%w: the series of the archives that it names have more than %d archives together; name fewer series in one record", history.ErrFormat, maxNamed)
			}
		}
		if !whole {
			l.part.Archives = append(l.part.Archives, a)
		} else if err := l.series(a.Commit.Series); err != nil {
			return err
		}
	}
	return nil
}

// wholeSeries reports whether the rule for a record that names archives looks at the others of their series: what the owner
// deletes or brings back, and what is purged or lapses, depends on nothing but itself.
func wholeSeries(v *history.Vault, b history.Body) bool {
	switch b.Type {
	case history.TypeDelete:
		return b.Signer != history.SignerOf(v.Genesis.OwnerKey[:])
	case history.TypeUndelete, history.TypePurge, history.TypeLapse:
		return false
	}
	return true
}

// loadPart returns as much of the vault as history.Vault.Check looks at for a record with that body.
func loadPart(rows Rows, v Vault, body history.Body) (*history.Vault, error) {
	l := newLoader(rows, v)
	err := l.machine(body.Signer)
	if body.SeenN != 0 && body.SeenN <= v.N {
		_, bad := load(rows, key(rowHistory, v.ID[:], u64(body.SeenN)), func(r *enc.Reader) {
			l.part.SawHead(body.SeenN, history.ReadEntry(r).Head)
		})
		err = errors.Join(err, bad)
	}
	// Fields that do not parse are left to Check, which refuses them.
	switch body.Type {
	case history.TypeEnrol:
		if e, bad := history.ParseEnrol(body.Fields); bad == nil {
			err = errors.Join(err, l.machine(history.SignerOf(e.SignKey[:])))
		}
	case history.TypeOpen:
		// A session's identity is unique in the whole cell: stored records name nothing else.
		if o, bad := history.ParseOpen(body.Fields); bad == nil {
			err = errors.Join(err, l.session(o.Session, true))
		}
	case history.TypeCommit:
		if c, bad := history.ParseCommit(body.Fields); bad == nil {
			err = errors.Join(err, l.session(c.Session, false))
		}
	case history.TypeRevoke:
		if r, bad := history.ParseRevoke(body.Fields); bad == nil {
			err = errors.Join(err, l.machine(r.Signer))
		}
	case history.TypeRotateRead:
		if k, bad := history.ParseRotateRead(body.Fields); bad == nil {
			id := history.ReadKeyIDOf(k.ReadKey[:])
			known, bad := rows.Get(key(rowReadKey, v.ID[:], id[:]))
			if known != nil {
				l.part.ReadKeys = []history.ReadKeyID{id, v.ReadKey}
			}
			err = errors.Join(err, bad)
		}
	case history.TypeRewrap:
		if w, bad := history.ParseRewrap(body.Fields); bad == nil {
			err = errors.Join(err, l.wraps(w.Session))
		}
	case history.TypeDelete, history.TypeUndelete, history.TypeExpire, history.TypePurge, history.TypeLapse:
		err = errors.Join(err, l.named(body.Type, body.Fields, wholeSeries(l.part, body)))
	case history.TypeConfirm:
		if c, bad := history.ParseConfirm(body.Fields); bad == nil {
			s, ok, bad := loadSeries(rows, v.ID, c.Series)
			if ok {
				l.part.Series[c.Series] = s.Series
			}
			err = errors.Join(err, bad)
		}
	}
	return l.done(), err
}
