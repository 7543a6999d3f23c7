package history

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"testing"

	"holdfast"
	"holdfast/internal/enc"
)

const day = 86400 * int64(1e9)

// fields returns one example of the fields of each type.
func fields() map[Type][]byte {
	rotate := RotateRead{ReadKey: genesis().ReadKey}
	rotate.ReadKey[0]++
	wrap := Rewrap{Session: open().Session, ReadKey: ReadKeyIDOf(rotate.ReadKey[:])}
	for i := range wrap.Wrap {
		wrap.Wrap[i] = byte(i * 5)
	}
	ids := IDs{{1}, {2}}.Encode()
	return map[Type][]byte{
		TypeGenesis: genesis().Encode(), TypeEnrol: enrol().Encode(), TypeOpen: open().Encode(), TypeCommit: commit().Encode(),
		TypeRevoke:     Revoke{SignerOf(machine.Public().(ed25519.PublicKey)), 40 * day}.Encode(),
		TypeRotateRead: rotate.Encode(), TypeRewrap: wrap.Encode(),
		TypeDelete: ids, TypeUndelete: ids, TypeExpire: ids, TypePurge: ids,
		TypePolicy: Policy{Series: commit().Series, Last: 1, Hourly: 2, Daily: 3, Weekly: 4, Monthly: 5, Yearly: 6, Within: 7}.Encode(),
		TypeDelay:  Delay{MinDelay}.Encode(), TypeFreeze: nil, TypeThaw: nil, TypeConfirm: Confirm{commit().Series}.Encode(),
		TypeArrears: Arrears{200 * day}.Encode(), TypeLapse: ids,
	}
}

// reencode parses fields as those of that type and encodes them again.
func reencode(typ Type, f []byte) ([]byte, error) {
	switch typ {
	case TypeGenesis:
		x, err := ParseGenesis(f)
		return x.Encode(), err
	case TypeEnrol:
		x, err := ParseEnrol(f)
		return x.Encode(), err
	case TypeOpen:
		x, err := ParseOpen(f)
		return x.Encode(), err
	case TypeCommit:
		x, err := ParseCommit(f)
		return x.Encode(), err
	case TypeRevoke:
		x, err := ParseRevoke(f)
		return x.Encode(), err
	case TypeRotateRead:
		x, err := ParseRotateRead(f)
		return x.Encode(), err
	case TypeRewrap:
		x, err := ParseRewrap(f)
		return x.Encode(), err
	case TypeDelete, TypeUndelete, TypeExpire, TypePurge, TypeLapse:
		x, err := ParseIDs(typ, f)
		return x.Encode(), err
	case TypePolicy:
		x, err := ParsePolicy(f)
		return x.Encode(), err
	case TypeDelay:
		x, err := ParseDelay(f)
		return x.Encode(), err
	case TypeFreeze, TypeThaw:
		return nil, ParseNone(typ, f)
	case TypeConfirm:
		x, err := ParseConfirm(f)
		return x.Encode(), err
	case TypeArrears:
		x, err := ParseArrears(f)
		return x.Encode(), err
	}
	panic("no fields of " + typ.String())
}

// commits adds n archives of a series, a day apart, of the same shape, and returns their IDs.
func (s *story) commits(t *testing.T, series byte, n int) []holdfast.RecordID {
	t.Helper()
	var ids []holdfast.RecordID
	for range n {
		ids = append(ids, s.commit(t, series, Counts{Stored: 100, Unchanged: 900}))
	}
	return ids
}

func (s *story) commit(t *testing.T, series byte, counts Counts) holdfast.RecordID {
	t.Helper()
	s.time += day
	c := Commit{Series: holdfast.SeriesID{series}, Session: open().Session, Group: open().Group, Root: holdfast.Name{10}, Blocks: 11, Counts: counts}
	r := s.next(t, TypeCommit, c.Encode())
	s.add(t, r)
	return r.ID()
}

// arrears adds that the vault is unpaid, and may lapse from that time on.
func (s *story) arrears(t *testing.T, until int64) {
	t.Helper()
	s.add(t, s.next(t, TypeArrears, Arrears{max(until, s.time+5+MinGrace)}.Encode()))
}

func names(ids ...holdfast.RecordID) []byte { return SortIDs(ids).Encode() }

// begun returns a vault with a machine that has a session.
func begun(t *testing.T) *story {
	t.Helper()
	s := new(story)
	s.add(t, s.next(t, TypeGenesis, genesis().Encode()))
	s.add(t, s.next(t, TypeEnrol, enrol().Encode()))
	s.add(t, s.next(t, TypeOpen, open().Encode()))
	return s
}

// whole tells a story with a record of every type.
func whole(t *testing.T) *story {
	t.Helper()
	s := begun(t)
	a := s.commits(t, 9, 4)
	f := fields()
	for _, typ := range []Type{TypePolicy, TypeDelay, TypeRotateRead, TypeRewrap} {
		s.add(t, s.next(t, typ, f[typ]))
	}
	s.add(t, s.next(t, TypePolicy, Policy{Series: commit().Series, Last: 1}.Encode()))
	s.add(t, s.next(t, TypeDelete, names(a[0], a[1])))
	s.add(t, s.next(t, TypeUndelete, names(a[1])))
	s.add(t, s.next(t, TypeFreeze, nil))
	s.add(t, s.next(t, TypeThaw, nil))
	s.add(t, s.next(t, TypeConfirm, f[TypeConfirm]))
	s.time += 40 * day
	s.add(t, s.next(t, TypeExpire, names(a[2])))
	s.add(t, s.next(t, TypePurge, names(a[0])))
	s.add(t, s.next(t, TypeRevoke, f[TypeRevoke]))
	s.arrears(t, s.time+MinGrace)
	s.time += MinGrace
	s.add(t, s.next(t, TypeLapse, names(a[3])))
	s.add(t, s.next(t, TypeArrears, Arrears{}.Encode()))
	return s
}

