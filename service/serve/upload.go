package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/wire"
)

// blocks takes a batch of a session's blocks and answers when all of it is durable:
//
//	wait for the batch's turn, then for memory (turns says why in this order)
//	read the body, and check the frames, without holding anything else
//	wait until the batches before it were appended, and append it, in pieces if it is large
//	give the memory back, and wait for the acknowledgement
//
// If a block is refused, blocks before it may stay: whoever sends them again is told that they are known. A machine
// that has reached its daily cap keeps what it stored up to there.
//
// A crash anywhere before the answer leaves blocks that nothing refers to, or nothing; the client sends
// the batch again in its next session.
func (s *Server) blocks(w http.ResponseWriter, r *http.Request, c caller) error {
	ses, end, err := s.session(r, c)
	if err != nil {
		return err
	}
	defer end()
	q := r.URL.Query()
	k, err := strconv.ParseUint(q.Get("seq"), 10, 64)
	if err != nil || k == 0 {
		return refusal(wire.CodeBadRequest, "The request needs ?seq=K, the number of the batch in its session, from 1.")
	}
	size := r.ContentLength
	if size < 0 {
		size = holdfast.MaxBatch
	}
	if size > holdfast.MaxBatch {
		return tooLarge(holdfast.MaxBatch)
	}
	if err := s.taking(writeBlocks); err != nil {
		return err
	}
	if err := s.mayWrite(c.account, lastRun); err != nil {
		return err
	}

	cut := newCutter(w, r)
	defer cut.end()
	leave, err := s.lobby.enter(ses.vault)
	if err != nil {
		return err
	}
	defer leave()
	var release func()
	a, err := ses.turns.enter(r.Context(), k, func() (err error) {
		release, err = s.memory(r.Context(), s.uploads, ses.vault, size, cut.cutReading)
		return err
	})
	leave()
	if err != nil {
		if release != nil {
			release()
		}
		return err
	}
	defer release()
	appended := false
	defer func() {
		if !appended {
			ses.turns.fail(a)
		}
	}()
	batch, err := s.readBatch(w, r, ses, size)
	if err != nil {
		return err
	}
	if err := ses.turns.turn(cut.ctx, a); err != nil {
		return err
	}
	var sum wire.Stored
	var t *journal.Ticket
	for rest := batch; len(rest) > 0; {
		var piece []item
		piece, rest = cutPiece(rest)
		if t, err = s.appendBlocks(r.Context(), piece, &sum); err != nil {
			return err
		}
	}
	appended = true
	ses.turns.done(a)
	release()
	if q.Get("flush") == "1" {
		s.j.Flush()
	}
	if err := s.wait(r.Context(), t); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, sum)
}

// What is appended of a batch at a time: everybody else waits meanwhile. A batch of our own client is one piece,
// unless a tree of huge directories is in it.
const (
	pieceBlocks = 512
	pieceLinks  = holdfast.MaxLinks
)

// cutPiece cuts off the first piece of a batch.
func cutPiece(batch []item) (piece, rest []item) {
	n, links := 1, len(batch[0].header.Links)
	for ; n < min(len(batch), pieceBlocks); n++ {
		if links += len(batch[n].header.Links); links > pieceLinks {
			break
		}
	}
	return batch[:n], batch[n:]
}

