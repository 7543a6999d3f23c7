// Package seal turns plaintext into sealed blocks and back: it compresses, pads, encrypts and, above
// all, refuses whatever is not exactly what was sealed under the name that was asked for.
//
// E is the derivation of package keyring; lp(x) is the length of x as u32 big-endian, then x. All
// integers are big-endian.
//
// # Session
//
// A run seals under a session: sid, 16 random bytes, and S, 32 random bytes that exist in memory only.
//
//	C     E(S, "commit", vault, sid)
//	wrap  HPKE base mode, KEM MLKEM768X25519 (0x647a), KDF HKDF-SHA256 (1), AEAD AES-256-GCM (2), to the
//	      vault's read key, of the plaintext S with empty AAD: encapsulated key 1,120, sealed 32+16 bytes
//	info  lp("holdfast/1/wrap") lp(vault 32) lp(sid 16) lp(signer 32) lp(SHA-256 of the read key's public half)
//
// Both stand in the session's open record (package history), signed by the writer and durable before the
// session's first block. A reader unwraps S and compares C.
//
// # Block
//
//	header  version u8 = 1, suite u8 = 1, kind u8, sid 16, nonce 12, n u32, links 32*n, sorted, unique
//	body    AES-256-GCM(key, nonce, inner, AAD), its 16-byte tag at the end
//	key     E(S, "block", vault, gid, name)
//	AAD     header without the nonce, vault 32, gid 16, name 32
//	inner   plain length u32, codec u8, payload length u32, payload, zeros up to Padmé(9 + payload length)
//	nonce   first 12 bytes of BLAKE3 keyed with E(S, "nonce") over 32 random bytes, AAD, inner
//
// Codec 0: the payload is the plaintext. Codec 1: the payload is shorter than the plaintext and is one or
// more Zstandard frames, one after another; they decompress to the plaintext. In a pack each file is its
// own frame, so that no size tells how well one file compresses beside another.
//
// Padmé(L) for L >= 2: e = floor(log2 L), s = floor(log2 e) + 1; L rounded up to a multiple of 2^(e-s). It
// grows a block by at most 12 %, and by less the larger it is.
//
// The plaintext of a tree or archive begins with a table: n u32, then n names, sorted and unique. They are
// exactly the header's links. Chunks and packs have no links.
//
// The name is the keyed hash of the plaintext (package keyring). A reader recomputes it, which makes up
// for GCM's lack of commitment: no key opens a block to other content under the same name.
//
// # Why nonces do not repeat
//
// A key belongs to one name in one session, so almost every key is used once. Where a session seals the
// same name again, 32 fresh random bytes decide. Where randomness repeats (a cloned machine, a broken
// generator), the nonce still depends on everything that GCM takes in: equal nonces then mean equal blocks.
package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hpke"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
	"holdfast/internal/blake3"
	"holdfast/internal/enc"
	"holdfast/wire"
)

// Codecs of a payload.
const (
	codecRaw  = 0
	codecZstd = 1
)

const (
	innerHeader = 9
	tagSize     = 16
	nonceOffset = 19 // of the nonce in a block's header
	nonceSize   = 12
)

// ErrDamaged reports a block or a session's wrap that is not what its writer sealed, whoever altered it.
var ErrDamaged = errors.New("damaged")

// Session seals the blocks of one run. It is safe for concurrent use.
type Session struct {
	ID    holdfast.SessionID
	Vault holdfast.VaultID
	Group holdfast.GroupID

	secret   holdfast.Key // S
	nonceKey holdfast.Key
	keys     keyring.GroupKeys
	mu       sync.Mutex // guards rand
	rand     io.Reader
}

