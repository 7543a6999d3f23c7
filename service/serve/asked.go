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

// meter counts presence questions by account until a record says so. That goes with the account's next record of
// another kind, or with the end of its session, or by itself after settleEvery. A crash forgets what is not
// recorded then.
type meter struct {
	mu    sync.Mutex
	lines map[holdfast.AccountID]tally // none for nothing
}

type tally struct {
	names uint64
	since time.Time // of the first of them
}

func newMeter() *meter { return &meter{lines: map[holdfast.AccountID]tally{}} }

// maxAsked bounds the accounts of which something is counted, about: one more has all of them recorded.
const maxAsked = 4096

// full reports whether it is time to record what is counted of all accounts.
func (m *meter) full() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.lines) > maxAsked
}

// add counts n names, and reports whether it is time to record them.
func (m *meter) add(a holdfast.AccountID, n int) (due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.lines[a]
	if t.names == 0 {
		t.since = time.Now()
	}
	t.names += uint64(n)
	m.lines[a] = t
	return time.Since(t.since) >= settleEvery
}

// take returns what was counted, which the caller records or gives back.
func (m *meter) take(a holdfast.AccountID) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.lines[a].names
	delete(m.lines, a)
	return n
}

// back counts again what could not be recorded.
func (m *meter) back(a holdfast.AccountID, n uint64) {
	if n > 0 {
		m.add(a, int(n))
	}
}

// count returns what is not recorded.
func (m *meter) count(a holdfast.AccountID) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lines[a].names
}

// Asked returns how many names an account's machines asked about that the journal does not say yet.
func (s *Server) Asked(a holdfast.AccountID) uint64 { return s.asked.count(a) }

// settle records what a's machines asked about. Nobody waits for that to be durable, and it waits for no bucket.
func (s *Server) settle(ctx context.Context, a holdfast.AccountID) {
	if s.down() != nil || s.ReadOnly().Records {
		return
	}
	n := s.asked.take(a)
	if n == 0 {
		return
	}
	_, err := s.append(ctx, func(tx *journal.Tx) error { return tx.Record(segment.Metered{Account: a, Names: n}) })
	if err != nil {
		s.asked.back(a, n)
	}
}

// settleAll is settle for all accounts.
func (s *Server) settleAll(ctx context.Context) {
	s.asked.mu.Lock()
	var all []holdfast.AccountID
	for a := range s.asked.lines {
		all = append(all, a)
	}
	s.asked.mu.Unlock()
	for _, a := range all {
		s.settle(ctx, a)
	}
}
