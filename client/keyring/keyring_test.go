package keyring

import (
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"holdfast"
	"holdfast/history"
)

var update = flag.Bool("update", false, "write testdata anew: only for a new version of the format")

func testSeed() (k holdfast.Key) {
	for i := range k {
		k[i] = byte(i)
	}
	return k
}

func testGroup() (g holdfast.GroupID) {
	for i := range g {
		g[i] = byte(0xa0 + i)
	}
	return g
}

func testMachine(rights holdfast.Rights) *Machine {
	m := OwnerOf(testSeed()).NewMachine(holdfast.VaultID{9, 8, 7}, testGroup(), rights, 256<<10)
	m.Seed = holdfast.Key{0x55, 1}
	m.Address = "backup.example.org:7420"
	m.ServiceKey = [32]byte{4}
	m.LogKey = [32]byte{5}
	return m
}

// TestVectors fixes every derivation. The values were checked once against a second implementation.
func TestVectors(t *testing.T) {
	const file = "testdata/derivations.json"
	o := OwnerOf(testSeed())
	m := testMachine(holdfast.RightsAll)
	k := m.GroupKeys()
	gear := func(c Cuts) (b []byte) {
		for _, g := range c.Gear {
			b = binary.BigEndian.AppendUint64(b, g)
		}
		return b
	}
	seed, v, r0, r1, g := testSeed(), o.Vault(), o.ReadSeed(0), o.ReadSeed(1), testGroup()
	series := m.Series("home \xff/ü")
	name := k.NameOf(holdfast.KindPack, []byte("plaintext"))
	signer, gen := m.Signer(), o.Genesis()
	id := history.ReadKeyIDOf(gen.ReadKey[:])
	got := [][2]string{
		{"owner seed", hex.EncodeToString(seed[:])},
		{"words", o.Words()},
		{"owner signing public key", hex.EncodeToString(gen.OwnerKey[:])},
		{"V", hex.EncodeToString(v[:])},
		{"read seed 0", hex.EncodeToString(r0[:])},
		{"read seed 1", hex.EncodeToString(r1[:])},
		{"read key 0", hex.EncodeToString(gen.ReadKey[:])},
		{"read key 0 ID", hex.EncodeToString(id[:])},
		{"K_hist", hex.EncodeToString(m.Hist[:])},
		{"series ID of 'home \\xff/ü' (UTF-8 but for the byte ff)", hex.EncodeToString(series[:])},
		{"gid", hex.EncodeToString(g[:])},
		{"G", hex.EncodeToString(m.G[:])},
		{"K_name[chunk]", hex.EncodeToString(k.Name[1][:])},
		{"K_name[pack]", hex.EncodeToString(k.Name[2][:])},
		{"K_name[tree]", hex.EncodeToString(k.Name[3][:])},
		{"K_name[archive]", hex.EncodeToString(k.Name[4][:])},
		{"K_gear[data]", hex.EncodeToString(gear(k.Data))},
		{"K_gear[meta]", hex.EncodeToString(gear(k.Meta))},
		{"K_cut[data]", hex.EncodeToString(k.Data.Cut[:])},
		{"K_cut[meta]", hex.EncodeToString(k.Meta.Cut[:])},
		{"K_tree[data]", hex.EncodeToString(k.Data.Tree[:])},
		{"K_tree[meta]", hex.EncodeToString(k.Meta.Tree[:])},
		{"name of the pack 'plaintext'", hex.EncodeToString(name[:])},
		{"machine seed", hex.EncodeToString(m.Seed[:])},
		{"machine TLS public key", hex.EncodeToString(m.TLSKey().Public().(ed25519.PublicKey))},
		{"machine signing public key", hex.EncodeToString(m.SignKey().Public().(ed25519.PublicKey))},
		{"signer ID", hex.EncodeToString(signer[:])},
	}
	out, _ := json.MarshalIndent(got, "", "\t")
	golden(t, file, append(out, '\n'))
}

// golden compares got with the file, byte by byte.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Fatalf("%s: the format has changed:\n%s", file, got)
	}
}

// Every key has one purpose: no two derivations meet.
func TestKeysDiffer(t *testing.T) {
	seen := map[holdfast.Key]string{}
	add := func(what string, k holdfast.Key) {
		t.Helper()
		if other, ok := seen[k]; ok {
			t.Errorf("%s is %s", what, other)
		}
		if k == (holdfast.Key{}) {
			t.Errorf("%s is zero", what)
		}
		seen[k] = what
	}
	o := OwnerOf(testSeed())
	add("seed", testSeed())
	add("owner sign", Derive(testSeed(), "sign"))
	add("V", o.Vault())
	add("read 0", o.ReadSeed(0))
	add("read 1", o.ReadSeed(1))
	m := testMachine(holdfast.RightsAll)
	add("hist", m.Hist)
	for _, gid := range []holdfast.GroupID{testGroup(), {1}, {}} {
		k, err := m.GroupKeysOf(gid)
		if err != nil {
			t.Fatal(err)
		}
		add("G", groupOf(*m.V, gid))
		for kind := holdfast.KindChunk; kind.Valid(); kind++ {
			add(fmt.Sprint("name ", kind), k.Name[kind])
		}
		for i, c := range []Cuts{k.Data, k.Meta} {
			add(fmt.Sprint("cut ", i), c.Cut)
			add(fmt.Sprint("tree ", i), c.Tree)
			var gear holdfast.Key
			binary.BigEndian.PutUint64(gear[:], c.Gear[0])
			binary.BigEndian.PutUint64(gear[8:], c.Gear[255])
			add(fmt.Sprint("gear ", i), gear)
		}
	}
	add("tls", holdfast.Key(m.TLSKey().Seed()))
	add("sign", holdfast.Key(m.SignKey().Seed()))
}

