package serve

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"holdfast/wire"
)

// How many connections there are at a time: each costs a descriptor and memory.
const (
	maxStrangers   = 256 // whose keys the service does not know, or not yet
	maxKnown       = 768 // of machines and accounts
	strangersOfOne = 128 // from one network
	connsOfOne     = 256 // of one vault or account
)

// connections lets strangers and known keys have connections from two separate stocks, so that neither nobody
// in particular nor one customer keeps the others out.
//
// A connection is a stranger's until its first request shows a key that the service knows. If there are too many
// of them, the oldest from the network that has most is ended. If there are too many of known keys, the one
// unused for longest of the party that has most is ended, unless that is the party which wants one more.
//
// When mu is free: strangers and known hold the connections that are open, each in one of them.
type connections struct {
	net.Listener
	mu        sync.Mutex
	strangers stock[netip.Prefix]
	known     stock[party]
}

func newConnections(l net.Listener) *connections {
	return &connections{Listener: l, strangers: stock[netip.Prefix]{}, known: stock[party]{}}
}

// conn is one connection of connections.
type conn struct {
	net.Conn
	in      *connections
	network netip.Prefix
	// Guarded by in.mu.
	party party // the zero party while it is a stranger's
	used  time.Time
	gone  bool
}

// stock is the connections of some kind, by who shares a part of them.
type stock[K comparable] map[K]map[*conn]struct{}

func (s stock[K]) add(k K, c *conn) {
	if s[k] == nil {
		s[k] = map[*conn]struct{}{}
	}
	s[k][c] = struct{}{}
}

func (s stock[K]) remove(k K, c *conn) {
	delete(s[k], c)
	if len(s[k]) == 0 {
		delete(s, k)
	}
}

func (s stock[K]) size() (n int) {
	for _, cs := range s {
		n += len(cs)
	}
	return n
}

// worst returns the connection unused for longest of who has most.
func (s stock[K]) worst() (k K, worst *conn) {
	most := 0
	for x, cs := range s {
		if len(cs) > most {
			k, most = x, len(cs)
		}
	}
	for c := range s[k] {
		if worst == nil || c.used.Before(worst.used) {
			worst = c
		}
	}
	return k, worst
}

// Accept is part of net.Listener.
func (cs *connections) Accept() (net.Conn, error) {
	for {
		raw, err := cs.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: raw, in: cs, network: networkOf(raw.RemoteAddr().String()), used: time.Now()}
		if cs.admit(c) {
			return c, nil
		}
		raw.Close()
	}
}

// admit makes a new connection a stranger's.
func (cs *connections) admit(c *conn) bool {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.strangers[c.network]) >= strangersOfOne {
		return false
	}
	if cs.strangers.size() >= maxStrangers {
		_, old := cs.strangers.worst()
		old.end()
	}
	cs.strangers.add(c.network, c)
	return true
}

// Close is part of net.Conn.
func (c *conn) Close() error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.end()
}

// end closes c; mu is held.
func (c *conn) end() error {
	if !c.gone {
		c.gone = true
		if c.party == (party{}) {
			c.in.strangers.remove(c.network, c)
		} else {
			c.in.known.remove(c.party, c)
		}
	}
	return c.Conn.Close()
}

var errTooManyConnections = &wire.Error{Code: wire.CodeBusy, Message: "Too many connections are open; the service takes more in a moment.", RetryAfter: 5}

// belongs says whose connection c is; zeros for a stranger's. The error says that there is no room for it.
func (c *conn) belongs(p party) error {
	cs := c.in
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c.used = time.Now()
	if c.party == p || c.gone {
		return nil
	}
	if p == (party{}) { // it was known, and is not any more: revoked
		if len(cs.strangers[c.network]) >= strangersOfOne || cs.strangers.size() >= maxStrangers {
			return errTooManyConnections
		}
		cs.known.remove(c.party, c)
		cs.strangers.add(c.network, c)
		c.party = p
		return nil
	}
	if len(cs.known[p]) >= connsOfOne {
		return errTooManyConnections
	}
	if cs.known.size() >= maxKnown {
		most, old := cs.known.worst()
		if len(cs.known[most]) <= len(cs.known[p])+1 {
			return errTooManyConnections
		}
		old.end()
	}
	if c.party == (party{}) {
		cs.strangers.remove(c.network, c)
	} else {
		cs.known.remove(c.party, c)
	}
	cs.known.add(p, c)
	c.party = p
	return nil
}

// connKey is the context key of a request's *conn.
type connKey struct{}

// withConn notes on which connection requests come.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	own, ok := c.(*conn)
	if !ok {
		panic(fmt.Sprintf("serve: a connection of type %T", c))
	}
	return context.WithValue(ctx, connKey{}, own)
}
