package view

import (
	"math/rand/v2"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Disk is a simulated disk that can lose power, for tests of what is left then.
type Disk struct{ fs *vfs.MemFS }

// NewDisk returns an empty disk.
func NewDisk() *Disk { return &Disk{vfs.NewCrashableMem()} }

// Open opens the store on d.
func (d *Disk) Open() (*Store, error) { return open(d.fs, "view") }

// Crash returns d as a power cut now would leave it: everything synced, and each piece of what was not
// with a chance of percent in a hundred, drawn from seed.
func (d *Disk) Crash(percent int, seed uint64) *Disk {
	rng := rand.New(rand.NewPCG(seed, 0))
	return &Disk{d.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng})}
}
