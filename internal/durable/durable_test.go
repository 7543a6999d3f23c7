package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestWriteFileReplaces(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	for _, c := range []string{"one", "", "three"} {
		if err := WriteFile(p, []byte(c), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(p)
		if err != nil || string(got) != c {
			t.Fatalf("got %q, %v; want %q", got, err, c)
		}
		st, _ := os.Stat(p)
		if st.Mode().Perm() != 0o640 {
			t.Fatalf("mode %v", st.Mode())
		}
	}
	noTemps(t, dir)
}

func TestWriteFileFailureKeepsTheOld(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(p, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(p, []byte("x"), 0o600); err == nil {
		t.Fatal("a directory was replaced by a file")
	}
	if err := WriteFile(filepath.Join(dir, "absent", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("writing into an absent directory: %v", err)
	}
	noTemps(t, dir)
}

// The check sees what was written, under another name, while the old file is still there; its refusal
// changes nothing.
func TestReplaceFileChecks(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "f")
	if err := WriteFile(p, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	for _, verdict := range []error{no, nil} {
		err := ReplaceFile(p, []byte("new"), 0o600, func(tmp string) error {
			got, err := os.ReadFile(tmp)
			if old, oerr := os.ReadFile(p); err != nil || oerr != nil || string(got) != "new" || string(old) != "old" || filepath.Dir(tmp) != dir {
				t.Errorf("%s holds %q, %s holds %q", tmp, got, p, old)
			}
			return verdict
		})
		want := map[bool]string{true: "new", false: "old"}[verdict == nil]
		if got, _ := os.ReadFile(p); !errors.Is(err, verdict) || string(got) != want {
			t.Errorf("the check said %v: %v, and the file holds %q", verdict, err, got)
		}
		noTemps(t, dir)
	}
}

func TestCreateFileRefusesWhatExists(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "key")
	if err := CreateFile(p, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CreateFile(p, []byte("second"), 0o600); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("got %v, want fs.ErrExist", err)
	}
	if got, _ := os.ReadFile(p); string(got) != "first" {
		t.Fatalf("the file became %q", got)
	}
	tmp := filepath.Join(dir, "t")
	os.WriteFile(tmp, nil, 0o600)
	if err := reserve(tmp, p); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("without hard links: got %v, want fs.ErrExist", err)
	}
	if err := reserve(tmp, p+"2"); err != nil {
		t.Fatal(err)
	}
	noTemps(t, dir)
}

func TestCreateFileHasOneWinner(t *testing.T) {
	p := filepath.Join(t.TempDir(), "key")
	var wg sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		wg.Go(func() { errs[i] = CreateFile(p, fmt.Append(nil, i), 0o600) })
	}
	wg.Wait()
	won := ""
	for i, err := range errs {
		if err == nil {
			won += fmt.Sprint(i, ";")
		}
	}
	got, _ := os.ReadFile(p)
	if won != string(got)+";" {
		t.Fatalf("winners %q, file %q", won, got)
	}
}

func TestMkdirAll(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := MkdirAll(p, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteFile(filepath.Join(p, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"f", "f/g"} {
		if err := MkdirAll(filepath.Join(p, bad), 0o700); err == nil {
			t.Fatalf("made the directory %s where f is a file", bad)
		}
	}
}

func noTemps(t *testing.T, dir string) {
	t.Helper()
	es, _ := os.ReadDir(dir)
	for _, e := range es {
		if strings.HasPrefix(e.Name(), TempPrefix) {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

// TestCreateFileThatFails: who is told that there is no file finds none, and can make it.
func TestCreateFileThatFails(t *testing.T) {
	no := errors.New("no")
	syncDir = func(string) error { return no }
	defer func() { syncDir = SyncDir }()
	p := filepath.Join(t.TempDir(), "key")
	if err := CreateFile(p, []byte("x"), 0o600); !errors.Is(err, no) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a file, or it cannot be looked at: %v", err)
	}
	noTemps(t, filepath.Dir(p))
	syncDir = SyncDir
	if err := CreateFile(p, []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
}
