package history

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"holdfast"
)

// What a client finds when a service's story does not hold together. Every one of them means: do not
// trust what this service says about this vault.
var (
	ErrOrder  = errors.New("the service's history has a gap or a fork")
	ErrHead   = errors.New("a head is not the hash of what it covers")
	ErrSigner = errors.New("a record is signed by a key that may not sign it")
	ErrRights = errors.New("a record needs a right that its signer was not given")
	ErrChain  = errors.New("a signer's own chain of records is broken")
	ErrSeen   = errors.New("a record's signer was shown another history than this one")
)

// What the rules of deletion refuse, to clients and to the service alike.
var (
	ErrRevoked    = errors.New("the machine's key was revoked")
	ErrNeedsOwner = errors.New("only the owner may delete that much of a series")
	ErrFrozen     = errors.New("deleting is frozen in this vault")
	ErrTooEarly   = errors.New("the time for that has not come")
	ErrKept       = errors.New("the policy in force keeps that archive")
	ErrJumped     = errors.New("the series changed abruptly and its owner has not confirmed it")
	ErrState      = errors.New("there is no archive in the state that the record needs")
	ErrPaid       = errors.New("the vault is not in arrears")
	ErrUnpaid     = errors.New("the account has no credit; pay first")
)

// Machine is what a vault knows of one enrolled machine.
type Machine struct {
	Enrol   Enrol
	Chain   Link
	Revoked uint64 // number of the newest record that revoked it; 0 if none did
	Since   int64  // ns; if Revoked: what it stored and committed from then on is suspect
}

// Link is the end of a signer's chain: the next record must carry Seq and Prev.
type Link struct {
	Seq  uint64
	Prev holdfast.RecordID
}

// State says whether an archive is deleted.
type State uint8

// The states of an archive. One that is purged is not in Vault.Archives any more.
const (
	Live    State = 0
	Deleted State = 1 // by a machine or the owner; can be brought back
	Expired State = 2 // by the service, as the policy says; can be brought back
	Purged  State = 3 // gone for good
	Lapsed  State = 4 // by the service, as nobody paid; can be brought back once the account is paid
)

