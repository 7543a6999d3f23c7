// Package ledger is the arithmetic of money: amounts, books, prices, and the steps by which an account goes that is not
// paid. It keeps nothing and asks nobody; the journal holds the facts, and package view the balances.
//
// An amount is a whole number of picos, 10^-12 of the operator's currency. Nothing is ever a fraction of one: what use
// costs is an exact product, rounded down once when it is charged.
//
// The ledger is double-entry: a transfer takes an amount from one book and gives it to another, so that the sum over all
// books is zero whatever happens.
package ledger

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"strings"

	"holdfast"
)

// Amount is an amount of money in picos.
type Amount int64

// Decimals is how many digits an amount of the whole currency has behind its point.
const Decimals = 12

// Unit is one of the currency.
const Unit Amount = 1e12

// Max is the greatest amount, about nine million of the currency.
const Max Amount = math.MaxInt64

// ErrAmount is wrapped by errors about a text that is no amount.
var ErrAmount = errors.New("it is no amount of money")

// Parse decodes a decimal number of the currency, like "12", "0.0049" or "-3.50".
func Parse(s string) (Amount, error) {
	digits, negative := strings.CutPrefix(s, "-")
	whole, rest, point := strings.Cut(digits, ".")
	if !digit(whole) || point && !digit(rest) {
		return 0, fmt.Errorf("%q: %w; write it like 12 or 3.50", s, ErrAmount)
	}
	if len(rest) > Decimals {
		return 0, fmt.Errorf("%q: %w: it has more than %d digits behind the point", s, ErrAmount, Decimals)
	}
	if whole = strings.TrimLeft(whole, "0"); len(whole) > 7 {
		return 0, fmt.Errorf("%q: %w: the greatest is %s", s, ErrAmount, Max)
	}
	n, _ := new(big.Int).SetString("0"+whole+rest+strings.Repeat("0", Decimals-len(rest)), 10)
	if !n.IsInt64() {
		return 0, fmt.Errorf("%q: %w: the greatest is %s", s, ErrAmount, Max)
	}
	if negative {
		return Amount(-n.Int64()), nil
	}
	return Amount(n.Int64()), nil
}

// digit reports whether s is some digits.
func digit(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// String returns a as a decimal number of the currency with at least two digits behind the point.
func (a Amount) String() string { return Balance{}.Plus(a).String() }

// Balance is what a book holds, in picos, as a number of 128 bits in two's complement: the books of a large service hold
// more than an Amount can.
type Balance struct {
	Hi int64
	Lo uint64
}

// Plus returns b with an amount more.
func (b Balance) Plus(a Amount) Balance {
	lo, carry := bits.Add64(b.Lo, uint64(a), 0)
	return Balance{b.Hi + int64(a>>63) + int64(carry), lo}
}

// Sum returns b and c together.
func (b Balance) Sum(c Balance) Balance {
	lo, carry := bits.Add64(b.Lo, c.Lo, 0)
	return Balance{b.Hi + c.Hi + int64(carry), lo}
}

// Zero reports whether there is nothing.
func (b Balance) Zero() bool { return b == Balance{} }

// Int returns b as a number.
func (b Balance) Int() *big.Int {
	n := big.NewInt(b.Hi)
	return n.Add(n.Lsh(n, 64), new(big.Int).SetUint64(b.Lo))
}

// String returns b as a decimal number of the currency with at least two digits behind the point.
func (b Balance) String() string {
	n := b.Int()
	sign := ""
	if n.Sign() < 0 {
		sign = "-"
		n.Neg(n)
	}
	s := fmt.Sprintf("%0*d", Decimals+1, n)
	whole, rest := s[:len(s)-Decimals], s[len(s)-Decimals:]
	for len(rest) > 2 && rest[len(rest)-1] == '0' {
		rest = rest[:len(rest)-1]
	}
	return sign + whole + "." + rest
}

// Kind says what a book is.
type Kind uint8

// The kinds of books. There is one of Customer for each account, and one of each other.
const (
	Customer Kind = 1 // what an account has paid and not used up
	Payments Kind = 2 // what came from outside; its balance is negative
	Revenue  Kind = 3 // what was used
	Credits  Kind = 4 // what was given for outages and out of good will; its balance is negative
	maxKind       = Credits
)

func (k Kind) String() string {
	switch k {
	case Customer:
		return "customer"
	case Payments:
		return "payments"
	case Revenue:
		return "revenue"
	case Credits:
		return "credits"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Book is one side of a transfer.
type Book struct {
	Kind    Kind
	Account holdfast.AccountID // of a customer; else zeros
}

// Of returns an account's book.
func Of(a holdfast.AccountID) Book { return Book{Customer, a} }

// Check refuses a book that cannot be.
func (b Book) Check() error {
	if b.Kind == 0 || b.Kind > maxKind || (b.Kind == Customer) != (b.Account != holdfast.AccountID{}) {
		return fmt.Errorf("there is no book of %s with account %s", b.Kind, b.Account)
	}
	return nil
}

// Prices are what use costs; those of zeros cost nothing.
type Prices struct {
	Stored Amount // for 10^9 bytes, as holdfast.Billed counts them, over a Month
	In     Amount // for 10^9 bytes stored
	Out    Amount // for 10^9 bytes sent
}

// Month is a twelfth of 365.25 days, ms.
const Month = 2_629_800_000

// Day is a day, ms.
const Day = 86_400_000

// per is of how many bytes a price is.
const per = 1_000_000_000

// Check refuses prices below zero.
func (p Prices) Check() error {
	if p.Stored < 0 || p.In < 0 || p.Out < 0 {
		return errors.New("a price is below zero")
	}
	return nil
}

// Use is what was used since something was charged last.
type Use struct {
	Hi, Lo  uint64 // bytes stored, as billed, x ms: a number of 128 bits
	In, Out uint64 // bytes
}

// ErrTooMuch reports a cost that is no Amount.
var ErrTooMuch = errors.New("it costs more than can be counted")

// Cost returns what u costs, rounded down once: the exact sum is
// (stored x price / Month + in x price + out x price) / 10^9.
func (p Prices) Cost(u Use) (Amount, error) {
	times := func(n *big.Int, a Amount) *big.Int { return n.Mul(n, big.NewInt(int64(a))) }
	sum := new(big.Int).SetUint64(u.Hi)
	sum = times(sum.Or(sum.Lsh(sum, 64), new(big.Int).SetUint64(u.Lo)), p.Stored)
	moved := times(new(big.Int).SetUint64(u.In), p.In)
	moved.Add(moved, times(new(big.Int).SetUint64(u.Out), p.Out))
	sum.Add(sum, moved.Mul(moved, big.NewInt(Month)))
	sum.Quo(sum, big.NewInt(Month*per))
	if !sum.IsInt64() {
		return 0, ErrTooMuch
	}
	return Amount(sum.Int64()), nil
}

// Daily returns what keeping so many bytes for a day costs, rounded up, so that nobody is told of more days than there are; what
// is more than can be counted is Max.
func (p Prices) Daily(billed uint64) Amount {
	n := new(big.Int).SetUint64(billed)
	n.Mul(n, big.NewInt(int64(p.Stored))).Mul(n, big.NewInt(Day))
	n.Add(n, big.NewInt(Month*per-1)).Quo(n, big.NewInt(Month*per))
	if !n.IsInt64() {
		return Max
	}
	return Amount(n.Int64())
}
