// Package viewtest plays a customer for the tests of the service: it makes the records and blocks that a
// real client would send, without its cryptography of contents.
package viewtest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"holdfast"
	"holdfast/history"
	"holdfast/service/segment"
	"holdfast/wire"
)

// LogKey returns the key that signs heads in tests.
func LogKey() ed25519.PrivateKey { return key("log", 0) }

// Customer is one customer with one machine. Everything about him follows from his number. The chains
// stand where the last accepted record left them: call Accepted.
type Customer struct {
	ID      holdfast.AccountID
	Vault   holdfast.VaultID // after Genesis
	Group   holdfast.GroupID
	Series  holdfast.SeriesID
	Session holdfast.SessionID // the newest
	// What Enrol says that the machine may store a day; 0 for no cap.
	DayBytes, DayBlocks uint64

	n       int
	owner   ed25519.PrivateKey
	sign    ed25519.PrivateKey
	tls     [32]byte
	secret  [32]byte
	hist    holdfast.Key
	genesis history.Genesis
	read    history.ReadKeyID // the current one
	own     history.Link
	chain   history.Link
	service history.Link
	opened  int
}

func bits(what string, n int) [32]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint64([]byte(what+"\x00"), uint64(n)))
}

func key(what string, n int) ed25519.PrivateKey {
	seed := bits(what, n)
	return ed25519.NewKeyFromSeed(seed[:])
}

// New returns customer n.
func New(n int) *Customer {
	c := &Customer{n: n, owner: key("owner", n), sign: key("sign", n), hist: bits("hist", n)}
	id, g, s := bits("account", n), bits("group", n), bits("series", n)
	copy(c.ID[:], id[:])
	copy(c.Group[:], g[:])
	copy(c.Series[:], s[:])
	c.tls = wire.PublicKey(key("tls", n).Public().(ed25519.PublicKey))
	c.secret = bits("secret", n)
	c.genesis.OwnerKey = wire.PublicKey(c.owner.Public().(ed25519.PublicKey))
	for i := 0; i < history.ReadKeySize; i += 32 {
		b := bits("read key", n*1000+i)
		copy(c.genesis.ReadKey[i:], b[:])
	}
	c.read = history.ReadKeyIDOf(c.genesis.ReadKey[:])
	return c
}

// TLSKey returns the public key of the machine's end of connections.
func (c *Customer) TLSKey() [32]byte { return c.tls }

// Signer returns the machine's identity as a signer.
func (c *Customer) Signer() holdfast.SignerID {
	return history.SignerOf(c.sign.Public().(ed25519.PublicKey))
}

// Account returns the record that creates the customer's account.
func (c *Customer) Account() segment.Account {
	return segment.Account{ID: c.ID, Name: fmt.Sprintf("customer-%d", c.n)}
}

// Token returns the record of the customer's token, which expires at that time (ns).
func (c *Customer) Token(expires int64) segment.Token {
	return segment.Token{Hash: wire.HashSecret(c.secret), Account: c.ID, Expires: expires}
}

// Redeemed returns the record that redeems the token.
func (c *Customer) Redeemed() segment.Redeemed {
	return segment.Redeemed{Hash: wire.HashSecret(c.secret), TLSKey: c.tls}
}

// Genesis returns the record that creates the customer's vault.
func (c *Customer) Genesis() history.Record {
	r := history.Sign(history.Body{Type: history.TypeGenesis, Fields: c.genesis.Encode()}, c.owner, c.hist)
	c.Vault = holdfast.VaultID(r.ID())
	return r
}

// Enrol returns the record that enrols the machine.
func (c *Customer) Enrol() history.Record {
	return c.EnrolAs(history.Enrol{
		SignKey: wire.PublicKey(c.sign.Public().(ed25519.PublicKey)), TLSKey: c.tls,
		Rights: holdfast.RightsAll, Group: c.Group, Chunk: history.DefaultChunk, DayBytes: c.DayBytes, DayBlocks: c.DayBlocks,
	})
}

// EnrolAs returns a record that enrols another machine.
func (c *Customer) EnrolAs(e history.Enrol) history.Record {
	return c.signed(history.TypeEnrol, e.Encode(), c.owner, c.own)
}

// Another returns a second machine of the customer's, in the same group, and the record that enrols it. Let
// the first one sign what the owner signs.
func (c *Customer) Another() (*Customer, history.Record) {
	d := *c
	d.sign, d.tls = key("another sign", c.n), wire.PublicKey(key("another tls", c.n).Public().(ed25519.PublicKey))
	d.chain, d.Session, d.opened = history.Link{}, holdfast.SessionID{}, 500_000
	return &d, c.EnrolAs(history.Enrol{
		SignKey: wire.PublicKey(d.sign.Public().(ed25519.PublicKey)), TLSKey: d.tls,
		Rights: holdfast.RightsAll, Group: c.Group, Chunk: history.DefaultChunk,
	})
}

// Hist returns the customer's K_hist.
func (c *Customer) Hist() holdfast.Key { return c.hist }

// Open returns a record that opens a new session.
func (c *Customer) Open() history.Record {
	c.opened++
	id := bits("session", c.n*1_000_000+c.opened)
	copy(c.Session[:], id[:])
	return c.OpenAs(c.Session)
}

