package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/service/ledger"
)

// Type says what a record does.
type Type uint8

// The types of records.
const (
	TypeTakeover Type = 1
	TypeStored   Type = 2
	TypeHistory  Type = 3
	TypeAccount  Type = 4
	TypeToken    Type = 5
	TypeRedeemed Type = 6

	TypeMetered   Type = 7
	TypeFrozen    Type = 8
	TypeThawed    Type = 9
	TypeCondemned Type = 10
	TypeMoved     Type = 11
	TypeRetired   Type = 12
	TypeRemoved   Type = 13
	TypeDamaged   Type = 14
	TypeTransfer  Type = 15
	TypeCharge    Type = 16
	TypeStep      Type = 17
	TypeTold      Type = 18
)

func (t Type) String() string {
	switch t {
	case TypeTakeover:
		return "takeover"
	case TypeStored:
		return "stored"
	case TypeHistory:
		return "history"
	case TypeAccount:
		return "account"
	case TypeToken:
		return "token"
	case TypeRedeemed:
		return "redeemed"
	case TypeMetered:
		return "metered"
	case TypeFrozen:
		return "frozen"
	case TypeThawed:
		return "thawed"
	case TypeCondemned:
		return "condemned"
	case TypeMoved:
		return "moved"
	case TypeRetired:
		return "retired"
	case TypeRemoved:
		return "removed"
	case TypeDamaged:
		return "damaged"
	case TypeTransfer:
		return "transfer"
	case TypeCharge:
		return "charge"
	case TypeStep:
		return "step"
	case TypeTold:
		return "told"
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Record is one fact of the journal: a Takeover, Stored, History, Account, Token, Redeemed, Metered, Frozen,
// Thawed, Condemned, Moved, Retired, Removed, Damaged, Transfer, Charge, Step or Told (the structs themselves, not
// pointers to them).
type Record interface {
	Type() Type
	// check refuses what ParseTrailer would refuse, so that nothing unreadable is ever written.
	check() error
	append(b []byte, sessions func(holdfast.SessionID) uint64) []byte
}

// Timed is a record with its journal time.
type Timed struct {
	Time   int64 // ms since 1970; never before the record before it
	Record Record
}

// Accepted closes an epoch: segments 0 to LastSeq of it belong to the journal, nothing else ever does.
type Accepted struct {
	Epoch, LastSeq uint64
	Hash           [32]byte // of the segment at LastSeq
}

// Takeover is the first record of sequence 0 of each epoch.
type Takeover struct {
	Epoch uint64 // that of the segment
	Claim [16]byte
	Host  [16]byte
	// Table lists every earlier epoch of which anything belongs to the journal, in order; an epoch that
	// was claimed but whose own takeover record was not accepted has no line. The hash of the last line
	// is the prev of this record's segment.
	Table []Accepted
}

// Stored says that a block of this segment is in its group from now on. Vault and group follow from the
// session's open record.
type Stored struct {
	Session holdfast.SessionID
	Name    holdfast.Name
	Kind    holdfast.Kind
	Off     uint32          // from the beginning of the segment
	Len     uint32          // 1 to holdfast.MaxBlock
	Sum     [16]byte        // SumOf the sealed bytes
	Base    Base            // whose links it has as well, if it has a name
	Links   []holdfast.Name // sorted, unique, none of them the base's; none for a leaf kind
}

// History is a record that a client signed, in its place in its vault's history.
type History struct {
	Vault holdfast.VaultID
	Entry history.Entry
}

// Account creates an account.
type Account struct {
	ID   holdfast.AccountID
	Name string // 1 to MaxAccountName bytes of UTF-8
}

// Token creates an enrolment token.
type Token struct {
	Hash    [32]byte // of the secret
	Account holdfast.AccountID
	Expires int64 // ns since 1970
}

// Redeemed uses up a token: the TLS key belongs to the token's account from now on.
type Redeemed struct {
	Hash   [32]byte
	TLSKey [32]byte
}

// Metered says what an account's machines used since its last such record that no other record tells: not both are 0.
type Metered struct {
	Account holdfast.AccountID
	Names   uint64 // that they asked about (wire.PathHave)
	Sent    uint64 // bytes of sealed blocks that were sent to them
}

// Reason says why deleting is frozen in the whole cell. Each reason freezes and thaws by itself.
type Reason uint8

// The reasons.
const (
	// ReasonClocks: this service's clock or journal time and the store's clock disagree.
	ReasonClocks Reason = 1
	// ReasonJump: the clock moved ahead by more than a service is usually idle.
	ReasonJump Reason = 2
	// ReasonContradiction: the bucket does not show what was acknowledged.
	ReasonContradiction Reason = 3
	// ReasonView: the view is not what the journal in the bucket says.
	ReasonView Reason = 4
	// MaxReason is the greatest of them.
	MaxReason = ReasonView
)

func (r Reason) String() string {
	switch r {
	case ReasonClocks:
		return "clocks"
	case ReasonJump:
		return "jump"
	case ReasonContradiction:
		return "contradiction"
	case ReasonView:
		return "view"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Frozen says that nothing in the cell is purged, expired, condemned, swept or deleted until a Thawed record of
// the same reason (JOURNAL 14). It is the service's; the records with which customers freeze their vault
// are of package history.
type Frozen struct {
	Reason Reason
	Clock  int64    // ms since 1970; the service's, when it was found
	Store  int64    // ms since 1970; the store's, 0 if it was not asked
	Place  Position // of the segment that is missing, for ReasonContradiction; else zero
	Text   string   // for people: what was found, 1 to MaxText bytes of UTF-8
}

// Thawed ends the freeze of a reason.
type Thawed struct {
	Reason Reason
	Since  int64  // ms; journal time of the Frozen record that it ends
	Clock  int64  // as in Frozen
	Store  int64  // as in Frozen
	By     string // who said so, up to MaxText bytes of UTF-8; empty if the service itself found the cause gone
	Text   string // why, 1 to MaxText bytes of UTF-8
}

// Condemned says that the block of that name, at that place and without references, may be freed: it is not there for
// anybody from now on. If it is stored again, that is another place, which this record does not concern
// (JOURNAL 18).
type Condemned struct {
	Session holdfast.SessionID // that stored it there; vault and group follow from its open record
	Name    holdfast.Name
	Place   Position // of the segment that holds it
	Off     uint32   // in the segment
	// Before is the journal time, in ms, before which the block must have lost its last reference: the start of the
	// oldest session that was open in the vault when this was appended, less the time for which
	// unreferenced blocks are kept (JOURNAL 17). Sessions are not in the journal, so the record carries what
	// follows from them.
	Before int64
}

// Moved says that a block that was at one place is in this segment from now on: its bytes were copied here, so that
// the segment where it was can be retired (JOURNAL 19). It is still the block that its session stored.
type Moved struct {
	Session holdfast.SessionID // that stored it; vault and group follow from its open record
	Name    holdfast.Name
	From    Position // of the segment that held it
	FromOff uint32   // in that segment
	Off     uint32   // from the beginning of this segment
	Len     uint32   // 1 to holdfast.MaxBlock
	Sum     [16]byte // SumOf the sealed bytes, as in its Stored record
}

// Retired says that a segment holds no live block, and that nobody reads it any more. Its objects stay for a grace, and
// its records for ever: they are in a bundle before anything of it is deleted (JOURNAL 12, 19).
type Retired struct{ Place Position }

// Removed says that every object of a retired segment was deleted.
type Removed struct{ Place Position }

// Damaged says that a block's bytes at that place fail their checksum, in every landing of the segment; or, with Whole,
// that they are what they should be again. Who has the block's content may store it anew.
type Damaged struct {
	Session holdfast.SessionID // that stored it; vault and group follow from its open record
	Name    holdfast.Name
	Place   Position
	Off     uint32
	Whole   bool
}

// Transfer takes an amount of money from one book of the ledger and gives it to another.
type Transfer struct {
	ID       string // 1 to MaxTransferID bytes of UTF-8, chosen by who makes it: the same twice is one transfer
	From, To ledger.Book
	Amount   ledger.Amount // at least 1
	Text     string        // for people, up to MaxText bytes of UTF-8
}

// Charge takes from an account what it used since its last such record, at the prices that were set there, and sets those
// that hold from now on. The first one takes nothing. What was used is in the view, so the amount is what follows
// from it.
type Charge struct {
	Account holdfast.AccountID
	Prices  ledger.Prices
}

// Step says that an account has come to another step of those that are not paid, or is paid again.
type Step struct {
	Account holdfast.AccountID
	Step    ledger.Step
	Until   int64 // ms; from ledger.Stopped on: nothing of the account's is deleted before; else 0
}

// Told says that an account's owner was told of the step at which it stands.
type Told struct {
	Account holdfast.AccountID
	Step    ledger.Step
}

// Type returns TypeTakeover.
func (Takeover) Type() Type { return TypeTakeover }

// Type returns TypeStored.
func (Stored) Type() Type { return TypeStored }

// Type returns TypeHistory.
func (History) Type() Type { return TypeHistory }

// Type returns TypeAccount.
func (Account) Type() Type { return TypeAccount }

// Type returns TypeToken.
func (Token) Type() Type { return TypeToken }

// Type returns TypeRedeemed.
func (Redeemed) Type() Type { return TypeRedeemed }

// Type returns TypeMetered.
func (Metered) Type() Type { return TypeMetered }

// Type returns TypeFrozen.
func (Frozen) Type() Type { return TypeFrozen }

// Type returns TypeThawed.
func (Thawed) Type() Type { return TypeThawed }

// Type returns TypeCondemned.
func (Condemned) Type() Type { return TypeCondemned }

// Type returns TypeMoved.
func (Moved) Type() Type { return TypeMoved }

// Type returns TypeRetired.
func (Retired) Type() Type { return TypeRetired }

// Type returns TypeRemoved.
func (Removed) Type() Type { return TypeRemoved }

// Type returns TypeDamaged.
func (Damaged) Type() Type { return TypeDamaged }

// Type returns TypeTransfer.
func (Transfer) Type() Type { return TypeTransfer }

// Type returns TypeCharge.
func (Charge) Type() Type { return TypeCharge }

// Type returns TypeStep.
func (Step) Type() Type { return TypeStep }

// Type returns TypeTold.
func (Told) Type() Type { return TypeTold }

// The smallest encodings, for bounding counts before memory is allocated.
const (
	minRecord   = 1 + 1 + 16 // ms, type, and the shortest fields: a retired record's
	acceptedLen = 8 + 8 + 32
)

func (t Takeover) check() error {
	if len(t.Table) > MaxTable {
		return fmt.Errorf("%d accepted epochs exceed the limit of %d", len(t.Table), MaxTable)
	}
	for i, a := range t.Table {
		if a.Epoch >= t.Epoch || i > 0 && a.Epoch <= t.Table[i-1].Epoch {
			return fmt.Errorf("accepted epoch %d is out of order", a.Epoch)
		}
	}
	return nil
}

func (t Takeover) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	b = appendU64(b, t.Epoch)
	b = append(b, t.Claim[:]...)
	b = append(b, t.Host[:]...)
	b = binary.AppendUvarint(b, uint64(len(t.Table)))
	for _, a := range t.Table {
		b = appendU64(b, a.Epoch)
		b = appendU64(b, a.LastSeq)
		b = append(b, a.Hash[:]...)
	}
	return b
}

func readTakeover(r *enc.Reader) Takeover {
	var t Takeover
	t.Epoch = r.U64()
	r.Fixed(t.Claim[:])
	r.Fixed(t.Host[:])
	n := r.UvarintMax(min(MaxTable, uint64(r.Len()/acceptedLen)))
	if n > 0 {
		t.Table = make([]Accepted, n)
	}
	for i := range t.Table {
		a := &t.Table[i]
		a.Epoch, a.LastSeq = r.U64(), r.U64()
		r.Fixed(a.Hash[:])
	}
	return t
}

func (s Stored) check() error {
	switch {
	case !s.Kind.Valid():
		return fmt.Errorf("block %s: unknown %s", s.Name, s.Kind)
	case s.Len == 0 || s.Len > holdfast.MaxBlock:
		return fmt.Errorf("block %s: %d bytes are not 1 to %d", s.Name, s.Len, holdfast.MaxBlock)
	}
	return s.checkLinks()
}

func (s Stored) append(b []byte, sessions func(holdfast.SessionID) uint64) []byte {
	b = binary.AppendUvarint(b, sessions(s.Session))
	b = append(b, s.Name[:]...)
	b = append(b, byte(s.Kind))
	b = binary.AppendUvarint(b, uint64(s.Off))
	b = binary.AppendUvarint(b, uint64(s.Len))
	return s.appendLinks(append(b, s.Sum[:]...))
}

// readSession decodes the index of a session. named is how many of the sessions were named so far; it returns
// the new number.
func readSession(r *enc.Reader, sessions []holdfast.SessionID, named int) (holdfast.SessionID, int) {
	i := r.Uvarint()
	if r.Err() == nil && (i >= uint64(len(sessions)) || i > uint64(named)) {
		r.Fail("session %d is not the next of %d", i, len(sessions))
	}
	if r.Err() != nil {
		return holdfast.SessionID{}, named
	}
	return sessions[i], max(named, int(i)+1)
}

// readStored decodes the fields of a stored record; named is as for readSession.
func readStored(r *enc.Reader, sessions []holdfast.SessionID, named int) (Stored, int) {
	var s Stored
	if s.Session, named = readSession(r, sessions, named); r.Err() != nil {
		return s, named
	}
	r.Fixed(s.Name[:])
	s.Kind = holdfast.Kind(r.U8())
	s.Off = uint32(r.UvarintMax(MaxBody))
	s.Len = uint32(r.UvarintMax(holdfast.MaxBlock))
	r.Fixed(s.Sum[:])
	s.readLinks(r)
	return s, named
}

func (h History) check() error {
	if n := len(h.Entry.Record.Body); n > holdfast.MaxRecord {
		return fmt.Errorf("history record of %d bytes exceeds the limit of %d", n, holdfast.MaxRecord)
	}
	return nil
}

func (h History) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	return h.Entry.Append(append(b, h.Vault[:]...))
}

func readHistory(r *enc.Reader) History {
	var h History
	r.Fixed(h.Vault[:])
	h.Entry = history.ReadEntry(r)
	return h
}

func (a Account) check() error {
	if len(a.Name) == 0 || len(a.Name) > MaxAccountName || !utf8.ValidString(a.Name) {
		return fmt.Errorf("account name is not 1 to %d bytes of UTF-8", MaxAccountName)
	}
	return nil
}

func (a Account) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	return enc.AppendVLP(append(b, a.ID[:]...), []byte(a.Name))
}

func readAccount(r *enc.Reader) Account {
	var a Account
	r.Fixed(a.ID[:])
	a.Name = string(r.VLP(MaxAccountName))
	return a
}

func (Token) check() error { return nil }

func (t Token) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	b = append(b, t.Hash[:]...)
	b = append(b, t.Account[:]...)
	return appendU64(b, uint64(t.Expires))
}

