package scrub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/never"
	"holdfast/service/jobs"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// ShadowName is the name of the job that makes a second view and compares.
	ShadowName = "shadow"
	// DirName is the directory in the data directory in which the second view is made.
	DirName = "shadow"
	// RemoteBudget is how much of the trailers of a bucket that is not local is read for second views in a month, bytes.
	RemoteBudget = 50 << 30
	// sizeSlack is how much larger than the view the second one may be while it is made, besides its size, bytes.
	sizeSlack = 256 << 20
)

// ShadowConfig says where to make second views.
type ShadowConfig struct {
	Journal *journal.Journal
	Log     *slog.Logger // nil discards
	// View is the directory of the view that the service works with, Dir that of the second one, which is removed when it was
	// compared.
	View, Dir string
	Budget    uint64 // bytes of trailers that may be read in a calendar month, UTC; 0 is without limit
	// Full, if set, says why the disk has no room for it now; "" if it has.
	Full func() string
	// Free, if set, says how much room the disk of Dir has, bytes, if that is limited.
	Free func() (bytes uint64, limited bool)
}

// ShadowState is what the job remembers.
type ShadowState struct {
	// At and Want are where the view that the service works with was when the comparison began, and its digest there.
	At   segment.Position `json:"at"`
	Want string           `json:"want,omitempty"` // hex; "" if none is under way
	// What was done of it so far, in all turns.
	Segments uint64  `json:"segments"`
	Records  uint64  `json:"records"`
	Seconds  float64 `json:"seconds"`
	// Differed is how many comparisons in a row found a difference.
	Differed int `json:"differed,omitempty"`
	// Equal is the newest comparison that found none: the published number.
	Equal struct {
		At       segment.Position `json:"at"`
		Ended    time.Time        `json:"ended,omitzero"`
		Digest   string           `json:"digest,omitempty"`
		Segments uint64           `json:"segments"`
		Records  uint64           `json:"records"`
		Seconds  float64          `json:"seconds"` // that making the second view took
		Rate     float64          `json:"records_per_second"`
	} `json:"equal"`
}

// ShadowJob returns the background job that makes the view anew from the trailers in the bucket, beside the one that the service
// works with, up to a place at which the digest of that one was taken, and compares the two (JOURNAL 13). It goes on over
// turns and restarts.
//
// A difference freezes all deleting at once: what is freed follows from the view. One that is found again, by a comparison
// from the beginning, is an event that must never happen: the service answers from a view that is wrong, or its bucket is
// not what it wrote.
func ShadowJob(cfg ShadowConfig, every time.Duration) jobs.Job {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return jobs.Job{Name: ShadowName, Every: every, Rests: true, Run: func(ctx context.Context, t *jobs.Turn) (jobs.Result, error) {
		var s ShadowState
		t.Load(&s)
		text, more, err := cfg.turn(ctx, &s, shadowTurn{used: t.Used(), enough: t.Enough, did: t.Did, spend: t.Spend, save: func() { t.Save(s) }})
		t.Save(s)
		return jobs.Result{More: more && err == nil, Text: text, Report: s}, err
	}}
}

// shadowTurn is what a turn needs of the job runner.
type shadowTurn struct {
	used   uint64
	enough func() bool
	did    func(n uint64)
	spend  func(bytes uint64)
	save   func()
}

