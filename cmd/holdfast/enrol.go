package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/history"
	"holdfast/wire"
)

// maxRequest bounds what is read of a request or a grant, bytes.
const maxRequest = 16 << 10

// distrust is an error that means: somebody may be lying.
func distrust(format string, a ...any) error {
	return &codeError{exitDamaged, fmt.Errorf(format, a...)}
}

// allowance is what the owner gives a machine, as flags.
type allowance struct {
	rights, group, dayBytes string
	series                  []string
	join                    bool
	dayBlocks               uint64
}

func (w *allowance) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&w.rights, "rights", "", "what the machine may do: `LIST` of write, read, delete")
	f.StringArrayVar(&w.series, "series", nil, "it may write to the series with this `NAME` only; may be repeated")
	f.BoolVar(&w.join, "join-group", false, "let it deduplicate against this machine, and those that this machine does")
	f.StringVar(&w.group, "group", "", "let it deduplicate against the machines of this `GROUP` (`holdfast key list` shows them)")
	f.StringVar(&w.dayBytes, "day-bytes", "", "at most this much sealed data a day: `SIZE` like 500MiB or 20GiB")
	f.Uint64Var(&w.dayBlocks, "day-blocks", 0, "at most `N` blocks a day")
}

// parseRights reads a list like write,read.
func parseRights(s string) (r holdfast.Rights, err error) {
	for name := range strings.SplitSeq(s, ",") {
		x := holdfast.RightWrite
		for ; x <= holdfast.RightDelete && x.String() != name; x <<= 1 {
		}
		if x > holdfast.RightDelete || r.Has(x) {
			return 0, usage("%q are no rights; say one or more of write, read and delete with commas between", s)
		}
		r |= x
	}
	return r, nil
}

