package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"holdfast/client/backup"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/client/seal"
	"holdfast/history"
	"holdfast/wire"
)

// Exit codes of holdfast.
const (
	exitComplete    = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnread      = 3 // archive made or restored, but some paths could not be read
	exitDamaged     = 4 // or not to be trusted
	exitUnavailable = 5
	exitInterrupted = 130
)

// codeError is an error with an exit code of its own. With err nil nothing more is said.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *codeError) Unwrap() error { return e.err }

// usage is an error of the person who typed the command.
func usage(format string, a ...any) error {
	return &codeError{exitUsage, fmt.Errorf(format, a...)}
}

// exit ends the command with a code after everything has been said.
func exit(code int) error {
	if code == exitComplete {
		return nil
	}
	return &codeError{code, nil}
}

// report says on w what went wrong, in one sentence, and returns the exit code.
func report(ctx context.Context, w io.Writer, err error) int {
	var code *codeError
	var away *remote.UnavailableError
	switch {
	case err == nil:
		return exitComplete
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintln(w, "holdfast: interrupted; what was done is kept, run the same command again to go on")
		return exitInterrupted
	case errors.As(err, &code):
		if code.err != nil {
			fmt.Fprintln(w, "holdfast: "+oneLine(code.Error()))
		}
		return code.code
	case errors.As(err, &away):
		fmt.Fprintln(w, "holdfast: "+oneLine(away.Error()))
		return exitUnavailable
	}
	switch wire.CodeOf(err) {
	case wire.CodeCapExceeded:
		fmt.Fprintln(w, "holdfast: "+oneLine(err.Error())+" What was uploaded is kept: run the same command then to go on.")
		return exitUnavailable
	case wire.CodeOutOfCredit:
		fmt.Fprintln(w, "holdfast: "+oneLine(err.Error())+"; pay, then run the same command again")
		return exitUnavailable
	}
	if errors.Is(err, seal.ErrOldKey) { // which says what to do
		fmt.Fprintln(w, "holdfast: "+oneLine(err.Error()))
		return exitFailed
	}
	fmt.Fprintln(w, "holdfast: "+oneLine(err.Error())+advice(err))
	if untrusted(err) || restore.Damaged(err) {
		return exitDamaged
	}
	return exitFailed
}

// untrusted reports whether err says that the service, or what answers in its place, is lying.
func untrusted(err error) bool {
	for _, e := range []error{
		wire.ErrServiceKey, wire.ErrTransport, remote.ErrProtocol, backup.ErrClock, backup.ErrHave, backup.ErrNotKept,
		history.ErrOrder, history.ErrHead, history.ErrSigner, history.ErrRights, history.ErrChain,
		history.ErrSignature, history.ErrTag, history.ErrFormat, history.ErrSeen,
		history.ErrRevoked, history.ErrNeedsOwner, history.ErrFrozen, history.ErrTooEarly, history.ErrKept, history.ErrJumped, history.ErrState,
		history.ErrPaid, history.ErrUnpaid,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// advice says what to do about an error whose text does not.
func advice(err error) string {
	if errors.Is(err, backup.ErrHave) { // in which there is a refusal as well
		return "; nothing was committed, tell the service's operator"
	}
	switch wire.CodeOf(err) {
	case "":
	case wire.CodeNeedsOwner:
		return " Sign it with the owner's key: --owner FILE, or --owner - to type the 24 words"
	default:
		return "" // the service's own sentence says it
	}
	switch {
	case errors.Is(err, wire.ErrServiceKey):
		return "; do not go on before its operator has told you why"
	case errors.Is(err, wire.ErrTransport):
		return "; something between this machine and the service breaks into the connection"
	case errors.Is(err, backup.ErrClock):
		return "; set the clock that is wrong, and if this machine's is right, do not believe the times that the service gives"
	case errors.Is(err, backup.ErrNotKept):
		return "; do not rely on this archive, `holdfast verify` tells which are whole; tell the service's operator"
	case restore.Damaged(err):
		return "; other archives may be whole, `holdfast verify` tells"
	case errors.Is(err, remote.ErrProtocol):
		return "; check the address, and whether this client is too old"
	case untrusted(err):
		return "; do not trust this service before its operator has explained that"
	}
	return ""
}
