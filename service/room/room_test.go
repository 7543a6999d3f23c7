package room

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestLevels goes up and down with one disk. Just below a border it stays where it is, both ways.
func TestLevels(t *testing.T) {
	used := int64(0)
	w := newWatch(slog.New(slog.DiscardHandler), func(d Disk) ([]Fill, error) {
		return []Fill{{What: d.What, Unit: "bytes", Used: used, Size: 1000}}, nil
	}, []Disk{{What: "disk"}})
	for i, x := range []struct {
		used int64
		want Level
	}{
		{0, Free}, {799, Free}, {800, Pause}, {799, Pause}, {780, Pause}, {779, Free}, {799, Free},
		{899, Pause}, {900, Refuse}, {880, Refuse}, {879, Pause}, {899, Pause}, {900, Refuse}, {949, Refuse},
		{950, Cut}, {930, Cut}, {929, Refuse}, {949, Refuse}, {1000, Cut}, {879, Pause}, {1000, Cut}, {779, Free},
	} {
		used = x.used
		w.Look()
		l, _, worst := w.State()
		if l != x.want || worst.Used != x.used {
			t.Errorf("step %d, %d of 1000: %v (%v), want %v", i, x.used, l, worst, x.want)
		}
	}
}

// TestFullestCounts: of several disks, and of bytes and files, the fullest one decides and is named.
func TestFullestCounts(t *testing.T) {
	data, objects := int64(10), int64(10)
	w := newWatch(slog.New(slog.DiscardHandler), func(d Disk) ([]Fill, error) {
		if d.What == "data" {
			return []Fill{{What: "data", Unit: "bytes", Used: data, Size: 100}}, nil
		}
		return []Fill{{What: "bucket", Unit: "bytes", Used: 1 << 60, Size: 1 << 62}, {What: "bucket", Unit: "files", Used: objects, Size: 100}}, nil
	}, []Disk{{What: "data"}, {What: "bucket"}})
	for _, x := range []struct {
		data, objects int64
		level         Level
		what, unit    string
	}{{10, 91, Refuse, "bucket", "files"}, {96, 91, Cut, "data", "bytes"}, {10, 10, Free, "bucket", "bytes"}} {
		data, objects = x.data, x.objects
		w.Look()
		if l, _, worst := w.State(); l != x.level || worst.What != x.what || worst.Unit != x.unit {
			t.Errorf("%+v: %v, fullest is %v", x, l, worst)
		}
	}
	if all := w.Fills(); len(all) != 3 {
		t.Errorf("fills: %v", all)
	}
}

// TestDiskThatCannotBeAsked: what was known before still counts, and the log says so once.
func TestDiskThatCannotBeAsked(t *testing.T) {
	var log bytes.Buffer
	var broken error
	w := newWatch(slog.New(slog.NewTextHandler(&log, nil)), func(d Disk) ([]Fill, error) {
		return []Fill{{What: d.What, Unit: "bytes", Used: 92, Size: 100}}[:1:1], broken
	}, []Disk{{What: "disk"}})
	broken = errors.New("gone")
	w.fills = func(Disk) ([]Fill, error) { return nil, broken }
	for range 3 {
		w.Look()
	}
	if l, _, worst := w.State(); l != Refuse || worst.Used != 92 {
		t.Errorf("%v, %v", l, worst)
	}
	if n := strings.Count(log.String(), "cannot be found out"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, &log)
	}
}

// TestRun looks every few seconds until it is told to end.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var looks, used atomic.Int64
		w := newWatch(slog.New(slog.DiscardHandler), func(Disk) ([]Fill, error) {
			looks.Add(1)
			return []Fill{{Unit: "bytes", Used: used.Load(), Size: 100}}, nil
		}, []Disk{{}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.Run(ctx); close(done) }()
		used.Store(97)
		time.Sleep(every + time.Second)
		synctest.Wait()
		if l, since, _ := w.State(); l != Cut || looks.Load() != 2 || time.Since(since) != time.Second {
			t.Errorf("%v since %v after %d looks", l, since, looks.Load())
		}
		cancel()
		<-done
	})
}

