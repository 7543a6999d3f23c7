package archive

import (
	"encoding/binary"
	"fmt"
	"slices"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
)

// Limits on a root.
const (
	MaxHeight  = 16       // levels of a tree
	MaxText    = 64 << 10 // bytes of each text: host, user, series, client, a given path, an option
	MaxTexts   = 16384    // number of given paths, and of options
	maxAllText = 3 << 20  // bytes of all texts together, so that a root stays below holdfast.MaxPlain

	maxVerdictChunks = holdfast.MaxLinks - 1 // the tree takes one link
	rootVersion      = 1
)

// Root is the one block that a commit record names: everything about an archive but its entries.
type Root struct {
	Tree     holdfast.Name // root node of the tree; zeros when there are no entries
	Height   int           // levels of the tree; 0 when there are no entries, 1 for a single leaf
	Entries  uint64        // entries of the tree
	Bytes    uint64        // sum of Entry.Stored over the tree
	Time     int64         // the client's clock when the run began, ns since 1970
	Host     string        // name of the machine
	User     string        // who ran the client
	Series   string        // the name behind history.Commit.Series
	Client   string        // the client's version
	Roots    []string      // the paths given, as given
	Args     []string      // the options that decided what was stored
	Counts   history.Counts
	Verdicts []holdfast.Name   // the chunks of the verdict list, in order
	Prev     holdfast.RecordID // the archive of the same series that this run started from; zeros for none
}

// Encode returns the plaintext of the archive block and its links. The error wraps ErrEntry.
func (r *Root) Encode() (plain []byte, links []holdfast.Name, err error) {
	if err := r.check(); err != nil {
		return nil, nil, fmt.Errorf("%w: root: %w", ErrEntry, err)
	}
	links = slices.Clone(r.Verdicts)
	if r.Height > 0 {
		links = append(links, r.Tree)
	}
	slices.SortFunc(links, compareNames)
	links = slices.Compact(links)
	place := func(b []byte, n holdfast.Name) []byte {
		i, _ := slices.BinarySearchFunc(links, n, compareNames)
		return binary.BigEndian.AppendUint16(b, uint16(i))
	}
	b := appendTable(nil, links)
	b = append(b, rootVersion, byte(r.Height))
	if r.Height > 0 {
		b = place(b, r.Tree)
	}
	b = binary.BigEndian.AppendUint64(b, r.Entries)
	b = binary.BigEndian.AppendUint64(b, r.Bytes)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Time))
	for _, s := range []string{r.Host, r.User, r.Series, r.Client} {
		b = enc.AppendVLP(b, []byte(s))
	}
	for _, l := range [][]string{r.Roots, r.Args} {
		b = binary.AppendUvarint(b, uint64(len(l)))
		for _, s := range l {
			b = enc.AppendVLP(b, []byte(s))
		}
	}
	for _, v := range counts(&r.Counts) {
		b = binary.BigEndian.AppendUint64(b, *v)
	}
	b = binary.AppendUvarint(b, uint64(len(r.Verdicts)))
	for _, n := range r.Verdicts {
		b = place(b, n)
	}
	return append(b, r.Prev[:]...), links, nil
}

func counts(c *history.Counts) []*uint64 {
	return []*uint64{&c.Stored, &c.Unchanged, &c.Excluded, &c.Vanished, &c.Changed, &c.Unreadable}
}

func (r *Root) check() error {
	switch {
	case r.Height < 0 || r.Height > MaxHeight:
		return fmt.Errorf("tree of %d levels", r.Height)
	case (r.Height == 0) != (r.Tree == holdfast.Name{}) || (r.Height == 0) != (r.Entries == 0):
		return fmt.Errorf("tree of %d levels with %d entries and root %.8s", r.Height, r.Entries, r.Tree)
	case r.Entries == 0 && r.Bytes != 0:
		return fmt.Errorf("%d bytes in no entry", r.Bytes)
	case len(r.Roots) > MaxTexts || len(r.Args) > MaxTexts:
		return fmt.Errorf("%d paths and %d options", len(r.Roots), len(r.Args))
	case len(r.Verdicts) > maxVerdictChunks:
		return fmt.Errorf("%d chunks of verdicts", len(r.Verdicts))
	}
	all := 0
	for _, l := range [][]string{{r.Host, r.User, r.Series, r.Client}, r.Roots, r.Args} {
		for _, s := range l {
			if all += len(s); len(s) > MaxText || all > maxAllText {
				return fmt.Errorf("text of %d bytes", len(s))
			}
		}
	}
	return nil
}

// ParseRoot decodes the plaintext of an archive block. The error wraps ErrDamaged.
func ParseRoot(plain []byte) (*Root, error) {
	rd := enc.NewReader(plain)
	t := readTable(rd)
	r := &Root{}
	if v := rd.U8(); rd.Err() == nil && v != rootVersion {
		rd.Fail("version %d is not %d: use a newer holdfast", v, rootVersion)
	}
	r.Height = int(rd.U8())
	if r.Height > 0 {
		r.Tree = t.ref(rd)
	}
	r.Entries, r.Bytes, r.Time = rd.U64(), rd.U64(), rd.I64()
	for _, s := range []*string{&r.Host, &r.User, &r.Series, &r.Client} {
		*s = string(rd.VLP(MaxText))
	}
	for _, l := range []*[]string{&r.Roots, &r.Args} {
		n := rd.UvarintMax(MaxTexts)
		for i := uint64(0); i < n && rd.Err() == nil; i++ {
			*l = append(*l, string(rd.VLP(MaxText)))
		}
	}
	for _, v := range counts(&r.Counts) {
		*v = rd.U64()
	}
	n := rd.UvarintMax(maxVerdictChunks)
	for i := uint64(0); i < n && rd.Err() == nil; i++ {
		r.Verdicts = append(r.Verdicts, t.ref(rd))
	}
	rd.Fixed(r.Prev[:])
	if rd.Err() == nil {
		if err := r.check(); err != nil {
			rd.Fail("%w", err)
		}
	}
	if err := t.done(rd); err != nil {
		return nil, fmt.Errorf("%w: root: %w", ErrDamaged, err)
	}
	return r, nil
}
