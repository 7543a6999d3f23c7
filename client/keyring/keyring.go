// Package keyring derives every key of a vault, and keeps keys in two kinds of files: the owner's, made
// to lie in a safe, and a machine's.
//
// # Derivation
//
// There is one function. lp(x) is the length of x as u32 big-endian, then x:
//
//	E(key, label, fields...) = HKDF-Expand-SHA256(key, "holdfast/1/" label 0x00 lp(field)..., 32)
//
// What starts from the owner's seed, 32 random bytes that people keep as 24 words:
//
//	owner signing key   Ed25519 with seed E(seed, "sign")
//	V                   E(seed, "vault")                  the vault secret
//	read seed n         E(seed, "read", n as u32)         n counts the owner's rotate-read records before
//	read key n          HPKE key pair of KEM MLKEM768X25519 whose 32-byte private key is read seed n
//	K_hist              E(V, "history")                   tags records
//	G                   E(V, "group", gid)                the group secret; gid is the 16-byte group ID
//	series ID           E(K_hist, "series", name)[:16]
//
// What starts from a group secret; class is "data" or "meta", the ASCII word without a terminator:
//
//	K_name[kind]        E(G, "name", kind as u8)
//	K_gear[class]       E(G, "gear", class), 2,048 bytes: 256 integers u64 big-endian
//	K_cut[class]        E(G, "cut", class)
//	K_tree[class]       E(G, "tree", class)
//
// The name of a block is BLAKE3 keyed with K_name[kind] over its plaintext. What starts from a machine's
// seed, 32 random bytes that never leave it:
//
//	TLS key             Ed25519 with seed E(machine seed, "tls")
//	signing key         Ed25519 with seed E(machine seed, "sign")
//
// So the 24 words, together with what lies in the clear in the bucket (vault and group IDs), open every
// block of the vault, and nothing less than the words or a machine's key file with the right to read does.
//
// # Words
//
// The 24 words are BIP-39 English: the 256 bits of the seed, then the first 8 bits of its SHA-256, cut
// into 24 indices of 11 bits, the first bit the highest, into the English list of 2,048 words. The seed
// itself is the BIP-39 entropy; the BIP-39 pass phrase and its PBKDF2 step are not used.
//
// # Files
//
// A key file is UTF-8 text. Empty lines and lines that begin with '#' mean nothing. The others are
// fields, `name value` with one space between, each ended by one line feed, in this order:
//
//	holdfast-key 1                  what this is, and its version
//	address HOST:PORT               of the service
//	service-key HEX32               Ed25519 public key of the service's end of every connection
//	log-key HEX32                   Ed25519 public key that signs heads
//	vault HEX32
//	owner HEX32                     the owner's Ed25519 public key
//	group HEX16
//	rights LIST                     of write, read, delete, in this order, separated by commas
//	chunk DECIMAL                   average chunk size of the group, bytes
//	machine-seed HEX32
//	vault-secret HEX32              V        with the right to read
//	read-seed HEX32                 a read seed, with the right to read
//	group-secret HEX32              G        without
//	history-key HEX32               K_hist   without
//	read-key BASE64                 1,216 bytes, standard alphabet, padded; without
//	check HEX8                      first 8 bytes of SHA-256 of all lines above that are fields, line feeds included
//
// Hexadecimal is lower case. With the right to read, the other secrets follow from V. An owner file has
// the same form with these fields:
//
//	holdfast-owner 1
//	address HOST:PORT
//	service-key HEX32
//	log-key HEX32
//	vault HEX32
//	words WORD ... WORD             24 of them, one space between
//	check HEX8
//
// Nothing else is accepted: not another order, a missing, double or unknown field, nor other spelling.
//
// # Enrolling
//
// A new machine sends a Request, the owner answers with a Grant; two codes that people compare keep others from
// putting theirs in the place of either. docs/format/1-keys-and-blocks.md has their bytes. Until the grant
// comes, the machine keeps a file in the form above:
//
//	holdfast-pending 1
//	rights LIST                     that it asks for
//	machine-seed HEX32
//	grant-seed HEX32                private key that opens the grant, as a read seed does for sessions
//	check HEX8
package keyring

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/blake3"
	"holdfast/internal/enc"
)

// Expand is the one derivation of the project, E in the documents: n bytes from key for a purpose.
func Expand(key holdfast.Key, n int, label string, fields ...[]byte) []byte {
	info := append([]byte("holdfast/1/"+label), 0)
	for _, f := range fields {
		info = enc.AppendLP(info, f)
	}
	out, err := hkdf.Expand(sha256.New, key[:], string(info), n)
	if err != nil {
		panic("keyring: expand " + label + ": " + err.Error()) // only a length beyond 8,160 does this
	}
	return out
}

