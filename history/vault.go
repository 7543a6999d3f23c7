package history

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"

	"holdfast"
)

// What a client finds when a service's story does not hold together. Every one of them means: do not
// trust what this service says about this vault.
var (
	ErrOrder  = errors.New("the service's history has a gap or a fork")
	ErrHead   = errors.New("a head is not the hash of what it covers")
	ErrSigner = errors.New("a record is signed by a machine that the owner did not enrol")
	ErrRights = errors.New("a record needs a right that its signer was not given")
	ErrChain  = errors.New("a signer's own chain of records is broken")
)

// Machine is what a vault knows of one enrolled machine.
type Machine struct {
	Enrol Enrol
	Chain Link
}

// Link is the end of a signer's chain: the next record must carry Seq and Prev.
type Link struct {
	Seq  uint64
	Prev holdfast.RecordID
}

// Archive is a committed archive as the history tells of it.
type Archive struct {
	ID     holdfast.RecordID
	N      uint64 // its place in the history
	Time   int64  // the service's stamp, ns
	Signer holdfast.SignerID
	Commit Commit
}

// Vault is the state of one vault after a prefix of its history: what Check lets through, Apply adds.
// Both service and client run this code, so that they agree on what is allowed. The zero Vault is
// before its genesis record. It is not safe for concurrent use.
type Vault struct {
	ID       holdfast.VaultID
	Genesis  Genesis
	N        uint64 // number of the newest record; 0 before genesis
	Head     holdfast.Head
	Time     int64 // stamp of the newest record, ns
	Owner    Link  // chain of the owner key
	Machines map[holdfast.SignerID]Machine
	Sessions map[holdfast.SessionID]Session
	Archives []Archive
}

// Session is what the history tells of one session.
type Session struct {
	Signer holdfast.SignerID
	Open   Open
}

// StaleError answers a record that does not continue its signer's chain: sign again after Want.
type StaleError struct{ Want Link }

func (e *StaleError) Error() string {
	return fmt.Sprintf("record does not continue its signer's chain, which stands at %d", e.Want.Seq)
}

// CheckSignature finds the key that must have signed r, given the owner key and the machines that keys
// returns, verifies the signature and parses the body. For a genesis record both are ignored.
//
// The error wraps ErrFormat, ErrSignature or ErrSigner.
func CheckSignature(r Record, vault holdfast.VaultID, owner [32]byte, machine func(holdfast.SignerID) (Enrol, bool)) (Body, error) {
	b, err := ParseBody(r.Body)
	if err != nil {
		return Body{}, err
	}
	if b.Type == TypeGenesis {
		b, _, err := checkGenesis(r)
		return b, err
	}
	if b.Vault != vault {
		return Body{}, fmt.Errorf("%w: record names another vault", ErrFormat)
	}
	var pub ed25519.PublicKey
	switch b.Type {
	case TypeEnrol:
		pub = bytes.Clone(owner[:])
		if b.Signer != SignerOf(pub) {
			return Body{}, fmt.Errorf("%w: %s is for the owner key", ErrSigner, b.Type)
		}
	default:
		e, ok := machine(b.Signer)
		if !ok {
			return Body{}, fmt.Errorf("%w: %.8s", ErrSigner, b.Signer)
		}
		if !e.Rights.Has(holdfast.RightWrite) {
			return Body{}, fmt.Errorf("%w: %s by %.8s", ErrRights, b.Type, b.Signer)
		}
		pub = bytes.Clone(e.SignKey[:])
	}
	return b, r.Verify(pub)
}

