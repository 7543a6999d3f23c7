package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/client/keyring"
	"holdfast/client/paper"
	"holdfast/client/protect"
	"holdfast/internal/durable"
)

func newKeyPaper(g *globals) *cobra.Command {
	var owner ownerFlag
	var prot protection
	var out, typed string
	const form = "holdfast key paper --out FILE.html [--owner FILE|-], or holdfast key paper --read FILE|- --out KEYFILE"
	cmd := &cobra.Command{
		Use:   "paper --out FILE.html [--owner FILE|-] | --read FILE|- --out KEYFILE",
		Short: "Put a key on paper, and get it back from there",
		Long: `Paper writes a page to print, one HTML file that needs nothing else: this machine's key file, or with --owner the
owner's key, as QR codes and as lines that a person can type. With --owner - the owner's key is made of the 24
words from standard input and what this machine's key file says of the vault. A protected file is printed
protected: who has the page needs the passphrase or the identity as well.

With --read it writes the key or owner file anew, from the lines as somebody typed or scanned them. Each line has a
check of its own, so that a mistake is found in its line. Protection that is asked for is put on what is written.`,
		Args: args(cobra.NoArgs, form),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usage("say where to write with --out; see `%s --help`", cmd.CommandPath())
			}
			if typed != "" {
				if owner.given() {
					return usage("--read finds out itself whose key it is; leave --owner out")
				}
				return readPaper(cmd, g, typed, out, &prot)
			}
			if prot.wanted() {
				return usage("a page shows a file as it is; protect the file first, with `holdfast key protect`")
			}
			return writePaper(cmd, g, &owner, out)
		},
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "the new `FILE` to write")
	f.StringVar(&typed, "read", "", "read typed lines from this `FILE`, or from standard input for -")
	owner.add(cmd, "print the owner's key in this `FILE`, or the 24 words from standard input for -")
	prot.add(cmd)
	return cmd
}

// writePaper writes the page of the owner's key or of this machine's.
func writePaper(cmd *cobra.Command, g *globals, owner *ownerFlag, out string) error {
	file, text, err := g.paperFile(cmd, owner)
	if err != nil {
		return err
	}
	m, f, err := keyring.Inspect(text)
	if err != nil {
		return err
	}
	who := "Whoever has this page"
	if protect.Is(file) {
		who = "The key on this page is protected. Whoever has the page and the passphrase, or the age identity that the key is protected for,"
	}
	p := paper.Page{Protected: protect.Is(file), Time: time.Now().Round(0)}
	if p.Sheet, err = paper.Sheet(file); err != nil {
		return err
	}
	if m != nil {
		p.Title = "key of a machine"
		p.Use = fmt.Sprintf("%s can do in the vault what this machine may: %s. Keep it where thieves and fire do not go.", who, strings.ReplaceAll(m.Rights.String(), ",", ", "))
		p.Vault, p.Address, p.ServiceKey, p.LogKey = m.Vault.String(), m.Address, fmt.Sprintf("%x", m.ServiceKey), fmt.Sprintf("%x", m.LogKey)
	} else {
		p.Title = "the owner's key"
		p.Use = who + " can read every backup in the vault, and do everything in it. If the machines are lost, nothing else opens the vault. Keep it where thieves and fire do not go."
		p.Then = "holdfast init --recover --owner KEYFILE"
		p.Vault, p.Address, p.ServiceKey, p.LogKey = f.Vault.String(), f.Address, fmt.Sprintf("%x", f.ServiceKey), fmt.Sprintf("%x", f.LogKey)
		if !p.Protected {
			p.Words = f.Owner.Words()
		}
	}
	if p.Protected {
		p.Title += ", protected"
	}
	html, err := p.HTML()
	if err != nil {
		return err
	}
	// What is printed must come back, before anybody relies on it.
	if sheet, err := paper.Read(linesOf(p.Sheet)); err != nil {
		return fmt.Errorf("read the page back: %w", err)
	} else if _, _, err := paper.File(sheet); err != nil {
		return fmt.Errorf("read the page back: %w", err)
	}
	if err := durable.CreateFile(out, html, 0o600); errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already, and is not overwritten; choose another name", out)
	} else if err != nil {
		return fmt.Errorf("write page: %w", err)
	}
	what := map[bool]string{true: "the file as it is protected", false: "the key itself"}[p.Protected]
	fmt.Fprintf(cmd.OutOrStdout(), "%s shows %s, on %s and %s. Print it, try the way back once with `holdfast key paper --read`, then delete the file.\n",
		out, what, plural(uint64(len(paper.Codes(p.Sheet))), "QR code"), plural(uint64(len(paper.Lines(p.Sheet))), "line"))
	warn("a printer remembers what it printed, and so do its queue and a print service; use a printer of your own, without a network if you can")
	return nil
}

