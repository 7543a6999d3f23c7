package main

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast"
	"holdfast/client/backup"
	"holdfast/client/keyring"
	"holdfast/client/remote"
	"holdfast/client/remote/remotetest"
	"holdfast/client/restore"
	"holdfast/client/seal"
	"holdfast/history"
	"holdfast/internal/enc"
	"holdfast/wire"
)

// requests are the rows of the table of lies, and lies its columns.
var (
	requests = []string{
		"the connection", "GET /v1/hello", "POST /v1/redeem", "GET /v1/vaults", "POST /v1/records", "GET /v1/history", "POST /v1/sessions",
		"POST .../have", "POST .../blocks", "POST .../close", "POST .../fetch", "GET /v1/usage",
	}
	lies = []string{"drop", "swap", "replay", "withhold", "fork", "roll back", "re-order", "delay"}
)

// named are the errors by which a lie is told from trouble.
var named = map[string]error{
	"wire.ErrServiceKey": wire.ErrServiceKey, "remote.ErrProtocol": remote.ErrProtocol,
	"remote.ErrAbsent": remote.ErrAbsent, "remote.ErrDamaged": remote.ErrDamaged, "seal.ErrDamaged": seal.ErrDamaged,
	"backup.ErrClock": backup.ErrClock, "backup.ErrHave": backup.ErrHave, "backup.ErrNotKept": backup.ErrNotKept,
	"history.ErrOrder": history.ErrOrder, "history.ErrHead": history.ErrHead, "history.ErrChain": history.ErrChain, "history.ErrSeen": history.ErrSeen,
	"history.ErrSignature": history.ErrSignature, "history.ErrTag": history.ErrTag, "history.ErrFormat": history.ErrFormat,
	"history.ErrSigner": history.ErrSigner, "history.ErrRights": history.ErrRights, "history.ErrRevoked": history.ErrRevoked,
	"history.ErrTooEarly": history.ErrTooEarly, "history.ErrKept": history.ErrKept, "history.ErrFrozen": history.ErrFrozen,
	"history.ErrNeedsOwner": history.ErrNeedsOwner, "history.ErrPaid": history.ErrPaid,
}

// lie is one way in which a service lies, and what a person at the command line sees of it.
type lie struct {
	at   string // of requests
	how  string // of lies; several, separated by commas, that come to the same
	told string // in words, for docs/security.md
	want string // of named, or "" where it is not an error of its own
	code int    // exit code
	note string // what else there is to say, in words; needed where the code is not 4
	says string // what the one line on standard error names, or what is warned of
	run  func(w *world) said
	end  end
}

// end is what must hold when the lie has been told and the service is honest again.
type end int

const (
	whole   end = iota // everything is readable, the next backup succeeds, and the remembered head is a true one
	forked             // the machine holds a head that the service denies now: it refuses it from then on, others read
	broken             // the newest archive of docs cannot be restored, and others can
	nothing            // no vault came of it and no key file stays behind
)

// result is the last column of the table.
func (l lie) result() string {
	s := map[int]string{0: "exit 0", 1: "refused, exit 1", 4: "`" + l.want + "`, exit 4", 5: "unavailable, exit 5"}[l.code]
	if l.note != "" {
		s += ": " + l.note
	}
	return s
}

// said is what one run of the program came to.
type said struct {
	err       error
	code      int
	line      string // what the program ends with, on standard error
	out, warn string
}

// world is a machine with two directories, backed up as docs and photos, and a service that lies when told to.
type world struct {
	t     *testing.T
	svc   *remotetest.Service
	dir   string
	key   string
	cache string
	typed string // standard input
	dial  func(ctx context.Context, network, address string) (net.Conn, error)
}

