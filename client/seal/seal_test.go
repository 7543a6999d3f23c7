package seal

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"io"
	mrand "math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
	"holdfast/internal/blake3"
	"holdfast/wire"
)

var update = flag.Bool("update", false, "write testdata anew: only for a new version of the format")

var vault, otherVault = holdfast.VaultID{0x11}, holdfast.VaultID{0x12}

func machine(gid byte, rights holdfast.Rights) *keyring.Machine {
	m := keyring.OwnerOf(holdfast.Key{1}).NewMachine(vault, holdfast.GroupID{gid}, rights, 256<<10)
	m.Seed = holdfast.Key{gid}
	return m
}

// random returns n bytes that depend on seed only.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	stream(seed).Read(b)
	return b
}

func stream(seed uint64) io.Reader {
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	return mrand.NewChaCha8(s)
}

func text(n int) []byte { return bytes.Repeat([]byte("All work and no play. "), n/22+1)[:n] }

// tree returns a plaintext that begins with a table of n names, and the names.
func tree(n int, rest []byte) ([]byte, []holdfast.Name) {
	links := make([]holdfast.Name, n)
	for i := range links {
		copy(links[i][:], random(uint64(1000+i), 32))
	}
	slices.SortFunc(links, func(a, b holdfast.Name) int { return bytes.Compare(a[:], b[:]) })
	b := binary.BigEndian.AppendUint32(nil, uint32(n))
	for _, l := range links {
		b = append(b, l[:]...)
	}
	return append(b, rest...), links
}

// pair returns a session and a reader that knows it.
func pair(t testing.TB) (*keyring.Machine, *Session, *Reader) {
	t.Helper()
	m := machine(1, holdfast.RightsAll)
	s, o, err := NewSession(rand.Reader, machine(1, holdfast.RightWrite))
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddOpen(o, m.Signer()); err != nil {
		t.Fatal(err)
	}
	return m, s, r
}

func seal(t testing.TB, s *Session, kind holdfast.Kind, plain []byte, links []holdfast.Name, frames []int) (holdfast.Name, []byte) {
	t.Helper()
	name := s.keys.NameOf(kind, plain)
	b, err := s.Seal(name, kind, plain, links, frames)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > holdfast.MaxBlock {
		t.Fatalf("%d bytes of block", len(b))
	}
	return name, b
}

func TestBlocksComeBack(t *testing.T) {
	m, s, r := pair(t)
	full, fullLinks := tree(holdfast.MaxLinks, random(1, holdfast.MaxPlain-4-32*holdfast.MaxLinks))
	small, smallLinks := tree(3, text(5000))
	none, _ := tree(0, nil)
	for _, v := range []struct {
		name   string
		kind   holdfast.Kind
		plain  []byte
		links  []holdfast.Name
		frames []int
	}{
		{"empty", holdfast.KindChunk, nil, nil, nil},
		{"one byte", holdfast.KindChunk, []byte{0}, nil, nil},
		{"text", holdfast.KindChunk, text(100000), nil, nil},
		{"random", holdfast.KindChunk, random(1, 100000), nil, nil},
		{"largest text", holdfast.KindChunk, text(holdfast.MaxPlain), nil, nil},
		{"largest zeros", holdfast.KindChunk, make([]byte, holdfast.MaxPlain), nil, nil},
		{"largest random", holdfast.KindChunk, random(2, holdfast.MaxPlain), nil, nil},
		{"pack", holdfast.KindPack, append(text(5000), random(3, 3000)...), nil, []int{1, 0, 4999, 3000}},
		{"pack of nothing", holdfast.KindPack, nil, nil, []int{}},
		{"tree", holdfast.KindTree, small, smallLinks, nil},
		{"tree without links", holdfast.KindTree, none, nil, nil},
		{"archive", holdfast.KindArchive, small, smallLinks, nil},
		{"largest tree", holdfast.KindTree, full, fullLinks, nil},
	} {
		t.Run(v.name, func(t *testing.T) {
			name, sealed := seal(t, s, v.kind, v.plain, v.links, v.frames)
			h, _, err := wire.ParseBlockHeader(sealed)
			if err != nil || h.Kind != v.kind || h.Session != s.ID || !slices.Equal(h.Links, v.links) {
				t.Fatalf("header %v: %v", h, err)
			}
			kind, plain, err := r.Open(m.Group, name, sealed)
			if err != nil || kind != v.kind || !bytes.Equal(plain, v.plain) {
				t.Fatalf("%s of %d bytes: %v", kind, len(plain), err)
			}
		})
	}
}

