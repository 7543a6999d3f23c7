package history

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast"
	"pgregory.net/rapid"
)

// at parses a time of day in UTC.
func at(t testing.TB, s string) int64 {
	t.Helper()
	x, err := time.Parse("2006-01-02 15:04", s)
	if err != nil {
		t.Fatal(err)
	}
	return x.UnixNano()
}

func archives(t testing.TB, times ...string) []Archive {
	var out []Archive
	for i, s := range times {
		out = append(out, Archive{ID: holdfast.RecordID{byte(i + 1)}, N: uint64(i + 10), Time: at(t, s)})
	}
	return out
}

func kept(ds []Decision) (out []int) {
	for i, d := range ds {
		if d.Keep {
			out = append(out, i)
		}
	}
	return out
}

func TestKeepRules(t *testing.T) {
	list := archives(t,
		"2023-12-31 23:59", // 0: a Sunday, the last of ISO week 2023-W52
		"2024-01-01 00:00", // 1: a Monday
		"2024-01-31 12:00", // 2
		"2024-02-29 12:00", // 3
		"2024-03-10 10:00", // 4
		"2024-03-10 10:59", // 5
		"2024-03-10 11:00", // 6
		"2024-03-11 00:00", // 7
	)
	for _, c := range []struct {
		p    Policy
		want []int
	}{
		{Policy{}, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{Policy{Last: 1}, []int{7}},
		{Policy{Last: 3}, []int{5, 6, 7}},
		{Policy{Last: 100}, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		{Policy{Hourly: 1}, []int{7}},
		{Policy{Hourly: 3}, []int{5, 6, 7}},
		{Policy{Hourly: 4}, []int{3, 5, 6, 7}},
		{Policy{Daily: 2}, []int{6, 7}},
		{Policy{Daily: 4}, []int{2, 3, 6, 7}},
		{Policy{Weekly: 2}, []int{6, 7}},
		{Policy{Weekly: 9}, []int{0, 1, 2, 3, 6, 7}},
		{Policy{Monthly: 1}, []int{7}},
		{Policy{Monthly: 3}, []int{2, 3, 7}},
		{Policy{Yearly: 1}, []int{7}},
		{Policy{Yearly: 9}, []int{0, 7}},
		{Policy{Within: 1}, []int{7}},
		{Policy{Within: 13 * 3600}, []int{6, 7}},
		{Policy{Within: 13*3600 + 59}, []int{6, 7}},
		{Policy{Within: 13*3600 + 60}, []int{5, 6, 7}},
		{Policy{Last: 1, Yearly: 2, Monthly: 2}, []int{0, 3, 7}},
	} {
		// The order in which they are given says nothing.
		for range 2 {
			ds := Keep(c.p, list)
			for i, d := range ds {
				if d.ID != list[i].ID || len(d.Why) == 0 {
					t.Fatalf("%+v: decision %d is %+v", c.p, i, d)
				}
			}
			var got []int
			for _, d := range ds {
				if d.Keep {
					got = append(got, int(d.ID[0])-1)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("%+v keeps %v, want %v", c.p, got, c.want)
			}
			slices.Reverse(list)
		}
	}
}

func TestKeepSaysWhy(t *testing.T) {
	list := archives(t, "2024-01-01 00:00", "2024-02-29 12:00", "2024-03-10 10:00")
	ds := Keep(Policy{Last: 1, Daily: 1, Weekly: 1, Monthly: 2, Yearly: 1, Hourly: 1, Within: 60}, list)
	want := []string{
		"no rule keeps it",
		"monthly 2024-02",
		"within 1m0s of the newest; last 1; hourly 2024-03-10 10h; daily 2024-03-10; weekly 2024-W10; monthly 2024-03; yearly 2024",
	}
	for i, d := range ds {
		if got := strings.Join(d.Why, "; "); got != want[i] {
			t.Errorf("archive %d: %s, want %s", i, got, want[i])
		}
	}
}

func TestKeepCountsOnlyGoodArchives(t *testing.T) {
	list := archives(t, "2024-01-01 00:00", "2024-01-02 00:00", "2024-01-03 00:00", "2024-01-04 00:00", "2024-01-05 00:00", "2024-01-06 00:00", "2024-01-07 00:00")
	list[0].Held = true
	list[2].Commit.Partial = true // 3 is newer
	list[4].Suspect = true
	list[5].State = Deleted
	list[6].Commit.Partial = true // the newest
	ds := Keep(Policy{Last: 1}, list)
	if got := kept(ds); !slices.Equal(got, []int{0, 3, 4, 6}) {
		t.Errorf("kept %v: %+v", got, ds)
	}
	for i, want := range map[int]string{0: "undeleted", 1: "no rule keeps it", 2: "partial, and a complete one is newer", 4: "suspect", 5: "deleted", 6: "partial, and none is newer"} {
		if !strings.HasPrefix(ds[i].Why[0], want) {
			t.Errorf("archive %d: %q, want %q", i, ds[i].Why, want)
		}
	}
}

// Whatever the archives: a policy that is not empty keeps the newest good archive, keeps no fewer if it
// asks for more, and keeps the same if what it does not keep is gone.
func TestKeepProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := make([]Archive, rapid.IntRange(1, 40).Draw(t, "n"))
		now := int64(1_700_000_000)
		for i := range list {
			now += int64(rapid.IntRange(0, 40*86400).Draw(t, "gap"))
			list[i] = Archive{ID: holdfast.RecordID{byte(i + 1)}, N: uint64(i + 1), Time: now * 1e9}
			list[i].Commit.Partial = rapid.IntRange(0, 9).Draw(t, "partial") == 0
			list[i].Suspect = rapid.IntRange(0, 9).Draw(t, "suspect") == 0
		}
		n := func(what string) uint32 { return uint32(rapid.IntRange(0, 5).Draw(t, what)) }
		p := Policy{Last: n("last"), Hourly: n("hourly"), Daily: n("daily"), Weekly: n("weekly"), Monthly: n("monthly"), Yearly: n("yearly"),
			Within: uint64(rapid.IntRange(0, 90*86400).Draw(t, "within"))}
		ds := Keep(p, list)
		for i := len(list) - 1; i >= 0; i-- {
			if !list[i].Commit.Partial && !list[i].Suspect {
				if !ds[i].Keep {
					t.Fatalf("%+v does not keep the newest archive", p)
				}
				break
			}
		}
		more := p
		more.Last, more.Daily, more.Monthly = p.Last+1, p.Daily+1, p.Monthly+1
		for i, d := range Keep(more, list) {
			if ds[i].Keep && !d.Keep && !p.None() {
				t.Fatalf("%+v keeps archive %d, %+v does not", p, i, more)
			}
		}
		var left []Archive
		for i, d := range ds {
			if d.Keep {
				left = append(left, list[i])
			}
		}
		for i, d := range Keep(p, left) {
			if !d.Keep {
				t.Fatalf("%+v keeps archive %s only beside others", p, left[i].ID)
			}
		}
	})
}

