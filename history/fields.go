package history

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"holdfast"
	"holdfast/internal/enc"
)

// Sizes of the one suite of this version: HPKE with MLKEM768X25519, HKDF-SHA256, AES-256-GCM.
const (
	SuiteV1      = 1
	ReadKeySize  = 1216 // HPKE public key
	WrapSize     = 1168 // encapsulated key 1,120, sealed secret 32, tag 16
	MinChunk     = 64 << 10
	MaxChunk     = 1 << 20
	DefaultChunk = 256 << 10
)

// Genesis creates a vault. The vault's ID is the ID of this record.
//
//	ownerKey 32, suite u8, readKey 1216
type Genesis struct {
	OwnerKey [32]byte          // Ed25519 public key that signs this record and all enrolments
	ReadKey  [ReadKeySize]byte // HPKE public key to which session secrets are wrapped
}

// ReadKeyID identifies an HPKE public key: SHA-256 of it.
type ReadKeyID [32]byte

// ReadKeyIDOf returns the identity of an HPKE public key.
func ReadKeyIDOf(pub []byte) ReadKeyID { return sha256.Sum256(pub) }

// Encode returns the fields of a genesis record.
func (g Genesis) Encode() []byte {
	b := append([]byte(nil), g.OwnerKey[:]...)
	b = append(b, SuiteV1)
	return append(b, g.ReadKey[:]...)
}

// ParseGenesis decodes the fields of a genesis record.
func ParseGenesis(f []byte) (Genesis, error) {
	var g Genesis
	r := enc.NewReader(f)
	r.Fixed(g.OwnerKey[:])
	suite(r)
	r.Fixed(g.ReadKey[:])
	return g, done(r, TypeGenesis)
}

// Enrol gives a machine its keys and rights.
//
//	signKey 32, tlsKey 32, rights u8, group 16, chunk u32, dayBytes u64, dayBlocks u64, n u8, series 16 x n
type Enrol struct {
	SignKey   [32]byte // Ed25519, signs the machine's records
	TLSKey    [32]byte // Ed25519, the machine's end of every connection
	Rights    holdfast.Rights
	Group     holdfast.GroupID
	Chunk     uint32              // average chunk size of the group, bytes; a power of two
	DayBytes  uint64              // sealed bytes that the machine may store a day; 0 for no cap
	DayBlocks uint64              // blocks that the machine may store a day; 0 for no cap
	Series    []holdfast.SeriesID // the machine may commit to these, sorted; none for any
}

// MaxSeries bounds the series that one enrolment names.
const MaxSeries = 64

// Equal reports whether e and f say the same.
func (e Enrol) Equal(f Enrol) bool { return bytes.Equal(e.Encode(), f.Encode()) }

// MayCommit reports whether the enrolment allows archives of that series.
func (e Enrol) MayCommit(s holdfast.SeriesID) bool {
	return len(e.Series) == 0 || slices.Contains(e.Series, s)
}

// Encode returns the fields of an enrolment record.
func (e Enrol) Encode() []byte {
	b := append([]byte(nil), e.SignKey[:]...)
	b = append(b, e.TLSKey[:]...)
	b = append(b, byte(e.Rights))
	b = append(b, e.Group[:]...)
	b = binary.BigEndian.AppendUint32(b, e.Chunk)
	b = binary.BigEndian.AppendUint64(b, e.DayBytes)
	b = binary.BigEndian.AppendUint64(b, e.DayBlocks)
	b = append(b, byte(len(e.Series)))
	for _, s := range e.Series {
		b = append(b, s[:]...)
	}
	return b
}

