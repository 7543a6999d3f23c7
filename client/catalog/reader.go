package catalog

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"holdfast"
	"holdfast/client/archive"
)

// Reader reads a catalog from front to back. Its memory is a section and the pack table. It is not safe
// for concurrent use.
type Reader struct {
	f       io.ReadCloser
	in      *bufio.Reader
	head    header
	macs    *macs
	packs   map[holdfast.Name]Pack
	off     uint64 // in the file
	number  uint64 // of the next section
	section []byte
	page    *archive.PageReader // of the section being read; nil before the first
	joiner  archive.Joiner
	stat    Stat   // of the entry in the joiner
	items   uint64 // read so far
	err     error  // sticks
}

// Open opens the catalog at path if it is whole in its header and pack table and bound to want. The error
// wraps fs.ErrNotExist or ErrUnusable, or is that of reading the file.
func Open(path string, key holdfast.Key, want Binding) (*Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open catalog: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: it is no file", ErrUnusable)
	}
	var r *Reader
	if err == nil {
		r, err = open(f, uint64(st.Size()), key, want)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open catalog %s: %w", path, err)
	}
	return r, nil
}

// open reads header and packs from f, which is size bytes long.
func open(f interface {
	io.ReadSeeker
	io.Closer
}, size uint64, key holdfast.Key, want Binding) (*Reader, error) {
	raw := make([]byte, headerSize)
	if _, err := io.ReadFull(f, raw); err != nil {
		return nil, cut(err)
	}
	h, k, err := parseHeader(raw, key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnusable, err)
	}
	switch {
	case h.binding != want:
		return nil, fmt.Errorf("%w: it is of another vault, machine, series or archive", ErrUnusable)
	case h.end < uint64(headerSize) || h.end > size || h.packs > maxPacks:
		return nil, fmt.Errorf("%w: it is cut short", ErrUnusable)
	}
	if _, err := f.Seek(int64(h.end), io.SeekStart); err != nil {
		return nil, err
	}
	r := &Reader{f: f, in: bufio.NewReaderSize(f, 64<<10), head: h, macs: k, off: h.end, number: h.sections}
	if err := r.readPacks(); err != nil {
		return nil, err
	}
	if r.off != size {
		return nil, fmt.Errorf("%w: %d bytes follow its end", ErrUnusable, size-r.off)
	}
	if _, err := f.Seek(int64(headerSize), io.SeekStart); err != nil {
		return nil, err
	}
	r.in.Reset(f)
	r.off, r.number = uint64(headerSize), 0
	return r, nil
}

// cut turns the end of the file where there should be more into ErrUnusable.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut short", ErrUnusable)
	}
	return err
}

// next reads and verifies a section; the payload is valid until the next call.
func (r *Reader) next(kind uint8) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(r.in, n[:]); err != nil {
		return nil, cut(err)
	}
	size := binary.BigEndian.Uint32(n[:])
	if size == 0 || size > maxSection {
		return nil, fmt.Errorf("%w: section %d of %d bytes", ErrUnusable, r.number, size)
	}
	if need := int(size) + macSize; cap(r.section) < need {
		r.section = make([]byte, need)
	} else {
		r.section = r.section[:need]
	}
	if _, err := io.ReadFull(r.in, r.section); err != nil {
		return nil, cut(err)
	}
	payload := r.section[:size]
	if !hmac.Equal(r.section[size:], r.macs.section(kind, r.number, payload)) {
		return nil, fmt.Errorf("%w: section %d does not verify", ErrUnusable, r.number)
	}
	r.number++
	r.off += uint64(len(n) + len(r.section))
	return payload, nil
}

