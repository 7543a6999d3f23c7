package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"slices"
	"testing"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
	"holdfast/wire"
)

// told is what a service tells a reader: a history and a tree block with two links. It has every key that a service
// has, so it can number, stamp and sign any records anew.
type told struct {
	log     ed25519.PrivateKey
	vault   holdfast.VaultID
	entries []history.Entry
	reader  *keyring.Machine
	name    holdfast.Name
	group   holdfast.GroupID
	sealed  []byte
}

// Places of the records in told.entries.
const (
	atGenesis = iota
	atEnrol
	atOpen
	atCommit
	atRotate
	atRewrap
	atOpenAgain
	atCommitAgain
)

func tellAll(t *testing.T) *told {
	t.Helper()
	owner := keyring.OwnerOf(holdfast.Key{1})
	w := owner.NewMachine(holdfast.VaultID{}, holdfast.GroupID{1}, holdfast.RightsAll, 256<<10)
	x := &told{log: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{3}, 32)), group: w.Group}
	var v history.Vault
	add := func(typ history.Type, fields []byte, key ed25519.PrivateKey) {
		t.Helper()
		b := history.Body{Type: typ, Vault: v.ID, SeenN: v.N, SeenHead: v.Head, Time: 1, Fields: fields, Seq: v.Owner.Seq, Prev: v.Owner.Prev}
		if !key.Equal(owner.SignKey()) {
			c := v.Machines[w.Signer()].Chain
			b.Seq, b.Prev = c.Seq, c.Prev
		}
		r := history.Sign(b, key, w.Hist)
		if v.N == 0 {
			x.vault = holdfast.VaultID(r.ID())
			w.Vault = x.vault
		}
		e := history.Stamp(x.vault, v.N+1, v.Head, int64(10*(v.N+1)), r, x.log)
		if err := v.Follow(e, x.log.Public().(ed25519.PublicKey), w.Hist); err != nil {
			t.Fatalf("record %d: %v", e.N, err)
		}
		x.entries = append(x.entries, e)
	}
	add(history.TypeGenesis, owner.Genesis().Encode(), owner.SignKey())
	add(history.TypeEnrol, w.Enrol().Encode(), owner.SignKey())
	s, o, err := NewSession(rand.Reader, w)
	if err != nil {
		t.Fatal(err)
	}
	add(history.TypeOpen, o.Encode(), w.SignKey())
	plain, links := tree(2, text(40))
	x.name, x.sealed = seal(t, s, holdfast.KindTree, plain, links, nil)
	commit := history.Commit{Session: s.ID, Group: w.Group, Root: x.name, Blocks: 1}
	add(history.TypeCommit, commit.Encode(), w.SignKey())
	add(history.TypeRotateRead, history.RotateRead{ReadKey: owner.ReadKey(1)}.Encode(), owner.SignKey())
	r, err := NewReader(w)
	if err == nil {
		err = r.AddOpen(o, w.Signer())
	}
	if err != nil {
		t.Fatal(err)
	}
	again, err := r.Rewrap(s.ID, owner.ReadKey(1))
	if err != nil {
		t.Fatal(err)
	}
	add(history.TypeRewrap, again.Encode(), owner.SignKey())
	owner.GiveRead(w, 1)
	if s, o, err = NewSession(rand.Reader, w); err != nil {
		t.Fatal(err)
	}
	add(history.TypeOpen, o.Encode(), w.SignKey())
	commit.Session = s.ID
	add(history.TypeCommit, commit.Encode(), w.SignKey())
	x.reader = w
	return x
}

// read does what a client does with what it is told.
func (x *told) read() error {
	v := history.Vault{ID: x.vault}
	for _, e := range x.entries {
		if err := v.Follow(e, x.log.Public().(ed25519.PublicKey), x.reader.Hist); err != nil {
			return err
		}
	}
	r, err := NewReader(x.reader)
	if err != nil {
		return err
	}
	for _, s := range v.Sessions {
		if err := r.AddOpen(s.Open, s.Signer, s.Rewraps...); err != nil {
			return err
		}
	}
	for id := range v.Sessions {
		if err := r.CheckSession(id); err != nil {
			return err
		}
	}
	_, _, err = r.Open(x.group, x.name, x.sealed)
	return err
}

// records makes the history one of these records, numbered and stamped anew.
func (x *told) records(rs ...history.Record) {
	x.entries = nil
	var head holdfast.Head
	for i, r := range rs {
		e := history.Stamp(x.vault, uint64(i+1), head, int64(10*(i+1)), r, x.log)
		x.entries, head = append(x.entries, e), e.Head
	}
}

