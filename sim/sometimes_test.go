package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// sometimes counts how often a run of many seeds came to a state. What is rare and matters is named; a run that never
// comes to one of those says nothing about it, and fails.
type sometimes struct {
	mu sync.Mutex
	n  map[string]int
}

// reached counts a state.
func (s *sometimes) reached(state string) { s.add(state, 1) }

func (s *sometimes) add(state string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == nil {
		s.n = map[string]int{}
	}
	s.n[state] += n
}

// require fails the test for each of the states that was never reached.
func (s *sometimes) require(t *testing.T, states ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, state := range states {
		if s.n[state] == 0 {
			t.Errorf("no seed came to this: %s", state)
		}
	}
}

func (s *sometimes) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(s.n)) {
		fmt.Fprintf(&b, "%8d  %s\n", s.n[k], k)
	}
	return b.String()
}
