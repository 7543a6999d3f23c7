package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"holdfast"
	"holdfast/service/journal"
	"holdfast/service/view"
	"holdfast/wire"
)

const (
	readGap   = 64 << 10 // between two blocks of one read, bytes: cheaper to read than to ask again
	readSpan  = 4 << 20  // of one read, unless a single block is larger
	readAhead = 4        // reads under way or waiting to be written, of one request
	maxReads  = 64       // of all requests at a time: each takes a connection or an open file
)

// found is a block that a fetch names, and where it is.
type found struct {
	name holdfast.Name
	view.Block
}

// fetch answers the blocks of a group in the order in which they lie in the bucket, then the names of
// which there is none. With ?copy=K it answers the K-th copy of each: 0 is the newest, which everybody wants first; 1 is
// the one that was stored first, and so on.
func (s *Server) fetch(w http.ResponseWriter, r *http.Request, c caller) error {
	var group holdfast.GroupID
	if err := parseHex(group[:], r.PathValue("group"), "group in the path"); err != nil {
		return err
	}
	cut := newCutter(w, r)
	defer cut.end()
	names, release, err := s.names(w, r, c, fetchCost, cut)
	if err != nil {
		return err
	}
	defer release()
	which := uint64(0)
	if q := r.URL.Query(); q.Has("copy") {
		if which, err = strconv.ParseUint(q.Get("copy"), 10, 16); err != nil || which > wire.MaxCopy {
			return refusal(wire.CodeBadRequest, "The copy to fetch is a number from 0 to %d.", wire.MaxCopy)
		}
	}
	slices.SortFunc(names, func(a, b holdfast.Name) int { return slices.Compare(a[:], b[:]) })
	blocks, absent := make([]found, 0, len(names)), []holdfast.Name(nil)
	v := s.j.Acked()
	for i, n := range names {
		if i > 0 && n == names[i-1] {
			return refusal(wire.CodeBadRequest, "The request names block %s twice.", n)
		}
		var b view.Block
		var ok bool
		if which == 0 {
			b, ok, err = v.Block(c.machine.Vault, group, n)
		} else {
			b, ok, err = v.Alternate(c.machine.Vault, group, n, uint32(which-1))
		}
		if err != nil {
			return err
		}
		if ok {
			blocks = append(blocks, found{n, b})
		} else {
			absent = append(absent, n)
		}
	}

	ctx, cancel := context.WithCancel(cut.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var short error // no memory; set before queue is closed
	// Reads get their memory in the order in which they are written out, so the one that is needed next
	// never waits behind one that is needed later.
	queue := make(chan *read, readAhead-2) // one more is being written, and one being queued
	wg.Go(func() {
		defer close(queue)
		for _, run := range plan(blocks) {
			release, err := s.memory(ctx, s.fetches, c.machine.Vault, span(run), cut.cutWriting)
			if err != nil {
				short = err
				return
			}
			rd := &read{run: run, release: release, done: make(chan struct{})}
			wg.Go(func() {
				defer close(rd.done)
				only := make([]view.Block, len(run))
				for i := range run {
					only[i] = run[i].Block
				}
				rd.results = s.read(ctx, only)
			})
			select {
			case queue <- rd:
			case <-ctx.Done():
				<-rd.done
				release()
				return
			}
		}
	})
	w.Header().Set("Content-Type", "application/octet-stream")
	for rd := range queue {
		// The bucket's time is not the client's.
		http.NewResponseController(w).SetWriteDeadline(time.Time{})
		<-rd.done
		if err == nil {
			err = s.mayGoOn(c)
		}
		if err == nil {
			err = s.writeRead(w, c.account, rd, cut)
		}
		if err != nil {
			cancel()
		}
		rd.results = nil
		rd.release()
	}
	if err == nil {
		err = short
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	patient(w, len(absent)*wire.FrameOverhead)
	for _, n := range absent {
		if _, err := w.Write(wire.AppendFrame(nil, wire.Frame{Name: n, Status: wire.FrameAbsent})); err != nil {
			return err
		}
	}
	return nil
}

// read reads blocks when there are not too many reads under way.
func (s *Server) read(ctx context.Context, blocks []view.Block) []journal.Read {
	select {
	case s.reads <- struct{}{}:
		defer func() { <-s.reads }()
		return s.j.ReadBlocks(ctx, blocks)
	case <-ctx.Done():
		out := make([]journal.Read, len(blocks))
		for i := range out {
			out[i].Err = context.Cause(ctx)
		}
		return out
	}
}

// mayGoOn refuses if the caller was revoked since its request began: an answer can be gigabytes, and what is
// not written yet is not for that machine any more.
func (s *Server) mayGoOn(c caller) error {
	m, ok, err := s.j.Acked().MachineByTLS(c.key)
	if err == nil && (!ok || m.Revoked != 0) {
		err = errRevoked
	}
	return err
}

// read is one request to the bucket for blocks that lie near one another.
type read struct {
	run     []found
	release func()
	done    chan struct{} // closed when results is set
	results []journal.Read
}

// writeRead writes what was read to a client of an account.
func (s *Server) writeRead(w http.ResponseWriter, account holdfast.AccountID, rd *read, cut *cutter) error {
	for i, res := range rd.results {
		f := wire.Frame{Name: rd.run[i].name, Sealed: res.Sealed}
		switch {
		case errors.Is(res.Err, journal.ErrDamaged):
			s.log.Error("block is damaged in the bucket", "block", f.Name, "segment", rd.run[i].Pos, "error", res.Err)
			s.j.Suspect(f.Name, rd.run[i].Block)
			f.Status, f.Sealed = wire.FrameDamaged, nil
		case res.Err != nil:
			return fmt.Errorf("%w: %w", errBackend, res.Err)
		}
		if err := cut.unless(func() { patient(w, len(f.Sealed)) }); err != nil {
			return err
		}
		if _, err := w.Write(wire.AppendFrameHeader(nil, f)); err != nil {
			return err
		}
		if _, err := w.Write(f.Sealed); err != nil {
			return err
		}
		s.meter.add(account, tally{sent: uint64(len(f.Sealed))})
	}
	return nil
}

// plan sorts blocks by their place in the bucket and groups them into reads.
func plan(blocks []found) [][]found {
	slices.SortFunc(blocks, func(a, b found) int {
		return cmp.Or(a.Pos.Compare(b.Pos), cmp.Compare(a.Off, b.Off))
	})
	var runs [][]found
	for from := 0; from < len(blocks); {
		to := from + 1
		for to < len(blocks) {
			last, next := blocks[to-1], blocks[to]
			if next.Pos != last.Pos ||
				int64(next.Off) > int64(last.Off)+int64(last.Len)+readGap ||
				int64(next.Off)+int64(next.Len)-int64(blocks[from].Off) > readSpan {
				break
			}
			to++
		}
		runs = append(runs, blocks[from:to])
		from = to
	}
	return runs
}

// span returns how many bytes a read takes, gaps included.
func span(run []found) int64 {
	last := run[len(run)-1]
	return int64(last.Off) + int64(last.Len) - int64(run[0].Off)
}
