// Package policy makes the records that only the service makes: it expires archives that the policy in
// force does not keep, and purges those whose time of being brought back is over.
//
// Nothing is decided here. What may be expired and purged is what history.Vault says, over the service's
// own stamps: no client's clock has a say. The records are signed with the log key and ordered like all
// others, and every client that follows the history checks them by the same rules.
package policy

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/journal"
	"holdfast/service/view"
)

// Every is how often Loop runs.
const Every = time.Hour

// Done says what one run did.
type Done struct{ Expired, Purged int }

// Loop runs at once and every hour until ctx ends or the journal stops. What fails is tried again in the
// next run.
func Loop(ctx context.Context, j *journal.Journal, logKey ed25519.PrivateKey, log *slog.Logger) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		done, err := Run(ctx, j, logKey)
		switch {
		case err != nil && ctx.Err() == nil && j.Err() == nil:
			log.Error("policies did not run, or not on every vault", "error", err)
		case done != Done{}:
			log.Info("policies ran", "expired", done.Expired, "purged", done.Purged)
		}
		select {
		case <-ctx.Done():
			return
		case <-j.Stopped():
			return
		case <-tick.C:
		}
	}
}

// Run goes through all vaults once and returns when what it did is durable. It does nothing while
// deleting is frozen: the error wraps view.ErrFrozen. A vault that fails does not
// keep others from their turn. A crash anywhere leaves some records unmade; the next run makes them.
func Run(ctx context.Context, j *journal.Journal, logKey ed25519.PrivateKey) (done Done, err error) {
	// A clock that jumped ahead must not end every delay at once (JOURNAL 14).
	if err := j.MayDelete(ctx); err != nil {
		return done, err
	}
	n, err := j.Acked().Vaults()
	if err != nil {
		return done, err
	}
	var errs []error // the first of them; a cell has many vaults
	failed := 0
	for i := range n {
		if ctx.Err() != nil || j.Err() != nil {
			break
		}
		id, ok, err := j.Acked().VaultNo(i)
		if err == nil && !ok {
			err = view.ErrDamaged
		}
		if err == nil {
			err = vault(ctx, j, logKey, id, &done)
		}
		if err == nil {
			continue
		}
		if failed++; failed <= maxErrors {
			errs = append(errs, fmt.Errorf("vault %.8s: %w", id, err))
		}
	}
	if failed > maxErrors {
		errs = append(errs, fmt.Errorf("vaults that failed beside these: %d", failed-maxErrors))
	}
	if done != (Done{}) {
		t, err := j.Append(ctx, func(*journal.Tx) error { return nil })
		if err == nil {
			j.Flush()
			err = t.Wait(ctx)
		}
		errs = append(errs, err)
	}
	return done, errors.Join(append(errs, ctx.Err())...)
}

// maxErrors bounds the vaults of which Run says why they failed.
const maxErrors = 5

// vault purges and expires in one vault, one series after another, as long as there is something to do.
func vault(ctx context.Context, j *journal.Journal, logKey ed25519.PrivateKey, id holdfast.VaultID, done *Done) error {
	for series := uint32(0); ; {
		// A look from outside: most vaults need nothing, and the sequencer is not for looking.
		h, ok, err := j.Acked().Archives(id, series)
		if err != nil || !ok {
			return err
		}
		if now := time.Now().UnixNano(); len(h.Purgeable(now)) == 0 && len(h.Expirable(now)) == 0 {
			series++
			continue
		}
		var did Done
		if _, err := j.Append(ctx, func(tx *journal.Tx) (err error) {
			did, err = step(tx, logKey, id, series)
			return err
		}); err != nil {
			return err
		}
		if did == (Done{}) {
			series++ // it was done since that look, and is not acknowledged yet
		}
		done.Expired += did.Expired
		done.Purged += did.Purged
	}
}

// step makes at most one purge and one expire record, of one series.
func step(tx *journal.Tx, logKey ed25519.PrivateKey, id holdfast.VaultID, series uint32) (did Done, err error) {
	for _, x := range []struct {
		t    history.Type
		what func(*history.Vault, int64) history.IDs
		n    *int
	}{
		{history.TypePurge, (*history.Vault).Purgeable, &did.Purged},
		{history.TypeExpire, (*history.Vault).Expirable, &did.Expired},
	} {
		h, ok, err := tx.Reader().Archives(id, series)
		if err != nil || !ok {
			return did, err
		}
		at := tx.Now() * 1e6 // the journal's time, which is the stamp
		ids := x.what(h, at)
		if len(ids) == 0 {
			continue
		}
		r := history.SignByService(history.Body{
			Type: x.t, Vault: id, Seq: h.Service.Seq, Prev: h.Service.Prev, SeenN: h.N, SeenHead: h.Head, Time: at, Fields: ids.Encode(),
		}, logKey)
		if _, err := tx.History(r); err != nil {
			return did, fmt.Errorf("%s: %w", x.t, err)
		}
		*x.n = len(ids)
	}
	return did, nil
}