func readToken(r *enc.Reader) Token {
	var t Token
	r.Fixed(t.Hash[:])
	r.Fixed(t.Account[:])
	t.Expires = r.I64()
	return t
}

func (Redeemed) check() error { return nil }

func (t Redeemed) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	return append(append(b, t.Hash[:]...), t.TLSKey[:]...)
}

func readRedeemed(r *enc.Reader) Redeemed {
	var t Redeemed
	r.Fixed(t.Hash[:])
	r.Fixed(t.TLSKey[:])
	return t
}

func (m Metered) check() error {
	if m.Names == 0 && m.Sent == 0 {
		return errors.New("nothing was used")
	}
	return nil
}

func (m Metered) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(append(b, m.Account[:]...), m.Names), m.Sent)
}

func readMetered(r *enc.Reader) Metered {
	var m Metered
	r.Fixed(m.Account[:])
	m.Names, m.Sent = r.Uvarint(), r.Uvarint()
	return m
}

func checkText(what, s string, min int) error {
	if len(s) < min || len(s) > MaxText || !utf8.ValidString(s) {
		return fmt.Errorf("%s is not %d to %d bytes of UTF-8", what, min, MaxText)
	}
	return nil
}

func (r Reason) check() error {
	if r == 0 || r > MaxReason {
		return fmt.Errorf("unknown %s", r)
	}
	return nil
}