func TestVectorsOfEveryType(t *testing.T) {
	s := whole(t)
	var b []byte
	have := map[Type]bool{}
	for _, e := range s.entries {
		b = e.Append(b)
		body, err := ParseBody(e.Record.Body)
		if err != nil {
			t.Fatal(err)
		}
		have[body.Type] = true
	}
	vector(t, "every-type.hex", b)
	vector(t, "every-type-head.hex", s.v.Head[:])
	for typ := range fields() {
		if !have[typ] {
			t.Errorf("no vector has a %s record", typ)
		}
	}
	// The state after it, as the fields say.
	var states []State
	for _, a := range s.v.Archives {
		states = append(states, a.State)
	}
	if !slices.Equal(states, []State{Live, Expired, Lapsed}) || len(s.v.Purged) != 1 || !s.v.Archives[0].Held {
		t.Errorf("archives %v, purged %d", states, len(s.v.Purged))
	}
	k, _ := ParseRotateRead(fields()[TypeRotateRead])
	if s.v.ReadKey != k.ReadKey || len(s.v.ReadKeys) != 2 || len(s.v.Sessions[open().Session].Rewraps) != 1 {
		t.Error("the read key was not rotated")
	}
	if m := s.v.Machines[SignerOf(machine.Public().(ed25519.PublicKey))]; m.Revoked != s.v.N-3 || m.Since != 40*day {
		t.Errorf("machine: %+v", m)
	}
	if s.v.Frozen || s.v.Series[commit().Series].Confirmed == 0 || s.v.Arrears != 0 {
		t.Error("frozen, not confirmed or not paid")
	}
}

