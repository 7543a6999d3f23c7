package journal

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast"
	"holdfast/service/bucket"
	"holdfast/service/segment"
	"holdfast/service/view"
)

const (
	// keepCheckpoints is how many are kept: should the newest be of no use, there is the one before.
	keepCheckpoints = 2
	// maxCheckpoints bounds the checkpoints, and what is left of attempts, that lie in the bucket when one more is begun. There
	// are more than a few only where deleting has been frozen for long.
	maxCheckpoints = 32
	// maxManifests bounds the manifests of one checkpoint that are looked at: storing it may have been tried several times.
	maxManifests = 8
	// minBehind is how many segments a view lacks, at least, until a checkpoint is looked for to spare their replay.
	minBehind = 4096
	// loaders is how many parts of a checkpoint are fetched and made into tables at a time at a start, and one where clients are
	// served meanwhile.
	loaders = 4
	// rowsARecord is how many rows of a checkpoint are loaded in the time in which one record is replayed, about.
	rowsARecord = 4
)

// ErrCheckpointing refuses a checkpoint while another is being made.
var ErrCheckpointing = errors.New("a checkpoint is being made already")

// checkpoints is what a journal remembers of making them.
type checkpoints struct {
	sync.Mutex        // held by the one that is being made
	newest     string // prefix of the newest attempt of this process
}

// CheckpointReport says what Checkpoint made, and what it removed.
type CheckpointReport struct {
	Position segment.Position
	Digest   [32]byte // of the rows
	Object   string   // the manifest
	Rows     uint64
	Bytes    int64
	Parts    int
	// Objects that were removed: older checkpoints, and what was left of attempts; and, if that failed, why. The next run
	// removes the rest.
	Removed  int
	Untidy   error
	Duration time.Duration
}

// attempt is a checkpoint as the bucket lists it, or what is left of an attempt to make one.
type attempt struct {
	prefix    string // of all its objects; ends with '/'
	pos       segment.Position
	manifests []bucket.Object // none: it was not finished
}

// checkpointPrefix begins the keys of all checkpoints of a cell.
func checkpointPrefix(cell holdfast.CellID) string { return segment.CellPrefix(cell) + "checkpoint/" }

func attemptPrefix(cell holdfast.CellID, pos segment.Position, nonce [8]byte) string {
	return fmt.Sprintf("%s%016x-%016x-%x/", checkpointPrefix(cell), pos.Epoch, pos.Seq, nonce)
}

func partKey(prefix string, i int, nonce [8]byte) string {
	return fmt.Sprintf("%s%08x-%x", prefix, i, nonce)
}

func manifestKey(prefix string, raw []byte) string {
	return fmt.Sprintf("%smanifest-%x", prefix, sha256.Sum256(raw))
}

// parseAttempt is the inverse of attemptPrefix; it accepts nothing else.
func parseAttempt(cell holdfast.CellID, prefix string) (pos segment.Position, ok bool) {
	f := strings.Split(strings.TrimSuffix(strings.TrimPrefix(prefix, checkpointPrefix(cell)), "/"), "-")
	if len(f) != 3 {
		return pos, false
	}
	var nonce [8]byte
	pos.Epoch, _ = strconv.ParseUint(f[0], 16, 64)
	pos.Seq, _ = strconv.ParseUint(f[1], 16, 64)
	if raw, err := hex.DecodeString(f[2]); err == nil {
		copy(nonce[:], raw)
	}
	return pos, attemptPrefix(cell, pos, nonce) == prefix
}

// attempts lists what lies in the bucket of checkpoints, the newest first: two requests for each, however many parts it has.
func attempts(ctx context.Context, cfg Config) (all []attempt, err error) {
	page := func(prefix, after string, max int) (l []bucket.Object, err error) {
		err = persist(ctx, getPatience, listTimeout, func(ctx context.Context) (err error) {
			l, err = cfg.Bucket.List(ctx, prefix, after, max)
			return err
		})
		return l, err
	}
	root := checkpointPrefix(cfg.Cell)
	for after, before := "", ""; ; {
		first, err := page(root, after, 1)
		if err != nil {
			return nil, fmt.Errorf("list checkpoints: %w", err)
		}
		if len(first) == 0 {
			break
		}
		name, _, ok := strings.Cut(strings.TrimPrefix(first[0].Key, root), "/")
		prefix := root + name + "/"
		pos, is := parseAttempt(cfg.Cell, prefix)
		if !ok || !is || prefix == before { // something else
			after = first[0].Key
			continue
		}
		a := attempt{prefix: prefix, pos: pos}
		if a.manifests, err = page(prefix+"manifest-", "", maxManifests); err != nil {
			return nil, fmt.Errorf("list checkpoints: %w", err)
		}
		all = append(all, a)
		// Its parts and manifests begin with a digit, a to f or m.
		after, before = prefix+"z", prefix
	}
	slices.SortStableFunc(all, func(a, b attempt) int { return cmp.Or(b.pos.Compare(a.pos), cmp.Compare(a.prefix, b.prefix)) })
	return all, nil
}

