package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/protect"
	"holdfast/client/remote"
	"holdfast/history"
	"holdfast/wire"
)

func newInit(g *globals) *cobra.Command {
	var tokenText, ownerPath string
	var writeOnly bool
	var back recovery
	var prot protection
	cmd := &cobra.Command{
		Use:   "init --token TOKEN|- [--key FILE] [--owner FILE] [--write-only]",
		Short: "Make a vault and this machine's key file",
		Long: `Init redeems a token from the service's operator, makes a new vault, and writes this machine's key file.

The owner's key, which can do everything and get everything back, is shown once as 24 recovery words to
write down, or written to the file that --owner names. Keep it away from this machine.

With --passphrase or --recipient the files that init writes are protected from the start; ` + "`holdfast key unprotect`" + `
takes that from one of them again, ` + "`holdfast key paper`" + ` puts one on paper.

With --recover it enrols this machine, which may be bare, in the vault that is there: with the owner's file that
--owner names, or with the 24 words from standard input and --address, --service-key and --log-key, which
` + "`holdfast key show`" + ` shows on any machine of the vault and the operator knows. Where the vault had one machine,
this one goes on in its group, so that its first backup uploads only what is new; --group decides otherwise.`,
		Args: args(cobra.NoArgs, "holdfast init --token TOKEN|- [--key FILE] [--owner FILE] [--write-only]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if back.wanted {
				if tokenText != "" {
					return usage("say either --token for a new vault or --recover for one that is there")
				}
				return back.run(cmd, g, ownerPath, writeOnly, &prot)
			}
			if tokenText == "" {
				return usage("init needs the token that the service's operator gave you; pass it with --token, or - to read it from standard input")
			}
			if tokenText == "-" {
				line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 4096)).ReadString('\n')
				if err != nil && err != io.EOF {
					return fmt.Errorf("read token from standard input: %w", err)
				}
				tokenText = line
			}
			token, err := wire.ParseToken(tokenText)
			if err != nil {
				return usage("%v", err)
			}
			keyPath, err := g.keyPath()
			if err != nil {
				return err
			}
			if ownerPath != "" && filepath.Clean(ownerPath) == filepath.Clean(keyPath) {
				return usage("the owner file and the key file cannot be one; name another place with --owner")
			}
			for _, p := range []string{keyPath, ownerPath} {
				if _, err := os.Lstat(p); err == nil {
					return fmt.Errorf("%s exists already, and a key is never overwritten; choose another place", p)
				}
			}
			rights := holdfast.RightsAll
			if writeOnly {
				rights = holdfast.RightWrite
			}
			lock, err := prot.lock(g)
			if err != nil {
				return err
			}
			return enrol(cmd, g, token, keyPath, ownerPath, rights, lock)
		},
	}
	f := cmd.Flags()
	f.StringVar(&tokenText, "token", "", "the operator's `TOKEN`, or - to read it from standard input")
	f.StringVar(&ownerPath, "owner", "", "write the owner's key to this new `FILE` instead of showing 24 words")
	f.BoolVar(&back.wanted, "recover", false, "enrol this machine in the owner's vault that is there")
	f.StringVar(&back.address, "address", "", "with --recover: the service's `HOST:PORT`")
	f.StringVar(&back.serviceKey, "service-key", "", "with --recover: the service's public key, `HEX`")
	f.StringVar(&back.logKey, "log-key", "", "with --recover: the service's public log key, `HEX`")
	f.StringVar(&back.group, "group", "", "with --recover: deduplicate against the machines of this `GROUP`, or new for one of its own")
	f.BoolVar(&writeOnly, "write-only", false, "this machine may write, but neither read nor delete")
	prot.add(cmd)
	return cmd
}

// enrol makes the keys, stores them, and only then lets the service know: a key that the service knows
// and nobody holds would be a vault that nobody can open. If it fails, the files are removed.
func enrol(cmd *cobra.Command, g *globals, token wire.Token, keyPath, ownerPath string, rights holdfast.Rights, lock *protect.Lock) (err error) {
	owner := keyring.NewOwner()
	m := owner.NewMachine(holdfast.VaultID{}, keyring.NewGroup(), rights, history.DefaultChunk)
	m.Address, m.ServiceKey, m.LogKey = token.Address, token.ServiceKey, token.LogKey
	genesis := remote.Genesis(owner, m.Hist)
	m.Vault = holdfast.VaultID(genesis.ID())

	var made []string
	defer func() {
		if err != nil {
			for _, p := range made {
				err = errors.Join(err, os.Remove(p))
			}
		}
	}()
	if err := os.MkdirAll(filepath.Dir(keyPath), 0o700); err != nil {
		return fmt.Errorf("make directory for the key file: %w", err)
	}
	if err := g.saveKey(m, keyPath, lock); err != nil {
		return err
	}
	made = append(made, keyPath)
	if ownerPath != "" {
		if err := g.saveOwner(keyring.OwnerFile{
			Owner: owner, Vault: m.Vault, Address: m.Address, ServiceKey: m.ServiceKey, LogKey: m.LogKey,
		}, ownerPath, lock); err != nil {
			return err
		}
		made = append(made, ownerPath)
	}
	c := g.dial(m, warn)
	defer c.Close()
	if err := c.Enrol(cmd.Context(), token, owner.SignKey(), genesis); err != nil {
		return err
	}

	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "Vault %.16s made at %s; this machine may %s.\nIts key file is %s: who has it%s can do the same.\n", m.Vault, m.Address, strings.ReplaceAll(rights.String(), ",", ", "), keyPath, opener(lock))
	if ownerPath != "" {
		fmt.Fprintf(out, "The owner's key is in %s: move it to a safe place away from this machine.\n", ownerPath)
		return nil
	}
	fmt.Fprintf(out, "\nWrite these 24 words down, in this order. They are shown this once. If the key file is lost, only they open what is in the vault:\n\n")
	words := strings.Fields(owner.Words())
	for i := 0; i < len(words); i += 6 {
		fmt.Fprintf(out, "    %s\n", strings.Join(words[i:min(i+6, len(words))], " "))
	}
	fmt.Fprintln(out)
	return nil
}