// ParseEnrol decodes the fields of an enrolment record.
func ParseEnrol(f []byte) (Enrol, error) {
	var e Enrol
	r := enc.NewReader(f)
	r.Fixed(e.SignKey[:])
	r.Fixed(e.TLSKey[:])
	e.Rights = holdfast.Rights(r.U8())
	r.Fixed(e.Group[:])
	e.Chunk = r.U32()
	e.DayBytes, e.DayBlocks = r.U64(), r.U64()
	n := int(r.U8())
	if r.Err() == nil && n > MaxSeries {
		r.Fail("%d series exceed the limit of %d", n, MaxSeries)
	}
	for range n {
		var s holdfast.SeriesID
		r.Fixed(s[:])
		if k := len(e.Series); r.Err() == nil && k > 0 && bytes.Compare(e.Series[k-1][:], s[:]) >= 0 {
			r.Fail("series are not sorted")
		}
		if r.Err() != nil {
			break
		}
		e.Series = append(e.Series, s)
	}
	if r.Err() == nil {
		if e.Rights&^holdfast.RightsAll != 0 || e.Rights == 0 {
			r.Fail("unknown rights %#x", uint8(e.Rights))
		}
		if e.Chunk < MinChunk || e.Chunk > MaxChunk || e.Chunk&(e.Chunk-1) != 0 {
			r.Fail("chunk size %d is not a power of two from %d to %d", e.Chunk, MinChunk, MaxChunk)
		}
	}
	return e, done(r, TypeEnrol)
}

// Open opens a session: it precedes the session's first block in the journal and is kept while the
// vault exists, because its wrap is the only way to the session's secret.
//
//	sid 16, group 16, readKeyID 32, suite u8, commitment 32, wrap 1168
type Open struct {
	Session    holdfast.SessionID
	Group      holdfast.GroupID
	ReadKey    ReadKeyID
	Commitment [32]byte // of the session secret, so that a wrap has one meaning
	Wrap       [WrapSize]byte
}

// Encode returns the fields of a session's open record.
func (o Open) Encode() []byte {
	b := append([]byte(nil), o.Session[:]...)
	b = append(b, o.Group[:]...)
	b = append(b, o.ReadKey[:]...)
	b = append(b, SuiteV1)
	b = append(b, o.Commitment[:]...)
	return append(b, o.Wrap[:]...)
}

// ParseOpen decodes the fields of a session's open record.
func ParseOpen(f []byte) (Open, error) {
	var o Open
	r := enc.NewReader(f)
	r.Fixed(o.Session[:])
	r.Fixed(o.Group[:])
	r.Fixed(o.ReadKey[:])
	suite(r)
	r.Fixed(o.Commitment[:])
	r.Fixed(o.Wrap[:])
	return o, done(r, TypeOpen)
}

// Counts says how many paths of an archive got each verdict.
type Counts struct {
	Stored, Unchanged, Excluded, Vanished, Changed, Unreadable uint64
}

// Commit completes an archive.
//
//	series 16, sid 16, group 16, root 32, blocks u64, partial u8, counts 6 x u64
type Commit struct {
	Series  holdfast.SeriesID
	Session holdfast.SessionID
	Group   holdfast.GroupID
	Root    holdfast.Name // an archive block
	Blocks  uint64        // blocks that this run uploaded
	Partial bool          // committed before the end of a long first backup
	Counts  Counts
}

