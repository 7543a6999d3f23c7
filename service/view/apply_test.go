package view

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"

	"holdfast"
	"holdfast/history"
	"holdfast/service/segment"
	"holdfast/service/view/viewtest"
)

var logPub = viewtest.LogKey().Public().(ed25519.PublicKey)

// nothing is what lies below the rows of a test.
type nothing struct{}

func (nothing) Get([]byte) ([]byte, error) { return nil, nil }

// world is a journal without a bucket: records go straight into rows.
type world struct {
	t    *testing.T
	rows *Layer
	pos  segment.Position
	prev [32]byte
	now  int64
	off  uint32
	end  End
	recs []segment.Timed // of the segment that is being filled
	all  []sealed
	// based is how many blocks of busy say their links by a base.
	based int
}

// sealed is a segment as a replay is given it.
type sealed struct {
	key     segment.Key
	size    int64
	trailer segment.Trailer
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, rows: NewLayer(nothing{}), pos: segment.Position{Epoch: 1}, now: 1_700_000_000_000}
	w.must(segment.Takeover{Epoch: 1})
	w.seal()
	return w
}

// try applies rec; a refusal must change nothing.
func (w *world) try(rec segment.Record) error {
	w.t.Helper()
	before := maps.Clone(w.rows.rows)
	for k, v := range before {
		before[k] = bytes.Clone(v)
	}
	err := Apply(w.rows, w.pos, w.now, rec, logPub)
	if err != nil && !maps.EqualFunc(before, w.rows.rows, bytes.Equal) {
		w.t.Fatalf("refused %s record changed rows: %v", rec.Type(), err)
	}
	if err == nil {
		if w.end.First == 0 {
			w.end.First = w.now
		}
		w.end.Last = w.now
		w.end.Add(rec)
		w.recs = append(w.recs, segment.Timed{Time: w.now, Record: rec})
		switch r := rec.(type) {
		case segment.Stored:
			w.off += r.Len
		case segment.Moved:
			w.off += r.Len
		}
	}
	return err
}

func (w *world) must(rec segment.Record) {
	w.t.Helper()
	if err := w.try(rec); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) refuse(rec segment.Record, want error) {
	w.t.Helper()
	if err := w.try(rec); !errors.Is(err, want) {
		w.t.Fatalf("%s record: %v, want %v", rec.Type(), err, want)
	}
}

// seal ends the segment and begins the next.
func (w *world) seal() {
	w.t.Helper()
	e := w.end
	e.Key = segment.Key{Cell: holdfast.CellID{1}, Position: w.pos, Trailer: 100, Hash: [32]byte{byte(w.pos.Epoch), byte(w.pos.Seq), 7}}
	e.Prev, e.Size = w.prev, int64(w.off)+100
	if err := EndSegment(w.rows, e); err != nil {
		w.t.Fatal(err)
	}
	w.all = append(w.all, sealed{e.Key, e.Size, segment.Trailer{Cell: e.Key.Cell, Position: w.pos, Prev: w.prev, BodySize: w.off, Records: w.recs}})
	w.prev, w.pos, w.end, w.off, w.recs = e.Key.Hash, w.pos.Next(), End{}, 0, nil
}

func (w *world) entry(r history.Record, vault holdfast.VaultID) segment.History {
	v, _, err := NewReader(w.rows).Vault(vault)
	if err != nil {
		w.t.Fatal(err)
	}
	return segment.History{Vault: vault, Entry: history.Stamp(vault, v.N+1, v.Head, w.now*1e6, r, viewtest.LogKey())}
}

func (w *world) accept(c *viewtest.Customer, r history.Record) {
	w.t.Helper()
	w.must(w.entry(r, c.Vault))
	c.Accepted(r)
}

// enrolled returns customer n with a vault and a machine.
func (w *world) enrolled(n int) *viewtest.Customer {
	w.t.Helper()
	c := viewtest.New(n)
	w.must(c.Account())
	w.must(c.Token((w.now + 1000) * 1e6))
	w.must(c.Redeemed())
	w.accept(c, c.Genesis())
	w.accept(c, c.Enrol())
	return c
}

