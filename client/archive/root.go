package archive

import (
	"holdfast"
	"holdfast/history"
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

// Encode returns the plaintext of the archive block and its links.
func (r *Root) Encode() (plain []byte, links []holdfast.Name, err error) { panic("archive: not yet") }

// ParseRoot decodes the plaintext of an archive block. The error wraps ErrDamaged.
func ParseRoot(plain []byte) (*Root, error) { panic("archive: not yet") }
