package room

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/ceiling"
	"holdfast/internal/part"
)

const diskSize = 1 << 40

// weeks plays a disk for some days, of which used says how full it is at an hour, as a share; each is called every two hours.
func weeks(from, days int, used func(hour float64) float64, each func(hour float64, f Forecast, ok bool)) {
	s, began := &series{what: "disk", unit: "bytes"}, time.Unix(1e9, 0)
	for i := from * 96; i < days*96; i++ {
		hour, now := float64(i)/4, began.Add(time.Duration(i)*sampleEvery)
		f := Fill{What: "disk", Unit: "bytes", Used: int64(used(hour) * diskSize), Size: diskSize}
		s.note(now, f)
		if i%8 == 0 {
			c, ok := s.forecast(now, f)
			each(hour, c, ok)
		}
	}
}

// cycle is 0 at the beginning of each period, rises to 1 from begin to end, stays, and falls at fall; hours.
func cycle(hour, period, begin, end, fall float64) float64 {
	switch h := math.Mod(hour, period); {
	case h < begin || h >= fall:
		return 0
	case h < end:
		return (h - begin) / (end - begin)
	}
	return 1
}

// TestQuietWeeks: ordinary work, however much it goes up and down, is no news.
func TestQuietWeeks(t *testing.T) {
	r := mrand.New(mrand.NewPCG(1, 1))
	noise := func() float64 { return (r.Float64() - 0.5) / 500 }
	days := 16
	if part.Heavy() {
		days = 50 // after more of them, those that grow come close to the end, and are told so
	}
	bursts := map[int]float64{} // of a day, what one customer brings
	for name, used := range map[string]func(h float64) float64{
		"at rest":                     func(h float64) float64 { return 0.85 },
		"noise":                       func(h float64) float64 { return 0.85 + noise() },
		"nights":                      func(h float64) float64 { return 0.80 + 0.05*cycle(h, 24, 1, 4, 14) + noise() },
		"nights, close to the border": func(h float64) float64 { return 0.83 + 0.05*cycle(h, 24, 1, 6, 7) + noise() },
		"a sawtooth a day":            func(h float64) float64 { return 0.80 + 0.04*cycle(h, 24, 0, 24, 24) + noise() },
		"a sawtooth every six hours":  func(h float64) float64 { return 0.80 + 0.04*cycle(h, 6, 0, 6, 6) + noise() },
		"a sawtooth a week":           func(h float64) float64 { return 0.65 + 0.10*cycle(h, 168, 0, 168, 168) + noise() },
		"nights, and freed once a week": func(h float64) float64 {
			return 0.65 + 0.10*math.Floor(math.Mod(h, 168)/24)/7 + 0.01*cycle(h, 24, 1, 4, 14) + noise()
		},
		"growth of a tenth in two weeks": func(h float64) float64 { return 0.5 + 0.1*h/24/14 + 0.03*cycle(h, 24, 1, 4, 14) + noise() },
		"less and less":                  func(h float64) float64 { return 0.95 - 0.01*h/24 + 0.02*cycle(h, 24, 1, 4, 14) + noise() },
		"somebody brings much": func(h float64) float64 {
			d := int(h / 24)
			if _, ok := bursts[d]; !ok {
				bursts[d] = bursts[d-1]
				if d%5 == 4 {
					bursts[d] += 0.04
				}
			}
			was := bursts[d-1]
			return 0.4 + was + (bursts[d]-was)*cycle(h, 24, 10, 12, 25) + 0.02*cycle(h, 24, 1, 4, 14) + noise()
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			weeks(0, days, used, func(h float64, f Forecast, ok bool) {
				if ok {
					if n++; n < 4 {
						t.Errorf("day %.2f, %.1f %% full: %s", h/24, 100*used(h), f.Text(time.Unix(1e9, 0).Add(time.Duration(h*float64(time.Hour)))))
					}
				}
			})
			if n > 0 {
				t.Errorf("%d false alarms", n)
			}
		})
	}
}

