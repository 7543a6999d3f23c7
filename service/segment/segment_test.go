package segment

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"holdfast"
	"holdfast/history"
	"holdfast/service/ledger"
)

func fill(dst []byte, b byte) {
	for i := range dst {
		dst[i] = b + byte(i)
	}
}

func name(b byte) (n holdfast.Name)         { fill(n[:], b); return n }
func session(b byte) (s holdfast.SessionID) { fill(s[:], b); return s }
func hash(b byte) (h [32]byte)              { fill(h[:], b); return h }
func half(b byte) (h [16]byte)              { fill(h[:], b); return h }

var cell = holdfast.CellID{0xce, 1, 2, 3, 4, 5, 6, 7}

// sample returns a Builder with every type of record; takeover makes it a sequence 0.
func sample(t testing.TB, takeover bool) *Builder {
	b := NewBuilder(cell)
	add := func(ms int64, r Record) {
		t.Helper()
		if err := b.AddRecord(ms, r); err != nil {
			t.Fatal(err)
		}
	}
	if takeover {
		add(1_800_000_000_000, Takeover{Epoch: 7, Claim: half(1), Host: half(2), Table: []Accepted{{1, 0, hash(3)}, {6, 1 << 40, hash(4)}}})
	}
	add(1_800_000_000_000, Account{ID: half(5), Name: "Zoë"})
	add(1_800_000_000_001, Token{Hash: hash(6), Account: half(5), Expires: 1_800_086_400_000_000_000})
	add(1_800_000_000_301, Redeemed{Hash: hash(6), TLSKey: hash(7)})
	h := History{Vault: hash(8), Entry: history.Entry{N: 3, Time: 1_800_000_000_301_000_000, Head: hash(9), Record: history.Record{Body: []byte("a signed body")}}}
	fill(h.Entry.LogSig[:], 10)
	fill(h.Entry.Record.Sig[:], 11)
	fill(h.Entry.Record.Tag[:], 12)
	add(1_800_000_000_301, h)
	add(1_800_000_000_302, Metered{Account: half(5), Names: 300, Sent: 1 << 40})
	for i, s := range []Stored{
		{Session: session(20), Name: name(40), Kind: holdfast.KindChunk},
		{Session: session(21), Name: name(41), Kind: holdfast.KindPack},
		{Session: session(20), Name: name(42), Kind: holdfast.KindTree, Links: []holdfast.Name{name(39), name(40)}},
		{Session: session(22), Name: name(43), Kind: holdfast.KindArchive},
		{Session: session(20), Name: name(49), Kind: holdfast.KindTree, Base: Base{name(42), []uint32{1, 300, 301}}, Links: []holdfast.Name{name(41)}},
	} {
		block := bytes.Repeat([]byte{byte(i)}, 100+100*i)
		s.Off, s.Len, s.Sum = b.AddBlock(block), uint32(len(block)), SumOf(block)
		add(1_800_000_000_400+int64(i), s)
	}
	add(1_800_000_000_500, Frozen{Reason: ReasonClocks, Clock: 1_800_000_000_500, Store: 1_700_000_000_500, Text: "a year apart, ungefähr"})
	add(1_800_000_000_600, Thawed{ReasonClocks, 1_800_000_000_500, 1_800_000_000_600, 1_800_000_000_601, "", "they agree"})
	add(1_800_000_000_700, Thawed{Reason: ReasonContradiction, Since: 1_800_000_000_600, By: "Zoë", Text: "found it"})
	add(1_800_000_000_800, Condemned{session(23), name(44), Position{6, 1 << 40}, 1 << 20, 1_799_000_000_000})
	add(1_800_000_000_800, Condemned{session(20), name(45), Position{7, 1}, 0, 1_799_000_000_000})
	add(1_800_000_000_900, Moved{session(24), name(46), Position{6, 1 << 40}, 1 << 20, b.AddBlock(bytes.Repeat([]byte{9}, 300)), 300, half(13)})
	add(1_800_000_000_901, Retired{Position{6, 1 << 40}})
	add(1_800_000_000_902, Removed{Position{5, 0}})
	add(1_800_000_000_903, Damaged{session(25), name(47), Position{6, 9}, 77, false})
	add(1_800_000_000_904, Damaged{session(20), name(48), Position{6, 9}, 0, true})
	add(1_800_000_000_905, Transfer{"payment: Überweisung 17", ledger.Book{Kind: ledger.Payments}, ledger.Of(half(5)), 25 * ledger.Unit, "für ein Jahr"})
	add(1_800_000_000_906, Charge{half(5), ledger.Prices{Stored: 2e11, In: 1, Out: ledger.Max}})
	add(1_800_000_000_907, Step{half(5), ledger.Stopped, 1_810_000_000_000})
	add(1_800_000_000_908, Step{Account: half(5), Step: ledger.Warn7})
	add(1_800_000_000_909, Told{half(5), ledger.Lapsed})
	return b
}

