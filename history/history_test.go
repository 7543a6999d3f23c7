package history

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast"
	"holdfast/internal/enc"
)

var write = flag.Bool("write-vectors", false, "write testdata anew; only for a new version of a format")

// vector compares got with the hex in testdata/name, which is fixed for ever.
func vector(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *write {
		if err := os.WriteFile(path, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %x, want %x", name, got, want)
	}
}

func key(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }

func public(k ed25519.PrivateKey) (p [32]byte) {
	copy(p[:], k.Public().(ed25519.PublicKey))
	return p
}

// The actors of every test.
var (
	owner   = key(1)
	machine = key(2)
	log     = key(3)
	hist    = holdfast.Key{4}
)

func genesis() Genesis {
	g := Genesis{OwnerKey: public(owner)}
	for i := range g.ReadKey {
		g.ReadKey[i] = byte(i)
	}
	return g
}

func enrol() Enrol {
	return Enrol{SignKey: public(machine), TLSKey: public(key(5)), Rights: holdfast.RightsAll, Group: holdfast.GroupID{6}, Chunk: DefaultChunk}
}

func open() Open {
	g := genesis()
	o := Open{Session: holdfast.SessionID{7}, Group: enrol().Group, ReadKey: ReadKeyIDOf(g.ReadKey[:]), Commitment: [32]byte{8}}
	for i := range o.Wrap {
		o.Wrap[i] = byte(i * 3)
	}
	return o
}

func commit() Commit {
	return Commit{Series: holdfast.SeriesID{9}, Session: open().Session, Group: open().Group, Root: holdfast.Name{10}, Blocks: 11,
		Partial: true, Counts: Counts{1, 2, 3, 4, 5, 6}}
}

// story tells a vault's history step by step; each record continues the last.
type story struct {
	v       Vault
	entries []Entry
	time    int64
}

func (s *story) next(t *testing.T, typ Type, fields []byte) Record {
	t.Helper()
	b := Body{Type: typ, Vault: s.v.ID, SeenN: s.v.N, SeenHead: s.v.Head, Time: 1000 + int64(s.v.N), Fields: fields}
	switch {
	case typ.ByService():
		b.Seq, b.Prev = s.v.Service.Seq, s.v.Service.Prev
		return SignByService(b, log)
	case typ.Right() != 0:
		return s.by(b, machine)
	}
	b.Seq, b.Prev = s.v.Owner.Seq, s.v.Owner.Prev
	return Sign(b, owner, hist)
}

// by signs b as the next record of a machine.
func (s *story) by(b Body, m ed25519.PrivateKey) Record {
	link := s.v.Machines[SignerOf(m.Public().(ed25519.PublicKey))].Chain
	b.Vault, b.Seq, b.Prev = s.v.ID, link.Seq, link.Prev
	return Sign(b, m, hist)
}

// owned signs the next record of the owner, of a type that a machine could sign too.
func (s *story) owned(typ Type, fields []byte) Record {
	return Sign(Body{Type: typ, Vault: s.v.ID, Seq: s.v.Owner.Seq, Prev: s.v.Owner.Prev, Fields: fields}, owner, hist)
}

func (s *story) add(t *testing.T, r Record) Entry {
	t.Helper()
	id := s.v.ID
	if s.v.N == 0 {
		id = holdfast.VaultID(r.ID())
	}
	s.time += 5
	e := Stamp(id, s.v.N+1, s.v.Head, s.time, r, log)
	if err := s.v.Follow(e, log.Public().(ed25519.PublicKey), hist); err != nil {
		t.Fatalf("record %d: %v", e.N, err)
	}
	s.entries = append(s.entries, e)
	return e
}

func (s *story) check(r Record) (Body, error) {
	return s.v.Check(r, s.time, log.Public().(ed25519.PublicKey))
}

func tell(t *testing.T) *story {
	t.Helper()
	s := new(story)
	s.add(t, s.next(t, TypeGenesis, genesis().Encode()))
	s.add(t, s.next(t, TypeEnrol, enrol().Encode()))
	s.add(t, s.next(t, TypeOpen, open().Encode()))
	s.add(t, s.next(t, TypeCommit, commit().Encode()))
	return s
}

func TestVectors(t *testing.T) {
	s := tell(t)
	var b []byte
	for _, e := range s.entries {
		b = e.Append(b)
	}
	vector(t, "entries.hex", b)
	vector(t, "vault-id.hex", s.v.ID[:])
	vector(t, "head.hex", s.v.Head[:])

	// What the vectors say is what the types say.
	rd := enc.NewReader(b)
	for i := range s.entries {
		if e := ReadEntry(rd); rd.Err() != nil || !bytes.Equal(e.Append(nil), s.entries[i].Append(nil)) {
			t.Fatalf("entry %d: %v", i+1, rd.Err())
		}
	}
	if err := rd.Done(); err != nil {
		t.Error(err)
	}
	if g := s.v.Genesis; g != genesis() {
		t.Errorf("genesis: %+v", g)
	}
	signer := SignerOf(machine.Public().(ed25519.PublicKey))
	if m := s.v.Machines[signer]; !m.Enrol.Equal(enrol()) || m.Chain.Seq != 2 {
		t.Errorf("machine: %+v", m)
	}
	if o := s.v.Sessions[open().Session]; o.Open != open() || o.Signer != signer {
		t.Errorf("session: %+v", o)
	}
	if len(s.v.Archives) != 1 || s.v.Archives[0].Commit != commit() || s.v.Archives[0].N != 4 || s.v.Archives[0].Time != s.time {
		t.Errorf("archives: %+v", s.v.Archives)
	}
}

// TestDamage flips every bit of every entry of a history. A client that follows it refuses the entry
// whatever was flipped, and its state does not change.
func TestDamage(t *testing.T) {
	s := tell(t)
	var v Vault
	for _, e := range s.entries {
		good := e.Append(nil)
		for i := range good {
			for bit := range 8 {
				bad := bytes.Clone(good)
				bad[i] ^= 1 << bit
				rd := enc.NewReader(bad)
				x := ReadEntry(rd)
				if rd.Done() != nil {
					continue
				}
				n, head := v.N, v.Head
				if err := v.Follow(x, log.Public().(ed25519.PublicKey), hist); err == nil {
					t.Fatalf("entry %d: flipped bit %d of byte %d goes unnoticed", e.N, bit, i)
				}
				if v.N != n || v.Head != head {
					t.Fatalf("entry %d: a refused entry changed the vault", e.N)
				}
			}
			rd := enc.NewReader(good[:i])
			ReadEntry(rd)
			if rd.Done() == nil {
				t.Errorf("entry %d cut at byte %d goes unnoticed", e.N, i)
			}
		}
		if err := v.Follow(e, log.Public().(ed25519.PublicKey), hist); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLies are the stories that a service could tell with records that are all genuine.
func TestLies(t *testing.T) {
	logPub := log.Public().(ed25519.PublicKey)
	s := tell(t)
	follow := func(entries ...Entry) error {
		var v Vault
		for _, e := range entries {
			if err := v.Follow(e, logPub, hist); err != nil {
				return err
			}
		}
		return nil
	}
	e := s.entries
	restamp := func(n uint64, prev holdfast.Head, time int64, r Record) Entry {
		return Stamp(s.v.ID, n, prev, time, r, log)
	}
	other := new(story)
	g := genesis()
	g.ReadKey[0]++
	other.add(t, other.next(t, TypeGenesis, g.Encode()))

	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"a record left out", follow(e[0], e[1], e[3]), ErrOrder},
		{"a record left out and the rest renumbered", follow(e[0], e[1], restamp(3, e[1].Head, 15, e[3].Record)), ErrChain},
		{"two records exchanged", follow(e[0], e[2], e[1]), ErrOrder},
		{"a record told twice", follow(e[0], e[1], e[2], restamp(4, e[2].Head, 15, e[2].Record)), ErrChain},
		{"no genesis", follow(restamp(1, holdfast.Head{}, 5, e[1].Record)), ErrFormat},
		{"another vault's record", follow(e[0], other.entries[0]), ErrOrder},
		{"another vault's genesis in this place", follow(e[0], restamp(2, e[0].Head, 9, other.entries[0].Record)), ErrFormat},
		{"time runs backwards", follow(e[0], restamp(2, e[0].Head, 4, e[1].Record)), ErrOrder},
		{"a head over another past", follow(e[0], restamp(2, holdfast.Head{1}, 10, e[1].Record)), ErrHead},
		{"a head signed by another service", follow(Stamp(s.v.ID, 1, holdfast.Head{}, 5, e[0].Record, key(9))), ErrSignature},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, c.err, c.want)
		}
	}
	pinned := Vault{ID: holdfast.VaultID{1}}
	if err := pinned.Follow(e[0], logPub, hist); !errors.Is(err, ErrOrder) {
		t.Errorf("another vault where one is pinned: %v", err)
	}
	var v Vault
	if err := v.Follow(e[0], logPub, holdfast.Key{}); !errors.Is(err, ErrTag) {
		t.Errorf("a record from outside the vault: %v", err)
	}
}