// TestDamageOfEveryType flips bits in every record type; clients refuse what was flipped.
func TestDamageOfEveryType(t *testing.T) {
	s := whole(t)
	var v Vault
	for _, e := range s.entries {
		good := e.Append(nil)
		for i := range good {
			if e.N <= 3 || len(good) > 1200 && i%7 != 0 {
				continue // TestDamage does these
			}
			bad := bytes.Clone(good)
			bad[i] ^= 1 << (i % 8)
			rd := enc.NewReader(bad)
			x := ReadEntry(rd)
			if rd.Done() != nil {
				continue
			}
			if err := v.Follow(x, log.Public().(ed25519.PublicKey), hist); err == nil {
				t.Fatalf("entry %d: flipped bit %d of byte %d goes unnoticed", e.N, i%8, i)
			}
		}
		if err := v.Follow(e, log.Public().(ed25519.PublicKey), hist); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWhoSignsWhat tries every type of record with every kind of signer.
func TestWhoSignsWhat(t *testing.T) {
	s := begun(t)
	s.commits(t, 9, 4)
	right := map[holdfast.Rights]ed25519.PrivateKey{}
	for i, r := range []holdfast.Rights{holdfast.RightWrite, holdfast.RightRead, holdfast.RightDelete} {
		right[r] = key(byte(40 + i))
		e := enrol()
		e.SignKey, e.TLSKey, e.Rights = public(right[r]), [32]byte{byte(50 + i)}, r
		s.add(t, s.next(t, TypeEnrol, e.Encode()))
	}
	for typ := TypeEnrol; typ <= TypeLapse; typ++ {
		for r, k := range right {
			_, err := s.check(s.by(Body{Type: typ, Fields: fields()[typ]}, k))
			switch {
			case typ.Right() == 0:
				if !errors.Is(err, ErrSigner) {
					t.Errorf("%s by a machine that may %s: %v", typ, r, err)
				}
			case typ.Right() != r:
				if !errors.Is(err, ErrRights) {
					t.Errorf("%s by a machine that may %s: %v", typ, r, err)
				}
			case errors.Is(err, ErrSigner) || errors.Is(err, ErrRights):
				t.Errorf("%s by a machine that may %s: %v", typ, r, err)
			}
		}
		_, err := s.check(s.owned(typ, fields()[typ]))
		if refused := errors.Is(err, ErrSigner); refused == typ.ByOwner() {
			t.Errorf("%s by the owner: %v", typ, err)
		}
		b := Body{Type: typ, Vault: s.v.ID, Fields: fields()[typ]}
		_, err = s.check(SignByService(b, log))
		if refused := errors.Is(err, ErrSigner); refused == typ.ByService() {
			t.Errorf("%s by the service: %v", typ, err)
		}
		if _, err = s.check(Sign(b, key(99), hist)); !errors.Is(err, ErrSigner) {
			t.Errorf("%s by a stranger: %v", typ, err)
		}
	}
}

func (s *story) refuse(t *testing.T, what string, r Record, want error) {
	t.Helper()
	if _, err := s.check(r); !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestRevokedMachineMayDoNothing(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 3)
	since := s.v.Archives[1].Time
	id := SignerOf(machine.Public().(ed25519.PublicKey))
	s.refuse(t, "a stranger revoked", s.next(t, TypeRevoke, Revoke{holdfast.SignerID{1}, 0}.Encode()), ErrFormat)
	s.add(t, s.next(t, TypeRevoke, Revoke{id, since + 1}.Encode()))
	for _, typ := range []Type{TypeOpen, TypeCommit, TypeDelete, TypeUndelete, TypeFreeze} {
		s.refuse(t, typ.String(), s.next(t, typ, fields()[typ]), ErrRevoked)
	}
	if x := s.v.Archives; x[0].Suspect || x[1].Suspect || !x[2].Suspect {
		t.Errorf("suspect: %v", x)
	}
	s.refuse(t, "revoked later", s.next(t, TypeRevoke, Revoke{id, since + 1}.Encode()), ErrFormat)
	s.add(t, s.next(t, TypeRevoke, Revoke{id, since}.Encode()))
	if x := s.v.Archives; x[0].Suspect || !x[1].Suspect || !x[2].Suspect {
		t.Errorf("suspect: %v", x)
	}
	if _, ok := s.v.Find(a[0]); !ok {
		t.Error("the archive is not found")
	}
	// A time to come counts as the record's own.
	s2 := begun(t)
	s2.add(t, s2.next(t, TypeRevoke, Revoke{id, 1 << 62}.Encode()))
	if m := s2.v.Machines[id]; m.Since != s2.time {
		t.Errorf("since %d, want %d", m.Since, s2.time)
	}
}

func TestReadKeysAreRotated(t *testing.T) {
	s := begun(t)
	f := fields()
	o := open()
	s.refuse(t, "the same read key again", s.next(t, TypeRotateRead, RotateRead{genesis().ReadKey}.Encode()), ErrFormat)
	s.refuse(t, "a rewrap before there is another key", s.next(t, TypeRewrap, Rewrap{Session: o.Session, ReadKey: o.ReadKey}.Encode()), ErrFormat)
	s.refuse(t, "a rewrap for a key to come", s.next(t, TypeRewrap, f[TypeRewrap]), ErrFormat)
	s.add(t, s.next(t, TypeRotateRead, f[TypeRotateRead]))
	s.refuse(t, "the newer read key again", s.next(t, TypeRotateRead, f[TypeRotateRead]), ErrFormat)
	s.refuse(t, "the older read key again", s.next(t, TypeRotateRead, RotateRead{genesis().ReadKey}.Encode()), ErrFormat)
	o.Session[0]++
	s.refuse(t, "a session for the old read key", s.next(t, TypeOpen, o.Encode()), ErrFormat)
	o.ReadKey = ReadKeyIDOf(s.v.ReadKey[:])
	s.add(t, s.next(t, TypeOpen, o.Encode()))
	s.refuse(t, "a rewrap of a session that has it", s.next(t, TypeRewrap, Rewrap{Session: o.Session, ReadKey: o.ReadKey}.Encode()), ErrFormat)
	s.refuse(t, "a rewrap of no session", s.next(t, TypeRewrap, Rewrap{Session: holdfast.SessionID{99}, ReadKey: o.ReadKey}.Encode()), ErrFormat)
	s.add(t, s.next(t, TypeRewrap, f[TypeRewrap]))
	s.refuse(t, "a second rewrap", s.next(t, TypeRewrap, f[TypeRewrap]), ErrFormat)
}

func TestEnrolmentBindsSeries(t *testing.T) {
	s := begun(t)
	e := enrol()
	e.SignKey, e.TLSKey, e.Series = public(key(40)), [32]byte{50}, []holdfast.SeriesID{{3}, {5}}
	e.DayBytes, e.DayBlocks = 1<<40, 1<<20
	s.add(t, s.next(t, TypeEnrol, e.Encode()))
	if m := s.v.Machines[SignerOf(key(40).Public().(ed25519.PublicKey))]; !m.Enrol.Equal(e) {
		t.Errorf("%+v", m)
	}
	o := open()
	o.Session[0]++
	s.add(t, s.by(Body{Type: TypeOpen, Fields: o.Encode()}, key(40)))
	c := commit()
	c.Session = o.Session
	for series, want := range map[byte]error{3: nil, 4: ErrRights, 5: nil} {
		c.Series = holdfast.SeriesID{series}
		s.refuse(t, fmt.Sprint("series ", series), s.by(Body{Type: TypeCommit, Fields: c.Encode()}, key(40)), want)
	}
	e.SignKey = public(owner)
	s.refuse(t, "the owner as a machine", s.next(t, TypeEnrol, e.Encode()), ErrFormat)
}

func TestRecordsCiteTheHistoryTheyAreIn(t *testing.T) {
	s := begun(t)
	b := Body{Type: TypeOpen, SeenN: 2, SeenHead: s.entries[1].Head, Fields: open().Encode()}
	b.Fields[0]++
	s.refuse(t, "a head of this history", s.by(b, machine), nil)
	b.SeenHead[5]++
	s.refuse(t, "a head of another history", s.by(b, machine), ErrSeen)
	b.SeenN, b.SeenHead = s.v.N+1, s.v.Head
	s.refuse(t, "a head that is to come", s.by(b, machine), ErrSeen)
}

func TestMachinesDeleteWithinLimits(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 4)
	b := s.commits(t, 8, 1)
	s.refuse(t, "the last of a series", s.next(t, TypeDelete, names(b[0])), ErrNeedsOwner)
	s.refuse(t, "the last of one series among others", s.next(t, TypeDelete, names(a[0], b[0])), ErrNeedsOwner)
	s.refuse(t, "more than half", s.next(t, TypeDelete, names(a[0], a[1], a[2])), ErrNeedsOwner)
	s.refuse(t, "what is not there", s.next(t, TypeDelete, names(a[0], holdfast.RecordID{1})), ErrState)
	s.add(t, s.next(t, TypeDelete, names(a[0])))
	s.refuse(t, "deleted already", s.next(t, TypeDelete, names(a[0])), ErrState)
	s.refuse(t, "undelete what is live", s.next(t, TypeUndelete, names(a[1])), ErrState)
	s.add(t, s.next(t, TypeDelete, names(a[1])))
	s.refuse(t, "more than half, bit by bit", s.next(t, TypeDelete, names(a[2])), ErrNeedsOwner)
	s.add(t, s.owned(TypeDelete, names(a[2])))
	if x := s.v.Archives; !x[0].Machine || x[2].Machine || x[2].State != Deleted {
		t.Errorf("%+v", x)
	}
	s.add(t, s.owned(TypeDelete, names(a[3], b[0]))) // the owner may delete everything
	s.add(t, s.next(t, TypeUndelete, names(a...)))
	for _, x := range s.v.OfSeries(holdfast.SeriesID{9}) {
		if x.State != Live || !x.Held || x.Machine {
			t.Errorf("%+v", x)
		}
	}
	// Archives that are purged do not count any more.
	s.add(t, s.next(t, TypeDelete, names(a[0], a[1])))
	s.time += 8 * day
	s.add(t, s.next(t, TypePurge, names(a[0], a[1])))
	s.refuse(t, "more than half of what is left", s.next(t, TypeDelete, names(a[2], a[3])), ErrNeedsOwner)
	s.add(t, s.next(t, TypeDelete, names(a[3])))
	// A partial archive is not one that a restore can do with.
	p := commit()
	p.Series, p.Partial = holdfast.SeriesID{8}, true
	s.add(t, s.next(t, TypeCommit, p.Encode()))
	s.add(t, s.next(t, TypeUndelete, names(b[0])))
	s.refuse(t, "all but a partial one", s.next(t, TypeDelete, names(b[0])), ErrNeedsOwner)
	// Nor is a suspect one.
	e, o, c := enrol(), open(), commit()
	e.SignKey, e.TLSKey, o.Session[0] = public(key(40)), [32]byte{50}, 70
	c.Series, c.Session, c.Partial = p.Series, o.Session, false
	s.add(t, s.next(t, TypeEnrol, e.Encode()))
	s.add(t, s.by(Body{Type: TypeOpen, Fields: o.Encode()}, key(40)))
	s.add(t, s.by(Body{Type: TypeCommit, Fields: c.Encode()}, key(40)))
	s.refuse(t, "one beside another machine's", s.next(t, TypeDelete, names(b[0])), nil)
	s.add(t, s.next(t, TypeRevoke, Revoke{Signer: SignerOf(key(40).Public().(ed25519.PublicKey))}.Encode()))
	s.refuse(t, "all but a suspect one", s.next(t, TypeDelete, names(b[0])), ErrNeedsOwner)
}

func TestFreezeStopsDeleting(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 6)
	s.add(t, s.next(t, TypePolicy, Policy{Last: 1}.Encode()))
	s.add(t, s.next(t, TypeDelete, names(a[0])))
	s.time += 60 * day
	if got := s.v.Purgeable(s.time); len(got) != 1 {
		t.Errorf("purgeable: %v", got)
	}
	if got := s.v.Expirable(s.time); len(got) != 4 {
		t.Errorf("expirable: %v", got)
	}
	s.add(t, s.next(t, TypeFreeze, nil))
	s.refuse(t, "delete", s.next(t, TypeDelete, names(a[1])), ErrFrozen)
	s.refuse(t, "expire", s.next(t, TypeExpire, names(a[1])), ErrFrozen)
	s.refuse(t, "purge", s.next(t, TypePurge, names(a[0])), ErrFrozen)
	s.refuse(t, "delete by the owner", s.owned(TypeDelete, names(a[1])), nil)
	if s.v.Expirable(s.time) != nil || s.v.Purgeable(s.time) != nil {
		t.Error("the service has something to do")
	}
	s.refuse(t, "thaw by a machine", s.by(Body{Type: TypeThaw}, machine), ErrSigner)
	s.refuse(t, "a freeze with fields", s.next(t, TypeFreeze, []byte{0}), ErrFormat)
	s.add(t, s.next(t, TypeUndelete, names(a[0])))
	s.add(t, s.next(t, TypeThaw, nil))
	s.refuse(t, "delete after the thaw", s.next(t, TypeDelete, names(a[1])), nil)
}