// Derive is Expand for one key.
func Derive(key holdfast.Key, label string, fields ...[]byte) holdfast.Key {
	return holdfast.Key(Expand(key, len(holdfast.Key{}), label, fields...))
}

// Owner is the seed of a vault. Who has it can do everything, so it belongs on paper, not on a machine.
type Owner struct{ seed holdfast.Key }

// NewOwner returns a new random owner.
func NewOwner() Owner {
	var o Owner
	rand.Read(o.seed[:]) // never fails: crypto/rand ends the program instead
	return o
}

// OwnerOf returns the owner whose seed is given, for tests and vectors.
func OwnerOf(seed holdfast.Key) Owner { return Owner{seed} }

// String hides the seed.
func (o Owner) String() string { return "[owner]" }

// GoString hides the seed.
func (o Owner) GoString() string { return "[owner]" }

// SignKey returns the key that signs genesis and enrolment records.
func (o Owner) SignKey() ed25519.PrivateKey { return signKey(o.seed, "sign") }

// Vault returns V, the secret from which all group secrets and K_hist follow.
func (o Owner) Vault() holdfast.Key { return Derive(o.seed, "vault") }

// ReadSeed returns the private key of read key n. Genesis names number 0, each rotate-read record the next.
func (o Owner) ReadSeed(n uint32) holdfast.Key {
	return Derive(o.seed, "read", binary.BigEndian.AppendUint32(nil, n))
}

// Genesis returns the fields of the record that creates the owner's vault.
func (o Owner) Genesis() history.Genesis {
	g := history.Genesis{ReadKey: readKey(o.ReadSeed(0))}
	copy(g.OwnerKey[:], o.SignKey().Public().(ed25519.PublicKey))
	return g
}

// NewMachine returns a new machine with its own random seed and with the secrets that its rights call
// for. The caller sets Address, ServiceKey and LogKey. To read a vault from words alone, ask for
// RightRead; the group does not matter then.
func (o Owner) NewMachine(vault holdfast.VaultID, group holdfast.GroupID, rights holdfast.Rights, chunk uint32) *Machine {
	m := &Machine{Vault: vault, Group: group, Rights: rights, Chunk: chunk}
	rand.Read(m.Seed[:]) // never fails: crypto/rand ends the program instead
	copy(m.Owner[:], o.SignKey().Public().(ed25519.PublicKey))
	if rights.Has(holdfast.RightRead) {
		v, r := o.Vault(), o.ReadSeed(0)
		m.V, m.ReadSeed = &v, &r
	}
	m.Hist, m.G, m.ReadKey = histOf(o.Vault()), groupOf(o.Vault(), group), readKey(o.ReadSeed(0))
	return m
}

// ReadKey returns the public half of read key n.
func (o Owner) ReadKey(n uint32) [history.ReadKeySize]byte { return readKey(o.ReadSeed(n)) }

// GiveRead makes read key n the one of m: the private half too if m may read. Without it m still reads
// what was sealed for the key that it had.
func (o Owner) GiveRead(m *Machine, n uint32) {
	m.ReadKey = o.ReadKey(n)
	if m.Rights.Has(holdfast.RightRead) {
		r := o.ReadSeed(n)
		m.ReadSeed = &r
	}
}

// Machine is what a machine's key file holds. With the right to read V and ReadSeed are set, and Hist,
// G and ReadKey follow from them; without it V and ReadSeed are nil.
type Machine struct {
	Seed       holdfast.Key // of this machine only
	Vault      holdfast.VaultID
	Owner      [32]byte // Ed25519 public key
	Group      holdfast.GroupID
	Rights     holdfast.Rights           // as the enrolment record says; the service decides
	Chunk      uint32                    // average chunk size of the group, bytes
	Hist       holdfast.Key              // K_hist
	G          holdfast.Key              // secret of Group
	ReadKey    [history.ReadKeySize]byte // current when this file was made; the history says which is now
	V          *holdfast.Key
	ReadSeed   *holdfast.Key
	Address    string // of the service, host:port
	ServiceKey [32]byte
	LogKey     [32]byte
}

// String hides the secrets.
func (m *Machine) String() string { return fmt.Sprintf("[machine of vault %.8s]", m.Vault) }

// GoString hides the secrets.
func (m *Machine) GoString() string { return m.String() }

// TLSKey returns the key of this machine's end of every connection.
func (m *Machine) TLSKey() ed25519.PrivateKey { return signKey(m.Seed, "tls") }

// SignKey returns the key that signs this machine's records.
func (m *Machine) SignKey() ed25519.PrivateKey { return signKey(m.Seed, "sign") }

// Signer identifies SignKey.
func (m *Machine) Signer() holdfast.SignerID {
	return history.SignerOf(m.SignKey().Public().(ed25519.PublicKey))
}

