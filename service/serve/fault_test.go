package serve

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestFaults: a panic in a request ends it, and is logged with where it was; one that only breaks the connection is not.
func TestFaults(t *testing.T) {
	var log bytes.Buffer
	s := &Server{log: slog.New(slog.NewTextHandler(&log, nil))}
	ends := func(with any) (as any) {
		defer func() { as = recover() }()
		h := s.faults(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(with) }))
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
		return nil
	}
	if e := ends(http.ErrAbortHandler); e != http.ErrAbortHandler || log.Len() > 0 {
		t.Errorf("a broken connection ends as %v, logged: %s", e, &log)
	}
	if e := ends("index out of range"); e != http.ErrAbortHandler {
		t.Errorf("a fault ends as %v", e)
	}
	if !strings.Contains(log.String(), "index out of range") || !strings.Contains(log.String(), "TestFaults") || !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("logged: %s", &log)
	}
}