func (s State) String() string {
	switch s {
	case Live:
		return "live"
	case Deleted:
		return "deleted"
	case Expired:
		return "expired"
	case Purged:
		return "purged"
	case Lapsed:
		return "lapsed"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Archive is a committed archive as the history tells of it.
type Archive struct {
	ID      holdfast.RecordID
	N       uint64 // its place in the history
	Time    int64  // the service's stamp, ns
	Signer  holdfast.SignerID
	Commit  Commit
	State   State
	Changed int64 // stamp of the record that made it so, ns; 0 while it was never deleted
	Machine bool  // if Deleted: by a machine, not by the owner
	Held    bool  // it was undeleted once, not only after a lapse: no policy expires it again
	Suspect bool  // its machine is revoked, and it was committed since the time that the revocation names
}

// Vault is the state of one vault after a prefix of its history: what Check lets through, Apply adds.
// Both service and client run this code, so that they agree on what is allowed. The zero Vault is
// before its genesis record. It is not safe for concurrent use.
type Vault struct {
	ID       holdfast.VaultID
	Genesis  Genesis
	N        uint64 // number of the newest record; 0 before genesis
	Head     holdfast.Head
	Time     int64 // stamp of the newest record, ns
	Owner    Link  // chain of the owner key
	Service  Link  // chain of the service's log key
	ReadKey  [ReadKeySize]byte
	ReadKeys []ReadKeyID // of all read keys so far, in the owner's numbering; the last is the current one, ReadKey
	Machines map[holdfast.SignerID]Machine
	Sessions map[holdfast.SessionID]Session
	Archives []Archive // that are not purged, in the order of their commits
	Purged   []Archive // in the order in which they were purged
	Series   map[holdfast.SeriesID]Series
	Policies map[holdfast.SeriesID]Policy // of zeros: for every series without one of its own
	Delay    Undelete
	Arrears  int64 // ns; from then on archives may lapse, as the account has no credit; 0 while it is paid
	Told     int64 // ns; stamp of the newest arrears record; 0 for none
	Frozen   bool

	heads map[uint64]holdfast.Head // by number, for what records say they have seen
}

// Session is what the history tells of one session.
type Session struct {
	Signer  holdfast.SignerID
	Open    Open
	Rewraps []Rewrap // in the order of their records
}

// WrappedFor reports whether the session's secret is wrapped for a read key.
func (s Session) WrappedFor(k ReadKeyID) bool {
	return s.Open.ReadKey == k || slices.ContainsFunc(s.Rewraps, func(w Rewrap) bool { return w.ReadKey == k })
}

// StaleError answers a record that does not continue its signer's chain: sign again after Want.
type StaleError struct{ Want Link }

func (e *StaleError) Error() string {
	return fmt.Sprintf("record does not continue its signer's chain, which stands at %d", e.Want.Seq)
}

// CheckSignature finds the key that must have signed r, given the owner key, the service's log key and the
// machines that machine returns, verifies the signature and parses the body. For a genesis record all of
// them are ignored.
//
// The error wraps ErrFormat, ErrSignature, ErrSigner, ErrRevoked or ErrRights.
func CheckSignature(r Record, vault holdfast.VaultID, owner [32]byte, logKey ed25519.PublicKey, machine func(holdfast.SignerID) (Machine, bool)) (Body, error) {
	b, err := ParseBody(r.Body)
	if err != nil {
		return Body{}, err
	}
	if b.Type == TypeGenesis {
		b, _, err := checkGenesis(r)
		return b, err
	}
	if b.Vault != vault {
		return Body{}, fmt.Errorf("%w: record names another vault", ErrFormat)
	}
	ownerKey := ed25519.PublicKey(bytes.Clone(owner[:]))
	switch byOwner := b.Signer == SignerOf(ownerKey); {
	case b.Type.ByService():
		if b.Signer != SignerOf(logKey) {
			return Body{}, fmt.Errorf("%w: %s is for the service's log key", ErrSigner, b.Type)
		}
		if r.Tag != [32]byte{} {
			return Body{}, fmt.Errorf("%w: %s has a tag", ErrFormat, b.Type)
		}
		return b, r.Verify(logKey)
	case b.Type.ByOwner() && byOwner:
		return b, r.Verify(ownerKey)
	case b.Type.Right() == 0:
		return Body{}, fmt.Errorf("%w: %s is for the owner key", ErrSigner, b.Type)
	}
	m, ok := machine(b.Signer)
	if !ok {
		return Body{}, fmt.Errorf("%w: %.8s is not enrolled", ErrSigner, b.Signer)
	}
	if err := r.Verify(bytes.Clone(m.Enrol.SignKey[:])); err != nil {
		return Body{}, err
	}
	if m.Revoked != 0 {
		return Body{}, fmt.Errorf("%w: %s by %.8s", ErrRevoked, b.Type, b.Signer)
	}
	if !m.Enrol.Rights.Has(b.Type.Right()) {
		return Body{}, fmt.Errorf("%w: %s by %.8s", ErrRights, b.Type, b.Signer)
	}
	return b, nil
}

// Check says whether r may follow in v at the time at (ns), in a service with that log key. It changes
// nothing. The error wraps ErrFormat, ErrSignature, ErrSigner, ErrRights, ErrChain, ErrSeen or one of the
// rules of deletion, or is a *StaleError.
func (v *Vault) Check(r Record, at int64, logKey ed25519.PublicKey) (Body, error) {
	b, err := CheckSignature(r, v.ID, v.Genesis.OwnerKey, logKey, func(s holdfast.SignerID) (Machine, bool) {
		m, ok := v.Machines[s]
		return m, ok
	})
	if err != nil {
		return Body{}, err
	}
	if (b.Type == TypeGenesis) != (v.N == 0) {
		return Body{}, fmt.Errorf("%w: %s at place %d", ErrFormat, b.Type, v.N+1)
	}
	if b.Type == TypeGenesis {
		return b, nil
	}
	if want := *v.chain(b); b.Seq != want.Seq || b.Prev != want.Prev {
		return Body{}, &StaleError{want}
	}
	if b.SeenN > 0 && v.heads[b.SeenN] != b.SeenHead {
		return Body{}, fmt.Errorf("%w: head %d", ErrSeen, b.SeenN)
	}
	return b, v.rule(b, at)
}

// chain returns the chain of b's signer; a change of a machine's chain is not kept.
func (v *Vault) chain(b Body) *Link {
	switch m, ok := v.Machines[b.Signer]; {
	case b.Type.ByService():
		return &v.Service
	case ok && b.Type.Right() != 0:
		return &m.Chain
	}
	return &v.Owner
}

// SawHead tells a vault that is loaded from elsewhere than its entries that its head n is h.
func (v *Vault) SawHead(n uint64, h holdfast.Head) {
	if v.heads == nil {
		v.heads = map[uint64]holdfast.Head{}
	}
	v.heads[n] = h
}

// rule checks what a record does against the state of the vault at the time at (ns).
func (v *Vault) rule(b Body, at int64) error {
	switch b.Type {
	case TypeEnrol:
		return v.ruleEnrol(b)
	case TypeOpen:
		return v.ruleOpen(b)
	case TypeCommit:
		return v.ruleCommit(b)
	case TypeRevoke:
		return v.ruleRevoke(b)
	case TypeRotateRead:
		k, err := ParseRotateRead(b.Fields)
		if err == nil && slices.Contains(v.ReadKeys, ReadKeyIDOf(k.ReadKey[:])) {
			err = fmt.Errorf("%w: that was or is a read key of the vault; make a new one", ErrFormat)
		}
		return err
	case TypeRewrap:
		return v.ruleRewrap(b)
	case TypeDelete:
		return v.ruleDelete(b)
	case TypeUndelete:
		return v.ruleUndelete(b, at)
	case TypePolicy:
		_, err := ParsePolicy(b.Fields)
		return err
	case TypeDelay:
		_, err := ParseDelay(b.Fields)
		return err
	case TypeFreeze, TypeThaw:
		return ParseNone(b.Type, b.Fields)
	case TypeExpire:
		return v.ruleExpire(b, at)
	case TypePurge:
		return v.rulePurge(b, at)
	case TypeConfirm:
		c, err := ParseConfirm(b.Fields)
		if _, ok := v.Series[c.Series]; err == nil && !ok {
			err = fmt.Errorf("%w: nothing was committed to series %.8s", ErrFormat, c.Series)
		}
		return err
	case TypeArrears:
		return v.ruleArrears(b, at)
	case TypeLapse:
		return v.ruleLapse(b, at)
	}
	return fmt.Errorf("%w: no rule for %s", ErrFormat, b.Type)
}

func (v *Vault) ruleEnrol(b Body) error {
	e, err := ParseEnrol(b.Fields)
	if err != nil {
		return err
	}
	if e.SignKey == v.Genesis.OwnerKey {
		return fmt.Errorf("%w: the owner key is not a machine's", ErrFormat)
	}
	if _, dup := v.Machines[SignerOf(e.SignKey[:])]; dup {
		return fmt.Errorf("%w: that signing key is enrolled already", ErrFormat)
	}
	return nil
}

func (v *Vault) ruleOpen(b Body) error {
	o, err := ParseOpen(b.Fields)
	if err != nil {
		return err
	}
	if o.Group != v.Machines[b.Signer].Enrol.Group {
		return fmt.Errorf("%w: session names another group", ErrFormat)
	}
	if o.ReadKey != v.currentRead() {
		return fmt.Errorf("%w: session names another read key than the current one", ErrFormat)
	}
	if _, dup := v.Sessions[o.Session]; dup {
		return fmt.Errorf("%w: session exists already", ErrFormat)
	}
	return nil
}

func (v *Vault) currentRead() ReadKeyID { return v.ReadKeys[len(v.ReadKeys)-1] }

func (v *Vault) ruleCommit(b Body) error {
	c, err := ParseCommit(b.Fields)
	if err != nil {
		return err
	}
	if s, ok := v.Sessions[c.Session]; !ok || s.Signer != b.Signer || s.Open.Group != c.Group {
		return fmt.Errorf("%w: commit names a session that its signer did not open", ErrFormat)
	}
	if !v.Machines[b.Signer].Enrol.MayCommit(c.Series) {
		return fmt.Errorf("%w: commit to series %.8s by %.8s", ErrRights, c.Series, b.Signer)
	}
	return nil
}

func (v *Vault) ruleRevoke(b Body) error {
	r, err := ParseRevoke(b.Fields)
	if err != nil {
		return err
	}
	switch m, ok := v.Machines[r.Signer]; {
	case !ok:
		return fmt.Errorf("%w: no machine %.8s is enrolled", ErrFormat, r.Signer)
	case m.Revoked != 0 && r.Since >= m.Since:
		return fmt.Errorf("%w: machine %.8s is revoked since an earlier time already", ErrFormat, r.Signer)
	}
	return nil
}

func (v *Vault) ruleRewrap(b Body) error {
	w, err := ParseRewrap(b.Fields)
	if err != nil {
		return err
	}
	s, ok := v.Sessions[w.Session]
	if !ok {
		return fmt.Errorf("%w: no session %.8s", ErrFormat, w.Session)
	}
	if w.ReadKey != v.currentRead() {
		return fmt.Errorf("%w: rewrap is for another read key than the current one", ErrFormat)
	}
	if s.WrappedFor(w.ReadKey) {
		return fmt.Errorf("%w: session %.8s is wrapped for that read key already", ErrFormat, w.Session)
	}
	return nil
}

// Follow verifies that e comes next (its place, head, log signature under logKey, tag under hist, and
// everything that Check checks) and applies it. A failed Follow changes nothing.
func (v *Vault) Follow(e Entry, logKey ed25519.PublicKey, hist holdfast.Key) error {
	if e.N != v.N+1 {
		return fmt.Errorf("%w: record %d where %d belongs", ErrOrder, e.N, v.N+1)
	}
	b, err := v.Check(e.Record, e.Time, logKey)
	if err != nil {
		var stale *StaleError
		if errors.As(err, &stale) {
			err = ErrChain
		}
		if b, perr := ParseBody(e.Record.Body); perr == nil {
			return fmt.Errorf("history record %d, %s: %w", e.N, b.Type, err)
		}
		return fmt.Errorf("history record %d: %w", e.N, err)
	}
	if err := e.Record.VerifyTag(hist); err != nil && !b.Type.ByService() { // which Check saw to be without
		return fmt.Errorf("history record %d: %w", e.N, err)
	}
	id := v.ID
	if b.Type == TypeGenesis {
		id = holdfast.VaultID(e.Record.ID())
		if v.ID != (holdfast.VaultID{}) && v.ID != id {
			return fmt.Errorf("history record 1: %w: another vault's genesis", ErrOrder)
		}
	}
	if NextHead(id, e.N, v.Head, e.Time, e.Record) != e.Head {
		return fmt.Errorf("history record %d: %w", e.N, ErrHead)
	}
	if e.Time < v.Time {
		return fmt.Errorf("history record %d: %w: its time runs backwards", e.N, ErrOrder)
	}
	if !ed25519.Verify(logKey, headMessage(id, e.N, e.Head), e.LogSig[:]) {
		return fmt.Errorf("history record %d, head: %w", e.N, ErrSignature)
	}
	v.apply(id, b, e)
	return nil
}

// apply adds a checked entry.
func (v *Vault) apply(id holdfast.VaultID, b Body, e Entry) {
	if v.Machines == nil {
		v.Machines = map[holdfast.SignerID]Machine{}
		v.Sessions = map[holdfast.SessionID]Session{}
		v.Series = map[holdfast.SeriesID]Series{}
		v.Policies = map[holdfast.SeriesID]Policy{}
	}
	v.ID, v.N, v.Head, v.Time = id, e.N, e.Head, e.Time
	v.SawHead(e.N, e.Head)
	next := Link{Seq: b.Seq + 1, Prev: e.Record.ID()}
	if link := v.chain(b); link == &v.Owner || link == &v.Service {
		*link = next
	} else {
		m := v.Machines[b.Signer]
		m.Chain = next
		v.Machines[b.Signer] = m
	}
	switch b.Type {
	case TypeGenesis:
		v.Genesis, _ = ParseGenesis(b.Fields)
		v.ReadKey, v.ReadKeys = v.Genesis.ReadKey, []ReadKeyID{ReadKeyIDOf(v.Genesis.ReadKey[:])}
	case TypeEnrol:
		en, _ := ParseEnrol(b.Fields)
		v.Machines[SignerOf(en.SignKey[:])] = Machine{Enrol: en}
	case TypeOpen:
		o, _ := ParseOpen(b.Fields)
		v.Sessions[o.Session] = Session{Signer: b.Signer, Open: o}
	case TypeRevoke:
		r, _ := ParseRevoke(b.Fields)
		v.revoke(r, e)
	case TypeRotateRead:
		k, _ := ParseRotateRead(b.Fields)
		v.ReadKey, v.ReadKeys = k.ReadKey, append(slices.Clip(v.ReadKeys), ReadKeyIDOf(k.ReadKey[:]))
	case TypeRewrap:
		w, _ := ParseRewrap(b.Fields)
		s := v.Sessions[w.Session]
		s.Rewraps = append(slices.Clip(s.Rewraps), w)
		v.Sessions[w.Session] = s
	case TypeCommit:
		c, _ := ParseCommit(b.Fields)
		v.commit(c, b.Signer, e)
	case TypePolicy:
		p, _ := ParsePolicy(b.Fields)
		v.Policies[p.Series] = p
	case TypeDelay:
		d, _ := ParseDelay(b.Fields)
		v.Delay = v.Delay.Set(d.Seconds, e.Time)
	case TypeFreeze, TypeThaw:
		v.Frozen = b.Type == TypeFreeze
	case TypeConfirm:
		c, _ := ParseConfirm(b.Fields)
		s := v.Series[c.Series]
		s.Confirmed = e.N
		v.Series[c.Series] = s
	case TypeArrears:
		a, _ := ParseArrears(b.Fields)
		v.Arrears, v.Told = a.Until, e.Time
	case TypeDelete, TypeUndelete, TypeExpire, TypePurge, TypeLapse:
		ids, _ := ParseIDs(b.Type, b.Fields)
		v.change(b.Type, ids, e.Time, b.Signer != SignerOf(v.Genesis.OwnerKey[:]))
	}
}

// revoke marks a machine and what it committed since.
func (v *Vault) revoke(r Revoke, e Entry) {
	m := v.Machines[r.Signer]
	m.Revoked, m.Since = e.N, min(r.Since, e.Time)
	v.Machines[r.Signer] = m
	for i := range v.Archives {
		v.Archives[i].Suspect = v.Archives[i].Suspect || m.suspects(v.Archives[i], r.Signer)
	}
}

func (m Machine) suspects(a Archive, self holdfast.SignerID) bool {
	return m.Revoked != 0 && a.Signer == self && a.Time >= m.Since
}

// commit adds an archive and notes whether its series jumped.
func (v *Vault) commit(c Commit, signer holdfast.SignerID, e Entry) {
	v.Archives = append(v.Archives, Archive{ID: e.Record.ID(), N: e.N, Time: e.Time, Signer: signer, Commit: c})
	v.Series[c.Series] = v.Series[c.Series].Add(c, e.N)
}

// Add returns the series with the archive of commit record number n.
func (s Series) Add(c Commit, n uint64) Series {
	if c.Partial {
		return s
	}
	if Jumped(s.Past, c) {
		s.Jumped = n
	}
	past := append(slices.Clone(s.Past), PastOf(c))
	s.Past = past[max(0, len(past)-MaxPast):]
	return s
}

// Jumps returns which archives jumped when they were committed, purged ones included, for people who look
// for the odd one. It needs the whole history; a vault that was loaded from elsewhere does not have it.
func (v *Vault) Jumps() map[holdfast.RecordID]bool {
	all := slices.Concat(v.Archives, v.Purged)
	slices.SortFunc(all, func(a, b Archive) int { return compare(a.N, b.N) })
	series := map[holdfast.SeriesID]Series{}
	jumped := map[holdfast.RecordID]bool{}
	for _, a := range all {
		s := series[a.Commit.Series].Add(a.Commit, a.N)
		series[a.Commit.Series] = s
		jumped[a.ID] = s.Jumped == a.N
	}
	return jumped
}

// change deletes, undeletes, expires, purges or lapses archives.
func (v *Vault) change(t Type, ids IDs, at int64, machine bool) {
	var gone []Archive
	v.Archives = slices.DeleteFunc(v.Archives, func(a Archive) bool {
		if t == TypePurge && ids.has(a.ID) {
			a.State, a.Changed = Purged, at
			gone = append(gone, a)
			return true
		}
		return false
	})
	v.Purged = append(v.Purged, gone...)
	for i := range v.Archives {
		if a := &v.Archives[i]; ids.has(a.ID) {
			a.Apply(t, at, machine)
		}
	}
}

// Apply moves an archive on as a delete, undelete, expire, purge or lapse record at that time (ns) says, signed
// by a machine or not.
func (a *Archive) Apply(t Type, at int64, machine bool) {
	a.Changed, a.Machine = at, false
	switch t {
	case TypeDelete:
		a.State, a.Machine = Deleted, machine
	case TypeUndelete:
		// Who pays late wants what he had; who brings back what somebody deleted wants that to stay.
		a.State, a.Held = Live, a.Held || a.State != Lapsed
	case TypeExpire:
		a.State = Expired
	case TypePurge:
		a.State = Purged
	case TypeLapse:
		a.State = Lapsed
	default:
		panic("history: " + t.String() + " does not change archives")
	}
}
