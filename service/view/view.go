// Package view derives from the journal what the service must look up: where blocks lie, who may do
// what, how long each vault's history is. It holds no truth of its own: all of it is rebuilt from the
// bucket by the one function that also decides whether a record may be appended (Apply).
//
// # Rows
//
// The view is a map from keys to values, kept in an embedded database. Integers are big-endian. The first
// byte of a key says what its row is; everything after it has a fixed size except an account's name and a transfer's id.
//
//	'a' account 16          name
//	'A' name                account 16
//	'b' group u32, name 32  epoch u64, seq u64, off u32, len u32, kind u8, sum 16, count u64, since i64, session 16,
//	                        stored i64, damaged u8
//	'B' group u32, name 32, alternate u32   likewise, count and since without meaning: a suspect or unreferenced
//	                        block that was stored anew; 0, 1, 2, ... in the order in which that happened
//	'c' vault 32, series 16 number u32, archives u32, jumped u64, confirmed u64, n u8, then n times paths u64,
//	                        unchanged u64: series are numbered in the order of their first commit
//	'C' vault 32, record id 32   an archive that is not purged: n u64, time i64 (ns), signer 32, state u8,
//	                        changed i64 (ns), by machine u8, held u8, slot u32, commit fields
//	'd' vault 32, signer 32 day u64, bytes u64, blocks u64: what a machine with a daily cap stored on the day, counted
//	                        from 1970 in UTC, on which it last did; the bytes as billed
//	'D' group u32, name 32  epoch u64, seq u64, off u32, since i64: a block that is damaged where it is
//	'e' epoch u64           last seq u64, hash 32: a closed epoch as the journal accepted it
//	'f'                     for each reason in order: reason u8, since i64, clock i64, store i64, epoch u64, seq u64, text:
//	                        deleting is frozen in the whole cell
//	'g' vault 32, group 16  group u32: groups are numbered in the order of their first session
//	'h' vault 32, n u64     the entry, as package history encodes it
//	'i' record id 32        vault 32, n u64
//	'j' kind u8, account 16 balance i128: a book of the ledger; the account is zeros unless it is a customer's
//	'J' number u64          time i64, then the transfer as in its record: numbered from 1 on
//	'k' TLS key 32          account 16, vault 32, signer 32: zeros until the key is enrolled in a vault
//	'l' group u32, name 32  links of a block that has some, 32 bytes each
//	'L' group u32, name 32, alternate u32   links of an alternate that has some
//	'm'                     version u8, cell 8, epoch u64, seq u64, hash 32, time i64, segments u64, blocks u64,
//	                        bytes u64, retired u64, removed u64, objects u64, next group u32, closed epochs u32, vaults u32,
//	                        transfers u64: where the journal stands
//	'M' account 16          charged i64, prices stored, in and out i64 each, credited i64; use when it was charged: integral of
//	                        billed u128, in u64, out u64; out charged that day u64; standing since, told, until, stop i64 each, step u8
//	'n' transfer id         number u64
//	'N' vault 32, number u32   series 16
//	'o' vault 32, series 16 policy fields
//	'p' vault 32, signer 32 chain seq u64, chain prev 32, revoked u64, since i64 (ns), enrol fields
//	'q' vault 32            genesis fields
//	'r' epoch u64, seq u64  hash 32, trailer u32, size u64, retired i64: a segment that nobody reads any more
//	'R' vault 32, read key id 32   number u32: every read key that the vault ever had
//	's' epoch u64, seq u64  hash 32, trailer u32, size u64, live blocks u32, live bytes u64
//	'S' session 16          vault 32, group 16, group u32, signer 32, account 16, n u64, start i64, cap bytes u64,
//	                        cap blocks u64: the machine's daily caps
//	't' token 32            account 16, expires i64 (ns), TLS key 32 (zeros until it is redeemed)
//	'u' account 16          bytes u64, billed u64, blocks u64, asked u64, as of i64, integrals of bytes and of billed
//	                        u128 (bytes x ms), in u64, out u64
//	'v' vault 32            account 16, n u64, head 32, time i64 (ns), owner seq u64, owner prev 32, service seq u64,
//	                        service prev 32, read key id 32, read keys u32, series u32, frozen u8, delay u64, next
//	                        delay u64, from i64 (ns), arrears i64 (ns), told i64 (ns)
//	'V' number u32          vault 32, in the order of their genesis records
//	'w' group u32           revocations in the group: signer 32, since i64, until i64, n u64 each
//	'W' session 16, read key id 32   n u64: the record that wraps the session's secret for that read key
//	'x' vault 32, series 16, slot u32   record id 32: the archives of a series that are not purged; those slots
//	                        are used that are below the number of archives
//	0x00 'b' group u32, name 32   name 32: a hint: a block of which this is the smallest link
//	0x00 'n' epoch u64, seq u64   nonce 8
//	0x00 'y' class u8, epoch u64, seq u64   a hint, without a value: how much of a segment is live
//	0x00 'z' since i64, group u32, name 32   a hint, without a value: a block has no references
//
// Times are journal time in ms since 1970 unless the table says otherwise. Rows that begin with 0x00 are
// not functions of the journal (a segment's nonce is not in its bytes) and not part of the Digest.
//
// # Counts
//
// A block's count is how many stored blocks link to it plus how many commits name it as their root. It is
// raised when the linking block is stored, not when an archive is committed (JOURNAL 16); since is the
// time at which a block without references was stored or lost its last one (JOURNAL 17). Deleting an
// archive changes no count; purging it takes the reference to its root away (JOURNAL 16).
//
// A block without references is condemned when no open session can have been told of it: then its row goes, and
// what it links to loses a reference. What loses its last one in this way has since set to the journal time less
// Keep, so that what became garbage together goes together (JOURNAL 17). A block that had no references for longer
// than Keep may go any moment, so who stores it is not told that it is known: it is stored anew, and the old copy
// is an alternate.
//
// # Suspect blocks
//
// A revocation says since when a machine's key may have been in other hands. In the machine's group, what
// it stored since then is not there for those who deduplicate or link, and may be stored again. The same
// goes for trees and roots that any machine of the group stored since then in a session older than the
// revocation: they may link to the others. Later ones cannot, because their links were looked at when they were
// stored. So a good archive over bad blocks is mended by the next run. The first block stays where it is,
// as an alternate, and reading goes to the newest.
//
// # Damaged blocks
//
// A block whose bytes fail their checksum is not there for those who deduplicate or link, like a suspect one: whoever has
// its content stores it anew, and it is whole again for every archive that needs it.
//
// # Freeing
//
// A segment without live blocks is retired, and a while later its objects are deleted (JOURNAL 19). What is live in one
// that is mostly dead is moved before: each record names the block and the place where it was, and does nothing to one
// that is not there any more (JOURNAL 18).
package view

