package view

import (
	"crypto/ed25519"
	"fmt"
	"sync"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// Apply decides whether rec may follow in the journal and, if so, adds what it says to rows. The
// sequencer, recovery and the shadow rebuild all run it, so that what was appended once is always accepted
// again, in the same order and with the same result (JOURNAL 1, 11). What it refuses (see the errors of
// this package and of package history) changes nothing; after an error of rows themselves they are of no
// more use.
//
// pos is the segment that holds rec, timeMS its journal time, logKey the key that signs heads.
func Apply(rows Rows, pos segment.Position, timeMS int64, rec segment.Record, logKey ed25519.PublicKey) error {
	var err error
	switch rec := rec.(type) {
	case segment.Stored:
		err = applyStored(rows, pos, timeMS, &rec)
	case segment.History:
		err = applyHistory(rows, timeMS, rec, logKey)
	case segment.Takeover:
		err = applyTakeover(rows, pos, rec)
	case segment.Account:
		err = applyAccount(rows, rec)
	case segment.Token:
		err = applyToken(rows, rec)
	case segment.Redeemed:
		err = applyRedeemed(rows, timeMS, rec)
	case segment.Metered:
		err = applyMetered(rows, timeMS, rec)
	case segment.Frozen:
		err = applyFrozen(rows, timeMS, rec)
	case segment.Thawed:
		err = applyThawed(rows, rec)
	case segment.Condemned:
		err = applyCondemned(rows, pos, timeMS, rec)
	case segment.Moved:
		err = applyMoved(rows, pos, rec)
	case segment.Retired:
		err = applyRetired(rows, pos, timeMS, rec)
	case segment.Removed:
		err = applyRemoved(rows, timeMS, rec)
	case segment.Damaged:
		err = applyDamaged(rows, timeMS, rec)
	case segment.Transfer:
		err = applyTransfer(rows, timeMS, rec)
	case segment.Charge:
		err = applyCharge(rows, timeMS, rec)
	case segment.Step:
		err = applyStep(rows, timeMS, rec)
	case segment.Told:
		err = applyTold(rows, timeMS, rec)
	default:
		panic(fmt.Sprintf("view: no rule for records of type %s", rec.Type()))
	}
	if err != nil {
		return fmt.Errorf("apply %s record: %w", rec.Type(), err)
	}
	return nil
}

// End is what closes a segment.
type End struct {
	Key    segment.Key
	Prev   [32]byte // hash of the segment before
	Size   int64    // of the object
	First  int64    // journal time of its first record, ms
	Last   int64    // of its last
	Blocks uint32   // stored by it
	Bytes  uint64   // of them
	// What was moved into it.
	Moved      uint32
	MovedBytes uint64
}

// Add counts what a record of the segment puts into it.
func (e *End) Add(rec segment.Record) {
	switch r := rec.(type) {
	case segment.Stored:
		e.Blocks++
		e.Bytes += uint64(r.Len)
	case segment.Moved:
		e.Moved++
		e.MovedBytes += uint64(r.Len)
	}
}

// Plus adds what o counts.
func (e *End) Plus(o End) {
	e.Blocks += o.Blocks
	e.Bytes += o.Bytes
	e.Moved += o.Moved
	e.MovedBytes += o.MovedBytes
}

// EndSegment moves the journal's position on to a segment of which all records were applied. The error
// wraps ErrOrder if it does not follow the one before.
func EndSegment(rows Rows, e End) error {
	m, _, err := loadMeta(rows)
	if err != nil {
		return err
	}
	pos, first := e.Key.Position, m.hash == [32]byte{}
	follows := pos == m.pos.Next() || pos.Seq == 0 && pos.Epoch > m.pos.Epoch
	if first {
		follows = pos.Seq == 0
	}
	switch {
	case !follows:
		return fmt.Errorf("segment %s after %s: %w", pos, m.pos, ErrOrder)
	case e.Prev != m.hash:
		return fmt.Errorf("segment %s: %w: it continues another chain", pos, ErrOrder)
	case !first && e.Key.Cell != m.cell:
		return fmt.Errorf("segment %s: %w: it belongs to cell %s", pos, ErrOrder, e.Key.Cell)
	case e.First < m.time || e.Last < e.First:
		return fmt.Errorf("segment %s: %w: its time runs backwards", pos, ErrOrder)
	}
	m.cell, m.pos, m.hash, m.time = e.Key.Cell, pos, e.Key.Hash, e.Last
	m.segments++
	m.blocks += uint64(e.Blocks)
	m.bytes += e.Bytes
	m.objects += uint64(e.Size)
	if err := m.put(rows); err != nil {
		return err
	}
	return Segment{Key: e.Key, Size: uint64(e.Size), Blocks: e.Blocks + e.Moved, Bytes: e.Bytes + e.MovedBytes}.put(rows)
}

// ApplySegment applies a whole segment: every record in order, then its end. k is the key under which the
// trailer was found, size that of the object.
func ApplySegment(rows Rows, k segment.Key, size int64, t *segment.Trailer, logKey ed25519.PublicKey) error {
	e := End{Key: k, Prev: t.Prev, Size: size, First: t.Records[0].Time}
	for i, r := range t.Records {
		if err := Apply(rows, t.Position, r.Time, r.Record, logKey); err != nil {
			return fmt.Errorf("segment %s, record %d: %w", t.Position, i, err)
		}
		e.Add(r.Record)
		e.Last = r.Time
	}
	return EndSegment(rows, e)
}

// applyTakeover checks that the record's table tells the same story as the rows and closes the epoch in
// which the journal stood (JOURNAL 2).
func applyTakeover(rows Rows, pos segment.Position, rec segment.Takeover) error {
	m, _, err := loadMeta(rows)
	if err != nil {
		return err
	}
	if pos != (segment.Position{Epoch: rec.Epoch}) {
		return fmt.Errorf("%w: it is of epoch %d and stands in %s", ErrOrder, rec.Epoch, pos)
	}
	if m.hash == [32]byte{} {
		if len(rec.Table) != 0 {
			return fmt.Errorf("%w: it accepts %d epochs and is the first", ErrOrder, len(rec.Table))
		}
		return nil
	}
	if len(rec.Table) != int(m.epochs)+1 {
		return fmt.Errorf("%w: it accepts %d epochs, not %d", ErrOrder, len(rec.Table), m.epochs+1)
	}
	last := rec.Table[m.epochs]
	if (segment.Position{Epoch: last.Epoch, Seq: last.LastSeq}) != m.pos || last.Hash != m.hash {
		return fmt.Errorf("%w: it accepts %d/%d as the last, which is %s", ErrOrder, last.Epoch, last.LastSeq, m.pos)
	}
	for _, a := range rec.Table[:m.epochs] {
		var was segment.Accepted
		ok, err := load(rows, key(rowEpoch, u64(a.Epoch)), func(r *enc.Reader) {
			was.Epoch, was.LastSeq = a.Epoch, r.U64()
			r.Fixed(was.Hash[:])
		})
		if err != nil {
			return err
		}
		if !ok || was != a {
			return fmt.Errorf("%w: it tells another end of epoch %d", ErrOrder, a.Epoch)
		}
	}
	if err := rows.Put(key(rowEpoch, u64(last.Epoch)), append(u64(last.LastSeq), last.Hash[:]...)); err != nil {
		return err
	}
	m.epochs++
	return m.put(rows)
}

// applyStored adds a block to its session's group. Every block that it links to must be there (children
// first), and is counted from now on (JOURNAL 16).
func applyStored(rows Rows, pos segment.Position, timeMS int64, rec *segment.Stored) error {
	s, ok, err := loadSession(rows, rec.Session)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: %s", ErrNoSession, rec.Session)
	}
	x := scratches.Get().(*scratch)
	defer scratches.Put(x)
	k, ck, v := &x.k, &x.child, &x.block
	*k = blockKey(rowBlock, s.group, rec.Name)
	old, err := rows.Get(k[:])
	if err != nil {
		return err
	}
	rev, err := loadRevocations(rows, s.group)
	if err != nil {
		return err
	}
	if rev.revoked(s.Signer) {
		return fmt.Errorf("%w: block %s by %.8s", history.ErrRevoked, rec.Name, s.Signer)
	}
	var again *Block // that the new one takes the place of: it is suspect or damaged, or may be condemned any moment
	if old != nil {
		b, _, err := loadBlock(rows, k[:])
		if err != nil {
			return err
		}
		bad, err := rev.suspect(rows, b)
		if err != nil {
			return err
		}
		bad = bad || b.Damaged
		if !bad && b.Promised(timeMS) {
			return fmt.Errorf("block %s: %w", rec.Name, ErrDuplicate)
		}
		if !bad && b.Kind != rec.Kind { // a thief's kind must not keep out what belongs there
			return fmt.Errorf("%w: it is a %s already", ErrKind, b.Kind)
		}
		again = &b
	}
	var day Day
	var dk [1 + 32 + 32]byte
	if s.Cap != (Amount{}) {
		if day, dk, err = s.room(rows, timeMS, holdfast.Billed(int(rec.Len))); err != nil {
			return fmt.Errorf("block %s: %w", rec.Name, err)
		}
	}
	all, err := links(rows, s.group, rec)
	if err != nil {
		return err
	}
	children := make([]Block, len(all))
	var missing []holdfast.Name
	*ck = *k
	for i, link := range all {
		copy(ck[5:], link[:])
		b, ok, err := loadBlock(rows, ck[:])
		if err != nil {
			return err
		}
		if ok {
			bad, err := rev.suspect(rows, b)
			if err != nil {
				return err
			}
			ok = !bad && !b.Damaged
		}
		if !ok && len(missing) < MaxMissing {
			missing = append(missing, link)
		}
		children[i] = b
	}
	if missing != nil {
		return &MissingError{missing}
	}

	// From here on nothing is refused.
	for i, link := range all {
		copy(ck[5:], link[:])
		if err := rows.Put(ck[:], children[i].referenced().encode(v)); err != nil {
			return err
		}
	}
	b := Block{Pos: pos, Off: rec.Off, Len: rec.Len, Kind: rec.Kind, Sum: rec.Sum, Since: timeMS, Session: rec.Session, Stored: timeMS}
	if again != nil {
		if err := putAlternate(rows, s.group, rec.Name, *again); err != nil {
			return err
		}
		if again.Damaged {
			if err := rows.Delete(damagedKey(s.group, rec.Name)); err != nil {
				return err
			}
		}
		if b.Count = again.Count; b.Count > 0 {
			b.Since = 0
		}
	}
	if err := rows.Put(k[:], b.encode(v)); err != nil {
		return err
	}
	if len(all) > 0 {
		names := make([]byte, 0, 32*len(all))
		for i := range all {
			names = append(names, all[i][:]...)
		}
		k[0] = rowLinks
		if err := rows.Put(k[:], names); err != nil {
			return err
		}
	}
	uk := append(append(x.account[:0], rowUsage), s.Account[:]...)
	u, err := loadUsage(rows, uk)
	if err != nil {
		return err
	}
	u.advance(timeMS)
	u.Bytes += uint64(rec.Len)
	u.Billed += holdfast.Billed(int(rec.Len))
	u.Blocks++
	u.In += uint64(rec.Len)
	if s.Cap != (Amount{}) {
		if err := day.put(rows, dk[:]); err != nil {
			return err
		}
	}
	return rows.Put(uk, u.encode(&x.usage))
}

