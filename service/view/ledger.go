package view

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"holdfast"
	"holdfast/internal/enc"
	"holdfast/service/ledger"
	"holdfast/service/segment"
)

// What is refused of money.
var (
	// ErrTransfer reports a transfer with the id of another one.
	ErrTransfer = errors.New("another transfer has that id")
	// ErrStep reports a change of an account's standing that may not be.
	ErrStep = errors.New("the account may not go there")
)

// Money is what the ledger knows of an account beside its balance.
type Money struct {
	Charged  int64         // ms; up to when its use was charged; 0 for never
	Prices   ledger.Prices // of what it uses since
	Credited int64         // ms; when its book was given something last; 0 for never
	Standing ledger.Standing
	// What it had used when it was charged.
	paid    Integral
	in, out uint64
	today   uint64 // bytes sent that were charged on the day of Charged
}

// Transfer is a transfer as the ledger has it.
type Transfer struct {
	Number uint64 // 1, 2, 3, ... in the order of the journal
	Time   int64  // ms
	segment.Transfer
}

// chargeID begins the ids of transfers that charge records make.
const chargeID = "charge:"

func moneyKey(id holdfast.AccountID) []byte { return key(rowMoney, id[:]) }

func bookKey(b ledger.Book) []byte { return key(rowBook, []byte{byte(b.Kind)}, b.Account[:]) }

func (m Money) put(rows Rows, id holdfast.AccountID) error {
	b := make([]byte, 0, 14*8+1)
	for _, v := range []uint64{
		uint64(m.Charged), uint64(m.Prices.Stored), uint64(m.Prices.In), uint64(m.Prices.Out), uint64(m.Credited),
		m.paid.Hi, m.paid.Lo, m.in, m.out, m.today, uint64(m.Standing.Since), uint64(m.Standing.Told), uint64(m.Standing.Until), uint64(m.Standing.Stop),
	} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return rows.Put(moneyKey(id), append(b, byte(m.Standing.Step)))
}

func loadMoney(rows Getter, id holdfast.AccountID) (m Money, err error) {
	_, err = load(rows, moneyKey(id), func(r *enc.Reader) {
		m.Charged = r.I64()
		m.Prices = ledger.Prices{Stored: ledger.Amount(r.I64()), In: ledger.Amount(r.I64()), Out: ledger.Amount(r.I64())}
		m.Credited = r.I64()
		m.paid = Integral{r.U64(), r.U64()}
		m.in, m.out, m.today = r.U64(), r.U64(), r.U64()
		m.Standing = ledger.Standing{Since: r.I64(), Told: r.I64(), Until: r.I64(), Stop: r.I64(), Step: ledger.Step(r.U8())}
	})
	return m, err
}

func loadBook(rows Getter, b ledger.Book) (v ledger.Balance, err error) {
	_, err = load(rows, bookKey(b), func(r *enc.Reader) { v = ledger.Balance{Hi: r.I64(), Lo: r.U64()} })
	return v, err
}

func putBook(rows Rows, b ledger.Book, v ledger.Balance) error {
	return rows.Put(bookKey(b), append(u64(uint64(v.Hi)), u64(v.Lo)...))
}

func loadTransfer(rows Getter, number uint64) (t Transfer, ok bool, err error) {
	t.Number = number
	ok, err = load(rows, key(rowTransfer, u64(number)), func(r *enc.Reader) {
		t.Time = r.I64()
		t.Transfer = segment.ReadTransfer(r)
	})
	return t, ok, err
}

// loadTransferID returns the transfer with that id.
func loadTransferID(rows Getter, id string) (t Transfer, ok bool, err error) {
	var n uint64
	if ok, err = load(rows, key(rowTransferID, []byte(id)), func(r *enc.Reader) { n = r.U64() }); err != nil || !ok {
		return t, false, err
	}
	if t, ok, err = loadTransfer(rows, n); err == nil && !ok {
		err = fmt.Errorf("transfer %q: %w: it is not there", id, ErrDamaged)
	}
	return t, ok, err
}

