package main

import (
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"

	"holdfast"
	"holdfast/history"
)

// Whoever reads what a nightly run says learns what others did to the vault since the run before: that archives
// were deleted above all. Each is told once, and a machine's first run tells nothing.
func TestCreateTellsWhatOthersDid(t *testing.T) {
	warm(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t) // its owner has set a policy between the two archives
		const head = "since this machine's last archive:"
		if s := w.ok("create", "-C", w.dir, "docs", "docs"); strings.Contains(s.out, head) {
			t.Errorf("nothing happened since, and it says\n%s", s.out)
		}
		old := w.svc.Vault.Archives[0]
		w.svc.Rule(history.TypeDelete, history.IDs{old.ID}.Encode())
		thief := w.another(holdfast.GroupID{9}, holdfast.RightWrite)
		if s := thief.create("docs"); s.code != 0 || strings.Contains(s.out, head) {
			t.Errorf("a machine's first run: exit %d\n%s", s.code, s.out)
		}
		s := w.ok("create", "-C", w.dir, "docs", "docs")
		_, news, _ := strings.Cut(s.out, head+"\n")
		lines := strings.Split(strings.TrimSpace(news), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "delete by owner  1 archive of record") || !strings.Contains(lines[1], "enrol by owner  machine ") {
			t.Errorf("told:\n%s", s.out)
		}
		// What is read in between takes nothing away.
		w.svc.Rule(history.TypeUndelete, history.IDs{old.ID}.Encode())
		w.ok("list")
		for range maxNews {
			w.svc.Rule(history.TypeThaw, nil)
		}
		s = w.ok("create", "-C", w.dir, "docs", "docs", "--json")
		var doc summary
		if err := json.Unmarshal([]byte(s.out), &doc); err != nil {
			t.Fatal(err)
		}
		if len(doc.News) != 1+maxNews || doc.News[0].Type != "undelete" || doc.News[0].Signer != "owner" {
			t.Errorf("JSON tells %+v", doc.News)
		}
		var text strings.Builder
		doc.write(&text)
		if got := strings.Count(text.String(), " by owner "); got != maxNews || !strings.Contains(text.String(), "and 1 more; `holdfast history`") {
			t.Errorf("of %d, the text tells\n%s", len(doc.News), text.String())
		}
		if s := w.ok("create", "-C", w.dir, "docs", "docs"); strings.Contains(s.out, head) {
			t.Errorf("it is told again:\n%s", s.out)
		}
	})
}
