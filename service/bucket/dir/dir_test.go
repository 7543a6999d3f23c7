package dir

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/part"
	"holdfast/service/bucket"
	"holdfast/service/bucket/buckettest"
)

func create(t testing.TB) *Bucket {
	t.Helper()
	b, err := Create(filepath.Join(t.TempDir(), "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConformance(t *testing.T) {
	buckettest.Conformance(t, func(t testing.TB) bucket.Bucket { return create(t) })
}

// TestMain lets the tests start this program as another process on the same bucket.
func TestMain(m *testing.M) {
	if job := os.Getenv("HOLDFAST_DIR_JOB"); job != "" {
		if err := child(job, os.Getenv("HOLDFAST_DIR_ROOT")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(job, root string) error {
	b, err := Open(root)
	if err != nil {
		return err
	}
	ctx := context.Background()
	switch job {
	case "count":
		return buckettest.Count(ctx, b, "cell/epoch", 50)
	case "put": // one object after another, each said only when it is stored
		for i := 0; ; i++ {
			key := fmt.Sprintf("cell/log/%d/%d-%d", i/10, i, os.Getpid())
			if err := b.Put(ctx, key, objectBody(key)); err != nil {
				return err
			}
			fmt.Println(key)
		}
	case "once":
		return b.Put(ctx, "cell/log/1", []byte("body"))
	}
	return fmt.Errorf("unknown job %q", job)
}

func start(t *testing.T, job, root string, prefix ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := append(prefix, exe)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "HOLDFAST_DIR_JOB="+job, "HOLDFAST_DIR_ROOT="+root)
	cmd.Stderr = os.Stderr
	return cmd
}

// objectBody is what the "put" job stores under key: up to a megabyte that nothing else would make.
func objectBody(key string) []byte {
	return bytes.Repeat([]byte(key+"\n"), 1+len(key)*len(key)*int(key[len(key)-1]-'0'+1)/2)
}

func TestTwoProcessesRacingSwap(t *testing.T) {
	b := create(t)
	const processes = 3
	var wg sync.WaitGroup
	for range processes {
		cmd := start(t, "count", b.root)
		wg.Go(func() {
			if err := cmd.Run(); err != nil {
				t.Error(err)
			}
		})
	}
	if err := buckettest.Count(t.Context(), b, "cell/epoch", 50); err != nil {
		t.Error(err)
	}
	wg.Wait()
	got, err := b.Get(t.Context(), "cell/epoch", 0, -1)
	if want := strconv.Itoa(50 * (processes + 1)); err != nil || string(got) != want {
		t.Fatalf("counted %q, %v; want %s: an update was lost", got, err, want)
	}
}

// A paused process that holds the lock makes others wait, but not longer than they want to.
func TestSwapGivesUpWaiting(t *testing.T) {
	b := create(t)
	l, err := os.OpenFile(filepath.Join(b.root, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := flock(l, syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := b.Swap(ctx, "e", nil, []byte("x")); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), lockName) {
		t.Fatal(err)
	}
	l.Close()
	if err := b.Swap(t.Context(), "e", nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
}

// kill -9 at 30 random moments: what was acknowledged is there, what is there is whole, and nothing
// half written stays beyond the next Open.
func TestKill(t *testing.T) {
	b := create(t)
	acked := map[string]bool{}
	leftovers := 0
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		cmd := start(t, "put", b.root)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(out)
		if !sc.Scan() {
			t.Fatal("the process stored nothing")
		}
		acked[sc.Text()] = true
		kill := time.AfterFunc(time.Duration(rnd.IntN(20_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		for sc.Scan() {
			acked[sc.Text()] = true
		}
		_ = cmd.Wait() // "signal: killed"
		kill.Stop()

		tmps, err := os.ReadDir(filepath.Join(b.root, tmpName))
		if err != nil {
			t.Fatal(err)
		}
		leftovers += len(tmps)
		if b, err = Open(b.root); err != nil {
			t.Fatal(err)
		}
		if tmps, _ := os.ReadDir(filepath.Join(b.root, tmpName)); len(tmps) > 0 {
			t.Fatalf("%d temporary files survived Open", len(tmps))
		}
	}
	n := 0
	err := bucket.ListAll(t.Context(), b, "", "", func(o bucket.Object) error {
		got, err := b.Get(t.Context(), o.Key, 0, -1)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, objectBody(o.Key)) {
			return fmt.Errorf("%s has %d bytes and is not whole", o.Key, len(got))
		}
		delete(acked, o.Key)
		n++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(acked) > 0 {
		t.Fatalf("%d acknowledged objects are gone: %v", len(acked), acked)
	}
	t.Logf("%d objects, %d temporary files left by the dead", n, leftovers)
}

// A living writer's temporary file survives another process's Open.
func TestOpenSparesTheLiving(t *testing.T) {
	b := create(t)
	f, err := b.create()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dead := filepath.Join(b.root, tmpName, "put-dead")
	if err := os.WriteFile(dead, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(b.root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(f.Name()); err != nil {
		t.Errorf("the living writer's file: %v", err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the dead writer's file: %v", err)
	}
}

// fakeSync counts directory syncs and fails while broken.
type fakeSync struct {
	mu     sync.Mutex
	broken bool
	done   []string
}

func (s *fakeSync) sync(dir string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return syscall.EIO
	}
	s.done = append(s.done, dir)
	return durable.SyncDir(dir)
}

func (s *fakeSync) took() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := strings.Join(s.done, " ")
	s.done = nil
	return out
}

// What a dead process renamed and did not sync is seen by the next one; it must be durable before
// anything is built on it.
func TestWhatIsShownIsDurable(t *testing.T) {
	b := create(t)
	if err := b.Put(t.Context(), "c/log/1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	all := strings.Join([]string{b.root, b.root, b.path("c"), b.path("c"), b.path("c/log")}, " ") // parents once more for each name below
	reopen := func() (*Bucket, *fakeSync) {
		n, err := Open(b.root)
		if err != nil {
			t.Fatal(err)
		}
		s := &fakeSync{}
		n.syncDir = s.sync
		return n, s
	}

	n, s := reopen()
	if _, err := n.Get(t.Context(), "c/log/1", 0, -1); err != nil {
		t.Fatal(err)
	}
	if got := s.took(); got != all {
		t.Errorf("the first Get synced %s, want %s", got, all)
	}
	if _, err := n.Get(t.Context(), "c/log/1", 0, -1); err != nil {
		t.Fatal(err)
	}
	if got := s.took(); got != "" {
		t.Errorf("the second Get synced %s", got)
	}
	if _, err := n.List(t.Context(), "c/log/", "", 0); err != nil {
		t.Fatal(err)
	}
	if got := s.took(); !strings.HasSuffix(got, b.path("c/log")) {
		t.Errorf("List synced %s", got)
	}

	// A Put whose last sync failed may have happened: nobody sees it before a sync succeeds.
	s.broken = true
	if err := n.Put(t.Context(), "c/log/2", []byte("y")); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"get":  errOf(n.Get(t.Context(), "c/log/2", 0, -1)),
		"list": errOf(n.List(t.Context(), "c/log/", "", 0)),
	} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s showed what is not durable: %v", what, err)
		}
	}
	s.broken = false
	if got, err := n.Get(t.Context(), "c/log/2", 0, -1); err != nil || string(got) != "y" {
		t.Fatal(got, err)
	}
	if got := s.took(); got != b.path("c/log") && !strings.HasSuffix(got, " "+b.path("c/log")) {
		t.Errorf("after the failure Get synced %q", got)
	}

	n, s = reopen()
	s.broken = true
	if err := n.Swap(t.Context(), "c/epoch", nil, []byte("1")); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := n.Put(t.Context(), "new/1", []byte("y")); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if _, err := os.Stat(b.path("new/1")); err == nil {
		t.Error("an object appeared in a directory that is not durable")
	}
}

func errOf[T any](_ T, err error) error { return err }

// The order of system calls is the durability: the file is synced before it is renamed, the directory
// after, and the directories were synced before anything was renamed into them.
func TestOrderOfSystemCalls(t *testing.T) {
	part.Need(t, "strace")
	b := create(t)
	log := filepath.Join(t.TempDir(), "strace")
	cmd := start(t, "once", b.root, "strace", "-f", "-y", "-o", log, "-e", "trace=fsync,rename,renameat,renameat2,mkdirat,mkdir,write")
	if out, err := cmd.Output(); err != nil {
		t.Skipf("strace does not work here: %v %s", err, out)
	}
	raw, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	// One word a call of interest, in order.
	var got []string
	for line := range strings.Lines(string(raw)) {
		_, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(strings.ReplaceAll(call, b.root, "ROOT"))
		for _, c := range []struct{ call, has, word string }{
			{"mkdir", `"ROOT/cell"`, "mkdir cell"}, {"mkdir", `"ROOT/cell/log"`, "mkdir log"},
			{"fsync", "<ROOT>", "sync root"}, {"fsync", "<ROOT/cell>", "sync cell"}, {"fsync", "<ROOT/cell/log>", "sync log"},
			{"write", "ROOT/.tmp/put-", "write"}, {"fsync", "ROOT/.tmp/put-", "sync file"}, {"rename", "ROOT/cell/log/1", "rename"},
		} {
			if strings.HasPrefix(call, c.call) && strings.Contains(call, c.has) {
				got = append(got, c.word)
			}
		}
	}
	want := "sync root, mkdir cell, sync root, sync cell, mkdir log, sync cell, sync log, write, sync file, rename, sync log"
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("got  %s\nwant %s\n%s", s, want, raw)
	}
}

func TestFailedPutLeavesNothing(t *testing.T) {
	b := create(t)
	if err := os.MkdirAll(b.path("c/dir/sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "c/dir", []byte("x")); err == nil {
		t.Fatal("an object replaced a directory")
	}
	if err := b.Put(t.Context(), "c/big", make([]byte, bucket.MaxObject+1)); err == nil {
		t.Fatal("an object beyond the limit was stored")
	}
	if tmps, _ := os.ReadDir(filepath.Join(b.root, tmpName)); len(tmps) > 0 {
		t.Fatalf("left behind: %v", tmps)
	}
}

// A full disk fails the Put, leaves nothing, and hurts nothing that is there.
func TestFullDisk(t *testing.T) {
	part.Need(t, part.Root)
	root := t.TempDir()
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount a small file system here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(root, 0) })
	b, err := Create(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "c/1", make([]byte, 600<<10)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := b.Put(t.Context(), "c/2", make([]byte, 600<<10)); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	if l, err := b.List(t.Context(), "", "", 0); err != nil || len(l) != 1 {
		t.Fatal(l, err)
	}
	if err := b.Delete(t.Context(), "c/1"); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "c/2", make([]byte, 600<<10)); err != nil {
		t.Fatal(err)
	}
}

func TestCreateRefusesWhatIsNoBucket(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(root); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Fatal(err)
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "mounted?") {
		t.Fatal("an empty directory was taken for a bucket:", err)
	}
	b := create(t)
	if err := os.WriteFile(filepath.Join(b.root, marker), []byte("holdfast bucket 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(b.root); err == nil || !strings.Contains(err.Error(), "format") {
		t.Fatal(err)
	}
}

// BenchmarkPut stores segments of the target size, synced.
func BenchmarkPut(b *testing.B) {
	bk, err := Create(filepath.Join(b.TempDir(), "bucket"))
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{4 << 10, 16 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			body := make([]byte, size)
			for i := range body {
				body[i] = byte(i * i >> 8)
			}
			b.SetBytes(int64(size))
			for i := 0; b.Loop(); i++ {
				if err := bk.Put(b.Context(), fmt.Sprintf("c/log/%d", i%8), body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestPagesOfADirectoryThatChanges: a page shows what was stored or deleted before it was asked for, by whomever, also
// where the page before has read the directory already; and a directory that does not change is read once.
func TestPagesOfADirectoryThatChanges(t *testing.T) {
	root := filepath.Join(t.TempDir(), "bucket")
	other, err := Create(root)
	must(t, err)
	reads := 0
	bk, err := openWith(root, func(call, path string, do func() error) error {
		if call == "read directory" && filepath.Base(path) == "log" {
			reads++
		}
		return do()
	})
	must(t, err)
	key := func(i int) string { return fmt.Sprintf("c/log/%02d", i) }
	for i := range 10 {
		must(t, bk.Put(t.Context(), key(2*i), nil))
	}
	page := func(prefix, after string, reading bool, want ...int) {
		t.Helper()
		before := reads
		l, err := bk.List(t.Context(), prefix, after, 3)
		must(t, err)
		var got, all []string
		for _, o := range l {
			got = append(got, o.Key)
		}
		for _, i := range want {
			all = append(all, key(i))
		}
		if !slices.Equal(got, all) {
			t.Errorf("after %q: %q, want %q", after, got, all)
		}
		if reads > before != reading {
			t.Errorf("after %q: the directory was read: %v, want %v", after, reads > before, reading)
		}
	}
	now := time.Now()
	// settled makes the directory one that was changed long ago.
	settled := func(ago time.Duration) {
		t.Helper()
		at := now.Add(-ago)
		must(t, os.Chtimes(filepath.Join(root, "c/log"), at, at))
	}
	page("c/log/", "", true, 0, 2, 4)
	page("c/log/", key(4), true, 6, 8, 10) // it was changed just before it was read
	settled(time.Hour)
	page("c/log/", "", true, 0, 2, 4)
	page("c/log/", key(4), false, 6, 8, 10)
	page("c/log/", key(9), false, 10, 12, 14)
	page("c/log/", key(6), false, 8, 10, 12)  // back
	page("c/log/1", key(9), true, 10, 12, 14) // other keys
	page("c/log/1", key(14), false, 16, 18)   // to the end
	page("c/log/1", key(9), true, 10, 12, 14) // and from before it
	page("c/log/", "", true, 0, 2, 4)
	must(t, other.Put(t.Context(), key(7), nil))
	page("c/log/", key(4), true, 6, 7, 8)
	settled(time.Hour)
	page("c/log/", "", true, 0, 2, 4)
	must(t, other.Delete(t.Context(), key(6)))
	page("c/log/", key(4), true, 7, 8, 10)
	settled(-time.Hour) // by a clock that is ahead
	page("c/log/", "", true, 0, 2, 4)
	page("c/log/", key(4), true, 7, 8, 10)
	settled(time.Hour)
	page("c/log/", "", true, 0, 2, 4)
	must(t, os.Rename(filepath.Join(root, "c/log"), filepath.Join(root, "c/old")))
	must(t, os.Mkdir(filepath.Join(root, "c/log"), 0o700))
	settled(time.Hour)
	page("c/log/", key(4), true)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// BenchmarkListAll lists a directory of a terabyte.
func BenchmarkListAll(b *testing.B) {
	bk := terabyte(b)
	at := time.Now().Add(-time.Minute)
	if err := os.Chtimes(bk.path("c/log"), at, at); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		n := 0
		if err := bucket.ListAll(b.Context(), bk, "c/log/", "", func(bucket.Object) error { n++; return nil }); err != nil || n != 65_001 {
			b.Fatal(n, err)
		}
	}
}

// terabyte returns a bucket with a directory of 65,001 objects.
func terabyte(b *testing.B) *Bucket {
	bk, err := Create(filepath.Join(b.TempDir(), "bucket"))
	if err != nil {
		b.Fatal(err)
	}
	if err := bk.Put(b.Context(), "c/log/x", nil); err != nil {
		b.Fatal(err)
	}
	for i := range 65_000 {
		if err := os.WriteFile(bk.path(fmt.Sprintf("c/log/%016x", i)), nil, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	return bk
}

// BenchmarkList asks for a page in the middle of a directory of a terabyte that is written to.
func BenchmarkList(b *testing.B) {
	bk := terabyte(b)
	for b.Loop() {
		if l, err := bk.List(b.Context(), "c/log/", fmt.Sprintf("c/log/%016x", 30_000), 0); err != nil || len(l) != bucket.MaxList {
			b.Fatal(len(l), err)
		}
	}
}
