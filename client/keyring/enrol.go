package keyring

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"holdfast"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/wire"
)

// What a machine that asks to be enrolled and the owner who allows it send one another; see the package comment.
const (
	requestPrefix = "holdfast-request1-"
	grantPrefix   = "holdfast-grant1-"
	maxText       = 16 << 10 // bytes of a request's or grant's text
	maxSealed     = 4 << 10  // bytes of a grant's sealed secrets
	maxAddress    = 300
)

// Failures of enrolling, each wrapped with what is wrong.
var (
	ErrRequest = errors.New("not a whole enrolment request; copy it whole, it begins with " + requestPrefix)
	ErrGrant   = errors.New("not a whole grant; copy it whole, it begins with " + grantPrefix)
	ErrForged  = errors.New("the grant is not what its owner signed for this machine")
)

// Pending is a machine that asks to be enrolled: what it keeps until the owner's grant comes.
type Pending struct {
	Rights holdfast.Rights // that it asks for; the owner decides
	seed   holdfast.Key    // of the machine
	grant  holdfast.Key    // private key that opens the grant
}

// NewPending returns a new machine that asks for rights.
func NewPending(rights holdfast.Rights) *Pending {
	p := &Pending{Rights: rights}
	rand.Read(p.seed[:]) // never fails: crypto/rand ends the program instead
	rand.Read(p.grant[:])
	return p
}

// String hides the secrets.
func (p *Pending) String() string { return "[machine that asks to be enrolled]" }

// GoString hides the secrets.
func (p *Pending) GoString() string { return p.String() }

// Made reports whether m is the machine that p became.
func (p *Pending) Made(m *Machine) bool { return m.Seed == p.seed }

// Request returns what the owner needs to know of p. It is always the same.
func (p *Pending) Request() Request {
	r := Request{Rights: p.Rights, GrantKey: readKey(p.grant)}
	copy(r.SignKey[:], signKey(p.seed, "sign").Public().(ed25519.PublicKey))
	copy(r.TLSKey[:], signKey(p.seed, "tls").Public().(ed25519.PublicKey))
	return r
}

const pendingComment = `# Holdfast: the secrets of a machine that asked to be enrolled. They become its key file when the owner's grant comes.
# Keep it readable for its user only, and keep no copy.
`

// Encode returns p as the text of a file.
func (p *Pending) Encode() []byte {
	var w writer
	w.field("holdfast-pending", "1")
	w.field("rights", p.Rights.String())
	w.hex("machine-seed", p.seed[:])
	w.hex("grant-seed", p.grant[:])
	return w.finish(pendingComment)
}

// ParsePending reads the text of such a file. The error wraps ErrFile.
func ParsePending(text []byte) (*Pending, error) {
	r, err := read(text)
	if err != nil {
		return nil, err
	}
	p := new(Pending)
	r.version("holdfast-pending")
	p.Rights = r.rights("rights")
	r.hex("machine-seed", p.seed[:])
	r.hex("grant-seed", p.grant[:])
	if err := r.done(); err != nil {
		return nil, err
	}
	return p, nil
}

// Save writes p to a new file that only its user can read. The error wraps fs.ErrExist if there is one.
func (p *Pending) Save(path string) error { return save(path, p.Encode(), "pending", nil) }

// LoadPending reads such a file. The error is as Load's.
func LoadPending(path string) (*Pending, error) {
	text, err := load(path, "pending", nil)
	if err != nil {
		return nil, err
	}
	p, err := ParsePending(text)
	if err != nil {
		return nil, fmt.Errorf("read pending file %s: %w; remove it and ask anew", path, err)
	}
	return p, nil
}

// Request asks the owner of a vault to enrol a machine. It holds no secret.
type Request struct {
	SignKey  [32]byte // Ed25519, signs the machine's records
	TLSKey   [32]byte // Ed25519, the machine's end of every connection
	Rights   holdfast.Rights
	GrantKey [history.ReadKeySize]byte // HPKE public key to which the grant's secrets are sealed
}

func (r Request) encode() []byte {
	b := append([]byte{1}, r.SignKey[:]...)
	b = append(b, r.TLSKey[:]...)
	b = append(b, byte(r.Rights))
	return append(b, r.GrantKey[:]...)
}

// String returns the request's text.
func (r Request) String() string { return wire.Line(requestPrefix, r.encode()) }

// ID identifies the request.
func (r Request) ID() [32]byte { return labelled("request", r.encode()) }

// Code returns what two people compare, so that the owner allows this request and no other.
func (r Request) Code() string { return code(r.ID()) }

// IsRequest reports whether s begins as a request's text does, and is not the name of a file.
func IsRequest(s string) bool { return strings.HasPrefix(strings.TrimSpace(s), requestPrefix) }

