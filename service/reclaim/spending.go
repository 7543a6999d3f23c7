package reclaim

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"holdfast/service/view"
)

// Spending remembers what was spent of the budgets, over runs, and over restarts if it is kept as JSON. It goes by
// the clock: one that is set back makes it forget nothing that counts for longer than a week. The zero Spending has
// spent nothing. It is safe for concurrent use.
type Spending struct {
	mu    sync.Mutex
	spent spent
}

// spent is a Spending's JSON.
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

// MarshalJSON encodes the spending.
func (s *Spending) MarshalJSON() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return json.Marshal(s.spent)
}

// UnmarshalJSON decodes it.
func (s *Spending) UnmarshalJSON(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return json.Unmarshal(b, &s.spent)
}

// roll begins another hour. mu is held.
func (s *Spending) roll(now time.Time) {
	if h := now.Unix() / 3600; h != s.spent.Hour {
		s.spent.Hour, s.spent.Deleted, s.spent.Copied = h, 0, 0
	}
}

// beside returns how many bytes were copied of which the source may still be there. mu is held.
func (s *Spending) beside(now time.Time) (sum uint64) {
	today := now.Unix() / (24 * 3600)
	for _, d := range s.spent.Days {
		if d.Day > today-int64(days) {
			sum += d.Copied
		}
	}
	return sum
}

// mayCopy returns how many bytes may be copied now; if none, why says until when.
func (s *Spending) mayCopy(cfg Config, now time.Time) (most uint64, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roll(now)
	if s.spent.Copied >= cfg.Copy {
		return 0, fmt.Sprintf("the budget of %d bytes to copy in an hour is spent", cfg.Copy)
	}
	most = cfg.Copy - s.spent.Copied
	if cfg.Free == nil {
		return most, ""
	}
	free, limited := cfg.Free()
	if !limited {
		return most, ""
	}
	room, beside := s.room(free, now)
	if room == 0 {
		return 0, fmt.Sprintf("the bucket's disk has %d bytes free, and copies of %d bytes wait for their sources to be deleted", free, beside)
	}
	return min(most, room), ""
}

// room returns how many bytes of a disk with so much free copies may take now, and how many have their sources still there: a
// copy takes room for the grace before its source gives room back, and what needs no copy must always have some. mu is
// held.
func (s *Spending) room(free uint64, now time.Time) (room, beside uint64) {
	beside = s.beside(now)
	return max((free+beside)/roomShare, beside) - beside, beside
}

// fit returns those of the segments whose live blocks, all together, have room beside their sources where the bucket is; if
// that are not all, why says why. Unlike the budget of an hour, room is not exceeded by the last of them: on a disk that is
// full the records could not be written that make room.
func (s *Spending) fit(cfg Config, segments []view.Segment, now time.Time) (fit []view.Segment, why string) {
	if cfg.Free == nil {
		return segments, ""
	}
	free, limited := cfg.Free()
	if !limited {
		return segments, ""
	}
	s.mu.Lock()
	room, beside := s.room(free, now)
	s.mu.Unlock()
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
func (s *Spending) copied(bytes uint64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roll(now)
	s.spent.Copied += bytes
	today := now.Unix() / (24 * 3600)
	d := &s.spent.Days[today%int64(days)]
	if d.Day != today {
		*d = day{Day: today}
	}
	d.Copied += bytes
}

// mayDelete returns how many objects may be deleted now.
func (s *Spending) mayDelete(cfg Config, now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roll(now)
	return max(0, cfg.Deletes-s.spent.Deleted)
}

// deleted notes that so many were.
func (s *Spending) deleted(n int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roll(now)
	s.spent.Deleted += n
}

// lookLate reports whether late landings were not looked for today.
func (s *Spending) lookLate(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spent.Late != now.Unix()/(24*3600)
}

// lookedLate notes that they were.
func (s *Spending) lookedLate(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spent.Late = now.Unix() / (24 * 3600)
}