// bare returns a world in which nobody has a key yet.
func bare(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, svc: remotetest.NewPiped(t), dir: dir, key: filepath.Join(dir, "key"), cache: filepath.Join(dir, "cache")}
	w.svc.Links = true
	w.dial = w.svc.Pipe
	// Large files are cut, small ones share a pack.
	for name, n := range map[string]int{"docs/large": 1 << 20, "docs/small": 900, "photos/large": 700 << 10, "photos/small": 800} {
		w.write(name, n)
	}
	return w
}

func newWorld(t *testing.T) *world { return worldOf(t, 1) }

// worldOf returns a world whose owner has that seed.
func worldOf(t *testing.T, owner byte) *world {
	t.Helper()
	w := bare(t)
	w.svc.Own(keyring.OwnerOf(holdfast.Key{owner}))
	time.Sleep(time.Minute) // in a bubble: no two vaults are made at one time
	w.svc.Enrol(remote.Options{DialContext: w.svc.Pipe}).Close()
	w.save(w.svc.Machine)
	w.ok("create", "-C", w.dir, "docs", "docs")
	w.svc.Rule(history.TypePolicy, history.Policy{Last: 1000}.Encode())
	w.ok("create", "-C", w.dir, "photos", "photos")
	return w
}

func (w *world) save(m *keyring.Machine) {
	w.t.Helper()
	if err := os.WriteFile(w.key, m.Encode(), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// another returns the same world as another machine sees it, with its own key file and no memory.
func (w *world) another(group holdfast.GroupID, rights holdfast.Rights) *world {
	w.t.Helper()
	m := w.svc.NewMachine(group, rights)
	w.svc.Rule(history.TypeEnrol, m.Enrol().Encode())
	o := w.elsewhere()
	o.key = filepath.Join(w.t.TempDir(), "key")
	o.save(m)
	return o
}

// elsewhere returns the same world without what the machine remembers.
func (w *world) elsewhere() *world {
	o := *w
	o.cache = w.t.TempDir()
	return &o
}

func (w *world) write(name string, n int) {
	w.t.Helper()
	b := make([]byte, n)
	rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", fmt.Sprint(name, n))))).Read(b)
	path := filepath.Join(w.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// run runs the program's root command as main does.
func (w *world) run(args ...string) said {
	w.t.Helper()
	time.Sleep(time.Minute) // in a bubble: no two archives have one time
	stderr, err := os.Create(filepath.Join(w.t.TempDir(), "stderr"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer stderr.Close()
	defer func(old *os.File) { os.Stderr = old }(os.Stderr)
	os.Stderr = stderr
	var s said
	var out, line bytes.Buffer
	root := newRoot(&globals{network: func(ctx context.Context, network, address string) (net.Conn, error) {
		return w.dial(ctx, network, address)
	}})
	root.SetArgs(append([]string{"--key", w.key, "--cache", w.cache}, args...))
	root.SetIn(strings.NewReader(w.typed))
	root.SetOut(&out)
	s.err = root.ExecuteContext(w.t.Context())
	s.code = report(w.t.Context(), &line, s.err)
	warned, err := os.ReadFile(stderr.Name())
	if err != nil {
		w.t.Fatal(err)
	}
	s.line, s.out, s.warn = line.String(), out.String(), string(warned)
	if s.code != 0 && (strings.Count(s.line, "\n") != 1 || !strings.HasPrefix(s.line, "holdfast: ") || len(s.line) < 40) {
		w.t.Errorf("holdfast %s: exit %d says %q", strings.Join(args, " "), s.code, s.line)
	}
	if s.code == 0 && s.line != "" {
		w.t.Errorf("holdfast %s: success says %q", strings.Join(args, " "), s.line)
	}
	return s
}

func (w *world) ok(args ...string) said {
	w.t.Helper()
	s := w.run(args...)
	if s.code != 0 {
		w.t.Fatalf("holdfast %s: exit %d\n%s%s", strings.Join(args, " "), s.code, s.warn, s.line)
	}
	return s
}

func (w *world) create(series string) said {
	w.t.Helper()
	return w.run("create", "-C", w.dir, series, series)
}

// extract restores a series, or an archive of it, and holds what came of it to what is on disk.
func (w *world) extract(series string) said {
	w.t.Helper()
	out := filepath.Join(w.t.TempDir(), "out")
	s := w.run("extract", series, "--target", out)
	w.compare(out, series, s.code == 0)
	return s
}

// compare fails the test if a file below out has wrong bytes, or is missing and all should be there.
func (w *world) compare(out, series string, all bool) {
	w.t.Helper()
	series, _, _ = strings.Cut(series, "@")
	found := 0
	if err := filepath.WalkDir(out, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(out, p)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		want, err := os.ReadFile(filepath.Join(w.dir, rel))
		if err != nil || !bytes.Equal(got, want) {
			if strings.HasPrefix(filepath.Base(p), ".holdfast") {
				return nil // what the restore keeps for going on
			}
			w.t.Errorf("restored %s with wrong bytes", rel)
		}
		found++
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	if all && found < 2 {
		w.t.Errorf("restored %d files of %s", found, series)
	}
}

// tell has the service say lie(what was asked, the true answer) to requests of which the path ends so.
func (w *world) tell(path string, lie func(asked, answer []byte) []byte) {
	w.svc.Lie = func(r *http.Request, asked, answer []byte) []byte {
		if strings.HasSuffix(r.URL.Path, "/"+path) {
			return lie(asked, answer)
		}
		return answer
	}
}

// show has the service show other entries as the history.
func (w *world) show(entries []history.Entry) {
	w.svc.Lie = func(r *http.Request, _, answer []byte) []byte {
		if !strings.HasSuffix(r.URL.Path, "/history") {
			return answer
		}
		var after uint64
		fmt.Sscan(r.URL.Query().Get("after"), &after)
		return encode(entries, after)
	}
}

func encode(entries []history.Entry, after uint64) (b []byte) {
	for _, e := range entries {
		if e.N > after {
			b = e.Append(b)
		}
	}
	return b
}

// stamped returns entries numbered anew, under new heads that the log key signs.
func (w *world) stamped(entries ...history.Entry) []history.Entry {
	var head holdfast.Head
	out := slices.Clone(entries)
	for i, e := range entries {
		out[i] = history.Stamp(w.svc.Vault.ID, uint64(i+1), head, e.Time, e.Record, w.svc.LogKey)
		head = out[i].Head
	}
	return out
}

// find returns the index of the nth entry of a type, counted from 0.
func (w *world) find(t history.Type, nth int) int {
	w.t.Helper()
	for i, e := range w.svc.Entries {
		if b, err := history.ParseBody(e.Record.Body); err == nil && b.Type == t {
			if nth == 0 {
				return i
			}
			nth--
		}
	}
	w.t.Fatalf("the history has no such %s", t)
	return 0
}

// entry decodes an answer that is one entry.
func entry(answer []byte) history.Entry {
	return history.ReadEntry(enc.NewReader(answer))
}

// restamp returns e at another place, after another head or at another time.
func (w *world) restamp(e history.Entry, n uint64, prev holdfast.Head, at int64) []byte {
	return history.Stamp(w.svc.Vault.ID, n, prev, at, e.Record, w.svc.LogKey).Append(nil)
}

// frames decodes what a fetch answers.
func frames(answer []byte) (all []wire.Frame) {
	for len(answer) > 0 {
		f, rest, err := wire.NextFrame(answer)
		if err != nil {
			panic(err)
		}
		all, answer = append(all, f), rest
	}
	return all
}

func unframes(all []wire.Frame) (b []byte) {
	for _, f := range all {
		b = wire.AppendFrame(b, f)
	}
	return b
}

// chunks alters the frames of chunks and packs, and leaves the rest of an archive as it is.
func chunks(change func(all []wire.Frame) []wire.Frame) func(_, answer []byte) []byte {
	return func(_, answer []byte) []byte {
		all := frames(answer)
		for _, f := range all {
			if h, _, err := wire.ParseBlockHeader(f.Sealed); err != nil || !h.Kind.Leaf() {
				return answer
			}
		}
		return unframes(change(all))
	}
}

// away has the service end connections instead of answering requests of which the path ends so: after it did
// what was asked, or without.
func (w *world) away(path string, done bool) {
	if done {
		w.svc.After = func(p string) bool { return p == path }
		return
	}
	w.svc.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/"+path) {
			panic(http.ErrAbortHandler)
		}
		return false
	}
}

// silent has the service take requests of which the path ends so, and never answer.
func (w *world) silent(path string) {
	w.svc.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/"+path) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		}
		return false
	}
}

// late has the service answer such requests only after some time.
func (w *world) late(path string, after time.Duration) {
	w.svc.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/"+path) {
			body, _ := io.ReadAll(r.Body) // so that a client that goes away is noticed
			r.Body = io.NopCloser(bytes.NewReader(body))
			select {
			case <-time.After(after):
			case <-r.Context().Done():
				panic(http.ErrAbortHandler)
			}
		}
		return false
	}
}

func (w *world) honest() {
	w.svc.Lie, w.svc.Hook, w.svc.After, w.svc.Skew, w.svc.Links, w.dial = nil, nil, nil, 0, true, w.svc.Pipe
	w.svc.Credit, w.svc.Money = nil, nil
}

// remembered checks that every head that the machine keeps is one of the true history.
func (w *world) remembered() bool {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.cache, "*", "head"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			w.t.Fatal(err)
		}
		var vault, head string
		var n uint64
		if _, err := fmt.Sscanf(string(b), "holdfast-head 1 %s %d %s\n", &vault, &n, &head); err != nil {
			w.t.Fatalf("%s: %v", f, err)
		}
		if n == 0 || n > uint64(len(w.svc.Entries)) || hex.EncodeToString(w.svc.Entries[n-1].Head[:]) != head {
			return false
		}
	}
	return true
}

