package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/catalog"
	"holdfast/client/remote"
	"holdfast/client/source"
	"holdfast/client/tree"
	"holdfast/internal/enc"
	"holdfast/wire"
)

// The service may find that bytes which it holds went bad, and says which blocks they are. A run treats files that use
// such a block as changed, so that its own archive is whole; what it stores under the name of a damaged block takes that
// block's place, for earlier archives as well. What is left then is put together again from the catalog, as far
// as the content is still there: packs from the files that were in them, nodes of the tree from the entries, and roots of
// archives from a small file beside the catalog. A name says what a block holds, so nothing wrong can be
// stored under it.

const (
	// maxMending bounds the packs that are put together at one time, 1 MiB each.
	maxMending = 16
	// maxRoots bounds the file with the roots of archives, bytes; the older half goes when it is full.
	maxRoots = 1 << 20
	// maxRoot bounds one of them.
	maxRoot = 64 << 10
)

// Damage is a block that the service said is damaged, and what became of it.
type Damage struct {
	Name     holdfast.Name
	Kind     holdfast.Kind
	Mine     bool // stored by this machine
	Repaired bool
}

// known is what the service said at the beginning of a run.
type known struct {
	asked  bool
	blocks []wire.Damaged
	more   bool
}

// learn asks what is damaged, once, and has its files read again.
func (r *run) learn(ctx context.Context) error {
	if r.cfg.Client == nil || r.cfg.DryRun || r.known.asked {
		return nil
	}
	blocks, more, err := r.cfg.Client.Damaged(ctx)
	if err != nil {
		return err
	}
	*r.known = known{true, blocks, more}
	mine := 0
	for _, d := range blocks {
		r.distrust[d.Name] = true
		if d.Mine {
			mine++
		}
	}
	if len(blocks) > 0 {
		beyond := ""
		if more {
			beyond = ", and knows of more"
		}
		r.cfg.Warn(fmt.Sprintf("the service holds %d damaged blocks, of which this machine stored %d%s; files that need them are read again", len(blocks), mine, beyond))
	}
	return nil
}

// repair stores again what is damaged still after the archive was made, as far as it can, and returns what became of all
// that was. The archive is whole without it: what goes wrong here is said and ends nothing.
func (r *run) repair(ctx context.Context, sess *remote.Session, path string, key holdfast.Key, b catalog.Binding) []Damage {
	if len(r.known.blocks) == 0 {
		return nil
	}
	left, err := r.left(ctx)
	if err == nil && len(left) > 0 {
		m := &mender{run: r, sess: sess, left: left, mended: map[holdfast.Name]bool{}, open: func() (*catalog.Reader, error) { return catalog.Open(path, key, b) }}
		err = m.all(ctx, r.rootsPath(b.Series))
		if err == nil {
			left, err = r.left(ctx)
		}
	}
	if err != nil {
		r.cfg.Warn(fmt.Sprintf("the archive is made; not all that is damaged was tried to be repaired: %v", err))
	}
	all := make([]Damage, len(r.known.blocks))
	for i, d := range r.known.blocks {
		_, bad := left[d.Name]
		all[i] = Damage{d.Name, d.Kind, d.Mine, !bad}
	}
	return all
}

// left asks which of the blocks that were damaged when the run began still are. After an error it takes all for it.
func (r *run) left(ctx context.Context) (map[holdfast.Name]holdfast.Kind, error) {
	now, more, err := r.cfg.Client.Damaged(ctx)
	left := map[holdfast.Name]holdfast.Kind{}
	if err == nil {
		for _, d := range now {
			left[d.Name] = d.Kind
		}
	}
	for _, d := range r.known.blocks {
		beyond := more && string(d.Name[:]) > string(now[len(now)-1].Name[:])
		if err != nil || beyond {
			left[d.Name] = d.Kind
		}
	}
	return left, err
}

// mender stores damaged blocks again. left is what is still damaged, as far as is known.
type mender struct {
	*run
	sess   *remote.Session
	left   map[holdfast.Name]holdfast.Kind
	mended map[holdfast.Name]bool // uploaded; the service need not say yet that it has them
	open   func() (*catalog.Reader, error)
}

