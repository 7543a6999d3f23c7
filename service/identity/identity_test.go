package identity

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast"
)

// fixed is the identity behind testdata/identity.txt.
func fixed() *Identity {
	id := &Identity{
		Cell:    holdfast.CellID{1, 2, 3, 4, 5, 6, 7, 8},
		Bucket:  "file:///srv/holdfast/bucket",
		Address: "backup.example.org:7440",
	}
	for i := range id.TLS {
		id.TLS[i], id.Log[i] = byte(i), byte(0x80+i)
	}
	return id
}

func TestVector(t *testing.T) {
	want, err := os.ReadFile("testdata/identity.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got := fixed().Encode(); !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	id, err := Parse(want)
	if err != nil {
		t.Fatal(err)
	}
	if *id != *fixed() {
		t.Errorf("got %+v", id)
	}
}

// TestDamage flips every bit and cuts at every place: the text is refused, or only a comment changed.
func TestDamage(t *testing.T) {
	good := fixed().Encode()
	try := func(what string, i int, text []byte) {
		id, err := Parse(text)
		if err == nil && *id != *fixed() {
			t.Errorf("%s at byte %d gives another identity: %+v", what, i, id)
		}
		if err != nil && !errors.Is(err, ErrFile) {
			t.Errorf("%s at byte %d: %v", what, i, err)
		}
		if err == nil && i >= len(header)+1 {
			t.Errorf("%s at byte %d goes unnoticed", what, i)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			try("flipped bit", i, bad)
		}
		if _, err := Parse(good[:i]); !errors.Is(err, ErrFile) {
			t.Errorf("cut at byte %d: %v", i, err)
		}
	}
	if _, err := Parse(append(good, "x y\n"...)); !errors.Is(err, ErrFile) {
		t.Errorf("something after the end: %v", err)
	}
	if _, err := Parse(bytes.Repeat([]byte("#\n"), maxFile)); !errors.Is(err, ErrFile) {
		t.Errorf("too long: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(fixed().Encode())
	f.Fuzz(func(t *testing.T, text []byte) {
		id, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(id.Encode())
		if err != nil || *again != *id {
			t.Fatalf("%+v does not survive: %+v, %v", id, again, err)
		}
	})
}

func TestFileIsSecretAndNeverOverwritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	id, err := New("file:///b", "h:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Create(path); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v", st.Mode())
	}
	other, _ := New("file:///b", "h:1")
	if err := other.Create(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Create: %v", err)
	}
	got, err := Load(path)
	if err != nil || *got != *id {
		t.Fatalf("Load: %+v, %v", got, err)
	}
	os.Chmod(path, 0o640)
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("Load of a file that others can read: %v", err)
	}
	if _, err := Load(filepath.Dir(path)); err == nil {
		t.Error("Load of a directory succeeded")
	}
}

func TestNewRefusesWhatCannotBeWritten(t *testing.T) {
	for _, c := range [][2]string{{"file:///a\nb", "h:1"}, {"", "h:1"}, {"file:///b", "h"}, {"file:///b", ":1"}, {"file:///b ", "h:1"}} {
		if _, err := New(c[0], c[1]); err == nil {
			t.Errorf("New(%q, %q) succeeded", c[0], c[1])
		}
	}
}
