package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/service/admin"
	"holdfast/service/ledger"
)

// program writes a shell script.
func program(t *testing.T, lines string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tell")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+lines+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTell(t *testing.T) {
	w := admin.Warning{ID: "x-1-2", Name: `an"na`, Step: ledger.Warn14, Words: ledger.Warn14.String(), Left: 12, End: time.Unix(0, 0).UTC(), Balance: "3.50", Currency: "EUR"}
	got := filepath.Join(t.TempDir(), "got")
	if err := tell(t.Context(), time.Minute, program(t, "cat >"+got), w); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	var back admin.Warning
	if err := json.Unmarshal(raw, &back); err != nil || back != w || raw[len(raw)-1] != '\n' {
		t.Errorf("it read %s, %v", raw, err)
	}
	// One that reads nothing has told as well, and one that fails has not.
	if err := tell(t.Context(), time.Minute, program(t, "exit 0"), w); err != nil {
		t.Error(err)
	}
	if err := tell(t.Context(), time.Minute, program(t, "exit 3"), w); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Error(err)
	}
	if err := tell(t.Context(), time.Minute, program(t, "")+"-not-there", w); err == nil {
		t.Error("a program that is not there told somebody")
	}
	// One that hangs is ended, with what it started.
	left := filepath.Join(t.TempDir(), "left")
	began := time.Now()
	err = tell(t.Context(), 300*time.Millisecond, program(t, "(sleep 3; touch "+left+") & sleep 1000"), w)
	if err == nil || !strings.Contains(err.Error(), "did not end within 300ms") || time.Since(began) > time.Minute {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	// So is one while we are told to end, which is no fault of its.
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(300*time.Millisecond, cancel)
	if err := tell(ctx, time.Minute, program(t, "sleep 1000"), w); err == nil || strings.Contains(err.Error(), "did not end") {
		t.Error(err)
	}
	for time.Since(began) < 4*time.Second {
		if _, err := os.Stat(left); err == nil {
			t.Fatal("what it started goes on")
		}
		<-time.After(100 * time.Millisecond)
	}
}

func TestStanding(t *testing.T) {
	left := func(n int64) *int64 { return &n }
	end := time.Date(2026, 12, 7, 1, 2, 3, 0, time.UTC)
	for want, m := range map[string]admin.Money{
		"paid": {Words: "paid"},
		"paid; 50 days left until writing stops, 2026-12-07":                                                  {Words: "paid", Left: left(50), End: end},
		"writing stops in 1 day; 1 day left until writing stops, 2026-12-07; NOT TOLD":                        {Step: ledger.Warn1, Words: "writing stops in 1 day", Left: left(1), End: end},
		"writing has stopped; 90 days left until archives are deleted, 2026-12-07; told 2026-12-07T01:02:03Z": {Step: ledger.Stopped, Words: "writing has stopped", Left: left(90), End: end, Told: end},
		"archives are being deleted; NOT TOLD":                                                                {Step: ledger.Lapsed, Words: "archives are being deleted", Left: left(0), End: end},
	} {
		if got := standing(m); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
	for n, want := range map[int]string{1: "1 owner was", 2: "2 owners were", admin.MaxWarnings: "1000 owners or more were"} {
		if got := untold(n); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
