package wire

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"strconv"

	"holdfast/internal/enc"
)

// Token is what an operator gives a new customer: where the service is, how to recognise it, and a
// secret that can be used once, for 24 hours, to get an account. Nothing else has to be typed or trusted.
//
// Its text is a Line that begins with "holdfast1-", of
//
//	serviceKey 32, logKey 32, secret 32, address lp (host:port)
type Token struct {
	ServiceKey [32]byte // Ed25519, the service's end of every connection
	LogKey     [32]byte // Ed25519, signs heads
	Secret     [32]byte
	Address    string // host:port
}

const (
	tokenPrefix = "holdfast1-"
	maxToken    = 1 << 10 // bytes of its text
	maxAddress  = 300
)

// ErrToken reports text that is not a whole token.
var ErrToken = errors.New("not a Holdfast token; copy it whole, it begins with " + tokenPrefix)

// String returns the token's text. It contains the secret.
func (t Token) String() string {
	b := append([]byte(nil), t.ServiceKey[:]...)
	b = append(b, t.LogKey[:]...)
	b = append(b, t.Secret[:]...)
	b = enc.AppendLP(b, []byte(t.Address))
	return Line(tokenPrefix, b)
}

// ParseToken reads a token's text; white space around it and in it is ignored. The error wraps ErrToken.
func ParseToken(s string) (Token, error) {
	var t Token
	b, err := ParseLine(tokenPrefix, s, maxToken)
	if err != nil {
		return t, fmt.Errorf("%w (%w)", ErrToken, err)
	}
	r := enc.NewReader(b)
	r.Fixed(t.ServiceKey[:])
	r.Fixed(t.LogKey[:])
	r.Fixed(t.Secret[:])
	t.Address = string(r.LP(maxAddress))
	if err := r.Done(); err != nil {
		return Token{}, ErrToken
	}
	if err := CheckAddress(t.Address); err != nil {
		return Token{}, fmt.Errorf("%w (%w)", ErrToken, err)
	}
	return t, nil
}

// HashSecret returns what the service keeps of a token's secret.
func HashSecret(secret [32]byte) [32]byte {
	return sha256.Sum256(append([]byte("holdfast/1/token\x00"), secret[:]...))
}

// CheckAddress refuses an address that is not host:port.
func CheckAddress(a string) error {
	host, port, err := net.SplitHostPort(a)
	if err != nil || host == "" {
		return fmt.Errorf("address %q is not HOST:PORT", a)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("address %q: its port is not a number from 1 to 65535", a)
	}
	return nil
}

// PublicKey returns the 32-byte form of an Ed25519 public key.
func PublicKey(k ed25519.PublicKey) (out [32]byte) {
	copy(out[:], k)
	return out
}
