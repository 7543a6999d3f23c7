package view

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/segment"
	"holdfast/service/view/viewtest"
)

const dayMS = 86400 * 1000

// archived has c store and commit an archive, of a series of its own shape, and returns its commit.
func (w *world) archived(c *viewtest.Customer, i int) history.Record {
	w.t.Helper()
	root := c.Over(holdfast.KindArchive, i)
	w.store(c, root)
	r := c.Commit(root.Name)
	w.accept(c, r)
	return r
}

func ids(r ...history.Record) []byte {
	var x []holdfast.RecordID
	for _, r := range r {
		x = append(x, r.ID())
	}
	return history.SortIDs(x).Encode()
}

func TestPurgeDropsTheRootsReference(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	var a []history.Record
	for i := range 5 {
		a = append(a, w.archived(c, i))
	}
	root := func(i int) Block { return w.block(c, c.Over(holdfast.KindArchive, i).Name) }
	again := c.Commit(c.Over(holdfast.KindArchive, 1).Name) // a second archive with the same root
	w.accept(c, again)
	w.accept(c, c.Signed(history.TypeDelete, ids(a[0], a[1])))
	if root(0).Count != 1 || root(1).Count != 2 {
		t.Fatal("a deleted archive lost its reference")
	}
	w.now += 7*dayMS - 1
	w.refuse(w.entry(c.ByService(history.TypePurge, ids(a[0], a[1])), c.Vault), history.ErrTooEarly)
	w.now++
	w.refuse(w.entry(c.ByService(history.TypePurge, ids(a[2])), c.Vault), history.ErrState)
	w.accept(c, c.ByService(history.TypePurge, ids(a[0], a[1])))
	if b := root(0); b.Count != 0 || b.Since != w.now {
		t.Errorf("root of a purged archive: %+v", b)
	}
	if b := root(1); b.Count != 1 || b.Since != 0 {
		t.Errorf("root of two archives, one of them purged: %+v", b)
	}
	w.refuse(w.entry(c.Signed(history.TypeUndelete, ids(a[0])), c.Vault), history.ErrState)
	w.refuse(w.entry(c.ByService(history.TypePurge, ids(a[0])), c.Vault), history.ErrState)
}

// Whatever the owner, the machine and the service do in whatever order: the view and a client's vault
// accept and refuse the same, and know the same archives afterwards.
func TestViewAgreesWithHistory(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { agree(t, rand.New(rand.NewPCG(seed, 3))) })
	}
}

