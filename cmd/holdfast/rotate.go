package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/protect"
	"holdfast/client/remote"
	"holdfast/client/seal"
	"holdfast/history"
)

func newKeyRotateRead(g *globals) *cobra.Command {
	r := rotation{g: g}
	const form = "holdfast key rotate-read [--owner FILE]"
	cmd := &cobra.Command{
		Use:   "rotate-read [--owner FILE] [--again] [--leave-damaged]",
		Short: "Make a new read key, so that a stolen one opens nothing that comes",
		Long: `Rotate-read makes a new read key, wraps the secret of every session for it as well, reads all that back, and
only then puts the new key into this machine's key file. The owner signs.

Whoever had the old key keeps what he could read: everything that was stored before. What is stored from now on, he
cannot read. Revoke the machine from which the key was taken as well.

Before anything is changed, every session's secret is opened. If one does not open, what was stored in it is lost
already; it is named, and nothing is done unless --leave-damaged is given. A rotation that was interrupted goes on when
the command is run again; --again makes another new key in any case.

Other machines with the right to read need the new key: run ` + "`holdfast key update`" + ` on each.`,
		Args: args(cobra.NoArgs, form),
		RunE: func(cmd *cobra.Command, _ []string) error { return r.run(cmd) },
	}
	f := cmd.Flags()
	f.BoolVar(&r.again, "again", false, "make another read key although the last rotation is not complete")
	f.BoolVar(&r.leave, "leave-damaged", false, "go on although the secrets of some sessions do not open")
	r.owner.add(cmd, ownerAlways)
	r.prot.add(cmd)
	return cmd
}

func newKeyUpdate(g *globals) *cobra.Command {
	r := rotation{g: g}
	cmd := &cobra.Command{
		Use:   "update [--owner FILE]",
		Short: "Put the vault's current read key into this machine's key file",
		Long: `Update brings this machine's key file up to date after the owner made a new read key on another machine. Before it
rewrites the file, it opens the secret of every session with the new key. A machine that only writes needs no update:
it learns from the history for which key to write.`,
		Args: args(cobra.NoArgs, "holdfast key update [--owner FILE]"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := r.begin(cmd); err != nil {
				return err
			}
			defer r.c.Close()
			if r.foreign {
				return distrust("there is no current read key of this owner; make one with `holdfast key rotate-read`")
			}
			if r.m.ReadKey == r.h.ReadKey {
				fmt.Fprintln(cmd.OutOrStdout(), "the key file is up to date")
				return nil
			}
			bad, err := r.damaged(nil)
			if err != nil {
				return err
			}
			if lacking := r.lacking(bad); len(lacking) > 0 {
				return fmt.Errorf("the secrets of %s are not wrapped for the current read key yet; run `holdfast key rotate-read` again, which goes on with that", plural(uint64(len(lacking)), "session"))
			}
			if err := r.finish(cmd, bad); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s has the current read key now\n", r.file.path)
			return nil
		},
	}
	r.owner.add(cmd, ownerAlways)
	r.prot.add(cmd)
	return cmd
}

// rotation brings the vault, and this machine's key file, to a current read key.
type rotation struct {
	g            *globals
	owner        ownerFlag
	prot         protection
	again, leave bool

	file heldFile
	lock *protect.Lock // for the new key file; nil for none
	m    *keyring.Machine
	c    *remote.Client
	h    *history.Vault
	o    keyring.Owner
	n    uint32 // number of the current read key

	foreign bool // which does not follow from the owner's
}

// begin reads all that is needed and changes nothing. Without an error, r.c is to be closed.
func (r *rotation) begin(cmd *cobra.Command) (err error) {
	if r.file, err = r.g.heldFile(nil); err != nil {
		return err
	}
	if protect.Is(r.file.raw) && !r.prot.wanted() {
		return usage("the key file is protected and will be rewritten; say how to protect it then: --passphrase, or --recipient AGE1...")
	}
	text, err := r.file.text(r.g)
	if err != nil {
		return err
	}
	if r.m, err = keyring.Parse(text); err != nil {
		return err
	}
	if r.lock, err = r.prot.lock(r.g); err != nil {
		return err
	}
	r.c = r.g.dial(r.m, warn)
	defer func() {
		if err != nil {
			r.c.Close()
		}
	}()
	if r.h, err = r.c.History(cmd.Context()); err != nil {
		return err
	}
	if r.o, err = r.owner.read(cmd, r.g, r.m); err != nil {
		return err
	}
	r.n = uint32(len(r.h.ReadKeys) - 1)
	r.foreign = readKeyNumber(r.o, r.h) != r.n
	return nil
}

