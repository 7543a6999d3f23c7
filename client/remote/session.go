package remote

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/seal"
	"holdfast/history"
	"holdfast/wire"
)

const (
	// Window bounds the sealed bytes that were handed to Upload and are not yet known to be durable. It
	// holds two of the service's segments, so that one fills while the other is written.
	Window = 32 << 20

	batchTarget  = 2 << 20 // bytes of frames in one upload; smaller than this only at the end
	uploaders    = 8       // uploads under way at a time
	maxLeaving   = 2       // of these, how many are leaving this machine: a slow line is not shared by more
	maxReopen    = 100     // sessions that one run opens after losing them, without a batch stored between
	closePatient = 2 * time.Second
)

// Session is one run's upload. If the service forgets it (a restart does that), it opens a new one and
// sends again, as they were sealed, the blocks that were not yet acknowledged. Its methods may be called
// concurrently, except that blocks which link to others must be given to Upload after those.
type Session struct {
	c     *Client
	sec   atomic.Pointer[seal.Session] // the secret under which blocks are sealed now
	ctx   context.Context
	stop  context.CancelCauseFunc
	group sync.WaitGroup

	mu     sync.Mutex
	change sync.Cond // of anything below
	// window is what is not acknowledged, in order; a batch of it carries its number in the present
	// session. cur, if not nil, is being filled and not yet part of the window.
	window    []*batch
	cur       *batch
	bytes     int // of window and cur
	next      uint64
	leaving   int  // batches that are on their way out, not counting repetitions
	opening   bool // one goroutine is opening a new session
	reopened  int  // since a batch was stored
	err       error
	stats     Stats
	sessionID holdfast.SessionID
}

// Stats says what an upload amounted to.
type Stats struct {
	Blocks   uint64 // handed to Upload
	Bytes    uint64 // sealed, handed to Upload
	Stored   uint64 // of the blocks, new to the group
	Acked    uint64 // bytes known to be durable
	Sessions int    // opened; more than one after the service was restarted
}

type batch struct {
	body    []byte
	payload int
	seq     uint64
	flush   bool
	sending bool
}

// OpenSession opens a session. ctx bounds all of it, until Close.
func (c *Client) OpenSession(ctx context.Context) (*Session, error) {
	s := &Session{c: c}
	s.change.L = &s.mu
	s.ctx, s.stop = context.WithCancelCause(ctx)
	if err := s.open(); err != nil {
		s.stop(nil)
		return nil, fmt.Errorf("open session: %w", err)
	}
	// A wait on change must end when ctx does.
	s.group.Go(func() {
		<-s.ctx.Done()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err == nil {
			s.err = context.Cause(s.ctx)
		}
		s.change.Broadcast()
	})
	for range uploaders {
		s.group.Go(s.upload)
	}
	return s, nil
}

// open has a fresh secret and its record accepted, and makes it the session's.
func (s *Session) open() error {
	for try := 1; ; try++ {
		m := s.c.forReading()
		sec, open, err := seal.NewSession(rand.Reader, m)
		if err != nil {
			return err
		}
		_, err = s.c.submit(s.ctx, wire.PathSession, history.TypeOpen, open.Encode())
		if err == nil {
			s.begin(sec, open.Session)
			return nil
		}
		if wire.CodeOf(err) == wire.CodeBadRequest && try < maxReopen {
			// The owner may have made another read key the current one since.
			if _, err := s.c.History(s.ctx); err != nil {
				return err
			}
			if s.c.forReading().ReadKey != m.ReadKey {
				continue
			}
		}
		// The record was accepted, but its answer was lost, and the session with the process that opened it.
		if wire.CodeOf(err) != wire.CodeSessionGone {
			return err
		}
		if try == maxReopen {
			return fmt.Errorf("%w: it forgot %d sessions in a row", ErrProtocol, maxReopen)
		}
	}
}

// forReading returns the machine with the read key that is the current one as far as the history is known:
// the key file may be older than the owner's last rotation.
func (c *Client) forReading() *keyring.Machine {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := *c.m
	if c.vault.N > 0 {
		m.ReadKey = c.vault.ReadKey
	}
	return &m
}

