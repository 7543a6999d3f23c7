package catalog

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"holdfast"
	"holdfast/client/archive"
	"holdfast/internal/durable"
)

// Writer writes a new catalog beside the old one. Its memory is a section and 40 bytes or so a pack. It
// is not safe for concurrent use.
type Writer struct {
	path   string
	f      *os.File // nil after Finish or Abort
	w      *bufio.Writer
	head   header
	macs   *macs
	number uint64 // of the next section
	page   archive.Page
	key    []byte
	last   string
	live   map[holdfast.Name]uint64
	err    error // the first failure: the file is of no use then
}

// Create begins a catalog that will be at path. Until Finish, what is there stays.
func Create(path string, key holdfast.Key) (*Writer, error) {
	// A leftover of a run that was killed, or that of another run under way, which then fails in Finish.
	if err := os.Remove(newPath(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("create catalog: %w", err)
	}
	f, err := os.OpenFile(newPath(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, filePerm)
	if err != nil {
		return nil, fmt.Errorf("create catalog: %w", err)
	}
	w := &Writer{path: path, f: f, w: bufio.NewWriterSize(f, 64<<10), live: map[holdfast.Name]uint64{}}
	rand.Read(w.head.salt[:]) // never fails: crypto/rand ends the program instead
	w.macs = newMACs(key, w.head.salt)
	// Zeros hold the header's place: until Finish the file is no catalog.
	w.write(make([]byte, headerSize))
	return w, nil
}

// write writes to the file; an error stays in w.err.
func (w *Writer) write(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}

// Add adds an item, in the archive's order, and keeps nothing of it. An error spoils this catalog, not
// the archive: go on without one.
func (w *Writer) Add(it *Item) error {
	if w.err != nil {
		return fmt.Errorf("write catalog: %w", w.err)
	}
	e := &it.Entry
	if err := e.Check(); err != nil {
		w.err = err
		return fmt.Errorf("write catalog: %w", err)
	}
	if w.last != "" && archive.ComparePaths(w.last, e.Path) >= 0 {
		w.err = fmt.Errorf("%.200q is out of order", e.Path)
		return fmt.Errorf("write catalog: %w", w.err)
	}
	w.last = e.Path
	w.head.items++
	for _, x := range e.Extents {
		if x.Kind == holdfast.KindPack {
			w.live[x.Name] += x.Len
		}
	}
	w.key = archive.AppendKey(w.key[:0], e.Path)
	n := min(len(e.Extents), itemExtents)
	w.page.Entry(w.key, e, e.Extents[:n])
	w.stat(&it.Stat)
	w.ended()
	for rest := e.Extents[n:]; len(rest) > 0; rest = rest[n:] {
		n = min(len(rest), itemExtents)
		w.page.Extents(w.key, rest[:n])
		w.ended()
	}
	if w.err != nil {
		return fmt.Errorf("write catalog: %w", w.err)
	}
	return nil
}

func (w *Writer) stat(s *Stat) {
	w.page.Uvarint(s.Size)
	w.page.Time(s.Mtime)
	w.page.Time(s.Ctime)
	w.page.Uvarint(s.Inode)
	w.page.Uvarint(s.Device)
}

// ended ends the section if the item just written fills it.
func (w *Writer) ended() {
	if w.page.Size(0) > pageSize {
		w.endPage()
	}
}

func (w *Writer) endPage() {
	payload, _ := w.page.Encode(nil)
	w.section(typeItems, payload)
	w.head.sections++
}

func (w *Writer) section(kind uint8, payload []byte) {
	w.write(binary.BigEndian.AppendUint32(nil, uint32(len(payload))))
	w.write(payload)
	w.write(w.macs.section(kind, w.number, payload))
	w.number++
	if kind == typeItems {
		w.head.end += uint64(4 + len(payload) + macSize)
	}
}

// Finish completes the catalog and puts it in place: call it after the archive b.Archive is committed.
// packs are the total plaintext bytes of (at least) the packs that the entries refer to. After an error
// the old catalog, which is bound to an older archive, may still be there.
func (w *Writer) Finish(b Binding, packs map[holdfast.Name]uint64) error {
	defer w.Abort()
	if err := w.finish(b, packs); err != nil {
		return fmt.Errorf("write catalog %s: %w", w.path, err)
	}
	return nil
}

func (w *Writer) finish(b Binding, packs map[holdfast.Name]uint64) error {
	if w.f == nil {
		return errors.New("it was finished before")
	}
	w.head.binding = b
	if w.page.Items() > 0 {
		w.endPage()
	}
	w.head.end += uint64(headerSize)
	w.packs(packs)
	if w.err == nil {
		w.err = w.w.Flush()
	}
	if w.err == nil {
		_, w.err = w.f.WriteAt(w.head.encode(w.macs), 0)
	}
	if w.err == nil {
		w.err = w.f.Sync()
	}
	if w.err == nil && !sameFile(w.f, newPath(w.path)) {
		w.err = errors.New("another run of the same series replaced it")
	}
	if w.err != nil {
		return w.err
	}
	// Windows renames no open file.
	if err := w.f.Close(); err != nil {
		return err
	}
	w.f = nil
	if err := os.Rename(newPath(w.path), w.path); err != nil {
		os.Remove(newPath(w.path))
		return err
	}
	return durable.SyncDir(filepath.Dir(w.path))
}

// packs writes the pack table.
func (w *Writer) packs(totals map[holdfast.Name]uint64) {
	names := make([]holdfast.Name, 0, len(w.live))
	for n := range w.live {
		names = append(names, n)
	}
	slices.SortFunc(names, compareNames)
	if len(names) > maxPacks {
		w.err = fmt.Errorf("%d packs", len(names))
		return
	}
	w.head.packs = uint32(len(names))
	for part := range slices.Chunk(names, packsAPart) {
		payload := make([]byte, 0, packSize*len(part))
		for _, n := range part {
			total := totals[n]
			if total == 0 || total > math.MaxUint32 {
				w.err = fmt.Errorf("total of pack %.8s is %d bytes", n, total)
				return
			}
			payload = append(payload, n[:]...)
			payload = binary.BigEndian.AppendUint32(payload, uint32(total))
			payload = binary.BigEndian.AppendUint32(payload, uint32(min(total, w.live[n])))
		}
		w.section(typePacks, payload)
	}
}

// Abort drops the new catalog. It does nothing after Finish.
func (w *Writer) Abort() {
	if w.f == nil {
		return
	}
	if sameFile(w.f, newPath(w.path)) {
		defer os.Remove(newPath(w.path)) // after Close: Windows removes no open file
	}
	w.f.Close()
	w.f = nil
}