// checkAccount refuses an account that is not there.
func checkAccount(rows Getter, id holdfast.AccountID) error {
	name, err := rows.Get(key(rowAccount, id[:]))
	if err == nil && name == nil {
		err = fmt.Errorf("%w: %s", ErrNoAccount, id)
	}
	return err
}

// applyTransfer moves money. The same transfer again is ErrDuplicate.
func applyTransfer(rows Rows, timeMS int64, rec segment.Transfer) error {
	if strings.HasPrefix(rec.ID, chargeID) {
		return fmt.Errorf("%w: %q is for what is charged", ErrTransfer, rec.ID)
	}
	switch t, ok, err := loadTransferID(rows, rec.ID); {
	case err != nil:
		return err
	case ok && t.Transfer == rec:
		return ErrDuplicate
	case ok:
		return fmt.Errorf("%w: %q", ErrTransfer, rec.ID)
	}
	for _, b := range []ledger.Book{rec.From, rec.To} {
		if b.Kind == ledger.Customer {
			if err := checkAccount(rows, b.Account); err != nil {
				return err
			}
		}
	}
	return transfer(rows, timeMS, rec)
}

// transfer writes a transfer that was checked.
func transfer(rows Rows, timeMS int64, t segment.Transfer) error {
	from, err := loadBook(rows, t.From)
	if err != nil {
		return err
	}
	to, err := loadBook(rows, t.To)
	if err != nil {
		return err
	}
	meta, _, err := loadMeta(rows)
	if err != nil {
		return err
	}
	meta.transfers++
	if t.To.Kind == ledger.Customer {
		m, err := loadMoney(rows, t.To.Account)
		if err != nil {
			return err
		}
		m.Credited = timeMS
		if err := m.put(rows, t.To.Account); err != nil {
			return err
		}
	}
	for _, err := range []error{
		putBook(rows, t.From, from.Plus(-t.Amount)),
		putBook(rows, t.To, to.Plus(t.Amount)),
		rows.Put(key(rowTransfer, u64(meta.transfers)), t.Append(u64(uint64(timeMS)))),
		rows.Put(key(rowTransferID, []byte(t.ID)), u64(meta.transfers)),
	} {
		if err != nil {
			return err
		}
	}
	return meta.put(rows)
}

// applyCharge takes what an account used, at the prices that were set when it was charged last, and sets others. It is refused
// twice on a day (UTC) at the same prices, so that rounding happens once, and while the service's clock is in doubt.
func applyCharge(rows Rows, timeMS int64, rec segment.Charge) error {
	if err := checkAccount(rows, rec.Account); err != nil {
		return err
	}
	if err := checkFreezes(rows); err != nil {
		return err
	}
	m, err := loadMoney(rows, rec.Account)
	if err != nil {
		return err
	}
	again := m.Charged != 0 && m.Charged/msPerDay == timeMS/msPerDay
	if again && m.Prices == rec.Prices {
		return ErrDuplicate
	}
	u, err := loadUsage(rows, usageKey(rec.Account))
	if err != nil {
		return err
	}
	u.advance(timeMS)
	used := m.used(u, timeMS)
	cost, err := m.Prices.Cost(used)
	if err != nil {
		return err
	}
	if cost > 0 {
		err := transfer(rows, timeMS, segment.Transfer{
			ID:   fmt.Sprintf(chargeID+"%s:%d", rec.Account, timeMS),
			From: ledger.Of(rec.Account), To: ledger.Book{Kind: ledger.Revenue}, Amount: cost,
			Text: fmt.Sprintf("use from %s to %s: %s byte-hours stored, %d bytes received, %d bytes sent",
				stamp(m.Charged), stamp(timeMS), Integral{used.Hi, used.Lo}.byteHours(), used.In, used.Out),
		})
		if err != nil {
			return err
		}
	}
	if !again {
		m.today = 0
	}
	m.today += used.Out
	m.Charged, m.Prices, m.paid, m.in, m.out = timeMS, rec.Prices, u.Paid, u.In, u.Out
	return m.put(rows, rec.Account)
}

func stamp(ms int64) string { return time.UnixMilli(ms).UTC().Format(time.RFC3339) }

// byteHours is i in bytes x hours, rounded down, as text.
func (i Integral) byteHours() string {
	const msPerHour = 3_600_000
	n := i.Int()
	return n.Quo(n, big.NewInt(msPerHour)).String()
}