func agree(t *testing.T, rng *rand.Rand) {
	w := newWorld(t)
	c := viewtest.New(1)
	var v history.Vault
	accepted, refused := map[history.Type]int{}, map[history.Type]int{}
	try := func(r history.Record) {
		t.Helper()
		e := w.entry(r, c.Vault)
		err := w.try(e)
		_, mine := v.Check(r, e.Entry.Time, logPub)
		b, _ := history.ParseBody(r.Body)
		switch {
		case (err == nil) != (mine == nil):
			t.Fatalf("%s record: the view says %v, the vault %v", b.Type, err, mine)
		case err != nil:
			refused[b.Type]++
			for _, kind := range []error{history.ErrFormat, history.ErrState, history.ErrNeedsOwner, history.ErrFrozen, history.ErrTooEarly,
				history.ErrKept, history.ErrJumped, history.ErrRevoked, history.ErrSigner, history.ErrPaid, history.ErrUnpaid} {
				if errors.Is(err, kind) != errors.Is(mine, kind) {
					t.Fatalf("%s record: the view says %v, the vault %v", b.Type, err, mine)
				}
			}
			return
		}
		accepted[b.Type]++
		if err := v.Follow(e.Entry, logPub, c.Hist()); err != nil {
			t.Fatal(err)
		}
		c.Accepted(r)
	}
	w.must(c.Account())
	w.must(c.Token((w.now + 1000) * 1e6))
	w.must(c.Redeemed())
	try(c.Genesis())
	try(c.Enrol())
	d, r := c.Another()
	try(r)
	try(c.Open())
	first := c.Session
	root := c.Over(holdfast.KindArchive, 1)
	w.store(c, root)
	start := w.now
	some := func() []byte {
		var x []holdfast.RecordID
		for range 1 + rng.IntN(3) {
			if n := len(v.Archives) + len(v.Purged); n > 0 {
				x = append(x, append(slices.Clone(v.Archives), v.Purged...)[rng.IntN(n)].ID)
			}
		}
		return history.SortIDs(x).Encode()
	}
	commit := func() history.Record {
		f := history.Commit{Series: holdfast.SeriesID{byte(1 + rng.IntN(3))}, Session: first, Group: c.Group, Root: root.Name, Partial: rng.IntN(8) == 0,
			Counts: history.Counts{Stored: 100, Unchanged: 900}}
		if rng.IntN(40) == 0 {
			f.Counts.Unchanged = 0
		}
		return c.Signed(history.TypeCommit, f.Encode())
	}
	for range 700 {
		w.now += rng.Int64N(dayMS)
		switch rng.IntN(28) {
		default:
			try(commit())
		case 0, 1, 2:
			try(c.Signed(history.TypeDelete, some()))
		case 3:
			try(c.ByOwner(history.TypeDelete, some()))
		case 4:
			f := some()
			for _, a := range v.Archives {
				if a.State != history.Live && rng.IntN(3) == 0 {
					f = history.IDs{a.ID}.Encode()
				}
			}
			try(c.Signed(history.TypeUndelete, f))
		case 5:
			try(c.ByOwner(history.TypePolicy, history.Policy{Series: holdfast.SeriesID{byte(rng.IntN(3))}, Last: uint32(rng.IntN(4)), Weekly: uint32(rng.IntN(3))}.Encode()))
		case 6:
			try(c.ByOwner(history.TypeDelay, history.Delay{Seconds: history.MinDelay * uint64(1+rng.IntN(12))}.Encode()))
		case 7:
			if rng.IntN(4) == 0 {
				try(c.Signed(history.TypeFreeze, nil))
			}
		case 8, 9:
			try(c.ByOwner(history.TypeThaw, nil))
		case 10:
			try(c.ByOwner(history.TypeConfirm, history.Confirm{Series: holdfast.SeriesID{byte(rng.IntN(4))}}.Encode()))
		case 11:
			try(c.ByService(history.TypeExpire, some()))
		case 12:
			try(c.ByService(history.TypePurge, some()))
		case 13, 14:
			if x := v.Expirable(w.now * 1e6); len(x) > 0 {
				try(c.ByService(history.TypeExpire, x.Encode()))
			}
		case 15, 16:
			if x := v.Purgeable(w.now * 1e6); len(x) > 0 {
				try(c.ByService(history.TypePurge, x.Encode()))
			}
		case 17:
			try(c.Rotate(rng.IntN(8)))
		case 18:
			try(c.Rewrap(first))
		case 19:
			if rng.IntN(6) == 0 {
				try(c.ByOwner(history.TypeRevoke, history.Revoke{Signer: d.Signer(), Since: (start + 1 + rng.Int64N(w.now-start+1)) * 1e6}.Encode()))
			}
		case 20:
			a := history.Arrears{Until: w.now*1e6 + history.MinGrace*9/10 + rng.Int64N(history.MinGrace/5)}
			switch {
			case v.Arrears == 0:
			case rng.IntN(6) == 0:
				a.Until = 0
			default: // refused, mostly: a grace that is put off again and again never ends
				a.Until -= rng.Int64N(2 * history.MinGrace)
			}
			try(c.ByService(history.TypeArrears, a.Encode()))
		case 21:
			try(c.ByService(history.TypeLapse, some()))
		case 22:
			if x := v.Lapsable(w.now * 1e6); len(x) > 0 {
				try(c.ByService(history.TypeLapse, x[:1+rng.IntN(len(x))].Encode()))
			}
		}
		part := w.archives(c.Vault)
		if !slices.Equal(part.Archives, v.Archives) {
			t.Fatalf("the view has %d archives, the vault %d, or in other states", len(part.Archives), len(v.Archives))
		}
		if at := w.now * 1e6; !slices.Equal(part.Expirable(at), v.Expirable(at)) || !slices.Equal(part.Purgeable(at), v.Purgeable(at)) ||
			!slices.Equal(part.Lapsable(at), v.Lapsable(at)) || len(v.Archives) > 0 && (part.Arrears != v.Arrears || part.Told != v.Told) {
			t.Fatal("the view and the vault would expire, purge or lapse different archives")
		}
		if got, want := w.block(c, root.Name).Count, uint64(len(v.Archives)); got != want {
			t.Fatalf("the root has %d references, from %d archives", got, want)
		}
	}
	for _, typ := range []history.Type{history.TypeDelete, history.TypeExpire, history.TypePurge, history.TypeUndelete,
		history.TypeArrears, history.TypeLapse} {
		if accepted[typ] == 0 || refused[typ] == 0 {
			t.Errorf("%s records: %d accepted, %d refused; this test does not show much", typ, accepted[typ], refused[typ])
		}
	}
}

