package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
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
//	wait until the batches before it were appended, and append it, whole or not at all
//	give the memory back, and wait for the acknowledgement
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
	if err := s.taking(); err != nil {
		return err
	}

	var release func()
	a, err := ses.turns.enter(r.Context(), k, func() (err error) {
		ctx, cancel := context.WithTimeout(r.Context(), memoryPatience)
		defer cancel()
		release, err = s.uploads.acquire(ctx, ses.vault, size)
		if errors.Is(err, context.DeadlineExceeded) {
			err = &wire.Error{Code: wire.CodeBusy, Message: "The service is taking in as much as it can; try again in a moment.", RetryAfter: 2}
		}
		return err
	})
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
	if err := ses.turns.turn(r.Context(), a); err != nil {
		return err
	}
	var sum wire.Stored
	t, err := s.j.Append(r.Context(), func(tx *journal.Tx) error {
		sum = wire.Stored{}
		for _, b := range batch {
			err := tx.Stored(b.header.Session, b.name, b.header.Kind, b.header.Links, b.sealed)
			switch {
			case err == nil:
				sum.Stored++
			case errors.Is(err, view.ErrDuplicate):
				sum.Known++
			default:
				return fmt.Errorf("block %s: %w", b.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	appended = true
	ses.turns.done(a)
	release()
	if q.Get("flush") == "1" {
		s.j.Flush()
	}
	if err := t.Wait(r.Context()); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, sum)
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
