package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"holdfast/service/admin"
	"holdfast/service/billing"
	"holdfast/service/config"
	"holdfast/service/jobs"
	"holdfast/service/journal"
	"holdfast/service/notice"
	"holdfast/service/policy"
	"holdfast/service/quiet"
	"holdfast/service/reclaim"
	"holdfast/service/requests"
	"holdfast/service/serve"
	"holdfast/service/systemd"
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
	var takeover, single, readOnly bool
	c := &cobra.Command{
		Use:   "serve --data DIR",
		Short: "Recover, then serve until told to end",
		Long: `Recover what the bucket holds, then serve until told to end.

An event that must never happen ends the process with status 5, and serve does not start again before somebody has
looked: holdfastd why says what happened, holdfastd resume lets it start. A process that finds that another host owns the
service's data ends with 6, and takes nothing back by itself.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			return runServe(c.Context(), dir, listen, takeover, single, readOnly)
		},
	}
	dataFlag(c, &dir)
	c.Flags().StringVar(&listen, "listen", "", "listen on this `HOST:PORT` instead of the service's address")
	c.Flags().BoolVar(&takeover, "takeover", false, "take the data over from another host, which must be gone for good")
	singleFlag(c, &single)
	c.Flags().BoolVar(&readOnly, "read-only", false, "give back what is there and take nothing new: no backup, deletion, policy or account")
	return c
}

// runServe is the life of the service: lock, recover, listen, serve, drain.
func runServe(ctx context.Context, dir, listen string, takeover, single, readOnly bool) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemory)
	}
	log := quiet.New(os.Stderr, slog.LevelInfo)
	d, err := openData(dir)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.stops.Clear(); err != nil {
		return err
	}
	d.single = single
	set, err := config.Load(filepath.Join(dir, config.FileName))
	if errors.Is(err, config.ErrWrong) {
		return usageError{err}
	}
	if err != nil {
		return err
	}
	if listen == "" {
		listen = d.id.Address
	}
	// Before the claim: a service that cannot listen must not take the cell from one that does.
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen on %s: %w; --listen names another address", listen, err)
	}
	defer l.Close()
	space, err := d.roomWatch(log)
	if err != nil {
		return err
	}
	d.history = requests.Open(filepath.Join(dir, requests.FileName), log)
	defer d.history.Close()
	cfg := d.config(log)
	cfg.Takeover = takeover
	sd := systemd.New(log)
	var said time.Time
	cfg.Progress = func(done, all int) {
		if time.Since(said) >= time.Second {
			said = time.Now()
			sd.Starting(fmt.Sprintf("replaying the journal: segment %d of %d", done, all))
		}
	}
	j, err := journal.Open(ctx, cfg)
	if err != nil && ctx.Err() != nil {
		return errors.New("told to end before it was ready to serve; nothing is lost")
	}
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	var srv *serve.Server // each asks the other, and not before both are there
	money := billing.New(billing.Config{
		Ledger: j, Prices: set.Money.Prices(), Currency: set.Money.Currency, Grace: set.Money.Grace.Duration, Log: log,
		Settle: func(ctx context.Context) { srv.Settle(ctx) },
	})
	srv = serve.New(serve.Config{Journal: j, Identity: d.id, Log: log, Notice: notice.NewBoard(dir, log).Text, Billing: money, ReadOnly: closed(readOnly, space)})
	var background *jobs.Runner
	var freeing reclaim.Config
	if !readOnly {
		background, freeing = d.jobs(set, j, srv, space, log)
	}
	// Before the line that says ready: whoever waits for it may ask at once.
	socket, err := admin.Listen(dir)
	if err != nil {
		return errors.Join(err, j.Close(context.WithoutCancel(ctx)))
	}
	adminCtx, endAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer endAdmin()
	asked := ctx
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	adminDone := make(chan struct{})
	go func() {
		defer close(adminDone)
		operator := &admin.Server{Journal: j, Identity: d.id, Service: srv, Requests: d.history, Room: space, Jobs: background, Reclaim: freeing, Money: money}
		if err := operator.Serve(adminCtx, socket); err != nil {
			fail(err)
		}
	}()
	policies, endPolicies := context.WithCancel(ctx)
	defer endPolicies()
	policiesDone := make(chan struct{})
	go func() {
		defer close(policiesDone)
		if !readOnly {
			policy.Loop(policies, j, d.id.LogKey(), billing.Arrears, money.Moved(), log)
		}
	}()
	chargingDone := make(chan struct{})
	go func() {
		defer close(chargingDone)
		if !readOnly {
			money.Loop(ctx)
		}
	}()
	jobsDone := make(chan struct{})
	go func() {
		defer close(jobsDone)
		if background != nil {
			background.Loop(ctx)
		}
	}()
	roomDone := make(chan struct{})
	go func() {
		defer close(roomDone)
		space.Run(ctx)
	}()
	fmt.Fprintf(os.Stderr, "holdfastd: ready, serving %s\n", l.Addr())
	heard := make(chan struct{})
	unheard := context.AfterFunc(asked, func() {
		defer close(heard)
		fmt.Fprintln(os.Stderr, "holdfastd: told to end: answering what is under way and storing the rest, for less than a minute; a second signal ends it at once")
	})
	accompanied := make(chan struct{})
	go func() {
		defer close(accompanied)
		accompany(ctx, sd, srv, j, l.Addr())
	}()
	err = srv.Serve(ctx, l)
	if !unheard() {
		<-heard
	}
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	fail(nil)
	<-accompanied
	<-roomDone
	<-jobsDone
	endPolicies()
	<-policiesDone
	<-chargingDone
	endAdmin()
	<-adminDone
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
	defer cancel()
	_, cause := j.Trouble() // a closed journal may have none any more
	if cerr := j.Close(closing); err == nil && cerr != nil {
		if _, now := j.Trouble(); now != nil {
			cause = now
		}
		if cause != nil && errors.Is(cerr, context.DeadlineExceeded) {
			cerr = fmt.Errorf("the bucket did not take the rest within %s: %v", closePatience, cause)
		}
		blocks, bytes := j.Unstored()
		err = fmt.Errorf("close journal: %w; %d blocks, %d bytes, and the records with them are not stored, and nobody was told that they are: clients send them again", cerr, blocks, bytes)
	}
	log.Info("ended", "position", j.Position())
	return err
}

// accompany tells systemd how the service is, from when it is ready until it ends, and feeds its watchdog.
func accompany(ctx context.Context, sd *systemd.Notifier, srv *serve.Server, j *journal.Journal, at net.Addr) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-j.Stopped():
			end()
		case <-ctx.Done():
		}
	}()
	state := func() string { return fmt.Sprintf("%s at %s", srv.State(), at) }
	sd.Ready(state())
	sd.Watch(ctx, func(ctx context.Context) error { return srv.Alive(ctx, at) }, state)
	<-ended
	why := "told to end"
	if err := j.Err(); err != nil {
		why = err.Error()
	}
	sd.Stopping("ending: " + why)
}
