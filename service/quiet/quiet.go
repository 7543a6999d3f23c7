// Package quiet keeps the service's log from filling a disk, whatever clients, the bucket and the machine do, and for
// how long: a log that repeated one line is how the service before this one stopped.
//
// Lines are alike if they have the same level and message. Of those that come without a quiet Window between them, the
// first Burst are written at once, and from then on one line a Window: the newest, with how many there were. Then nobody
// misses that something happens, or that it goes on, and a year of it fits on any disk.
package quiet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// Burst is how many lines that are alike are written at once.
	Burst = 10
	// Window is how long others are then gathered into one line.
	Window = time.Minute
	// MaxMessages bounds the messages that are told apart. Ours are constants, and far fewer; those beyond count as alike.
	MaxMessages = 256
	// MaxValue bounds the value of an attribute, bytes: an error may quote what a store or a client said.
	MaxValue = 1 << 10
)

// New returns a logger that writes text to w, from that level on.
func New(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(&handler{
		out:   slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: short}),
		state: &state{lines: map[kind]*line{}},
	})
}

// kind is what lines that are alike have in common.
type kind struct {
	level   slog.Level
	message string
}

// state is shared by all handlers of one logger.
//
// When mu is free: each line in lines has a timer that will fire.
type state struct {
	mu    sync.Mutex
	lines map[kind]*line
}

// line counts lines that are alike.
type line struct {
	written int  // at once, since the last quiet Window
	left    int  // out, in this Window
	came    bool // one did, in this Window
	newest  slog.Record
	out     slog.Handler // of the newest
}

type handler struct {
	out   slog.Handler
	state *state
}

// Enabled is part of slog.Handler.
func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.out.Enabled(ctx, l) }

// WithAttrs is part of slog.Handler.
func (h *handler) WithAttrs(a []slog.Attr) slog.Handler {
	return &handler{h.out.WithAttrs(a), h.state}
}

// WithGroup is part of slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.out.WithGroup(name), h.state}
}

// Handle is part of slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	s := h.state
	k := kind{r.Level, r.Message}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lines[k]
	if l == nil && len(s.lines) >= MaxMessages {
		k = kind{level: slog.LevelError + 1} // that no message has
		l = s.lines[k]
	}
	if l == nil {
		l = &line{}
		s.lines[k] = l
		time.AfterFunc(Window, func() { s.over(k) })
	}
	l.came = true
	if l.written < Burst {
		l.written++
		return h.out.Handle(ctx, r)
	}
	l.left++
	l.newest, l.out = r.Clone(), h.out
	return nil
}

// over ends a Window: what was left out in it is said in one line. After a quiet one nothing is remembered.
func (s *state) over(k kind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.lines[k]
	if !l.came {
		delete(s.lines, k)
		return
	}
	if l.left > 0 {
		l.newest.AddAttrs(slog.Int("times", l.left))
		l.out.Handle(context.Background(), l.newest)
	}
	*l = line{written: l.written}
	time.AfterFunc(Window, func() { s.over(k) })
}

// short cuts values that are too long.
func short(_ []string, a slog.Attr) slog.Attr {
	var text string
	switch v := a.Value; v.Kind() {
	case slog.KindString:
		text = v.String()
	case slog.KindAny:
		text = fmt.Sprint(v.Any())
	default:
		return a
	}
	if len(text) <= MaxValue {
		return a
	}
	n := MaxValue
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return slog.String(a.Key, fmt.Sprintf("%s... (%d bytes more)", text[:n], len(text)-n))
}