// turn makes a part of the second view, and compares when all of it is there. more says that there is more to do at once.
func (c ShadowConfig) turn(ctx context.Context, s *ShadowState, t shadowTurn) (text string, more bool, err error) {
	size, err := dirSize(c.View)
	if err != nil {
		return "", false, fmt.Errorf("measure the view: %w", err)
	}
	limit := 2*size + sizeSlack
	if c.Free != nil {
		if free, limited := c.Free(); limited && free < uint64(limit) {
			return fmt.Sprintf("there are %d bytes free, and a second view may need %d", free, limit), false, c.remove(s)
		}
	}
	if s.Want == "" {
		if err := c.remove(s); err != nil {
			return "", false, err
		}
		want, at, err := c.Journal.Digest(ctx)
		if err != nil {
			return "", false, err
		}
		s.Want, s.At = fmt.Sprintf("%x", want), at
		t.save()
	}
	store, err := view.OpenBeside(c.Dir)
	if errors.Is(err, view.ErrDamaged) { // a power cut
		if err := os.RemoveAll(c.Dir); err != nil {
			return "", false, err
		}
		s.Segments, s.Records, s.Seconds = 0, 0, 0
		store, err = view.OpenBeside(c.Dir)
	}
	if err != nil {
		return "", false, err
	}
	why, before := "", journal.Beside{}
	part, err := c.Journal.Beside(ctx, store, s.At, func(b journal.Beside) bool {
		t.did(uint64(b.Segments - before.Segments))
		t.spend(uint64(b.Read - before.Read))
		before = b
		switch {
		case b.Segments == 0 && c.Budget > 0 && t.used+uint64(b.Size) > c.Budget:
			why = fmt.Sprintf("the trailers have %d bytes, and of the month's budget of %d are used %d", b.Size, c.Budget, t.used)
		case c.Full != nil && c.Full() != "":
			why = c.Full()
		case b.Segments > 0 && t.enough():
			return false
		}
		if n, err := dirSize(c.Dir); why == "" && err == nil && n > limit {
			why = fmt.Sprintf("the second view takes %d bytes, and %d are allowed", n, limit)
		}
		return why == ""
	})
	t.did(uint64(part.Segments - before.Segments))
	t.spend(uint64(max(0, part.Read-before.Read)))
	s.Segments, s.Records, s.Seconds = s.Segments+uint64(part.Segments), s.Records+uint64(part.Records), s.Seconds+part.Took.Seconds()
	var got string
	if err == nil && part.Done {
		var sum [32]byte
		var at segment.Position
		if sum, at, err = store.Digest(ctx); err == nil && at != s.At {
			err = fmt.Errorf("the second view is at %s, not at %s", at, s.At)
		}
		got = fmt.Sprintf("%x", sum)
	}
	err = errors.Join(err, store.Close())
	switch {
	case errors.Is(err, journal.ErrDiffers):
		return c.differ(s, err.Error())
	case err != nil:
		return "", false, err
	case why != "":
		return why, false, c.remove(s)
	case !part.Done:
		return fmt.Sprintf("%d of %d segments up to %s are replayed", part.All-part.Left, part.All, s.At), true, nil
	case got != s.Want:
		return c.differ(s, fmt.Sprintf("the view had the digest %s at segment %s, and the journal in the bucket makes %s", s.Want, s.At, got))
	}
	e := &s.Equal
	e.At, e.Ended, e.Digest, e.Segments, e.Records, e.Seconds, e.Rate = s.At, time.Now().UTC(), got, s.Segments, s.Records, s.Seconds, 0
	if s.Seconds > 0 {
		e.Rate = float64(s.Records) / s.Seconds
	}
	s.Differed = 0
	text = fmt.Sprintf("equal at %s: %d records of %d segments in %.1f s, %.0f a second", e.At, e.Records, e.Segments, e.Seconds, e.Rate)
	c.Log.Info("the view is what the journal in the bucket says", "at", e.At, "records", e.Records, "seconds", e.Seconds)
	return text, false, c.remove(s)
}

// differ is what follows from a difference.
func (c ShadowConfig) differ(s *ShadowState, found string) (text string, more bool, err error) {
	at := s.At
	s.Differed++
	c.Log.Error("THE VIEW DIFFERS from what the journal in the bucket says; deleting is frozen", "at", at, "times", s.Differed, "found", found)
	c.Journal.Doubt("a second view made from the bucket differs: " + found)
	if s.Differed > 1 {
		never.Happened(never.Event{
			What:      fmt.Sprintf("the view differs from what the journal in the bucket says, found twice in a row: %s", found),
			Where:     "the view, in " + c.View,
			Invariant: "the view is a function of the journal (JOURNAL 10, 11, 13)",
			Todo: "Suspect the disk of the data directory and the machine's memory, and then this program. When the machine is sound, make the view anew with " +
				"holdfastd rebuild, which loses nothing, and look at the archives; then holdfastd resume, and holdfastd thaw.",
		})
	}
	if err := c.remove(s); err != nil {
		return "", false, err
	}
	// A second opinion at once, from the beginning.
	return "DIFFERS: " + found, s.Differed == 1, nil
}

// remove removes the second view and forgets the comparison.
func (c ShadowConfig) remove(s *ShadowState) error {
	s.Want, s.At, s.Segments, s.Records, s.Seconds = "", segment.Position{}, 0, 0, 0
	if err := os.RemoveAll(c.Dir); err != nil {
		return fmt.Errorf("remove the second view: %w", err)
	}
	return nil
}

// dirSize returns the size of the files in a directory, bytes.
func dirSize(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a database at work removes files
		}
		if err != nil || d.IsDir() {
			return err
		}
		if fi, err := d.Info(); err == nil {
			n += fi.Size()
		}
		return nil
	})
	return n, err
}
