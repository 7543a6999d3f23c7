//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	hf "holdfast"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/seal"
	"holdfast/history"
	"holdfast/service/identity"
	"holdfast/wire"
)

// theft is a row of the table in docs/security.md, "This key is stolen". Its cells are named as there, run in
// their order, and go on from one another: run rows, not cells.
type theft struct {
	what  string
	setup func(*testing.T, *thief)
	cells []cell
}

type cell struct {
	says string
	test func(*testing.T, *thief)
}

// thief has a copy of what was stolen and nothing else.
type thief struct {
	*vault                  // the victim's
	row    *testing.T       // what is made in its scratch directories lasts for all cells
	name   string           // of the row
	c      *client          // has the stolen key file and an empty cache
	since  string           // when it was stolen
	tree   string           // what the victim's archives hold
	series string           // the victim's
	good   []listed         // the victim's archives from before
	other  *client          // another machine of the victim, in a group of its own
	loot   string           // a file or directory that was stolen
	at     *service         // whose keys were stolen
	token  string           // that was stolen
	made   []*client        // in the course of it
	stolen *keyring.Machine // what is in the stolen key file
}

// TestTheft lets thieves do what docs/security.md says that they can and cannot do, and their victims what it
// says that they then do.
func TestTheft(t *testing.T) {
	t.Parallel()
	s := newService(t)
	for _, x := range thefts {
		t.Run(x.what, func(t *testing.T) {
			t.Parallel()
			mine := *s
			mine.t = t
			w := &thief{vault: newVault(t, &mine), row: t, name: x.what, series: x.what}
			x.setup(t, w)
			for _, c := range x.cells {
				if !t.Run(c.says, func(t *testing.T) {
					w.bind(t)
					c.test(t, w)
				}) {
					break // what follows would fail for want of it
				}
			}
			w.bind(t)
		})
	}
}

// bind makes t the test that everybody reports to.
func (w *thief) bind(t *testing.T) {
	w.s.t, w.home.t = t, t
	if w.at != nil {
		w.at.t = t
	}
	for _, c := range append(slices.Clone(w.made), w.c, w.other) {
		if c != nil {
			c.t = t
		}
	}
}

// TestTheftTable compares the table with the tests: what it says is tested, and what is tested it says.
func TestTheftTable(t *testing.T) {
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(text), "<!-- thefts: begin -->")
	table, _, ended := strings.Cut(table, "<!-- thefts: end -->")
	if !ok || !ended {
		t.Fatal("docs/security.md has no table of thefts between its marks")
	}
	said := map[string]bool{}
	code := regexp.MustCompile("^ *`([a-z-]+)`")
	test := regexp.MustCompile("`((?:can|cannot|do)-[a-z-]+)`")
	for line := range strings.Lines(table) {
		columns := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		row := code.FindStringSubmatch(columns[0])
		if row == nil {
			continue
		}
		if len(columns) != 4 {
			t.Errorf("the row of %s has %d columns", row[1], len(columns))
			continue
		}
		for i, prefix := range []string{"can-", "cannot-", "do-"} {
			for part := range strings.SplitSeq(columns[i+1], "; ") {
				names := test.FindAllStringSubmatch(part, -1)
				if len(names) == 0 {
					t.Errorf("%s: no test for %q", row[1], strings.TrimSpace(part))
				}
				for _, n := range names {
					if !strings.HasPrefix(n[1], prefix) {
						t.Errorf("%s: %s stands in the column of %s", row[1], n[1], prefix)
					}
					said[row[1]+"/"+n[1]] = true
				}
			}
		}
	}
	for _, x := range thefts {
		for _, c := range x.cells {
			name := x.what + "/" + c.says
			if !said[name] {
				t.Errorf("TestTheft/%s is not in the table", name)
			}
			delete(said, name)
		}
	}
	for name := range said {
		t.Errorf("there is no TestTheft/%s", name)
	}
}

var thefts = []theft{
	{"write-only", stealKey(hf.RightWrite), []cell{
		{"can-store", canStore},
		{"can-see-history", canSeeHistory},
		{"can-ask-presence", canAskPresence},
		{"can-poison-group", canPoisonGroup},
		{"cannot-read", cannotRead},
		{"cannot-delete", cannotDelete},
		{"cannot-change-rules", cannotChangeRules},
		{"cannot-reach-other-groups", cannotReachOtherGroups},
		{"cannot-set-time", cannotSetTime},
		{"do-find", doFind},
		{"do-revoke", doRevoke},
		{"do-restore-older", doRestoreOlder},
		{"do-back-up-again", doBackUpAgain},
	}},
	{"limited", stealLimitedKey, []cell{
		{"can-store-its-series", canStoreItsSeries},
		{"cannot-store-another-series", cannotStoreAnotherSeries},
		{"cannot-store-more-than-its-cap", cannotExceedCap},
		{"cannot-read", cannotRead},
		{"do-revoke", doRevoke},
	}},
	{"read-write", stealKey(hf.RightWrite | hf.RightRead), []cell{
		{"can-read-all", canReadAll},
		{"can-store", canStore},
		{"can-freeze", canFreeze},
		{"cannot-delete", cannotDelete},
		{"cannot-thaw-or-change-rules", cannotChangeRules},
		{"cannot-write-to-other-groups", cannotReachOtherGroups},
		{"do-revoke", doRevoke},
		{"do-rotate", doRotate},
		{"do-thaw", doThaw},
		{"do-restore-older", doRestoreOlder},
	}},
	{"write-delete", stealKey(hf.RightWrite | hf.RightDelete), []cell{
		{"can-delete-half", canDeleteHalf},
		{"can-store", canStore},
		{"cannot-delete-the-rest", cannotDeleteTheRest},
		{"cannot-remove-for-good", cannotRemoveForGood},
		{"cannot-read", cannotRead},
		{"cannot-change-rules", cannotChangeRules},
		{"do-freeze", doFreeze},
		{"do-revoke", doRevoke},
		{"do-undelete", doUndelete},
		{"do-thaw", doThaw},
		{"do-restore-older", doRestoreOlder},
	}},
	{"all-rights", stealKey(hf.RightsAll), []cell{
		{"can-read-all", canReadAll},
		{"can-delete-half", canDeleteHalf},
		{"can-store", canStore},
		{"can-freeze", canFreeze},
		{"cannot-delete-the-rest", cannotDeleteFrozen},
		{"cannot-remove-for-good", cannotRemoveForGood},
		{"cannot-thaw-or-change-rules", cannotChangeRules},
		{"cannot-rewrite-history", cannotRewriteHistory},
		{"do-revoke", doRevoke},
		{"do-rotate", doRotate},
		{"do-undelete", doUndelete},
		{"do-thaw", doThaw},
		{"do-restore-older", doRestoreOlder},
	}},
	{"read-only", stealKey(hf.RightRead), []cell{
		{"can-read-all", canReadAll},
		{"can-freeze", canFreeze},
		{"cannot-write", cannotWrite},
		{"cannot-delete", cannotDelete},
		{"cannot-thaw-or-change-rules", cannotChangeRules},
		{"do-revoke", doRevoke},
		{"do-rotate", doRotate},
		{"do-thaw", doThaw},
	}},
	{"old-read-key", stealOldReadKey, []cell{
		{"can-open-what-was-sealed-for-it", canOpenOlder},
		{"cannot-fetch", cannotFetch},
		{"cannot-open-newer", cannotOpenNewer},
		{"do-check-your-own-key", doCheckOwnKey},
	}},
	{"protected-key", stealProtectedKey, []cell{
		{"can-see-that-it-is-protected", canSeeProtection},
		{"cannot-use", cannotUseProtected},
		{"do-revoke", doRevokeProtected},
	}},
	{"owner", stealOwner, []cell{
		{"can-enrol-and-read-all", canEnrolAndReadAll},
		{"can-revoke-your-machines", canRevokeYours},
		{"can-delete-all", canDeleteAll},
		{"cannot-remove-for-good-at-once", cannotPurgeAsOwner},
		{"cannot-shorten-the-delay-at-once", cannotShortenDelay},
		{"cannot-hide", cannotHide},
		{"cannot-reach-other-vaults", cannotReachOtherVaults},
		{"do-come-back", doComeBack},
		{"do-lengthen-the-delay", doLengthenDelay},
		{"do-undelete", doUndeleteAsOwner},
		{"do-move", doMove},
		{"can-take-the-read-key", canTakeReadKey},
	}},
	{"token-unused", stealToken, []cell{
		{"can-make-a-vault", canMakeAVault},
		{"cannot-reach-what-exists", cannotReachWhatExists},
		{"do-ask-for-another", doAskForAnother},
	}},
	{"token-used", stealUsedToken, []cell{
		{"can-know-the-service", canKnowTheService},
		{"cannot-redeem", cannotRedeem},
		{"do-go-on", doGoOn},
	}},
	{"cache", stealCache, []cell{
		{"can-see-names", canSeeNames},
		{"cannot-see-contents-or-keys", cannotSeeContentsOrKeys},
		{"cannot-mislead-a-backup", cannotMislead},
		{"can-set-the-memory-back", canSetMemoryBack},
		{"cannot-invent-a-head", cannotInventHead},
		{"do-delete-it", doDeleteCache},
	}},
	{"service-tls-key", stealServiceKeys, []cell{
		{"can-pose", canPose},
		{"cannot-add-to-history", cannotAddToHistory},
		{"cannot-read", cannotReadAsService},
		{"do-go-on", doGoOnAtService},
	}},
	{"service-log-key", stealServiceKeys, []cell{
		{"can-nothing-alone", cannotPoseWithLogKey},
		{"cannot-pose", cannotPoseWithLogKey},
		{"do-go-on", doGoOnAtService},
	}},
	{"service-keys-and-bucket", stealServiceKeys, []cell{
		{"can-roll-back-for-newcomers", canRollBackForNewcomers},
		{"can-destroy", canDestroy},
		{"cannot-roll-back-for-others", cannotRollBack},
		{"cannot-read", cannotReadAsService},
		{"do-compare-head-codes", doCompareHeadCodes},
		{"do-go-on", doGoOnAtService},
	}},
	{"bucket-read", stealBucket, []cell{
		{"can-see-who-and-when", canSeeWhoAndWhen},
		{"cannot-read", cannotReadBucket},
		{"do-go-on", doGoOnAtService},
	}},
	{"bucket-write", stealBucket, []cell{
		{"can-destroy", canDamageBucket},
		{"cannot-change-unnoticed", cannotDamageUnnoticed},
		{"cannot-add", cannotAddToBucket},
		{"do-check", doCheckBucket},
		{"do-bring-back", doBringBackBucket},
	}},
}

