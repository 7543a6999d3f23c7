package serve

import (
	"context"
	"sync"
	"time"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/service/segment"
)

// settleEvery is how long presence questions are counted in memory only, at most while more of them come.
const settleEvery = time.Minute

// meter counts by account what no record tells, presence questions and bytes that are sent, until a record does. That goes
// with the account's next record of another kind, or with the end of its session; for questions by itself after settleEvery, and
// for bytes when they are charged. A crash forgets what is not recorded then, and an end the bytes.
type meter struct {
	mu    sync.Mutex
	lines map[holdfast.AccountID]tally // none for nothing
}

type tally struct {
	names uint64
	sent  uint64    // bytes
	since time.Time // of the first question
}

func newMeter() *meter { return &meter{lines: map[holdfast.AccountID]tally{}} }

// maxMetered bounds the accounts of which something is counted, about: one more has all of them recorded.
const maxMetered = 4096

// full reports whether it is time to record what is counted of all accounts.
func (m *meter) full() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.lines) > maxMetered
}

// asked counts n names, and reports whether it is time to record them.
func (m *meter) asked(a holdfast.AccountID, n int) (due bool) {
	t := m.add(a, tally{names: uint64(n)})
	return time.Since(t.since) >= settleEvery
}

// add counts what is in n, and returns what is counted then.
func (m *meter) add(a holdfast.AccountID, n tally) tally {
	if n == (tally{}) {
		return n
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.lines[a]
	if !ok && n.names == 0 && len(m.lines) >= maxMetered {
		return n // who restores waits for nothing: those bytes are not charged
	}
	if t.names == 0 && n.names > 0 {
		t.since = time.Now()
	}
	t.names += n.names
	t.sent += n.sent
	m.lines[a] = t
	return t
}

// take returns what was counted, which the caller records or gives back.
func (m *meter) take(a holdfast.AccountID) tally {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.lines[a]
	delete(m.lines, a)
	return tally{names: t.names, sent: t.sent}
}

// forget forgets the bytes that were sent and not recorded: nobody is charged for them.
func (m *meter) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for a, t := range m.lines {
		if t.sent = 0; t.names == 0 {
			delete(m.lines, a)
		} else {
			m.lines[a] = t
		}
	}
}

// count returns what is not recorded.
func (m *meter) count(a holdfast.AccountID) tally {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lines[a]
}

// record returns the record of what was taken.
func (t tally) record(a holdfast.AccountID) segment.Metered {
	return segment.Metered{Account: a, Names: t.names, Sent: t.sent}
}

// Asked returns how many names an account's machines asked about that the journal does not say yet.
func (s *Server) Asked(a holdfast.AccountID) uint64 { return s.meter.count(a).names }

// settle records what a's machines used. Nobody waits for that to be durable, and it waits for no bucket.
func (s *Server) settle(ctx context.Context, a holdfast.AccountID) {
	if s.down() != nil || s.ReadOnly().Records {
		return
	}
	t := s.meter.take(a)
	if t == (tally{}) {
		return
	}
	_, err := s.append(ctx, func(tx *journal.Tx) error { return tx.Record(t.record(a)) })
	if err != nil {
		s.meter.add(a, t)
	}
}

// settleAsked is settle for who asked about anything; what was sent goes with it, or waits.
func (s *Server) settleAsked(ctx context.Context, a holdfast.AccountID) {
	if s.Asked(a) > 0 {
		s.settle(ctx, a)
	}
}

// Settle is settle for all accounts.
func (s *Server) Settle(ctx context.Context) {
	s.meter.mu.Lock()
	var all []holdfast.AccountID
	for a := range s.meter.lines {
		all = append(all, a)
	}
	s.meter.mu.Unlock()
	for _, a := range all {
		s.settle(ctx, a)
	}
}
