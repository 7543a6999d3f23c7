package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"holdfast/service/bucket"
)

const (
	// failingAfter is for how long storing and confirming may fail, with nothing that succeeds beside it, until that is
	// trouble: a request that is cursed under two keys running is not.
	failingAfter = 10 * time.Second
	// silentAfter is the same for a bucket that does not even fail.
	silentAfter = 30 * time.Second
	// sayEvery is how often trouble that goes on is logged.
	sayEvery = time.Minute
)

// ErrUnavailable reports that the bucket failed for longer than the start of a journal waits. A journal that is
// open goes on trying for ever.
var ErrUnavailable = errors.New("the bucket has not done what was asked")

// trouble watches what must succeed before anything is acknowledged, so that it can be said when it does not.
//
// When mu is free: now holds the efforts under way; good is when one last succeeded.
type trouble struct {
	log *slog.Logger

	mu   sync.Mutex
	now  map[*effort]struct{}
	good time.Time
	said time.Time // when the newest failure was logged; zero after a success
	mute int       // failures since then
}

// effort is one segment that is being stored, or one confirmation of our claim, with all its repetitions.
type effort struct {
	of    *trouble
	what  string
	began time.Time
	err   error // of the newest attempt, unless one succeeded
}

func (t *trouble) begin(what string) *effort {
	e := &effort{of: t, what: what, began: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now == nil {
		t.now = map[*effort]struct{}{}
	}
	t.now[e] = struct{}{}
	return e
}

// failed notes an attempt that failed. Of many in a row it logs some: a log must not fill the disk because the
// bucket is away for a week.
func (e *effort) failed(err error) {
	t := e.of
	t.mu.Lock()
	defer t.mu.Unlock()
	e.err = err
	if t.mute++; time.Since(t.said) < sayEvery {
		return
	}
	level, what := slog.LevelWarn, "the bucket failed; trying again"
	if refused(err) {
		level, what = slog.LevelError, "the bucket refuses this service; trying again, in case it is given the right to"
	}
	t.log.Log(context.Background(), level, what, "at", e.what, "failures", t.mute, "err", err)
	t.said, t.mute = time.Now(), 0
}

// end says that the effort is over, and whether what it was for is done.
func (e *effort) end(ok bool) {
	t := e.of
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.now, e)
	if !ok {
		return
	}
	if !t.said.IsZero() {
		t.log.Info("the bucket does again what is asked", "done", e.what)
	}
	t.good, t.said, t.mute = time.Now(), time.Time{}, 0
}

// since returns from when on nothing could be made durable, and why; the zero time if that is not so.
func (t *trouble) since() (since time.Time, cause error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for e := range t.now {
		from, limit := e.began, failingAfter
		if t.good.After(from) {
			from = t.good
		}
		err := e.err
		if err == nil {
			limit, err = silentAfter, errors.New("no answer")
		}
		if time.Since(from) > limit && (since.IsZero() || from.Before(since)) {
			since, cause = from, fmt.Errorf("%s: %w", e.what, err)
		}
	}
	return since, cause
}

// Trouble returns since when nothing could be made durable, and the newest cause; the zero time if things go as they
// should. The journal goes on trying by itself, for ever: credentials are replaced, disks emptied, networks mended.
func (j *Journal) Trouble() (since time.Time, cause error) {
	since, cause = j.trouble.since()
	if p, ok := j.cfg.Bucket.(bucket.Paced); ok {
		if down, why := p.Down(); !down.IsZero() && (since.IsZero() || down.Before(since)) {
			since, cause = down, why
		}
	}
	return since, cause
}

// refused reports an answer that trying again does not change, before a person does something.
func refused(err error) bool {
	switch bucket.ClassOf(err) {
	case bucket.ClassDenied, bucket.ClassConfig, bucket.ClassClock:
		return true
	}
	return false
}
