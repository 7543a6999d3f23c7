package view

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Disk is a simulated disk that can lose power and fail, for tests of what is left then.
type Disk struct {
	fs   *vfs.MemFS
	onOp atomic.Pointer[func(DiskOp) DiskFault]

	mu   sync.Mutex
	done map[DiskOp]bool // was applied and said to have failed; when it is tried again there is nothing left to do
}

// DiskFault is what an operation suffers; nothing if it is zero.
type DiskFault struct {
	Err     error // it fails with this error ...
	Applied bool  // ... but was done all the same; not where a file would be opened under another name ("reuse")
}

// NewDisk returns an empty disk.
func NewDisk() *Disk { return &Disk{fs: vfs.NewCrashableMem()} }

// OnOp makes fn say what each operation on the disk suffers from now on; nil makes none suffer. fn may be called by
// several goroutines at once, and must not use a store on the disk.
func (d *Disk) OnOp(fn func(DiskOp) DiskFault) {
	if fn == nil {
		d.onOp.Store(nil)
		return
	}
	d.onOp.Store(&fn)
}

// Open opens the store on d. An error of a write on d is an event that must never happen, as on a real disk.
func (d *Disk) Open() (*Store, error) {
	return open(guarded(&opsFS{d.fs, d.suffer}, "view"), "view")
}

func (d *Disk) suffer(op DiskOp, do func() error) error {
	once := op.Name == "rename" || op.Name == "link"
	d.mu.Lock()
	done := once && d.done[op]
	delete(d.done, op)
	d.mu.Unlock()
	if done {
		return nil
	}
	fn := d.onOp.Load()
	if fn == nil {
		return do()
	}
	fault := (*fn)(op)
	if fault.Err == nil {
		return do()
	}
	if fault.Applied && op.Name != "reuse" {
		if err := do(); err != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if once {
			if d.done == nil {
				d.done = map[DiskOp]bool{}
			}
			d.done[op] = true
		}
	}
	return fault.Err
}

// Crash returns d as a power cut now would leave it: everything synced, and each piece of what was not
// with a chance of percent in a hundred, drawn from seed.
func (d *Disk) Crash(percent int, seed uint64) *Disk {
	rng := rand.New(rand.NewPCG(seed, 0))
	return &Disk{fs: d.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})}
}

// Used returns how many bytes the files on d have.
func (d *Disk) Used() (n int64) {
	var walk func(dir string)
	walk = func(dir string) {
		names, err := d.fs.List(dir)
		if err != nil {
			return
		}
		for _, name := range names {
			path := d.fs.PathJoin(dir, name)
			if st, err := d.fs.Stat(path); err == nil && st.IsDir() {
				walk(path)
			} else if err == nil {
				n += st.Size()
			}
		}
	}
	walk("")
	return n
}