func (w *world) store(c *viewtest.Customer, b viewtest.Block) {
	w.t.Helper()
	w.must(c.Stored(b, w.off))
}

func (w *world) block(c *viewtest.Customer, n holdfast.Name) Block {
	w.t.Helper()
	b, ok, err := NewReader(w.rows).Block(c.Vault, c.Group, n)
	if err != nil || !ok {
		w.t.Fatalf("block %s: %v, %v", n, ok, err)
	}
	return b
}

func TestCountsFollowLinksAndCommits(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	a, b := c.Chunk(1, 50), c.Chunk(2, 60)
	w.store(c, a)
	w.store(c, b)
	stored := w.now
	w.now += 5
	tree := c.Over(holdfast.KindTree, 1, a.Name, b.Name)
	other := c.Over(holdfast.KindTree, 2, b.Name)
	w.store(c, tree)
	if got := w.block(c, a.Name); got.Count != 1 || got.Since != 0 {
		t.Fatalf("a child is counted when its parent is stored: %+v", got)
	}
	w.store(c, other)
	root := c.Over(holdfast.KindArchive, 1, tree.Name)
	w.store(c, root)
	if got := w.block(c, root.Name); got.Count != 0 || got.Since != w.now {
		t.Fatalf("an uncommitted root is counted: %+v", got)
	}
	w.accept(c, c.Commit(root.Name))
	w.now += 5
	w.accept(c, c.Commit(root.Name))
	for n, want := range map[holdfast.Name]uint64{a.Name: 1, b.Name: 2, tree.Name: 1, other.Name: 0, root.Name: 2} {
		if got := w.block(c, n).Count; got != want {
			t.Errorf("count of %s is %d, want %d", n, got, want)
		}
	}
	if s := w.block(c, other.Name).Since; s != stored+5 {
		t.Errorf("since is %d, want %d", s, stored+5)
	}
	links, err := NewReader(w.rows).Links(c.Vault, c.Group, tree.Name)
	if err != nil || !slices.Equal(links, tree.Links) {
		t.Errorf("links %v, %v", links, err)
	}
}

func TestStoredRefusals(t *testing.T) {
	w := newWorld(t)
	c, d := w.enrolled(1), w.enrolled(2)
	a := c.Chunk(1, 50)
	w.refuse(c.Stored(a, 0), ErrNoSession)
	w.accept(c, c.Open())
	w.accept(d, d.Open())
	w.store(c, a)
	w.refuse(c.Stored(a, 50), ErrDuplicate)

	// What another customer stored is not there.
	w.store(d, d.Chunk(9, 10))
	tree := c.Over(holdfast.KindTree, 1, a.Name, d.Chunk(9, 10).Name, c.Chunk(2, 1).Name)
	err := w.try(c.Stored(tree, 50))
	var missing *MissingError
	if !errors.As(err, &missing) || len(missing.Names) != 2 || slices.Contains(missing.Names, a.Name) {
		t.Fatalf("missing: %v", err)
	}
	if w.block(c, a.Name).Count != 0 {
		t.Fatal("a refused block was counted")
	}
	// Nor is the block itself.
	self := c.Over(holdfast.KindTree, 3)
	self.Links = []holdfast.Name{self.Name}
	if err := w.try(c.Stored(self, 50)); !errors.As(err, &missing) {
		t.Fatalf("a block that needs itself: %v", err)
	}
	// The list is bounded.
	var many []holdfast.Name
	for i := range MaxMissing + 5 {
		many = append(many, c.Chunk(1000+i, 1).Name)
	}
	if err := w.try(c.Stored(c.Over(holdfast.KindTree, 4, many...), 50)); !errors.As(err, &missing) || len(missing.Names) != MaxMissing {
		t.Fatalf("%v", err)
	}
}

