package view

import (
	"errors"
	"testing"

	"holdfast"
	"holdfast/service/segment"
	"holdfast/service/view/viewtest"
)

// capped returns a customer with an open session whose machine may store so much a day.
func (w *world) capped(n int, bytes, blocks uint64) *viewtest.Customer {
	w.t.Helper()
	c := viewtest.New(n)
	c.DayBytes, c.DayBlocks = bytes, blocks
	w.must(c.Account())
	w.must(c.Token(1 << 62))
	w.must(c.Redeemed())
	w.accept(c, c.Genesis())
	w.accept(c, c.Enrol())
	w.accept(c, c.Open())
	return c
}

// A machine stores exactly what it may a day, and again from midnight UTC on, whatever is refused meanwhile.
func TestDailyCapOfBytes(t *testing.T) {
	w := newWorld(t)
	const most = 10_000 + 2*holdfast.LeastBilled
	c := w.capped(1, most, 0)
	other := w.capped(2, 0, 0)
	w.store(c, c.Chunk(1, 10_000))
	w.store(c, c.Chunk(2, 1)) // counts as LeastBilled
	midnight := (w.now/msPerDay + 1) * msPerDay
	for _, size := range []int{holdfast.LeastBilled + 1, holdfast.MaxBlock} {
		var e *CapError
		if err := w.try(c.Stored(c.Chunk(3, size), 0)); !errors.As(err, &e) {
			t.Fatalf("%d bytes too many: %v", size, err)
		}
		want := CapError{Amount{most, 0}, Amount{10_000 + holdfast.LeastBilled, 2}, midnight}
		if *e != want {
			t.Fatalf("%+v, want %+v", *e, want)
		}
	}
	w.store(c, c.Chunk(3, holdfast.LeastBilled)) // exactly
	tiny := c.Stored(c.Chunk(4, 1), 0)
	refused := func() {
		t.Helper()
		var e *CapError
		if err := w.try(tiny); !errors.As(err, &e) || e.Used != (Amount{most, 3}) {
			t.Fatalf("beyond the cap: %v", err)
		}
	}
	refused()
	// What is there is not stored, and what is no block is not capped.
	w.refuse(c.Stored(c.Chunk(1, 10_000), 0), ErrDuplicate)
	w.accept(c, c.Open())
	tiny.Session = c.Session
	refused() // a session more is no cap more
	w.store(other, other.Chunk(1, 100_000))
	w.now = midnight - 1
	refused()
	w.now = midnight
	w.must(tiny)
	d, err := NewReader(w.rows).Today(c.Vault, c.Signer(), w.now)
	if err != nil || d != (Day{uint64(midnight / msPerDay), Amount{holdfast.LeastBilled, 1}}) {
		t.Fatalf("%+v, %v", d, err)
	}
	if d, err := NewReader(w.rows).Today(c.Vault, c.Signer(), midnight+msPerDay); err != nil || d.Amount != (Amount{}) {
		t.Fatalf("the day after: %+v, %v", d, err)
	}
	if k := dayKey(other.Vault, other.Signer()); w.rows.rows[string(k[:])] != nil {
		t.Error("a machine without a cap has a row for it")
	}
}

func TestDailyCapOfBlocks(t *testing.T) {
	w := newWorld(t)
	c := w.capped(1, 0, 3)
	w.store(c, c.Chunk(1, 1))
	w.store(c, c.Chunk(2, 1_000_000))
	root := c.Over(holdfast.KindArchive, 1, c.Chunk(1, 1).Name)
	w.store(c, root)
	var e *CapError
	// Nobody learns what is missing of a block that may not be stored.
	if err := w.try(c.Stored(c.Over(holdfast.KindTree, 2, c.Chunk(9, 1).Name), 0)); !errors.As(err, &e) || e.Cap != (Amount{0, 3}) || e.Used.Blocks != 3 {
		t.Fatal(err)
	}
	w.accept(c, c.Commit(root.Name)) // an archive is no block
}

// A block that is refused for want of its links uses nothing up.
func TestRefusedBlockUsesNoCap(t *testing.T) {
	w := newWorld(t)
	c := w.capped(1, 0, 1)
	var m *MissingError
	if err := w.try(c.Stored(c.Over(holdfast.KindTree, 1, c.Chunk(9, 1).Name), 0)); !errors.As(err, &m) {
		t.Fatal(err)
	}
	w.store(c, c.Chunk(1, 1))
}

func TestAsked(t *testing.T) {
	w := newWorld(t)
	c := w.enrolled(1)
	w.accept(c, c.Open())
	w.store(c, c.Chunk(1, 5000))
	w.must(segment.Metered{Account: c.ID, Names: 7})
	w.now += 1000
	w.must(segment.Metered{Account: c.ID, Names: 1 << 40})
	u, err := NewReader(w.rows).Usage(c.ID, w.now)
	if err != nil || u.Asked != 7+1<<40 || u.Bytes != 5000 || u.Stored.Lo != 5000*1000 {
		t.Fatalf("%+v, %v", u, err)
	}
	w.refuse(segment.Metered{Account: holdfast.AccountID{0xff}, Names: 1}, ErrNoAccount)
}
