package jobs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// world runs jobs in virtual time, from which processes are started and ended.
type world struct {
	*testing.T
	path string
	jobs []Job
	full string
	log  bytes.Buffer
	r    *Runner
	end  func()
}

func (w *world) start() {
	w.r = New(Config{Jobs: w.jobs, Path: w.path, Full: func() string { return w.full }, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.r.Loop(ctx)
	}()
	w.end = func() {
		cancel()
		<-done
	}
}

func inWorld(t *testing.T, jobs []Job, fn func(*world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, path: filepath.Join(t.TempDir(), FileName), jobs: jobs}
		w.start()
		fn(w)
		w.end()
	})
}

// pass lets time pass, and what is due run.
func (w *world) pass(d time.Duration) {
	w.r.Status() // what the test changed before, jobs see: they begin under the lock that this takes
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) status(name string) Status {
	w.Helper()
	all := w.r.Status()
	i := slices.IndexFunc(all, func(s Status) bool { return s.Name == name })
	if i < 0 {
		w.Fatalf("there is no job %s", name)
	}
	return all[i]
}

func TestSchedule(t *testing.T) {
	var ran []string
	var took time.Duration
	job := func(name string, every time.Duration) Job {
		return Job{Name: name, Every: every, Run: func(context.Context, *Turn) (Result, error) {
			ran = append(ran, name)
			time.Sleep(took)
			return Result{Text: name + " is done"}, nil
		}}
	}
	inWorld(t, []Job{job("hourly", time.Hour), job("daily", 24*time.Hour), job("asked", 0)}, func(w *world) {
		w.pass(settle - time.Second)
		if len(ran) != 0 {
			t.Errorf("at once: %v", ran)
		}
		w.pass(2 * time.Second)
		if !slices.Equal(ran, []string{"hourly", "daily"}) {
			t.Errorf("after a start: %v", ran)
		}
		if s := w.status("hourly"); s.Turns != 1 || s.Text != "hourly is done" || s.Error != "" || !s.Good.Equal(s.Ended) || !s.Next.Equal(s.Began.Add(time.Hour)) {
			t.Errorf("%+v", s)
		}
		if s := w.status("asked"); !s.Next.IsZero() || s.Turns != 0 {
			t.Errorf("%+v", s)
		}
		ran = nil
		w.pass(24 * time.Hour)
		if n := len(ran); n != 25 {
			t.Errorf("%d runs in a day", n)
		}
		// What is remembered is that of the process before: nothing runs early.
		w.end()
		ran = nil
		w.start()
		w.pass(30 * time.Minute)
		if len(ran) != 0 {
			t.Errorf("after a restart: %v", ran)
		}
		if s := w.status("hourly"); s.Turns != 25 || s.Text != "hourly is done" {
			t.Errorf("after a restart: %+v", s)
		}
		// By hand, while another has its turn: it comes next, and one at a time.
		took = 10 * time.Minute
		w.pass(30 * time.Minute)
		if s := w.status("hourly"); !s.Running {
			t.Fatalf("%+v, %v", s, ran)
		}
		began := time.Now()
		res, err := w.r.Now(context.Background(), "asked")
		if err != nil || res.Text != "asked is done" || time.Since(began) < took {
			t.Errorf("%+v, %v after %s", res, err, time.Since(began))
		}
		if _, err := w.r.Now(context.Background(), "nothing"); !errors.Is(err, ErrUnknown) {
			t.Error(err)
		}
		// Who gives up waiting leaves the turn to go on.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := w.r.Now(ctx, "asked"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		w.pass(took)
		if s := w.status("asked"); s.Turns != 2 || s.Running {
			t.Errorf("%+v", s)
		}
	})
}

// TestTurns: a job that has more to do goes on after the others, and is asked to end when it had its time or somebody waits.
func TestTurns(t *testing.T) {
	var ran []string
	left := 3
	jobs := []Job{
		{Name: "long", Every: 24 * time.Hour, Run: func(ctx context.Context, turn *Turn) (Result, error) {
			began := time.Now()
			for !turn.Enough() {
				time.Sleep(time.Second)
			}
			ran = append(ran, "long "+time.Since(began).String())
			left--
			return Result{More: left > 0}, nil
		}},
		{Name: "short", Every: 24 * time.Hour, Run: func(context.Context, *Turn) (Result, error) {
			ran = append(ran, "short")
			return Result{}, nil
		}},
	}
	inWorld(t, jobs, func(w *world) {
		go func() {
			time.Sleep(settle + Slice + time.Minute - time.Second/2)
			w.r.Now(context.Background(), "short")
		}()
		w.pass(2 * time.Hour)
		if want := []string{"long 10m0s", "short", "long 1m0s", "short", "long 10m0s"}; !slices.Equal(ran, want) {
			t.Errorf("%q, want %q", ran, want)
		}
	})
}

