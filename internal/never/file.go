package never

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"holdfast"
	"holdfast/internal/durable"
)

// FileName is the name of the file in the data directory.
const FileName = "stops"

// The file's measures, bytes.
const (
	slotSize = 8 << 10
	slots    = 16
	// FileSize is how large the file is from the beginning, for ever.
	FileSize = slots * slotSize

	maxText = 600 // of each text of an event, and of a reason
)

// Unreadable is the ID of a stop whose record was cut off while it was being written.
const Unreadable = "unreadable"

// entry is what a slot holds: either Stop is set or Resume, and then ID is that of the stop.
type entry struct {
	Stop   *Stop       `json:"stop,omitempty"`
	Resume *Resumption `json:"resume,omitempty"`
	ID     string      `json:"id,omitempty"`
}

// Recorder is the prepared file of this process.
type Recorder struct {
	dir   string
	f     *os.File
	log   log
	also  atomic.Pointer[os.File]
	begun atomic.Bool // an event is being recorded
}

// Install prepares the file in dir, which is made if it is absent, and makes Happened record there. The caller holds
// the lock on dir, or is the only one to know of it. There is one Recorder in a process.
func Install(dir string) (*Recorder, error) {
	f, l, err := prepare(dir)
	if err != nil {
		return nil, err
	}
	r := &Recorder{dir: dir, f: f, log: l}
	if old := installed.Swap(r); old != nil && old.dir != dir {
		return nil, fmt.Errorf("prepare the record of stops in %s: this process records in %s already", dir, old.dir)
	}
	return r, nil
}

// Uninstall makes Happened panic again. It is for tests and for the end of a command.
func (r *Recorder) Uninstall() {
	if installed.CompareAndSwap(r, nil) {
		r.f.Close()
	}
}

// Clear returns nil if the service may start, and an error that wraps ErrStands and says what to do if a stop stands.
func (r *Recorder) Clear() error {
	s := r.log.standing()
	if s == nil {
		return nil
	}
	return fmt.Errorf("%w: stop %s of %s: %s; holdfastd why --data %s says what to do, and holdfastd resume --data %s --id %s --reason TEXT lets it start again",
		ErrStands, s.ID, s.Time.Format(time.RFC3339), s.What, r.dir, r.dir, s.ID)
}

// Tell makes the record of an event go to f as well, as one line of JSON in one write after everything else: a
// connected datagram socket, say, of whoever rings people. Nothing waits for it.
func (r *Recorder) Tell(f *os.File) { r.also.Store(f) }

// Read returns the stops that are recorded in dir, oldest first. The last one stands if its Resumed is nil. It
// writes nothing and needs no lock. A directory without the file has none.
func Read(dir string) ([]Stop, error) {
	f, err := os.Open(filepath.Join(dir, FileName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read record of stops: %w", err)
	}
	defer f.Close()
	l, err := readLog(f)
	if err != nil {
		return nil, err
	}
	return l.stops(), nil
}

// Resume records that by has looked at the stop with that ID, and why the service may start again. The caller holds
// the lock on dir. It returns the stop.
func Resume(dir, id, by, reason string) (Stop, error) {
	path := filepath.Join(dir, FileName)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return Stop{}, fmt.Errorf("nothing has stopped the service in %s", dir)
	}
	if err != nil {
		return Stop{}, fmt.Errorf("open record of stops: %w", err)
	}
	defer f.Close()
	l, err := readLog(f)
	if err != nil {
		return Stop{}, err
	}
	s := l.standing()
	switch {
	case s == nil:
		return Stop{}, fmt.Errorf("no stop stands in %s: there is nothing to resume", dir)
	case s.ID != id:
		return Stop{}, fmt.Errorf("the stop in %s is %s, and not %q: read holdfastd why --data %s first", dir, s.ID, id, dir)
	case strings.TrimSpace(reason) == "" || len(reason) > maxText || !utf8.ValidString(reason):
		return Stop{}, fmt.Errorf("the reason must be text of 1 to %d bytes", maxText)
	}
	s.Resumed = &Resumption{By: clip(by, maxText), Reason: reason, Time: time.Now().UTC().Truncate(time.Second)}
	slot, at, err := l.next(entry{Resume: s.Resumed, ID: s.ID})
	if err != nil {
		return Stop{}, err
	}
	if _, err := f.WriteAt(slot, at); err != nil {
		return Stop{}, fmt.Errorf("record the resumption: %w", err)
	}
	if err := f.Sync(); err != nil {
		return Stop{}, fmt.Errorf("record the resumption: %w", err)
	}
	return *s, nil
}

