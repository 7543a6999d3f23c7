package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/history"
	"holdfast/wire"
)

// recovery is init --recover: a bare machine, and what the owner kept.
type recovery struct {
	wanted                             bool
	address, serviceKey, logKey, group string
}

func (r *recovery) run(cmd *cobra.Command, g *globals, ownerPath string, writeOnly bool, prot *protection) error {
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
	if err := os.MkdirAll(filepath.Dir(keyPath), 0o700); err != nil {
		return fmt.Errorf("make directory for the key file: %w", err)
	}
	scout, err := r.scout(cmd.Context(), g, &f)
	if err != nil {
		return err
	}
	defer scout.leave(cmd.Context())
	group, chunk, from, err := r.choose(scout.h, scout.m)
	if err != nil {
		return err
	}
	read := readKeyNumber(f.Owner, scout.h)
	m := f.Owner.NewMachine(f.Vault, group, rights, chunk)
	f.Owner.GiveRead(m, read)
	m.Address, m.ServiceKey, m.LogKey = f.Address, f.ServiceKey, f.LogKey
	// The key is enrolled before it is kept: one that nobody holds does no harm, a file that is no key would.
	if _, err = scout.c.SubmitAsOwner(cmd.Context(), f.Owner.SignKey(), history.TypeEnrol, m.Enrol().Encode()); err != nil {
		return fmt.Errorf("enrol machine: %w", err)
	}
	if err := g.saveKey(m, keyPath, lock); err != nil {
		scout.revoke(cmd.Context(), m.Signer())
		return err
	}
	sayFresh(true)
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "This machine belongs to vault %.16s at %s now and may %s.\nIts key file is %s. `holdfast list` shows what there is.\n", m.Vault, m.Address, strings.ReplaceAll(rights.String(), ",", ", "), keyPath)
	if from != nil {
		fmt.Fprintf(out, "It goes on in group %.8s, so it uploads only what machine %.16s has not. That one keeps its rights: if it is gone, run `holdfast key revoke %.16s`.\n", group, *from, *from)
	} else if r.group == "" {
		fmt.Fprintf(out, "It is in a group of its own, so its first backup uploads everything. `holdfast key list` shows the other groups; --group GROUP joins one.\n")
	}
	return nil
}

// scout is a machine that exists for as long as a recovery runs, and in memory only: the vault's history can
// be read by its machines alone, and is needed to decide what the recovered machine is to be.
type scout struct {
	m *keyring.Machine
	o keyring.Owner
	c *remote.Client
	h *history.Vault
}

// scout enrols one in the vault of f, which it looks up at the service if f does not name it.
func (r *recovery) scout(ctx context.Context, g *globals, f *keyring.OwnerFile) (*scout, error) {
	m := f.Owner.NewMachine(f.Vault, keyring.NewGroup(), holdfast.RightRead, history.DefaultChunk)
	m.Address, m.ServiceKey, m.LogKey = f.Address, f.ServiceKey, f.LogKey
	opt := g.options(m, warn)
	opt.CacheDir = ""
	if f.Vault == (holdfast.VaultID{}) {
		c := remote.Dial(m, opt)
		ids, err := c.Vaults(ctx, m.Owner)
		c.Close()
		switch {
		case err != nil:
			return nil, err
		case len(ids) == 0:
			return nil, fmt.Errorf("the service at %s has no vault of this owner; check the words and the address", m.Address)
		case len(ids) > 1:
			return nil, fmt.Errorf("the service at %s has %d vaults of this owner; use the owner file of the one", m.Address, len(ids))
		}
		f.Vault, m.Vault = ids[0], ids[0]
	}
	s := &scout{m: m, o: f.Owner, c: remote.Dial(m, opt)}
	err := s.c.Return(ctx, f.Owner.SignKey())
	if err == nil {
		s.h, err = s.c.History(ctx)
	}
	if err != nil {
		s.c.Close()
		return nil, err
	}
	return s, nil
}

// leave revokes the scout. If that fails, it stays: nobody has its key any more.
func (s *scout) leave(ctx context.Context) {
	defer s.c.Close()
	if err := s.revoke(ctx, s.m.Signer()); err != nil {
		warn(fmt.Sprintf("the key that looked at the vault is not revoked (%v); nobody has it any more, `holdfast key revoke %.16s` takes it from the list", err, s.m.Signer()))
	}
}

// revoke revokes a machine, interrupted or not.
func (s *scout) revoke(ctx context.Context, id holdfast.SignerID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveLimit)
	defer cancel()
	_, err := s.c.SubmitAsOwner(ctx, s.o.SignKey(), history.TypeRevoke, history.Revoke{Signer: id, Since: math.MaxInt64}.Encode())
	return err
}

// leaveLimit bounds what an interrupted recovery does to clean up.
const leaveLimit = 30 * time.Second

// choose returns the group of the recovered machine and its chunk size. Unless the user says otherwise that
// is the group of the one machine that the vault had, which is then returned too: its data need not be
// uploaded again. With several machines, or after one was revoked, nobody but the user can know.
func (r *recovery) choose(h *history.Vault, scout *keyring.Machine) (group holdfast.GroupID, chunk uint32, from *holdfast.SignerID, err error) {
	group, chunk = keyring.NewGroup(), history.DefaultChunk
	var writers []holdfast.SignerID
	for _, id := range sortedMachines(h) {
		if id != scout.Signer() && h.Machines[id].Enrol.Rights.Has(holdfast.RightWrite) {
			writers = append(writers, id)
		}
	}
	switch {
	case r.group == "new":
	case r.group != "":
		group, chunk, err = findGroup(h, r.group)
	case len(writers) == 1 && h.Machines[writers[0]].Revoked == 0:
		e := h.Machines[writers[0]].Enrol
		group, chunk, from = e.Group, e.Chunk, &writers[0]
	}
	return group, chunk, from, err
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
