// Package archivetest makes entries of archives for tests: every type, awkward names, contents of every
// form. Equal seeds give equal entries.
package archivetest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"holdfast"
	"holdfast/client/archive"
)

// Entries returns about n entries of a directory tree, in the archive's order.
func Entries(seed uint64, n int) []*archive.Entry {
	g := &generator{rng: rand.New(rand.NewPCG(seed, 1))}
	var out []*archive.Entry
	g.dir("", 0, n, &out)
	slices.SortFunc(out, func(a, b *archive.Entry) int { return archive.ComparePaths(a.Path, b.Path) })
	return out
}

// Name returns a block name that depends on what alone.
func Name(what ...any) holdfast.Name { return sha256.Sum256(fmt.Append(nil, what...)) }

// Chunks returns extents over n different chunks of one file.
func Chunks(file string, n int) (xs []archive.Extent, size uint64) {
	for i := range n {
		x := archive.Extent{Kind: holdfast.KindChunk, Name: Name(file, i), Len: 200_000 + uint64(i%1000)*100}
		xs = append(xs, x)
		size += x.Len
	}
	return xs, size
}

type generator struct {
	rng   *rand.Rand
	files []string // paths of files so far, for hard links
}

func (g *generator) dir(path string, depth, n int, out *[]*archive.Entry) {
	used := map[string]bool{}
	for n > 0 {
		name := g.name()
		if used[name] {
			continue
		}
		used[name] = true
		p := name
		if path != "" {
			p = path + "/" + name
		}
		e := g.entry(p)
		*out = append(*out, e)
		n--
		if e.Type == archive.TypeDir && depth < 20 && n > 0 {
			inside := g.rng.IntN(n + 1)
			g.dir(p, depth+1, inside, out)
			n -= inside
		}
	}
}

// name returns a component: mostly plain, at times anything a file system takes.
func (g *generator) name() string {
	switch g.rng.IntN(8) {
	case 0:
		b := make([]byte, 1+g.rng.IntN(12))
		for i := range b {
			for b[i] == 0 || b[i] == '/' {
				b[i] = byte(g.rng.Uint32())
			}
		}
		if s := string(b); s != "." && s != ".." {
			return s
		}
	case 1:
		return fmt.Sprintf("%0*d", 200+g.rng.IntN(56), g.rng.IntN(1e6))
	}
	return fmt.Sprintf("f%d.go", g.rng.IntN(1e6))
}

func (g *generator) entry(path string) *archive.Entry {
	r := g.rng
	e := &archive.Entry{
		Path:  path,
		Type:  []archive.Type{1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 5, 6, 7}[r.IntN(13)],
		Mode:  uint32(r.IntN(0o10000)),
		UID:   uint32(r.IntN(2) * 1000),
		GID:   r.Uint32() >> r.IntN(32),
		User:  []string{"", "root", "al\xffice"}[r.IntN(3)],
		Group: []string{"", "wheel"}[r.IntN(2)],
		Mtime: archive.Time{Sec: int64(r.Uint64()) >> r.IntN(64), Nsec: r.Uint32N(1e9)},
		Flags: archive.Flags(r.IntN(10) / 9),
	}
	switch e.Type {
	case archive.TypeSymlink:
		e.Target = "../" + g.name()
	case archive.TypeChar, archive.TypeBlock:
		e.Major, e.Minor = r.Uint32N(300), r.Uint32()
	case archive.TypeFile:
		g.content(e)
	}
	for i := range r.IntN(8) / 5 {
		e.Xattrs = append(e.Xattrs, archive.Xattr{Name: fmt.Sprintf("user.%d", i), Value: make([]byte, r.IntN(50))})
	}
	return e
}

// content gives a file one of the contents that files have.
func (g *generator) content(e *archive.Entry) {
	r := g.rng
	switch k := r.IntN(20); {
	case k == 0 && len(g.files) > 0:
		l := g.files[r.IntN(len(g.files))]
		if archive.ComparePaths(l, e.Path) < 0 {
			e.Link = l
			return
		}
	case k == 1:
		e.Flags |= archive.FlagUnreadable
		e.Size = r.Uint64N(1 << 40)
		return
	case k == 2: // a sparse file
		e.Extents = []archive.Extent{
			{Len: 1 << 40},
			{Kind: holdfast.KindChunk, Name: Name(e.Path), Len: 4096},
			{Len: 1 + r.Uint64N(1<<20)},
		}
	case k == 3: // a large file, at times a very large one
		e.Extents, _ = Chunks(e.Path, 1+r.IntN(10)*r.IntN(10)*r.IntN(20))
	case k == 4: // an empty file
	default:
		pack := Name("pack", r.IntN(20))
		e.Extents = []archive.Extent{{Kind: holdfast.KindPack, Name: pack, Off: r.Uint32N(1 << 20), Len: 1 + r.Uint64N(65536)}}
		binary.BigEndian.PutUint64(e.Content[:], 1+r.Uint64N(1<<60))
	}
	for _, x := range e.Extents {
		e.Size += x.Len
	}
	g.files = append(g.files, e.Path)
}
