//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// aheadBy is the variable that says by how many seconds the clock of a program is ahead, if it was built for that.
const aheadBy = "HOLDFAST_AHEAD"

// aheadPrograms builds both programs with another standard library: in its package time, Now is ahead by as much as a variable
// says. The compiler takes those files instead of its own (-overlay); not a line of the programs is another.
// Nothing less would do: Go asks the kernel's page for the time, so that no library and no tracer is in between, and
// time namespaces do not move the clock on the wall.
var aheadPrograms = sync.OnceValues(func() (dir string, err error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	lib := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	src, err := os.ReadFile(filepath.Join(lib, "time.go"))
	if err != nil {
		return "", err
	}
	const reads = "sec, nsec, mono := runtimeNow()\n"
	if bytes.Count(src, []byte("\t"+reads)) != 1 {
		return "", fmt.Errorf("package time does not read the clock as this test expects: %q", reads)
	}
	src = bytes.Replace(src, []byte(reads), []byte(reads+"\tsec += ahead\n"), 1)
	dir = filepath.Join(filepath.Dir(holdfastd), "ahead")
	const by = `package time

import "syscall"

var ahead = func() (n int64) {
	s, _ := syscall.Getenv("` + aheadBy + `")
	for _, c := range []byte(s) {
		n = 10*n + int64(c-'0')
	}
	return n
}()
`
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": string(src), "ahead.go": by} {
		file := filepath.Join(dir, "lib", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[filepath.Join(lib, name)] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o644); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-o", dir, "../cmd/holdfast", "../cmd/holdfastd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs with a clock that can be ahead: %w\n%s", err, out)
	}
	return dir, nil
})

// days is a service and clients for whom days pass, without anybody waiting for them.
type days struct {
	t       *testing.T
	s       *service
	clients []*client
	seconds atomic.Int64 // the clock of all of them is ahead
	dir     string       // of the programs
}

// newDays makes a cell with its bucket in p. The store's clock goes with the others.
func newDays(t *testing.T, p place) *days {
	t.Helper()
	d := &days{t: t}
	var err error
	if d.dir, err = aheadPrograms(); err != nil {
		t.Fatal(err)
	}
	if p.server != nil {
		p = p.through(d.before(p))
	}
	p.env = append(p.env[:len(p.env):len(p.env)], aheadBy+"=0")
	dir := filepath.Dir(p.dir)
	if p.dir == "" {
		dir = scratch(t)
	}
	d.s = &service{t: t, program: filepath.Join(d.dir, "holdfastd"), data: filepath.Join(dir, "data"), place: p, bucket: p.dir, address: freeAddress(t)}
	d.s.begin(d.s.address)
	return d
}

// before puts a proxy before an S3 server that lives in the days of the service: a request's time is moved back and signed
// anew, and the answer's time is moved ahead.
func (d *days) before(p place) string {
	to, err := url.Parse(p.server.Endpoint())
	if err != nil {
		d.t.Fatal(err)
	}
	ahead := func() time.Duration { return time.Duration(d.seconds.Load()) * time.Second }
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			if at, err := time.Parse("20060102T150405Z", r.In.Header.Get("X-Amz-Date")); err == nil {
				p.server.Sign(r.Out, at.Add(-ahead()))
			}
		},
		ModifyResponse: func(r *http.Response) error {
			at, err := http.ParseTime(r.Header.Get("Date"))
			if err == nil {
				r.Header.Set("Date", at.Add(ahead()).UTC().Format(http.TimeFormat))
			}
			return err
		},
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, ExpectContinueTimeout: time.Second},
		ErrorLog:  log.New(io.Discard, "", 0), // a killed service hangs up
	}
	srv := httptest.NewServer(forward)
	d.t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
		forward.Transport.(*http.Transport).CloseIdleConnections()
	})
	return srv.URL
}

// client enrols a machine.
func (d *days) client() *client {
	d.t.Helper()
	c := unenrolled(d.t)
	c.program = filepath.Join(d.dir, "holdfast")
	d.clients = append(d.clients, c)
	c.env = append(c.env, d.env())
	c.enrol(d.s)
	return c
}

func (d *days) env() string { return fmt.Sprintf("%s=%d", aheadBy, d.seconds.Load()) }

// pass lets days pass between the end of the service and its next start. More than 14 at a time would look like a clock
// that was set wrong (JOURNAL 14).
func (d *days) pass(days int) {
	d.t.Helper()
	if d.s.cmd != nil {
		d.s.stop()
	}
	d.seconds.Add(int64(days) * 24 * 3600)
	d.s.place.env[len(d.s.place.env)-1] = d.env()
	for _, c := range d.clients {
		c.env[len(c.env)-1] = d.env()
	}
	d.s.start()
}
