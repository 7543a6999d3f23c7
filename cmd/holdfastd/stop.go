package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/durable"
	"holdfast/internal/never"
	"holdfast/service/admin"
	"holdfast/service/bucket/open"
	"holdfast/service/config"
	"holdfast/service/identity"
	"holdfast/service/jobs"
	"holdfast/service/notice"
	"holdfast/service/requests"
	"holdfast/service/room"
	"holdfast/service/scrub"
)

// account of a stop: what why prints.
type reasons struct {
	// Stopped is the stop that stands; nil if the service may start.
	Stopped *never.Stop `json:"stopped"`
	// Disk is how full the disk of the data directory is; empty if it cannot be asked.
	Disk []room.Fill `json:"disk"`
	// Deletable are files whose removal makes room, in the order in which to try.
	Deletable []deletable `json:"deletable"`
	// Earlier are stops after which the service was resumed, oldest first; with --all.
	Earlier []never.Stop `json:"earlier,omitempty"`
}

// keep begins the Cost of what had better stay.
const keep = "do NOT delete it now: "

// deletable is a file or directory that an operator can do without.
type deletable struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"` // on the disk
	Cost  string `json:"cost"`  // of removing it
}

func whyCommand() *cobra.Command {
	var dir string
	var asJSON, all bool
	c := &cobra.Command{
		Use:   "why --data DIR",
		Short: "Say why the service has stopped, and what makes room",
		Long: `Say which event that must never happen has stopped the service: what happened, where, what should have been true,
and what to do; and which files can be deleted if the disk is full, in which order. It reads the record in the data
directory, changes nothing, and needs neither the bucket nor room on the disk.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			r, err := why(c.Context(), dir, all)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), r)
			}
			return r.print(c.OutOrStdout(), dir)
		},
	}
	dataFlag(c, &dir)
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	c.Flags().BoolVar(&all, "all", false, "also the stops after which the service was resumed")
	return c
}

func why(ctx context.Context, dir string, all bool) (reasons, error) {
	r := reasons{Disk: []room.Fill{}, Deletable: []deletable{}}
	if _, err := os.Stat(dir); err != nil {
		return r, fmt.Errorf("look at data directory: %w", err)
	}
	stops, err := never.Read(dir)
	if err != nil {
		return r, err
	}
	if n := len(stops); n > 0 && stops[n-1].Resumed == nil {
		r.Stopped, stops = &stops[n-1], stops[:n-1]
	}
	if all {
		r.Earlier = stops
	}
	if fills, err := (room.Disk{What: "disk of the data directory", Path: dir}).Fills(); err == nil {
		r.Disk = fills
	}
	r.add(dir, deletable{room.BallastName, 0, "nothing: it is there to be deleted, and is made again when there is room"})
	history, shadow, view := "what holdfastd requests says of the time until now", "nothing: the second view is begun anew", ""
	if inUse(dir) {
		history = keep + "the service is running"
		shadow, view = history, history
	} else {
		view = costOfView(ctx, dir)
	}
	r.add(dir, deletable{scrub.DirName, 0, shadow})
	r.add(dir, deletable{requests.FileName, 0, history})
	r.add(dir, deletable{viewDir, 0, view})
	return r, r.strangers(dir)
}

// inUse reports whether a process has the lock on dir.
func inUse(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// add adds d, whose path is below dir, if it is there.
func (r *reasons) add(dir string, d deletable) {
	d.Path = filepath.Join(dir, d.Path)
	if n, err := onDisk(d.Path); err == nil && n > 0 {
		d.Bytes = n
		r.Deletable = append(r.Deletable, d)
	}
}

// strangers adds what is in dir and not the service's.
func (r *reasons) strangers(dir string) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look at data directory: %w", err)
	}
	ours := map[string]bool{
		identity.FileName: true, requests.FileName: true, never.FileName: true, room.BallastName: true, notice.FileName: true, admin.SocketName: true,
		room.HistoryName: true, jobs.FileName: true, config.FileName: true, hostFile: true, lockFile: true, viewDir: true, scrub.DirName: true,
	}
	const most = 20
	for _, e := range es {
		if ours[e.Name()] || len(r.Deletable) == most {
			continue
		}
		cost := "unknown: it is not the service's; ask who put it there"
		switch {
		case strings.HasPrefix(e.Name(), durable.TempPrefix):
			cost = "nothing: a crash left it behind"
		case e.Name() == requests.FileName+requests.DamagedSuffix:
			cost = "nothing: it was damaged and put aside"
		}
		r.add(dir, deletable{e.Name(), 0, cost})
	}
	return nil
}

// costOfView says what it costs to remove the view, which depends on whether the bucket can be read now.
func costOfView(ctx context.Context, dir string) string {
	const patience = 10 * time.Second
	no := func(err error) string {
		return fmt.Sprintf(keep+"it would be made anew from the bucket, which cannot be read (%v)", err)
	}
	id, err := identity.Load(filepath.Join(dir, identity.FileName))
	if err != nil {
		return no(err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	b, err := open.Bucket(id.Bucket)
	if err != nil {
		return no(err)
	}
	if _, err := b.List(ctx, id.Cell.String()+"/", "", 1); err != nil {
		return no(err)
	}
	return "time: the next start makes it anew from the bucket, reading the end of each of its objects"
}

// onDisk returns how many bytes of the disk path takes, with all that is below it.
func onDisk(path string) (n int64, err error) {
	err = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() {
			n += taken(info)
		}
		return err
	})
	return n, err
}

func (r reasons) print(out io.Writer, dir string) error {
	var b strings.Builder
	for _, s := range r.Earlier {
		fmt.Fprintf(&b, "%s  %s  %s: %s\n  resumed %s by %s: %s\n", s.ID, s.Time.Format(time.RFC3339), s.Where, s.What,
			s.Resumed.Time.Format(time.RFC3339), s.Resumed.By, s.Resumed.Reason)
	}
	if len(r.Earlier) > 0 {
		b.WriteByte('\n')
	}
	if r.Stopped == nil {
		fmt.Fprintf(&b, "No stop stands in %s: nothing keeps the service from starting.\n", dir)
	} else {
		b.WriteString(never.Text(*r.Stopped, dir))
	}
	b.WriteByte('\n')
	for _, f := range r.Disk {
		fmt.Fprintf(&b, "%s%s\n", strings.ToUpper(f.String()[:1]), f.String()[1:])
	}
	if len(r.Deletable) > 0 {
		b.WriteString("What makes room there, in the order in which to try:\n\n")
		for _, d := range r.Deletable {
			cost := "costs " + d.Cost
			if strings.HasPrefix(d.Cost, keep) {
				cost = d.Cost
			}
			fmt.Fprintf(&b, "%14d bytes  %s\n                      %s\n", d.Bytes, d.Path, cost)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func resumeCommand() *cobra.Command {
	var dir, id, reason string
	c := &cobra.Command{
		Use:   "resume --data DIR --id ID --reason TEXT",
		Short: "Let the service start again after an event that must never happen",
		Long: `Let the service start again after an event that must never happen has stopped it. Read holdfastd why first: the stop's
id is there. Who resumed, when and why is recorded beside the stop. If the cause is still there, the next start stops again.
On a terminal, an id or a reason that is missing is asked for.`,
		Args: exactly(0),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := required(c, "data"); err != nil {
				return err
			}
			in := bufio.NewReader(c.InOrStdin())
			for _, q := range []struct {
				flag, question string
				to             *string
			}{{"id", "Id of the stop, from holdfastd why: ", &id}, {"reason", "What was wrong, and why it is not any more: ", &reason}} {
				if *q.to == "" && terminal(c.InOrStdin()) {
					fmt.Fprint(c.ErrOrStderr(), q.question)
					line, err := in.ReadString('\n')
					if err != nil {
						return fmt.Errorf("read the answer: %w", err)
					}
					*q.to = strings.TrimSpace(line)
				}
				if err := required(c, q.flag); err != nil && *q.to == "" {
					return err
				}
			}
			l, err := lock(dir)
			if err != nil {
				return err
			}
			defer l.Close()
			s, err := never.Resume(dir, id, operator(), reason)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "resumed  stop %s of %s, by %s: %s\nStart the service now, with holdfastd serve or systemctl start holdfastd.\n",
				s.ID, s.Time.Format(time.RFC3339), s.Resumed.By, s.Resumed.Reason)
			return err
		},
	}
	dataFlag(c, &dir)
	c.Flags().StringVar(&id, "id", "", "`ID` of the stop, as holdfastd why says it")
	c.Flags().StringVar(&reason, "reason", "", "`TEXT`: what was wrong, and why it is not any more; it is recorded")
	return c
}

// terminal reports whether somebody types what comes from in.
func terminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull) // which standard input is where nobody sits; its name does not say so
	return err == nil && !os.SameFile(st, null)
}

// taken returns how many bytes of the disk a file takes.
func taken(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}