// all repairs children before parents.
func (m *mender) all(ctx context.Context, roots string) error {
	err := m.packs(ctx)
	if err == nil {
		err = m.nodes(ctx)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrUnusable) {
		err = nil // nothing is remembered of what they held
	}
	if err == nil {
		err = m.roots(ctx, roots)
	}
	return errors.Join(err, m.sess.Drain(ctx))
}

// has reports whether a block of that kind is left to repair.
func (m *mender) has(kind holdfast.Kind) bool {
	for _, k := range m.left {
		if k == kind {
			return true
		}
	}
	return false
}

// store seals and uploads a block if it is one that is damaged, unless it would be refused for want of what it links to.
func (m *mender) store(ctx context.Context, kind holdfast.Kind, plain []byte, links []holdfast.Name, frames []int) (holdfast.Name, error) {
	name := m.keys.NameOf(kind, plain)
	if k, ok := m.left[name]; !ok || k != kind {
		return name, nil
	}
	for part := range slices.Chunk(links, holdfast.MaxHave) {
		have, err := m.sess.Have(ctx, part)
		if err != nil {
			return name, err
		}
		for i, n := range part {
			if !have[i] && !m.mended[n] {
				return name, nil
			}
		}
	}
	sealed, err := m.sess.Secret().Seal(name, kind, plain, links, frames)
	if err != nil {
		return name, fmt.Errorf("seal %s: %w", kind, err)
	}
	if err := m.sess.Upload(ctx, name, sealed); err != nil {
		return name, err
	}
	delete(m.left, name)
	m.mended[name] = true
	return name, nil
}

// mending is a pack that is being put together.
type mending struct {
	buf   []byte
	got   int
	parts map[uint32]bool   // extents that are in it, by where they begin
	ends  map[uint32]uint32 // where the members that are in it end, by where they begin
}

