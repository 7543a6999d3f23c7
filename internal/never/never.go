// Package never is the one place for events that must not happen: a reference count below zero, a segment with
// two contents, the view's disk full or failing. After one of them nothing that the process believes can be relied
// on, so that it acknowledges nothing more, deletes nothing more, and is not started again before a person has looked.
//
//	Happened   writes a record of the event, says it on standard error and ends the process with ExitStatus, at
//	           once: no deferred function runs, nothing is drained, no other goroutine goes on meanwhile.
//	Install    prepares the record's file at the start of a process, and says if a stop stands in it.
//	Read       tells a person, or holdfastd why, of the stops that are recorded.
//	Resume     records who looked and why the service may start again.
//
// # The file
//
// FileName in the data directory has FileSize bytes, which are written and synced before they are needed: a full disk
// takes nothing away from it, since a record is written in place. (A file system that copies on write may refuse
// all the same; then standard error has everything.) It consists of slots of slotSize bytes, written in turns. A
// slot is text: a line
//
//	holdfast-stop 1 SEQ LENGTH SHA256
//
// with the sequence number of the entry, the length in bytes and the SHA-256 in hex of the JSON after it, the JSON, and
// spaces up to the end. An entry is a stop or the resumption of the stop before it. The entry with the highest number
// says whether a stop stands. A slot that is neither blank nor whole is a write that was cut off: if it is the one that
// was next, a stop stands whose record cannot be read; its ID is Unreadable.
package never

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// ExitStatus is how a process ends that a never event stopped, and one that finds such a stop unresolved. The
// service manager is told not to start it again.
const ExitStatus = 5

// Event is something that must not happen.
type Event struct {
	What      string // happened, with the error if there is one
	Where     string // the object, path or part that it happened to
	Invariant string // that is broken
	Todo      string // what a person should do; it may be several sentences
}

func (e Event) String() string { return fmt.Sprintf("%s: %s", e.Where, e.What) }

// Stop is the record of a never event.
type Stop struct {
	ID        string    `json:"id"`
	Time      time.Time `json:"time"` // UTC
	What      string    `json:"what"`
	Where     string    `json:"where"`
	Invariant string    `json:"invariant"`
	Todo      string    `json:"todo"`
	Version   string    `json:"version"` // of the program
	Stack     string    `json:"stack"`   // of the goroutine that met the event, cut off where the slot ends
	// Resumed says who let the service start again; nil while the stop stands.
	Resumed *Resumption `json:"resumed,omitempty"`
}

// Resumption says who let the service start again after a stop, when and why.
type Resumption struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	Time   time.Time `json:"time"` // UTC
}

// ErrStands is wrapped by the error of Clear while a stop stands.
var ErrStands = errors.New("stopped by an event that must never happen")

var (
	installed atomic.Pointer[Recorder]
	caught    atomic.Pointer[func(Event)]
)

// Happened stops the process because of e. It does not return, unless a test has called Catch: whoever calls it
// returns an error afterwards as if it did. Without an installed Recorder it panics with e.
func Happened(e Event) {
	if fn := caught.Load(); fn != nil {
		(*fn)(e)
		return
	}
	if r := installed.Load(); r != nil {
		r.stop(e)
	}
	panic(e)
}

// Catch makes Happened call fn in place of ending the process, and return when fn does, until release is called.
// It is for tests; one at a time can catch. fn may be called by several goroutines at once.
func Catch(fn func(Event)) (release func()) {
	if !caught.CompareAndSwap(nil, &fn) {
		panic("never: somebody catches events already")
	}
	return func() { caught.CompareAndSwap(&fn, nil) }
}