// prepare opens the file in dir, makes it if it is absent, and reads it. A file of another size is one whose making
// was cut off, or not ours.
func prepare(dir string) (*os.File, log, error) {
	path := filepath.Join(dir, FileName)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		blank := bytes.Repeat([]byte{' '}, FileSize)
		for i := slotSize; i <= FileSize; i += slotSize {
			blank[i-1] = '\n'
		}
		// Whole under its name or not at all, and synced: its blocks are on the disk.
		if err := durable.WriteFile(path, blank, 0o600); err != nil {
			return nil, log{}, fmt.Errorf("prepare the record of stops: %w", err)
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, log{}, fmt.Errorf("prepare the record of stops: %w", err)
	}
	l, err := readLog(f)
	if err != nil {
		f.Close()
		return nil, log{}, err
	}
	return f, l, nil
}

// log is what the file says.
type log struct {
	entries []entry // oldest first
	seq     uint64  // of the newest; 0 if there is none
	torn    bool    // the slot that was next is neither blank nor whole
}

func readLog(f *os.File) (log, error) {
	b := make([]byte, FileSize+1)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return log{}, fmt.Errorf("read record of stops: %w", err)
	}
	l, err := parse(b[:n])
	if err != nil {
		return log{}, fmt.Errorf("read record of stops %s: %w", f.Name(), err)
	}
	return l, nil
}

// errSize reports a file that is not one of ours.
var errSize = fmt.Errorf("it does not have %d bytes; move it away, and remember that it may have said why the service stopped", FileSize)

// parse reads the file's bytes.
func parse(b []byte) (log, error) {
	if len(b) != FileSize {
		return log{}, errSize
	}
	var l log
	var seqs [slots]uint64
	var all [slots]entry
	for i := range slots {
		e, seq, ok := parseSlot(b[i*slotSize : (i+1)*slotSize])
		if ok && seq%slots == uint64(i) {
			seqs[i], all[i] = seq, e
			l.seq = max(l.seq, seq)
		}
	}
	for i := range uint64(slots) {
		// From the oldest that may still be there; a gap is an old slot that was damaged since.
		if seq := l.seq + 1 + i; seq > slots && seqs[seq%slots] == seq-slots {
			l.entries = append(l.entries, all[seq%slots])
		}
	}
	at := int((l.seq + 1) % slots)
	next := b[at*slotSize : (at+1)*slotSize]
	l.torn = seqs[at] == 0 && len(bytes.TrimSpace(next)) > 0
	return l, nil
}

// parseSlot returns the entry in a slot and its number, which is at least 1, unless the slot is blank or damaged.
func parseSlot(b []byte) (e entry, seq uint64, ok bool) {
	line, rest, found := bytes.Cut(b, []byte{'\n'})
	if !found || len(line) > 120 {
		return e, 0, false
	}
	var length int
	var sum string
	if _, err := fmt.Sscanf(string(line), "holdfast-stop 1 %d %d %64s", &seq, &length, &sum); err != nil || seq == 0 || length < 0 || length > len(rest) {
		return e, 0, false
	}
	text := rest[:length]
	if got := sha256.Sum256(text); hex.EncodeToString(got[:]) != sum || json.Unmarshal(text, &e) != nil || (e.Stop == nil) == (e.Resume == nil) {
		return entry{}, 0, false
	}
	return e, seq, true
}

// next returns the bytes of the slot that is next, with e, and where it lies in the file.
func (l log) next(e entry) (slot []byte, at int64, err error) {
	seq := l.seq + 1
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // at most two bytes for one
	if err := enc.Encode(e); err != nil {
		return nil, 0, fmt.Errorf("encode record of stops: %w", err)
	}
	text := b.Bytes()
	sum := sha256.Sum256(text)
	slot = fmt.Appendf(nil, "holdfast-stop 1 %d %d %x\n%s", seq, len(text), sum, text)
	if len(slot) > slotSize-1 {
		return nil, 0, errors.New("encode record of stops: it is too long")
	}
	slot = append(slot, bytes.Repeat([]byte{' '}, slotSize-1-len(slot))...)
	return append(slot, '\n'), int64(seq%slots) * slotSize, nil
}