// packs repairs packs of which all members are still what they were. It walks the tree once, and again only if more packs
// than maxMending are interleaved.
func (m *mender) packs(ctx context.Context) error {
	if !m.has(holdfast.KindPack) {
		return nil
	}
	tried := map[holdfast.Name]bool{}
	for again := true; again; {
		rd, err := m.open()
		if err != nil {
			return err
		}
		again, err = m.walkPacks(ctx, rd, tried)
		rd.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// walkPacks is one walk. It returns true if there was no room for a pack that was not tried yet.
func (m *mender) walkPacks(ctx context.Context, rd *catalog.Reader, tried map[holdfast.Name]bool) (again bool, err error) {
	prev := newPrevious(rd, nil)
	open := map[holdfast.Name]*mending{}
	passed := map[holdfast.Name]bool{} // a member went by while there was no room
	wanted := func(x archive.Extent) (p *mending, total uint64) {
		k := rd.Packs()[x.Name]
		if x.Kind != holdfast.KindPack || m.left[x.Name] != holdfast.KindPack || k.Total > packMax || k.Live < k.Total || tried[x.Name] && open[x.Name] == nil {
			return nil, 0
		}
		p = open[x.Name]
		if p == nil && (len(open) == maxMending || passed[x.Name]) {
			passed[x.Name], again = true, true
		} else if p == nil {
			p = &mending{buf: make([]byte, k.Total), parts: map[uint32]bool{}, ends: map[uint32]uint32{}}
			open[x.Name], tried[x.Name] = p, true
		}
		return p, k.Total
	}
	err = source.Walk(ctx, m.cfg.Base, m.cfg.Roots, source.Options{Exclude: m.rules}, func(it *source.Item) error {
		if it.Verdict.What != 0 || !isFile(&it.Entry) || it.Entry.Size > SmallFile {
			return context.Cause(ctx)
		}
		old, _ := prev.find(it.Entry.Path)
		if old == nil || !slices.ContainsFunc(old.Entry.Extents, func(x archive.Extent) bool { p, _ := wanted(x); return p != nil }) {
			return context.Cause(ctx)
		}
		f, err := it.Open()
		if err != nil {
			return nil // it is not there any more
		}
		defer f.Close()
		e := archive.Entry{Type: archive.TypeFile, Size: it.Entry.Size}
		_, cut, err := m.readSmall(f, &e)
		if err != nil || cut || !sameContent(&old.Entry, &e) {
			return context.Cause(ctx)
		}
		at, data := 0, m.small
		begin := -1 // of the file's own data in its pack
		for _, x := range old.Entry.Extents {
			if x.Hole() {
				continue
			}
			part := data[at:]
			if uint64(len(part)) < x.Len {
				break
			}
			part = part[:x.Len]
			at += len(part)
			p, total := wanted(x)
			if p == nil || uint64(x.Off)+x.Len > total {
				continue
			}
			copy(p.buf[x.Off:], part)
			if begin < 0 {
				begin = int(x.Off)
			}
			if !p.parts[x.Off] {
				p.parts[x.Off] = true
				p.got += len(part)
			}
			p.ends[uint32(begin)] = x.Off + uint32(len(part))
			if uint64(p.got) < total {
				continue
			}
			if err := m.storePack(ctx, p); err != nil {
				return err
			}
			delete(open, x.Name)
		}
		return context.Cause(ctx)
	})
	return again, err
}

// storePack stores a pack if its members fill it without a gap.
func (m *mender) storePack(ctx context.Context, p *mending) error {
	var frames []int
	for at := uint32(0); int(at) < len(p.buf); {
		end, ok := p.ends[at]
		if !ok || end <= at {
			return nil
		}
		frames = append(frames, int(end-at))
		at = end
	}
	_, err := m.store(ctx, holdfast.KindPack, p.buf, nil, frames)
	return err
}

// nodes builds the tree of the archive before once more, from the catalog, and stores those of its nodes that are
// damaged.
func (m *mender) nodes(ctx context.Context) error {
	if !m.has(holdfast.KindTree) {
		return nil
	}
	rd, err := m.open()
	if err != nil {
		return err
	}
	defer rd.Close()
	b := tree.NewBuilder(&m.keys.Meta, func(ctx context.Context, kind holdfast.Kind, plain []byte, links []holdfast.Name) (holdfast.Name, error) {
		return m.store(ctx, kind, plain, links, nil)
	})
	for {
		it, err := rd.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := b.Add(ctx, &it.Entry); err != nil {
			return err
		}
	}
	_, _, err = b.Finish(ctx)
	return err
}

// rootsPath is where the roots of a series' archives are kept, one after another as u32 length and plaintext; "" if
// nowhere. Nobody trusts it: a root is used only under the name that follows from it.
func (r *run) rootsPath(s holdfast.SeriesID) string {
	if r.cfg.CacheDir == "" {
		return ""
	}
	return filepath.Join(r.cfg.CacheDir, "roots-"+s.String())
}

// roots stores roots of archives that are damaged.
func (m *mender) roots(ctx context.Context, path string) error {
	if path == "" || !m.has(holdfast.KindArchive) {
		return nil
	}
	all, err := readRoots(path)
	if err != nil {
		return err
	}
	for _, plain := range all {
		root, err := archive.ParseRoot(plain)
		if err != nil {
			continue
		}
		again, links, err := root.Encode()
		if err != nil || string(again) != string(plain) {
			continue
		}
		if _, err := m.store(ctx, holdfast.KindArchive, plain, links, nil); err != nil {
			return err
		}
	}
	return nil
}

// readRoots returns the roots in a file, oldest first, as far as they can be read.
func readRoots(path string) ([][]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxRoots+maxRoot+4))
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for r := enc.NewReader(raw); r.Len() > 0; {
		plain := r.LP(maxRoot)
		if r.Err() != nil {
			break // a write that did not end
		}
		all = append(all, plain)
	}
	return all, nil
}

// keepRoot remembers the root of a new archive, for the day on which the service damages it.
func (r *run) keepRoot(path string, plain []byte) {
	if path == "" || len(plain) > maxRoot {
		return
	}
	all, err := readRoots(path)
	if err == nil {
		all = append(all, plain)
		size := 0
		for _, p := range all {
			size += 4 + len(p)
		}
		for size > maxRoots {
			half := len(all)/2 + 1
			for _, p := range all[:half] {
				size -= 4 + len(p)
			}
			all = all[half:]
		}
		var b []byte
		for _, p := range all {
			b = enc.AppendLP(b, p)
		}
		tmp := path + ".new"
		if err = os.WriteFile(tmp, b, 0o600); err == nil {
			err = os.Rename(tmp, path)
		}
	}
	if err != nil {
		r.cfg.Warn(fmt.Sprintf("cannot remember the archive's root (%v); if the service loses it, no later run can bring it back", err))
	}
}
