package remote

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"unicode"
	"unicode/utf8"

	"holdfast"
	"holdfast/wire"
)

const (
	// maxDecimal bounds an amount of money, bytes: a number of 128 bits has 39 digits.
	maxDecimal = 48
	// maxDays bounds how long an account may last, days.
	maxDays = 1_000_000
)

// Usage asks what the account stores, has stored and pays, and what this machine may store today. Of texts in the answer only
// the account and those of Money are checked: what they are made of, not whether they are true, which nobody can tell from here.
func (c *Client) Usage(ctx context.Context) (wire.Usage, error) {
	u, err := c.usage(ctx)
	if err != nil {
		return wire.Usage{}, err
	}
	if id, err := hex.DecodeString(u.Account); err != nil || len(id) != len(holdfast.AccountID{}) {
		return wire.Usage{}, fmt.Errorf("ask what the account uses: %w: an account that is none", ErrProtocol)
	}
	if m := u.Money; m != nil && !sound(m) {
		return wire.Usage{}, fmt.Errorf("ask what the account uses: %w: money that is none", ErrProtocol)
	}
	return u, nil
}

// Today asks what this machine may store today and what it did; nil if it has no daily cap. Nothing else in the answer matters.
func (c *Client) Today(ctx context.Context) (*wire.Cap, error) {
	u, err := c.usage(ctx)
	return u.Today, err
}

func (c *Client) usage(ctx context.Context) (u wire.Usage, err error) {
	b, err := c.call(ctx, http.MethodGet, wire.PathUsage, nil, wire.MaxJSON)
	if err != nil {
		return u, fmt.Errorf("ask what the account uses: %w", err)
	}
	if err := json.Unmarshal(b, &u); err != nil {
		return wire.Usage{}, fmt.Errorf("ask what the account uses: %w: %w", ErrProtocol, err)
	}
	return u, nil
}

// sound reports whether m can be shown to people.
func sound(m *wire.Money) bool {
	for _, s := range []string{strings.TrimPrefix(m.Balance, "-"), m.Daily, m.Stored, m.In, m.Out} {
		if !decimal(s) {
			return false
		}
	}
	return len(m.Currency) <= wire.MaxCurrency && utf8.ValidString(m.Currency) &&
		!strings.ContainsFunc(m.Currency, func(r rune) bool { return !unicode.IsPrint(r) }) &&
		(m.Credit == nil || credible(*m.Credit))
}

// decimal reports whether s is a decimal number like 12 or 0.0049.
func decimal(s string) bool {
	digits := func(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
	whole, rest, point := strings.Cut(s, ".")
	return len(s) <= maxDecimal && digits(whole) && (!point || digits(rest))
}

// credible reports whether an account can stand so.
func credible(c wire.Credit) bool {
	switch c.State {
	case wire.CreditPaid, wire.CreditLow, wire.CreditStopped, wire.CreditLapsed:
		return c.Days >= 0 && c.Days <= maxDays && c.End.Year() > 1970 && c.End.Year() < 2200
	}
	return false
}

// Credit returns how the service said that the account stands, if it is not paid; nil if it did not say so, or nonsense. It is
// known once the history was read, by a client that has somebody to notify.
func (c *Client) Credit() *wire.Credit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.credit
}

// owes takes note of how the account stands, and returns the sentence with which to say so, or "" if there is nothing to say;
// c.mu is held.
func (c *Client) owes(credit *wire.Credit) string {
	if credit == nil || credit.State == wire.CreditPaid || !credible(*credit) {
		return ""
	}
	c.credit = credit
	how := "not paid"
	if credit.State == wire.CreditLow {
		how = "nearly used up"
	}
	return fmt.Sprintf("the account is %s: %s; see `holdfast account`", how, credit)
}
