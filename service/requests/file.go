package requests

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"holdfast/internal/durable"
)

const (
	pageSize = 4096
	headSize = 32
	version  = 1

	pageRecent   = Minutes + Hours
	pageFailures = pageRecent + 1
	pageSlowest  = pageFailures + 1
	pages        = pageSlowest + 1

	// saveEvery is between two times that what is new is written.
	saveEvery = time.Minute
	// closePatience bounds how long Close waits for a disk.
	closePatience = 5 * time.Second
)

// DamagedSuffix is added to the name of a file that is damaged; one that was put aside before is replaced.
const DamagedSuffix = ".damaged"

// ErrDamaged reports a file or page that is not as it was written.
var ErrDamaged = errors.New("the history of requests is damaged")

// The kinds of pages.
const (
	kindMinute = 1 + iota
	kindHour
	kindRecent
	kindFailures
	kindSlowest
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// page is a decoded page; of the last three one is set, as kind says.
type page struct {
	kind    byte
	index   uint16
	seq     uint64
	begin   int64 // Unix seconds
	written int64 // Unix ms

	slice  *slice
	recent *recent
	ring   *ring
}

// kindOf returns the kind and index of the page at a place.
func kindOf(i int) (kind byte, index uint16) {
	switch {
	case i < Minutes:
		return kindMinute, uint16(i)
	case i < pageRecent:
		return kindHour, uint16(i - Minutes)
	}
	return byte(kindRecent + i - pageRecent), 0
}

// encode returns the page.
func (p *page) encode() []byte {
	b := make([]byte, 4, pageSize)
	b = append(b, version, p.kind)
	b = binary.BigEndian.AppendUint16(b, p.index)
	b = binary.BigEndian.AppendUint64(b, p.seq)
	b = binary.BigEndian.AppendUint64(b, uint64(p.begin))
	b = binary.BigEndian.AppendUint64(b, uint64(p.written))
	b, _ = binary.Append(b, binary.BigEndian, p.content()) // fields of fixed size cannot fail
	b = b[:pageSize]
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], crcTable))
	return b
}

// content returns a pointer to what the page counts.
func (p *page) content() any {
	switch {
	case p.slice != nil:
		return &p.slice.Ops
	case p.recent != nil:
		return p.recent
	}
	return p.ring
}

// decodePage reads a page. It is strict: what decodes encodes to the same bytes. The error wraps ErrDamaged.
func decodePage(b []byte) (*page, error) {
	if len(b) != pageSize || crc32.Checksum(b[4:], crcTable) != binary.BigEndian.Uint32(b) {
		return nil, fmt.Errorf("%w: a page fails its checksum", ErrDamaged)
	}
	if b[4] != version {
		return nil, fmt.Errorf("%w: a page is of version %d, which this program does not know", ErrDamaged, b[4])
	}
	p := &page{
		kind:    b[5],
		index:   binary.BigEndian.Uint16(b[6:]),
		seq:     binary.BigEndian.Uint64(b[8:]),
		begin:   int64(binary.BigEndian.Uint64(b[16:])),
		written: int64(binary.BigEndian.Uint64(b[24:])),
	}
	each, n := int64(0), int64(0)
	switch p.kind {
	case kindMinute:
		each, n, p.slice = 60, Minutes, &slice{Begin: p.begin}
	case kindHour:
		each, n, p.slice = 3600, Hours, &slice{Begin: p.begin}
	case kindRecent:
		p.recent = &recent{}
	case kindFailures, kindSlowest:
		p.ring = &ring{}
	default:
		return nil, fmt.Errorf("%w: a page is of kind %d", ErrDamaged, p.kind)
	}
	switch {
	case p.seq == 0,
		p.slice == nil && (p.begin != 0 || p.index != 0),
		p.slice != nil && (p.begin < 0 || p.begin%each != 0 || p.begin/each%n != int64(p.index)):
		return nil, fmt.Errorf("%w: the head of a page contradicts itself", ErrDamaged)
	}
	if _, err := binary.Decode(b[headSize:], binary.BigEndian, p.content()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !p.plausible() || !bytes.Equal(p.encode(), b) {
		return nil, fmt.Errorf("%w: a page holds what cannot be", ErrDamaged)
	}
	return p, nil
}

// plausible reports whether what was decoded can be used without further looking.
func (p *page) plausible() bool {
	ok := true
	hists := func(h *hist) {
		for i := range h.N {
			ok = ok && (h.N[i] > 0 || h.Sum[i] == 0)
		}
	}
	if p.slice != nil {
		for i := range p.slice.Ops {
			hists(&p.slice.Ops[i].Good)
			hists(&p.slice.Ops[i].Bad)
		}
	}
	if p.recent != nil {
		for i := range p.recent {
			hists(&p.recent[i])
		}
	}
	if p.ring != nil {
		for _, s := range p.ring {
			ok = ok && s.Op < ops && s.Class < classes && s.Reserved == [3]uint8{} && (s.N > 0 || s == single{})
		}
	}
	return ok
}

// disk is the file of a history.
type disk struct {
	log     *slog.Logger
	path    string // "" is none
	f       *os.File
	done    chan struct{}
	ended   chan struct{}
	close   sync.Once
	seq     [pages]uint64 // of the newest writing of each page
	failing bool          // and that was logged
}

// New returns a history in memory.
func New() *History { return &History{} }

// Open returns a history that goes on with what is in the file at path, or begins one. It never fails: a file that
// is damaged is put aside, one that cannot be made or read is logged, and the history is kept in memory then. Close
// must be called.
func Open(path string, log *slog.Logger) *History {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := New()
	h.disk = disk{log: log, path: path, done: make(chan struct{}), ended: make(chan struct{})}
	if err := h.open(); err != nil {
		h.complain(err)
	}
	go h.keep()
	return h
}

// open opens the file, loads it, and makes it if need be.
func (h *History) open() error {
	d := &h.disk
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return h.create()
	}
	if err != nil {
		return err
	}
	_, err = h.load(f)
	if err == nil {
		d.f = f
		return nil
	}
	f.Close()
	if !errors.Is(err, ErrDamaged) {
		return err
	}
	if no := os.Rename(d.path, d.path+DamagedSuffix); no != nil {
		return errors.Join(err, no)
	}
	d.log.Warn("a new history of requests goes on with what could be read", "err", err, "damaged", d.path+DamagedSuffix)
	return h.create()
}

