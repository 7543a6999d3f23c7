package serve

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/service/bucket/sim"
	"holdfast/service/identity"
	"holdfast/service/journal"
)

// stuckListener hands over no connection while it is stuck, as an accept loop that stands still.
type stuckListener struct {
	net.Listener
	stuck *atomic.Bool
	free  chan struct{}
}

func (l stuckListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if l.stuck.Load() {
		<-l.free
	}
	return c, err
}

// TestAlive: on real sockets, a service lives while it answers, also while the bucket does not, and while strangers
// are turned away for their number; it does not when nobody takes connections, nobody listens, another answers, or the
// journal's lock is not given back.
func TestAlive(t *testing.T) {
	id, err := identity.New("file:///b", "127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	b := sim.New(1)
	var down atomic.Bool
	b.OnOp(func(sim.Op, string, int) sim.Fault { return sim.Fault{Hang: down.Load()} })
	j, err := journal.Open(t.Context(), journal.Config{Create: true, Bucket: b, Cell: id.Cell, Host: [16]byte{1}, LogKey: id.LogKey()})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.Listen("tcp", ":0") // every address of the machine, as in the unit
	if err != nil {
		t.Fatal(err)
	}
	l := stuckListener{raw, new(atomic.Bool), make(chan struct{})}
	s := New(Config{Journal: j, Identity: id})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	// within is long for what should succeed and short for what should not.
	alive := func(within time.Duration) error {
		c, stop := context.WithTimeout(t.Context(), within)
		defer stop()
		return s.Alive(c, raw.Addr())
	}
	if err := alive(time.Minute); err != nil {
		t.Errorf("a service that serves: %v", err)
	}
	down.Store(true)
	if err := alive(time.Minute); err != nil {
		t.Errorf("a service whose bucket is down: %v", err)
	}
	down.Store(false)

	for s.limits.strangerRequests.take(who{network: networkOf("127.0.0.1:1")}, 1) == 0 {
	}
	if err := alive(time.Minute); err != nil {
		t.Errorf("a service that refuses its own hello: %v", err)
	}

	stranger, err := identity.New("file:///b", "127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	c, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if err := New(Config{Journal: j, Identity: stranger}).Alive(c, raw.Addr()); err == nil || !strings.Contains(err.Error(), "another program answers") {
		t.Errorf("another service at the address: %v", err)
	}

	l.stuck.Store(true)
	if err := alive(50 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("a service that takes no connections: %v", err)
	}
	l.stuck.Store(false)
	close(l.free)
	if err := alive(time.Minute); err != nil {
		t.Errorf("a service that takes connections again: %v", err)
	}

	held, give := make(chan struct{}), make(chan struct{})
	go j.Append(t.Context(), func(*journal.Tx) error { close(held); <-give; return context.Canceled })
	<-held
	if err := alive(50 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "lock") {
		t.Errorf("a journal that is locked: %v", err)
	}
	close(give)
	if err := alive(time.Minute); err != nil {
		t.Errorf("a journal that is free again: %v", err)
	}

	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := alive(time.Minute); err == nil || !strings.Contains(err.Error(), "nobody listens") {
		t.Errorf("a service that has ended: %v", err)
	}
	if err := j.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// TestNear: a listener on every address is reached at one of this machine's.
func TestNear(t *testing.T) {
	for _, x := range []struct {
		at   net.Addr
		want string
	}{
		{&net.TCPAddr{Port: 7}, "127.0.0.1:7"},
		{&net.TCPAddr{IP: net.IPv4zero, Port: 7}, "127.0.0.1:7"},
		{&net.TCPAddr{IP: net.IPv6unspecified, Port: 7}, "127.0.0.1:7 [::1]:7"},
		{&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 70}, "10.0.0.1:70"},
	} {
		if got := strings.Join(near(x.at), " "); got != x.want {
			t.Errorf("%v: %s, want %s", x.at, got, x.want)
		}
	}
}
