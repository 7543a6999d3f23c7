package sim

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/restore"
	"holdfast/history"
	"holdfast/wire"
)

// TestHostileWriter gives a thief the key of a machine that may write in a group. He knows what another machine
// of the group is going to back up, and so the name of each block, and stores something else under it first,
// which the service cannot tell. That machine's archive is poisoned, and nothing is worse than that: no wrong
// byte is ever restored, the group's earlier archives and the other group's are whole, and when the owner has
// revoked the thief, the next backup of the same files stores what was poisoned anew and comes back.
func TestHostileWriter(t *testing.T) {
	dir, other := tree(t, 1, 900<<10), tree(t, 2, 300<<10)
	// What the victim will store: names depend on the group's keys and on the files alone.
	var targets []stored
	inWorld(t, owner, func(w *world) {
		w.first.backup(dir, "s")
		w.journaled(func(r any) {
			if b, ok := r.(stored); ok && b.Kind != holdfast.KindArchive { // the root holds the time
				targets = append(targets, b)
			}
		})
	})
	trees := slices.DeleteFunc(slices.Clone(targets), func(b stored) bool { return b.Kind != holdfast.KindTree })
	if len(targets) < 15 || len(trees) == 0 {
		t.Fatalf("%d blocks, %d of them trees", len(targets), len(trees))
	}
	garbage := func(sid holdfast.SessionID, kind holdfast.Kind, size int, links ...holdfast.Name) []byte {
		return append(wire.AppendBlockHeader(nil, wire.BlockHeader{Kind: kind, Session: sid, Links: links}), random(size)...)
	}
	for what, forge := range map[string]func(sid holdfast.SessionID, own []byte, b stored) []byte{
		"garbage": func(sid holdfast.SessionID, _ []byte, b stored) []byte {
			return garbage(sid, b.Kind, len(b.sealed)-wire.BlockHeaderSize(len(b.Links)), b.Links...)
		},
		"no links": func(sid holdfast.SessionID, _ []byte, b stored) []byte { return garbage(sid, b.Kind, 500) },
		"links to something else": func(sid holdfast.SessionID, _ []byte, b stored) []byte {
			if b.Kind.Leaf() {
				return garbage(sid, b.Kind, 500)
			}
			return garbage(sid, b.Kind, 500, targets[0].Name)
		},
		"trees where chunks belong": func(sid holdfast.SessionID, _ []byte, b stored) []byte { return garbage(sid, holdfast.KindTree, 500) },
		"another block of his":      func(_ holdfast.SessionID, own []byte, b stored) []byte { return own },
		"one block only": func(sid holdfast.SessionID, _ []byte, b stored) []byte {
			if b.Name != targets[3].Name {
				return nil
			}
			return garbage(sid, b.Kind, 500)
		},
	} {
		t.Run(what, func(t *testing.T) {
			inWorld(t, owner, func(w *world) {
				victim, thief, far := w.first, w.enrol(1, holdfast.RightWrite), w.enrol(2, holdfast.RightsAll)
				early, _ := victim.backup(other, "early")
				farEarly, _ := far.backup(dir, "far")

				// The thief is quicker.
				sess, err := thief.c.OpenSession(w.Context())
				if err != nil {
					w.Fatal(err)
				}
				keys, plain := thief.GroupKeys(), random(3000)
				own, err := sess.Secret().Seal(keys.NameOf(holdfast.KindChunk, plain), holdfast.KindChunk, plain, nil, nil)
				if err != nil {
					w.Fatal(err)
				}
				poisoned := 0
				for _, b := range targets {
					if bad := forge(sess.Secret().ID, own, b); bad != nil {
						if err := sess.Upload(w.Context(), b.Name, bad); err != nil {
							w.Fatal(err)
						}
						poisoned++
					}
				}
				if err := sess.Drain(w.Context()); err != nil {
					w.Fatal(err)
				}
				if n := sess.Stats().Stored; n != uint64(poisoned) {
					w.Fatalf("of %d blocks %d were stored", poisoned, n)
				}
				sess.Close()

				// The victim is told that the blocks are there.
				r, err := backup.Run(w.Context(), victim.config(dir, "s"))
				if err != nil && !errors.Is(err, backup.ErrNotKept) { // a sample that it reads back may show it
					w.Fatal(err)
				}
				bad := r.Archive
				if r.KnownBlocks < uint64(poisoned) {
					w.Fatalf("%d blocks were known: nothing is poisoned", r.KnownBlocks)
				}
				w.poisoned(bad, dir)
				victim.restores(early, other)
				far.restores(farEarly, dir)
				farLate, _ := far.backup(dir, "far")
				far.restores(farLate, dir)

				// The owner hears of the theft.
				w.ownerSays(history.TypeRevoke, history.Revoke{Signer: thief.Signer(), Since: 1}.Encode())
				if _, err := thief.c.OpenSession(w.Context()); wire.CodeOf(err) != wire.CodeRevoked {
					w.Errorf("the thief opens another session: %v", err)
				}
				good, r := victim.backup(dir, "s")
				if got := r.DataBlocks + r.MetaBlocks; got < uint64(poisoned) {
					w.Errorf("%d blocks were uploaded, of %d that are poisoned", got, poisoned)
				}
				for range 2 {
					victim.restores(good, dir)
					victim.restores(bad, dir) // it names the same blocks, which are whole now
					victim.restores(early, other)
					far.restores(farEarly, dir)
					far.restores(farLate, dir)
					w.crash() // and with a view that is made from the bucket
				}
			})
		})
	}
}

// poisoned fails unless an archive is found to be damaged, and what comes back of it is right.
func (w *world) poisoned(a history.Archive, dir string) {
	w.Helper()
	v := w.first.open()
	all, err := v.Verify(w.Context(), []history.Archive{a}, restore.Options{}, nil)
	if err != nil || all[0].Err == nil && all[0].Result.Damaged == 0 {
		w.Errorf("verify of a poisoned archive: %+v, %v", all, err)
	}
	out := filepath.Join(w.TempDir(), "out")
	var named []error
	r, err := w.first.open().Extract(w.Context(), a, out, restore.Options{Problem: func(p restore.Problem) { named = append(named, p.Err) }})
	if err != nil {
		named = append(named, err)
	} else if r.Damaged == 0 {
		w.Errorf("extract of a poisoned archive: %+v", r)
	}
	for _, err := range named {
		if !restore.Damaged(err) || !errors.As(err, new(*restore.BlockError)) {
			w.Errorf("a poisoned block is not named: %v", err)
		}
	}
	want := contents(w, dir)
	slices.Sort(want)
	for _, f := range contents(w, out) {
		if _, found := slices.BinarySearch(want, f); !found {
			w.Errorf("wrong bytes were restored: %.40s", f)
		}
	}
}
