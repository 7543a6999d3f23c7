package backup

import (
	"encoding/binary"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/catalog"
)

const (
	// SmallFile is the size up to which a file's content goes into packs, bytes.
	SmallFile = 64 << 10

	// A pack ends after a member whose content decides so, which happens on average packTarget-packMin
	// bytes after packMin, and never exceeds packMax.
	packMin    = 256 << 10
	packTarget = 512 << 10
	packMax    = 1 << 20

	// pendingBytes bounds the entries that wait for the name of the pack that a file before them is in.
	pendingBytes = 16 << 20
)

// packer gathers the contents of small files. Entries pass through it in the archive's order; while a
// pack is open, they wait for its name.
type packer struct {
	pipe *pipeline
	emit func(*catalog.Item) error

	buf     []byte // of the open pack
	frames  []int  // by member
	refs    []ref  // into the open pack
	waiting []*catalog.Item
	bytes   int // that waiting holds, about
	totals  map[holdfast.Name]uint64
}

// ref is an extent that will name the open pack.
type ref struct {
	entry  *archive.Entry
	extent int
}

// add takes an entry that needs nothing of the open pack.
func (p *packer) add(it *catalog.Item) error {
	if len(p.buf) == 0 {
		return p.emit(it)
	}
	p.waiting = append(p.waiting, it)
	e := &it.Entry
	p.bytes += 400 + len(e.Path) + len(e.Target) + 56*len(e.Extents)
	for _, x := range e.Xattrs {
		p.bytes += 64 + len(x.Name) + len(x.Value)
	}
	if p.bytes > pendingBytes {
		return p.close()
	}
	return nil
}

// addSmall takes an entry with its content: data holds the bytes of all extents that are not holes.
// hash is the keyed hash of the whole content; it decides whether the pack ends here.
func (p *packer) addSmall(it *catalog.Item, data []byte, hash holdfast.Name) error {
	if len(data) == 0 {
		return p.add(it)
	}
	if len(p.buf)+len(data) > packMax {
		if err := p.close(); err != nil {
			return err
		}
	}
	if p.buf == nil {
		p.buf = make([]byte, 0, packTarget+packMin)
	}
	off := uint32(len(p.buf))
	for i := range it.Entry.Extents {
		x := &it.Entry.Extents[i]
		if x.Hole() {
			continue
		}
		x.Kind, x.Off = holdfast.KindPack, off
		off += uint32(x.Len)
		p.refs = append(p.refs, ref{&it.Entry, i})
	}
	p.buf = append(p.buf, data...)
	p.frames = append(p.frames, len(data))
	if err := p.add(it); err != nil || len(p.buf) == 0 {
		return err
	}
	// A member of n bytes ends the pack with probability n/(target-min), so that where packs end depends
	// on the contents near by and not on their number.
	if len(p.buf) >= packMin && binary.BigEndian.Uint64(hash[24:])>>32 < uint64(len(data))<<32/(packTarget-packMin) {
		return p.close()
	}
	return nil
}

// close ends the open pack and lets go what waited for it.
func (p *packer) close() error {
	if len(p.buf) > 0 {
		size := uint64(len(p.buf))
		name, err := p.pipe.put(holdfast.KindPack, p.buf, nil, p.frames, false)
		if err != nil {
			return err
		}
		p.totals[name] = size
		for _, r := range p.refs {
			r.entry.Extents[r.extent].Name = name
		}
	}
	p.buf, p.frames, p.refs, p.bytes = nil, nil, p.refs[:0], 0
	for i, it := range p.waiting {
		if err := p.emit(it); err != nil {
			return err
		}
		p.waiting[i] = nil
	}
	p.waiting = p.waiting[:0]
	return nil
}
