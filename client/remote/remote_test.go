package remote_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast"
	"holdfast/client/remote"
	"holdfast/client/remote/remotetest"
	"holdfast/history"
	"holdfast/wire"
)

// block returns a distinct name and some sealed bytes.
func block(i, size int) (holdfast.Name, []byte) {
	var n holdfast.Name
	copy(n[:], fmt.Sprintf("block %08d", i))
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(i), byte(i >> 8)}).Read(b)
	return n, b
}

func TestUploadGoesOnAfterRestarts(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{})
	s, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const blocks, size = 120, 300 << 10
	var want []holdfast.Name
	for i := range blocks {
		if i%40 == 20 {
			f.Restart()
		}
		n, b := block(i, size)
		want = append(want, n)
		if err := s.Upload(t.Context(), n, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(f.Order, want) {
		t.Errorf("%d blocks were stored, or in another order than they were handed over (%d)", len(f.Order), len(want))
	}
	for i, n := range want {
		if _, b := block(i, size); string(f.Blocks[n]) != string(b) {
			t.Errorf("block %d was stored with other bytes", i)
		}
	}
	st := s.Stats()
	if st.Sessions < 3 || st.Blocks != blocks || st.Acked != blocks*size {
		t.Errorf("stats are %+v", st)
	}
	f.Restart()
	have, err := s.Have(t.Context(), []holdfast.Name{want[0], {}})
	if err != nil || !slices.Equal(have, []bool{true, false}) {
		t.Errorf("have after a restart: %v, %v", have, err)
	}
}

// TestServiceEndsWhileSessionIsOpened ends the service when an open record is durable and its answer is not
// out: the next process answers the same record with session_gone, because no session survives a process.
func TestServiceEndsWhileSessionIsOpened(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{})
	var crash atomic.Bool
	f.After = func(path string) bool {
		if path != "sessions" || !crash.CompareAndSwap(true, false) {
			return false
		}
		f.Restart()
		return true
	}
	crash.Store(true)
	s, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatalf("first session: %v", err)
	}
	defer s.Close()
	// Once more when the session is lost in the middle of a run.
	f.Restart()
	crash.Store(true)
	n, b := block(1, 1000)
	if err := s.Upload(t.Context(), n, b); err != nil {
		t.Fatal(err)
	}
	if err := s.Drain(t.Context()); err != nil {
		t.Fatalf("later session: %v", err)
	}
	if string(f.Blocks[n]) != string(b) {
		t.Error("the block was not stored")
	}
}

// TestFewUploadsShareTheLine: on a slow line, eight uploads at a time would each be too slow for the service.
func TestFewUploadsShareTheLine(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			err = conn.(*net.TCPConn).SetWriteBuffer(8 << 10)
		}
		return conn, err
	}})
	s, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var under, most atomic.Int32
	var seen sync.Map
	f.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		// A batch that came too early comes again, and is not counted twice.
		if _, again := seen.LoadOrStore(r.URL.Query().Get("seq"), true); strings.HasSuffix(r.URL.Path, "/blocks") && !again {
			most.Store(max(most.Load(), under.Add(1)))
			<-time.After(50 * time.Millisecond) // the body waits in the line
			under.Add(-1)
		}
		return false
	}
	for i := range 24 {
		n, b := block(i, 1<<20)
		if err := s.Upload(t.Context(), n, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if most.Load() > 2 {
		t.Errorf("%d uploads left at a time", most.Load())
	}
}

func TestUploadWindowIsBounded(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{})
	s, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	release := make(chan struct{})
	f.Hook = func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/blocks") {
			<-release
		}
		return false
	}
	handed := make(chan struct{}, 2*remote.Window>>20)
	done := make(chan error)
	go func() {
		for i := range 2 * remote.Window >> 20 {
			n, b := block(i, 1<<20)
			if err := s.Upload(t.Context(), n, b); err != nil {
				done <- err
				return
			}
			handed <- struct{}{}
		}
		done <- s.Drain(t.Context())
	}()
	// It can take this much, and then nothing more before it is released.
	for range remote.Window>>20 - 1 {
		<-handed
	}
	if n := remote.Window>>20 - 1 + len(handed); n > remote.Window>>20 {
		t.Errorf("%d MiB were taken without an acknowledgement", n)
	}
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestCommitOnce(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{})
	twin := f.Dial(remote.Options{}) // another process with the same key file
	s, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := twin.History(t.Context()); err != nil {
		t.Fatal(err)
	}
	other, err := twin.OpenSession(t.Context()) // moves the chain of records on
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	dropped := false
	f.After = func(path string) bool {
		drop := path == "records" && !dropped
		dropped = dropped || drop
		return drop
	}
	a, err := s.Commit(t.Context(), history.Commit{Blocks: 7})
	if err != nil {
		t.Fatal(err)
	}
	if !dropped {
		t.Fatal("no answer was dropped")
	}
	if n := len(f.Vault.Archives); n != 1 || f.Vault.Archives[0].ID != a.ID || a.Commit.Blocks != 7 {
		t.Errorf("%d archives after one commit whose first answer was lost", n)
	}
}

