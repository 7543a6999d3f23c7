// Package scrub finds out whether what the service holds is still what it took: it reads segments and compares checksums
// (Job), and makes a second view from the bucket and compares it with the one that the service works with (ShadowJob).
// Neither changes what is stored. A block that turns out to be damaged is recorded, so that its owner's next run sends it
// again.
//
// # How much is read
//
// A cycle lasts Config.Cycle, 14 days by default. On a bucket that is a directory every live byte is read in each. On a
// store that is reached over a line it is a random sample of the segments, another one in each cycle: 2 percent by
// default, so that in a month about one block in 25 is looked at. A store that loses one object in 100,000 is noticed by
// that sooner than by the customer who needs it, and one that loses single objects is not: that costs reading everything,
// which is set by sample = 100. The work is spread over the cycle: each turn does what is due by then.
//
// Turns rest while a disk is nearly full or the month's budget is used up; the next ones make up for that.
package scrub

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"holdfast/service/jobs"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// JobName is the name of the job that scrubs.
	JobName = "scrub"
	// DefaultCycle is how long a cycle lasts.
	DefaultCycle = 14 * 24 * time.Hour
	// RemoteSample is how much of a bucket that is not local is read in a cycle, percent.
	RemoteSample = 2
	// Turn is from one turn of the job to the next.
	Turn = time.Hour
	// slack is what is left of a cycle, percent, when all of it should be done: for turns that rest.
	slack = 10
	// page is how many segments are looked up at once.
	page = 64
	// maxFailed is how many segments in a row cannot be read until a turn ends.
	maxFailed = 3
	// maxNamed bounds the segments that are remembered because their trailer is lost or they are missing.
	maxNamed = 16
)

// Config says what to scrub, and how fast.
type Config struct {
	Journal *journal.Journal
	Log     *slog.Logger  // nil discards
	Cycle   time.Duration // 0 is DefaultCycle
	Sample  int           // percent of the segments that are read in a cycle; 0 is all
	Budget  uint64        // bytes that may be read in a calendar month, UTC; 0 is without limit
}

// State is how far a cycle is, and what the scrub has found. It is what the job remembers.
type State struct {
	Began time.Time        `json:"began,omitzero"` // of the cycle; zero before the first
	Seed  uint64           `json:"seed"`           // decides which segments are in the sample
	Done  bool             `json:"done"`
	After segment.Position `json:"after"` // the last segment that was passed
	All   uint64           `json:"all"`   // bytes of the live segments when the cycle began
	Past  uint64           `json:"past"`  // bytes of the segments that were passed
	Read  uint64           `json:"read"`  // bytes read in this cycle
	Hurry bool             `json:"hurry"` // somebody asked for the whole cycle now
	Cycle Found            `json:"cycle"` // what this cycle found

	Last struct { // the cycle before
		Began time.Time `json:"began,omitzero"`
		Ended time.Time `json:"ended,omitzero"`
		Read  uint64    `json:"read"`
		Found Found     `json:"found"`
	} `json:"last"`
	Total Found `json:"total"` // since the service remembers
	// Lost names segments that are missing, or of which no trailer is left, at most 16.
	Lost []string `json:"lost,omitempty"`
}

// Found is what was read, and found.
type Found struct {
	Segments uint64 `json:"segments"`
	Blocks   uint64 `json:"blocks"`
	Damaged  uint64 `json:"damaged"` // blocks that were not known to be
	Whole    uint64 `json:"whole"`   // blocks that were damaged and are whole again
	Spare    uint64 `json:"spare"`   // older copies of blocks that are damaged
	Trailers uint64 `json:"trailers"`
	Mended   uint64 `json:"mended"` // segments with a damaged trailer that were stored anew
	Missing  uint64 `json:"missing"`
	Unread   uint64 `json:"unread"` // segments that could not be read, and were passed
}

func (f *Found) add(s journal.Scrubbed) {
	f.Segments++
	f.Blocks += uint64(s.Blocks)
	f.Damaged += uint64(s.Damaged)
	f.Whole += uint64(s.Whole)
	f.Spare += uint64(s.Spare)
	if s.Trailer != "" {
		f.Trailers++
	}
	if s.Mended {
		f.Mended++
	}
	if s.Missing {
		f.Missing++
	}
}

func (f *Found) plus(o Found) {
	f.Segments += o.Segments
	f.Blocks += o.Blocks
	f.Damaged += o.Damaged
	f.Whole += o.Whole
	f.Spare += o.Spare
	f.Trailers += o.Trailers
	f.Mended += o.Mended
	f.Missing += o.Missing
	f.Unread += o.Unread
}

func (f Found) String() string {
	text := fmt.Sprintf("%d blocks of %d segments read, %d newly damaged", f.Blocks, f.Segments, f.Damaged)
	for _, x := range []struct {
		n    uint64
		what string
	}{{f.Whole, "whole again"}, {f.Spare, "damaged older copies"}, {f.Trailers, "damaged trailers"}, {f.Mended, "segments stored anew"}, {f.Missing, "SEGMENTS MISSING"}, {f.Unread, "segments could not be read"}} {
		if x.n > 0 {
			text += fmt.Sprintf(", %d %s", x.n, x.what)
		}
	}
	return text
}

// Report is what one turn did.
type Report struct {
	Found
	Read    uint64 `json:"read"`              // bytes
	Done    bool   `json:"done"`              // the cycle is
	Stopped string `json:"stopped,omitempty"` // why nothing more is read for now
	// Known is how many blocks are damaged and were not stored anew; Job does not set it.
	Known int `json:"known"`
}