// TestRealDisk: what is said of a real file system is about right.
func TestRealDisk(t *testing.T) {
	dir := t.TempDir()
	all, err := Disk{What: "disk", Path: dir}.Fills()
	if err != nil {
		t.Fatal(err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	f := all[0]
	if f.Size <= 0 || f.Used < 0 || f.Used > f.Size || f.Size > int64(st.Blocks)*int64(st.Bsize) || f.Percent() < 0 || f.Percent() > 100 {
		t.Errorf("%+v of %+v", f, st)
	}
	if _, err := (Disk{What: "disk", Path: filepath.Join(dir, "no")}).Fills(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory that is not there: %v", err)
	}
}

func TestBallast(t *testing.T) {
	dir := t.TempDir()
	want, err := BallastSize(dir)
	if err != nil || want <= 0 || want > maxBallast {
		t.Fatalf("%d, %v", want, err)
	}
	there, err := MakeBallast(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !there {
		t.Skip("the disk of this machine is too full for a ballast")
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, BallastName), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != want || st.Blocks*512 < want {
		t.Errorf("the ballast has %d bytes on %d of the disk, and should have %d", st.Size, st.Blocks*512, want)
	}
	if there, err := MakeBallast(dir); err != nil || !there {
		t.Errorf("again: %v, %v", there, err)
	}
	if es, err := os.ReadDir(dir); err != nil || len(es) != 1 {
		t.Errorf("left behind: %v, %v", es, err)
	}
}

// TestFits: a disk that is too small is refused with figures, one that is too full is warned of.
func TestFits(t *testing.T) {
	dir := t.TempDir()
	if w, err := Fits(dir, 0, Part{"a", 1 << 10}, Part{"b", 1 << 10}); w != "" || err != nil {
		t.Errorf("%q, %v", w, err)
	}
	_, err := Fits(dir, 0, Part{"a", 1 << 60}, Part{"b", 1 << 10})
	if err == nil || !strings.Contains(err.Error(), "1152921504606848000 there (1152921504606846976 for a, 1024 for b)") {
		t.Errorf("a disk that is too small: %v", err)
	}
	u, err := statfs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if u.used < 1<<20 {
		t.Skip("nothing is on the disk of this machine")
	}
	w, err := Fits(dir, 0, Part{"a", u.free + u.used/2})
	if err != nil || !strings.Contains(w, "make room") {
		t.Errorf("a disk that is too full: %q, %v", w, err)
	}
	if w, err := Fits(dir, u.used, Part{"a", u.free + u.used/2}); w != "" || err != nil {
		t.Errorf("what is there already: %q, %v", w, err)
	}
}

// TestFillOfReserve: what is used of a reserve is not said to be more than there is.
func TestFillOfReserve(t *testing.T) {
	for f, want := range map[Fill]string{
		{What: "disk", Unit: "bytes", Used: 50, Size: 100}:  "the disk is 50 % full (50 of 100 bytes)",
		{What: "disk", Unit: "bytes", Used: 100, Size: 100}: "the disk is 100 % full (100 of 100 bytes)",
		{What: "disk", Unit: "bytes", Used: 130, Size: 100}: "the disk is 100 % full (130 bytes; what is above 100 is a reserve)",
	} {
		if f.String() != want {
			t.Errorf("%q, want %q", f, want)
		}
	}
}

// TestReserve: where blocks are refused, the reserve is still free, on disks of every size; and a large disk counts as
// what it is.
func TestReserve(t *testing.T) {
	const reserve = 64 << 20
	d := Disk{Reserve: reserve}
	for size := int64(1 << 20); size < 1<<50; size += size/3 + 12345 {
		size := size &^ 4095
		b := d.budget(size)
		if size >= 20*reserve+100 && b != size || b > size || b < 1 {
			t.Errorf("a disk of %d bytes counts as %d", size, b)
		}
		if size <= reserve {
			if next(Free, Fill{Used: 1 << 19, Size: b}) != Cut {
				t.Errorf("a disk of %d bytes has room", size)
			}
			continue
		}
		for _, used := range []int64{size - reserve, size - reserve + 4096} {
			if l := next(Free, Fill{Used: used, Size: b}); l != Cut {
				t.Errorf("with %d of %d bytes used, %v", used, size, l)
			}
		}
	}
}
