// Package systemd tells the process that started the service how it is: that it recovers, serves, ends, and that
// it lives. It speaks the protocol of sd_notify(3), which other supervisors understand as well; where nobody listens
// (NOTIFY_SOCKET is not set) every call does nothing.
//
// The watchdog is fed by Watch, and only while the service proves that it lives: a process that is there but answers
// nobody is ended by systemd and started anew. A bucket that does not answer is no reason for that.
package systemd

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Extension is how much time Starting asks for each time that it is called.
const Extension = 5 * time.Minute

// A heart beats so many times in what systemd waits for one beat, and each proof of life has as long as a beat takes.
const beats = 4

// patience is how long a message may take. Tests shorten it.
var patience = 5 * time.Second

// Notifier tells how the service is. It is safe for concurrent use.
type Notifier struct {
	log  *slog.Logger
	turn chan struct{} // holds a token while a message is being sent
}

// New returns a Notifier; log is told what cannot be sent.
func New(log *slog.Logger) *Notifier { return &Notifier{log, make(chan struct{}, 1)} }

// send sends lines. That nobody takes them stops nothing: systemd will find out in its own way.
func (n *Notifier) send(lines ...string) {
	late := time.NewTimer(patience)
	defer late.Stop()
	sent := make(chan error, 1)
	select {
	case n.turn <- struct{}{}:
		go func() {
			defer func() { <-n.turn }()
			_, err := daemon.SdNotify(false, strings.Join(lines, "\n"))
			sent <- err
		}()
	case <-late.C: // one before it is stuck
		n.log.Warn("systemd was not told how the service is: it takes no messages")
		return
	}
	select {
	case err := <-sent:
		if err != nil {
			n.log.Warn("systemd was not told how the service is", "err", err)
		}
	case <-late.C:
		n.log.Warn("systemd was not told how the service is: it takes no messages")
	}
}

// status is a line that `systemctl status` shows.
func status(text string) string {
	return "STATUS=" + strings.ReplaceAll(text, "\n", " ")
}

// Starting says what the start is at, and asks for Extension more. It is called when there is progress, and only then.
func (n *Notifier) Starting(text string) {
	n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", Extension.Microseconds()), status(text))
}

// Ready says that the service serves.
func (n *Notifier) Ready(text string) { n.send(daemon.SdNotifyReady, status(text)) }

// Status says how the service is.
func (n *Notifier) Status(text string) { n.send(status(text)) }

// Stopping says that the service ends, and why.
func (n *Notifier) Stopping(text string) { n.send(daemon.SdNotifyStopping, status(text)) }

// Watch feeds the watchdog until ctx ends, if there is one: each time that alive returns nil within its ctx. Beside it
// states, if it changed, what state returns.
func (n *Notifier) Watch(ctx context.Context, alive func(ctx context.Context) error, state func() string) {
	said := state()
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("the watchdog of systemd is not fed", "err", err)
	}
	watched := every > 0
	if every /= beats; !watched {
		every = 10 * time.Second // only the state
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if watched {
			n.beat(ctx, every, alive)
		}
		if now := state(); now != said {
			n.Status(now)
			said = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// beat asks once whether the service lives, and says so.
func (n *Notifier) beat(ctx context.Context, limit time.Duration, alive func(ctx context.Context) error) {
	c, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := alive(c)
	switch {
	case err == nil:
		n.send(daemon.SdNotifyWatchdog)
	case ctx.Err() == nil:
		n.log.Error("the service does not prove that it lives; systemd will start it anew if that goes on", "err", err)
	}
}
