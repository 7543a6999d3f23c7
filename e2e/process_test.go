//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"holdfast/internal/part"
)

// Ceilings on resident memory, bytes.
const (
	maxClient  = 200 << 20
	maxService = 300 << 20
)

// scratch returns an empty directory that other users may enter, removed after the test.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			exec.Command("chmod", "-R", "u+rwx", dir).Run()
			os.RemoveAll(dir)
		}
	})
	return dir
}

// remove removes what a test is done with: many run side by side, and share a disk.
func remove(t testing.TB, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}
}

// tail keeps what a process wrote last, for messages of tests. It is safe for concurrent use.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (o *tail) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf = append(o.buf, p...)
	if len(o.buf) > 1<<20 {
		o.buf = append(o.buf[:0], o.buf[len(o.buf)-1<<19:]...)
	}
	return len(p), nil
}

func (o *tail) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.buf)
}

// service is one holdfastd with its data directory and bucket.
type service struct {
	t       testing.TB
	program string // "": holdfastd; or one that was built in another way
	data    string
	place   place  // of the bucket
	bucket  string // the bucket's directory; "" if it is in none
	address string
	args    []string // more for serve

	cmd  *exec.Cmd // nil while it is down
	log  *tail
	done chan struct{} // closed when cmd has ended
}

// newService makes a cell with its bucket in a fresh directory and starts it. It is stopped with the test.
func newService(t testing.TB) *service {
	t.Helper()
	return newServiceAt(t, directory(t), nil)
}

// newServiceAt makes a cell with its bucket in a place and starts it. It is stopped with the test. If f is not nil,
// clients reach the service through it.
func newServiceAt(t testing.TB, p place, f *front) *service {
	t.Helper()
	dir := filepath.Dir(p.dir) // of both, where they are directories
	if p.dir == "" {
		dir = scratch(t)
	}
	s := &service{t: t, data: filepath.Join(dir, "data"), place: p, bucket: p.dir, address: freeAddress(t)}
	reached := s.address
	if f != nil {
		f.set(s.address)
		reached, s.args = f.l.Addr().String(), []string{"--listen", s.address}
	}
	s.begin(reached)
	return s
}

// begin makes the cell and starts the service, which is stopped with the test. Clients reach it at an address.
func (s *service) begin(reached string) {
	s.t.Helper()
	s.admin("init", "--data", s.data, "--bucket", s.place.url, "--address", reached)
	s.t.Cleanup(func() {
		s.kill()
		if s.t.Failed() && s.log != nil {
			s.t.Logf("holdfastd wrote:\n%s", s.log)
		}
	})
	s.start()
}

// nextPort is where freeAddress goes on: below what the kernel gives to those who ask for any port, a connection's own
// side included, so that nobody takes the port of a service that is down for a moment.
var nextPort atomic.Int64

func init() { nextPort.Store(rand.Int64N(ports)) }

const firstPort, ports = 12_000, 20_000

// freeAddress returns a loopback address whose port nobody listens on just now, and no other test will.
func freeAddress(t testing.TB) string {
	t.Helper()
	for range ports {
		address := fmt.Sprintf("127.0.0.1:%d", firstPort+nextPort.Add(1)%ports)
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no port is free")
	return ""
}

// admin runs holdfastd with args, which must succeed, and returns its standard output.
func (s *service) admin(args ...string) string {
	s.t.Helper()
	out, code := s.try(args...)
	if code != 0 {
		s.t.Fatalf("holdfastd %s: exit %d\n%s", strings.Join(args, " "), code, out.stderr)
	}
	return out.stdout
}

func (s *service) try(args ...string) (outcome, int) {
	s.t.Helper()
	o := execute(s.t, s.place.environ(), cmp.Or(s.program, holdfastd), args...)
	return o, o.code
}

// start starts serving and waits until the service says that it is ready.
func (s *service) start() {
	s.t.Helper()
	s.cmd = exec.Command(cmp.Or(s.program, holdfastd), append([]string{"serve", "--data", s.data}, s.args...)...)
	s.cmd.Env = s.place.environ()
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if s.log == nil {
		s.log = &tail{}
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan struct{})
	cmd := s.cmd
	go func() {
		defer close(done)
		said := false
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			fmt.Fprintln(s.log, sc.Text())
			if !said && strings.Contains(sc.Text(), "ready") {
				said = true
				close(ready)
			}
		}
		cmd.Wait()
	}()
	s.done = done
	select {
	case <-ready:
	case <-done:
		s.t.Fatalf("holdfastd serve ended before it was ready:\n%s", s.log)
	case <-time.After(time.Minute):
		s.t.Fatalf("holdfastd serve was not ready within a minute:\n%s", s.log)
	}
}

// kill ends the service without warning, as a power cut would.
func (s *service) kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		<-s.done
		s.cmd = nil
	}
}

