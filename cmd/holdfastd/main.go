// Command holdfastd is the Holdfast service: it keeps sealed blocks in a bucket and can prove it.
//
// This package parses arguments, builds the parts and reports; one file a command.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"holdfast"
	"holdfast/internal/never"
	"holdfast/service/bucket"
	"holdfast/service/journal"
	"holdfast/service/move"
	"holdfast/service/view"
)

// Exit codes.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitDamaged = 4 // check found something, or what is there is not to be trusted
	exitNever   = never.ExitStatus
	exitLost    = 6 // another host owns the cell
)

// usageError marks an error in the way that the program was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func main() {
	faultsBySignal()
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

// faultsBySignal makes a panic that nobody expects end the process by SIGABRT: its status would otherwise be that of
// wrong usage, after which nobody starts a service again. No image of the memory is left behind: keys are in it.
func faultsBySignal() {
	debug.SetTraceback("crash")
	var now syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_CORE, &now) == nil && now.Cur == 0 {
		return
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		fmt.Fprintf(os.Stderr, "holdfastd: forbid images of memory: %v\n", err)
	}
}

// explain adds what to do next where the error itself does not know it.
func explain(err error) string {
	text := strings.TrimSpace(err.Error())
	switch {
	case errors.Is(err, journal.ErrLost):
		return text + "; this one has stopped for good, nothing that it acknowledged is lost"
	case errors.Is(err, journal.ErrDamaged), errors.Is(err, journal.ErrContradiction):
		return text + "; bring the bucket's objects back from its redundancy, then try again"
	case errors.Is(err, journal.ErrUnavailable):
		return text + "; nothing is lost: the same command works when the bucket does what it is asked"
	case errors.Is(err, bucket.ErrUnconditional):
		return text + "; if no other process can ever claim this cell, --single-owner runs there all the same (docs/storage.md says what that gives up)"
	case errors.Is(err, view.ErrDamaged):
		return text + "; make the view anew with holdfastd rebuild"
	}
	return text
}

func exitCode(err error) int {
	switch {
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.Is(err, never.ErrStands):
		return exitNever
	case errors.Is(err, journal.ErrLost), errors.Is(err, journal.ErrOwned), errors.Is(err, move.ErrForeign):
		return exitLost
	case errors.Is(err, journal.ErrDamaged), errors.Is(err, journal.ErrContradiction), errors.Is(err, view.ErrDamaged), errors.Is(err, move.ErrForked):
		return exitDamaged
	}
	return exitFailed
}

func command() *cobra.Command {
	c := &cobra.Command{
		Use:   "holdfastd",
		Short: "The Holdfast service: keeps sealed blocks in a bucket",
		Long: `Holdfastd is the Holdfast service. It keeps sealed blocks in a bucket and holds no key that opens one.

Exit codes: 0 done; 1 failed; 2 wrong usage; 4 damaged, or the bucket contradicts what was acknowledged; 5 stopped by an
event that must never happen, see holdfastd why; 6 another host owns the service's data. A fault in the program ends it by
the signal SIGABRT.`,
		Version:       holdfast.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          group,
	}
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	c.AddCommand(initCommand(), serveCommand(), accountCommand(), statusCommand(), requestsCommand(), noticeCommand(), creditCommand(), ledgerCommand(), moveCommand(), sweepCommand(), reclaimCommand(), checkpointCommand(), scrubCommand(), shadowCommand(), thawCommand(), whyCommand(), resumeCommand(), recoverCommand(), rebuildCommand(), checkCommand())
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

// printJSON writes what a command has to say to programs.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func notThere(err error, dir string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s holds no service; make one with holdfastd init, or bring one back with holdfastd recover", dir)
	}
	return err
}