func (f Frozen) check() error {
	if err := f.Reason.check(); err != nil {
		return err
	}
	if (f.Reason == ReasonContradiction) != (f.Place.Epoch > 0) || f.Place.Epoch == 0 && f.Place.Seq > 0 {
		return fmt.Errorf("segment %s is missing, and the reason is %s", f.Place, f.Reason)
	}
	return checkText("what was found", f.Text, 1)
}

func (f Frozen) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	b = appendU64(append(b, byte(f.Reason)), uint64(f.Clock))
	b = appendU64(b, uint64(f.Store))
	if f.Reason == ReasonContradiction {
		b = binary.AppendUvarint(binary.AppendUvarint(b, f.Place.Epoch), f.Place.Seq)
	}
	return enc.AppendVLP(b, []byte(f.Text))
}

func readFrozen(r *enc.Reader) Frozen {
	f := Frozen{Reason: Reason(r.U8()), Clock: r.I64(), Store: r.I64()}
	if f.Reason == ReasonContradiction {
		f.Place = Position{r.Uvarint(), r.Uvarint()}
	}
	f.Text = string(r.VLP(MaxText))
	return f
}

func (t Thawed) check() error {
	if err := t.Reason.check(); err != nil {
		return err
	}
	if err := checkText("who thawed", t.By, 0); err != nil {
		return err
	}
	return checkText("the reason for thawing", t.Text, 1)
}