// stop ends the service as an operator does and checks that it went cleanly.
func (s *service) stop() {
	s.t.Helper()
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		s.t.Fatalf("holdfastd did not stop within a minute of SIGTERM:\n%s", s.log)
	}
	if !s.cmd.ProcessState.Success() {
		s.t.Errorf("holdfastd ended with %v after SIGTERM:\n%s", s.cmd.ProcessState, s.log)
	}
	s.cmd = nil
}

// peak returns the most memory that the running service has had resident, and fails above the ceiling.
func (s *service) peak() int64 {
	s.t.Helper()
	n := statusField(s.t, s.cmd.Process.Pid, "VmHWM")
	if n > maxService {
		s.t.Errorf("the service had %d MiB resident, more than %d", n>>20, maxService>>20)
	}
	return n
}

// token adds an account and returns its enrolment token.
func (s *service) token(account string) string {
	s.t.Helper()
	return strings.TrimSpace(s.admin("account", "add", account, "--data", s.data))
}

// bucketBytes is the size of everything in the bucket.
func (s *service) bucketBytes() (n int64) {
	s.t.Helper()
	if s.bucket != "" {
		return treeBytes(s.t, s.bucket)
	}
	for _, o := range s.place.objects(s.t) {
		n += o.Size
	}
	return n
}

func treeBytes(t testing.TB, dir string) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) { // a temporary file may go while we look
		t.Fatal(err)
	}
	return n
}

// clean checks the view against the bucket and every checksum; the service is down meanwhile.
func (s *service) clean() {
	s.t.Helper()
	if s.cmd != nil {
		s.stop()
	}
	s.admin("check", "--data", s.data)
	s.start()
}

// client is one enrolled machine.
type client struct {
	t       testing.TB
	program string // "": holdfast; or one that was built in another way
	dir     string
	env     []string
	uid     uint32 // 0: whoever runs the tests
}

// newClient enrols a machine with a vault of its own. Extra arguments go to init.
func newClient(t testing.TB, s *service, extra ...string) *client {
	t.Helper()
	c := unenrolled(t)
	c.enrol(s, extra...)
	return c
}

// unenrolled returns a client with no key file yet.
func unenrolled(t testing.TB) *client {
	t.Helper()
	c := &client{t: t, dir: scratch(t)}
	c.use(c.dir)
	return c
}

// use sets the place of the client's key file and caches.
func (c *client) use(dir string) {
	c.dir = dir
	c.env = append(os.Environ(),
		"HOME="+dir, "XDG_CONFIG_HOME="+dir+"/config", "XDG_CACHE_HOME="+dir+"/cache", "XDG_STATE_HOME="+dir+"/state", "XDG_DATA_HOME="+dir+"/share",
		"HOLDFAST_KEY="+c.key())
}

func (c *client) key() string   { return filepath.Join(c.dir, "key") }
func (c *client) cache() string { return filepath.Join(c.dir, "cache") }

func (c *client) enrol(s *service, extra ...string) {
	c.t.Helper()
	c.ok(append([]string{"init", "--token", s.token("account-" + filepath.Base(c.dir)), "--key", c.key(), "--owner", filepath.Join(c.dir, "owner")}, extra...)...)
}

// asUser makes the client run as an unprivileged user, who then owns its directory.
func (c *client) asUser() *client {
	c.t.Helper()
	part.Need(c.t, part.Root)
	c.uid = 65534
	if err := filepath.WalkDir(c.dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, int(c.uid), int(c.uid))
	}); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// outcome is how a program ended.
type outcome struct {
	code           int
	stdout, stderr string
	rss            int64 // most memory resident, bytes
	read, written  int64 // bytes through read and write calls: files, pipes and sockets together
	took           time.Duration
}

// run runs holdfast with args to its end and checks the ceiling on its memory.
func (c *client) run(args ...string) outcome {
	c.t.Helper()
	p := c.begin(args...)
	return p.wait()
}

// ok runs holdfast with args, which must end with 0.
func (c *client) ok(args ...string) outcome {
	c.t.Helper()
	return c.exits(0, args...)
}

// exits runs holdfast with args, which must end with code.
func (c *client) exits(code int, args ...string) outcome {
	c.t.Helper()
	o := c.run(args...)
	if o.code != code {
		c.t.Fatalf("holdfast %s: exit %d, want %d\n%s%s", strings.Join(args, " "), o.code, code, o.stdout, o.stderr)
	}
	return o
}

// begin starts holdfast with args.
func (c *client) begin(args ...string) *process {
	c.t.Helper()
	return launch(c.t, c.env, c.uid, cmp.Or(c.program, holdfast), args...)
}

// process is a program that runs.
type process struct {
	t       testing.TB
	args    []string
	cmd     *exec.Cmd
	out     bytes.Buffer
	err     bytes.Buffer
	began   time.Time
	parent  int64 // peak of this process when the program began, bytes
	cancel  context.CancelFunc
	expired context.Context
}

// patience is how long a program may run before the test gives up on it.
const patience = 20 * time.Minute