// parseSize reads a size like 20GiB.
func parseSize(s string) (uint64, error) {
	number := strings.TrimRight(s, "KMGTiB")
	unit, ok := map[string]uint64{"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[s[len(number):]]
	var n uint64
	if _, err := fmt.Sscanf(number, "%d", &n); err != nil || !ok || n == 0 || fmt.Sprint(n) != number || n > 1<<62/unit {
		return 0, usage("%q is no size; say a number with KiB, MiB, GiB or TiB, like 20GiB", s)
	}
	return n * unit, nil
}

// read returns the enrolment that the flags ask for, without keys. m is the machine that runs the
// command; the group is zeros where it is to be a new one.
func (w *allowance) read(m *keyring.Machine, h *history.Vault) (e history.Enrol, err error) {
	if e.Rights, err = parseRights(w.rights); err != nil {
		return e, err
	}
	if len(w.series) > history.MaxSeries {
		return e, usage("%d series are more than the limit of %d", len(w.series), history.MaxSeries)
	}
	for _, s := range w.series {
		if err := checkSeries(s); err != nil {
			return e, err
		}
		e.Series = append(e.Series, m.Series(s))
	}
	slices.SortFunc(e.Series, compareSeries)
	e.Series = slices.Compact(e.Series)
	if len(e.Series) > 0 && !e.Rights.Has(holdfast.RightWrite) {
		return e, usage("--series says what a machine may write to, but this one gets no right to write")
	}
	if w.dayBytes != "" {
		if e.DayBytes, err = parseSize(w.dayBytes); err != nil {
			return e, err
		}
	}
	e.DayBlocks = w.dayBlocks
	e.Chunk = history.DefaultChunk
	switch {
	case w.join && w.group != "":
		return e, usage("say either --join-group or --group")
	case w.join:
		e.Group, e.Chunk = m.Group, m.Chunk
	case w.group != "":
		e.Group, e.Chunk, err = findGroup(h, w.group)
	}
	return e, err
}

// findGroup returns the one group whose ID begins so, and its chunk size.
func findGroup(h *history.Vault, prefix string) (id holdfast.GroupID, chunk uint32, err error) {
	found := map[holdfast.GroupID]uint32{}
	for _, x := range h.Machines {
		if len(prefix) >= 4 && strings.HasPrefix(x.Enrol.Group.String(), strings.ToLower(prefix)) {
			found[x.Enrol.Group] = x.Enrol.Chunk
			id, chunk = x.Enrol.Group, x.Enrol.Chunk
		}
	}
	switch len(found) {
	case 1:
		return id, chunk, nil
	case 0:
		return id, 0, fmt.Errorf("no group %q; `holdfast key list` shows them, four digits are the least", prefix)
	}
	return id, 0, fmt.Errorf("%d groups begin with %q; give more of it", len(found), prefix)
}

// allows says an enrolment in words.
func allows(e history.Enrol) string {
	s := "may " + strings.ReplaceAll(e.Rights.String(), ",", ", ")
	if n := len(e.Series); n > 0 {
		s += fmt.Sprintf(", write to %d series only", n)
	}
	if e.DayBytes > 0 {
		s += fmt.Sprintf(", store %s a day", size(e.DayBytes))
	}
	if e.DayBlocks > 0 {
		s += fmt.Sprintf(", store %s a day", plural(e.DayBlocks, "block"))
	}
	return fmt.Sprintf("%s; group %.8s", s, e.Group)
}

// readKeyNumber returns the number of the newest read key that follows from the owner's. The current one does
// not if somebody else who has the owner's key put his own in its place.
func readKeyNumber(owner keyring.Owner, h *history.Vault) uint32 {
	n := len(h.ReadKeys) - 1
	for ; n > 0; n-- {
		if pub := owner.ReadKey(uint32(n)); history.ReadKeyIDOf(pub[:]) == h.ReadKeys[n] {
			break
		}
	}
	if n < len(h.ReadKeys)-1 {
		warn("the vault's current read key does not follow from the owner's key: somebody else who has that too made it, and he alone reads what has been stored since. `holdfast key rotate-read` makes another, but he can do the same again: restore what you need, and make a new vault")
	}
	return uint32(n)
}

func newKeyEnrol(g *globals) *cobra.Command {
	var owner ownerFlag
	var want allowance
	var prot protection
	var ask bool
	var grant, code, address string
	const form = "holdfast key enrol --request | REQUEST|- --rights LIST | --grant FILE|-"
	cmd := &cobra.Command{
		Use:   "enrol --request | REQUEST|- --rights LIST [--code CODE] [--owner FILE] | --grant FILE|- [--code CODE]",
		Short: "Enrol another machine in this vault, in three steps",
		Long: `Enrol brings another machine into a vault, without a secret that leaves either machine in clear:

  1. on the new machine:       holdfast key enrol --request --rights write >request
  2. on a machine of the vault: holdfast key enrol request --rights write --owner FILE >grant
  3. on the new machine:       holdfast key enrol --grant grant

Request and grant may travel over any channel; they hold no secret that others could open. But each step shows a code,
and the next asks for it: have it read aloud, or take it over another channel. Only that shows that nobody put his
own request or grant in the place of the right one.

The owner decides with --rights and the other flags what the machine may do; by default it deduplicates against itself
only. The request's file, or its text, may be the argument; - stands for standard input. Each step may be repeated.`,
		Args: args(cobra.MaximumNArgs(1), form),
		RunE: func(cmd *cobra.Command, a []string) error {
			switch modes := len(a) + count(ask) + count(grant != ""); {
			case modes != 1:
				return usage("usage: %s; see `%s --help`", form, cmd.CommandPath())
			case ask:
				if err := only(cmd, "--request", "rights"); err != nil {
					return err
				}
				return askEnrolment(cmd, g, cmp.Or(want.rights, holdfast.RightWrite.String()))
			case grant != "":
				if err := only(cmd, "--grant", "code", "address", "passphrase", "new-passphrase-file", "recipient", "recipients-file"); err != nil {
					return err
				}
				return finishEnrolment(cmd, g, grant, code, address, &prot)
			}
			if err := only(cmd, "a request", "rights", "series", "join-group", "group", "day-bytes", "day-blocks", "code", "owner"); err != nil {
				return err
			}
			return allowEnrolment(cmd, g, a[0], code, want, owner)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&ask, "request", false, "step 1: make this machine's key, and write a request")
	f.StringVar(&grant, "grant", "", "step 3: finish with the grant in `FILE`, or - for standard input")
	f.StringVar(&code, "code", "", "the `CODE` that the other machine showed")
	f.StringVar(&address, "address", "", "with --grant: the service's `HOST:PORT` as this machine reaches it, if not as in the grant")
	want.add(cmd)
	owner.add(cmd, ownerAlways)
	prot.add(cmd)
	return cmd
}

// only refuses flags of another step than the one that is named.
func only(cmd *cobra.Command, with string, names ...string) error {
	for _, f := range []string{
		"rights", "series", "join-group", "group", "day-bytes", "day-blocks", "code", "owner", "address",
		"passphrase", "new-passphrase-file", "recipient", "recipients-file",
	} {
		if cmd.Flags().Changed(f) && !slices.Contains(names, f) {
			return usage("--%s means nothing with %s; see `%s --help`", f, with, cmd.CommandPath())
		}
	}
	return nil
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// pendingPath is where a machine keeps its secrets until it is enrolled.
func pendingPath(keyPath string) string { return keyPath + ".pending" }

// newKeyPath returns where the key file will be. A key is never overwritten.
func (g *globals) newKeyPath() (string, error) {
	path, err := g.keyPath()
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s exists already, and a key is never overwritten; choose another place with --key", path)
	}
	return path, nil
}

// askEnrolment is step 1. The secrets are durable before the request is shown.
func askEnrolment(cmd *cobra.Command, g *globals, rights string) error {
	path, err := g.newKeyPath()
	if err != nil {
		return err
	}
	want, err := parseRights(rights)
	if err != nil {
		return err
	}
	pending := pendingPath(path)
	p, err := keyring.LoadPending(pending)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p = keyring.NewPending(want)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("make directory for the key file: %w", err)
		}
		if err := p.Save(pending); err != nil {
			return err
		}
	case err != nil:
		return err
	case p.Rights != want:
		return fmt.Errorf("this machine asked for %s already, and its secrets are in %s; ask for the same again, or remove that file first", p.Rights, pending)
	}
	r := p.Request()
	fmt.Fprintln(cmd.OutOrStdout(), r)
	say(cmd, "This machine asks to %s. The owner answers it with `holdfast key enrol REQUEST --rights ...` and has to compare this code:\n\ncode  %s\n\n", rights, r.Code())
	return nil
}