func TestJumped(t *testing.T) {
	past := func(n int, stored, unchanged uint64) (out []Past) {
		for range n {
			out = append(out, PastOf(Commit{Counts: Counts{Stored: stored, Unchanged: unchanged}}))
		}
		return out
	}
	for _, c := range []struct {
		what              string
		past              []Past
		stored, unchanged uint64
		want              bool
	}{
		{"the first", nil, 5, 0, false},
		{"the third", past(2, 100, 900), 0, 0, false},
		{"the same again", past(3, 100, 900), 100, 900, false},
		{"twice as many", past(3, 100, 900), 1100, 900, false},
		{"one more than twice", past(3, 100, 900), 1101, 900, true},
		{"half", past(3, 100, 900), 0, 500, false},
		{"one less than half", past(3, 100, 900), 0, 499, true},
		{"half of an odd number", past(3, 101, 900), 0, 501, false},
		{"nothing", past(3, 100, 900), 0, 0, true},
		{"half of what was unchanged", past(3, 100, 900), 550, 450, false},
		{"less of what was unchanged", past(3, 100, 900), 551, 449, true},
		{"everything is always new", past(3, 900, 100), 1000, 0, false},
		{"just half is new, as ever", past(3, 500, 500), 500, 500, false},
		{"half was new, now all", past(3, 500, 500), 1000, 0, true},
		{"a few files gone", past(3, 10, 89), 0, 0, false},
		{"a few files more", past(3, 1, 1), 101, 0, false},
		{"a hundred files more", past(3, 1, 1), 102, 0, true},
		{"an empty series that fills", past(3, 0, 0), 100, 0, true},
		{"counts that overflow", past(3, 1<<63, 1<<63), 1 << 63, 1 << 63, false},
		{"one freak among many", append(past(2, 100, 900), past(1, 0, 1)...), 100, 900, false},
	} {
		got := Jumped(c.past, Commit{Counts: Counts{Stored: c.stored, Unchanged: c.unchanged}})
		if got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
		if Jumped(c.past, Commit{Partial: true, Counts: Counts{Stored: c.stored, Unchanged: c.unchanged}}) {
			t.Errorf("%s: a partial archive jumped", c.what)
		}
	}
	var s Series
	for n := range uint64(20) {
		s = s.Add(Commit{Counts: Counts{Unchanged: 100 + n}}, n+1)
		s = s.Add(Commit{Partial: true}, n+1)
	}
	if len(s.Past) != MaxPast || s.Past[0].Paths != 112 || s.Jumped != 0 {
		t.Errorf("%+v", s)
	}
}