// TestCheckRefuses are the records that no vault takes, whoever passes them on.
func TestCheckRefuses(t *testing.T) {

	sign := func(s *story, who ed25519.PrivateKey, link Link, typ Type, fields []byte) error {
		_, err := s.check(Sign(Body{Type: typ, Vault: s.v.ID, Seq: link.Seq, Prev: link.Prev, Fields: fields}, who, hist))
		return err
	}
	s := tell(t)
	chain := s.v.Machines[SignerOf(machine.Public().(ed25519.PublicKey))].Chain
	second := enrol()
	second.SignKey, second.Rights = public(key(12)), holdfast.RightRead
	s.add(t, s.next(t, TypeEnrol, second.Encode()))
	o2 := open()
	o2.Session[0]++
	wrongGroup, wrongRead := o2, o2
	wrongGroup.Group[0]++
	wrongRead.ReadKey[0]++
	strange := commit()
	strange.Session[0]++
	strangeGroup := commit()
	strangeGroup.Group[0]++

	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"an enrolment signed by a machine", sign(s, machine, chain, TypeEnrol, enrol().Encode()), ErrSigner},
		{"a commit by a stranger", sign(s, key(13), Link{}, TypeCommit, commit().Encode()), ErrSigner},
		{"a commit by a machine that may only read", sign(s, key(12), Link{}, TypeCommit, commit().Encode()), ErrRights},
		{"a session by a machine that may only read", sign(s, key(12), Link{}, TypeOpen, o2.Encode()), ErrRights},
		{"a machine enrolled twice", sign(s, owner, s.v.Owner, TypeEnrol, enrol().Encode()), ErrFormat},
		{"a session opened twice", sign(s, machine, chain, TypeOpen, open().Encode()), ErrFormat},
		{"a session for another group", sign(s, machine, chain, TypeOpen, wrongGroup.Encode()), ErrFormat},
		{"a session for another read key", sign(s, machine, chain, TypeOpen, wrongRead.Encode()), ErrFormat},
		{"a commit in a strange session", sign(s, machine, chain, TypeCommit, strange.Encode()), ErrFormat},
		{"a commit in a strange group", sign(s, machine, chain, TypeCommit, strangeGroup.Encode()), ErrFormat},
		{"a second genesis", sign(s, owner, s.v.Owner, TypeGenesis, genesis().Encode()), ErrFormat},
		{"a commit with the fields of an open", sign(s, machine, chain, TypeCommit, o2.Encode()), ErrFormat},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, c.err, c.want)
		}
	}
	var stale *StaleError
	if err := sign(s, machine, Link{}, TypeOpen, o2.Encode()); !errors.As(err, &stale) || stale.Want != chain {
		t.Errorf("a record that does not continue its chain: %v", err)
	}
	if err := sign(s, machine, chain, TypeOpen, o2.Encode()); err != nil {
		t.Errorf("a second session: %v", err)
	}
	r := s.next(t, TypeOpen, o2.Encode())
	r.Sig[5] ^= 1
	if _, err := s.check(r); !errors.Is(err, ErrSignature) {
		t.Errorf("a forged signature: %v", err)
	}
	if _, err := new(story).check(s.entries[1].Record); err == nil {
		t.Error("an enrolment before genesis passes")
	}
}

