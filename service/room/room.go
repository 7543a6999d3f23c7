// Package room watches how full the disks of the service are, and says what is to rest so that there is room for what
// must go on. It knows the disk of the data directory, and that of a bucket in a directory; a bucket elsewhere has
// room enough.
//
// What is full is a share of a disk's bytes, and of its files where the file system counts those. By the fullest:
//
//	80 %  Pause   what frees no space and can wait rests
//	90 %  Refuse  no new session is opened
//	95 %  Cut     blocks of open sessions are refused as well
//
// Reading, deleting, and what frees space go on at every level, in the room that is left. A level ends two percent below
// where it begins, so that a disk at its border does not have the service change its mind every few seconds.
//
// From how full they were in the last days it says when they will be full, days ahead: forecast.go.
//
// The package also keeps a ballast in the data directory: a file of no use, whose removal gives an operator room to
// work in.
package room

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Level says what is to rest. Each includes those before it.
type Level int

// The levels.
const (
	Free   Level = iota
	Pause        // what frees no space and can wait
	Refuse       // new sessions
	Cut          // blocks of open sessions
)

func (l Level) String() string { return [...]string{"free", "pause", "refuse", "cut"}[l] }

// begins says at what share of a budget each level begins, percent; it ends slack below.
var begins = [...]int64{Free: 0, Pause: 80, Refuse: 90, Cut: 95}

const (
	slack = 2
	every = 2 * time.Second // between two looks
)

// Fill is how much of something limited is used.
type Fill struct {
	What string `json:"what"` // such as "disk of the bucket"
	Path string `json:"path"` // somewhere on it
	Unit string `json:"unit"` // "bytes" or "files"
	Used int64  `json:"used"`
	Size int64  `json:"size"` // that this process can use
}

// Percent returns how full it is, rounded down, and 100 where a reserve is being used.
func (f Fill) Percent() int64 {
	if f.Size <= 0 {
		return 0
	}
	return min(100, int64(float64(f.Used)/float64(f.Size)*100))
}

func (f Fill) String() string {
	if f.Used > f.Size {
		return fmt.Sprintf("the %s is %d %% full (%d %s; what is above %d is a reserve)", f.What, f.Percent(), f.Used, f.Unit, f.Size)
	}
	return fmt.Sprintf("the %s is %d %% full (%d of %d %s)", f.What, f.Percent(), f.Used, f.Size, f.Unit)
}

// Disk is a file system that is watched.
type Disk struct {
	What string // such as "disk of the bucket"
	Path string // a directory on it
	// Reserve is what must stay free from Cut on, bytes. Where five percent of the disk are less than that, the disk counts
	// as smaller than it is.
	Reserve int64
}

// budget returns as what a disk of size bytes counts, so that d.Reserve is free when that is full up to Cut.
func (d Disk) budget(size int64) int64 {
	if size-size/100*begins[Cut] >= d.Reserve {
		return size
	}
	return max(1, (size-d.Reserve)/begins[Cut]*100)
}

// Fills asks how full d is: its bytes, and its files where they are counted.
func (d Disk) Fills() ([]Fill, error) {
	u, err := statfs(d.Path)
	if err != nil {
		return nil, &fs.PathError{Op: "look at the " + d.What, Path: d.Path, Err: err}
	}
	all := []Fill{{d.What, d.Path, "bytes", u.used, d.budget(u.used + u.free)}}
	if u.files > 0 {
		all = append(all, Fill{d.What, d.Path, "files", u.files - u.freeFiles, u.files})
	}
	return all, nil
}

// Watch watches disks. It is safe for concurrent use.
type Watch struct {
	disks []Disk
	log   *slog.Logger
	fills func(Disk) ([]Fill, error) // but for tests Disk.Fills

	mu      sync.Mutex
	level   Level
	since   time.Time // when it came to be
	worst   Fill      // at the last look
	all     []Fill
	unasked map[Disk]bool // could not be asked at the last look, which was logged

	series []*series // how much room there was of each of all; maxSeries at most
	path   string    // of the file that keeps them; "" for none
	saved  time.Time // when it was written or read
}

// New returns a Watch that has looked once.
func New(log *slog.Logger, disks ...Disk) *Watch { return newWatch(log, Disk.Fills, disks) }

// Simulated is New with disks that are as full as fills says, for tests.
func Simulated(log *slog.Logger, fills func(Disk) ([]Fill, error), disks ...Disk) *Watch {
	return newWatch(log, fills, disks)
}

func newWatch(log *slog.Logger, fills func(Disk) ([]Fill, error), disks []Disk) *Watch {
	w := &Watch{disks: disks, log: log, fills: fills, unasked: map[Disk]bool{}}
	w.Look()
	return w
}

// Run looks every few seconds until ctx ends, and then writes what Remember keeps.
func (w *Watch) Run(ctx context.Context) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			w.Look()
		case <-ctx.Done():
			w.mu.Lock()
			defer w.mu.Unlock()
			w.save()
			return
		}
	}
}

