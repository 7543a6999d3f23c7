package room

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/enc"
)

// Urgency says who has to know.
type Urgency string

// The urgencies.
const (
	Ticket Urgency = "ticket" // somebody, in the next days: it will be full in less than ticketWithin
	Page   Urgency = "page"   // somebody, now: in less than pageWithin
)

const (
	ticketWithin = 7 * day
	pageWithin   = day
	day          = 24 * time.Hour

	// sampleEvery is between two times that it is noted how much room there is, and maxSamples is how many are kept: what
	// the longest window needs, and a day more to compare it with.
	sampleEvery = 15 * time.Minute
	maxSamples  = 8 * 24 * 4
	// maxSeries bounds what is followed: bytes and files of two disks.
	maxSeries = 4
	// saveEvery is between two times that the samples are written.
	saveEvery = time.Hour
	// speaks is for how many times its own length a window says what comes.
	speaks = 4
	// maxPoints bounds the samples of one window that are compared with one another.
	maxPoints = 32
	// usualWithin is how far from the same time of an earlier day something counts as what that time brings.
	usualWithin = 2 * time.Hour
)

// windows are the times over which the loss of room is measured.
var windows = []time.Duration{
	time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 16 * time.Hour, day, 2 * day, 4 * day, 7 * day,
}

// Forecast says that something limited will be used up, if it goes on as it does.
type Forecast struct {
	What    string    `json:"what"` // as in Fill
	Path    string    `json:"path"`
	Unit    string    `json:"unit"`
	Urgency Urgency   `json:"urgency"`
	Full    time.Time `json:"full"`    // when
	PerDay  int64     `json:"per_day"` // units by which it fills
	Seen    float64   `json:"seen"`    // hours over which that was measured
}

// Text says it to an operator at that time.
func (f Forecast) Text(now time.Time) string {
	in := "now"
	switch left := f.Full.Sub(now); {
	case left >= 2*day:
		in = fmt.Sprintf("in %d days", left/day)
	case left > 0:
		in = fmt.Sprintf("in %d hours", (left+time.Hour-1)/time.Hour)
	}
	return fmt.Sprintf("the %s will be full %s (%s): it fills by %d %s a day, seen over %.0f hours", f.What, in, f.Urgency, f.PerDay, f.Unit, f.Seen)
}

// series is how much room something limited has had.
type series struct {
	what, unit string
	samples    []sample // in order of time, maxSamples at most

	said   Urgency   // the worst that was logged ...
	saidAt time.Time // ... then
}

// sample is how much room there was at a time, in the unit of its series. More is in use than there should be if it is below zero.
type sample struct {
	at   int64 // Unix seconds
	left int64
}

// note adds what f says now. Samples of a future, which a clock that was set wrong has left, go.
func (s *series) note(now time.Time, f Fill) {
	x := sample{now.Unix(), f.Size - f.Used}
	s.samples = slices.DeleteFunc(s.samples, func(old sample) bool { return old.at >= x.at })
	s.samples = append(s.samples, x)
	if n := len(s.samples) - maxSamples; n > 0 {
		s.samples = slices.Delete(s.samples, 0, n)
	}
}

// due reports whether it is time for the next sample, a clock that was set back included.
func (s *series) due(now time.Time) bool {
	if len(s.samples) == 0 {
		return true
	}
	d := now.Unix() - s.samples[len(s.samples)-1].at
	return d >= int64(sampleEvery/time.Second) || d < 0
}

// forecast returns when there will be no room left, and how that was found out; ok is false if that is not within ticketWithin.
//
// The loss of room is measured over several windows, in each as the median of the slopes between all pairs of samples
// (Theil and Sen), to which a single burst or a single release means nothing. A window says what comes for speaks times its
// own length, and the earliest end counts: a slow leak is seen in the long windows days ahead, a fast one in the short windows
// at once. What every day brings at that time, such as a night of backups, is no news: a window below a day counts only
// what is more than in the same hours of the days before, and says little while there are none; one from a day on believes the
// lesser of that median and the one between samples that are whole days apart (Kendall).
func (s *series) forecast(now time.Time, f Fill) (out Forecast, ok bool) {
	if f.Size <= 0 {
		return out, false
	}
	left := f.Size - f.Used
	all := slices.Clip(s.samples)
	if n := len(all); n > 0 && all[n-1].at < now.Unix() {
		all = append(all, sample{now.Unix(), left})
	}
	out = Forecast{What: f.What, Path: f.Path, Unit: f.Unit, Full: now}
	soonest := math.Inf(1)
	if left <= 0 {
		soonest = 0
	}
	for _, w := range windows {
		loss, ok := slope(all, now.Unix(), w)
		horizon := speaks * w.Seconds()
		says := func() bool { return ok && loss > 0 && float64(left) <= loss*horizon }
		switch {
		case !says():
		case w >= day:
			var daily float64
			daily, ok = slopeOfDays(all, now.Unix(), w)
			loss = min(loss, daily)
		default:
			most, known := usual(all, now, w)
			if loss -= most; !known {
				horizon = w.Seconds()
			}
		}
		if in := max(0, float64(left)/loss); says() && (in < soonest || out.PerDay == 0) {
			soonest, out.PerDay, out.Seen = in, int64(loss*day.Seconds()), w.Hours()
		}
	}
	switch {
	case soonest < pageWithin.Seconds():
		out.Urgency = Page
	case soonest < ticketWithin.Seconds():
		out.Urgency = Ticket
	default:
		return out, false
	}
	out.Full = now.Add(time.Duration(soonest) * time.Second)
	return out, true
}

