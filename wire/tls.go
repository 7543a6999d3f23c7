package wire

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Transport failures that a caller tells apart.
var (
	// ErrServiceKey is the client's verdict on a service that proves another key than the pinned one.
	ErrServiceKey = errors.New("this is not the service that this key file was made for")
	// ErrTransport reports a connection that is not what both sides insist on: TLS 1.3, X25519MLKEM768,
	// no resumption, one self-signed certificate with an Ed25519 key.
	ErrTransport = errors.New("connection is not secured as Holdfast requires")
)

// ServerConfig returns the service's end of every connection: TLS 1.3 with X25519MLKEM768 only, no
// resumption, and a client certificate whose key PeerKey tells. Any client key gets through the
// handshake; what it may do is decided for each request.
func ServerConfig(key ed25519.PrivateKey) *tls.Config {
	c := config(key)
	c.ClientAuth = tls.RequireAnyClientCert
	c.NextProtos = []string{"h2", "http/1.1"}
	c.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := PeerKey(&s)
		return err
	}
	return c
}

// ClientConfig returns a client's end of every connection to the service that holds serverKey. A
// handshake with anybody else fails with an error that wraps ErrServiceKey.
//
// In TLS 1.3 a client's handshake is complete before the server has judged the client's certificate:
// only the first answer shows that the connection stands.
func ClientConfig(key ed25519.PrivateKey, serverKey [32]byte) *tls.Config {
	c := config(key)
	// Certificate chains mean nothing here: VerifyConnection compares the key itself.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error {
		got, err := PeerKey(&s)
		if err != nil {
			return err
		}
		if got != serverKey {
			return fmt.Errorf("%w: its key is %x, not %x", ErrServiceKey, got, serverKey)
		}
		return nil
	}
	return c
}

// PeerKey returns the Ed25519 public key that the other side of a completed handshake proved to hold.
// It asserts everything that both sides insist on; the error wraps ErrTransport.
func PeerKey(s *tls.ConnectionState) (key [32]byte, err error) {
	switch {
	case s == nil:
		return key, fmt.Errorf("%w: not TLS", ErrTransport)
	case s.Version != tls.VersionTLS13:
		return key, fmt.Errorf("%w: %s", ErrTransport, tls.VersionName(s.Version))
	case s.CurveID != tls.X25519MLKEM768:
		return key, fmt.Errorf("%w: key exchange %s", ErrTransport, s.CurveID)
	case s.DidResume:
		return key, fmt.Errorf("%w: resumed session", ErrTransport)
	case len(s.PeerCertificates) != 1:
		return key, fmt.Errorf("%w: %d certificates", ErrTransport, len(s.PeerCertificates))
	}
	pub, ok := s.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok || len(pub) != ed25519.PublicKeySize {
		return key, fmt.Errorf("%w: the certificate's key is not Ed25519", ErrTransport)
	}
	copy(key[:], pub)
	return key, nil
}

func config(key ed25519.PrivateKey) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768},
		Certificates:           []tls.Certificate{certificate(key)},
		SessionTicketsDisabled: true,
		Renegotiation:          tls.RenegotiateNever,
	}
}

// certificate returns the one self-signed certificate of key. Its fields are constant, so that it says
// nothing but the key, and equal keys have equal certificates.
func certificate(key ed25519.PrivateKey) tls.Certificate {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "holdfast"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280: no expiry
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		panic("wire: certificate of an Ed25519 key: " + err.Error())
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