// appendBlocks appends blocks and adds to sum what became of them. It is all of them or none, except that the
// machine's daily cap keeps those before the one that exceeds it; the error is a *view.CapError then.
func (s *Server) appendBlocks(ctx context.Context, blocks []item, sum *wire.Stored) (*journal.Ticket, error) {
	var now wire.Stored
	var full *view.CapError
	t, err := s.append(ctx, func(tx *journal.Tx) error {
		for _, b := range blocks {
			err := tx.Stored(b.header.Session, b.name, b.header.Kind, b.header.Links, b.sealed)
			switch {
			case err == nil:
				now.Stored++
			case errors.Is(err, view.ErrDuplicate):
				now.Known++
			case errors.As(err, &full):
				return nil
			default:
				return fmt.Errorf("block %s: %w", b.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sum.Stored += now.Stored
	sum.Known += now.Known
	if full != nil {
		return nil, full
	}
	return t, nil
}

// lobby counts the requests that wait for their turn and for memory before their body is read, by vault: what arrives
// of it meanwhile lies in the connections' buffers, up to streamBuffer each, and is part of no budget.
type lobby struct {
	mu sync.Mutex
	in map[holdfast.VaultID]int
	n  int
}

const (
	maxLobby   = 192
	lobbyShare = 64 // of one vault
)

// enter counts a request until leave is called, for the first time. The error says that there are too many.
func (l *lobby) enter(v holdfast.VaultID) (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n >= maxLobby || l.in[v] >= lobbyShare {
		return nil, &wire.Error{Code: wire.CodeBusy, Message: "Too many requests wait for their turn; try again in a moment.", RetryAfter: 2}
	}
	l.n++
	l.in[v]++
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.n--
		if l.in[v]--; l.in[v] == 0 {
			delete(l.in, v)
		}
	}), nil
}

// item is one block of a batch; its bytes are those of the request's body.
type item struct {
	name   holdfast.Name
	header wire.BlockHeader
	sealed []byte
}

// readBatch reads a body of at most size bytes and checks all that can be checked of its blocks without
// the journal.
func (s *Server) readBatch(w http.ResponseWriter, r *http.Request, ses *session, size int64) ([]item, error) {
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(slowGrace + time.Duration(size)*time.Second/slowRate))
	raw := make([]byte, size)
	n, err := io.ReadFull(r.Body, raw)
	if err == io.ErrUnexpectedEOF && r.ContentLength < 0 {
		err = nil // its length was not announced
	}
	if err == nil && n == len(raw) {
		if m, _ := r.Body.Read(make([]byte, 1)); m > 0 {
			return nil, tooLarge(holdfast.MaxBatch)
		}
	}
	rc.SetReadDeadline(time.Time{})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBody, err)
	}
	raw = raw[:n]

	var batch []item
	var checked holdfast.SessionID // the last session that was looked up
	links := 0
	for rest := raw; len(rest) > 0; {
		var f wire.Frame
		if f, rest, err = wire.NextFrame(rest); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: the last one is cut", wire.ErrFrame)
			}
			return nil, err
		}
		if f.Status != wire.FrameBlock {
			return nil, fmt.Errorf("%w: status %d in an upload", wire.ErrFrame, f.Status)
		}
		h, _, err := wire.ParseBlockHeader(f.Sealed)
		if err != nil {
			return nil, fmt.Errorf("block %s: %w", f.Name, err)
		}
		if links += len(h.Links); links > holdfast.MaxBatchLinks || len(batch) == holdfast.MaxBatchBlocks {
			return nil, refusal(wire.CodeTooLarge, "A batch may have %d blocks and %d links at most.", holdfast.MaxBatchBlocks, holdfast.MaxBatchLinks)
		}
		if h.Session != ses.id && h.Session != checked {
			// Sealed under an earlier session of the same run, before the service was restarted. Its wrap
			// must be durable (JOURNAL 21).
			v, ok, err := s.j.Acked().Session(h.Session)
			if err != nil {
				return nil, err
			}
			if !ok || v.Vault != ses.vault || v.Group != ses.group || v.Signer != ses.signer {
				return nil, refusal(wire.CodeBadRequest, "Block %s is sealed under a session that this machine did not open.", f.Name)
			}
			checked = h.Session
		}
		batch = append(batch, item{f.Name, h, f.Sealed})
	}
	if len(batch) == 0 {
		return nil, refusal(wire.CodeBadRequest, "The batch is empty.")
	}
	return batch, nil
}