// Plus returns what two turns did, of which o is the later.
func (r Report) Plus(o Report) Report {
	o.Read += r.Read
	o.Found.plus(r.Found)
	return o
}

// Job returns the background job. By hand it reads all of a cycle at once.
func Job(cfg Config, every time.Duration) jobs.Job {
	return jobs.Job{Name: JobName, Every: every, Rests: true, Run: func(ctx context.Context, t *jobs.Turn) (jobs.Result, error) {
		var s State
		t.Load(&s)
		if t.Asked {
			s.Hurry = true
		}
		r, why, err := turn(ctx, cfg, &s, time.Now(), turnOf{
			used: t.Used(), enough: t.Enough,
			did: func(read uint64) {
				t.Did(1)
				t.Spend(read)
				t.Save(s)
			},
		})
		t.Save(s)
		r.Stopped = why
		res := jobs.Result{More: s.Hurry && err == nil && why == "", Text: text(r, s, why), Report: r}
		return res, err
	}}
}

func text(r Report, s State, why string) string {
	out := r.Found.String()
	if r.Segments == 0 {
		out = "nothing was due"
	}
	switch {
	case r.Done:
		out += fmt.Sprintf("; the cycle is done: %s", s.Last.Found)
	case s.All > 0 && !s.Done:
		out += fmt.Sprintf("; the cycle since %s is at %d percent", s.Began.UTC().Format(time.DateOnly), 100*min(s.Past, s.All)/s.All)
	}
	if why != "" {
		out += "; " + why
	}
	return out
}

// turnOf is what a turn needs of the job runner.
type turnOf struct {
	used   uint64 // of the month's budget
	enough func() bool
	did    func(read uint64) // a segment was looked at; the State is to be kept
}

// turn does what is due. why says why it ended earlier; then it is of no use to go on at once.
func turn(ctx context.Context, cfg Config, s *State, now time.Time, t turnOf) (r Report, why string, err error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cycle := cmp.Or(cfg.Cycle, DefaultCycle)
	switch {
	case s.Began.IsZero(), s.Done && (s.Hurry || !now.Before(s.Began.Add(cycle))):
		st, err := cfg.Journal.Acked().Stats()
		if err != nil {
			return r, "", err
		}
		s.Began, s.Seed, s.All, s.Past, s.Read = now, rand.Uint64()>>1, st.Objects, 0, 0
		s.Cycle, s.Lost, s.Done, s.After = Found{}, nil, false, segment.Position{}
	case s.Done:
		return r, "", nil
	}
	due := s.All
	if span := cycle - cycle/100*slack; now.Sub(s.Began) < span {
		due = uint64(float64(s.All) * float64(now.Sub(s.Began)+Turn) / float64(span))
	}
	ahead := func() bool { return !s.Hurry && due < s.All && s.Past >= due }
	// failed is how many segments before at, the newest that were looked at, could not be read. They are passed when one after
	// them can be: one request that fails for ever must not keep the others from being read.
	at, past, failed := s.After, uint64(0), 0
	pass := func(x view.Segment) {
		s.Past, s.After = s.Past+past+x.Size, at
		r.Unread, s.Cycle.Unread, s.Total.Unread = r.Unread+uint64(failed), s.Cycle.Unread+uint64(failed), s.Total.Unread+uint64(failed)
		past, failed = 0, 0
	}
	for {
		some, err := cfg.Journal.Segments(at, page)
		if err != nil {
			return r, "", err
		}
		if len(some) == 0 {
			pass(view.Segment{})
			s.Last.Began, s.Last.Ended, s.Last.Read, s.Last.Found = s.Began, now, s.Read, s.Cycle
			s.Done, s.Hurry, r.Done = true, false, true
			return r, "", nil
		}
		for _, x := range some {
			if ahead() {
				return r, "", nil
			}
			at = x.Key.Position
			if !cfg.picks(s.Seed, at) {
				if past += x.Size; failed == 0 {
					pass(view.Segment{})
				}
				continue
			}
			if cfg.Budget > 0 && t.used+r.Read+x.Size > cfg.Budget {
				s.Hurry = false
				return r, fmt.Sprintf("the month's budget of %d bytes is used up", cfg.Budget), nil
			}
			found, live, err := cfg.Journal.ScrubSegment(ctx, at)
			r.Read += found.Read
			s.Read += found.Read
			if err != nil {
				log.Warn("a segment cannot be scrubbed for now", "segment", at, "err", err)
				past += x.Size
				if failed++; failed == maxFailed || ctx.Err() != nil {
					return r, "", fmt.Errorf("scrub segment %s: %w", at, err)
				}
				continue
			}
			if live {
				r.add(found)
				s.Cycle.add(found)
				s.Total.add(found)
				if (found.Missing || found.Trailer != "" && !found.Mended) && len(s.Lost) < maxNamed {
					s.Lost = append(s.Lost, at.String())
				}
			}
			pass(x)
			t.did(found.Read)
			if t.enough() || ctx.Err() != nil {
				return r, "", ctx.Err()
			}
		}
	}
}

// picks reports whether the segment at pos is in the sample of the cycle with that seed.
func (c Config) picks(seed uint64, pos segment.Position) bool {
	if c.Sample <= 0 || c.Sample >= 100 {
		return true
	}
	var b [24]byte
	binary.BigEndian.PutUint64(b[0:], seed)
	binary.BigEndian.PutUint64(b[8:], pos.Epoch)
	binary.BigEndian.PutUint64(b[16:], pos.Seq)
	h := sha256.Sum256(b[:])
	return binary.BigEndian.Uint64(h[:])%100 < uint64(c.Sample)
}