func TestDelayHoldsAndShortensSlowly(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 4)
	s.add(t, s.next(t, TypeDelete, names(a[0])))
	deleted := s.time
	purge := func(at int64, want error) {
		t.Helper()
		if _, err := s.v.Check(s.next(t, TypePurge, names(a[0])), at, log.Public().(ed25519.PublicKey)); !errors.Is(err, want) {
			t.Errorf("purge %d ns after the delete: %v, want %v", at-deleted, err, want)
		}
		if got := len(s.v.Purgeable(at)) == 1; got != (want == nil) {
			t.Errorf("purgeable %d ns after the delete: %v", at-deleted, got)
		}
	}
	purge(deleted+7*day-1, ErrTooEarly)
	purge(deleted+7*day, nil)
	// Longer at once, also for what was deleted before.
	s.time += day
	s.add(t, s.next(t, TypeDelay, Delay{30 * 86400}.Encode()))
	purge(deleted+30*day-1, ErrTooEarly)
	purge(deleted+30*day, nil)
	// Shorter only after 30 days more.
	s.time += day
	s.add(t, s.next(t, TypeDelay, Delay{86400}.Encode()))
	short := s.time
	purge(deleted+29*day, ErrTooEarly)
	if s.v.Delay.In(short+30*day-1) != 30*86400 || s.v.Delay.In(short+30*day) != 86400 {
		t.Errorf("%+v", s.v.Delay)
	}
	// Another short one begins to wait anew, a long one ends the waiting.
	s.time += day
	s.add(t, s.next(t, TypeDelay, Delay{2 * 86400}.Encode()))
	if s.v.Delay.In(s.time+30*day-1) != 30*86400 || s.v.Delay.In(s.time+30*day) != 2*86400 {
		t.Errorf("%+v", s.v.Delay)
	}
	s.add(t, s.next(t, TypeDelay, Delay{30 * 86400}.Encode()))
	if s.v.Delay.In(1<<62) != 30*86400 {
		t.Errorf("%+v", s.v.Delay)
	}
}