func (t Thawed) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	b = append(b, byte(t.Reason))
	for _, v := range []int64{t.Since, t.Clock, t.Store} {
		b = appendU64(b, uint64(v))
	}
	return enc.AppendVLP(enc.AppendVLP(b, []byte(t.By)), []byte(t.Text))
}

func readThawed(r *enc.Reader) Thawed {
	return Thawed{
		Reason: Reason(r.U8()), Since: r.I64(), Clock: r.I64(), Store: r.I64(),
		By: string(r.VLP(MaxText)), Text: string(r.VLP(MaxText)),
	}
}

func (Condemned) check() error { return nil }

func (c Condemned) append(b []byte, sessions func(holdfast.SessionID) uint64) []byte {
	b = binary.AppendUvarint(b, sessions(c.Session))
	b = append(b, c.Name[:]...)
	b = binary.AppendUvarint(b, c.Place.Epoch)
	b = binary.AppendUvarint(b, c.Place.Seq)
	b = binary.AppendUvarint(b, uint64(c.Off))
	return appendU64(b, uint64(c.Before))
}

// readCondemned decodes the fields of a condemned record; sessions and named are as for readStored.
func readCondemned(r *enc.Reader, sessions []holdfast.SessionID, named int) (Condemned, int) {
	var c Condemned
	if c.Session, named = readSession(r, sessions, named); r.Err() != nil {
		return c, named
	}
	r.Fixed(c.Name[:])
	c.Place = Position{r.Uvarint(), r.Uvarint()}
	c.Off = uint32(r.UvarintMax(MaxBody))
	c.Before = r.I64()
	return c, named
}