// stealKey makes a machine with those rights in the group of the victim's home machine, and steals its key.
// The series of that name has four archives from before.
func stealKey(rights hf.Rights) func(*testing.T, *thief) {
	return func(t *testing.T, w *thief) {
		w.tree, w.good = w.home.archived(t, w.series, 4)
		w.c = w.derive(t, "--rights", rights.String(), "--join-group")
		w.other = w.derive(t, "--rights", "write")
		w.since = time.Now().UTC().Format(time.RFC3339Nano)
	}
}

// ids returns the archives of the victim's series as records name them.
func (w *thief) ids(n int) history.IDs {
	w.home.t.Helper()
	h := w.home.history()
	var ids []hf.RecordID
	for _, a := range h.OfSeries(w.home.machine().Series(w.series)) {
		if len(ids) < n {
			ids = append(ids, a.ID)
		}
	}
	if len(ids) != n {
		w.home.t.Fatalf("%d archives in series %s, want %d", len(ids), w.series, n)
	}
	return history.SortIDs(ids)
}

func canStore(t *testing.T, w *thief) {
	fake := smallTree(t, scratch(t), "tree", 99, 3)
	before := len(w.home.of(w.series))
	w.c.ok("create", "-C", filepath.Dir(fake), w.series, "tree")
	w.c.ok("create", "-C", filepath.Dir(fake), w.series+"-made-up", "tree")
	if got := w.home.of(w.series); len(got) != before+1 || got[before].Machine != w.c.machine().Signer().String() {
		t.Errorf("the thief's archive is not listed as his: %+v", got)
	}
}

func canSeeHistory(t *testing.T, w *thief) {
	shown := w.c.ok("history").stdout
	if !strings.Contains(shown, fmt.Sprintf("by %.8s  series %.8s: 124 stored", w.home.machine().Signer(), w.home.machine().Series(w.series))) {
		t.Errorf("he sees\n%s", shown)
	}
	// K_hist is what turns names of series into identities, so guesses can be tried.
	if w.c.machine().Series(w.series) != w.home.machine().Series(w.series) {
		t.Error("a guessed name of a series is not confirmed")
	}
}

func canAskPresence(t *testing.T, w *thief) {
	dir := scratch(t)
	write(t, filepath.Join(dir, "secret", "x"), "")
	writeNoise(t, filepath.Join(dir, "secret", "large"), 7, 600<<10)
	w.home.ok("create", "-C", dir, w.series+"-secret", "secret")
	names, _ := chunksOf(t, w.c.machine(), filepath.Join(dir, "secret", "large"))
	writeNoise(t, filepath.Join(dir, "guess"), 8, 600<<10)
	wrong, _ := chunksOf(t, w.c.machine(), filepath.Join(dir, "guess"))
	if there := w.c.asks(append(names, wrong...)); slices.Contains(there[:len(names)], false) || slices.Contains(there[len(names):], true) {
		t.Errorf("a right guess and a wrong one are answered %v", there)
	}
}

// asks returns which names c's group has.
func (c *client) asks(names []hf.Name) (there []bool) {
	c.t.Helper()
	c.inSession(func(s *remote.Session) (err error) {
		there, err = s.Have(context.Background(), names)
		return err
	})
	return there
}

// canPoisonGroup: he knows a file that the victim will back up, and stores garbage under its names before.
func canPoisonGroup(t *testing.T, w *thief) {
	w.loot = scratch(w.row)
	write(t, filepath.Join(w.loot, "poisoned", "good"), "good")
	file := filepath.Join(w.loot, "poisoned", "large")
	writeNoise(t, file, 9, 700<<10)
	names, _ := chunksOf(t, w.c.machine(), file)
	w.c.garbage(names)
	// A machine that may read reads a sample back at the end, and may find it at once.
	if o := w.home.run("create", "-C", w.loot, w.series+"-poisoned", "poisoned"); o.code != 0 && o.code != 4 {
		t.Fatalf("exit %d: %s", o.code, o.stderr)
	}
	out := filepath.Join(scratch(t), "out")
	o := w.home.exits(4, "extract", w.series+"-poisoned", "--target", out)
	if !strings.Contains(o.stderr, "poisoned/large") {
		t.Errorf("the damaged file is not named: %s", o.stderr)
	}
	if b, err := os.ReadFile(filepath.Join(out, "poisoned", "good")); err != nil || string(b) != "good" {
		t.Errorf("the file that he did not guess: %q, %v", b, err)
	}
}

