// Package policy makes the records that only the service makes: it expires archives that the policy in
// force does not keep, purges those whose time of being brought back is over, and says in each vault's history how
// its account stands: from when on archives may lapse for want of credit, and that they do, or that it is paid again.
//
// Nothing is decided here. What may be expired, purged and lapse is what history.Vault says, over the service's
// own stamps: no client's clock has a say. The records are signed with the log key and ordered like all
// others, and every client that follows the history checks them by the same rules.
package policy

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"holdfast"
	"holdfast/history"
	"holdfast/service/journal"
	"holdfast/service/segment"
	"holdfast/service/view"
)

// Every is how often Loop runs.
const Every = time.Hour

// Done says what one run did, archives but for Arrears: vaults of which it said that they are unpaid, or paid again.
type Done struct{ Expired, Purged, Lapsed, Arrears int }

// Standing says how an account stands, by the view of r: since when its writing has stopped, from when on the archives of its vaults
// may lapse (both ns since 1970, 0 if it is paid), and whether they are to lapse now if the history allows it. Of an account of
// which it returns an error, the vaults stay as they are. A nil Standing means that nobody pays here, and that no record
// tells of money.
type Standing func(r view.Reader, id holdfast.AccountID) (stop, until int64, lapse bool, err error)

// Loop runs at once, every hour, and when something comes from wake, which may be nil, until ctx ends or the journal stops. What
// fails is tried again in the next run.
func Loop(ctx context.Context, j *journal.Journal, logKey ed25519.PrivateKey, stands Standing, wake <-chan struct{}, log *slog.Logger) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		done, err := Run(ctx, j, logKey, stands)
		switch {
		case err != nil && ctx.Err() == nil && j.Err() == nil:
			log.Error("policies did not run, or not on every vault", "error", err)
		case done != Done{}:
			log.Info("policies ran", "expired", done.Expired, "purged", done.Purged, "lapsed", done.Lapsed, "arrears", done.Arrears)
		}
		select {
		case <-ctx.Done():
			return
		case <-j.Stopped():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// Run goes through all vaults once and returns when what it did is durable. It deletes nothing while
// deleting is frozen: the error wraps view.ErrFrozen. A vault that fails does not
// keep others from their turn. A crash anywhere leaves some records unmade; the next run makes them.
func Run(ctx context.Context, j *journal.Journal, logKey ed25519.PrivateKey, stands Standing) (done Done, err error) {
	// A clock that jumped ahead must not end every delay at once (JOURNAL 14).
	frozen := j.MayDelete(ctx)
	if frozen != nil && stands == nil {
		return done, frozen
	}
	r := run{ctx: ctx, j: j, logKey: logKey, stands: stands, frozen: frozen != nil, doubt: doubt(j, frozen), done: &done}
	n, err := j.Acked().Vaults()
	if err != nil {
		return done, err
	}
	errs := []error{frozen} // and the first of the vaults'; a cell has many
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
			err = r.vault(id)
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
		errs = append(errs, journal.Durably(ctx, j, func(*journal.Tx) error { return nil }))
	}
	return done, errors.Join(append(errs, ctx.Err())...)
}

// maxErrors bounds the vaults of which Run says why they failed.
const maxErrors = 5

// doubt reports whether the clocks are why nothing may be deleted, as MayDelete says.
func doubt(j *journal.Journal, frozen error) bool {
	return frozen != nil && (!errors.Is(frozen, view.ErrFrozen) || slices.ContainsFunc(j.Freezes(), func(f view.Freeze) bool {
		return f.Reason == segment.ReasonClocks || f.Reason == segment.ReasonJump
	}))
}

// run is one run through all vaults.
type run struct {
	ctx    context.Context
	j      *journal.Journal
	logKey ed25519.PrivateKey
	stands Standing
	frozen bool // nothing may be deleted
	doubt  bool // and no time be counted from now on, because that is in doubt
	done   *Done
}

// vault says in one vault how its account stands, then purges, expires and lapses. Where the first fails nothing else is done: who
// paid must have his time to bring back what lapsed before any of it is purged.
func (r *run) vault(id holdfast.VaultID) error {
	if err := r.arrears(id); err != nil || r.frozen {
		return err
	}
	return r.archives(id)
}

