package history

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"holdfast"
)

// MinAge is how old an archive must be before a policy expires it, ns: 30 days.
const MinAge = 30 * 86400 * 1e9

// MinGrace is how long at least the archives of an unpaid vault stay from the record on that says so, ns: 30 days.
const MinGrace = 30 * 86400 * 1e9

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

// Set returns u after a delay record of that time (ns). A shorter delay holds only after what is in force
// now has passed, so that who steals the owner key gains no time. It replaces one that does not hold yet.
func (u Undelete) Set(seconds uint64, at int64) Undelete {
	now := u.In(at)
	if seconds >= now {
		return Undelete{Seconds: seconds}
	}
	return Undelete{Seconds: now, Next: seconds, At: at + int64(now)*1e9}
}

// Past is what Jumped looks at of one complete archive.
type Past struct {
	Paths     uint64 // stored or unchanged
	Unchanged uint64
}

// PastOf returns what Jumped looks at of c.
func PastOf(c Commit) Past {
	return Past{sum(c.Counts.Stored, c.Counts.Unchanged), c.Counts.Unchanged}
}

// sum adds without wrapping round.
func sum(a, b uint64) uint64 {
	if a+b < a {
		return 1<<64 - 1
	}
	return a + b
}

const (
	// MaxPast is how many complete archives before one Jumped compares it with.
	MaxPast = 8
	// minPast is how many there must be: a series that begins has no shape to leave.
	minPast = 3
	// minJump is the least change of paths that counts: a handful of files may come and go.
	minJump = 100
)

// Series is what a vault knows of one series beside its archives.
type Series struct {
	Past      []Past // of the newest complete archives, at most MaxPast, oldest first
	Jumped    uint64 // number of the newest commit that jumped; 0 for none
	Confirmed uint64 // number of the owner's newest confirmation; 0 for none
}

// Unconfirmed reports whether the series jumped and its owner has not confirmed that since.
func (s Series) Unconfirmed() bool { return s.Jumped > s.Confirmed }

// Jumped reports whether c differs abruptly from the complete archives of its series before it, of which
// past holds the newest MaxPast, purged or not. Then the series waits for its owner: a machine that
// somebody else rules must not push good archives out by committing bad ones.
//
// It looks at commit records only. Partial archives neither jump nor count. With fewer than 3 archives
// before it, nothing jumps. Else, with paths = stored + unchanged, and the medians over past (of an even
// number, the lower one in the middle) of the paths and of the unchanged, c jumps if
//
//   - its paths differ from the median by at least 100, and are less than half or more than twice of it; or
//   - the median of the unchanged is at least 100 and at least half of the median of the paths, and c has
//     less than half of that median unchanged.
func Jumped(past []Past, c Commit) bool {
	if c.Partial || len(past) < minPast {
		return false
	}
	now := PastOf(c)
	paths := median(past, func(p Past) uint64 { return p.Paths })
	same := median(past, func(p Past) uint64 { return p.Unchanged })
	switch {
	case now.Paths < paths && paths-now.Paths >= minJump && now.Paths < paths-paths/2:
		return true
	case now.Paths > paths && now.Paths-paths >= minJump && now.Paths-paths > paths:
		return true
	}
	return same >= minJump && same >= paths-paths/2 && now.Unchanged < same-same/2
}

func median(past []Past, of func(Past) uint64) uint64 {
	all := make([]uint64, len(past))
	for i, p := range past {
		all[i] = of(p)
	}
	slices.Sort(all)
	return all[(len(all)-1)/2]
}

// Decision says whether a policy keeps an archive.
type Decision struct {
	ID   holdfast.RecordID
	Keep bool
	Why  []string // each rule that keeps it, or the one reason why none does
}

