// Command holdfastd is the Holdfast service: it keeps sealed blocks in a bucket and can prove it.
//
// This package parses arguments, builds the parts and reports; one file a command.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/service/view"
)

// Exit codes.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitDamaged = 4 // check found something, or what is there is not to be trusted
)

// usageError marks an error in the way that the program was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := command().ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "holdfastd: %s\n", explain(err))
	os.Exit(exitCode(err))
}

// explain adds what to do next where the error itself does not know it.
func explain(err error) string {
	text := strings.TrimSpace(err.Error())
	switch {
	case errors.Is(err, journal.ErrLost):
		return text + "; this one has stopped for good, nothing that it acknowledged is lost"
	case errors.Is(err, journal.ErrDamaged), errors.Is(err, journal.ErrContradiction):
		return text + "; bring the bucket's objects back from its redundancy, then try again"
	case errors.Is(err, view.ErrDamaged):
		return text + "; make the view anew with holdfastd rebuild"
	}
	return text
}

func exitCode(err error) int {
	switch {
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.Is(err, journal.ErrDamaged), errors.Is(err, journal.ErrContradiction), errors.Is(err, view.ErrDamaged):
		return exitDamaged
	}
	return exitFailed
}

func command() *cobra.Command {
	c := &cobra.Command{
		Use:   "holdfastd",
		Short: "The Holdfast service: keeps sealed blocks in a bucket",
		Long: `Holdfastd is the Holdfast service. It keeps sealed blocks in a bucket and holds no key that opens one.

Exit codes: 0 done; 1 failed; 2 wrong usage; 4 damaged, or the bucket contradicts what was acknowledged.`,
		Version:       holdfast.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          group,
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	c.AddCommand(initCommand(), serveCommand(), accountCommand(), statusCommand(), noticeCommand(), sweepCommand(), thawCommand(), recoverCommand(), rebuildCommand(), checkCommand())
	plain(c)
	return c
}

// plain keeps "[flags]" out of usage lines, which name their flags themselves.
func plain(c *cobra.Command) {
	c.DisableFlagsInUseLine = true
	for _, sub := range c.Commands() {
		plain(sub)
	}
}

// exactly makes cobra's errors about arguments usage errors.
func exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("usage: %s; see %s --help", c.UseLine(), c.CommandPath())}
		}
		return nil
	}
}

// group refuses arguments of a command that only has others below it.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	return usageError{fmt.Errorf("there is no command %q; see %s --help", args[0], c.CommandPath())}
}

// required refuses to run without flags.
func required(c *cobra.Command, flags ...string) error {
	for _, f := range flags {
		if c.Flag(f).Value.String() == "" {
			return usageError{fmt.Errorf("--%s is missing; see %s --help", f, c.CommandPath())}
		}
	}
	return nil
}

func notThere(err error, dir string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds no service; make one with holdfastd init, or bring one back with holdfastd recover", dir)
	}
	return err
}