// Look looks at the disks now. What a disk that cannot be asked said before still counts.
func (w *Watch) Look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []Fill
	for _, d := range w.disks {
		fills, err := w.fills(d)
		if err != nil {
			if !w.unasked[d] {
				w.log.Warn("how full a disk is cannot be found out; what was known before still counts", "error", err)
			}
			for _, f := range w.all {
				if f.What == d.What {
					fills = append(fills, f)
				}
			}
		}
		w.unasked[d] = err != nil
		all = append(all, fills...)
	}
	w.all, w.worst = all, Fill{}
	w.note()
	level := Free
	for _, f := range all {
		level = max(level, next(w.level, f))
		if f.Size > 0 && (w.worst.Size == 0 || float64(f.Used)/float64(f.Size) > float64(w.worst.Used)/float64(w.worst.Size)) {
			w.worst = f
		}
	}
	if level == w.level {
		return
	}
	say := w.log.Warn
	if level < w.level {
		say = w.log.Info
	}
	say(map[Level]string{
		Free:   "there is room again",
		Pause:  "room is getting short: what can wait rests",
		Refuse: "room is short: new backups are refused; restores and deletions go on",
		Cut:    "there is hardly any room: blocks are refused; restores and deletions go on",
	}[level], "fullest", w.worst.String())
	w.level, w.since = level, time.Now()
}

// next returns the level that follows from f while it is now.
func next(now Level, f Fill) Level {
	for l := Cut; l > Free; l-- {
		at := begins[l]
		if now >= l {
			at -= slack
		}
		if f.Size > 0 && float64(f.Used)*100 >= float64(at)*float64(f.Size) {
			return l
		}
	}
	return Free
}

// State returns the level, since when it is that, and what was fullest at the last look.
func (w *Watch) State() (l Level, since time.Time, worst Fill) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.level, w.since, w.worst
}

// Fills returns what the last look found.
func (w *Watch) Fills() []Fill {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Fill{}, w.all...)
}

// BallastName is the name of the ballast in the data directory.
const BallastName = "ballast"

// maxBallast bounds the ballast, bytes; on a small disk it is a hundredth of that.
const maxBallast = 64 << 20

// BallastSize returns how large the ballast in dir is to be.
func BallastSize(dir string) (int64, error) {
	u, err := statfs(dir)
	if err != nil {
		return 0, &fs.PathError{Op: "look at the disk of", Path: dir, Err: err}
	}
	return min(maxBallast, (u.used+u.free)/100) &^ 4095, nil
}

// MakeBallast makes the ballast in dir if it is not there and there is room for it below the first level. It says
// whether the ballast is there.
func MakeBallast(dir string) (there bool, err error) {
	path := filepath.Join(dir, BallastName)
	if st, err := os.Stat(path); err == nil {
		return st.Mode().IsRegular() && st.Size() > 0, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("look at the ballast: %w", err)
	}
	u, err := statfs(dir)
	if err != nil {
		return false, &fs.PathError{Op: "look at the disk of", Path: dir, Err: err}
	}
	size, err := BallastSize(dir)
	if err != nil {
		return false, err
	}
	if next(Free, Fill{Used: u.used + size, Size: u.used + u.free}) > Free || size == 0 {
		return false, nil
	}
	// A crash between the steps leaves a temporary file of its size, which the next one replaces.
	tmp := filepath.Join(dir, ".tmp-"+BallastName)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return false, fmt.Errorf("make the ballast: %w", err)
	}
	err = allocate(f, size)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return false, fmt.Errorf("make the ballast: %w", err)
	}
	return true, nil
}

// Part is a file, or what is to have room, on the disk of the data directory.
type Part struct {
	What string
	Size int64 // bytes, at most
}

// Fits returns an error if the disk of dir is smaller than the sum of what must have room on it, and a warning if
// less than what is missing of that is free. have is what is there already.
func Fits(dir string, have int64, parts ...Part) (warning string, err error) {
	u, err := statfs(dir)
	if err != nil {
		return "", &fs.PathError{Op: "look at the disk of", Path: dir, Err: err}
	}
	var sum int64
	text := ""
	for _, p := range parts {
		sum += p.Size
		text += fmt.Sprintf(", %d for %s", p.Size, p.What)
	}
	text = text[min(len(text), 2):]
	if size := u.used + u.free; size < sum {
		return "", fmt.Errorf("the disk of %s has %d bytes, and the service needs %d there (%s): give it a larger one", dir, size, sum, text)
	}
	if missing := sum - have; missing > u.free {
		return fmt.Sprintf("the disk of %s has %d bytes free, and what the service needs may grow by %d (%s in all): make room, or it will stop", dir, u.free, missing, text), nil
	}
	return "", nil
}