// Keep says which of the archives of one series a policy keeps, and why: one decision for each, in their
// order. The service's stamps decide, no client's clock does.
//
// Only live archives that are complete, and not suspect, are counted. From the newest to the oldest:
//
//   - within keeps every archive that is at most that much older than the newest;
//   - last keeps the first of them, as many as it says;
//   - hourly, daily, weekly, monthly and yearly keep the newest archive of each hour, day, week (ISO 8601),
//     month and year of UTC that has one, for as many of these as it says.
//
// A partial archive is kept while no complete one is newer. Kept in any case are archives that were
// undeleted, and suspect ones: the owner decides what becomes of them. Archives that are not live are not
// kept, they are deleted already. A policy of zeros keeps everything.
func Keep(p Policy, archives []Archive) []Decision {
	out := make([]Decision, len(archives))
	var order []int // that count, newest first
	for i, a := range archives {
		out[i].ID = a.ID
		if a.State == Live && !a.Suspect && !a.Commit.Partial {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int { return newer(archives[i], archives[j]) })
	keep := func(i int, why string, args ...any) {
		out[i].Keep = true
		out[i].Why = append(out[i].Why, fmt.Sprintf(why, args...))
	}
	for i, a := range archives {
		switch {
		case a.State != Live:
			out[i].Why = []string{a.State.String()}
			continue
		case p.None():
			keep(i, "no policy")
		}
		if a.Held {
			keep(i, "undeleted")
		}
		if a.Suspect {
			keep(i, "suspect: its machine was revoked, the owner decides")
		}
		if a.Commit.Partial && (len(order) == 0 || newer(a, archives[order[0]]) < 0) {
			keep(i, "partial, and none is newer")
		}
	}
	if len(order) > 0 {
		newest := archives[order[0]].Time
		for n, i := range order {
			if p.Within > 0 && uint64(newest-archives[i].Time) <= p.Within*1e9 {
				keep(i, "within %s of the newest", time.Duration(p.Within)*time.Second)
			}
			if uint64(n) < uint64(p.Last) {
				keep(i, "last %d", n+1)
			}
		}
		for _, per := range periods {
			left, seen := per.count(p), ""
			for _, i := range order {
				name := per.name(time.Unix(0, archives[i].Time).UTC())
				if left == 0 {
					break
				}
				if name != seen {
					keep(i, "%s %s", per.what, name)
					seen = name
					left--
				}
			}
		}
	}
	for i, a := range archives {
		if !out[i].Keep && a.State == Live {
			out[i].Why = []string{"no rule keeps it"}
			if a.Commit.Partial {
				out[i].Why = []string{"partial, and a complete one is newer"}
			}
		}
	}
	return out
}

// newer orders the newest first.
func newer(a, b Archive) int {
	switch {
	case a.Time != b.Time:
		return -compare(a.Time, b.Time)
	}
	return -compare(a.N, b.N)
}

func compare[T int64 | uint64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

var periods = []struct {
	what  string
	count func(Policy) uint32
	name  func(time.Time) string
}{
	{"hourly", func(p Policy) uint32 { return p.Hourly }, func(t time.Time) string { return t.Format("2006-01-02 15h") }},
	{"daily", func(p Policy) uint32 { return p.Daily }, func(t time.Time) string { return t.Format("2006-01-02") }},
	{"weekly", func(p Policy) uint32 { return p.Weekly }, func(t time.Time) string {
		y, w := t.ISOWeek()
		return fmt.Sprintf("%04d-W%02d", y, w)
	}},
	{"monthly", func(p Policy) uint32 { return p.Monthly }, func(t time.Time) string { return t.Format("2006-01") }},
	{"yearly", func(p Policy) uint32 { return p.Yearly }, func(t time.Time) string { return t.Format("2006") }},
}

// PolicyFor returns the policy in force for a series: its own, or else the one of all series. It reports
// whether there is one; without one, everything stays.
func (v *Vault) PolicyFor(s holdfast.SeriesID) (Policy, bool) {
	if p, ok := v.Policies[s]; ok {
		return p, true
	}
	p, ok := v.Policies[holdfast.SeriesID{}]
	return p, ok
}

// has reports whether id is one of ids.
func (ids IDs) has(id holdfast.RecordID) bool {
	_, ok := slices.BinarySearchFunc(ids, id, func(a, b holdfast.RecordID) int { return slices.Compare(a[:], b[:]) })
	return ok
}

// SortIDs puts ids into the order of a record.
func SortIDs(ids []holdfast.RecordID) IDs {
	out := IDs(slices.Clone(ids))
	slices.SortFunc(out, func(a, b holdfast.RecordID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(out)
}

// OfSeries returns the archives of a series that are not purged, in the order of their commits.
func (v *Vault) OfSeries(s holdfast.SeriesID) []Archive {
	var out []Archive
	for _, a := range v.Archives {
		if a.Commit.Series == s {
			out = append(out, a)
		}
	}
	return out
}

// named returns the archives that a record names, all of which must be in one of the states.
func (v *Vault) named(b Body, states ...State) ([]Archive, error) {
	ids, err := ParseIDs(b.Type, b.Fields)
	if err != nil {
		return nil, err
	}
	var out []Archive
	for _, a := range v.Archives {
		if !ids.has(a.ID) {
			continue
		}
		if !slices.Contains(states, a.State) {
			return nil, fmt.Errorf("%w: archive %.8s is %s", ErrState, a.ID, a.State)
		}
		out = append(out, a)
	}
	if len(out) != len(ids) {
		return nil, fmt.Errorf("%w: %d of %d archives are purged or never were", ErrState, len(ids)-len(out), len(ids))
	}
	return out, nil
}

// seriesOf returns the series of archives, each once, in one order: of several that refuse a record, client
// and service name the same.
func seriesOf(archives []Archive) []holdfast.SeriesID {
	var out []holdfast.SeriesID
	for _, a := range archives {
		out = append(out, a.Commit.Series)
	}
	slices.SortFunc(out, func(a, b holdfast.SeriesID) int { return slices.Compare(a[:], b[:]) })
	return slices.Compact(out)
}

// ruleDelete lets a machine delete as long as a person would notice in time: never the last of a series,
// never more than half of it within one time of bringing back, nothing while frozen or after a jump. The
// owner may delete anything.
func (v *Vault) ruleDelete(b Body) error {
	named, err := v.named(b, Live)
	if err != nil || b.Signer == SignerOf(v.Genesis.OwnerKey[:]) {
		return err
	}
	if v.Frozen {
		return ErrFrozen
	}
	ids, _ := ParseIDs(b.Type, b.Fields)
	for _, s := range seriesOf(named) {
		if v.Series[s].Unconfirmed() {
			return fmt.Errorf("%w: %w", ErrNeedsOwner, ErrJumped)
		}
		live, deleted, machines := 0, 0, 0
		last := true
		for _, a := range v.OfSeries(s) {
			switch {
			case ids.has(a.ID):
				deleted, machines = deleted+1, machines+1
			case a.State == Deleted && a.Machine:
				deleted, machines = deleted+1, machines+1
			case a.State == Deleted:
				deleted++
			case a.State == Live && !a.Suspect:
				live++
				last = last && a.Commit.Partial
			}
		}
		if last {
			return fmt.Errorf("%w: series %.8s would have no complete archive left", ErrNeedsOwner, s)
		}
		if 2*machines > live+deleted {
			return fmt.Errorf("%w: %d of %d archives of series %.8s would be deleted by machines", ErrNeedsOwner, machines, live+deleted, s)
		}
	}
	return nil
}

// Overdue reports whether archives may lapse at that time (ns), for want of credit.
func (v *Vault) Overdue(at int64) bool { return v.Arrears != 0 && at >= v.Arrears }

// ruleUndelete lets what lapsed come back only while nothing may lapse: else it would lapse again at once, and its time of being
// brought back would never end.
func (v *Vault) ruleUndelete(b Body, at int64) error {
	named, err := v.named(b, Deleted, Expired, Lapsed)
	if err != nil {
		return err
	}
	for _, a := range named {
		if a.State == Lapsed && v.Overdue(at) {
			return fmt.Errorf("%w: archive %.8s lapsed", ErrUnpaid, a.ID)
		}
	}
	return nil
}

// ruleArrears holds that nothing lapses earlier than every client could have seen coming: not before MinGrace from
// the record on, and not before a time that was announced.
func (v *Vault) ruleArrears(b Body, at int64) error {
	a, err := ParseArrears(b.Fields)
	switch {
	case err != nil:
		return err
	case a.Until == 0 && v.Arrears == 0:
		return fmt.Errorf("%w: there is nothing to end", ErrPaid)
	case a.Until == 0:
		return nil
	case a.Until-at < MinGrace:
		return fmt.Errorf("%w: archives would lapse in less than 30 days", ErrTooEarly)
	case a.Until < v.Arrears:
		return fmt.Errorf("%w: archives would lapse earlier than was announced", ErrTooEarly)
	}
	return nil
}

// ruleLapse lets archives of an unpaid vault lapse when its grace is over, the last and those of a series that
// waits for its owner as well. Who froze the vault keeps what is in it.
func (v *Vault) ruleLapse(b Body, at int64) error {
	_, err := v.named(b, Live)
	switch {
	case err != nil:
		return err
	case v.Arrears == 0:
		return ErrPaid
	case at < v.Arrears:
		return fmt.Errorf("%w: archives lapse in %d seconds at the earliest", ErrTooEarly, (v.Arrears-at)/1e9)
	case v.Frozen:
		return ErrFrozen
	}
	return nil
}

func (v *Vault) ruleExpire(b Body, at int64) error {
	named, err := v.named(b, Live)
	if err != nil {
		return err
	}
	if v.Frozen {
		return ErrFrozen
	}
	for _, a := range named {
		if at-a.Time < MinAge {
			return fmt.Errorf("%w: archive %.8s is younger than 30 days", ErrTooEarly, a.ID)
		}
	}
	ids, _ := ParseIDs(b.Type, b.Fields)
	for _, s := range seriesOf(named) {
		if v.Series[s].Unconfirmed() {
			return fmt.Errorf("series %.8s: %w", s, ErrJumped)
		}
		p, ok := v.PolicyFor(s)
		if !ok {
			return fmt.Errorf("%w: series %.8s has no policy", ErrKept, s)
		}
		for _, d := range Keep(p, v.OfSeries(s)) {
			if d.Keep && ids.has(d.ID) {
				return fmt.Errorf("%w: archive %.8s, %s", ErrKept, d.ID, d.Why[0])
			}
		}
	}
	return nil
}

func (v *Vault) rulePurge(b Body, at int64) error {
	named, err := v.named(b, Deleted, Expired, Lapsed)
	if err != nil {
		return err
	}
	if v.Frozen {
		return ErrFrozen
	}
	for _, a := range named {
		if !v.purgeable(a, at) {
			return fmt.Errorf("%w: archive %.8s was deleted less than %d seconds ago", ErrTooEarly, a.ID, v.Delay.In(at))
		}
	}
	return nil
}

func (v *Vault) purgeable(a Archive, at int64) bool {
	return slices.Contains([]State{Deleted, Expired, Lapsed}, a.State) && at-v.Since(a) >= int64(v.Delay.In(at))*1e9
}

// Since returns when the time began in which an archive that is not live can be brought back, ns. Of what lapsed it begins anew
// with an arrears record, when the account is paid or its grace begins anew: who pays on the last day has all of it to bring
// everything back.
func (v *Vault) Since(a Archive) int64 {
	if a.State == Lapsed {
		return max(a.Changed, v.Told)
	}
	return a.Changed
}

// Expirable returns what the service may expire at that time (ns): at most MaxIDs, the oldest first, in the
// order of a record.
func (v *Vault) Expirable(at int64) IDs {
	if v.Frozen {
		return nil
	}
	var ids []holdfast.RecordID
	drop := map[holdfast.RecordID]bool{}
	for _, s := range seriesOf(v.Archives) {
		if p, ok := v.PolicyFor(s); ok && !v.Series[s].Unconfirmed() {
			for _, d := range Keep(p, v.OfSeries(s)) {
				drop[d.ID] = !d.Keep
			}
		}
	}
	for _, a := range v.Archives {
		if a.State == Live && drop[a.ID] && at-a.Time >= MinAge && len(ids) < MaxIDs {
			ids = append(ids, a.ID)
		}
	}
	return SortIDs(ids)
}

// Purgeable returns what the service may purge at that time (ns): at most MaxIDs, in the order of a record.
func (v *Vault) Purgeable(at int64) IDs {
	if v.Frozen {
		return nil
	}
	var ids []holdfast.RecordID
	for _, a := range v.Archives {
		if v.purgeable(a, at) && len(ids) < MaxIDs {
			ids = append(ids, a.ID)
		}
	}
	return SortIDs(ids)
}

// Lapsable returns what the service may let lapse at that time (ns): at most MaxIDs, the oldest first, in the order
// of a record.
func (v *Vault) Lapsable(at int64) IDs {
	if v.Frozen || !v.Overdue(at) {
		return nil
	}
	var ids []holdfast.RecordID
	for _, a := range v.Archives {
		if a.State == Live && len(ids) < MaxIDs {
			ids = append(ids, a.ID)
		}
	}
	return SortIDs(ids)
}

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
