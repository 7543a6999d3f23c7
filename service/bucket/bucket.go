// Package bucket says what the service needs of the place that holds its journal: a few calls that a
// directory, an S3-compatible store and a simulation can all keep.
//
// # What is assumed of a store
//
//   - Put makes the whole object appear at once or not at all, and what it acknowledged is durable.
//   - Get and List begun after an acknowledged Put show it (probed, never trusted for what is deleted).
//   - List returns keys in the order of their bytes.
//   - Swap is atomic among all processes. It is used for the epoch object and nothing else.
//
// # What is not assumed
//
//   - That a failed call did nothing. An error of Put, Swap or Delete that is not one of the errors below
//     means unknown: it may have been applied, and may still be applied later.
//   - That bytes come back as they were written: everything read is checked against a hash by the caller.
//   - That a key that was put once has one version: the caller never puts different bytes under one key.
//
// docs/storage.md argues from these.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// MaxKey bounds a key in bytes; MaxObject bounds an object.
const (
	MaxKey    = 512
	MaxObject = 128 << 20
)

// MaxList bounds the objects of one List.
const MaxList = 1000

// Errors that a caller acts on. Of the errors of Put, Swap and Delete, only these mean that nothing was
// done and nothing will be.
var (
	ErrNotFound = errors.New("no such object")            // Get
	ErrChanged  = errors.New("object is not as expected") // Swap: the object is not old; nothing was done
	ErrShort    = errors.New("object is too short")       // Get: the range does not lie in the object
	ErrKey      = errors.New("not a key")                 // every call: see CheckKey
)

// ErrClosed is wrapped by every call on a Bucket that its process has done with. Trying again is of no use.
var ErrClosed error = &Error{Class: ClassCanceled, Err: errors.New("the bucket is closed")}

// Object is one line of a list.
type Object struct {
	Key  string
	Size int64 // bytes
}

// Bucket is the store. It is safe for concurrent use. A call returns soon after ctx ends (but a local
// disk that hangs hangs its callers); what it began may go on.
type Bucket interface {
	// Put stores body under key, replacing what is there. body must not change until Put returns.
	Put(ctx context.Context, key string, body []byte) error
	// Get returns exactly n bytes from off, or everything from off if n is negative. ErrNotFound, ErrShort.
	Get(ctx context.Context, key string, off, n int64) ([]byte, error)
	// List returns up to max objects (0 or more than MaxList: MaxList) whose keys begin with prefix and
	// come after after, in order of their keys. Fewer than that means that there are no more.
	List(ctx context.Context, prefix, after string, max int) ([]Object, error)
	// Delete removes the object; it is no error if there is none.
	Delete(ctx context.Context, key string) error
	// Swap replaces the object by new if its content is exactly old (nil: if there is none), otherwise
	// it returns ErrChanged. new is not nil.
	Swap(ctx context.Context, key string, old, new []byte) error
	// Now returns the store's clock.
	Now(ctx context.Context) (time.Time, error)
}

// OnDisk is a Bucket whose objects lie on a disk of this machine, which can become full.
type OnDisk interface {
	// Disk returns a directory on that disk.
	Disk() string
}

// CheckKey refuses, with an error that wraps ErrKey, what is not a key: components of a-z, 0-9, '-', '_'
// and '.' (not first), joined by '/'; at most MaxKey bytes, 200 a component. No key of a bucket may be
// another's beginning up to a '/': a directory cannot hold both.
func CheckKey(key string) error {
	if len(key) > MaxKey {
		return fmt.Errorf("%w: %d bytes", ErrKey, len(key))
	}
	for c := range strings.SplitSeq(key, "/") {
		if c == "" || len(c) > 200 || c[0] == '.' || strings.ContainsFunc(c, notKey) {
			return fmt.Errorf("%w: %.100q", ErrKey, key)
		}
	}
	return nil
}

func notKey(r rune) bool {
	return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.')
}

// ListAll calls fn for every object whose key begins with prefix and comes after after, in order.
func ListAll(ctx context.Context, b Bucket, prefix, after string, fn func(Object) error) error {
	for last := false; !last; {
		var page []Object
		var err error
		if page, last, err = ListPage(ctx, b, prefix, after); err != nil {
			return err
		}
		for _, o := range page {
			after = o.Key
			if err := fn(o); err != nil {
				return err
			}
		}
	}
	return nil
}

// ListPage returns the first of what ListAll calls its fn for, at most MaxList, and whether that is all. It checks the order.
func ListPage(ctx context.Context, b Bucket, prefix, after string) (page []Object, last bool, err error) {
	if page, err = b.List(ctx, prefix, after, MaxList); err != nil {
		return nil, false, err
	}
	for _, o := range page {
		if o.Key <= after || !strings.HasPrefix(o.Key, prefix) {
			return nil, false, fmt.Errorf("list %q: the store answered %.100q after %.100q", prefix, o.Key, after)
		}
		after = o.Key
	}
	return page, len(page) < MaxList, nil
}
