package serve

import (
	"holdfast/wire"
)

// Closed says what a service that is read-only takes no more: each field includes those before it. Its zero value
// takes everything.
type Closed struct {
	Sessions bool // new ones
	Blocks   bool // of open sessions
	Records  bool // of every kind
	// Why says for clients why, in one sentence.
	Why string
}

// write is what a client wants to have written.
type write int

const (
	writeSession write = iota
	writeBlocks
	writeRecord
)

// readOnlyRetry is when a client that was told read_only should ask again, seconds.
const readOnlyRetry = 10

// refuses returns what a client is told whose w is not taken.
func (c Closed) refuses(w write) error {
	if no := [...]bool{writeSession: c.Sessions || c.Blocks || c.Records, writeBlocks: c.Blocks || c.Records, writeRecord: c.Records}[w]; !no {
		return nil
	}
	e := refusal(wire.CodeReadOnly, "%s", c.Why)
	e.RetryAfter = readOnlyRetry
	return e
}

// ReadOnly returns what the service takes no more at the moment.
func (s *Server) ReadOnly() Closed {
	if s.readOnly == nil {
		return Closed{}
	}
	return s.readOnly()
}
