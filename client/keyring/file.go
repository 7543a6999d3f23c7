package keyring

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/bits"
	"os"
	"runtime"
	"strconv"
	"strings"

	"holdfast"
	"holdfast/client/protect"
	"holdfast/history"
	"holdfast/internal/durable"
	"holdfast/wire"
)

// maxFile bounds the text of a key or owner file, bytes.
const maxFile = 16 << 10

// ErrFile reports a file that is not a whole key or owner file of this version.
var ErrFile = errors.New("not a whole key file")

// ErrProtected reports a protected file where nothing was given to open it.
var ErrProtected = errors.New("it is protected")

// Opener returns the text in a protected file. It is called for those only, with the path for questions
// to the user.
type Opener func(path string, protected []byte) (text []byte, err error)

// Sealer returns the protected file that holds text.
type Sealer func(text []byte) (protected []byte, err error)

// ErrOpenToOthers reports a key file that other users of the machine can read or write.
var ErrOpenToOthers = errors.New("other users can read it")

const machineComment = `# Holdfast key file of one machine: whoever has a copy can do what its rights say.
# Keep it readable for its user only, and keep no copy where its backups go.
`

const ownerComment = `# Holdfast owner file: the 24 words that open and rule this vault.
# Whoever has them can read every backup; without them a lost machine's backups are lost.
# Print this, or keep it offline. It does not belong on a machine that makes backups.
`

// Encode returns the machine as the text of a key file.
func (m *Machine) Encode() []byte {
	var w writer
	w.field("holdfast-key", "1")
	w.service(m.Address, m.ServiceKey, m.LogKey)
	w.hex("vault", m.Vault[:])
	w.hex("owner", m.Owner[:])
	w.hex("group", m.Group[:])
	w.field("rights", m.Rights.String())
	w.field("chunk", strconv.FormatUint(uint64(m.Chunk), 10))
	w.hex("machine-seed", m.Seed[:])
	if m.Rights.Has(holdfast.RightRead) {
		w.hex("vault-secret", m.V[:])
		w.hex("read-seed", m.ReadSeed[:])
	} else {
		w.hex("group-secret", m.G[:])
		w.hex("history-key", m.Hist[:])
		w.field("read-key", base64.StdEncoding.EncodeToString(m.ReadKey[:]))
	}
	return w.finish(machineComment)
}

// Parse reads the text of a key file. The error wraps ErrFile and says which field is wrong; it never
// repeats a secret.
func Parse(text []byte) (*Machine, error) {
	r, err := read(text)
	if err != nil {
		return nil, err
	}
	m := new(Machine)
	r.version("holdfast-key")
	m.Address = r.service(&m.ServiceKey, &m.LogKey)
	r.hex("vault", m.Vault[:])
	r.hex("owner", m.Owner[:])
	r.hex("group", m.Group[:])
	m.Rights = r.rights("rights")
	m.Chunk = r.chunk("chunk")
	r.hex("machine-seed", m.Seed[:])
	if m.Rights.Has(holdfast.RightRead) {
		m.V, m.ReadSeed = new(holdfast.Key), new(holdfast.Key)
		r.hex("vault-secret", m.V[:])
		r.hex("read-seed", m.ReadSeed[:])
		m.Hist, m.G, m.ReadKey = histOf(*m.V), groupOf(*m.V, m.Group), readKey(*m.ReadSeed)
	} else {
		r.hex("group-secret", m.G[:])
		r.hex("history-key", m.Hist[:])
		v := r.field("read-key")
		b, err := base64.StdEncoding.Strict().DecodeString(v)
		if err != nil || len(b) != len(m.ReadKey) || strings.ContainsRune(v, '\r') { // which the decoder skips
			r.fail("its read-key is not the base64 form of %d bytes", len(m.ReadKey))
		}
		copy(m.ReadKey[:], b)
	}
	if err := r.done(); err != nil {
		return nil, err
	}
	return m, nil
}

// Save writes the machine to a new file that only its user can read, protected by seal unless that is
// nil. It refuses to replace a file: the error wraps fs.ErrExist then.
func (m *Machine) Save(path string, seal Sealer) error {
	text := m.Encode()
	if _, err := Parse(text); err != nil { // a file that cannot be read back must not be what remains of a vault
		return fmt.Errorf("write key file %s: %w", path, err)
	}
	return save(path, text, "key", seal)
}

