package source

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// place is a root as the user gave it, split into where it starts and its archive path.
type place struct {
	given  string
	start  string   // directory from which parts are entered
	parts  []string // components of the archive path; none: all that is in start
	follow bool     // ended in a slash: what a symbolic link points to is meant
}

func parseRoot(base, root string) (place, error) {
	p := place{given: root}
	if root == "" || strings.IndexByte(root, 0) >= 0 {
		return p, fmt.Errorf("path %q cannot be backed up: it is not a file name", root)
	}
	slashed := filepath.ToSlash(root)
	if vol := filepath.VolumeName(root); vol != "" || strings.HasPrefix(slashed, "/") {
		p.start = vol + string(filepath.Separator)
		slashed = slashed[len(vol):]
	} else if p.start = base; base == "" {
		p.start = "."
	}
	p.follow = strings.HasSuffix(slashed, "/")
	for part := range strings.SplitSeq(slashed, "/") {
		switch part {
		case "", ".":
		case "..":
			// As tar does: the name begins after the last "..". The file system resolves what is before it.
			p.start = strings.Join(append([]string{p.start}, append(p.parts, "..")...), string(filepath.Separator))
			p.parts = nil
		default:
			p.parts = append(p.parts, part)
		}
	}
	return p, nil
}

// node is a component of the roots' archive paths.
type node struct {
	name   string
	given  string // one root that led here, for messages
	root   bool   // walk all of it; kids, if any, are then part of it
	follow bool
	kids   []*node // sorted by name
}

func (n *node) insert(p place, parts []string) {
	if len(parts) == 0 {
		n.root = true
		n.follow = n.follow || p.follow
		return
	}
	i, found := slices.BinarySearchFunc(n.kids, parts[0], func(k *node, name string) int { return strings.Compare(k.name, name) })
	if !found {
		n.kids = slices.Insert(n.kids, i, &node{name: parts[0], given: p.given})
	}
	n.kids[i].insert(p, parts[1:])
}

// errOverlap says that two roots claim one archive path.
func errOverlap(a, b, name string) error {
	if name == "" {
		return fmt.Errorf("paths %q and %q would be mixed in the archive: back them up separately, or name both below one -C directory", a, b)
	}
	return fmt.Errorf("paths %q and %q would both be %q in the archive: back them up separately, or name both below one -C directory", a, b, name)
}