// links returns all links of a block of a group. The error wraps segment.ErrFormat if its base has not what it says.
func links(rows Getter, group uint32, rec *segment.Stored) ([]holdfast.Name, error) {
	if rec.Base.Name == (holdfast.Name{}) {
		return rec.Links, nil
	}
	k := blockKey(rowLinks, group, rec.Base.Name)
	of, err := loadLinks(rows, k[:])
	if err != nil {
		return nil, err
	}
	return rec.All(of)
}

// scratch is memory for keys and values of rows that are asked for and written with each block.
type scratch struct {
	k, child [blockKeySize]byte
	block    [blockSize]byte
	account  [1 + 16]byte
	usage    [usageSize]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// msPerDay is a day in ms.
const msPerDay = 24 * 60 * 60 * 1000

// room returns what the session's machine will have stored on the day of timeMS with one more block that counts
// as so many bytes, and the key of that row, for a machine with a cap; there is no row for others. The error is a *CapError if it may not.
func (s *Session) room(rows Getter, timeMS int64, billed uint64) (d Day, k [1 + 32 + 32]byte, err error) {
	k = dayKey(s.Vault, s.Signer)
	if d, err = loadDay(rows, k[:], timeMS); err != nil {
		return d, k, err
	}
	used := d.Amount
	d.Bytes += billed
	d.Blocks++
	if s.Cap.Bytes > 0 && d.Bytes > s.Cap.Bytes || s.Cap.Blocks > 0 && d.Blocks > s.Cap.Blocks {
		err = &CapError{s.Cap, used, d.Resets()}
	}
	return d, k, err
}

// referenced gives b one reference more.
func (b *Block) referenced() *Block {
	b.Count++
	b.Since = 0
	return b
}

// applyHistory adds a signed record to its vault's history. Whether it may follow is decided by the code
// that clients run as well (history.Vault.Check), over just the rows that the record needs. A record that
// is there already is ErrDuplicate: the caller answers with the entry that it has (JOURNAL 22).
func applyHistory(rows Rows, timeMS int64, rec segment.History, logKey ed25519.PublicKey) error {
	e, id := rec.Entry, rec.Entry.Record.ID()
	known, err := rows.Get(key(rowRecord, id[:]))
	if err != nil {
		return err
	}
	if known != nil {
		return fmt.Errorf("record %s: %w", id, ErrDuplicate)
	}
	body, err := history.ParseBody(e.Record.Body)
	if err != nil {
		return err
	}
	v, exists, err := loadVault(rows, rec.Vault)
	if err != nil {
		return err
	}
	switch {
	case body.Type == history.TypeGenesis && rec.Vault != holdfast.VaultID(id):
		return fmt.Errorf("%w: a genesis record in another vault", history.ErrFormat)
	case body.Type != history.TypeGenesis && !exists:
		return fmt.Errorf("%w: %s", ErrNoVault, rec.Vault)
	}
	if body.Type.DeletesByService() {
		if err := checkFreezes(rows); err != nil {
			return err
		}
	}
	part, err := loadPart(rows, v, body)
	if err != nil {
		return err
	}
	if body, err = part.Check(e.Record, e.Time, logKey); err != nil {
		return err
	}
	if e.N != v.N+1 || e.Time != timeMS*1e6 || e.Time < v.Time {
		return fmt.Errorf("%w: record %d of vault %s, stamped %d ns at %d ms", ErrOrder, e.N, rec.Vault, e.Time, timeMS)
	}
	if err := e.CheckStamp(rec.Vault, v.Head, logKey); err != nil {
		return err
	}

	// The fields were checked above; what is still refused below is refused before anything is written.
	c := addition{rows: rows, part: part, body: body, entry: e, timeMS: timeMS}
	c.v = v
	c.v.ID, c.v.N, c.v.Head, c.v.Time = rec.Vault, e.N, e.Head, e.Time
	if err := c.apply(); err != nil {
		return err
	}
	if err := rows.Put(key(rowHistory, c.v.ID[:], u64(e.N)), e.Append(nil)); err != nil {
		return err
	}
	return rows.Put(key(rowRecord, id[:]), append(c.v.ID[:], u64(e.N)...))
}

// applyEnrol binds a machine's connection key to the vault. The first machine of a vault must have
// redeemed a token: its account is the vault's from then on.
func applyEnrol(rows Rows, v *Vault, fields []byte) error {
	e, err := history.ParseEnrol(fields)
	if err != nil {
		return err
	}
	t, known, err := loadTLS(rows, e.TLSKey)
	if err != nil {
		return err
	}
	if v.Account == (holdfast.AccountID{}) {
		if !known {
			return fmt.Errorf("%w: the vault's first machine redeemed no token", ErrNoAccount)
		}
		v.Account = t.account
	}
	if known && (t.vault != holdfast.VaultID{} || t.account != v.Account) {
		return ErrKeyTaken
	}
	signer := history.SignerOf(e.SignKey[:])
	if err := (tlsRow{v.Account, v.ID, signer}).put(rows, e.TLSKey); err != nil {
		return err
	}
	return putMachine(rows, v.ID, signer, history.Machine{Enrol: e})
}

// applyOpen opens a session. Its record, with the wrap of its secret, is in the journal before the first
// block that needs it, because applyStored asks for the session (JOURNAL 21).
func applyOpen(rows Rows, v Vault, body history.Body, timeMS int64) error {
	o, err := history.ParseOpen(body.Fields)
	if err != nil {
		return err
	}
	n, ok, err := loadGroup(rows, v.ID, o.Group)
	if err != nil {
		return err
	}
	if !ok {
		m, _, err := loadMeta(rows)
		if err != nil {
			return err
		}
		n = m.groups
		m.groups++
		if err := m.put(rows); err != nil {
			return err
		}
		if err := rows.Put(key(rowGroup, v.ID[:], o.Group[:]), u32(n)); err != nil {
			return err
		}
	}
	m, _, err := loadMachine(rows, v.ID, body.Signer)
	if err != nil {
		return err
	}
	s := Session{
		Vault: v.ID, Group: o.Group, Signer: body.Signer, Account: v.Account, N: v.N, Start: timeMS, group: n,
		Cap: Amount{m.Enrol.DayBytes, m.Enrol.DayBlocks},
	}
	return s.put(rows, o.Session)
}

// applyCommit counts the archive's root. Everything else that the archive needs is there because no block
// was ever stored before the blocks that it links to.
func applyCommit(rows Rows, v Vault, fields []byte) error {
	c, err := history.ParseCommit(fields)
	if err != nil {
		return err
	}
	n, ok, err := loadGroup(rows, v.ID, c.Group)
	if err != nil {
		return err
	}
	k := blockKey(rowBlock, n, c.Root)
	var b Block
	if ok {
		if b, ok, err = loadBlock(rows, k[:]); err != nil {
			return err
		}
	}
	if ok {
		rev, err := loadRevocations(rows, n)
		if err != nil {
			return err
		}
		bad, err := rev.suspect(rows, b)
		if err != nil {
			return err
		}
		ok = !bad && !b.Damaged
	}
	if !ok {
		return &MissingError{[]holdfast.Name{c.Root}}
	}
	if b.Kind != holdfast.KindArchive {
		return fmt.Errorf("%w: the root is a %s", ErrKind, b.Kind)
	}
	var raw [blockSize]byte
	return rows.Put(k[:], b.referenced().encode(&raw))
}

func applyAccount(rows Rows, rec segment.Account) error {
	id, name := key(rowAccount, rec.ID[:]), key(rowAccountName, []byte(rec.Name))
	if have, err := rows.Get(id); err != nil {
		return err
	} else if have != nil {
		return fmt.Errorf("account %s: %w", rec.ID, ErrDuplicate)
	}
	if have, err := rows.Get(name); err != nil {
		return err
	} else if have != nil {
		return fmt.Errorf("account %q: %w", rec.Name, ErrNameTaken)
	}
	if err := rows.Put(name, rec.ID[:]); err != nil {
		return err
	}
	return rows.Put(id, []byte(rec.Name))
}

func applyToken(rows Rows, rec segment.Token) error {
	if _, known, err := loadToken(rows, rec.Hash); err != nil {
		return err
	} else if known {
		return ErrDuplicate
	}
	if err := checkAccount(rows, rec.Account); err != nil {
		return err
	}
	return Token{Account: rec.Account, Expires: rec.Expires}.put(rows, rec.Hash)
}

// applyRedeemed uses a token up. Redeeming it again with the same key is ErrDuplicate.
func applyRedeemed(rows Rows, timeMS int64, rec segment.Redeemed) error {
	t, ok, err := loadToken(rows, rec.Hash)
	if err != nil {
		return err
	}
	_, taken, err := loadTLS(rows, rec.TLSKey)
	if err != nil {
		return err
	}
	switch {
	case rec.TLSKey == [32]byte{}:
		return fmt.Errorf("%w: it is all zeros", ErrKeyTaken)
	case !ok:
		return ErrTokenUnknown
	case t.Used && t.TLSKey == rec.TLSKey:
		return ErrDuplicate
	case t.Used:
		return ErrTokenUsed
	case timeMS*1e6 >= t.Expires:
		return ErrTokenExpired
	case taken:
		return ErrKeyTaken
	}
	t.TLSKey = rec.TLSKey
	if err := t.put(rows, rec.Hash); err != nil {
		return err
	}
	return tlsRow{account: t.Account}.put(rows, rec.TLSKey)
}

// applyMetered counts presence questions and bytes that were sent.
func applyMetered(rows Rows, timeMS int64, rec segment.Metered) error {
	if err := checkAccount(rows, rec.Account); err != nil {
		return err
	}
	u, err := loadUsage(rows, usageKey(rec.Account))
	if err != nil {
		return err
	}
	u.advance(timeMS)
	u.Asked += rec.Names
	u.Out += rec.Sent
	var b [usageSize]byte
	return rows.Put(usageKey(rec.Account), u.encode(&b))
}

// SetNonce notes under which key an applied segment is in the bucket.
func SetNonce(rows Rows, k segment.Key) error { return rows.Put(nonceKey(k.Position), k.Nonce[:]) }