// Load reads a key file, which open opens if it is protected. The error wraps ErrOpenToOthers if others
// can read it, ErrFile if it is damaged, or is open's or the file system's.
func Load(path string, open Opener) (*Machine, error) {
	text, err := load(path, "key", open)
	if err != nil {
		return nil, err
	}
	m, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("read key file %s: %w; use another copy of the one that was made with the vault", path, err)
	}
	return m, nil
}

// OwnerFile is what an owner file holds: the words, and where the vault is and how to recognise its service.
type OwnerFile struct {
	Owner      Owner
	Vault      holdfast.VaultID
	Address    string
	ServiceKey [32]byte
	LogKey     [32]byte
}

// Encode returns the text of an owner file.
func (f OwnerFile) Encode() []byte {
	var w writer
	w.field("holdfast-owner", "1")
	w.service(f.Address, f.ServiceKey, f.LogKey)
	w.hex("vault", f.Vault[:])
	w.field("words", f.Owner.Words())
	return w.finish(ownerComment)
}

// ParseOwner reads the text of an owner file. The error wraps ErrFile.
func ParseOwner(text []byte) (OwnerFile, error) {
	var f OwnerFile
	r, err := read(text)
	if err != nil {
		return f, err
	}
	r.version("holdfast-owner")
	f.Address = r.service(&f.ServiceKey, &f.LogKey)
	r.hex("vault", f.Vault[:])
	words := r.field("words")
	o, err := ParseWords(words)
	if err != nil {
		r.fail("%v", err)
	} else if o.Words() != words {
		r.fail("its words are not in lower case with single spaces")
	}
	f.Owner = o
	if err := r.done(); err != nil {
		return OwnerFile{}, err
	}
	return f, nil
}

// SaveOwner writes an owner file as Save does a key file.
func SaveOwner(path string, f OwnerFile, seal Sealer) error {
	text := f.Encode()
	if _, err := ParseOwner(text); err != nil { // as for Save
		return fmt.Errorf("write owner file %s: %w", path, err)
	}
	return save(path, text, "owner", seal)
}

// LoadOwner reads an owner file as Load does a key file.
func LoadOwner(path string, open Opener) (OwnerFile, error) {
	text, err := load(path, "owner", open)
	if err != nil {
		return OwnerFile{}, err
	}
	f, err := ParseOwner(text)
	if err != nil {
		return OwnerFile{}, fmt.Errorf("read owner file %s: %w; use another copy, or the words on paper", path, err)
	}
	return f, nil
}

// SaveProtected writes a protected file as Save does a key file, without opening it.
func SaveProtected(path string, protected []byte) error { return save(path, protected, "key", nil) }

func save(path string, text []byte, what string, seal Sealer) (err error) {
	if seal != nil {
		if text, err = seal(text); err != nil {
			return fmt.Errorf("write %s file %s: %w", what, path, err)
		}
	}
	err = durable.CreateFile(path, text, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write %s file %s: %w, and replacing it could lose a vault; choose another name", what, path, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("write %s file %s: %w", what, path, err)
	}
	return nil
}

// ReadFile returns what a key or owner file holds, protected or not, which nobody but its user must be
// able to read.
func ReadFile(path string) ([]byte, error) { return readFile(path, "key") }

func load(path, what string, open Opener) ([]byte, error) {
	text, err := readFile(path, what)
	if err != nil {
		return nil, err
	}
	if protect.Bare(text) {
		return nil, fmt.Errorf("read %s file %s: %w: it is an age file without armor; make it anew with age --armor", what, path, ErrFile)
	}
	if !protect.Is(text) {
		return text, nil
	}
	if open == nil {
		return nil, fmt.Errorf("read %s file %s: %w", what, path, ErrProtected)
	}
	if text, err = open(path, text); err != nil {
		return nil, fmt.Errorf("read %s file %s: %w", what, path, err)
	}
	return text, nil
}

func readFile(path, what string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s file: %w", what, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s file: %w", what, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s file %s: %w: it is not a file; name the file that was made with the vault", what, path, ErrFile)
	}
	if runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 { // Windows shows no such bits
		return nil, fmt.Errorf("read %s file %s: %w; run: chmod 600 %s", what, path, ErrOpenToOthers, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, protect.MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s file: %w", what, err)
	}
	return text, nil
}