func (r *rotation) run(cmd *cobra.Command) error {
	if err := r.begin(cmd); err != nil {
		return err
	}
	defer r.c.Close()
	out := cmd.OutOrStdout()
	bad, err := r.damaged(nil)
	if err != nil {
		return err
	}
	if len(bad) > 0 && !r.leave {
		return &codeError{exitDamaged, fmt.Errorf("the secrets of %s do not open, so nothing was changed; what was stored in them is lost already, `holdfast verify` shows what that is; --leave-damaged goes on without them", plural(uint64(len(bad)), "session"))}
	}
	if complete := len(r.lacking(bad)) == 0 && r.m.ReadKey == r.h.ReadKey; complete || r.again || r.foreign {
		pub := r.o.ReadKey(r.n + 1)
		if r.h, err = r.c.SubmitAsOwner(cmd.Context(), r.o.SignKey(), history.TypeRotateRead, history.RotateRead{ReadKey: pub}.Encode()); err != nil {
			return err
		}
		r.n++
		fmt.Fprintf(out, "read key %d is the vault's now: what is stored from now on, older ones do not open\n", r.n)
	} else {
		fmt.Fprintf(out, "going on with the rotation to read key %d\n", r.n)
	}
	// Sessions may have been opened since they were looked at.
	if bad, err = r.damaged(bad); err != nil {
		return err
	}
	wrapped, err := r.rewrap(cmd, bad)
	if err != nil {
		return err
	}
	if err := r.finish(cmd, bad); err != nil {
		return err
	}
	fmt.Fprintf(out, "wrapped the secrets of %s for it, read all of them back, and put it into %s\n", plural(uint64(wrapped), "session"), r.file.path)
	fmt.Fprintln(out, "Whoever had an older read key keeps what he could read: everything that was stored before.")
	for _, id := range sortedMachines(r.h) {
		if x := r.h.Machines[id]; id != r.m.Signer() && x.Revoked == 0 && x.Enrol.Rights.Has(holdfast.RightRead) {
			fmt.Fprintf(out, "machine %.16s may read, and needs it: run `holdfast key update` there\n", id)
		}
	}
	if len(bad) > 0 {
		return &codeError{exitDamaged, fmt.Errorf("left %s whose secrets do not open", plural(uint64(len(bad)), "session"))}
	}
	return nil
}

// sessions returns the vault's sessions, always in one order.
func (r *rotation) sessions() []history.Session {
	return slices.SortedFunc(maps.Values(r.h.Sessions), func(a, b history.Session) int { return bytes.Compare(a.Open.Session[:], b.Open.Session[:]) })
}

// damaged adds to known the sessions whose secret no wrap holds that a key of the owner opens, and names each.
func (r *rotation) damaged(known map[holdfast.SessionID]bool) (map[holdfast.SessionID]bool, error) {
	keys, err := newUnwrapper(r.o, r.h)
	if err != nil {
		return nil, err
	}
	bad := maps.Clone(known)
	for _, s := range r.sessions() {
		if known[s.Open.Session] {
			continue
		}
		if _, err := keys.session(s); err != nil {
			warn(fmt.Sprintf("session %s, opened by machine %.16s: %v", s.Open.Session, s.Signer, err))
			if bad == nil {
				bad = map[holdfast.SessionID]bool{}
			}
			bad[s.Open.Session] = true
		}
	}
	return bad, nil
}

// lacking returns the sessions, without those in skip, that have no wrap for the current read key.
func (r *rotation) lacking(skip map[holdfast.SessionID]bool) (out []history.Session) {
	now := history.ReadKeyIDOf(r.h.ReadKey[:])
	for _, s := range r.sessions() {
		if !s.WrappedFor(now) && !skip[s.Open.Session] {
			out = append(out, s)
		}
	}
	return out
}

