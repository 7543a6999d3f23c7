package journal

import (
	"context"
	"fmt"

	"holdfast/service/segment"
	"holdfast/service/view"
)

// Borrow waits until one of the segments that may be in memory is not, and has the caller take its place until giveBack
// is called: what a background job needs of memory, up to Target and a batch, is bounded together with them.
// There is one such place; who comes while it is lent waits. Appending goes on with one place less.
func (j *Journal) Borrow(ctx context.Context) (giveBack func(), err error) {
	l, err := j.borrow(ctx)
	if err != nil {
		return nil, err
	}
	return l.giveBack, nil
}

// loan is the place of a segment that was lent. It is over when it was given back, or a segment was sealed in it.
type loan struct {
	j    *Journal
	over bool // guarded by j.mu
}

func (j *Journal) borrow(ctx context.Context) (*loan, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for {
		if j.err != nil {
			return nil, j.err
		}
		if j.closing {
			return nil, fmt.Errorf("%w: %w", ErrStopped, ErrClosed)
		}
		if !j.lent && j.held < maxPending {
			j.lent, j.borrowing = true, false
			j.held++
			j.wakeBorrowers() // others who wait say so again
			return &loan{j: j}, nil
		}
		j.borrowing = !j.lent
		returned := j.returned
		j.mu.Unlock()
		err := error(nil)
		select {
		case <-returned:
		case <-j.stopped:
		case <-ctx.Done():
			err = ctx.Err()
		}
		j.mu.Lock()
		if err != nil {
			j.borrowing = false
			j.wakeBorrowers()
			j.maybeSeal()
			return nil, err
		}
	}
}

// giveBack ends the loan, if it is not over.
func (l *loan) giveBack() {
	l.j.mu.Lock()
	defer l.j.mu.Unlock()
	if l.over {
		return
	}
	l.over, l.j.lent = true, false
	l.j.giveBack()
	l.j.maybeSeal()
}

// giveBack notes that there is a segment less in memory. mu is held.
func (j *Journal) giveBack() {
	j.held--
	j.wakeBorrowers()
}

// wakeBorrowers has those who wait to borrow look again. mu is held.
func (j *Journal) wakeBorrowers() {
	close(j.returned)
	j.returned = make(chan struct{})
}

// appendAlone is Append into a segment of its own: b, to which blocks were added before, and which is sealed at once. What
// was appended before is sealed first; nothing else is appended meanwhile. The segment takes the place that l holds. If
// fn adds nothing, b is not used, and the loan goes on.
func (j *Journal) appendAlone(ctx context.Context, l *loan, b *segment.Builder, fn func(tx *Tx) error) (*Ticket, error) {
	if err := j.lockAlone(ctx); err != nil {
		return nil, err
	}
	defer j.mu.Unlock()
	p := &pending{b: b, layer: view.NewLayer(nil), durable: make(chan struct{}), acked: make(chan struct{})}
	empty := j.cur
	j.cur = p
	err := j.add(fn)
	j.reserved = false
	if err != nil || b.Records() == 0 {
		j.cur = empty
		j.makeRoom()
		return j.ticket(), err
	}
	p.lent = true
	l.over, j.lent = true, false
	j.free = append(j.free, empty.b)
	j.seal()
	t := j.ticket()
	if j.err != nil {
		return nil, j.err
	}
	return t, nil
}

// lockAlone returns with mu held, nothing in cur, and nobody else appending.
func (j *Journal) lockAlone(ctx context.Context) error {
	j.mu.Lock()
	j.reserved = true
	for {
		err := j.err
		if err == nil && j.closing {
			err = fmt.Errorf("%w: %w", ErrStopped, ErrClosed)
		}
		if err == nil {
			j.maybeSeal() // what is there, as soon as there is a place for it
			if j.cur.b.Records() == 0 {
				return nil
			}
			room := j.room
			j.mu.Unlock()
			select {
			case <-room:
			case <-j.stopped:
			case <-ctx.Done():
				err = ctx.Err()
			}
			j.mu.Lock()
		}
		if err != nil {
			j.reserved = false
			j.makeRoom()
			j.maybeSeal()
			j.mu.Unlock()
			return err
		}
	}
}