var (
	posTakeover = Position{7, 0}
	posOther    = Position{7, 12}
)

type vector struct {
	Key     string `json:"key"`
	Object  string `json:"object"`
	Records string `json:"records"`
}

func vectors(t testing.TB) map[string]vector {
	out := map[string]vector{}
	for _, c := range []struct {
		name     string
		takeover bool
		pos      Position
		prev     [32]byte
	}{{"takeover", true, posTakeover, hash(4)}, {"other", false, posOther, hash(30)}} {
		s := sample(t, c.takeover).Seal(c.pos, c.prev)
		k := s.Key(cell, c.pos, [8]byte{0xf0, 1, 2, 3, 4, 5, 6, 7})
		tr, err := k.Parse(s.Body[len(s.Body)-int(s.TrailerLen):], int64(len(s.Body)))
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, r := range tr.Records {
			fmt.Fprintf(&text, "%d %s %x\n", r.Time, r.Record.Type(), r.Record)
		}
		out[c.name] = vector{k.String(), hex.EncodeToString(s.Body), text.String()}
	}
	return out
}

// The bytes of testdata/vectors.json are the format: they never change. To add a vector, delete the file
// and run the test once.
func TestVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	got, err := json.MarshalIndent(vectors(t), "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	want, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Fatalf("%s was missing; it has been made: look at it and commit it", file)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the format changed: got\n%s", got)
	}
}

// reencode builds the trailer of t anew.
func reencode(t testing.TB, tr *Trailer) []byte {
	t.Helper()
	b := NewBuilder(tr.Cell)
	b.buf = make([]byte, tr.BodySize)
	for _, r := range tr.Records {
		if err := b.AddRecord(r.Time, r.Record); err != nil {
			t.Fatalf("a decoded record is refused: %v", err)
		}
	}
	s := b.Seal(tr.Position, tr.Prev)
	return s.Body[tr.BodySize:]
}

func TestRoundTrip(t *testing.T) {
	b := sample(t, true)
	size := b.Size()
	s := b.Seal(posTakeover, hash(4))
	if d := len(s.Body) - size; d < 0 || d > 32 {
		t.Errorf("Size said %d, it is %d", size, len(s.Body))
	}
	trailer := s.Body[len(s.Body)-int(s.TrailerLen):]
	if n, err := FindTrailer(s.Body[len(s.Body)-FooterSize:]); err != nil || n != len(trailer) {
		t.Fatal(n, err)
	}
	tr, err := ParseTrailer(trailer)
	if err != nil {
		t.Fatal(err)
	}
	if tr.Cell != cell || tr.Position != posTakeover || tr.Prev != hash(4) || tr.BodySize != 1800 || len(tr.Records) != 26 {
		t.Fatalf("%+v", tr)
	}
	for _, r := range tr.Records {
		if st, ok := r.Record.(Stored); ok && SumOf(s.Body[st.Off:st.Off+st.Len]) != st.Sum {
			t.Errorf("block %s is not where its record says", st.Name)
		}
	}
	want := sample(t, true)
	if got := want.Seal(posTakeover, hash(4)); !bytes.Equal(got.Body, s.Body) || got.Hash != s.Hash {
		t.Error("equal content gave other bytes")
	}
	if !bytes.Equal(reencode(t, tr), trailer) {
		t.Error("it encodes to other bytes")
	}
	// The decoded trailer shares no memory with the input.
	again, _ := ParseTrailer(trailer)
	clear(trailer)
	if !reflect.DeepEqual(tr, again) {
		t.Error("the trailer changed with its input")
	}
}