// afterwards holds the world to e, with an honest service.
func (w *world) afterwards(e end) {
	w.t.Helper()
	w.honest()
	switch e {
	case nothing:
		if _, err := os.Lstat(w.key); err == nil {
			w.t.Error("a key file is left behind for a vault that is none")
		}
		return
	case forked:
		if w.remembered() {
			w.t.Error("nothing that the machine remembers tells of the lie")
		}
		if s := w.run("list"); s.code != exitDamaged || !errors.Is(s.err, history.ErrOrder) {
			w.t.Errorf("the service is believed again: exit %d, %s", s.code, s.line)
		}
		o := w.elsewhere()
		for _, series := range []string{"docs", "photos"} {
			if s := o.extract(series); s.code != 0 {
				w.t.Errorf("another machine cannot read %s: exit %d, %s", series, s.code, s.line)
			}
		}
		return
	}
	if !w.remembered() {
		w.t.Error("the machine remembers a head that the true history does not have")
	}
	if s := w.extract("photos"); s.code != 0 {
		w.t.Errorf("another archive cannot be read: exit %d, %s%s", s.code, s.warn, s.line)
	}
	w.write("photos/new", 400<<10)
	if s := w.create("photos"); s.code != 0 {
		w.t.Errorf("the next backup: exit %d, %s%s", s.code, s.warn, s.line)
	}
	switch s := w.run("verify", "docs"); {
	case e == whole && s.code != 0:
		w.t.Errorf("docs is damaged although nothing was: exit %d, %s%s", s.code, s.warn, s.line)
	case e == broken && (s.code != exitDamaged || !restore.Damaged(s.err)):
		w.t.Errorf("docs is broken, and verify says: exit %d, %s", s.code, s.line)
	}
	if e == broken {
		if s := w.extract("docs"); s.code != exitDamaged {
			w.t.Errorf("docs is broken, and extract says: exit %d, %s", s.code, s.line)
		}
		return
	}
	if s := w.create("docs"); s.code != 0 {
		w.t.Errorf("the next backup of docs: exit %d, %s%s", s.code, s.warn, s.line)
	}
	if s := w.extract("docs"); s.code != 0 {
		w.t.Errorf("docs cannot be read: exit %d, %s%s", s.code, s.warn, s.line)
	}
}

