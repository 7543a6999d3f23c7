package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/journal"
	"holdfast/service/policy"
	"holdfast/service/serve"
)

const (
	// softMemory is where the garbage collector begins to work harder, bytes. The service stays below
	// 300 MiB resident: its buffers, the view's caches and this are what that is made of.
	softMemory = 220 << 20
	// closePatience is how long the journal may take to make its rest durable at the end.
	closePatience = 30 * time.Second
)

func serveCommand() *cobra.Command {
	var dir, listen string
	var takeover bool
	c := &cobra.Command{
		Use:   "serve --data DIR",
		Short: "Recover, then serve until told to end",
		Args:  exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			return runServe(c.Context(), dir, listen, takeover)
		},
	}
	dataFlag(c, &dir)
	c.Flags().StringVar(&listen, "listen", "", "listen on this `HOST:PORT` instead of the service's address")
	c.Flags().BoolVar(&takeover, "takeover", false, "take the data over from another host, which must be gone for good")
	return c
}

// runServe is the life of the service: lock, recover, listen, serve, drain.
func runServe(ctx context.Context, dir, listen string, takeover bool) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemory)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	d, err := openData(dir)
	if err != nil {
		return err
	}
	defer d.close()
	if listen == "" {
		listen = d.id.Address
	}
	// Before the claim: a service that cannot listen must not take the cell from one that does.
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; --listen names another address", listen, err)
	}
	defer l.Close()
	cfg := d.config(log)
	cfg.Takeover = takeover
	j, err := journal.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	srv := serve.New(serve.Config{Journal: j, Identity: d.id, Log: log})
	// Before the line that says ready: whoever waits for it may ask at once.
	socket, err := admin.Listen(dir)
	if err != nil {
		return errors.Join(err, j.Close(context.WithoutCancel(ctx)))
	}
	adminCtx, endAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer endAdmin()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	adminDone := make(chan struct{})
	go func() {
		defer close(adminDone)
		if err := (&admin.Server{Journal: j, Identity: d.id, Service: srv}).Serve(adminCtx, socket); err != nil {
			fail(err)
		}
	}()
	policies, endPolicies := context.WithCancel(ctx)
	defer endPolicies()
	policiesDone := make(chan struct{})
	go func() {
		defer close(policiesDone)
		policy.Loop(policies, j, d.id.LogKey(), log)
	}()
	fmt.Fprintf(os.Stderr, "holdfastd: ready, serving %s\n", l.Addr())
	err = srv.Serve(ctx, l)
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	endPolicies()
	<-policiesDone
	endAdmin()
	<-adminDone
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
	defer cancel()
	if cerr := j.Close(closing); err == nil && cerr != nil {
		err = fmt.Errorf("close journal: %w", cerr)
	}
	log.Info("ended", "position", j.Position())
	return err
}
