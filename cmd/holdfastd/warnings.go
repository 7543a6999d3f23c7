package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/ledger"
)

const (
	// tellPatience is how long a command may take that tells somebody.
	tellPatience = time.Minute
	// tellWait is how long is waited for what it leaves running.
	tellWait = 5 * time.Second
)

func accountWarnings() *cobra.Command {
	var dir, run string
	var asJSON bool
	c := &cobra.Command{
		Use:   "warnings --data DIR [--run COMMAND]",
		Short: "Say which owners are to be told that their accounts are not paid, and have them told",
		Long: `Say which owners were not told yet that their accounts are not paid, one a line: the account's name, where it stands, how
many days are left, and until when. Nothing that an account stores is ever deleted as long as its owner was not told.

With --run, run COMMAND for each of them, a path to a program and not a line for a shell, with a JSON object on its standard
input: id, name, account, step, words, since, days_left, end, balance, currency. If it exits with 0 within a minute, the
owner counts as told. If not, that is said, the others still are told, and the next run tries again. A warning that is
told twice, because something failed after that, has the same id. The service must be running.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			if run == "" {
				return listWarnings(c.Context(), c.OutOrStdout(), dir, asJSON)
			}
			if asJSON {
				return usageError{fmt.Errorf("--json and --run exclude one another; see %s --help", c.CommandPath())}
			}
			program, err := filepath.Abs(run)
			if err == nil {
				program, err = exec.LookPath(program)
			}
			if err != nil {
				return usageError{fmt.Errorf("--run %s: %w; it takes the path of a program", run, err)}
			}
			return tellAll(c.Context(), c.OutOrStdout(), dir, program)
		},
	}
	dataFlag(c, &dir)
	c.Flags().StringVar(&run, "run", "", "tell them by this `COMMAND`")
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

// untold says how many owners were not told, as far as they are counted.
func untold(n int) string {
	switch {
	case n == 1:
		return "1 owner was"
	case n >= admin.MaxWarnings:
		return fmt.Sprintf("%d owners or more were", n)
	}
	return fmt.Sprintf("%d owners were", n)
}

// eachWarning calls fn for every warning that was not told; tell says that fn tells it.
func eachWarning(ctx context.Context, dir string, tell bool, fn func(admin.Warning) error) error {
	for after := ""; ; {
		page, err := admin.GetWarnings(ctx, dir, after, tell)
		if err != nil {
			return err
		}
		for _, w := range page {
			if err := fn(w); err != nil {
				return err
			}
			after = w.Name
		}
		if len(page) < admin.MaxWarnings {
			return nil
		}
	}
}

func listWarnings(ctx context.Context, out io.Writer, dir string, asJSON bool) error {
	all := []admin.Warning{}
	err := eachWarning(ctx, dir, false, func(w admin.Warning) (err error) {
		if asJSON {
			all = append(all, w)
			return nil
		}
		until := ""
		if w.Step < ledger.Lapsed {
			until = fmt.Sprintf("; %s left, until %s", days(w.Left), w.End.Format(time.DateOnly))
		}
		_, err = fmt.Fprintf(out, "%s: %s%s\n", w.Name, w.Words, until)
		return err
	})
	if err == nil && asJSON {
		err = printJSON(out, all)
	}
	return err
}

// tellAll tells all who were not told, each by a run of the program, and notes which of them were.
func tellAll(ctx context.Context, out io.Writer, dir, program string) error {
	failed, all := 0, 0
	err := eachWarning(ctx, dir, true, func(w admin.Warning) error {
		all++
		if err := tell(ctx, tellPatience, program, w); err != nil {
			if ctx.Err() != nil {
				return errors.New("told to end; who was not told yet is told by the next run")
			}
			failed++
			fmt.Fprintf(os.Stderr, "holdfastd: %s was not told: %v\n", w.Name, err)
			return nil
		}
		// Whoever ends this now ends it after the note, so that nobody is told twice for that.
		moved, err := admin.Told(context.WithoutCancel(ctx), dir, w)
		if err != nil {
			return fmt.Errorf("%s was told, and that could not be noted, so that the next run does it again: %w", w.Name, err)
		}
		what := "told: " + w.Words
		if moved {
			what += "; by now it stands elsewhere, which is told next"
		}
		_, err = fmt.Fprintf(out, "%s: %s\n", w.Name, what)
		return err
	})
	if err == nil && failed > 0 {
		err = fmt.Errorf("not told: %d of %d; nothing of theirs is deleted meanwhile, and the next run tries again", failed, all)
	}
	return err
}

// tell runs a program that tells an owner.
func tell(ctx context.Context, patience time.Duration, program string, w admin.Warning) error {
	q, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("encode warning: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(limited, program)
	cmd.Stdin = bytes.NewReader(append(q, '\n'))
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr // standard output says who was told
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = tellWait
	err = cmd.Run()
	if limited.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%s did not end within %s", program, patience)
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", program, err)
	}
	return nil
}
