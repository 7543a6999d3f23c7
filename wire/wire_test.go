package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast"
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

// seq returns n bytes from, from+1, ...
func seq(from byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = from + byte(i)
	}
	return b
}

func name(b byte) holdfast.Name { return holdfast.Name(seq(b, 32)) }

func frames() []byte {
	b := AppendFrame(nil, Frame{Name: name(1), Sealed: seq(9, 40)})
	b = AppendFrame(b, Frame{Name: name(2), Status: FrameAbsent})
	return AppendFrame(b, Frame{Name: name(3), Status: FrameDamaged})
}

func header() BlockHeader {
	return BlockHeader{
		Kind:    holdfast.KindTree,
		Session: holdfast.SessionID(seq(0x10, 16)),
		Nonce:   [12]byte(seq(0x30, 12)),
		Links:   []holdfast.Name{name(0x40), name(0x80)},
	}
}

func token() Token {
	return Token{
		ServiceKey: [32]byte(seq(0, 32)),
		LogKey:     [32]byte(seq(0x20, 32)),
		Secret:     [32]byte(seq(0x40, 32)),
		Address:    "backup.example.org:7440",
	}
}

func TestVectors(t *testing.T) {
	vector(t, "frames.hex", frames())
	vector(t, "block-header.hex", AppendBlockHeader(nil, header()))
	vector(t, "names.hex", AppendNames(nil, []holdfast.Name{name(1), name(2)}))
	vector(t, "token.hex", []byte(token().String()))
	hash := HashSecret(token().Secret)
	vector(t, "token-hash.hex", hash[:])
	vector(t, "certificate.hex", certificate(testKey(1)).Certificate[0])
}

// readFrames reads all frames of b and returns their encoding.
func readFrames(b []byte) ([]byte, error) {
	var out []byte
	r := bytes.NewReader(b)
	for {
		f, err := ReadFrame(r)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = AppendFrame(out, f)
	}
}

// nextFrames is readFrames by NextFrame.
func nextFrames(b []byte) ([]byte, error) {
	var out []byte
	for len(b) > 0 {
		f, rest, err := NextFrame(b)
		if err != nil {
			return nil, err
		}
		out, b = AppendFrame(out, f), rest
	}
	return out, nil
}

func checkFrames(t *testing.T, b []byte) {
	got, err := readFrames(b)
	if err != nil && !errors.Is(err, ErrFrame) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("unexpected kind of error: %v", err)
	}
	if err == nil && !bytes.Equal(got, b) {
		t.Fatalf("%x decodes to what encodes as %x", b, got)
	}
	next, nerr := nextFrames(b)
	if (err == nil) != (nerr == nil) || !bytes.Equal(got, next) {
		t.Fatalf("ReadFrame: %v, NextFrame: %v", err, nerr)
	}
}

func TestFramesDamage(t *testing.T) {
	good := frames()
	if got, err := readFrames(good); err != nil || !bytes.Equal(got, good) {
		t.Fatal(err)
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			checkFrames(t, bad)
		}
		checkFrames(t, good[:i])
	}
}

