// Package notice keeps what the operator has to say to everybody who uses the service: one line of text in a file of
// the data directory. It is said with every hello and every refusal, so that people read "maintenance until noon"
// in place of a guess.
//
// The file is the text, in UTF-8, and a newline. Any process may replace it while the service runs.
package notice

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"holdfast/internal/durable"
	"holdfast/wire"
)

// FileName is the name of the file in the data directory.
const FileName = "notice"

// again is how long a Board believes what it read.
const again = time.Second

// Check says what is wrong with a text: it is one line of at most wire.MaxNotice bytes, without anything that a terminal would
// act upon.
func Check(text string) error {
	switch {
	case text == "":
		return errors.New("a notice has some text; without TEXT it is shown, and --clear removes it")
	case len(text) > wire.MaxNotice:
		return fmt.Errorf("a notice has at most %d bytes, this one has %d", wire.MaxNotice, len(text))
	case !utf8.ValidString(text):
		return errors.New("a notice is text in UTF-8")
	case strings.TrimSpace(text) != text:
		return errors.New("a notice neither begins nor ends with spaces")
	}
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("a notice is one line of printable text; %U is not", r)
		}
	}
	return nil
}

// Set makes text the notice of the service on dir, durably.
func Set(dir, text string) error {
	if err := Check(text); err != nil {
		return err
	}
	// Everybody may read it: it is said to everybody, and the service may run as another user than the one who sets it.
	if err := durable.WriteFile(filepath.Join(dir, FileName), []byte(text+"\n"), 0o644); err != nil {
		return fmt.Errorf("set the notice: %w", err)
	}
	return nil
}

// Clear removes the notice of the service on dir, if there is one.
func Clear(dir string) error {
	if err := os.Remove(filepath.Join(dir, FileName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clear the notice: %w", err)
	}
	return durable.SyncDir(dir)
}

// Read returns the notice of the service on dir, or "".
func Read(dir string) (string, error) {
	path := filepath.Join(dir, FileName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the notice: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, wire.MaxNotice+2))
	if err != nil {
		return "", fmt.Errorf("read the notice: %w", err)
	}
	text := strings.TrimSuffix(string(b), "\n")
	if err := Check(text); err != nil {
		return "", fmt.Errorf("%s: %w; set it with holdfastd notice", path, err)
	}
	return text, nil
}

// Board shows a running service the notice as it is. It is safe for concurrent use.
type Board struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex
	read time.Time // when text was
	text string
	err  string // said in the log
}

// NewBoard returns the Board of the service on dir.
func NewBoard(dir string, log *slog.Logger) *Board { return &Board{dir: dir, log: log} }

// Text returns the notice, or "": as it was a second ago or later.
func (b *Board) Text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.read.IsZero() && time.Since(b.read) < again {
		return b.text
	}
	b.read = time.Now()
	text, err := Read(b.dir)
	if err != nil {
		if b.err != err.Error() {
			b.err = err.Error()
			b.log.Warn("customers are shown no notice", "err", err)
		}
		text = ""
	} else {
		b.err = ""
	}
	b.text = text
	return text
}
