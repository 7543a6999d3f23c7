//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/history"
	"holdfast/wire"
)

// TestPoisonStaysInItsGroup: a thief of one machine's key stores garbage under the names of a file that others
// will store. Another group does not notice; the group that he is in is as it should be after the revocation,
// machines that only write and never find out included.
func TestPoisonStaysInItsGroup(t *testing.T) {
	t.Parallel()
	v := newVault(t, newService(t))
	home := v.home
	blind := home.join(home.owner(), "write", "--join-group")
	apart := home.join(home.owner(), "write,read")
	thief := home.join(home.owner(), "write", "--join-group")
	since := time.Now().UTC().Format(time.RFC3339Nano)

	dir := scratch(t)
	tree := filepath.Join(dir, "tree")
	write(t, filepath.Join(tree, "small"), "small")
	writeNoise(t, filepath.Join(tree, "large"), 1, 2<<20)
	names, _ := chunksOf(t, thief.machine(), filepath.Join(tree, "large"))
	thief.garbage(names)
	blind.ok("create", "-C", dir, "blind", "tree")
	apart.ok("create", "-C", dir, "apart", "tree")
	apart.restores("apart", tree)
	home.restores("apart", tree)
	home.exits(4, "verify", "blind")

	home.ok("key", "revoke", thief.machine().Signer().String(), "--since", since, "--owner", home.owner())
	if x := blind.create("-C", dir, "blind", "tree"); int(x.DataBlocks) < len(names) {
		t.Errorf("after the revocation %d blocks were stored anew, of which %d are garbage", x.DataBlocks, len(names))
	}
	home.ok("verify") // all of them: what was made meanwhile is mended
	for _, a := range home.of("blind") {
		home.restores(a.ID, tree)
		if a.Suspect {
			t.Errorf("%s is suspect, and an honest machine made it", a.Archive)
		}
	}
}

// TestRevokedInTheMiddleOfAnUpload: a machine that uploads is revoked. It ends and says why, nothing of its
// archive is there, what it has stored is relied upon by nobody, and others go on.
func TestRevokedInTheMiddleOfAnUpload(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	v := newVault(t, newService(t))
	home := v.home
	second := home.join(home.owner(), "write", "--join-group")
	third := home.join(home.owner(), "write", "--join-group")
	dir := scratch(t)
	for i, name := range []string{"second", "third"} {
		write(t, filepath.Join(dir, name, "small"), name)
		writeNoise(t, filepath.Join(dir, name, "large"), uint64(i), size)
	}
	second.ok("history")
	since := time.Now().UTC().Format(time.RFC3339Nano)

	g := newGate(t, v.s.address, size*2/3)
	m := third.machine()
	m.Address = g.l.Addr().String()
	third.use(filepath.Join(third.dir, "gated"))
	if err := os.Mkdir(third.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(third.key(), nil); err != nil {
		t.Fatal(err)
	}
	p := third.begin("create", "-C", dir, "third", "third")
	other := second.begin("create", "-C", dir, "second", "second")
	<-g.held
	names, _ := chunksOf(t, home.machine(), filepath.Join(dir, "third", "large"))
	if !slices.Contains(home.asks(names), true) {
		t.Fatal("nothing of the third machine's upload is there yet")
	}
	home.ok("key", "revoke", third.machine().Signer().String(), "--since", since, "--owner", home.owner())
	close(g.open)
	o := p.wait()
	oneSentence(t, "revoked in the middle", o)
	if o.code != 1 || !strings.Contains(o.stderr, "This machine's key was revoked by the vault's owner") {
		t.Errorf("the revoked machine ends with %d: %s", o.code, o.stderr)
	}
	third.refusedCLI(1, "revoked", "create", "-C", dir, "third", "third")

	if there := home.asks(names); slices.Contains(there, true) {
		t.Error("what the revoked machine stored is there for others")
	}
	if o := other.wait(); o.code != 0 {
		t.Errorf("the second machine's upload ends with %d: %s", o.code, o.stderr)
	}
	as := home.archives()
	if len(as) != 1 || as[0].Suspect || as[0].Machine != second.machine().Signer().String() {
		t.Errorf("archives: %+v", as)
	}
	home.restores("second", filepath.Join(dir, "second"))
	if x := home.create("-C", dir, "third", "third"); int(x.DataBlocks) < len(names) {
		t.Errorf("of %d chunks %d were stored anew", len(names), x.DataBlocks)
	}
	home.restores("third", filepath.Join(dir, "third"))
	v.s.clean()
}

// TestRevokedOnAnOpenConnection: rights are looked up for every request, not for every connection.
func TestRevokedOnAnOpenConnection(t *testing.T) {
	t.Parallel()
	v := newVault(t, newService(t))
	m := v.home.join(v.home.owner(), "write,read,delete")
	r := m.raw()
	var reused []bool
	ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
		GotConn: func(c httptrace.GotConnInfo) { reused = append(reused, c.Reused) },
	})
	ask := func() error {
		_, err := r.do(ctx, http.MethodGet, wire.PathHistory+"?after=0", nil)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	v.home.ok("key", "revoke", m.machine().Signer().String(), "--owner", v.home.owner())
	for range 2 {
		wants(t, wire.CodeRevoked, ask(), "the next request")
	}
	if !slices.Equal(reused, []bool{false, true, true}) {
		t.Errorf("connections that were open before: %v", reused)
	}
}

