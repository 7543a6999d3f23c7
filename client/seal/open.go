package seal

import (
	"bytes"
	"crypto/hpke"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
	"holdfast/wire"
)

// ErrOldKey reports a session that is wrapped for other read keys only than the Reader's: the owner has made
// a new one since its key file was written. It comes with ErrDamaged, because the blocks cannot be read.
var ErrOldKey = errors.New("it is sealed for another read key than the one in this key file; bring the file up to date with `holdfast key update` and the owner's key")

// Reader opens the blocks of one vault, whatever their group and session. It is safe for concurrent use.
type Reader struct {
	m    *keyring.Machine
	priv hpke.PrivateKey
	id   history.ReadKeyID

	mu       sync.Mutex
	sessions map[holdfast.SessionID]*wrapped
	groups   map[holdfast.GroupID]*keyring.GroupKeys
}

// wrapped is a session as its open record tells of it, and its secret once somebody needed it.
type wrapped struct {
	open    history.Open
	signer  holdfast.SignerID
	rewraps []history.Rewrap
	unwrap  func() (holdfast.Key, error) // once
}

// NewReader returns a Reader with m's read key. The error is keyring.ErrNoReadKey.
func NewReader(m *keyring.Machine) (*Reader, error) {
	priv, err := m.ReadPrivate()
	if err != nil {
		return nil, err
	}
	return &Reader{
		m: m, priv: priv, id: history.ReadKeyIDOf(priv.PublicKey().Bytes()),
		sessions: map[holdfast.SessionID]*wrapped{},
		groups:   map[holdfast.GroupID]*keyring.GroupKeys{},
	}, nil
}

// AddOpen makes the blocks of a session readable. The record must have been verified as signer's
// (package history), and the rewraps as the owner's. Whichever of the wraps is for m's read key is opened. The wrap is opened when the session's first block is, so that a damaged one hides
// its own blocks and no others; CheckSession opens it at once.
//
// The error says that the session was added before with other content.
func (r *Reader) AddOpen(o history.Open, signer holdfast.SignerID, rewraps ...history.Rewrap) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w, ok := r.sessions[o.Session]; ok {
		if w.open != o || w.signer != signer {
			return fmt.Errorf("add session %.8s: %w: it was opened twice", o.Session, ErrDamaged)
		}
		if slices.Equal(w.rewraps, rewraps) {
			return nil
		}
	}
	rewraps = slices.Clone(rewraps)
	r.sessions[o.Session] = &wrapped{o, signer, rewraps, sync.OnceValues(func() (holdfast.Key, error) { return r.secret(o, signer, rewraps) })}
	return nil
}

// AddSessions adds all sessions of a verified history.
func (r *Reader) AddSessions(h *history.Vault) error {
	for _, s := range h.Sessions {
		if err := r.AddOpen(s.Open, s.Signer, s.Rewraps...); err != nil {
			return err
		}
	}
	return nil
}

// CheckSession opens the wrap of a session that was added. A wrap that cannot be opened loses every
// block of its session, so readers check all of them from time to time. The error wraps ErrDamaged.
func (r *Reader) CheckSession(sid holdfast.SessionID) error {
	_, _, err := r.session(sid)
	return err
}

func (r *Reader) session(sid holdfast.SessionID) (*wrapped, holdfast.Key, error) {
	r.mu.Lock()
	w := r.sessions[sid]
	r.mu.Unlock()
	if w == nil {
		return nil, holdfast.Key{}, fmt.Errorf("%w: the history knows no session %.8s", ErrDamaged, sid)
	}
	s, err := w.unwrap()
	return w, s, err
}

func (r *Reader) secret(o history.Open, signer holdfast.SignerID, rewraps []history.Rewrap) (s holdfast.Key, err error) {
	for _, w := range rewraps {
		if w.Session == o.Session && w.ReadKey == r.id {
			o.ReadKey, o.Wrap = w.ReadKey, w.Wrap
		}
	}
	if o.ReadKey != r.id {
		return s, &oldKeyError{o.Session}
	}
	b, err := hpke.Open(r.priv, hpke.HKDFSHA256(), hpke.AES256GCM(), wrapInfo(r.m.Vault, o, signer), o.Wrap[:])
	if err != nil || len(b) != len(s) {
		return s, fmt.Errorf("%w: the wrap of session %.8s does not open", ErrDamaged, o.Session)
	}
	copy(s[:], b)
	if commitment(s, r.m.Vault, o.Session) != o.Commitment {
		return holdfast.Key{}, fmt.Errorf("%w: the wrap of session %.8s holds another secret", ErrDamaged, o.Session)
	}
	return s, nil
}