// Any flipped bit, missing byte or added byte of a trailer is noticed through the key; without the key,
// what is still accepted is canonical.
func TestDamage(t *testing.T) {
	for _, takeover := range []bool{false, true} {
		pos, prev := posOther, hash(30)
		if takeover {
			pos, prev = posTakeover, hash(4)
		}
		s := sample(t, takeover).Seal(pos, prev)
		size := int64(len(s.Body))
		k := s.Key(cell, pos, [8]byte{})
		trailer := s.Body[len(s.Body)-int(s.TrailerLen):]
		if _, err := k.Parse(trailer, size); err != nil {
			t.Fatal(err)
		}
		for bit := range 8 * len(trailer) {
			trailer[bit/8] ^= 1 << (bit % 8)
			if _, err := k.Parse(trailer, size); !errors.Is(err, ErrFormat) {
				t.Fatalf("bit %d: %v", bit, err)
			}
			if tr, err := ParseTrailer(trailer); err == nil && !bytes.Equal(reencode(t, tr), trailer) {
				t.Fatalf("bit %d: accepted and not canonical", bit)
			}
			trailer[bit/8] ^= 1 << (bit % 8)
		}
		for n := range trailer {
			if _, err := ParseTrailer(trailer[:n]); !errors.Is(err, ErrFormat) {
				t.Fatalf("cut to %d: %v", n, err)
			}
			if _, err := k.Parse(trailer[n:], size); n > 0 && !errors.Is(err, ErrFormat) {
				t.Fatalf("cut by %d: %v", n, err)
			}
		}
		if _, err := ParseTrailer(append(bytes.Clone(trailer), 0)); !errors.Is(err, ErrFormat) {
			t.Fatal("a byte more:", err)
		}
		other := k
		other.Position.Seq++
		if _, err := other.Parse(trailer, size); !errors.Is(err, ErrFormat) {
			t.Fatal("another position:", err)
		}
		other = k
		other.Cell[0]++
		if _, err := other.Parse(trailer, size); !errors.Is(err, ErrFormat) {
			t.Fatal("another cell:", err)
		}
		for _, d := range []int64{-1, 1} {
			if _, err := k.Parse(trailer, size+d); !errors.Is(err, ErrFormat) {
				t.Fatal("an object of another size:", err)
			}
		}
	}
}