func (r *Reader) readPacks() error {
	r.packs = map[holdfast.Name]Pack{}
	var last []byte
	for left := int(r.head.packs); left > 0; {
		p, err := r.next(typePacks)
		if err != nil {
			return err
		}
		if n := min(left, packsAPart); len(p) != n*packSize {
			return fmt.Errorf("%w: %d bytes of packs where %d belong", ErrUnusable, len(p), n*packSize)
		}
		for ; len(p) > 0; p = p[packSize:] {
			name := p[:32]
			total, live := binary.BigEndian.Uint32(p[32:]), binary.BigEndian.Uint32(p[36:])
			if last != nil && bytes.Compare(last, name) >= 0 || live == 0 || live > total {
				return fmt.Errorf("%w: its pack table is wrong", ErrUnusable)
			}
			r.packs[holdfast.Name(name)] = Pack{uint64(total), uint64(live)}
			last = append(last[:0], name...)
			left--
		}
	}
	return nil
}

// Items returns how many items there are.
func (r *Reader) Items() uint64 { return r.head.items }

// Packs returns the packs that the entries refer to. The map is the caller's.
func (r *Reader) Packs() map[holdfast.Name]Pack { return r.packs }

// Next returns the next item, in the archive's order, and io.EOF after the last only if the catalog was
// whole. After any other error, which mostly wraps ErrUnusable, the items returned before it were authentic and may
// be used, the rest is as if there were no catalog.
func (r *Reader) Next() (Item, error) {
	if r.err != nil {
		return Item{}, r.err
	}
	it, err := r.read()
	if err != nil {
		r.err = err
		if err != io.EOF {
			r.err = fmt.Errorf("read catalog: %w", err)
		}
		return Item{}, r.err
	}
	return it, nil
}

// read reads items until an entry is complete.
func (r *Reader) read() (Item, error) {
	for {
		for r.page == nil || r.page.Left() == 0 {
			if r.page != nil {
				if err := r.page.Done(); err != nil {
					return Item{}, fmt.Errorf("%w: %w", ErrUnusable, err)
				}
				r.page = nil
			}
			if r.number == r.head.sections {
				return r.finish()
			}
			payload, err := r.next(typeItems)
			if err != nil {
				return Item{}, err
			}
			if r.page, _, err = archive.OpenPage(payload, 0); err != nil {
				return Item{}, fmt.Errorf("%w: %w", ErrUnusable, err)
			}
		}
		it, ok, err := r.item()
		if err == nil {
			err = r.page.Err()
		}
		if err != nil {
			return Item{}, fmt.Errorf("%w: %w", ErrUnusable, err)
		}
		if ok {
			return it, nil
		}
	}
}

// item reads one item of the page, and reports whether that completed the entry before, which it returns.
func (r *Reader) item() (Item, bool, error) {
	key, cont := archive.SplitKey(r.page.Item())
	if cont {
		more := r.page.Extents()
		if r.page.Err() != nil {
			return Item{}, false, nil
		}
		return Item{}, false, r.joiner.Extents(key, more)
	}
	e := r.page.Entry(key)
	s := Stat{
		Size:   r.page.Uvarint(),
		Mtime:  r.page.Time(),
		Ctime:  r.page.Time(),
		Inode:  r.page.Uvarint(),
		Device: r.page.Uvarint(),
	}
	if e == nil || r.page.Err() != nil {
		return Item{}, false, nil
	}
	r.items++
	was, err := r.joiner.Entry(key, e)
	if was == nil || err != nil {
		r.stat = s
		return Item{}, false, err
	}
	it := Item{Entry: *was, Stat: r.stat}
	r.stat = s
	return it, true, nil
}

// finish returns the last item, then io.EOF.
func (r *Reader) finish() (Item, error) {
	e, err := r.joiner.Finish()
	switch {
	case err != nil:
		return Item{}, fmt.Errorf("%w: %w", ErrUnusable, err)
	case e != nil:
		return Item{Entry: *e, Stat: r.stat}, nil
	case r.items != r.head.items || r.off != r.head.end:
		return Item{}, fmt.Errorf("%w: its header tells of other sections", ErrUnusable)
	}
	return Item{}, io.EOF
}

// Close closes the file.
func (r *Reader) Close() error { return r.f.Close() }