func TestServiceExpiresOnlyWhatThePolicyDrops(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 5)
	first := s.v.Archives[0].Time
	at := func(when int64, ids []byte, what string, want error) {
		t.Helper()
		if _, err := s.v.Check(s.next(t, TypeExpire, ids), when, log.Public().(ed25519.PublicKey)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	late := s.time + 100*day
	at(late, names(a[0]), "no policy", ErrKept)
	s.add(t, s.next(t, TypePolicy, Policy{Last: 2}.Encode()))
	at(first+MinAge-1, names(a[0]), "too young", ErrTooEarly)
	at(first+MinAge, names(a[0]), "old enough", nil)
	at(late, names(a[0], a[3]), "one that is kept", ErrKept)
	at(late, names(a[0], a[1], a[2]), "all that are not kept", nil)
	if got := s.v.Expirable(late); !slices.Equal(got, SortIDs(a[:3])) {
		t.Errorf("expirable %v", got)
	}
	if got := s.v.Expirable(first + MinAge); !slices.Equal(got, SortIDs(a[:1])) {
		t.Errorf("expirable %v", got)
	}
	// A policy of its own goes before the general one; one of zeros keeps all.
	s.add(t, s.next(t, TypePolicy, Policy{Series: holdfast.SeriesID{9}}.Encode()))
	at(late, names(a[0]), "a policy of zeros", ErrKept)
	s.add(t, s.next(t, TypePolicy, Policy{Series: holdfast.SeriesID{9}, Last: 4}.Encode()))
	at(late, names(a[1]), "the general policy alone would drop it", ErrKept)
	// What was undeleted stays.
	s.time = late
	// Records of the service carry no tag.
	tagged := s.next(t, TypeExpire, names(a[0]))
	tagged.Tag[0] = 1
	s.refuse(t, "a record of the service with a tag", tagged, ErrFormat)
	s.add(t, s.next(t, TypeExpire, names(a[0])))
	at(late, names(a[0]), "expired already", ErrState)
	s.add(t, s.next(t, TypeUndelete, names(a[0])))
	at(late, names(a[0]), "undeleted", ErrKept)
}

func TestArrearsLeaveTime(t *testing.T) {
	s := begun(t)
	at := func(what string, until int64, want error) {
		t.Helper()
		s.refuse(t, what, s.next(t, TypeArrears, Arrears{until}.Encode()), want)
	}
	at("paid again, and never was in arrears", 0, ErrPaid)
	at("a time too soon", s.time+MinGrace-1, ErrTooEarly)
	at("the first time", s.time+MinGrace, nil)
	at("the last time", 1<<63-1, nil)
	s.add(t, s.next(t, TypeArrears, Arrears{s.time + 5 + 90*day}.Encode()))
	until := s.v.Arrears
	if until != s.time+90*day {
		t.Errorf("in arrears until %d", until)
	}
	at("earlier than announced", until-1, ErrTooEarly)
	at("as announced", until, nil)
	at("later", until+1, nil)
	s.time = until - MinGrace + 1
	at("as announced, and too soon by now", until, ErrTooEarly)
	at("the time that is left", s.time+MinGrace, nil)
	s.add(t, s.next(t, TypeArrears, Arrears{}.Encode()))
	if s.v.Arrears != 0 {
		t.Errorf("paid again, and in arrears until %d", s.v.Arrears)
	}
	at("paid again twice", 0, ErrPaid)
	at("a time too soon, once more", until, ErrTooEarly)
	// A stamp at the end of all time, and one from before it, do not wrap round.
	for _, when := range []int64{1<<63 - 1, -1 << 63} {
		if _, err := s.v.Check(s.next(t, TypeArrears, Arrears{until}.Encode()), when, log.Public().(ed25519.PublicKey)); !errors.Is(err, ErrTooEarly) {
			t.Errorf("at %d: %v", when, err)
		}
	}
}

func TestArchivesLapse(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 6)
	b := s.commits(t, 8, 1)
	s.add(t, s.next(t, TypePolicy, Policy{Last: 5}.Encode()))
	s.add(t, s.next(t, TypeDelete, names(a[0], a[1])))
	s.add(t, s.next(t, TypeUndelete, names(a[1]))) // held
	// A machine that is revoked committed one that is suspect, and the series jumped.
	s.commit(t, 9, Counts{Stored: 1})
	odd := s.v.Archives[len(s.v.Archives)-1].ID
	s.add(t, s.next(t, TypeRevoke, Revoke{SignerOf(machine.Public().(ed25519.PublicKey)), s.time}.Encode()))
	lapse := func(what string, at int64, ids []byte, want error) {
		t.Helper()
		if _, err := s.v.Check(s.next(t, TypeLapse, ids), at, log.Public().(ed25519.PublicKey)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	all := SortIDs(append(slices.Clone(a[1:]), b[0], odd))
	lapse("no arrears", s.time+900*day, all.Encode(), ErrPaid)
	if got := s.v.Lapsable(s.time + 900*day); got != nil {
		t.Errorf("lapsable: %v", got)
	}
	s.arrears(t, s.time+90*day)
	until := s.v.Arrears
	lapse("too early", until-1, all.Encode(), ErrTooEarly)
	lapse("in time, the last of a series among them", until, all.Encode(), nil)
	lapse("what is deleted", until, names(a[0]), ErrState)
	lapse("what never was", until, names(holdfast.RecordID{1}), ErrState)
	if got := s.v.Lapsable(until - 1); got != nil {
		t.Errorf("lapsable too early: %v", got)
	}
	if got := s.v.Lapsable(until); !slices.Equal(got, all) {
		t.Errorf("lapsable: %v, want %v", got, all)
	}
	s.time = until
	s.add(t, s.owned(TypeFreeze, nil))
	lapse("frozen", s.time, all.Encode(), ErrFrozen)
	s.refuse(t, "arrears while frozen", s.next(t, TypeArrears, Arrears{}.Encode()), nil)
	if got := s.v.Lapsable(s.time); got != nil {
		t.Errorf("lapsable while frozen: %v", got)
	}
	s.add(t, s.next(t, TypeThaw, nil))
	gone := slices.DeleteFunc(slices.Clone(all), func(id holdfast.RecordID) bool { return id == a[5] })
	s.add(t, s.next(t, TypeLapse, gone.Encode()))
	lapsed := s.time
	lapse("lapsed already", s.time, names(a[2]), ErrState)
	if x, _ := s.v.Find(a[2]); x.State != Lapsed || x.Changed != lapsed || x.Machine {
		t.Errorf("%+v", x)
	}
	if got := s.v.Lapsable(s.time); !slices.Equal(got, IDs{a[5]}) {
		t.Errorf("lapsable afterwards: %v", got)
	}

	// Nothing of it comes back before somebody pays; what was deleted does.
	s.refuse(t, "undelete unpaid", s.owned(TypeUndelete, names(a[2])), ErrUnpaid)
	s.refuse(t, "undelete unpaid, beside what was deleted", s.owned(TypeUndelete, names(a[0], a[2])), ErrUnpaid)
	s.add(t, s.owned(TypeUndelete, names(a[0])))
	if x, _ := s.v.Find(a[0]); x.State != Live || !x.Held {
		t.Errorf("deleted, and brought back in arrears: %+v", x)
	}
	s.add(t, s.next(t, TypeArrears, Arrears{}.Encode()))
	s.add(t, s.owned(TypeUndelete, names(a[1], a[2])))
	for i, held := range map[int]bool{1: true, 2: false} {
		if x, _ := s.v.Find(a[i]); x.State != Live || x.Held != held {
			t.Errorf("archive %d, brought back after paying: %+v", i, x)
		}
	}

	// What nobody brings back goes when the delay is over, as what was deleted does. It begins anew when somebody pays.
	purge := names(a[3], a[4])
	paid := s.v.Told
	if paid <= lapsed {
		t.Fatalf("paid at %d, lapsed at %d", paid, lapsed)
	}
	if x, _ := s.v.Find(a[3]); s.v.Since(x) != paid {
		t.Errorf("the delay began at %d", s.v.Since(x))
	}
	s.time = paid + DefaultDelay*1e9 - 1
	s.refuse(t, "purge too early", s.next(t, TypePurge, purge), ErrTooEarly)
	if got := s.v.Purgeable(s.time); got != nil {
		t.Errorf("purgeable too early: %v", got)
	}
	s.time++
	if got := s.v.Purgeable(s.time); !slices.Equal(got, SortIDs([]holdfast.RecordID{a[3], a[4], b[0], odd})) {
		t.Errorf("purgeable: %v", got)
	}
	s.add(t, s.next(t, TypePurge, purge))
	if x, _ := s.v.Find(a[3]); x.State != Purged {
		t.Errorf("%+v", x)
	}
}

// A record names at most so many archives, the oldest first.
func TestLapseInParts(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, MaxIDs+1)
	s.arrears(t, 0)
	s.time = s.v.Arrears
	if got := s.v.Lapsable(s.time); !slices.Equal(got, SortIDs(a[:MaxIDs])) {
		t.Errorf("%d are lapsable, or not the oldest", len(got))
	}
}

// What lapsed is not there for the rules of deletion: a machine may not delete what is left as if it were.
func TestLapsedCountsForNothing(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 6)
	s.arrears(t, 0)
	s.time = s.v.Arrears
	s.add(t, s.next(t, TypeLapse, names(a[:3]...)))
	s.refuse(t, "all that is left", s.next(t, TypeDelete, names(a[3:]...)), ErrNeedsOwner)
	s.refuse(t, "more than half of what is left", s.next(t, TypeDelete, names(a[3:5]...)), ErrNeedsOwner)
	s.add(t, s.next(t, TypeDelete, names(a[3])))
	for _, d := range Keep(Policy{Last: 1}, s.v.OfSeries(holdfast.SeriesID{9})) {
		if keep := d.ID == a[5]; d.Keep != keep {
			t.Errorf("archive %.8s is kept: %v, %v", d.ID, d.Keep, d.Why)
		}
	}
}