func TestFrameLimits(t *testing.T) {
	most := AppendFrame(nil, Frame{Sealed: make([]byte, holdfast.MaxBlock)})
	checkFrames(t, most)
	if _, err := readFrames(most); err != nil {
		t.Errorf("largest frame: %v", err)
	}
	more := AppendFrame(nil, Frame{Sealed: make([]byte, holdfast.MaxBlock+1)})
	if _, err := readFrames(more); !errors.Is(err, ErrFrame) {
		t.Errorf("frame beyond the limit: %v", err)
	}
	// The limit holds before memory is allocated: the bytes themselves are not there.
	if n := testing.AllocsPerRun(10, func() { ReadFrame(bytes.NewReader(more[:FrameOverhead])) }); n > 8 {
		t.Errorf("%v allocations for a refused length", n)
	}
	for _, f := range []Frame{{Status: 3}, {Status: FrameAbsent, Sealed: []byte{1}}, {Status: FrameBlock}} {
		if _, err := readFrames(AppendFrame(nil, f)); !errors.Is(err, ErrFrame) {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(frames())
	f.Fuzz(checkFrames)
}

func checkHeader(t *testing.T, b []byte) {
	h, rest, err := ParseBlockHeader(b)
	if err != nil {
		if !errors.Is(err, ErrBlock) {
			t.Fatalf("unexpected kind of error: %v", err)
		}
		return
	}
	if again := append(AppendBlockHeader(nil, h), rest...); !bytes.Equal(again, b) {
		t.Fatalf("%x decodes to what encodes as %x", b, again)
	}
}

func TestBlockHeaderDamage(t *testing.T) {
	good := append(AppendBlockHeader(nil, header()), seq(0, 20)...)
	h, rest, err := ParseBlockHeader(good)
	if err != nil || len(rest) != 20 || len(h.Links) != 2 {
		t.Fatalf("%+v, %d bytes, %v", h, len(rest), err)
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			checkHeader(t, bad)
		}
		if _, _, err := ParseBlockHeader(good[:i]); err == nil && i < BlockHeaderSize(2)+16 {
			t.Errorf("cut at byte %d goes unnoticed", i)
		}
	}
}

func TestBlockHeaderRefusals(t *testing.T) {
	for what, spoil := range map[string]func(*BlockHeader){
		"unsorted links":       func(h *BlockHeader) { h.Links[0], h.Links[1] = h.Links[1], h.Links[0] },
		"a link twice":         func(h *BlockHeader) { h.Links[1] = h.Links[0] },
		"a chunk with links":   func(h *BlockHeader) { h.Kind = holdfast.KindChunk },
		"a pack with links":    func(h *BlockHeader) { h.Kind = holdfast.KindPack },
		"kind 0":               func(h *BlockHeader) { h.Kind = 0 },
		"kind 5":               func(h *BlockHeader) { h.Kind = 5 },
		"more links than fit":  func(h *BlockHeader) { h.Links = nil; h.Kind = 1; h.Nonce = [12]byte{} },
		"links over the limit": func(h *BlockHeader) { h.Links = make([]holdfast.Name, holdfast.MaxLinks+1) },
	} {
		h := header()
		spoil(&h)
		b := append(AppendBlockHeader(nil, h), make([]byte, 16)...)
		if what == "more links than fit" {
			b[2], b[34] = byte(holdfast.KindTree), 1
		}
		if _, _, err := ParseBlockHeader(b); !errors.Is(err, ErrBlock) {
			t.Errorf("%s: %v", what, err)
		}
	}
	h := BlockHeader{Kind: holdfast.KindTree}
	for i := range holdfast.MaxLinks {
		h.Links = append(h.Links, holdfast.Name{byte(i >> 16), byte(i >> 8), byte(i)})
	}
	if _, _, err := ParseBlockHeader(append(AppendBlockHeader(nil, h), make([]byte, 16)...)); err != nil {
		t.Errorf("as many links as allowed: %v", err)
	}
	if _, _, err := ParseBlockHeader(make([]byte, holdfast.MaxBlock+1)); !errors.Is(err, ErrBlock) {
		t.Errorf("a block beyond the limit: %v", err)
	}
}

func FuzzBlockHeader(f *testing.F) {
	f.Add(append(AppendBlockHeader(nil, header()), seq(0, 20)...))
	f.Fuzz(checkHeader)
}

func TestNames(t *testing.T) {
	for _, n := range []int{0, 1, 31, 33, 32*holdfast.MaxHave + 32} {
		if _, err := ParseNames(make([]byte, n)); !errors.Is(err, ErrFrame) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	b := make([]byte, 32*holdfast.MaxHave)
	if names, err := ParseNames(b); err != nil || !bytes.Equal(AppendNames(nil, names), b) {
		t.Errorf("as many names as allowed: %v", err)
	}
}

func checkToken(t *testing.T, s string) {
	tok, err := ParseToken(s)
	if err != nil {
		if !errors.Is(err, ErrToken) {
			t.Fatalf("unexpected kind of error: %v", err)
		}
		return
	}
	if tok.String() != strings.Join(strings.Fields(s), "") {
		t.Fatalf("%q decodes to %q", s, tok)
	}
}

// TestTokenDamage changes every character and cuts at every place: a token is copied by hand.
func TestTokenDamage(t *testing.T) {
	good := token().String()
	if got, err := ParseToken(" " + good[:40] + "\r\n" + good[40:] + "\n"); err != nil || got != token() {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range good {
		for bit := range 8 {
			bad := []byte(good)
			bad[i] ^= 1 << bit
			if _, err := ParseToken(string(bad)); !errors.Is(err, ErrToken) {
				t.Errorf("flipped bit in byte %d: %v", i, err)
			}
		}
		if _, err := ParseToken(good[:i]); !errors.Is(err, ErrToken) {
			t.Errorf("cut at byte %d: %v", i, err)
		}
	}
	for _, address := range []string{"", "host", ":1", "host:", strings.Repeat("h", maxAddress) + ":1"} {
		tok := token()
		tok.Address = address
		if _, err := ParseToken(tok.String()); !errors.Is(err, ErrToken) {
			t.Errorf("address %q: %v", address, err)
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add(token().String())
	f.Fuzz(checkToken)
}

func TestEveryCodeHasItsStatus(t *testing.T) {
	for _, c := range []Code{CodeReadOnly, CodeBusy, CodeBackendDown, CodeOutOfCredit, CodeMaintenance, CodeStopped, CodeUnknownKey,
		CodeForbidden, CodeTokenUnknown, CodeTokenUsed, CodeTokenExpired, CodeBadRequest, CodeTooLarge, CodeNotFound, CodeMissing,
		CodeRevoked, CodeNeedsOwner, CodeFrozen, CodeTooEarly, CodeCapExceeded,
		CodeSessionGone, CodeStaleChain, CodeOutOfOrder, CodeDamaged} {
		if c.Status() == 500 && c != CodeDamaged {
			t.Errorf("%s has no status of its own", c)
		}
	}
	if CodeOf(&Error{Code: CodeBusy}) != CodeBusy || CodeOf(io.EOF) != "" {
		t.Error("CodeOf is wrong")
	}
	e := &Error{Code: CodeMaintenance, Message: "Down.", Notice: "back at noon"}
	if e.Error() != "Down. (notice from the operator: back at noon)" {
		t.Errorf("got %q", e.Error())
	}
}

func damaged() []Damaged {
	return []Damaged{{name(1), holdfast.KindChunk, true}, {name(2), holdfast.KindTree, false}}
}

func TestDamaged(t *testing.T) {
	good := AppendDamaged(nil, damaged())
	vector(t, "damaged.hex", good)
	got, err := ParseDamaged(good)
	if err != nil || !slices.Equal(got, damaged()) {
		t.Fatalf("%v, %v", got, err)
	}
	for what, bad := range map[string][]byte{
		"cut":          good[:len(good)-1],
		"twice":        append(bytes.Clone(good[:34]), good[:34]...),
		"out of order": append(bytes.Clone(good[34:]), good[:34]...),
		"mine 2":       append(bytes.Clone(good[:33]), 2),
		"kind 0":       append(bytes.Clone(good[:32]), 0, 0),
		"too long":     make([]byte, MaxDamagedBody+34),
	} {
		if got, err := ParseDamaged(bad); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
}

func FuzzDamaged(f *testing.F) {
	f.Add(AppendDamaged(nil, damaged()))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := ParseDamaged(b)
		if err == nil && !bytes.Equal(AppendDamaged(nil, all), b) {
			t.Fatalf("%x decodes to what encodes otherwise", b)
		}
	})
}
