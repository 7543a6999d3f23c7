package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/internal/never"
	"holdfast/service/bucket"
	"holdfast/service/segment"
)

// How a segment is looked for that the bucket said it does not have (JOURNAL 14).
const (
	// lookFor is between two looks, half of it by chance.
	lookFor = time.Minute
	// goneLooks in a row, over goneFor at least, must find that it is missing until that is an event that must never happen.
	goneLooks = 12
	goneFor   = 10 * time.Minute
	// seenLooks in a row must find it whole until deleting thaws.
	seenLooks = 3
	// maxMissing bounds the segments that are looked for. Any more are found when they are read again.
	maxMissing = 64
)

// absence is a segment that the bucket said it does not have.
type absence struct {
	key   segment.Key
	size  int64
	since time.Time // of the first look of those in a row that did not find it
	gone  int       // looks in a row that did not find it
	seen  int       // looks in a row that found it whole
	last  string    // what the newest look said; "" before the first
}

// contradict freezes deleting because the bucket does not have a segment that was acknowledged, and looks for it from
// now on. Reading and writing go on.
func (j *Journal) contradict(k segment.Key, size int64, found string) {
	j.mu.Lock()
	if a := j.missing[k.Position]; a != nil {
		a.seen = 0 // what was seen before is not seen now
	} else if len(j.missing) < maxMissing {
		j.missing[k.Position] = &absence{key: k, size: size}
	}
	j.owe(segment.Frozen{Reason: segment.ReasonContradiction, Place: k.Position, Text: found}, j.cfg.clock())
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// observe looks for what is missing, now and then, for as long as deleting is frozen for it.
func (j *Journal) observe() {
	defer j.work.Done()
	for {
		select {
		case <-time.After(jitter(2 * max(lookFor, j.cfg.Watch))): // the latter where days are simulated
		case <-j.stopped:
			return
		}
		j.examine(j.ctx)
		for _, a := range j.absent() {
			s, why := j.sight(j.ctx, a)
			if j.ctx.Err() != nil {
				return
			}
			if err := j.noted(a.key.Position, s, why); err != nil {
				j.stop(err)
				return
			}
		}
	}
}

// absent returns what is to be looked for. What a person thawed is not, before it is found missing again. The segment
// that the record of the freeze names always is: a start knows of no other, and may find another missing before it looks.
func (j *Journal) absent() (all []absence) {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, owed := j.clocks.owed[segment.ReasonContradiction]
	frozen := owed
	for _, f := range j.freezes() {
		if f.Reason != segment.ReasonContradiction {
			continue
		}
		frozen = true
		if _, ok := j.missing[f.Place]; ok {
			continue
		}
		if s, ok, err := j.Acked().Segment(f.Place); err == nil && ok {
			j.missing[f.Place] = &absence{key: s.Key, size: int64(s.Size)}
		}
	}
	if !frozen {
		clear(j.missing)
	}
	for _, a := range j.missing {
		all = append(all, *a)
	}
	return all
}

// sighting is what one look for a segment found.
type sighting int

const (
	unsure sighting = iota // the store did not say
	gone
	whole
)

// sight looks for a segment once: over fresh connections, by reading its trailer and by listing its landings. It is
// gone if neither shows it while the store shows our claim as it is: one that fails, or is another bucket, says nothing
// about it. It is there when a whole trailer of it was read.
func (j *Journal) sight(ctx context.Context, a absence) (sighting, string) {
	ctx, cancel := context.WithTimeout(bucket.Fresh(ctx), 2*getTimeout)
	defer cancel()
	raw, err := j.cfg.Bucket.Get(ctx, segment.EpochKey(j.cfg.Cell), 0, -1)
	if err == nil && !bytes.Equal(raw, j.mine) {
		err = errors.New("it shows another epoch object than ours")
	}
	if err != nil {
		return unsure, fmt.Sprintf("the store does not answer as it should: %v", err)
	}
	if since, cause := j.Trouble(); !since.IsZero() {
		return unsure, fmt.Sprintf("the store does not answer as it should: %v", cause)
	}
	read := func(k segment.Key, size int64) error {
		raw, err := j.cfg.Bucket.Get(ctx, k.String(), max(0, size-int64(k.Trailer)), int64(k.Trailer))
		if err == nil {
			_, err = k.Parse(raw, size)
		}
		return err
	}
	direct := read(a.key, a.size)
	if direct == nil {
		return whole, "it was read"
	}
	all, err := landingsOf(ctx, j.cfg.Bucket, a.key)
	if err != nil {
		return unsure, fmt.Sprintf("its landings cannot be listed: %v", err)
	}
	for _, f := range all {
		if err := read(f.key, f.size); err == nil {
			return whole, "another landing of it was read"
		}
	}
	if errors.Is(direct, bucket.ErrNotFound) && len(all) == 0 {
		return gone, "it is neither listed nor there to be read"
	}
	return unsure, fmt.Sprintf("%d landings of it are listed, and none can be read: %v", len(all), direct)
}

// noted draws the conclusions from a look. The error says that it is gone for good.
func (j *Journal) noted(pos segment.Position, s sighting, why string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	a, now := j.missing[pos], time.Now()
	if a == nil {
		return nil
	}
	if a.last != why {
		j.log.Warn("looked for a segment that the bucket said it does not have", "segment", pos, "found", why)
	}
	a.last = why
	switch s {
	case unsure: // nothing was learnt; what is in a row stays so
		a.seen = 0
	case whole:
		a.gone = 0
		if a.seen++; a.seen == seenLooks {
			select {
			case j.wake <- struct{}{}:
			default:
			}
		}
	case gone:
		if a.seen = 0; a.gone == 0 {
			a.since = now
		}
		a.gone++
		if a.gone >= goneLooks && now.Sub(a.since) >= goneFor {
			return impossible(never.Event{
				What: fmt.Sprintf("segment %s, which was acknowledged, is missing from the bucket: %d looks since %s found it neither by name nor in a list, while the store answered",
					pos, a.gone, a.since.UTC().Format(time.RFC3339)),
				Where:     "object " + a.key.String(),
				Invariant: "no segment that was acknowledged leaves the bucket (JOURNAL 3, 12)",
				Todo:      "Stop whatever removes objects from the bucket. Bring the object back from the bucket's redundancy (a copy, a version, an undelete), then resume. What else it held is in the trailers; archives that need its blocks cannot be read whole before that.",
			})
		}
	}
	return nil
}

// found reports whether everything that was missing has been seen again often enough, and says so. mu is held.
func (j *Journal) found() (why string, ok bool) {
	if len(j.missing) == 0 {
		return "", false
	}
	first := segment.Position{}
	for pos, a := range j.missing {
		if a.seen < seenLooks {
			return "", false
		}
		if first == (segment.Position{}) || pos.Compare(first) < 0 {
			first = pos
		}
	}
	why = fmt.Sprintf("the bucket has segment %s again: its trailer was whole at %d looks in a row", first, seenLooks)
	if n := len(j.missing); n > 1 {
		why += fmt.Sprintf("; so has it %d more that were missing", n-1)
	}
	return why, true
}

// Observed says what looking for missing segments has found so far; "" if nothing is missing.
func (j *Journal) Observed() string {
	j.mu.RLock()
	defer j.mu.RUnlock()
	var out *absence
	for _, a := range j.missing {
		if out == nil || a.gone > out.gone || a.gone == out.gone && a.key.Position.Compare(out.key.Position) < 0 {
			out = a
		}
	}
	switch {
	case out == nil:
		return ""
	case out.last == "":
		return fmt.Sprintf("segment %s will be looked for within %s", out.key.Position, 2*lookFor)
	}
	text := fmt.Sprintf("segment %s: %s", out.key.Position, out.last)
	switch {
	case out.gone > 0:
		text += fmt.Sprintf(" (%d looks in a row since %s; %d, over %s, stop the service)", out.gone, out.since.UTC().Format(time.RFC3339), goneLooks, goneFor)
	case out.seen > 0:
		text += fmt.Sprintf(" (%d of %d looks)", out.seen, seenLooks)
	}
	return text
}