// S12: a client whose clock is far in the future committed archives, and the keep-rules then dropped real
// ones. Clients' clocks say nothing here: stamps do.
func TestScenarioS12FutureClientClock(t *testing.T) {
	s := begun(t)
	s.add(t, s.next(t, TypePolicy, Policy{Daily: 3}.Encode()))
	var ids []holdfast.RecordID
	for i := range 6 {
		s.time += day
		c := commit()
		c.Partial, c.Counts = false, Counts{Stored: 100, Unchanged: 900}
		b := Body{Type: TypeCommit, Fields: c.Encode(), Time: s.time}
		if i == 2 {
			b.Time = at(t, "2199-01-01 00:00")
		}
		r := s.by(b, machine)
		s.add(t, r)
		ids = append(ids, r.ID())
	}
	for i, d := range Keep(Policy{Daily: 3}, s.v.OfSeries(commit().Series)) {
		if d.Keep != (i >= 3) {
			t.Errorf("archive %d: %+v", i, d)
		}
	}
	if got := s.v.Expirable(s.time + 90*day); !slices.Equal(got, SortIDs(ids[:3])) {
		t.Errorf("expirable %v, want the first three", got)
	}
}

// C7: a rotation that was given the same key twice deleted the originals. Here it is refused, whichever of
// the vault's keys it is given, and the older wraps stay in any case.
func TestScenarioC7RotationToTheSameKey(t *testing.T) {
	s := begun(t)
	f := fields()
	wrap := s.v.Sessions[open().Session].Open.Wrap
	s.refuse(t, "the same key", s.next(t, TypeRotateRead, RotateRead{genesis().ReadKey}.Encode()), ErrFormat)
	s.add(t, s.next(t, TypeRotateRead, f[TypeRotateRead]))
	s.refuse(t, "back to the first key", s.next(t, TypeRotateRead, RotateRead{genesis().ReadKey}.Encode()), ErrFormat)
	s.refuse(t, "a rewrap for a key that is not current", s.next(t, TypeRewrap, Rewrap{Session: open().Session, ReadKey: open().ReadKey}.Encode()), ErrFormat)
	s.add(t, s.next(t, TypeRewrap, f[TypeRewrap]))
	if got := s.v.Sessions[open().Session]; got.Open.Wrap != wrap || len(got.Rewraps) != 1 {
		t.Error("the first wrap is gone")
	}
}

