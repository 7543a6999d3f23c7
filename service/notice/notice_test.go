package notice

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/wire"
)

// TestCheck: what can stand in a notice, to the byte.
func TestCheck(t *testing.T) {
	for _, text := range []string{"x", "Maintenance until 12:00 UTC. Bäume fällen 树.", strings.Repeat("x", wire.MaxNotice)} {
		if err := Check(text); err != nil {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	for _, text := range []string{
		"", " ", " x", "x ", "x\n", "a\nb", "a\tb", "\x1b[31mred", "a\x00b", "a\u202eb", "a\u200bb", "a\u0085b", "\xff", strings.Repeat("x", wire.MaxNotice+1),
	} {
		if err := Check(text); err == nil {
			t.Errorf("%.20q is taken", text)
		}
	}
}

// TestFile: what is set is read, replaced and cleared; what somebody else put there is not shown.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	reads := func(want string) {
		t.Helper()
		if got, err := Read(dir); got != want || err != nil {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	reads("")
	if err := Clear(dir); err != nil {
		t.Errorf("clear nothing: %v", err)
	}
	for _, text := range []string{"one", strings.Repeat("x", wire.MaxNotice)} {
		if err := Set(dir, text); err != nil {
			t.Fatal(err)
		}
		reads(text)
	}
	if err := Set(dir, "a\nb"); err == nil {
		t.Error("two lines are set")
	}
	reads(strings.Repeat("x", wire.MaxNotice))
	if err := Clear(dir); err != nil {
		t.Fatal(err)
	}
	reads("")
	path := filepath.Join(dir, FileName)
	for _, raw := range []string{"", "\n", "a\nb\n", "\x1b[2J\n", strings.Repeat("x", wire.MaxNotice+1) + "\n", strings.Repeat("x", 10<<20)} {
		if err := os.WriteFile(path, []byte(raw), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(dir); got != "" || err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%.20q is read as %.20q, %v", raw, got, err)
		}
	}
}

// TestBoard: a running service says within a second what another process set, and complains once of what it cannot say.
func TestBoard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		var log bytes.Buffer
		b := NewBoard(dir, slog.New(slog.NewTextHandler(&log, nil)))
		says := func(want string) {
			t.Helper()
			time.Sleep(again)
			if got := b.Text(); got != want {
				t.Errorf("the board says %q, want %q", got, want)
			}
		}
		if got := b.Text(); got != "" {
			t.Errorf("a board without a notice says %q", got)
		}
		if err := Set(dir, "one"); err != nil {
			t.Fatal(err)
		}
		says("one")
		if err := Set(dir, "two"); err != nil {
			t.Fatal(err)
		}
		if got := b.Text(); got != "one" {
			t.Errorf("the file is read again after no time: %q", got)
		}
		says("two")
		if err := os.WriteFile(filepath.Join(dir, FileName), []byte("a\nb\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		says("")
		says("")
		if n := strings.Count(log.String(), "no notice"); n != 1 {
			t.Errorf("the log complains %d times:\n%s", n, &log)
		}
		if err := Clear(dir); err != nil {
			t.Fatal(err)
		}
		says("")
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("the log complains again:\n%s", &log)
		}
	})
}
