package journal

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"holdfast"
	"holdfast/service/bucket/sim"
	"holdfast/service/ledger"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// Money that a view makes out of nothing is found, whatever else is found with it.
func TestCheckAddsUpBooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := context.Background()
		cfg := config(sim.New(1))
		cfg.Dir = filepath.Join(t.TempDir(), "view")
		j := mustOpen(t, cfg)
		id := holdfast.AccountID{1}
		_, err := j.Append(ctx, func(tx *Tx) error {
			return errors.Join(
				tx.Record(segment.Account{ID: id, Name: "anna"}),
				tx.Record(segment.Transfer{ID: "payment:1", From: ledger.Book{Kind: ledger.Payments}, To: ledger.Of(id), Amount: 5 * ledger.Unit}),
			)
		})
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, j)
		if r, err := Check(ctx, cfg, nil); err != nil || r.Books != 2 {
			t.Fatalf("check: %+v, %v", r, err)
		}
		store, err := view.Open(cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		row := append([]byte{'j', byte(ledger.Customer)}, id[:]...)
		was, err := store.Get(row)
		if err != nil || len(was) != 16 {
			t.Fatalf("the book: %x, %v", was, err)
		}
		l := view.NewLayer(store)
		if err := errors.Join(l.Put(row, append(was[:15:15], was[15]+1)), store.Commit(l), store.Close()); err != nil {
			t.Fatal(err)
		}
		r, err := Check(ctx, cfg, nil)
		if !errors.Is(err, ErrDamaged) || len(r.Problems) != 2 || !slices.Contains(r.Problems, "what the 2 books of the ledger hold adds up to 0.000000000001, not to zero") {
			t.Errorf("check: %q, %v", r.Problems, err)
		}
	})
}