func TestHistoryRefusals(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	genesis := viewtest.New(1).Genesis()
	w.refuse(w.entry(genesis, c.Vault), ErrDuplicate)
	open := c.Open()
	w.refuse(w.entry(open, holdfast.VaultID{1}), ErrNoVault)

	other := viewtest.New(2)
	foreign := other.Genesis()
	w.refuse(w.entry(foreign, c.Vault), history.ErrFormat)

	e := w.entry(open, c.Vault)
	for name, change := range map[string]func(*segment.History){
		"number":    func(h *segment.History) { h.Entry.N++ },
		"time":      func(h *segment.History) { h.Entry.Time++ },
		"head":      func(h *segment.History) { h.Entry.Head[0]++ },
		"log sig":   func(h *segment.History) { h.Entry.LogSig[0]++ },
		"signature": func(h *segment.History) { h.Entry.Record.Sig[0]++ },
	} {
		bad := e
		change(&bad)
		if err := w.try(bad); err == nil {
			t.Errorf("an entry with a wrong %s was accepted", name)
		}
	}
	w.must(e)
	// The machine's chain has moved on, ours has not.
	stale := c.OpenAs(holdfast.SessionID{9})
	var s *history.StaleError
	if err := w.try(w.entry(stale, c.Vault)); !errors.As(err, &s) || s.Want.Seq != 1 || s.Want.Prev != open.ID() {
		t.Fatalf("stale record: %v", err)
	}
	c.Accepted(open)

	// A session belongs to one vault.
	d := w.enrolled(3)
	w.refuse(w.entry(d.OpenAs(c.Session), d.Vault), history.ErrFormat)
	d.Session = c.Session
	w.refuse(w.entry(d.Commit(holdfast.Name{1}), d.Vault), history.ErrFormat)

	var missing *MissingError
	if err := w.try(w.entry(c.Commit(holdfast.Name{5}), c.Vault)); !errors.As(err, &missing) {
		t.Fatalf("a commit without its root: %v", err)
	}
	chunk := c.Chunk(1, 10)
	w.store(c, chunk)
	w.refuse(w.entry(c.Commit(chunk.Name), c.Vault), ErrKind)
}

func TestEnrolmentNeedsAnAccountAndAFreeKey(t *testing.T) {
	w := newWorld(t)
	c := viewtest.New(1)
	w.accept(c, c.Genesis())
	w.refuse(w.entry(c.Enrol(), c.Vault), ErrNoAccount)
	w.must(c.Account())
	w.must(c.Token((w.now + 1000) * 1e6))
	w.must(c.Redeemed())
	w.accept(c, c.Enrol())
	r := NewReader(w.rows)
	m, ok, err := r.MachineByTLS(c.TLSKey())
	if err != nil || !ok || m.Vault != c.Vault || m.Account != c.ID || m.Signer != c.Signer() {
		t.Fatalf("%+v %v %v", m, ok, err)
	}
	if v, _, _ := r.Vault(c.Vault); v.Account != c.ID || v.N != 2 {
		t.Fatalf("%+v", v)
	}
	// A second machine needs no token, but a key of its own.
	e := history.Enrol{SignKey: [32]byte{1}, TLSKey: c.TLSKey(), Rights: holdfast.RightRead, Group: c.Group, Chunk: history.DefaultChunk}
	w.refuse(w.entry(c.EnrolAs(e), c.Vault), ErrKeyTaken)
	e.TLSKey = [32]byte{2}
	w.accept(c, c.EnrolAs(e))
	if m, ok, err := r.MachineByTLS(e.TLSKey); err != nil || !ok || m.Account != c.ID || !m.Enrol.Equal(e) {
		t.Fatalf("%+v %v %v", m, ok, err)
	}
	// Nor may it take another customer's key into its vault.
	d := viewtest.New(2)
	w.must(d.Account())
	w.must(d.Token((w.now + 1000) * 1e6))
	w.must(d.Redeemed())
	e.SignKey, e.TLSKey = [32]byte{3}, d.TLSKey()
	w.refuse(w.entry(c.EnrolAs(e), c.Vault), ErrKeyTaken)
	if _, ok, _ := r.MachineByTLS(d.TLSKey()); ok {
		t.Fatal("a redeemed key is a machine")
	}
	if a, ok, _ := r.AccountByTLS(d.TLSKey()); !ok || a != d.ID {
		t.Fatal("a redeemed key has no account")
	}
}

