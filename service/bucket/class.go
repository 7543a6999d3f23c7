package bucket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

// Op is a call of Bucket.
type Op string

// The calls.
const (
	OpPut    Op = "put"
	OpGet    Op = "get"
	OpList   Op = "list"
	OpDelete Op = "delete"
	OpSwap   Op = "swap"
	OpNow    Op = "now"
)

// Ops is all of them.
var Ops = []Op{OpPut, OpGet, OpList, OpDelete, OpSwap, OpNow}

// Writes reports whether the call changes the store.
func (o Op) Writes() bool { return o == OpPut || o == OpDelete || o == OpSwap }

// Class says what kind of outcome a call had: what decides whether and how it is tried again. The table in
// docs/storage.md says which errors are in each, and what is done.
type Class string

// The classes. The first three are answers; the others are trouble.
const (
	ClassOK       Class = "ok"
	ClassNotFound Class = "not_found" // ErrNotFound
	ClassRefused  Class = "condition" // ErrChanged, ErrShort: the call was understood, and what it asked for is not so

	ClassServer     Class = "server"     // the store failed: InternalError and other 5xx, an I/O error of the disk
	ClassBusy       Class = "busy"       // the store asks to slow down: SlowDown, 503, 429
	ClassTimeout    Class = "timeout"    // no answer before the deadline
	ClassConnection Class = "connection" // not reached, or the connection broke
	ClassCorrupt    Class = "corrupt"    // what arrived is not what was sent; one way or the other
	ClassDenied     Class = "denied"     // credentials: none, wrong, expired, without the right
	ClassClock      Class = "clock"      // the store refuses our clock
	ClassFull       Class = "full"       // no room in the store
	ClassConfig     Class = "config"     // no such bucket, another region, a request that the store does not know
	ClassOpen       Class = "open"       // not sent: the breaker is open (package steady)
	ClassCanceled   Class = "canceled"   // the caller gave up; says nothing about the store
)

// Classes is all of them.
var Classes = []Class{
	ClassOK, ClassNotFound, ClassRefused, ClassServer, ClassBusy, ClassTimeout, ClassConnection, ClassCorrupt,
	ClassDenied, ClassClock, ClassFull, ClassConfig, ClassOpen, ClassCanceled,
}

// Answer reports whether a call with this outcome was answered by the store as it should be.
func (c Class) Answer() bool { return c == ClassOK || c == ClassNotFound || c == ClassRefused }

// Error is an error of a known class. Implementations return it, so that ClassOf need not guess.
type Error struct {
	Class Class
	After time.Duration // the store asked to wait that long; 0 if it did not
	Err   error
}

// Error is part of error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap is for package errors.
func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of what a call returned.
func ClassOf(err error) Class {
	var e *Error
	var n net.Error
	var errno syscall.Errno
	switch {
	case err == nil:
		return ClassOK
	case errors.As(err, &e):
		return e.Class
	case errors.Is(err, ErrNotFound):
		return ClassNotFound
	case errors.Is(err, ErrChanged), errors.Is(err, ErrShort), errors.Is(err, ErrKey):
		return ClassRefused
	case errors.Is(err, context.Canceled):
		return ClassCanceled
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &n) && n.Timeout():
		return ClassTimeout
	case errors.As(err, &errno): // before what is below: an Errno is a net.Error as well
		return classOfErrno(errno)
	case errors.As(err, &n):
		return ClassConnection
	}
	return ClassServer
}

func classOfErrno(e syscall.Errno) Class {
	switch e {
	case syscall.ENOSPC, syscall.EDQUOT:
		return ClassFull
	case syscall.EACCES, syscall.EPERM:
		return ClassDenied
	case syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.ENETDOWN:
		return ClassConnection
	}
	return ClassServer
}

// ErrDown reports a call that was not sent because the store has answered nothing for a while (package steady).
var ErrDown error = &Error{Class: ClassOpen, Err: errors.New("the store has been failing and is not asked just now")}

type freshKey struct{}

// Fresh returns a ctx whose calls go over connections that no call used before: one that is stuck, or led to a
// part of the store that fails, is left behind. Stores without connections ignore it.
func Fresh(ctx context.Context) context.Context { return context.WithValue(ctx, freshKey{}, true) }

// IsFresh reports whether ctx comes from Fresh.
func IsFresh(ctx context.Context) bool { f, _ := ctx.Value(freshKey{}).(bool); return f }

// ErrSpent reports a call that was not sent because it would have doubled one that is under way, and the budget for
// doubling is spent (Hedge).
var ErrSpent = fmt.Errorf("not sent beside a slow request: %w", &Error{Class: ClassOpen, Err: errors.New("the budget for doubling requests is spent")})

type hedgeKey struct{}

// Hedge returns a ctx for the second of two ways to one end, begun because the first is slow (Paced.SlowAfter). It
// goes over a fresh connection. A Paced store takes each such call from its budget, makes one attempt, and refuses it
// with ErrSpent if nothing is left; others ignore it.
func Hedge(ctx context.Context) context.Context {
	return context.WithValue(Fresh(ctx), hedgeKey{}, true)
}

// IsHedge reports whether ctx comes from Hedge.
func IsHedge(ctx context.Context) bool { h, _ := ctx.Value(hedgeKey{}).(bool); return h }

// Paced is a Bucket that watches its own requests (package steady).
type Paced interface {
	Bucket
	// SlowAfter returns after which time a call that has not answered is unusually slow, so that another way
	// to the same end should be begun beside it, with a ctx from Hedge; 0 if the budget for such doubling is
	// spent. n is the size of what the call moves, bytes. Get and List do so by themselves.
	SlowAfter(op Op, n int64) time.Duration
	// Down returns since when the store has answered nothing, and the newest failure; the zero time if it answers.
	Down() (since time.Time, cause error)
}
