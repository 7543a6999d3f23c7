// Holdfast backs up directory trees to a Holdfast service, sealed so that nobody but the key's holder
// can read them, and gets them back. See README.md for a first backup.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/history"
)

// memoryLimit makes the collector work harder before the client grows beyond it, bytes. The ceiling that
// the tests hold is 200 MiB resident.
const memoryLimit = 128 << 20

func main() {
	debug.SetMemoryLimit(memoryLimit)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the program at once
	}()
	err := newRoot(new(globals)).ExecuteContext(ctx)
	os.Exit(report(ctx, os.Stderr, err))
}

// globals are the flags that every command has.
type globals struct {
	key      string
	cache    string
	patience time.Duration
	unlocking

	network func(ctx context.Context, network, address string) (net.Conn, error) // nil for the real one
}

func newRoot(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Back up directory trees, sealed, and get them back",
		Long: `Holdfast backs up directory trees to a Holdfast service. Everything is sealed on this machine; the
service holds no key that opens any of it.

Exit codes: 0 complete; 1 failed; 2 wrong usage; 3 archive made (or restored), but some paths could not
be read; 4 damaged, or not to be trusted; 5 service unavailable, or account not paid; 130 interrupted.`,
		Version:       holdfast.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		PersistentPreRun: func(cmd *cobra.Command, _ []string) {
			g.ctx = cmd.Context()
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("there is no command %q; `holdfast --help` lists them", args[0])
			}
			return cmd.Help()
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%v; see `%s --help`", err, cmd.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&g.key, "key", "", "this machine's key `FILE` (default $HOLDFAST_KEY, else "+defaultKey()+")")
	f.StringVar(&g.cache, "cache", "", "`DIR` for what can be made anew (default "+defaultCache()+")")
	f.StringArrayVar(&g.identities, "identity", nil, "age identity `FILE` that opens a protected key file (default $HOLDFAST_IDENTITY); may be repeated")
	f.StringVar(&g.passphraseFile, "passphrase-file", "", "`FILE` with the passphrase of a protected key file (default $HOLDFAST_PASSPHRASE_FILE, else it is asked for)")
	f.DurationVar(&g.patience, "patience", remote.DefaultPatience, "how long to keep trying when the service does not answer")
	root.AddCommand(newInit(g), newCreate(g), newList(g), newExtract(g), newVerify(g), newDelete(g), newUndelete(g), newFreeze(g), newThaw(g), newPrune(g), newPolicy(g), newConfirm(g), newHistory(g), newAccount(g), newKey(g))
	plain(root)
	return root
}

// plain keeps "[flags]" out of usage lines.
func plain(c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	for _, sub := range c.Commands() {
		plain(sub)
	}
}

func defaultKey() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "holdfast", "key")
}

func defaultCache() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "holdfast")
}

// keyPath returns where this machine's key file is or will be.
func (g *globals) keyPath() (string, error) {
	for _, p := range []string{g.key, os.Getenv("HOLDFAST_KEY"), defaultKey()} {
		if p != "" {
			return p, nil
		}
	}
	return "", usage("there is no home directory to look for a key file in; name one with --key")
}

// machine reads this machine's key file.
func (g *globals) machine() (*keyring.Machine, error) {
	path, err := g.keyPath()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no key file %s; name yours with --key, or make one with `holdfast init`", path)
	}
	return keyring.Load(path, g.unlock)
}

// cacheDir returns the directory for what this machine remembers of its vault.
func (g *globals) cacheDir(m *keyring.Machine) string {
	base := g.cache
	if base == "" {
		base = defaultCache()
	}
	if base == "" {
		return ""
	}
	return filepath.Join(base, fmt.Sprintf("%.16s-%.16s", m.Vault, m.Signer()))
}

// dial returns a client for m's service.
func (g *globals) dial(m *keyring.Machine, say func(string)) *remote.Client {
	return remote.Dial(m, g.options(m, say))
}

func (g *globals) options(m *keyring.Machine, say func(string)) remote.Options {
	patience := g.patience
	if patience == 0 {
		patience = -1
	}
	return remote.Options{Patience: patience, CacheDir: g.cacheDir(m), Notify: say, DialContext: g.network}
}

// connect reads the key file and returns a client for its service.
func (g *globals) connect(say func(string)) (*keyring.Machine, *remote.Client, error) {
	m, err := g.machine()
	if err != nil {
		return nil, nil, err
	}
	return m, g.dial(m, say), nil
}

// visit is connect for commands that begin with the vault's history, verified.
func (g *globals) visit(ctx context.Context) (*keyring.Machine, *remote.Client, *history.Vault, error) {
	m, c, err := g.connect(warn)
	if err != nil {
		return nil, nil, nil, err
	}
	h, err := c.History(ctx)
	if err != nil {
		c.Close()
		return nil, nil, nil, err
	}
	return m, c, h, nil
}

// warn says something that is no error.
func warn(message string) { fmt.Fprintln(os.Stderr, "holdfast: "+oneLine(message)) }

// oneLine makes text of any origin fit for one line of a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// args wraps a check of the number of arguments as misuse.
func args(check cobra.PositionalArgs, form string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, a []string) error {
		if check(cmd, a) != nil {
			return usage("usage: %s; see `%s --help`", form, cmd.CommandPath())
		}
		return nil
	}
}
