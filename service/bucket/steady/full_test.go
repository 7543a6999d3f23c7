package steady

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
)

// TestFullStore: a store that has no room refuses what is put, for an hour. Reading, listing and deleting go on.
func TestFullStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if err := w.sim.Put(t.Context(), "k", body); err != nil {
			t.Fatal(err)
		}
		w.sim.OnOp(always(bucket.OpPut, sim.Fault{Err: failing(bucket.ClassFull)}))
		for i := range 3600 {
			if err := w.Put(t.Context(), fmt.Sprint("new/", i), body); bucket.ClassOf(err) != bucket.ClassFull {
				t.Fatalf("put %d: %v", i, err)
			}
			time.Sleep(time.Second)
			if i%60 > 0 { // for a minute nobody reads
				continue
			}
			if got, err := w.Get(t.Context(), "k", 0, -1); err != nil || !bytes.Equal(got, body) {
				t.Fatalf("get %d: %v", i, err)
			}
			if _, err := w.List(t.Context(), "k", "", 0); err != nil {
				t.Fatalf("list %d: %v", i, err)
			}
			if err := w.Delete(t.Context(), fmt.Sprint("old/", i)); err != nil {
				t.Fatalf("delete %d: %v", i, err)
			}
		}
		w.sim.OnOp(nil)
		if err := w.Put(t.Context(), "new", body); err != nil {
			t.Errorf("with room again: %v", err)
		}
	})
}