func TestTokensWorkOnce(t *testing.T) {
	w := newWorld(t)
	c := viewtest.New(1)
	w.refuse(c.Token(1), ErrNoAccount)
	w.must(c.Account())
	w.refuse(c.Account(), ErrDuplicate)
	w.refuse(segment.Account{ID: holdfast.AccountID{1}, Name: c.Account().Name}, ErrNameTaken)
	w.refuse(c.Redeemed(), ErrTokenUnknown)
	w.must(c.Token((w.now + 1000) * 1e6))
	w.refuse(c.Token(1), ErrDuplicate)
	w.now += 1000
	w.refuse(c.Redeemed(), ErrTokenExpired)
	w.now--
	w.must(c.Redeemed())
	w.now += 5000
	w.refuse(c.Redeemed(), ErrDuplicate)
	again := c.Redeemed()
	again.TLSKey[0]++
	w.refuse(again, ErrTokenUsed)
	again.TLSKey = [32]byte{}
	w.refuse(again, ErrKeyTaken)
	if tok, ok, err := NewReader(w.rows).Token(c.Redeemed().Hash); err != nil || !ok || !tok.Used || tok.TLSKey != c.TLSKey() {
		t.Fatalf("%+v %v %v", tok, ok, err)
	}
	if a, ok, err := NewReader(w.rows).AccountByName(c.Account().Name); err != nil || !ok || a.ID != c.ID {
		t.Fatalf("%+v %v %v", a, ok, err)
	}
}

func TestTakeoverClosesTheEpochWhereItStands(t *testing.T) {
	w := newWorld(t) // 1/0 sealed
	closed := segment.Accepted{Epoch: 1, LastSeq: 0, Hash: w.prev}
	w.pos = segment.Position{Epoch: 3}
	for _, bad := range []segment.Takeover{
		{Epoch: 3},
		{Epoch: 2, Table: []segment.Accepted{closed}},
		{Epoch: 3, Table: []segment.Accepted{{Epoch: 1, LastSeq: 1, Hash: closed.Hash}}},
		{Epoch: 3, Table: []segment.Accepted{{Epoch: 1, LastSeq: 0}}},
		{Epoch: 3, Table: []segment.Accepted{closed, {Epoch: 2, Hash: closed.Hash}}},
	} {
		w.refuse(bad, ErrOrder)
	}
	w.must(segment.Takeover{Epoch: 3, Table: []segment.Accepted{closed}})
	w.seal()
	next := segment.Accepted{Epoch: 3, LastSeq: 0, Hash: w.prev}
	w.pos = segment.Position{Epoch: 4}
	forged := closed
	forged.LastSeq = 5
	w.refuse(segment.Takeover{Epoch: 4, Table: []segment.Accepted{forged, next}}, ErrOrder)
	w.refuse(segment.Takeover{Epoch: 4, Table: []segment.Accepted{next}}, ErrOrder)
	w.must(segment.Takeover{Epoch: 4, Table: []segment.Accepted{closed, next}})
}

func TestSegmentsFollowOneAnother(t *testing.T) {
	w := newWorld(t)
	w.must(viewtest.New(1).Account())
	good := w.end
	good.Key = segment.Key{Cell: holdfast.CellID{1}, Position: w.pos, Hash: [32]byte{1}}
	good.Prev = w.prev
	for name, change := range map[string]func(*End){
		"position": func(e *End) { e.Key.Position.Seq++ },
		"epoch":    func(e *End) { e.Key.Position.Epoch++ },
		"cell":     func(e *End) { e.Key.Cell[0]++ },
		"chain":    func(e *End) { e.Prev[0]++ },
		"time":     func(e *End) { e.First = w.now - 1 },
		"end":      func(e *End) { e.Last = e.First - 1 },
	} {
		bad := good
		change(&bad)
		if err := EndSegment(w.rows, bad); !errors.Is(err, ErrOrder) {
			t.Errorf("wrong %s: %v", name, err)
		}
	}
	if err := EndSegment(w.rows, good); err != nil {
		t.Fatal(err)
	}
	s, err := NewReader(w.rows).Stats()
	if err != nil || s.Segments != 2 || s.Position != good.Key.Position || s.Hash != good.Key.Hash {
		t.Fatalf("%+v %v", s, err)
	}
}

