// Package holdfast holds the nouns that client, service and watch share: identifiers, kinds, limits
// and units. It does no I/O and imports nothing of the project.
//
// Sizes are in bytes and times in nanoseconds since 1970-01-01 UTC unless a name says otherwise.
package holdfast

import (
	"encoding/hex"
	"fmt"
)

// ProtocolVersion is the version of the wire protocol; it is the first element of every request path.
const ProtocolVersion = 1

// Version is the version of this source tree, as the programs print it.
const Version = "0.1.0-dev"

// Limits that both sides enforce. A decoder refuses a larger value before it allocates.
const (
	// MaxPlain bounds the plaintext of one block.
	MaxPlain = 4 << 20
	// MaxLinks bounds the links of one block.
	MaxLinks = 16384
	// MaxBlock bounds one sealed block: header, links, padded ciphertext, tag.
	MaxBlock = 6 << 20
	// MaxRecord bounds the body of one signed record.
	MaxRecord = 8 << 10
	// MaxBatch bounds the body of one upload of blocks.
	MaxBatch = 4<<20 + MaxBlock
	// MaxBatchBlocks and MaxBatchLinks bound the blocks in one upload and their links: what the service has
	// to look up and remember for it.
	MaxBatchBlocks = 32768
	MaxBatchLinks  = 6 * MaxLinks
	// LeastBilled is what a block counts as at least, bytes: small ones cost the service a record, rows of its
	// view and look-ups all the same. It counts for what is billed and for daily caps.
	LeastBilled = 4 << 10
	// MaxHave bounds the names in one presence question or one fetch.
	MaxHave = 4096
)

// Billed returns what a sealed block of n bytes counts as, bytes.
func Billed(n int) uint64 { return uint64(max(n, LeastBilled)) }

// Kind says what a block's plaintext is. Each kind has its own naming key.
type Kind uint8

// The kinds of blocks. Chunks and packs are data and have no links; trees and archives are metadata.
const (
	KindChunk   Kind = 1 // a piece of one file's content, or of an archive's verdict list
	KindPack    Kind = 2 // the contents of several small files, one after another
	KindTree    Kind = 3 // a node of an archive's tree
	KindArchive Kind = 4 // the root of an archive
)

// Valid reports whether k is a kind of this version.
func (k Kind) Valid() bool { return k >= KindChunk && k <= KindArchive }

// Leaf reports whether blocks of this kind never link to others.
func (k Kind) Leaf() bool { return k == KindChunk || k == KindPack }

func (k Kind) String() string {
	switch k {
	case KindChunk:
		return "chunk"
	case KindPack:
		return "pack"
	case KindTree:
		return "tree"
	case KindArchive:
		return "archive"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Name is the name of a block: a keyed hash of its plaintext, unique inside one group of one vault.
type Name [32]byte

// VaultID identifies a vault: the record ID of its genesis record.
type VaultID [32]byte

// GroupID identifies a group of machines that deduplicate against one another inside a vault.
type GroupID [16]byte

// SessionID identifies one upload; it is random.
type SessionID [16]byte

// SeriesID identifies the archives of one job without naming it (see history.Commit).
type SeriesID [16]byte

// RecordID identifies a signed record; that of a commit record is the archive's identity.
type RecordID [32]byte

// SignerID identifies a signing key: SHA-256 of its Ed25519 public key.
type SignerID [32]byte

// Head is the running hash over a vault's history.
type Head [32]byte

// AccountID identifies who pays; it is random.
type AccountID [16]byte

// CellID identifies one journal with its one view and one owner; it is random.
type CellID [8]byte

// Key is 32 secret bytes. Its text forms hide it, so that it cannot reach a log by accident.
type Key [32]byte

func (Key) String() string   { return "[secret]" }
func (Key) GoString() string { return "[secret]" }

func (n Name) String() string      { return hex.EncodeToString(n[:]) }
func (v VaultID) String() string   { return hex.EncodeToString(v[:]) }
func (g GroupID) String() string   { return hex.EncodeToString(g[:]) }
func (s SessionID) String() string { return hex.EncodeToString(s[:]) }
func (s SeriesID) String() string  { return hex.EncodeToString(s[:]) }
func (r RecordID) String() string  { return hex.EncodeToString(r[:]) }
func (s SignerID) String() string  { return hex.EncodeToString(s[:]) }
func (h Head) String() string      { return hex.EncodeToString(h[:]) }
func (a AccountID) String() string { return hex.EncodeToString(a[:]) }
func (c CellID) String() string    { return hex.EncodeToString(c[:]) }

// Rights are what an enrolment record lets a machine do in its vault.
type Rights uint8

// The rights a machine can hold.
const (
	RightWrite  Rights = 1 << 0 // open sessions, store blocks, commit archives
	RightRead   Rights = 1 << 1 // fetch blocks
	RightDelete Rights = 1 << 2 // delete and undelete archives

	// RightsAll is every right of this version.
	RightsAll = RightWrite | RightRead | RightDelete
)

// Has reports whether r includes all of want.
func (r Rights) Has(want Rights) bool { return r&want == want }

func (r Rights) String() string {
	s := ""
	for _, x := range []struct {
		r Rights
		n string
	}{{RightWrite, "write"}, {RightRead, "read"}, {RightDelete, "delete"}} {
		if r.Has(x.r) {
			if s != "" {
				s += ","
			}
			s += x.n
		}
	}
	if s == "" {
		return "none"
	}
	return s
}