// say writes for a person while standard output is for the request or the grant.
func say(cmd *cobra.Command, format string, a ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format, a...) }

// compare makes sure that the user has the right code, which he has from elsewhere.
func compare(cmd *cobra.Command, typed, right, what string) error {
	if typed == "" {
		in, ok := cmd.InOrStdin().(*os.File)
		if !ok || !term.IsTerminal(int(in.Fd())) {
			return usage("say with --code which code the other machine showed for its %s", what)
		}
		say(cmd, "Type the code that the other machine showed for its %s: ", what)
		line, err := readLine(in)
		if err != nil {
			return err
		}
		typed = line
	}
	if !keyring.SameCode(typed, right) {
		return distrust("the code does not belong to this %s: it was mistyped, or somebody put another %s in its place; nothing was done", what, what)
	}
	return nil
}

// readLine reads one line and nothing after it: the owner's words may follow.
func readLine(in io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < 200; {
		n, err := in.Read(b)
		if n > 0 && b[0] != '\n' {
			line = append(line, b[0])
		}
		if err == io.EOF || n > 0 && b[0] == '\n' {
			return string(line), nil
		}
		if err != nil {
			return "", fmt.Errorf("read from standard input: %w", err)
		}
	}
	return string(line), nil
}

// readText reads a request or a grant: from a file, or from standard input for -.
func readText(cmd *cobra.Command, path, what string) (string, error) {
	in := cmd.InOrStdin()
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read %s: %w", what, err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(bufio.NewReader(in), maxRequest+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	return string(b), nil
}

// allowEnrolment is step 2. The record is in the history before the grant is shown; asked again, it shows
// another grant of the same.
func allowEnrolment(cmd *cobra.Command, g *globals, text, code string, want allowance, owner ownerFlag) error {
	if text == "-" && (owner.path == "" || owner.path == "-") {
		return usage("request and words cannot both come from standard input; name the owner's file with --owner, or the request's")
	}
	if !keyring.IsRequest(text) {
		var err error
		if text, err = readText(cmd, text, "request"); err != nil {
			return err
		}
	}
	r, err := keyring.ParseRequest(text)
	if err != nil {
		return usage("%v", err)
	}
	if want.rights == "" {
		return usage("the machine asks to %s; say what it may with --rights %s, or less", r.Rights, r.Rights)
	}
	m, c, err := g.connect(warn)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := compare(cmd, code, r.Code(), "request"); err != nil {
		return err
	}
	h, err := c.History(cmd.Context())
	if err != nil {
		return err
	}
	e, err := want.read(m, h)
	if err != nil {
		return err
	}
	e.SignKey, e.TLSKey = r.SignKey, r.TLSKey
	o, err := owner.read(cmd, g, m)
	if err != nil {
		return err
	}
	read := readKeyNumber(o, h)
	if e, h, err = enrolOnce(cmd.Context(), c, h, o, e); err != nil {
		return err
	}
	grant, err := o.Grant(m, r, e, read, h)
	if err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), grant)
	say(cmd, "Machine %.16s %s.\nIt finishes with `holdfast key enrol --grant FILE` and has to compare this code:\n\ncode  %s\n\n", history.SignerOf(e.SignKey[:]), allows(e), grant.Code())
	return nil
}