// Encode returns the fields of a commit record.
func (c Commit) Encode() []byte {
	b := append([]byte(nil), c.Series[:]...)
	b = append(b, c.Session[:]...)
	b = append(b, c.Group[:]...)
	b = append(b, c.Root[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Blocks)
	if c.Partial {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	for _, v := range []uint64{c.Counts.Stored, c.Counts.Unchanged, c.Counts.Excluded, c.Counts.Vanished, c.Counts.Changed, c.Counts.Unreadable} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return b
}

// ParseCommit decodes the fields of a commit record.
func ParseCommit(f []byte) (Commit, error) {
	var c Commit
	r := enc.NewReader(f)
	r.Fixed(c.Series[:])
	r.Fixed(c.Session[:])
	r.Fixed(c.Group[:])
	r.Fixed(c.Root[:])
	c.Blocks = r.U64()
	p := r.U8()
	if r.Err() == nil && p > 1 {
		r.Fail("partial flag %d is neither 0 nor 1", p)
	}
	c.Partial = p == 1
	for _, v := range []*uint64{&c.Counts.Stored, &c.Counts.Unchanged, &c.Counts.Excluded, &c.Counts.Vanished, &c.Counts.Changed, &c.Counts.Unreadable} {
		*v = r.U64()
	}
	return c, done(r, TypeCommit)
}

// Revoke takes all rights from a machine. Blocks that it stored since then count as not there when
// others deduplicate or link, and archives that it committed since then are flagged (Archive.Suspect).
//
//	signer 32, since i64
type Revoke struct {
	Signer holdfast.SignerID
	Since  int64 // ns; a time after the record's own stamp counts as that stamp
}

// Encode returns the fields of a revocation.
func (v Revoke) Encode() []byte {
	return binary.BigEndian.AppendUint64(append([]byte(nil), v.Signer[:]...), uint64(v.Since))
}

// ParseRevoke decodes the fields of a revocation.
func ParseRevoke(f []byte) (Revoke, error) {
	var v Revoke
	r := enc.NewReader(f)
	r.Fixed(v.Signer[:])
	v.Since = r.I64()
	return v, done(r, TypeRevoke)
}

// RotateRead makes another read key the current one. Sessions opened from then on name it.
//
//	suite u8, readKey 1216
type RotateRead struct{ ReadKey [ReadKeySize]byte }

// Encode returns the fields of a rotation of the read key.
func (k RotateRead) Encode() []byte { return append([]byte{SuiteV1}, k.ReadKey[:]...) }

// ParseRotateRead decodes the fields of a rotation of the read key.
func ParseRotateRead(f []byte) (RotateRead, error) {
	var k RotateRead
	r := enc.NewReader(f)
	suite(r)
	r.Fixed(k.ReadKey[:])
	return k, done(r, TypeRotateRead)
}

// Rewrap is another wrap of a session's secret, for the current read key. The commitment in the session's
// open record holds for it too.
//
//	sid 16, readKeyID 32, wrap 1168
type Rewrap struct {
	Session holdfast.SessionID
	ReadKey ReadKeyID
	Wrap    [WrapSize]byte
}

// Encode returns the fields of a rewrap.
func (w Rewrap) Encode() []byte {
	b := append([]byte(nil), w.Session[:]...)
	b = append(b, w.ReadKey[:]...)
	return append(b, w.Wrap[:]...)
}

// ParseRewrap decodes the fields of a rewrap.
func ParseRewrap(f []byte) (Rewrap, error) {
	var w Rewrap
	r := enc.NewReader(f)
	r.Fixed(w.Session[:])
	r.Fixed(w.ReadKey[:])
	r.Fixed(w.Wrap[:])
	return w, done(r, TypeRewrap)
}

// MaxIDs bounds the archives that one record names.
const MaxIDs = 100

// IDs are the archives that a delete, undelete, expire, purge or lapse record names: at least one, at most MaxIDs,
// strictly increasing.
//
//	n u16, id 32 x n
type IDs []holdfast.RecordID

// Encode returns the fields of a record that names archives.
func (ids IDs) Encode() []byte {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+32*len(ids)), uint16(len(ids)))
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

// ParseIDs decodes the fields of a delete, undelete, expire, purge or lapse record.
func ParseIDs(t Type, f []byte) (IDs, error) {
	r := enc.NewReader(f)
	n := int(r.U16())
	if r.Err() == nil && (n == 0 || n > MaxIDs) {
		r.Fail("%d archives are not from 1 to %d", n, MaxIDs)
	}
	var ids IDs
	for range n {
		var id holdfast.RecordID
		r.Fixed(id[:])
		if k := len(ids); r.Err() == nil && k > 0 && bytes.Compare(ids[k-1][:], id[:]) >= 0 {
			r.Fail("archives are not sorted")
		}
		if r.Err() != nil {
			break
		}
		ids = append(ids, id)
	}
	return ids, done(r, t)
}

// Policy says which archives of a series stay; the service expires the others (see Keep). One with nothing
// but zeros keeps all.
//
//	series 16, last u32, hourly u32, daily u32, weekly u32, monthly u32, yearly u32, within u64
type Policy struct {
	Series                                       holdfast.SeriesID // zeros for every series without a policy of its own
	Last, Hourly, Daily, Weekly, Monthly, Yearly uint32
	Within                                       uint64 // seconds before the newest archive
}

// MaxWithin bounds Policy.Within: 200 years of 365 days.
const MaxWithin = 200 * 365 * 86400

// None reports whether p keeps everything.
func (p Policy) None() bool { p.Series = holdfast.SeriesID{}; return p == Policy{} }

// Encode returns the fields of a policy.
func (p Policy) Encode() []byte {
	b := append([]byte(nil), p.Series[:]...)
	for _, v := range []uint32{p.Last, p.Hourly, p.Daily, p.Weekly, p.Monthly, p.Yearly} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return binary.BigEndian.AppendUint64(b, p.Within)
}

// ParsePolicy decodes the fields of a policy.
func ParsePolicy(f []byte) (Policy, error) {
	var p Policy
	r := enc.NewReader(f)
	r.Fixed(p.Series[:])
	for _, v := range []*uint32{&p.Last, &p.Hourly, &p.Daily, &p.Weekly, &p.Monthly, &p.Yearly} {
		*v = r.U32()
	}
	p.Within = r.U64()
	if r.Err() == nil && p.Within > MaxWithin {
		r.Fail("%d seconds exceed the limit of %d", p.Within, MaxWithin)
	}
	return p, done(r, TypePolicy)
}

// Bounds of the time in which a deleted archive can be brought back, seconds.
const (
	MinDelay     = 86400
	MaxDelay     = 365 * 86400
	DefaultDelay = 7 * 86400
)

// Delay sets how long a deleted archive can be brought back. A longer time holds at once, a shorter one
// only after the old time has passed.
//
//	seconds u64
type Delay struct{ Seconds uint64 }

// Encode returns the fields of a delay.
func (d Delay) Encode() []byte { return binary.BigEndian.AppendUint64(nil, d.Seconds) }

// ParseDelay decodes the fields of a delay.
func ParseDelay(f []byte) (Delay, error) {
	r := enc.NewReader(f)
	d := Delay{Seconds: r.U64()}
	if r.Err() == nil && (d.Seconds < MinDelay || d.Seconds > MaxDelay) {
		r.Fail("%d seconds are not from %d to %d", d.Seconds, MinDelay, MaxDelay)
	}
	return d, done(r, TypeDelay)
}

// ParseNone checks that a freeze or thaw record has no fields.
func ParseNone(t Type, f []byte) error { return done(enc.NewReader(f), t) }

// Confirm lets the policy act again on a series that jumped (see Jumped) before this record.
//
//	series 16
type Confirm struct{ Series holdfast.SeriesID }

// Encode returns the fields of a confirmation.
func (c Confirm) Encode() []byte { return append([]byte(nil), c.Series[:]...) }

// ParseConfirm decodes the fields of a confirmation.
func ParseConfirm(f []byte) (Confirm, error) {
	var c Confirm
	r := enc.NewReader(f)
	r.Fixed(c.Series[:])
	return c, done(r, TypeConfirm)
}

// Arrears says that a vault's account has no credit, and from when on its archives may lapse; or that it is
// paid again.
//
//	until i64
type Arrears struct {
	Until int64 // ns since 1970; 0 if it is paid again
}

// Encode returns the fields of an arrears record.
func (a Arrears) Encode() []byte { return binary.BigEndian.AppendUint64(nil, uint64(a.Until)) }

// ParseArrears decodes the fields of an arrears record.
func ParseArrears(f []byte) (Arrears, error) {
	r := enc.NewReader(f)
	a := Arrears{Until: r.I64()}
	if r.Err() == nil && a.Until < 0 {
		r.Fail("a time before 1970")
	}
	return a, done(r, TypeArrears)
}

func suite(r *enc.Reader) {
	if s := r.U8(); r.Err() == nil && s != SuiteV1 {
		r.Fail("unknown suite %d", s)
	}
}

func done(r *enc.Reader, t Type) error {
	if err := r.Done(); err != nil {
		return fmt.Errorf("%w: fields of %s: %w", ErrFormat, t, err)
	}
	return nil
}

// checkGenesis verifies that r is a well-formed genesis record signed by the owner key that it names.
func checkGenesis(r Record) (Body, Genesis, error) {
	b, err := ParseBody(r.Body)
	if err != nil {
		return Body{}, Genesis{}, err
	}
	if b.Type != TypeGenesis {
		return Body{}, Genesis{}, fmt.Errorf("%w: %s where genesis belongs", ErrFormat, b.Type)
	}
	g, err := ParseGenesis(b.Fields)
	if err != nil {
		return Body{}, Genesis{}, err
	}
	pub := ed25519.PublicKey(bytes.Clone(g.OwnerKey[:]))
	if err := r.Verify(pub); err != nil {
		return Body{}, Genesis{}, err
	}
	if b.Signer != SignerOf(pub) {
		return Body{}, Genesis{}, fmt.Errorf("%w: genesis is not signed by its owner key", ErrFormat)
	}
	return b, g, nil
}