// archives puts together what Archives says of all series of a vault.
func (w *world) archives(v holdfast.VaultID) *history.Vault {
	w.t.Helper()
	var all *history.Vault
	for i := uint32(0); ; i++ {
		part, ok, err := NewReader(w.rows).Archives(v, i)
		if err != nil {
			w.t.Fatal(err)
		}
		if !ok {
			break
		}
		if all == nil {
			all = part
			continue
		}
		maps.Copy(all.Series, part.Series)
		maps.Copy(all.Policies, part.Policies)
		all.Archives = append(all.Archives, part.Archives...)
	}
	if all == nil {
		return &history.Vault{}
	}
	slices.SortFunc(all.Archives, func(a, b history.Archive) int { return cmp.Compare(a.N, b.N) })
	return all
}

// withThief returns a customer whose second machine is a thief's. Both have a session.
func withThief(t *testing.T) (w *world, c, thief *viewtest.Customer) {
	w = newWorld(t)
	c = w.enrolled(1)
	thief, r := c.Another()
	w.accept(c, r)
	w.accept(c, c.Open())
	w.accept(thief, thief.Open())
	return w, c, thief
}

// revoke has the owner revoke a machine, and suspect what it did since (ms).
func (w *world) revoke(c, machine *viewtest.Customer, since int64) {
	w.t.Helper()
	w.accept(c, c.ByOwner(history.TypeRevoke, history.Revoke{Signer: machine.Signer(), Since: since * 1e6}.Encode()))
}