// begin makes a session that was opened the present one: the window is sent again in it.
func (s *Session) begin(sec *seal.Session, id holdfast.SessionID) {
	s.sec.Store(sec)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessionID = id
	s.stats.Sessions++
	s.next = 1
	for _, b := range s.window {
		b.seq, b.sending = s.next, false
		s.next++
	}
}

// reopen replaces the session old, which the service has forgotten, unless somebody else did already.
func (s *Session) reopen(old holdfast.SessionID) error {
	s.mu.Lock()
	for s.opening && s.err == nil {
		s.change.Wait()
	}
	if s.err != nil || s.sessionID != old {
		defer s.mu.Unlock()
		return s.err
	}
	if s.reopened++; s.reopened > maxReopen {
		defer s.mu.Unlock()
		return fmt.Errorf("%w: it forgot %d sessions in a row", ErrProtocol, maxReopen)
	}
	s.opening = true
	s.mu.Unlock()
	err := s.open()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opening = false
	s.change.Broadcast()
	return err
}

// Secret returns the session under which a block is to be sealed now. Blocks sealed under an earlier
// one of the same run stay good.
func (s *Session) Secret() *seal.Session { return s.sec.Load() }

// path returns the path of a request of the present session.
func (s *Session) path(pattern string) (string, holdfast.SessionID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.opening && s.err == nil {
		s.change.Wait()
	}
	return strings.Replace(pattern, "{sid}", s.sessionID.String(), 1), s.sessionID
}