// Checkpoint writes all rows of the acknowledged view into the bucket, so that a start need not replay all that was ever
// written (JOURNAL 10). It takes the memory of two parts, which it borrows, and may be killed anywhere. One is made at a
// time: ErrCheckpointing.
func (j *Journal) Checkpoint(ctx context.Context) (r CheckpointReport, err error) {
	if !j.checkpoints.TryLock() {
		return r, ErrCheckpointing
	}
	defer j.checkpoints.Unlock()
	ctx, done, err := j.whileOpen(ctx)
	if err != nil {
		return r, err
	}
	defer done()
	giveBack, err := j.Borrow(ctx)
	if err != nil {
		return r, err
	}
	defer giveBack()
	defer func() {
		if stopped := j.Err(); err != nil && stopped != nil {
			err = stopped
		}
		if err != nil {
			err = fmt.Errorf("make a checkpoint: %w", err)
		}
	}()
	began := time.Now()

	// 1. What attempts left that came to nothing. If it cannot be removed, there must not be ever more of it.
	removed, left, untidy := j.tidyCheckpoints(ctx, false)
	r.Removed = removed
	if left >= maxCheckpoints {
		removed, left, untidy = j.tidyCheckpoints(ctx, true)
		r.Removed += removed
	}
	if ctx.Err() != nil {
		return r, ctx.Err()
	}
	if left >= maxCheckpoints {
		return r, fmt.Errorf("%d checkpoints, or what is left of attempts, lie in the bucket already, and older ones cannot be removed: %w", left, untidy)
	}

	// 2. Put the rows, in parts. Crash, here and in all that follows up to 4: parts without a manifest, which the next run removes.
	snap, err := j.store.Snapshot()
	if err != nil {
		return r, err
	}
	defer snap.Close()
	m := view.Manifest{Version: view.Version}
	m.Cell, m.Position, m.Hash = snap.Position()
	if m.Digest, err = snap.Digest(ctx); err != nil {
		return r, err
	}
	prefix := attemptPrefix(m.Cell, m.Position, random[[8]byte]())
	j.checkpoints.newest = prefix
	err = snap.Parts(ctx, cmp.Or(j.cfg.partSize, view.PartSize), func(raw []byte, rows uint32) error {
		if len(m.Parts) == view.MaxParts {
			return fmt.Errorf("the view has more rows than %d parts hold", view.MaxParts)
		}
		nonce, err := putFresh(ctx, j.cfg.Bucket, func(nonce [8]byte) (string, []byte) { return partKey(prefix, len(m.Parts), nonce), raw })
		m.Parts = append(m.Parts, view.PartOf(nonce, raw, rows))
		return err
	})
	if err != nil {
		return r, err
	}
	snap.Close()

	// 3. Read every part back: what lies in the bucket is what the live view was, row for row (JOURNAL 13).
	var digest view.PartDigest
	for i := range m.Parts {
		raw, err := readPart(ctx, j.cfg.Bucket, prefix, &m, i)
		if err == nil {
			err = digest.Add(raw)
		}
		if err != nil {
			return r, fmt.Errorf("read back: %w", err)
		}
	}
	if got, rows := digest.Sum(); got != m.Digest || rows != m.Rows() {
		return r, fmt.Errorf("%w: the rows read back have the digest %x, and those of the view %x", ErrDamaged, got, m.Digest)
	}

	// 4. The manifest, last: the commit point. Who was replaced makes no more of them.
	if err := j.stillOurs(ctx); err != nil {
		return r, err
	}
	var body []byte
	_, err = putFresh(ctx, j.cfg.Bucket, func(nonce [8]byte) (string, []byte) {
		m.Nonce = nonce
		body = m.Encode()
		r.Object = manifestKey(prefix, body)
		return r.Object, body
	})
	if err != nil {
		return r, err
	}
	if _, err := readManifest(ctx, j.cfg, attempt{prefix, m.Position, nil}, bucket.Object{Key: r.Object, Size: int64(len(body))}); err != nil {
		return r, fmt.Errorf("read back: %w", err)
	}

	// 5. Only now older ones go.
	removed, _, r.Untidy = j.tidyCheckpoints(ctx, true)
	if errors.Is(r.Untidy, ErrLost) { // and may have taken ours for what is left of an attempt
		return r, r.Untidy
	}
	r.Position, r.Digest, r.Rows, r.Bytes, r.Parts = m.Position, m.Digest, m.Rows(), m.Bytes(), len(m.Parts)
	r.Removed += removed
	r.Duration = time.Since(began)
	j.log.Info("checkpoint made", "position", r.Position, "rows", r.Rows, "bytes", r.Bytes, "parts", r.Parts, "removed", r.Removed, "took", r.Duration)
	if r.Untidy != nil {
		j.log.Warn("older checkpoints were not all removed; the next run goes on", "err", r.Untidy)
	}
	return r, nil
}