import (
	"errors"
	"fmt"
	"math/big"

	"holdfast"
	"holdfast/history"
	"holdfast/service/segment"
)

// Version is the version of the rows; a store of another version is discarded and rebuilt.
const Version = 7

// Getter reads rows. Get returns nil for a row that is not there; the value must not be changed and is
// valid until the next change of the rows.
type Getter interface {
	Get(key []byte) ([]byte, error)
}

// Rows are rows that can be changed. key and val may be used again after the call.
type Rows interface {
	Getter
	Put(key, val []byte) error
	Delete(key []byte) error
}

// What Apply refuses, beside the errors of package history for signed records. A refusal changes nothing.
var (
	ErrDuplicate    = errors.New("it is there already")
	ErrNoSession    = errors.New("no such session")
	ErrNoAccount    = errors.New("no such account")
	ErrNoVault      = errors.New("no such vault")
	ErrNameTaken    = errors.New("another account has that name")
	ErrKeyTaken     = errors.New("that connection key is in use already")
	ErrKind         = errors.New("the block has another kind")
	ErrTokenUnknown = errors.New("no such token")
	ErrTokenUsed    = errors.New("the token was redeemed with another key")
	ErrTokenExpired = errors.New("the token has expired")
	// ErrOrder reports a segment or a time that does not follow what was applied before.
	ErrOrder = errors.New("it does not follow in the journal")
	// ErrDamaged reports rows that contradict one another or cannot be read: the view must be rebuilt.
	ErrDamaged = errors.New("the view is damaged; it must be rebuilt from the bucket")
)

// CapError refuses a block that its machine may not store on this day any more.
type CapError struct {
	Cap, Used Amount // Cap has 0 for what is not capped
	Resets    int64  // ms: the beginning of the next day of journal time, UTC
}

// Amount is how much a machine stored, or may store, on one day.
type Amount struct {
	Bytes  uint64 // billed
	Blocks uint64
}

func (e *CapError) Error() string {
	return fmt.Sprintf("the machine's daily cap is %d bytes and %d blocks (0 for none), of which %d and %d are used", e.Cap.Bytes, e.Cap.Blocks, e.Used.Bytes, e.Used.Blocks)
}