// hold tells one lie and checks what a person sees, and what is left.
func (l lie) hold(t *testing.T, w *world) {
	t.Helper()
	s := l.run(w)
	if s.code != l.code {
		t.Fatalf("exit %d, want %d\n%s%s", s.code, l.code, s.warn, s.line)
	}
	if l.want != "" && !errors.Is(s.err, named[l.want]) {
		t.Errorf("is not %s: %s", l.want, s.line)
	}
	if l.code == 0 && l.note == "" || l.code != 4 && l.want != "" || l.code == 4 && named[l.want] == nil {
		t.Error("the table does not say what comes of it")
	}
	if !strings.Contains(s.line+s.warn+s.out, l.says) {
		t.Errorf("does not say %q:\n%s%s", l.says, s.warn, s.line)
	}
	if testing.Verbose() {
		t.Log(strings.TrimSpace(s.line))
	}
	w.afterwards(l.end)
}

// warm makes the process's compressor before the first bubble: made inside one, the next could not use it.
func warm(t *testing.T) {
	t.Helper()
	m := keyring.OwnerOf(holdfast.Key{1}).NewMachine(holdfast.VaultID{1}, holdfast.GroupID{1}, holdfast.RightsAll, history.DefaultChunk)
	s, _, err := seal.NewSession(crand.Reader, m)
	if err != nil {
		t.Fatal(err)
	}
	keys, plain := m.GroupKeys(), make([]byte, 1<<16)
	if _, err := s.Seal(keys.NameOf(holdfast.KindChunk, plain), holdfast.KindChunk, plain, nil, nil); err != nil {
		t.Fatal(err)
	}
}

