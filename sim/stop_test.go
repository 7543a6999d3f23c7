package sim

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/never"
	"holdfast/service/view"
)

// backups is how many are made while the disk is to fail: the database writes when it has gathered some rows.
const backups = 6

// TestScenarioR5: the disk of the view becomes full, or fails, at the N-th write of some backups and the orderly end after them, and stays so. An event stops the
// service there; a start on that disk is stopped as well; with room, or with a disk that was replaced, the next one has all
// that was acknowledged, and the backups come to their end.
func TestScenarioR5(t *testing.T) {
	stops := 0
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO} {
		for n := 1; stopsAt(t, cause, n); n++ {
			stops++
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("stopped at %d places", stops)
	if stops < 6 {
		t.Errorf("stopped at only %d places", stops)
	}
}

// stopsAt reports whether there are n writes to the view's disk; then the disk takes that one and all after it with
// cause.
func stopsAt(t *testing.T, cause error, n int) (stopped bool) {
	var mu sync.Mutex
	var event func(never.Event) // of the process that lives
	defer never.Catch(func(e never.Event) {
		mu.Lock()
		defer mu.Unlock()
		if event != nil {
			event(e)
			event = nil
		}
	})()
	listen := func(fn func(never.Event)) {
		mu.Lock()
		defer mu.Unlock()
		event = fn
	}
	fails := func(op view.DiskOp) view.DiskFault {
		if op.Write {
			return view.DiskFault{Err: cause}
		}
		return view.DiskFault{}
	}
	inWorld(t, owner, func(w *world) {
		v := &traveller{world: w, is: map[holdfast.RecordID]string{}, state: map[holdfast.RecordID]history.State{}}
		for i := range 1 + backups {
			v.dirs = append(v.dirs, sapling(w, byte(i)))
		}
		w.stop()
		w.disk = view.NewDisk()
		w.start()
		v.must(v.backup(0))

		broken, ended := w.disk, make(chan struct{})
		listen(func(e never.Event) {
			w.bucket.Crash() // nothing that it does from here on arrives anywhere
			broken = w.disk.Crash(50, uint64(n))
			w.disk.OnOp(nil) // it is dead; what is left of it need not suffer
			stopped = true
			if !strings.Contains(e.What, cause.Error()) || strings.Contains(e.Todo, "Make room") != (cause == syscall.ENOSPC) {
				w.Errorf("the event: %+v", e)
			}
			close(ended)
		})
		var count int
		w.disk.OnOp(func(op view.DiskOp) view.DiskFault {
			mu.Lock()
			defer mu.Unlock()
			if op.Write {
				count++
			}
			if count < n {
				return view.DiskFault{}
			}
			return fails(op)
		})
		done := make(chan error, 1)
		go func() {
			var err error
			for i := range backups {
				if err = v.backup(1 + i); err != nil {
					break
				}
			}
			done <- err
		}()
		select {
		case <-ended:
		case err := <-done:
			v.must(err)
			w.end()
			w.end = nil
			w.j.Close(w.Context())
			done <- nil
		}
		mu.Lock()
		none := !stopped
		event = nil
		mu.Unlock()
		if none { // there are fewer writes
			w.disk.OnOp(nil)
			w.bucket = w.bucket.Store().Connect(4)
			w.start()
			return
		}

		gone := func() {}
		if w.end != nil {
			gone = w.lose()
		}
		again := false
		listen(func(never.Event) { again = true })
		w.disk = broken
		w.disk.OnOp(fails)
		if err := w.serve(w.config()); err == nil || !again {
			w.Errorf("on the same disk a service starts: %v, event: %v", err, again)
		}
		listen(nil)
		w.bucket = w.bucket.Store().Connect(5)
		w.disk.OnOp(nil)
		w.start()
		gone()
		v.must(<-done)
		time.Sleep(time.Minute)
		v.whole()
		w.disk = nil
		w.crash() // and from the bucket alone
		v.whole()
	})
	return stopped
}