// enrolOnce has the owner sign an enrolment, unless the machine is enrolled already with just that. A group
// of zeros stands for a new one, or whichever the machine has.
func enrolOnce(ctx context.Context, c *remote.Client, h *history.Vault, o keyring.Owner, e history.Enrol) (history.Enrol, *history.Vault, error) {
	id := history.SignerOf(e.SignKey[:])
	if had, ok := h.Machines[id]; ok {
		if e.Group == (holdfast.GroupID{}) {
			e.Group, e.Chunk = had.Enrol.Group, had.Enrol.Chunk
		}
		switch {
		case had.Revoked != 0:
			return e, h, fmt.Errorf("machine %.16s is revoked, and its keys are never enrolled again; let it make a new request", id)
		case !had.Enrol.Equal(e):
			return e, h, fmt.Errorf("machine %.16s is enrolled already and %s; to change that, revoke it and let it make a new request", id, allows(had.Enrol))
		}
		return e, h, nil
	}
	if e.Group == (holdfast.GroupID{}) {
		e.Group = keyring.NewGroup()
	}
	h, err := c.SubmitAsOwner(ctx, o.SignKey(), history.TypeEnrol, e.Encode())
	return e, h, err
}

// finishEnrolment is step 3. Only what the history confirms becomes a key file.
func finishEnrolment(cmd *cobra.Command, g *globals, from, code, address string, prot *protection) error {
	path, err := g.keyPath()
	if err != nil {
		return err
	}
	p, err := keyring.LoadPending(pendingPath(path))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("this machine asked for nothing: there is no %s; begin with `holdfast key enrol --request`", pendingPath(path))
	}
	if err != nil {
		return err
	}
	if done, err := keyring.Load(path, g.unlock); err == nil && p.Made(done) { // interrupted before the last step
		return enrolled(cmd, path, done)
	}
	if path, err = g.newKeyPath(); err != nil {
		return err
	}
	lock, err := prot.lock(g)
	if err != nil {
		return err
	}
	text, err := readText(cmd, from, "grant")
	if err != nil {
		return err
	}
	grant, err := keyring.ParseGrant(text)
	if err != nil {
		return usage("%v", err)
	}
	m, err := p.Open(grant)
	if err != nil {
		return distrust("%v; nothing was done", err)
	}
	say(cmd, "The owner of vault %.16s at %s says that this machine %s.\n", m.Vault, m.Address, allows(grant.Enrol))
	if err := compare(cmd, code, grant.Code(), "grant"); err != nil {
		return err
	}
	if address != "" {
		if err := wire.CheckAddress(address); err != nil {
			return usage("%v", err)
		}
		m.Address = address
	}
	if err := g.confirmEnrolment(cmd.Context(), m, grant); err != nil {
		return err
	}
	if err := g.saveKey(m, path, lock); err != nil {
		return err
	}
	return enrolled(cmd, path, m)
}

// confirmEnrolment verifies the vault's history: it is the owner's, contains the head that the owner's machine
// saw, and enrols m with exactly what the grant says.
func (g *globals) confirmEnrolment(ctx context.Context, m *keyring.Machine, grant keyring.Grant) error {
	opt := g.options(m, warn)
	seen := false
	opt.Record = func(e history.Entry) { seen = seen || e.N == grant.N && e.Head == grant.Head }
	c := remote.Dial(m, opt)
	defer c.Close()
	h, err := c.History(ctx)
	if err != nil {
		return err
	}
	had, ok := h.Machines[m.Signer()]
	switch {
	case h.Genesis.OwnerKey != m.Owner:
		return distrust("vault %.16s is not of the owner who signed the grant", m.Vault)
	case !seen:
		return fmt.Errorf("%w: the service does not show what the owner's machine saw, record %d", history.ErrOrder, grant.N)
	case !ok || !had.Enrol.Equal(grant.Enrol):
		return distrust("the vault's history does not enrol this machine as the grant says")
	case had.Revoked != 0:
		return fmt.Errorf("the owner revoked this machine since; make a new request")
	case !slices.Contains(h.ReadKeys, history.ReadKeyIDOf(m.ReadKey[:])):
		return distrust("the grant's read key is none of the vault's")
	}
	return nil
}

// enrolled ends an enrolment whose key file is written.
func enrolled(cmd *cobra.Command, path string, m *keyring.Machine) error {
	if err := os.Remove(pendingPath(path)); err != nil {
		return fmt.Errorf("remove what the key file has replaced: %w", err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "This machine belongs to vault %.16s at %s now and may %s.\nIts key file is %s.\n", m.Vault, m.Address, strings.ReplaceAll(m.Rights.String(), ",", ", "), path)
	return nil
}