func TestFieldsRefuse(t *testing.T) {
	e := func(f func(*Enrol)) []byte { x := enrol(); f(&x); return x.Encode() }
	for name, f := range map[string][]byte{
		"no rights":         e(func(e *Enrol) { e.Rights = 0 }),
		"unknown rights":    e(func(e *Enrol) { e.Rights = 8 }),
		"small chunks":      e(func(e *Enrol) { e.Chunk = MinChunk / 2 }),
		"large chunks":      e(func(e *Enrol) { e.Chunk = MaxChunk * 2 }),
		"odd chunks":        e(func(e *Enrol) { e.Chunk = MinChunk + 1 }),
		"something follows": append(enrol().Encode(), 0),
	} {
		if _, err := ParseEnrol(f); !errors.Is(err, ErrFormat) {
			t.Errorf("enrol, %s: %v", name, err)
		}
	}
	for _, chunk := range []uint32{MinChunk, MaxChunk} {
		if _, err := ParseEnrol(e(func(e *Enrol) { e.Chunk = chunk })); err != nil {
			t.Errorf("chunk size %d: %v", chunk, err)
		}
	}
	c := commit().Encode()
	c[16+16+16+32+8] = 2
	if _, err := ParseCommit(c); !errors.Is(err, ErrFormat) {
		t.Errorf("partial flag 2: %v", err)
	}
	o := open().Encode()
	o[16+16+32] = 2
	if _, err := ParseOpen(o); !errors.Is(err, ErrFormat) {
		t.Errorf("suite 2: %v", err)
	}
	g := genesis().Encode()
	g[32] = 2
	if _, err := ParseGenesis(g); !errors.Is(err, ErrFormat) {
		t.Errorf("suite 2: %v", err)
	}
}

