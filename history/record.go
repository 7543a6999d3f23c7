// Package history is what both sides verify: signed records, the chain of each signer, and the heads
// by which a service orders the records of one vault.
//
// # Record
//
// A record is a body, a signature and a tag. The exact bytes of the body are signed, and verified
// before they are parsed. All integers are big-endian; lp(x) is a u32 length, then x.
//
//	body    version u8 = 1
//	        type    u8
//	        vault   32      zeros in a genesis record
//	        signer  32      SHA-256 of the signer's Ed25519 public key
//	        seq     u64     0 for the signer's first record in this vault, then 1, 2, ...
//	        prev    32      ID of the signer's previous record; zeros when seq is 0
//	        seenN   u64     number of the newest vault head that the signer had verified; 0 with zeros for none
//	        seen    32      that head
//	        time    i64     the signer's clock, ns since 1970
//	        fields  lp      by type, below; at most 4,096 bytes
//	id      SHA-256("holdfast/1/id" 0x00 body)
//	sig     Ed25519 over "holdfast/1/sig" 0x00 body, 64 bytes
//	tag     HMAC-SHA256(K_hist, body), 32 bytes: holds after Ed25519 falls to a quantum computer;
//	        zeros in a record that the service makes, which does not have K_hist
//	record  lp(body) sig tag
//
// # Heads
//
// The service numbers the records of a vault 1, 2, 3, ... and stamps each with its own time:
//
//	head n  SHA-256("holdfast/1/head" 0x00 vault n prevHead time id SHA-256(sig)), prevHead zeros for n = 1
//	logSig  Ed25519 by the service's log key over "holdfast/1/headsig" 0x00 vault n head
//	entry   n u64, time i64, head 32, logSig 64, record
//
// A client that remembers one head finds a rollback, an omission or a fork at its next contact. A record that
// cites a head of another history than the one that it is in is refused by all.
//
// # Rules
//
// Vault holds what the records of a vault add up to, and decides which record may come next: who signs it,
// and what may be deleted when. Service and client both run it. docs/format/5-rights-and-deletion.md says it
// in words; no rule looks at a client's clock.
package history

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"holdfast"
	"holdfast/internal/enc"
)

const (
	version = 1
	// MaxFields bounds the fields of one record in bytes.
	MaxFields = 4096

	labelID      = "holdfast/1/id\x00"
	labelSig     = "holdfast/1/sig\x00"
	labelHead    = "holdfast/1/head\x00"
	labelHeadSig = "holdfast/1/headsig\x00"
)

// Failures that a caller tells apart. Each is wrapped with the record it concerns.
var (
	ErrSignature = errors.New("signature does not verify")
	ErrTag       = errors.New("authentication tag does not verify")
	ErrFormat    = errors.New("record is malformed")
)

// Type says what a record does.
type Type uint8

// The types of records.
const (
	TypeGenesis    Type = 1  // creates a vault; signed by the owner
	TypeEnrol      Type = 2  // gives a machine its keys and rights; signed by the owner
	TypeOpen       Type = 3  // opens a session; signed by the machine that writes
	TypeCommit     Type = 4  // completes an archive; signed by the machine that wrote it
	TypeRevoke     Type = 5  // takes all rights from a machine; signed by the owner
	TypeRotateRead Type = 6  // replaces the read key; signed by the owner
	TypeRewrap     Type = 7  // wraps a session's secret for the current read key; signed by the owner
	TypeDelete     Type = 8  // deletes archives; signed by the owner or a machine with the right to delete
	TypeUndelete   Type = 9  // brings archives back that are not purged; signed by the same
	TypePolicy     Type = 10 // says what the service may expire; signed by the owner
	TypeDelay      Type = 11 // says how long deleted archives can be brought back; signed by the owner
	TypeFreeze     Type = 12 // stops all deleting; signed by the owner or a machine with the right to read
	TypeThaw       Type = 13 // ends that; signed by the owner
	TypeExpire     Type = 14 // deletes archives that the policy does not keep; signed by the service's log key
	TypePurge      Type = 15 // ends the time in which archives can be brought back; signed by the service's log key
	TypeConfirm    Type = 16 // lets the policy act on a series that jumped; signed by the owner
	TypeArrears    Type = 17 // says from when on the archives of an unpaid vault may lapse, or that it is paid again; signed by the service's log key
	TypeLapse      Type = 18 // deletes archives of a vault that is unpaid for longer than its grace; signed by the service's log key
)

