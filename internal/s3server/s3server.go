// Package s3server starts real S3 servers for tests: versitygw or MinIO, on a free port of this machine, with a
// directory of their own and one bucket; the credentials are random, and one pair for all servers of a process. What a test
// started ends with it, also if it is killed.
package s3server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/part"
)

// Kind is a server: the name of its program, and of the part that a test needs (package part).
type Kind string

// The kinds.
const (
	Versity Kind = "versitygw" // fast and small; never syncs to disk
	MinIO   Kind = "minio"     // syncs; 500 MB of memory
)

// Kinds is all of them.
var Kinds = []Kind{Versity, MinIO}

const (
	// BucketName is the bucket that is there from the beginning.
	BucketName = "holdfast-test"
	region     = "us-east-1"
	patience   = 60 * time.Second // for a start, and for the end after SIGTERM
)

// Server is a server at work, or stopped. Its address, data and credentials stay the same over restarts. It is not
// safe for concurrent use, but for URL, Env and Endpoint.
type Server struct {
	Kind                 Kind
	Dir                  string // everything that it keeps
	AccessKey, SecretKey string // credentials

	address string
	cmd     *exec.Cmd
	ended   chan struct{} // closed when cmd has ended
	output  tail
}

// Start starts a server for a test, which is skipped if the program is not there.
func Start(t testing.TB, kind Kind) *Server {
	t.Helper()
	part.Need(t, string(kind))
	s, err := Launch(kind, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s said:\n%s", kind, s.Output())
		}
		s.Kill()
	})
	return s
}

// Launch starts a server that keeps its data in dir, which exists. The caller ends it with Kill or Stop. It is for tests that share one.
func Launch(kind Kind, dir string) (*Server, error) {
	s := &Server{Kind: kind, Dir: dir, AccessKey: accessKey, SecretKey: secretKey}
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		return nil, err
	}
	var err error
	for range 3 { // another process may take the port that was free
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		s.address = l.Addr().String()
		l.Close()
		if err = s.Restart(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

// The credentials of this process's servers. A test can open the buckets of several with one environment, which is the
// process's own: so tests that do may run side by side.
var accessKey, secretKey = random(10), random(20)

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// Endpoint returns the server's http:// address.
func (s *Server) Endpoint() string { return "http://" + s.address }

// Address returns the server's HOST:PORT.
func (s *Server) Address() string { return s.address }

// URL returns the address of the bucket, as holdfastd takes it.
func (s *Server) URL() string { return s.URLAt(s.Endpoint(), "cell") }

// URLAt returns the address of what is below a prefix in the bucket, through an endpoint that leads to the server.
func (s *Server) URLAt(endpoint, prefix string) string {
	return fmt.Sprintf("s3://%s/%s?endpoint=%s&region=%s", BucketName, prefix, url.QueryEscape(endpoint), region)
}

// Env returns variables, NAME=VALUE, that give a process the server's credentials and keep it from looking for others.
func (s *Server) Env() []string { return Env() }

// Env returns the same for all servers of this process, also those that are not started yet.
func Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey, "AWS_SESSION_TOKEN=", "AWS_PROFILE=",
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true",
	}
}

// Setenv gives this process the server's credentials, until the test ends.
func (s *Server) Setenv(t testing.TB) {
	for _, v := range s.Env() {
		for i := range v {
			if v[i] == '=' {
				t.Setenv(v[:i], v[i+1:])
				break
			}
		}
	}
}

// Restart starts the server, after Kill or Stop, and returns when it answers.
func (s *Server) Restart() error {
	if s.cmd != nil {
		return errors.New("it is running")
	}
	exe, err := exec.LookPath(string(s.Kind))
	if err != nil {
		return err
	}
	data := filepath.Join(s.Dir, "data")
	var cmd *exec.Cmd
	switch s.Kind {
	case Versity:
		cmd = exec.Command(exe, "--port", s.address, "--access", s.AccessKey, "--secret", s.SecretKey, "--region", region, "posix", data)
	case MinIO:
		cmd = exec.Command(exe, "server", data, "--address", s.address, "--certs-dir", s.Dir, "--quiet")
	default:
		return fmt.Errorf("no server is called %q", s.Kind)
	}
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + s.Dir, "TMPDIR=" + os.TempDir(), "GOMAXPROCS=2",
		"MINIO_ROOT_USER=" + s.AccessKey, "MINIO_ROOT_PASSWORD=" + s.SecretKey, "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=1",
	}
	cmd.Dir = s.Dir
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	cmd.SysProcAttr = endsWithUs()
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		_ = cmd.Wait() // how it ended is in its output
	}(s.ended)
	if err := s.ready(); err != nil {
		s.Kill()
		return fmt.Errorf("start %s: %w\n%s", s.Kind, err, s.Output())
	}
	return nil
}

// ready makes the bucket, again and again until it is there.
func (s *Server) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		status, err := s.Request(ctx, http.MethodPut, "/"+BucketName)
		if err == nil && (status == http.StatusOK || status == http.StatusConflict) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it answers %d", status)
		}
		select {
		case <-s.ended:
			return fmt.Errorf("it ended: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends the server at once, as a power cut of the process would.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// Stop ends the server in order.
func (s *Server) Stop() { s.end(syscall.SIGTERM) }

func (s *Server) end(sig os.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig) // it may have ended
	select {
	case <-s.ended:
	case <-time.After(patience):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
	s.cmd = nil
}

// Pause stops the server's process, so that it keeps its connections and answers nothing, until Resume or Kill.
func (s *Server) Pause() error {
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return awaitStopped(s.cmd.Process.Pid)
}

// Resume lets the server's process go on.
func (s *Server) Resume() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// Output returns the end of what the server printed.
func (s *Server) Output() string { return s.output.String() }

// Request sends a signed request without a body (AWS Signature Version 4) and returns the status of its answer. path has no
// parameters and needs no escaping.
func (s *Server) Request(ctx context.Context, method, path string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.Endpoint()+path, nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum(nil)))
	s.Sign(r, time.Now())
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	return res.StatusCode, err
}

// Sign signs a request as one that was made at now, in the place of any signature that it has. Its header says what the
// hash of its body is.
func (s *Server) Sign(r *http.Request, now time.Time) {
	now = now.UTC()
	stamp, day := now.Format("20060102T150405Z"), now.Format("20060102")
	r.Host = s.address
	r.Header.Set("X-Amz-Date", stamp)
	names := []string{"host"}
	values := map[string]string{"host": s.address}
	for name, v := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") {
			names = append(names, name)
			values[name] = strings.TrimSpace(strings.Join(v, ","))
		}
	}
	slices.Sort(names)
	headers := ""
	for _, name := range names {
		headers += name + ":" + values[name] + "\n"
	}
	query := strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20") // sorted
	canonical := fmt.Sprintf("%s\n%s\n%s\n%s\n%s\n%s", r.Method, r.URL.EscapedPath(), query, headers, strings.Join(names, ";"), values["x-amz-content-sha256"])
	scope := day + "/" + region + "/s3/aws4_request"
	key := []byte("AWS4" + s.SecretKey)
	for _, p := range []string{day, region, "s3", "aws4_request"} {
		key = mac(key, p)
	}
	sig := mac(key, fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", stamp, scope, sum([]byte(canonical))))
	r.Header.Set("Authorization", fmt.Sprintf("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%x", s.AccessKey, scope, strings.Join(names, ";"), sig))
}

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (o *tail) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	const most = 64 << 10
	o.buf.Write(p)
	if over := o.buf.Len() - most; over > 0 {
		o.buf.Next(over)
	}
	return len(p), nil
}

func (o *tail) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}