// arrears makes the vault's history say how its account stands.
func (r *run) arrears(id holdfast.VaultID) error {
	if r.stands == nil {
		return nil
	}
	a, err := r.account(r.j.Acked(), id)
	if err != nil || !r.says(a) { // a look from outside, as below
		return err
	}
	said := false
	_, err = r.j.Append(r.ctx, func(tx *journal.Tx) error {
		a, err := r.account(tx.Reader(), id)
		if err != nil || !r.says(a) {
			return err
		}
		until := a.until
		if until != 0 { // the earliest that the rules allow, if it is later: this run comes late
			until = max(until, tx.Now()*1e6+history.MinGrace)
		}
		said = true
		return r.record(tx, history.TypeArrears, id, a.vault.N, a.vault.Head, a.vault.Service, history.Arrears{Until: until}.Encode())
	})
	if err == nil && said {
		r.done.Arrears++
	}
	return err
}

// account is a vault and how its account stands, as Standing says it.
type account struct {
	vault       view.Vault
	stop, until int64
	lapse       bool
}

// account looks at a vault by the view of from. Nobody is asked to pay before a machine is enrolled.
func (r *run) account(from view.Reader, id holdfast.VaultID) (a account, err error) {
	var ok bool
	a.vault, ok, err = from.Vault(id)
	if err != nil || !ok || r.stands == nil || a.vault.Account == (holdfast.AccountID{}) {
		return a, err
	}
	if a.stop, a.until, a.lapse, err = r.stands(from, a.vault.Account); err != nil {
		err = fmt.Errorf("standing of account %s: %w", a.vault.Account, err)
	}
	return a, err
}

// says reports whether the vault's history is to say that archives may lapse from a time on, or, with 0, that it is paid again. The
// time is announced once for each stop: if it comes to be later, nothing lapses before all the same, and to announce that
// would put it off by another history.MinGrace.
func (r *run) says(a account) bool {
	if a.until == 0 {
		return a.vault.Arrears != 0
	}
	return !r.doubt && (a.vault.Arrears == 0 || a.vault.Arrears < a.stop+history.MinGrace)
}

// archives purges, expires and lapses in one vault, one series after another, as long as there is something to do.
func (r *run) archives(id holdfast.VaultID) error {
	a, err := r.account(r.j.Acked(), id)
	if err != nil {
		return err
	}
	for series := uint32(0); ; {
		// A look from outside: most vaults need nothing, and the sequencer is not for looking.
		h, ok, err := r.j.Acked().Archives(id, series)
		if err != nil || !ok {
			return err
		}
		if now := time.Now().UnixNano(); len(h.Purgeable(now)) == 0 && len(h.Expirable(now)) == 0 && (!a.lapse || len(h.Lapsable(now)) == 0) {
			series++
			continue
		}
		var did Done
		if _, err := r.j.Append(r.ctx, func(tx *journal.Tx) (err error) {
			did, err = r.step(tx, id, series)
			return err
		}); err != nil {
			return err
		}
		if did == (Done{}) {
			series++ // it was done since that look, and is not acknowledged yet
		}
		r.done.Expired += did.Expired
		r.done.Purged += did.Purged
		r.done.Lapsed += did.Lapsed
	}
}

// step makes at most one purge, one expire and one lapse record, of one series.
func (r *run) step(tx *journal.Tx, id holdfast.VaultID, series uint32) (did Done, err error) {
	a, err := r.account(tx.Reader(), id) // a payment may have come meanwhile
	if err != nil {
		return did, err
	}
	for _, x := range []struct {
		t    history.Type
		what func(*history.Vault, int64) history.IDs
		n    *int
	}{
		{history.TypePurge, (*history.Vault).Purgeable, &did.Purged},
		{history.TypeExpire, (*history.Vault).Expirable, &did.Expired},
		{history.TypeLapse, (*history.Vault).Lapsable, &did.Lapsed},
	} {
		if x.t == history.TypeLapse && !a.lapse {
			continue
		}
		h, ok, err := tx.Reader().Archives(id, series)
		if err != nil || !ok {
			return did, err
		}
		ids := x.what(h, tx.Now()*1e6)
		if len(ids) == 0 {
			continue
		}
		if err := r.record(tx, x.t, id, h.N, h.Head, h.Service, ids.Encode()); err != nil {
			return did, err
		}
		*x.n = len(ids)
	}
	return did, nil
}

// record adds a record of the service's to a vault's history, after head n and the service's last one.
func (r *run) record(tx *journal.Tx, t history.Type, id holdfast.VaultID, n uint64, head holdfast.Head, last history.Link, fields []byte) error {
	at := tx.Now() * 1e6 // the journal's time, which is the stamp
	rec := history.SignByService(history.Body{
		Type: t, Vault: id, Seq: last.Seq, Prev: last.Prev, SeenN: n, SeenHead: head, Time: at, Fields: fields,
	}, r.logKey)
	if _, err := tx.History(rec); err != nil {
		return fmt.Errorf("%s: %w", t, err)
	}
	return nil
}
