package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"holdfast/internal/durable"
	"holdfast/internal/never"
	"holdfast/service/bucket"
	"holdfast/service/bucket/open"
	"holdfast/service/bucket/steady"
	"holdfast/service/identity"
	"holdfast/service/journal"
	"holdfast/service/quiet"
	"holdfast/service/requests"
)

// The files of a data directory, beside those that have a FileName or DirName in the packages that keep them: all are in reasons.strangers.
const (
	hostFile = "host" // 32 hex digits: which data directory may claim the cell again by itself
	lockFile = "lock" // locked while a process uses the directory
	viewDir  = "view" // derived from the bucket
)

// data is an open data directory.
type data struct {
	dir    string
	id     *identity.Identity
	host   [16]byte
	bucket bucket.Bucket
	// history counts the requests to the bucket; nil counts them in memory.
	history *requests.History
	stops   *never.Recorder
	// single is --single-owner.
	single bool
	lock   *os.File
}

// openData locks a data directory and reads what is in it. Two processes never share one.
func openData(dir string) (*data, error) {
	id, err := identity.Load(filepath.Join(dir, identity.FileName))
	if err != nil {
		return nil, notThere(err, dir)
	}
	d := &data{dir: dir, id: id}
	if d.host, err = readHost(dir); err != nil {
		return nil, err
	}
	if d.lock, err = lock(dir); err != nil {
		return nil, err
	}
	if d.stops, err = never.Install(dir); err == nil {
		d.bucket, err = open.Bucket(id.Bucket)
	}
	if err != nil {
		d.lock.Close()
		return nil, err
	}
	return d, nil
}

func (d *data) close() { d.lock.Close() }

// config returns the journal's configuration.
func (d *data) config(log *slog.Logger) journal.Config {
	return journal.Config{
		Bucket: steady.New(d.bucket, steady.Config{History: d.history, Log: log}),
		Cell:   d.id.Cell,
		Host:   d.host,
		Dir:    filepath.Join(d.dir, viewDir),
		LogKey: d.id.LogKey(),
		Probe:  true,
		Log:    log,

		SingleOwner: d.single,
	}
}

// lock takes the lock on a data directory; it is free again when the file is closed or the process ends.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("another holdfastd uses %s; stop it first", dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// createData makes dir a data directory of id and begins the journal in its bucket, once and for all: a
// service that later finds no journal there knows that something is wrong. The identity file comes last:
// without it dir holds no service, and the command can be repeated; the cell that was begun is then nobody's.
func createData(ctx context.Context, dir string, id *identity.Identity, b bucket.Bucket, single bool) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	host, err := createHost(dir)
	if err != nil {
		return err
	}
	if _, err := never.Install(dir); err != nil {
		return err
	}
	d := &data{dir: dir, id: id, host: host, bucket: b, single: single}
	cfg := d.config(quiet.New(os.Stderr, slog.LevelWarn))
	cfg.Create = true
	if err := os.RemoveAll(cfg.Dir); err != nil { // of an attempt that failed
		return fmt.Errorf("remove the view of an earlier attempt: %w", err)
	}
	j, err := journal.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("begin the journal: %w", err)
	}
	if err := j.Close(ctx); err != nil {
		return fmt.Errorf("begin the journal: %w", err)
	}
	return id.Create(filepath.Join(dir, identity.FileName))
}

// createHost gives dir a host of its own.
func createHost(dir string) (host [16]byte, err error) {
	rand.Read(host[:])
	return host, durable.WriteFile(filepath.Join(dir, hostFile), fmt.Appendf(nil, "%x\n", host), 0o600)
}

// vacant refuses a directory that holds a service.
func vacant(dir string) error {
	_, err := os.Lstat(filepath.Join(dir, identity.FileName))
	switch {
	case err == nil:
		return fmt.Errorf("%s holds a service already; choose another directory", dir)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("look at data directory: %w", err)
}

func readHost(dir string) (host [16]byte, err error) {
	text, err := os.ReadFile(filepath.Join(dir, hostFile))
	if err != nil {
		return host, fmt.Errorf("read host file: %w", err)
	}
	b, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(b) != len(host) {
		return host, fmt.Errorf("%s is damaged; remove %s and run holdfastd recover on a new directory", filepath.Join(dir, hostFile), dir)
	}
	copy(host[:], b)
	return host, nil
}

// singleFlag adds --single-owner to the flags of a command that claims the cell.
func singleFlag(c *cobra.Command, single *bool) {
	c.Flags().BoolVar(single, "single-owner", false, "use a store without conditional writes all the same: no other process claims this cell")
}

// dataFlag adds --data to a command's flags.
func dataFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "data", "", "`DIR` that holds the data of the service")
}
