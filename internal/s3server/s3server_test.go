package s3server

import (
	"net/http"
	"testing"
)

// What a server keeps is there after it was killed and started again, at the same address.
func TestRestart(t *testing.T) {
	for _, kind := range Kinds {
		t.Run(string(kind), func(t *testing.T) {
			s := Start(t, kind)
			ask := func(method, path string, want int) {
				t.Helper()
				if got, err := s.Request(t.Context(), method, path); err != nil || got != want {
					t.Fatalf("%s %s: %d, %v; want %d", method, path, got, err, want)
				}
			}
			ask(http.MethodPut, "/"+BucketName+"/object", http.StatusOK)
			was := s.Endpoint()
			s.Kill()
			if _, err := s.Request(t.Context(), http.MethodHead, "/"+BucketName+"/object"); err == nil {
				t.Fatal("a killed server answers")
			}
			if err := s.Restart(); err != nil {
				t.Fatal(err)
			}
			if s.Endpoint() != was {
				t.Errorf("it moved from %s to %s", was, s.Endpoint())
			}
			ask(http.MethodHead, "/"+BucketName+"/object", http.StatusOK)
			ask(http.MethodHead, "/"+BucketName+"/other", http.StatusNotFound)
			s.Stop()
		})
	}
}
