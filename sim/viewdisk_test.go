package sim

import (
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/never"
	"holdfast/internal/part"
	"holdfast/service/view"
)

// nthDisk makes the n-th operation on the view's disk fail.
type nthDisk struct {
	n     int
	fault view.DiskFault

	mu    sync.Mutex
	count int
	hit   *view.DiskOp
}

func (f *nthDisk) onOp(op view.DiskOp) view.DiskFault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count++; f.count != f.n {
		return view.DiskFault{}
	}
	f.hit = &op
	return f.fault
}

// TestFailEveryViewOperation makes the N-th operation on the disk of the view fail, for N = 1, 2, 3, ... until there are
// so few, while a service starts on the view of another, takes a backup, gives one back and ends in order. It
// goes on; or does not start, and says why; or an event that must never happen ends it there and then. The next
// start, on a sound disk with what was on it at that moment, has everything that was acknowledged, and clients notice
// nothing.
func TestFailEveryViewOperation(t *testing.T) {
	ends := map[string]int{}
	for i, f := range []view.DiskFault{{Err: syscall.EIO}, {Err: syscall.EIO, Applied: true}, {Err: syscall.ENOSPC}, {Err: syscall.ENOSPC, Applied: true}} {
		n, stride := 1, 1
		switch {
		case !part.Heavy():
			n, stride = 1+4*i, 17
		case i > 0: // the first form shows where; the others need not meet every place
			n, stride = i, 3
		}
		for ; !t.Failed(); n += stride {
			f := &nthDisk{n: n, fault: f}
			how := failView(t, f)
			if f.hit == nil {
				t.Logf("%d operations or more", n-stride)
				break
			}
			ends[how]++
		}
	}
	t.Log(ends)
	if ends["event"] == 0 || ends["no start"] == 0 || ends["went on"] == 0 {
		t.Errorf("it ended in these ways: %v", ends)
	}
}

// failView runs a service on a disk that f has fail, and says how it took it.
func failView(t *testing.T, f *nthDisk) (how string) {
	var mu sync.Mutex
	var end func(never.Event)
	defer never.Catch(func(e never.Event) {
		mu.Lock()
		defer mu.Unlock()
		if end != nil {
			end(e)
			end = nil // the others are of a process that is gone
		}
	})()
	inWorld(t, owner, func(w *world) {
		v := &traveller{world: w, dirs: []string{sapling(w, 1), sapling(w, 2)}, is: map[holdfast.RecordID]string{}, state: map[holdfast.RecordID]history.State{}}
		w.stop()
		w.disk = view.NewDisk()
		w.start()
		v.must(v.backup(0))
		w.stop()

		// The process ends in the middle of whatever it does; what it wrote stays.
		disk := w.disk
		var event *never.Event
		ended := make(chan struct{})
		mu.Lock()
		end = func(e never.Event) {
			w.bucket.Crash()
			disk = w.disk.Crash(100, 1)
			event = &e
			close(ended)
		}
		mu.Unlock()
		defer func() {
			if w.Failed() {
				w.Logf("operation %d, %+v, suffers %+v; event: %+v", f.n, f.hit, f.fault, event)
			}
		}()
		w.disk.OnOp(f.onOp)
		// again starts the service on a sound disk.
		again := func() {
			gone := func() {}
			if w.end != nil {
				gone = w.lose()
			} else {
				w.bucket = w.bucket.Store().Connect(3)
			}
			w.disk.OnOp(nil)
			w.disk = disk
			w.start()
			gone()
		}
		said := func(err error) {
			select {
			case <-ended:
				how = "event"
				if !strings.Contains(event.What, f.fault.Err.Error()) || event.Todo == "" {
					w.Errorf("the event does not say what happened: %+v", event)
				}
				return
			default:
			}
			how = "no start"
			if !errors.Is(err, f.fault.Err) {
				w.Errorf("it ends with %v", err)
			}
		}
		if err := w.serve(w.config()); err != nil {
			said(err)
			again()
		}
		done := make(chan error)
		go func() {
			err := v.backup(1)
			if err == nil {
				err = v.restore(0)
			}
			done <- err
		}()
		var err error
		for running := true; running; {
			select {
			case err = <-done:
				running = false
			case <-ended:
				if how == "" {
					said(nil)
					again()
				}
				err, running = <-done, false
			}
		}
		if err != nil {
			w.Fatalf("the client: %v", err)
		}
		if how == "" {
			err := w.end()
			w.end = nil
			err = errors.Join(err, w.j.Close(w.Context()))
			select {
			case <-ended:
				said(err)
			default:
				how = "went on"
				if err != nil {
					w.Errorf("it ends with: %v", err)
				}
			}
			again()
		}
		w.disk.OnOp(nil)
		time.Sleep(time.Minute)
		v.whole()
		w.disk = nil
		w.crash()
		v.whole()
	})
	return how
}
