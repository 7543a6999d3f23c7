package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"holdfast/client/keyring"
	"holdfast/client/protect"
	"holdfast/internal/durable"
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

// opener says what else somebody needs who has a file that l protects.
func opener(l *protect.Lock) string {
	switch {
	case l == nil:
		return ""
	case l.ByPassphrase():
		return " and the passphrase"
	}
	return " and the identity of a recipient"
}

func newKeyProtect(g *globals) *cobra.Command {
	var p protection
	const form = "holdfast key protect [FILE] --passphrase|--new-passphrase-file FILE|--recipient AGE1...|--recipients-file FILE"
	cmd := &cobra.Command{
		Use:   "protect [FILE] --passphrase|--new-passphrase-file FILE|--recipient AGE1...|--recipients-file FILE",
		Short: "Protect a key or owner file by a passphrase, or for an age recipient",
		Long: `Protect rewrites a key file (this machine's, if none is named) or an owner file, so that it opens only with a
passphrase or with the identity of one of the age recipients: a key in another file, or in a hardware token that
has an age plugin. A file that is protected already is opened first, and protected anew.

The result is an ordinary age file: ` + "`age --decrypt`" + ` opens it as well. Copies that exist of the file are not
touched, and the disk may keep what the file held before until something else is written there.`,
		Args: args(cobra.MaximumNArgs(1), form),
		RunE: func(cmd *cobra.Command, a []string) error {
			if !p.wanted() {
				return usage("say how to protect it: --passphrase, or --recipient AGE1...; see `%s --help`", cmd.CommandPath())
			}
			f, err := g.heldFile(a)
			if err != nil {
				return err
			}
			text, err := f.text(g)
			if err != nil {
				return err
			}
			lock, err := p.lock(g)
			if err != nil {
				return err
			}
			sealed, opens, err := g.seal(lock, text)
			if err != nil {
				return fmt.Errorf("protect %s: %w", f.path, err)
			}
			if err := f.replace(sealed); err != nil {
				return err
			}
			with := "the passphrase"
			if !lock.ByPassphrase() {
				with = "an identity of its " + plural(uint64(lock.Len()), "recipient")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s opens only with %s now. Other copies of it are as they were.\n", f.path, with)
			warnUnchecked(f.path, opens)
			return nil
		},
	}
	p.add(cmd)
	return cmd
}

func newKeyUnprotect(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "unprotect [FILE]",
		Short: "Take the protection from a key or owner file",
		Long: `Unprotect opens a protected key file (this machine's, if none is named) or owner file, and rewrites it so that it
needs no passphrase and no identity: whoever can read the file can use it then.`,
		Args: args(cobra.MaximumNArgs(1), "holdfast key unprotect [FILE]"),
		RunE: func(cmd *cobra.Command, a []string) error {
			f, err := g.heldFile(a)
			if err != nil {
				return err
			}
			if !protect.Is(f.raw) {
				return fmt.Errorf("%s is not protected", f.path)
			}
			text, err := f.text(g)
			if err != nil {
				return err
			}
			if err := f.replace(text); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is not protected any more: whoever has a copy can use it.\n", f.path)
			return nil
		},
	}
}

// heldFile is a key or owner file that is about to be rewritten or copied to paper.
type heldFile struct {
	path string // of the file itself, not of a link to it
	raw  []byte
}

// heldFile reads the file that a command names, or this machine's key file.
func (g *globals) heldFile(a []string) (f heldFile, err error) {
	path := ""
	if len(a) > 0 {
		path = a[0]
	} else if path, err = g.keyPath(); err != nil {
		return f, err
	}
	// A rename would replace a link and leave the file behind it as it is.
	f.path, err = filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, fmt.Errorf("there is no key file %s; name the file, or make one with `holdfast init`", path)
	}
	if err != nil {
		return f, fmt.Errorf("read key file: %w", err)
	}
	f.raw, err = keyring.ReadFile(f.path)
	return f, err
}

// text returns what the file holds without its protection, and is the text of a key or owner file.
func (f *heldFile) text(g *globals) (text []byte, err error) {
	text = f.raw
	if protect.Is(f.raw) {
		if text, err = g.unlock(f.path, f.raw); err != nil {
			return nil, fmt.Errorf("read key file %s: %w", f.path, err)
		}
	}
	if _, _, err := keyring.Inspect(text); err != nil {
		return nil, fmt.Errorf("read key file %s: %w", f.path, err)
	}
	return text, nil
}

// replace puts text in the place of the file: at any moment the path names one whole file, the old or the
// new.
func (f *heldFile) replace(text []byte) error {
	st, err := os.Lstat(f.path)
	if err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	if n := links(st); n > 1 {
		return fmt.Errorf("%s has %d names (hard links), and the others would keep what it holds now; remove them first", f.path, n)
	}
	return durable.ReplaceFile(f.path, text, 0o600, func(tmp string) error {
		back, err := os.ReadFile(tmp)
		if err != nil {
			return err
		}
		if !bytes.Equal(back, text) {
			return errors.New("it does not read back as it was written; nothing was changed")
		}
		return own(tmp, st)
	})
}