// TestRevokedWhileItFetches: an answer that is under way when its reader is revoked is cut off soon, and says
// so by its broken end.
func TestRevokedWhileItFetches(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	v := newVault(t, newService(t))
	m := v.home.join(v.home.owner(), "read")
	dir := scratch(t)
	writeNoise(t, filepath.Join(dir, "large"), 1, size)
	v.home.ok("create", "-C", dir, "s", "large")
	names, _ := chunksOf(t, v.home.machine(), filepath.Join(dir, "large"))
	path := strings.Replace(wire.PathFetch, "{group}", v.home.machine().Group.String(), 1)
	answer, err := m.raw().begin(context.Background(), http.MethodPost, path, wire.AppendNames(nil, names))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Close()
	if _, err := wire.ReadFrame(answer); err != nil {
		t.Fatal(err)
	}
	v.home.ok("key", "revoke", m.machine().Signer().String(), "--owner", v.home.owner())
	n, err := io.Copy(io.Discard, answer)
	t.Logf("%d KiB of %d KiB after the revocation, then %v", n>>10, size>>10, err)
	// What the two systems' buffers hold has left already.
	if !errors.Is(err, io.ErrUnexpectedEOF) || n > size/2 {
		t.Errorf("%d bytes after the revocation, and %v at the end", n, err)
	}
	m.refusedCLI(1, "revoked", "extract", "s", "--target", filepath.Join(dir, "out"))
	v.home.ok("verify", "s")
}

