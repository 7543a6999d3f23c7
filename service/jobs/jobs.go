// Package jobs runs what the service does in the background, one job at a time, and remembers how each went.
//
// One run of a job is a turn: a part of its work after which another job may have its turn. A job that is to be run
// every few hours, or by hand, and has more to do says so and gets another turn after the others had theirs. Since there
// is one turn at a time, what a job may use of memory (Memory) is what all of them together use.
//
// A turn that fails and has done nothing counts: after three in a row the job's breaker opens, and it rests for a
// day or until somebody runs it by hand. A turn that ended because its process did counts as well, unless it was told
// to: a job that brings the process down does not do so for ever.
//
// What is remembered lies in one file of a fixed size (file.go). If it is lost or cannot be written, jobs run a
// little more often than they would; nothing else depends on it.
package jobs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// Memory is what one turn may use of memory, bytes: a job that needs much borrows it from the journal (Borrow).
	Memory = 24 << 20
	// Slice is after what time a turn is asked to end where it can go on later.
	Slice = 10 * time.Minute
	// Rest is how long a job rests after too many turns in a row that failed without progress, breakAfter.
	Rest       = 24 * time.Hour
	breakAfter = 3
	// retry is how long after a turn that failed the next one is, if the job is not due earlier.
	retry = time.Hour
	// settle is how long after a start no job begins by itself.
	settle = time.Minute
	// paused is how long a job that rests because of a full disk waits until it is asked again.
	paused = time.Minute

	maxJobs   = 8       // whose state the file has room for
	maxText   = 500     // bytes of what a turn said, and of its error
	maxMemory = 4 << 10 // bytes of what a job saves
	maxName   = 32      // bytes
	maxAsked  = 16      // that wait for a turn by hand
)

// Job is one kind of background work.
type Job struct {
	Name string // a word, as in status and in the configuration
	// Every is from the beginning of one run to the beginning of the next; 0 is only when somebody asks.
	Every time.Duration
	// Rests says that the job frees no space and can wait: it does not run by itself while a disk is nearly full.
	Rests bool
	// Run does a part of the work. It returns soon after ctx ended, and, where it can go on later, soon after
	// Turn.Enough.
	Run func(ctx context.Context, t *Turn) (Result, error)
}

// Result says how a turn ended.
type Result struct {
	// More says that the job can go on at once: it gets another turn after the others.
	More bool
	// Text says in one sentence what was done, or why nothing was; the first 500 bytes are kept.
	Text string
	// Report is handed to whoever asked for the turn, and is not kept.
	Report any
}

// Turn is one run as the job sees it. It is for the goroutine of Job.Run.
type Turn struct {
	Asked bool // by hand
	r     *Runner
	s     *state
	until time.Time
}

