package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/history"
	"holdfast/wire"
)

// ownerFlag is --owner of the commands that the owner signs.
type ownerFlag struct{ path string }

func (o *ownerFlag) add(cmd *cobra.Command, why string) {
	cmd.Flags().StringVar(&o.path, "owner", "", why)
}

const (
	ownerAlways  = "the owner's key `FILE`; without it, or with -, the 24 words are read from standard input"
	ownerInstead = "sign with the owner's key in this `FILE`, or with the 24 words from standard input for -"
)

// given reports whether the user wants the owner to sign.
func (o *ownerFlag) given() bool { return o.path != "" }

// read returns the owner of m's vault, from the file or from the 24 words.
func (o *ownerFlag) read(cmd *cobra.Command, g *globals, m *keyring.Machine) (keyring.Owner, error) {
	var owner keyring.Owner
	if o.path != "" && o.path != "-" {
		f, err := keyring.LoadOwner(o.path, g.unlock)
		if err != nil {
			return owner, err
		}
		owner = f.Owner
	} else {
		var err error
		if owner, err = readWords(cmd.InOrStdin()); err != nil {
			return owner, err
		}
	}
	if owner.Genesis().OwnerKey != m.Owner {
		return owner, usage("that is the owner of another vault than this machine's")
	}
	return owner, nil
}

// readWords reads the 24 words of an owner from in.
func readWords(in io.Reader) (keyring.Owner, error) {
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintln(os.Stderr, "Type the owner's 24 words, on as many lines as you like:")
	}
	words := bufio.NewScanner(io.LimitReader(in, 4096))
	words.Split(bufio.ScanWords)
	var all []string
	for len(all) < 24 && words.Scan() {
		all = append(all, words.Text())
	}
	if err := words.Err(); err != nil {
		return keyring.Owner{}, fmt.Errorf("read words from standard input: %w", err)
	}
	owner, err := keyring.ParseWords(strings.Join(all, " "))
	if err != nil {
		return owner, usage("%v", err)
	}
	return owner, nil
}

// submit has a record added that this machine signs or, if the user wants it so, the owner.
func (o *ownerFlag) submit(cmd *cobra.Command, g *globals, m *keyring.Machine, c *remote.Client, t history.Type, fields ...[]byte) (h *history.Vault, err error) {
	if !o.given() && m.Rights.Has(t.Right()) && t.Right() != 0 {
		for _, f := range fields {
			if h, err = c.Submit(cmd.Context(), t, f); err != nil {
				return nil, err
			}
		}
		return h, nil
	}
	if !o.given() && t.Right() != 0 {
		return nil, &wire.Error{Code: wire.CodeForbidden, Message: fmt.Sprintf("This machine may %s, but not %s; the owner may: --owner FILE, or --owner - to type the 24 words.", m.Rights, t.Right())}
	}
	owner, err := o.read(cmd, g, m)
	if err != nil {
		return nil, err
	}
	for _, f := range fields {
		if h, err = c.SubmitAsOwner(cmd.Context(), owner.SignKey(), t, f); err != nil {
			return nil, err
		}
	}
	return h, nil
}
