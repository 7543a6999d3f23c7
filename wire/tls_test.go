package wire

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

func testKey(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32))
}

func publicOf(k ed25519.PrivateKey) [32]byte { return PublicKey(k.Public().(ed25519.PublicKey)) }

// exchange connects client and server over TCP on the loopback and sends one byte each way. It returns
// what each side found; a client's error may come from its handshake or from its first read.
func exchange(t *testing.T, server, client *tls.Config) (serverState, clientState tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(10 * time.Second))
		c := tls.Server(raw, server)
		if serverErr = c.Handshake(); serverErr != nil {
			return
		}
		serverState = c.ConnectionState()
		if _, serverErr = io.ReadFull(c, make([]byte, 1)); serverErr == nil {
			_, serverErr = c.Write([]byte{1})
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	c := tls.Client(raw, client)
	if clientErr = c.Handshake(); clientErr == nil {
		clientState = c.ConnectionState()
		if _, clientErr = c.Write([]byte{1}); clientErr == nil {
			_, clientErr = io.ReadFull(c, make([]byte, 1))
		}
	}
	raw.Close()
	<-done
	return
}

func TestTLSBothSidesLearnTheKeys(t *testing.T) {
	service, machine := testKey(1), testKey(2)
	ss, cs, serr, cerr := exchange(t, ServerConfig(service), ClientConfig(machine, publicOf(service)))
	if serr != nil || cerr != nil {
		t.Fatalf("server: %v, client: %v", serr, cerr)
	}
	for _, s := range []tls.ConnectionState{ss, cs} {
		if s.Version != tls.VersionTLS13 || s.CurveID != tls.X25519MLKEM768 {
			t.Errorf("negotiated %s with %s", tls.VersionName(s.Version), s.CurveID)
		}
	}
	if k, err := PeerKey(&ss); err != nil || k != publicOf(machine) {
		t.Errorf("server learned key %x, %v", k, err)
	}
	if k, err := PeerKey(&cs); err != nil || k != publicOf(service) {
		t.Errorf("client learned key %x, %v", k, err)
	}
}

func TestTLSAnotherServiceKeyIsRefused(t *testing.T) {
	_, _, _, err := exchange(t, ServerConfig(testKey(3)), ClientConfig(testKey(2), publicOf(testKey(1))))
	if !errors.Is(err, ErrServiceKey) {
		t.Fatalf("got %v, want ErrServiceKey", err)
	}
}

// TestTLSMatrix lets one side be lax in one respect, and expects that no byte of the other side's
// answer is ever received.
func TestTLSMatrix(t *testing.T) {
	service, machine := testKey(1), testKey(2)
	two := func(c *tls.Config) {
		c.Certificates[0].Certificate = append(c.Certificates[0].Certificate, certificate(testKey(9)).Certificate...)
	}
	lax := []struct {
		name string
		set  func(*tls.Config)
	}{
		{"TLS 1.2", func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			c.CurvePreferences = nil
		}},
		{"classical curve", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }},
		{"another hybrid", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.SecP256r1MLKEM768} }},
		{"two certificates", two},
	}
	for _, l := range lax {
		t.Run("client with "+l.name, func(t *testing.T) {
			c := ClientConfig(machine, publicOf(service))
			l.set(c)
			c.VerifyConnection = nil
			if _, _, serr, cerr := exchange(t, ServerConfig(service), c); serr == nil || cerr == nil {
				t.Fatalf("server: %v, client: %v", serr, cerr)
			}
		})
		t.Run("service with "+l.name, func(t *testing.T) {
			c := ServerConfig(service)
			l.set(c)
			c.VerifyConnection = nil
			if _, _, serr, cerr := exchange(t, c, ClientConfig(machine, publicOf(service))); serr == nil || cerr == nil {
				t.Fatalf("server: %v, client: %v", serr, cerr)
			}
		})
	}
	t.Run("client without a certificate", func(t *testing.T) {
		c := ClientConfig(machine, publicOf(service))
		c.Certificates = nil
		if _, _, serr, cerr := exchange(t, ServerConfig(service), c); serr == nil || cerr == nil {
			t.Fatalf("server: %v, client: %v", serr, cerr)
		}
	})
}

func TestTLSIsNeverResumed(t *testing.T) {
	service, machine := testKey(1), testKey(2)
	client := ClientConfig(machine, publicOf(service))
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	server := ServerConfig(service)
	for range 2 {
		_, cs, serr, cerr := exchange(t, server, client)
		if serr != nil || cerr != nil {
			t.Fatalf("server: %v, client: %v", serr, cerr)
		}
		if cs.DidResume {
			t.Fatal("resumed")
		}
	}
	// Where both sides were made to resume, the client's check ends it.
	client.SessionTicketsDisabled, client.ServerName = false, "service"
	server.SessionTicketsDisabled = false
	server.VerifyConnection = nil
	if _, _, serr, cerr := exchange(t, server, client); serr != nil || cerr != nil {
		t.Fatalf("server: %v, client: %v", serr, cerr)
	}
	if _, _, _, cerr := exchange(t, server, client); !errors.Is(cerr, ErrTransport) {
		t.Fatalf("resumed connection: got %v, want ErrTransport", cerr)
	}
}

func TestPeerKeyAsserts(t *testing.T) {
	service, machine := testKey(1), testKey(2)
	good, _, serr, cerr := exchange(t, ServerConfig(service), ClientConfig(machine, publicOf(service)))
	if serr != nil || cerr != nil {
		t.Fatal(serr, cerr)
	}
	for name, spoil := range map[string]func(*tls.ConnectionState){
		"version":          func(s *tls.ConnectionState) { s.Version = tls.VersionTLS12 },
		"curve":            func(s *tls.ConnectionState) { s.CurveID = tls.X25519 },
		"resumed":          func(s *tls.ConnectionState) { s.DidResume = true },
		"no certificate":   func(s *tls.ConnectionState) { s.PeerCertificates = nil },
		"two":              func(s *tls.ConnectionState) { s.PeerCertificates = append(s.PeerCertificates, s.PeerCertificates[0]) },
		"another key kind": func(s *tls.ConnectionState) { c := *s.PeerCertificates[0]; c.PublicKey = 1; s.PeerCertificates[0] = &c },
	} {
		s := good
		s.PeerCertificates = append(s.PeerCertificates[:0:0], good.PeerCertificates...)
		spoil(&s)
		if _, err := PeerKey(&s); !errors.Is(err, ErrTransport) {
			t.Errorf("%s: got %v, want ErrTransport", name, err)
		}
	}
	if _, err := PeerKey(nil); !errors.Is(err, ErrTransport) {
		t.Errorf("no TLS: got %v, want ErrTransport", err)
	}
}

func TestCertificateIsConstant(t *testing.T) {
	a, b := certificate(testKey(1)), certificate(testKey(1))
	if !bytes.Equal(a.Certificate[0], b.Certificate[0]) {
		t.Error("equal keys have different certificates")
	}
}