func TestSeriesThatJumpedWaits(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 5)
	s.add(t, s.next(t, TypePolicy, Policy{Last: 1}.Encode()))
	odd := s.commit(t, 9, Counts{Stored: 1000}) // everything is new: encrypted by somebody else?
	s.time += 60 * day
	s.refuse(t, "expire", s.next(t, TypeExpire, names(a[0])), ErrJumped)
	s.refuse(t, "delete by a machine", s.next(t, TypeDelete, names(a[0])), ErrNeedsOwner)
	s.refuse(t, "delete by the owner", s.owned(TypeDelete, names(a[0])), nil)
	if got := s.v.Expirable(s.time); len(got) != 0 {
		t.Errorf("expirable %v", got)
	}
	s.refuse(t, "confirm another series", s.next(t, TypeConfirm, Confirm{holdfast.SeriesID{77}}.Encode()), ErrFormat)
	s.add(t, s.next(t, TypeConfirm, Confirm{holdfast.SeriesID{9}}.Encode()))
	s.refuse(t, "expire after the confirmation", s.next(t, TypeExpire, names(a[0])), nil)
	another := s.commit(t, 9, Counts{Stored: 3000, Unchanged: 9000})
	s.time += 60 * day
	s.refuse(t, "expire after another jump", s.next(t, TypeExpire, names(a[0])), ErrJumped)
	for id, jumped := range s.v.Jumps() {
		if jumped != (id == odd || id == another) {
			t.Errorf("archive %.8s jumped: %v", id, jumped)
		}
	}
	if n := len(s.v.Jumps()); n != 7 {
		t.Errorf("%d archives are judged, want 7", n)
	}
}