// Check says whether r may follow in v. It changes nothing. The error wraps ErrFormat, ErrSignature,
// ErrSigner, ErrRights or ErrChain, or is a *StaleError.
func (v *Vault) Check(r Record) (Body, error) {
	b, err := CheckSignature(r, v.ID, v.Genesis.OwnerKey, func(s holdfast.SignerID) (Enrol, bool) {
		m, ok := v.Machines[s]
		return m.Enrol, ok
	})
	if err != nil {
		return Body{}, err
	}
	if (b.Type == TypeGenesis) != (v.N == 0) {
		return Body{}, fmt.Errorf("%w: %s at place %d", ErrFormat, b.Type, v.N+1)
	}
	if b.Type == TypeGenesis {
		return b, nil
	}
	want := v.Owner
	if b.Type != TypeEnrol {
		want = v.Machines[b.Signer].Chain
	}
	if b.Seq != want.Seq || b.Prev != want.Prev {
		return Body{}, &StaleError{want}
	}
	switch b.Type {
	case TypeEnrol:
		e, err := ParseEnrol(b.Fields)
		if err != nil {
			return Body{}, err
		}
		if _, dup := v.Machines[SignerOf(e.SignKey[:])]; dup {
			return Body{}, fmt.Errorf("%w: that signing key is enrolled already", ErrFormat)
		}
	case TypeOpen:
		o, err := ParseOpen(b.Fields)
		if err != nil {
			return Body{}, err
		}
		m := v.Machines[b.Signer].Enrol
		if o.Group != m.Group || o.ReadKey != ReadKeyIDOf(v.Genesis.ReadKey[:]) {
			return Body{}, fmt.Errorf("%w: session names another group or read key", ErrFormat)
		}
		if _, dup := v.Sessions[o.Session]; dup {
			return Body{}, fmt.Errorf("%w: session exists already", ErrFormat)
		}
	case TypeCommit:
		c, err := ParseCommit(b.Fields)
		if err != nil {
			return Body{}, err
		}
		if s, ok := v.Sessions[c.Session]; !ok || s.Signer != b.Signer || s.Open.Group != c.Group {
			return Body{}, fmt.Errorf("%w: commit names a session that its signer did not open", ErrFormat)
		}
	}
	return b, nil
}

// Follow verifies that e comes next (its place, head, log signature under logKey, tag under hist, and
// everything that Check checks) and applies it. A failed Follow changes nothing.
func (v *Vault) Follow(e Entry, logKey ed25519.PublicKey, hist holdfast.Key) error {
	if e.N != v.N+1 {
		return fmt.Errorf("%w: record %d where %d belongs", ErrOrder, e.N, v.N+1)
	}
	b, err := v.Check(e.Record)
	if err != nil {
		var stale *StaleError
		if errors.As(err, &stale) {
			err = ErrChain
		}
		return fmt.Errorf("history record %d: %w", e.N, err)
	}
	if err := e.Record.VerifyTag(hist); err != nil {
		return fmt.Errorf("history record %d: %w", e.N, err)
	}
	id := v.ID
	if b.Type == TypeGenesis {
		id = holdfast.VaultID(e.Record.ID())
		if v.ID != (holdfast.VaultID{}) && v.ID != id {
			return fmt.Errorf("history record 1: %w: another vault's genesis", ErrOrder)
		}
	}
	if NextHead(id, e.N, v.Head, e.Time, e.Record) != e.Head {
		return fmt.Errorf("history record %d: %w", e.N, ErrHead)
	}
	if e.Time < v.Time {
		return fmt.Errorf("history record %d: %w: its time runs backwards", e.N, ErrOrder)
	}
	if !ed25519.Verify(logKey, headMessage(id, e.N, e.Head), e.LogSig[:]) {
		return fmt.Errorf("history record %d, head: %w", e.N, ErrSignature)
	}
	v.apply(id, b, e)
	return nil
}

// apply adds a checked entry.
func (v *Vault) apply(id holdfast.VaultID, b Body, e Entry) {
	if v.Machines == nil {
		v.Machines = map[holdfast.SignerID]Machine{}
		v.Sessions = map[holdfast.SessionID]Session{}
	}
	v.ID, v.N, v.Head, v.Time = id, e.N, e.Head, e.Time
	next := Link{Seq: b.Seq + 1, Prev: e.Record.ID()}
	switch b.Type {
	case TypeGenesis:
		v.Genesis, _ = ParseGenesis(b.Fields)
		v.Owner = next
		return
	case TypeEnrol:
		en, _ := ParseEnrol(b.Fields)
		v.Machines[SignerOf(en.SignKey[:])] = Machine{Enrol: en}
		v.Owner = next
		return
	case TypeOpen:
		o, _ := ParseOpen(b.Fields)
		v.Sessions[o.Session] = Session{Signer: b.Signer, Open: o}
	case TypeCommit:
		c, _ := ParseCommit(b.Fields)
		v.Archives = append(v.Archives, Archive{ID: e.Record.ID(), N: e.N, Time: e.Time, Signer: b.Signer, Commit: c})
	}
	m := v.Machines[b.Signer]
	m.Chain = next
	v.Machines[b.Signer] = m
}