// TestScenarioC12RansomwareWithTheMachinesKey: what encrypts a machine's files has the machine's write-only key
// as well, and months of time. It reads, lists, deletes and shortens nothing, its archives push none out, its
// owner sees which they are, and an older one comes back.
func TestScenarioC12RansomwareWithTheMachinesKey(t *testing.T) {
	t.Parallel()
	v := newVault(t, newService(t))
	home := v.home
	victim := home.join(home.owner(), "write")
	home.ok("policy", "set", "--keep-last", "3", "--keep-daily", "7", "--owner", home.owner())
	dir := scratch(t)
	tree := smallTree(t, dir, "tree", 1, 150)
	settle(victim, dir, "tree")
	for i := range 4 {
		writeText(t, filepath.Join(tree, "000", "diary"), uint64(i), 2000)
		victim.ok("create", "-C", dir, "docs", "tree")
		if err := os.MkdirAll(filepath.Join(dir, "kept", fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
		copyTree(t, tree, filepath.Join(dir, "kept", fmt.Sprint(i), "tree"))
	}
	kept := func(i int) string { return filepath.Join(dir, "kept", fmt.Sprint(i), "tree") }
	good := home.of("docs")
	since := time.Now().UTC().Format(time.RFC3339Nano)

	// It encrypts, and backs that up: by the client, and by a flood of commits of its own from the year 2199.
	eachFile(t, tree, func(p string) {
		writeNoise(t, p, uint64(len(p)), 5000)
		if err := os.Rename(p, p+".locked"); err != nil {
			t.Fatal(err)
		}
	})
	victim.ok("create", "-C", dir, "docs", "tree")
	w := &thief{vault: v, c: victim, series: "docs", good: good}
	w.other = home.join(home.owner(), "write")
	flood, _ := w.lastOf()
	r := victim.raw()
	for i := range 10 {
		b := r.body(history.TypeCommit, flood.Encode())
		b.Time = time.Date(2199, 1, 1+i, 0, 0, 0, 0, time.UTC).UnixNano()
		if _, err := r.post(wire.PathRecords, history.Sign(b, r.m.SignKey(), r.m.Hist)); err != nil {
			t.Fatal(err)
		}
	}
	cannotRead(t, w)
	cannotDelete(t, w)
	cannotChangeRules(t, w)
	cannotReachOtherGroups(t, w)
	victim.refusedCLI(1, "--owner FILE", "freeze")

	// The policy would keep three of its archives and none from before. It runs, and nothing happens.
	v.s.stop()
	v.s.start()
	if got := home.of("docs"); len(got) != len(good)+11 || slices.ContainsFunc(got, func(a listed) bool { return a.State != "live" }) {
		t.Fatalf("archives: %+v", got)
	}
	h := home.history()
	for _, id := range h.Expirable(h.Time + 90*86400e9) {
		if a, _ := h.Find(id); a.Commit.Series == home.machine().Series("docs") {
			t.Errorf("in ninety days the service may expire archive %.8s", id)
		}
	}

	// The owner looks, and sees it.
	o := home.ok("list")
	if !strings.Contains(o.stderr, "series docs changed abruptly") || strings.Count(o.stdout, "  changed abruptly\n") == 0 {
		t.Errorf("list shows\n%s%s", o.stdout, o.stderr)
	}
	for line := range strings.Lines(o.stdout) {
		if slices.ContainsFunc(good, func(a listed) bool { return strings.HasPrefix(line, a.Archive+" ") }) && strings.Contains(line, "abruptly") {
			t.Errorf("an archive from before is marked: %s", line)
		}
	}
	home.has(home.ok("history"), ", changed abruptly")
	home.ok("key", "revoke", victim.machine().Signer().String(), "--since", since, "--owner", home.owner())
	for i, a := range home.of("docs") {
		if a.Suspect != (i >= len(good)) {
			t.Errorf("%s is suspect: %v", a.Archive, a.Suspect)
		}
	}
	out := filepath.Join(dir, "out")
	home.ok("extract", "docs", "--target", out) // the newest that is not suspect
	same(t, kept(len(good)-1), filepath.Join(out, "tree"))
	for i, a := range good {
		home.restores(a.ID, kept(i)) // two of one second have one name
	}

	// And what the policy keeps now are the good ones.
	home.ok("confirm", "docs", "--owner", home.owner())
	for i, d := range history.Keep(history.Policy{Last: 3}, home.history().OfSeries(home.machine().Series("docs"))) {
		if want := i > 0; d.Keep != want { // the three newest good ones, and those that only the owner deletes
			t.Errorf("archive %d stays: %v, %v", i, d.Keep, d.Why)
		}
	}
}

// settle makes archives of dir/name in a series of their own until its files are old enough to be taken for unchanged.
func settle(c *client, dir, name string) {
	c.t.Helper()
	for range 100 {
		if o := c.ok("create", "--json", "-C", dir, "settling", name); strings.Contains(o.stdout, `"files_read": 0,`) {
			return
		}
	}
	c.t.Fatal("after a hundred archives the files are still read again")
}

// gate is a way to the service that lets so many bytes of clients through, and no more before it is opened.
type gate struct {
	l    net.Listener
	to   string
	left atomic.Int64
	once sync.Once
	held chan struct{} // closed when it holds somebody
	open chan struct{} // to be closed
}

func newGate(t testing.TB, to string, bytes int64) *gate {
	t.Helper()
	g := &gate{to: to, held: make(chan struct{}), open: make(chan struct{})}
	g.left.Store(bytes)
	g.l = listen(t, g.pass)
	return g
}

func (g *gate) pass(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", g.to)
	if err != nil {
		return
	}
	defer s.Close()
	go func() {
		io.Copy(c, s)
		c.Close()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		if g.left.Add(int64(-n)) <= 0 {
			g.once.Do(func() { close(g.held) })
			<-g.open
		}
		if _, werr := s.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}