// live returns the archives that are not deleted, newest last.
func live(s *story) (ids []holdfast.RecordID) {
	for _, a := range s.v.Archives {
		if a.State == Live {
			ids = append(ids, a.ID)
		}
	}
	return ids
}

// A thief has a machine's key for ninety days. Whatever he does, the last archive from before can be
// restored afterwards.
func TestThiefOfNinetyDays(t *testing.T) {
	policy := Policy{Last: 7, Daily: 7, Weekly: 4}
	for _, rights := range []holdfast.Rights{holdfast.RightWrite, holdfast.RightWrite | holdfast.RightDelete} {
		for _, fake := range []struct {
			what string
			a    Counts
			rate int // a day
		}{
			{"empty archives", Counts{}, 1},
			{"encrypted files", Counts{Stored: 1000}, 1},
			{"a flood", Counts{Stored: 1000}, 5},
		} {
			t.Run(fmt.Sprintf("%s, %s", rights, fake.what), func(t *testing.T) {
				s := new(story)
				s.add(t, s.next(t, TypeGenesis, genesis().Encode()))
				e := enrol()
				e.Rights = rights
				s.add(t, s.next(t, TypeEnrol, e.Encode()))
				s.add(t, s.next(t, TypeOpen, open().Encode()))
				s.add(t, s.next(t, TypePolicy, policy.Encode()))
				good := s.commits(t, 9, 30)
				stolen := s.time + 1
				for range 90 {
					s.time += day - int64(fake.rate)
					for range fake.rate {
						s.time++
						s.add(t, s.next(t, TypeCommit, Commit{Series: holdfast.SeriesID{9}, Session: open().Session, Group: open().Group, Counts: fake.a}.Encode()))
					}
					if rights.Has(holdfast.RightDelete) { // all that there is, all that is good, and one less each time
						for _, all := range [][]holdfast.RecordID{live(s), good, good[1:], good[len(good)/2:]} {
							for mass := all; len(mass) > 0; mass = mass[:len(mass)*3/4] {
								if s.v.rule(Body{Type: TypeDelete, Fields: names(mass...)}, s.time) == nil {
									s.add(t, s.next(t, TypeDelete, names(mass...)))
								}
							}
						}
					}
					for _, id := range good {
						if a, _ := s.v.Find(id); a.State == Live && rights.Has(holdfast.RightDelete) {
							if s.v.rule(Body{Type: TypeDelete, Fields: names(id)}, s.time) == nil {
								s.add(t, s.next(t, TypeDelete, names(id)))
							}
						}
					}
					for typ, ids := range map[Type]IDs{TypeExpire: s.v.Expirable(s.time), TypePurge: s.v.Purgeable(s.time)} {
						if len(ids) > 0 {
							s.add(t, s.next(t, typ, ids.Encode()))
						}
					}
				}
				s.add(t, s.next(t, TypeRevoke, Revoke{SignerOf(machine.Public().(ed25519.PublicKey)), stolen}.Encode()))
				s.add(t, s.next(t, TypeConfirm, Confirm{holdfast.SeriesID{9}}.Encode()))
				a, ok := s.v.Find(good[len(good)-1])
				if !ok || a.State == Purged || a.Suspect {
					t.Fatalf("the last good archive is %+v", a)
				}
				for _, d := range Keep(policy, s.v.OfSeries(holdfast.SeriesID{9})) {
					if d.ID == a.ID && !d.Keep {
						t.Errorf("the policy would drop it now: %v", d.Why)
					}
				}
			})
		}
	}
}