var typeNames = [...]string{
	TypeGenesis: "genesis", TypeEnrol: "enrol", TypeOpen: "open", TypeCommit: "commit", TypeRevoke: "revoke",
	TypeRotateRead: "rotate-read", TypeRewrap: "rewrap", TypeDelete: "delete", TypeUndelete: "undelete",
	TypePolicy: "policy", TypeDelay: "delay", TypeFreeze: "freeze", TypeThaw: "thaw", TypeExpire: "expire",
	TypePurge: "purge", TypeConfirm: "confirm", TypeArrears: "arrears", TypeLapse: "lapse",
}

func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// ByService reports whether records of this type are made by the service and signed by its log key.
func (t Type) ByService() bool { return t == TypeArrears || t.DeletesByService() }

// DeletesByService reports whether the service deletes with records of this type: it makes none of them while
// deleting is frozen in its cell.
func (t Type) DeletesByService() bool { return t == TypeExpire || t == TypePurge || t == TypeLapse }

// Right returns the right with which a machine signs records of this type, or 0 if none does.
func (t Type) Right() holdfast.Rights {
	switch t {
	case TypeOpen, TypeCommit:
		return holdfast.RightWrite
	case TypeDelete, TypeUndelete:
		return holdfast.RightDelete
	case TypeFreeze:
		return holdfast.RightRead
	}
	return 0
}

// ByOwner reports whether the owner signs records of this type; for some a machine may as well (see Right).
func (t Type) ByOwner() bool { return t != TypeOpen && t != TypeCommit && !t.ByService() }

// Body is the signed part of a record.
type Body struct {
	Type     Type
	Vault    holdfast.VaultID
	Signer   holdfast.SignerID
	Seq      uint64
	Prev     holdfast.RecordID
	SeenN    uint64
	SeenHead holdfast.Head
	Time     int64
	Fields   []byte
}

// Encode returns the bytes that are signed.
func (b Body) Encode() []byte {
	out := make([]byte, 0, 2+32+32+8+32+8+32+8+4+len(b.Fields))
	out = append(out, version, byte(b.Type))
	out = append(out, b.Vault[:]...)
	out = append(out, b.Signer[:]...)
	out = binary.BigEndian.AppendUint64(out, b.Seq)
	out = append(out, b.Prev[:]...)
	out = binary.BigEndian.AppendUint64(out, b.SeenN)
	out = append(out, b.SeenHead[:]...)
	out = binary.BigEndian.AppendUint64(out, uint64(b.Time))
	return enc.AppendLP(out, b.Fields)
}