// ParseRequest reads a request's text; white space around it and in it is ignored. The error wraps ErrRequest.
func ParseRequest(s string) (Request, error) {
	var r Request
	b, err := wire.ParseLine(requestPrefix, s, maxText)
	if err != nil {
		return r, fmt.Errorf("%w (%w)", ErrRequest, err)
	}
	rd := enc.NewReader(b)
	version(rd)
	rd.Fixed(r.SignKey[:])
	rd.Fixed(r.TLSKey[:])
	r.Rights = holdfast.Rights(rd.U8())
	rd.Fixed(r.GrantKey[:])
	if rd.Err() == nil && (r.Rights == 0 || r.Rights&^holdfast.RightsAll != 0) {
		rd.Fail("unknown rights %#x", uint8(r.Rights))
	}
	if rd.Err() == nil {
		if _, err := hpke.MLKEM768X25519().NewPublicKey(r.GrantKey[:]); err != nil {
			rd.Fail("its key for the grant is none")
		}
	}
	if err := rd.Done(); err != nil {
		return Request{}, fmt.Errorf("%w (%w)", ErrRequest, err)
	}
	return r, nil
}

// Grant is the owner's answer to a request: all that the machine's key file needs, the secrets sealed for
// that machine, the whole signed by the owner.
type Grant struct {
	Request    [32]byte // the request's ID
	Owner      [32]byte // Ed25519 public key
	Vault      holdfast.VaultID
	ServiceKey [32]byte
	LogKey     [32]byte
	Address    string // of the service, host:port
	Enrol      history.Enrol
	N          uint64 // the newest record of the vault's history that the owner's machine had verified,
	Head       holdfast.Head
	sealed     []byte
	sig        [64]byte
}

// Grant answers r as owner: e is the machine's enrolment, h the vault's verified history with it, m a machine of
// the vault that knows the service. The read key in it is the current one, number read.
func (o Owner) Grant(m *Machine, r Request, e history.Enrol, read uint32, h *history.Vault) (Grant, error) {
	g := Grant{
		Request: r.ID(), Vault: m.Vault, ServiceKey: m.ServiceKey, LogKey: m.LogKey, Address: m.Address,
		Enrol: e, N: h.N, Head: h.Head,
	}
	copy(g.Owner[:], o.SignKey().Public().(ed25519.PublicKey))
	v, seed := o.Vault(), o.ReadSeed(read)
	var secrets []byte
	if e.Rights.Has(holdfast.RightRead) {
		secrets = append(append(secrets, v[:]...), seed[:]...)
	} else {
		group, hist, pub := groupOf(v, e.Group), histOf(v), readKey(seed)
		secrets = append(append(append(secrets, group[:]...), hist[:]...), pub[:]...)
	}
	pub, err := hpke.MLKEM768X25519().NewPublicKey(r.GrantKey[:])
	if err != nil {
		return Grant{}, fmt.Errorf("seal grant: %w", err)
	}
	if g.sealed, err = hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), g.info(), secrets); err != nil {
		return Grant{}, fmt.Errorf("seal grant: %w", err)
	}
	copy(g.sig[:], ed25519.Sign(o.SignKey(), append([]byte("holdfast/1/grant\x00"), g.body()...)))
	return g, nil
}

// terms are what the owner allows, and where: what the code stands for.
func (g Grant) terms() []byte {
	b := append([]byte{1}, g.Request[:]...)
	b = append(b, g.Owner[:]...)
	b = append(b, g.Vault[:]...)
	b = append(b, g.ServiceKey[:]...)
	b = append(b, g.LogKey[:]...)
	b = enc.AppendLP(b, []byte(g.Address))
	return enc.AppendLP(b, g.Enrol.Encode())
}

func (g Grant) head() []byte {
	return append(binary.BigEndian.AppendUint64(nil, g.N), g.Head[:]...)
}

func (g Grant) body() []byte { return enc.AppendLP(append(g.terms(), g.head()...), g.sealed) }

func (g Grant) info() []byte {
	sum := sha256.Sum256(append(g.terms(), g.head()...))
	return enc.AppendLP(enc.AppendLP(nil, []byte("holdfast/1/grant")), sum[:])
}

// String returns the grant's text.
func (g Grant) String() string { return wire.Line(grantPrefix, append(g.body(), g.sig[:]...)) }

// Code returns what two people compare, so that the machine joins this owner's vault and no other. It does
// not change when the owner answers the same request again.
func (g Grant) Code() string { return code(labelled("terms", g.terms())) }