// Did notes that n of whatever the job counts are done for good. A turn that did something does not count
// towards the breaker, however it ends.
func (t *Turn) Did(n uint64) {
	if n == 0 {
		return
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	first := t.s.Did == 0
	t.s.Did += n
	if first {
		t.r.save()
	}
}

// Enough reports whether the turn has had its time, or another job waits for one.
func (t *Turn) Enough() bool {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	return !time.Now().Before(t.until) || len(t.r.asked) > 0
}

// Load decodes what Save kept last into v, as JSON; it changes nothing if there is nothing, or something else.
func (t *Turn) Load(v any) {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	if len(t.s.Memory) > 0 && json.Unmarshal(t.s.Memory, v) != nil {
		t.r.log.Warn("what a job remembered cannot be read", "job", t.s.Name)
	}
}

// Save keeps v for later turns, over restarts as well. It panics if v takes more than 4 KiB as JSON.
func (t *Turn) Save(v any) {
	raw, err := json.Marshal(v)
	if err != nil || len(raw) > maxMemory {
		panic(fmt.Sprintf("jobs: %s saves %d bytes (%v)", t.s.Name, len(raw), err))
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.s.Memory = raw
	t.r.save()
}

// Used returns what the job has spent of the budget of this calendar month, UTC.
func (t *Turn) Used() uint64 {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.s.roll(time.Now())
	return t.s.Used
}

// Spend adds to that; it is on disk with the next Save, and at the end of the turn.
func (t *Turn) Spend(bytes uint64) {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	t.s.roll(time.Now())
	t.s.Used += bytes
}

// state is what is remembered of a job, as the file has it.
type state struct {
	Name     string          `json:"name"`
	Turns    uint64          `json:"turns"`
	Began    time.Time       `json:"began,omitzero"` // the last turn
	Ended    time.Time       `json:"ended,omitzero"`
	Running  bool            `json:"running,omitempty"`
	More     bool            `json:"more,omitempty"`
	Did      uint64          `json:"did,omitempty"` // in the last turn
	Text     string          `json:"text,omitempty"`
	Error    string          `json:"error,omitempty"`
	Failures int             `json:"failures,omitempty"` // in a row, without progress
	Open     time.Time       `json:"open,omitzero"`      // until when the breaker is
	Good     time.Time       `json:"good,omitzero"`      // end of the last turn without an error
	Month    string          `json:"month,omitempty"`
	Used     uint64          `json:"used,omitempty"` // in that month, bytes
	Memory   json.RawMessage `json:"memory,omitempty"`
}

// roll begins the budget of another month.
func (s *state) roll(now time.Time) {
	if m := now.UTC().Format("2006-01"); m != s.Month {
		s.Month, s.Used = m, 0
	}
}

// notLater moves what a clock says that was set back since to that time, so that nothing waits for it to come back.
func (s *state) notLater(now time.Time) {
	for _, t := range []*time.Time{&s.Began, &s.Ended, &s.Good} {
		if t.After(now) {
			*t = now
		}
	}
	if s.Open.After(now.Add(Rest)) {
		s.Open = now.Add(Rest)
	}
}

// fail notes a turn that failed, and opens the breaker after too many.
func (s *state) fail(now time.Time, why string) (opened bool) {
	s.Error = cut(why)
	if s.Did > 0 {
		s.Failures = 0
		return false
	}
	if s.Failures++; s.Failures < breakAfter {
		return false
	}
	s.Open = now.Add(Rest)
	return true
}

// Config says which jobs, and where what is remembered of them lies.
type Config struct {
	Jobs []Job
	Path string       // of the file; "" remembers in memory only
	Log  *slog.Logger // nil discards
	// Full, if set, says why jobs that free no space are to rest; "" if they need not.
	Full func() string
}

// Runner runs jobs. It is safe for concurrent use.
type Runner struct {
	log   *slog.Logger
	full  func() string
	jobs  []Job
	began time.Time

	mu      sync.Mutex
	file    *file
	states  []*state // of jobs, then of names that are no job now
	asked   []*asking
	running string // name of the job that has its turn
	ended   bool   // Loop has
	wake    chan struct{}
}

// asking is somebody who waits for a turn.
type asking struct {
	job  int
	done chan struct{}
	res  Result
	err  error
}

// What Now returns.
var (
	// ErrUnknown reports a job that there is not.
	ErrUnknown = errors.New("there is no such job")
	// ErrEnded reports that the process ends, and runs no more jobs.
	ErrEnded = errors.New("the service ends and runs no more jobs")
)

// New returns a Runner of jobs, which have different names, each a short word.
func New(cfg Config) *Runner {
	r := &Runner{log: cfg.Log, full: cfg.Full, jobs: cfg.Jobs, wake: make(chan struct{}, 1), began: time.Now()}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.full == nil {
		r.full = func() string { return "" }
	}
	if len(cfg.Jobs) > maxJobs {
		panic("jobs: too many jobs")
	}
	known, noted := map[string]*state{}, false
	if cfg.Path != "" {
		var err error
		var kept []*state
		r.file, kept, err = openFile(cfg.Path)
		if err != nil {
			r.log.Warn("what is known of the jobs is lost", "error", err)
		}
		for _, s := range kept {
			known[s.Name] = s
		}
	}
	for _, j := range cfg.Jobs {
		s := known[j.Name]
		if s == nil {
			s = &state{Name: j.Name}
		}
		if s.Running { // it did not end: the process did, in the middle of it
			s.Running, s.Ended, noted = false, s.Began, true
			if s.fail(r.began, "the process ended during the run") {
				r.log.Error("a job rests", "job", s.Name, "until", s.Open.UTC(), "error", s.Error)
			}
		}
		s.notLater(r.began)
		r.states = append(r.states, s)
	}
	if noted { // once: or each start would find it again, and begin the rest anew
		r.save()
	}
	return r
}

// Loop runs the jobs until ctx ends.
func (r *Runner) Loop(ctx context.Context) {
	defer r.end()
	for {
		i, a, wait := r.next(time.Now())
		if ctx.Err() != nil {
			if a != nil {
				a.err = ErrEnded
				close(a.done)
			}
			return
		}
		if i >= 0 {
			r.turn(ctx, i, a)
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// end tells those who wait that nobody runs anything any more.
func (r *Runner) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	for _, a := range r.asked {
		a.err = ErrEnded
		close(a.done)
	}
	r.asked = nil
	r.file.close()
}

// next returns whose turn it is: first what was asked for, then what has been due for longest. It returns -1 and how
// long nothing is due.
func (r *Runner) next(now time.Time) (i int, a *asking, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.asked) > 0 {
		a, r.asked = r.asked[0], r.asked[1:]
		return a.job, a, 0
	}
	i, wait = -1, 24*time.Hour
	var first time.Time
	for k, j := range r.jobs {
		due := r.due(k)
		switch {
		case due.IsZero():
		case due.After(now):
			wait = min(wait, due.Sub(now))
		case j.Rests && r.full() != "":
			wait = min(wait, paused)
		case i < 0 || due.Before(first):
			i, first = k, due
		}
	}
	return i, nil, wait
}

// due returns when job i runs by itself; zero for never.
func (r *Runner) due(i int) time.Time {
	j, s := r.jobs[i], r.states[i]
	if j.Every == 0 && !s.More {
		return time.Time{}
	}
	at := s.Began.Add(j.Every)
	switch {
	case s.Turns == 0:
		at = r.began
	case s.Error != "" && !s.More:
		at = s.Ended.Add(min(j.Every, retry))
	case s.More:
		at = s.Ended
	}
	if s.Open.After(at) {
		at = s.Open
	}
	if early := r.began.Add(settle); at.Before(early) {
		at = early
	}
	return at
}

// turn gives job i its turn.
func (r *Runner) turn(ctx context.Context, i int, a *asking) {
	j, s, now := r.jobs[i], r.states[i], time.Now()
	r.mu.Lock()
	s.Turns++
	s.Began, s.Running, s.Did, s.More = now, true, 0, false
	if a != nil {
		s.Failures, s.Open = 0, time.Time{}
	}
	r.running = s.Name
	r.save()
	r.mu.Unlock()

	res, err := j.Run(ctx, &Turn{Asked: a != nil, r: r, s: s, until: now.Add(Slice)})

	now = time.Now()
	r.mu.Lock()
	s.Ended, s.Running, s.More, s.Text = now, false, res.More, cut(res.Text)
	r.running = ""
	opened := false
	switch {
	case err == nil:
		s.Error, s.Failures, s.Good = "", 0, now
		s.Open = time.Time{}
	case ctx.Err() != nil: // we were told to end; it is no fault of the job's
		s.Error, s.More = "", true
		s.Text = "cut short by the end of the service; " + s.Text
	default:
		s.More = false
		opened = s.fail(now, err.Error())
	}
	until := s.Open
	r.save()
	r.mu.Unlock()
	switch {
	case opened:
		r.log.Error("a job rests", "job", s.Name, "until", until.UTC(), "error", err)
	case err != nil && ctx.Err() == nil:
		r.log.Error("a job failed", "job", s.Name, "did", s.Did, "error", err)
	case s.Did > 0:
		r.log.Info("a job ran", "job", s.Name, "did", res.Text)
	}
	if a != nil {
		a.res, a.err = res, err
		close(a.done)
	}
}

// save writes the states. mu is held.
func (r *Runner) save() {
	if r.file == nil {
		return
	}
	if err := r.file.write(r.states); err != nil {
		r.log.Warn("what is known of the jobs cannot be written", "error", err)
	}
}

// Now has a job run as soon as the turn that is under way has ended, and waits for it. It closes the job's breaker.
// The turn goes on if ctx ends meanwhile. It needs Loop.
func (r *Runner) Now(ctx context.Context, name string) (Result, error) {
	a := &asking{job: slices.IndexFunc(r.jobs, func(j Job) bool { return j.Name == name }), done: make(chan struct{})}
	if a.job < 0 {
		return Result{}, fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	r.mu.Lock()
	switch {
	case r.ended:
		r.mu.Unlock()
		return Result{}, ErrEnded
	case len(r.asked) >= maxAsked:
		r.mu.Unlock()
		return Result{}, fmt.Errorf("%d others wait for a job to run already; try again later", maxAsked)
	}
	r.asked = append(r.asked, a)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	select {
	case <-a.done:
		return a.res, a.err
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
}

// Status is how a job is.
type Status struct {
	Name    string    `json:"name"`
	Turns   uint64    `json:"turns"`
	Began   time.Time `json:"began,omitzero"` // of the last turn, or of the one under way
	Ended   time.Time `json:"ended,omitzero"`
	Good    time.Time `json:"good,omitzero"` // end of the last turn without an error
	Running bool      `json:"running"`
	Text    string    `json:"text,omitempty"`
	Error   string    `json:"error,omitempty"` // of the last turn
	// Next is when it runs by itself; zero for only when asked.
	Next time.Time `json:"next,omitzero"`
	// Breaker is until when it rests because it failed too often, after so many failures.
	Breaker  time.Time `json:"breaker,omitzero"`
	Failures int       `json:"failures,omitempty"`
	// Rests says why it waits although it is due.
	Rests string `json:"rests,omitempty"`
	// Used is what it spent of the budget of the month, bytes.
	Used   uint64          `json:"used,omitempty"`
	Memory json.RawMessage `json:"memory,omitempty"` // what it saved
}

// Status returns how the jobs are, in the order of their names.
func (r *Runner) Status() []Status {
	full, now := r.full(), time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Status
	for i, j := range r.jobs {
		s := r.states[i]
		x := Status{
			Name: s.Name, Turns: s.Turns, Began: s.Began, Ended: s.Ended, Good: s.Good, Running: s.Running, Text: s.Text, Error: s.Error,
			Next: r.due(i), Failures: s.Failures, Memory: slices.Clone(s.Memory),
		}
		if s.Open.After(now) {
			x.Breaker = s.Open
		}
		if j.Rests && full != "" && !s.Running {
			x.Rests = full
		}
		if s.Month == now.UTC().Format("2006-01") {
			x.Used = s.Used
		}
		all = append(all, x)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// cut bounds what a job says.
func cut(text string) string {
	if len(text) > maxText {
		text = text[:maxText]
	}
	return strings.ToValidUTF8(text, "")
}
