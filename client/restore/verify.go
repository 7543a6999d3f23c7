package restore

import (
	"context"
	"fmt"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/history"
)

// seenBlocks bounds how many blocks a verification of several archives remembers as good; beyond it,
// blocks that archives share are fetched again.
const seenBlocks = 1 << 20

// Verified is what came of verifying one archive.
type Verified struct {
	Archive history.Archive
	Result  Result
	Err     error // set where so much is damaged that the rest could not be checked
}

// Verify reads back everything that the archives hold, and checks it: each tree and verdict list, each
// block, that each file's extents fit their blocks, and that hard links lead to files. Blocks that archives share are read once.
// before is called before each archive and may be nil. An archive that is damaged does not keep the
// others from being checked; the error is of something else, and what was verified until then is returned.
func (v *Vault) Verify(ctx context.Context, as []history.Archive, opt Options, before func(history.Archive, *archive.Root)) ([]Verified, error) {
	var all []Verified
	seen := map[[16]byte]uint32{}
	for _, a := range as {
		r, err := v.newRun(ctx, a, opt)
		if err != nil {
			return all, err
		}
		r.seen = seen
		root, err := v.Root(ctx, a)
		if err == nil {
			if before != nil {
				before(a, root)
			}
			err = r.verify(root)
		}
		if err != nil && !Damaged(err) {
			return all, err
		}
		all = append(all, Verified{a, r.result(), err})
	}
	return all, nil
}

func (r *run) verify(root *archive.Root) error {
	if err := r.v.Verdicts(r.ctx, r.a, root, func(archive.Verdict) error { return nil }); err != nil {
		return err
	}
	r.tree = r.v.Tree(r.a, root)
	if err := r.walk(r.tree, []string{""}); err != nil {
		return err
	}
	if err := r.flush(); err != nil {
		return err
	}
	if r.entries != root.Entries {
		return fmt.Errorf("verify archive: %w: its tree has %d entries, and its root says %d", archive.ErrDamaged, r.entries, root.Entries)
	}
	return nil
}

// known reports whether a block was found good earlier in a verification.
func (r *run) known(name holdfast.Name) bool {
	_, ok := r.seen[[16]byte(name[:16])]
	return ok
}

// remember notes a good block.
func (r *run) remember(name holdfast.Name, size int) {
	if r.seen == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) < seenBlocks {
		r.seen[[16]byte(name[:16])] = uint32(size)
	}
}

// recheck checks the window's pieces of blocks that are known to be good.
func (r *run) recheck() error {
	for _, p := range r.pieces {
		size, ok := r.seen[[16]byte(p.name[:16])]
		if !ok {
			continue
		}
		f := r.files[p.file]
		if err := fits(p, 0, int(size)); err != nil {
			if !f.bad.Swap(true) {
				r.problem(f.e.Path, err)
			}
		} else {
			r.opt.Progress.Bytes.Add(uint64(p.len))
		}
		if f.left.Add(-1) > 0 {
			continue
		}
		if err := r.complete(f); err != nil {
			return err
		}
	}
	return nil
}
