package jobs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"holdfast/internal/durable"
)

// FileName is the name of the file in the data directory.
const FileName = "jobs"

// The file has two slots, of which the newer one that is whole counts; the other one is written next. So it never
// grows, needs no room on a full disk, and whatever a crash leaves of a slot, the other one is whole.
//
//	magic  "HOLDJOB1"
//	number u64  of the write: the larger is newer
//	length u32  of the JSON
//	JSON        a list of states
//	sum    32   SHA-256 of all that
const (
	magic    = "HOLDJOB1"
	headSize = 8 + 8 + 4
	slotSize = 128 << 10
	// FileSize is the size of the file, bytes.
	FileSize = 2 * slotSize
)

// file is the open file. A nil file takes everything and keeps nothing.
type file struct {
	f      *os.File
	number uint64 // of the newest write
	failed bool   // the newest write has
}

// openFile opens the file at path and returns what it holds. What is not there or not whole is made anew; then the error
// says what was lost, and the file is nil if it cannot be used at all.
func openFile(path string) (*file, []*state, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return makeFile(path, nil)
	}
	if err != nil {
		return nil, nil, err
	}
	raw := make([]byte, FileSize)
	if _, err := io.ReadFull(f, raw); err != nil {
		f.Close()
		return makeFile(path, fmt.Errorf("read %s: %w", path, err))
	}
	n1, s1, err1 := parseSlot(raw[:slotSize])
	n2, s2, err2 := parseSlot(raw[slotSize:])
	switch {
	case err1 == nil && (err2 != nil || n1 > n2):
		return &file{f: f, number: n1}, s1, nil
	case err2 == nil:
		return &file{f: f, number: n2}, s2, nil
	}
	f.Close()
	if bytes.Equal(raw, make([]byte, FileSize)) {
		return makeFile(path, nil)
	}
	return makeFile(path, fmt.Errorf("%s: %w", path, err1))
}

// makeFile replaces the file at path by a new one, because of what was wrong with the old one.
func makeFile(path string, wrong error) (*file, []*state, error) {
	if err := durable.WriteFile(path, make([]byte, FileSize), 0o600); err != nil {
		return nil, nil, errors.Join(wrong, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, errors.Join(wrong, err)
	}
	return &file{f: f}, nil, wrong
}

// parseSlot decodes a slot.
func parseSlot(raw []byte) (number uint64, all []*state, err error) {
	if len(raw) != slotSize || string(raw[:8]) != magic {
		return 0, nil, fmt.Errorf("it does not begin with %q", magic)
	}
	number = binary.BigEndian.Uint64(raw[8:])
	n := int64(binary.BigEndian.Uint32(raw[16:]))
	if n > slotSize-headSize-sha256.Size {
		return 0, nil, fmt.Errorf("%d bytes do not fit into a slot", n)
	}
	end := headSize + n
	if sum := sha256.Sum256(raw[:end]); !bytes.Equal(sum[:], raw[end:end+sha256.Size]) {
		return 0, nil, errors.New("its check sum is wrong")
	}
	var list [maxJobs]*state // what is beyond is left out
	if err := json.Unmarshal(raw[headSize:end], &list); err != nil {
		return 0, nil, err
	}
	for _, s := range list {
		if s == nil {
			break
		}
		if s.Name == "" || len(s.Name) > maxName || len(s.Memory) > maxMemory {
			return 0, nil, errors.New("a job is malformed")
		}
		all = append(all, s)
	}
	return number, all, nil
}

// encodeSlot encodes a slot.
func encodeSlot(number uint64, all []*state) ([]byte, error) {
	text, err := json.Marshal(all)
	if err != nil {
		return nil, err
	}
	b := append(make([]byte, 0, slotSize), magic...)
	b = binary.BigEndian.AppendUint64(b, number)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = append(b, text...)
	sum := sha256.Sum256(b)
	if b = append(b, sum[:]...); len(b) > slotSize {
		return nil, fmt.Errorf("%d bytes do not fit into a slot", len(b))
	}
	return b, nil
}

// write replaces the older slot. It returns the first error of several in a row.
func (f *file) write(all []*state) error {
	if f == nil || f.f == nil {
		return nil
	}
	b, err := encodeSlot(f.number+1, all)
	if err == nil {
		_, err = f.f.WriteAt(b, int64((f.number+1)%2)*slotSize)
	}
	if err == nil {
		err = f.f.Sync()
	}
	said := f.failed
	f.failed = err != nil
	if err != nil {
		if said {
			return nil
		}
		return err
	}
	f.number++
	return nil
}

// close closes the file; what is written from then on is not kept.
func (f *file) close() {
	if f != nil && f.f != nil {
		f.f.Close()
		f.f = nil
	}
}
