package backup

import (
	"holdfast"
	"holdfast/client/archive"
	"holdfast/client/catalog"
)

// previous reads the catalog of the archive before in step with the walk. A nil previous finds nothing.
type previous struct {
	r        *catalog.Reader
	next     *catalog.Item // not yet passed; nil at the end
	packs    map[holdfast.Name]catalog.Pack
	distrust map[holdfast.Name]bool
}

func newPrevious(r *catalog.Reader, distrust map[holdfast.Name]bool) *previous {
	p := &previous{r: r, packs: r.Packs(), distrust: distrust}
	p.advance()
	return p
}

// advance moves to the next item. An error is as good as the end: what follows is read again.
func (p *previous) advance() {
	p.next = nil
	if it, err := p.r.Next(); err == nil {
		p.next = &it
	}
}

// find returns the item of path, or nil, and whether its content is to be read again although the file
// is unchanged. Paths must come in the archive's order.
func (p *previous) find(path string) (it *catalog.Item, renew bool) {
	if p == nil {
		return nil, false
	}
	for p.next != nil {
		c := archive.ComparePaths(p.next.Entry.Path, path)
		if c > 0 {
			return nil, false
		}
		it := p.next
		p.advance()
		if c == 0 {
			return it, p.renew(&it.Entry)
		}
	}
	return nil, false
}

// renew reports whether e refers to a block that the service said is missing, or to a pack of which less
// than half is still used.
func (p *previous) renew(e *archive.Entry) bool {
	for _, x := range e.Extents {
		if p.distrust[x.Name] {
			return true
		}
		if k := p.packs[x.Name]; x.Kind == holdfast.KindPack && k.Live*2 < k.Total {
			return true
		}
	}
	return false
}