// Fields are told apart by their lengths.
func TestDeriveSeparatesFields(t *testing.T) {
	k := holdfast.Key{1}
	if Derive(k, "x", []byte("ab"), []byte("c")) == Derive(k, "x", []byte("a"), []byte("bc")) {
		t.Fatal("fields run together")
	}
	if Derive(k, "x") == Derive(k, "x", nil) {
		t.Fatal("an empty field is no field")
	}
}

// What a machine may not do, its key file does not hold.
func TestWriteOnlyMachineCannotRead(t *testing.T) {
	for rights := holdfast.Rights(1); rights <= holdfast.RightsAll; rights++ {
		m := testMachine(rights)
		_, err := m.ReadPrivate()
		_, err2 := m.GroupKeysOf(holdfast.GroupID{1})
		if own, err := m.GroupKeysOf(m.Group); err != nil || own != m.GroupKeys() {
			t.Fatalf("%s: its own group: %v", rights, err)
		}
		if rights.Has(holdfast.RightRead) {
			if err != nil || err2 != nil || m.V == nil || m.ReadSeed == nil {
				t.Fatalf("%s: cannot read: %v, %v", rights, err, err2)
			}
			continue
		}
		if err != ErrNoReadKey || err2 != ErrNoReadKey || m.V != nil || m.ReadSeed != nil {
			t.Fatalf("%s: can read: %v, %v", rights, err, err2)
		}
		o := OwnerOf(testSeed())
		text := string(m.Encode())
		for _, k := range []holdfast.Key{testSeed(), o.Vault(), o.ReadSeed(0)} {
			if strings.Contains(text, hex.EncodeToString(k[:])) {
				t.Fatalf("%s: the key file holds a secret that reads", rights)
			}
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	o := OwnerOf(testSeed())
	m := testMachine(holdfast.RightsAll)
	k := m.GroupKeys()
	for _, x := range []any{o, &o, m, *m, k, &k, k.Data, m.V} {
		for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
			s := fmt.Sprintf(f, x)
			for _, secret := range []string{"0, 1, 2, 3", "0 1 2 3", "0x0, 0x1, 0x2", fmt.Sprint(k.Data.Gear[0]), fmt.Sprintf("%#x", k.Data.Gear[0])} {
				if strings.Contains(s, secret) {
					t.Errorf("%s of %T shows a secret", f, x)
				}
			}
		}
	}
}

func TestGenesisAndEnrolAreWellFormed(t *testing.T) {
	o := NewOwner()
	g, err := history.ParseGenesis(o.Genesis().Encode())
	if err != nil || g != o.Genesis() {
		t.Fatal(err)
	}
	m := o.NewMachine(holdfast.VaultID{1}, NewGroup(), holdfast.RightsAll, 256<<10)
	if m.ReadKey != g.ReadKey || m.Owner != g.OwnerKey {
		t.Fatal("machine and genesis disagree")
	}
	e, err := history.ParseEnrol(m.Enrol().Encode())
	if err != nil || !e.Equal(m.Enrol()) || history.SignerOf(e.SignKey[:]) != m.Signer() {
		t.Fatal(err)
	}
	if NewOwner() == o || NewGroup() == m.Group {
		t.Fatal("not random")
	}
}

func TestWords(t *testing.T) {
	// The published BIP-39 vectors for 256 bits, as far as they exercise the edges.
	for _, v := range []struct{ seed, words string }{
		{strings.Repeat("00", 32), strings.Repeat("abandon ", 23) + "art"},
		{strings.Repeat("7f", 32), strings.Repeat("legal winner thank year wave sausage worth useful ", 2) + "legal winner thank year wave sausage worth title"},
		{strings.Repeat("ff", 32), strings.Repeat("zoo ", 23) + "vote"},
		{"0000000000000000" + strings.Repeat("ff", 24), ""},
	} {
		raw, _ := hex.DecodeString(v.seed)
		o := OwnerOf(holdfast.Key(raw))
		if v.words != "" && o.Words() != v.words {
			t.Errorf("%s: %s", v.seed, o.Words())
		}
		back, err := ParseWords(o.Words())
		if err != nil || back != o {
			t.Errorf("%s does not come back: %v", v.seed, err)
		}
		back, err = ParseWords("\n  " + strings.ToUpper(strings.ReplaceAll(o.Words(), " ", "\t \r\n")))
		if err != nil || back != o {
			t.Errorf("%s does not come back from sloppy typing: %v", v.seed, err)
		}
	}
	for range 200 {
		o := NewOwner()
		if back, err := ParseWords(o.Words()); err != nil || back != o {
			t.Fatalf("round trip: %v", err)
		}
	}
}

func TestWordsRefused(t *testing.T) {
	good := strings.Fields(OwnerOf(testSeed()).Words())
	swapped := append([]string{good[1], good[0]}, good[2:]...)
	for _, v := range []struct{ words, hint string }{
		{"", "there are 0"},
		{strings.Join(good[:23], " "), "there are 23"},
		{strings.Join(append(good, "zoo"), " "), "there are 25"},
		{strings.Join(append(append([]string{}, good[:6]...), append([]string{"zo0"}, good[7:]...)...), " "), `word 7, "zo0"`},
		{strings.Join(swapped, " "), "do not fit"},
	} {
		_, err := ParseWords(v.words)
		if !errors.Is(err, ErrWords) || !strings.Contains(fmt.Sprint(err), v.hint) {
			t.Errorf("%q: %v", v.words, err)
		}
	}
}
