package main

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/history"
	"holdfast/wire"
)

// recovery is init --recover: a bare machine, and what the owner kept.
type recovery struct {
	wanted                      bool
	address, serviceKey, logKey string
}

func (r *recovery) run(cmd *cobra.Command, g *globals, ownerPath string, writeOnly bool, prot *protection) (err error) {
	keyPath, err := g.keyPath()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(keyPath); err == nil {
		return fmt.Errorf("%s exists already, and a key is never overwritten; choose another place", keyPath)
	}
	f, err := r.owner(cmd, g, ownerPath)
	if err != nil {
		return err
	}
	lock, err := prot.lock(g)
	if err != nil {
		return err
	}
	rights := holdfast.RightsAll
	if writeOnly {
		rights = holdfast.RightWrite
	}
	m := f.Owner.NewMachine(f.Vault, keyring.NewGroup(), rights, history.DefaultChunk)
	m.Address, m.ServiceKey, m.LogKey = f.Address, f.ServiceKey, f.LogKey
	if f.Vault == (holdfast.VaultID{}) {
		c := g.dial(m, warn)
		ids, err := c.Vaults(cmd.Context(), m.Owner)
		c.Close()
		switch {
		case err != nil:
			return err
		case len(ids) == 0:
			return fmt.Errorf("the service at %s has no vault of this owner; check the words and the address", m.Address)
		case len(ids) > 1:
			return fmt.Errorf("the service at %s has %d vaults of this owner; use the owner file of the one", m.Address, len(ids))
		}
		m.Vault = ids[0]
	}
	if err := os.MkdirAll(filepath.Dir(keyPath), 0o700); err != nil {
		return fmt.Errorf("make directory for the key file: %w", err)
	}
	// Before the service knows the key, so that it is never one that nobody holds.
	if err := g.saveKey(m, keyPath, lock); err != nil {
		return err
	}
	c := g.dial(m, warn)
	defer c.Close()
	if err := c.Return(cmd.Context(), f.Owner.SignKey()); err != nil {
		os.Remove(keyPath)
		return err
	}
	sayFresh(true)
	fmt.Fprintf(cmd.OutOrStdout(), "This machine belongs to vault %.16s at %s now and may %s.\nIts key file is %s. `holdfast list` shows what there is.\n", m.Vault, m.Address, rights, keyPath)
	return nil
}

// owner reads the owner file, or the words and where the service is.
func (r *recovery) owner(cmd *cobra.Command, g *globals, path string) (f keyring.OwnerFile, err error) {
	if path != "" && path != "-" {
		return keyring.LoadOwner(path, g.unlock)
	}
	if err := wire.CheckAddress(r.address); err != nil {
		return f, usage("--recover needs the owner file, as --owner FILE, or --address HOST:PORT, --service-key and --log-key")
	}
	f.Address = r.address
	for _, x := range []struct {
		flag, text string
		key        *[32]byte
	}{{"--service-key", r.serviceKey, &f.ServiceKey}, {"--log-key", r.logKey, &f.LogKey}} {
		b, err := hex.DecodeString(x.text)
		if err != nil || len(b) != len(x.key) {
			return f, usage("%s needs 64 hex digits", x.flag)
		}
		copy(x.key[:], b)
	}
	f.Owner, err = readWords(cmd.InOrStdin())
	return f, err
}