// SinceCheckpoint returns how many segments were acknowledged since the newest checkpoint in the bucket, and where that
// stands; if there is none, all segments and the zero place.
func (j *Journal) SinceCheckpoint(ctx context.Context) (segments int, at segment.Position, err error) {
	all, err := attempts(ctx, j.cfg)
	if err != nil {
		return 0, at, err
	}
	now := j.Position()
	c := chain{table: append(slices.Clone(j.table), segment.Accepted{Epoch: now.Epoch, LastSeq: now.Seq})}
	for _, a := range all {
		if len(a.manifests) > 0 && c.accepts(a.pos) {
			at = a.pos
			break
		}
	}
	return c.count(now) - c.count(at), at, nil
}

// whileOpen returns a context that ends with ctx or when the journal stops. Close waits until done was called.
func (j *Journal) whileOpen(ctx context.Context) (_ context.Context, done func(), err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return nil, nil, j.err
	}
	if j.closing {
		return nil, nil, fmt.Errorf("%w: %w", ErrStopped, ErrClosed)
	}
	j.work.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(j.ctx, cancel)
	return ctx, func() { stop(); cancel(); j.work.Done() }, nil
}

// stillOurs is confirm for what is no acknowledgement. Who was replaced stops.
func (j *Journal) stillOurs(ctx context.Context) error {
	err := j.confirm(ctx, getPatience)
	if errors.Is(err, ErrLost) {
		j.stop(err)
	}
	return err
}

// putFresh stores an object under a key that each attempt has for itself: a request that keeps failing is abandoned. One that
// failed may have been applied all the same; nothing names what it left, which goes with the checkpoint.
func putFresh(ctx context.Context, b bucket.Bucket, object func(nonce [8]byte) (key string, body []byte)) (nonce [8]byte, err error) {
	key := ""
	err = persist(ctx, putPatience, putTimeout, func(ctx context.Context) error {
		nonce = random[[8]byte]()
		var body []byte
		key, body = object(nonce)
		return b.Put(ctx, key, body)
	})
	if err != nil {
		return nonce, fmt.Errorf("store %s: %w", key, err)
	}
	return nonce, nil
}