// usual returns the greatest loss of room a second, zero at least, in a window of that length on any of the days before at about the
// same time; known is false if there is no such window.
func usual(all []sample, now time.Time, w time.Duration) (most float64, known bool) {
	for d := range 7 {
		for off := -usualWithin; off <= usualWithin; off += time.Hour {
			if loss, ok := slope(all, now.Add(-time.Duration(d+1)*day+off).Unix(), w); ok {
				most, known = max(most, loss), true
			}
		}
	}
	return most, known
}

// find returns the place of the first sample that is not before at.
func find(all []sample, at int64) int {
	i, _ := slices.BinarySearchFunc(all, at, func(x sample, at int64) int { return cmp.Compare(x.at, at) })
	return i
}

// covers reports whether samples say something about a time of so many seconds.
func covers(in []sample, length int64) bool {
	const least = 4 // samples
	return len(in) >= least && in[len(in)-1].at-in[0].at >= length*15/16
}

// slope returns the loss of room a second in the window of that length that ends at end, Unix seconds. ok is false if the
// samples do not cover it.
func slope(all []sample, end int64, w time.Duration) (loss float64, ok bool) {
	length := int64(w / time.Second)
	in := all[find(all, end-length):find(all, end+1)]
	if !covers(in, length) {
		return 0, false
	}
	n := min(len(in), maxPoints)
	slopes := make([]float64, 0, n*(n-1)/2)
	for i := range n {
		a := in[i*(len(in)-1)/(n-1)]
		for k := i + 1; k < n; k++ {
			b := in[k*(len(in)-1)/(n-1)]
			slopes = append(slopes, float64(a.left-b.left)/float64(b.at-a.at))
		}
	}
	slices.Sort(slopes)
	return slopes[len(slopes)/2], true
}

// slopeOfDays is slope by what is whole days apart, in the window of that many days and half a day more.
func slopeOfDays(all []sample, end int64, w time.Duration) (loss float64, ok bool) {
	const oneDay = int64(day / time.Second)
	length := int64((w + day/2) / time.Second)
	in := all[find(all, end-length):find(all, end+1)]
	if !covers(in, length) {
		return 0, false
	}
	var slopes []float64
	for at := end; at > end-length; at -= int64(time.Hour / time.Second) {
		b := find(in, at)
		for before := at - oneDay; b < len(in) && before >= end-length; before -= oneDay {
			if a := in[find(in, before)]; a.at < in[b].at-oneDay/2 {
				slopes = append(slopes, float64(a.left-in[b].left)/float64(in[b].at-a.at))
			}
		}
	}
	if len(slopes) == 0 {
		return 0, false
	}
	slices.Sort(slopes)
	return slopes[len(slopes)/2], true
}

// HistoryName is the name of the file in the data directory that keeps how much room there was.
const HistoryName = "room"

// HistorySize is the most that that file takes, bytes.
const HistorySize = 64 << 10

// historyMagic begins that file. After it: u8 series; of each u8-counted what and unit, u16 samples, and of each sample its
// time, Unix seconds, and what was left, i64 both; then CRC-32C of everything before. It is written anew every hour and
// at the end. If it is lost or damaged, forecasts need some hours to begin anew, and a week to be as good as they were.
var historyMagic = []byte("HOLDROM1")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const maxName = 100 // bytes of what something is, or of its unit