func TestSuspectBlocksAreNotThere(t *testing.T) {
	w, c, thief := withThief(t)
	old := thief.Chunk(1, 10)
	w.store(thief, old)
	w.now += 1000
	since := w.now
	bad := thief.Chunk(2, 10)
	w.store(thief, bad)
	good := c.Chunk(3, 10)
	w.store(c, good)
	tree := c.Over(holdfast.KindTree, 1, bad.Name, good.Name) // an honest machine deduplicated against it
	w.store(c, tree)
	root := c.Over(holdfast.KindArchive, 1, tree.Name)
	w.store(c, root)
	w.accept(c, c.Commit(root.Name))
	own := thief.Over(holdfast.KindArchive, 7, bad.Name)
	w.store(thief, own)
	w.accept(thief, thief.Commit(own.Name))
	w.now += 1000
	rd := NewReader(w.rows)
	present := func(n holdfast.Name) bool {
		t.Helper()
		_, ok, err := rd.Present(c.Vault, c.Group, n)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	for _, b := range []viewtest.Block{old, bad, good, tree, root} {
		if !present(b.Name) {
			t.Fatalf("%s is not there before the revocation", b.Kind)
		}
	}
	w.revoke(c, thief, since)
	for b, want := range map[*viewtest.Block]bool{&old: true, &bad: false, &good: true, &tree: false, &root: false} {
		if present(b.Name) != want {
			t.Errorf("after the revocation, a %s is there: %v, want %v", b.Kind, !want, want)
		}
	}
	if _, ok, _ := rd.Block(c.Vault, c.Group, bad.Name); !ok {
		t.Error("a suspect block cannot be fetched")
	}
	// The thief stores nothing more, in sessions that he has.
	w.refuse(thief.Stored(thief.Chunk(9, 10), w.off), history.ErrRevoked)
	w.refuse(w.entry(thief.Open(), c.Vault), history.ErrRevoked)

	// The honest machine is told what to send again, and what it sends takes the place.
	w.now += 1000
	tree2 := c.Over(holdfast.KindTree, 2, bad.Name, old.Name)
	var missing *MissingError
	if err := w.try(c.Stored(tree2, w.off)); !errors.As(err, &missing) || !slices.Equal(missing.Names, []holdfast.Name{bad.Name}) {
		t.Fatalf("a link to a suspect block: %v", err)
	}
	if err := w.try(w.entry(c.Commit(root.Name), c.Vault)); !errors.As(err, &missing) {
		t.Fatalf("a commit of a suspect root: %v", err)
	}
	w.refuse(c.Stored(old, w.off), ErrDuplicate)
	mended := bad
	mended.Sealed = []byte("as it should be")
	before := w.block(c, bad.Name)
	w.store(c, mended)
	if b := w.block(c, bad.Name); !present(bad.Name) || b.Len != uint32(len(mended.Sealed)) || b.Count != before.Count || b.Session != c.Session {
		t.Errorf("the mended block: %+v", b)
	}
	if alt, ok, err := rd.Alternate(c.Vault, c.Group, bad.Name, 0); err != nil || !ok || alt.Len != before.Len || alt.Session != before.Session {
		t.Errorf("the alternate: %+v %v %v", alt, ok, err)
	}
	w.refuse(c.Stored(mended, w.off), ErrDuplicate)

	// Trees that were stored meanwhile are mended too: same links here, kept twice.
	w.store(c, tree)
	if !present(tree.Name) || w.block(c, good.Name).Count != 2 || w.block(c, bad.Name).Count != 3 {
		t.Errorf("tree %v, its children have %d and %d references", present(tree.Name), w.block(c, good.Name).Count, w.block(c, bad.Name).Count)
	}
	if raw, _ := w.rows.Get(append([]byte{rowAltLinks}, func() []byte { k := blockKey(0, 0, tree.Name); return append(k[1:], u32(0)...) }()...)); len(raw) != 64 {
		t.Errorf("links of the alternate: %d bytes", len(raw))
	}
	w.store(c, root)
	w.accept(c, c.Commit(root.Name))
	w.store(c, tree2)
	if got := w.block(c, root.Name).Count; got != 2 {
		t.Errorf("the root has %d references", got)
	}
	// The honest machine's archives are not suspect, the thief's is.
	part := w.archives(c.Vault)
	if len(part.Archives) != 3 || part.Archives[0].Suspect || !part.Archives[1].Suspect || part.Archives[2].Suspect {
		t.Errorf("%+v", part.Archives)
	}
}

// Before the revocation's own time a good machine may have linked to anything; in a session that it opened
// later it cannot, even within the same millisecond.
func TestTreesAfterARevocationAreThere(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	thief, r := c.Another()
	w.accept(c, r)
	w.accept(c, c.Open())
	w.revoke(c, thief, 0)
	a := c.Chunk(1, 10)
	w.store(c, a)
	tree := c.Over(holdfast.KindTree, 1, a.Name)
	w.store(c, tree)
	if _, ok, _ := NewReader(w.rows).Present(c.Vault, c.Group, tree.Name); ok {
		t.Error("a tree of the same millisecond is trusted")
	}
	w.accept(c, c.Open())
	w.store(c, tree)
	if _, ok, _ := NewReader(w.rows).Present(c.Vault, c.Group, tree.Name); !ok {
		t.Error("a tree of a later session is not there")
	}
}

// TestManyArchivesAtOnce: a record that names archives of series with too many of them is refused before they are looked at.
func TestManyArchivesAtOnce(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	root := c.Over(holdfast.KindArchive, 1)
	w.store(c, root)
	r := c.Commit(root.Name)
	w.accept(c, r)
	id := w.archives(c.Vault).Archives[0].Commit.Series
	k := key(rowSeries, c.Vault[:], id[:])
	row, err := w.rows.Get(k)
	if err != nil || row == nil {
		t.Fatal(err)
	}
	one := slices.Clone(row)
	copy(row[4:], u32(maxNamed+1))
	w.refuse(w.entry(c.Signed(history.TypeDelete, history.IDs{r.ID()}.Encode()), c.Vault), history.ErrFormat)
	copy(row[4:], one[4:])
	w.accept(c, c.ByOwner(history.TypeDelete, history.IDs{r.ID()}.Encode()))
}

// counted counts what is read.
type counted struct {
	Rows
	n int
}

func (c *counted) Get(key []byte) ([]byte, error) {
	c.n++
	return c.Rows.Get(key)
}

// What the owner deletes or brings back, and what is purged, is looked at alone, however many archives its series has: a probe
// that deletes every few minutes what it stored before has thousands that wait to be purged. The rules for machines and policies
// look at all of them.
func TestNamedArchivesAlone(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	var ids []holdfast.RecordID
	for i := range 50 {
		ids = append(ids, w.archived(c, i).ID())
	}
	some := history.SortIDs(slices.Clone(ids[:2])).Encode()
	reads := func(r history.Record) (gets, archives int) {
		t.Helper()
		body, err := history.ParseBody(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		v, _, err := loadVault(w.rows, c.Vault)
		if err != nil {
			t.Fatal(err)
		}
		rows := &counted{Rows: w.rows}
		part, err := loadPart(rows, v, body)
		if err != nil {
			t.Fatal(err)
		}
		return rows.n, len(part.Archives)
	}
	for what, r := range map[string]history.Record{
		"the owner deletes":      c.ByOwner(history.TypeDelete, some),
		"the owner brings back":  c.ByOwner(history.TypeUndelete, some),
		"a machine brings back":  c.Signed(history.TypeUndelete, some),
		"the service purges":     c.ByService(history.TypePurge, some),
		"the service lapses":     c.ByService(history.TypeLapse, some),
		"the owner deletes more": c.ByOwner(history.TypeDelete, history.SortIDs(append(slices.Clone(ids[:2]), holdfast.RecordID{1})).Encode()),
	} {
		if gets, archives := reads(r); archives != 2 || gets > 12 {
			t.Errorf("%s: %d archives of 2, %d rows", what, archives, gets)
		}
	}
	for what, r := range map[string]history.Record{
		"a machine deletes":   c.Signed(history.TypeDelete, some),
		"the service expires": c.ByService(history.TypeExpire, some),
	} {
		if _, archives := reads(r); archives != len(ids) {
			t.Errorf("%s: %d archives of %d", what, archives, len(ids))
		}
	}
	// They are refused and accepted as before.
	w.refuse(w.entry(c.ByService(history.TypePurge, some), c.Vault), history.ErrState)
	w.accept(c, c.ByOwner(history.TypeDelete, some))
	w.refuse(w.entry(c.ByOwner(history.TypeDelete, some), c.Vault), history.ErrState)
	w.refuse(w.entry(c.ByService(history.TypePurge, some), c.Vault), history.ErrTooEarly)
	w.now += 8 * dayMS
	w.accept(c, c.ByService(history.TypePurge, some))
	w.refuse(w.entry(c.ByOwner(history.TypeUndelete, some), c.Vault), history.ErrState)
	if n := len(w.archives(c.Vault).Archives); n != len(ids)-2 {
		t.Errorf("%d archives are left", n)
	}
}

func TestVaultsAreNumbered(t *testing.T) {
	w := newWorld(t)
	a, b := w.enrolled(1), w.enrolled(2)
	r := NewReader(w.rows)
	if n, err := r.Vaults(); err != nil || n != 2 {
		t.Fatalf("%d vaults, %v", n, err)
	}
	for i, want := range []holdfast.VaultID{a.Vault, b.Vault} {
		if got, ok, err := r.VaultNo(uint32(i)); err != nil || !ok || got != want {
			t.Errorf("vault %d is %s", i, got)
		}
	}
	if _, ok, _ := r.VaultNo(2); ok {
		t.Error("there is a third")
	}
	w.accept(a, a.ByOwner(history.TypeFreeze, nil))
	if v, _, _ := r.Vault(a.Vault); !v.Frozen || v.Service != (history.Link{}) {
		t.Errorf("%+v", v)
	}
	if v, _, _ := r.Vault(b.Vault); v.Frozen {
		t.Error("another vault is frozen")
	}
}

// A record cites a head of the history that it goes into, or is refused.
func TestRecordsMustHaveSeenThisHistory(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	r := NewReader(w.rows)
	raw, err := r.History(c.Vault, 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	first := history.ReadEntry(enc.NewReader(raw))
	w.refuse(w.entry(c.Citing(1, holdfast.Head{9}), c.Vault), history.ErrSeen)
	w.refuse(w.entry(c.Citing(3, first.Head), c.Vault), history.ErrSeen)
	w.accept(c, c.Citing(1, first.Head))
}

// TestSuspectBlockOfAnotherKind: what a thief stored as another kind does not keep out what belongs there.
func TestSuspectBlockOfAnotherKind(t *testing.T) {
	w, c, thief := withThief(t)
	child := c.Chunk(5, 10)
	w.store(c, child)
	w.now += 1000
	since := w.now
	asTree := thief.Over(holdfast.KindTree, 1, child.Name)
	asChunk := thief.Chunk(2, 10)
	w.store(thief, asTree)
	w.store(thief, asChunk)
	chunk := c.Chunk(1, 20)
	chunk.Name = asTree.Name
	tree := c.Over(holdfast.KindTree, 2, child.Name)
	tree.Name = asChunk.Name
	for _, b := range []viewtest.Block{chunk, tree} {
		if err := w.try(c.Stored(b, w.off)); !errors.Is(err, ErrDuplicate) {
			t.Fatalf("before the revocation: %v", err)
		}
	}
	w.now += 1000
	w.revoke(c, thief, since)
	w.now += 1000
	w.store(c, chunk)
	w.store(c, tree)
	rd := NewReader(w.rows)
	for b, links := range map[*viewtest.Block]int{&chunk: 0, &tree: 1} {
		got, ok, err := rd.Present(c.Vault, c.Group, b.Name)
		if err != nil || !ok || got.Kind != b.Kind {
			t.Errorf("a %s was stored, and a %s is there: %v, %v", b.Kind, got.Kind, ok, err)
		}
		if l, err := rd.Links(c.Vault, c.Group, b.Name); err != nil || len(l) != links {
			t.Errorf("the %s has %d links: %v", b.Kind, len(l), err)
		}
		// And now it is there, of its kind.
		again := c.Chunk(9, 10)
		if again.Name = b.Name; b.Kind == holdfast.KindChunk {
			again.Kind = holdfast.KindPack
		}
		if err := w.try(c.Stored(again, w.off)); !errors.Is(err, ErrDuplicate) {
			t.Errorf("after it: %v", err)
		}
	}
}

// While deleting is frozen in the cell nothing lapses, but a vault may be said to be unpaid, and above all to be paid again.
func TestArrearsWhileFrozen(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	a := w.archived(c, 1)
	arrears := func(until int64) history.Record {
		return c.ByService(history.TypeArrears, history.Arrears{Until: until}.Encode())
	}
	stands := func(until int64) {
		t.Helper()
		if v, _, err := NewReader(w.rows).Vault(c.Vault); err != nil || v.Arrears != until {
			t.Errorf("in arrears until %d, %v; want %d", v.Arrears, err, until)
		}
	}
	w.must(segment.Frozen{Reason: segment.ReasonView, Text: "x"})
	until := w.now*1e6 + history.MinGrace
	w.accept(c, arrears(until))
	stands(until)
	w.now += 31 * dayMS
	w.refuse(w.entry(c.ByService(history.TypeLapse, ids(a)), c.Vault), ErrFrozen)
	w.accept(c, arrears(0))
	stands(0)
}