func linesOf(sheet []byte) (text string) {
	for _, l := range paper.Lines(sheet) {
		number, data, check := paper.Spaced(l)
		text += number + ": " + data + " " + check + "\n"
	}
	return text
}

// paperFile returns what is to be printed, and the text in it, which is the same unless it is protected.
func (g *globals) paperFile(cmd *cobra.Command, owner *ownerFlag) (file, text []byte, err error) {
	if owner.path == "-" {
		m, err := g.machine()
		if err != nil {
			return nil, nil, err
		}
		o, err := owner.read(cmd, g, m)
		if err != nil {
			return nil, nil, err
		}
		text = keyring.OwnerFile{Owner: o, Vault: m.Vault, Address: m.Address, ServiceKey: m.ServiceKey, LogKey: m.LogKey}.Encode()
		return text, text, nil
	}
	var named []string
	if owner.given() {
		named = []string{owner.path}
	}
	f, err := g.heldFile(named)
	if err != nil {
		return nil, nil, err
	}
	text, err = f.text(g)
	if err != nil {
		return nil, nil, err
	}
	if m, _, err := keyring.Inspect(text); err == nil && owner.given() && m != nil {
		return nil, nil, usage("%s is a machine's key file, not the owner's; name it with --key to print it", f.path)
	}
	return f.raw, text, nil
}

// readPaper writes the file that the lines in typed hold.
func readPaper(cmd *cobra.Command, g *globals, typed, out string, prot *protection) error {
	in := cmd.InOrStdin()
	if typed != "-" {
		f, err := os.Open(typed)
		if err != nil {
			return fmt.Errorf("read typed lines: %w", err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, paper.MaxText+1))
	if err != nil {
		return fmt.Errorf("read typed lines: %w", err)
	}
	sheet, err := paper.Read(string(text))
	if err != nil {
		return fmt.Errorf("%w; compare with the paper, nothing was written", err)
	}
	file, protected, err := paper.File(sheet)
	if err != nil {
		return fmt.Errorf("%w; nothing was written", err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o700); err != nil {
		return fmt.Errorf("make directory for the key file: %w", err)
	}
	if protected {
		if prot.wanted() {
			return usage("the paper holds a protected file; write it as it is, then `holdfast key protect` protects it anew")
		}
		if err := keyring.SaveProtected(out, file); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is the protected file from the paper: it opens with its passphrase or identity.\n", out)
		return nil
	}
	m, f, err := keyring.Inspect(file)
	if err != nil {
		return err
	}
	lock, err := prot.lock(g)
	if err != nil {
		return err
	}
	if m != nil {
		if err := g.saveKey(m, out, lock); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is the key file of a machine of vault %.16s at %s that may %s. `holdfast list --key %s` shows what there is.\n", out, m.Vault, m.Address, m.Rights, out)
		return nil
	}
	if err := g.saveOwner(*f, out, lock); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is the owner file of vault %.16s at %s. `holdfast init --recover --owner %s` makes this a machine of the vault.\n", out, f.Vault, f.Address, out)
	return nil
}
