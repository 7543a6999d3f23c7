package serve

import (
	"context"
	"errors"
	"time"

	"holdfast/service/journal"
	"holdfast/wire"
)

const (
	// waitPatience is how long a request that was taken waits for the bucket once that is in trouble. What it added stays
	// with the journal, which goes on trying; asked again, the client is told what became of it.
	waitPatience = 20 * time.Second
	// downRetry is when a client that was told backend_down should ask again, seconds.
	downRetry = 5
	// downLog is how often it is logged that a bucket does not answer readers.
	downLog = time.Minute
)

// down returns what clients are told while nothing can be made durable, nil if it can.
func (s *Server) down() error {
	since, _ := s.j.Trouble()
	if since.IsZero() {
		return nil
	}
	return &wire.Error{Code: wire.CodeBackendDown, Message: "The service cannot reach its storage at the moment; it goes on trying.", RetryAfter: downRetry}
}

// bounded returns a ctx for what waits for the journal. It ends, with what down says as its cause, when the bucket is
// in trouble and that has waited for waitPatience.
func (s *Server) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	var t *time.Timer
	armed := make(chan struct{})
	t = time.AfterFunc(waitPatience, func() {
		<-armed
		if err := s.down(); err != nil {
			cancel(err)
		} else if ctx.Err() == nil {
			t.Reset(time.Second)
		}
	})
	close(armed)
	return ctx, func() {
		cancel(nil)
		t.Stop()
	}
}

// overdue replaces the error of a ctx that bounded ended by what the client is told.
func overdue(ctx context.Context, err error) error {
	var e *wire.Error
	if err != nil && errors.As(context.Cause(ctx), &e) && errors.Is(err, ctx.Err()) {
		return e
	}
	return err
}

// append is Append of the journal, bounded.
func (s *Server) append(ctx context.Context, fn func(*journal.Tx) error) (*journal.Ticket, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	t, err := s.j.Append(ctx, fn)
	return t, overdue(ctx, err)
}

// wait waits for a ticket, bounded.
func (s *Server) wait(ctx context.Context, t *journal.Ticket) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	return overdue(ctx, t.Wait(ctx))
}
