package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"holdfast"
	"holdfast/wire"
)

// What the service says of a block instead of sending it.
var (
	ErrAbsent  = errors.New("the service does not have this block")
	ErrDamaged = errors.New("the service's copy of this block is damaged")
)

const (
	fetchNames = 256 // names in one request
	fetchers   = 4   // requests under way at a time
)

// Fetch gets blocks of a group, several at a time and each request in bucket order, and calls fn for each
// distinct name: with the sealed bytes, or with an error that is ErrAbsent or ErrDamaged. The bytes are
// as the service sent them, not verified, and fn's to keep. fn is called from several goroutines; its
// error ends the fetch. Names that lie near one another in the bucket should be near in names.
func (c *Client) Fetch(ctx context.Context, group holdfast.GroupID, names []holdfast.Name, fn func(name holdfast.Name, sealed []byte, err error) error) error {
	return c.FetchCopy(ctx, group, names, 0, fn)
}

// FetchCopy is Fetch of another copy of each block, for whom the newest (0) does not do: a name may have been stored
// more than once, after a machine of the group was revoked. 1 is the copy that was stored first; there may be
// up to wire.MaxCopy of them. ErrAbsent says that there are fewer.
func (c *Client) FetchCopy(ctx context.Context, group holdfast.GroupID, names []holdfast.Name, number int, fn func(name holdfast.Name, sealed []byte, err error) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan []holdfast.Name)
	var wg sync.WaitGroup
	for range min(fetchers, (len(names)+fetchNames-1)/fetchNames) {
		wg.Go(func() {
			for part := range work {
				if err := c.fetch(ctx, group, part, number, fn); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
feed:
	for len(names) > 0 {
		n := min(fetchNames, len(names))
		select {
		case work <- names[:n]:
			names = names[n:]
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

// FetchAny is Fetch for whom any copy of a block does that is good. use gets the newest copy of each, and another
// as long as it says what is bad about the last one; an err of it ends the fetch. Of a block of which no copy will do, none
// gets the size of the last one, bytes, and what is bad about the newest. Both are called from several goroutines.
func (c *Client) FetchAny(ctx context.Context, group holdfast.GroupID, names []holdfast.Name, use func(name holdfast.Name, sealed []byte) (bad, err error), none func(name holdfast.Name, size int, newest error) error) error {
	var mu sync.Mutex
	newest := map[holdfast.Name]error{} // what is bad about it
	for number := 0; len(names) > 0; number++ {
		var again []holdfast.Name
		err := c.FetchCopy(ctx, group, names, number, func(name holdfast.Name, sealed []byte, bad error) (err error) {
			if bad == nil {
				bad, err = use(name, sealed)
			}
			if bad == nil || err != nil {
				return err
			}
			mu.Lock()
			if number == 0 {
				newest[name] = bad
			}
			more := number < wire.MaxCopy && bad != ErrAbsent
			if more {
				again = append(again, name)
			}
			bad = newest[name]
			mu.Unlock()
			if more {
				return nil
			}
			return none(name, len(sealed), bad)
		})
		if err != nil {
			return err
		}
		names = again
	}
	return nil
}

// fetch gets the blocks of one request, and asks again for those that a broken answer left out.
func (c *Client) fetch(ctx context.Context, group holdfast.GroupID, names []holdfast.Name, number int, fn func(holdfast.Name, []byte, error) error) error {
	open := make(map[holdfast.Name]bool, len(names))
	for _, n := range names {
		open[n] = true
	}
	path := strings.Replace(wire.PathFetch, "{group}", group.String(), 1)
	if number > 0 {
		path += fmt.Sprintf("?copy=%d", number)
	}
	return c.persist(ctx, func(ctx context.Context, w *watch) error {
		rest := make([]holdfast.Name, 0, len(open))
		for _, n := range names { // in the caller's order
			if open[n] && (len(rest) == 0 || rest[len(rest)-1] != n) {
				rest = append(rest, n)
			}
		}
		if len(rest) == 0 {
			return nil
		}
		r, err := c.attempt(ctx, http.MethodPost, path, wire.AppendNames(nil, rest), w)
		if err != nil {
			return err
		}
		defer r.Close()
		for len(open) > 0 {
			f, err := wire.ReadFrame(r)
			if err == io.EOF {
				return fmt.Errorf("read blocks: the answer ended early, blocks still to come: %d", len(open))
			}
			if errors.Is(err, wire.ErrFrame) {
				return fmt.Errorf("read blocks: %w: %w", ErrProtocol, err)
			}
			if err != nil {
				return fmt.Errorf("read blocks: %w", err)
			}
			if !open[f.Name] {
				return fmt.Errorf("read blocks: %w: a block that was not asked for", ErrProtocol)
			}
			delete(open, f.Name)
			w.step()
			var ferr error
			switch f.Status {
			case wire.FrameAbsent:
				ferr = ErrAbsent
			case wire.FrameDamaged:
				ferr = ErrDamaged
			}
			if err := fn(f.Name, f.Sealed, ferr); err != nil {
				return ownError{err}
			}
		}
		// To the end, so that the connection can be used again.
		io.Copy(io.Discard, io.LimitReader(r, 1))
		return nil
	})
}