// ParseGrant reads a grant's text; white space around it and in it is ignored. It verifies nothing: Open
// does. The error wraps ErrGrant.
func ParseGrant(s string) (Grant, error) {
	var g Grant
	b, err := wire.ParseLine(grantPrefix, s, maxText)
	if err != nil {
		return g, fmt.Errorf("%w (%w)", ErrGrant, err)
	}
	rd := enc.NewReader(b)
	version(rd)
	rd.Fixed(g.Request[:])
	rd.Fixed(g.Owner[:])
	rd.Fixed(g.Vault[:])
	rd.Fixed(g.ServiceKey[:])
	rd.Fixed(g.LogKey[:])
	g.Address = string(rd.LP(maxAddress))
	e := rd.LP(history.MaxFields)
	g.N = rd.U64()
	rd.Fixed(g.Head[:])
	g.sealed = bytes.Clone(rd.LP(maxSealed))
	rd.Fixed(g.sig[:])
	if rd.Err() == nil {
		if g.Enrol, err = history.ParseEnrol(e); err != nil {
			rd.Fail("%w", err)
		}
		if err := wire.CheckAddress(g.Address); err != nil {
			rd.Fail("%w", err)
		}
	}
	if err := rd.Done(); err != nil {
		return Grant{}, fmt.Errorf("%w (%w)", ErrGrant, err)
	}
	return g, nil
}

// Open verifies g as the answer of its owner to p's request and returns the machine that p becomes. That
// the owner is the right one, the caller has to make sure of: see Code. The error wraps ErrForged.
func (p *Pending) Open(g Grant) (*Machine, error) {
	r := p.Request()
	switch {
	case g.Request != r.ID():
		return nil, fmt.Errorf("%w: it answers another request", ErrForged)
	case !ed25519.Verify(g.Owner[:], append([]byte("holdfast/1/grant\x00"), g.body()...), g.sig[:]):
		return nil, fmt.Errorf("%w: its signature does not verify", ErrForged)
	case g.Enrol.SignKey != r.SignKey || g.Enrol.TLSKey != r.TLSKey:
		return nil, fmt.Errorf("%w: it enrols another machine's keys", ErrForged)
	}
	secrets, err := hpke.Open(readPrivate(p.grant), hpke.HKDFSHA256(), hpke.AES256GCM(), g.info(), g.sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: its secrets do not open", ErrForged)
	}
	m := &Machine{
		Seed: p.seed, Vault: g.Vault, Owner: g.Owner, Group: g.Enrol.Group, Rights: g.Enrol.Rights, Chunk: g.Enrol.Chunk,
		Address: g.Address, ServiceKey: g.ServiceKey, LogKey: g.LogKey,
	}
	rd := enc.NewReader(secrets)
	if m.Rights.Has(holdfast.RightRead) {
		m.V, m.ReadSeed = new(holdfast.Key), new(holdfast.Key)
		rd.Fixed(m.V[:])
		rd.Fixed(m.ReadSeed[:])
		m.Hist, m.G, m.ReadKey = histOf(*m.V), groupOf(*m.V, m.Group), readKey(*m.ReadSeed)
	} else {
		rd.Fixed(m.G[:])
		rd.Fixed(m.Hist[:])
		rd.Fixed(m.ReadKey[:])
	}
	if err := rd.Done(); err != nil {
		return nil, fmt.Errorf("%w: its secrets are not those of a machine that may %s: %w", ErrForged, m.Rights, err)
	}
	return m, nil
}

func version(rd *enc.Reader) {
	if v := rd.U8(); rd.Err() == nil && v != 1 {
		rd.Fail("its version %d is not known to this program", v)
	}
}

func labelled(what string, b []byte) [32]byte {
	return sha256.Sum256(append([]byte("holdfast/1/"+what+"\x00"), b...))
}

// codeAlphabet has no letters that are mistaken for others when they are read aloud.
var codeAlphabet = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// codeDigits of 5 bits make a code. Whoever carries a request can look for one of his own with the same
// code for as long as he likes: 2^100 attempts are out of reach, where the 2^40 of a short code are not.
const codeDigits = 20

// code returns the first 100 bits of a hash in five groups of four, to be read aloud.
func code(h [32]byte) string {
	text := codeAlphabet.EncodeToString(h[:])[:codeDigits]
	var parts []string
	for i := 0; i < codeDigits; i += 4 {
		parts = append(parts, text[i:i+4])
	}
	return strings.Join(parts, "-")
}

// SameCode reports whether typed is code. Capitals, spaces, and o, i and l in the place of digits are forgiven.
func SameCode(typed, code string) bool {
	return strings.NewReplacer("-", "", " ", "", "o", "0", "i", "1", "l", "1").Replace(strings.ToLower(strings.TrimSpace(typed))) == strings.ReplaceAll(code, "-", "")
}