// Enrol returns the fields of the record, to be signed by the owner, that enrols this machine.
func (m *Machine) Enrol() history.Enrol {
	e := history.Enrol{Rights: m.Rights, Group: m.Group, Chunk: m.Chunk}
	copy(e.SignKey[:], m.SignKey().Public().(ed25519.PublicKey))
	copy(e.TLSKey[:], m.TLSKey().Public().(ed25519.PublicKey))
	return e
}

// Series returns the identity of the series with this name.
func (m *Machine) Series(name string) holdfast.SeriesID {
	return holdfast.SeriesID(Expand(m.Hist, 32, "series", []byte(name))[:16])
}

// ErrNoReadKey reports that a key file was made without the right to read.
var ErrNoReadKey = errors.New("this key file cannot read archives; use one that can, or make one from the owner's words")

// ReadPrivate returns the private half of the read key. The error is ErrNoReadKey.
func (m *Machine) ReadPrivate() (hpke.PrivateKey, error) {
	if m.ReadSeed == nil {
		return nil, ErrNoReadKey
	}
	return readPrivate(*m.ReadSeed), nil
}

// GroupKeys returns the keys of the machine's own group.
func (m *Machine) GroupKeys() GroupKeys { return expandGroup(m.G) }

// GroupKeysOf returns the keys of any group of the vault. The error is ErrNoReadKey for another group
// than the machine's own if the machine does not have V.
func (m *Machine) GroupKeysOf(gid holdfast.GroupID) (GroupKeys, error) {
	switch {
	case m.V != nil:
		return expandGroup(groupOf(*m.V, gid)), nil
	case gid == m.Group:
		return m.GroupKeys(), nil
	}
	return GroupKeys{}, ErrNoReadKey
}

// GroupKeys are what the machines of one group share, so that they cut and name alike.
type GroupKeys struct {
	Name [5]holdfast.Key // by kind; 0 is unused
	Data Cuts
	Meta Cuts
}

// Cuts are the keys that decide where things are cut.
type Cuts struct {
	Gear [256]uint64  // proposes borders of chunks
	Cut  holdfast.Key // AES-256, decides borders of chunks
	Tree holdfast.Key // decides borders of packs, tree nodes and extent lists
}

// String hides the keys.
func (k GroupKeys) String() string { return "[group keys]" }

// GoString hides the keys.
func (k GroupKeys) GoString() string { return "[group keys]" }

// String hides the keys.
func (c Cuts) String() string { return "[cuts]" }

// GoString hides the keys.
func (c Cuts) GoString() string { return "[cuts]" }

// NameOf returns the name of a block with this plaintext. It panics on a kind that does not exist.
func (k *GroupKeys) NameOf(kind holdfast.Kind, plain []byte) holdfast.Name {
	if !kind.Valid() {
		panic("keyring: name of " + kind.String())
	}
	return holdfast.Name(blake3.Keyed(k.Name[kind], plain))
}

func expandGroup(g holdfast.Key) GroupKeys {
	var k GroupKeys
	for kind := holdfast.KindChunk; kind.Valid(); kind++ {
		k.Name[kind] = Derive(g, "name", []byte{byte(kind)})
	}
	k.Data, k.Meta = expandCuts(g, "data"), expandCuts(g, "meta")
	return k
}

func expandCuts(g holdfast.Key, class string) Cuts {
	c := Cuts{Cut: Derive(g, "cut", []byte(class)), Tree: Derive(g, "tree", []byte(class))}
	gear := Expand(g, 8*len(c.Gear), "gear", []byte(class))
	for i := range c.Gear {
		c.Gear[i] = binary.BigEndian.Uint64(gear[8*i:])
	}
	return c
}

func histOf(v holdfast.Key) holdfast.Key { return Derive(v, "history") }

func groupOf(v holdfast.Key, gid holdfast.GroupID) holdfast.Key { return Derive(v, "group", gid[:]) }

func signKey(seed holdfast.Key, label string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(Expand(seed, ed25519.SeedSize, label))
}

func readPrivate(seed holdfast.Key) hpke.PrivateKey {
	k, err := hpke.MLKEM768X25519().NewPrivateKey(seed[:])
	if err != nil {
		panic("keyring: read key: " + err.Error()) // only a wrong length does this
	}
	return k
}

func readKey(seed holdfast.Key) (pub [history.ReadKeySize]byte) {
	copy(pub[:], readPrivate(seed).PublicKey().Bytes())
	return pub
}

// NewGroup returns a new random group ID.
func NewGroup() (g holdfast.GroupID) {
	rand.Read(g[:]) // never fails: crypto/rand ends the program instead
	return g
}
