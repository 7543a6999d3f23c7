package main

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/history"
	"holdfast/wire"
)

// TestUnpaidVault: whoever uses a vault for which nobody pays is told so at every occasion, from when on and what
// then became of which archive, and gets back after paying what is not gone.
func TestUnpaidVault(t *testing.T) {
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		told := func(what, text string, parts ...string) {
			t.Helper()
			for _, p := range parts {
				if !strings.Contains(text, p) {
					t.Errorf("%s does not say %q:\n%s", what, p, text)
				}
			}
		}
		for _, c := range [][]string{{"list"}, {"policy", "show"}, {"create", "-C", w.dir, "docs", "docs"}} {
			if s := w.ok(c...); strings.Contains(s.warn, "CREDIT") || strings.Contains(s.warn, "lapsed") {
				t.Errorf("%s of a vault that is paid: %s", c[0], s.warn)
			}
		}
		until := time.Now().Add(40 * 24 * time.Hour).Truncate(time.Second)
		from := until.UTC().Format(time.RFC3339)
		w.svc.Rule(history.TypeArrears, history.Arrears{Until: until.UnixNano()}.Encode())
		for _, c := range [][]string{{"list"}, {"policy", "show"}, {"create", "-C", w.dir, "docs", "docs"}} {
			s := w.ok(c...)
			told(c[0], s.warn, "THE ACCOUNT HAS NO CREDIT. From "+from)
			if c[0] == "create" {
				told("the summary", s.out, "arrears by service  the account has no credit: archives may lapse from "+from+" on")
			}
		}
		w.refuse("/sessions", wire.CodeOutOfCredit)
		s := w.run("create", "-C", w.dir, "docs", "docs")
		if told("create", s.warn, "CREDIT. From "+from); s.code != exitUnavailable {
			t.Errorf("create without credit: exit %d: %s", s.code, s.line)
		}
		w.svc.Hook = nil
		told("history", w.ok("history").out, "by service   the account has no credit: archives may lapse from "+from+" on")

		time.Sleep(40 * 24 * time.Hour)
		a := w.svc.Vault.Archives[0]
		name := "docs@" + time.Unix(0, a.Time).UTC().Format("2006-01-02T15:04:05Z")
		w.svc.Rule(history.TypeLapse, history.IDs{a.ID}.Encode())
		gone := time.Now().Add(7 * 24 * time.Hour).UTC().Format(time.RFC3339)
		s = w.ok("list")
		told("list", s.out, "lapsed, can be brought back until "+gone+", after paying")
		told("list", s.warn, "1 archive lapsed, as nobody paid, and can be brought back until "+gone+": pay, then bring")
		told("history", w.ok("history").out, "lapse        by service   1 archive of record")
		s = w.run("undelete", name)
		if told("undelete", s.line, "gone for good after "+gone, "pay, then run the same command again"); s.code != exitUnavailable || strings.Contains(s.line, "upload") {
			t.Errorf("undelete unpaid: exit %d", s.code)
		}
		s = w.ok("create", "-C", w.dir, "docs", "docs")
		told("create", s.warn, "CREDIT", "1 archive lapsed")
		told("the summary", s.out, "lapse by service  1 archive of record")

		w.svc.Rule(history.TypeArrears, history.Arrears{}.Encode())
		gone = time.Unix(0, w.svc.Vault.Told).Add(7 * 24 * time.Hour).UTC().Format(time.RFC3339) // from then on
		s = w.ok("list")
		if told("list", s.warn, "can be brought back until "+gone+": bring"); strings.Contains(s.warn, "CREDIT") || strings.Contains(s.out, "paying") {
			t.Errorf("list after paying: %s\n%s", s.warn, s.out)
		}
		told("undelete", w.ok("undelete", name).out, "brought back 1 archive")
		s = w.ok("list")
		if strings.Contains(s.warn+s.out, "lapsed") {
			t.Errorf("list: %s\n%s", s.warn, s.out)
		}
		told("history", w.ok("history").out, "by service   paid again")
	})
}
