package serve

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

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
	{history.ErrFormat, wire.CodeBadRequest, ""},
	{history.ErrSignature, wire.CodeBadRequest, ""},
	{history.ErrSigner, wire.CodeBadRequest, ""},
	{view.ErrKeyTaken, wire.CodeBadRequest, ""},
	{view.ErrKind, wire.CodeBadRequest, ""},
	{view.ErrNoAccount, wire.CodeBadRequest, ""},
	{view.ErrNoVault, wire.CodeBadRequest, ""},
	{view.ErrDuplicate, wire.CodeBadRequest, ""},
	{wire.ErrFrame, wire.CodeBadRequest, ""},
	{wire.ErrBlock, wire.CodeBadRequest, ""},
	{wire.ErrTransport, wire.CodeBadRequest, ""},
	// It may next time: the line is not the client's fault.
	{errBody, wire.CodeBusy, "The body of the request did not arrive whole, or too slowly."},
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
	for _, x := range reasons {
		if errors.Is(err, x.err) {
			if x.code == wire.CodeBackendDown {
				s.log.Error("storage does not answer", "request", r.Pattern, "error", err)
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

// sentence makes a sentence of an error.
func sentence(err error) string {
	t := err.Error()
	return strings.ToUpper(t[:1]) + t[1:] + "."
}

func chain(l history.Link) *wire.Chain { return &wire.Chain{Seq: l.Seq, Prev: l.Prev.String()} }
