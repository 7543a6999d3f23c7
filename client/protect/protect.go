// Package protect keeps the text of a key or owner file shut by a passphrase or for age recipients.
//
// # Format
//
// A protected file is an age file (https://age-encryption.org/v1) in ASCII armor, version 1 of both, whose
// plaintext is the text of the file as it would be without protection, byte for byte. So `age --decrypt`
// opens it, and what `age --armor` makes of such a text is a protected file. It has either one stanza
// scrypt, or stanzas of any recipients that age knows or has plugins for.
//
// # Limits
//
// An armored file has at most MaxFile bytes. A new passphrase costs 2^17 steps of scrypt with r = 8, p = 1:
// half a second and 128 MiB, which stays below what a client may take. age itself writes 2^18; files that
// want more than 2^19 are refused before anything is computed, because anybody can write a larger number
// into a file.
package protect

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strconv"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"filippo.io/age/tag"
)

const (
	// MaxFile bounds an armored file, bytes: a text of the largest size for a few dozen recipients.
	MaxFile = 64 << 10
	// MaxList bounds a file of identities or recipients, bytes.
	MaxList = 256 << 10

	workFactor    = 17 // log2 of the steps of scrypt that a new passphrase costs
	maxWorkFactor = 19 // 512 MiB
)

var (
	// ErrPassphrase reports a passphrase that does not open the file.
	ErrPassphrase = errors.New("the passphrase is wrong")
	// ErrNoIdentity reports a file that is protected for recipients, and that no identity was given.
	ErrNoIdentity = errors.New("it is protected for an age recipient, and no identity was given")
	// ErrIdentity reports that none of the identities opens the file.
	ErrIdentity = errors.New("it is protected for another age recipient: none of the identities opens it")
	// ErrDamaged reports a file that is not a whole armored age file.
	ErrDamaged = errors.New("its protection is damaged")
	// ErrWork reports a file whose passphrase costs more than this program is ready to pay.
	ErrWork = errors.New("its passphrase takes too much work to check")
	// ErrPlugin reports an age plugin that is not installed.
	ErrPlugin = errors.New("it is not in PATH")
)

// Is reports whether text is that of a protected file, whole or not.
func Is(text []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte(armor.Header))
}

// Bare reports whether text is an age file without armor, which is not what this program reads.
func Bare(text []byte) bool { return bytes.HasPrefix(text, []byte("age-encryption.org/")) }

// Lock is what a text is sealed with.
type Lock struct {
	recipients []age.Recipient
	passphrase string
}

// Passphrase returns the lock that this passphrase opens. It must not be empty.
func Passphrase(passphrase string) (*Lock, error) {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, errors.New("an empty passphrase protects nothing")
	}
	r.SetWorkFactor(workFactor)
	return &Lock{[]age.Recipient{r}, passphrase}, nil
}

// Recipients returns the lock that the identity of any of these recipients opens, each as age writes it:
// age1..., with plugins. A plugin that wants to tell or ask something does so through say and the
// terminal.
func Recipients(names []string, say func(string)) (*Lock, error) {
	l := new(Lock)
	for _, name := range names {
		r, err := recipient(name, say)
		if err != nil {
			return nil, err
		}
		l.recipients = append(l.recipients, r)
	}
	if len(l.recipients) == 0 {
		return nil, errors.New("there is no recipient")
	}
	return l, nil
}