func TestBreaker(t *testing.T) {
	var fail error
	var did uint64
	runs := 0
	job := Job{Name: "job", Every: 6 * time.Hour, Run: func(_ context.Context, turn *Turn) (Result, error) {
		runs++
		turn.Did(did)
		return Result{}, fail
	}}
	inWorld(t, []Job{job}, func(w *world) {
		w.pass(settle)
		fail = errors.New("no bucket")
		w.pass(6 * time.Hour)
		if s := w.status("job"); s.Failures != 1 || s.Error != "no bucket" || !s.Next.Equal(s.Ended.Add(retry)) || !s.Breaker.IsZero() || !s.Good.Before(s.Ended) {
			t.Errorf("after a failure: %+v", s)
		}
		w.pass(time.Hour)
		did = 1 // fails, and gets something done
		w.pass(time.Hour)
		if s := w.status("job"); s.Failures != 0 || s.Error == "" {
			t.Errorf("after a failure with progress: %+v", s)
		}
		did = 0
		w.pass(3 * time.Hour)
		s := w.status("job")
		if s.Failures != 3 || !s.Breaker.Equal(s.Ended.Add(Rest)) || !s.Next.Equal(s.Breaker) || !strings.Contains(w.log.String(), `level=ERROR msg="a job rests" job=job`) {
			t.Errorf("after three in a row: %+v, log %s", s, w.log.String())
		}
		// It rests, over restarts as well, and not for longer.
		runs = 0
		w.pass(Rest / 2)
		w.end()
		w.start()
		w.pass(Rest/2 - time.Minute)
		if runs != 0 {
			t.Errorf("it ran %d times while it should rest", runs)
		}
		w.pass(2 * time.Minute)
		if s := w.status("job"); runs != 1 || s.Failures != 4 || s.Breaker.IsZero() {
			t.Errorf("%d runs after the rest: %+v", runs, s)
		}
		// By hand it runs, and one that succeeds closes the breaker.
		fail = nil
		if _, err := w.r.Now(context.Background(), "job"); err != nil {
			t.Error(err)
		}
		if s := w.status("job"); s.Failures != 0 || !s.Breaker.IsZero() || !s.Next.Equal(s.Began.Add(6*time.Hour)) {
			t.Errorf("after a run by hand: %+v", s)
		}
	})
}