// TestHostileService tells every lie of the table at the real command line.
func TestHostileService(t *testing.T) {
	warm(t)
	seen := map[string]int{}
	for _, l := range told {
		name := fmt.Sprintf("%s/%s/%s", strings.NewReplacer("/", " ").Replace(l.at), l.how, l.told)
		if seen[name]++; seen[name] > 1 {
			t.Errorf("%s is there twice", name)
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := bare(t)
				if l.at != "POST /v1/redeem" {
					w = newWorld(t)
				}
				l.hold(t, w)
			})
		})
	}
}

// TestHostileTableIsWhole: each request meets each lie, and docs/security.md lists the same ones.
func TestHostileTableIsWhole(t *testing.T) {
	met := map[string]bool{}
	var rows []string
	for _, l := range told {
		if !slices.Contains(requests, l.at) {
			t.Errorf("no request %q", l.at)
		}
		for how := range strings.SplitSeq(l.how, ", ") {
			if !slices.Contains(lies, how) {
				t.Errorf("no lie %q", how)
			}
			met[l.at+", "+how] = true
		}
		rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s |", l.at, l.how, l.told, l.result()))
	}
	for _, at := range requests {
		for _, how := range lies {
			if !met[at+", "+how] {
				t.Errorf("%s: nobody tries %q", at, how)
			}
		}
	}
	doc, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(doc), "<!-- lies: begin -->")
	table, _, ok := strings.Cut(rest, "<!-- lies: end -->")
	if !ok {
		t.Fatal("docs/security.md has no table of lies")
	}
	var listed []string
	for line := range strings.Lines(table) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| request |") {
			listed = append(listed, line)
		}
	}
	for _, r := range rows {
		if !slices.Contains(listed, r) {
			t.Errorf("docs/security.md lacks\n%s", r)
		}
	}
	for _, r := range listed {
		if !slices.Contains(rows, r) {
			t.Errorf("docs/security.md has a lie that nobody tests\n%s", r)
		}
	}
}