// stops returns the stops, oldest first, each with its resumption.
func (l log) stops() []Stop {
	var all []Stop
	for _, e := range l.entries {
		switch n := len(all); {
		case e.Stop != nil:
			all = append(all, *e.Stop)
		case e.ID == Unreadable: // its slot has this entry now
			all = append(all, unreadable(e.Resume))
		case n > 0 && all[n-1].ID == e.ID:
			all[n-1].Resumed = e.Resume
		}
	}
	if l.torn {
		all = append(all, unreadable(nil))
	}
	return all
}

func unreadable(r *Resumption) Stop {
	return Stop{
		ID:      Unreadable,
		What:    "the record of a stop was cut off while it was being written",
		Todo:    "Look for what the service wrote last, in its log: it said there what happened.",
		Resumed: r,
	}
}

// standing returns the stop that stands, or nil.
func (l log) standing() *Stop {
	all := l.stops()
	if n := len(all); n > 0 && all[n-1].Resumed == nil {
		return &all[n-1]
	}
	return nil
}

// stop records e and ends the process. The first event wins: whoever comes later waits for the end.
func (r *Recorder) stop(e Event) {
	if !r.begun.CompareAndSwap(false, true) {
		select {}
	}
	s := Stop{
		ID: newID(), Time: time.Now().UTC().Truncate(time.Millisecond), Version: holdfast.Version,
		What: clip(e.What, maxText), Where: clip(e.Where, maxText), Invariant: clip(e.Invariant, maxText), Todo: clip(e.Todo, maxText),
		Stack: strings.ToValidUTF8(string(debug.Stack()), "?"),
	}
	said := Text(s, r.dir) + "\n" + s.Stack
	slot, _ := s.slot(r.log) // without one, the record counts as not written
	line, _ := json.Marshal(s)
	end(r.f, slot.text, slot.at, []byte(said), []byte(unwritten), r.also.Load(), append(line, '\n'))
}

// place is a slot to be written.
type place struct {
	text []byte
	at   int64
}

// slot returns the slot that is next in l, with s in it; as much of the stack as it has room for.
func (s *Stop) slot(l log) (p place, err error) {
	p.text, p.at, err = l.next(entry{Stop: s})
	for err != nil && s.Stack != "" {
		s.Stack = clip(s.Stack, len(s.Stack)*3/4)
		p.text, p.at, err = l.next(entry{Stop: s})
	}
	return p, err
}

const unwritten = "The record of this could not be written: keep this text, since holdfastd why does not have it. Whatever starts\nthe service again does not know that it must not.\n"

// Text is how a person is told of a stop that stands in dir.
func Text(s Stop, dir string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "holdfastd: stopped, by an event that must never happen\n\n")
	for _, x := range []struct{ name, text string }{
		{"id", s.ID}, {"time", s.Time.Format(time.RFC3339)}, {"version", s.Version},
		{"what", s.What}, {"where", s.Where}, {"invariant", s.Invariant}, {"to do", s.Todo},
	} {
		if x.text != "" {
			fmt.Fprintf(&b, "  %-9s  %s\n", x.name, strings.ReplaceAll(x.text, "\n", "\n             "))
		}
	}
	fmt.Fprintf(&b, "\nIt does not serve again before somebody has looked:\n\n  holdfastd why --data %s\n  holdfastd resume --data %s --id %s --reason TEXT\n", dir, dir, s.ID)
	return b.String()
}

// newID returns a name for a stop that can be said on the telephone: four syllables of 75, 31 million names.
func newID() string {
	const consonants, vowels = "bdfghjklmnprstv", "aeiou"
	var raw [8]byte
	rand.Read(raw[:])
	var id []byte
	for i := 0; i < len(raw); i += 2 {
		if i == 4 {
			id = append(id, '-')
		}
		id = append(id, consonants[int(raw[i])%len(consonants)], vowels[int(raw[i+1])%len(vowels)])
	}
	return string(id)
}

// clip returns at most n bytes of text, as valid UTF-8 that does nothing to a terminal.
func clip(text string, n int) string {
	text = strings.Map(func(c rune) rune {
		if unicode.IsControl(c) && c != '\n' && c != '\t' {
			return '?'
		}
		return c
	}, strings.ToValidUTF8(text, "?"))
	if len(text) <= n {
		return text
	}
	cut := []byte(text[:n])
	for len(cut) > 0 && !utf8.Valid(cut) {
		cut = slices.Delete(cut, len(cut)-1, len(cut))
	}
	return string(cut)
}