func (m Moved) check() error {
	if m.Len == 0 || m.Len > holdfast.MaxBlock {
		return fmt.Errorf("block %s: %d bytes are not 1 to %d", m.Name, m.Len, holdfast.MaxBlock)
	}
	return nil
}

func (m Moved) append(b []byte, sessions func(holdfast.SessionID) uint64) []byte {
	b = binary.AppendUvarint(b, sessions(m.Session))
	b = append(b, m.Name[:]...)
	for _, v := range []uint64{m.From.Epoch, m.From.Seq, uint64(m.FromOff), uint64(m.Off), uint64(m.Len)} {
		b = binary.AppendUvarint(b, v)
	}
	return append(b, m.Sum[:]...)
}

// readMoved decodes the fields of a moved record; sessions and named are as for readStored.
func readMoved(r *enc.Reader, sessions []holdfast.SessionID, named int) (Moved, int) {
	var m Moved
	if m.Session, named = readSession(r, sessions, named); r.Err() != nil {
		return m, named
	}
	r.Fixed(m.Name[:])
	m.From = Position{r.Uvarint(), r.Uvarint()}
	m.FromOff = uint32(r.UvarintMax(MaxBody))
	m.Off = uint32(r.UvarintMax(MaxBody))
	m.Len = uint32(r.UvarintMax(holdfast.MaxBlock))
	r.Fixed(m.Sum[:])
	return m, named
}

func (Retired) check() error { return nil }

func (t Retired) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	return appendU64(appendU64(b, t.Place.Epoch), t.Place.Seq)
}

func (Removed) check() error { return nil }

func (t Removed) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	return appendU64(appendU64(b, t.Place.Epoch), t.Place.Seq)
}

func (Damaged) check() error { return nil }

