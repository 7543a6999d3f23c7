package sim

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"holdfast/internal/never"
	"holdfast/service/bucket"
	"holdfast/service/bucket/sim"
	"holdfast/service/jobs"
	"holdfast/service/reclaim"
	"holdfast/service/room"
	"holdfast/service/serve"
)

// TestScenarioS15: the disk under a bucket in a directory is 96 % full. Backups are refused, and customers delete archives.
// Nobody does anything else: the policies purge them when their time is over, the job that frees blocks, which does not rest on a
// full disk, condemns, cleans in the room that there is, and deletes after the grace; and backups are taken again. The disk is never
// fuller than it was by more than what is left of it.
func TestScenarioS15(t *testing.T) {
	defer never.Catch(func(e never.Event) { t.Errorf("an event that must never happen: %s", e) })()
	const (
		people = 3
		fills  = 10 * day // until it is full
	)
	s := &story{seed: storySeed, days: 36, keep: 1000 * day, fileSize: 600_000}
	var disk *room.Watch
	var size, most, atFull, atEnd int64
	var free time.Time // when there was room again
	size = 1 << 60
	used := func() int64 { return s.bucket.Store().Bytes() }
	level := func() room.Level {
		l, _, _ := disk.State()
		return l
	}
	s.begin = func() {
		disk = room.Simulated(slog.New(slog.DiscardHandler), func(d room.Disk) ([]room.Fill, error) {
			return []room.Fill{{What: d.What, Unit: "bytes", Used: used(), Size: size}}, nil
		}, room.Disk{What: "disk of the bucket"})
	}
	// As cmd/holdfastd does it.
	s.closed = func() serve.Closed {
		l := level()
		if l < room.Refuse {
			return serve.Closed{}
		}
		return serve.Closed{Sessions: true, Blocks: l >= room.Cut, Why: "The service is short of room."}
	}
	rested := 0
	s.hourly = func() {
		if time.Since(s.day0) >= fills && atFull == 0 {
			atFull = used()
			size = atFull * 100 / 96
			s.store.OnOp(func(op sim.Op, _ string, _ int) sim.Fault {
				if op == sim.OpPut && used() >= size {
					return sim.Fault{Err: &bucket.Error{Class: bucket.ClassFull, Err: sim.ErrFault}}
				}
				return sim.Fault{}
			})
		}
		disk.Look()
		if atFull > 0 {
			most = max(most, used())
			if level() < room.Refuse && free.IsZero() {
				free = time.Now()
			}
		}
		if time.Since(s.day0) < time.Hour {
			go jobs.New(jobs.Config{
				Full: func() string {
					if level() >= room.Pause {
						return "a disk is nearly full"
					}
					return ""
				},
				Jobs: []jobs.Job{
					reclaim.Job(reclaim.Config{Journal: s.j, EndIdle: s.srv.EndIdle, Free: func() (uint64, bool) { return uint64(max(0, size-used())), true }}, 6*time.Hour),
					{Name: "scrub", Every: 6 * time.Hour, Rests: true, Run: func(context.Context, *jobs.Turn) (jobs.Result, error) {
						if level() >= room.Pause {
							rested++
						}
						return jobs.Result{}, nil
					}},
				},
			}).Loop(s.ctx)
		}
		s.wait(time.Now().Add(time.Hour))
	}
	s.tell(t, people, func() {
		s.wait(s.day0.Add(time.Duration(s.days)*day - time.Hour))
		atEnd = used()
	}, func() {
		if n := s.whole(); n < people {
			t.Errorf("%d archives", n)
		}
	})
	for _, err := range s.failed {
		t.Error(err)
	}
	t.Logf("a disk of %d bytes, %d used when it was full, %d at most, %d at the end; %d backups, of which %d were refused on a full disk; %d deletions; room again after %.1f days",
		size, atFull, most, atEnd, s.backups, s.refused, s.deleted, free.Sub(s.day0.Add(fills)).Hours()/24)
	if s.refused == 0 || s.accepted > 0 || s.deleted < people*3 || rested > 0 {
		t.Errorf("%d backups refused and %d not, %d archives deleted, %d runs of what can wait", s.refused, s.accepted, s.deleted, rested)
	}
	if most >= size {
		t.Errorf("of %d bytes %d were used", size, most)
	}
	if free.IsZero() || atEnd*100 >= size*88 || s.backups < int(people*(fills/day+2)) {
		t.Errorf("room again on %v, and %d backups in all", free, s.backups)
	}
}
