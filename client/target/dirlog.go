package target

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"holdfast/client/archive"
	"holdfast/internal/enc"
)

// dirLog remembers the attributes of directories until all that is in them is there. It holds one block in memory and
// the others in a file, so that memory does not grow with the tree. It reads its own bytes only.
type dirLog struct {
	mu     sync.Mutex
	file   *os.File // made with the first block that is full
	create func() (*os.File, error)
	blocks []int64 // offset of each block in file, and behind it the end
	buf    []byte
}

// dirBlock is the size at which a block is full, bytes.
const dirBlock = 1 << 20

func (l *dirLog) add(e *archive.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := enc.AppendVLP(l.buf, []byte(e.Path))
	for _, v := range []uint64{uint64(e.Mode), uint64(e.UID), uint64(e.GID), uint64(e.Mtime.Sec), uint64(e.Mtime.Nsec), uint64(len(e.Xattrs))} {
		b = binary.AppendUvarint(b, v)
	}
	for _, x := range e.Xattrs {
		b = enc.AppendVLP(b, []byte(x.Name))
		b = enc.AppendVLP(b, x.Value)
	}
	l.buf = b
	if len(b) < dirBlock {
		return nil
	}
	if l.file == nil {
		f, err := l.create()
		if err != nil {
			return fmt.Errorf("make a list of directories: %w", err)
		}
		l.file, l.blocks = f, []int64{0}
	}
	end := l.blocks[len(l.blocks)-1]
	if _, err := l.file.WriteAt(b, end); err != nil {
		return fmt.Errorf("write the list of directories: %w", err)
	}
	l.blocks = append(l.blocks, end+int64(len(b)))
	l.buf = b[:0]
	return nil
}

// backwards calls f for each directory, the last that was added first, and forgets them.
func (l *dirLog) backwards(f func(*archive.Entry)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := eachBackwards(l.buf, f); err != nil {
		return err
	}
	l.buf = nil
	for i := len(l.blocks) - 2; i >= 0; i-- {
		b := make([]byte, l.blocks[i+1]-l.blocks[i])
		if _, err := l.file.ReadAt(b, l.blocks[i]); err != nil {
			return fmt.Errorf("read the list of directories: %w", err)
		}
		if err := eachBackwards(b, f); err != nil {
			return err
		}
	}
	l.blocks = l.blocks[:min(len(l.blocks), 1)]
	return nil
}

func eachBackwards(b []byte, f func(*archive.Entry)) error {
	var all []archive.Entry
	r := enc.NewReader(b)
	for r.Len() > 0 && r.Err() == nil {
		e := archive.Entry{Type: archive.TypeDir, Path: string(r.VLP(len(b)))}
		e.Mode, e.UID, e.GID = uint32(r.Uvarint()), uint32(r.Uvarint()), uint32(r.Uvarint())
		e.Mtime = archive.Time{Sec: int64(r.Uvarint()), Nsec: uint32(r.Uvarint())}
		for range r.UvarintMax(uint64(len(b))) {
			e.Xattrs = append(e.Xattrs, archive.Xattr{Name: string(r.VLP(len(b))), Value: r.VLP(len(b))})
		}
		all = append(all, e)
	}
	if err := r.Done(); err != nil {
		return fmt.Errorf("read the list of directories: %w", err)
	}
	for i := len(all) - 1; i >= 0; i-- {
		f(&all[i])
	}
	return nil
}

func (l *dirLog) close() {
	if l.file != nil {
		l.file.Close()
	}
}
