package reclaim

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"holdfast/service/view"
)

// Ledger remembers what was spent of the budgets, over runs, and over restarts if it is kept as JSON. It goes by
// the clock: one that is set back makes it forget nothing that counts for longer than a week. The zero Ledger has
// spent nothing. It is safe for concurrent use.
type Ledger struct {
	mu sync.Mutex
	l  spent
}

// spent is a Ledger's JSON.
type spent struct {
	Hour    int64     `json:"hour"` // since 1970
	Deleted int       `json:"deleted"`
	Copied  uint64    `json:"copied"`
	Late    int64     `json:"late"` // day since 1970 on which late landings were looked for last
	Days    [days]day `json:"days"` // place n has the days that are n modulo the number of places
}

type day struct {
	Day    int64  `json:"day"` // since 1970
	Copied uint64 `json:"copied"`
}

// days is for how long a copy counts as beside its source: the grace, and the day that is under way.
const days = int(view.Grace/(24*time.Hour)) + 1

// MarshalJSON encodes the ledger.
func (l *Ledger) MarshalJSON() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return json.Marshal(l.l)
}

// UnmarshalJSON decodes it.
func (l *Ledger) UnmarshalJSON(b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return json.Unmarshal(b, &l.l)
}

// roll begins another hour. mu is held.
func (l *Ledger) roll(now time.Time) {
	if h := now.Unix() / 3600; h != l.l.Hour {
		l.l.Hour, l.l.Deleted, l.l.Copied = h, 0, 0
	}
}

// beside returns how many bytes were copied of which the source may still be there. mu is held.
func (l *Ledger) beside(now time.Time) (sum uint64) {
	today := now.Unix() / (24 * 3600)
	for _, d := range l.l.Days {
		if d.Day > today-int64(days) {
			sum += d.Copied
		}
	}
	return sum
}

// mayCopy returns how many bytes may be copied now; if none, why says until when.
func (l *Ledger) mayCopy(cfg Config, now time.Time) (most uint64, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roll(now)
	if l.l.Copied >= cfg.Copy {
		return 0, fmt.Sprintf("the budget of %d bytes to copy in an hour is spent", cfg.Copy)
	}
	most = cfg.Copy - l.l.Copied
	if cfg.Free == nil {
		return most, ""
	}
	free, limited := cfg.Free()
	if !limited {
		return most, ""
	}
	room, beside := l.room(free, now)
	if room == 0 {
		return 0, fmt.Sprintf("the bucket's disk has %d bytes free, and copies of %d bytes wait for their sources to be deleted", free, beside)
	}
	return min(most, room), ""
}

// room returns how many bytes of a disk with so much free copies may take now, and how many have their sources still there: a
// copy takes room for the grace before its source gives room back, and what needs no copy must always have some. mu is
// held.
func (l *Ledger) room(free uint64, now time.Time) (room, beside uint64) {
	beside = l.beside(now)
	return max((free+beside)/roomShare, beside) - beside, beside
}

// fit returns those of the segments whose live blocks, all together, have room beside their sources where the bucket is; if
// that are not all, why says why. Unlike the budget of an hour, room is not exceeded by the last of them: on a disk that is
// full the records could not be written that make room.
func (l *Ledger) fit(cfg Config, segments []view.Segment, now time.Time) (fit []view.Segment, why string) {
	if cfg.Free == nil {
		return segments, ""
	}
	free, limited := cfg.Free()
	if !limited {
		return segments, ""
	}
	l.mu.Lock()
	room, beside := l.room(free, now)
	l.mu.Unlock()
	for _, s := range segments {
		if s.Bytes <= room {
			room -= s.Bytes
			fit = append(fit, s)
		}
	}
	if len(fit) == len(segments) {
		return fit, ""
	}
	return fit, fmt.Sprintf("the bucket's disk has %d bytes free, too few for their copies beside %d bytes of others", free, beside)
}

// copied notes that so much was.
func (l *Ledger) copied(bytes uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roll(now)
	l.l.Copied += bytes
	today := now.Unix() / (24 * 3600)
	d := &l.l.Days[today%int64(days)]
	if d.Day != today {
		*d = day{Day: today}
	}
	d.Copied += bytes
}

// mayDelete returns how many objects may be deleted now.
func (l *Ledger) mayDelete(cfg Config, now time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roll(now)
	return max(0, cfg.Deletes-l.l.Deleted)
}

// deleted notes that so many were.
func (l *Ledger) deleted(n int, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.roll(now)
	l.l.Deleted += n
}

// lookLate reports whether late landings were not looked for today.
func (l *Ledger) lookLate(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.l.Late != now.Unix()/(24*3600)
}

// lookedLate notes that they were.
func (l *Ledger) lookedLate(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.l.Late = now.Unix() / (24 * 3600)
}