func TestFollowIsRepeatable(t *testing.T) {
	s := whole(t)
	var v Vault
	for i, e := range s.entries {
		before := v.Clone()
		if err := v.Follow(e, log.Public().(ed25519.PublicKey), hist); err != nil {
			t.Fatal(err)
		}
		if before.N != uint64(i) {
			t.Fatal("a clone moved on")
		}
		if err := before.Follow(e, log.Public().(ed25519.PublicKey), hist); err != nil {
			t.Fatalf("record %d follows a clone: %v", e.N, err)
		}
	}
	if v.Head != s.v.Head {
		t.Error("another head")
	}
}

func TestNewFieldsRefuse(t *testing.T) {
	sorted := make(IDs, MaxIDs+1)
	for i := range sorted {
		sorted[i][0] = byte(i)
	}
	many := make([]holdfast.SeriesID, MaxSeries+1)
	for i := range many {
		many[i][0] = byte(i)
	}
	e := enrol()
	series := func(s ...holdfast.SeriesID) []byte { e.Series = s; return e.Encode() }
	suite2 := fields()[TypeRotateRead]
	suite2[0] = 2
	for _, c := range []struct {
		what   string
		typ    Type
		fields []byte
		ok     bool
	}{
		{"as many archives as allowed", TypeDelete, sorted[:MaxIDs].Encode(), true},
		{"too many archives", TypeDelete, sorted.Encode(), false},
		{"no archives", TypePurge, IDs{}.Encode(), false},
		{"archives twice", TypeExpire, IDs{{1}, {1}}.Encode(), false},
		{"archives out of order", TypeUndelete, IDs{{2}, {1}}.Encode(), false},
		{"an archive missing", TypeDelete, IDs{{1}, {2}}.Encode()[:2+33], false},
		{"as many series as allowed", TypeEnrol, series(many[:MaxSeries]...), true},
		{"too many series", TypeEnrol, series(many...), false},
		{"series twice", TypeEnrol, series(holdfast.SeriesID{1}, holdfast.SeriesID{1}), false},
		{"series out of order", TypeEnrol, series(holdfast.SeriesID{2}, holdfast.SeriesID{1}), false},
		{"the shortest delay", TypeDelay, Delay{MinDelay}.Encode(), true},
		{"a shorter one", TypeDelay, Delay{MinDelay - 1}.Encode(), false},
		{"the longest delay", TypeDelay, Delay{MaxDelay}.Encode(), true},
		{"a longer one", TypeDelay, Delay{MaxDelay + 1}.Encode(), false},
		{"the longest within", TypePolicy, Policy{Within: MaxWithin}.Encode(), true},
		{"a longer one", TypePolicy, Policy{Within: MaxWithin + 1}.Encode(), false},
		{"another suite", TypeRotateRead, suite2, false},
		{"the last time that there is", TypeArrears, Arrears{1<<63 - 1}.Encode(), true},
		{"a time before 1970", TypeArrears, Arrears{-1}.Encode(), false},
		{"too many archives that lapse", TypeLapse, sorted.Encode(), false},
	} {
		_, err := reencode(c.typ, c.fields)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	for typ, f := range fields() {
		if again, err := reencode(typ, f); err != nil || !bytes.Equal(again, f) {
			t.Errorf("%s: %v", typ, err)
		}
		if _, err := reencode(typ, append(bytes.Clone(f), 0)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s with something behind: %v", typ, err)
		}
		for i := range f {
			if _, err := reencode(typ, f[:i]); !errors.Is(err, ErrFormat) {
				t.Errorf("%s cut at byte %d: %v", typ, i, err)
			}
		}
	}
}

// A service that deletes what it may not, with records that its own log key signs, is found by every client
// that follows the history.
func TestServiceThatDeletesTooMuchIsFound(t *testing.T) {
	s := begun(t)
	a := s.commits(t, 9, 6)
	s.add(t, s.next(t, TypeDelete, names(a[0])))
	s.add(t, s.next(t, TypePolicy, Policy{Series: holdfast.SeriesID{9}, Last: 3}.Encode()))
	frozen := func(s *story) { s.add(t, s.next(t, TypeFreeze, nil)) }
	unpaid := func(s *story) { s.arrears(t, s.time+60*day) }
	jumped := func(s *story) { s.commit(t, 9, Counts{}) }
	other := key(60)
	for _, c := range []struct {
		what  string
		first func(*story)
		after int64 // ns, from the last record to the lie
		lie   func(s *story) Record
		want  error
	}{
		{"expires what the policy keeps", nil, 60 * day, func(s *story) Record { return s.next(t, TypeExpire, names(a[5])) }, ErrKept},
		{"expires what is young", nil, 20 * day, func(s *story) Record { return s.next(t, TypeExpire, names(a[1])) }, ErrTooEarly},
		{"expires in a series that jumped", jumped, 60 * day, func(s *story) Record { return s.next(t, TypeExpire, names(a[1])) }, ErrJumped},
		{"expires while frozen", frozen, 60 * day, func(s *story) Record { return s.next(t, TypeExpire, names(a[1])) }, ErrFrozen},
		{"purges early", nil, 7*day - 10, func(s *story) Record { return s.next(t, TypePurge, names(a[0])) }, ErrTooEarly},
		{"purges while frozen", frozen, 60 * day, func(s *story) Record { return s.next(t, TypePurge, names(a[0])) }, ErrFrozen},
		{"purges what is live", nil, 60 * day, func(s *story) Record { return s.next(t, TypePurge, names(a[5])) }, ErrState},
		{"announces a time too soon", nil, 5, func(s *story) Record { return s.next(t, TypeArrears, Arrears{s.time + 5 + MinGrace - 1}.Encode()) }, ErrTooEarly},
		{"brings a time forward that it announced", unpaid, 5, func(s *story) Record { return s.next(t, TypeArrears, Arrears{s.v.Arrears - 1}.Encode()) }, ErrTooEarly},
		{"lapses what is paid", nil, 400 * day, func(s *story) Record { return s.next(t, TypeLapse, names(a[1])) }, ErrPaid},
		{"lapses early", unpaid, 60*day - 10, func(s *story) Record { return s.next(t, TypeLapse, names(a[1])) }, ErrTooEarly},
		{"lapses while frozen", func(s *story) { unpaid(s); frozen(s) }, 61 * day, func(s *story) Record { return s.next(t, TypeLapse, names(a[1])) }, ErrFrozen},
		{"lapses what is deleted", unpaid, 61 * day, func(s *story) Record { return s.next(t, TypeLapse, names(a[0])) }, ErrState},
		{"deletes in the owner's place", nil, 1, func(s *story) Record {
			return SignByService(Body{Type: TypeDelete, Vault: s.v.ID, Fields: names(a[5])}, log)
		}, ErrSigner},
		{"thaws", frozen, 1, func(s *story) Record { return SignByService(Body{Type: TypeThaw, Vault: s.v.ID}, log) }, ErrSigner},
		{"has another key expire", nil, 60 * day, func(s *story) Record {
			return SignByService(Body{Type: TypeExpire, Vault: s.v.ID, Fields: names(a[1])}, other)
		}, ErrSigner},
		{"repeats its own record", nil, 60 * day, func(s *story) Record {
			r := s.next(t, TypeExpire, names(a[1]))
			s.time += 60 * day
			s.add(t, r)
			return r
		}, ErrChain},
		{"sets the clock back", nil, -1, func(s *story) Record { return s.next(t, TypeFreeze, nil) }, ErrOrder},
	} {
		told := &story{v: *s.v.Clone(), time: s.time}
		if c.first != nil {
			c.first(told)
		}
		r := c.lie(told)
		at := told.time + c.after
		e := Stamp(told.v.ID, told.v.N+1, told.v.Head, at, r, log)
		n := told.v.N
		if err := told.v.Follow(e, log.Public().(ed25519.PublicKey), hist); !errors.Is(err, c.want) {
			t.Errorf("the service %s: %v, want %v", c.what, err, c.want)
		}
		if told.v.N != n {
			t.Errorf("the service %s: the client followed", c.what)
		}
	}
}
