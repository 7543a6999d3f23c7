package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"holdfast/internal/never"
	"holdfast/service/bucket"
	"holdfast/service/jobs"
	"holdfast/service/requests"
	"holdfast/service/room"
	"holdfast/service/serve"
	"holdfast/service/view"
)

// bucketDisk is what the disk of a bucket in a directory is called.
const bucketDisk = "disk of the bucket"

// dataDisk is what the disk of the data directory is called.
const dataDisk = "disk of the data directory"

// roomWatch checks that what the service must have on the disk of the data directory fits there, makes the ballast, and
// returns what watches that disk and the bucket's.
func (d *data) roomWatch(log *slog.Logger) (*room.Watch, error) {
	disks := []room.Disk{{What: "disk of the data directory", Path: d.dir, Reserve: view.Reserve}}
	if on, ok := d.bucket.(bucket.OnDisk); ok {
		disks = append(disks, room.Disk{What: bucketDisk, Path: on.Disk()})
	}
	ballast, err := room.BallastSize(d.dir)
	if err != nil {
		// What cannot be measured is no reason to be down.
		log.Warn("how much room there is cannot be found out", "error", err)
		return watch(log, d.dir, disks), nil
	}
	var have int64
	parts := []room.Part{
		{What: "the record of stops", Size: never.FileSize}, {What: "the history of requests", Size: requests.FileSize},
		{What: "the ballast", Size: ballast}, {What: "the view, at least", Size: view.Reserve},
		{What: "how full the disks were", Size: room.HistorySize}, {What: "what is remembered of jobs", Size: jobs.FileSize},
	}
	for i, name := range []string{never.FileName, requests.FileName, room.BallastName, viewDir, room.HistoryName, jobs.FileName} {
		n, err := onDisk(filepath.Join(d.dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look at data directory: %w", err)
		}
		have += min(n, parts[i].Size)
	}
	warning, err := room.Fits(d.dir, have, parts...)
	if err != nil {
		return nil, err
	}
	if warning != "" {
		log.Warn(warning)
	}
	if _, err := room.MakeBallast(d.dir); err != nil {
		log.Warn("there is no ballast in the data directory", "error", err)
	}
	return watch(log, d.dir, disks), nil
}

// watch returns what watches disks and remembers in dir how full they were.
func watch(log *slog.Logger, dir string, disks []room.Disk) *room.Watch {
	w := room.New(log, disks...)
	w.Remember(dir)
	return w
}

// closed says what the service takes no more: nothing at all if it is told to be read-only, and otherwise what there is
// no room for.
func closed(readOnly bool, w *room.Watch) func() serve.Closed {
	if readOnly {
		c := serve.Closed{Records: true, Why: "The service is read-only at its operator's wish and takes nothing new; restores work."}
		return func() serve.Closed { return c }
	}
	return func() serve.Closed {
		level, since, _ := w.State()
		if level < room.Refuse {
			return serve.Closed{}
		}
		return serve.Closed{Sessions: true, Blocks: level >= room.Cut, Why: fmt.Sprintf(
			"The service has been short of room since %s and takes no new data until its operator has made some; restores and deletions work.",
			since.UTC().Format(time.RFC3339))}
	}
}
