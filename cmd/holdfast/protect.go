package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/client/keyring"
	"holdfast/client/protect"
)

// protection is how a command protects the key files that it writes.
type protection struct {
	passphrase      bool
	passphraseFile  string
	recipients      []string
	recipientsFiles []string
}

func (p *protection) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&p.passphrase, "passphrase", false, "protect what is written by a passphrase, typed twice on the terminal")
	f.StringVar(&p.passphraseFile, "new-passphrase-file", "", "protect what is written by the passphrase in this `FILE`")
	f.StringArrayVar(&p.recipients, "recipient", nil, "protect what is written for this age `RECIPIENT`, age1...; may be repeated")
	f.StringArrayVar(&p.recipientsFiles, "recipients-file", nil, "protect what is written for the age recipients in this `FILE`; may be repeated")
}

// wanted reports whether the user asks for any protection.
func (p *protection) wanted() bool {
	return p.passphrase || p.passphraseFile != "" || len(p.recipients)+len(p.recipientsFiles) > 0
}

// lock returns what the files are to be protected with, nil for nothing. It asks for a new passphrase, so
// call it before anything is changed, here or at the service.
func (p *protection) lock(g *globals) (*protect.Lock, error) {
	if !p.wanted() {
		return nil, nil
	}
	if p.passphrase || p.passphraseFile != "" {
		if len(p.recipients)+len(p.recipientsFiles) > 0 {
			return nil, usage("a file is protected either by a passphrase or for recipients; leave one of them out")
		}
		passphrase, err := p.newPassphrase(g)
		if err != nil {
			return nil, err
		}
		return protect.Passphrase(passphrase)
	}
	names := p.recipients
	for _, path := range p.recipientsFiles {
		more, err := readRecipients(path)
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	l, err := protect.Recipients(names, warn)
	if err != nil {
		return nil, usage("%v", err)
	}
	return l, nil
}

func (p *protection) newPassphrase(g *globals) (string, error) {
	if p.passphraseFile != "" {
		return readPassphrase(p.passphraseFile)
	}
	once, err := g.ask("New passphrase:")
	if errors.Is(err, errNoTerminal) {
		return "", fmt.Errorf("%w; name a file that holds it with --new-passphrase-file", err)
	}
	if err != nil {
		return "", err
	}
	if once == "" {
		return "", errors.New("an empty passphrase protects nothing; nothing was written")
	}
	again, err := g.ask("The same again:")
	if err != nil {
		return "", err
	}
	if once != again {
		return "", errors.New("the two passphrases differ; nothing was written, try again")
	}
	return once, nil
}

// seal returns text protected by l, and whether it was seen to open again: a recipient's identity is not
// always here.
func (g *globals) seal(l *protect.Lock, text []byte) (sealed []byte, opens bool, err error) {
	if sealed, err = l.Seal(text); err != nil {
		return nil, false, err
	}
	k := l.Opens()
	if !l.ByPassphrase() {
		if k, err = g.opens(); err != nil {
			return nil, false, err
		}
	}
	back, err := protect.Open(sealed, k)
	switch {
	case !l.ByPassphrase() && (errors.Is(err, protect.ErrNoIdentity) || errors.Is(err, protect.ErrIdentity)):
		return sealed, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("open what was protected, to check it: %w", err)
	case !bytes.Equal(back, text):
		return nil, false, errors.New("what was protected does not open to what it was; nothing was written")
	}
	return sealed, true, nil
}

// sealer returns the keyring.Sealer of l, which sets *opens as seal does. It is nil for no lock.
func (g *globals) sealer(l *protect.Lock, opens *bool) keyring.Sealer {
	*opens = true
	if l == nil {
		return nil
	}
	return func(text []byte) (sealed []byte, err error) {
		sealed, *opens, err = g.seal(l, text)
		return sealed, err
	}
}

// saveKey writes m's key file, which must not be there yet, protected by l unless that is nil.
func (g *globals) saveKey(m *keyring.Machine, path string, l *protect.Lock) error {
	var opens bool
	if err := m.Save(path, g.sealer(l, &opens)); err != nil {
		return err
	}
	warnUnchecked(path, opens)
	return nil
}

// saveOwner writes an owner file as saveKey does a key file.
func (g *globals) saveOwner(f keyring.OwnerFile, path string, l *protect.Lock) error {
	var opens bool
	if err := keyring.SaveOwner(path, f, g.sealer(l, &opens)); err != nil {
		return err
	}
	warnUnchecked(path, opens)
	return nil
}

func warnUnchecked(path string, opens bool) {
	if !opens {
		warn(fmt.Sprintf("it was not checked that %s opens, because its recipient's identity is not here; open it once before you rely on it, with --identity, or with age", path))
	}
}