// A process that was replaced as the owner of the cell, and does not know yet, shows an old state and refuses
// what continues the new one. The client waits for it to find out; if it goes on, the service is lying.
func TestServiceFallsBehind(t *testing.T) {
	for _, code := range []wire.Code{wire.CodeStaleChain, wire.CodeBehind} {
		t.Run(string(code), func(t *testing.T) {
			f := remotetest.New(t)
			c := f.Enrol(remote.Options{})
			for range 2 {
				s, err := c.OpenSession(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				s.Close()
			}
			var lies atomic.Int32
			f.Hook = func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case lies.Load() <= 0:
				case strings.HasSuffix(r.URL.Path, "/history"):
					return true // nothing new
				case r.Method == http.MethodPost:
					lies.Add(-1)
					w.WriteHeader(code.Status())
					json.NewEncoder(w).Encode(wire.Error{Code: code, Message: "That is not what I know.", Chain: &wire.Chain{Seq: 1, Prev: strings.Repeat("00", 32)}})
					return true
				}
				return false
			}
			lies.Store(3)
			s, err := c.OpenSession(t.Context())
			if err != nil {
				t.Fatalf("behind for a moment: %v", err)
			}
			s.Close()
			if lies.Load() != 0 {
				t.Fatal("the service was not asked often enough")
			}

			d := f.Dial(remote.Options{Patience: time.Second})
			if _, err := d.History(t.Context()); err != nil {
				t.Fatal(err)
			}
			lies.Store(1000)
			if _, err := d.OpenSession(t.Context()); !errors.Is(err, history.ErrOrder) {
				t.Errorf("behind for good: %v", err)
			}
			lies.Store(0)
			if s, err = d.OpenSession(t.Context()); err != nil {
				t.Errorf("afterwards: %v", err)
			} else {
				s.Close()
			}
		})
	}
}

// The owner makes another read key the current one between a client's look at the history and its session.
func TestSessionIsForTheCurrentReadKey(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{})
	f.Rule(history.TypeRotateRead, history.RotateRead{ReadKey: f.Owner.ReadKey(1)}.Encode())
	s, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	key := f.Owner.ReadKey(1)
	for _, x := range f.Vault.Sessions {
		if x.Open.ReadKey != history.ReadKeyIDOf(key[:]) {
			t.Error("a session is for another read key")
		}
	}
	if len(f.Vault.Sessions) != 1 {
		t.Errorf("%d sessions", len(f.Vault.Sessions))
	}
}

func TestMissingIsTold(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{})
	s, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want, b := block(1, 10)
	f.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/blocks") {
			return false
		}
		w.WriteHeader(wire.CodeMissing.Status())
		json.NewEncoder(w).Encode(wire.Error{Code: wire.CodeMissing, Message: "send them first", Missing: []string{want.String()}})
		return true
	}
	s.Upload(t.Context(), want, b)
	err = s.Drain(t.Context())
	if names, ok := remote.Missing(err); !ok || !slices.Equal(names, []holdfast.Name{want}) {
		t.Errorf("drain: %v", err)
	}
	if err := s.Upload(t.Context(), want, b); err == nil {
		t.Error("a session went on after it lost a batch")
	}
}