func (d Damaged) append(b []byte, sessions func(holdfast.SessionID) uint64) []byte {
	b = binary.AppendUvarint(b, sessions(d.Session))
	b = append(b, d.Name[:]...)
	for _, v := range []uint64{d.Place.Epoch, d.Place.Seq, uint64(d.Off)} {
		b = binary.AppendUvarint(b, v)
	}
	if d.Whole {
		return append(b, 1)
	}
	return append(b, 0)
}

// readDamaged decodes the fields of a damaged record; sessions and named are as for readStored.
func readDamaged(r *enc.Reader, sessions []holdfast.SessionID, named int) (Damaged, int) {
	var d Damaged
	if d.Session, named = readSession(r, sessions, named); r.Err() != nil {
		return d, named
	}
	r.Fixed(d.Name[:])
	d.Place = Position{r.Uvarint(), r.Uvarint()}
	d.Off = uint32(r.UvarintMax(MaxBody))
	switch v := r.U8(); v {
	case 0, 1:
		d.Whole = v == 1
	default:
		r.Fail("whole is %d", v)
	}
	return d, named
}

func (t Transfer) check() error {
	if n := len(t.ID); n == 0 || n > MaxTransferID || !utf8.ValidString(t.ID) {
		return fmt.Errorf("a transfer's id is not 1 to %d bytes of UTF-8", MaxTransferID)
	}
	if err := errors.Join(t.From.Check(), t.To.Check()); err != nil {
		return err
	}
	if t.Amount <= 0 || t.From == t.To {
		return fmt.Errorf("a transfer of %s, from %s to %s", t.Amount, t.From.Kind, t.To.Kind)
	}
	return checkText("what a transfer is for", t.Text, 0)
}

func (t Transfer) append(b []byte, _ func(holdfast.SessionID) uint64) []byte { return t.Append(b) }

// Append appends the fields of a transfer to b, as they are in a record.
func (t Transfer) Append(b []byte) []byte {
	b = enc.AppendVLP(b, []byte(t.ID))
	for _, k := range []ledger.Book{t.From, t.To} {
		b = append(append(b, byte(k.Kind)), k.Account[:]...)
	}
	return enc.AppendVLP(appendU64(b, uint64(t.Amount)), []byte(t.Text))
}

// ReadTransfer decodes what Append made; the error stays in r.
func ReadTransfer(r *enc.Reader) Transfer {
	t := Transfer{ID: string(r.VLP(MaxTransferID))}
	for _, k := range []*ledger.Book{&t.From, &t.To} {
		k.Kind = ledger.Kind(r.U8())
		r.Fixed(k.Account[:])
	}
	t.Amount = ledger.Amount(r.I64())
	t.Text = string(r.VLP(MaxText))
	return t
}

func (c Charge) check() error { return c.Prices.Check() }

func (c Charge) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	b = append(b, c.Account[:]...)
	for _, p := range []ledger.Amount{c.Prices.Stored, c.Prices.In, c.Prices.Out} {
		b = appendU64(b, uint64(p))
	}
	return b
}

func readCharge(r *enc.Reader) Charge {
	var c Charge
	r.Fixed(c.Account[:])
	for _, p := range []*ledger.Amount{&c.Prices.Stored, &c.Prices.In, &c.Prices.Out} {
		*p = ledger.Amount(r.I64())
	}
	return c
}

func (s Step) check() error {
	if s.Step > ledger.Lapsed || (s.Step < ledger.Stopped) != (s.Until == 0) {
		return fmt.Errorf("%q until %d", s.Step, s.Until)
	}
	return nil
}

func (s Step) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	return appendU64(append(append(b, s.Account[:]...), byte(s.Step)), uint64(s.Until))
}

func readStep(r *enc.Reader) Step {
	var s Step
	r.Fixed(s.Account[:])
	s.Step, s.Until = ledger.Step(r.U8()), r.I64()
	return s
}

func (t Told) check() error {
	if t.Step == ledger.Paid || t.Step > ledger.Lapsed {
		return fmt.Errorf("nobody is told of %q", t.Step)
	}
	return nil
}

func (t Told) append(b []byte, _ func(holdfast.SessionID) uint64) []byte {
	return append(append(b, t.Account[:]...), byte(t.Step))
}

func readTold(r *enc.Reader) Told {
	var t Told
	r.Fixed(t.Account[:])
	t.Step = ledger.Step(r.U8())
	return t
}

func appendU64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