// TestBreakerOfACrash: a job that brings its process down rests after three times, unless it gets something done; one that
// is cut short by an orderly end goes on with the next start, and that is no failure.
func TestBreakerOfACrash(t *testing.T) {
	var did uint64
	runs := 0
	job := Job{Name: "job", Every: 6 * time.Hour, Run: func(ctx context.Context, turn *Turn) (Result, error) {
		runs++
		turn.Did(did)
		<-ctx.Done()
		return Result{}, ctx.Err()
	}}
	inWorld(t, []Job{job}, func(w *world) {
		// crash ends the process in the middle of a turn: the next one finds the file as it was then.
		crash := func() {
			w.pass(2 * time.Hour)
			raw, err := os.ReadFile(w.path)
			if err != nil {
				t.Fatal(err)
			}
			w.end()
			if err := os.WriteFile(w.path, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			w.start()
		}
		for range 3 {
			w.pass(2 * time.Hour)
			w.end()
			w.start()
		}
		if s := w.status("job"); runs != 3 || s.Failures != 0 || s.Error != "" || !strings.HasPrefix(s.Text, "cut short") {
			t.Errorf("after three orderly ends, %d runs: %+v", runs, s)
		}
		did = 1
		for range 4 {
			crash()
		}
		if s := w.status("job"); runs != 7 || s.Failures != 0 || s.Error != "the process ended during the run" {
			t.Errorf("after crashes with progress, %d runs: %+v", runs, s)
		}
		did = 0
		for range 3 {
			crash()
		}
		if s := w.status("job"); runs != 10 || s.Failures != 3 || s.Breaker.IsZero() {
			t.Errorf("after crashes without, %d runs: %+v", runs, s)
		}
		w.pass(2 * time.Hour)
		if runs != 10 {
			t.Errorf("it runs although it rests")
		}
	})
}

// TestRests: while a disk is nearly full, what can wait does, and says why; the others go on, and so does what is asked for.
func TestRests(t *testing.T) {
	runs := map[string]int{}
	job := func(name string, rests bool) Job {
		return Job{Name: name, Every: time.Hour, Rests: rests, Run: func(context.Context, *Turn) (Result, error) {
			runs[name]++
			return Result{}, nil
		}}
	}
	inWorld(t, []Job{job("frees", false), job("waits", true)}, func(w *world) {
		w.full = "the disk is 81 % full"
		w.pass(90 * time.Minute)
		if runs["frees"] != 2 || runs["waits"] != 0 {
			t.Errorf("%v", runs)
		}
		if s := w.status("waits"); s.Rests != w.full {
			t.Errorf("%+v", s)
		}
		if s := w.status("frees"); s.Rests != "" {
			t.Errorf("%+v", s)
		}
		if _, err := w.r.Now(context.Background(), "waits"); err != nil {
			t.Error(err)
		}
		if runs["waits"] != 1 {
			t.Errorf("by hand: %v", runs)
		}
		w.pass(2 * time.Hour)
		w.full = ""
		w.pass(paused)
		if runs["waits"] != 2 || w.status("waits").Rests != "" {
			t.Errorf("when there is room again: %v", runs)
		}
	})
}

// TestMemory: what a job saves is there in later turns and processes; its budget is that of the month.
func TestMemory(t *testing.T) {
	type memory struct{ Cursor int }
	var got []int
	var used []uint64
	job := Job{Name: "job", Every: 24 * time.Hour, Run: func(_ context.Context, turn *Turn) (Result, error) {
		m := memory{-1}
		turn.Load(&m)
		got, used = append(got, m.Cursor), append(used, turn.Used())
		turn.Spend(100)
		turn.Save(memory{m.Cursor + 1})
		return Result{}, nil
	}}
	inWorld(t, []Job{job}, func(w *world) {
		start := time.Now() // 2000-01-01
		w.pass(settle)
		w.pass(24 * time.Hour)
		w.end()
		w.start()
		w.pass(25 * time.Hour)
		if !slices.Equal(got, []int{-1, 0, 1}) || !slices.Equal(used, []uint64{0, 100, 200}) {
			t.Errorf("%v, %v", got, used)
		}
		if s := w.status("job"); s.Used != 300 || string(s.Memory) != `{"Cursor":2}` {
			t.Errorf("%+v", s)
		}
		w.pass(time.Until(start.AddDate(0, 1, 0)))
		if s := w.status("job"); s.Used != 0 {
			t.Errorf("in the next month: %+v", s)
		}
		w.pass(24 * time.Hour)
		if used[len(used)-1] != 0 || got[len(got)-1] < 28 {
			t.Errorf("%v, %v", got, used)
		}
	})
}

// TestClockSetBack: a clock that was set back by a year does not keep a job from running for a year.
func TestClockSetBack(t *testing.T) {
	runs := 0
	job := Job{Name: "job", Every: time.Hour, Run: func(context.Context, *Turn) (Result, error) {
		runs++
		return Result{}, nil
	}}
	inWorld(t, []Job{job}, func(w *world) {
		w.pass(settle)
		w.end()
		f, all, err := openFile(w.path)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		all[0].Began, all[0].Ended = all[0].Began.AddDate(1, 0, 0), all[0].Ended.AddDate(1, 0, 0)
		if err := f.write(all); err != nil {
			t.Fatal(err)
		}
		f.close()
		w.start()
		w.pass(61 * time.Minute)
		if runs != 2 {
			t.Errorf("%d runs", runs)
		}
		w.end()
		if f, all, err = openFile(w.path); err != nil {
			t.Fatal(err)
		}
		all[0].Open = time.Now().AddDate(1, 0, 0)
		if err := f.write(all); err != nil {
			t.Fatal(err)
		}
		f.close()
		w.start()
		w.pass(Rest + time.Minute)
		if runs != 3 {
			t.Errorf("%d runs", runs)
		}
	})
}
