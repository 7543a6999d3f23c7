package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"holdfast/internal/never"
	"holdfast/internal/s3server"
	"holdfast/service/admin"
	"holdfast/service/journal"
	"holdfast/service/move"
	"holdfast/service/view"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"holdfastd": main, "happen": happen, "fault": fault})
}

// happen is a process that an event stops that must never happen, in the data directory that it is given.
func happen() {
	if _, err := never.Install(os.Args[1]); err != nil {
		panic(err)
	}
	never.Happened(never.Event{What: "the count of block 00ff is -1", Where: "the view", Invariant: "A count is never below zero.", Todo: "Look."})
}

// fault is a process in which something panics.
func fault() {
	faultsBySignal()
	panic("a fault in the program")
}

// TestExitCodes: systemd, and whoever else starts the service again, goes by them.
func TestExitCodes(t *testing.T) {
	for err, want := range map[error]int{
		errors.New("x"): 1,
		fmt.Errorf("x: %w", usageError{errors.New("y")}):          2,
		fmt.Errorf("x: %w", journal.ErrDamaged):                   4,
		fmt.Errorf("x: %w", journal.ErrContradiction):             4,
		fmt.Errorf("x: %w", view.ErrDamaged):                      4,
		fmt.Errorf("x: %w", journal.ErrUnavailable):               1,
		fmt.Errorf("x: %w", never.ErrStands):                      5,
		fmt.Errorf("x: %w", journal.ErrOwned):                     6,
		fmt.Errorf("x: %w", move.ErrForeign):                      6,
		fmt.Errorf("x: %w", move.ErrForked):                       4,
		fmt.Errorf("%w: %w", journal.ErrStopped, journal.ErrLost): 6,
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}

// TestScripts runs what is in testdata/script against the real command, files and sockets. Beside the
// usual commands there are:
//
//	ready DIR           wait until the service on DIR is serving
//	keep NAME REGEXP    keep the first group of what stdout last matched as $NAME
//	cmpjournal A B      compare two hledger journals, whose dates may differ
//	store [LACK]        start a store that speaks S3's protocol and lacks that; $BUCKET is its address
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			e.Setenv("ADDRESS", l.Addr().String())
			e.Setenv("AWS_ACCESS_KEY_ID", "AKIASCRIPT")
			e.Setenv("AWS_SECRET_ACCESS_KEY", "scriptsecret")
			return l.Close()
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"ready": func(ts *testscript.TestScript, _ bool, args []string) {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				defer cancel()
				for {
					if _, err := admin.GetStatus(ctx, ts.MkAbs(args[0]), false); err == nil {
						return
					}
					select {
					case <-ctx.Done():
						ts.Fatalf("the service on %s is not ready", args[0])
					case <-time.After(20 * time.Millisecond):
					}
				}
			},
			"store": func(ts *testscript.TestScript, _ bool, args []string) {
				srv := httptest.NewServer(&s3server.Fake{Lacks: s3server.Lack(strings.Join(args, " "))})
				ts.Defer(srv.Close)
				ts.Setenv("BUCKET", s3server.FakeURL(srv.URL))
			},
			"cmpjournal": func(ts *testscript.TestScript, _ bool, args []string) {
				dates := regexp.MustCompile(`(?m)^(\d{4}-\d\d-\d\d|DATE) `)
				got, want := dates.ReplaceAllString(ts.ReadFile(args[0]), "DATE "), dates.ReplaceAllString(ts.ReadFile(args[1]), "DATE ")
				if got != want {
					ts.Fatalf("%s is\n%s\nand not\n%s", args[0], got, want)
				}
			},
			"keep": func(ts *testscript.TestScript, _ bool, args []string) {
				m := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
				if m == nil {
					ts.Fatalf("%q does not match", args[1])
				}
				ts.Setenv(args[0], m[1])
			},
		},
	})
}

// TestHelp: every command says what it is for, in lines that fit a terminal.
func TestHelp(t *testing.T) {
	for _, c := range command().Commands() {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: %q", c.Name(), c.Short)
		}
		for line := range strings.Lines(c.Long) {
			if len(line) > 132 {
				t.Errorf("%s: a line of %d characters: %s", c.Name(), len(line), line)
			}
		}
	}
}

// TestUsageCodes: what is wrong with the command line, and only that, makes the exit code 2.
func TestUsageCodes(t *testing.T) {
	dir := t.TempDir()
	for line, want := range map[string]int{
		"frob":                      exitUsage,
		"account frob":              exitUsage,
		"serve --frob":              exitUsage,
		"serve":                     exitUsage,
		"serve x --data " + dir:     exitUsage,
		"account add --data " + dir: exitUsage,
		"init --data " + dir + " --bucket relative --address a:1":                exitUsage,
		"init --data " + dir + " --bucket file://" + dir + "/b --address a":      exitUsage,
		"init --data " + dir + " --bucket file://" + dir + "/b --address a:port": exitUsage,
		"account pay anna 1 --data " + dir:                                       exitUsage,
		"account pay anna 1,5 --id i --data " + dir:                              exitUsage,
		"account pay anna -1 --id i --data " + dir:                               exitUsage,
		"account refund anna 0 --id i --data " + dir:                             exitUsage,
		"account warnings --run x --json --data " + dir:                          exitUsage,
		"credit --incident i --hours 1 --data " + dir:                            exitUsage,
		"credit --incident i --hours 0 --now --data " + dir:                      exitUsage,
		"ledger x --data " + dir:                                                 exitUsage,
		"account pay anna 1 --id i --data " + dir:                                exitFailed,
		"serve --data " + dir:                                                    exitFailed,
	} {
		c := command()
		c.SetArgs(strings.Fields(line))
		if err := c.Execute(); err == nil || exitCode(err) != want {
			t.Errorf("%s: %v, exit code %d, want %d", line, err, exitCode(err), want)
		}
	}
}

// TestLock: one process at a time uses a data directory.
func TestLock(t *testing.T) {
	dir := t.TempDir()
	l, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("a second lock: %v", err)
	}
	l.Close()
	if l, err = lock(dir); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Stat(filepath.Join(dir, lockFile)); err != nil {
		t.Error(err)
	}
}