// Have asks which of names the group has; at most holdfast.MaxHave.
func (s *Session) Have(ctx context.Context, names []holdfast.Name) ([]bool, error) {
	body := wire.AppendNames(nil, names)
	for {
		path, sid := s.path(wire.PathHave)
		b, err := s.c.call(ctx, http.MethodPost, path, body, holdfast.MaxHave)
		if wire.CodeOf(err) == wire.CodeSessionGone {
			if err := s.reopen(sid); err != nil {
				return nil, fmt.Errorf("open session again: %w", err)
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("ask which blocks are there: %w", err)
		}
		if len(b) != len(names) {
			return nil, fmt.Errorf("ask which blocks are there: %w: %d answers to %d names", ErrProtocol, len(b), len(names))
		}
		out := make([]bool, len(b))
		for i, x := range b {
			if x > 1 {
				return nil, fmt.Errorf("ask which blocks are there: %w: answer %d", ErrProtocol, x)
			}
			out[i] = x == 1
		}
		return out, nil
	}
}

// Upload takes a sealed block and sends it in its turn. It waits while the window is full. An error is
// that of any earlier upload: the session is over then.
func (s *Session) Upload(ctx context.Context, name holdfast.Name, sealed []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := wire.FrameOverhead + len(sealed)
	for s.err == nil && s.bytes > 0 && s.bytes+size > Window {
		s.change.Wait()
	}
	if s.err != nil {
		return s.err
	}
	if s.cur == nil {
		s.cur = &batch{body: make([]byte, 0, batchTarget+size)}
	}
	s.cur.body = wire.AppendFrame(s.cur.body, wire.Frame{Name: name, Status: wire.FrameBlock, Sealed: sealed})
	s.cur.payload += len(sealed)
	s.bytes += size
	s.stats.Blocks++
	s.stats.Bytes += uint64(len(sealed))
	if len(s.cur.body) >= batchTarget {
		s.dispatch()
	}
	return nil
}

// dispatch closes the batch being filled; s.mu is held.
func (s *Session) dispatch() {
	if s.cur == nil {
		return
	}
	s.cur.seq = s.next
	s.next++
	s.window = append(s.window, s.cur)
	s.cur = nil
	s.change.Broadcast()
}

// Drain waits until everything that Upload took is durable.
func (s *Session) Drain(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cur != nil {
		s.cur.flush = true // nothing follows that would fill the service's segment
		s.dispatch()
	}
	for s.err == nil && len(s.window) > 0 {
		s.change.Wait()
	}
	return s.err
}

// upload sends batches until the session ends.
func (s *Session) upload() {
	for {
		s.mu.Lock()
		var b *batch
		for s.err == nil && b == nil {
			if !s.opening && s.leaving < maxLeaving {
				for _, w := range s.window {
					if !w.sending {
						b = w
						break
					}
				}
			}
			if b == nil {
				s.change.Wait()
			}
		}
		if s.err != nil {
			s.mu.Unlock()
			return
		}
		b.sending = true
		seq, sid := b.seq, s.sessionID
		s.leaving++
		s.mu.Unlock()
		left := sync.OnceFunc(func() {
			s.mu.Lock()
			s.leaving--
			s.change.Broadcast()
			s.mu.Unlock()
		})
		err := s.send(b, sid, seq, left)
		left()
		if err != nil {
			s.fail(err)
			return
		}
	}
}

func (s *Session) fail(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	s.change.Broadcast()
	s.mu.Unlock()
	s.stop(err)
}

// send sends b once as number seq of session sid, and calls left when it has left this machine. What is not
// done then, another turn of upload does.
func (s *Session) send(b *batch, sid holdfast.SessionID, seq uint64, left func()) error {
	path := strings.Replace(wire.PathBlocks, "{sid}", sid.String(), 1) + fmt.Sprintf("?seq=%d", seq)
	if b.flush {
		path += "&flush=1"
	}
	answer, err := s.c.send(s.ctx, http.MethodPost, path, b.body, wire.MaxJSON, left)
	if wire.CodeOf(err) == wire.CodeSessionGone {
		if err := s.reopen(sid); err != nil {
			return fmt.Errorf("open session again: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("upload blocks: %w", err)
	}
	var st wire.Stored
	if err := json.Unmarshal(answer, &st); err != nil {
		return fmt.Errorf("upload blocks: %w: %w", ErrProtocol, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessionID != sid {
		// Durable, but the new session counts batches from 1 without gaps: it is sent again, and known.
		return nil
	}
	for i, w := range s.window {
		if w == b {
			s.window = append(s.window[:i], s.window[i+1:]...)
			s.bytes -= len(b.body)
			s.stats.Stored += uint64(max(st.Stored, 0))
			s.stats.Acked += uint64(b.payload)
			s.reopened = 0
			break
		}
	}
	s.change.Broadcast()
	return nil
}

// Stats returns what the upload amounts to so far.
func (s *Session) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Commit completes an archive whose blocks are all durable, and returns its place in the history. It
// sets the record's session and group. Missing tells whether the service refused for want of blocks.
func (s *Session) Commit(ctx context.Context, c history.Commit) (history.Archive, error) {
	s.mu.Lock()
	c.Session, c.Group = s.sessionID, s.c.m.Group
	s.mu.Unlock()
	id, err := s.c.submit(ctx, wire.PathRecords, history.TypeCommit, c.Encode())
	if err != nil {
		return history.Archive{}, fmt.Errorf("commit archive: %w", err)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for i := len(s.c.vault.Archives) - 1; i >= 0; i-- {
		if a := s.c.vault.Archives[i]; a.ID == id {
			return a, nil
		}
	}
	return history.Archive{}, fmt.Errorf("commit archive: %w: the service says that it is committed, but its history does not", history.ErrOrder)
}

// Close ends the session and waits for its goroutines. What was not drained may or may not be stored.
func (s *Session) Close() {
	s.mu.Lock()
	sid, failed := s.sessionID, s.err != nil
	s.mu.Unlock()
	s.stop(errClosed)
	s.group.Wait()
	if failed {
		return
	}
	// Only politeness: the service forgets idle sessions by itself.
	ctx, cancel := context.WithTimeout(context.Background(), closePatient)
	defer cancel()
	path := strings.Replace(wire.PathClose, "{sid}", sid.String(), 1)
	w := &watch{idle: time.NewTimer(closePatient), progress: func(int64) {}}
	if r, err := s.c.attempt(ctx, http.MethodPost, path, nil, w); err == nil {
		r.Close()
	}
}

var errClosed = errors.New("session is closed")