// TestLeaks: how long before the end a leak is said, beside ordinary work of the kind that is quiet above.
func TestLeaks(t *testing.T) {
	r := mrand.New(mrand.NewPCG(2, 2))
	for _, x := range []struct {
		name         string
		start        float64       // share that is full before
		days         float64       // from the leak's beginning to the end
		step         float64       // hours between two pieces of it
		work         float64       // share that comes and goes each day beside it
		ticket, page time.Duration // before the end, at least
	}{
		{"eight days, 142 pieces", 0.5, 7.9, 1.335, 0.01, 5 * day, 20 * time.Hour},
		{"eight days, evenly", 0.3, 7.9, 0.25, 0.04, 5 * day, 20 * time.Hour},
		{"from almost nothing", 0.02, 7.9, 1.335, 0, 5 * day, 20 * time.Hour},
		{"a month", 0.5, 30, 6, 0.03, 6 * day, 20 * time.Hour},
		{"four days", 0.5, 4, 1, 0.03, 60 * time.Hour, 20 * time.Hour},
		{"two days", 0.5, 2, 0.25, 0.03, 36 * time.Hour, 20 * time.Hour},
		{"half a day", 0.5, 0.5, 0.25, 0.03, 9 * time.Hour, 9 * time.Hour},
		{"four hours", 0.5, 4. / 24, 0.25, 0, 2 * time.Hour, 2 * time.Hour},
	} {
		t.Run(x.name, func(t *testing.T) {
			const begins = 16.5 * 24
			used := func(h float64) float64 {
				leak := max(0, math.Floor((h-begins)/x.step)*x.step/x.days/24) * (1 - x.start)
				return x.start - x.work + leak + x.work*cycle(h, 24, 1, 4, 14) + (r.Float64()-0.5)/2000
			}
			var ticket, page, end float64
			weeks(0, int(17.5+x.days)+2, used, func(h float64, f Forecast, ok bool) {
				switch {
				case end > 0:
				case used(h) >= 1:
					if end = h; !ok || f.Urgency != Page {
						t.Errorf("full, and it says %v, %+v", ok, f)
					}
				case ok && h < begins:
					t.Errorf("day %.2f, before the leak: %+v", h/24, f)
				case ok && ticket == 0:
					ticket = h
				}
				if ok && f.Urgency == Page && page == 0 {
					page = h
				}
			})
			before := func(h float64) time.Duration { return time.Duration((end - h) * float64(time.Hour)) }
			t.Logf("ticket %v and page %v before the end", before(ticket), before(page))
			if end == 0 || ticket == 0 || before(ticket) < x.ticket {
				t.Errorf("the ticket came %v before the end", before(ticket))
			}
			if page == 0 || before(page) < x.page || before(page) > 42*time.Hour {
				t.Errorf("the page came %v before the end", before(page))
			}
		})
	}
}

// TestLeakThatEnds: four days after the leak has ended nothing is said any more, and once there is room again at once.
func TestLeakThatEnds(t *testing.T) {
	used := func(h float64) float64 {
		return 0.5 + 0.06*min(max(0, h/24-10), 5) - 0.2*cycle(h, 1000, 20*24, 20*24, 1000)
	}
	var on, off, late bool
	weeks(0, 22, used, func(h float64, f Forecast, ok bool) {
		switch d := h / 24; {
		case d >= 14 && d < 15:
			on = on || ok
		case d >= 20:
			late = late || ok
		case d >= 19:
			off = off || ok
		}
	})
	if !on || off || late {
		t.Errorf("said while it leaked: %v, four days later: %v, with room: %v", on, off, late)
	}
}