// TestScenarioC13LyingService: an old head, a missing archive, a forked history, another vault's blocks, wrong bytes.
// Each is named, each exit is 4, and other archives can be read meanwhile.
func TestScenarioC13LyingService(t *testing.T) {
	warm(t)
	for _, x := range []struct {
		what, want string
		tell       func(w *world)
		meet       func(w *world) said
		others     func(w *world) *world // who can read photos while the lie is told; nobody if nil
	}{
		{
			"old head", "history.ErrOrder",
			func(w *world) { w.show(w.svc.Entries[:7]) },
			list, (*world).elsewhere, // whoever decides to go without this machine's memory
		},
		{
			"missing archive, left out of the history", "history.ErrChain",
			func(w *world) {
				i := w.find(history.TypeCommit, 0)
				w.show(w.stamped(slices.Delete(slices.Clone(w.svc.Entries), i, i+1)...))
			},
			list, nil,
		},
		{
			"missing archive, its blocks gone", "remote.ErrAbsent",
			func(w *world) {
				root := w.svc.Vault.Archives[0].Commit.Root
				w.tell("fetch", func(_, answer []byte) []byte {
					all := frames(answer)
					for i := range all {
						if all[i].Name == root {
							all[i].Status, all[i].Sealed = wire.FrameAbsent, nil
						}
					}
					return unframes(all)
				})
			},
			func(w *world) said {
				if s := list(w); s.code != exitDamaged || !errors.Is(s.err, remote.ErrAbsent) || !strings.Contains(s.out, "photos@") || strings.Count(s.out, "docs@") != 1 {
					w.t.Errorf("list: exit %d\n%s%s%s", s.code, s.out, s.warn, s.line)
				}
				return w.extract(w.name("docs", 0))
			},
			func(w *world) *world { return w },
		},
		{
			"forked history", "history.ErrOrder",
			func(w *world) { w.show(w.later(len(w.svc.Entries)-1, 1)) },
			list, (*world).elsewhere,
		},
		{
			"another vault's blocks", "seal.ErrDamaged",
			func(w *world) {
				other := worldOf(w.t, 7)
				theirs := other.svc.Blocks[other.leaves(other.svc.Order)[0]]
				w.harm(func([]byte) []byte { return theirs })
			},
			extractIt, func(w *world) *world { return w },
		},
		{
			"wrong bytes", "seal.ErrDamaged",
			func(w *world) {
				w.harm(func(sealed []byte) []byte {
					b := bytes.Clone(sealed)
					b[len(b)-1] ^= 0x80
					return b
				})
			},
			extractIt, func(w *world) *world { return w },
		},
	} {
		t.Run(x.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				if s := createIt(w); s.code != 0 {
					t.Fatalf("exit %d, %s", s.code, s.line)
				}
				x.tell(w)
				if s := x.meet(w); s.code != exitDamaged || !errors.Is(s.err, named[x.want]) {
					t.Errorf("exit %d, want %d and %s: %s", s.code, exitDamaged, x.want, s.line)
				}
				if x.others != nil {
					if s := x.others(w).extract("photos"); s.code != 0 {
						t.Errorf("another archive cannot be read: exit %d, %s", s.code, s.line)
					}
				}
				w.afterwards(whole)
			})
		})
	}
}

// harm has the service alter, in its answers, the chunks and packs that were stored for docs.
func (w *world) harm(change func(sealed []byte) []byte) {
	docs := w.leaves(w.svc.Order[:3])
	w.tell("fetch", func(_, answer []byte) []byte {
		all := frames(answer)
		for i := range all {
			if slices.Contains(docs, all[i].Name) && all[i].Status == wire.FrameBlock {
				all[i].Sealed = change(all[i].Sealed)
			}
		}
		return unframes(all)
	})
}
