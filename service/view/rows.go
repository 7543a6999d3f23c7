package view

import (
	"encoding/binary"
	"fmt"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/segment"
)

// The first byte of each key; see the package comment.
const (
	rowLocal       = 0x00
	rowAccount     = 'a'
	rowAccountName = 'A'
	rowBlock       = 'b'
	rowAlternate   = 'B'
	rowSeries      = 'c'
	rowArchive     = 'C'
	rowDay         = 'd'
	rowDamaged     = 'D'
	rowEpoch       = 'e'
	rowFreeze      = 'f'
	rowGroup       = 'g'
	rowHistory     = 'h'
	rowRecord      = 'i'
	rowBook        = 'j'
	rowTransfer    = 'J'
	rowTLS         = 'k'
	rowLinks       = 'l'
	rowAltLinks    = 'L'
	rowMeta        = 'm'
	rowMoney       = 'M'
	rowTransferID  = 'n'
	rowSeriesNo    = 'N'
	rowPolicy      = 'o'
	rowMachine     = 'p'
	rowGenesis     = 'q'
	rowRetired     = 'r'
	rowReadKey     = 'R'
	rowSegment     = 's'
	rowSession     = 'S'
	rowToken       = 't'
	rowUsage       = 'u'
	rowVault       = 'v'
	rowVaultNo     = 'V'
	rowRevoked     = 'w'
	rowRewrap      = 'W'
	rowSlot        = 'x'
)

