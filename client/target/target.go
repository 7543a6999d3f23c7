// Package target writes a restored tree.
//
// Restoring is hostile work. The archive may be the work of somebody who wants files outside the target, and others
// may alter the target while it is written. Therefore:
//
//   - A path is walked component by component, by descriptor and without following links; ".." and the like are
//     refused. Nothing is ever written through a symbolic link that lies in the target.
//   - Whatever is made is made under a fresh name in a private staging directory inside the target, given all its
//     attributes there, and then renamed to its place. Nobody else can reach it before, and no file is ever half
//     there under its own name.
//   - A hard link is first made in the staging directory and looked at there: it stays only if it leads to
//     something that this run wrote.
//   - Set-id bits, devices, and security.* and trusted.* attributes need Options.Privileged.
//   - Directories are made private and get their attributes last, deepest first, by FinishDirs.
//
// Owners are restored by number, and only by root. What cannot be restored is counted, and Warnings says it.
//
// The staging directory's presence marks an interrupted restore: a target that has one may be opened again, and
// continues. A lock on it keeps two restores out of one target.
//
// Durability: syncing each of many small files would turn seconds into minutes, and a restore that was cut off by a
// power loss is repeated anyway. FinishDirs writes everything out at once (syncfs on Linux, sync elsewhere), after
// which the restore is durable; until then the staging directory says that it is not.
package target

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"holdfast/client/archive"
)

// ErrNotEmpty reports a target directory that holds something already.
var ErrNotEmpty = errors.New("it is not empty: name a new directory")

// ErrBusy reports a target directory that another process restores into.
var ErrBusy = errors.New("another restore into it is running")

// ErrUnsafe reports an entry that would reach outside the target, or that met something there that was not its own.
var ErrUnsafe = errors.New("refused for safety")

// ErrSameName reports two paths of an archive of which the target's file system makes one.
var ErrSameName = errors.New("the file system takes its name for that of another path that was restored: restore into one that tells them apart")

// Options say how to restore.
type Options struct {
	Privileged bool // also restore set-id bits, devices, security.* and trusted.* attributes
	Overwrite  bool // use a directory that is not empty; what stands in it under an entry's name is replaced
}

// Warning is something of the archive that the target could not take, reported once for all paths.
type Warning struct {
	What  string // for people, what was not restored and why
	Count uint64 // paths concerned
	First string // the first of them, with the error if there was one
}

// The things that a target may not be able to take.
const (
	warnOwner      = "owners were not restored: only root can give files to others"
	warnSetID      = "set-id bits were not restored: --privileged restores them"
	warnDevice     = "devices were not made: --privileged makes them"
	warnDeviceFail = "devices or other special files could not be made"
	warnPrivileged = "security and trusted attributes were not restored: --privileged restores them"
	warnXattr      = "attributes or ACLs were not taken by the file system"
	warnInexact    = "modes, owners or times were not taken exactly by the file system"
	warnSystem     = "things that this system does not have were left out"
)

// warnings collects warnings from all goroutines.
type warnings struct {
	mu  sync.Mutex
	all map[string]*Warning
}

func (w *warnings) add(what, path string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.all[what]
	if x == nil {
		if w.all == nil {
			w.all = map[string]*Warning{}
		}
		x = &Warning{What: what, First: fmt.Sprintf("%q", path)}
		if err != nil {
			x.First += ": " + err.Error()
		}
		w.all[what] = x
	}
	x.Count++
}

func (w *warnings) list() []Warning {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Warning
	for _, x := range w.all {
		out = append(out, *x)
	}
	slices.SortFunc(out, func(a, b Warning) int { return strings.Compare(a.What, b.What) })
	return out
}

// checkPath refuses whatever is not a plain way down. The archive's decoder does the same; this is where it counts.
func checkPath(p string) error {
	if p == "" || strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("path %.200q: %w", p, ErrUnsafe)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("path %.200q: %w", p, ErrUnsafe)
		}
	}
	return checkSystemPath(p)
}

// check refuses an entry that could do harm or has no meaning.
func check(e *archive.Entry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	// Some values of nanoseconds mean "now" or "leave it" to the system.
	if e.Mode > 0o7777 || e.Mtime.Nsec >= 1e9 || e.Size > 1<<63-1 {
		return fmt.Errorf("%q: mode, time or size: %w", e.Path, ErrUnsafe)
	}
	return nil
}

// split cuts a path into its directory ("" for the target itself) and its last component.
func split(p string) (dir, name string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}
