package keyring

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"holdfast"
)

func ownerFile() OwnerFile {
	m := testMachine(holdfast.RightsAll)
	return OwnerFile{OwnerOf(testSeed()), m.Vault, m.Address, m.ServiceKey, m.LogKey}
}

func TestFileVectors(t *testing.T) {
	golden(t, "testdata/machine.key", testMachine(holdfast.RightsAll).Encode())
	golden(t, "testdata/write-only.key", testMachine(holdfast.RightWrite|holdfast.RightDelete).Encode())
	golden(t, "testdata/owner.key", ownerFile().Encode())
}

func TestFilesComeBack(t *testing.T) {
	for rights := holdfast.Rights(1); rights <= holdfast.RightsAll; rights++ {
		m := testMachine(rights)
		path := filepath.Join(t.TempDir(), "key")
		if err := m.Save(path, nil); err != nil {
			t.Fatal(err)
		}
		back, err := Load(path, nil)
		if err != nil || !reflect.DeepEqual(back, m) {
			t.Fatalf("%s: %v", rights, err)
		}
		if err := m.Save(path, nil); !errors.Is(err, fs.ErrExist) {
			t.Fatalf("it replaced a key file: %v", err)
		}
		if runtime.GOOS == "windows" {
			continue
		}
		if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
			t.Fatalf("mode %v", st.Mode())
		}
		for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
			os.Chmod(path, mode)
			if _, err := Load(path, nil); !errors.Is(err, ErrOpenToOthers) || !strings.Contains(err.Error(), "chmod 600 "+path) {
				t.Fatalf("mode %v: %v", mode, err)
			}
		}
	}
	// Whoever names a directory by mistake must not be told to change its mode.
	if _, err := Load(t.TempDir(), nil); !errors.Is(err, ErrFile) || strings.Contains(err.Error(), "chmod") {
		t.Fatalf("a directory: %v", err)
	}
	path := filepath.Join(t.TempDir(), "owner")
	if err := SaveOwner(path, ownerFile(), nil); err != nil {
		t.Fatal(err)
	}
	if f, err := LoadOwner(path, nil); err != nil || f != ownerFile() {
		t.Fatal(err)
	}
	if err := SaveOwner(path, ownerFile(), nil); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("it replaced an owner file: %v", err)
	}
}

// What could not be read back is not written.
func TestSaveRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	m := testMachine(holdfast.RightsAll)
	m.Address = "host:1\nvault 00"
	f := ownerFile()
	f.Address = ""
	if err := m.Save(path, nil); !errors.Is(err, ErrFile) {
		t.Fatal(err)
	}
	if err := SaveOwner(path, f, nil); !errors.Is(err, ErrFile) {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("a file is there")
	}
}

// Any flipped bit is an error or falls into a comment; so is any end cut off.
func TestDamage(t *testing.T) {
	for _, name := range []string{"machine.key", "write-only.key", "owner.key"} {
		text, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		parse := func(b []byte) (any, error) { return Parse(b) }
		if name == "owner.key" {
			parse = func(b []byte) (any, error) { return ParseOwner(b) }
		}
		whole, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		for i := range text {
			for bit := range 8 {
				b := bytes.Clone(text)
				b[i] ^= 1 << bit
				if got, err := parse(b); err == nil && !reflect.DeepEqual(got, whole) {
					t.Fatalf("%s: bit %d of byte %d changes the content", name, bit, i)
				} else if err == nil && i > bytes.Index(text, []byte("\nholdfast-")) {
					t.Fatalf("%s: bit %d of byte %d means nothing", name, bit, i)
				} else if err != nil && !errors.Is(err, ErrFile) {
					t.Fatal(err)
				}
			}
			if _, err := parse(text[:i]); err == nil {
				t.Fatalf("%s: its first %d bytes are enough", name, i)
			}
		}
	}
}

func resum(lines ...string) []byte {
	var w writer
	for _, l := range lines {
		w.b = append(w.b, l+"\n"...)
	}
	return w.sum()
}