// ParseBody decodes a body. Call Verify on the record first.
func ParseBody(raw []byte) (Body, error) {
	var b Body
	r := enc.NewReader(raw)
	if v := r.U8(); r.Err() == nil && v != version {
		r.Fail("version %d is not %d", v, version)
	}
	b.Type = Type(r.U8())
	r.Fixed(b.Vault[:])
	r.Fixed(b.Signer[:])
	b.Seq = r.U64()
	r.Fixed(b.Prev[:])
	b.SeenN = r.U64()
	r.Fixed(b.SeenHead[:])
	b.Time = r.I64()
	b.Fields = bytes.Clone(r.LP(MaxFields))
	if r.Err() == nil {
		switch {
		case b.Type < TypeGenesis || b.Type > TypeLapse:
			r.Fail("unknown record type %d", b.Type)
		case (b.Seq == 0) != (b.Prev == holdfast.RecordID{}):
			r.Fail("seq %d does not fit the previous record", b.Seq)
		case (b.SeenN == 0) != (b.SeenHead == holdfast.Head{}):
			r.Fail("seen number %d does not fit the seen head", b.SeenN)
		case b.Type == TypeGenesis && (b.Vault != holdfast.VaultID{} || b.Seq != 0):
			r.Fail("a genesis record names a vault or a predecessor")
		}
	}
	if err := r.Done(); err != nil {
		return Body{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return b, nil
}

// Record is a signed body.
type Record struct {
	Body []byte // as Body.Encode made it
	Sig  [64]byte
	Tag  [32]byte
}

// Sign returns the record over b, signed by key and tagged under hist (K_hist). It sets b.Signer.
func Sign(b Body, key ed25519.PrivateKey, hist holdfast.Key) Record {
	b.Signer = SignerOf(key.Public().(ed25519.PublicKey))
	r := Record{Body: b.Encode()}
	copy(r.Sig[:], ed25519.Sign(key, append([]byte(labelSig), r.Body...)))
	r.Tag = tag(hist, r.Body)
	return r
}

// SignByService returns the record over b, signed by the service's log key. The service does not have
// K_hist, so the tag is zeros. It sets b.Signer.
func SignByService(b Body, logKey ed25519.PrivateKey) Record {
	r := Sign(b, logKey, holdfast.Key{})
	r.Tag = [32]byte{}
	return r
}

// SignerOf returns the identity of a public key.
func SignerOf(pub ed25519.PublicKey) holdfast.SignerID { return sha256.Sum256(pub) }

func tag(hist holdfast.Key, body []byte) (t [32]byte) {
	m := hmac.New(sha256.New, hist[:])
	m.Write(body)
	m.Sum(t[:0])
	return t
}

// ID returns the record's identity.
func (r Record) ID() holdfast.RecordID {
	return sha256.Sum256(append([]byte(labelID), r.Body...))
}

// Verify checks the signature under pub; the error wraps ErrSignature.
func (r Record) Verify(pub ed25519.PublicKey) error {
	if len(pub) != ed25519.PublicKeySize || !ed25519.Verify(pub, append([]byte(labelSig), r.Body...), r.Sig[:]) {
		return fmt.Errorf("record %.8s: %w", r.ID(), ErrSignature)
	}
	return nil
}

// VerifyTag checks the tag under hist (K_hist), which the service does not have; the error wraps ErrTag.
func (r Record) VerifyTag(hist holdfast.Key) error {
	t := tag(hist, r.Body)
	if !hmac.Equal(t[:], r.Tag[:]) {
		return fmt.Errorf("record %.8s: %w", r.ID(), ErrTag)
	}
	return nil
}

// Append appends the record's encoding to b.
func (r Record) Append(b []byte) []byte {
	b = enc.AppendLP(b, r.Body)
	b = append(b, r.Sig[:]...)
	return append(b, r.Tag[:]...)
}

// ReadRecord decodes one record from rd; it does not verify it. The error stays in rd.
func ReadRecord(rd *enc.Reader) Record {
	var r Record
	r.Body = bytes.Clone(rd.LP(holdfast.MaxRecord))
	rd.Fixed(r.Sig[:])
	rd.Fixed(r.Tag[:])
	return r
}

// ParseRecord decodes a record that fills raw; it does not verify it. The error wraps ErrFormat.
func ParseRecord(raw []byte) (Record, error) {
	rd := enc.NewReader(raw)
	r := ReadRecord(rd)
	if err := rd.Done(); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return r, nil
}

// Entry is a record in its place in a vault's history.
type Entry struct {
	N      uint64 // 1 for the genesis record
	Time   int64  // the service's clock, ns since 1970
	Head   holdfast.Head
	LogSig [64]byte
	Record Record
}

// Stamp places r after the head prev (zeros for n = 1) and signs the new head with the log key.
func Stamp(vault holdfast.VaultID, n uint64, prev holdfast.Head, time int64, r Record, logKey ed25519.PrivateKey) Entry {
	e := Entry{N: n, Time: time, Head: NextHead(vault, n, prev, time, r), Record: r}
	copy(e.LogSig[:], ed25519.Sign(logKey, headMessage(vault, n, e.Head)))
	return e
}

// NextHead computes head n.
func NextHead(vault holdfast.VaultID, n uint64, prev holdfast.Head, time int64, r Record) holdfast.Head {
	id, sig := r.ID(), sha256.Sum256(r.Sig[:])
	b := append([]byte(labelHead), vault[:]...)
	b = binary.BigEndian.AppendUint64(b, n)
	b = append(b, prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(time))
	b = append(b, id[:]...)
	b = append(b, sig[:]...)
	return sha256.Sum256(b)
}

func headMessage(vault holdfast.VaultID, n uint64, h holdfast.Head) []byte {
	b := append([]byte(labelHeadSig), vault[:]...)
	b = binary.BigEndian.AppendUint64(b, n)
	return append(b, h[:]...)
}

// CheckStamp verifies that e's head is the one that follows prev in vault and that logKey signed it. It
// does not verify the record. The error wraps ErrHead or ErrSignature.
func (e Entry) CheckStamp(vault holdfast.VaultID, prev holdfast.Head, logKey ed25519.PublicKey) error {
	if NextHead(vault, e.N, prev, e.Time, e.Record) != e.Head {
		return fmt.Errorf("history record %d: %w", e.N, ErrHead)
	}
	if !ed25519.Verify(logKey, headMessage(vault, e.N, e.Head), e.LogSig[:]) {
		return fmt.Errorf("history record %d, head: %w", e.N, ErrSignature)
	}
	return nil
}

// Append appends the entry's encoding to b.
func (e Entry) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, e.N)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Time))
	b = append(b, e.Head[:]...)
	b = append(b, e.LogSig[:]...)
	return e.Record.Append(b)
}

// ReadEntry decodes one entry from rd; it does not verify it. The error stays in rd.
func ReadEntry(rd *enc.Reader) Entry {
	var e Entry
	e.N = rd.U64()
	e.Time = rd.I64()
	rd.Fixed(e.Head[:])
	rd.Fixed(e.LogSig[:])
	e.Record = ReadRecord(rd)
	return e
}
