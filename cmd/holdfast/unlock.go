package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/term"

	"holdfast/client/protect"
)

// maxPassphrase bounds a passphrase, bytes.
const maxPassphrase = 1 << 10

// errNoTerminal reports that there is nowhere to type a passphrase.
var errNoTerminal = errors.New("there is no terminal to type the passphrase on")

// unlocking is what a user gives to open protected files with.
type unlocking struct {
	identities     []string // paths of age identity files
	passphraseFile string
	ctx            context.Context // ends a question on the terminal
}

// identityFiles returns the paths of the identity files that were given.
func (u *unlocking) identityFiles() []string {
	if env := os.Getenv("HOLDFAST_IDENTITY"); len(u.identities) == 0 && env != "" {
		return []string{env}
	}
	return u.identities
}

// opens returns the key that the identity files hold.
func (u *unlocking) opens() (all protect.Key, err error) {
	for _, path := range u.identityFiles() {
		text, err := readSecret(path, protect.MaxList, "identity")
		if err != nil {
			return all, err
		}
		if protect.Is(text) {
			if text, err = protect.Open(text, protect.Key{Passphrase: u.asker(path)}); err != nil {
				return all, fmt.Errorf("read identity file %s: %w", path, locked(err))
			}
		}
		k, err := protect.Identities(protect.ReadList(text), warn)
		if err != nil {
			return all, fmt.Errorf("read identity file %s: %w", path, err)
		}
		all.Add(k)
	}
	return all, nil
}

// unlock returns the text in the protected file at path. It is a keyring.Opener.
func (u *unlocking) unlock(path string, protected []byte) ([]byte, error) {
	k, err := u.opens()
	if err != nil {
		return nil, err
	}
	k.Passphrase = u.asker(path)
	text, err := protect.Open(protected, k)
	if file := u.passphrasePath(); file != "" && errors.Is(err, protect.ErrPassphrase) { // it may be another file's
		k.Passphrase = func() (string, error) {
			return u.ask("Passphrase of " + oneLine(path) + ", which that in " + oneLine(file) + " is not:")
		}
		if more, asked := protect.Open(protected, k); !errors.Is(asked, errNoTerminal) {
			text, err = more, asked
		}
	}
	return text, locked(err)
}

// passphrasePath returns the path of the passphrase file that was given, or nothing.
func (u *unlocking) passphrasePath() string {
	if u.passphraseFile != "" {
		return u.passphraseFile
	}
	return os.Getenv("HOLDFAST_PASSPHRASE_FILE")
}

// asker returns a function that gets the passphrase of the file at path, from the passphrase file if there
// is one.
func (u *unlocking) asker(path string) func() (string, error) {
	return func() (string, error) {
		if file := u.passphrasePath(); file != "" {
			return readPassphrase(file)
		}
		p, err := u.ask("Passphrase of " + oneLine(path) + ":")
		if errors.Is(err, errNoTerminal) {
			return "", fmt.Errorf("it is protected by a passphrase, and %w; name a file that holds it with --passphrase-file or HOLDFAST_PASSPHRASE_FILE", err)
		}
		return p, err
	}
}

// locked says what to do about an error of protect.Open, where it does not say so itself.
func locked(err error) error {
	switch {
	case errors.Is(err, protect.ErrPassphrase):
		return fmt.Errorf("%w, or the file is damaged; try again, or with another copy", err)
	case errors.Is(err, protect.ErrNoIdentity):
		return fmt.Errorf("%w; name the age identity file that opens it with --identity or HOLDFAST_IDENTITY", err)
	case errors.Is(err, protect.ErrIdentity):
		return fmt.Errorf("%w; name the right identity file with --identity", err)
	case errors.Is(err, protect.ErrDamaged):
		return fmt.Errorf("%w; use another copy", err)
	}
	return err
}

// ask reads a line from the terminal, without echo, whatever standard input is.
func (u *unlocking) ask(question string) (string, error) {
	in, out, err := terminal()
	if err != nil {
		return "", errNoTerminal
	}
	defer out.Close()
	defer in.Close()
	fd := int(in.Fd())
	before, err := term.MakeRaw(fd) // ends the echo before the question is there
	if err != nil {
		return "", errNoTerminal
	}
	defer term.Restore(fd, before)
	t := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{in, out}, "")
	if width, height, err := term.GetSize(fd); err == nil && width > 0 {
		t.SetSize(width, height)
	}
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() { // outlives this call only if the program is ending
		line, err := t.ReadPassword(question + " ")
		got <- answer{line, err}
	}()
	select {
	case <-u.ctx.Done():
		fmt.Fprint(out, "\r\n")
		return "", u.ctx.Err()
	case a := <-got:
		switch {
		case errors.Is(a.err, io.EOF): // control-C or control-D, which are no signals now
			fmt.Fprint(out, "\r\n")
			return "", &codeError{exitInterrupted, errors.New("interrupted at the question for a passphrase; nothing was done")}
		case a.err != nil:
			return "", fmt.Errorf("read passphrase from the terminal: %w", a.err)
		case len(a.line) > maxPassphrase:
			return "", fmt.Errorf("a passphrase has at most %d bytes", maxPassphrase)
		}
		return a.line, nil
	}
}

// terminal opens the terminal that the program was started from.
func terminal() (in, out *os.File, err error) {
	if runtime.GOOS == "windows" {
		if in, err = os.OpenFile("CONIN$", os.O_RDWR, 0); err != nil {
			return nil, nil, err
		}
		if out, err = os.OpenFile("CONOUT$", os.O_WRONLY, 0); err != nil {
			in.Close()
			return nil, nil, err
		}
		return in, out, nil
	}
	in, err = os.OpenFile("/dev/tty", os.O_RDWR, 0)
	return in, in, err
}

// readPassphrase returns the passphrase that a file holds: its content without the last line end.
func readPassphrase(path string) (string, error) {
	text, err := readSecret(path, maxPassphrase, "passphrase")
	if err != nil {
		return "", err
	}
	p := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	switch {
	case p == "":
		return "", fmt.Errorf("read passphrase file %s: it is empty", path)
	case strings.ContainsAny(p, "\r\n"):
		return "", fmt.Errorf("read passphrase file %s: it has several lines; a passphrase is one", path)
	}
	return p, nil
}

// readRecipients returns the recipients that a file lists.
func readRecipients(path string) ([]string, error) {
	text, err := readBounded(path, protect.MaxList, "recipients", false)
	return protect.ReadList(text), err
}

// readSecret reads a file that nobody else may be able to read.
func readSecret(path string, limit int64, what string) ([]byte, error) {
	return readBounded(path, limit, what, true)
}

// readBounded reads a file of limit bytes at most. A pipe will do.
func readBounded(path string, limit int64, what string, secret bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read %s file: %w", what, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s file: %w", what, err)
	}
	if secret && st.Mode().IsRegular() && runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 { // Windows shows no such bits
		return nil, fmt.Errorf("read %s file %s: other users can read it; run: chmod 600 %s", what, path, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s file: %w", what, err)
	}
	if int64(len(text)) > limit {
		return nil, fmt.Errorf("read %s file %s: it is longer than %d bytes", what, path, limit)
	}
	return text, nil
}