// Citing returns a freeze record whose signer says to have seen head n of the history.
func (c *Customer) Citing(n uint64, h holdfast.Head) history.Record {
	return history.Sign(history.Body{Type: history.TypeFreeze, Vault: c.Vault, Seq: c.chain.Seq, Prev: c.chain.Prev, SeenN: n, SeenHead: h}, c.sign, c.hist)
}

// OpenAs returns a record that opens that session.
func (c *Customer) OpenAs(id holdfast.SessionID) history.Record {
	o := history.Open{Session: id, Group: c.Group, ReadKey: c.read}
	return c.signed(history.TypeOpen, o.Encode(), c.sign, c.chain)
}

// Commit returns a record that commits the archive with that root.
func (c *Customer) Commit(root holdfast.Name) history.Record {
	f := history.Commit{Series: c.Series, Session: c.Session, Group: c.Group, Root: root}
	return c.signed(history.TypeCommit, f.Encode(), c.sign, c.chain)
}

func (c *Customer) signed(t history.Type, fields []byte, k ed25519.PrivateKey, at history.Link) history.Record {
	return history.Sign(history.Body{Type: t, Vault: c.Vault, Seq: at.Seq, Prev: at.Prev, Fields: fields}, k, c.hist)
}

// Signed returns the record of that type over fields, signed by the machine.
func (c *Customer) Signed(t history.Type, fields []byte) history.Record {
	return c.signed(t, fields, c.sign, c.chain)
}

// ByOwner returns the record of that type over fields, signed by the owner.
func (c *Customer) ByOwner(t history.Type, fields []byte) history.Record {
	return c.signed(t, fields, c.owner, c.own)
}

// ByService returns the record of that type over fields that the service makes.
func (c *Customer) ByService(t history.Type, fields []byte) history.Record {
	return history.SignByService(history.Body{Type: t, Vault: c.Vault, Seq: c.service.Seq, Prev: c.service.Prev, Fields: fields}, LogKey())
}

// Rotate returns the record that makes the customer's read key number n the current one, for later sessions.
func (c *Customer) Rotate(n int) history.Record {
	var k history.RotateRead
	for i := 0; i < history.ReadKeySize; i += 32 {
		b := bits("another read key", (c.n*1000+n)*1000+i)
		copy(k.ReadKey[i:], b[:])
	}
	c.read = history.ReadKeyIDOf(k.ReadKey[:])
	return c.ByOwner(history.TypeRotateRead, k.Encode())
}

// Rewrap returns the record that wraps a session's secret for the newest read key.
func (c *Customer) Rewrap(id holdfast.SessionID) history.Record {
	return c.ByOwner(history.TypeRewrap, history.Rewrap{Session: id, ReadKey: c.read}.Encode())
}

// Accepted moves the chain of r's signer on to r.
func (c *Customer) Accepted(r history.Record) {
	b, err := history.ParseBody(r.Body)
	if err != nil {
		panic("viewtest: " + err.Error())
	}
	next := history.Link{Seq: b.Seq + 1, Prev: r.ID()}
	switch b.Signer {
	case history.SignerOf(c.owner.Public().(ed25519.PublicKey)):
		c.own = next
	case c.Signer():
		c.chain = next
	case history.SignerOf(LogKey().Public().(ed25519.PublicKey)):
		c.service = next
	}
}

// Block is a block as a client would send it; its bytes mean nothing.
type Block struct {
	Name   holdfast.Name
	Kind   holdfast.Kind
	Links  []holdfast.Name // sorted
	Sealed []byte
}

// Chunk returns the customer's chunk number i, of size bytes.
func (c *Customer) Chunk(i, size int) Block {
	return c.block(holdfast.KindChunk, i, size)
}

// Over returns the customer's block number i of that kind, which links to the blocks below it.
func (c *Customer) Over(kind holdfast.Kind, i int, below ...holdfast.Name) Block {
	b := c.block(kind, i, 100)
	b.Links = append(b.Links, below...)
	for i := 1; i < len(b.Links); i++ {
		for k := i; k > 0 && string(b.Links[k][:]) < string(b.Links[k-1][:]); k-- {
			b.Links[k], b.Links[k-1] = b.Links[k-1], b.Links[k]
		}
	}
	return b
}

func (c *Customer) block(kind holdfast.Kind, i, size int) Block {
	b := Block{Name: bits(fmt.Sprintf("%s of %d", kind, c.n), i), Kind: kind, Sealed: make([]byte, size)}
	fill := b.Name
	for at := 0; at < size; at += len(fill) {
		copy(b.Sealed[at:], fill[:])
		fill = sha256.Sum256(fill[:])
	}
	return b
}

// Stored returns the record of b, as if it lay at off in a segment.
func (c *Customer) Stored(b Block, off uint32) segment.Stored {
	return segment.Stored{
		Session: c.Session, Name: b.Name, Kind: b.Kind, Off: off, Len: uint32(len(b.Sealed)),
		Sum: segment.SumOf(b.Sealed), Links: b.Links,
	}
}
