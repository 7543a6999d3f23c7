//go:build linux

package e2e

import (
	"bytes"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var htmlLine = regexp.MustCompile(`<span class="number">(\d+:)</span> ([0-9A-Z ]+)<b>([0-9A-Z]{4})</b>`)

// printed returns what the page shows to type, and the page's text.
func (k *keys) printed(page string) (lines []string, text string) {
	k.t.Helper()
	text = html.UnescapeString(string(k.read(page)))
	for _, l := range htmlLine.FindAllStringSubmatch(text, -1) {
		lines = append(lines, strings.Join(l[1:], " "))
	}
	if st, err := os.Stat(k.path(page)); err != nil || st.Mode().Perm() != 0o600 || len(lines) == 0 {
		k.t.Fatalf("%s: mode %v, %d lines, %v", page, st.Mode(), len(lines), err)
	}
	return lines, text
}

// TestPaper prints each kind of key, types it in again, and has the file back byte for byte.
func TestPaper(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	words := k.owner.Owner.Words()
	k.ok("key", "protect", "owner", "--recipient", testRecipient, "--identity", "id")
	k.write("owner-plain", string(k.owner.Encode()))
	for name, x := range map[string]struct {
		args  []string
		file  string
		stdin string
		words bool
		says  string
	}{
		"machine":         {nil, "key", "", false, "shows the key itself, on 1 QR code and 1"},
		"owner":           {[]string{"--owner", "owner-plain"}, "owner-plain", "", true, "shows the key itself, on 1 QR code and "},
		"words":           {[]string{"--owner", "-"}, "owner-plain", words, true, "shows the key itself"},
		"protected owner": {[]string{"--owner", "owner", "--identity", "id"}, "owner", "", false, "shows the file as it is protected, on 2 QR codes"},
	} {
		page, typed, back := name+".html", name+".txt", name+".back"
		o := k.run(x.stdin, append([]string{"key", "paper", "--out", page}, x.args...)...)
		if o.code != 0 || !strings.Contains(o.stdout, x.says) || !strings.Contains(o.stderr, "a printer remembers what it printed") {
			t.Fatalf("%s: exit %d\n%s%s", name, o.code, o.stdout, o.stderr)
		}
		lines, text := k.printed(page)
		for _, must := range []string{k.m.Vault.String(), k.m.Address, "service-key", "log-key", "holdfast key paper --read"} {
			if !strings.Contains(text, must) {
				t.Errorf("%s: the page lacks %q", name, must)
			}
		}
		if strings.Contains(text, words) != x.words {
			t.Errorf("%s: the page shows the 24 words: %v", name, !x.words)
		}
		k.write(typed, strings.ToLower(strings.Join(lines, "\n")))
		k.ok("key", "paper", "--read", typed, "--out", back)
		if !bytes.Equal(k.read(back), k.read(x.file)) {
			t.Errorf("%s: it came back as\n%s", name, k.read(back))
		}
		if st, err := os.Stat(k.path(back)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
		// From standard input, and protected at once.
		if !strings.Contains(name, "protected") {
			if o := k.run(strings.Join(lines, "\n"), "key", "paper", "--read", "-", "--out", back+"2", "--recipient", testRecipient, "--identity", "id"); o.code != 0 || o.stderr != "" {
				t.Fatalf("%s: exit %d\n%s", name, o.code, o.stderr)
			}
			k.ok("key", "unprotect", back+"2", "--identity", "id")
			if !bytes.Equal(k.read(back+"2"), k.read(x.file)) {
				t.Errorf("%s: it came back as\n%s", name, k.read(back))
			}
		}
	}
	k.ok("key", "show", "--key", "machine.back")
}

// TestPaperSentences: each mistake is one sentence, and writes nothing.
func TestPaperSentences(t *testing.T) {
	t.Parallel()
	k := newKeys(t)
	k.ok("key", "paper", "--out", "page.html")
	lines, _ := k.printed("page.html")
	page := k.read("page.html")
	k.write("typed", strings.Join(lines, "\n"))
	bad := append([]string{}, lines...)
	bad[2] = strings.Replace(bad[2], bad[2][3:8], "ZZZZZ", 1)
	bad[4] = bad[4][:len(bad[4])-1]
	k.write("bad", strings.Join(append(bad[:8:8], bad[9:]...), "\n"))
	k.write("empty", "")
	k.ok("key", "protect", "owner", "--recipient", testRecipient, "--identity", "id")
	k.ok("key", "paper", "--out", "owner.html", "--owner", "owner", "--identity", "id")
	sealed, _ := k.printed("owner.html")
	k.write("sealed", strings.Join(sealed, "\n"))
	many := []string{"key", "protect", "--identity", "id", "--recipient", testRecipient}
	for range 60 {
		many = append(many, "--recipient", elsewhere)
	}

	k.fails(2, "say where to write with --out", "key", "paper")
	k.fails(1, "page.html exists already, and is not overwritten; choose another name", "key", "paper", "--out", "page.html")
	k.fails(1, "write page: ", "key", "paper", "--out", "absent/page.html")
	k.fails(2, "owner's; name it with --key to print it", "key", "paper", "--out", "new", "--owner", "key")
	k.fails(1, "there is no key file absent", "key", "paper", "--out", "new", "--owner", "absent")
	k.fails(1, "it is protected for an age recipient, and no identity was given", "key", "paper", "--out", "new", "--owner", "owner")
	k.fails(2, "protect the file first, with `holdfast key protect`", "key", "paper", "--out", "new", "--recipient", testRecipient)
	k.fails(2, "--read finds out itself whose key it is; leave --owner out", "key", "paper", "--out", "new", "--read", "typed", "--owner", "owner")
	k.fails(2, "the paper holds a protected file; write it as it is", "key", "paper", "--out", "new", "--read", "sealed", "--recipient", testRecipient)
	k.fails(1, "read typed lines: open absent: no such file or directory", "key", "paper", "--out", "new", "--read", "absent")
	k.fails(1, "there is no line in it; compare with the paper, nothing was written", "key", "paper", "--out", "new", "--read", "empty")
	k.fails(1, "line 3 is wrong (its letters do not fit its last four); line 5 is wrong (it has 43 letters, not 44); line 9 is missing; compare with the paper, nothing was written", "key", "paper", "--out", "new", "--read", "bad")
	k.fails(1, "replacing it could lose a vault; choose another name", "key", "paper", "--out", "key", "--read", "typed")
	k.ok(many...)
	k.fails(1, "too long for paper: it has", "key", "paper", "--out", "new", "--identity", "id")
	if _, err := os.Lstat(k.path("new")); err == nil || !bytes.Equal(k.read("page.html"), page) {
		t.Error("a command that failed wrote something")
	}
	noTemporaries(t, k.dir)
}

// TestEverythingBurnt: the files of a vault were protected from the start; all that is left is a page of
// paper. A bare machine comes back with it, protected again, and has every byte.
func TestEverythingBurnt(t *testing.T) {
	t.Parallel()
	s := newService(t)
	k := &keys{t: t, dir: scratch(t)}
	k.write("id", testIdentity+"\n")
	k.ok("init", "--token", s.token("ada"), "--owner", "owner", "--recipient", testRecipient, "--identity", "id")
	for _, f := range []string{"key", "owner"} {
		if bytes.Contains(k.read(f), []byte("seed")) || !bytes.HasPrefix(k.read(f), []byte("-----BEGIN AGE ")) {
			t.Fatalf("%s is not protected", f)
		}
	}
	tree := smallTree(t, k.dir, "tree", 7, 40)
	k.fails(1, "name the age identity file that opens it", "create", "-C", k.dir, "tree", "tree")
	k.ok("create", "--identity", "id", "-C", k.dir, "tree", "tree")
	k.ok("key", "paper", "--owner", "owner", "--identity", "id", "--out", "page.html")
	lines, _ := k.printed("page.html")

	bare := &keys{t: t, dir: scratch(t)}
	bare.write("id", testIdentity+"\n")
	bare.write("typed", strings.Join(lines, "\n"))
	bare.ok("key", "paper", "--read", "typed", "--out", "from-paper")
	bare.write("pw", "correct horse\n")
	bare.ok("init", "--recover", "--owner", "from-paper", "--identity", "id", "--new-passphrase-file", "pw")
	if !bytes.HasPrefix(bare.read("key"), []byte("-----BEGIN AGE ")) {
		t.Fatal("the new key file is not protected")
	}
	bare.ok("extract", "tree", "--target", "out", "--passphrase-file", "pw")
	same(t, tree, filepath.Join(bare.dir, "out", "tree"))
	// The owner signs with a protected file, too.
	bare.ok("freeze", "--passphrase-file", "pw")
	bare.fails(1, "name the age identity file that opens it", "thaw", "--passphrase-file", "pw", "--owner", "from-paper")
	bare.ok("thaw", "--passphrase-file", "pw", "--owner", "from-paper", "--identity", "id")
	// A passphrase keeps to the ceiling on the client's memory.
	c := unenrolled(t)
	c.env = append(os.Environ(), "HOME="+bare.dir, "HOLDFAST_KEY="+bare.path("key"))
	c.ok("list", "--passphrase-file", bare.path("pw"))
}
