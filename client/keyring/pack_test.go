package keyring

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast"
	"holdfast/client/protect"
)

// Every file comes back from its packed form, which is half as long.
func TestPack(t *testing.T) {
	texts := [][]byte{ownerFile().Encode()}
	for rights := holdfast.Rights(1); rights <= holdfast.RightsAll; rights++ {
		texts = append(texts, testMachine(rights).Encode())
	}
	for _, text := range texts {
		packed, err := Pack(text)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := Unpack(packed); err != nil || !bytes.Equal(back, text) {
			t.Fatalf("%v\n%s", err, back)
		}
		if 4*len(packed) > 3*len(text) {
			t.Errorf("%d bytes of %d", len(packed), len(text))
		}
		for i := range packed {
			if back, err := Unpack(packed[:i]); !errors.Is(err, ErrFile) {
				t.Fatalf("its first %d bytes are enough: %s", i, back)
			}
		}
	}
	for name, text := range map[string][]byte{"nothing": nil, "damaged": bytes.Replace(texts[0], []byte("words a"), []byte("words b"), 1), "a pending file": []byte("holdfast-pending 1\ncheck 00\n")} {
		if _, err := Pack(text); !errors.Is(err, ErrFile) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The same fields in another form, or two in one, are another spelling.
	r, err := read(texts[0])
	if err != nil {
		t.Fatal(err)
	}
	var asText []byte
	for _, line := range r.lines[:len(r.lines)-1] {
		name, value, _ := strings.Cut(line, " ")
		asText = append(asText, byte(slices.Index(fieldNames, name)+1), byte(len(value)>>8), byte(len(value)))
		asText = append(asText, value...)
	}
	first := "1\naddress " + ownerFile().Address
	joined := append([]byte{2, 0, byte(len(first))}, first...)
	packed, err := Pack(texts[0])
	if err != nil {
		t.Fatal(err)
	}
	joined = append(joined, packed[4+3+len(ownerFile().Address):]...)
	for name, b := range map[string][]byte{"all as text": asText, "two fields in one": joined} {
		if _, err := Unpack(b); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "not in their shortest form") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Unpack(make([]byte, maxFile+1)); !errors.Is(err, ErrFile) {
		t.Error(err)
	}
}

func FuzzUnpack(f *testing.F) {
	for _, text := range [][]byte{ownerFile().Encode(), testMachine(holdfast.RightsAll).Encode(), testMachine(holdfast.RightWrite).Encode()} {
		packed, err := Pack(text)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		text, err := Unpack(packed)
		if err != nil {
			if !errors.Is(err, ErrFile) {
				t.Fatal(err)
			}
			return
		}
		if again, err := Pack(text); err != nil || !bytes.Equal(again, packed) {
			t.Fatalf("%v: packs to %x, was %x", err, again, packed)
		}
	})
}

// FuzzLoad: whatever the path holds, and whatever comes out of its protection, Load returns a machine or an
// error, and opens only what is protected.
func FuzzLoad(f *testing.F) {
	machine := testMachine(holdfast.RightsAll).Encode()
	armored := protect.Armor([]byte("age-encryption.org/v1\n"))
	f.Add(machine, []byte(nil))
	f.Add(armored, machine)
	f.Add(armored, ownerFile().Encode())
	f.Add([]byte("age-encryption.org/v1\n"), machine)
	f.Add(armored, armored)
	path := filepath.Join(f.TempDir(), "key")
	f.Fuzz(func(t *testing.T, file, inside []byte) {
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		opened := 0
		m, err := Load(path, func(_ string, b []byte) ([]byte, error) {
			opened++
			if !bytes.Equal(b, file) && len(file) <= protect.MaxFile {
				t.Fatalf("asked to open %q", b)
			}
			return inside, nil
		})
		text := file
		if opened == 1 {
			text = inside
		}
		if opened > 1 || (opened == 1) != protect.Is(file) {
			t.Fatalf("opened %d times", opened)
		}
		if want, perr := Parse(text); (err == nil) != (perr == nil && len(file) <= protect.MaxFile) || err == nil && !bytes.Equal(want.Encode(), m.Encode()) {
			t.Fatalf("%v, %v", err, perr)
		}
	})
}

// What is saved with a sealer is what that made, and loads with the opener only.
func TestProtectedFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	m := testMachine(holdfast.RightsAll)
	sealed := protect.Armor([]byte("age-encryption.org/v1\nsealed"))
	var text []byte
	err := m.Save(path, func(b []byte) ([]byte, error) {
		text = bytes.Clone(b)
		return sealed, nil
	})
	if err != nil || !bytes.Equal(text, m.Encode()) {
		t.Fatalf("%v\n%s", err, text)
	}
	if got, err := ReadFile(path); err != nil || !bytes.Equal(got, sealed) {
		t.Fatalf("%v\n%s", err, got)
	}
	if _, err := Load(path, nil); !errors.Is(err, ErrProtected) {
		t.Fatal(err)
	}
	back, err := Load(path, func(p string, b []byte) ([]byte, error) {
		if p != path || !bytes.Equal(b, sealed) {
			t.Errorf("asked to open %s: %s", p, b)
		}
		return text, nil
	})
	if err != nil || !bytes.Equal(back.Encode(), m.Encode()) {
		t.Fatal(err)
	}
	locked := errors.New("no passphrase")
	if _, err := Load(path, func(string, []byte) ([]byte, error) { return nil, locked }); !errors.Is(err, locked) || !strings.Contains(err.Error(), path) {
		t.Fatal(err)
	}
	// An owner file inside is not a machine's key, and the other way round.
	if _, err := Load(path, func(string, []byte) ([]byte, error) { return ownerFile().Encode(), nil }); !errors.Is(err, ErrFile) {
		t.Fatal(err)
	}
	if _, err := LoadOwner(path, func(string, []byte) ([]byte, error) { return text, nil }); !errors.Is(err, ErrFile) {
		t.Fatal(err)
	}
	if err := SaveProtected(path, sealed); !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	// If sealing fails, there is no file.
	path += "2"
	if err := m.Save(path, func([]byte) ([]byte, error) { return nil, locked }); !errors.Is(err, locked) {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("a file is there")
	}
	os.WriteFile(path, []byte("age-encryption.org/v1\n"), 0o600)
	if _, err := Load(path, nil); !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "without armor") {
		t.Fatal(err)
	}
}