// MissingError lists blocks that a record needs and that are not there.
type MissingError struct {
	Names []holdfast.Name // at most MaxMissing, there may be more
}

// MaxMissing bounds the names in a MissingError.
const MaxMissing = 256

func (e *MissingError) Error() string {
	return fmt.Sprintf("%d or more blocks that it needs are not there, the first is %s", len(e.Names), e.Names[0])
}

// Block is where a block is and what refers to it.
type Block struct {
	Pos      segment.Position
	Off, Len uint32
	Kind     holdfast.Kind
	Sum      [16]byte           // segment.SumOf the sealed bytes
	Count    uint64             // references
	Since    int64              // ms; when Count became 0; 0 while it is not
	Session  holdfast.SessionID // that stored it
	Stored   int64              // ms
	Damaged  bool               // its bytes fail their checksum
}

// Segment is what the view knows of one segment.
type Segment struct {
	Key     segment.Key
	Size    uint64 // of the object, bytes
	Blocks  uint32 // live
	Bytes   uint64 // live
	Retired int64  // ms; journal time at which it was retired, 0 if it is not
}

// Body returns how many bytes of blocks there are in it, live or not.
func (s Segment) Body() uint64 { return s.Size - uint64(s.Key.Trailer) }

// Machine is an enrolled machine.
type Machine struct {
	Vault   holdfast.VaultID
	Account holdfast.AccountID
	Signer  holdfast.SignerID
	Enrol   history.Enrol
	Chain   history.Link // the signer's next record
	Revoked uint64       // number of the record that revoked it; 0 if none did
	Since   int64        // ns; what it did since then is suspect
}

// Account is who pays.
type Account struct {
	ID   holdfast.AccountID
	Name string
}

// Usage is what an account stores now, and the exact integral of it over time.
type Usage struct {
	Bytes  uint64 // sealed bytes
	Billed uint64 // bytes, as holdfast.Billed counts them
	Blocks uint64
	Asked  uint64 // names that its machines asked about
	AsOf   int64  // ms; the integrals are up to here
	Stored Integral
	Paid   Integral // of Billed
	In     uint64   // bytes that were ever stored
	Out    uint64   // bytes of blocks that were ever sent to its machines
}

// Integral is a number of bytes x ms of 128 bits.
type Integral struct{ Hi, Lo uint64 }

// Int returns i as a number.
func (i Integral) Int() *big.Int {
	n := new(big.Int).SetUint64(i.Hi)
	return n.Or(n.Lsh(n, 64), new(big.Int).SetUint64(i.Lo))
}

// Day is what a machine stored on one day of journal time, UTC.
type Day struct {
	Day uint64 // since 1970
	Amount
}

// Resets returns when the next day begins, ms.
func (d Day) Resets() int64 { return int64(d.Day+1) * msPerDay }

// Token is an enrolment token.
type Token struct {
	Account holdfast.AccountID
	Expires int64    // ns
	Used    bool     // redeemed
	TLSKey  [32]byte // by this key
}

// Vault is a vault at the newest record of its history.
type Vault struct {
	ID      holdfast.VaultID
	Account holdfast.AccountID // zeros until its first machine is enrolled
	N       uint64
	Head    holdfast.Head
	Time    int64 // ns; stamp of record N
	Owner   history.Link
	Service history.Link // chain of the service's own records in this vault
	ReadKey history.ReadKeyID
	Delay   history.Undelete
	Arrears int64 // ns; see history.Vault
	Told    int64 // likewise
	Frozen  bool
	Genesis history.Genesis

	readKeys, series uint32 // how many there are
}

// Session is a session as its open record says.
type Session struct {
	Vault   holdfast.VaultID
	Group   holdfast.GroupID
	Signer  holdfast.SignerID
	Account holdfast.AccountID
	N       uint64 // number of its open record in the vault's history
	Start   int64  // ms
	Cap     Amount // of its machine, a day; 0 for none
	group   uint32
}

// Stats are totals over the whole cell.
type Stats struct {
	Position segment.Position
	Hash     [32]byte // of the segment there
	Time     int64    // ms; journal time
	Segments uint64   // neither retired nor removed
	Blocks   uint64
	Bytes    uint64 // sealed bytes of blocks
	Retired  uint64 // segments that are retired and not removed
	Removed  uint64 // segments that are not there any more
	Objects  uint64 // bytes of all segments that are not removed
}