// Uses reports whether an account stores anything, or has used something since it was charged.
func (m Money) Uses(u Usage) bool {
	return u.Blocks > 0 || u.Paid != m.paid || u.In != m.in || u.Out != m.out
}

// used returns what an account used since it was charged. Nobody pays on one day for more bytes sent than he stores: a thief
// of a key that reads cannot use up a balance, and all can be restored every day.
func (m Money) used(u Usage, now int64) (used ledger.Use) {
	var borrow uint64
	used.Lo, borrow = bits.Sub64(u.Paid.Lo, m.paid.Lo, 0)
	used.Hi, _ = bits.Sub64(u.Paid.Hi, m.paid.Hi, borrow)
	used.In, used.Out = u.In-m.in, u.Out-m.out
	days := uint64(now/msPerDay - m.Charged/msPerDay)
	if over, most := bits.Mul64(u.Bytes, max(1, days)); over == 0 {
		if days == 0 { // other prices
			most -= min(most, m.today)
		}
		used.Out = min(used.Out, most)
	}
	return used
}

// applyStep moves an account on its way of those that are not paid, or back. Nobody goes down while the service's clock is
// in doubt.
func applyStep(rows Rows, timeMS int64, rec segment.Step) error {
	if err := checkAccount(rows, rec.Account); err != nil {
		return err
	}
	m, err := loadMoney(rows, rec.Account)
	if err != nil {
		return err
	}
	if rec.Step > m.Standing.Step {
		if err := checkFreezes(rows); err != nil {
			return err
		}
	}
	to := m.Standing.To(rec.Step, rec.Until, timeMS)
	if err := m.Standing.Check(to, timeMS); err != nil {
		return fmt.Errorf("%w: %w", ErrStep, err)
	}
	m.Standing = to
	return m.put(rows, rec.Account)
}

// applyTold notes that an account's owner was told of the step at which it stands.
func applyTold(rows Rows, timeMS int64, rec segment.Told) error {
	if err := checkAccount(rows, rec.Account); err != nil {
		return err
	}
	m, err := loadMoney(rows, rec.Account)
	switch {
	case err != nil:
		return err
	case m.Standing.Step != rec.Step:
		return fmt.Errorf("%w: it was told %q and stands at %q", ErrStep, rec.Step, m.Standing.Step)
	case m.Standing.Told != 0:
		return ErrDuplicate
	}
	m.Standing.Told = timeMS
	return m.put(rows, rec.Account)
}

// Money returns what the ledger knows of an account beside its balance.
func (r Reader) Money(id holdfast.AccountID) (Money, error) { return loadMoney(r.rows, id) }

// Balance returns what a book holds.
func (r Reader) Balance(b ledger.Book) (ledger.Balance, error) { return loadBook(r.rows, b) }

// Transfer returns the transfer with that id.
func (r Reader) Transfer(id string) (Transfer, bool, error) { return loadTransferID(r.rows, id) }

// Transfers returns at most max transfers, the first of them the one after number after.
func (r Reader) Transfers(after uint64, max int) ([]Transfer, error) {
	var all []Transfer
	for n := after + 1; len(all) < max; n++ {
		t, ok, err := loadTransfer(r.rows, n)
		if err != nil || !ok {
			return all, err
		}
		all = append(all, t)
	}
	return all, nil
}

// Books returns how many books there are and the sum of what they hold, which is zero.
func (s *Store) Books() (n int, sum ledger.Balance, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return 0, sum, ErrClosed
	}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{rowBook}, UpperBound: []byte{rowBook + 1}})
	if err != nil {
		return 0, sum, fmt.Errorf("add up the books: %w", err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		r := enc.NewReader(it.Value())
		sum = sum.Sum(ledger.Balance{Hi: r.I64(), Lo: r.U64()})
		if no := r.Done(); no != nil {
			err = fmt.Errorf("row %q: %w: %w", it.Key(), ErrDamaged, no)
		}
		n++
	}
	if no := it.Close(); no != nil {
		return 0, sum, s.failed("add up the books", no)
	}
	return n, sum, err
}