func cannotRead(t *testing.T, w *thief) {
	for _, args := range [][]string{{"list", w.series}, {"extract", w.series, "--target", filepath.Join(scratch(t), "out")}, {"verify"}} {
		w.c.refusedCLI(1, "cannot read", args...)
	}
	m := w.c.machine()
	if _, err := seal.NewReader(m); !errors.Is(err, keyring.ErrNoReadKey) || m.V != nil || m.ReadSeed != nil {
		t.Errorf("the key file has something to read with: %v", err)
	}
	r := w.c.raw()
	for _, a := range w.home.history().Archives {
		_, err := r.fetch(a.Commit.Group, a.Commit.Root)
		wants(t, wire.CodeForbidden, err, "fetch an archive's root")
	}
}

func cannotDelete(t *testing.T, w *thief) {
	w.c.refusedCLI(1, "not delete", "delete", w.sealedName())
	r := w.c.raw()
	wants(t, wire.CodeForbidden, r.says(history.TypeDelete, w.ids(1).Encode()), "delete")
	wants(t, wire.CodeForbidden, r.says(history.TypeUndelete, w.ids(1).Encode()), "undelete")
	for _, a := range w.home.of(w.series) {
		if a.State != "live" {
			t.Errorf("%s is %s", a.Archive, a.State)
		}
	}
}

// sealedName names the victim's first archive.
func (w *thief) sealedName() string { return w.good[0].Archive }

// cannotChangeRules tries each record that is not a machine's, signed by the stolen key, and in the name of
// those whose it is.
func cannotChangeRules(t *testing.T, w *thief) {
	r := w.c.raw()
	m := w.c.machine()
	own := m.Enrol()
	own.Rights, own.SignKey[0], own.TLSKey[0] = hf.RightsAll, own.SignKey[0]^1, own.TLSKey[0]^1
	logKey := m.LogKey[:]
	before := w.home.history()
	for _, x := range []struct {
		t      history.Type
		fields []byte
		log    bool
	}{
		{history.TypeEnrol, own.Encode(), false},
		{history.TypeRevoke, history.Revoke{Signer: w.home.machine().Signer()}.Encode(), false},
		{history.TypeRotateRead, history.RotateRead{ReadKey: w.vault.owner.Owner.ReadKey(77)}.Encode(), false},
		{history.TypePolicy, history.Policy{Last: 1}.Encode(), false},
		{history.TypeDelay, history.Delay{Seconds: history.MinDelay}.Encode(), false},
		{history.TypeThaw, nil, false},
		{history.TypeConfirm, history.Confirm{Series: m.Series(w.series)}.Encode(), false},
		{history.TypeExpire, w.ids(1).Encode(), true},
		{history.TypePurge, w.ids(1).Encode(), true},
		{history.TypeArrears, history.Arrears{Until: 1 << 62}.Encode(), true},
		{history.TypeArrears, history.Arrears{}.Encode(), true},
		{history.TypeLapse, w.ids(1).Encode(), true},
	} {
		wants(t, wire.CodeForbidden, r.says(x.t, x.fields), x.t.String())
		if x.log {
			wants(t, wire.CodeForbidden, r.saysAs(logKey, x.t, x.fields), x.t.String()+" in the service's name")
			continue
		}
		wants(t, wire.CodeBadRequest, r.saysAs(m.Owner[:], x.t, x.fields), x.t.String()+" in the owner's name")
	}
	after := w.home.history()
	if after.N != before.N || after.Frozen != before.Frozen || len(after.Policies) != len(before.Policies) || after.Delay != before.Delay || after.Arrears != before.Arrears || len(after.Machines) != len(before.Machines) {
		t.Error("something was changed")
	}
}

// cannotReachOtherGroups: he neither opens a session there, nor is he told what they have.
func cannotReachOtherGroups(t *testing.T, w *thief) {
	dir := scratch(t)
	writeNoise(t, filepath.Join(dir, "large"), 11, 300<<10)
	w.other.ok("create", "-C", dir, w.series+"-elsewhere", "large")
	theirs := *w.c.machine()
	theirs.Group = w.other.machine().Group
	_, open, err := seal.NewSession(noise(1), &theirs)
	if err != nil {
		t.Fatal(err)
	}
	open.ReadKey = history.ReadKeyIDOf(currentRead(w.home.history()))
	r := w.c.raw()
	_, err = r.post(wire.PathSession, history.Sign(r.body(history.TypeOpen, open.Encode()), r.m.SignKey(), r.m.Hist))
	wants(t, wire.CodeBadRequest, err, "a session in another group")
	names, _ := chunksOf(t, w.c.machine(), filepath.Join(dir, "large"))
	other, _ := chunksOf(t, w.other.machine(), filepath.Join(dir, "large"))
	if there := w.c.asks(append(names, other...)); slices.Contains(there, true) {
		t.Errorf("he is told what another group has: %v", there)
	}
}

func currentRead(h *history.Vault) []byte { return h.ReadKey[:] }

// cannotSetTime: S12 with the real service. His archive is from the year 2199, he says; the stamp says
// otherwise, and a policy keeps by stamps.
func cannotSetTime(t *testing.T, w *thief) {
	r := w.c.raw()
	s, a := w.lastOf()
	b := r.body(history.TypeCommit, s.Encode())
	b.Time = time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	e, err := r.post(wire.PathRecords, history.Sign(b, r.m.SignKey(), r.m.Hist))
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(time.Unix(0, e.Time)); d < 0 || d > time.Hour {
		t.Errorf("the stamp is %v off", d)
	}
	ds := history.Keep(history.Policy{Daily: 1}, w.home.history().OfSeries(s.Series))
	if last := ds[len(ds)-1]; last.ID != e.Record.ID() || !last.Keep || !strings.HasPrefix(last.Why[0], "daily "+time.Unix(0, e.Time).UTC().Format(time.DateOnly)) {
		t.Errorf("%v, after %v", last, a)
	}
}

// lastOf returns the fields of the thief's newest commit, to commit the same again.
func (w *thief) lastOf() (history.Commit, history.Archive) {
	w.home.t.Helper()
	as := w.home.history().Archives
	for i := len(as) - 1; i >= 0; i-- {
		if as[i].Signer == w.c.machine().Signer() {
			return as[i].Commit, as[i]
		}
	}
	w.home.t.Fatal("the thief made no archive")
	panic("unreachable")
}

// doFind: what he did stands out in each of the lists.
func doFind(t *testing.T, w *thief) {
	id := w.c.machine().Signer().String()
	o := w.home.ok("list")
	odd := 0
	for line := range strings.Lines(o.stdout) {
		if strings.HasPrefix(line, w.series+"@") && strings.Contains(line, "by "+id[:8]) {
			odd++
			if !strings.Contains(line, "  changed abruptly") {
				t.Errorf("not marked: %s", line)
			}
		} else if strings.Contains(line, "changed abruptly") {
			t.Errorf("marked: %s", line)
		}
	}
	if odd == 0 || !strings.Contains(o.stderr, "series "+w.series+" changed abruptly") {
		t.Errorf("list does not show %d archives of the thief as odd:\n%s%s", odd, o.stdout, o.stderr)
	}
	w.home.has(w.home.ok("key", "list"), id[:16]+"  group")
	w.home.has(w.home.ok("history"), "by "+id[:8]+"  series "+w.home.machine().Series(w.series).String()[:8]+": 5 stored, 0 unchanged")
	w.home.has(w.home.ok("history"), ", changed abruptly")
}