// TestForecastOverRestarts: a leak is seen although the service starts anew each hour, and the log says it once a day and when it
// gets worse. A file that is damaged costs what was known and nothing else.
func TestForecastOverRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, began := t.TempDir(), time.Now()
		var log bytes.Buffer
		fills := func(d Disk) ([]Fill, error) {
			used := 60 + time.Since(began).Hours()/24*5
			return []Fill{{d.What, d.Path, "bytes", int64(used * 1e6), 100e6}, {d.What, d.Path, "files", 7, 10}}, nil
		}
		start := func() *Watch {
			w := Simulated(slog.New(slog.NewTextHandler(&log, nil)), fills, Disk{What: "disk", Path: dir})
			w.Remember(dir)
			return w
		}
		said := 0
		for range 3 * 24 {
			w := start()
			for range 4 {
				time.Sleep(sampleEvery)
				w.Look()
			}
			if said == 0 && len(w.Forecasts()) > 0 {
				said = int(time.Since(began).Hours())
			}
			w.mu.Lock()
			w.save()
			w.mu.Unlock()
		}
		if said < 48 || said > 60 {
			t.Errorf("it was said after %d hours", said)
		}
		w := start()
		for range 4*24*4 + 12 {
			time.Sleep(sampleEvery)
			w.Look()
		}
		// Of eight days: from the third on once a day, and once more when there was a day left.
		if c := w.Forecasts(); len(c) != 1 || c[0].Urgency != Page || math.Abs(time.Until(c[0].Full).Hours()-21) > 2 || math.Abs(float64(c[0].PerDay)-5e6) > 1e5 {
			t.Errorf("after seven days: %+v", c)
		}
		text := log.String()
		if n := strings.Count(text, "(ticket)"); n > 80 || !strings.Contains(text, "the disk will be full in 2 days (ticket): it fills by") {
			t.Errorf("%d tickets:\n%s", n, text)
		}
		if n := strings.Count(text, "level=ERROR"); n != 1 {
			t.Errorf("%d pages:\n%s", n, text)
		}
		log.Reset()
		path := filepath.Join(dir, HistoryName)
		w.mu.Lock()
		w.save()
		w.mu.Unlock()
		b, err := os.ReadFile(path)
		if err != nil || len(b) > HistorySize {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if w := start(); len(w.Forecasts()) != 0 || !strings.Contains(log.String(), "forecasts begin anew") {
			t.Errorf("of a damaged file: %v\n%s", w.Forecasts(), &log)
		}
	})
}

// TestClockSetBack: samples of a future that does not come are forgotten.
func TestClockSetBack(t *testing.T) {
	s := &series{}
	now := time.Unix(1e9, 0)
	for i := range 100 {
		s.note(now.Add(time.Duration(i)*sampleEvery), Fill{Size: 100})
	}
	back := now.Add(10 * sampleEvery)
	if !s.due(back) {
		t.Error("no sample is due")
	}
	s.note(back, Fill{Size: 100})
	if n := len(s.samples); n != 11 || s.samples[n-1].at != back.Unix() || s.due(back.Add(time.Minute)) {
		t.Errorf("%d samples", n)
	}
}

// histories are files that decode.
func histories() [][]byte {
	return [][]byte{encodeHistory(nil), encodeHistory([]*series{{what: "disk", unit: "bytes", samples: []sample{{1, 2}, {3, -4}}}, {what: "b", unit: "files"}})}
}

// TestMemoryCeiling: no file makes its reader take much more memory than it is long.
func TestMemoryCeiling(t *testing.T) {
	mend := func(b []byte) []byte {
		if len(b) >= 4 {
			binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
		}
		return b
	}
	ceiling.Check(t, ceiling.Ceiling{Fixed: 8 << 10, Factor: 4}, histories(), mend, func(b []byte) { decodeHistory(b) })
}

func FuzzHistory(f *testing.F) {
	for _, b := range histories() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := decodeHistory(b)
		if err == nil && !bytes.Equal(encodeHistory(all), b) {
			t.Errorf("%x decodes to %v", b, all)
		}
	})
}

// TestHistoryBounds: the largest file is within its size, and each way of being wrong is refused.
func TestHistoryBounds(t *testing.T) {
	var all []*series
	for range maxSeries {
		s := &series{what: strings.Repeat("w", maxName), unit: strings.Repeat("u", maxName)}
		for i := range 2 * maxSamples {
			s.note(time.Unix(int64(i), 0), Fill{Size: 1})
		}
		all = append(all, s)
	}
	b := encodeHistory(all)
	if len(b) > HistorySize {
		t.Errorf("%d bytes", len(b))
	}
	if _, err := decodeHistory(b); err != nil {
		t.Error(err)
	}
	for name, wrong := range map[string][]byte{
		"a series too many":    encodeHistory(append(all[:maxSeries:maxSeries], &series{})),
		"a sample too many":    encodeHistory([]*series{{samples: make([]sample, maxSamples+1)}}),
		"a long name":          encodeHistory([]*series{{what: strings.Repeat("w", maxName+1)}}),
		"samples out of order": encodeHistory([]*series{{samples: []sample{{2, 0}, {2, 0}}}}),
		"cut off":              b[:len(b)-1],
		"nothing":              nil,
	} {
		if _, err := decodeHistory(wrong); err == nil {
			t.Errorf("%s decodes", name)
		}
	}
}