func (x *told) all() (rs []history.Record) {
	for _, e := range x.entries {
		rs = append(rs, e.Record)
	}
	return rs
}

// fields replaces the fields of a record, whose signature it cannot make.
func (x *told) fields(t *testing.T, at int, change func([]byte) []byte) {
	rs := x.all()
	b, err := history.ParseBody(rs[at].Body)
	if err != nil {
		t.Fatal(err)
	}
	b.Fields = change(bytes.Clone(b.Fields))
	rs[at].Body = b.Encode()
	x.records(rs...)
}

func (x *told) of(t *testing.T, at int) []byte {
	b, err := history.ParseBody(x.entries[at].Record.Body)
	if err != nil {
		t.Fatal(err)
	}
	return b.Fields
}

// TestHostileServiceObjects swaps, drops and replays each kind of object that a service keeps for a customer. It has
// all of its own keys, and stamps what it made up as it stamps what is true. Each lie is a named error. (That it
// withholds the newest records altogether shows to whoever remembers a later head: package remote.)
func TestHostileServiceObjects(t *testing.T) {
	// Where a link stands in the block: the header is 35 bytes, then the links.
	const firstLink = 35
	swapWraps := func(o []byte, other []byte) []byte {
		copy(o[len(o)-history.WrapSize:], other[len(other)-history.WrapSize:])
		return o
	}
	for _, c := range []struct {
		object, lie string
		tell        func(t *testing.T, x *told)
		want        error
	}{
		{"wrap", "swap", func(t *testing.T, x *told) {
			other := x.of(t, atOpenAgain)
			x.fields(t, atOpen, func(f []byte) []byte { return swapWraps(f, other) })
		}, history.ErrSignature},
		{"wrap", "drop", func(t *testing.T, x *told) { x.records(slices.Delete(x.all(), atRewrap, atRewrap+1)...) }, history.ErrSeen},
		{"wrap", "replay", func(t *testing.T, x *told) {
			rs := x.all()
			x.records(slices.Insert(rs, atRewrap+1, rs[atRewrap])...)
		}, history.ErrChain},

		{"record", "swap", func(t *testing.T, x *told) {
			rs := x.all()
			rs[atOpen], rs[atCommit] = rs[atCommit], rs[atOpen]
			x.records(rs...)
		}, history.ErrChain},
		{"record", "drop", func(t *testing.T, x *told) { x.records(slices.Delete(x.all(), atCommit, atCommit+1)...) }, history.ErrSeen},
		{"record", "replay", func(t *testing.T, x *told) { rs := x.all(); x.records(append(rs, rs[atCommit])...) }, history.ErrChain},

		{"link", "swap", func(t *testing.T, x *told) { x.sealed[firstLink] ^= 1 }, ErrDamaged},
		{"link", "drop", func(t *testing.T, x *told) {
			h, body, _ := wire.ParseBlockHeader(x.sealed)
			x.sealed = append(wire.AppendBlockHeader(nil, wire.BlockHeader{Kind: h.Kind, Session: h.Session, Nonce: h.Nonce, Links: h.Links[:1]}), body...)
		}, ErrDamaged},
		{"link", "replay", func(t *testing.T, x *told) {
			copy(x.sealed[firstLink+32:], x.sealed[firstLink:firstLink+32])
		}, wire.ErrBlock},

		{"head", "swap", func(t *testing.T, x *told) {
			e := x.entries
			e[atCommit].Head, e[atRotate].Head = e[atRotate].Head, e[atCommit].Head
		}, history.ErrHead},
		{"head", "drop", func(t *testing.T, x *told) { x.entries[atCommit].Head = holdfast.Head{} }, history.ErrHead},
		{"head", "replay", func(t *testing.T, x *told) {
			x.entries = slices.Insert(x.entries, atCommit+1, x.entries[atCommit])
		}, history.ErrOrder},

		{"read key", "swap", func(t *testing.T, x *told) {
			mine := keyring.OwnerOf(holdfast.Key{66}).ReadKey(0)
			x.fields(t, atRotate, func([]byte) []byte { return history.RotateRead{ReadKey: mine}.Encode() })
		}, history.ErrSignature},
		{"read key", "drop", func(t *testing.T, x *told) { x.records(slices.Delete(x.all(), atRotate, atRotate+1)...) }, history.ErrChain},
		{"read key", "replay", func(t *testing.T, x *told) { rs := x.all(); x.records(append(rs, rs[atRotate])...) }, history.ErrChain},
	} {
		t.Run(c.object+" "+c.lie, func(t *testing.T) {
			x := tellAll(t)
			if err := x.read(); err != nil {
				t.Fatalf("the truth: %v", err)
			}
			c.tell(t, x)
			if err := x.read(); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}