// What could not be read back is not sealed.
func TestSealRefuses(t *testing.T) {
	_, s, _ := pair(t)
	plain, links := tree(3, text(50))
	short := plain[:4+32*2]
	unsorted := slices.Clone(plain)
	copy(unsorted[4:], plain[36:68])
	for _, v := range []struct {
		what   string
		kind   holdfast.Kind
		plain  []byte
		links  []holdfast.Name
		frames []int
		wrong  byte // changes the name
	}{
		{"another name", holdfast.KindChunk, plain, nil, nil, 1},
		{"too large", holdfast.KindChunk, make([]byte, holdfast.MaxPlain+1), nil, nil, 0},
		{"a chunk with links", holdfast.KindChunk, plain, links, nil, 0},
		{"a link too few", holdfast.KindTree, plain, links[:2], nil, 0},
		{"no links", holdfast.KindTree, plain, nil, nil, 0},
		{"another link", holdfast.KindTree, plain, []holdfast.Name{links[0], links[1], {0xff, 1}}, nil, 0},
		{"no table", holdfast.KindTree, []byte("abc"), nil, nil, 0},
		{"a short table", holdfast.KindTree, short, links[:2], nil, 0},
		{"a table out of order", holdfast.KindTree, unsorted, links, nil, 0},
		{"a table and links out of order", holdfast.KindTree, unsorted, []holdfast.Name{links[1], links[1], links[2]}, nil, 0},
		{"frames too short", holdfast.KindPack, plain, nil, []int{1, 2}, 0},
		{"frames too long", holdfast.KindPack, plain, nil, []int{len(plain), 1}, 0},
		{"a negative frame", holdfast.KindPack, plain, nil, []int{len(plain), -1, 1}, 0},
		{"no frames", holdfast.KindPack, plain, nil, []int{}, 0},
	} {
		name := s.keys.NameOf(v.kind, v.plain)
		name[0] ^= v.wrong
		if b, err := s.Seal(name, v.kind, v.plain, v.links, v.frames); err == nil || b != nil {
			t.Errorf("%s is sealed", v.what)
		}
	}
	for _, kind := range []holdfast.Kind{0, 5} {
		if _, err := s.Seal(holdfast.Name{}, kind, plain, nil, nil); err == nil {
			t.Errorf("%s is sealed", kind)
		}
	}
}

// Every flipped bit of a block and every cut makes it unreadable; nothing else is ever returned.
func TestDamage(t *testing.T) {
	m, s, r := pair(t)
	for _, kind := range []holdfast.Kind{holdfast.KindChunk, holdfast.KindTree} {
		plain, links := tree(2, text(90))
		if kind.Leaf() {
			links = nil
		}
		name, sealed := seal(t, s, kind, plain, links, nil)
		for i := range sealed {
			for bit := range 8 {
				b := bytes.Clone(sealed)
				b[i] ^= 1 << bit
				if _, got, err := r.Open(m.Group, name, b); !errors.Is(err, ErrDamaged) || got != nil {
					t.Fatalf("bit %d of byte %d of %d: %v", bit, i, len(sealed), err)
				}
			}
			if _, got, err := r.Open(m.Group, name, sealed[:i]); !errors.Is(err, ErrDamaged) || got != nil {
				t.Fatalf("%d bytes of %d: %v", i, len(sealed), err)
			}
		}
		if _, _, err := r.Open(m.Group, name, append(sealed, 0)); !errors.Is(err, ErrDamaged) {
			t.Fatalf("a byte more: %v", err)
		}
	}
}

