package quiet

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// times adds up how often the lines of a log say that they happened.
func times(t *testing.T, log string) (n int) {
	t.Helper()
	count := regexp.MustCompile(` times=(\d+)$`)
	for line := range strings.Lines(log) {
		if m := count.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			more, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			n += more
		} else {
			n++
		}
	}
	return n
}

// Something happens ten times a second for a day: the log has a line a minute, and says how often it was. What
// happens beside it is said at once.
func TestOneLineForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := New(&out, slog.LevelInfo).With("cell", 7)
		const minutes, each = 24 * 60, 600
		for m := range minutes {
			for i := range each {
				log.Error("it does not answer", "try", m*each+i)
				if i == each/2 {
					time.Sleep(Window / 2)
				}
			}
			if m%100 == 50 {
				before := out.Len()
				log.Error("something else", "minute", m)
				if !strings.Contains(out.String()[before:], fmt.Sprintf("minute=%d\n", m)) {
					t.Fatalf("in minute %d another line was held back", m)
				}
			}
			time.Sleep(Window / 2)
		}
		time.Sleep(2 * Window)
		synctest.Wait()
		lines := strings.Count(out.String(), "it does not answer")
		if most := Burst + minutes; lines > most || lines < minutes {
			t.Errorf("%d lines in %d minutes, want %d at most and one a minute at least", lines, minutes, most)
		}
		if n, want := times(t, out.String()), minutes*each+strings.Count(out.String(), "something else"); n != want {
			t.Errorf("the log speaks of %d, and it were %d", n, want)
		}
		if !strings.Contains(out.String(), fmt.Sprintf("cell=7 try=%d times=", minutes*each-1)) {
			t.Error("the newest of the last minute is not shown")
		}
		// After a quiet minute all is said again.
		before := out.Len()
		for range Burst {
			log.Error("it does not answer")
		}
		if n := strings.Count(out.String()[before:], "\n"); n != Burst {
			t.Errorf("%d lines of %d after a quiet time", n, Burst)
		}
		time.Sleep(3 * Window)
	})
}

// What trickles is held to the same line a minute.
func TestTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := New(&out, slog.LevelInfo)
		const n = 2 * 24 * 60
		for range n {
			log.Warn("not yet")
			time.Sleep(Window / 2)
		}
		time.Sleep(2 * Window)
		if lines := strings.Count(out.String(), "\n"); lines > Burst+n/2+1 || times(t, out.String()) != n {
			t.Errorf("%d lines for %d, which speak of %d", lines, n, times(t, out.String()))
		}
	})
}

// However many messages there are, memory and the log stay bounded.
func TestManyMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := New(&out, slog.LevelInfo)
		const n = 100 * MaxMessages
		for range 3 {
			for i := range n {
				log.Error(fmt.Sprint("message ", i))
			}
			time.Sleep(Window)
		}
		time.Sleep(2 * Window)
		if lines := strings.Count(out.String(), "\n"); lines > (MaxMessages+1)*(Burst+3) {
			t.Errorf("%d lines", lines)
		}
		if got := times(t, out.String()); got != 3*n {
			t.Errorf("the log speaks of %d of %d", got, 3*n)
		}
	})
}

func TestValuesAreShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		long := strings.Repeat("aß", MaxValue)
		New(&out, slog.LevelInfo).Error("m", "err", errors.New(long), "text", long, "n", 5)
		if out.Len() > 3*MaxValue || strings.Count(out.String(), "bytes more") != 2 || !strings.Contains(out.String(), "n=5") || strings.Contains(out.String(), "\\x") {
			t.Errorf("%d bytes: %s", out.Len(), &out)
		}
		time.Sleep(2 * Window)
	})
}