// doRevoke: at once, on connections that are open as well.
func doRevoke(t *testing.T, w *thief) {
	id := w.c.machine().Signer().String()
	r := w.c.raw()
	r.hello() // the connection is open
	w.home.ok("key", "revoke", id[:16], "--since", w.since, "--owner", w.home.owner())
	wants(t, wire.CodeRevoked, r.says(history.TypeCommit, nil), "a commit")
	_, err := r.do(context.Background(), http.MethodGet, wire.PathHistory+"?after=0", nil)
	wants(t, wire.CodeRevoked, err, "the history")
	if h := r.hello(); h.You != "revoked" {
		t.Errorf("hello calls him %s", h.You)
	}
	w.c.refusedCLI(1, "revoked", "create", "-C", filepath.Dir(w.tree), w.series, "tree")
	w.c.refusedCLI(1, "revoked", "history")
	for _, a := range w.home.archives() {
		if mine := a.Machine == w.home.machine().Signer().String(); a.Machine == id && !a.Suspect || mine && a.Suspect {
			t.Errorf("%s by %.8s is suspect: %v", a.Archive, a.Machine, a.Suspect)
		}
	}
	if strings.Contains(w.home.ok("list").stderr, "series "+w.series+" changed abruptly") {
		w.home.ok("confirm", w.series, "--owner", w.home.owner())
	}
}

func doRestoreOlder(t *testing.T, w *thief) {
	for _, a := range []listed{w.good[0], w.good[len(w.good)-1]} {
		w.home.restores(a.ID, w.tree)
	}
}

// doBackUpAgain: nothing that he stored is relied upon, and what was is mended.
func doBackUpAgain(t *testing.T, w *thief) {
	if d := w.home.create("-C", w.loot, w.series+"-poisoned", "poisoned"); d.DataBlocks == 0 {
		t.Errorf("nothing was stored anew: %+v", d)
	}
	for _, a := range w.home.of(w.series + "-poisoned") {
		w.home.restores(a.ID, filepath.Join(w.loot, "poisoned"))
	}
	w.home.ok("create", "-C", filepath.Dir(w.tree), w.series, "tree")
	w.home.restores(w.series, w.tree)
}

// stealLimitedKey steals a key that was enrolled for one series and a little data a day.
func stealLimitedKey(t *testing.T, w *thief) {
	w.tree, w.good = w.home.archived(t, w.series, 4)
	w.c = w.derive(t, "--rights", "write", "--series", w.series, "--day-bytes", "4MiB")
	w.since = time.Now().UTC().Format(time.RFC3339Nano)
}

func canStoreItsSeries(t *testing.T, w *thief) {
	dir := scratch(t)
	writeNoise(t, filepath.Join(dir, "small"), 1, 100<<10)
	w.c.ok("create", "-C", dir, w.series, "small")
}

func cannotStoreAnotherSeries(t *testing.T, w *thief) {
	dir := scratch(t)
	write(t, filepath.Join(dir, "small"), "x")
	before := len(w.home.archives())
	w.c.refusedCLI(1, "", "create", "-C", dir, "another", "small")
	c, _ := w.lastOf()
	c.Series = w.home.machine().Series("another")
	wants(t, wire.CodeForbidden, w.c.raw().says(history.TypeCommit, c.Encode()), "a commit to another series")
	if n := len(w.home.archives()); n != before {
		t.Errorf("%d archives, there were %d", n, before)
	}
}

func cannotExceedCap(t *testing.T, w *thief) {
	dir := scratch(t)
	writeNoise(t, filepath.Join(dir, "large"), 2, 6<<20)
	before := w.home.stored()
	w.c.refusedCLI(5, "may store 4194304 bytes", "create", "-C", dir, w.series, "large")
	if grown := w.home.stored() - before; grown > 4<<20 {
		t.Errorf("he stored %d bytes", grown)
	}
	r := w.c.remote()
	defer r.Close()
	s, err := r.OpenSession(context.Background())
	if err == nil {
		defer s.Close()
		b := wire.AppendBlockHeader(nil, wire.BlockHeader{Kind: hf.KindChunk, Session: s.Secret().ID})
		s.Upload(context.Background(), hf.Name{1}, append(b, make([]byte, 4<<20)...))
		err = s.Drain(context.Background())
	}
	wants(t, wire.CodeCapExceeded, err, "more than the cap")
	w.home.ok("create", "-C", dir, w.series+"-home", "large") // others go on
}

// stored returns what the account of c's vault stores, bytes.
func (c *client) stored() uint64 {
	c.t.Helper()
	b, err := c.raw().do(context.Background(), http.MethodGet, wire.PathUsage, nil)
	var u wire.Usage
	if err == nil {
		err = json.Unmarshal(b, &u)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return u.StoredBytes
}

func canReadAll(t *testing.T, w *thief) {
	w.c.restores(w.good[0].Archive, w.tree)
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 5, 5)
	w.other.ok("create", "-C", dir, w.series+"-other", "tree")
	w.c.restores(w.series+"-other", tree)
}

func canFreeze(t *testing.T, w *thief) {
	w.c.ok("freeze")
	for _, a := range w.home.of(w.series) {
		if a.State == "live" {
			w.home.refusedCLI(1, "frozen", "delete", a.Archive)
			return
		}
	}
	t.Error("nothing is live")
}

func cannotWrite(t *testing.T, w *thief) {
	dir := scratch(t)
	write(t, filepath.Join(dir, "x"), "x")
	w.c.refusedCLI(1, "not write", "create", "-C", dir, w.series, "x")
	m := w.c.machine()
	m.ReadKey = w.home.history().ReadKey
	_, open, err := seal.NewSession(noise(1), m)
	if err != nil {
		t.Fatal(err)
	}
	r := w.c.raw()
	_, err = r.post(wire.PathSession, history.Sign(r.body(history.TypeOpen, open.Encode()), r.m.SignKey(), r.m.Hist))
	wants(t, wire.CodeForbidden, err, "a session")
	wants(t, wire.CodeForbidden, r.says(history.TypeCommit, history.Commit{}.Encode()), "a commit")
}

// doRotate: what is sealed from now on he cannot open, even if he gets at the blocks.
func doRotate(t *testing.T, w *thief) {
	m := w.c.machine()
	before := opensSessions(t, w.s, m)
	if slices.Contains(before, false) {
		t.Fatal("before the rotation he should open everything")
	}
	w.rotate()
	w.home.ok("create", "-C", filepath.Dir(w.tree), w.series+"-later", "tree")
	after := opensSessions(t, w.s, m)
	if !slices.Equal(after[:len(before)], before) {
		t.Error("what he can open of the past has changed")
	}
	if len(after) == len(before) || slices.Contains(after[len(before):], true) {
		t.Errorf("he opens what was sealed after the rotation: %v", after[len(before):])
	}
	w.home.restores(w.series+"-later", w.tree)
}

func doThaw(t *testing.T, w *thief) {
	w.home.ok("thaw", "--owner", w.home.owner())
	if w.home.history().Frozen {
		t.Error("frozen")
	}
}

func canDeleteHalf(t *testing.T, w *thief) {
	ids := w.ids(4)
	if err := w.c.raw().says(history.TypeDelete, history.SortIDs(ids[:2]).Encode()); err != nil {
		t.Fatal(err)
	}
	deleted := 0
	for _, a := range w.home.of(w.series) {
		if a.State == "deleted" {
			deleted++
		}
	}
	if deleted != 2 {
		t.Errorf("%d archives are deleted", deleted)
	}
}

func (w *thief) live() (ids history.IDs) {
	h := w.home.history()
	for _, a := range h.OfSeries(w.home.machine().Series(w.series)) {
		if a.State == history.Live && !a.Suspect && a.Signer == w.home.machine().Signer() {
			ids = append(ids, a.ID)
		}
	}
	return history.SortIDs(ids)
}

func cannotDeleteTheRest(t *testing.T, w *thief) {
	r := w.c.raw()
	live := w.live()
	wants(t, wire.CodeNeedsOwner, r.says(history.TypeDelete, live.Encode()), "delete the rest")
	wants(t, wire.CodeNeedsOwner, r.says(history.TypeDelete, history.SortIDs(live[:1]).Encode()), "delete one more")
}