// A whole block is refused in every place but its own.
func TestBlockOutOfPlace(t *testing.T) {
	m, s, r := pair(t)
	name, sealed := seal(t, s, holdfast.KindChunk, text(100), nil, nil)
	other, sealedOther := seal(t, s, holdfast.KindChunk, text(101), nil, nil)
	_, again := seal(t, s, holdfast.KindPack, text(100), nil, nil)
	if _, _, err := r.Open(m.Group, name, sealed); err != nil {
		t.Fatal(err)
	}
	for what, open := range map[string]func() error{
		"under another name": func() error { _, _, err := r.Open(m.Group, other, sealed); return err },
		"another block":      func() error { _, _, err := r.Open(m.Group, name, sealedOther); return err },
		"of another kind":    func() error { _, _, err := r.Open(m.Group, name, again); return err },
		"in another group":   func() error { _, _, err := r.Open(holdfast.GroupID{2}, name, sealed); return err },
		"of an unknown session": func() error {
			r, _ := NewReader(m)
			_, _, err := r.Open(m.Group, name, sealed)
			return err
		},
	} {
		if err := open(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// After the owner made another read key the current one, whoever has it reads what was rewrapped and what is
// new; whoever has the old one still reads what was sealed for that, and nothing new.
func TestRewrap(t *testing.T) {
	owner := keyring.OwnerOf(holdfast.Key{1})
	writer, old, now := machine(1, holdfast.RightWrite), machine(2, holdfast.RightRead), machine(3, holdfast.RightRead)
	owner.GiveRead(now, 1)
	s, o, err := NewSession(rand.Reader, writer)
	if err != nil {
		t.Fatal(err)
	}
	name, sealed := seal(t, s, holdfast.KindChunk, text(10), nil, nil)
	reader := func(m *keyring.Machine) *Reader {
		t.Helper()
		r, err := NewReader(m)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	first, second := reader(old), reader(now)
	if err := errors.Join(first.AddOpen(o, writer.Signer()), second.AddOpen(o, writer.Signer())); err != nil {
		t.Fatal(err)
	}
	if err := second.CheckSession(o.Session); !errors.Is(err, ErrOldKey) || !errors.Is(err, ErrDamaged) {
		t.Fatalf("the new key opens the old wrap, or is told something else: %v", err)
	}
	if _, err := second.Rewrap(o.Session, owner.ReadKey(1)); !errors.Is(err, ErrDamaged) {
		t.Fatalf("rewrapped without the key: %v", err)
	}
	w, err := first.Rewrap(o.Session, owner.ReadKey(1))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := history.ParseRewrap(w.Encode()); err != nil || again != w {
		t.Fatal(err)
	}
	for _, bad := range []func(*history.Rewrap){
		func(w *history.Rewrap) { w.Session[0]++ },
		func(w *history.Rewrap) { w.ReadKey[0]++ },
		func(w *history.Rewrap) { w.Wrap[5]++ },
		func(w *history.Rewrap) { w.Wrap[1167]++ },
	} {
		x := w
		bad(&x)
		r := reader(now)
		if err := r.AddOpen(o, writer.Signer(), x); err != nil {
			t.Fatal(err)
		}
		if err := r.CheckSession(o.Session); !errors.Is(err, ErrDamaged) {
			t.Errorf("a damaged rewrap: %v", err)
		}
	}
	// The rewrap may be met after the session.
	for _, r := range []*Reader{first, second} {
		if err := r.AddOpen(o, writer.Signer(), w); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.Open(writer.Group, name, sealed); err != nil && r == second {
			t.Fatal(err)
		}
	}
	owner.GiveRead(writer, 1)
	if writer.ReadSeed != nil {
		t.Fatal("a machine that may not read was given a private key")
	}
	_, o2, err := NewSession(rand.Reader, writer)
	if err != nil || o2.ReadKey != w.ReadKey {
		t.Fatal("a new session is for another key", err)
	}
	if err := errors.Join(first.AddOpen(o2, writer.Signer()), second.AddOpen(o2, writer.Signer())); err != nil {
		t.Fatal(err)
	}
	if err := first.CheckSession(o2.Session); !errors.Is(err, ErrDamaged) {
		t.Fatalf("the old key opens what is new: %v", err)
	}
	if err := second.CheckSession(o2.Session); err != nil {
		t.Fatal(err)
	}
}

// A wrap opens for exactly its vault, session, signer and read key, and shows any flipped bit. A damaged
// one hides its own session only.
func TestWrap(t *testing.T) {
	m := machine(1, holdfast.RightsAll)
	s, o, err := NewSession(rand.Reader, m)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := history.ParseOpen(o.Encode()); err != nil || back != o {
		t.Fatal(err)
	}
	check := func(m *keyring.Machine, o history.Open, signer holdfast.SignerID) error {
		r, err := NewReader(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.AddOpen(o, signer); err != nil {
			t.Fatal(err)
		}
		return r.CheckSession(o.Session)
	}
	if err := check(m, o, m.Signer()); err != nil {
		t.Fatal(err)
	}
	if err := check(machine(2, holdfast.RightRead), o, m.Signer()); err != nil {
		t.Fatalf("another reader of the vault: %v", err)
	}
	elsewhere := *m
	elsewhere.Vault = otherVault
	stranger := keyring.OwnerOf(holdfast.Key{2}).NewMachine(vault, m.Group, holdfast.RightsAll, 256<<10)
	sid := o
	sid.Session[3]++
	for what, err := range map[string]error{
		"another vault":   check(&elsewhere, o, m.Signer()),
		"another signer":  check(m, o, holdfast.SignerID{1}),
		"another session": check(m, sid, m.Signer()),
		"another owner":   check(stranger, o, m.Signer()),
	} {
		if !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	raw := o.Encode()
	for i := range raw {
		if testing.Short() && i%7 != 0 {
			continue
		}
		raw[i] ^= 1 << (i % 8)
		if bad, err := history.ParseOpen(raw); err == nil && bad.Group == o.Group {
			if err := check(m, bad, m.Signer()); !errors.Is(err, ErrDamaged) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		raw[i] ^= 1 << (i % 8)
	}

	r, _ := NewReader(m)
	bad := o
	bad.Session[0]++
	if err := r.AddOpen(bad, m.Signer()); err != nil {
		t.Fatalf("a damaged wrap stops all reading: %v", err)
	}
	if err := r.AddOpen(o, m.Signer()); err != nil {
		t.Fatal(err)
	}
	if err := r.AddOpen(o, m.Signer()); err != nil {
		t.Fatalf("the same again: %v", err)
	}
	o2 := o
	o2.Wrap[0]++
	if err := r.AddOpen(o2, m.Signer()); !errors.Is(err, ErrDamaged) {
		t.Fatalf("the session opened twice: %v", err)
	}
	name, sealed := seal(t, s, holdfast.KindChunk, text(10), nil, nil)
	if _, _, err := r.Open(m.Group, name, sealed); err != nil {
		t.Fatal(err)
	}
	if _, err := NewReader(machine(1, holdfast.RightWrite)); err != keyring.ErrNoReadKey {
		t.Fatalf("a machine that only writes reads: %v", err)
	}
}

// forge seals inner as a writer could who does not keep to the rules.
func forge(s *Session, name holdfast.Name, kind holdfast.Kind, links []holdfast.Name, inner []byte) []byte {
	head := wire.AppendBlockHeader(nil, wire.BlockHeader{Kind: kind, Session: s.ID, Links: links})
	nonce := head[nonceOffset : nonceOffset+nonceSize]
	aad := additional(head, s.Vault, s.Group, name)
	return blockCipher(s.secret, s.Vault, s.Group, name).Seal(head, nonce, inner, aad)
}

func innerOf(plainLen uint32, codec byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, plainLen)
	b = append(b, codec)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	return append(b, make([]byte, Padme(len(b))-len(b))...)
}

// A writer who has the keys and breaks the rules is found out by every reader.
func TestHostileWriter(t *testing.T) {
	m, s, r := pair(t)
	plain, links := tree(2, text(1000))
	zeros := make([]byte, 1<<20)
	var scratch []byte
	bomb := bytes.Clone(compress(&scratch, zeros, nil))
	packed := bytes.Clone(compress(&scratch, plain, nil))
	noise := random(1, 1000)
	longer := encoder().EncodeAll(noise, nil) // a good frame that should have stayed raw
	good := innerOf(uint32(len(plain)), codecRaw, plain)
	padded := append(bytes.Clone(good), make([]byte, Padme(len(good)+1)-len(good))...)
	dirty := bytes.Clone(good)
	dirty[len(dirty)-1] = 1
	if len(good) == 9+len(plain) {
		t.Fatal("this test needs padding")
	}
	chunkName := func(b []byte) holdfast.Name { return s.keys.NameOf(holdfast.KindChunk, b) }
	if _, _, err := r.Open(m.Group, chunkName(plain), forge(s, chunkName(plain), holdfast.KindChunk, nil, good)); err != nil {
		t.Fatalf("the honest forgery: %v", err)
	}
	if _, _, err := r.Open(m.Group, chunkName(plain), forge(s, chunkName(plain), holdfast.KindChunk, nil, innerOf(uint32(len(plain)), codecZstd, packed))); err != nil {
		t.Fatalf("the honest packed forgery: %v", err)
	}
	for what, v := range map[string]struct {
		plain []byte
		inner []byte
	}{
		"other content":          {plain, innerOf(4, codecRaw, []byte("evil"))},
		"padding too long":       {plain, padded},
		"padding not zeros":      {plain, dirty},
		"no padding":             {plain, good[:9+len(plain)]},
		"raw shorter":            {plain, innerOf(uint32(len(plain)+1), codecRaw, plain)},
		"raw longer":             {plain, innerOf(uint32(len(plain)-1), codecRaw, plain)},
		"unknown codec":          {plain, innerOf(uint32(len(plain)), 2, plain)},
		"packed but not shorter": {noise, innerOf(uint32(len(noise)), codecZstd, longer)},
		"not frames":             {plain, innerOf(uint32(len(plain)), codecZstd, plain[:100])},
		"frames cut off":         {plain, innerOf(uint32(len(plain)), codecZstd, packed[:len(packed)-1])},
		"a byte behind frames":   {plain, innerOf(uint32(len(plain)), codecZstd, append(bytes.Clone(packed), 0))},
		"frames too short":       {plain, innerOf(uint32(len(plain)+1), codecZstd, packed)},
		"a bomb":                 {zeros, innerOf(5000, codecZstd, bomb)},
		"plain beyond the limit": {zeros, innerOf(holdfast.MaxPlain+1, codecZstd, bomb)},
		"nothing":                {nil, nil},
		"eight bytes":            {nil, make([]byte, 8)},
	} {
		name := chunkName(v.plain)
		if _, b, err := r.Open(m.Group, name, forge(s, name, holdfast.KindChunk, nil, v.inner)); !errors.Is(err, ErrDamaged) || b != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	name := s.keys.NameOf(holdfast.KindTree, plain)
	if _, _, err := r.Open(m.Group, name, forge(s, name, holdfast.KindTree, links, good)); err != nil {
		t.Fatalf("the honest tree: %v", err)
	}
	for what, l := range map[string][]holdfast.Name{
		"a link too few":  links[:1],
		"no links":        nil,
		"a link too many": append(slices.Clone(links), holdfast.Name{0xff, 0xff, 0xff}),
		"another link":    {links[0], {0xff, 0xff, 0xff}},
	} {
		if _, b, err := r.Open(m.Group, name, forge(s, name, holdfast.KindTree, l, good)); !errors.Is(err, ErrDamaged) || b != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Another machine's session, in its own group, must not speak for this group.
	thief, o, err := NewSession(rand.Reader, machine(2, holdfast.RightWrite))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddOpen(o, machine(2, holdfast.RightWrite).Signer()); err != nil {
		t.Fatal(err)
	}
	thief.Group = m.Group
	if _, _, err := r.Open(m.Group, chunkName(plain), forge(thief, chunkName(plain), holdfast.KindChunk, nil, good)); !errors.Is(err, ErrDamaged) {
		t.Errorf("another group's session: %v", err)
	}
}

// Each file of a pack is compressed as if it were alone: no size tells what it has in common with its
// neighbours.
func TestFramesAreIndependent(t *testing.T) {
	_, s, _ := pair(t)
	secret := random(1, 3000)
	files := [][]byte{secret, secret, text(2000), append(text(2000), secret...)}
	var plain, want []byte
	var frames []int
	for _, f := range files {
		plain = append(plain, f...)
		frames = append(frames, len(f))
		want = encoder().EncodeAll(f, want)
	}
	var scratch []byte
	if got := compress(&scratch, plain, frames); !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	_, apart := seal(t, s, holdfast.KindPack, plain, nil, frames)
	_, joined := seal(t, s, holdfast.KindPack, plain, nil, nil)
	if len(apart) < len(joined)+5000 {
		t.Fatalf("%d bytes with frames, %d without: the frames know of one another", len(apart), len(joined))
	}
}

func TestPadme(t *testing.T) {
	for _, v := range [][2]int{{2, 2}, {9, 10}, {10, 10}, {17, 18}, {33, 36}, {100, 104}, {1000, 1024}, {1025, 1088}, {262153, 270336}, {4<<20 + 9, 4<<20 + 128<<10}} {
		if got := Padme(v[0]); got != v[1] {
			t.Errorf("Padme(%d) = %d, want %d", v[0], got, v[1])
		}
	}
	sizes := map[int]bool{}
	for n := 2; n < 5<<20; n++ {
		p := Padme(n)
		if p < n || float64(p) > 1.12*float64(n)+1 || Padme(p) != p {
			t.Fatalf("Padme(%d) = %d", n, p)
		}
		sizes[p] = true
	}
	if len(sizes) > 500 {
		t.Fatalf("%d sizes", len(sizes))
	}
}

// What sealing the same content again shows: no block is like another.
func TestSealingIsRandomised(t *testing.T) {
	_, s, _ := pair(t)
	_, a := seal(t, s, holdfast.KindChunk, text(100), nil, nil)
	_, b := seal(t, s, holdfast.KindChunk, text(100), nil, nil)
	if bytes.Equal(a, b) {
		t.Fatal("two equal blocks")
	}
}

// constant is a broken generator of random numbers.
type constant byte

func (c constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(c)
	}
	return len(p), nil
}

// TestScenarioC6NoncesNeverRepeat decrypts every block of runs and checks that no (key, nonce) pair was
// used for two different blocks: within a run, after a resume, and where randomness repeats because a
// process was forked, a virtual machine cloned, or its generator is broken.
func TestScenarioC6NoncesNeverRepeat(t *testing.T) {
	m := machine(1, holdfast.RightsAll)
	type use struct {
		key   holdfast.Key
		nonce [nonceSize]byte
	}
	// run seals a tree of work under each session; salt makes two runs differ as two machines would.
	contents := func(salt byte) (out []func(*Session) (holdfast.Name, []byte)) {
		add := func(kind holdfast.Kind, plain []byte, links []holdfast.Name, frames []int) {
			out = append(out, func(s *Session) (holdfast.Name, []byte) { return seal(t, s, kind, plain, links, frames) })
		}
		for i := range 50 {
			add(holdfast.KindChunk, text(100+i%10), nil, nil) // repeats: the same names again
			add(holdfast.KindChunk, append(text(100), salt, byte(i)), nil, nil)
			// The same name with another inner: cut into other frames, which compress to other payloads.
			add(holdfast.KindPack, text(3000), nil, []int{100 + int(salt)*50 + i, 2900 - int(salt)*50 - i})
			plain, links := tree(i%3, []byte{salt})
			add(holdfast.KindTree, plain, links, nil)
		}
		return out
	}
	type participant struct {
		s    *Session
		o    history.Open
		salt byte
	}
	start := func(random io.Reader, salt byte) participant {
		s, o, err := NewSession(random, m)
		if err != nil {
			t.Fatal(err)
		}
		return participant{s, o, salt}
	}
	// clone is what a fork or a snapshot makes: the same secret, and the generator in the same state.
	clone := func(p participant, random io.Reader, salt byte) participant {
		return participant{&Session{ID: p.s.ID, Vault: p.s.Vault, Group: p.s.Group, secret: p.s.secret, nonceKey: p.s.nonceKey, keys: p.s.keys, rand: random}, p.o, salt}
	}
	honest := start(rand.Reader, 0)
	cloned := start(stream(7), 0)
	broken := start(constant(5), 0)
	half := stream(9)
	middle := start(half, 0)
	for name, run := range map[string][]participant{
		"one run":                      {honest},
		"a run and its resume":         {honest, start(rand.Reader, 0), start(rand.Reader, 1)},
		"cloned before it begins":      {cloned, start(stream(7), 1)},
		"forked after it began":        {middle, clone(middle, stream(11), 1), clone(middle, stream(11), 2)},
		"a broken generator":           {broken, start(constant(5), 1), start(constant(5), 2)},
		"a broken generator, the same": {start(constant(6), 0), start(constant(6), 0)},
	} {
		t.Run(name, func(t *testing.T) {
			seen := map[use][]byte{}
			blocks := 0
			for _, p := range run {
				r, err := NewReader(m)
				if err != nil {
					t.Fatal(err)
				}
				if err := r.AddOpen(p.o, m.Signer()); err != nil {
					t.Fatal(err)
				}
				for _, f := range contents(p.salt) {
					name, sealed := f(p.s)
					h, _, err := wire.ParseBlockHeader(sealed)
					if err != nil {
						t.Fatal(err)
					}
					if _, _, err := r.Open(m.Group, name, sealed); err != nil {
						t.Fatal(err)
					}
					u := use{blockKey(p.s.secret, m.Vault, m.Group, name), h.Nonce}
					if before, ok := seen[u]; ok && !bytes.Equal(before, sealed) {
						t.Fatalf("one key and nonce, two blocks of %d and %d bytes", len(before), len(sealed))
					}
					seen[u] = sealed
					blocks++
				}
			}
			if blocks != 200*len(run) {
				t.Fatalf("%d blocks", blocks)
			}
		})
	}
	// With sound randomness there is not even an equal block.
	nonces := map[[nonceSize]byte]bool{}
	for range 1000 {
		_, sealed := seal(t, honest.s, holdfast.KindChunk, text(20), nil, nil)
		var n [nonceSize]byte
		copy(n[:], sealed[nonceOffset:])
		if nonces[n] {
			t.Fatal("a nonce came twice")
		}
		nonces[n] = true
	}
}

// The nonce covers everything that GCM takes in, the header too.
func TestScenarioC6NonceCoversHeader(t *testing.T) {
	m := machine(1, holdfast.RightsAll)
	a, _, err := NewSession(constant(5), m)
	if err != nil {
		t.Fatal(err)
	}
	b := &Session{ID: holdfast.SessionID{1}, Vault: a.Vault, Group: a.Group, secret: a.secret, nonceKey: a.nonceKey, keys: a.keys, rand: constant(5)}
	_, x := seal(t, a, holdfast.KindChunk, text(100), nil, nil)
	_, y := seal(t, b, holdfast.KindChunk, text(100), nil, nil)
	if bytes.Equal(x[nonceOffset:nonceOffset+nonceSize], y[nonceOffset:nonceOffset+nonceSize]) {
		t.Fatal("one nonce under two headers")
	}
}

func TestConcurrent(t *testing.T) {
	m, s, r := pair(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 20 {
				plain := append(text(2000), byte(w), byte(i))
				name := s.keys.NameOf(holdfast.KindChunk, plain)
				sealed, err := s.Seal(name, holdfast.KindChunk, plain, nil, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if _, b, err := r.Open(m.Group, name, sealed); err != nil || !bytes.Equal(b, plain) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestRandomnessFails(t *testing.T) {
	m := machine(1, holdfast.RightsAll)
	for n := range 48 {
		if _, _, err := NewSession(bytes.NewReader(make([]byte, n)), m); err == nil {
			t.Fatalf("a session from %d random bytes", n)
		}
	}
	s, _, err := NewSession(bytes.NewReader(make([]byte, 48)), m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Seal(s.keys.NameOf(holdfast.KindChunk, nil), holdfast.KindChunk, nil, nil, nil); err == nil {
		t.Fatal("a block without random bytes")
	}
}

type vectors struct {
	Comment string   `json:"comment"`
	Words   string   `json:"words"`
	Vault   string   `json:"vault"`
	Group   string   `json:"group"`
	Signer  string   `json:"signer"`
	Open    string   `json:"open"` // fields of the open record
	S       string   `json:"S"`
	Blocks  []vector `json:"blocks"`
}

type vector struct {
	Kind   uint8  `json:"kind"`
	Name   string `json:"name"`
	Plain  string `json:"plain"`
	Random string `json:"random"` // the 32 bytes in the nonce's hash
	Sealed string `json:"sealed"`
}

// TestVectors opens blocks that were sealed once and for all. Where no compression is involved it also
// seals them again and compares every byte; a compressor may do better one day, and the format lets it.
func TestVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	m := machine(1, holdfast.RightsAll)
	if *update {
		write(t, file, m)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	owner, err := keyring.ParseWords(v.Words)
	if err != nil {
		t.Fatal(err)
	}
	open, err := history.ParseOpen(unhex(t, v.Open))
	if err != nil {
		t.Fatal(err)
	}
	group := holdfast.GroupID(unhex(t, v.Group))
	reader := owner.NewMachine(holdfast.VaultID(unhex(t, v.Vault)), holdfast.GroupID{}, holdfast.RightRead, 256<<10)
	r, err := NewReader(reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddOpen(open, holdfast.SignerID(unhex(t, v.Signer))); err != nil {
		t.Fatal(err)
	}
	keys, _ := reader.GroupKeysOf(group)
	raws := 0
	for _, b := range v.Blocks {
		name, sealed := holdfast.Name(unhex(t, b.Name)), unhex(t, b.Sealed)
		kind, plain, err := r.Open(group, name, sealed)
		if err != nil || uint8(kind) != b.Kind || hex.EncodeToString(plain) != b.Plain {
			t.Fatalf("block %s: %v", b.Name, err)
		}
		h, body, _ := wire.ParseBlockHeader(sealed)
		s := holdfast.Key(unhex(t, v.S))
		inner, err := blockCipher(s, reader.Vault, group, name).Open(nil, h.Nonce[:], body, additional(sealed[:len(sealed)-len(body)], reader.Vault, group, name))
		if err != nil || inner[4] != codecRaw {
			continue
		}
		again := &Session{ID: open.Session, Vault: reader.Vault, Group: group, secret: s, nonceKey: keyring.Derive(s, "nonce"), keys: keys, rand: bytes.NewReader(unhex(t, b.Random))}
		if _, got := seal(t, again, kind, plain, h.Links, nil); !bytes.Equal(got, sealed) {
			t.Fatalf("block %s is sealed as\n%x", b.Name, got)
		}
		raws++
	}
	if raws < 3 || len(v.Blocks)-raws < 2 {
		t.Fatalf("%d raw blocks of %d", raws, len(v.Blocks))
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, file string, m *keyring.Machine) {
	s, o, err := NewSession(stream(1), m)
	if err != nil {
		t.Fatal(err)
	}
	signer := m.Signer()
	v := vectors{
		Comment: "open is the fields of an open record (package history); all but words in hex",
		Words:   keyring.OwnerOf(holdfast.Key{1}).Words(), Vault: m.Vault.String(), Group: m.Group.String(),
		Signer: signer.String(), Open: hex.EncodeToString(o.Encode()), S: hex.EncodeToString(s.secret[:]),
	}
	plainTree, links := tree(2, []byte("items"))
	for i, b := range []struct {
		kind   holdfast.Kind
		plain  []byte
		links  []holdfast.Name
		frames []int
	}{
		{holdfast.KindChunk, nil, nil, nil},
		{holdfast.KindChunk, []byte("a"), nil, nil},
		{holdfast.KindChunk, text(300), nil, nil},
		{holdfast.KindPack, append(text(100), text(90)...), nil, []int{100, 90}},
		{holdfast.KindTree, plainTree, links, nil},
		{holdfast.KindArchive, append(plainTree, text(200)...), links, nil},
	} {
		random := random(uint64(i+50), 32)
		s.rand = bytes.NewReader(random)
		name, sealed := seal(t, s, b.kind, b.plain, b.links, b.frames)
		v.Blocks = append(v.Blocks, vector{uint8(b.kind), name.String(), hex.EncodeToString(b.plain), hex.EncodeToString(random), hex.EncodeToString(sealed)})
	}
	out, _ := json.MarshalIndent(v, "", "\t")
	if err := os.WriteFile(file, append(out, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// FuzzOpen lets a writer who has the keys put anything into a block.
func FuzzOpen(f *testing.F) {
	m := machine(1, holdfast.RightsAll)
	s, o, err := NewSession(stream(1), m)
	if err != nil {
		f.Fatal(err)
	}
	r, err := NewReader(m)
	if err != nil {
		f.Fatal(err)
	}
	if err := r.AddOpen(o, m.Signer()); err != nil {
		f.Fatal(err)
	}
	plain, links := tree(2, text(50))
	var scratch []byte
	f.Add(uint8(1), innerOf(5, codecRaw, []byte("hello")), []byte{}, []byte("hello"))
	f.Add(uint8(2), innerOf(500, codecZstd, compress(&scratch, text(500), []int{100, 400})), []byte{}, text(500))
	f.Add(uint8(3), innerOf(uint32(len(plain)), codecRaw, plain), append(links[0][:], links[1][:]...), plain)
	f.Fuzz(func(t *testing.T, kind uint8, inner, links, plain []byte) {
		h := wire.BlockHeader{Kind: holdfast.Kind(kind), Session: s.ID}
		if !h.Kind.Valid() || len(inner) > holdfast.MaxPlain {
			return
		}
		for ; len(links) >= 32 && len(h.Links) < 100; links = links[32:] {
			h.Links = append(h.Links, holdfast.Name(links[:32]))
		}
		name := s.keys.NameOf(h.Kind, plain)
		got, back, err := r.Open(m.Group, name, forge(s, name, h.Kind, h.Links, inner))
		if err != nil {
			if !errors.Is(err, ErrDamaged) || back != nil {
				t.Fatal(err)
			}
			return
		}
		if got != h.Kind || !bytes.Equal(back, plain) {
			t.Fatal("other content under that name")
		}
		if _, err := s.Seal(name, got, back, h.Links, nil); err != nil {
			t.Fatalf("what opens cannot be sealed: %v", err)
		}
	})
}

// FuzzSealed lets the service put anything in a block's place.
func FuzzSealed(f *testing.F) {
	m, s, r := pair(f)
	plain, links := tree(2, text(50))
	name, sealed := seal(f, s, holdfast.KindTree, plain, links, nil)
	f.Add(sealed)
	_, chunk := seal(f, s, holdfast.KindChunk, plain, nil, nil)
	f.Add(chunk)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := r.Open(m.Group, name, b); !errors.Is(err, ErrDamaged) && !bytes.Equal(b, sealed) {
			t.Fatal(err)
		}
	})
}

func benchmarkSeal(b *testing.B, kind holdfast.Kind, plain []byte, frames []int) {
	m, s, r := pair(b)
	name := s.keys.NameOf(kind, plain)
	var sealed []byte
	b.Run("seal", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		b.ReportAllocs()
		for b.Loop() {
			var err error
			if sealed, err = s.Seal(name, kind, plain, nil, frames); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		b.SetBytes(int64(len(plain)))
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := r.Open(m.Group, name, sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRandom(b *testing.B) { benchmarkSeal(b, holdfast.KindChunk, random(1, 256<<10), nil) }

// source returns n bytes of Go source, which is what small files often are.
func source(b *testing.B, n int) []byte {
	var out []byte
	for _, f := range []string{"seal.go", "seal_test.go", "open.go", "compress.go"} {
		c, err := os.ReadFile(f)
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, c...)
	}
	for i := 0; len(out) < n; i++ {
		out = append(out, bytes.ReplaceAll(out, []byte("e"), []byte{byte('a' + i)})...)
	}
	return out[:n]
}

func BenchmarkSource(b *testing.B) { benchmarkSeal(b, holdfast.KindChunk, source(b, 256<<10), nil) }

func BenchmarkPack(b *testing.B) {
	benchmarkSeal(b, holdfast.KindPack, source(b, 512<<10), slices.Repeat([]int{4 << 10}, 128))
}

func BenchmarkName(b *testing.B) {
	data := random(1, 256<<10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		blake3.Keyed(holdfast.Key{1}, data)
	}
}
