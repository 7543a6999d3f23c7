package view

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"holdfast/internal/never"
)

// caught catches events until the end of the test.
type caught struct {
	mu     sync.Mutex
	events []never.Event
}

func catch(t *testing.T, then func()) *caught {
	c := &caught{}
	t.Cleanup(never.Catch(func(e never.Event) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.events = append(c.events, e)
		then()
	}))
	return c
}

func (c *caught) all() []never.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events
}

// fill writes rows until enough says so. Writes are gathered, so that not each meets the disk.
func fill(t *testing.T, s *Store, enough func() bool) {
	t.Helper()
	for i := range 2000 {
		l := NewLayer(nil)
		l.rows[fmt.Sprint("\xf0row", i%3)] = make([]byte, 100<<10)
		if err := s.Commit(l); err != nil || enough() {
			return
		}
	}
	t.Fatal("the disk's fault was never met")
}

// TestFailingDisk: an error of a write is an event that must never happen, in the moment in which it is met, whatever
// was being written; and after it, nothing has been done to the disk that was not asked for.
func TestFailingDisk(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, syscall.EIO, syscall.EROFS} {
		for _, name := range []string{"write", "sync", "create", "reuse", "remove"} {
			for _, applied := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s %v, applied %v", name, cause, applied), func(t *testing.T) {
					disk := NewDisk()
					var failing atomic.Bool
					c := catch(t, func() { failing.Store(false) }) // the process ends here; a test goes on, with a disk that is sound
					s, err := disk.Open()
					if err != nil {
						t.Fatal(err)
					}
					defer s.Close()
					disk.OnOp(func(op DiskOp) DiskFault {
						if failing.Load() && op.Name == name {
							return DiskFault{cause, applied}
						}
						return DiskFault{}
					})
					failing.Store(true)
					fill(t, s, func() bool { return len(c.all()) > 0 })
					e := c.all()[0]
					if !strings.Contains(e.What, name) || !strings.Contains(e.What, cause.Error()) || !strings.Contains(e.Where, "view") {
						t.Errorf("the event says: %+v", e)
					}
					if room := strings.Contains(e.Todo, "Make room"); room != (cause == syscall.ENOSPC) {
						t.Errorf("what to do after %v: %s", cause, e.Todo)
					}
				})
			}
		}
	}
}

// TestWhatIsNoEvent: an error that the operator's orders explain is an error.
func TestWhatIsNoEvent(t *testing.T) {
	disk := NewDisk()
	c := catch(t, func() {})
	disk.OnOp(func(op DiskOp) DiskFault {
		if op.Write {
			return DiskFault{Err: syscall.EACCES}
		}
		return DiskFault{}
	})
	if s, err := disk.Open(); !errors.Is(err, syscall.EACCES) || errors.Is(err, ErrDamaged) {
		s.Close()
		t.Errorf("open: %v", err)
	}
	if all := c.all(); len(all) > 0 {
		t.Errorf("events: %+v", all)
	}
}

// TestListFails: the database lists its directory last of all when it is opened, and is at work by then. An error there is
// an event; before, it is one of opening.
func TestListFails(t *testing.T) {
	disk := NewDisk()
	s, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	c := catch(t, func() {})
	for n := int32(1); ; n++ {
		var lists atomic.Int32
		var working atomic.Bool
		disk.OnOp(func(op DiskOp) DiskFault {
			if op.Name == "create" {
				working.Store(true)
			}
			if op.Name == "list" && lists.Add(1) == n {
				return DiskFault{Err: syscall.EIO}
			}
			return DiskFault{}
		})
		had := len(c.all())
		s, err := disk.Open()
		if err == nil {
			s.Close()
		}
		if lists.Load() < n {
			break
		}
		if all := c.all(); working.Load() != (len(all) == had+1) || working.Load() == errors.Is(err, syscall.EIO) {
			t.Errorf("list %d, at work: %v: %v, events: %+v", n, working.Load(), err, all[had:])
		}
	}
	if all := c.all(); len(all) != 1 || !strings.Contains(all[0].What, "list view") {
		t.Errorf("events: %+v", all)
	}
}

// TestReadFails: what cannot be read is an event as well; while the view is being opened, it is damaged.
func TestReadFails(t *testing.T) {
	disk := NewDisk()
	s, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, func() bool { return disk.has(".sst") })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var failing atomic.Bool
	c := catch(t, func() {})
	disk.OnOp(func(op DiskOp) DiskFault {
		if failing.Load() && op.Name == "read" {
			return DiskFault{Err: syscall.EIO}
		}
		return DiskFault{}
	})
	failing.Store(true)
	if s, err := disk.Open(); err == nil {
		s.Close()
		t.Error("a view that cannot be read was opened")
	}
	if all := c.all(); len(all) > 0 {
		t.Errorf("events: %+v", all)
	}
	failing.Store(false)
	if s, err = disk.Open(); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	failing.Store(true)
	for i := range 3 {
		if _, err := s.Get(fmt.Append(nil, "\xf0row", i)); err != nil && !errors.Is(err, syscall.EIO) {
			t.Errorf("read: %v", err)
		}
	}
	if all := c.all(); len(all) == 0 || !strings.Contains(all[0].Todo, "rebuild") {
		t.Errorf("events: %+v", all)
	}
}

// has reports whether a file of that suffix is on the disk.
func (d *Disk) has(suffix string) bool {
	names, _ := d.fs.List("view")
	for _, n := range names {
		if strings.HasSuffix(n, suffix) {
			return true
		}
	}
	return false
}