// readObject reads an object of a checkpoint. What comes back wrong is read again, trailerReads times in all, before the
// error wraps ErrDamaged.
func readObject(ctx context.Context, b bucket.Bucket, key string, size int64, check func([]byte) error) (raw []byte, err error) {
	bad := 0
	err = persist(ctx, getPatience, getTimeout, func(ctx context.Context) (err error) {
		raw, err = b.Get(ctx, key, 0, size)
		switch {
		case errors.Is(err, bucket.ErrNotFound):
			return final{err}
		case err != nil && !errors.Is(err, bucket.ErrShort):
			return err
		case err == nil:
			err = check(raw)
		}
		if err == nil {
			return nil
		}
		if bad++; bad == trailerReads {
			return final{fmt.Errorf("%w in the bucket: %w", ErrDamaged, err)}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return raw, nil
}

// readPart reads part i of a checkpoint and holds it to the manifest.
func readPart(ctx context.Context, b bucket.Bucket, prefix string, m *view.Manifest, i int) ([]byte, error) {
	p := m.Parts[i]
	return readObject(ctx, b, partKey(prefix, i, p.Nonce), int64(p.Size), p.Check)
}

// readManifest reads the manifest of a and holds it to its key.
func readManifest(ctx context.Context, cfg Config, a attempt, o bucket.Object) (m view.Manifest, err error) {
	if o.Size > view.MaxManifest {
		return m, fmt.Errorf("%s: %w: it has %d bytes", o.Key, view.ErrCheckpoint, o.Size)
	}
	raw, err := readObject(ctx, cfg.Bucket, o.Key, o.Size, func(raw []byte) error {
		if manifestKey(a.prefix, raw) != o.Key {
			return fmt.Errorf("%w: the manifest is not the one that its key names", view.ErrCheckpoint)
		}
		return nil
	})
	if err != nil {
		return m, err
	}
	if m, err = view.ParseManifest(raw); err != nil {
		return m, fmt.Errorf("%s: %w", o.Key, err)
	}
	switch {
	case m.Cell != cfg.Cell || m.Position != a.pos:
		err = fmt.Errorf("%w: it is of segment %s of cell %s", view.ErrCheckpoint, m.Position, m.Cell)
	case m.Version != view.Version:
		err = fmt.Errorf("%w: its rows have version %d, this program's %d", view.ErrCheckpoint, m.Version, view.Version)
	}
	if err != nil {
		return m, fmt.Errorf("%s: %w", o.Key, err)
	}
	return m, nil
}

// tidyCheckpoints removes what is left of attempts and, if old, the checkpoints before the newest keepCheckpoints. It returns
// how many objects it removed, and how many checkpoints and attempts are left.
//
// No record justifies these deletes: a checkpoint is derived, and its loss costs time. They come after the list, and a look
// at the epoch object after that: so nothing of an owner that came after us is in the list. The newest attempt of this
// process stays, since it may have been given up with a request on its way; what lands of an older one is a manifest without
// parts at worst, which no start uses.
func (j *Journal) tidyCheckpoints(ctx context.Context, old bool) (removed, left int, err error) {
	all, err := attempts(ctx, j.cfg)
	if err != nil {
		return 0, 0, err
	}
	left = len(all)
	var gone []attempt
	finished := 0
	for _, a := range all {
		if len(a.manifests) > 0 {
			finished++
		}
		if len(a.manifests) > 0 && old && finished > keepCheckpoints || len(a.manifests) == 0 && a.prefix != j.checkpoints.newest {
			gone = append(gone, a)
		}
	}
	if len(gone) == 0 {
		return 0, left, nil
	}
	if err := j.MayDelete(ctx); err != nil {
		return 0, left, err
	}
	if err := j.stillOurs(ctx); err != nil {
		return 0, left, err
	}
	for _, a := range gone {
		n, err := j.removeAttempt(ctx, a)
		removed += n
		if err != nil {
			return removed, left, fmt.Errorf("remove checkpoint %s: %w", a.prefix, err)
		}
		left--
	}
	return removed, left, nil
}

// removeAttempt removes all objects of a, manifests first: what a crash leaves is an attempt, and no checkpoint without parts.
func (j *Journal) removeAttempt(ctx context.Context, a attempt) (removed int, err error) {
	page := func(prefix string) (l []bucket.Object, err error) {
		err = persist(ctx, getPatience, listTimeout, func(ctx context.Context) (err error) {
			l, err = j.cfg.Bucket.List(ctx, prefix, "", 0)
			return err
		})
		return l, err
	}
	if len(a.manifests) == 0 { // one list that forgets an object must not cost a checkpoint
		if l, err := page(a.prefix + "manifest-"); err != nil || len(l) > 0 {
			return 0, err
		}
	}
	for _, prefix := range []string{a.prefix + "manifest-", a.prefix} {
		for {
			l, err := page(prefix)
			if err != nil {
				return removed, err
			}
			for _, o := range l {
				if err := persist(ctx, getPatience, getTimeout, func(ctx context.Context) error { return j.cfg.Bucket.Delete(ctx, o.Key) }); err != nil {
					return removed, err
				}
				removed++
			}
			if len(l) < bucket.MaxList {
				break
			}
		}
	}
	return removed, nil
}

// unusable is why a checkpoint is not used; another may do.
type unusable struct{ error }

// Unwrap returns the error itself.
func (u unusable) Unwrap() error { return u.error }

// loadCheckpoint replaces the rows of store by those of the newest checkpoint that is of use, and returns its place; the zero
// place if there is none, and the store is as it was. have is what the store has of c, to is how much it is to have of it.
// What is of no use (damaged, of another version, not on the accepted chain) is named in the log and left alone.
func loadCheckpoint(ctx context.Context, cfg Config, log *slog.Logger, store *view.Store, c *chain, have, to segment.Position, loaders int) (m view.Manifest, err error) {
	behind := func(pos segment.Position) int { return c.count(pos) - c.count(have) }
	if have == (segment.Position{}) {
		behind = func(segment.Position) int { return math.MaxInt }
	}
	if c.count(to) == 0 || behind(to) < cmp.Or(cfg.behind, minBehind) {
		return m, nil
	}
	all, err := attempts(ctx, cfg)
	if err != nil {
		if ctx.Err() == nil {
			log.Error("checkpoints cannot be listed; replaying without one", "err", err)
		}
		return m, ctx.Err()
	}
	for _, a := range all {
		if a.pos.Compare(to) > 0 && c.accepts(a.pos) || a.pos.Compare(have) <= 0 && have != (segment.Position{}) {
			continue // it is of later than asked for, or of no more than there is
		}
		for _, o := range a.manifests {
			m, used, err := tryCheckpoint(ctx, cfg, store, c, have, a, o, loaders)
			var no unusable
			switch {
			case ctx.Err() != nil:
				return m, ctx.Err()
			case errors.As(err, &no):
				log.Error("a checkpoint is of no use; trying the one before", "checkpoint", o.Key, "err", err)
			case err != nil:
				return m, err
			case used:
				log.Info("began with a checkpoint", "checkpoint", o.Key, "position", m.Position, "rows", m.Rows())
				return m, nil
			}
		}
	}
	return view.Manifest{}, nil
}

// tryCheckpoint loads one checkpoint, if that is quicker than replaying what is between it and what the store has.
func tryCheckpoint(ctx context.Context, cfg Config, store *view.Store, c *chain, have segment.Position, a attempt, o bucket.Object, loaders int) (m view.Manifest, used bool, err error) {
	if m, err = readManifest(ctx, cfg, a, o); err != nil {
		return m, false, unusable{err}
	}
	// It is used only if it lies on the accepted chain (JOURNAL 10).
	ok, err := c.has(ctx, cfg, m.Position, m.Hash)
	if err == nil && !ok {
		err = fmt.Errorf("it is of segment %s with hash %x, which is not part of the journal", m.Position, m.Hash)
	}
	if err != nil {
		return m, false, unusable{err}
	}
	if have != (segment.Position{}) {
		n := c.count(m.Position) - c.count(have)
		records := c.between(have, m.Position).size() / smallRecord
		if n < cmp.Or(cfg.behind, minBehind) || uint64(records)*rowsARecord < m.Rows() {
			return m, false, nil
		}
	}
	err = store.Load(ctx, &m, loaders, func(ctx context.Context, i int) ([]byte, error) {
		raw, err := readPart(ctx, cfg.Bucket, a.prefix, &m, i)
		if err != nil {
			return nil, unusable{err}
		}
		return raw, nil
	})
	if errors.Is(err, view.ErrCheckpoint) {
		err = unusable{err}
	}
	return m, err == nil, err
}

// FromCheckpoint loads the newest checkpoint of use up to a place of the journal into store, which is empty and serves nobody, and
// returns where that stands; the zero place if there is none, and the store is still empty. What comes after it is to be
// replayed; the digest is to be that which the live view had there then (JOURNAL 13). It takes the memory of two parts, for the
// service is at work meanwhile. The rows that were loaded have the digest that the manifest says, or the error wraps ErrDamaged.
func (j *Journal) FromCheckpoint(ctx context.Context, store *view.Store, to segment.Position) (at segment.Position, err error) {
	ctx, done, err := j.whileOpen(ctx)
	if err != nil {
		return at, err
	}
	defer done()
	cfg := j.cfg
	c, err := findChain(ctx, cfg, math.MaxUint64, func(_ context.Context, c *chain) error {
		if !c.accepts(to) {
			return fmt.Errorf("%w: segment %s, which this host has seen acknowledged, is not part of it", ErrContradiction, to)
		}
		return nil
	})
	if err != nil {
		return at, fmt.Errorf("read journal: %w", err)
	}
	m, err := loadCheckpoint(ctx, cfg, j.log, store, c, segment.Position{}, to, 1)
	if err != nil || m.Parts == nil {
		return at, err
	}
	got, _, err := store.Digest(ctx)
	if err != nil {
		return at, err
	}
	if got != m.Digest {
		return at, fmt.Errorf("%w: the rows of the checkpoint at %s have the digest %x, and its manifest says %x", ErrDamaged, m.Position, got, m.Digest)
	}
	return m.Position, nil
}