func encodeHistory(all []*series) []byte {
	b := append(slices.Clone(historyMagic), byte(len(all)))
	for _, s := range all {
		for _, name := range []string{s.what, s.unit} {
			b = append(append(b, byte(len(name))), name...)
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(s.samples)))
		for _, x := range s.samples {
			b = binary.BigEndian.AppendUint64(b, uint64(x.at))
			b = binary.BigEndian.AppendUint64(b, uint64(x.left))
		}
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeHistory is strict: what decodes encodes to the same bytes.
func decodeHistory(b []byte) ([]*series, error) {
	if len(b) < 4 || len(b) > HistorySize || binary.BigEndian.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return nil, errors.New("it fails its checksum")
	}
	r := enc.NewReader(b[:len(b)-4])
	if string(r.Bytes(len(historyMagic))) != string(historyMagic) {
		r.Fail("it does not begin as it should")
	}
	n := r.U8()
	if n > maxSeries {
		r.Fail("%d series", n)
	}
	var all []*series
	for range n {
		s := &series{}
		for _, name := range []*string{&s.what, &s.unit} {
			size := r.U8()
			if size > maxName {
				r.Fail("a name of %d bytes", size)
			}
			*name = string(r.Bytes(int(size)))
		}
		count := int(r.U16())
		if count > maxSamples || r.Len() < 16*count {
			r.Fail("%d samples", count)
		}
		if r.Err() != nil {
			break
		}
		s.samples = make([]sample, 0, count)
		for i := range count {
			x := sample{r.I64(), r.I64()}
			if i > 0 && x.at <= s.samples[i-1].at {
				r.Fail("samples out of order")
			}
			s.samples = append(s.samples, x)
		}
		all = append(all, s)
	}
	if err := r.Done(); err != nil {
		return nil, err
	}
	return all, nil
}

// Remember makes w keep in dir, over restarts, how much room there was, and takes up what is kept there. It never fails: without what was
// kept the forecasts begin anew.
func (w *Watch) Remember(dir string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.path = filepath.Join(dir, HistoryName)
	b, err := os.ReadFile(w.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var all []*series
	if err == nil {
		all, err = decodeHistory(b)
	}
	if err != nil {
		w.log.Warn("how full the disks were cannot be read; forecasts begin anew", "file", w.path, "error", err)
		return
	}
	w.series, w.saved = all, time.Now()
	w.note()
}

// Forecasts returns what will be used up within days, the soonest first.
func (w *Watch) Forecasts() []Forecast {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.forecasts()
}

// forecasts is Forecasts with mu held.
func (w *Watch) forecasts() []Forecast {
	now, out := time.Now(), []Forecast{}
	for _, f := range w.all {
		for _, s := range w.series {
			if s.what == f.What && s.unit == f.Unit {
				if c, ok := s.forecast(now, f); ok {
					out = append(out, c)
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Forecast) int { return a.Full.Compare(b.Full) })
	return out
}

// note takes samples of what was found just now where it is time for that, logs what they say once a day, or sooner if it got
// worse, and saves them; mu is held.
func (w *Watch) note() {
	now, noted := time.Now(), false
	for _, f := range w.all {
		i := slices.IndexFunc(w.series, func(s *series) bool { return s.what == f.What && s.unit == f.Unit })
		if i < 0 {
			// What is not watched any more makes room.
			w.series = slices.DeleteFunc(w.series, func(s *series) bool {
				return !slices.ContainsFunc(w.all, func(f Fill) bool { return s.what == f.What && s.unit == f.Unit })
			})
			if len(w.series) == maxSeries || len(f.What) > maxName || len(f.Unit) > maxName {
				continue
			}
			i = len(w.series)
			w.series = append(w.series, &series{what: f.What, unit: f.Unit})
		}
		if w.series[i].due(now) {
			w.series[i].note(now, f)
			noted = true
		}
	}
	if !noted {
		return
	}
	for _, c := range w.forecasts() {
		i := slices.IndexFunc(w.series, func(s *series) bool { return s.what == c.What && s.unit == c.Unit })
		s := w.series[i]
		if now.Sub(s.saidAt) < day && (c.Urgency == s.said || s.said == Page) {
			continue
		}
		say := w.log.Warn
		if c.Urgency == Page {
			say = w.log.Error
		}
		say("a disk will be full", "forecast", c.Text(now), "path", c.Path)
		s.said, s.saidAt = c.Urgency, now
	}
	if d := now.Sub(w.saved); w.path != "" && (d >= saveEvery || d < 0) {
		w.save()
	}
}

// save writes the samples; mu is held. A disk that is full does not take them, and then it is too late for forecasts.
func (w *Watch) save() {
	w.saved = time.Now()
	if w.path == "" || len(w.series) == 0 {
		return
	}
	if err := durable.WriteFile(w.path, encodeHistory(w.series), 0o600); err != nil {
		w.log.Warn("how full the disks were is not kept", "file", w.path, "error", err)
	}
}
