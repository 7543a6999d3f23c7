package keyring

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"holdfast"
	"holdfast/history"
	"holdfast/wire"
)

func testPending(rights holdfast.Rights) *Pending {
	return &Pending{Rights: rights, seed: holdfast.Key{0x66, 2}, grant: holdfast.Key{0x77, 3}}
}

// answer is the owner's enrolment of a request, and the vault with it.
func answer(r Request, rights holdfast.Rights) (history.Enrol, *history.Vault) {
	e := history.Enrol{SignKey: r.SignKey, TLSKey: r.TLSKey, Rights: rights, Group: testGroup(), Chunk: 64 << 10, DayBytes: 5, DayBlocks: 6, Series: []holdfast.SeriesID{{1}, {2}}}
	return e, &history.Vault{N: 17, Head: holdfast.Head{8}}
}

func testGrant(t testing.TB, p *Pending, rights holdfast.Rights) Grant {
	t.Helper()
	e, h := answer(p.Request(), rights)
	g, err := OwnerOf(testSeed()).Grant(testMachine(holdfast.RightsAll), p.Request(), e, 1, h)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// granted is the machine that p becomes by testGrant.
func granted(p *Pending, rights holdfast.Rights) *Machine {
	o := OwnerOf(testSeed())
	m := o.NewMachine(holdfast.VaultID{9, 8, 7}, testGroup(), rights, 64<<10)
	o.GiveRead(m, 1)
	where := testMachine(holdfast.RightsAll)
	m.Seed, m.Address, m.ServiceKey, m.LogKey = p.seed, where.Address, where.ServiceKey, where.LogKey
	return m
}

// TestEnrolmentVectors fixes the pending file, the request, both codes, and that a grant once made opens.
func TestEnrolmentVectors(t *testing.T) {
	p := testPending(holdfast.RightWrite | holdfast.RightRead)
	golden(t, "testdata/pending.key", p.Encode())
	golden(t, "testdata/request.txt", []byte(p.Request().String()+"\n"+p.Request().Code()+"\n"))
	for _, rights := range []holdfast.Rights{holdfast.RightWrite | holdfast.RightRead, holdfast.RightWrite | holdfast.RightDelete} {
		file := "testdata/grant-" + strings.ReplaceAll(rights.String(), ",", "-") + ".txt"
		if *update { // each is another, because it is sealed with fresh randomness
			g := testGrant(t, p, rights)
			if err := os.WriteFile(file, []byte(g.String()+"\n"+g.Code()+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(b), "\n")
		g, err := ParseGrant(lines[0])
		if err != nil {
			t.Fatal(err)
		}
		if g.String() != lines[0] || g.Code() != lines[1] {
			t.Errorf("%s: the format has changed:\n%s\n%s", file, g, g.Code())
		}
		m, err := p.Open(g)
		if err != nil || !reflect.DeepEqual(m, granted(p, rights)) {
			t.Errorf("%s: %v, or another machine", file, err)
		}
	}
}

// TestEnrolmentComesBack goes the whole way for every sum of rights, through texts that were broken into lines.
func TestEnrolmentComesBack(t *testing.T) {
	for rights := holdfast.Rights(1); rights <= holdfast.RightsAll; rights++ {
		p := NewPending(rights)
		path := filepath.Join(t.TempDir(), "pending")
		if err := p.Save(path); err != nil {
			t.Fatal(err)
		}
		back, err := LoadPending(path)
		if err != nil || *back != *p {
			t.Fatalf("%s: %v", rights, err)
		}
		r, err := ParseRequest(folded(p.Request().String()))
		if err != nil || r != p.Request() {
			t.Fatalf("%s: %v", rights, err)
		}
		g, err := ParseGrant(folded(testGrant(t, p, rights).String()))
		if err != nil {
			t.Fatal(err)
		}
		if again := testGrant(t, p, rights); again.String() == g.String() || again.Code() != g.Code() {
			t.Error("the same request was answered with the same seal, or another code")
		}
		m, err := back.Open(g)
		if err != nil || !reflect.DeepEqual(m, granted(p, rights)) {
			t.Fatalf("%s: %v, or another machine", rights, err)
		}
		if !p.Made(m) || NewPending(rights).Made(m) {
			t.Error("a machine does not know where it comes from")
		}
		for _, secret := range [][]byte{m.Seed[:], m.Hist[:], m.G[:], p.grant[:]} {
			if s := g.String(); bytes.Contains(append(g.body(), s...), secret) {
				t.Errorf("%s: a secret is in the grant's clear part", rights)
			}
		}
	}
}

// folded breaks a text into lines as mail does.
func folded(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i += 70 {
		out.WriteString("  " + s[i:min(i+70, len(s))] + "\r\n")
	}
	return out.String()
}

// TestGrantRefused alters, replays and forges grants.
func TestGrantRefused(t *testing.T) {
	p := testPending(holdfast.RightsAll)
	r := p.Request()
	good := testGrant(t, p, holdfast.RightsAll)
	if _, err := p.Open(good); err != nil {
		t.Fatal(err)
	}
	resign := func(g Grant, o Owner) Grant {
		copy(g.sig[:], ed25519.Sign(o.SignKey(), append([]byte("holdfast/1/grant\x00"), g.body()...)))
		return g
	}
	owner := OwnerOf(testSeed())
	for name, alter := range map[string]func(*Grant){
		"another request":  func(g *Grant) { *g = testGrant(t, NewPending(holdfast.RightsAll), holdfast.RightsAll) },
		"another vault":    func(g *Grant) { g.Vault[0]++ },
		"another service":  func(g *Grant) { g.ServiceKey[0]++ },
		"another log":      func(g *Grant) { g.LogKey[0]++ },
		"another address":  func(g *Grant) { g.Address = "evil.example.org:7420" },
		"more rights":      func(g *Grant) { g.Enrol.Rights = holdfast.RightWrite },
		"no caps":          func(g *Grant) { g.Enrol.DayBytes = 0 },
		"an older head":    func(g *Grant) { g.N-- },
		"another head":     func(g *Grant) { g.Head[0]++ },
		"another seal":     func(g *Grant) { g.sealed = testGrant(t, p, holdfast.RightsAll).sealed },
		"another owner":    func(g *Grant) { *g = resign(*g, OwnerOf(holdfast.Key{1})) },
		"resigned terms":   func(g *Grant) { g.Vault[0]++; *g = resign(*g, owner) },
		"resigned head":    func(g *Grant) { g.N--; *g = resign(*g, owner) },
		"resigned secrets": func(g *Grant) { g.sealed[0]++; *g = resign(*g, owner) },
		"another's keys":   func(g *Grant) { g.Enrol.TLSKey[0]++; *g = resign(*g, owner) },
	} {
		g := good
		g.sealed = bytes.Clone(good.sealed)
		alter(&g)
		if m, err := p.Open(g); m != nil || !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A grant of another owner, whole and for this request, opens: the code tells it from the right one.
	thief := OwnerOf(holdfast.Key{1})
	e, h := answer(r, holdfast.RightsAll)
	g, err := thief.Grant(testMachine(holdfast.RightsAll), r, e, 0, h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(g); err != nil {
		t.Error(err)
	}
	if SameCode(good.Code(), g.Code()) {
		t.Error("the grants of two owners have one code")
	}
}

// TestRequestRefused: what is not a request or grant, whole and of this version, is neither.
func TestRequestRefused(t *testing.T) {
	p := testPending(holdfast.RightsAll)
	r, g := p.Request().String(), testGrant(t, p, holdfast.RightWrite).String()
	raw := p.Request().encode()
	with := func(i int, v byte) string {
		b := bytes.Clone(raw)
		b[i] = v
		return wire.Line(requestPrefix, b)
	}
	for name, s := range map[string]string{
		"empty": "", "a grant": g, "cut": r[:len(r)-1], "longer": r + "A", "altered": r[:40] + "A" + r[41:],
		"no base64": r[:40] + "*" + r[41:], "version": with(0, 2), "no rights": with(65, 0), "more rights": with(65, 8),
		"short": wire.Line(requestPrefix, raw[:len(raw)-1]), "long": wire.Line(requestPrefix, append(bytes.Clone(raw), 0)), "nothing": requestPrefix,
		"huge": requestPrefix + strings.Repeat("A", maxText),
	} {
		if _, err := ParseRequest(s); !errors.Is(err, ErrRequest) {
			t.Errorf("request, %s: %v", name, err)
		}
		if _, err := ParseGrant(strings.Replace(s, requestPrefix, grantPrefix, 1)); s != g && !errors.Is(err, ErrGrant) {
			t.Errorf("grant, %s: %v", name, err)
		}
	}
	bad := testGrant(t, p, holdfast.RightWrite)
	bad.Address = "nowhere"
	if _, err := ParseGrant(bad.String()); !errors.Is(err, ErrGrant) {
		t.Error(err)
	}
	if _, err := ParsePending([]byte(strings.Replace(string(p.Encode()), "delete", "delet", 1))); !errors.Is(err, ErrFile) {
		t.Error(err)
	}
}

func TestCodes(t *testing.T) {
	c := testPending(holdfast.RightsAll).Request().Code()
	if len(strings.ReplaceAll(c, "-", "")) != codeDigits || len(strings.Split(c, "-")) != codeDigits/4 {
		t.Fatal(c)
	}
	const sample = "0a1b-c2d3-e0f1-0000-1111"
	for _, typed := range []string{sample, " 0A1B C2D3 E0F1 0000 1111\r", "oalbc2d3eoflooooIIll"} {
		if !SameCode(typed, sample) {
			t.Errorf("%q is not %s", typed, sample)
		}
	}
	for _, typed := range []string{"", "-", "0a1b", sample + "1", sample[1:], strings.Replace(sample, "c", "b", 1)} {
		if SameCode(typed, sample) {
			t.Errorf("%q is %s", typed, sample)
		}
	}
	// Every bit of what is compared counts.
	var h [32]byte
	seen := map[string]bool{code(h): true}
	for i := range 5 * codeDigits {
		x := h
		x[i/8] ^= 0x80 >> (i % 8)
		if seen[code(x)] {
			t.Fatalf("bit %d is not in the code", i)
		}
		seen[code(x)] = true
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(testPending(holdfast.RightsAll).Request().encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		text := wire.Line(requestPrefix, bytes.Clone(raw)) // the check sum would keep the fuzzer out
		if r, err := ParseRequest(text); err == nil && r.String() != text {
			t.Fatalf("re-encodes to %s", r)
		}
		ParseRequest(string(raw))
	})
}

func FuzzGrant(f *testing.F) {
	p := testPending(holdfast.RightsAll)
	for _, rights := range []holdfast.Rights{holdfast.RightsAll, holdfast.RightWrite} {
		g := testGrant(f, p, rights)
		f.Add(append(g.body(), g.sig[:]...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		text := wire.Line(grantPrefix, bytes.Clone(raw))
		g, err := ParseGrant(text)
		if err == nil && g.String() != text {
			t.Fatalf("re-encodes to %s", g)
		}
		if err == nil {
			p.Open(g)
		}
		ParseGrant(string(raw))
	})
}

func FuzzPending(f *testing.F) {
	f.Add(testPending(holdfast.RightsAll).Encode())
	f.Fuzz(func(t *testing.T, text []byte) {
		var w writer
		for l := range bytes.Lines(text) {
			if len(l) > 1 && l[0] != '#' && !bytes.HasPrefix(l, []byte("check ")) {
				w.b = append(append(w.b, bytes.TrimSuffix(l, []byte("\n"))...), '\n')
			}
		}
		text = w.sum()
		if p, err := ParsePending(text); err == nil {
			if got := p.Encode()[len(pendingComment):]; !bytes.Equal(got, text) {
				t.Fatalf("re-encodes to\n%s", got)
			}
		}
	})
}