func TestBodyRefuses(t *testing.T) {
	good := Body{Type: TypeCommit, Vault: holdfast.VaultID{1}, Seq: 1, Prev: holdfast.RecordID{2}, SeenN: 3, SeenHead: holdfast.Head{4}}
	for name, spoil := range map[string]func(*Body){
		"type 0":                   func(b *Body) { b.Type = 0 },
		"type 19":                  func(b *Body) { b.Type = TypeLapse + 1 },
		"first with a predecessor": func(b *Body) { b.Seq = 0 },
		"later without one":        func(b *Body) { b.Prev = holdfast.RecordID{} },
		"saw nothing, with a head": func(b *Body) { b.SeenN = 0 },
		"saw something, no head":   func(b *Body) { b.SeenHead = holdfast.Head{} },
		"genesis in a vault":       func(b *Body) { b.Type, b.Seq, b.Prev = TypeGenesis, 0, holdfast.RecordID{} },
		"too many fields":          func(b *Body) { b.Fields = make([]byte, MaxFields+1) },
	} {
		b := good
		spoil(&b)
		if _, err := ParseBody(b.Encode()); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good.Fields = make([]byte, MaxFields)
	raw := good.Encode()
	if b, err := ParseBody(raw); err != nil || !bytes.Equal(b.Encode(), raw) {
		t.Errorf("as many fields as allowed: %v", err)
	}
	raw[0] = 2
	if _, err := ParseBody(raw); !errors.Is(err, ErrFormat) {
		t.Errorf("version 2: %v", err)
	}
	long := Record{Body: make([]byte, holdfast.MaxRecord+1)}
	if _, err := ParseRecord(long.Append(nil)); !errors.Is(err, ErrFormat) {
		t.Errorf("record beyond the limit: %v", err)
	}
}

func FuzzBody(f *testing.F) {
	for typ, b := range fields() {
		f.Add(Body{Type: typ, Fields: b}.Encode())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := ParseBody(raw)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		if !bytes.Equal(b.Encode(), raw) {
			t.Fatalf("%x decodes to what encodes as %x", raw, b.Encode())
		}
		for typ := TypeGenesis; typ <= TypeLapse; typ++ {
			again, err := reencode(typ, b.Fields)
			if err != nil && !errors.Is(err, ErrFormat) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			if err == nil && !bytes.Equal(again, b.Fields) {
				t.Fatalf("fields %x of %s decode to what encodes as %x", b.Fields, typ, again)
			}
		}
	})
}

func FuzzEntry(f *testing.F) {
	r := Sign(Body{Type: TypeGenesis, Fields: genesis().Encode()}, owner, hist)
	f.Add(Stamp(holdfast.VaultID(r.ID()), 1, holdfast.Head{}, 1, r, log).Append(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		rd := enc.NewReader(raw)
		e := ReadEntry(rd)
		if rd.Done() == nil && !bytes.Equal(e.Append(nil), raw) {
			t.Fatalf("%x decodes to what encodes as %x", raw, e.Append(nil))
		}
		if r, err := ParseRecord(raw); err == nil && !bytes.Equal(r.Append(nil), raw) {
			t.Fatalf("%x decodes to what encodes as %x", raw, r.Append(nil))
		}
	})
}