// Inspect returns the machine or the owner file that the text of a file holds; the other is nil. The error
// wraps ErrFile.
func Inspect(text []byte) (*Machine, *OwnerFile, error) {
	r, err := read(text)
	if err != nil {
		return nil, nil, err
	}
	if strings.HasPrefix(r.lines[0], "holdfast-owner ") {
		f, err := ParseOwner(text)
		if err != nil {
			return nil, nil, err
		}
		return nil, &f, nil
	}
	m, err := Parse(text)
	return m, nil, err
}

// writer builds the fields of a file.
type writer struct{ b []byte }

func (w *writer) field(name, value string) { w.b = fmt.Appendf(w.b, "%s %s\n", name, value) }

func (w *writer) hex(name string, value []byte) { w.field(name, hex.EncodeToString(value)) }

func (w *writer) service(address string, serviceKey, logKey [32]byte) {
	w.field("address", address)
	w.hex("service-key", serviceKey[:])
	w.hex("log-key", logKey[:])
}

func (w *writer) finish(comment string) []byte {
	return append([]byte(comment), w.sum()...)
}

func (w *writer) sum() []byte {
	check := checkOf(w.b)
	w.hex("check", check[:])
	return w.b
}

func checkOf(fields []byte) (c [8]byte) {
	sum := sha256.Sum256(fields)
	copy(c[:], sum[:])
	return c
}

// reader takes fields from the front and keeps its first error.
type reader struct {
	lines []string
	err   error
}

// read splits text into fields and verifies the last, the check.
func read(text []byte) (*reader, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrFile, maxFile)
	}
	var fields []byte
	r := new(reader)
	for len(text) > 0 {
		line, rest, ended := bytes.Cut(text, []byte("\n"))
		text = rest
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if !ended {
			return nil, fmt.Errorf("%w: its last line is cut off", ErrFile)
		}
		if check, ok := bytes.CutPrefix(line, []byte("check ")); ok {
			c := checkOf(fields)
			if string(check) != hex.EncodeToString(c[:]) {
				return nil, fmt.Errorf("%w: its check sum is wrong", ErrFile)
			}
			r.lines = append(r.lines, "")
			continue
		}
		fields = append(append(fields, line...), '\n')
		r.lines = append(r.lines, string(line))
	}
	if n := len(r.lines); n == 0 || r.lines[n-1] != "" {
		return nil, fmt.Errorf("%w: it does not end with a check sum", ErrFile)
	}
	return r, nil
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrFile}, args...)...)
	}
}

func (r *reader) field(name string) string {
	if r.err != nil {
		return ""
	}
	value, ok := "", false
	if len(r.lines) > 0 {
		value, ok = strings.CutPrefix(r.lines[0], name+" ")
		r.lines = r.lines[1:]
	}
	if !ok {
		r.fail("field %s is missing", name)
	}
	return value
}

func (r *reader) version(name string) {
	if v := r.field(name); v != "1" {
		r.fail("version %q of %s is not known to this program; a newer one may read it", v, name)
	}
}

func (r *reader) hex(name string, dst []byte) {
	v := r.field(name)
	b, err := hex.DecodeString(v)
	if err != nil || len(b) != len(dst) || hex.EncodeToString(b) != v {
		r.fail("its %s is not %d bytes in lower-case hex", name, len(dst))
		return
	}
	copy(dst, b)
}

func (r *reader) service(serviceKey, logKey *[32]byte) string {
	address := r.field("address")
	if err := wire.CheckAddress(address); err != nil {
		r.fail("%v", err)
	}
	r.hex("service-key", serviceKey[:])
	r.hex("log-key", logKey[:])
	return address
}

func (r *reader) rights(name string) holdfast.Rights {
	v := r.field(name)
	for x := holdfast.Rights(1); x <= holdfast.RightsAll; x++ {
		if x.String() == v {
			return x
		}
	}
	r.fail("its %s %q are not known to this program", name, v)
	return 0
}

func (r *reader) chunk(name string) uint32 {
	v := r.field(name)
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != v || n < history.MinChunk || n > history.MaxChunk || bits.OnesCount64(n) != 1 {
		r.fail("its %s is not a power of two from %d to %d", name, history.MinChunk, history.MaxChunk)
	}
	return uint32(n)
}

// done returns the first error, or one if fields are left besides the check.
func (r *reader) done() error {
	if r.err == nil && len(r.lines) != 1 {
		name, _, _ := strings.Cut(r.lines[0], " ") // the value may be secret
		r.fail("it has a field too many, %.20q", name)
	}
	return r.err
}
