package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"holdfast/client/archive"
	"holdfast/client/remote"
	"holdfast/client/restore"
	"holdfast/client/seal"
	"holdfast/history"
	"holdfast/wire"
)

// TestExitCodes holds the codes that README.md and the help promise.
func TestExitCodes(t *testing.T) {
	interrupted, cancel := context.WithCancel(context.Background())
	cancel()
	for _, x := range []struct {
		ctx  context.Context
		err  error
		code int
	}{
		{context.Background(), nil, 0},
		{context.Background(), errors.New("x"), 1},
		{context.Background(), restore.ErrNoArchive, 1},
		{context.Background(), &wire.Error{Code: wire.CodeForbidden, Message: "No"}, 1},
		{context.Background(), usage("x"), 2},
		{context.Background(), exit(exitUnread), 3},
		{context.Background(), fmt.Errorf("read: %w", &restore.BlockError{Err: seal.ErrDamaged}), 4},
		{context.Background(), fmt.Errorf("read: %w", archive.ErrDamaged), 4},
		{context.Background(), fmt.Errorf("read: %w", errors.Join(seal.ErrOldKey, seal.ErrDamaged)), 1},
		{context.Background(), fmt.Errorf("read: %w", wire.ErrServiceKey), 4},
		{context.Background(), fmt.Errorf("read: %w", history.ErrOrder), 4},
		{context.Background(), fmt.Errorf("read: %w", history.ErrTag), 4},
		{context.Background(), fmt.Errorf("open: %w", &remote.UnavailableError{Address: "a:1", Err: errors.New("x")}), 5},
		{context.Background(), fmt.Errorf("open: %w", &remote.UnavailableError{Address: "a:1", Err: &wire.Error{Code: wire.CodeReadOnly, Message: "Closed\nfor today"}}), 5},
		{context.Background(), fmt.Errorf("open: %w", &wire.Error{Code: wire.CodeCapExceeded, Message: "No more today"}), 5},
		{context.Background(), fmt.Errorf("open: %w", &wire.Error{Code: wire.CodeOutOfCredit, Message: "Not\npaid"}), 5},
		{interrupted, fmt.Errorf("upload: %w", context.Canceled), 130},
		{interrupted, errors.New("disk full"), 1},
	} {
		var out bytes.Buffer
		if code := report(x.ctx, &out, x.err); code != x.code {
			t.Errorf("%v: exit %d, want %d", x.err, code, x.code)
		}
		if n := strings.Count(out.String(), "\n"); n > 1 || (n == 0) != (x.err == nil || x.code == exitUnread) {
			t.Errorf("%v: said %q", x.err, out.String())
		}
	}
}

// TestTerminalIsSafe: names from a disk or a service must not reach a terminal as they are.
func TestTerminalIsSafe(t *testing.T) {
	for _, s := range []string{"a\x1b[2Jb", "a\nb", "\xff", "\u202etxt.exe", "\"", "a\x7f", "\u009b2J"} {
		if q := quote(s); strings.ContainsAny(q, "\x1b\n\x7f") || strings.ContainsRune(q, '\u202e') || strings.ContainsRune(q, '\u009b') || q == s {
			t.Errorf("%q is shown as %q", s, q)
		}
	}
	for _, s := range []string{"a", "ä ö", "日本"} {
		if q := quote(s); q != s {
			t.Errorf("%q is shown as %q", s, q)
		}
	}
	if s := oneLine("a\x1b[2J\nb\u009b\u202e"); strings.ContainsAny(s, "\x1b\n") || strings.ContainsRune(s, '\u009b') || strings.ContainsRune(s, '\u202e') {
		t.Errorf("%q", s)
	}
}

func TestSeriesNames(t *testing.T) {
	for _, s := range []string{"", "a@b", "a\nb", " a", "a ", "\xff", strings.Repeat("x", 201)} {
		if checkSeries(s) == nil {
			t.Errorf("%q was taken", s)
		}
	}
	for _, s := range []string{"a", "home of Ada", "büro", strings.Repeat("x", 200)} {
		if err := checkSeries(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 bytes", 1: "1 byte", 1023: "1023 bytes", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1<<64 - 1: "16.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