// TestRollbackIsFound shows the client a shorter, and then another history than it saw before.
func TestRollbackIsFound(t *testing.T) {
	f := remotetest.New(t)
	opt := remote.Options{CacheDir: filepath.Join(t.TempDir(), "cache")}
	c := f.Enrol(opt)
	s, err := c.OpenSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()

	good := f.Entries
	again := f.Dial(opt)
	if again.Fresh() {
		t.Error("a client that saw the vault before thinks that it did not")
	}
	if _, err := again.History(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Entries = good[:2]
	if _, err := f.Dial(opt).History(t.Context()); !errors.Is(err, history.ErrOrder) {
		t.Errorf("shorter history: %v", err)
	}
	f.Entries = nil
	if _, err := f.Dial(opt).History(t.Context()); !errors.Is(err, history.ErrOrder) {
		t.Errorf("no history: %v", err)
	}
	// A fork: the service kept the first two records and then took another third.
	f.Entries = slices.Clone(good[:2])
	e := good[2]
	f.Entries = append(f.Entries, history.Stamp(f.Machine.Vault, 3, good[1].Head, e.Time+1, e.Record, f.LogKey))
	if _, err := f.Dial(opt).History(t.Context()); !errors.Is(err, history.ErrOrder) {
		t.Errorf("forked history: %v", err)
	}
	if _, err := f.Dial(remote.Options{}).History(t.Context()); err != nil {
		t.Errorf("a client without memory cannot know, and got %v", err)
	}
	// Damage to the memory is as if there were none.
	if err := os.WriteFile(filepath.Join(opt.CacheDir, "head"), []byte("holdfast-head 1 x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := f.Dial(opt); !c.Fresh() {
		t.Error("a damaged memory was believed")
	} else if _, err := c.History(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFetchGoesOnAfterBrokenAnswers(t *testing.T) {
	f := remotetest.New(t)
	c := f.Enrol(remote.Options{})
	var names []holdfast.Name
	for i := range 700 {
		n, b := block(i, 1000+i)
		names = append(names, n)
		f.Blocks[n] = b
	}
	delete(f.Blocks, names[5])
	f.State[names[6]] = wire.FrameDamaged
	var cut atomic.Int32
	f.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/fetch") || cut.Add(1) > 4 {
			return false
		}
		body, _ := io.ReadAll(r.Body)
		asked, err := wire.ParseNames(body)
		if err != nil {
			t.Error(err)
		}
		f.Mu.Lock()
		var out []byte
		for _, n := range asked[10:20] {
			out = wire.AppendFrame(out, wire.Frame{Name: n, Sealed: f.Blocks[n]})
		}
		f.Mu.Unlock()
		w.Write(out[:len(out)-3])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	var mu sync.Mutex
	got := map[holdfast.Name]error{}
	if err := c.Fetch(t.Context(), f.Machine.Group, names, func(n holdfast.Name, sealed []byte, err error) error {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := got[n]; twice {
			t.Errorf("block %s came twice", n)
		}
		if got[n] = err; err == nil && string(sealed) != string(f.Blocks[n]) {
			t.Errorf("block %s came with other bytes", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i, n := range names {
		want := map[int]error{5: remote.ErrAbsent, 6: remote.ErrDamaged}[i]
		if err, ok := got[n]; !ok || err != want {
			t.Errorf("block %d: %v (asked and answered: %t), want %v", i, err, ok, want)
		}
	}
	mine := errors.New("mine")
	if err := c.Fetch(t.Context(), f.Machine.Group, names, func(holdfast.Name, []byte, error) error { return mine }); !errors.Is(err, mine) {
		t.Errorf("the caller's error became %v", err)
	}
}

func TestPatience(t *testing.T) {
	f := remotetest.New(t)
	f.Enrol(remote.Options{})

	var away *remote.UnavailableError
	refuse := func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route") }
	if _, err := f.Dial(remote.Options{Patience: -1, DialContext: refuse}).History(t.Context()); !errors.As(err, &away) {
		t.Errorf("no connection: %v", err)
	}

	var busy atomic.Int32
	f.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
		if busy.Add(1) > 2 {
			return false
		}
		w.WriteHeader(wire.CodeBusy.Status())
		json.NewEncoder(w).Encode(wire.Error{Code: wire.CodeBusy, Message: "Too much at once."})
		return true
	}
	if _, err := f.Dial(remote.Options{Patience: -1}).History(t.Context()); !errors.As(err, &away) || wire.CodeOf(err) != wire.CodeBusy {
		t.Errorf("busy and no patience: %v", err)
	}
	if _, err := f.Dial(remote.Options{}).History(t.Context()); err != nil {
		t.Errorf("busy for a moment: %v", err)
	}

	// What will not get better is not repeated.
	before := busy.Load()
	f.Hook = func(w http.ResponseWriter, _ *http.Request) bool {
		busy.Add(1)
		w.WriteHeader(wire.CodeForbidden.Status())
		json.NewEncoder(w).Encode(wire.Error{Code: wire.CodeForbidden, Message: "No."})
		return true
	}
	if _, err := f.Dial(remote.Options{}).History(t.Context()); wire.CodeOf(err) != wire.CodeForbidden || errors.As(err, &away) {
		t.Errorf("forbidden: %v", err)
	}
	if n := busy.Load() - before; n != 1 {
		t.Errorf("a refusal was asked for %d times", n)
	}

	other := *f.Machine
	other.ServiceKey = wire.PublicKey(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	if _, err := remote.Dial(&other, remote.Options{}).History(t.Context()); !errors.Is(err, wire.ErrServiceKey) {
		t.Errorf("another service's key: %v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	c := f.Dial(remote.Options{DialContext: func(context.Context, string, string) (net.Conn, error) {
		cancel()
		return nil, errors.New("no route")
	}})
	if _, err := c.History(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// TestNotice: who uses the service is told once what its operator has to say, before anything else, and no more of it
// than a person reads; with nobody to tell it to, nothing is asked.
func TestNotice(t *testing.T) {
	f := remotetest.New(t)
	f.Enrol(remote.Options{}).Close()
	for text, want := range map[string]string{
		"":                           "",
		"Maintenance until noon.":    "Maintenance until noon.",
		strings.Repeat("ä", 1000):    strings.Repeat("ä", wire.MaxNotice/2) + "...",
		"x" + strings.Repeat("ä", 9): "x" + strings.Repeat("ä", 9),
	} {
		f.Notice = text
		var told []string
		c := f.Dial(remote.Options{Notify: func(s string) { told = append(told, s) }})
		for range 2 {
			if _, err := c.History(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		if want != "" {
			want = "notice from the operator of " + f.Machine.Address + ": " + want
		}
		if got := strings.Join(told, "|"); got != want {
			t.Errorf("the user is told %q, want %q", got, want)
		}
	}
	f.Served["hello"] = 0
	c := f.Dial(remote.Options{})
	defer c.Close()
	if _, err := c.History(t.Context()); err != nil || f.Served["hello"] != 0 {
		t.Errorf("%d hellos with nobody to tell of them, %v", f.Served["hello"], err)
	}
}

// TestNoticeOfRefusal: what the operator has to say stands in the error of a request that is refused.
func TestNoticeOfRefusal(t *testing.T) {
	f := remotetest.New(t)
	f.Enrol(remote.Options{}).Close()
	f.Hook = func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(wire.CodeMaintenance.Status())
		json.NewEncoder(w).Encode(wire.Error{Code: wire.CodeMaintenance, Message: "Not now.", Notice: "Back at noon, " + strings.Repeat("x", 4<<10)})
		return true
	}
	c := f.Dial(remote.Options{Patience: -1})
	defer c.Close()
	_, err := c.History(t.Context())
	if err == nil || !strings.Contains(err.Error(), "Not now (notice from the operator: Back at noon, x") || len(err.Error()) > wire.MaxNotice+300 {
		t.Errorf("refused with %v", err)
	}
}
