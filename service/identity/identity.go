// Package identity keeps the one file that, with the bucket, is the whole service: who the service is
// (the keys that its clients pin) and where its journal lies. The operator keeps a copy elsewhere.
//
// The file is text of one "name value" pair a line, in this order, each line ended by a newline. Lines
// that begin with "#" and empty lines are ignored. Hex is lower case.
//
//	holdfast-identity 1      the file's version
//	cell      16 hex         the cell
//	tls       64 hex         secret: seed of the Ed25519 key that is the service's end of every connection
//	log       64 hex         secret: seed of the Ed25519 key that signs heads
//	bucket    URL            where the journal lies, such as file:///srv/holdfast/bucket
//	address   HOST:PORT      where clients connect; tokens carry it
//	check     16 hex         first 8 bytes of SHA-256 over the lines above, in exactly this form: name,
//	                         one space, value, newline, without comments
package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"holdfast"
	"holdfast/internal/durable"
	"holdfast/wire"
)

// FileName is the name of the identity file in a service's data directory.
const FileName = "identity"

// maxFile bounds an identity file in bytes.
const maxFile = 16 << 10

// ErrFile reports text that is not an intact identity file.
var ErrFile = errors.New("not an intact identity file; use the copy that you keep elsewhere")

// Identity is the content of an identity file.
type Identity struct {
	Cell    holdfast.CellID
	TLS     holdfast.Key // Ed25519 seed
	Log     holdfast.Key // Ed25519 seed
	Bucket  string       // URL, as bucket.Open takes it
	Address string       // HOST:PORT
}

// New returns a fresh identity. The error says what is wrong with the bucket or the address.
func New(bucket, address string) (*Identity, error) {
	id := &Identity{Bucket: bucket, Address: address}
	rand.Read(id.Cell[:])
	rand.Read(id.TLS[:])
	rand.Read(id.Log[:])
	return id, id.check()
}

func (id *Identity) check() error {
	if err := wire.CheckAddress(id.Address); err != nil {
		return err
	}
	for _, v := range []string{id.Bucket, id.Address} {
		if v == "" || strings.TrimSpace(v) != v || strings.ContainsAny(v, "\n\r\x00") {
			return fmt.Errorf("%q cannot stand in an identity file", v)
		}
	}
	return nil
}

// TLSKey returns the key that is the service's end of every connection.
func (id *Identity) TLSKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(id.TLS[:]) }

// LogKey returns the key that signs heads.
func (id *Identity) LogKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(id.Log[:]) }

// Token returns a token for this service with the given secret.
func (id *Identity) Token(secret [32]byte) wire.Token {
	return wire.Token{
		ServiceKey: wire.PublicKey(id.TLSKey().Public().(ed25519.PublicKey)),
		LogKey:     wire.PublicKey(id.LogKey().Public().(ed25519.PublicKey)),
		Secret:     secret,
		Address:    id.Address,
	}
}

const header = `# The identity of a Holdfast service. With the bucket it is the whole service:
# keep a copy of this file elsewhere, and keep it secret.
`

func (id *Identity) lines() string {
	return fmt.Sprintf("holdfast-identity 1\ncell %x\ntls %x\nlog %x\nbucket %s\naddress %s\n",
		id.Cell[:], id.TLS[:], id.Log[:], id.Bucket, id.Address)
}

// Encode returns the file's text. It contains the secrets.
func (id *Identity) Encode() []byte {
	l := id.lines()
	sum := sha256.Sum256([]byte(l))
	return fmt.Appendf(nil, "%s\n%scheck %x\n", header, l, sum[:8])
}

// Parse reads a file's text. The error wraps ErrFile.
func Parse(text []byte) (*Identity, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%w (longer than %d bytes)", ErrFile, maxFile)
	}
	var pairs []string
	for line := range strings.Lines(string(text)) {
		line, ok := strings.CutSuffix(line, "\n")
		if !ok {
			return nil, fmt.Errorf("%w (it does not end with a whole line)", ErrFile)
		}
		if line != "" && !strings.HasPrefix(line, "#") {
			pairs = append(pairs, line)
		}
	}
	id := new(Identity)
	var version string
	var check [8]byte
	fields := []struct {
		name string
		text *string
		bin  []byte
	}{
		{"holdfast-identity", &version, nil},
		{"cell", nil, id.Cell[:]},
		{"tls", nil, id.TLS[:]},
		{"log", nil, id.Log[:]},
		{"bucket", &id.Bucket, nil},
		{"address", &id.Address, nil},
		{"check", nil, check[:]},
	}
	for i, f := range fields {
		if i >= len(pairs) {
			return nil, fmt.Errorf("%w (the line %q is missing)", ErrFile, f.name)
		}
		value, ok := strings.CutPrefix(pairs[i], f.name+" ")
		if !ok {
			return nil, fmt.Errorf("%w (the line %q is missing)", ErrFile, f.name)
		}
		if f.text != nil {
			*f.text = value
			continue
		}
		if len(value) != 2*len(f.bin) || value != strings.ToLower(value) {
			return nil, fmt.Errorf("%w (%s is not %d lower-case hex digits)", ErrFile, f.name, 2*len(f.bin))
		}
		if _, err := hex.Decode(f.bin, []byte(value)); err != nil {
			return nil, fmt.Errorf("%w (%s is not hex)", ErrFile, f.name)
		}
	}
	if len(pairs) > len(fields) {
		return nil, fmt.Errorf("%w (something follows its end)", ErrFile)
	}
	if version != "1" {
		return nil, fmt.Errorf("%w (its version is %q, this program knows 1)", ErrFile, version)
	}
	if sum := sha256.Sum256([]byte(id.lines())); !bytes.Equal(sum[:8], check[:]) {
		return nil, fmt.Errorf("%w (its check sum is wrong)", ErrFile)
	}
	if err := id.check(); err != nil {
		return nil, fmt.Errorf("%w (%w)", ErrFile, err)
	}
	return id, nil
}

// Load reads an identity file and refuses one that others than its owner can read.
func Load(path string) (*Identity, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("open identity %s: it is not a file", path)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("open identity %s: others can read it; run chmod 600 on it, and consider whether they have", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	id, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return id, nil
}

// Replace writes an identity file in the place of one that is there, durably.
func (id *Identity) Replace(path string) error {
	if err := id.check(); err != nil {
		return err
	}
	if err := durable.WriteFile(path, id.Encode(), 0o600); err != nil {
		return fmt.Errorf("replace identity: %w", err)
	}
	return nil
}

// Create writes a new identity file that only its owner can read, durably. The error wraps
// fs.ErrExist if there is one: it is never overwritten.
func (id *Identity) Create(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("create identity %s: %w", path, fs.ErrExist)
	}
	if err := durable.CreateFile(path, id.Encode(), 0o600); err != nil {
		return fmt.Errorf("create identity: %w", err)
	}
	return nil
}