// rewrap has every secret wrapped for the current read key and returns how many were.
func (r *rotation) rewrap(cmd *cobra.Command, skip map[holdfast.SessionID]bool) (int, error) {
	keys, err := newUnwrapper(r.o, r.h)
	if err != nil {
		return 0, err
	}
	todo := r.lacking(skip)
	for i, s := range todo {
		reader, err := keys.session(s)
		if err != nil {
			return i, err // it did open before
		}
		w, err := reader.Rewrap(s.Open.Session, r.o.ReadKey(r.n))
		if err != nil {
			return i, err
		}
		if r.h, err = r.c.SubmitAsOwner(cmd.Context(), r.o.SignKey(), history.TypeRewrap, w.Encode()); err != nil {
			return i, fmt.Errorf("%w; %d of %d sessions are wrapped for the new read key, the key file is as it was: run the same command again to go on", err, i, len(todo))
		}
	}
	return len(todo), nil
}

// finish reads the whole history from the service once more, opens every session in it with the current read
// key alone, and only then puts that into the key file.
func (r *rotation) finish(cmd *cobra.Command, skip map[holdfast.SessionID]bool) error {
	m := *r.m
	r.o.GiveRead(&m, r.n)
	c := r.g.dial(&m, warn)
	defer c.Close()
	h, err := c.History(cmd.Context())
	if err != nil {
		return err
	}
	if m.ReadKey != h.ReadKey {
		return errors.New("another read key was made meanwhile; the key file is as it was: run the same command again")
	}
	reader, err := seal.NewReader(readerOf(r.o, h, r.n))
	if err != nil {
		return err
	}
	if err := reader.AddSessions(h); err != nil {
		return err
	}
	r.h = h
	for _, s := range r.sessions() {
		if skip[s.Open.Session] {
			continue
		}
		if err := reader.CheckSession(s.Open.Session); err != nil {
			return fmt.Errorf("read back what was wrapped for the new read key: %w; the key file is as it was", err)
		}
	}
	text := m.Encode()
	if _, err := keyring.Parse(text); err != nil {
		return fmt.Errorf("write key file: %w", err)
	}
	opens := true
	if r.lock != nil {
		if text, opens, err = r.g.seal(r.lock, text); err != nil {
			return err
		}
	}
	if err := r.file.replace(text); err != nil {
		return err
	}
	warnUnchecked(r.file.path, opens)
	return nil
}

// sayOldKey tells the user of a key file that is older than the owner's last rotation what it cannot read.
func sayOldKey(m *keyring.Machine, h *history.Vault) {
	if m.ReadSeed != nil && m.ReadKey != h.ReadKey {
		warn("the owner has made a new read key since this key file was written: what was stored since then cannot be read with it before `holdfast key update`, with the owner's key")
	}
}

// readerOf returns a machine in memory that reads with the owner's read key n.
func readerOf(o keyring.Owner, h *history.Vault, n uint32) *keyring.Machine {
	m := o.NewMachine(h.ID, holdfast.GroupID{}, holdfast.RightRead, history.DefaultChunk)
	o.GiveRead(m, n)
	return m
}

// unwrapper opens the sessions of a vault with every read key that the owner has had.
type unwrapper struct {
	readers []*seal.Reader // the newest key first
	ids     []history.ReadKeyID
}

func newUnwrapper(o keyring.Owner, h *history.Vault) (*unwrapper, error) {
	x := new(unwrapper)
	for n, id := range slices.Backward(h.ReadKeys) {
		m := readerOf(o, h, uint32(n))
		if history.ReadKeyIDOf(m.ReadKey[:]) != id {
			continue // see readKeyNumber
		}
		r, err := seal.NewReader(m)
		if err != nil {
			return nil, err
		}
		x.readers, x.ids = append(x.readers, r), append(x.ids, id)
	}
	return x, nil
}

// session returns a reader that has opened s, with the newest key that does.
func (x *unwrapper) session(s history.Session) (*seal.Reader, error) {
	var first error
	for i, r := range x.readers {
		if !s.WrappedFor(x.ids[i]) {
			continue
		}
		err := r.AddOpen(s.Open, s.Signer, s.Rewraps...)
		if err == nil {
			err = r.CheckSession(s.Open.Session)
		}
		if err == nil {
			return r, nil
		}
		first = cmp.Or(first, err)
	}
	return nil, cmp.Or(first, error(fmt.Errorf("%w: it is wrapped for no read key of this owner", seal.ErrDamaged)))
}

// sortedMachines returns the machines of a vault, always in one order.
func sortedMachines(h *history.Vault) []holdfast.SignerID {
	return slices.SortedFunc(maps.Keys(h.Machines), func(a, b holdfast.SignerID) int { return bytes.Compare(a[:], b[:]) })
}
