package view

import (
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// What the database of a second view may use of memory, bytes: little, since it is beside the first.
const (
	besideCache    = 4 << 20
	besideMemTable = 2 << 20
	besideTables   = 2
)

// OpenBeside opens a store in dir that serves nobody: a second view, made to be compared with the first. It is slower.
func OpenBeside(dir string) (*Store, error) {
	return open(vfs.Default, dir, func(o *pebble.Options) {
		o.Cache, o.CacheSize = nil, besideCache
		o.MemTableSize, o.MemTableStopWritesThreshold = besideMemTable, besideTables
	})
}
