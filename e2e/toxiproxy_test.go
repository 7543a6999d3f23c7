//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/part"
)

// line is the connection between a service and its S3 server, which passes through toxiproxy.
type line struct {
	t        testing.TB
	api      string // of toxiproxy, the proxy's own path
	endpoint string // for the service
}

// newLine starts toxiproxy between a service and the endpoint of its S3 server.
func newLine(t testing.TB, endpoint string) *line {
	t.Helper()
	part.Need(t, "toxiproxy-server")
	host, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("toxiproxy-server", "-host", host, "-port", port)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	up, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	l := &line{t: t, api: "http://" + net.JoinHostPort(host, port) + "/proxies"}
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		r, err := http.Get(l.api)
		if err == nil {
			r.Body.Close()
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatalf("toxiproxy does not answer: %v", err)
		}
	}
	var made struct {
		Listen string `json:"listen"`
	}
	l.call(http.MethodPost, "", map[string]any{"name": "s3", "listen": "127.0.0.1:0", "upstream": up.Host, "enabled": true}, &made)
	l.api += "/s3"
	l.endpoint = "http://" + made.Listen
	return l
}

func (l *line) call(method, path string, send, got any) {
	l.t.Helper()
	var body io.Reader
	if send != nil {
		raw, err := json.Marshal(send)
		if err != nil {
			l.t.Fatal(err)
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, l.api+path, body)
	if err != nil {
		l.t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Body.Close()
	raw, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", r.Status, raw)
	}
	if err == nil && got != nil {
		err = json.Unmarshal(raw, got)
	}
	if err != nil {
		l.t.Fatalf("toxiproxy: %s %s: %v", method, path, err)
	}
}

// toxic is something wrong with a line.
type toxic struct {
	kind       string // toxiproxy's name
	upstream   bool   // on the way to the store, not from it
	toxicity   float64
	attributes map[string]int
}

func (x toxic) name() string {
	if x.upstream {
		return x.kind + "-up"
	}
	return x.kind + "-down"
}

// with runs fn while something is wrong with the line.
func (l *line) with(fn func(), all ...toxic) {
	l.t.Helper()
	for _, x := range all {
		stream := "downstream"
		if x.upstream {
			stream = "upstream"
		}
		l.call(http.MethodPost, "/toxics", map[string]any{"name": x.name(), "type": x.kind, "stream": stream, "toxicity": x.toxicity, "attributes": x.attributes}, nil)
	}
	fn()
	for _, x := range all {
		l.call(http.MethodDelete, "/toxics/"+x.name(), nil, nil)
	}
}
