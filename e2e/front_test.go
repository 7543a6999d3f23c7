//go:build linux

package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// front is where clients reach the service, whichever process that is at the moment. Connections stay with
// the process that they were made to.
type front struct {
	l  net.Listener
	mu sync.Mutex
	to string

	moved   time.Time     // when bytes passed last
	longest time.Duration // in which none passed
}

func newFront(t testing.TB) *front {
	t.Helper()
	f := new(front)
	f.l = listen(t, f.serve)
	return f
}

// listen serves each connection that is made to what it returns, until the test ends.
func listen(t testing.TB, serve func(net.Conn)) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return l
}

func (f *front) serve(c net.Conn) {
	defer c.Close()
	f.mu.Lock()
	to := f.to
	f.mu.Unlock()
	s, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer s.Close()
	go func() {
		io.Copy(s, noted{c, f})
		s.Close()
	}()
	io.Copy(c, noted{s, f})
}

// noted is a reader that tells the front what it reads.
type noted struct {
	io.Reader
	f *front
}

func (r noted) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.f.pass()
	}
	return n, err
}

func (f *front) pass() {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.longest = max(f.longest, now.Sub(f.moved))
	f.moved = now
}

// stall begins a measurement of the longest time in which no byte passes between any client and the service, and
// returns what ends it. Nothing is sent on these connections to keep them alive: such a time is one in which a client that
// runs waits.
func (f *front) stall() (end func() time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.moved, f.longest = time.Now(), 0
	return func() time.Duration {
		f.pass()
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.longest
	}
}

func (f *front) set(to string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to = to
}
