package systemd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// supervisor listens as systemd does and returns what it is told, message by message.
func supervisor(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(time.Minute))
		b := make([]byte, 4096)
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("systemd was told nothing more: %v", err)
		}
		return string(b[:n])
	}
}

// TestMessages: each thing that systemd is told is in the form that sd_notify(3) gives, one message each.
func TestMessages(t *testing.T) {
	told := supervisor(t)
	n := New(slog.New(slog.DiscardHandler))
	for _, x := range []struct {
		say  func()
		want string
	}{
		{func() { n.Starting("replaying 3 of 9") }, "EXTEND_TIMEOUT_USEC=300000000\nSTATUS=replaying 3 of 9"},
		{func() { n.Ready("serving at :1") }, "READY=1\nSTATUS=serving at :1"},
		{func() { n.Status("two\nlines") }, "STATUS=two lines"},
		{func() { n.Stopping("told to end") }, "STOPPING=1\nSTATUS=told to end"},
	} {
		x.say()
		if got := told(); got != x.want {
			t.Errorf("%q, want %q", got, x.want)
		}
	}
}

// TestWatchdog: the watchdog is fed while the service proves that it lives, not while it does not, and again after;
// each proof has a deadline; a changed state is said.
func TestWatchdog(t *testing.T) {
	told := supervisor(t)
	t.Setenv("WATCHDOG_USEC", strconv.Itoa(20_000)) // a beat each 5 ms
	var log bytes.Buffer
	var dead atomic.Bool
	var state atomic.Value
	state.Store("serving")
	asked := make(chan struct{}, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		New(slog.New(slog.NewTextHandler(&log, nil))).Watch(ctx, func(ctx context.Context) error {
			if _, ok := ctx.Deadline(); !ok {
				t.Error("a proof of life may take for ever")
			}
			if dead.Load() {
				asked <- struct{}{}
				<-ctx.Done()
				return errors.New("stuck")
			}
			return nil
		}, func() string { return state.Load().(string) })
	}()
	for range 3 {
		if got := told(); got != "WATCHDOG=1" {
			t.Fatalf("a service that lives says %q", got)
		}
	}
	dead.Store(true)
	state.Store("dead") // said after the first beat that was not sent
	<-asked
	var before []string
	for {
		got := told()
		if got == "STATUS=dead" {
			break
		}
		before = append(before, got)
	}
	if slices.ContainsFunc(before, func(s string) bool { return s != "WATCHDOG=1" }) {
		t.Errorf("a service that lives says %q", before)
	}
	for range 5 { // nothing is said of these
		<-asked
	}
	dead.Store(false)
	if got := told(); got != "WATCHDOG=1" {
		t.Errorf("a service that lives again says %q", got)
	}
	cancel()
	<-ended
	if n := strings.Count(log.String(), "stuck"); n < 5 {
		t.Errorf("the log says %d times that the service does not live:\n%s", n, &log)
	}
}

// TestNoSupervisor: without systemd nothing happens, and nothing is asked of the service.
func TestNoSupervisor(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	var log bytes.Buffer
	n := New(slog.New(slog.NewTextHandler(&log, nil)))
	n.Ready("serving")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.Watch(ctx, func(context.Context) error { t.Error("asked without a watchdog"); return nil }, func() string { return "" })
	if log.Len() > 0 {
		t.Errorf("logged: %s", &log)
	}
}

// TestSupervisorGone: a socket that takes nothing is a line in the log and no more.
func TestSupervisorGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	var log bytes.Buffer
	New(slog.New(slog.NewTextHandler(&log, nil))).Ready("serving")
	if !strings.Contains(log.String(), "was not told") {
		t.Errorf("the log says %q", &log)
	}
}

// TestSupervisorStuck: a supervisor that listens and takes nothing holds up neither the service nor its end.
func TestSupervisorStuck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	// Fill what the kernel keeps for it.
	full, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for err == nil {
		full.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, err = full.Write([]byte("x"))
	}
	var log bytes.Buffer
	defer func(was time.Duration) { patience = was }(patience)
	patience = 50 * time.Millisecond
	n := New(slog.New(slog.NewTextHandler(&log, nil)))
	for range 2 { // one that is stuck, and one behind it
		n.send("STATUS=x")
	}
	if got := strings.Count(log.String(), "takes no messages"); got != 2 {
		t.Errorf("the log says so %d times:\n%s", got, &log)
	}
}
