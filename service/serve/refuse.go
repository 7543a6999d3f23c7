package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"holdfast/history"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/wire"
)

func refusal(code wire.Code, format string, args ...any) *wire.Error {
	return &wire.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// errBackend marks an error of reading from the bucket.
var errBackend = errors.New("the bucket does not answer")

// reasons say how the errors of other packages are told to clients. The first that fits counts.
var reasons = []struct {
	err  error
	code wire.Code
	text string // "" tells the error itself
}{
	{journal.ErrStopped, wire.CodeStopped, "The service has stopped and takes nothing until its operator has looked."},
	{journal.ErrLost, wire.CodeStopped, "This process no longer owns the service's data."},
	{journal.ErrTooLarge, wire.CodeTooLarge, "This is more than the service takes in one request."},
	{view.ErrTokenUnknown, wire.CodeTokenUnknown, "This service did not issue that token; check that it is copied whole and meant for this service."},
	{view.ErrTokenUsed, wire.CodeTokenUsed, "That token was redeemed before, by another key; ask the operator for a new one."},
	{view.ErrTokenExpired, wire.CodeTokenExpired, "That token is older than 24 hours; ask the operator for a new one."},
	{view.ErrNoSession, wire.CodeSessionGone, "That session is not open; open a new one."},
	{history.ErrRevoked, wire.CodeRevoked, "This machine's key was revoked by the vault's owner."},
	{history.ErrNeedsOwner, wire.CodeNeedsOwner, ""},
	{history.ErrFrozen, wire.CodeFrozen, "Deleting is frozen in this vault; only the owner can thaw it."},
	{history.ErrTooEarly, wire.CodeTooEarly, ""},
	{history.ErrRights, wire.CodeForbidden, ""},
	{history.ErrState, wire.CodeBadRequest, ""},
	{history.ErrKept, wire.CodeBadRequest, ""},
	{history.ErrJumped, wire.CodeNeedsOwner, ""},
	{history.ErrUnpaid, wire.CodeOutOfCredit, "The account has no credit; what lapsed can be brought back as soon as it is paid."},
	{history.ErrPaid, wire.CodeBadRequest, ""},
	{history.ErrFormat, wire.CodeBadRequest, ""},
	{history.ErrSignature, wire.CodeBadRequest, ""},
	{history.ErrSigner, wire.CodeBadRequest, ""},
	{view.ErrKeyTaken, wire.CodeBadRequest, "That machine's connection key is known already, from another account or vault; let the machine make a new key."},
	{view.ErrKind, wire.CodeBadRequest, ""},
	{view.ErrNoAccount, wire.CodeBadRequest, ""},
	{view.ErrNoVault, wire.CodeBadRequest, ""},
	{view.ErrDuplicate, wire.CodeBadRequest, ""},
	{wire.ErrFrame, wire.CodeBadRequest, ""},
	{wire.ErrBlock, wire.CodeBadRequest, ""},
	{wire.ErrTransport, wire.CodeBadRequest, ""},
	// It may next time: the line is not the client's fault.
	{errBody, wire.CodeBusy, "The body of the request did not arrive whole, or too slowly."},
	{errCut, wire.CodeBusy, "The service is short of memory and this request was slow; try again in a moment."},
	{errBackend, wire.CodeBackendDown, "The service cannot reach its storage at the moment."},
}

// explain turns an error into what the client is told, and logs what the operator must see.
func (s *Server) explain(r *http.Request, err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	var stale *history.StaleError
	if errors.As(err, &stale) {
		e := refusal(wire.CodeStaleChain, "This machine's chain of records stands at %d; sign the record again after that.", stale.Want.Seq)
		e.Chain = chain(stale.Want)
		return e
	}
	if errors.Is(err, history.ErrSeen) {
		// Either this process has been replaced and does not know yet, or the tail of its journal was
		// hidden from it when it started (JOURNAL 9), or the client invents heads.
		if s.behind.CompareAndSwap(false, true) {
			s.log.Error("a client cites a head that this journal does not have; if this process is the only one, segments are missing from the bucket's list", "error", err)
		}
		return refusal(wire.CodeBehind, "This machine was shown a head of the vault's history that the service does not have.")
	}
	var missing *view.MissingError
	if errors.As(err, &missing) {
		e := refusal(wire.CodeMissing, "Blocks that are needed are not there; send them first.")
		for _, n := range missing.Names[:min(len(missing.Names), wire.MaxMissing)] {
			e.Missing = append(e.Missing, n.String())
		}
		return e
	}
	var full *view.CapError
	if errors.As(err, &full) {
		return capExceeded(full)
	}
	for _, x := range reasons {
		if errors.Is(err, x.err) {
			if x.code == wire.CodeBackendDown {
				now, last := time.Now().UnixNano(), s.unread.Load()
				if time.Duration(now-last) >= downLog && s.unread.CompareAndSwap(last, now) {
					s.log.Error("storage does not answer", "request", r.Pattern, "error", err)
				}
				if down := s.down(); errors.As(down, &e) {
					return e
				}
			}
			if x.text != "" {
				return refusal(x.code, "%s", x.text)
			}
			return refusal(x.code, "%s", sentence(err))
		}
	}
	if r.Context().Err() != nil || errors.Is(err, context.Canceled) {
		return refusal(wire.CodeInternal, "The request was abandoned.") // nobody is there to read it
	}
	s.log.Error("request failed", "request", r.Pattern, "error", err)
	return refusal(wire.CodeInternal, "The service failed unexpectedly; its log says why.")
}

// capExceeded tells a machine what it may store a day, what it did, and when it may go on.
func capExceeded(e *view.CapError) *wire.Error {
	c := &wire.Cap{
		Bytes: e.Cap.Bytes, Blocks: e.Cap.Blocks, UsedBytes: e.Used.Bytes, UsedBlocks: e.Used.Blocks,
		Resets: time.UnixMilli(e.Resets).UTC(),
	}
	var may []string
	if c.Bytes > 0 {
		may = append(may, fmt.Sprintf("%d bytes, of which %d are used", c.Bytes, c.UsedBytes))
	}
	if c.Blocks > 0 {
		may = append(may, fmt.Sprintf("%d blocks, of which %d are used", c.Blocks, c.UsedBlocks))
	}
	r := refusal(wire.CodeCapExceeded, "This machine may store %s today, and may go on at %s.",
		strings.Join(may, ", and "), c.Resets.Format(time.RFC3339))
	r.Cap = c
	return r
}

// sentence makes a sentence of an error.
func sentence(err error) string {
	t := err.Error()
	return strings.ToUpper(t[:1]) + t[1:] + "."
}

func chain(l history.Link) *wire.Chain { return &wire.Chain{Seq: l.Seq, Prev: l.Prev.String()} }
