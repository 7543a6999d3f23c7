package history

import (
	"maps"
	"slices"

	"holdfast"
)

// MinAge is how old an archive must be before a policy expires it, ns: 30 days.
const MinAge = 30 * 86400 * 1e9

// Undelete is the time in which deleted archives can be brought back, now and to come.
type Undelete struct {
	Seconds uint64 // 0 means DefaultDelay
	Next    uint64 // a shorter time that will hold from At on; 0 for none
	At      int64  // ns
}

// In returns the time in force at a moment (ns), in seconds.
func (u Undelete) In(at int64) uint64 {
	switch {
	case u.Next != 0 && at >= u.At:
		return u.Next
	case u.Seconds != 0:
		return u.Seconds
	}
	return DefaultDelay
}

// Past is what Jumped looks at of one complete archive.
type Past struct {
	Paths     uint64 // stored or unchanged
	Unchanged uint64
}

// PastOf returns what Jumped looks at of c.
func PastOf(c Commit) Past { return Past{c.Counts.Stored + c.Counts.Unchanged, c.Counts.Unchanged} }

// MaxPast is how many complete archives before one Jumped compares it with.
const MaxPast = 8

// Series is what a vault knows of one series beside its archives.
type Series struct {
	Past      []Past // of the newest complete archives, at most MaxPast, oldest first
	Jumped    uint64 // number of the newest commit that jumped; 0 for none
	Confirmed uint64 // number of the owner's newest confirmation; 0 for none
}

// Unconfirmed reports whether the series jumped and its owner has not confirmed that.
func (s Series) Unconfirmed() bool { return s.Jumped > s.Confirmed }

// Jumped reports whether c differs abruptly from the complete archives of its series before it.
func Jumped(past []Past, c Commit) bool { return false }

// Decision says whether a policy keeps an archive.
type Decision struct {
	ID   holdfast.RecordID
	Keep bool
	Why  []string // each rule that keeps it, or why none does
}

// Keep says which of the archives of one series policy keeps, and why: one decision for each, in their order.
func Keep(p Policy, archives []Archive) []Decision { return nil }

// PolicyFor returns the policy in force for a series, and whether there is one that may expire anything.
func (v *Vault) PolicyFor(s holdfast.SeriesID) (Policy, bool) { return Policy{}, false }

// Expirable returns what the service may expire at that time, at most MaxIDs.
func (v *Vault) Expirable(at int64) IDs { return nil }

// Purgeable returns what the service may purge at that time, at most MaxIDs.
func (v *Vault) Purgeable(at int64) IDs { return nil }

// Clone returns a copy that shares nothing that changes.
func (v *Vault) Clone() *Vault {
	c := *v
	c.Machines, c.Sessions = maps.Clone(v.Machines), maps.Clone(v.Sessions)
	c.Series, c.Policies, c.heads = maps.Clone(v.Series), maps.Clone(v.Policies), maps.Clone(v.heads)
	c.Archives, c.Purged = slices.Clone(v.Archives), slices.Clone(v.Purged)
	c.ReadKeys = slices.Clone(v.ReadKeys)
	return &c
}

// Find returns the archive with that ID, purged ones included.
func (v *Vault) Find(id holdfast.RecordID) (Archive, bool) {
	for _, list := range [][]Archive{v.Archives, v.Purged} {
		for _, a := range list {
			if a.ID == id {
				return a, true
			}
		}
	}
	return Archive{}, false
}
