package ledger

import (
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"holdfast"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Amount{
		"0": 0, "12": 12 * Unit, "3.50": 3*Unit + Unit/2, "-3.5": -3*Unit - Unit/2, "0.000000000001": 1, "007": 7 * Unit,
		"9223372.036854775807": Max, "-0": 0,
	} {
		a, err := Parse(text)
		if err != nil || a != want {
			t.Errorf("%q: %d, %v", text, a, err)
		}
		if again, err := Parse(a.String()); err != nil || again != a {
			t.Errorf("%q is printed as %q: %d, %v", text, a, again, err)
		}
	}
	for _, text := range []string{
		"", "-", ".5", "5.", "1,5", "1e3", " 1", "+1", "0x1", "--1", "1.2.3", "٣", "0.0000000000001", "9223372.036854775808",
		"10000000", "99999999999999999999999999",
	} {
		if a, err := Parse(text); !errors.Is(err, ErrAmount) {
			t.Errorf("%q: %d, %v", text, a, err)
		}
	}
}

func TestPrint(t *testing.T) {
	for a, want := range map[Amount]string{
		0: "0.00", 1: "0.000000000001", -1: "-0.000000000001", 5 * Unit / 2: "2.50", math.MinInt64: "-9223372.036854775808", 1234567890123: "1.234567890123",
	} {
		if got := a.String(); got != want {
			t.Errorf("%d is printed as %s", a, got)
		}
	}
	b := Balance{}
	for range 4 {
		b = b.Plus(Max)
	}
	if b.String() != "36893488.147419103228" || b.Zero() {
		t.Error(b)
	}
}

// Balances agree with numbers of any size, and what is taken from one and given to another leaves nothing.
func TestBalance(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var books [5]Balance
	want := [5]*big.Int{{}, {}, {}, {}, {}}
	for range 10_000 {
		i, j, a := rng.IntN(5), rng.IntN(5), Amount(rng.Int64())
		books[i] = books[i].Plus(-a)
		books[j] = books[j].Plus(a)
		want[i].Sub(want[i], big.NewInt(int64(a)))
		want[j].Add(want[j], big.NewInt(int64(a)))
	}
	var sum Balance
	for i := range books {
		if books[i].Int().Cmp(want[i]) != 0 {
			t.Errorf("book %d: %s, not %s", i, books[i].Int(), want[i])
		}
		sum = sum.Sum(books[i])
	}
	if !sum.Zero() {
		t.Error(sum)
	}
}

// A gigabyte over a month is its price, to the pico; what is less than a pico is nobody's.
func TestCost(t *testing.T) {
	p := Prices{Stored: Unit / 5, In: 3, Out: Unit / 20}
	for what, c := range map[string]struct {
		u    Use
		want Amount
	}{
		"nothing":              {Use{}, 0},
		"a gigabyte, a month":  {Use{Lo: 1e9 * Month}, Unit / 5},
		"one byte ms less":     {Use{Lo: 1e9*Month - 1}, Unit/5 - 1},
		"a third of a pico in": {Use{In: 333_333_333}, 0},
		"two such":             {Use{In: 666_666_667}, 2},
		"out":                  {Use{Out: 2e9}, Unit / 10},
		"rounded once":         {Use{Lo: Month * 1e9 / 2 / 1e11, In: 166_666_667}, 1}, // each of them alone is half a pico
	} {
		if got, err := p.Cost(c.u); err != nil || got != c.want {
			t.Errorf("%s: %s, %v, not %s", what, got, err, c.want)
		}
	}
	// A petabyte for a hundred years: more than 64 bits of bytes x ms, and more money than can be counted unless it is cheap.
	n := new(big.Int).Mul(big.NewInt(1e15), big.NewInt(1200*Month))
	u := Use{Hi: new(big.Int).Rsh(n, 64).Uint64(), Lo: new(big.Int).And(n, new(big.Int).SetUint64(math.MaxUint64)).Uint64()}
	if got, err := (Prices{Stored: Unit / 1000}).Cost(u); err != nil || got != 1_200_000*Unit {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := p.Cost(u); !errors.Is(err, ErrTooMuch) {
		t.Error(err)
	}
	if d := p.Daily(1); d != 7 { // 200 picos a month are 6.57 a day
		t.Errorf("a byte costs %s a day", d)
	}
	if d := (Prices{Stored: Max}).Daily(math.MaxUint64); d != Max {
		t.Errorf("more than can be counted is %s", d)
	}
}

func TestBookCheck(t *testing.T) {
	a := holdfast.AccountID{1}
	for _, b := range []Book{Of(a), {Kind: Payments}, {Kind: Revenue}, {Kind: Credits}} {
		if err := b.Check(); err != nil {
			t.Error(err)
		}
	}
	for _, b := range []Book{{}, Of(holdfast.AccountID{}), {Kind: Revenue, Account: a}, {Kind: Credits + 1}} {
		if b.Check() == nil {
			t.Errorf("%+v is a book", b)
		}
	}
}