// oldKeyError is ErrOldKey of one session. Nothing is damaged, so its text does not say so.
type oldKeyError struct{ session holdfast.SessionID }

func (e *oldKeyError) Error() string   { return fmt.Sprintf("session %.8s: %v", e.session, ErrOldKey) }
func (e *oldKeyError) Unwrap() []error { return []error{ErrOldKey, ErrDamaged} }

// Rewrap returns another wrap of a session's secret, for the read key pub. The session must have been added,
// and its secret is compared with its commitment before.
func (r *Reader) Rewrap(sid holdfast.SessionID, pub [history.ReadKeySize]byte) (history.Rewrap, error) {
	w, s, err := r.session(sid)
	if err != nil {
		return history.Rewrap{}, err
	}
	o := w.open
	if err := wrapFor(&o, r.m.Vault, w.signer, pub, s); err != nil {
		return history.Rewrap{}, err
	}
	return history.Rewrap{Session: sid, ReadKey: o.ReadKey, Wrap: o.Wrap}, nil
}

func (r *Reader) groupKeys(gid holdfast.GroupID) (*keyring.GroupKeys, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.groups[gid]; k != nil {
		return k, nil
	}
	k, err := r.m.GroupKeysOf(gid)
	if err != nil {
		return nil, err
	}
	r.groups[gid] = &k
	return &k, nil
}

// Open returns the plaintext that was sealed under this name in this group, and its kind, or an error:
// never anything else. The error wraps ErrDamaged unless the key file cannot read that group.
func (r *Reader) Open(group holdfast.GroupID, name holdfast.Name, sealed []byte) (holdfast.Kind, []byte, error) {
	keys, err := r.groupKeys(group)
	if err != nil {
		return 0, nil, fmt.Errorf("open block %.8s: %w", name, err)
	}
	h, body, err := wire.ParseBlockHeader(sealed)
	if err != nil {
		return 0, nil, fmt.Errorf("open block %.8s: %w: %w", name, ErrDamaged, err)
	}
	fail := func(what string) (holdfast.Kind, []byte, error) {
		return 0, nil, fmt.Errorf("open %s %.8s: %w: %s", h.Kind, name, ErrDamaged, what)
	}
	w, s, err := r.session(h.Session)
	if err != nil {
		return 0, nil, fmt.Errorf("open %s %.8s: %w", h.Kind, name, err)
	}
	if w.open.Group != group {
		return fail("its session is another group's")
	}
	head := sealed[:len(sealed)-len(body)]
	inner, err := blockCipher(s, r.m.Vault, group, name).Open(nil, h.Nonce[:], body, additional(head, r.m.Vault, group, name))
	if err != nil {
		return fail("it does not decrypt")
	}
	plain, err := parseInner(inner)
	if err != nil {
		return fail(err.Error())
	}
	if keys.NameOf(h.Kind, plain) != name {
		return fail("its content has another name")
	}
	if err := checkLinks(h.Kind, plain, h.Links); err != nil {
		return fail(err.Error())
	}
	return h.Kind, plain, nil
}

// parseInner returns the plaintext of a decrypted body. That its writer could encrypt it does not make
// it well-formed.
func parseInner(inner []byte) ([]byte, error) {
	if len(inner) < innerHeader {
		return nil, errors.New("its body is too short")
	}
	plainLen := binary.BigEndian.Uint32(inner)
	codec := inner[4]
	payloadLen := binary.BigEndian.Uint32(inner[5:])
	rest := inner[innerHeader:]
	switch {
	case plainLen > holdfast.MaxPlain:
		return nil, fmt.Errorf("%d bytes exceed the limit of %d", plainLen, holdfast.MaxPlain)
	case uint64(payloadLen) > uint64(len(rest)) || Padme(innerHeader+int(payloadLen)) != len(inner):
		return nil, fmt.Errorf("a payload of %d bytes in a body of %d", payloadLen, len(inner))
	}
	payload, padding := rest[:payloadLen], rest[payloadLen:]
	if len(bytes.Trim(padding, "\x00")) != 0 {
		return nil, errors.New("its padding is not zeros")
	}
	switch {
	case codec == codecRaw && payloadLen == plainLen:
		return payload, nil
	case codec == codecZstd && payloadLen < plainLen:
		return decompress(payload, int(plainLen))
	}
	return nil, fmt.Errorf("codec %d with %d bytes for %d", codec, payloadLen, plainLen)
}
