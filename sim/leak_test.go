package sim

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"holdfast/client/backup"
	"holdfast/history"
	"holdfast/internal/never"
	"holdfast/service/jobs"
	"holdfast/service/reclaim"
	"holdfast/service/room"
	"holdfast/service/serve"
	"holdfast/wire"
)

// TestScenarioR4 puts the leak of the story back: every attempt of the job that frees blocks is aborted, and leaves something on the
// disk of the data directory, until that is full on day 24. The service says so days ahead, what can wait rests from 80 % on,
// backups are refused from 90 % on, and whatever is there can be restored and deleted all the time.
func TestScenarioR4(t *testing.T) {
	defer never.Catch(func(e never.Event) { t.Errorf("an event that must never happen: %s", e) })()
	const size = 128 << 20 // bytes
	s := &story{seed: storySeed, days: 26, cursed: storyCursed}
	s.leaked.Store(size / 2)
	var log bytes.Buffer
	var disk *room.Watch
	level := func() room.Level {
		l, _, _ := disk.State()
		return l
	}
	// As cmd/holdfastd does it.
	s.closed = func() serve.Closed {
		l := level()
		if l < room.Refuse {
			return serve.Closed{}
		}
		return serve.Closed{Sessions: true, Blocks: l >= room.Cut, Why: "The service is short of room."}
	}
	var ticket, page, full time.Time
	reached := map[room.Level]time.Time{}
	s.begin = func() {
		fills := func(d room.Disk) ([]room.Fill, error) {
			return []room.Fill{{What: d.What, Unit: "bytes", Used: s.local(), Size: size}}, nil
		}
		disk = room.Simulated(slog.New(slog.NewTextHandler(&log, nil)), fills, room.Disk{What: "disk of the data directory"})
	}
	s.hourly = func() { // and four times in an hour
		for range 4 {
			disk.Look()
			if l := level(); reached[l].IsZero() {
				reached[l] = time.Now()
			}
			for _, f := range disk.Forecasts() {
				if ticket.IsZero() {
					ticket = time.Now()
				}
				if f.Urgency == room.Page && page.IsZero() {
					page = time.Now()
				}
			}
			if !s.wait(time.Now().Add(15 * time.Minute)) {
				return
			}
		}
	}
	attempts, scrubbed, rested := 0, 0, 0
	s.tell(t, 3, func() {
		runner := jobs.New(jobs.Config{
			Full: func() string {
				if level() < room.Pause {
					return ""
				}
				return "a disk is nearly full"
			},
			Jobs: []jobs.Job{{Name: "scrub", Every: 6 * time.Hour, Rests: true, Run: func(context.Context, *jobs.Turn) (jobs.Result, error) {
				if scrubbed++; level() >= room.Pause {
					rested++
				}
				return jobs.Result{}, nil
			}}},
		})
		go runner.Loop(s.ctx)
		for at := time.Now(); s.wait(at); at = at.Add((diskFull - jobBegins) / aborts) {
			ctx, abort := context.WithCancel(s.ctx)
			reclaim.Run(ctx, reclaim.Config{Journal: s.j, Did: func(uint64) { abort() }})
			abort()
			attempts++
			if s.leaked.Add(size / 2 / aborts); s.local() < size {
				continue
			}
			full = time.Now()
			disk.Look()
			for _, r := range s.people {
				if err := r.newest(); err != nil {
					t.Errorf("on a full disk: %v", err)
				}
			}
			s.cancel()
		}
	}, func() { s.whole() })

	before := func(at time.Time) time.Duration { return full.Sub(at).Round(time.Minute) }
	t.Logf("%d attempts; full on day %.2f; a ticket %v before, a page %v before; from 80 %% on %v before, from 90 %% on %v before; %d backups, %d refused, %d restores",
		attempts, full.Sub(s.day0).Hours()/24, before(ticket), before(page), before(reached[room.Pause]), before(reached[room.Refuse]), s.backups, s.refused, s.reads)
	for _, err := range s.failed {
		t.Error(err)
	}
	if full.IsZero() || attempts < aborts-5 || attempts > aborts+5 {
		t.Fatalf("full at %v, after %d attempts", full, attempts)
	}
	if ticket.IsZero() || ticket.Before(s.day0.Add(jobBegins)) || before(ticket) < 5*day {
		t.Errorf("a ticket on day %.2f", ticket.Sub(s.day0).Hours()/24)
	}
	if page.IsZero() || before(page) < 20*time.Hour || before(page) > 36*time.Hour {
		t.Errorf("a page on day %.2f", page.Sub(s.day0).Hours()/24)
	}
	if n := strings.Count(log.String(), `msg="a disk will be full"`); n < 5 || n > 8 {
		t.Errorf("it was logged %d times:\n%s", n, &log)
	}
	if reached[room.Pause].IsZero() || reached[room.Refuse].IsZero() || scrubbed < 10 || rested > 0 {
		t.Errorf("levels %v; of %d runs of what can wait %d were above 80 %%", reached, scrubbed, rested)
	}
	if s.refused == 0 || s.accepted > 0 || s.deleted == 0 {
		t.Errorf("above 90 %%, %d backups were refused and %d not, and %d deletions taken", s.refused, s.accepted, s.deleted)
	}
}

// newest restores the newest archive that the resident was told of.
func (r *resident) newest() error {
	if r.last == nil {
		return nil
	}
	if err := r.restore(*r.last, r.was); err != nil {
		return fmt.Errorf("restore of resident %d: %w", r.n, err)
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.reads++
	return nil
}

// shut is a resident's day while backups are refused: he restores and deletes.
func (r *resident) shut() error {
	s := r.s
	if err := r.newest(); err != nil {
		return err
	}
	v, err := r.c.History(s.ctx)
	if err != nil {
		return fmt.Errorf("ask for the history: %w", err)
	}
	for _, a := range v.Archives {
		if a.State != history.Live || a.ID == r.last.ID {
			continue
		}
		delete(r.acked, a.ID)
		if _, err := r.c.SubmitAsOwner(s.ctx, r.owner.SignKey(), history.TypeDelete, history.IDs{a.ID}.Encode()); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.deleted++
		break
	}
	return nil
}

// backUp makes a backup and notes whether it was to be refused, and was.
func (r *resident) backUp() (done backup.Result, shut bool, err error) {
	s := r.s
	shut = s.closed != nil && s.closed().Sessions
	done, err = backup.Run(s.ctx, r.config(r.dir, "s"))
	if err == nil && !done.Complete() {
		err = fmt.Errorf("%+v", done)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case shut && wire.CodeOf(err) == wire.CodeReadOnly:
		s.refused++
		return done, true, nil
	case err != nil:
		return done, false, fmt.Errorf("back up: %w", err)
	case shut:
		s.accepted++
	}
	s.backups++
	r.acked[done.Archive.ID] = true
	r.last, r.was = &done.Archive, contents(s, r.dir)
	return done, false, nil
}
