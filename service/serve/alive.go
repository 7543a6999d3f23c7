package serve

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"holdfast/wire"
)

// Alive returns nil if the service lives, as a client can see it: somebody takes connections at the address at which
// Serve listens and answers there, or breaks off, and the journal's lock can be had. The bucket is not asked: one that
// is down does not make the service dead. The error says what does not move; it comes when ctx ends, at the latest.
func (s *Server) Alive(ctx context.Context, at net.Addr) error {
	free := make(chan struct{})
	go func() {
		defer close(free)
		s.j.Position()
	}()
	select {
	case <-free:
	case <-ctx.Done():
		return errors.New("the journal's lock is held and not given back")
	}
	return s.answers(ctx, at)
}

// answers says hello to ourselves.
func (s *Server) answers(ctx context.Context, at net.Addr) error {
	var raw net.Conn
	var err error
	for _, a := range near(at) {
		if raw, err = new(net.Dialer).DialContext(ctx, at.Network(), a); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("nobody listens at %s: %w", at, err)
	}
	defer raw.Close()
	if t, ok := ctx.Deadline(); ok {
		raw.SetDeadline(t)
	}
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	_, key, _ := ed25519.GenerateKey(rand.Reader) // a stranger's: it needs no place in the view
	c := tls.Client(raw, wire.ClientConfig(key, wire.PublicKey(s.id.TLSKey().Public().(ed25519.PublicKey))))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: holdfast\r\nConnection: close\r\n\r\n", wire.PathHello)
	_, err = c.Read(make([]byte, 1))
	switch {
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the service at %s takes connections and does not answer", at)
	case errors.Is(err, wire.ErrServiceKey), errors.Is(err, wire.ErrTransport):
		return fmt.Errorf("another program answers at %s: %w", at, err)
	}
	return nil // a connection that is broken off was taken by somebody: under load the service does that
}

// near returns where this process reaches its own listener, the likely place first.
func near(at net.Addr) []string {
	t, ok := at.(*net.TCPAddr)
	if !ok || t.IP != nil && !t.IP.IsUnspecified() {
		return []string{at.String()}
	}
	port := strconv.Itoa(t.Port)
	all := []string{net.JoinHostPort("127.0.0.1", port)}
	if t.IP != nil && t.IP.To4() == nil {
		all = append(all, net.JoinHostPort("::1", port)) // it may take connections of IPv6 only
	}
	return all
}
