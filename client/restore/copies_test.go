package restore_test

import (
	"bytes"
	"path/filepath"
	"testing"

	"holdfast"
	"holdfast/client/restore"
	"holdfast/wire"
)

// TestOtherCopies: when the newest copy of a block does not open, the others are tried, whichever is good. Without a
// good one, the error is that of the newest, and the service is not asked for ever.
func TestOtherCopies(t *testing.T) {
	garbage := bytes.Repeat([]byte{7}, 300)
	for what, x := range map[string]struct {
		set     func(w *world, n holdfast.Name, good []byte)
		damaged uint64
	}{
		"the good one was first": {func(w *world, n holdfast.Name, good []byte) {
			w.svc.Blocks[n], w.svc.Copies[n] = garbage, [][]byte{good}
		}, 0},
		"the good one is the newest": {func(w *world, n holdfast.Name, good []byte) {
			w.svc.Copies[n] = [][]byte{garbage}
		}, 0},
		"the good one is in the middle": {func(w *world, n holdfast.Name, good []byte) {
			w.svc.Blocks[n], w.svc.Copies[n] = garbage, [][]byte{garbage, good, garbage}
		}, 0},
		"the newest is damaged in the bucket": {func(w *world, n holdfast.Name, good []byte) {
			w.svc.State[n], w.svc.Copies[n] = wire.FrameDamaged, [][]byte{good}
		}, 0},
		"the last that there can be": {func(w *world, n holdfast.Name, good []byte) {
			c := make([][]byte, wire.MaxCopy)
			for i := range c {
				c[i] = garbage
			}
			c[len(c)-1] = good
			w.svc.Blocks[n], w.svc.Copies[n] = garbage, c
		}, 0},
		"none": {func(w *world, n holdfast.Name, good []byte) {
			w.svc.Blocks[n], w.svc.Copies[n] = garbage, [][]byte{garbage, garbage}
		}, 1},
		"none of very many": {func(w *world, n holdfast.Name, good []byte) {
			c := make([][]byte, wire.MaxCopy+10)
			for i := range c {
				c[i] = garbage
			}
			w.svc.Blocks[n], w.svc.Copies[n] = garbage, c
		}, 1},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, mixed)
			chunk := w.holding("a/one")[0]
			root := w.a.Commit.Root
			x.set(w, chunk, w.svc.Blocks[chunk])
			w.open()
			res, problems, err := w.extract(filepath.Join(t.TempDir(), "out"))
			if err != nil || uint64(res.Damaged) != x.damaged || uint64(len(problems)) != x.damaged {
				t.Errorf("a chunk: %+v, %+v, %v", res, problems, err)
			}
			x.set(w, root, w.svc.Blocks[root])
			w.open()
			if _, _, err := w.extract(filepath.Join(t.TempDir(), "out")); restore.Damaged(err) != (x.damaged > 0) || (err == nil) != (x.damaged == 0) {
				t.Errorf("the root: %v", err)
			}
		})
	}
}