func TestAddRecordRefuses(t *testing.T) {
	b := NewBuilder(cell)
	b.AddBlock(make([]byte, 100))
	ok := Stored{Kind: holdfast.KindTree, Len: 100}
	with := func(change func(*Stored)) Stored { s := ok; change(&s); return s }
	transfer := func(change func(*Transfer)) Transfer {
		t := Transfer{"id", ledger.Of(half(5)), ledger.Book{Kind: ledger.Payments}, 1, ""}
		change(&t)
		return t
	}
	links := make([]holdfast.Name, holdfast.MaxLinks+1)
	for i := range links {
		links[i] = holdfast.Name{byte(i >> 16), byte(i >> 8), byte(i)}
	}
	for what, r := range map[string]Record{
		"kind 0":             with(func(s *Stored) { s.Kind = 0 }),
		"kind 5":             with(func(s *Stored) { s.Kind = 5 }),
		"no bytes":           with(func(s *Stored) { s.Len = 0 }),
		"outside":            with(func(s *Stored) { s.Off = 1 }),
		"far outside":        with(func(s *Stored) { s.Off = math.MaxUint32 }),
		"leaf with links":    with(func(s *Stored) { s.Kind, s.Links = holdfast.KindPack, []holdfast.Name{{1}} }),
		"links not sorted":   with(func(s *Stored) { s.Links = []holdfast.Name{{2}, {1}} }),
		"links not unique":   with(func(s *Stored) { s.Links = []holdfast.Name{{1}, {1}} }),
		"too many links":     with(func(s *Stored) { s.Links = links }),
		"leaf with a base":   with(func(s *Stored) { s.Kind, s.Base.Name = holdfast.KindPack, holdfast.Name{1} }),
		"without, no base":   with(func(s *Stored) { s.Base.Without = []uint32{1} }),
		"without, unsorted":  with(func(s *Stored) { s.Base = Base{holdfast.Name{1}, []uint32{2, 1}} }),
		"without, twice":     with(func(s *Stored) { s.Base = Base{holdfast.Name{1}, []uint32{1, 1}} }),
		"without too much":   with(func(s *Stored) { s.Base = Base{holdfast.Name{1}, []uint32{holdfast.MaxLinks}} }),
		"no account name":    Account{},
		"long account name":  Account{Name: strings.Repeat("a", MaxAccountName+1)},
		"wrong account name": Account{Name: "\xff"},
		"long history":       History{Entry: history.Entry{Record: history.Record{Body: make([]byte, holdfast.MaxRecord+1)}}},
		"metered nothing":    Metered{},
		"transfer, no id":    transfer(func(t *Transfer) { t.ID = "" }),
		"transfer, long id":  transfer(func(t *Transfer) { t.ID = strings.Repeat("a", MaxTransferID+1) }),
		"transfer, wrong id": transfer(func(t *Transfer) { t.ID = "\xff" }),
		"transfer of 0":      transfer(func(t *Transfer) { t.Amount = 0 }),
		"transfer of less":   transfer(func(t *Transfer) { t.Amount = -1 }),
		"transfer to itself": transfer(func(t *Transfer) { t.To = t.From }),
		"transfer from none": transfer(func(t *Transfer) { t.From = ledger.Book{} }),
		"transfer, no book":  transfer(func(t *Transfer) { t.To.Kind = ledger.Credits + 1 }),
		"transfer, revenue":  transfer(func(t *Transfer) { t.To = ledger.Book{Kind: ledger.Revenue, Account: half(5)} }),
		"transfer, nobody":   transfer(func(t *Transfer) { t.From.Account = holdfast.AccountID{} }),
		"transfer, text":     transfer(func(t *Transfer) { t.Text = strings.Repeat("a", MaxText+1) }),
		"charge below 0":     Charge{half(5), ledger.Prices{Stored: -1}},
		"charge in below 0":  Charge{half(5), ledger.Prices{In: -1}},
		"charge out below 0": Charge{half(5), ledger.Prices{Out: -1}},
		"step 11":            Step{half(5), ledger.Lapsed + 1, 1},
		"stopped, no end":    Step{half(5), ledger.Stopped, 0},
		"warned, with end":   Step{half(5), ledger.Warn1, 1},
		"told of nothing":    Told{half(5), ledger.Paid},
		"told of step 11":    Told{half(5), ledger.Lapsed + 1},
		"moved nothing":      Moved{},
		"moved outside":      Moved{Off: 1, Len: 100},
		"moved too much":     Moved{Len: holdfast.MaxBlock + 1},
		"no reason":          Frozen{Text: "x"},
		"reason 5":           Thawed{Reason: MaxReason + 1, Text: "x"},
		"frozen, no text":    Frozen{Reason: ReasonJump},
		"frozen, no place":   Frozen{Reason: ReasonContradiction, Text: "x"},
		"frozen, a place":    Frozen{Reason: ReasonJump, Place: Position{1, 1}, Text: "x"},
		"frozen, long text":  Frozen{Reason: ReasonJump, Text: strings.Repeat("a", MaxText+1)},
		"frozen, wrong text": Frozen{Reason: ReasonJump, Text: "\xff"},
		"thawed, no text":    Thawed{Reason: ReasonJump, By: "x"},
		"thawed, long by":    Thawed{Reason: ReasonJump, By: strings.Repeat("a", MaxText+1), Text: "x"},
		"table out of order": Takeover{Epoch: 9, Table: []Accepted{{Epoch: 2}, {Epoch: 2}}},
		"table of itself":    Takeover{Epoch: 9, Table: []Accepted{{Epoch: 9}}},
		"table too long":     Takeover{Epoch: math.MaxUint64, Table: make([]Accepted, MaxTable+1)},
	} {
		if err := b.AddRecord(5, r); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if b.Records() != 0 || len(b.rec) != 0 || len(b.sessions) != 0 || b.takeover != nil {
		t.Fatal("a refused record left something behind")
	}
	if err := b.AddRecord(-1, ok); err == nil {
		t.Error("a negative time was accepted")
	}
	for what, r := range map[string]Record{
		"plain": ok, "most links": with(func(s *Stored) { s.Links = links[:holdfast.MaxLinks] }),
		"most without": with(func(s *Stored) { s.Base = Base{holdfast.Name{1}, []uint32{0, holdfast.MaxLinks - 1}} }), "longest name": Account{Name: strings.Repeat("a", MaxAccountName)},
		"longest transfer": transfer(func(t *Transfer) {
			t.ID, t.Text, t.Amount = strings.Repeat("a", MaxTransferID), strings.Repeat("a", MaxText), ledger.Max
		}),
		"longest history": History{Entry: history.Entry{Record: history.Record{Body: make([]byte, holdfast.MaxRecord)}}},
	} {
		if err := b.AddRecord(5, r); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := b.AddRecord(4, ok); err == nil {
		t.Error("time ran backwards")
	}
	if err := b.AddRecord(5, Takeover{Epoch: 9}); err == nil {
		t.Error("a takeover after the first record was accepted")
	}
	if err := b.AddRecord(math.MaxInt64, ok); err != nil {
		t.Error(err)
	}
	s := b.Seal(posOther, hash(1))
	if _, err := ParseTrailer(s.Body[100:]); err != nil {
		t.Error(err)
	}
}

func TestSealPanics(t *testing.T) {
	takeover := func(epoch uint64, table ...Accepted) *Builder {
		b := NewBuilder(cell)
		if err := b.AddRecord(1, Takeover{Epoch: epoch, Table: table}); err != nil {
			t.Fatal(err)
		}
		return b
	}
	for what, seal := range map[string]func(){
		"empty":                   func() { NewBuilder(cell).Seal(posOther, hash(1)) },
		"takeover at 12":          func() { takeover(7).Seal(posOther, hash(1)) },
		"no takeover at 0":        func() { sample(t, false).Seal(posTakeover, hash(4)) },
		"takeover of another":     func() { takeover(8).Seal(posTakeover, [32]byte{}) },
		"first with a prev":       func() { takeover(7).Seal(posTakeover, hash(4)) },
		"not after the last line": func() { takeover(7, Accepted{1, 1, hash(5)}).Seal(posTakeover, hash(4)) },
		"nothing before":          func() { sample(t, false).Seal(posOther, [32]byte{}) },
		"twice":                   func() { b := sample(t, false); b.Seal(posOther, hash(1)); b.Seal(posOther, hash(1)) },
		"block too large":         func() { NewBuilder(cell).AddBlock(make([]byte, holdfast.MaxBlock+1)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			seal()
		}()
	}
	takeover(7).Seal(posTakeover, [32]byte{})
	takeover(7, Accepted{1, 1, hash(4)}).Seal(posTakeover, hash(4))
}

// Undo restores a Builder so exactly that the segment has the bytes that it would have had.
func TestUndoAndReset(t *testing.T) {
	want := sample(t, true).Seal(posTakeover, hash(4))
	b := sample(t, true)
	m := b.Mark()
	more := func(sid byte) {
		off := b.AddBlock([]byte("more"))
		if err := b.AddRecord(1_900_000_000_000, Stored{Session: session(sid), Kind: holdfast.KindChunk, Off: off, Len: 4}); err != nil {
			t.Fatal(err)
		}
	}
	more(20)
	more(99)
	b.Undo(m)
	if got := b.Seal(posTakeover, hash(4)); !bytes.Equal(got.Body, want.Body) {
		t.Error("after Undo: other bytes")
	}
	b = sample(t, true)
	more(99)
	want = b.Seal(posTakeover, hash(4))
	b = sample(t, true)
	m = b.Mark()
	more(99)
	b.Undo(m)
	more(99)
	if got := b.Seal(posTakeover, hash(4)); !bytes.Equal(got.Body, want.Body) {
		t.Error("undone and done again: other bytes")
	}
	b.Reset()
	m = b.Mark()
	if err := b.AddRecord(1, Takeover{Epoch: 7}); err != nil {
		t.Fatal(err)
	}
	b.Undo(m)
	if b.Records() != 0 || b.Size() != minTrailer {
		t.Fatal("undone to the beginning, and something is left")
	}
	more(21)
	s := b.Seal(posOther, hash(1))
	if tr, err := ParseTrailer(s.Body[4:]); err != nil || len(tr.Records) != 1 {
		t.Fatal("after Reset something is left", err)
	}
}

// What no flipped bit turns into: trailers that are wrong and otherwise well-formed.
func TestParseTrailerRefuses(t *testing.T) {
	for what, change := range map[string]func(b *Builder){
		"nothing":                 func(b *Builder) {},
		"a session twice":         func(b *Builder) { b.sessions[1] = b.sessions[0] },
		"a session never named":   func(b *Builder) { b.sessions = append(b.sessions, session(50)) },
		"bytes after the records": func(b *Builder) { b.rec = append(b.rec, 0) },
		"a record fewer":          func(b *Builder) { b.n-- },
		"a record more":           func(b *Builder) { b.n++ },
		"a block outside":         func(b *Builder) { b.buf = b.buf[:len(b.buf)-1] },
		"a time that overflows":   func(b *Builder) { b.first = math.MaxInt64 },
		"a negative time":         func(b *Builder) { b.first = -1 },
	} {
		b := sample(t, false)
		change(b)
		s := b.Seal(posOther, hash(1))
		if _, err := ParseTrailer(s.Body[len(s.Body)-int(s.TrailerLen):]); (err == nil) != (what == "nothing") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestKeys(t *testing.T) {
	k := Key{Cell: cell, Position: Position{1, 0xabc}, Nonce: [8]byte{9}, Trailer: 1234, Hash: hash(1)}
	s := k.String()
	if got, err := ParseKey(s); err != nil || got != k {
		t.Fatal(got, err)
	}
	if !strings.HasPrefix(s, Prefix(cell, k.Position)) || !strings.HasPrefix(s, EpochPrefix(cell, 1)) || !strings.HasPrefix(s, LogPrefix(cell)) {
		t.Fatal(s)
	}
	for i := range s {
		for _, c := range []string{"", "0", "g", "A", "/", "-", " ", "00", "+"} {
			bad := s[:i] + c + s[i+1:]
			if got, err := ParseKey(bad); err == nil && got.String() != bad {
				t.Fatalf("%q was read as %q", bad, got)
			} else if err != nil && !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
		}
	}
	for _, bad := range []string{"", EpochKey(cell), s + "/", s + "-", "/" + s, s[1:], strings.ToUpper(s), strings.Replace(s, "000004d2", "00000010", 1), strings.Replace(s, "000004d2", "ffffffff", 1)} {
		if _, err := ParseKey(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// The order of keys is the order of positions.
	ps := []Position{{0, 0}, {0, 1}, {0, 16}, {1, 0}, {1, math.MaxUint64}, {2, 5}, {16, 0}, {math.MaxUint64, 1}}
	for i, p := range ps {
		for j, q := range ps {
			a, b := Key{Cell: cell, Position: p, Hash: hash(200)}.String(), Key{Cell: cell, Position: q}.String()
			if i != j && (strings.Compare(a, b) < 0) != (p.Compare(q) < 0) || (p.Compare(q) == 0) != (i == j) {
				t.Errorf("%v and %v", p, q)
			}
		}
	}
	if n := ps[1].Next(); n != (Position{0, 2}) || n.String() != "0/2" {
		t.Error(n)
	}
}

func TestClaim(t *testing.T) {
	c := Claim{Epoch: 3, ID: half(1), Host: half(2)}
	raw := c.Encode()
	if hex.EncodeToString(raw) != "484f4c4445504f31"+"0000000000000003"+"0102030405060708090a0b0c0d0e0f10"+"02030405060708090a0b0c0d0e0f1011" {
		t.Fatalf("the format changed: %x", raw)
	}
	if got, err := ParseClaim(raw); err != nil || got != c {
		t.Fatal(got, err)
	}
	for n := range raw {
		if _, err := ParseClaim(raw[:n]); !errors.Is(err, ErrFormat) {
			t.Fatal(n, err)
		}
	}
	raw[3]++
	if _, err := ParseClaim(raw); !errors.Is(err, ErrFormat) {
		t.Fatal(err)
	}
}

func FuzzParseTrailer(f *testing.F) {
	for _, takeover := range []bool{false, true} {
		pos, prev := posOther, hash(30)
		if takeover {
			pos, prev = posTakeover, hash(4)
		}
		s := sample(f, takeover).Seal(pos, prev)
		f.Add(s.Body[len(s.Body)-int(s.TrailerLen):])
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		tr, err := ParseTrailer(raw)
		if err != nil {
			// The length and end mark stop nearly every mutation: try again with them mended.
			if len(raw) < minTrailer || len(raw) > 1<<20 {
				return
			}
			raw = bytes.Clone(raw)
			copy(raw[len(raw)-8:], endMagic)
			n := len(raw)
			copy(raw[n-12:], []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
			if tr, err = ParseTrailer(raw); err != nil {
				if !errors.Is(err, ErrFormat) {
					t.Fatal(err)
				}
				return
			}
		}
		if tr.BodySize <= 1<<20 && !bytes.Equal(reencode(t, tr), raw) {
			t.Fatal("accepted and not canonical")
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add(Key{Cell: cell, Trailer: 1000}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if k, err := ParseKey(s); err == nil && k.String() != s {
			t.Fatalf("%q was read as %q", s, k)
		}
	})
}

// A trailer cannot make its reader allocate much more than its own size.
func TestAllocationIsBounded(t *testing.T) {
	s := sample(t, false).Seal(posOther, hash(30))
	trailer := s.Body[len(s.Body)-int(s.TrailerLen):]
	const sessionsAt = 8 + 8 + 8 + 8 + 32 + 8 + 4
	huge := append(bytes.Clone(trailer[:sessionsAt]), 0xff, 0xff, 0xff, 0xff, 0x0f)
	huge = append(huge, make([]byte, 100)...)
	huge = append(huge, 0, 0, 0, byte(len(huge)+12))
	huge = append(huge, endMagic...)
	if n := testing.AllocsPerRun(10, func() {
		if _, err := ParseTrailer(huge); err == nil {
			t.Error("accepted")
		}
	}); n > 20 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkBuilder fills and seals a segment of 64 KiB blocks.
func BenchmarkBuilder(b *testing.B) {
	block := make([]byte, 64<<10)
	bl := NewBuilder(cell)
	b.SetBytes(Target)
	b.ReportAllocs()
	for b.Loop() {
		bl.Reset()
		for bl.Size() < Target {
			off := bl.AddBlock(block)
			if err := bl.AddRecord(1, Stored{Kind: holdfast.KindChunk, Off: off, Len: uint32(len(block)), Sum: SumOf(block)}); err != nil {
				b.Fatal(err)
			}
		}
		bl.Seal(posOther, hash(1))
	}
}

// BenchmarkParseTrailer reports bytes of trailer; a record of a block takes about 60.
func BenchmarkParseTrailer(b *testing.B) {
	bl := NewBuilder(cell)
	bl.AddBlock(make([]byte, 1000))
	for range 10_000 {
		if err := bl.AddRecord(1, Stored{Kind: holdfast.KindChunk, Len: 1000}); err != nil {
			b.Fatal(err)
		}
	}
	s := bl.Seal(posOther, hash(1))
	b.SetBytes(int64(s.TrailerLen))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseTrailer(s.Body[1000:]); err != nil {
			b.Fatal(err)
		}
	}
}