// cannotDeleteFrozen: whoever froze it, nobody deletes.
func cannotDeleteFrozen(t *testing.T, w *thief) {
	wants(t, wire.CodeFrozen, w.c.raw().says(history.TypeDelete, w.live().Encode()), "delete while frozen")
}

func cannotRemoveForGood(t *testing.T, w *thief) {
	wants(t, wire.CodeForbidden, w.c.raw().says(history.TypePurge, w.ids(2).Encode()), "purge")
	w.home.restores(w.good[0].Archive, w.tree)
	for _, a := range w.home.of(w.series) {
		if a.State == "deleted" && (a.Until == nil || time.Until(*a.Until) < 7*24*time.Hour-time.Hour) {
			t.Errorf("%s can be brought back until %v only", a.Archive, a.Until)
		}
	}
}

// cannotRewriteHistory: he signs other records in the place of his own, and one that cites a head that never was.
func cannotRewriteHistory(t *testing.T, w *thief) {
	r := w.c.raw()
	b := r.body(history.TypeFreeze, nil)
	if b.Seq == 0 {
		t.Fatal("he signed nothing yet")
	}
	b.Seq, b.Prev = 0, hf.RecordID{}
	_, err := r.post(wire.PathRecords, history.Sign(b, r.m.SignKey(), r.m.Hist))
	wants(t, wire.CodeStaleChain, err, "his first record anew")
	b = r.body(history.TypeFreeze, nil)
	b.SeenN, b.SeenHead = 2, hf.Head{1}
	if _, err := r.post(wire.PathRecords, history.Sign(b, r.m.SignKey(), r.m.Hist)); wire.CodeOf(err) == "" {
		t.Errorf("a record that cites an invented head: %v", err)
	}
	w.home.ok("history") // remembers what it saw, and finds it continued
}

func doFreeze(t *testing.T, w *thief) {
	w.home.ok("freeze")
	wants(t, wire.CodeFrozen, w.c.raw().says(history.TypeDelete, history.SortIDs(w.live()[:1]).Encode()), "delete while frozen")
}

func doUndelete(t *testing.T, w *thief) {
	args := []string{"undelete"}
	for _, a := range w.home.of(w.series) {
		if a.State == "deleted" {
			args = append(args, a.Archive)
		}
	}
	if len(args) != 3 {
		t.Fatalf("deleted are %v", args[1:])
	}
	w.home.ok(args...)
	for _, a := range w.home.of(w.series) {
		if a.State != "live" {
			t.Errorf("%s is %s", a.Archive, a.State)
		}
	}
}

// stealOldReadKey steals the key file of a machine that may read; then the victim does what he should.
func stealOldReadKey(t *testing.T, w *thief) {
	stealKey(hf.RightRead)(t, w)
	w.home.ok("key", "revoke", w.c.machine().Signer().String(), "--owner", w.home.owner())
	w.rotate()
	w.home.ok("create", "-C", filepath.Dir(w.tree), w.series, "tree")
}

// canOpenOlder: with a copy of the bucket in his hands. Taking a key away takes nothing back.
func canOpenOlder(t *testing.T, w *thief) {
	open := opensSessions(t, w.s, w.c.machine())
	if len(open) < 2 || !open[len(open)-2] {
		t.Errorf("sessions that he opens: %v", open)
	}
}

func cannotOpenNewer(t *testing.T, w *thief) {
	if open := opensSessions(t, w.s, w.c.machine()); open[len(open)-1] {
		t.Errorf("sessions that he opens: %v", open)
	}
}

func cannotFetch(t *testing.T, w *thief) {
	a := w.home.history().Archives[0]
	_, err := w.c.raw().fetch(a.Commit.Group, a.Commit.Root)
	wants(t, wire.CodeRevoked, err, "fetch")
	w.c.refusedCLI(1, "revoked", "list")
}

func doCheckOwnKey(t *testing.T, w *thief) {
	w.home.ok("verify", w.series)
	w.home.restores(w.good[0].Archive, w.tree)
	if open := opensSessions(t, w.s, w.home.machine()); slices.Contains(open, false) {
		t.Errorf("sessions that the new key opens: %v", open)
	}
}

