// Package catalog keeps, on the machine that backs up, the entries of the previous archive of a series
// and the state in which each file was read, so that an unchanged file need not be read again. It is
// disposable: without it the next run reads everything. Nothing is ever deleted because of it, and what
// it says of blocks is checked by the service. It holds paths and names of blocks in clear.
//
// # File
//
// All integers are big-endian. K is the catalog key of the machine; Ks = HMAC-SHA256(K,
// "holdfast/1/catalog" 0x00 salt).
//
//	header    magic 8 = "holdfcat", version u16 = 1, salt 16 (random)
//	          vault 32, signer 32, series 16, archive 32
//	          items u64, sections u64 (of items), packs u32, end u64 (where the sections of items end)
//	          mac 32 = HMAC-SHA256(Ks, 0 u8 || the header before mac)
//	sections of items, then sections of packs, then the end of the file
//	section   length u32 of payload, payload,
//	          mac 32 = HMAC-SHA256(Ks, type u8 || number u64 || payload); type is 1 for items, 2 for packs;
//	          numbers count from 0 through the file
//
// The payload of a section of items is a page (package archive) without a head. After the fields of an
// entry's item follow those of its Stat: size uvarint, mtime and ctime (seconds zigzag varint,
// nanoseconds uvarint), inode uvarint, device uvarint. An item that continues extents may be in a later
// section than its entry; the extents of a file are cut after every 512. A section ends with the item
// that makes it longer than 64 KiB.
//
// The payload of a section of packs is up to 1,638 times name 32, total u32, live u32, through all
// sections in the order of the names; every pack that an extent refers to, once.
//
// The header is written last, into its place at the front, when the archive is committed. The salt makes
// every file's MACs different, so that sections of one file are nothing in another; a section that is
// altered, missing, or in another place does not verify; and a file that ends early does not have the
// sections that its header tells of. An older file, whole, names another archive.
package catalog

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"os"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/keyring"
	"holdfast/internal/enc"
)

// ErrUnusable reports a catalog that is absent for every purpose: damaged, cut short, of another machine,
// vault, series or archive, or of another version. The next run reads every file again.
var ErrUnusable = errors.New("catalog cannot be used")

const (
	magic       = "holdfcat"
	version     = 1
	saltSize    = 16
	macSize     = sha256.Size
	headerSize  = len(magic) + 2 + saltSize + 32 + 32 + 16 + 32 + 8 + 8 + 4 + 8 + macSize
	pageSize    = 64 << 10 // of a section, bytes; the last item exceeds it
	maxSection  = pageSize + 2<<20
	packSize    = 32 + 4 + 4
	packsAPart  = 1638    // in one section
	maxPacks    = 1 << 22 // in one catalog
	typeHeader  = 0
	typeItems   = 1
	typePacks   = 2
	filePerm    = 0o600
	newSuffix   = ".new"
	itemExtents = archive.MaxItemExtents
)

// Key returns the catalog key of a machine: E(machine seed, "catalog").
func Key(m *keyring.Machine) holdfast.Key { return keyring.Derive(m.Seed, "catalog") }

// Binding is what a catalog is about. It is compared whole.
type Binding struct {
	Vault   holdfast.VaultID
	Signer  holdfast.SignerID
	Series  holdfast.SeriesID
	Archive holdfast.RecordID // the commit record of the archive whose entries these are
}

// Stat identifies a state of a file: it is unchanged when all of it agrees.
type Stat struct {
	Size         uint64
	Mtime, Ctime archive.Time
	Inode        uint64
	Device       uint64
}

// Same reports whether s and o are the same state of the same file. The zero Stat is the same as
// nothing, itself included: it marks a file that must be read again next time.
func (s Stat) Same(o Stat) bool { return s == o && s != Stat{} }

// Item is an entry of the previous archive and the state in which its file was read.
type Item struct {
	Entry archive.Entry
	Stat  Stat
}

// Pack is what is known of one pack.
type Pack struct {
	Total uint64 // bytes of its plaintext
	Live  uint64 // bytes of it that entries refer to, at most Total; what two entries share counts twice
}

// header is the fixed beginning of the file.
type header struct {
	salt     [saltSize]byte
	binding  Binding
	items    uint64
	sections uint64
	packs    uint32
	end      uint64
}

func (h *header) encode(k *macs) []byte {
	b := append(make([]byte, 0, headerSize), magic...)
	b = binary.BigEndian.AppendUint16(b, version)
	b = append(b, h.salt[:]...)
	b = append(b, h.binding.Vault[:]...)
	b = append(b, h.binding.Signer[:]...)
	b = append(b, h.binding.Series[:]...)
	b = append(b, h.binding.Archive[:]...)
	b = binary.BigEndian.AppendUint64(b, h.items)
	b = binary.BigEndian.AppendUint64(b, h.sections)
	b = binary.BigEndian.AppendUint32(b, h.packs)
	b = binary.BigEndian.AppendUint64(b, h.end)
	return append(b, k.header(b)...)
}

// parseHeader decodes and verifies a header.
func parseHeader(raw []byte, key holdfast.Key) (header, *macs, error) {
	r := enc.NewReader(raw)
	var h header
	if m := r.Bytes(len(magic)); r.Err() == nil && string(m) != magic {
		r.Fail("it is no catalog")
	}
	if v := r.U16(); r.Err() == nil && v != version {
		r.Fail("its version is %d, not %d", v, version)
	}
	r.Fixed(h.salt[:])
	r.Fixed(h.binding.Vault[:])
	r.Fixed(h.binding.Signer[:])
	r.Fixed(h.binding.Series[:])
	r.Fixed(h.binding.Archive[:])
	h.items = r.U64()
	h.sections = r.U64()
	h.packs = r.U32()
	h.end = r.U64()
	body := r.Offset()
	mac := r.Bytes(macSize)
	if err := r.Done(); err != nil {
		return header{}, nil, err
	}
	k := newMACs(key, h.salt)
	if !hmac.Equal(mac, k.header(raw[:body])) {
		return header{}, nil, errors.New("its header does not verify under this machine's key")
	}
	return h, k, nil
}

// macs computes the MACs of one file.
type macs struct {
	h   hash.Hash
	sum [macSize]byte
}

func newMACs(key holdfast.Key, salt [saltSize]byte) *macs {
	m := hmac.New(sha256.New, key[:])
	m.Write([]byte("holdfast/1/catalog\x00"))
	m.Write(salt[:])
	return &macs{h: hmac.New(sha256.New, m.Sum(nil))}
}

// header returns the MAC of a header, valid until the next call.
func (k *macs) header(b []byte) []byte {
	k.h.Reset()
	k.h.Write([]byte{typeHeader})
	k.h.Write(b)
	return k.h.Sum(k.sum[:0])
}

// section returns the MAC of a section, valid until the next call.
func (k *macs) section(kind uint8, number uint64, payload []byte) []byte {
	k.h.Reset()
	k.h.Write(binary.BigEndian.AppendUint64([]byte{kind}, number))
	k.h.Write(payload)
	return k.h.Sum(k.sum[:0])
}

// newPath is where a catalog is written before it is complete.
func newPath(path string) string { return path + newSuffix }

// compareNames orders names as the pack table does.
func compareNames(a, b holdfast.Name) int { return bytes.Compare(a[:], b[:]) }

// sameFile reports whether the open file f is still what lies at path.
func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}