// NewSession returns a new session of m's group with randomness from rand (crypto/rand.Reader, but for
// tests), and the fields of the record that must be durable before the session's first block.
func NewSession(rand io.Reader, m *keyring.Machine) (*Session, history.Open, error) {
	s := &Session{Vault: m.Vault, Group: m.Group, keys: m.GroupKeys(), rand: rand}
	if _, err := io.ReadFull(rand, s.ID[:]); err != nil {
		return nil, history.Open{}, fmt.Errorf("open session: %w", err)
	}
	if _, err := io.ReadFull(rand, s.secret[:]); err != nil {
		return nil, history.Open{}, fmt.Errorf("open session: %w", err)
	}
	s.nonceKey = keyring.Derive(s.secret, "nonce")

	o := history.Open{Session: s.ID, Group: s.Group}
	o.Commitment = commitment(s.secret, s.Vault, s.ID)
	if err := wrapFor(&o, m.Vault, m.Signer(), m.ReadKey, s.secret); err != nil {
		return nil, history.Open{}, err
	}
	return s, o, nil
}

// wrapFor wraps the secret of o's session for the read key pub.
func wrapFor(o *history.Open, vault holdfast.VaultID, signer holdfast.SignerID, pub [history.ReadKeySize]byte, secret holdfast.Key) error {
	o.ReadKey = history.ReadKeyIDOf(pub[:])
	k, err := hpke.MLKEM768X25519().NewPublicKey(pub[:])
	if err != nil {
		return fmt.Errorf("wrap session secret: read key: %w", err)
	}
	wrap, err := hpke.Seal(k, hpke.HKDFSHA256(), hpke.AES256GCM(), wrapInfo(vault, *o, signer), secret[:])
	if err != nil {
		return fmt.Errorf("wrap session secret: %w", err)
	}
	if len(wrap) != history.WrapSize {
		return fmt.Errorf("wrap session secret: %d bytes where %d belong", len(wrap), history.WrapSize)
	}
	copy(o.Wrap[:], wrap)
	return nil
}

func commitment(s holdfast.Key, vault holdfast.VaultID, sid holdfast.SessionID) [32]byte {
	return keyring.Derive(s, "commit", vault[:], sid[:])
}

func wrapInfo(vault holdfast.VaultID, o history.Open, signer holdfast.SignerID) []byte {
	b := enc.AppendLP(nil, []byte("holdfast/1/wrap"))
	b = enc.AppendLP(b, vault[:])
	b = enc.AppendLP(b, o.Session[:])
	b = enc.AppendLP(b, signer[:])
	return enc.AppendLP(b, o.ReadKey[:])
}

// Seal returns the sealed block of this kind and plaintext. The links of a tree or archive must be the
// table at the beginning of its plaintext. frames are the lengths of the pieces of plain to compress
// each on its own; nil means one piece.
//
// Whatever a caller got wrong is an error here, because it could not be read back: a name that is not
// the plaintext's, links that are not in the table, frames that do not add up, sizes beyond the limits.
func (s *Session) Seal(name holdfast.Name, kind holdfast.Kind, plain []byte, links []holdfast.Name, frames []int) ([]byte, error) {
	if err := s.check(name, kind, plain, links, frames); err != nil {
		return nil, fmt.Errorf("seal %s %.8s: %w", kind, name, err)
	}
	scratch := buffers.Get().(*[]byte)
	defer buffers.Put(scratch)
	codec, payload := byte(codecZstd), compress(scratch, plain, frames)
	if payload == nil {
		codec, payload = codecRaw, plain
	}

	head := wire.BlockHeaderSize(len(links))
	size := Padme(innerHeader + len(payload))
	sealed := make([]byte, head+size, head+size+tagSize)
	wire.AppendBlockHeader(sealed[:0], wire.BlockHeader{Kind: kind, Session: s.ID, Links: links})
	inner := sealed[head:]
	binary.BigEndian.PutUint32(inner, uint32(len(plain)))
	inner[4] = codec
	binary.BigEndian.PutUint32(inner[5:], uint32(len(payload)))
	copy(inner[innerHeader:], payload)

	aad := additional(sealed[:head], s.Vault, s.Group, name)
	var random [32]byte
	s.mu.Lock()
	_, err := io.ReadFull(s.rand, random[:])
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("seal %s %.8s: %w", kind, name, err)
	}
	hash := blake3.Keyed(s.nonceKey, random[:], aad, inner)
	nonce := sealed[nonceOffset : nonceOffset+nonceSize]
	copy(nonce, hash[:])
	return blockCipher(s.secret, s.Vault, s.Group, name).Seal(sealed[:head], nonce, inner, aad), nil
}