func recipient(name string, say func(string)) (r age.Recipient, err error) {
	switch {
	case strings.HasPrefix(name, "age1tag1"), strings.HasPrefix(name, "age1tagpq1"):
		r, err = tag.ParseRecipient(name)
	case strings.HasPrefix(name, "age1pq1"):
		r, err = age.ParseHybridRecipient(name)
	case strings.HasPrefix(name, "age1") && strings.Count(name, "1") > 1:
		r, err = plugin.NewRecipient(name, ui(say))
	case strings.HasPrefix(name, "age1"):
		r, err = age.ParseX25519Recipient(name)
	case strings.HasPrefix(strings.ToUpper(name), "AGE-"):
		return nil, errors.New("that is an age identity, which is secret; name its recipient, which begins with age1")
	case strings.HasPrefix(name, "ssh-"):
		return nil, errors.New("SSH keys are no recipients here; make an age identity with age-keygen")
	default:
		return nil, fmt.Errorf("%.80q is no age recipient; one begins with age1", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%.80q is no whole age recipient; compare it with what its owner gave you", name)
	}
	return r, nil
}

// ReadList returns the lines of a file of identities or recipients that are not empty and not comments.
func ReadList(text []byte) (names []string) {
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			names = append(names, line)
		}
	}
	return names
}

// ByPassphrase reports whether a passphrase opens the lock.
func (l *Lock) ByPassphrase() bool { return l.passphrase != "" }

// Len returns how many recipients the lock has.
func (l *Lock) Len() int { return len(l.recipients) }

// Seal returns the protected form of text. The error wraps ErrPlugin if a plugin is missing.
func (l *Lock) Seal(text []byte) ([]byte, error) {
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	w, err := age.Encrypt(a, l.recipients...)
	if err != nil {
		return nil, explain(err)
	}
	if l.ByPassphrase() {
		debug.FreeOSMemory()
	}
	for _, err := range []error{second(w.Write(text)), w.Close(), a.Close()} {
		if err != nil {
			return nil, fmt.Errorf("protect: %w", err)
		}
	}
	if out.Len() > MaxFile {
		return nil, fmt.Errorf("it would have %d bytes, and a protected file has at most %d; name fewer recipients", out.Len(), MaxFile)
	}
	return out.Bytes(), nil
}

func second(_ int, err error) error { return err }

// Opens returns what opens the lock if that is a passphrase, otherwise a key that opens nothing.
func (l *Lock) Opens() Key {
	return Key{Passphrase: func() (string, error) { return l.passphrase, nil }}
}

// Key is what a protected file is opened with.
type Key struct {
	Passphrase func() (string, error) // called only for a file that a passphrase opens
	identities []age.Identity
}

// Identities returns the key of these identities, each as age writes it: AGE-SECRET-KEY-..., and
// AGE-PLUGIN-... for plugins, which talk as for Recipients. An error never repeats an identity.
func Identities(names []string, say func(string)) (Key, error) {
	var k Key
	for i, name := range names {
		var id age.Identity
		var err error
		switch {
		case strings.HasPrefix(name, "AGE-PLUGIN-"):
			id, err = plugin.NewIdentity(name, ui(say))
		case strings.HasPrefix(name, "AGE-SECRET-KEY-PQ-1"):
			id, err = age.ParseHybridIdentity(name)
		case strings.HasPrefix(name, "AGE-SECRET-KEY-1"):
			id, err = age.ParseX25519Identity(name)
		case strings.HasPrefix(name, "age1"):
			return k, errors.New("it names a recipient, which opens nothing; the identity begins with AGE-")
		default:
			return k, fmt.Errorf("entry %d of it is no age identity; one begins with AGE-SECRET-KEY- or AGE-PLUGIN-", i+1)
		}
		if err != nil {
			return k, fmt.Errorf("entry %d of it is no whole age identity; use another copy", i+1)
		}
		k.identities = append(k.identities, id)
	}
	if len(k.identities) == 0 {
		return k, errors.New("there is no age identity in it")
	}
	return k, nil
}

// Add gives k the identities of other too.
func (k *Key) Add(other Key) { k.identities = append(k.identities, other.identities...) }

// Open returns the text in a protected file. The error wraps one of those above, is a plugin's, or is
// what Passphrase returned.
func Open(protected []byte, k Key) ([]byte, error) {
	if len(protected) > MaxFile {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrDamaged, MaxFile)
	}
	lock := &lockReader{key: k}
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(protected)), lock)
	switch {
	case lock.err != nil: // says more than what age makes of it
		return nil, lock.err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return text, nil
}