func launch(t testing.TB, env []string, uid uint32, program string, args ...string) *process {
	t.Helper()
	p := &process{t: t, args: args, began: time.Now()}
	p.expired, p.cancel = context.WithTimeout(context.Background(), patience)
	p.cmd = exec.CommandContext(p.expired, program, args...)
	p.cmd.Env = env
	p.cmd.Dir = "/"
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.err
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid != 0 {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	forgetPeak(t)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.parent = statusField(t, os.Getpid(), "VmHWM")
	return p
}

// forgetPeak makes the peak of this process what it has resident now: a child's figure begins with that.
func forgetPeak(t testing.TB) {
	t.Helper()
	if statusField(t, os.Getpid(), "VmHWM") < maxClient/2 {
		return
	}
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Logf("the peak of this process stays: %v", err)
	}
}

// wait waits for the end of the program and returns how it went.
func (p *process) wait() outcome {
	p.t.Helper()
	defer p.cancel()
	var o outcome
	peak := peakAtExit(p.cmd.Process.Pid)
	o.read, o.written = traffic(p.cmd.Process.Pid)
	p.cmd.Wait()
	o.took = time.Since(p.began)
	if p.expired.Err() == context.DeadlineExceeded {
		p.t.Fatalf("%s did not end within %v\n%s", p.cmd, patience, &p.err)
	}
	o.code = p.cmd.ProcessState.ExitCode()
	o.stdout, o.stderr = p.out.String(), p.err.String()
	// On Linux a child's figure begins with what its parent had resident at the time of exec, so that a
	// large test process would hide a small program. It never makes a large one look small. While a test beside this one
	// is large, what is hardly larger than that (the kernel counts pages in lots) says nothing, and what was seen of the
	// program itself counts.
	o.rss = p.cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
	if o.rss > p.parent+p.parent/8 {
		peak = o.rss
	}
	if p.cmd.Path == holdfast && peak > maxClient {
		p.t.Errorf("holdfast %s had %d MiB resident, more than %d", strings.Join(p.args, " "), peak>>20, maxClient>>20)
	}
	if strings.Contains(o.stderr, "goroutine ") && (p.cmd.Path != holdfastd || o.code != 5) { // an event that must never happen says where
		p.t.Errorf("%s shows a stack trace:\n%s", p.cmd, o.stderr)
	}
	return o
}

// killAfter kills the program once it has read (or written) n bytes more than nothing, and reports
// whether it was still running then.
func (p *process) killAfter(counter func(pid int) int64, n int64) (killed bool) {
	p.t.Helper()
	defer p.cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		awaitExit(p.cmd.Process.Pid)
	}()
	for tick := time.NewTicker(2 * time.Millisecond); ; {
		select {
		case <-ended:
			tick.Stop()
			p.cmd.Wait()
			return !p.cmd.ProcessState.Exited() // by our signal, if by one
		case <-tick.C:
			if counter(p.cmd.Process.Pid) >= n {
				p.cmd.Process.Kill()
				n = 1 << 62
			}
		}
	}
}

func execute(t testing.TB, env []string, program string, args ...string) outcome {
	t.Helper()
	return launch(t, env, 0, program, args...).wait()
}

// peakAtExit waits as awaitExit does, and returns the most that was seen resident, bytes; of a program that ended at once, nothing.
func peakAtExit(pid int) (peak int64) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		awaitExit(pid)
	}()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		select {
		case <-ended:
			tick.Stop()
			return peak
		case <-tick.C:
			if n, ok := sizeIn(pid, "VmHWM"); ok {
				peak = n
			}
		}
	}
}

// awaitExit returns when the process has ended, and leaves it to be waited for.
func awaitExit(pid int) {
	const pPID, wexited, wnowait = 1, 4, 0x01000000
	var info [128]byte
	for {
		_, _, e := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), wexited|wnowait, 0, 0)
		if e != syscall.EINTR {
			return
		}
	}
}

// traffic returns the bytes that a process has read and written through system calls.
func traffic(pid int) (read, written int64) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(raw)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
		n, _ := strconv.ParseInt(v, 10, 64)
		switch k {
		case "rchar":
			read = n
		case "wchar":
			written = n
		}
	}
	return read, written
}

func bytesRead(pid int) int64    { n, _ := traffic(pid); return n }
func bytesWritten(pid int) int64 { _, n := traffic(pid); return n }

// statusField returns a size from /proc/PID/status in bytes.
func statusField(t testing.TB, pid int, field string) int64 {
	t.Helper()
	n, ok := sizeIn(pid, field)
	if !ok {
		t.Fatalf("no %s in the status of process %d", field, pid)
	}
	return n
}

// sizeIn is statusField of a process that may have ended.
func sizeIn(pid int, field string) (bytes int64, ok bool) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			return n << 10, err == nil
		}
	}
	return 0, false
}

// sent returns the bytes that the running service has written, nearly all of them to clients while no
// client uploads.
func (s *service) sent() int64 {
	s.t.Helper()
	return bytesWritten(s.cmd.Process.Pid)
}

// zombie reports whether a process has ended and was not waited for, or is gone.
func zombie(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	i := bytes.LastIndexByte(raw, ')')
	return i+2 < len(raw) && raw[i+2] == 'Z'
}