// key returns a key made of a first byte and parts.
func key(first byte, parts ...[]byte) []byte {
	k := make([]byte, 1, 80)
	k[0] = first
	for _, p := range parts {
		k = append(k, p...)
	}
	return k
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// Local rows are hints that Store.Commit leaves for those who look for what can be freed: a row that says less than it
// should would hide something, one that says more is found out and removed (see hint.go). Of localLike neither matters.
const (
	localLike   = 'b'
	localNonce  = 'n'
	localUnused = 'z'
	localSparse = 'y'
)

// blockKeySize is the size of the keys of blocks and links.
const blockKeySize = 1 + 4 + 32

func blockKey(first byte, group uint32, name holdfast.Name) (k [blockKeySize]byte) {
	k[0] = first
	binary.BigEndian.PutUint32(k[1:], group)
	copy(k[5:], name[:])
	return k
}

func posKey(pos segment.Position) []byte { return key(rowSegment, u64(pos.Epoch), u64(pos.Seq)) }

func retiredKey(pos segment.Position) []byte { return key(rowRetired, u64(pos.Epoch), u64(pos.Seq)) }

func nonceKey(pos segment.Position) []byte {
	return key(rowLocal, []byte{localNonce}, u64(pos.Epoch), u64(pos.Seq))
}

// load reads the row of key and hands it to decode if it is there. A row that does not decode is damage.
func load(rows Getter, key []byte, decode func(*enc.Reader)) (bool, error) {
	raw, err := rows.Get(key)
	if err != nil || raw == nil {
		return false, err
	}
	r := enc.NewReader(raw)
	decode(r)
	if err := r.Done(); err != nil {
		return false, fmt.Errorf("row %q: %w: %w", key, ErrDamaged, err)
	}
	return true, nil
}

const blockSize = 8 + 8 + 4 + 4 + 1 + 16 + 8 + 8 + 16 + 8 + 1

func (b *Block) encode(dst *[blockSize]byte) []byte {
	be := binary.BigEndian
	be.PutUint64(dst[0:], b.Pos.Epoch)
	be.PutUint64(dst[8:], b.Pos.Seq)
	be.PutUint32(dst[16:], b.Off)
	be.PutUint32(dst[20:], b.Len)
	dst[24] = byte(b.Kind)
	copy(dst[25:41], b.Sum[:])
	be.PutUint64(dst[41:], b.Count)
	be.PutUint64(dst[49:], uint64(b.Since))
	copy(dst[57:73], b.Session[:])
	be.PutUint64(dst[73:], uint64(b.Stored))
	dst[81] = flag(b.Damaged)
	return dst[:]
}

func loadBlock(rows Getter, k []byte) (b Block, ok bool, err error) {
	raw, err := rows.Get(k)
	if err != nil || raw == nil {
		return b, false, err
	}
	if len(raw) != blockSize {
		return b, false, fmt.Errorf("row %q: %w: %d bytes", k, ErrDamaged, len(raw))
	}
	be := binary.BigEndian
	b.Pos = segment.Position{Epoch: be.Uint64(raw[0:]), Seq: be.Uint64(raw[8:])}
	b.Off, b.Len = be.Uint32(raw[16:]), be.Uint32(raw[20:])
	b.Kind = holdfast.Kind(raw[24])
	copy(b.Sum[:], raw[25:41])
	b.Count, b.Since = be.Uint64(raw[41:]), int64(be.Uint64(raw[49:]))
	copy(b.Session[:], raw[57:73])
	b.Stored = int64(be.Uint64(raw[73:]))
	b.Damaged = raw[81] != 0
	return b, true, nil
}

// meta is where the journal stands.
type meta struct {
	cell     holdfast.CellID
	pos      segment.Position
	hash     [32]byte
	time     int64
	segments uint64 // neither retired nor removed
	blocks   uint64
	bytes    uint64
	retired  uint64 // and not removed
	removed  uint64
	objects  uint64 // bytes of all segments that are not removed
	groups   uint32 // number of the next group
	epochs   uint32 // closed epochs
	vaults   uint32

	transfers uint64 // of money
}

func (m meta) put(rows Rows) error {
	b := append([]byte{Version}, m.cell[:]...)
	b = append(b, u64(m.pos.Epoch)...)
	b = append(b, u64(m.pos.Seq)...)
	b = append(b, m.hash[:]...)
	for _, v := range []uint64{uint64(m.time), m.segments, m.blocks, m.bytes, m.retired, m.removed, m.objects} {
		b = append(b, u64(v)...)
	}
	b = append(append(append(b, u32(m.groups)...), u32(m.epochs)...), u32(m.vaults)...)
	return rows.Put([]byte{rowMeta}, append(b, u64(m.transfers)...))
}

// loadMeta returns the zero meta, and false, before the first segment.
func loadMeta(rows Getter) (m meta, ok bool, err error) {
	ok, err = load(rows, []byte{rowMeta}, func(r *enc.Reader) {
		if v := r.U8(); r.Err() == nil && v != Version {
			r.Fail("version %d is not %d", v, Version)
		}
		r.Fixed(m.cell[:])
		m.pos = segment.Position{Epoch: r.U64(), Seq: r.U64()}
		r.Fixed(m.hash[:])
		m.time = r.I64()
		m.segments, m.blocks, m.bytes = r.U64(), r.U64(), r.U64()
		m.retired, m.removed, m.objects = r.U64(), r.U64(), r.U64()
		m.groups, m.epochs, m.vaults = r.U32(), r.U32(), r.U32()
		m.transfers = r.U64()
	})
	return m, ok, err
}

const usageSize = 11 * 8

func (u *Usage) encode(dst *[usageSize]byte) []byte {
	for i, v := range []uint64{u.Bytes, u.Billed, u.Blocks, u.Asked, uint64(u.AsOf), u.Stored.Hi, u.Stored.Lo, u.Paid.Hi, u.Paid.Lo, u.In, u.Out} {
		binary.BigEndian.PutUint64(dst[8*i:], v)
	}
	return dst[:]
}

func usageKey(id holdfast.AccountID) []byte { return append([]byte{rowUsage}, id[:]...) }

func loadUsage(rows Getter, k []byte) (u Usage, err error) {
	raw, err := rows.Get(k)
	if err != nil || raw == nil {
		return u, err
	}
	if len(raw) != usageSize {
		return u, fmt.Errorf("row %q: %w: %d bytes", k, ErrDamaged, len(raw))
	}
	u64 := func(i int) uint64 { return binary.BigEndian.Uint64(raw[8*i:]) }
	return Usage{
		Bytes: u64(0), Billed: u64(1), Blocks: u64(2), Asked: u64(3), AsOf: int64(u64(4)),
		Stored: Integral{u64(5), u64(6)}, Paid: Integral{u64(7), u64(8)}, In: u64(9), Out: u64(10),
	}, nil
}

// tlsRow is what a connection key is known as.
type tlsRow struct {
	account holdfast.AccountID
	vault   holdfast.VaultID  // zeros until it is enrolled
	signer  holdfast.SignerID // likewise
}

func (t tlsRow) put(rows Rows, k [32]byte) error {
	return rows.Put(key(rowTLS, k[:]), append(append(t.account[:], t.vault[:]...), t.signer[:]...))
}

func loadTLS(rows Getter, k [32]byte) (t tlsRow, ok bool, err error) {
	ok, err = load(rows, key(rowTLS, k[:]), func(r *enc.Reader) {
		r.Fixed(t.account[:])
		r.Fixed(t.vault[:])
		r.Fixed(t.signer[:])
	})
	return t, ok, err
}

func (v Vault) put(rows Rows) error {
	b := append(v.Account[:], u64(v.N)...)
	b = append(b, v.Head[:]...)
	b = append(b, u64(uint64(v.Time))...)
	b = append(b, u64(v.Owner.Seq)...)
	b = append(b, v.Owner.Prev[:]...)
	b = append(b, u64(v.Service.Seq)...)
	b = append(b, v.Service.Prev[:]...)
	b = append(b, v.ReadKey[:]...)
	b = append(b, u32(v.readKeys)...)
	b = append(b, u32(v.series)...)
	b = append(b, flag(v.Frozen))
	b = append(b, u64(v.Delay.Seconds)...)
	b = append(b, u64(v.Delay.Next)...)
	b = append(b, u64(uint64(v.Delay.At))...)
	b = append(b, u64(uint64(v.Arrears))...)
	b = append(b, u64(uint64(v.Told))...)
	return rows.Put(key(rowVault, v.ID[:]), b)
}

func loadVault(rows Getter, id holdfast.VaultID) (v Vault, ok bool, err error) {
	ok, err = load(rows, key(rowVault, id[:]), func(r *enc.Reader) {
		v.ID = id
		r.Fixed(v.Account[:])
		v.N = r.U64()
		r.Fixed(v.Head[:])
		v.Time = r.I64()
		v.Owner.Seq = r.U64()
		r.Fixed(v.Owner.Prev[:])
		v.Service.Seq = r.U64()
		r.Fixed(v.Service.Prev[:])
		r.Fixed(v.ReadKey[:])
		v.readKeys, v.series = r.U32(), r.U32()
		v.Frozen = r.U8() == 1
		v.Delay = history.Undelete{Seconds: r.U64(), Next: r.U64(), At: r.I64()}
		v.Arrears, v.Told = r.I64(), r.I64()
	})
	if err != nil || !ok {
		return Vault{}, false, err
	}
	raw, err := rows.Get(key(rowGenesis, id[:]))
	if err != nil {
		return Vault{}, false, err
	}
	if v.Genesis, err = history.ParseGenesis(raw); err != nil {
		return Vault{}, false, fmt.Errorf("vault %s: %w: %w", id, ErrDamaged, err)
	}
	return v, true, nil
}

func putMachine(rows Rows, v holdfast.VaultID, s holdfast.SignerID, m history.Machine) error {
	b := append(u64(m.Chain.Seq), m.Chain.Prev[:]...)
	b = append(b, u64(m.Revoked)...)
	b = append(b, u64(uint64(m.Since))...)
	return rows.Put(key(rowMachine, v[:], s[:]), append(b, m.Enrol.Encode()...))
}

func loadMachine(rows Getter, v holdfast.VaultID, s holdfast.SignerID) (m history.Machine, ok bool, err error) {
	ok, err = load(rows, key(rowMachine, v[:], s[:]), func(r *enc.Reader) {
		m.Chain.Seq = r.U64()
		r.Fixed(m.Chain.Prev[:])
		m.Revoked, m.Since = r.U64(), r.I64()
		e, err := history.ParseEnrol(r.Bytes(r.Len()))
		if err != nil {
			r.Fail("%w", err)
		}
		m.Enrol = e
	})
	return m, ok, err
}

func (s Session) put(rows Rows, id holdfast.SessionID) error {
	b := append(s.Vault[:], s.Group[:]...)
	b = append(b, u32(s.group)...)
	b = append(b, s.Signer[:]...)
	b = append(b, s.Account[:]...)
	for _, v := range []uint64{s.N, uint64(s.Start), s.Cap.Bytes, s.Cap.Blocks} {
		b = append(b, u64(v)...)
	}
	return rows.Put(key(rowSession, id[:]), b)
}

func loadSession(rows Getter, id holdfast.SessionID) (s Session, ok bool, err error) {
	var k [17]byte
	k[0] = rowSession
	copy(k[1:], id[:])
	raw, err := rows.Get(k[:])
	if err != nil || raw == nil {
		return s, false, err
	}
	r := enc.NewReader(raw) // and not load, which costs memory: each block asks
	r.Fixed(s.Vault[:])
	r.Fixed(s.Group[:])
	s.group = r.U32()
	r.Fixed(s.Signer[:])
	r.Fixed(s.Account[:])
	s.N, s.Start = r.U64(), r.I64()
	s.Cap = Amount{r.U64(), r.U64()}
	if err := r.Done(); err != nil {
		return s, false, fmt.Errorf("row %q: %w: %w", k, ErrDamaged, err)
	}
	return s, true, nil
}

const daySize = 3 * 8

func dayKey(v holdfast.VaultID, s holdfast.SignerID) (k [1 + 32 + 32]byte) {
	k[0] = rowDay
	copy(k[1:], v[:])
	copy(k[33:], s[:])
	return k
}

func (d Day) put(rows Rows, k []byte) error {
	var b [daySize]byte
	for i, v := range []uint64{d.Day, d.Bytes, d.Blocks} {
		binary.BigEndian.PutUint64(b[8*i:], v)
	}
	return rows.Put(k, b[:])
}

// loadDay returns what the machine of row k stored on the day of timeMS.
func loadDay(rows Getter, k []byte, timeMS int64) (Day, error) {
	var d Day
	_, err := load(rows, k, func(r *enc.Reader) { d = Day{r.U64(), Amount{r.U64(), r.U64()}} })
	if today := uint64(timeMS) / msPerDay; d.Day != today {
		d = Day{Day: today}
	}
	return d, err
}

func (t Token) put(rows Rows, hash [32]byte) error {
	b := append(t.Account[:], u64(uint64(t.Expires))...)
	return rows.Put(key(rowToken, hash[:]), append(b, t.TLSKey[:]...))
}

func loadToken(rows Getter, hash [32]byte) (t Token, ok bool, err error) {
	ok, err = load(rows, key(rowToken, hash[:]), func(r *enc.Reader) {
		r.Fixed(t.Account[:])
		t.Expires = r.I64()
		r.Fixed(t.TLSKey[:])
		t.Used = t.TLSKey != [32]byte{}
	})
	return t, ok, err
}

// put writes a segment that is not retired, and its nonce.
func (s Segment) put(rows Rows) error {
	b := append(s.Key.Hash[:], u32(s.Key.Trailer)...)
	b = append(b, u64(s.Size)...)
	b = append(b, u32(s.Blocks)...)
	if err := rows.Put(posKey(s.Key.Position), append(b, u64(s.Bytes)...)); err != nil {
		return err
	}
	return rows.Put(nonceKey(s.Key.Position), s.Key.Nonce[:])
}

func (s *Segment) decode(r *enc.Reader) {
	r.Fixed(s.Key.Hash[:])
	s.Key.Trailer = r.U32()
	s.Size, s.Blocks, s.Bytes = r.U64(), r.U32(), r.U64()
}

// putRetired writes a retired segment.
func (s Segment) putRetired(rows Rows) error {
	b := append(s.Key.Hash[:], u32(s.Key.Trailer)...)
	b = append(b, u64(s.Size)...)
	return rows.Put(retiredKey(s.Key.Position), append(b, u64(uint64(s.Retired))...))
}

func (s *Segment) decodeRetired(r *enc.Reader) {
	r.Fixed(s.Key.Hash[:])
	s.Key.Trailer = r.U32()
	s.Size, s.Retired = r.U64(), r.I64()
}

// loadSegment returns a segment that is not retired.
func loadSegment(rows Getter, pos segment.Position) (s Segment, ok bool, err error) {
	ok, err = load(rows, posKey(pos), s.decode)
	if err != nil || !ok {
		return Segment{}, false, err
	}
	return s.found(rows, pos)
}

// loadRetired returns a segment that is retired and not removed.
func loadRetired(rows Getter, pos segment.Position) (s Segment, ok bool, err error) {
	ok, err = load(rows, retiredKey(pos), s.decodeRetired)
	if err != nil || !ok {
		return Segment{}, false, err
	}
	return s.found(rows, pos)
}

// found adds to a segment at pos what is not in its row.
func (s Segment) found(rows Getter, pos segment.Position) (Segment, bool, error) {
	nonce, err := rows.Get(nonceKey(pos))
	if err != nil {
		return Segment{}, false, err
	}
	m, _, err := loadMeta(rows)
	if err == nil {
		err = s.named(m.cell, pos, nonce)
	}
	return s, err == nil, err
}

// named adds to a segment what is not in its row, from where that is.
func (s *Segment) named(cell holdfast.CellID, pos segment.Position, nonce []byte) error {
	if len(nonce) != len(s.Key.Nonce) {
		return fmt.Errorf("segment %s: %w: it has no nonce", pos, ErrDamaged)
	}
	copy(s.Key.Nonce[:], nonce)
	s.Key.Cell, s.Key.Position = cell, pos
	return nil
}

func loadGroup(rows Getter, v holdfast.VaultID, g holdfast.GroupID) (n uint32, ok bool, err error) {
	ok, err = load(rows, key(rowGroup, v[:], g[:]), func(r *enc.Reader) { n = r.U32() })
	return n, ok, err
}