// create makes the file, all of it, so that its blocks are taken. What is in memory is written the next time.
func (h *History) create() error {
	d := &h.disk
	if err := durable.WriteFile(d.path, make([]byte, FileSize), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	d.f, d.seq = f, [pages]uint64{}
	for i := range h.dirty {
		h.dirty[i] = h.page(i) != nil
	}
	return nil
}

// load reads what r holds and returns when it was last written, Unix ms; 0 if never. The error wraps ErrDamaged if some
// of it is damaged; the rest is loaded all the same.
func (h *History) load(r io.ReaderAt) (written int64, err error) {
	var bad error
	if n, err := r.ReadAt(make([]byte, 2), FileSize-1); n != 1 || err != io.EOF {
		bad = fmt.Errorf("%w: it is not %d bytes long", ErrDamaged, FileSize)
	}
	b := make([]byte, pageSize)
	for i := range pages {
		var newest *page
		broken := 0
		for half := range 2 {
			n, err := r.ReadAt(b, int64(half*pages+i)*pageSize)
			if err != nil && err != io.EOF {
				return written, err
			}
			p, err := decodePage(b[:n])
			switch kind, index := kindOf(i); {
			case n == pageSize && allZero(b):
			case err != nil || p.kind != kind || p.index != index || p.seq%2 != uint64(half):
				broken++
			case newest == nil || p.seq > newest.seq:
				newest = p
			}
		}
		if broken == 2 { // one alone is a writing that was cut short
			bad = fmt.Errorf("%w: page %d", ErrDamaged, i)
		}
		if newest != nil {
			h.set(i, newest)
			written = max(written, newest.written)
		}
	}
	return written, bad
}

var zeros [pageSize]byte

func allZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// set takes what a page says.
func (h *History) set(i int, p *page) {
	h.disk.seq[i] = p.seq
	switch p.kind {
	case kindMinute:
		h.minutes[i] = p.slice
	case kindHour:
		h.hours[i-Minutes] = p.slice
	case kindRecent:
		h.recent = *p.recent
	case kindFailures:
		h.failures = *p.ring
	case kindSlowest:
		h.slowest = *p.ring
	}
}

// page returns the page i without number and time, nil if there is nothing to write; mu is held, and what is
// returned is not a copy.
func (h *History) page(i int) *page {
	p := &page{}
	p.kind, p.index = kindOf(i)
	switch p.kind {
	case kindMinute:
		p.slice = h.minutes[i]
	case kindHour:
		p.slice = h.hours[i-Minutes]
	case kindRecent:
		p.recent = &h.recent
	case kindFailures:
		p.ring = &h.failures
	case kindSlowest:
		p.ring = &h.slowest
	}
	if p.slice != nil {
		p.begin = p.slice.Begin
	} else if p.kind < kindRecent {
		return nil
	}
	return p
}

// keep writes what is new now and then, until Close, and then once more.
func (h *History) keep() {
	defer close(h.disk.ended)
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.save()
		case <-h.disk.done:
			h.save()
			if h.disk.f != nil {
				h.disk.f.Close()
			}
			return
		}
	}
}

// save writes the pages that changed, one after another, each in the place of its older writing. Crash: that one
// page is as it was a minute ago.
func (h *History) save() {
	err := h.write()
	if err != nil {
		h.complain(err)
	} else if h.disk.failing {
		h.disk.failing = false
		h.disk.log.Info("the history of requests is kept again", "path", h.disk.path)
	}
}

func (h *History) write() error {
	d := &h.disk
	if d.f == nil {
		if _, err := os.Lstat(d.path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s could not be read at the start and is left alone", d.path)
		}
		if err := h.create(); err != nil {
			return err
		}
	}
	wrote := false
	for i := range pages {
		h.mu.Lock()
		if !h.dirty[i] {
			h.mu.Unlock()
			continue
		}
		p := h.page(i)
		p.seq, p.written = d.seq[i]+1, time.Now().UnixMilli()
		b := p.encode()
		h.dirty[i] = false
		h.mu.Unlock()
		if _, err := d.f.WriteAt(b, int64(int(p.seq%2)*pages+i)*pageSize); err != nil {
			h.mu.Lock()
			h.dirty[i] = true
			h.mu.Unlock()
			return err
		}
		d.seq[i], wrote = p.seq, true
	}
	if !wrote {
		return nil
	}
	return d.f.Sync()
}

// complain logs the first of several errors in a row.
func (h *History) complain(err error) {
	if !h.disk.failing {
		h.disk.log.Warn("the history of requests is not kept on disk just now; the service goes on", "err", err)
	}
	h.disk.failing = true
}

// Close writes what is new. It waits for a disk that hangs for closePatience only. Nothing may be added afterwards
// that is to be kept.
func (h *History) Close() {
	if h.disk.done == nil {
		return
	}
	h.disk.close.Do(func() { close(h.disk.done) })
	t := time.NewTimer(closePatience)
	defer t.Stop()
	select {
	case <-h.disk.ended:
	case <-t.C:
		h.disk.log.Warn("the disk does not take the history of requests", "path", h.disk.path)
	}
}
