// Package account makes accounts and the tokens by which customers get one.
//
// A token's secret is 32 random bytes. The journal holds its hash (wire.HashSecret), its account and its
// end; the secret itself is known only to who was given the token. The first connection key that presents
// the secret gets the account; the same key may present it again, because an answer can be lost, and any
// other key is refused. A token gives an account, never rights in a vault.
package account

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
	"holdfast/wire"
)

// TokenLife is how long a token can be redeemed.
const TokenLife = 24 * time.Hour

// ErrName reports a name that no account can have.
var ErrName = errors.New("an account's name is 1 to 200 bytes of printable text without space at its ends")

// CheckName refuses a name that no account can have; the error is ErrName.
func CheckName(name string) error {
	if len(name) == 0 || len(name) > segment.MaxAccountName || !utf8.ValidString(name) {
		return ErrName
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return ErrName
		}
	}
	if name[0] == ' ' || name[len(name)-1] == ' ' {
		return ErrName
	}
	return nil
}

// Add creates an account and returns the secret of a token for it, once both are durable. The error
// wraps ErrName, view.ErrNameTaken or journal.ErrStopped.
func Add(ctx context.Context, j *journal.Journal, name string) (secret [32]byte, err error) {
	if err := CheckName(name); err != nil {
		return secret, err
	}
	rand.Read(secret[:])
	a := segment.Account{Name: name}
	rand.Read(a.ID[:])
	err = journal.Durably(ctx, j, func(tx *journal.Tx) error {
		if err := tx.Record(a); err != nil {
			return err
		}
		return tx.Record(token(a.ID, secret, tx))
	})
	if err != nil {
		return [32]byte{}, fmt.Errorf("add account %q: %w", name, err)
	}
	return secret, nil
}

// Token returns the secret of a further token for an account that exists, once it is durable. The error
// wraps view.ErrNoAccount or journal.ErrStopped.
func Token(ctx context.Context, j *journal.Journal, name string) (secret [32]byte, err error) {
	rand.Read(secret[:])
	err = journal.Durably(ctx, j, func(tx *journal.Tx) error {
		a, ok, err := tx.Reader().AccountByName(name)
		if err != nil {
			return err
		}
		if !ok {
			return view.ErrNoAccount
		}
		return tx.Record(token(a.ID, secret, tx))
	})
	if err != nil {
		return [32]byte{}, fmt.Errorf("make token for account %q: %w", name, err)
	}
	return secret, nil
}

func token(a holdfast.AccountID, secret [32]byte, tx *journal.Tx) segment.Token {
	return segment.Token{
		Hash:    wire.HashSecret(secret),
		Account: a,
		Expires: tx.Now()*int64(time.Millisecond) + int64(TokenLife),
	}
}

// Redeem gives the account of the token with that secret to a connection key, and returns it once that is
// durable. The error wraps view.ErrTokenUnknown, ErrTokenUsed, ErrTokenExpired or ErrKeyTaken, or
// journal.ErrStopped.
func Redeem(ctx context.Context, j *journal.Journal, secret, tlsKey [32]byte) (holdfast.AccountID, error) {
	hash := wire.HashSecret(secret)
	var account holdfast.AccountID
	err := journal.Durably(ctx, j, func(tx *journal.Tx) error {
		t, ok, err := tx.Reader().Token(hash)
		if err != nil {
			return err
		}
		if !ok {
			return view.ErrTokenUnknown
		}
		account = t.Account
		switch {
		case t.Used && t.TLSKey == tlsKey:
			return nil // the answer was lost
		case t.Used:
			return view.ErrTokenUsed
		}
		return tx.Record(segment.Redeemed{Hash: hash, TLSKey: tlsKey})
	})
	if err != nil {
		return holdfast.AccountID{}, fmt.Errorf("redeem token: %w", err)
	}
	return account, nil
}
