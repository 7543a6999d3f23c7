// Package pipenet is a network in memory, for tests.
package pipenet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// Listener accepts the connections that Connect hands it.
type Listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Listen returns a listener.
func Listen() *Listener { return &Listener{conns: make(chan net.Conn), closed: make(chan struct{})} }

// Connect hands far, one end of a connection, to who accepts. It fails if the listener is closed, and when ctx ends.
func (l *Listener) Connect(ctx context.Context, far net.Conn) error {
	select {
	case l.conns <- far:
		return nil
	case <-l.closed:
		return errors.New("connection refused")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Accept is that of a net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close is that of a net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr is that of a net.Listener.
func (l *Listener) Addr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "pipe" }
func (addr) String() string  { return "service.test:1" }

// From returns c with the address that its other end connects from.
func From(c net.Conn, home net.Addr) net.Conn { return from{c, home} }

type from struct {
	net.Conn
	home net.Addr
}

func (f from) RemoteAddr() net.Addr { return f.home }

// Pipe returns the two ends of a connection in memory. Unlike those of net.Pipe they hold what is written until
// it is read, so that a write never waits: TLS writes under a mutex, and a goroutine that waits for a mutex
// stops the time of a bubble of package synctest.
func Pipe() (near, far net.Conn) {
	a, b := newStream(), newStream()
	return &pipeEnd{in: a, out: b}, &pipeEnd{in: b, out: a}
}

type pipeEnd struct{ in, out *stream }

func (p *pipeEnd) Read(b []byte) (int, error)        { return p.in.read(b) }
func (p *pipeEnd) Write(b []byte) (int, error)       { return p.out.write(b) }
func (p *pipeEnd) LocalAddr() net.Addr               { return addr{} }
func (p *pipeEnd) RemoteAddr() net.Addr              { return addr{} }
func (p *pipeEnd) SetDeadline(t time.Time) error     { return p.SetReadDeadline(t) }
func (p *pipeEnd) SetWriteDeadline(time.Time) error  { return nil }
func (p *pipeEnd) SetReadDeadline(t time.Time) error { return p.in.setDeadline(t) }
func (p *pipeEnd) Close() error {
	p.in.close(net.ErrClosed)
	p.out.close(io.EOF)
	return nil
}

// stream is one direction of a pipe.
type stream struct {
	mu       sync.Mutex
	change   sync.Cond // of anything below
	held     []byte
	err      error // once it is closed, and everything held is read
	deadline time.Time
	timer    *time.Timer
}

func newStream() *stream {
	s := new(stream)
	s.change.L = &s.mu
	return s
}

func (s *stream) read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.err == net.ErrClosed:
			return 0, s.err
		case !s.deadline.IsZero() && !time.Now().Before(s.deadline):
			return 0, os.ErrDeadlineExceeded
		case len(s.held) > 0:
			n := copy(b, s.held)
			s.held = s.held[n:]
			return n, nil
		case s.err != nil:
			return 0, s.err
		}
		s.change.Wait()
	}
}

func (s *stream) write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, io.ErrClosedPipe
	}
	s.held = append(s.held, b...)
	s.change.Broadcast()
	return len(b), nil
}

func (s *stream) close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil || err == net.ErrClosed {
		s.err = err
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	s.change.Broadcast()
}

func (s *stream) setDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
	s.deadline = t
	if !t.IsZero() && s.err == nil {
		s.timer = time.AfterFunc(time.Until(t), func() {
			s.mu.Lock() // so that no reader is between its look at the deadline and its wait
			defer s.mu.Unlock()
			s.change.Broadcast()
		})
	}
	s.change.Broadcast()
	return nil
}