// With a right check sum, the form is still strict.
func TestStrict(t *testing.T) {
	text := string(testMachine(holdfast.RightsAll).Encode())
	var good []string
	for _, l := range strings.Split(strings.TrimSpace(text), "\n") {
		if l[0] != '#' && !strings.HasPrefix(l, "check ") {
			good = append(good, l)
		}
	}
	if _, err := Parse(resum(good...)); err != nil {
		t.Fatal(err)
	}
	with := func(from, to string) []byte {
		s := strings.Replace(strings.Join(good, "\n"), from, to, 1)
		if s == strings.Join(good, "\n") {
			t.Fatalf("no %q", from)
		}
		return resum(strings.Split(s, "\n")...)
	}
	for name, b := range map[string][]byte{
		"version":        with("holdfast-key 1", "holdfast-key 2"),
		"another file":   with("holdfast-key 1", "holdfast-owner 1"),
		"field missing":  resum(good[:len(good)-1]...),
		"field too many": resum(append(append([]string{}, good...), "extra 1")...),
		"field twice":    resum(append([]string{good[0]}, good...)...),
		"order":          resum(append([]string{good[1], good[0]}, good[2:]...)...),
		"no address":     with("address backup.example.org:7420", "address backup"),
		"upper case":     with("vault 090807", "vault 0908A7"),
		"short":          with("vault 09", "vault "),
		"rights":         with("rights write,read,delete", "rights read,write,delete"),
		"no rights":      with("rights write,read,delete", "rights none"),
		"fewer rights":   with("rights write,read,delete", "rights write"),
		"chunk":          with("chunk 262144", "chunk 262145"),
		"chunk too big":  with("chunk 262144", "chunk 2097152"),
		"chunk spelling": with("chunk 262144", "chunk 0262144"),
		"two spaces":     with("vault ", "vault  "),
		"no check":       []byte(strings.Join(good, "\n") + "\n"),
		"after check":    append(resum(good...), "more 1\n"...),
		"too long":       append(resum(good...), bytes.Repeat([]byte("#\n"), maxFile)...),
		"empty":          {},
	} {
		if _, err := Parse(b); !errors.Is(err, ErrFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What the decoder of base64 passes over (found by FuzzParse).
	form := string(testMachine(holdfast.RightWrite).Encode())
	form = form[strings.Index(form, "holdfast-key"):strings.Index(form, "check ")]
	i := strings.Index(form, "read-key ") + 50
	if _, err := Parse(resum(strings.Split(strings.TrimSpace(form), "\n")...)); err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(resum(strings.Split(strings.TrimSpace(form[:i]+"\r"+form[i:]), "\n")...)); !errors.Is(err, ErrFile) {
		t.Errorf("carriage return in base64: %v", err)
	}
	text = string(ownerFile().Encode())
	fields := strings.Split(strings.TrimSpace(text[strings.Index(text, "holdfast-owner"):]), "\n")
	fields = fields[:len(fields)-1]
	if _, err := ParseOwner(resum(fields...)); err != nil {
		t.Fatal(err)
	}
	words := fields[len(fields)-1]
	for name, w := range map[string]string{
		"capitals":    "words " + strings.ToUpper(words[6:]),
		"two spaces":  strings.Replace(words, "words ", "words  ", 1),
		"a word less": words[:strings.LastIndex(words, " ")],
	} {
		if _, err := ParseOwner(resum(append(fields[:len(fields)-1:len(fields)-1], w)...)); !errors.Is(err, ErrFile) {
			t.Errorf("owner file, %s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(testMachine(holdfast.RightsAll).Encode())
	f.Add(testMachine(holdfast.RightWrite).Encode())
	f.Add(ownerFile().Encode())
	f.Fuzz(func(t *testing.T, text []byte) {
		// The check sum would keep the fuzzer out: give it the right one.
		var fields []byte
		for l := range bytes.Lines(text) {
			if len(l) > 1 && l[0] != '#' && !bytes.HasPrefix(l, []byte("check ")) {
				fields = append(fields, bytes.TrimSuffix(l, []byte("\n"))...)
				fields = append(fields, '\n')
			}
		}
		w := writer{fields}
		text = w.sum()
		if m, err := Parse(text); err == nil {
			if got := m.Encode()[len(machineComment):]; !bytes.Equal(got, text) {
				t.Fatalf("re-encodes to\n%s", got)
			}
		}
		if o, err := ParseOwner(text); err == nil {
			if got := o.Encode()[len(ownerComment):]; !bytes.Equal(got, text) {
				t.Fatalf("re-encodes to\n%s", got)
			}
		}
	})
}
