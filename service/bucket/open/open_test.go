package open

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestPath(t *testing.T) {
	for in, want := range map[string]string{
		"file:///srv/holdfast":     "/srv/holdfast",
		"file:///srv/holdfast/":    "/srv/holdfast",
		"file:///srv/with%20space": "/srv/with space",
		"FILE:///srv/a%3Fb%23c":    "/srv/a?b#c",
	} {
		if got, err := path(in); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", in, got, err, want)
		}
	}
	for in, hint := range map[string]string{
		"":                   "no scheme",
		"/srv/holdfast":      "file:///PATH",
		"srv":                "file:///PATH",
		"file://srv/bucket":  "three slashes",
		"file:srv/bucket":    "three slashes",
		"file://":            "three slashes",
		"file://me@/srv":     "three slashes",
		"file:///srv?x=1":    "%3F",
		"file:///srv?":       "%3F",
		"file:///srv#x":      "%23",
		"gs://bucket/prefix": "s3://BUCKET/PREFIX",
		"file:///\x00":       "not a URL",
		"file:///a%zz":       "not a URL",
	} {
		if got, err := path(in); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: %q, %v; want an error that mentions %q", in, got, err, hint)
		}
	}
}

func TestCreateThenOpen(t *testing.T) {
	u := "file://" + filepath.Join(t.TempDir(), "new", "bucket")
	if _, err := Bucket(u); err == nil || !strings.Contains(err.Error(), "disk mounted?") {
		t.Fatalf("opening what was never created: %v", err)
	}
	b, err := Create(u)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "k", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, f := range []func(string) error{
		func(u string) error { _, err := Bucket(u); return err },
		func(u string) error { _, err := Create(u); return err },
	} {
		if err := f(u); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := b.Get(t.Context(), "k", 0, -1); err != nil || string(got) != "x" {
		t.Fatal(got, err)
	}
}
