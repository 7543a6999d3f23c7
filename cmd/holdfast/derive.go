package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/history"
	"holdfast/wire"
)

func newKeyDerive(g *globals) *cobra.Command {
	var owner ownerFlag
	var want allowance
	var prot protection
	const form = "holdfast key derive NEWFILE --rights LIST [--owner FILE]"
	cmd := &cobra.Command{
		Use:   "derive NEWFILE --rights LIST [--series NAME] [--join-group] [--owner FILE]",
		Short: "Make and enrol a key file here, for another machine or purpose",
		Long: `Derive makes a whole new key file, enrolled with its own rights: one that only reads, to keep offline for restores,
or one that only writes, for a server that cannot ask for itself. The file carries the secrets of the new machine:
move it over a safe way, or protect it. Where the machine can ask for itself, ` + "`holdfast key enrol`" + ` moves no secret.

The file is written before the service knows the key. An interrupted command is run again as it was: it goes on with the
file that it wrote. Any other file is never overwritten.`,
		Args: args(cobra.ExactArgs(1), form),
		RunE: func(cmd *cobra.Command, a []string) error {
			if want.rights == "" {
				return usage("say what the key may do with --rights, a list of write, read and delete")
			}
			return derive(cmd, g, a[0], want, owner, prot)
		},
	}
	want.add(cmd)
	owner.add(cmd, ownerAlways)
	prot.add(cmd)
	return cmd
}

func derive(cmd *cobra.Command, g *globals, path string, want allowance, owner ownerFlag, prot protection) error {
	m, c, h, err := g.visit(cmd.Context())
	if err != nil {
		return err
	}
	defer c.Close()
	e, err := want.read(m, h)
	if err != nil {
		return err
	}
	o, err := owner.read(cmd, g, m)
	if err != nil {
		return err
	}
	read := readKeyNumber(o, h)
	made, err := g.derived(path, m, h, e)
	if err != nil {
		return err
	}
	began := made != nil
	if !began {
		lock, err := prot.lock(g)
		if err != nil {
			return err
		}
		if e.Group == (holdfast.GroupID{}) {
			e.Group = keyring.NewGroup()
		}
		made = o.NewMachine(m.Vault, e.Group, e.Rights, e.Chunk)
		o.GiveRead(made, read)
		made.Address, made.ServiceKey, made.LogKey = m.Address, m.ServiceKey, m.LogKey
		if err := g.saveKey(made, path, lock); err != nil {
			return err
		}
	}
	keys := made.Enrol()
	e.SignKey, e.TLSKey, e.Group, e.Chunk = keys.SignKey, keys.TLSKey, keys.Group, keys.Chunk
	if e, _, err = enrolOnce(cmd.Context(), c, h, o, e); err != nil {
		if !began && refused(err) {
			return errors.Join(err, os.Remove(path))
		}
		return fmt.Errorf("%w; %s is written but perhaps not enrolled: run the same command again to go on", err, path)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is the key of machine %.16s, which %s\n", path, made.Signer(), allows(e))
	return nil
}

// refused reports whether the service has said no, so that the record is not in the history.
func refused(err error) bool {
	return wire.CodeOf(err) != "" && !errors.As(err, new(*remote.UnavailableError))
}

// derived returns the key that an interrupted derive of the same wrote to path, or nil if nothing is there.
func (g *globals) derived(path string, m *keyring.Machine, h *history.Vault, e history.Enrol) (*keyring.Machine, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	made, err := keyring.Load(path, g.unlock)
	if err != nil {
		return nil, fmt.Errorf("%s exists already, and is never overwritten (%w); choose another name", path, err)
	}
	same := made.Vault == m.Vault && made.Rights == e.Rights && made.Signer() != m.Signer() && slices.Contains(h.ReadKeys, history.ReadKeyIDOf(made.ReadKey[:])) &&
		(e.Group == holdfast.GroupID{} || e.Group == made.Group)
	if !same {
		return nil, fmt.Errorf("%s exists already, is the key of something else, and is never overwritten; choose another name", path)
	}
	return made, nil
}