// stealProtectedKey steals a key file with every right that a passphrase protects.
func stealProtectedKey(t *testing.T, w *thief) {
	w.tree, w.good = w.home.archived(t, w.series, 1)
	w.c = w.derive(t, "--rights", "write,read,delete")
	w.stolen = w.c.machine()
	phrase := filepath.Join(scratch(t), "passphrase")
	if err := os.WriteFile(phrase, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.c.ok("key", "protect", "--new-passphrase-file", phrase)
	w.c.ok("list", "--passphrase-file", phrase)
	if err := os.RemoveAll(w.c.cache()); err != nil {
		t.Fatal(err)
	}
}

func canSeeProtection(t *testing.T, w *thief) {
	b, err := os.ReadFile(w.c.key())
	if err != nil || !bytes.HasPrefix(b, []byte("-----BEGIN AGE ENCRYPTED FILE-----")) && !bytes.HasPrefix(b, []byte("age-encryption.org/v1\n-> scrypt ")) {
		t.Errorf("the file begins with %.60q, %v", b, err)
	}
}

func cannotUseProtected(t *testing.T, w *thief) {
	wrong := filepath.Join(scratch(t), "passphrase")
	if err := os.WriteFile(wrong, []byte("incorrect horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.c.refusedCLI(1, "passphrase", "list", "--passphrase-file", wrong)
	w.c.refusedCLI(1, "passphrase", "list")
	w.c.refusedCLI(1, "passphrase", "key", "show")
	for _, key := range [][]byte{w.stolen.Seed[:], w.stolen.V[:], w.stolen.ReadSeed[:]} {
		if found(t, w.c.dir, key) || found(t, w.c.dir, fmt.Appendf(nil, "%x", key)) {
			t.Error("a secret stands in the file")
		}
	}
}

// doRevokeProtected: a passphrase can be guessed, given time.
func doRevokeProtected(t *testing.T, w *thief) {
	id := w.stolen.Signer().String()
	w.home.has(w.home.ok("key", "list"), id[:16])
	w.home.ok("key", "revoke", id[:16], "--owner", w.home.owner())
	w.home.has(w.home.ok("key", "list"), "revoked, not trusted since")
}

// stealOwner steals the 24 words of a vault, and knows where its service is.
func stealOwner(t *testing.T, w *thief) {
	w.tree, w.good = w.home.archived(t, w.series, 3)
	w.c = unenrolled(t)
	w.since = time.Now().UTC().Format(time.RFC3339Nano)
}

func canEnrolAndReadAll(t *testing.T, w *thief) {
	if out, code := w.c.typed(w.home.words(), "init", "--recover", "--address", w.vault.owner.Address,
		"--service-key", fmt.Sprintf("%x", w.vault.owner.ServiceKey), "--log-key", fmt.Sprintf("%x", w.vault.owner.LogKey)); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	w.c.restores(w.series, w.tree)
}

func canRevokeYours(t *testing.T, w *thief) {
	if out, code := w.c.typed(w.home.words(), "key", "revoke", w.home.machine().Signer().String()); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	w.home.refusedCLI(1, "revoked", "list")
}

func canDeleteAll(t *testing.T, w *thief) {
	args := []string{"delete", "--owner", "-"}
	for _, a := range w.c.archives() {
		args = append(args, a.Archive)
	}
	if out, code := w.c.typed(w.home.words(), args...); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if out, code := w.c.typed(w.home.words(), "policy", "set", "--keep-last", "1"); code != 0 {
		t.Errorf("policy set: exit %d: %s", code, out)
	}
	for _, a := range w.c.archives() {
		if a.State != "deleted" {
			t.Errorf("%s is %s", a.Archive, a.State)
		}
	}
}

// canTakeReadKey: the history does not say whose words a read key comes from. A machine that may read finds out.
func canTakeReadKey(t *testing.T, w *thief) {
	r := w.c.remote()
	defer r.Close()
	his := keyring.NewOwner().ReadKey(0)
	if _, err := r.SubmitAsOwner(context.Background(), w.vault.owner.Owner.SignKey(), history.TypeRotateRead, history.RotateRead{ReadKey: his}.Encode()); err != nil {
		t.Fatal(err)
	}
	w.c.has(w.c.ok("create", "-C", filepath.Dir(w.tree), w.series+"-later", "tree"), "somebody else has the owner's words")
	if o := w.c.run("list", w.series+"-later"); o.code == 0 {
		t.Error("the machine reads what was stored for another read key")
	}
	o := w.c.run("key", "update", "--owner", w.home.owner())
	if o.code == 0 || !strings.Contains(o.stderr, "read key") {
		t.Errorf("key update ends with %d: %s", o.code, o.stderr)
	}
	again := unenrolled(t)
	again.ok("init", "--recover", "--owner", w.home.owner())
	again.restores(w.good[0].Archive, w.tree)
}

func cannotPurgeAsOwner(t *testing.T, w *thief) {
	h := w.c.history()
	ids := history.SortIDs([]hf.RecordID{h.Archives[0].ID})
	r := w.c.raw()
	b := history.Body{Type: history.TypePurge, Vault: r.m.Vault, Seq: h.Owner.Seq, Prev: h.Owner.Prev, Fields: ids.Encode()}
	_, err := r.post(wire.PathRecords, history.Sign(b, w.vault.owner.Owner.SignKey(), r.m.Hist))
	wants(t, wire.CodeForbidden, err, "purge")
	w.c.restores(w.good[0].Archive, w.tree)
}

// left is the least time that remains to bring a deleted archive back.
func left(t *testing.T, c *client) time.Duration {
	t.Helper()
	least := time.Duration(1 << 62)
	for _, a := range c.archives() {
		if a.Until != nil {
			least = min(least, time.Until(*a.Until))
		}
	}
	return least
}

const week = 7 * 24 * time.Hour

func cannotShortenDelay(t *testing.T, w *thief) {
	w.c.ok("policy", "delay", "1d", "--owner", w.home.owner())
	if got := left(t, w.c); got < week-time.Hour || got > week {
		t.Errorf("deleted archives can be brought back for another %v", got)
	}
	r := w.c.remote()
	defer r.Close()
	_, err := r.SubmitAsOwner(context.Background(), w.vault.owner.Owner.SignKey(), history.TypeDelay, history.Delay{Seconds: 3600}.Encode())
	wants(t, wire.CodeBadRequest, err, "a delay of an hour")
}

func cannotHide(t *testing.T, w *thief) {
	shown := w.c.ok("history").stdout
	for _, what := range []string{
		fmt.Sprintf("enrol        by owner     machine %.8s", w.c.machine().Signer()),
		fmt.Sprintf("revoke       by owner     machine %.8s", w.home.machine().Signer()),
		"delete       by owner     3 archives",
		"delay        by owner",
	} {
		if !strings.Contains(shown, what) {
			t.Errorf("the history does not show %q:\n%s", what, shown)
		}
	}
}

func cannotReachOtherVaults(t *testing.T, w *thief) {
	stranger := newClient(t, w.s)
	stranger.ok("create", "-C", filepath.Dir(w.tree), "mine", "tree")
	a := stranger.history().Archives[0]
	if n, err := w.c.raw().fetch(a.Commit.Group, a.Commit.Root); n != 0 || err != nil {
		t.Errorf("%d blocks of another vault, %v", n, err)
	}
	r := w.c.remote()
	defer r.Close()
	ids, err := r.Vaults(context.Background(), w.c.machine().Owner)
	if err != nil || len(ids) != 1 || ids[0] != w.c.machine().Vault {
		t.Errorf("vaults of his owner key: %v, %v", ids, err)
	}
	b := history.Body{Type: history.TypeFreeze, Vault: stranger.machine().Vault}
	_, err = w.c.raw().post(wire.PathRecords, history.Sign(b, w.vault.owner.Owner.SignKey(), w.c.machine().Hist))
	wants(t, wire.CodeForbidden, err, "freeze another vault")
}

func doComeBack(t *testing.T, w *thief) {
	back := unenrolled(w.row)
	w.made = append(w.made, back)
	back.ok("init", "--recover", "--owner", w.home.owner())
	back.restores(w.good[0].Archive, w.tree)
}

// doLengthenDelay: at once, for what is deleted already, and the thief waits a year before it is shorter.
func doLengthenDelay(t *testing.T, w *thief) {
	const year = 365 * 24 * time.Hour
	back := w.made[0]
	back.ok("policy", "delay", "365d", "--owner", w.home.owner())
	w.c.ok("policy", "delay", "1d", "--owner", w.home.owner())
	if got := left(t, back); got < year-time.Hour {
		t.Errorf("deleted archives can be brought back for another %v", got)
	}
}

func doUndeleteAsOwner(t *testing.T, w *thief) {
	back := w.made[0]
	args := []string{"undelete", "--owner", w.home.owner()}
	for _, a := range back.archives() {
		args = append(args, a.Archive)
	}
	back.ok(args...)
	back.restores(w.series, w.tree)
}

// doMove: there is no taking the words back, so the vault is left behind.
func doMove(t *testing.T, w *thief) {
	out := filepath.Join(scratch(t), "out")
	w.made[0].ok("extract", w.series, "--target", out)
	moved := newClient(t, w.s)
	moved.ok("create", "-C", out, w.series, "tree")
	moved.restores(w.series, w.tree)
	if out, code := moved.typed(w.home.words(), "thaw"); code != 2 {
		t.Errorf("the stolen words in the new vault: exit %d: %s", code, out)
	}
}

func stealToken(t *testing.T, w *thief) {
	w.token = w.s.token("account-of-" + w.name)
	w.c = unenrolled(t)
}

func canMakeAVault(t *testing.T, w *thief) {
	w.c.ok("init", "--token", w.token)
	dir := scratch(t)
	write(t, filepath.Join(dir, "x"), "x")
	w.c.ok("create", "-C", dir, "his", "x")
}

func cannotReachWhatExists(t *testing.T, w *thief) {
	if n := len(w.c.archives()); n != 1 || w.c.machine().Vault == w.home.machine().Vault {
		t.Errorf("he sees %d archives", n)
	}
	tree, _ := w.home.archived(t, w.series, 1)
	as := w.home.history().Archives
	a := as[len(as)-1]
	if n, err := w.c.raw().fetch(a.Commit.Group, a.Commit.Root); n != 0 || err != nil {
		t.Errorf("%d blocks of another vault, %v", n, err)
	}
	w.home.restores(w.series, tree)
}

func doAskForAnother(t *testing.T, w *thief) {
	c := unenrolled(t)
	w.made = append(w.made, c)
	c.refusedCLI(1, "redeemed before, by another key", "init", "--token", w.token)
	c.ok("init", "--token", strings.TrimSpace(w.s.admin("account", "token", "account-of-"+w.name, "--data", w.s.data)))
	dir := scratch(t)
	write(t, filepath.Join(dir, "x"), "x")
	c.ok("create", "-C", dir, "mine", "x")
	c.restoresFile("mine", "x", "x")
}

// restoresFile checks one file of an archive.
func (c *client) restoresFile(archive, path, want string) {
	c.t.Helper()
	out := filepath.Join(scratch(c.t), "out")
	c.ok("extract", archive, "--target", out)
	if b, err := os.ReadFile(filepath.Join(out, path)); err != nil || string(b) != want {
		c.t.Errorf("%s of %s: %q, %v", path, archive, b, err)
	}
}

func stealUsedToken(t *testing.T, w *thief) {
	stealToken(t, w)
	w.other = unenrolled(t)
	w.other.ok("init", "--token", w.token)
}

func canKnowTheService(t *testing.T, w *thief) {
	k, err := wire.ParseToken(w.token)
	if err != nil || k.Address != w.s.address || k.ServiceKey != w.other.machine().ServiceKey {
		t.Errorf("%+v, %v", k, err)
	}
}

func cannotRedeem(t *testing.T, w *thief) {
	w.c.refusedCLI(1, "redeemed before, by another key", "init", "--token", w.token)
	if _, err := os.Stat(w.c.key()); err == nil {
		t.Error("he has a key file")
	}
}

func doGoOn(t *testing.T, w *thief) {
	dir := scratch(t)
	write(t, filepath.Join(dir, "x"), "x")
	w.other.ok("create", "-C", dir, "mine", "x")
	w.other.restoresFile("mine", "x", "x")
}

// stealCache copies a machine's cache directory, and lets the thief write there.
func stealCache(t *testing.T, w *thief) {
	w.other = w.derive(t, "--rights", "write,read,delete")
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "salaries-MARKER-name"), strings.Repeat("MARKER-content ", 100))
	w.tree = smallTree(t, dir, "tree", 3, 40)
	w.other.ok("create", "-C", dir, w.series, "tree")
	w.loot = filepath.Join(scratch(t), "cache")
	copyTree(t, w.other.cache(), w.loot)
}

func canSeeNames(t *testing.T, w *thief) {
	if !found(t, w.loot, []byte("salaries-MARKER-name")) {
		t.Error("no name of a file is in the cache; say so in the table")
	}
}

// found reports whether some file below dir contains what.
func found(t testing.TB, dir string, what []byte) (yes bool) {
	t.Helper()
	files := 0
	eachFile(t, dir, func(p string) {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		files++
		yes = yes || bytes.Contains(b, what)
	})
	if files == 0 {
		t.Fatalf("nothing in %s", dir)
	}
	return yes
}

func eachFile(t testing.TB, dir string, fn func(path string)) {
	t.Helper()
	if err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			fn(p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func cannotSeeContentsOrKeys(t *testing.T, w *thief) {
	m := w.other.machine()
	for what, key := range map[string][]byte{
		"content": []byte("MARKER-content"), "machine seed": m.Seed[:], "V": m.V[:], "G": m.G[:], "K_hist": m.Hist[:], "read seed": m.ReadSeed[:],
		"signing key": m.SignKey().Seed(), "TLS key": m.TLSKey().Seed(),
	} {
		if found(t, w.loot, key) || found(t, w.loot, fmt.Appendf(nil, "%x", key)) {
			t.Errorf("the cache holds the %s", what)
		}
	}
}

// cannotMislead: the catalog says that files are unchanged; the thief writes there what he likes.
func cannotMislead(t *testing.T, w *thief) {
	writeText(t, filepath.Join(w.tree, "000", "file-00001"), 77, 3000)
	changeFiles(t, filepath.Join(w.other.cache(), "holdfast"), "catalog", func(_ string, raw []byte) []byte {
		raw[len(raw)/2] ^= 1
		return raw
	})
	w.other.ok("create", "-C", filepath.Dir(w.tree), w.series, "tree")
	w.other.restores(w.series, w.tree)
}

// canSetMemoryBack: the copy of the cache is from before the newest archive.
func canSetMemoryBack(t *testing.T, w *thief) {
	older := map[string][]byte{}
	eachFile(t, w.loot, func(p string) {
		if b, err := os.ReadFile(p); err == nil && filepath.Base(p) == "head" {
			older[filepath.Base(filepath.Dir(p))] = b
		}
	})
	changeFiles(t, filepath.Join(w.other.cache(), "holdfast"), "head", func(p string, raw []byte) []byte {
		was := older[filepath.Base(filepath.Dir(p))]
		if len(was) == 0 || bytes.Equal(was, raw) {
			t.Fatal("the copy has no older head")
		}
		return was
	})
	if o := w.other.ok("list"); strings.Contains(o.stderr, "unverified") {
		t.Errorf("it is noticed, say so in the table: %s", o.stderr)
	}
}

// cannotInventHead: a head that is not in the history is taken for a lie of the service's.
func cannotInventHead(t *testing.T, w *thief) {
	changeFiles(t, filepath.Join(w.other.cache(), "holdfast"), "head", func(_ string, raw []byte) []byte {
		if last := len(raw) - 2; raw[last] == '0' {
			raw[last] = '1'
		} else {
			raw[last] = '0'
		}
		return raw
	})
	w.other.refusedCLI(4, "saw another head there earlier", "list")
}

func doDeleteCache(t *testing.T, w *thief) {
	if err := os.RemoveAll(w.other.cache()); err != nil {
		t.Fatal(err)
	}
	code := headCodeOf(w.home.ok("history").stdout)
	w.other.has(w.other.ok("list"), "freshness unverified")
	w.other.ok("history", "--expect-head", code)
	w.other.ok("create", "-C", filepath.Dir(w.tree), w.series, "tree")
	w.other.restores(w.series, w.tree)
}

func headCodeOf(shown string) string {
	_, code, _ := strings.Cut(shown, "head code  ")
	return strings.TrimSpace(code)
}

// stealServiceKeys makes a service of its own with a customer, and copies its identity file and its bucket as
// they are before the customer's newest archive.
func stealServiceKeys(t *testing.T, w *thief) {
	w.at = newService(t)
	w.other = newClient(t, w.at)
	w.tree, w.good = w.other.archived(t, w.series, 2)
	w.at.stop()
	w.loot = filepath.Join(scratch(t), "copy")
	copyTree(t, filepath.Dir(w.at.data), w.loot)
	w.at.start()
	w.other.ok("create", "-C", filepath.Dir(w.tree), w.series, "tree")
}

// impostor serves at the real service's address with other keys and a copy of its bucket, for as long as fn runs.
func (w *thief) impostor(t *testing.T, change func(*identity.Identity), fn func()) {
	t.Helper()
	w.at.stop()
	dir := filepath.Join(scratch(t), "impostor")
	copyTree(t, w.loot, dir)
	raw, err := os.ReadFile(filepath.Join(dir, "data", identity.FileName))
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	id.Bucket = "file://" + filepath.Join(dir, "bucket")
	change(id)
	if err := os.WriteFile(filepath.Join(dir, "data", identity.FileName), id.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(dir, "bucket")
	imp := &service{t: t, data: filepath.Join(dir, "data"), place: inDirectory(kept), bucket: kept, address: w.at.address}
	imp.start()
	fn()
	imp.stop()
	w.at.start()
}

func newLogKey(id *identity.Identity) { id.Log[0] ^= 1 }
func newTLSKey(id *identity.Identity) { id.TLS[0] ^= 1 }
func bothKeys(*identity.Identity)     {}

// canPose: clients talk to him, and what he shows of old records is genuine.
func canPose(t *testing.T, w *thief) {
	newcomer := w.newcomer()
	w.impostor(t, newLogKey, func() {
		newcomer.restores(w.series, w.tree)
	})
}

// newcomer is a copy of the customer's machine that remembers nothing.
func (w *thief) newcomer() *client {
	w.other.t.Helper()
	c := unenrolled(w.other.t)
	b, err := os.ReadFile(w.other.key())
	if err == nil {
		err = os.WriteFile(c.key(), b, 0o600)
	}
	if err != nil {
		w.other.t.Fatal(err)
	}
	return c
}

// cannotAddToHistory: a backup ends before its first block is sent.
func cannotAddToHistory(t *testing.T, w *thief) {
	newcomer := w.newcomer()
	w.impostor(t, newLogKey, func() {
		w.other.refusedCLI(4, "this machine saw record", "create", "-C", filepath.Dir(w.tree), w.series, "tree")
		newcomer.refusedCLI(4, "signature does not verify", "create", "-C", filepath.Dir(w.tree), w.series, "tree")
	})
}

// cannotReadAsService: nothing in his hands opens a block.
func cannotReadAsService(t *testing.T, w *thief) {
	cannotReadBucket(t, w)
	for _, key := range [][]byte{w.other.machine().V[:], w.other.machine().G[:], w.other.machine().Hist[:], w.other.machine().ReadSeed[:]} {
		if found(t, w.loot, key) || found(t, w.loot, fmt.Appendf(nil, "%x", key)) {
			t.Error("the service has a customer's secret")
		}
	}
}

// doGoOnAtService: the real service is back, and nothing is missing.
func doGoOnAtService(t *testing.T, w *thief) {
	w.other.ok("create", "-C", filepath.Dir(w.tree), w.series, "tree")
	w.other.ok("verify")
	w.other.restores(w.series, w.tree)
}

func cannotPoseWithLogKey(t *testing.T, w *thief) {
	w.impostor(t, newTLSKey, func() {
		w.other.refusedCLI(4, "do not go on before its operator has told you why", "list")
	})
}

func canRollBackForNewcomers(t *testing.T, w *thief) {
	newcomer := w.newcomer()
	w.impostor(t, bothKeys, func() {
		if n := len(newcomer.archives()); n != len(w.good) {
			t.Errorf("a newcomer sees %d archives", n)
		}
		if err := os.RemoveAll(newcomer.cache()); err != nil {
			t.Fatal(err)
		}
		newcomer.has(newcomer.ok("list"), "freshness unverified")
	})
}

func cannotRollBack(t *testing.T, w *thief) {
	w.impostor(t, bothKeys, func() {
		w.other.refusedCLI(4, "this machine saw record", "list")
	})
}

// canDestroy: who has the operator's bucket can empty it. The operator's replica is what is left.
func canDestroy(t *testing.T, w *thief) {
	w.at.stop()
	object := w.largest()
	raw, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	overwriteObject(t, object, append(make([]byte, len(raw)/2), raw[len(raw)/2:]...))
	if _, code := w.at.try("check", "--data", w.at.data); code != 4 {
		t.Errorf("check ends with %d", code)
	}
	w.at.start()
	w.other.exits(4, "verify")
	w.at.stop()
	overwriteObject(t, object, raw)
	w.at.start()
}

func overwriteObject(t *testing.T, object string, raw []byte) {
	t.Helper()
	err := os.Chmod(object, 0o600)
	if err == nil {
		err = os.WriteFile(object, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func doCompareHeadCodes(t *testing.T, w *thief) {
	code := headCodeOf(w.other.ok("history").stdout)
	newcomer := w.newcomer()
	w.impostor(t, bothKeys, func() {
		newcomer.refusedCLI(4, "is expected", "history", "--expect-head", code)
	})
	newcomer.ok("history", "--expect-head", code)
}

// stealBucket makes a service of its own with a customer whose words can be looked for.
func stealBucket(t *testing.T, w *thief) {
	w.at = newService(t)
	w.other = newClient(t, w.at)
	dir := scratch(t)
	write(t, filepath.Join(dir, "tree", "MARKER-name"), strings.Repeat("MARKER-content ", 100))
	w.tree = smallTree(t, dir, "tree", 3, 30)
	writeNoise(t, filepath.Join(w.tree, "large"), 4, 400<<10)
	w.other.ok("create", "-C", dir, w.series, "tree")
	w.good = w.other.of(w.series)
}

func canSeeWhoAndWhen(t *testing.T, w *thief) {
	if n := commits(t, w.at); n != 1 {
		t.Errorf("he counts %d archives", n)
	}
}

func cannotReadBucket(t *testing.T, w *thief) {
	for _, dir := range []string{w.at.bucket, w.at.data} {
		for _, what := range []string{"MARKER-name", "MARKER-content", w.series, "file-00001"} {
			if found(t, dir, []byte(what)) {
				t.Errorf("%q lies in %s", what, filepath.Base(dir))
			}
		}
	}
}

// largest returns the object that holds most.
func (w *thief) largest() string {
	w.at.t.Helper()
	var best string
	var size int64
	for _, k := range bucketKeys(w.at.t, w.at) {
		if info, err := os.Stat(k); err == nil && info.Size() > size {
			best, size = k, info.Size()
		}
	}
	return best
}

// canDamageBucket flips bits all over the blocks of the largest object and keeps what it was.
func canDamageBucket(t *testing.T, w *thief) {
	w.at.stop()
	object := w.largest()
	raw, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	w.loot = filepath.Join(scratch(w.row), "replica")
	if err := os.WriteFile(w.loot, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for i := 1000; i < 300_000; i += 1000 {
		raw[i] ^= 0x10
	}
	overwriteObject(t, object, raw)
	w.at.start()
	w.other.exits(4, "verify", w.series)
}

// cannotDamageUnnoticed: what comes back is exact, and what does not is named.
func cannotDamageUnnoticed(t *testing.T, w *thief) {
	out := filepath.Join(scratch(t), "out")
	o := w.other.exits(4, "extract", w.series, "--target", out)
	exact, missing := 0, 0
	eachFile(t, w.tree, func(p string) {
		rel, err := filepath.Rel(filepath.Dir(w.tree), p)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(out, rel))
		switch {
		case err == nil && bytes.Equal(got, want):
			exact++
		case strings.Contains(o.stdout+o.stderr, rel):
			missing++
		default:
			t.Errorf("%s: %d bytes of %d, %v, and it is not named", rel, len(got), len(want), err)
		}
	})
	t.Logf("%d files exact, %d missing", exact, missing)
	if missing == 0 {
		t.Error("nothing was damaged")
	}
}

// cannotAddToBucket: a segment that nobody wrote is not accepted.
func cannotAddToBucket(t *testing.T, w *thief) {
	before := w.other.history()
	keys := bucketKeys(t, w.at)
	last := keys[len(keys)-1]
	raw, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	base := []byte(filepath.Base(last))
	i := bytes.IndexByte(base, '-') + 1 // its nonce, or whatever follows: another name in any case
	if base[i] == '0' {
		base[i] = '1'
	} else {
		base[i] = '0'
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(last), string(base)), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	w.at.stop()
	w.at.start()
	if after := w.other.history(); after.N != before.N || after.Head != before.Head {
		t.Error("the history has changed")
	}
	if err := os.Remove(filepath.Join(filepath.Dir(last), string(base))); err != nil {
		t.Fatal(err)
	}
}

func doCheckBucket(t *testing.T, w *thief) {
	w.at.stop()
	o, code := w.at.try("check", "--data", w.at.data)
	if code != 4 || !strings.Contains(o.stdout+o.stderr, "block") {
		t.Errorf("exit %d: %s%s", code, o.stdout, o.stderr)
	}
	w.at.start()
}

func doBringBackBucket(t *testing.T, w *thief) {
	w.at.stop()
	raw, err := os.ReadFile(w.loot)
	if err != nil {
		t.Fatal(err)
	}
	overwriteObject(t, w.largest(), raw)
	w.at.admin("check", "--data", w.at.data)
	w.at.start()
	w.other.ok("verify", w.series)
	w.other.restores(w.series, w.tree)
}