// The integral of stored bytes over time is exact, beyond 64 bits too.
func TestUsageIsExact(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	want, paid, bytes := new(big.Int), new(big.Int), int64(0)
	for i := range 50 {
		step := int64(i*i*100_003 + 1)
		want.Add(want, new(big.Int).Mul(big.NewInt(bytes), big.NewInt(step)))
		paid.Add(paid, new(big.Int).Mul(big.NewInt(int64(i)*holdfast.LeastBilled), big.NewInt(step)))
		w.now += step
		w.store(c, c.Chunk(i, 1+i*37)) // all of them smaller than what is billed
		bytes += int64(1 + i*37)
	}
	u, err := NewReader(w.rows).Usage(c.ID, w.now+1000)
	if err != nil {
		t.Fatal(err)
	}
	want.Add(want, new(big.Int).Mul(big.NewInt(bytes), big.NewInt(1000)))
	paid.Add(paid, new(big.Int).Mul(big.NewInt(50*holdfast.LeastBilled), big.NewInt(1000)))
	number := func(i Integral) *big.Int {
		n := new(big.Int).SetUint64(i.Hi)
		return n.Add(n.Lsh(n, 64), new(big.Int).SetUint64(i.Lo))
	}
	if number(u.Stored).Cmp(want) != 0 || u.Bytes != uint64(bytes) || u.Blocks != 50 {
		t.Fatalf("%+v, want %s", u, want)
	}
	if number(u.Paid).Cmp(paid) != 0 || u.Billed != 50*holdfast.LeastBilled {
		t.Fatalf("%+v, want %s billed", u, paid)
	}
	huge := Usage{Bytes: 1 << 60, Billed: 1 << 61}
	huge.advance(1 << 40)
	huge.advance(1 << 41)
	if huge.Stored != (Integral{1 << 37, 0}) || huge.Paid != (Integral{1 << 38, 0}) {
		t.Fatalf("%+v, want 2^101", huge)
	}
	huge.advance(5)
	if huge.Stored.Hi != 1<<37 || huge.AsOf != 1<<41 {
		t.Fatal("time ran backwards")
	}
}

func TestHistoryIsReadInPieces(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	for range 10 {
		w.accept(c, c.Open())
	}
	r := NewReader(w.rows)
	all, err := r.History(c.Vault, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for n := uint64(0); ; {
		part, err := r.History(c.Vault, n, 4000)
		if err != nil {
			t.Fatal(err)
		}
		if len(part) == 0 {
			break
		}
		got = append(got, part...)
		for len(part) > 0 {
			e, size := readEntry(t, part)
			if e.N != n+1 {
				t.Fatalf("entry %d after %d", e.N, n)
			}
			n, part = e.N, part[size:]
		}
	}
	if !bytes.Equal(got, all) {
		t.Fatal("the pieces are not the whole")
	}
	if part, _ := r.History(c.Vault, 0, 1); len(part) == 0 {
		t.Fatal("a small limit gave nothing")
	}
	e, _ := readEntry(t, all)
	v, same, ok, err := r.Record(e.Record.ID())
	if err != nil || !ok || v != c.Vault || same.N != 1 || same.Head != e.Head {
		t.Fatalf("%v %v", ok, err)
	}
}

// A record type without a rule must not be forgotten: every type that the journal knows is applied here.
func TestEveryRecordTypeHasARule(t *testing.T) {
	have := map[segment.Type]bool{}
	for _, r := range []segment.Record{segment.Takeover{}, segment.Stored{}, segment.History{}, segment.Account{}, segment.Token{}, segment.Redeemed{}, segment.Metered{}, segment.Frozen{}, segment.Thawed{}, segment.Condemned{}, segment.Moved{}, segment.Retired{}, segment.Removed{}, segment.Damaged{},
		segment.Transfer{}, segment.Charge{}, segment.Step{}, segment.Told{}} {
		have[r.Type()] = true
		_ = Apply(NewLayer(nothing{}), segment.Position{}, 0, r, logPub) // must not panic
	}
	for typ := range 256 {
		known := !strings.HasPrefix(segment.Type(typ).String(), "type ")
		if known != have[segment.Type(typ)] {
			t.Errorf("record type %s: known to the format %v, to this test %v", segment.Type(typ), known, have[segment.Type(typ)])
		}
	}
}
