package history

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

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
//	signKey 32, tlsKey 32, rights u8, group 16, chunk u32
type Enrol struct {
	SignKey [32]byte // Ed25519, signs the machine's records
	TLSKey  [32]byte // Ed25519, the machine's end of every connection
	Rights  holdfast.Rights
	Group   holdfast.GroupID
	Chunk   uint32 // average chunk size of the group, bytes; a power of two
}

// Encode returns the fields of an enrolment record.
func (e Enrol) Encode() []byte {
	b := append([]byte(nil), e.SignKey[:]...)
	b = append(b, e.TLSKey[:]...)
	b = append(b, byte(e.Rights))
	b = append(b, e.Group[:]...)
	return binary.BigEndian.AppendUint32(b, e.Chunk)
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