func (s *Session) check(name holdfast.Name, kind holdfast.Kind, plain []byte, links []holdfast.Name, frames []int) error {
	if !kind.Valid() {
		return errors.New("no such kind")
	}
	if len(plain) > holdfast.MaxPlain {
		return fmt.Errorf("%d bytes exceed the limit of %d", len(plain), holdfast.MaxPlain)
	}
	if frames != nil {
		sum := 0
		for _, n := range frames {
			if n < 0 || n > len(plain)-sum {
				return errors.New("frames exceed the plaintext")
			}
			sum += n
		}
		if sum != len(plain) {
			return errors.New("frames do not cover the plaintext")
		}
	}
	if err := checkLinks(kind, plain, links); err != nil {
		return err
	}
	if s.keys.NameOf(kind, plain) != name {
		return errors.New("the name is not the plaintext's")
	}
	return nil
}

// checkLinks compares links with the table at the beginning of plain, if the kind has one.
func checkLinks(kind holdfast.Kind, plain []byte, links []holdfast.Name) error {
	if kind.Leaf() {
		if len(links) != 0 {
			return errors.New("this kind has no links")
		}
		return nil
	}
	table, err := Links(plain)
	if err != nil {
		return err
	}
	if !slices.Equal(table, links) {
		return errors.New("the links are not the names in the plaintext")
	}
	return nil
}

// Links returns the table at the beginning of a tree's or archive's plaintext.
func Links(plain []byte) ([]holdfast.Name, error) {
	r := enc.NewReader(plain)
	n := r.U32()
	if r.Err() != nil || n > holdfast.MaxLinks || int(n)*32 > r.Len() {
		return nil, errors.New("the plaintext does not begin with a table of names")
	}
	out := make([]holdfast.Name, n)
	for i := range out {
		r.Fixed(out[i][:])
		if i > 0 && bytes.Compare(out[i-1][:], out[i][:]) >= 0 {
			return nil, errors.New("the table of names is not sorted and unique")
		}
	}
	return out, nil
}

// additional returns the AAD of a block whose header is head; it does not depend on the nonce there.
func additional(head []byte, vault holdfast.VaultID, group holdfast.GroupID, name holdfast.Name) []byte {
	b := make([]byte, 0, len(head)-nonceSize+32+16+32)
	b = append(b, head[:nonceOffset]...)
	b = append(b, head[nonceOffset+nonceSize:]...)
	b = append(b, vault[:]...)
	b = append(b, group[:]...)
	return append(b, name[:]...)
}

func blockKey(s holdfast.Key, vault holdfast.VaultID, group holdfast.GroupID, name holdfast.Name) holdfast.Key {
	return keyring.Derive(s, "block", vault[:], group[:], name[:])
}

func blockCipher(s holdfast.Key, vault holdfast.VaultID, group holdfast.GroupID, name holdfast.Name) cipher.AEAD {
	key := blockKey(s, vault, group, name)
	c, err := aes.NewCipher(key[:])
	if err != nil {
		panic("seal: " + err.Error()) // only a wrong key length does this
	}
	a, err := cipher.NewGCM(c)
	if err != nil {
		panic("seal: " + err.Error()) // only a wrong block size does this
	}
	return a
}

// Padme returns n rounded up so that only O(log log n) bits of it show: at most 12 % more. See
// Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", 2019.
func Padme(n int) int {
	if n < 2 {
		return n
	}
	e := bits.Len(uint(n)) - 1
	s := bits.Len(uint(e))
	mask := 1<<(e-s) - 1
	return (n + mask) &^ mask
}
