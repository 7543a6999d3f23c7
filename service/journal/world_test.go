package journal

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/ledger"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/service/view/viewtest"
)

var (
	testCell = holdfast.CellID{0xce, 0x11}
	hostA    = [16]byte{0xa}
	hostB    = [16]byte{0xb}
)

func config(b bucket.Bucket) Config {
	return Config{Create: true, Bucket: b, Cell: testCell, Host: hostA, LogKey: viewtest.LogKey()}
}

func mustOpen(t *testing.T, cfg Config) *Journal {
	t.Helper()
	j, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func mustClose(t *testing.T, j *Journal) {
	t.Helper()
	if err := j.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// client drives a journal as the service would on behalf of one customer, and remembers what it was
// promised: the oracle.
type client struct {
	*viewtest.Customer
	j        *Journal
	enrolled bool
	acked    []viewtest.Block // durable, we were told
	sent     []viewtest.Block // appended, told or not
	archives []history.Record // acknowledged commits
	unsure   []history.Record // appended commits
}

// append runs fn, flushes and waits.
func (c *client) append(ctx context.Context, fn func(*Tx) error) error {
	t, err := c.j.Append(ctx, fn)
	if err != nil {
		return err
	}
	c.j.Flush()
	return t.Wait(ctx)
}

// record appends r unless it is there already, and moves the chain on, as a real client does that reads
// its state back.
func (c *client) record(ctx context.Context, r history.Record) error {
	err := c.append(ctx, func(tx *Tx) error {
		_, err := tx.History(r)
		if errors.Is(err, view.ErrDuplicate) {
			return nil
		}
		return err
	})
	if err == nil {
		c.Accepted(r)
	}
	return err
}

// enrol makes account, vault and machine.
func (c *client) enrol(ctx context.Context) error {
	ignore := func(err error) error {
		if errors.Is(err, view.ErrDuplicate) {
			return nil
		}
		return err
	}
	err := c.append(ctx, func(tx *Tx) error {
		return errors.Join(
			ignore(tx.Record(c.Account())),
			ignore(tx.Record(c.Token(1<<62))),
			ignore(tx.Record(c.Redeemed())))
	})
	if err == nil {
		err = c.record(ctx, c.Genesis())
	}
	if err == nil {
		err = c.record(ctx, c.Enrol())
	}
	c.enrolled = err == nil
	return err
}

// upload stores blocks as the service does with a batch: what is there already is known.
func (c *client) upload(ctx context.Context, blocks ...viewtest.Block) error {
	c.sent = append(c.sent, blocks...)
	err := c.append(ctx, func(tx *Tx) error {
		for _, b := range blocks {
			err := tx.Stored(c.Session, b.Name, b.Kind, b.Links, b.Sealed)
			if err != nil && !errors.Is(err, view.ErrDuplicate) {
				return err
			}
		}
		return nil
	})
	if err == nil {
		c.acked = append(c.acked, blocks...)
	}
	return err
}

// backup uploads n chunks in batches, a tree, a root, and commits. Its blocks depend on run only.
func (c *client) backup(ctx context.Context, run, n int) error {
	open := c.Open()
	if err := c.record(ctx, open); err != nil {
		return err
	}
	var names []holdfast.Name
	for i := 0; i < n; i += 3 {
		var batch []viewtest.Block
		for k := i; k < min(i+3, n); k++ {
			b := c.Chunk(run*1000+k, 1000+17*k)
			batch, names = append(batch, b), append(names, b.Name)
		}
		if err := c.upload(ctx, batch...); err != nil {
			return err
		}
	}
	tree := c.Over(holdfast.KindTree, run, names...)
	root := c.Over(holdfast.KindArchive, run, tree.Name)
	if err := c.upload(ctx, tree, root); err != nil {
		return err
	}
	commit := c.Commit(root.Name)
	c.unsure = append(c.unsure, commit)
	if err := c.record(ctx, commit); err != nil {
		return err
	}
	c.archives = append(c.archives, commit)
	return nil
}

// rule and, a month later, ruleLater have a vault go through every record that there is.
func (c *client) rule(ctx context.Context) error {
	for run := range 6 {
		if err := c.backup(ctx, run, 3); err != nil {
			return err
		}
	}
	if err := c.append(ctx, func(tx *Tx) error {
		return errors.Join(
			tx.Record(segment.Metered{Account: c.ID, Names: 500, Sent: 5000}),
			tx.Record(segment.Transfer{ID: "payment:1", From: ledger.Book{Kind: ledger.Payments}, To: ledger.Of(c.ID), Amount: ledger.Unit, Text: "für einen Monat"}),
			tx.Record(segment.Charge{Account: c.ID, Prices: ledger.Prices{Stored: ledger.Unit}}),
			tx.Record(segment.Step{Account: c.ID, Step: ledger.Warn7}),
			tx.Record(segment.Told{Account: c.ID, Step: ledger.Warn7}),
		)
	}); err != nil {
		return err
	}
	return c.records(ctx,
		func() history.Record { return c.Signed(history.TypeDelete, c.ids(0, 1)) },
		func() history.Record { return c.Signed(history.TypeUndelete, c.ids(0)) },
		func() history.Record { return c.Signed(history.TypeFreeze, nil) },
		func() history.Record { return c.ByOwner(history.TypeThaw, nil) },
		func() history.Record {
			return c.ByOwner(history.TypeConfirm, history.Confirm{Series: c.Series}.Encode())
		},
		func() history.Record {
			return c.ByOwner(history.TypeDelay, history.Delay{Seconds: 2 * history.MinDelay}.Encode())
		},
		func() history.Record {
			return c.ByOwner(history.TypePolicy, history.Policy{Series: c.Series, Last: 2}.Encode())
		},
		func() history.Record { return c.Rotate(1) },
		func() history.Record { return c.Rewrap(c.Session) },
		func() history.Record {
			return c.ByService(history.TypeArrears, history.Arrears{Until: time.Now().Add(time.Hour).UnixNano() + history.MinGrace}.Encode())
		},
	)
}

func (c *client) ruleLater(ctx context.Context) error {
	return c.records(ctx,
		func() history.Record { return c.ByService(history.TypeExpire, c.ids(2)) },
		func() history.Record { return c.ByService(history.TypePurge, c.ids(1)) },
		func() history.Record { return c.ByService(history.TypeLapse, c.ids(3)) },
		func() history.Record { return c.ByService(history.TypeArrears, history.Arrears{}.Encode()) },
		func() history.Record {
			return c.ByOwner(history.TypeRevoke, history.Revoke{Signer: c.Signer(), Since: time.Now().UnixNano()}.Encode())
		},
	)
}

// unreferenced returns the client's blocks without references: what a background job would find.
func (c *client) unreferenced(t *testing.T, j *Journal) (all []Candidate) {
	t.Helper()
	for _, b := range c.sent {
		row, ok, err := j.Acked().Block(c.Vault, c.Group, b.Name)
		if err != nil {
			t.Fatal(err)
		}
		if ok && row.Count == 0 {
			all = append(all, Candidate{b.Name, row})
		}
	}
	return all
}

func (c *client) records(ctx context.Context, make ...func() history.Record) error {
	for i, r := range make {
		if err := c.record(ctx, r()); err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
	}
	return nil
}

// ids returns the fields of a record that names the client's archives with these numbers.
func (c *client) ids(n ...int) []byte {
	var ids []holdfast.RecordID
	for _, i := range n {
		ids = append(ids, c.archives[i].ID())
	}
	return history.SortIDs(ids).Encode()
}

// resume takes the client's chains from the journal, as a client does from its history.
func (c *client) resume(t *testing.T, j *Journal) {
	t.Helper()
	c.j = j
	r := j.Acked()
	if v, ok, err := r.Vault(c.Vault); err != nil {
		t.Fatal(err)
	} else if ok {
		raw, err := r.History(c.Vault, 0, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		n := uint64(0)
		for len(raw) > 0 {
			e, rest := cutEntry(t, raw)
			c.Accepted(e.Record)
			raw = rest
			n++
		}
		if n != v.N {
			t.Fatalf("%d entries, vault says %d", n, v.N)
		}
	}
}

// check is the oracle: what was acknowledged is there and whole, what was never sent is not.
func (c *client) check(t *testing.T, j *Journal) {
	t.Helper()
	for _, b := range c.acked {
		row, ok, err := j.Acked().Block(c.Vault, c.Group, b.Name)
		if err != nil || !ok {
			t.Fatalf("acknowledged block %s is gone: %v", b.Name, err)
		}
		got, err := j.ReadBlock(context.Background(), row)
		if err != nil || string(got) != string(b.Sealed) {
			t.Fatalf("acknowledged block %s cannot be read: %v", b.Name, err)
		}
	}
	for _, r := range c.archives {
		if _, _, ok, err := j.Acked().Record(r.ID()); err != nil || !ok {
			t.Fatalf("acknowledged archive %s is gone: %v", r.ID(), err)
		}
	}
	// An archive that is there is whole, promised or not.
	for _, r := range c.unsure {
		_, e, ok, err := j.Acked().Record(r.ID())
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			b, _ := history.ParseBody(e.Record.Body)
			f, _ := history.ParseCommit(b.Fields)
			c.checkClosure(t, j, f.Root)
		}
	}
}

func (c *client) checkClosure(t *testing.T, j *Journal, n holdfast.Name) {
	t.Helper()
	b, ok, err := j.Acked().Block(c.Vault, c.Group, n)
	if err != nil || !ok {
		t.Fatalf("block %s of an archive is not there: %v", n, err)
	}
	if b.Count == 0 {
		t.Fatalf("block %s of an archive has no references", n)
	}
	if _, err := j.ReadBlock(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	links, err := j.Acked().Links(c.Vault, c.Group, n)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		c.checkClosure(t, j, l)
	}
}

// checkStore verifies that a view made anew from the bucket equals the one that j has, and that nobody
// broke the rules of the store.
func checkStore(t *testing.T, s *sim.Store, j *Journal) {
	t.Helper()
	ctx := context.Background()
	want, pos, err := j.Digest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	store, err := view.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	cfg := config(s.Clone().Connect(99))
	c, err := findChain(ctx, cfg, 1<<63, anyChain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := replay(ctx, cfg, store, c.between(segment.Position{}, pos)); err != nil {
		t.Fatal(err)
	}
	got, at, err := store.Digest(ctx)
	if err != nil || at != pos || got != want {
		t.Fatalf("rebuilt view at %s has another digest than the live one at %s (%v)", at, pos, err)
	}
	if v := s.Violations(); len(v) > 0 {
		t.Fatal(v)
	}
}

// anyChain knows of nothing that must be there.
func anyChain(context.Context, *chain) error { return nil }

func cutEntry(t *testing.T, raw []byte) (history.Entry, []byte) {
	t.Helper()
	e, n := readEntry(raw)
	if n == 0 {
		t.Fatal("malformed history")
	}
	return e, raw[n:]
}

// objects returns the keys of all segments in the store.
func objects(s *sim.Store) (keys []segment.Key) {
	for _, k := range s.Keys() {
		if p, err := segment.ParseKey(k); err == nil {
			keys = append(keys, p)
		}
	}
	return keys
}

// within fails the test if fn takes more virtual time than d.
func within(t *testing.T, d time.Duration, what string, fn func()) {
	t.Helper()
	began := time.Now()
	fn()
	if took := time.Since(began); took > d {
		t.Errorf("%s took %s, more than %s", what, took, d)
	}
}

func newCustomer() *viewtest.Customer { return viewtest.New(1) }

func describe(run int, err error) string { return fmt.Sprintf("run %d: %v", run, err) }