// lockReader looks at the stanzas of a file before it asks anybody for anything.
type lockReader struct {
	key Key
	err error
}

func (l *lockReader) Unwrap(stanzas []*age.Stanza) (fileKey []byte, err error) {
	fileKey, l.err = l.unwrap(stanzas)
	return fileKey, l.err
}

func (l *lockReader) unwrap(stanzas []*age.Stanza) ([]byte, error) {
	for _, s := range stanzas {
		if s.Type == "scrypt" {
			if len(stanzas) != 1 {
				return nil, fmt.Errorf("%w: it has a passphrase and recipients", ErrDamaged)
			}
			return l.unwrapPassphrase(s)
		}
	}
	if len(l.key.identities) == 0 {
		return nil, ErrNoIdentity
	}
	var missing error // a plugin's failure matters only if nothing else opens the file
	for _, id := range l.key.identities {
		fileKey, err := id.Unwrap(stanzas)
		switch {
		case err == nil:
			return fileKey, nil
		case errors.Is(err, age.ErrIncorrectIdentity):
		case missing == nil:
			missing = explain(err)
			if _, ok := id.(*plugin.Identity); !ok {
				missing = fmt.Errorf("%w: %w", ErrDamaged, err)
			}
		}
	}
	if missing != nil {
		return nil, missing
	}
	return nil, ErrIdentity
}

func (l *lockReader) unwrapPassphrase(s *age.Stanza) ([]byte, error) {
	if len(s.Args) != 2 {
		return nil, fmt.Errorf("%w: its scrypt stanza has %d arguments", ErrDamaged, len(s.Args))
	}
	if n, err := strconv.Atoi(s.Args[1]); err != nil || n < 1 {
		return nil, fmt.Errorf("%w: its work factor is %.20q", ErrDamaged, s.Args[1])
	} else if n > maxWorkFactor {
		return nil, fmt.Errorf("%w: 2^%d steps, and 2^%d is the most; open it with age and protect it anew", ErrWork, n, maxWorkFactor)
	}
	if l.key.Passphrase == nil {
		return nil, ErrPassphrase
	}
	passphrase, err := l.key.Passphrase()
	if err != nil {
		return nil, err
	}
	id, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, ErrPassphrase // an empty one
	}
	id.SetMaxWorkFactor(maxWorkFactor)
	fileKey, err := id.Unwrap([]*age.Stanza{s})
	debug.FreeOSMemory()
	switch {
	case errors.Is(err, age.ErrIncorrectIdentity):
		return nil, ErrPassphrase
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return fileKey, nil
}

// explain names a missing plugin.
func explain(err error) error {
	var none *plugin.NotFoundError
	if errors.As(err, &none) {
		return fmt.Errorf("it needs the age plugin age-plugin-%s, and %w; install it", none.Name, ErrPlugin)
	}
	return err
}

// ui lets a plugin talk to the person at the terminal.
func ui(say func(string)) *plugin.ClientUI {
	printf := func(format string, a ...any) { say(fmt.Sprintf(format, a...)) }
	return plugin.NewTerminalUI(printf, printf)
}

// Armor returns the armored form of a bare age file, and Unarmor the bare form of an armored one. The
// error wraps ErrDamaged.
func Armor(bare []byte) []byte {
	var out bytes.Buffer
	a := armor.NewWriter(&out)
	a.Write(bare) // to memory
	a.Close()
	return out.Bytes()
}

// Unarmor returns the age file inside the armor. The error wraps ErrDamaged.
func Unarmor(protected []byte) ([]byte, error) {
	if len(protected) > MaxFile {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrDamaged, MaxFile)
	}
	bare, err := io.ReadAll(armor.NewReader(bufio.NewReader(bytes.NewReader(protected))))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return bare, nil
}
